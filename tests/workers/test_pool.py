import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from running import alive, eventually, title

from pareto_search import __version__
from pareto_search.candidate import Attempt, Candidate
from pareto_search.errors import CheckpointError, ClusterError
from pareto_search.executor import Result
from pareto_search.workers import pool
from pareto_search.workers.encoder import Encoder
from pareto_search.workers.worker import Worker
from pareto_search.workers.workload import Workload


def processes() -> list[psutil.Process]:
    """The workers that live."""
    family = psutil.Process(os.getpid()).children(recursive=True)
    return [p for p in family if alive(p) and title(p).startswith("ray::Worker")]


def test_the_workers_of_a_machine_share_their_prefixes_and_leave_nothing(
    workload: Workload, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", tempfile.gettempdir())  # Ray's sockets want a short path
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pool.RayPool(workload, count=2):
        [folder] = tmp_path.glob("pareto-search-workers-*")
        parts = {p for p in folder.iterdir() if not p.suffix}
        assert {p.name for p in parts} == set(map(str, encoder.lengths))
        actors = processes()
        assert len(actors) == 2
        for actor in actors:
            assert {str(p) for p in parts} <= {m.path for m in actor.memory_maps()}
    assert not list(tmp_path.glob("pareto-search-workers-*"))


def test_what_is_asked_of_workers_beside_candidates_survives_their_death(workload: Workload) -> None:
    with pool.RayPool(workload, count=2) as workers:
        for process in processes():  # as where their node goes
            process.kill()
        [values] = workers.map([("baseline", "popularity")])
        assert values.keys() == set(workload.metrics)
        eventually(lambda: workers.map([("baseline", "popularity")]) and workers.free == 2)
        [process, *_] = processes()
        process.kill()
        workers.tell_all("teach", [{}], [])
        assert workers.free == 1  # the other one starts
        assert workers.map([("baseline", "popularity")] * 3) == [values] * 3


def test_calls_are_taken_as_workers_come_free(workload: Workload) -> None:
    taken = list[int]()

    def calls() -> Iterator[tuple[str, str]]:
        for number in range(10):
            taken.append(number)
            yield "baseline", "popularity"

    with pool.RayPool(workload, count=2) as workers:
        [values] = workers.map([("baseline", "popularity")])
        found = workers.each(calls())
        first = next(found)
        assert len(taken) <= 5  # two that were first, two after them, and one ahead
        assert sorted([first, *found]) == [(place, values) for place in range(10)]


class Faulty(pool.PackWorkerActor):
    """A worker that one candidate is too much for."""

    async def call(self, method: str, *arguments: Any) -> Any:
        if method == "run_beside":
            if arguments[0].candidate.id == "c0001":
                raise ValueError("what nobody expected")
            return Result((), {}, 1.0)
        return await super().call(method, *arguments)


def test_what_has_ended_well_is_not_lost_with_what_has_not(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this module
    monkeypatch.setattr(pool, "PackWorkerActor", Faulty)
    with pool.RayPool(workload, count=1, pack=2) as workers:
        for name in ("c0001", "c0002"):
            workers.submit(Attempt(Candidate(name, {})))
        ray.wait(list(workers._jobs), num_returns=2)
        outcomes = {outcome.attempt.candidate.id: outcome for outcome in workers.wait()}
    assert outcomes["c0002"].result is not None
    assert outcomes["c0001"].error == "ValueError: what nobody expected"
    assert not outcomes["c0001"].lost


class Replaced(pool.WorkerActor):
    """A worker that dies of its first candidate, and is another one from then on."""

    def call(self, method: str, *arguments: Any) -> Any:
        died = Path(str(self._worker.load.notes["died"]))
        if method == "run":
            died.touch()
            os._exit(1)
        answer = super().call(method, *arguments)
        return self._worker.load.notes["then"] if method == "identity" and died.exists() else answer


@pytest.mark.parametrize(
    ("then", "complaint"),
    [
        (f"{__version__} another base", f"the workers differ in base model .* and {__version__} another base"),
        ("0.0.9 base", f"a worker has pareto-search 0.0.9, and this command {__version__}; install one release"),
    ],
    ids=["base model", "release"],
)
def test_a_worker_of_another_kind_is_refused_also_where_it_replaces_one(
    workload: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str, complaint: str
) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this module
    monkeypatch.setattr(pool, "WorkerActor", Replaced)
    notes = {"died": str(tmp_path / "died"), "then": then}
    with pool.RayPool(replace(workload, notes=notes), count=1) as workers:
        workers.submit(Attempt(Candidate("c0001", {})))
        [outcome] = workers.wait()
        assert outcome.lost
        with pytest.raises(ClusterError, match=complaint):
            workers.map([("baseline", "popularity")])


class Late(pool.WorkerActor):
    """A worker that dies of its first candidate, and whose node has its base model back only after two more starts."""

    def __init__(self, load: Workload, *arguments: Any) -> None:
        died = Path(str(load.notes["died"]))
        if died.exists() and died.stat().st_size < 2:
            with died.open("a") as file:
                file.write(".")
            raise CheckpointError("no base model there")
        super().__init__(load, *arguments)

    def call(self, method: str, *arguments: Any) -> Any:
        if method == "run":
            Path(str(self._worker.load.notes["died"])).touch()
            os._exit(1)
        return super().call(method, *arguments)


def test_a_worker_that_cannot_start_again_at_once_is_begun_again(
    workload: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this module
    monkeypatch.setattr(pool, "WorkerActor", Late)
    notices: list[str] = []
    notes = {"died": str(tmp_path / "died")}
    with pool.RayPool(replace(workload, notes=notes), count=1, notice=notices.append) as workers:
        workers.submit(Attempt(Candidate("c0001", {})))
        [outcome] = workers.wait()
        assert outcome.lost
        with monkeypatch.context() as patch:
            patch.setattr(pool, "SILENCE", 0.6)
            assert workers.map([("baseline", "popularity")]) == [Worker(workload).baseline("popularity")]
        assert "Nothing has ended for 0.01 minutes; under way: workers start." in notices
        tries = [n for n in notices if n.startswith("A worker could not be started again (")]
        assert [n.partition("no base model there); ")[2] for n in tries] == ["3 tries are left.", "2 tries are left."]
        notices.clear()
        monkeypatch.setattr(workers, "_spare", 0)
        (tmp_path / "died").write_text("")
        workers.submit(Attempt(Candidate("c0002", {})))
        [outcome] = workers.wait()
        assert outcome.lost
        with pytest.raises(
            ClusterError, match=r"no worker is left and none could be started \(.*no base model there\)"
        ):
            workers.map([("baseline", "popularity")])
    assert len(notices) == 1
    assert notices[0].startswith("A worker could not be started again (")
    assert notices[0].endswith("no base model there); 0 tries are left.")
