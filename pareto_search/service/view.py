"""What can be seen of a search from its run folder, while it goes on and afterwards."""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import plotly.graph_objects as go

from pareto_search import archive, decide, plots, results
from pareto_search.candidate import WARM_START, Candidate, Evaluation
from pareto_search.config import SearchConfig
from pareto_search.errors import AbsentError, ConfigError
from pareto_search.objective import Constraint
from pareto_search.results import Document
from pareto_search.service.jobs import Jobs
from pareto_search.service.record import ConflictError, MissingError
from pareto_search.store import Store

KEPT = 16
"""How many searches are kept in mind."""


class Views:
    """Looks at the searches of a service, kept from request to request: what was read of a record is not read again."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._lock = threading.Lock()
        self._kept: dict[str, View] = {}

    def __call__(self, search: str) -> "View":
        """The look at a search.

        Raises:
            MissingError: there is no such search.
            ConflictError: it has not begun.
        """
        run = self._jobs.run(search)
        with self._lock:
            view = self._kept.pop(search, None) or View(run)
            self._kept[search] = view
            while len(self._kept) > KEPT:  # the one that nobody has looked at for longest
                self._kept.pop(next(iter(self._kept))).close()
        return view


class View:
    """A look at a run folder, for several threads; documents that it returns are not to be changed."""

    def __init__(self, run: Path) -> None:
        """Opens nothing yet.

        Raises:
            ConflictError: the search has not begun; every method does then.
        """
        if not (run / "search.yaml").is_file():
            raise _not_begun()
        self._run, self._config = run, SearchConfig.load(run / "search.yaml")
        self._lock = threading.RLock()
        self._opened: Store | None = None
        self._revision, self._position = -1, 0
        self._evaluations: dict[tuple[str, int, int], Evaluation] = {}
        self._front: list[Evaluation] = []
        self._candidates: dict[str, Candidate] = {}
        self._told: tuple[object, Document, bytes] = (None, {}, b"")
        self._moments: tuple[int, list[tuple[float, float, str]]] = (-1, [])

    def close(self) -> None:
        """Gives back files and connections."""
        with self._lock:
            if self._opened is not None:
                self._opened.close()
                self._opened = None

    def front(self) -> Document:
        """The content of front.json; of a search that goes on, what is known: no test scores, perhaps no baselines."""
        return self._tell()[1]

    def front_json(self) -> bytes:
        """The same as JSON."""
        return self._tell()[2]

    @property
    def _store(self) -> Store:
        with self._lock:
            if self._opened is None:
                try:
                    self._opened = Store.open(self._config.store or self._run / "search.db", self._config.name)
                except AbsentError:
                    raise _not_begun() from None
            return self._opened

    def _tell(self) -> tuple[object, Document, bytes]:
        """The front as a document and as JSON, made anew when what it is made of has changed."""
        with self._lock:
            try:
                file = (self._run / results.FRONT).stat()
                state: object = (file.st_ino, file.st_mtime_ns, file.st_size)
            except FileNotFoundError:
                state = self._read()
            if self._told[0] != state:
                final = isinstance(state, tuple)
                document = {**results.load_front(self._run), "final": True} if final else self._growing()
                self._told = (state, document, json.dumps(document).encode())
            return self._told

    def _read(self) -> int:
        """Takes in what has been recorded since; the record's revision, which is asked for first and so never late."""
        revision = self._store.revision
        if revision != self._revision:
            self._position, news = self._store.evaluations_after(self._position)
            found = {(e.candidate, e.steps, e.setting): e for e in news}
            # A retry replaces what an attempt has scored; what the warm start's first towers dominated may come back.
            again = not self._evaluations.keys().isdisjoint(found) or any(e.candidate == WARM_START for e in news)
            self._evaluations |= found
            among = self._evaluations.values() if again else [*self._front, *found.values()]
            config = self._config
            self._front = archive.front(list(among), config.objectives, config.constraints, config.search.steps)
            self._revision = revision
        return revision

    def _growing(self) -> Document:
        store, config = self._store, self._config
        chosen = results.chosen(self._front, config.objectives)
        if any(e.candidate not in self._candidates for e in chosen):
            self._candidates = {c.id: c for c in store.candidates()}
        entries = [results.entry(e, self._candidates[e.candidate], 0, 0.0, {}, fuses={}) for e in chosen]
        for entry in entries:  # known at the end only
            del entry["lineage_steps"], entry["seconds"], entry["fuses"]
        record = store.search
        return {
            "search": record.name,
            "seed": record.seed,
            "objectives": [asdict(o) for o in config.objectives],
            "hypervolume": {"validation": archive.hypervolume([e["validation"] for e in entries], config.objectives)},
            "front": entries,
            "baselines": store.fact("baselines") or [],
            "curves": store.fact("curves") or {},
            "final": False,
        }

    def _seen(self) -> list[Evaluation]:
        """Every evaluation, in the order in which they came."""
        with self._lock:
            self._read()
            return list(self._evaluations.values())

    def archive(self, offset: int, limit: int) -> tuple[int, list[Evaluation]]:
        """How many evaluations there are, and some of them in the order in which they came."""
        evaluations = self._seen()
        return len(evaluations), list(islice(evaluations, offset, offset + limit))

    def candidate(self, name: str) -> Document:
        """A candidate with its attempts, its scores at each rung and its line of descent, nearest first.

        Raises:
            MissingError: there is no such candidate.
        """
        candidates = {c.id: c for c in self._store.candidates()}
        if name not in candidates:
            raise MissingError(f"candidate '{name[:80]}' is not in this search; the archive lists them")
        line, todo = [], [*candidates[name].parents]
        while todo:
            parent = todo.pop(0)
            if parent in candidates and parent not in line:
                line.append(parent)
                todo += candidates[parent].parents
        mine = [e for e in self._seen() if e.candidate == name]
        return {
            **asdict(candidates[name]),
            "ancestors": [asdict(candidates[parent]) for parent in line],
            "attempts": [asdict(a) for a in self._store.attempts() if a.candidate == name],
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
        objectives = results.objectives_of(front)
        constraints = [Constraint.parse(bound) for bound in bounds]
        values = [e["validation"] for e in front["front"]]
        choice, kept = decide.within(values, objectives, constraints, weights=weights, best=best)
        return front["front"][choice.index], choice.reason, [front["front"][i]["entry"] for i in kept]

    def _timeline(self) -> go.Figure:
        config, revision = self._config, self._store.revision
        if self._moments[0] != revision:
            found = results.moments(self._store, config.objectives, config.constraints, config.search.steps)
            self._moments = (revision, found)
        curve = (self._store.fact("curves") or {}).get("practitioner")
        volume = archive.hypervolume([p["validation"] for p in curve], config.objectives) if curve else None
        return plots.timeline(self._moments[1], volume)

    def _final(self) -> Document:
        front = self.front()
        if not front["final"]:
            raise ConflictError(
                "the search has not ended, and this plot needs its test scores; plot timeline meanwhile"
            )
        return front

    def _full(self) -> list[Evaluation]:
        return [e for e in self._seen() if e.steps == self._config.search.steps]


def _not_begun() -> ConflictError:
    return ConflictError("the search has not begun to record anything; look again in a moment")


def compare(fronts: Mapping[str, Document]) -> Document:
    """Several fronts by the objectives that all of them have, and the hypervolume of each by these.

    Raises:
        ConfigError: they have fewer than two objectives in common.
    """
    each = [results.objectives_of(front) for front in fronts.values()]
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
