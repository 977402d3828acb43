"""Puts a search and its workers together: the one place that knows both."""

import os
import secrets
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pareto_search import checkpoint, refreshing, results
from pareto_search.archive import choose
from pareto_search.candidate import Evaluation
from pareto_search.config import SearchConfig
from pareto_search.errors import CheckpointError, ConfigError, DataError, RunError
from pareto_search.objective import is_feasible
from pareto_search.question import Canary
from pareto_search.recsys.dataset import Dataset, load
from pareto_search.recsys.metrics import parse_metric
from pareto_search.recsys.split import Split, split
from pareto_search.render import write
from pareto_search.report import report
from pareto_search.results import Document, write_whole
from pareto_search.search import Progress, Search
from pareto_search.space import BLENDED, metric_family
from pareto_search.store import SearchRecord, Store, lock
from pareto_search.workers.base import locate
from pareto_search.workers.recommender import joined
from pareto_search.workers.worker import Workload

if TYPE_CHECKING:
    from pareto_search.workers.pool import RayPool

BASELINES = ("popularity", "item-knn", "ease", "sasrec", "frozen-encoder", "warm-start")
CURVES: Mapping[str, Sequence[tuple[str, tuple[str, ...]]]] = {
    "practitioner": (("ease", ()), ("sasrec", ()), ("sasrec", ("ease",))),
    "warm-start": (("warm-start", ("ease", "sasrec")),),
}
"""What the front is compared with: for each curve its models, with the components blended into each."""
SQUARE = ("item-knn", "ease")
"""Baselines that grow with the square of the catalogue, and are left out where it is large."""
CURVE_SETTINGS = 16
"""A baseline's inner search has this many times the settings of a candidate's: it has no earlier one to start from,
and what it finds for the warm start is where all candidates start."""


@dataclass(frozen=True)
class Watcher:
    """Who is told how a search goes.

    Attributes:
        notice: takes one line of text.
        progress: is called after every candidate.
    """

    notice: Callable[[str], None] = lambda _: None
    progress: Callable[[Progress], None] = lambda _: None


def run_search(
    config: SearchConfig,
    run: str | Path,
    *,
    address: str | None = None,
    retrain: bool = False,
    refreshes: str | Path | None = None,
    watcher: Watcher | None = None,
) -> Document:
    """Runs a search to the end of its budget, or resumes it, and returns the content of its `front.json`.

    Args:
        run: the run folder; a new one, or one of a search with the same config but for budget and workers.
        address: of a running Ray cluster; None starts a local Ray.
        retrain: whether entries that inherited weights are also trained from scratch, as a control.
        refreshes: the run folder of an older search, from whose front a new search begins; see `refresh`.

    Raises:
        UserError: the data, the base model, the run folder or the cluster does not fit.
    """
    run, watcher = Path(run), watcher or Watcher()
    _claim(run, config)
    with lock(run):
        data = load(**config.data.arguments())
        _check(config, data)
        for reason, number in data.dropped.items():
            watcher.notice(f"Left out {reason}: {number}.")
        parts = split(data, config.data.split, config.data.tie_seed)
        if refreshes is not None:
            base = locate(config.model.base, config.model.revision)
            older = load_config(Path(refreshes))
            for line in refreshing.take_over(Path(refreshes), older, run, data, parts, base_sha256=base.sha256):
                watcher.notice(line)
        elif not (run / "search.yaml").is_file():
            refreshing.discard(run)
        store = _open(config, run, data, parts, watcher)
        try:
            search = Search(config, store, run, refreshing.forerunners(run))
            if search.is_over and not retrain and (run / results.FRONT).is_file():
                return results.load_front(run)  # nothing new to look at, so test is not touched again
            (run / results.FRONT).unlink(missing_ok=True)  # it would speak for a search that has gone on
            watcher.notice("Starting workers.")
            if address is None:
                _want_token()
            from pareto_search.workers.pool import RayPool  # only now: Ray reads its environment when it is imported

            workers = config.workers
            with RayPool(
                workload(config, data, parts),
                count=workers.count,
                cpus=workers.cpus,
                gpus=workers.gpus,
                pack=workers.pack,
                timeout=config.search.candidate_timeout * workers.pack,
                address=address,
            ) as pool:
                launch = _Launch(run, search, pool, watcher)
                launch.prepare()
                search.run(pool, watcher.progress)
                return launch.finish(retrain)
        finally:
            store.close()


def refresh(
    run: str | Path,
    data: str,
    out: str | Path,
    *,
    name: str | None = None,
    address: str | None = None,
    retrain: bool = False,
    watcher: Watcher | None = None,
) -> Document:
    """Searches newer data from the front of an older search, and shows both fronts on the newer test part.

    Args:
        run: the older search's folder, of which nothing is changed.
        data: as for `SearchConfig.refreshed`.
        out: the newer search's folder; `run_search` and `resume` go on with it.
        name: of the newer search, which a shared store wants to be another one.
        address, retrain, watcher: as for `run_search`.

    Raises:
        UserError: the data, the base model, a run folder or the cluster does not fit.
    """
    config = load_config(Path(run)).refreshed(data, name)
    return run_search(config, out, address=address, retrain=retrain, refreshes=run, watcher=watcher)


def deploy(
    run: Path,
    names: Sequence[str],
    *,
    token: str,
    canary: Canary | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
    address: str | None = None,
) -> None:
    """Serves entries of a run over HTTP, or lets the deployment on a cluster change over to them; see workers.serving.

    Raises:
        UserError: an entry, the data, the port or the cluster does not fit.
    """
    front = results.load_front(run)
    for name in [*names, canary.entry] if canary else names:
        results.find_entry(front, name)
    if address is None:
        _want_token()
    try:
        from pareto_search.workers import serving  # only now, for the same reason
    except ImportError as error:
        raise ConfigError(f"deploy needs {error.name}: pip install 'pareto-search[deploy]'") from None

    data = load(**load_config(run).data.arguments())
    serving.deploy(
        run, names, data, token=token, canary=canary, host=host, port=port, replicas=replicas, address=address
    )


def application(args: Mapping[str, Any]) -> Any:
    """Entries of a run as an application of Ray Serve: `import_path: pareto_search.launch:application` in its config.

    Args:
        args: `run`, a folder that every node sees, and `entries`, a list. The token is PARETO_SEARCH_TOKEN.

    Raises:
        UserError: an entry, the data or the token is not there.
    """
    from pareto_search.workers import serving

    run, token = Path(args["run"]), os.environ.get("PARETO_SEARCH_TOKEN")
    if not token:
        raise ConfigError("set PARETO_SEARCH_TOKEN on every node, for clients to give")
    front = results.load_front(run)
    for name in args["entries"]:
        results.find_entry(front, name)
    return serving.application(run, args["entries"], load(**load_config(run).data.arguments()), token=token)


def load_config(run: Path) -> SearchConfig:
    """The config of a run folder.

    Raises:
        RunError: the folder holds no search.
    """
    path = run / "search.yaml"
    if not path.is_file():
        raise RunError(
            f"{run} holds no search; expected a run folder, which 'pareto-search run CONFIG --out RUN' makes"
        )
    return SearchConfig.load(path)


def _claim(run: Path, config: SearchConfig) -> None:
    """Takes a new folder, or one that holds the same search."""
    if (run / "search.yaml").is_file():
        held = load_config(run)
        if held.identity() != config.identity():
            raise RunError(f"{run} holds a search of another config; give --out another folder")
        if held.store != config.store:
            raise RunError(f"the record of {run} is in another store; give the config that it was begun with")
    elif run.exists() and not all(
        p.name == refreshing.FOLDER or p.name.lstrip(".").startswith("search.") for p in run.iterdir()
    ):
        raise RunError(f"{run} is not empty and holds no search; give --out a new folder")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{run} cannot be made ({error.strerror}); give --out a folder that can") from None


def _want_token() -> None:
    """Lets a Ray of our own refuse whoever has no token: it runs code for anyone who reaches its ports."""
    if "ray" not in sys.modules and os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _check(config: SearchConfig, data: Dataset) -> None:
    """Refuses what the data cannot give."""
    asked = [*(o.name for o in config.objectives), *(c.metric for c in config.constraints)]
    for family, given, kind in (
        ("credibility", data.ratings, "ratings"),
        ("calibration", data.categories, "categories"),
    ):
        needy = next((name for name in asked if metric_family(name) == family), None)
        if needy is not None and given is None:
            raise ConfigError(f"{needy} needs {kind}, and {data.name} has none; leave it out or name their column")
    if config.data.split == "temporal" and not data.timed:
        raise ConfigError(f"split temporal needs timestamps, and {data.name} has none; use leave_last_out")
    longest = max(asked, key=lambda name: parse_metric(name)[1])
    if parse_metric(longest)[1] > len(data.item_ids):
        raise ConfigError(f"{longest} needs more items than the {len(data.item_ids)} of {data.name}; lower its cut-off")


def _open(config: SearchConfig, run: Path, data: Dataset, parts: Split, watcher: Watcher) -> Store:
    """The record, begun if it is not there yet; search.yaml comes first, so that a kill in between can be mended."""
    base = locate(config.model.base, config.model.revision)
    if not (run / "search.yaml").is_file():
        write_whole(run / "search.yaml", config.to_yaml())
    where = config.store or run / "search.db"
    try:
        store = Store.open(where, config.name, watcher.notice)
    except RunError as error:
        record = SearchRecord(
            name=config.name,
            identity=config.identity(),
            config=config.to_yaml(),
            seed=config.search.seed,
            data_sha256=data.sha256,
            split_sha256=parts.sha256,
            base_id=base.id,
            base_sha256=base.sha256,
            lanes=config.workers.count,
        )
        try:
            store = Store.create(where, record)
        except RunError:
            raise error from None  # it is there, and this is why it cannot be opened
        with store.transaction() as changes:
            changes.put_fact("run", str(run.resolve()))
    # A shared store names the folder that has the checkpoints; one's own may be moved with its folder.
    if config.store and store.fact("run") != str(run.resolve()):
        raise RunError(f"{config.name} is searched in {store.fact('run')}; go on there, or give the config a new name")
    seen = store.search
    if seen.identity != config.identity():
        raise RunError(
            f"the record of {run} is of another search, or one of another release; give --out a new folder, or the "
            "search a new name"
        )
    if (seen.data_sha256, seen.split_sha256) != (data.sha256, parts.sha256):
        raise DataError(f"the data is not what {run} was begun with; give --out a new folder")
    if seen.base_sha256 != base.sha256:
        raise CheckpointError(f"base model '{base.id}' is not what {run} was begun with; give --out a new folder")
    write_whole(run / "search.yaml", config.to_yaml())  # budget and workers may be others now
    return store


def workload(config: SearchConfig, data: Dataset, parts: Split) -> Workload:
    """What the workers of a search have to know."""
    model, space = config.model, config.search_space
    layers = next((g.high for g in space.genes if g.name == "layers"), space.fixed.get("layers", 1))
    ranks = next((g.choices for g in space.genes if g.name == "rank"), (space.fixed.get("rank", 1),))
    asked = list(dict.fromkeys([*(o.name for o in config.objectives), *(c.metric for c in config.constraints)]))
    return Workload(
        base=model.base,
        revision=model.revision,
        dtype=model.dtype,
        max_item_tokens=model.max_item_tokens,
        history=model.history,
        tower=model.tower,
        towers=model.towers,
        time_gaps=model.time_gaps,
        width=model.width,
        texts=data.texts,
        categories=data.categories,
        split=parts,
        objectives=config.objectives,
        constraints=config.constraints,
        metrics=asked,
        space=space.of("serving"),
        rungs=config.search.rungs,
        serving_settings=config.search.serving_settings,
        seed=config.search.seed,
        layers=int(layers),
        rank=max(int(rank) for rank in ranks),
        notes={
            "data_sha256": data.sha256,
            "split": {"strategy": config.data.split, "tie_seed": config.data.tie_seed, "sha256": parts.sha256},
            "items": list(data.item_ids),
            "metrics": asked,
        },
    )


class _Launch:
    """A search with its workers at hand: what comes before the loop, and after."""

    def __init__(self, run: Path, search: Search, pool: "RayPool", watcher: Watcher) -> None:
        self._run, self._search, self._pool, self._watcher = run, search, pool, watcher
        self._store, self._config = search.store, search.config

    def prepare(self) -> None:
        """Fits the components and finds the baselines' curves, once per run."""
        if self._store.fact("components") is None:
            self._watcher.notice("Fitting EASE, SASRec and the warm start.")
            self._fit()
        components = {n: checkpoint.read(self._run / "components" / n) for n in self._store.fact("components")}
        self._pool.tell_all("equip", components)
        if self._store.fact("curves") is None:
            self._watcher.notice("Finding the baselines' curves.")
            self._find_curves(set(components))
        # A fine-tuned candidate is not far from the warm start, so what served the one well serves the other.
        self._pool.tell_all("teach", [point["serving"] for point in self._store.fact("curves")["warm-start"]])

    def finish(self, retrain: bool) -> Document:
        """Looks at the test part, once, for the chosen entries, the baselines and their curves; writes what is seen."""
        self._watcher.notice("Scoring the front and the baselines on test.")
        with self._store.transaction() as record:
            record.count_test_evaluation()
        entries = self._test_front()
        if retrain:
            self._watcher.notice("Training what inherited weights from scratch, as a control.")
            self._retrain(entries)
        baselines, curves = self._store.fact("baselines"), self._store.fact("curves")
        for points in (baselines, *(points for name, points in curves.items() if name != "old")):
            self._test(points)
        self._score_old("test", curves.get("old", []))
        front = results.document(self._store.search, self._config.objectives, entries, baselines, curves)
        config = self._config
        moments = results.moments(self._store, config.objectives, config.constraints, config.search.steps)
        full = [e for e in self._search.evaluations if e.steps == config.search.steps]
        write(report(front, full, moments), self._run / "report.html")
        results.save(front, self._run)  # the last: with it the run is whole
        return front

    def _fit(self) -> None:
        towers = self._config.model.towers
        # The longest first.
        calls = [("sasrec",), *(("warm-start", number) for number in range(towers)), ("ease",)]
        sasrec, *warm, ease = self._pool.map("fit", calls)
        fitted = {"sasrec": sasrec, "warm-start": joined(warm), "ease": ease}
        folder = self._run / "components"
        sums = {name: checkpoint.write(folder / name, files) for name, files in fitted.items() if files is not None}
        with self._store.transaction() as record:
            record.put_fact("components", sums)

    def _find_curves(self, components: set[str]) -> None:
        names = [n for n in BASELINES if "ease" in components or n not in SQUARE]
        values = self._pool.map("baseline", [(name,) for name in names])
        models = {
            name: [(m, tuple(b for b in blend if b in components)) for m, blend in wish if m in components]
            for name, wish in CURVES.items()
        }
        calls = list(dict.fromkeys(call for several in models.values() for call in several))
        count = CURVE_SETTINGS * self._config.search.serving_settings
        found = self._pool.map("curve", [(*call, count) for call in calls])
        points = {
            call: [
                {"name": "+".join((call[0], *call[1])), "serving": dict(setting), "validation": dict(scores)}
                for setting, scores in curve
            ]
            for call, curve in zip(calls, found, strict=True)
        }
        curves = {
            name: self._shortlist([point for call in several for point in points[call]])
            for name, several in models.items()
        }
        old = [
            {"name": e["entry"], **{k: e[k] for k in ("candidate", "serving")}} for e in refreshing.entries(self._run)
        ]
        if old:
            self._score_old("validation", old)
            best = self._config.objectives[0]
            kept = self._shortlist(old)
            curves["old"] = sorted(kept, key=lambda p: -best.normalise(p["validation"][best.name]))
        with self._store.transaction() as record:
            record.put_fact("baselines", [{"name": n, "validation": v} for n, v in zip(names, values, strict=True)])
            record.put_fact("curves", curves)

    def _shortlist(self, points: Sequence[Document]) -> list[Document]:
        """The points of a curve that stand for it: as many as the front has, chosen in the same way."""
        objectives = self._config.objectives
        kept = [p for p in points if is_feasible(p["validation"], objectives, self._config.constraints)]
        return [kept[i] for i in choose([p["validation"] for p in kept], objectives, results.ENTRIES)]

    def _test_front(self) -> list[Document]:
        chosen = results.chosen(self._search.front, self._config.objectives)
        mine: dict[str, list[Evaluation]] = {}
        for evaluation in chosen:
            mine.setdefault(evaluation.candidate, []).append(evaluation)
        calls = [
            (checkpoint.read(self._search.checkpoints / name), [e.serving for e in several])
            for name, several in mine.items()
        ]
        candidates = {c.id: c for c in self._store.candidates()}
        seconds: dict[str, float] = defaultdict(float)
        for attempt in self._store.attempts():
            seconds[attempt.candidate] += attempt.seconds or 0.0
        return [
            results.entry(
                evaluation, candidates[name], self._search.schedule.lineage_steps(name), seconds[name], scores
            )
            for (name, several), tested in zip(mine.items(), self._pool.map("test", calls), strict=True)
            for evaluation, scores in zip(several, tested, strict=True)
        ]

    def _score_old(self, part: Literal["validation", "test"], points: Sequence[Document]) -> None:
        """Adds the scores on a part to an older front's entries, which blend in the components of their own search."""
        mine: dict[str, list[Document]] = {}
        for point in points:
            mine.setdefault(point["candidate"], []).append(point)
        folder = self._run / refreshing.FOLDER
        components = {n: checkpoint.read(folder / n) for n in BLENDED if (folder / n).is_dir()}
        calls = [(checkpoint.read(folder / n), [p["serving"] for p in several]) for n, several in mine.items()]
        method = "test" if part == "test" else "validated"
        for several, scores in zip(mine.values(), self._pool.map(method, calls, components), strict=True):
            for point, score in zip(several, scores, strict=True):
                point[part] = score

    def _retrain(self, entries: Sequence[Document]) -> None:
        """Adds to entries whose checkpoint inherited weights what the same genes and steps give from the warm start."""
        mine: dict[str, list[Document]] = {}
        for entry in entries:
            if entry["kind"] == "trained" and entry["lineage_steps"] > entry["steps"]:
                mine.setdefault(entry["candidate"], []).append(entry)
        calls = [
            (self._search.schedule.candidates[name], several[0]["lineage_steps"], [e["serving"] for e in several])
            for name, several in mine.items()
        ]
        for several, scores in zip(mine.values(), self._pool.map("retrained", calls), strict=True):
            for entry, (validation, tested) in zip(several, scores, strict=True):
                entry["retrained"] = {"validation": validation, "test": tested}

    def _test(self, points: Sequence[Document]) -> None:
        """Adds the scores on test to points of baselines, one call a model."""
        mine: dict[str, list[Document]] = {}
        for point in points:
            mine.setdefault(point["name"].split("+")[0], []).append(point)
        calls = [(name, [p.get("serving", {}) for p in several]) for name, several in mine.items()]
        for several, scores in zip(mine.values(), self._pool.map("test_baseline", calls), strict=True):
            for point, score in zip(several, scores, strict=True):
                point["test"] = score
