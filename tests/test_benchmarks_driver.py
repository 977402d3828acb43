"""What stands in for workers and their load has to keep up with the pool."""

import pytest

from benchmarks import driver
from pareto_search.candidate import Attempt, Candidate
from pareto_search.executor import Result


def test_a_search_runs_through_the_pool_with_workers_that_have_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "WARM", 3)
    watch = driver.Stopwatch()
    with driver.watched(watch):
        assert driver.searched(4, watch) > 0
    assert watch.seconds.keys() >= driver.PARTS.keys()


@pytest.mark.parametrize("count", [1, 65])
def test_an_idle_worker_gives_as_many_evaluations_as_it_is_told(count: int) -> None:
    config = driver.config(1)
    worker = driver.Idle(driver.load(config, count))
    result = worker.call("run", Attempt(Candidate("c0001", {"rank": 8})))
    assert isinstance(result, Result)
    alone, *others = result.evaluations
    assert [e.entry for e in result.evaluations] == [f"c0001-s{number:02d}" for number in range(count)]
    assert (alone.serving, alone.margins) == ({}, {})
    serving = config.search_space.of("serving")
    for evaluation in others:
        assert evaluation.serving.keys() == serving.roles.keys()
        assert evaluation.margins.keys() == evaluation.values.keys()
    assert len({repr(e.values) for e in result.evaluations}) == count
