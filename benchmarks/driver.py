"""What a candidate costs the driver: wall time per candidate where the workers have nothing to do.

    python -m benchmarks.driver [--candidates 2000] [--trials 200] [--json FILE]

A real search with two workers, through the real pool, record and checkpoints, each in a run folder of its own on the
disk of the system's temporary files. A worker answers at once with one evaluation, of values that hang on the genes
alone, and a checkpoint of one small file. The first hundred candidates do not count. Candidates are not merged: merged
ones cost less, since nothing is proposed.

There are four runs: the one that counts; one with a stopwatch in the driver, for where the time goes; one in which
nothing waits for the disk, for what the promise that nothing is lost costs on this machine; and one in which a worker
answers with as many evaluations as a real one, for the checkpoint alone and each of its settings. Beside them, Ray Tune
with reused actors, random proposals and as idle a trainable, warm too: it needs the extra `peers`.
"""

import argparse
import hashlib
import json
import logging
import os
import random
import sqlite3
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import ray

from pareto_search import __version__, checkpoint, database, schedule, search
from pareto_search.candidate import Attempt, Evaluation, Genes
from pareto_search.config import MINILM, SearchConfig
from pareto_search.evolution import Evolution
from pareto_search.executor import Files, Result
from pareto_search.objective import Values
from pareto_search.search import Search
from pareto_search.store import Record, SearchRecord, Store
from pareto_search.workers import pool
from pareto_search.workers.pool import RayPool

WORKERS = 2
WARM = 100
"""Candidates before the clock starts."""
WARM_TRIALS = 20
TARGET = 5.0
"""Milliseconds a candidate."""


class Idle:
    """A worker that has no base model and answers at once, with so many evaluations as its load says."""

    def __init__(self, load: Any, *_: object) -> None:
        self._load = load

    def call(self, method: str, *arguments: Any) -> str | Result:
        return __version__ if method == "identity" else self._run(*arguments)

    def _run(self, attempt: Attempt, _: Sequence[Files] = ()) -> Result:
        name, steps = attempt.candidate.id, attempt.steps or self._load.search.steps
        digest = hashlib.sha256(repr(attempt.candidate.genes).encode()).digest()
        rng = random.Random(digest)
        found = [self._drawn(number, rng) for number in range(self._load.evaluations)]
        evaluations = tuple(Evaluation(name, attempt.number, steps, n, *drawn) for n, drawn in enumerate(found))
        return Result(evaluations, {"recommender.json": digest * 32}, 1e-4)

    def _drawn(self, number: int, rng: random.Random) -> tuple[Genes, Values, Values]:
        """A setting, its values and their margins; the checkpoint alone has values only."""
        objectives, space = self._load.objectives, self._load.serving
        values = {o.name: o.reference + rng.random() * (o.ideal - o.reference) for o in objectives}
        if number == 0:
            return {}, values, {}
        margins = {o.name: 0.01 * abs(o.ideal - o.reference) for o in objectives}
        return space.from_unit([rng.random() for _ in space.genes]), values, margins


class Stopwatch:
    """Seconds spent in each part of the driver; one that calls another part waits meanwhile."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._part, self._since = "rest", time.perf_counter()

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """The time within belongs to the part."""
        outer = self._switch(part)
        try:
            yield
        finally:
            self._switch(outer)

    def restart(self) -> None:
        """Forgets what was measured."""
        self.seconds.clear()
        self._since = time.perf_counter()

    def _switch(self, part: str) -> str:
        now, outer = time.perf_counter(), self._part
        self.seconds[outer] += now - self._since
        self._part, self._since = part, now
        return outer


PARTS: Mapping[str, Sequence[tuple[Any, str]]] = {
    "evolution": [(Evolution, "ask"), (Evolution, "tell")],
    "front": [(schedule, "front_of"), (search, "front_of"), (Search, "progress")],
    "record": [(Record, name) for name in ("decided", "started", "heard", "finished", "add_elapsed")],
    "checkpoints": [(checkpoint, name) for name in ("write", "read", "remove", "sweep")],
    "pool": [(RayPool, "submit"), (RayPool, "wait")],
}


@contextmanager
def watched(watch: Stopwatch) -> Iterator[None]:
    """Within this, the driver's parts are timed."""
    begin = Store.transaction

    @contextmanager
    def transaction(store: Store) -> Iterator[Record]:
        with watch.on("record"), begin(store) as record, watch.on("rest"):
            yield record

    with ExitStack() as stack:
        stack.enter_context(patch.object(Store, "transaction", transaction))
        for part, places in PARTS.items():
            for owner, name in places:
                stack.enter_context(patch.object(owner, name, watch.on(part)(getattr(owner, name))))
        yield


@contextmanager
def careless() -> Iterator[None]:
    """Within this, nothing waits for the disk."""
    set_up = database._set_up

    def hasty(connection: sqlite3.Connection, record: object) -> None:
        set_up(connection, record)
        connection.execute("PRAGMA synchronous = OFF")

    with patch.object(database, "_set_up", hasty), patch.object(os, "fsync", lambda _: None):
        yield


def searched(candidates: int, watch: Stopwatch, evaluations: int = 1) -> float:
    """Milliseconds that a candidate of so many evaluations takes, once the search is warm; the watch is restarted when
    it is.
    """
    warm, whole = config(WARM), config(WARM + candidates)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        record = SearchRecord(warm.name, warm.identity(), warm.to_yaml(), 0, "", "", "", "", lanes=WORKERS)
        store = Store.create(Path(folder, "search.db"), record)
        stack.callback(store.close)
        stack.enter_context(patch.object(pool, "WorkerActor", Idle))
        workers = stack.enter_context(RayPool(load(warm, evaluations), count=WORKERS))
        Search(warm, store, Path(folder)).run(workers)
        found = Search(whole, store, Path(folder))
        watch.restart()
        began = time.perf_counter()
        found.run(workers)
        return 1000 * (time.perf_counter() - began) / candidates


def load(config: SearchConfig, evaluations: int) -> Any:
    """What the pool and an idle worker ask of a workload, and nothing else."""
    serving = config.search_space.of("serving")
    return SimpleNamespace(
        search=config.search,
        objectives=config.objectives,
        texts=(),
        base=MINILM,
        revision=None,
        serving=serving.at(dict.fromkeys(serving.fitted, 1.0)),
        evaluations=evaluations,
    )


def config(candidates: int) -> SearchConfig:
    budget = {"candidates": candidates, "merging": False}
    return SearchConfig.parse({"name": "driver", "data": {"source": "nowhere"}, "search": budget})


def tuned(trials: int) -> float | None:
    """Milliseconds that a trial of Ray Tune takes, once it is warm; None where it is not installed."""
    try:
        from ray import tune
    except ImportError:
        return None

    ended: list[float] = []

    class Clock(tune.Callback):  # type: ignore[misc]
        def on_trial_complete(self, *_: object, **__: object) -> None:
            ended.append(time.perf_counter())

    class Trial(tune.Trainable):  # type: ignore[misc]
        def step(self) -> dict[str, Any]:
            return {"loss": self.config["x"], "done": True}

        def reset_config(self, _: dict[str, Any]) -> bool:
            return True

    ray.init(
        address="local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    with tempfile.TemporaryDirectory() as folder:
        tune.Tuner(
            tune.with_resources(Trial, {"cpu": 1}),
            param_space={"x": tune.uniform(0.0, 1.0)},
            tune_config=tune.TuneConfig(
                metric="loss",
                mode="min",
                num_samples=WARM_TRIALS + trials,
                max_concurrent_trials=WORKERS,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                name="driver",
                verbose=0,
                callbacks=[Clock()],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
    ray.shutdown()
    return 1000 * (ended[-1] - ended[WARM_TRIALS - 1]) / trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=2000)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    watch = Stopwatch()
    total = searched(options.candidates, watch)
    verdict = "" if total <= TARGET else f", above {TARGET:g}"
    print(f"driver, two idle workers    {total:8.2f} ms a candidate{verdict}", flush=True)
    with watched(watch):
        again = searched(options.candidates, watch)
    parts = {part: 1000 * seconds / options.candidates for part, seconds in watch.seconds.items()}
    print(f"with a stopwatch            {again:8.2f} ms, of which", flush=True)
    for part, milliseconds in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"  {part:26}{milliseconds:8.2f} ms", flush=True)
    with careless():
        hasty = searched(options.candidates, watch)
    print(f"without waiting for the disk{hasty:8.2f} ms a candidate", flush=True)
    evaluations = 1 + config(WARM).search.serving_settings
    served = searched(options.candidates, watch, evaluations)
    print(f"{f'with {evaluations} evaluations each':28}{served:8.2f} ms a candidate", flush=True)
    trial = tuned(options.trials)
    if trial is None:
        print("Ray Tune is not installed: pip install 'pareto-search[peers]'")
    else:
        print(f"Ray Tune, reused actors     {trial:8.2f} ms a trial")
    if options.json:
        found = {
            "driver_ms_per_candidate": total,
            "parts_ms": parts,
            "without_waiting_for_the_disk_ms": hasty,
            "with_all_evaluations_ms": served,
            "evaluations": evaluations,
            "ray_tune_ms_per_trial": trial,
            "candidates": options.candidates,
            "trials": options.trials,
        }
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
