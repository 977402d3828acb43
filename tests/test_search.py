import errno
import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pareto_search import archive, search
from pareto_search.candidate import Attempt, Evaluation, Genes
from pareto_search.config import SearchConfig
from pareto_search.errors import RunError, SearchError
from pareto_search.executor import Outcome, Result
from pareto_search.search import HOPELESS, Progress, Search
from pareto_search.store import Record, SearchRecord, Store

LANES = 3
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


def result(attempt: Attempt, scores: Mapping[str, float] | None = None) -> Result:
    """The checkpoint alone, and one setting that trades accuracy for diversity."""
    alone = scores or values(attempt.candidate.genes)
    served = {"ndcg@10": alone["ndcg@10"] - 0.01, "ild@10": alone["ild@10"] + 0.05}
    evaluations = tuple(
        Evaluation(attempt.candidate.id, attempt.number, 40, setting, {"diversity": 0.5 * setting}, scored)
        for setting, scored in enumerate((alone, served))
    )
    return Result(evaluations, {"recommender.json": attempt.candidate.id.encode()}, 1.0)


class Workers:
    """An executor whose attempts take no time and end in the order that `pick` says."""

    def __init__(self, number: int = LANES, pick: Pick = oldest, deed: Deed = lambda _: None) -> None:
        self.number, self.pick, self.deed = number, pick, deed
        self.running: list[Attempt] = []
        self.submitted: list[Attempt] = []
        self.ended: list[str] = []

    @property
    def free(self) -> int:
        return self.number - len(self.running)

    @property
    def busy(self) -> int:
        return len(self.running)

    def submit(self, attempt: Attempt) -> str:
        assert self.free, "submitted to workers that are all busy"
        self.running.append(attempt)
        self.submitted.append(attempt)
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
    budget = {"population": 4, "candidates": 12, "mode": "ordered", **wishes}
    return SearchConfig.parse({"name": "s", "data": {"source": "nowhere"}, "objectives": objectives, "search": budget})


def create(run: Path) -> Store:
    run.mkdir(exist_ok=True)
    return Store.create(run / "search.db", SearchRecord("s", "i", "c", 0, "d", "s", "b", "b", lanes=LANES))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def store(run: Path) -> Iterator[Store]:
    store = create(run)
    yield store
    store.close()


def searched(store: Store, run: Path, workers: Workers, **wishes: Any) -> Search:
    found = Search(config(**wishes), store, run / "checkpoints")
    found.run(workers)
    return found


def told(store: Store) -> list[str]:
    return [name for kind, name in store.journal() if kind == "tell"]


def entries(found: Search) -> list[tuple[str, Mapping[str, float]]]:
    return sorted((e.entry, e.values) for e in found.front)


def undisturbed(folder: Path, **wishes: Any) -> tuple[list[tuple[str, str]], list[Any], list[Any]]:
    """Journal, candidates and front of a search that nothing happens to."""
    store = create(folder)
    found = searched(store, folder, Workers(), **wishes)
    seen = store.journal(), store.candidates(), entries(found)
    store.close()
    return seen


@pytest.mark.parametrize("algorithm", ["nsga2", "spea2"])
@pytest.mark.parametrize("pick", [newest, chance(1), chance(2), chance(3)])
def test_ordered_mode_proposes_the_same_whoever_is_fast(
    store: Store, run: Path, tmp_path: Path, pick: Pick, algorithm: str
) -> None:
    expected = undisturbed(tmp_path / "calm", algorithm=algorithm)
    found = searched(store, run, Workers(pick=pick), algorithm=algorithm)
    assert (store.journal(), store.candidates(), entries(found)) == expected


@pytest.mark.parametrize("number", [1, 2, 5])
def test_ordered_mode_proposes_the_same_with_other_workers_than_it_began_with(
    store: Store, run: Path, tmp_path: Path, number: int
) -> None:
    found = searched(store, run, Workers(number, chance(0)))
    assert (store.journal(), store.candidates(), entries(found)) == undisturbed(tmp_path / "calm")


def test_ordered_mode_keeps_all_its_workers_busy(store: Store, run: Path) -> None:
    workers = Workers()
    searched(store, run, workers)
    assert store.journal()[:LANES] == [("ask", f"c000{n}") for n in range(1, LANES + 1)]
    assert store.journal()[LANES:][:4] == [("tell", "c0001"), ("ask", "c0004"), ("tell", "c0002"), ("ask", "c0005")]


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
    Search(config(), store, run / "checkpoints").run(Workers(), seen.append)
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


CHECKPOINT = Point(search.checkpoint, "write", 0, after=False)


def disturbed(monkeypatch: pytest.MonkeyPatch, folder: Path, point: Point) -> tuple[list[Any], ...] | None:
    """As `undisturbed`, of a search that died and was resumed; None where it ended before it could die."""
    store, died = create(folder), False
    with point.deadly(monkeypatch):
        try:
            searched(store, folder, Workers(pick=chance(point.call)), candidates=8)
        except Crash:
            died = True
    store.close()
    store = Store.open(folder / "search.db")
    finished = {a.candidate for a in store.attempts() if a.state == "finished"}
    workers = Workers(pick=chance(point.call + 1))
    found = searched(store, folder, workers, candidates=8)
    assert not finished & {a.candidate.id for a in workers.submitted}, "trained again"
    seen = store.journal(), store.candidates(), entries(found)
    store.close()
    return seen if died else None


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("target", "name"),
    [
        (Record, "asked"),
        (Record, "told"),
        (Record, "started"),
        (Record, "finished"),
        (Record, "add_elapsed"),
        (search.checkpoint, "write"),
        (search.checkpoint, "sweep"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_search_that_dies_at_any_named_point_ends_as_if_it_had_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: Any, name: str, after: bool
) -> None:
    expected, call = undisturbed(tmp_path / "calm", candidates=8), int(after)
    while seen := disturbed(monkeypatch, tmp_path / f"run{call}", Point(target, name, call, after)):
        assert seen == expected
        call += 2
    assert call >= 5


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
    with pytest.raises(SearchError, match=r"the record proposes other genes for c0001 .*; resume it with the version"):
        Search(config(seed=1), store, run / "checkpoints")


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


def test_time_spent_before_a_resume_counts(monkeypatch: pytest.MonkeyPatch, store: Store, run: Path) -> None:
    clock = Clock(monkeypatch)
    searched(store, run, Workers(2, deed=clock.slow(30)), mode="async", minutes=100, candidates=6)
    clock.now += 10_000  # nobody searched
    again = Search(config(mode="async", minutes=100, candidates=8), store, run / "checkpoints")
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
    assert {e.attempt for e in found.evaluations if e.candidate == "c0002"} == {2}


def test_a_candidate_that_takes_two_workers_down_has_failed(store: Store, run: Path) -> None:
    found = searched(store, run, Workers(deed=fate(("c0002", 1), ("c0002", 2), error="died", lost=True)))
    assert [(a.number, a.state) for a in store.attempts() if a.candidate == "c0002"] == [(1, "lost"), (2, "failed")]
    assert "c0002" in told(store)
    assert "c0002" not in {e.candidate for e in found.evaluations}
    assert found.progress().failed == 1
    assert found.progress().finished == 11


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


def test_a_worker_that_died_before_a_resume_counts_after_it(
    monkeypatch: pytest.MonkeyPatch, store: Store, run: Path
) -> None:
    deed = fate(("c0001", 1), ("c0001", 2), ("c0001", 3), error="died", lost=True)
    with CHECKPOINT.deadly(monkeypatch), pytest.raises(Crash):
        searched(store, run, Workers(1, deed=deed))
    searched(store, run, Workers(deed=deed))
    assert [a.state for a in store.attempts() if a.candidate == "c0001"][-1] == "failed"
    assert sum(a.candidate == "c0001" and a.worker_died for a in store.attempts()) <= 1


@pytest.mark.parametrize("mode", ["async", "ordered"])
def test_an_attempt_that_raises_or_hangs_is_not_repeated(store: Store, run: Path, mode: str) -> None:
    error = "still running after 600 s"
    found = searched(store, run, Workers(deed=fate(("c0003", 1), error=error, seconds=600.0)), mode=mode)
    (mine,) = [a for a in store.attempts() if a.candidate == "c0003"]
    assert (mine.state, mine.error, mine.seconds) == ("failed", error, 600.0)
    assert "c0003" in told(store)
    assert "c0003" not in {e.candidate for e in found.evaluations}


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
    with pytest.raises(SearchError, match=f"all {HOPELESS} candidates failed, c0001 with: ValueError: no"):
        searched(store, run, workers, candidates=100)
    assert len(workers.submitted) <= HOPELESS + LANES


def test_a_short_search_in_which_every_candidate_fails_ends_with_one_error(store: Store, run: Path) -> None:
    with pytest.raises(SearchError, match="all 3 candidates failed"):
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
    front, population = {e.candidate for e in found.front}, found.evolution.population
    untold = {c.id for c in store.candidates()} - set(told(store))
    assert kept == front | population | untold
    assert len(kept) < 24


def test_all_checkpoints_are_kept_where_that_is_wished(store: Store, run: Path) -> None:
    searched(store, run, Workers(), keep_checkpoints="all")
    assert {p.name for p in (run / "checkpoints").iterdir()} == {c.id for c in store.candidates()}


def test_the_front_is_that_of_all_evaluations(store: Store, run: Path) -> None:
    found = searched(store, run, Workers(pick=chance(7)), mode="async", candidates=24)
    whole = archive.front(store.evaluations(), config().objectives, (), 40)
    assert {e.entry for e in found.front} == {e.entry for e in whole}
