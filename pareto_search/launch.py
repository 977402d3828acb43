"""Puts a search and its workers together: the one place that knows both."""

import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pareto_search import publish, refreshing, results
from pareto_search.comparison import Comparison
from pareto_search.config import SearchConfig
from pareto_search.database import same_database
from pareto_search.entry import of_run
from pareto_search.errors import AbsentError, CheckpointError, ConfigError, DataError, RunError
from pareto_search.inputs import divide
from pareto_search.question import Canary
from pareto_search.recsys.dataset import Dataset, load
from pareto_search.recsys.split import Split
from pareto_search.results import Document, write_whole
from pareto_search.search import Search, Watcher
from pareto_search.store import SearchRecord, Store, lock
from pareto_search.workers.base import locate
from pareto_search.workers.workload import Workload

PRECISION = "precision"
"""The fact that says in what the base model is kept, which a config may leave to the hardware."""
OF_A_RECORD = ("components", "checkpoints", "states", results.FRONT)
"""What a run folder has once its record is there."""


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
        data, parts = divide(config, watcher.notice)
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
                _tell_of_spent_time(search, watcher)
                _write(config, run)
                return results.load_front(run)  # nothing new to look at, so test is not touched again
            watcher.notice("Starting workers.")
            if address is None:
                _want_token()
                _tell_of_few_cores(config, watcher)
            from pareto_search.workers.pool import RayPool  # only now: Ray reads its environment when it is imported

            workers = config.workers
            work = workload(config, data, parts)
            if (kept := store.fact(PRECISION)) is not None:  # hardware that left another choice must not mix them
                work = replace(work, dtype=kept)
            with RayPool(
                work,
                count=workers.count,
                cpus=workers.cpus,
                gpus=workers.gpus,
                pack=workers.pack,
                timeout=config.search.candidate_timeout * workers.pack,
                address=address,
                notice=watcher.notice,
            ) as pool:
                if pool.unused_gpus:
                    watcher.notice(
                        f"There are {pool.unused_gpus:g} GPUs, but workers.gpus is 0: candidates train on CPUs."
                    )
                _write(config, run)  # budget and workers may be others now
                # It would speak for a search that has gone on; one that could not begin leaves it.
                (run / results.FRONT).unlink(missing_ok=True)
                if kept is None:
                    [found] = pool.map([("precision",)])
                    with store.transaction() as changes:
                        changes.put_fact(PRECISION, found)
                comparison = Comparison(run, search, pool, watcher.notice)
                if search.awaits_early:
                    comparison.prepare_early()
                    search.run(pool, watcher.progress, legs=1)
                comparison.prepare()
                search.run(pool, watcher.progress)
                return comparison.finish(retrain)
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
    run: str | Path,
    names: Sequence[str],
    *,
    token: str,
    canary: Canary | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
    address: str | None = None,
    notice: Callable[[str], None] = lambda _: None,
) -> None:
    """Serves entries of a run over HTTP, or lets the deployment on a cluster change over to them; see workers.serving.

    Args:
        run: a folder that all nodes see, or the URL of a published run.
        notice: takes one line of text.

    Raises:
        UserError: an entry or its files, the data, the port or the cluster does not fit.
    """
    place = publish.pinned(str(run))
    folder = publish.local(place)
    for name in [*names, canary.entry] if canary else names:
        of_run(folder, name, vectors=True)  # a damaged one would take down what serves now
    if address is None:
        _want_token()
    data = load(**load_config(folder).data.arguments())
    _serving().deploy(
        place,
        names,
        data,
        token=token,
        canary=canary,
        host=host,
        port=port,
        replicas=replicas,
        address=address,
        notice=notice,
    )


def undeploy(address: str) -> None:
    """Ends the deployment on a cluster; see workers.serving."""
    _serving().undeploy(address)


def application(args: Mapping[str, Any]) -> Any:
    """Entries of a run as an application of Ray Serve: `import_path: pareto_search.launch:application` in its config.

    Args:
        args: `run`, a folder that every node sees or the URL of a published run, and `entries`, a list. The token is
            PARETO_SEARCH_TOKEN.

    Raises:
        UserError: an entry, a file of it, the data or the token is not there.
    """
    token = os.environ.get("PARETO_SEARCH_TOKEN")
    if not token:
        raise ConfigError("set PARETO_SEARCH_TOKEN on every node, for clients to give")
    place = publish.pinned(str(args["run"]))
    run = publish.local(place)
    for name in args["entries"]:
        of_run(run, name, vectors=True)
    return _serving().application(place, args["entries"], load(**load_config(run).data.arguments()), token=token)


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
            keys = ", ".join(held.differences(config))
            raise RunError(f"{run} holds a search of another config (not the same: {keys}); give --out another folder")
        if not same_database(held.store, config.store):
            raise RunError(f"the record of {run} is in another store; give the config that it was begun with")
        return
    try:
        run.mkdir(parents=True, exist_ok=True)
        others = [p for p in run.iterdir() if not p.name.lstrip(".").startswith("search.")]
    except OSError as error:
        raise RunError(f"{run} cannot be used ({error.strerror}); give --out a new folder") from None
    if any(p.name != refreshing.FOLDER for p in others):
        raise RunError(f"{run} is not empty and holds no search; give --out a new folder")


def _serving() -> Any:
    """What serves; it imports Ray, which reads its environment then, so this comes after `_want_token`."""
    try:
        from pareto_search.workers import serving
    except ImportError as error:
        raise ConfigError(f"deploy needs {error.name}: pip install 'pareto-search[deploy]'") from None
    return serving


def _want_token() -> None:
    """Lets a Ray of our own refuse whoever has no token: it runs code for anyone who reaches its ports."""
    if "ray" not in sys.modules and os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _open(config: SearchConfig, run: Path, data: Dataset, parts: Split, watcher: Watcher) -> Store:
    """The record, begun if it is not there yet; search.yaml comes first, so that a kill in between can be mended.

    A database that does not answer leaves no search.yaml behind, so that its URL can be corrected.
    """
    base = locate(config.model.base, config.model.revision)
    where = config.store or run / "search.db"
    try:
        store = Store.open(where, config.name, watcher.notice)
    except AbsentError:
        if any((run / name).exists() for name in OF_A_RECORD):
            raise RunError(
                f"{run} was searched, but its record is not there; restore that, or begin a new run folder"
            ) from None
        _write(config, run)
        record = SearchRecord(
            name=config.name,
            identity=config.identity(),
            config=config.model_copy(update={"store": None}).to_yaml(),  # whose URL may hold a password
            seed=config.search.seed,
            data_sha256=data.sha256,
            split_sha256=parts.sha256,
            base_id=base.id,
            base_sha256=base.sha256,
            lanes=config.workers.count,
        )
        store = Store.create(where, record)
    # A shared store names the folder that has the checkpoints; one's own may be moved with its folder.
    if config.store and store.fact("run") not in (None, str(run.resolve())):
        raise RunError(f"{config.name} is searched in {store.fact('run')}; go on there, or give the config a new name")
    seen = store.search
    if seen.identity != config.identity():
        raise RunError(
            f"the record of {run} is of another search, or one of another release; begin a new run folder, with a new "
            "name for the search"
        )
    if (seen.data_sha256, seen.split_sha256) != (data.sha256, parts.sha256):
        raise DataError(f"the data is not what {run} was begun with; bring that back, or begin a new run folder")
    if seen.base_sha256 != base.sha256:
        raise CheckpointError(
            f"base model '{base.id}' is not what {run} was begun with; bring that back, or begin a new run folder"
        )
    if store.fact("run") is None:  # begun now, or killed before it could be noted
        with store.transaction() as changes:
            changes.put_fact("run", str(run.resolve()))
    return store


def _write(config: SearchConfig, run: Path) -> None:
    """Keeps the config in the run folder; the URL of a store may hold a password."""
    write_whole(run / "search.yaml", config.to_yaml(), private=config.store is not None)


def _tell_of_spent_time(search: Search, watcher: Watcher) -> None:
    """Who asks for more candidates may not think of the minutes, which are kept from run to run."""
    minutes, so_far = search.config.search.minutes, search.progress()
    short = so_far.finished + so_far.failed < so_far.total and not search.schedule.exhausted
    if minutes is not None and short:
        watcher.notice(
            f"search.minutes is {minutes:g}, and {so_far.elapsed / 60:.1f} are spent with {so_far.finished} of "
            f"{so_far.total} candidates; `pareto-search resume --minutes` with more goes on."
        )


def _tell_of_few_cores(config: SearchConfig, watcher: Watcher) -> None:
    wanted, cores = config.workers.count * config.workers.cpus, os.cpu_count() or 1
    if wanted > cores:
        watcher.notice(
            f"{config.workers.count} workers with {config.workers.cpus:g} CPUs each are more than this machine's "
            f"{cores} cores; --address uses a cluster."
        )


def workload(config: SearchConfig, data: Dataset, parts: Split) -> Workload:
    """What the workers of a search have to know."""
    model, space = config.model, config.search_space
    layers = next((g.high for g in space.genes if g.name == "layers"), space.fixed.get("layers", 1))
    ranks = next((g.choices for g in space.genes if g.name == "rank"), (space.fixed.get("rank", 1),))
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
        metrics=config.metrics,
        space=space.of("serving"),
        rungs=config.search.rungs,
        patience=config.search.patience,
        serving_settings=config.search.serving_settings,
        seed=config.search.seed,
        layers=int(layers),
        rank=max(int(rank) for rank in ranks),
        notes={
            "data_sha256": data.sha256,
            "split": config.splitting() | {"sha256": parts.sha256},
            "group_names": [[kind, list(groups)] for kind, groups in parts.groups.items()],  # in the rows' order
            "items": list(data.item_ids),
            "metrics": list(config.metrics),
        },
    )
