"""What can be seen of a search from its run folder, while it goes on and afterwards."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import plotly.graph_objects as go

from pareto_search import archive, decide, plots, results
from pareto_search.candidate import Evaluation
from pareto_search.config import SearchConfig
from pareto_search.errors import ConfigError
from pareto_search.objective import Constraint, Objective
from pareto_search.results import Document
from pareto_search.service.record import ConflictError, MissingError
from pareto_search.store import Store


class View:
    """A look at a run folder.

    Raises:
        ConflictError: the search has not begun; every method does then.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        if not (run / "search.db").is_file():
            raise ConflictError("the search has not begun to record anything; look again in a moment")
        self._config = SearchConfig.load(run / "search.yaml")

    def front(self) -> Document:
        """The content of front.json; of a search that goes on, what is known: no test scores, perhaps no baselines."""
        if (self._run / results.FRONT).is_file():
            return {**results.load_front(self._run), "final": True}
        with self._store() as store:
            config, record, candidates = self._config, store.search, {c.id: c for c in store.candidates()}
            front = archive.front(store.evaluations(), config.objectives, config.constraints, config.search.steps)
            entries = [
                results.entry(e, candidates[e.candidate], 0, 0.0, {}) for e in results.chosen(front, config.objectives)
            ]
            for entry in entries:  # known at the end only
                del entry["lineage_steps"], entry["seconds"]
            volume = archive.hypervolume([e["validation"] for e in entries], config.objectives)
            return {
                "search": record.name,
                "seed": record.seed,
                "objectives": [asdict(o) for o in config.objectives],
                "hypervolume": {"validation": volume},
                "front": entries,
                "baselines": store.fact("baselines") or [],
                "curves": store.fact("curves") or {},
                "final": False,
            }

    def archive(self, offset: int, limit: int) -> tuple[int, list[Evaluation]]:
        """How many evaluations there are, and some of them in the order in which they came."""
        with self._store() as store:
            evaluations = store.evaluations()
        return len(evaluations), list(islice(evaluations, offset, offset + limit))

    def candidate(self, name: str) -> Document:
        """A candidate with its attempts, its scores at each rung and its line of descent, nearest first.

        Raises:
            MissingError: there is no such candidate.
        """
        with self._store() as store:
            candidates = {c.id: c for c in store.candidates()}
            if name not in candidates:
                raise MissingError(f"candidate '{name[:80]}' is not in this search; the archive lists them")
            line, todo = [], [*candidates[name].parents]
            while todo:
                parent = todo.pop(0)
                if parent in candidates and parent not in line:
                    line.append(parent)
                    todo += candidates[parent].parents
            mine = [e for e in store.evaluations() if e.candidate == name]
            return {
                **asdict(candidates[name]),
                "ancestors": [asdict(candidates[parent]) for parent in line],
                "attempts": [asdict(a) for a in store.attempts() if a.candidate == name],
                "evaluations": [asdict(e) | {"entry": e.entry} for e in mine],
            }

    def plot(self, kind: str, x: str | None, y: str | None, part: plots.Part) -> go.Figure:
        """A figure of the report.

        Raises:
            ConfigError: `x` or `y` is no objective.
        """
        if kind == "timeline":
            return self._timeline()
        front = self._final()
        if kind == "parallel":
            return plots.parallel(front)
        evaluations = self._full()
        if kind == "pairwise":
            return plots.pairwise(front, evaluations, part)
        names = [o["name"] for o in front["objectives"]]
        return plots.pair(front, evaluations, x or names[0], y or names[1], part)

    def select(
        self, weights: Mapping[str, float], bounds: Sequence[str], best: str | None
    ) -> tuple[Document, str, list[str]]:
        """The entry that preferences, bounds or neither (the knee) select, why, and which entries keep the bounds.

        Raises:
            ConfigError: a name or a bound does not fit.
            RunError: no entry keeps the bounds.
        """
        front = self.front()
        objectives = [Objective(**o) for o in front["objectives"]]
        constraints = [Constraint.parse(bound) for bound in bounds]
        values = [e["validation"] for e in front["front"]]
        if weights and best:
            raise ConfigError("prefer and best are two ways to select; give one of them")
        # Asked first, because it has the words for unknown names and for bounds out of reach.
        within = decide.where(values, objectives, constraints, best or objectives[0].name)
        kept = [i for i, v in enumerate(values) if all(c.violation(v[c.metric]) == 0 for c in constraints)]
        among = [values[i] for i in kept]
        if best:
            index, reason = within.index, within.reason
        else:
            choice = decide.prefer(among, objectives, weights) if weights else decide.knee(among, objectives)
            index, reason = kept[choice.index], choice.reason
        return front["front"][index], reason, [front["front"][i]["entry"] for i in kept]

    def _timeline(self) -> go.Figure:
        with self._store() as store:
            config = self._config
            moments = results.moments(store, config.objectives, config.constraints, config.search.steps)
            curve = (store.fact("curves") or {}).get("practitioner")
        volume = archive.hypervolume([p["validation"] for p in curve], config.objectives) if curve else None
        return plots.timeline(moments, volume)

    def _final(self) -> Document:
        if not (self._run / results.FRONT).is_file():
            raise ConflictError(
                "the search has not ended, and this plot needs its test scores; plot timeline meanwhile"
            )
        return results.load_front(self._run)

    def _full(self) -> list[Evaluation]:
        with self._store() as store:
            return [e for e in store.evaluations() if e.steps == self._config.search.steps]

    @contextmanager
    def _store(self) -> Iterator[Store]:
        store = Store.open(self._run / "search.db", self._config.name)
        try:
            yield store
        finally:
            store.close()


def compare(fronts: Mapping[str, Document]) -> Document:
    """Several fronts by the objectives that all of them have, and the hypervolume of each by these.

    Raises:
        ConfigError: they have fewer than two objectives in common.
    """
    each = [[Objective(**o) for o in front["objectives"]] for front in fronts.values()]
    common = [o for o in each[0] if all(o in others for others in each)]
    if len(common) < 2:
        raise ConfigError("the searches share fewer than two objectives with the same reference and ideal")
    searches = []
    for name, front in fronts.items():
        parts = ("validation", "test") if front["final"] else ("validation",)
        values = {
            part: [e["validation"] if part == "validation" else results.means(e["test"]) for e in front["front"]]
            for part in parts
        }
        searches.append(
            {
                "id": name,
                "name": front["search"],
                "data_sha256": front.get("data_sha256"),
                "hypervolume": {part: archive.hypervolume(points, common) for part, points in values.items()},
                "front": [
                    {"entry": e["entry"], "validation": e["validation"], "test": e["test"]} for e in front["front"]
                ],
            }
        )
    return {"objectives": [asdict(o) for o in common], "searches": searches}
