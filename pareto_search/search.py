"""The loop of a search: decide, dispatch, record, report."""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from pareto_search import archive, checkpoint
from pareto_search.candidate import FIRST_TOWERS, INITIALS, Attempt, Evaluation, Forerunner, Kind, Leg
from pareto_search.config import SearchConfig
from pareto_search.errors import CheckpointError, DamageError, SearchError
from pareto_search.executor import Executor, Files, Outcome
from pareto_search.schedule import Schedule, front_of
from pareto_search.space import START
from pareto_search.store import Record, Store

ATTEMPTS = 2
"""How often a candidate's leg may be lost with its worker, the last time alone."""
HOPELESS = 8
"""After so many failures and no success the fault is not the candidates'."""
EXHAUSTED = "exhausted"
"""The fact that the optimiser has nothing new to propose."""
NOBODY = "nobody"
"""In place of the worker of an attempt that could not start."""
WATCHING = 0.02
"""The share of its time that a search may spend on the hypervolume that it shows."""


@dataclass(frozen=True)
class Progress:
    """Where a search stands, merged and fused candidates counted apart, an early one not at all; seconds left are None
    until one that is not the warm start has finished.
    """

    finished: int
    merged: int
    fused: int
    failed: int
    total: int
    front: int
    hypervolume: float
    elapsed: float
    left: float | None


@dataclass(frozen=True)
class Watcher:
    """Who is told how a search goes.

    Attributes:
        notice: takes one line of text.
        progress: is called whenever candidates have ended.
    """

    notice: Callable[[str], None] = lambda _: None
    progress: Callable[[Progress], None] = lambda _: None


class Search:
    """One search in the middle of its life: what is recorded, and the schedule brought to the same point.

    Args:
        store: the record; the journal in it is replayed.
        run: the run folder, for checkpoints and states.
        forerunners: what it begins with of an older search.

    Attributes:
        early_towers: how many of the warm start's towers are evaluated by themselves, before the others are fitted: as
            many as there are workers, if these cannot fit all of them at once; 0 for none.
    """

    def __init__(self, config: SearchConfig, store: Store, run: Path, forerunners: Sequence[Forerunner] = ()) -> None:
        self.config, self.store, self._run = config, store, run
        self.checkpoints, self.states = run / "checkpoints", run / "states"
        self._lanes = store.search.lanes
        self.early_towers = self._lanes if self._begins_early() else 0
        self.schedule = Schedule(config, forerunners, early=self.early_towers > 0)
        self._began = time.monotonic() - store.search.elapsed_seconds
        self._recorded = store.search.elapsed_seconds
        self._ended: dict[Leg, bool] = {}  # whether well
        self._unheard: dict[Leg, Sequence[Evaluation]] = {}  # what came of those that the schedule has yet to hear of
        self._done: dict[Kind, set[str]] = {kind: set() for kind in INITIALS}  # of which a leg has ended
        self._under_way: set[str] = set()
        self._paused: set[str] = set()
        self._there: dict[Path, set[str]] = {}  # the folders on the disk
        self._failed: dict[str, str] = {}
        self._tries: Counter[str] = Counter()
        self._deaths: Counter[str] = Counter()
        self._seconds: dict[tuple[Kind, int], list[float]] = {}
        self._most: int | None = None  # how many legs may be decided
        self._watched = (0.0, 0.0, 0.0)  # the hypervolume shown, when it was found, and how long that took
        self._replay()
        last = {leg.candidate: leg.steps for leg in self.schedule.legs}
        self._again = deque(replace(a, steps=last[a.candidate.id]) for a in store.unfinished())

    def run(
        self, executor: Executor, progress: Callable[[Progress], None] = lambda _: None, legs: int | None = None
    ) -> None:
        """Goes on until the budget is spent and every attempt has ended.

        Args:
            legs: how many it decides at most, those that are recorded with them.

        Raises:
            SearchError: every candidate fails.
            CheckpointError: a checkpoint that a candidate starts from is missing or cannot be read; that may be mended.
        """
        self._most = legs
        with self.store.transaction() as record:
            record.went_on(time.monotonic() - self._began)
        self._recover()
        before = len(self._failed)  # what they failed of may have been mended since
        outcomes: Sequence[Outcome] = ()
        while True:
            with self.store.transaction() as record:  # one for both: each costs the time that the disk takes
                self._collect(record, outcomes)
                trouble = self._dispatch(record, executor)
            if trouble is not None:
                raise trouble
            self._sweep()
            self._give_up_if_hopeless(before + HOPELESS, "mend that and resume")
            if outcomes:
                progress(self.progress())
            if not executor.busy and (executor.free or self.is_over):
                break
            outcomes = executor.wait()
        self._give_up_if_hopeless(1, "mend that and resume with a larger budget")

    @property
    def front(self) -> list[Evaluation]:
        """Of all that has ended, whether the schedule has heard of it or not."""
        unheard = [evaluation for several in self._unheard.values() for evaluation in several]
        return front_of([*self.schedule.front, *unheard], self.config) if unheard else self.schedule.front

    @property
    def awaits_early(self) -> bool:
        """Whether the first towers of the warm start have yet to be evaluated."""
        return self.early_towers > 0 and not self._done["early"]

    @property
    def is_over(self) -> bool:
        """Whether everything that was begun has ended, and the budget allows no more."""
        if self._again or len(self._ended) < len(self.schedule.legs):
            return False
        # What it has yet to hear of may be all that a merger or a fusion waits for.
        return not (self.schedule.listens and self._unheard) and not self.schedule.option(self._fits)

    def progress(self) -> Progress:
        """Where the search stands now."""
        ended, merged, fused = self._done["trained"], self._done["merged"], self._done["fused"]
        total, elapsed = self.config.search.candidates, time.monotonic() - self._began
        left = None
        if self._seconds:
            side_by_side = self.config.workers.count * self.config.workers.pack
            left = self._each("trained", self.config.search.rungs[0]) * (total - len(ended)) / side_by_side
            if self.config.search.minutes is not None:
                left = min(left, self.config.search.minutes * 60 - elapsed)
            left = max(0.0, left)
        failed = len(ended & self._failed.keys())
        made = len(ended) - failed, len(merged), len(fused)
        return Progress(*made, failed, total, len(self.front), self._hypervolume(), elapsed, left)

    def _begins_early(self) -> bool:
        """Whether there are early towers, however many workers it is resumed with; not where it has begun otherwise."""
        if not self.config.search.merging or self._lanes >= self.config.model.towers:
            return False
        first = next((leg.candidate for _, leg in self.store.journal()), None)
        return first == FIRST_TOWERS if first else START not in (self.store.fact("components") or {})

    def _hypervolume(self) -> float:
        """Of the entries that stand for the front, found anew when that costs little of the time that has passed."""
        covered, found, cost = self._watched
        now = time.monotonic()
        if now - found >= cost / WATCHING:
            chosen = archive.representatives(self.front, self.config.objectives)
            covered = archive.hypervolume([e.values for e in chosen], self.config.objectives)
            self._watched = (covered, time.monotonic(), time.monotonic() - now)
        return covered

    def _replay(self) -> None:
        """Takes the record into a fresh schedule."""
        known = {c.id: c for c in self.store.candidates()}
        came: dict[Leg, list[Evaluation]] = {}
        for evaluation in self.store.evaluations():
            came.setdefault(Leg(evaluation.candidate, evaluation.steps), []).append(evaluation)
        for deed, leg in self.store.journal():
            if deed == "hear":
                self.schedule.hear(leg, came.get(leg, []))
            elif self.schedule.decide(deed) != leg or self.schedule.candidates[leg.candidate] != known[leg.candidate]:
                raise SearchError(
                    f"the record goes on with {leg.candidate} otherwise than this version of the optimiser does; "
                    "resume it with the version that began it"
                )
        self.schedule.exhausted = bool(self.store.fact(EXHAUSTED))
        last = {leg.candidate: leg for leg in self.schedule.legs}
        reached = {(several[0].candidate, several[0].attempt): leg for leg, several in came.items()}
        for attempt in self.store.attempts():
            name = attempt.candidate
            self._tries[name] = attempt.number
            self._deaths[name] += attempt.worker_died
            if attempt.state == "failed":
                self._failed[name] = attempt.error or ""
                self._end(last[name], [])
            elif attempt.state == "finished":
                leg = reached[name, attempt.number]
                self._end(leg, came[leg])
                self._took(leg, attempt.seconds or 0.0)
                self._deaths[name] = 0

        self._under_way = {leg.candidate for leg in self.schedule.legs if leg not in self._ended}
        self._unheard = {leg: e for leg, e in self._unheard.items() if leg not in self.schedule.heard}

    def _end(self, leg: Leg, evaluations: Sequence[Evaluation]) -> None:
        """A leg has ended, well if it has evaluations."""
        self._ended[leg], self._unheard[leg] = bool(evaluations), evaluations
        self._done[self.schedule.candidates[leg.candidate].kind].add(leg.candidate)
        self._under_way.discard(leg.candidate)
        if evaluations and leg.steps < self.config.search.steps:
            self._paused.add(leg.candidate)
        else:
            self._paused.discard(leg.candidate)

    def _dispatch(self, record: Record, executor: Executor) -> CheckpointError | None:
        """Gives free workers something to do, as far as there is anything and it has room.

        Returns:
            What the search cannot go on with, though all that has ended is recorded.
        """
        while self._has_room(executor) and (attempt := self._next(record)) is not None:
            self._tries[attempt.candidate.id] = attempt.number
            try:
                sources = self._sources(attempt)
            except CheckpointError as error:
                record.started(attempt, NOBODY)  # and begun again by a resume
                # A state that is gone, or what is damaged, nobody brings back; a checkpoint that is elsewhere, or a
                # disk that fails, the user may.
                gone = attempt.candidate.id in self._paused and not isinstance(error.__cause__, OSError)
                if not (gone or isinstance(error, DamageError)):
                    return error
                self._record(record, Outcome(attempt, error=str(error)))
            else:
                record.started(attempt, executor.submit(attempt, sources))
        return None

    def _has_room(self, executor: Executor) -> bool:
        """Whether what is next can start; what was lost with its worker has to be alone."""
        return (executor.idle if self._again and self._is_suspect(self._again[0]) else executor.free) > 0

    def _is_suspect(self, attempt: Attempt) -> bool:
        return self._deaths[attempt.candidate.id] > 0

    def _next(self, record: Record) -> Attempt | None:
        """What a free worker should do now, if anything."""
        if self._again:
            attempt = self._again.popleft()
            return replace(attempt, alone=self._is_suspect(attempt))
        if self._most is not None and len(self.schedule.legs) >= self._most:
            return None
        while self._hear_due(record):
            deed = self.schedule.option(self._fits)
            if deed is None:
                if not self._hear_further(record):
                    return None
            elif (leg := self.schedule.decide(deed)) is not None:
                candidate = self.schedule.candidates[leg.candidate]
                self._under_way.add(candidate.id)
                record.decided(deed, candidate, leg.steps)
                return Attempt(candidate, self._tries[candidate.id] + 1, leg.steps)
            else:
                record.put_fact(EXHAUSTED, True)
        return None

    def _hear_due(self, record: Record) -> bool:
        """In ordered mode, lets the schedule hear what it must know before its next decision, if that has ended.

        What a decision knows must not depend on who is fast: it knows all but the last few legs, as many as the search
        began with workers, whoever has ended since. In async mode it knows all that has ended.
        """
        if self.config.search.mode == "ordered":
            legs = self.schedule.legs
            for leg in legs[len(self.schedule.heard) : max(0, len(legs) + 1 - self._lanes)]:
                if leg not in self._ended:
                    return False
                self._hear(record, leg)
        return True

    def _hear_further(self, record: Record) -> bool:
        """In ordered mode, lets the schedule hear of one more leg, where that may give it something to do."""
        if self.config.search.mode == "ordered" and self.schedule.listens:
            for leg in self.schedule.legs[len(self.schedule.heard) :][:1]:
                if leg in self._ended:
                    self._hear(record, leg)
                    return True
        return False

    def _hear(self, record: Record, leg: Leg) -> None:
        self.schedule.hear(leg, self._unheard.pop(leg))
        record.heard(leg)

    def _fits(self, kind: Kind, steps: int) -> bool:
        """Whether such a leg can end in time; one that cannot is not begun, but for the warm start."""
        minutes = self.config.search.minutes
        return minutes is None or time.monotonic() - self._began + self._each(kind, steps) <= minutes * 60

    def _took(self, leg: Leg, seconds: float) -> None:
        candidate = self.schedule.candidates[leg.candidate]
        if not candidate.is_warm_start:
            self._seconds.setdefault((candidate.kind, leg.steps), []).append(seconds)

    def _each(self, kind: Kind, steps: int) -> float:
        """The seconds that such a leg has taken so far, on average, or else any leg."""
        known = self._seconds.get((kind, steps)) or [s for several in self._seconds.values() for s in several]
        return sum(known) / len(known) if known else 0.0

    def _sources(self, attempt: Attempt) -> list[Files]:
        """The files that an attempt starts from; see `Executor.submit`."""
        name = attempt.candidate.id
        if name in self._paused:
            return [checkpoint.read(self.states / name)]
        return [
            checkpoint.read((self._run if source in self.schedule.forerunners else self.checkpoints) / source)
            for source in self.schedule.sources(name)
        ]

    def _collect(self, record: Record, outcomes: Sequence[Outcome]) -> None:
        """Records how attempts ended; in async mode the schedule hears of it at once."""
        if not outcomes:
            return
        for outcome in outcomes:
            self._record(record, outcome)
        self._keep(outcomes)
        elapsed = time.monotonic() - self._began
        record.add_elapsed(elapsed - self._recorded)
        self._recorded = elapsed

    def _keep(self, outcomes: Sequence[Outcome]) -> None:
        """Writes the states and checkpoints that will be needed, before the record that speaks of them is kept."""
        needed = self._needed()
        for outcome in outcomes:
            leg = self._leg(outcome.attempt)
            root = self.checkpoints if leg.steps == self.config.search.steps else self.states
            if outcome.result is not None and self._ended.get(leg) and leg.candidate in needed[root]:
                checkpoint.write(root / leg.candidate, outcome.result.files)
                self._there[root].add(leg.candidate)

    def _needed(self) -> dict[Path, Set[str]]:
        """Whose states and whose checkpoints the front or a future attempt needs, or the user wants."""
        schedule = self.schedule
        if self.config.search.keep_checkpoints == "all":
            return {self.states: self._paused, self.checkpoints: schedule.candidates.keys()}
        front = (e.candidate for e in (*schedule.front, *schedule.single))
        unheard = (leg.candidate for leg in self._unheard)
        sources = (source for name in self._under_way for source in schedule.sources(name))
        return {self.states: self._paused, self.checkpoints: schedule.legators.union(front, unheard, sources)}

    def _leg(self, attempt: Attempt) -> Leg:
        return Leg(attempt.candidate.id, attempt.steps or self.config.search.steps)

    def _record(self, record: Record, outcome: Outcome) -> None:
        attempt, result, error = outcome.attempt, outcome.result, outcome.error
        name = attempt.candidate.id
        leg = self._leg(attempt)
        if result is not None and not all(map(_is_finite, result.evaluations)):
            error = "a score is not a number"
        if outcome.lost:
            self._deaths[name] += 1
            if self._deaths[name] < ATTEMPTS:
                record.lost(attempt, error)
                self._again.append(replace(attempt, number=attempt.number + 1))
                return
        if error or result is None:
            self._failed[name] = error
            self._end(leg, [])
            record.failed(attempt, error, outcome.seconds)
        else:
            self._end(leg, result.evaluations)
            record.finished(attempt, result.evaluations, result.seconds)
            self._took(leg, result.seconds)
            self._deaths[name] = 0
        if self.config.search.mode == "async":
            self._hear(record, leg)

    def _recover(self) -> None:
        """Brings the folders in line with the record, whatever a crash has left."""
        for root, needed in self._needed().items():
            checkpoint.sweep(root, needed)
            self._there[root] = {folder.name for folder in root.glob("[!.]*")}

    def _sweep(self) -> None:
        """Removes the states and checkpoints that are needed no more, now that the record says so."""
        for root, needed in self._needed().items():
            for name in self._there[root] - needed:
                checkpoint.remove(root / name)
                self._there[root].discard(name)

    def _give_up_if_hopeless(self, failures: int, remedy: str) -> None:
        ended = self._done["trained"]
        failed = [name for name in self._failed if name in ended]
        if len(failed) >= failures and len(failed) == len(ended):
            last = failed[-1]
            raise SearchError(f"all {len(failed)} candidates failed, {last} with: {self._failed[last]}; {remedy}")


def _is_finite(evaluation: Evaluation) -> bool:
    return all(map(math.isfinite, (*evaluation.values.values(), *evaluation.margins.values())))
