"""Searches whose workers train several candidates side by side."""

import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ray
from running import Finished

from benchmarks import small
from pareto_search.config import SearchConfig
from pareto_search.launch import run_search
from pareto_search.store import Store
from pareto_search.workers import pool

TIMEOUT = 7


class Poisoned(pool.PackWorkerActor):
    """A worker that some candidates are bad for."""

    async def call(self, method: str, *arguments: Any) -> Any:
        candidate = arguments[0].candidate.id if method == "run_beside" else None
        if candidate == "c0002":
            raise ValueError("what nobody expected")
        if candidate == "c0003":
            os._exit(1)
        if candidate == "c0004":
            time.sleep(3600)
        return await super().call(method, *arguments)


def test_candidates_that_take_a_pack_down_with_them_are_found_out_and_their_neighbours_are_not_to_blame(
    undisturbed: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this module
    monkeypatch.setattr(pool, "PackWorkerActor", Poisoned)
    config = small.write_config(
        undisturbed.config.with_name("packs.yaml"),
        workers={"count": 1, "pack": 3},
        candidates=7,
        candidate_timeout=TIMEOUT,
        mode="async",
        merging=False,
    )
    front = run_search(SearchConfig.load(config), tmp_path / "run")

    store = Store.open(tmp_path / "run" / "search.db")
    attempts = store.attempts()
    store.close()
    last = {a.candidate: a for a in attempts}
    assert {name for name, a in last.items() if a.state == "failed"} == {"c0002", "c0003", "c0004"}
    assert last["c0002"].error == "ValueError: what nobody expected"
    assert "the worker died" in str(last["c0003"].error)
    assert (last["c0004"].error or "").startswith(f"still running after {3 * TIMEOUT} s; ")
    assert {name for name, a in last.items() if a.state == "finished"} == {"c0001", "c0005", "c0006", "c0007"}
    lost = Counter(a.candidate for a in attempts if a.state == "lost")
    assert lost.keys() >= {"c0002", "c0003"}  # first in a pack, then alone
    assert max(lost.values()) == 1
    assert front["front"]
