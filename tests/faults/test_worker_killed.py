from collections import Counter
from pathlib import Path

import pytest
from running import Finished, eventually, started, title

from benchmarks import kills
from pareto_search.store import Store


@pytest.mark.parametrize("before", [0, 3])  # at first the other workers are told more while one starts
def test_a_worker_killed_in_the_middle_of_a_candidate_costs_one_retry(
    undisturbed: Finished, tmp_path: Path, before: int
) -> None:
    run = tmp_path / "run"
    with started("run", undisturbed.config, "--out", run) as driver:
        eventually(lambda: len(kills.finished(run)) >= before and driver.at_work())[0].kill()
        ended = driver.end()
    assert ended.code == 0, ended.err
    assert kills.essence(run) == kills.essence(undisturbed.run)
    store = Store.open(run / "search.db")
    attempts, candidates = store.attempts(), store.candidates()
    store.close()
    assert Counter(a.state for a in attempts) == {"finished": len(candidates), "lost": 1}
    assert sum(c.kind == "trained" for c in candidates) == kills.SEARCH["candidates"]
    (lost,) = [a for a in attempts if a.state == "lost"]
    assert (lost.number, lost.worker_died) == (1, True)
    assert "the worker died" in str(lost.error)


def test_a_worker_killed_at_its_start_is_begun_again(undisturbed: Finished, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with started("run", undisturbed.config, "--out", run) as driver:
        eventually(lambda: [p for p in driver.family() if title(p) == "ray::WorkerActor.__init__"])[0].kill()
        ended = driver.end()
    assert ended.code == 0, ended.err
    assert kills.essence(run) == kills.essence(undisturbed.run)
