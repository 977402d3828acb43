"""The loop of a search: ask, dispatch, record, tell."""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pareto_search import archive, checkpoint
from pareto_search.candidate import Attempt, Candidate, Evaluation
from pareto_search.config import SearchConfig
from pareto_search.errors import SearchError
from pareto_search.evolution import Evolution
from pareto_search.executor import Executor, Outcome
from pareto_search.objective import Values
from pareto_search.store import Record, Store

ATTEMPTS = 2
"""How often a candidate may take its worker down with it."""
HOPELESS = 8
"""After so many failures and no success the fault is not the candidates'."""


@dataclass(frozen=True)
class Progress:
    """Where a search stands; seconds left are None until a candidate has finished."""

    finished: int
    failed: int
    total: int
    front: int
    hypervolume: float
    elapsed: float
    left: float | None


class Search:
    """One search in the middle of its life: what is recorded, and the optimiser brought to the same point.

    Args:
        store: the record; the journal in it is replayed.
        checkpoints: the folder that holds one checkpoint a candidate.
    """

    def __init__(self, config: SearchConfig, store: Store, checkpoints: Path) -> None:
        self.config, self.store, self.checkpoints = config, store, checkpoints
        self.objectives, self.constraints = config.objectives, config.constraints
        self.evolution = Evolution(
            config.search_space.of("training"),
            self.objectives,
            self.constraints,
            algorithm=config.search.algorithm,
            population=config.search.population,
            seed=config.search.seed,
        )
        self.evaluations = store.evaluations()
        self.front = self._front_of(self.evaluations)
        self._lanes = store.search.lanes
        self._began = time.monotonic() - store.search.elapsed_seconds
        attempts = store.attempts()
        self._failed = {a.candidate: a.error or "" for a in attempts if a.state == "failed"}
        self._seconds = [a.seconds for a in attempts if a.state == "finished" and a.seconds is not None]
        self._deaths = Counter(a.candidate for a in attempts if a.worker_died)
        self._again = deque(store.unfinished())
        self._asked: list[Candidate] = []
        self._exhausted = False
        self._told: set[str] = set()
        self._ended: dict[str, Values | None] = {e.candidate: e.values for e in self.evaluations if e.setting == 0}
        self._ended |= dict.fromkeys(self._failed)
        self._replay()

    def run(self, executor: Executor, progress: Callable[[Progress], None] = lambda _: None) -> None:
        """Goes on until the budget is spent and every attempt has ended.

        Raises:
            SearchError: every candidate fails.
        """
        while True:
            while executor.free and (attempt := self._next()) is not None:
                self._dispatch(attempt, executor)
            if not executor.busy and (executor.free or not self._wants_more()):
                break
            for outcome in executor.wait():
                self._collect(outcome)
            self._sweep()
            self._give_up_if_hopeless(HOPELESS)
            progress(self.progress())
        self._give_up_if_hopeless(1)

    @property
    def is_over(self) -> bool:
        """Whether every candidate of the budget has ended."""
        return bool(self._ended) and not self._wants_more()

    def progress(self) -> Progress:
        """Where the search stands now."""
        values = [e.values for e in self.front]
        chosen = archive.choose(values, self.objectives)
        finished, total = len(self._ended) - len(self._failed), self.config.search.candidates
        elapsed = time.monotonic() - self._began
        remaining = max(0, total - len(self._ended))
        left = self._each * remaining / self.config.workers.count if self._seconds else None
        if left is not None and self.config.search.minutes is not None:
            left = max(0.0, min(left, self.config.search.minutes * 60 - elapsed))
        covered = archive.hypervolume([values[i] for i in chosen], self.objectives)
        return Progress(finished, len(self._failed), total, len(self.front), covered, elapsed, left)

    def _replay(self) -> None:
        """Asks and tells a fresh optimiser in the journal's order."""
        known = {c.id: c for c in self.store.candidates()}
        for kind, name in self.store.journal():
            if kind == "ask":
                candidate = self.evolution.ask()
                if candidate is None or candidate != known[name]:
                    raise SearchError(
                        f"the record proposes other genes for {name} than this version of the optimiser does; "
                        "resume it with the version that began it"
                    )
                self._asked.append(candidate)
            else:
                self.evolution.tell(known[name], self._ended[name])
                self._told.add(name)

    def _next(self) -> Attempt | None:
        """What a free worker should do now, if anything."""
        if self._again:
            return self._again.popleft()
        if self._is_spent():
            return None
        due = self._due()
        if any(candidate.id not in self._ended for candidate in due):
            return None
        with self.store.transaction() as record:
            self._tell(record, due)
            candidate = self.evolution.ask()
            if candidate is None:
                self._exhausted = True
                return None
            self._asked.append(candidate)
            record.asked(candidate)
        return Attempt(candidate)

    def _due(self) -> list[Candidate]:
        """Whom the optimiser must hear of before it is asked again.

        In ordered mode what an ask knows must not depend on who is fast: it knows all but the last few,
        as many as the search began with workers, whoever has ended since.
        """
        if self.config.search.mode == "async":
            return []
        return self._asked[len(self._told) : max(0, len(self._asked) + 1 - self._lanes)]

    def _wants_more(self) -> bool:
        return bool(self._again) or not self._is_spent()

    def _is_spent(self) -> bool:
        budget = self.config.search
        if self._exhausted or len(self._asked) >= budget.candidates:
            return True
        if budget.minutes is None:
            return False
        # A candidate that cannot end in time is not begun.
        return time.monotonic() - self._began + self._each > budget.minutes * 60

    @property
    def _each(self) -> float:
        """The seconds that a candidate has taken so far, on average."""
        return sum(self._seconds) / len(self._seconds) if self._seconds else 0.0

    def _dispatch(self, attempt: Attempt, executor: Executor) -> None:
        worker = executor.submit(attempt)
        with self.store.transaction() as record:
            record.started(attempt, worker)

    def _collect(self, outcome: Outcome) -> None:
        """Records how an attempt ended; in async mode the optimiser hears of it at once."""
        candidate, result = outcome.attempt.candidate, outcome.result
        error = outcome.error
        at_once = [candidate] if self.config.search.mode == "async" else []
        if result is not None and not all(math.isfinite(v) for e in result.evaluations for v in e.values.values()):
            error = "a score is not a number"
        if outcome.lost:
            self._deaths[candidate.id] += 1
            if self._deaths[candidate.id] < ATTEMPTS:
                with self.store.transaction() as record:
                    record.lost(outcome.attempt, error)
                self._again.append(Attempt(candidate, outcome.attempt.number + 1))
                return
        if error or result is None:
            self._failed[candidate.id] = error
            self._ended[candidate.id] = None
            with self.store.transaction() as record:
                record.failed(outcome.attempt, error, outcome.seconds)
                self._tell(record, at_once)
        else:
            checkpoint.write(self.checkpoints / candidate.id, result.files)  # before the record that speaks of it
            self._ended[candidate.id] = result.evaluations[0].values
            with self.store.transaction() as record:
                record.finished(outcome.attempt, result.evaluations, result.seconds)
                self._tell(record, at_once)
            self._seconds.append(result.seconds)
            self._admit(result.evaluations)
        with self.store.transaction() as record:
            record.add_elapsed(time.monotonic() - self._began - self.store.search.elapsed_seconds)

    def _tell(self, record: Record, candidates: Sequence[Candidate]) -> None:
        for candidate in candidates:
            self.evolution.tell(candidate, self._ended[candidate.id])
            self._told.add(candidate.id)
            record.told(candidate)

    def _admit(self, evaluations: tuple[Evaluation, ...]) -> None:
        self.evaluations += evaluations
        self.front = self._front_of([*self.front, *evaluations])

    def _front_of(self, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
        # Of equal points the first one stays, and who that is must not depend on who was fast.
        inline = sorted(evaluations, key=lambda e: (e.candidate, e.setting))
        return archive.front(inline, self.objectives, self.constraints, self.config.search.steps)

    def _sweep(self) -> None:
        """Removes the checkpoints that neither the front nor a future parent needs."""
        if self.config.search.keep_checkpoints == "front":
            future = self.evolution.population | (set(self._ended) - self._told)
            checkpoint.sweep(self.checkpoints, {e.candidate for e in self.front} | future)

    def _give_up_if_hopeless(self, failures: int) -> None:
        if len(self._failed) >= failures and len(self._failed) == len(self._ended):
            name, error = next(iter(self._failed.items()))
            raise SearchError(f"all {len(self._failed)} candidates failed, {name} with: {error}")
