"""What is done next: which candidate is begun, which goes on to the next rung, and which are merged or fused.

The same decisions and reports in the same order make the same schedule, so their journal is all that a resume needs.
"""

import random
from collections.abc import Callable, Sequence

from pareto_search import archive
from pareto_search.candidate import (
    FIRST_TOWERS,
    INITIALS,
    WARM_START,
    Candidate,
    Deed,
    Evaluation,
    Forerunner,
    Kind,
    Leg,
    candidate_id,
)
from pareto_search.config import SearchConfig
from pareto_search.evolution import Evolution
from pareto_search.fidelity import Rungs
from pareto_search.space import ACCURACY, metric_family

SHARES = (0.3, 0.7)
"""Between which parts of its first parent a merged candidate lies."""
MERGERS = 2
"""How many merged candidates there are for each trained one: each costs a small part of its time."""
POOL = 8
"""Among how many checkpoints of the front a fusion finds its members, at most."""
TRIES = 20
"""How often it is tried to draw a pool that no fusion has had."""


class Schedule:
    """The decisions of a search so far, and the next one.

    Args:
        forerunners: what the first candidates are made of, the best first.
        early: whether the first towers of the warm start come before all of it.

    Attributes:
        forerunners: by id.
        candidates: all of them, by id.
        legs: what was decided, in order.
        heard: the legs whose outcome was reported.
        single: the front without what is fused or early, from which mergers and fusions are made: a fusion may be
            better than all of its members, and must not thin them out for the next one.
    """

    def __init__(self, config: SearchConfig, forerunners: Sequence[Forerunner] = (), *, early: bool = False) -> None:
        self._config, self._budget, self._early = config, config.search, early
        self._evolution = Evolution(
            config.search_space.of("training"),
            config.objectives,
            config.constraints,
            algorithm=self._budget.algorithm,
            population=self._budget.population,
            seed=self._budget.seed,
            forerunners=forerunners,
        )
        self.forerunners = {f.id: f for f in forerunners}
        self._rungs = Rungs(self._budget.rungs, config.objectives, config.constraints)
        self.exhausted = False
        self._accuracy = next(o for o in config.objectives if metric_family(o.name) in ACCURACY)
        self._accuracies: dict[str, float] = {}  # of each checkpoint alone, the larger the better
        self._began: dict[Kind, int] = dict.fromkeys(INITIALS, 0)
        self._full = 0  # trained candidates that were heard of at the full rung
        self.candidates: dict[str, Candidate] = {}
        self.legs: list[Leg] = []
        self._failed: set[str] = set()
        self.heard: set[Leg] = set()
        self._stand_in: Sequence[Evaluation] = ()  # for the warm start, until that is there
        self._front: list[Evaluation] = []  # without it: what it dominates may be on the front when it goes
        self.single = self._front

    @property
    def front(self) -> list[Evaluation]:
        """Of what was reported."""
        return front_of([*self._front, *self._stand_in], self._config) if self._stand_in else self._front

    @property
    def legators(self) -> set[str]:
        """The ids of those whose weights a later candidate may inherit."""
        return self._evolution.population if self._budget.inheritance else set()

    @property
    def listens(self) -> bool:
        """Whether a report may lead to more than a better next proposal."""
        return len(self._budget.rungs) > 1 or self._budget.merging or self._budget.fusions > 0

    def option(self, fits: Callable[[Kind, int], bool]) -> Deed | None:
        """What to do next, if anything.

        Args:
            fits: whether the time left allows a candidate of this kind to reach this rung.
        """
        if self._early and not self._began["early"]:
            return "begin"
        promotable = self._rungs.promotable()
        if promotable is not None and fits("trained", promotable.steps):
            return "promote"
        # The first merger is the warm start, which costs one evaluation: with too little time there is at least that.
        if self._may_merge() and (not self._began["merged"] or fits("merged", self._budget.steps)):
            return "merge"
        room = not self.exhausted and self._began["trained"] < self._budget.candidates
        if room and fits("trained", self._budget.rungs[0]):
            return "ask"
        return "fuse" if self._may_fuse() else None

    def decide(self, deed: Deed) -> Leg | None:
        """Does it, and returns what a worker has to do for it; None where the optimiser has nothing new to propose."""
        if deed == "promote":
            leg = self._rungs.promotable()
            assert leg is not None, "there is somebody to promote"
            self._rungs.promote(leg)
            self.legs.append(leg)
            return leg
        propose = {
            "begin": lambda: Candidate(FIRST_TOWERS, {}, (), "early"),
            "merge": self._merger,
            "fuse": self._fusion,
            "ask": self._evolution.ask,
        }
        candidate = propose[deed]()
        if candidate is None:
            self.exhausted = True
            return None
        self.candidates[candidate.id] = candidate
        self._began[candidate.kind] += 1
        self.legs.append(Leg(candidate.id, self._budget.rungs[0] if deed == "ask" else self._budget.steps))
        return self.legs[-1]

    def hear(self, leg: Leg, evaluations: Sequence[Evaluation]) -> None:
        """Learns what became of a leg: its evaluations, the checkpoint alone first, or nothing where it failed."""
        candidate, at_end = self.candidates[leg.candidate], leg.steps == self._budget.steps
        self.heard.add(leg)
        if not evaluations:
            self._failed.add(leg.candidate)
        if candidate.kind == "trained":
            if evaluations and not at_end:
                self._rungs.report(leg, evaluations[0].values)
                self._evolution.put_off(candidate)
            else:
                self._evolution.tell(candidate, evaluations[0].values if evaluations else None)
                self._full += bool(evaluations)
        if candidate.kind == "early":
            self._stand_in = evaluations
        elif at_end:
            self._front = front_of([*self._front, *evaluations], self._config)
            if candidate.id == WARM_START and evaluations:
                self._stand_in = ()
            if not self._began["fused"]:
                self.single = self._front
            elif candidate.kind != "fused":
                self.single = front_of([*self.single, *evaluations], self._config)
            if evaluations:
                accuracy = self._accuracy
                self._accuracies[candidate.id] = accuracy.normalise(evaluations[0].values[accuracy.name])

    def sources(self, name: str) -> tuple[str, ...]:
        """Those whose weights a candidate starts from, a forerunner perhaps; one that failed has none to pass on."""
        candidate = self.candidates[name]
        if candidate.kind != "trained":
            return candidate.parents
        alive = (parent for parent in candidate.parents if parent not in self._failed)
        return tuple(parent for parent in alive if self._budget.inheritance or parent in self.forerunners)[:1]

    def lineage_steps(self, *names: str) -> int:
        """The training steps of some candidates and of all whose weights are in them, each counted once."""
        lineage, new = set(names), set(names)
        while new:
            new = {source for member in new - self.forerunners.keys() for source in self.sources(member)} - lineage
            lineage |= new
        older = lineage & self.forerunners.keys()
        trained = sum(self.candidates[member].kind == "trained" for member in lineage - older)
        return trained * self._budget.steps + sum(self.forerunners[member].steps for member in older)

    def _may_merge(self) -> bool:
        """Whether a merger is due, the warm start first of all, and there are two on the front to merge."""
        if not self._budget.merging or not self._began["merged"]:
            return self._budget.merging
        return self._began["merged"] <= MERGERS * self._full and len({e.candidate for e in self.single}) > 1

    def _may_fuse(self) -> bool:
        """Whether nothing else is under way, and there is a pool that has not been fused."""
        if self._began["fused"] >= self._budget.fusions:
            return False
        waiting = (leg for leg in self.legs if leg not in self.heard)
        at_end = all(self.candidates[leg.candidate].kind == "fused" for leg in waiting)
        return at_end and bool(self._pool())

    def _merger(self) -> Candidate:
        """Two checkpoints of the front, each as likely as it has entries there; the first merger is the warm start."""
        number = self._began["merged"]
        if number == 0:
            return Candidate(WARM_START, {}, (), "merged")
        rng = random.Random(f"{self._budget.seed} merges {number}")
        first = rng.choice(self.single).candidate
        second = rng.choice([e.candidate for e in self.single if e.candidate != first])
        share = round(rng.uniform(*SHARES), 3)
        return Candidate(candidate_id(number, "merged"), {"share": share}, (first, second), "merged")

    def _fusion(self) -> Candidate:
        return Candidate(candidate_id(self._began["fused"], "fused"), {}, self._pool(), "fused")

    def _pool(self) -> tuple[str, ...]:
        """Checkpoints of the front to fuse: first those that are the most accurate alone, and then any; nothing where
        there are fewer than two, or so many tries find only what has been fused before.
        """
        known = {frozenset(c.parents) for c in self.candidates.values() if c.kind == "fused"}
        names = sorted({e.candidate for e in self.single}, key=lambda name: (-self._accuracies[name], name))
        rng = random.Random(f"{self._budget.seed} fuses {len(known)}")
        pool = names[:POOL]
        for _ in range(TRIES):
            if len(pool) > 1 and frozenset(pool) not in known:
                return tuple(pool)
            pool = rng.sample(names, min(rng.randint(2, POOL), len(names)))
        return ()


def front_of(evaluations: Sequence[Evaluation], config: SearchConfig) -> list[Evaluation]:
    """The front of some evaluations; of equal points the first one stays, whoever was fast."""
    inline = sorted(evaluations, key=lambda e: (e.candidate, e.setting))
    return archive.front(inline, config.objectives, config.constraints, config.search.steps)
