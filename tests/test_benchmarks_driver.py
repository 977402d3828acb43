"""What stands in for workers and their load has to keep up with the pool."""

import pytest

from benchmarks import driver


def test_a_search_runs_through_the_pool_with_workers_that_have_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "WARM", 3)
    watch = driver.Stopwatch()
    with driver.watched(watch):
        assert driver.searched(4, watch) > 0
    assert watch.seconds.keys() >= driver.PARTS.keys()
