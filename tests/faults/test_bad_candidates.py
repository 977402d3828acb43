import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from running import Finished, pareto_search

from benchmarks import kills, small
from pareto_search.candidate import Attempt, Candidate
from pareto_search.config import SearchConfig
from pareto_search.errors import ClusterError
from pareto_search.executor import Files
from pareto_search.launch import run_search
from pareto_search.store import Store
from pareto_search.workers import pool
from pareto_search.workers.worker import Worker
from pareto_search.workers.workload import Workload

TIMEOUT = 20


class Poisoned(pool.WorkerActor):
    """A worker that some candidates are bad for, and one is good."""

    def call(self, method: str, *arguments: Any) -> Any:
        return self._run(*arguments) if method == "run" else super().call(method, *arguments)

    def _run(self, attempt: Attempt, sources: Sequence[Files]) -> Any:
        candidate = attempt.candidate
        if candidate.id == "c0001":  # a learning rate at which no loss stays a number
            poisoned = replace(candidate, genes={**candidate.genes, "tower_lr": 1e30})
            return super().call("run", replace(attempt, candidate=poisoned), sources)
        if candidate.id == "c0002":
            raise ValueError("first line\nsecond line \x1b[31m" + "x" * 10_000)
        if candidate.id == "c0003":
            time.sleep(1)  # until the reply of the attempt before it has left
            os._exit(1)
        if candidate.id == "c0004":
            time.sleep(3600)
        result = super().call("run", attempt, sources)
        if candidate.id == "c0005":  # on the front for certain, so that there is something to merge
            alone, *others = result.evaluations
            best = replace(alone, values={**alone.values, "ndcg@5": 1.0})
            return replace(result, evaluations=(best, *others))
        return result


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are such."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this module
    monkeypatch.setattr(pool, "WorkerActor", Poisoned)


def test_candidates_that_diverge_raise_hang_or_kill_their_worker_cost_only_themselves(
    undisturbed: Finished, tmp_path: Path, poisoned: None
) -> None:
    config = small.write_config(
        undisturbed.config.with_name("poisoned.yaml"), candidates=7, candidate_timeout=TIMEOUT, mode="async"
    )
    front = run_search(SearchConfig.load(config), tmp_path / "run")

    store = Store.open(tmp_path / "run" / "search.db")
    ended = {(a.candidate, a.number): (a.state, a.error or "") for a in store.attempts()}
    scored = {e.candidate for e in store.evaluations()}
    merged = {c.id: set(c.parents) for c in store.candidates() if c.kind == "merged"}
    store.close()
    good = {"e0000", "c0005", "c0006", "c0007", *merged}
    assert all(parents <= good for parents in merged.values())
    assert set().union(*merged.values()) >= {"c0005"}
    assert {name for (name, _), (state, _) in ended.items() if state == "finished"} == good
    assert scored == good
    assert front["front"]
    assert {entry["candidate"] for entry in front["front"]} <= good

    states = [(key, state) for key, (state, _) in sorted(ended.items()) if key[0] not in good]
    assert states == [
        (("c0001", 1), "failed"),
        (("c0002", 1), "failed"),
        (("c0003", 1), "lost"),
        (("c0003", 2), "failed"),
        (("c0004", 1), "failed"),
    ]
    assert "the loss is not finite at step 1 of 2" in ended["c0001", 1][1]
    assert "ValueError: first line" in ended["c0002", 1][1]
    assert "the worker died" in ended["c0003", 2][1]
    assert ended["c0004", 1][1].startswith(f"still running after {TIMEOUT} s; raise search.candidate_timeout")
    assert all(len(error) <= 500 and error.isprintable() for _, error in ended.values())


@pytest.fixture
def deserted(workload: Workload, poisoned: None) -> Iterator[pool.RayPool]:
    """A pool whose one worker has died, in place of which another is starting."""
    with pool.RayPool(workload, count=1) as workers:
        workers.submit(Attempt(Candidate("c0003", {})))
        [outcome] = workers.wait()
        assert outcome.lost
        assert workers.free == 0
        yield workers


@pytest.mark.timeout(120)
def test_a_worker_that_did_not_start_in_time_is_begun_again(
    workload: Workload, poisoned: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pool.RayPool(workload, count=2) as workers:
        workers.submit(Attempt(Candidate("c0003", {})))
        [outcome] = workers.wait()
        assert outcome.lost
        with monkeypatch.context() as impatient:
            impatient.setattr(workers, "_start", 0.0)  # as if its node were away
            workers.map([("baseline", "popularity")])
        assert workers._spawned > 3
        while workers.idle < 2:
            workers._await([])


@pytest.mark.timeout(120)
def test_who_has_no_worker_left_waits_for_the_next_one(deserted: pool.RayPool, workload: Workload) -> None:
    assert deserted.map([("baseline", "popularity")] * 3) == [Worker(workload).baseline("popularity")] * 3


@pytest.mark.timeout(120)
def test_who_has_no_worker_left_and_gets_none_is_told(deserted: pool.RayPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deserted, "_start", 0.1)  # seconds, in which none can start
    with pytest.raises(ClusterError, match=r"no worker is left and none could be started within 0\.1 s"):
        deserted.map([("baseline", "popularity")])


def test_a_search_in_which_every_candidate_diverges_ends_with_one_line(undisturbed: Finished, tmp_path: Path) -> None:
    content = yaml.safe_load(undisturbed.config.read_text())
    content["space"] = {"tower_lr": 1e30}
    content["search"]["candidates"] = 3
    config = undisturbed.config.with_name("hopeless.yaml")
    config.write_text(yaml.safe_dump(content))
    ended = pareto_search("run", config, "--out", tmp_path / "run")
    reason = (
        rf"the loss is not finite at step \d+ of {kills.SEARCH['steps']}; mend that and resume with a larger budget"
    )
    assert re.fullmatch(rf"all 3 candidates failed, c000[123] with: {reason}", ended.complaint)
