import errno
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pareto_search import archive, checkpoint, database, search
from pareto_search.candidate import Attempt, Evaluation, Genes, Leg
from pareto_search.config import SearchConfig
from pareto_search.errors import CheckpointError, RunError, SearchError
from pareto_search.executor import Files, Outcome, Result
from pareto_search.search import HOPELESS, Progress, Search
from pareto_search.store import Record, SearchRecord, Store

LANES = 3
FULL = 40
Pick = Callable[[list[Attempt]], int]
"""Which of the attempts under way ends next."""
Deed = Callable[[Attempt], Outcome | None]
"""How an attempt ends, or None where it ends well."""


def oldest(_: list[Attempt]) -> int:
    return 0


def newest(running: list[Attempt]) -> int:
    return len(running) - 1


def chance(seed: int) -> Pick:
    rng = random.Random(seed)
    return lambda running: rng.randrange(len(running))


def values(genes: Genes) -> dict[str, float]:
    """A trade-off along one gene, and a cost for a learning rate off its best."""
    share = float(genes["weight.ild@10"]) / 2
    miss = abs(float(genes["tower_lr"]) - 1e-3)
    return {"ndcg@10": 0.12 - 0.08 * share - 5 * miss, "ild@10": 0.5 + 0.4 * share - 5 * miss}


def scores(attempt: Attempt) -> dict[str, float]:
    """Of a checkpoint alone. What comes of merging, or of less training, is anybody's guess, and always the same."""
    candidate, steps = attempt.candidate, attempt.steps or FULL
    chance = random.Random(f"{candidate} at {steps}")
    if candidate.kind != "trained":
        share = chance.random()
        return {"ndcg@10": 0.13 - 0.08 * share, "ild@10": 0.5 + 0.45 * share}
    return {
        name: value * (1.0 if steps == FULL else chance.uniform(0.8, 1.0))
        for name, value in values(candidate.genes).items()
    }


def files(name: str, steps: int = FULL) -> dict[str, bytes]:
    """A checkpoint, or a state below the full rung."""
    checkpoint = {"recommender.json": f"{name} after {steps}".encode()}
    return checkpoint if steps == FULL else {**checkpoint, "optimiser.safetensors": b""}


def result(attempt: Attempt, alone: Mapping[str, float] | None = None) -> Result:
    """The checkpoint alone, and at the full rung one setting that trades accuracy for diversity."""
    steps = attempt.steps or FULL
    alone = alone or scores(attempt)
    served = {"ndcg@10": alone["ndcg@10"] - 0.01, "ild@10": alone["ild@10"] + 0.05}
    evaluations = tuple(
        Evaluation(attempt.candidate.id, attempt.number, steps, setting, {"diversity": 0.5 * setting}, scored)
        for setting, scored in enumerate((alone, served) if steps == FULL else (alone,))
    )
    return Result(evaluations, files(attempt.candidate.id, steps), 1.0)


class Workers:
    """An executor whose attempts take no time and end in the order that `pick` says."""

    def __init__(self, number: int = LANES, pick: Pick = oldest, deed: Deed = lambda _: None) -> None:
        self.number, self.pick, self.deed = number, pick, deed
        self.running: list[Attempt] = []
        self.submitted: list[Attempt] = []
        self.sources: list[Sequence[Files]] = []  # of each attempt that was submitted
        self.ended: list[str] = []

    @property
    def free(self) -> int:
        return self.number - len(self.running)

    @property
    def idle(self) -> int:
        return self.free

    @property
    def busy(self) -> int:
        return len(self.running)

    def submit(self, attempt: Attempt, sources: Sequence[Files] = ()) -> str:
        assert self.free, "submitted to workers that are all busy"
        self.running.append(attempt)
        self.submitted.append(attempt)
        self.sources.append(sources)
        return "w0"

    def wait(self) -> list[Outcome]:
        attempt = self.running.pop(self.pick(self.running))
        self.ended.append(attempt.candidate.id)
        return [self.deed(attempt) or Outcome(attempt, result(attempt), seconds=1.0)]


def config(**wishes: Any) -> SearchConfig:
    objectives = [
        {"metric": "ndcg@10", "reference": 0.02, "ideal": 0.15},
        {"metric": "ild@10", "reference": 0.4, "ideal": 1.0},
    ]
    budget = {"population": 4, "candidates": 12, "mode": "ordered", "merging": False, **wishes}
    return SearchConfig.parse({"name": "s", "data": {"source": "nowhere"}, "objectives": objectives, "search": budget})


def create(run: Path, lanes: int = LANES) -> Store:
    run.mkdir(exist_ok=True)
    return Store.create(run / "search.db", SearchRecord("s", "i", "c", 0, "d", "s", "b", "b", lanes=lanes))


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever dies here is a process and no machine, so nobody need wait for the disk."""
    careful = database._set_up

    def set_up(connection: Any, record: object) -> None:
        careful(connection, record)
        connection.execute("PRAGMA synchronous = OFF")

    monkeypatch.setattr(database, "_set_up", set_up)
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def store(run: Path) -> Iterator[Store]:
    store = create(run)
    yield store
    store.close()


def searched(store: Store, run: Path, workers: Workers, **wishes: Any) -> Search:
    found = Search(config(**wishes), store, run)
    found.run(workers)
    return found


def told(store: Store) -> list[str]:
    return [leg.candidate for deed, leg in store.journal() if deed == "hear"]


def entries(found: Search) -> list[tuple[str, Mapping[str, float]]]:
    return sorted((e.entry, e.values) for e in found.front)


def undisturbed(folder: Path, **wishes: Any) -> tuple[list[Any], ...]:
    """Journal, candidates and front of a search that nothing happens to."""
    store = create(folder)
    found = searched(store, folder, Workers(), **wishes)
    seen = store.journal(), store.candidates(), entries(found)
    store.close()
    return seen


HALVING: dict[str, Any] = {"rungs": [10, 20, 40], "merging": True, "fusions": 2}


@pytest.mark.parametrize("algorithm", ["nsga2", "spea2"])
@pytest.mark.parametrize("pick", [newest, chance(1), chance(2), chance(3)])
def test_ordered_mode_proposes_the_same_whoever_is_fast(
    store: Store, run: Path, tmp_path: Path, pick: Pick, algorithm: str
) -> None:
    expected = undisturbed(tmp_path / "calm", algorithm=algorithm)
    found = searched(store, run, Workers(pick=pick), algorithm=algorithm)
    assert (store.journal(), store.candidates(), entries(found)) == expected


@pytest.mark.parametrize("algorithm", ["nsga2", "spea2"])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("inheritance", [False, True])
def test_ordered_mode_with_rungs_and_mergers_decides_the_same_whoever_is_fast(
    tmp_path: Path, algorithm: str, seed: int, inheritance: bool
) -> None:
    wishes = {**HALVING, "algorithm": algorithm, "seed": seed, "candidates": 16, "inheritance": inheritance}
    expected = undisturbed(tmp_path / "calm", **wishes)
    assert {deed for deed, _ in expected[0]} == {"begin", "ask", "hear", "merge", "promote", "fuse"}
    for n, workers in enumerate([Workers(pick=newest), Workers(pick=chance(seed)), Workers(5, chance(9)), Workers(1)]):
        store = create(tmp_path / f"run{n}")
        found = searched(store, tmp_path / f"run{n}", workers, **wishes)
        assert (store.journal(), store.candidates(), entries(found)) == expected
        store.close()


@pytest.mark.parametrize("number", [1, 2, 5])
def test_ordered_mode_proposes_the_same_with_other_workers_than_it_began_with(
    store: Store, run: Path, tmp_path: Path, number: int
) -> None:
    found = searched(store, run, Workers(number, chance(0)))
    assert (store.journal(), store.candidates(), entries(found)) == undisturbed(tmp_path / "calm")


def test_ordered_mode_keeps_all_its_workers_busy(store: Store, run: Path) -> None:
    workers = Workers()
    searched(store, run, workers)
    assert store.journal()[:LANES] == [("ask", Leg(f"c000{n}", 40)) for n in range(1, LANES + 1)]
    assert [(deed, leg.candidate) for deed, leg in store.journal()[LANES:][:4]] == [
        ("hear", "c0001"),
        ("ask", "c0004"),
        ("hear", "c0002"),
        ("ask", "c0005"),
    ]


def test_ordered_mode_with_a_larger_budget_goes_on_as_if_it_had_always_had_it(
    store: Store, run: Path, tmp_path: Path
) -> None:
    searched(store, run, Workers(), candidates=7)
    found = searched(store, run, Workers(pick=newest), candidates=12)
    assert (store.journal(), store.candidates(), entries(found)) == undisturbed(tmp_path / "calm")


def test_async_mode_tells_each_candidate_when_it_ends(store: Store, run: Path) -> None:
    workers = Workers(pick=chance(5))
    searched(store, run, workers, mode="async")
    assert workers.ended != sorted(workers.ended)
    assert told(store) == workers.ended


@pytest.mark.parametrize("mode", ["async", "ordered"])
def test_the_budget_of_candidates_is_spent_and_not_exceeded(store: Store, run: Path, mode: str) -> None:
    found = searched(store, run, Workers(), mode=mode, candidates=7)
    assert [c.id for c in store.candidates()] == [f"c000{n}" for n in range(1, 8)]
    assert {a.state for a in store.attempts()} == {"finished"}
    assert found.is_over


def test_a_search_that_is_over_runs_nothing_again(store: Store, run: Path) -> None:
    front = entries(searched(store, run, Workers()))
    workers = Workers()
    again = searched(store, run, workers)
    assert workers.submitted == []
    assert entries(again) == front


def test_progress_counts_up_and_its_hypervolume_never_falls(store: Store, run: Path) -> None:
    seen: list[Progress] = []
    Search(config(), store, run).run(Workers(), seen.append)
    assert [p.finished for p in seen] == list(range(1, 13))
    assert {p.total for p in seen} == {12}
    assert [p.hypervolume for p in seen] == sorted(p.hypervolume for p in seen)
    assert seen[-1].left == 0


class Crash(BaseException):
    """The driver's death."""


@dataclass(frozen=True)
class Point:
    """A point in time: before or after the given call of a function, counted from 0."""

    target: Any
    name: str
    call: int
    after: bool

    @contextmanager
    def deadly(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Within this, the driver dies at the point."""
        calls, original = count(), getattr(self.target, self.name)

        def fatal(*arguments: Any, **options: Any) -> Any:
            mine = next(calls) == self.call
            if mine and not self.after:
                raise Crash
            outcome = original(*arguments, **options)
            if mine:
                raise Crash
            return outcome

        with monkeypatch.context() as patch:
            patch.setattr(self.target, self.name, fatal)
            yield


CHECKPOINT = Point(checkpoint, "write", 0, after=False)


def disturbed(
    monkeypatch: pytest.MonkeyPatch, folder: Path, point: Point, **wishes: Any
) -> tuple[list[Any], ...] | None:
    """As `undisturbed`, of a search that died and was resumed; None where it ended before it could die."""
    wishes = {"candidates": 8, **wishes}
    store, died = create(folder), False
    with point.deadly(monkeypatch):
        try:
            searched(store, folder, Workers(pick=chance(point.call)), **wishes)
        except Crash:
            died = True
    store.close()
    store = Store.open(folder / "search.db")
    finished = {(e.candidate, e.steps) for e in store.evaluations()}
    workers = Workers(pick=chance(point.call + 1))
    found = searched(store, folder, workers, **wishes)
    assert not finished & {(a.candidate.id, a.steps) for a in workers.submitted}, "trained again"
    seen = store.journal(), store.candidates(), entries(found)
    store.close()
    return seen if died else None


POINTS = [
    (Record, "decided"),
    (Record, "heard"),
    (Record, "started"),
    (Record, "finished"),
    (Record, "add_elapsed"),
    (checkpoint, "write"),
    (checkpoint, "remove"),
]


def candidates_for(name: str) -> int:
    """How many it takes to come by a point several times: few checkpoints are needed at first and then no more."""
    return 24 if name == "remove" else 8


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("target", "name"), POINTS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_search_that_dies_at_any_named_point_ends_as_if_it_had_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: Any, name: str, after: bool
) -> None:
    wishes = {"candidates": candidates_for(name)}
    expected, call = undisturbed(tmp_path / "calm", **wishes), int(after)
    while seen := disturbed(monkeypatch, tmp_path / f"run{call}", Point(target, name, call, after), **wishes):
        assert seen == expected
        call += 2
    assert call >= 5


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("target", "name"), POINTS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_search_with_rungs_and_mergers_that_dies_at_any_named_point_ends_as_if_it_had_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: Any, name: str, after: bool
) -> None:
    wishes = {**HALVING, "inheritance": after, "candidates": candidates_for(name)}
    expected, call = undisturbed(tmp_path / "calm", **wishes), 2 * int(after)
    while seen := disturbed(monkeypatch, tmp_path / f"run{call}", Point(target, name, call, after), **wishes):
        assert seen == expected
        call += 3
    assert call >= (6 if name == "remove" else 12)


def test_a_full_disk_ends_the_search_with_one_line_and_it_resumes_with_the_same_front(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected, synced = undisturbed(tmp_path / "calm", candidates=8), os.fsync
    for write in range(0, 24, 3):
        folder = tmp_path / f"run{write}"
        store, calls = create(folder), count()

        def full(descriptor: int, calls: Iterator[int] = calls, write: int = write) -> None:
            if next(calls) >= write:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            synced(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(RunError, match=r"no space left on the disk of .*; free some and resume"):
                searched(store, folder, Workers(), candidates=8)
        found = searched(store, folder, Workers(), candidates=8)
        assert (store.journal(), store.candidates(), entries(found)) == expected
        store.close()


def test_a_record_that_proposes_other_genes_is_refused(store: Store, run: Path) -> None:
    searched(store, run, Workers(), candidates=4)
    with pytest.raises(
        SearchError, match=r"the record goes on with c0001 otherwise than .*; resume it with the version"
    ):
        Search(config(seed=1), store, run)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(search, "time", SimpleNamespace(monotonic=lambda: self.now))

    def slow(self, seconds: float) -> Deed:
        """Of two attempts under way one ends after so many seconds, so each takes twice as long."""

        def deed(attempt: Attempt) -> Outcome:
            self.now += seconds
            return Outcome(attempt, replace(result(attempt), seconds=2 * seconds), seconds=2 * seconds)

        return deed


def test_a_budget_of_minutes_ends_the_search_before_a_candidate_that_would_end_late(
    monkeypatch: pytest.MonkeyPatch, store: Store, run: Path
) -> None:
    clock = Clock(monkeypatch)
    began = clock.now
    found = searched(store, run, Workers(2, deed=clock.slow(30)), mode="async", minutes=5, candidates=1000)
    assert 240 <= clock.now - began <= 300
    assert found.is_over
    assert {a.state for a in store.attempts()} == {"finished"}


def test_how_long_the_warm_start_takes_says_nothing_of_a_merger(
    monkeypatch: pytest.MonkeyPatch, store: Store, run: Path
) -> None:
    clock = Clock(monkeypatch)
    began = clock.now

    def deed(attempt: Attempt) -> Outcome:
        return clock.slow(0.01 if attempt.candidate.is_warm_start else 30)(attempt)

    searched(store, run, Workers(2, deed=deed), mode="async", merging=True, minutes=2, candidates=1000)
    assert 60 <= clock.now - began <= 120


def test_time_spent_before_a_resume_counts(monkeypatch: pytest.MonkeyPatch, store: Store, run: Path) -> None:
    clock = Clock(monkeypatch)
    searched(store, run, Workers(2, deed=clock.slow(30)), mode="async", minutes=100, candidates=6)
    clock.now += 10_000  # nobody searched
    again = Search(config(mode="async", minutes=100, candidates=8), store, run)
    assert again.progress().elapsed == pytest.approx(180)
    assert store.search.elapsed_seconds == pytest.approx(180)


def fate(*wanted: tuple[str, int], **how: Any) -> Deed:
    """Ends the named attempts of candidates in another way."""

    def deed(attempt: Attempt) -> Outcome | None:
        return Outcome(attempt, **how) if (attempt.candidate.id, attempt.number) in wanted else None

    return deed


def test_a_candidate_whose_worker_dies_once_is_tried_once_more(store: Store, run: Path, tmp_path: Path) -> None:
    workers = Workers(deed=fate(("c0002", 1), error="the worker died: killed", lost=True))
    found = searched(store, run, workers)
    mine = [(a.number, a.state, a.error) for a in store.attempts() if a.candidate == "c0002"]
    assert mine == [(1, "lost", "the worker died: killed"), (2, "finished", None)]
    assert entries(found) == undisturbed(tmp_path / "calm")[2]
    assert {e.attempt for e in store.evaluations() if e.candidate == "c0002"} == {2}


def test_a_candidate_that_takes_two_workers_down_has_failed(store: Store, run: Path) -> None:
    found = searched(store, run, Workers(deed=fate(("c0002", 1), ("c0002", 2), error="died", lost=True)))
    assert [(a.number, a.state) for a in store.attempts() if a.candidate == "c0002"] == [(1, "lost"), (2, "failed")]
    assert "c0002" in told(store)
    assert "c0002" not in {e.candidate for e in store.evaluations()}
    assert found.progress().failed == 1
    assert found.progress().finished == 11


class Packed(Workers):
    """One worker that runs several attempts side by side, and dies with all of them where one is a killer's."""

    def __init__(self, killers: Callable[[Attempt], bool]) -> None:
        super().__init__()
        self.killers = killers
        self.alone: list[str] = []
        self.lost: list[str] = []

    @property
    def free(self) -> int:
        return 0 if any(a.alone for a in self.running) else super().free

    @property
    def idle(self) -> int:
        return int(not self.running)

    def submit(self, attempt: Attempt, sources: Sequence[Files] = ()) -> str:
        if attempt.alone:
            assert not self.running
            self.alone.append(attempt.candidate.id)
        return super().submit(attempt, sources)

    def wait(self) -> list[Outcome]:
        if not any(map(self.killers, self.running)):
            return super().wait()
        dead, self.running = self.running, []
        self.lost += [attempt.candidate.id for attempt in dead]
        return [Outcome(attempt, error="the worker died: killed", lost=True) for attempt in dead]


class Stopping(Packed):
    """One that the driver dies beside, in time."""

    def __init__(self, killers: Callable[[Attempt], bool], due: Callable[["Stopping"], object]) -> None:
        super().__init__(killers)
        self.due = due

    def wait(self) -> list[Outcome]:
        if self.due(self):
            raise Crash
        return super().wait()


@pytest.mark.parametrize("mode", ["async", "ordered"])
def test_what_is_lost_together_is_tried_alone_before_anything_new(store: Store, run: Path, mode: str) -> None:
    workers = Packed(lambda attempt: attempt.candidate.id == "c0003")
    found = searched(store, run, workers, mode=mode)
    together = {a.candidate for a in store.attempts() if a.state == "lost"}
    assert len(together) == LANES
    assert set(workers.alone) == together
    assert [a.alone for a in workers.submitted[: 2 * LANES]] == [False] * LANES + [True] * LANES
    assert [a.candidate for a in store.attempts() if a.state == "failed"] == ["c0003"]
    assert found.progress().finished == 11


def test_what_was_lost_together_is_tried_alone_after_a_resume_too(store: Store, run: Path) -> None:
    def killers(attempt: Attempt) -> bool:
        return attempt.candidate.id == "c0003"

    stopped = Stopping(killers, due=lambda workers: workers.lost)
    with pytest.raises(Crash):
        searched(store, run, stopped)
    assert len(stopped.lost) == LANES
    workers = Packed(killers)
    searched(store, run, workers)
    assert set(workers.alone) == set(stopped.lost)
    assert workers.lost == ["c0003"], "which has taken a worker down before"
    assert [a.candidate for a in store.attempts() if a.state == "failed"] == ["c0003"]


@pytest.mark.parametrize("mode", ["async", "ordered"])
def test_a_resume_whose_minutes_are_spent_ends_what_was_under_way_and_begins_nothing(
    monkeypatch: pytest.MonkeyPatch, store: Store, run: Path, mode: str
) -> None:
    clock, wishes = Clock(monkeypatch), {**HALVING, "mode": mode, "candidates": 1000, "fusions": 0}
    stopped = Stopping(lambda _: False, due=lambda workers: len(workers.ended) == 10)
    stopped.deed = clock.slow(30)
    with pytest.raises(Crash):
        searched(store, run, stopped, **wishes)
    assert len(stopped.running) == LANES
    workers = Workers(deed=clock.slow(30))
    found = searched(store, run, workers, **wishes, minutes=1)
    again = {(a.candidate.id, a.number, a.steps) for a in workers.submitted}
    assert again == {(a.candidate.id, a.number + 1, a.steps) for a in stopped.running}
    assert found.is_over
    assert found.front
    assert found.progress().left == 0


@pytest.mark.parametrize("stops", [False, True])
def test_who_has_come_to_a_rung_is_no_suspect_any_more(store: Store, run: Path, stops: bool) -> None:
    killed: list[int] = []

    def killers(attempt: Attempt) -> bool:  # at each rung once, and nobody who is alone
        kills = not attempt.alone and attempt.steps not in killed and attempt.candidate.id in ("c0002", "c0003")
        if kills:
            killed.append(int(attempt.steps or 0))
        return kills

    if stops:
        with pytest.raises(Crash):
            searched(store, run, Stopping(killers, due=lambda workers: "c0003" in workers.ended), **HALVING)
        assert len(killed) == 1
    found = searched(store, run, Packed(killers), **HALVING)
    assert len(killed) > 1
    assert not [a for a in store.attempts() if a.state == "failed"]
    assert found.progress().failed == 0


def test_a_death_of_the_driver_is_not_held_against_a_candidate(
    monkeypatch: pytest.MonkeyPatch, store: Store, run: Path
) -> None:
    for _ in range(3):
        with CHECKPOINT.deadly(monkeypatch), pytest.raises(Crash):
            searched(store, run, Workers())
    workers = Workers(deed=fate(("c0001", 4), error="died", lost=True))
    searched(store, run, workers)
    mine = [(a.number, a.state) for a in store.attempts() if a.candidate == "c0001"]
    assert mine == [(1, "lost"), (2, "lost"), (3, "lost"), (4, "lost"), (5, "finished")]


@pytest.mark.parametrize("mode", ["async", "ordered"])
def test_an_attempt_that_raises_or_hangs_is_not_repeated(store: Store, run: Path, mode: str) -> None:
    error = "still running after 600 s"
    searched(store, run, Workers(deed=fate(("c0003", 1), error=error, seconds=600.0)), mode=mode)
    (mine,) = [a for a in store.attempts() if a.candidate == "c0003"]
    assert (mine.state, mine.error, mine.seconds) == ("failed", error, 600.0)
    assert "c0003" in told(store)
    assert "c0003" not in {e.candidate for e in store.evaluations()}


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_fails_its_candidate(store: Store, run: Path, number: float) -> None:
    def deed(attempt: Attempt) -> Outcome | None:
        bad = {"ndcg@10": number, "ild@10": 0.5}
        return Outcome(attempt, result(attempt, bad)) if attempt.candidate.id == "c0001" else None

    found = searched(store, run, Workers(deed=deed))
    (mine,) = [a for a in store.attempts() if a.candidate == "c0001"]
    assert (mine.state, mine.error) == ("failed", "a score is not a number")
    assert "c0001" not in {e.candidate for e in found.front}
    assert not (run / "checkpoints" / "c0001").exists()


def test_a_search_in_which_every_candidate_fails_ends_with_one_error(store: Store, run: Path) -> None:
    workers = Workers(deed=lambda attempt: Outcome(attempt, error="ValueError: no"))
    with pytest.raises(SearchError, match=f"all {HOPELESS} candidates failed, c0008 with: ValueError: no"):
        searched(store, run, workers, candidates=100)
    assert len(workers.submitted) <= HOPELESS + LANES


def test_it_goes_on_when_what_every_candidate_failed_of_has_been_mended(store: Store, run: Path) -> None:
    def fails(attempt: Attempt) -> Outcome:
        return Outcome(attempt, error="no")

    with pytest.raises(SearchError, match=f"all {HOPELESS} candidates failed"):
        searched(store, run, Workers(deed=fails), candidates=100)
    with pytest.raises(SearchError, match=f"all {2 * HOPELESS} candidates failed"):
        searched(store, run, Workers(deed=fails), candidates=100)
    found = searched(store, run, Workers(), candidates=100)
    assert found.progress().failed >= 2 * HOPELESS
    assert found.front


def test_a_short_search_in_which_every_candidate_fails_ends_with_one_error(store: Store, run: Path) -> None:
    with pytest.raises(
        SearchError, match="all 3 candidates failed, c0003 with: no; mend that and resume with a larger"
    ):
        searched(store, run, Workers(deed=lambda attempt: Outcome(attempt, error="no")), candidates=3)


def test_one_success_among_many_failures_is_enough_to_go_on(store: Store, run: Path) -> None:
    def deed(attempt: Attempt) -> Outcome | None:
        return None if attempt.candidate.id == "c0001" else Outcome(attempt, error="no")

    found = searched(store, run, Workers(deed=deed), candidates=20)
    assert found.progress().failed == 19
    assert {e.candidate for e in found.front} == {"c0001"}


@pytest.mark.parametrize("mode", ["async", "ordered"])
def test_only_checkpoints_of_the_front_and_of_future_parents_are_kept(store: Store, run: Path, mode: str) -> None:
    found = searched(store, run, Workers(pick=chance(4)), mode=mode, candidates=24)
    kept = {p.name for p in (run / "checkpoints").iterdir()}
    front, legators = {e.candidate for e in found.front}, found.schedule.legators
    untold = {c.id for c in store.candidates()} - set(told(store))
    assert kept == front | legators | untold
    assert len(kept) < 24


def test_all_checkpoints_are_kept_where_that_is_wished(store: Store, run: Path) -> None:
    searched(store, run, Workers(), keep_checkpoints="all")
    assert {p.name for p in (run / "checkpoints").iterdir()} == {c.id for c in store.candidates()}


def test_the_front_is_that_of_all_evaluations(store: Store, run: Path) -> None:
    found = searched(store, run, Workers(pick=chance(7)), mode="async", candidates=24)
    whole = archive.front(store.evaluations(), config().objectives, (), 40)
    assert {e.entry for e in found.front} == {e.entry for e in whole}


def legs(attempts: Sequence[Attempt]) -> list[Leg]:
    return [Leg(a.candidate.id, a.steps or FULL) for a in attempts]


def lawful(attempt: Attempt, inheritance: bool) -> list[dict[str, bytes]]:
    """What an attempt has to start from."""
    candidate, rungs = attempt.candidate, HALVING["rungs"]
    rung = rungs.index(attempt.steps)
    if candidate.kind != "trained":
        return [files(parent) for parent in candidate.parents]
    if rung:
        return [files(candidate.id, rungs[rung - 1])]
    return [files(parent) for parent in candidate.parents[:1]] if inheritance else []


@pytest.mark.parametrize("inheritance", [False, True])
@pytest.mark.parametrize("mode", ["async", "ordered"])
@pytest.mark.parametrize("seed", range(3))
def test_attempts_start_from_their_state_or_their_parents(
    store: Store, run: Path, mode: str, inheritance: bool, seed: int
) -> None:
    workers = Workers(pick=chance(seed))
    searched(store, run, workers, **HALVING, mode=mode, inheritance=inheritance, candidates=24, seed=seed)
    assert len(set(legs(workers.submitted))) == len(workers.submitted)
    for attempt, sources in zip(workers.submitted, workers.sources, strict=True):
        assert list(sources) == lawful(attempt, inheritance)
    kinds = {(a.candidate.kind, a.steps, len(a.candidate.parents)) for a in workers.submitted}
    assert {("trained", 10, 0), ("merged", 40, 0), ("merged", 40, 2)} <= kinds
    assert any(kind == "trained" and steps == 10 and parents for kind, steps, parents in kinds)
    assert {steps for kind, steps, _ in kinds if kind == "trained"} == {10, 20, 40}


@pytest.mark.parametrize("mode", ["async", "ordered"])
def test_each_rung_passes_on_half_and_the_front_is_that_of_the_full_one(store: Store, run: Path, mode: str) -> None:
    found = searched(store, run, Workers(pick=chance(1)), **HALVING, mode=mode, candidates=24)
    trained = [leg for leg in found.schedule.legs if leg.candidate.startswith("c")]
    assert [sum(leg.steps == rung for leg in trained) for rung in (10, 20, 40)] == [24, 12, 6]
    assert {e.steps for e in found.front} == {40}
    whole = archive.front(store.evaluations(), config().objectives, (), 40)
    assert {e.entry for e in found.front} == {e.entry for e in whole}
    assert found.schedule.heard == set(found.schedule.legs)
    assert found.is_over


@pytest.mark.parametrize("seed", range(4))
def test_async_mode_hears_of_each_leg_once_when_it_ends(store: Store, run: Path, seed: int) -> None:
    workers = Workers(pick=chance(seed))
    searched(store, run, workers, **HALVING, mode="async", candidates=16)
    assert told(store) == workers.ended
    assert workers.ended != [a.candidate.id for a in workers.submitted]


@pytest.mark.parametrize("mode", ["async", "ordered"])
def test_states_are_there_as_long_as_they_may_be_needed(store: Store, run: Path, mode: str) -> None:
    found = Search(config(**HALVING, mode=mode, candidates=16), store, run)

    def look(_: Progress) -> None:
        last = {leg.candidate: leg for leg in found.schedule.legs}
        reached = {(e.candidate, e.steps) for e in store.evaluations()}
        for name, leg in last.items():
            scored = [steps for candidate, steps in reached if candidate == name]
            if (run / "states" / name).is_dir():
                assert max(scored) < FULL
                assert checkpoint.read(run / "states" / name) == files(name, max(scored))
            else:
                assert not scored or leg.steps == max(scored) == FULL

    found.run(Workers(pick=chance(2)), look)
    paused = {c for c, steps in dict(found.schedule.legs).items() if steps < FULL}
    assert {p.name for p in (run / "states").iterdir()} == paused
    assert len(paused) == 12
    assert not paused & {p.name for p in (run / "checkpoints").iterdir()}


def test_a_checkpoint_has_no_state_and_a_state_is_no_checkpoint(store: Store, run: Path) -> None:
    searched(store, run, Workers(), **HALVING, keep_checkpoints="all")
    names = {p.name: set(checkpoint.read(p)) for p in (run / "checkpoints").iterdir()}
    assert set(map(frozenset, names.values())) == {frozenset({"recommender.json"})}
    assert all("optimiser.safetensors" in checkpoint.read(p) for p in (run / "states").iterdir())


@pytest.mark.parametrize("mode", ["async", "ordered"])
def test_a_state_that_is_gone_fails_its_candidate_and_no_other(store: Store, run: Path, mode: str) -> None:
    lost: set[str] = set()

    def look(_: Progress) -> None:
        waiting = list((run / "states").glob("c*"))
        if waiting and len(lost) < 4:
            shutil.rmtree(run / "states")
            lost.update(folder.name for folder in waiting)

    found = Search(config(**HALVING, mode=mode, candidates=8), store, run)
    found.run(Workers(), look)
    failed = {a.candidate: (a.worker, a.error) for a in store.attempts() if a.state == "failed"}
    assert failed
    assert failed.keys() <= lost
    for name, (worker, error) in failed.items():
        assert worker == "nobody"
        assert error == f"{run / 'states' / name} is not there; expected a folder with a manifest.json"
    assert found.is_over
    assert Search(config(**HALVING, mode=mode, candidates=8), store, run).is_over


def test_a_checkpoint_that_is_gone_ends_the_search_until_it_is_back(store: Store, run: Path) -> None:
    def look(_: Progress) -> None:
        if len(store.evaluations()) > 30:
            raise KeyboardInterrupt

    heirs = {"candidates": 24, "population": 3, "inheritance": True}
    with pytest.raises(KeyboardInterrupt):
        Search(config(**heirs), store, run).run(Workers(), look)
    (run / "checkpoints").rename(run / "away")
    before = store.evaluations()
    with pytest.raises(CheckpointError, match="is not there; expected a folder"):
        Search(config(**heirs), store, run).run(Workers())
    (run / "checkpoints").mkdir(exist_ok=True)
    for folder in (run / "away").iterdir():
        folder.rename(run / "checkpoints" / folder.name)
    found = searched(store, run, Workers(), **heirs)
    assert found.is_over
    assert store.evaluations()[: len(before)] == before
    assert not [a for a in store.attempts() if a.state == "failed"]


@pytest.mark.parametrize("mode", ["async", "ordered"])
def test_a_checkpoint_that_was_damaged_costs_those_who_start_from_it(store: Store, run: Path, mode: str) -> None:
    damaged: set[str] = set()

    def look(_: Progress) -> None:
        if len(store.evaluations()) > 30 and not damaged:
            for folder in (run / "checkpoints").iterdir():
                damaged.add(folder.name)
                (folder / "manifest.json").write_text("{}")

    heirs = {"candidates": 24, "population": 3, "inheritance": True, "mode": mode}
    found = Search(config(**heirs), store, run)
    found.run(Workers(), look)
    failed = {a.candidate: (a.worker, a.error or "") for a in store.attempts() if a.state == "failed"}
    assert failed
    for name, (worker, error) in failed.items():
        assert worker == "nobody"
        assert damaged & set(found.schedule.candidates[name].parents)
        assert error.endswith("restore the folder from a copy")
    assert found.is_over
    assert found.progress().finished + len(failed) == 24


@pytest.mark.parametrize("mode", ["async", "ordered"])
def test_what_ended_beside_a_missing_checkpoint_is_recorded(store: Store, run: Path, mode: str) -> None:
    def look(_: Progress) -> None:
        if len(store.evaluations()) > 30 and (run / "checkpoints").exists():
            (run / "checkpoints").rename(run / "away")

    workers, heirs = Workers(), {"candidates": 24, "population": 3, "inheritance": True, "mode": mode}
    with pytest.raises(CheckpointError, match="is not there; expected a folder"):
        Search(config(**heirs), store, run).run(workers, look)
    assert [a.candidate for a in store.attempts() if a.state == "finished"] == workers.ended


def test_every_session_is_noted_with_the_seconds_before_it(store: Store, run: Path) -> None:
    began = time.time()
    searched(store, run, Workers(), candidates=8)
    with store.transaction() as record:
        record.add_elapsed(1000.0)
    searched(store, run, Workers(), candidates=10)
    (first, before), (second, after) = store.fact("sessions")
    assert began <= first <= second <= time.time()
    assert (before, after - 1000.0) == (pytest.approx(0.0, abs=60), pytest.approx(0.0, abs=60))


def test_a_search_that_ran_out_of_proposals_is_over_when_it_is_opened_again(store: Store, run: Path) -> None:
    space = {
        **{"weight.ild@10": 0.1, "scalarisation": "tchebycheff", "rank": 4, "alpha": 8.0, "dropout": 0.0},
        **{"targets": "all", "layers": 1, "adapter_lr": 1e-3, "tower_lr": 1e-3, "weight_decay": 1e-2},
        "temperature": 1.0,
    }
    few = config(candidates=12).model_copy(update={"space": space})
    found = Search(few, store, run)
    found.run(Workers())
    assert len([leg for leg in found.schedule.legs if leg.candidate.startswith("c")]) == 2  # with and without IDs
    assert found.is_over
    assert Search(few, store, run).is_over


def test_the_state_of_a_candidate_that_fails_later_is_removed(store: Store, run: Path) -> None:
    def deed(attempt: Attempt) -> Outcome | None:
        return Outcome(attempt, error="no") if attempt.steps == 20 else None

    found = searched(store, run, Workers(deed=deed), **HALVING, candidates=8)
    failed = {leg.candidate for leg in found.schedule.legs if leg.steps == 20}
    assert len(failed) == 4
    assert found.progress().failed == 4
    assert not failed & {p.name for p in (run / "states").iterdir()}
    assert [(deed, leg.steps) for deed, leg in store.journal() if leg.candidate == min(failed)] == [
        ("ask", 10),
        ("hear", 10),
        ("promote", 20),
        ("hear", 20),
    ]


def test_a_promoted_attempt_whose_worker_dies_goes_on_from_its_state_again(store: Store, run: Path) -> None:
    def deed(attempt: Attempt) -> Outcome | None:
        return Outcome(attempt, error="died", lost=True) if (attempt.steps, attempt.number) == (20, 2) else None

    workers = Workers(deed=deed)
    searched(store, run, workers, **HALVING, candidates=8)
    again = [(a, s) for a, s in zip(workers.submitted, workers.sources, strict=True) if a.number == 3 and a.steps == 20]
    assert len(again) == 4
    assert all(list(sources) == lawful(attempt, False) for attempt, sources in again)
    assert {a.state for a in store.attempts() if a.number == 2} >= {"lost"}
    assert {a.state for a in store.attempts() if a.number == 3} == {"finished"}


def rising(attempt: Attempt) -> Outcome:
    """Each candidate dominates all before it; the warm start is on the front whatever comes."""
    n = int(attempt.candidate.id[1:])
    alone = {"ndcg@10": 0.03 + 0.001 * n, "ild@10": 0.45 + 0.005 * n}
    if attempt.candidate.kind == "merged":
        alone = {"ndcg@10": 0.02 + 0.14 * (n == 0), "ild@10": 0.41}
    return Outcome(attempt, result(attempt, alone), seconds=1.0)


def is_merger(attempt: Attempt) -> bool:
    return attempt.candidate.kind == "merged" and bool(attempt.candidate.parents)


def mergers_last(running: list[Attempt]) -> int:
    return next((i for i, attempt in enumerate(running) if not is_merger(attempt)), 0)


@pytest.mark.parametrize("mode", ["async", "ordered"])
def test_checkpoints_that_a_pending_merger_needs_are_not_swept(run: Path, mode: str) -> None:
    store, wishes = create(run, lanes=10), {"merging": True, "mode": mode, "population": 2, "candidates": 12}
    found, workers = Search(config(**wishes), store, run), Workers(10, mergers_last, rising)
    needless: list[set[str]] = []

    def look(_: Progress) -> None:
        needed = {name for a in workers.running for name in found.schedule.sources(a.candidate.id)}
        assert needed <= {p.name for p in (run / "checkpoints").iterdir()}
        needless.append(needed - {e.candidate for e in found.front} - found.schedule.legators)
        if needless[-1]:
            raise Crash

    with pytest.raises(Crash):
        found.run(workers, look)
    assert needless[-1] == {"c0001"}, "which nothing but a merger needs"
    pending = [a.candidate for a in workers.running if is_merger(a)]
    again = Workers(10, mergers_last, rising)
    searched(store, run, again, **wishes)
    sources = dict(zip((a.candidate.id for a in again.submitted), again.sources, strict=True))
    assert any("c0001" in candidate.parents for candidate in pending)
    assert all(list(sources[c.id]) == [files(parent) for parent in c.parents] for c in pending)
    assert not (run / "checkpoints" / "c0001").exists()
    store.close()


def test_a_checkpoint_on_the_front_as_far_as_it_is_heard_of_is_kept_for_mergers(run: Path) -> None:
    # c0001 is on the front for its setting, and no parent for what it is alone. c0010 ends it, but in ordered mode the
    # schedule hears of that late, and may merge c0001 meanwhile.
    def deed(attempt: Attempt) -> Outcome:
        ended = rising(attempt)
        assert ended.result is not None
        first, second = ended.result.evaluations
        place = {"c0001": (0.06, 0.7), "c0010": (0.07, 0.75)}.get(attempt.candidate.id)
        if place is not None:
            second = replace(second, values=dict(zip(("ndcg@10", "ild@10"), place, strict=True)))
        return replace(ended, result=replace(ended.result, evaluations=(first, second)))

    store = create(run, lanes=6)
    found = Search(config(merging=True, population=2, candidates=16), store, run)
    late: list[set[str]] = []

    def look(_: Progress) -> None:
        known = {e.candidate for e in found.schedule.front}
        assert known <= {p.name for p in (run / "checkpoints").iterdir()}
        late.append(known - {e.candidate for e in found.front} - found.schedule.legators)

    found.run(Workers(6, newest, deed), look)
    assert {"c0001"} in late, "nothing was kept for this alone"
    assert not (run / "checkpoints" / "c0001").exists()
    store.close()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("inheritance", [False, True])
def test_whatever_is_kept_with_rungs_and_mergers_is_needed(
    store: Store, run: Path, seed: int, inheritance: bool
) -> None:
    wishes = {**HALVING, "candidates": 24, "population": 3, "inheritance": inheritance}
    found = searched(store, run, Workers(pick=chance(seed)), **wishes)
    kept = {p.name for p in (run / "checkpoints").iterdir()}
    assert kept == {e.candidate for e in (*found.front, *found.schedule.single)} | found.schedule.legators
    assert len(kept) < len({leg.candidate for leg in found.schedule.legs if leg.steps == FULL})


@pytest.mark.parametrize("mode", ["async", "ordered"])
@pytest.mark.parametrize("seed", range(3))
def test_a_larger_budget_goes_on_with_those_who_were_waiting(store: Store, run: Path, mode: str, seed: int) -> None:
    wishes = {**HALVING, "mode": mode, "seed": seed}
    first = Workers(pick=chance(seed))
    searched(store, run, first, **wishes, candidates=8)
    waiting = {p.name for p in (run / "states").iterdir()}
    second = Workers(pick=chance(seed))
    found = searched(store, run, second, **wishes, candidates=24)
    assert not set(legs(first.submitted)) & set(legs(second.submitted)), "trained again"
    for attempt, sources in zip(second.submitted, second.sources, strict=True):
        assert list(sources) == lawful(attempt, False)
    trained = [leg for leg in found.schedule.legs if leg.candidate.startswith("c")]
    assert [sum(leg.steps == rung for leg in trained) for rung in (10, 20, 40)] == [24, 12, 6]
    if seed == 0:
        assert waiting & {leg.candidate for leg in legs(second.submitted)}
    assert found.is_over


@pytest.mark.parametrize("wishes", [HALVING, {"merging": False}], ids=["halving", "plain"])
@pytest.mark.parametrize("mode", ["async", "ordered"])
def test_fusions_can_be_added_to_a_search_that_is_over(
    store: Store, run: Path, mode: str, wishes: Mapping[str, Any]
) -> None:
    wishes = {**wishes, "mode": mode, "candidates": 8}
    searched(store, run, Workers(pick=chance(0)), **{**wishes, "fusions": 0})
    assert Search(config(**{**wishes, "fusions": 0}), store, run).is_over
    assert not Search(config(**{**wishes, "fusions": 2}), store, run).is_over
    workers = Workers(pick=chance(1))
    found = searched(store, run, workers, **{**wishes, "fusions": 2})
    assert [a.candidate.id for a in workers.submitted] == ["f0000", "f0001"]
    assert found.is_over
    assert found.progress().fused == 2


@pytest.mark.parametrize("mode", ["async", "ordered"])
def test_a_search_with_rungs_that_is_over_runs_nothing_again(store: Store, run: Path, mode: str) -> None:
    front = entries(searched(store, run, Workers(pick=chance(0)), **HALVING, mode=mode))
    before, workers = store.journal(), Workers()
    assert Search(config(**HALVING, mode=mode), store, run).is_over
    again = searched(store, run, workers, **HALVING, mode=mode)
    assert workers.submitted == []
    assert (entries(again), store.journal()) == (front, before)


def test_progress_with_rungs_and_mergers_counts_candidates(store: Store, run: Path) -> None:
    seen: list[Progress] = []
    deed = fate(("c0002", 1), ("m0001", 1), error="no")
    Search(config(**HALVING), store, run).run(Workers(deed=deed), seen.append)
    assert (seen[-1].finished, seen[-1].failed, seen[-1].total) == (11, 1, 12)
    counts = [p.finished + p.failed for p in seen]
    assert counts == sorted(counts)
    assert max(p.finished + p.failed for p in seen) == 12
    assert [p.hypervolume for p in seen] == sorted(p.hypervolume for p in seen)
    assert seen[-1].left == 0


def test_a_merger_that_fails_is_not_tried_again_and_ends_nothing(store: Store, run: Path) -> None:
    def deed(attempt: Attempt) -> Outcome | None:
        return (
            Outcome(attempt, error="no") if attempt.candidate.parents and attempt.candidate.kind == "merged" else None
        )

    found = searched(store, run, Workers(deed=deed), merging=True)
    assert {e.candidate[0] for e in found.front} <= {"c", "m"}
    assert {e.candidate for e in store.evaluations() if e.candidate.startswith("m")} == {"m0000"}
    assert len({a.candidate for a in store.attempts()}) == len(store.attempts())
    assert found.is_over


@pytest.mark.parametrize("mode", ["async", "ordered"])
@pytest.mark.parametrize("pick", [newest, chance(1)])
def test_a_search_that_waits_for_the_first_towers_decides_as_one_that_does_not(
    tmp_path: Path, store: Store, run: Path, mode: str, pick: Pick
) -> None:
    expected = undisturbed(tmp_path / "undisturbed", **HALVING)
    workers = Workers(pick=pick)
    found = Search(config(**HALVING, mode=mode), store, run)
    assert (found.early_towers, found.awaits_early) == (LANES, True)
    found.run(workers, legs=1)
    assert [a.candidate.id for a in workers.submitted] == ["e0000"]
    assert {e.candidate for e in found.front} == {"e0000"}
    found = Search(config(**HALVING, mode=mode), store, run)  # resumed
    assert not found.awaits_early
    found.run(workers)
    assert found.is_over
    assert "e0000" not in {e.candidate for e in found.front}
    if mode == "ordered":
        assert (store.candidates(), entries(found)) == expected[1:]


@pytest.mark.parametrize(
    ("lanes", "merging", "towers"), [(1, True, 1), (3, True, 3), (4, True, 0), (9, True, 0), (2, False, 0)]
)
def test_the_first_towers_are_those_that_the_workers_fit_at_once(
    tmp_path: Path, lanes: int, merging: bool, towers: int
) -> None:
    with closing(create(tmp_path / "run", lanes)) as store:
        found = Search(config(merging=merging), store, tmp_path / "run")
        assert (found.early_towers, found.awaits_early) == (towers, towers > 0)


def test_a_record_that_has_begun_without_the_first_towers_goes_on_without_them(
    monkeypatch: pytest.MonkeyPatch, store: Store, run: Path
) -> None:
    with monkeypatch.context() as older:
        older.setattr(Search, "_begins_early", lambda _: False)
        assert searched(store, run, Workers(), merging=True).is_over
    found = Search(config(merging=True), store, run)
    assert (found.early_towers, found.is_over) == (0, True)


def test_a_search_that_is_given_its_components_needs_no_first_towers(store: Store, run: Path) -> None:
    with store.transaction() as record:
        record.put_fact("components", {"warm-start": "its sum"})
    assert Search(config(merging=True), store, run).early_towers == 0


@pytest.mark.parametrize("mode", ["async", "ordered"])
def test_where_every_trained_candidate_fails_the_warm_start_does_not_hide_it(
    store: Store, run: Path, mode: str
) -> None:
    workers = Workers(deed=lambda a: None if a.candidate.kind == "merged" else Outcome(a, error="ValueError: no"))
    with pytest.raises(SearchError, match=f"all {HOPELESS} candidates failed, c0008 with: ValueError: no"):
        searched(store, run, workers, **HALVING, mode=mode, candidates=100)
    assert len(workers.submitted) <= 2 + HOPELESS + LANES


def stepwise(clock: Clock, seconds: Mapping[int, float]) -> Deed:
    """Attempts take as long as their rung says, one after the other; what is not trained takes none."""

    def deed(attempt: Attempt) -> Outcome:
        took = 0.0 if attempt.candidate.kind != "trained" else seconds[attempt.steps or FULL]
        clock.now += took
        return Outcome(attempt, replace(result(attempt), seconds=took), seconds=took)

    return deed


@pytest.mark.parametrize("mode", ["async", "ordered"])
def test_a_promotion_that_would_end_late_is_not_begun(
    monkeypatch: pytest.MonkeyPatch, store: Store, run: Path, mode: str
) -> None:
    clock = Clock(monkeypatch)
    began, wishes = clock.now, {**HALVING, "mode": mode, "minutes": 20, "candidates": 1000, "fusions": 0}
    found = searched(store, run, Workers(1, deed=stepwise(clock, {10: 20, 20: 20, 40: 300})), **wishes)
    assert 1200 - 20 < clock.now - began <= 1200
    at_full = [leg for leg in found.schedule.legs if leg.candidate.startswith("c") and leg.steps == FULL]
    assert 1 <= len(at_full) <= 3
    # Somebody still waits for the full rung, and the time that was too short for that went to others.
    assert found.schedule.option(lambda kind, steps: True) == "promote"
    assert found.schedule.legs[-1].steps < FULL
    assert found.is_over


def test_a_promotion_that_did_not_fit_is_made_up_for_with_more_minutes(
    monkeypatch: pytest.MonkeyPatch, store: Store, run: Path
) -> None:
    clock = Clock(monkeypatch)
    deed = stepwise(clock, {10: 20, 20: 20, 40: 300})
    wishes = {**HALVING, "mode": "async", "candidates": 1000}
    searched(store, run, Workers(1, deed=deed), **wishes, minutes=20)
    workers = Workers(1, deed=deed)
    found = searched(store, run, workers, **wishes, minutes=40)
    assert legs(workers.submitted)[0].steps == FULL
    assert workers.sources[0] == [files(workers.submitted[0].candidate.id, 20)]
    assert clock.now - 1000 <= 2400
    assert found.is_over
