"""Puts a search and its workers together: the one place that knows both."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pareto_search import checkpoint, results
from pareto_search.archive import choose
from pareto_search.config import SearchConfig
from pareto_search.errors import CheckpointError, ConfigError, DataError, RunError
from pareto_search.plots import write
from pareto_search.recsys.dataset import Dataset, load
from pareto_search.recsys.split import Split, split
from pareto_search.report import report
from pareto_search.results import Document
from pareto_search.search import Progress, Search
from pareto_search.space import metric_family
from pareto_search.store import SearchRecord, Store, lock
from pareto_search.workers.base import locate
from pareto_search.workers.pool import RayPool
from pareto_search.workers.worker import Workload

BASELINES = ("popularity", "item-knn", "ease", "sasrec", "frozen-encoder", "warm-start")
CURVES: Mapping[str, Sequence[tuple[str, tuple[str, ...]]]] = {
    "practitioner": (("ease", ()), ("sasrec", ()), ("sasrec", ("ease",))),
    "warm-start": (("warm-start", ("ease", "sasrec")),),
}
"""What the front is compared with: for each curve its models, with the components blended into each."""
CURVE_SETTINGS = 4
"""A baseline's inner search has this many times the settings of a candidate's: it has no earlier one to start from."""


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
    config: SearchConfig, run: str | Path, *, address: str | None = None, watcher: Watcher | None = None
) -> Document:
    """Runs a search to the end of its budget, or resumes it, and returns the content of its `front.json`.

    Args:
        run: the run folder; a new one, or one of a search with the same config but for budget and workers.
        address: of a running Ray cluster; None starts a local Ray.

    Raises:
        UserError: the data, the base model, the run folder or the cluster does not fit.
    """
    run, watcher = Path(run), watcher or Watcher()
    _claim(run, config)
    with lock(run):
        data = load(**config.data.arguments())
        _check(config, data)
        for reason, number in data.dropped.items():
            watcher.notice(f"Dropped {number} {reason}.")
        parts = split(data, config.data.split, config.data.tie_seed)
        store = _open(config, run, data, parts)
        try:
            return _run(config, run, store, data, parts, address, watcher)
        finally:
            store.close()


def load_config(run: Path) -> SearchConfig:
    """The config of a run folder.

    Raises:
        RunError: the folder holds no search.
    """
    path = run / "search.yaml"
    if not path.is_file():
        raise RunError(f"{run} holds no search; expected a run folder, which 'pareto-search run CONFIG --out RUN' makes")
    return SearchConfig.load(path)


def _claim(run: Path, config: SearchConfig) -> None:
    """Takes a new folder, or one that holds the same search."""
    if (run / "search.yaml").is_file():
        if load_config(run).identity() != config.identity():
            raise RunError(f"{run} holds a search of another config; give --out another folder")
    elif run.exists() and any(p.name not in ("search.lock", "search.db") for p in run.iterdir()):
        raise RunError(f"{run} is not empty and holds no search; give --out a new folder")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{run} cannot be made ({error.strerror}); give --out a folder that can") from None


def _check(config: SearchConfig, data: Dataset) -> None:
    asked = [*(o.name for o in config.objectives), *(c.metric for c in config.constraints)]
    rated = next((name for name in asked if metric_family(name) == "credibility"), None)
    if rated is not None and data.ratings is None:
        raise ConfigError(f"{rated} needs ratings, and {data.name} has none; leave it out or name the ratings' column")


def _open(config: SearchConfig, run: Path, data: Dataset, parts: Split) -> Store:
    base = locate(config.model.base, config.model.revision)
    where = config.store or run / "search.db"
    if (run / "search.yaml").is_file():
        store = Store.open(where, config.name)
        seen = store.search
        if (seen.data_sha256, seen.split_sha256) != (data.sha256, parts.sha256):
            raise DataError(f"the data is not what {run} was begun with; give --out a new folder")
        if seen.base_sha256 != base.sha256:
            raise CheckpointError(f"base model '{base.id}' is not what {run} was begun with; give --out a new folder")
    else:
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
        store = Store.create(where, record)
    _write(run / "search.yaml", config.to_yaml())
    return store


def _run(
    config: SearchConfig, run: Path, store: Store, data: Dataset, parts: Split, address: str | None, watcher: Watcher
) -> Document:
    search = Search(config, store, run / "checkpoints")
    if search.is_over and (run / results.FRONT).is_file():
        return results.load_front(run)  # nothing new to look at, so test is not touched again
    watcher.notice("Starting workers.")
    workers = config.workers
    with RayPool(
        _workload(config, data, parts),
        count=workers.count,
        cpus=workers.cpus,
        gpus=workers.gpus,
        timeout=config.search.candidate_timeout,
        address=address,
    ) as pool:
        _prepare(config, run, store, pool, watcher)
        search.run(pool, watcher.progress)
        watcher.notice("Scoring the front and the baselines on test.")
        front = _finish(config, run, search, pool)
    _write(run / results.FRONT, json.dumps(front, indent=1))
    moments = results.moments(store, config.objectives, config.constraints, config.search.steps)
    write(report(front, search.evaluations, moments), run / "report.html")
    return front


def _workload(config: SearchConfig, data: Dataset, parts: Split) -> Workload:
    model, space = config.model, config.search_space
    layers = next((g.high for g in space.genes if g.name == "layers"), space.fixed.get("layers", 1))
    asked = [*(o.name for o in config.objectives), *(c.metric for c in config.constraints)]
    return Workload(
        base=model.base,
        revision=model.revision,
        dtype=model.dtype,
        max_item_tokens=model.max_item_tokens,
        history=model.history,
        tower=model.tower,
        width=model.width,
        texts=data.texts,
        categories=data.categories,
        split=parts,
        objectives=config.objectives,
        metrics=tuple(dict.fromkeys(asked)),
        space=space.of("serving"),
        steps=config.search.steps,
        serving_settings=config.search.serving_settings,
        seed=config.search.seed,
        layers=int(layers),
        notes={
            "data_sha256": data.sha256,
            "split": {"strategy": config.data.split, "tie_seed": config.data.tie_seed, "sha256": parts.sha256},
            "items": list(data.item_ids),
        },
    )


def _prepare(config: SearchConfig, run: Path, store: Store, pool: RayPool, watcher: Watcher) -> None:
    """Fits the components and finds the baselines' curves, once per run."""
    folder = run / "components"
    names = ("sasrec", "warm-start", "ease")  # the longest first
    if store.fact("components") is None:
        watcher.notice("Fitting EASE, SASRec and the warm start.")
        fitted = dict(zip(names, pool.map("fit", [(name,) for name in names]), strict=True))
        sums = {name: checkpoint.write(folder / name, files) for name, files in fitted.items() if files is not None}
        with store.transaction() as record:
            record.put_fact("components", sums)
    components = {name: checkpoint.read(folder / name) for name in store.fact("components")}
    pool.tell_all("equip", components)
    if store.fact("curves") is None:
        watcher.notice("Finding the baselines' curves.")
        baselines = [n for n in BASELINES if n in components or n not in ("ease", "sasrec")]
        values = pool.map("baseline", [(name,) for name in baselines])
        calls = [(m, b) for models in CURVES.values() for m, b in models if {m, *b} <= {*components, "warm-start"}]
        count = CURVE_SETTINGS * config.search.serving_settings
        found = pool.map("curve", [(*call, count) for call in calls])
        curves = {
            name: [
                {"name": "+".join((model, *blend)), "serving": dict(setting), "validation": dict(scores)}
                for (model, blend), curve in zip(calls, found, strict=True)
                if (model, blend) in models
                for setting, scores in curve
            ]
            for name, models in CURVES.items()
        }
        with store.transaction() as record:
            record.put_fact("baselines", [{"name": n, "validation": v} for n, v in zip(baselines, values, strict=True)])
            record.put_fact("curves", {name: _shortlist(points, config) for name, points in curves.items()})
    # A fine-tuned candidate is not far from the warm start, so what served the one well serves the other.
    pool.tell_all("teach", [point["serving"] for point in store.fact("curves")["warm-start"]])


def _shortlist(points: Sequence[Document], config: SearchConfig) -> list[Document]:
    """The points of a curve that stand for it: as many as the front has, chosen in the same way."""
    kept = results.feasible(points, config.objectives, config.constraints)
    return [kept[i] for i in choose([p["validation"] for p in kept], config.objectives, results.ENTRIES)]


def _finish(config: SearchConfig, run: Path, search: Search, pool: RayPool) -> Document:
    """Looks at the test part, once: the chosen entries, the baselines and their curves."""
    store, objectives = search.store, search.objectives
    chosen = results.chosen(search.front, objectives)
    candidates = {c.id: c for c in store.candidates()}
    seconds = {a.candidate: a.seconds or 0.0 for a in store.attempts() if a.state == "finished"}
    with store.transaction() as record:
        record.count_test_evaluation()

    names = list(dict.fromkeys(e.candidate for e in chosen))
    mine = {name: [e for e in chosen if e.candidate == name] for name in names}
    folders = [run / "checkpoints" / name for name in names]
    tested = pool.map(
        "test", [(checkpoint.read(f), [e.serving for e in mine[n]]) for n, f in zip(names, folders, strict=True)]
    )
    entries = [
        results.entry(evaluation, candidates[name], seconds[name], scores)
        for name, several in zip(names, tested, strict=True)
        for evaluation, scores in zip(mine[name], several, strict=True)
    ]
    baselines, curves = store.fact("baselines"), store.fact("curves")
    for points in (baselines, *curves.values()):
        _test(points, pool)
    return results.document(store.search, objectives, entries, baselines, curves)


def _test(points: Sequence[Document], pool: RayPool) -> None:
    """Adds the scores on test to points of baselines, one call a model."""
    models = [p["name"].split("+")[0] for p in points]
    names = list(dict.fromkeys(models))
    mine = {n: [p for m, p in zip(models, points, strict=True) if m == n] for n in names}
    scores = pool.map("test_baseline", [(n, [p.get("serving", {}) for p in mine[n]]) for n in names])
    for name, several in zip(names, scores, strict=True):
        for point, score in zip(mine[name], several, strict=True):
            point["test"] = score


def _write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"{path} cannot be written ({error.strerror}); mend that and resume the search") from None
