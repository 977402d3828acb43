import os
import tempfile
from pathlib import Path

import psutil
import pytest
from running import title

from pareto_search.workers.encoder import Encoder
from pareto_search.workers.pool import RayPool
from pareto_search.workers.workload import Workload


def test_the_workers_of_a_machine_share_their_prefixes_and_leave_nothing(
    workload: Workload, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", tempfile.gettempdir())  # Ray's sockets want a short path
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with RayPool(workload, count=2):
        [folder] = tmp_path.glob("pareto-search-workers-*")
        parts = {p for p in folder.iterdir() if not p.suffix}
        assert {p.name for p in parts} == set(map(str, encoder.lengths))
        actors = [p for p in psutil.Process(os.getpid()).children(recursive=True) if "WorkerActor" in title(p)]
        assert len(actors) == 2
        for actor in actors:
            assert {str(p) for p in parts} <= {m.path for m in actor.memory_maps()}
    assert not list(tmp_path.glob("pareto-search-workers-*"))
