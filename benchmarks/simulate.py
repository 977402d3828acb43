"""A thousand workers on one core: the real driver, with an executor that executes nothing and a clock of its own.

    python -m benchmarks.simulate [--workers 1 4 16 64 256 1000] [--rounds 4] [--seeds 20] [--gain 0] [--json FILE]

Search, schedule, rungs, evolution, record and checkpoints are the real ones, in a folder in memory where the system has
one. A candidate takes 60 s on average to the full rung, with a coefficient of variation of 0.5 (lognormal), and a leg
its part of that; a merged candidate takes a twentieth. One attempt in a hundred is a straggler that takes five times as
long, one in a hundred fails on the way, and one in two hundred takes its worker down, which is back after 30 s.

First table, scale: the share of their time that workers are busy, until the last candidate is begun and with the tail
that no search can fill, beside that of the same candidates in generations of one for each worker; the driver's own time
for a leg, and which part of its time it needs to keep up. A worker is also busy with what fails or takes it down in the
end. The driver's time also moves the clock, so that workers wait for it as they would. Waiting for a disk is not in it;
`benchmarks.driver` measures that.

Second table, quality: how much longer the search takes without one of its parts until it has 95 % of the hypervolume
that it has in the end, over the time that the whole search takes to have as much and keep it: median and range over
seeds. Scores come from `Landscape`, which is made up. These ratios say how the parts work together under its
assumptions, not what they gain on data.
"""

import argparse
import heapq
import json
import math
import random
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from benchmarks.peers.curve import SHARE, Curve, kept, reached
from pareto_search import archive
from pareto_search.candidate import Attempt, Candidate, Evaluation, GeneValue, candidate_id
from pareto_search.config import SearchConfig
from pareto_search.executor import Files, Outcome, Result
from pareto_search.search import Search
from pareto_search.space import Gene
from pareto_search.store import SearchRecord, Store

FULL = 60.0
"""Seconds that a candidate takes to the full rung, on average."""
SPREAD = math.sqrt(math.log(1 + 0.5**2))
"""Of the logarithm, for a coefficient of variation of 0.5."""
MERGER = 1 / 20
"""What a merged candidate takes, as a part of a trained one: evaluation alone."""
STRAGGLERS, SLOWDOWN = 0.01, 5.0
FAILURES, DEATHS = 0.01, 0.005
RESTART = 30.0
"""Seconds until a worker that died is there again."""
RUNGS = (10, 20, 40)
NOISE = 0.02
UNEVEN = 2.0
"""How much the learning rates decide how early a candidate learns."""
LEAST = 500
"""Candidates, however few workers there are."""
ENDLESS = 1_000_000
"""Candidates: time ends a search."""
WORKERS, MINUTES = 8, 25
"""Of the searches in the second table."""
MOMENTS = 200
"""How often the hypervolume is looked at."""
WHOLE = "the whole"
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    WHOLE: {},
    "without rungs": {"rungs": RUNGS[-1:]},
    "without merging": {"merging": False},
    "in ordered mode": {"mode": "ordered"},
}
MEMORY = Path("/dev/shm")

Point = tuple[float, ...]
"""Values in the order of the objectives, 0 at the reference and 1 at the ideal."""


class Landscape:
    """What candidates score: made up, with the trade-offs, the learning curves and the noise of real ones.

    With s the weights of the losses on their log scale from 0 to 1 and q a quality in (0, 1], which falls with the
    distance of all other genes from an optimum that moves with s, a candidate that is trained for ever has

        accuracy = (0.95 - 0.8 mean(s²)) q        and        value of list k = 0.2 + 0.65 s_k (2 - s_k) (0.5 + 0.5 q).

    It goes there from the warm start's values as (1 - exp(-r x)) / (1 - exp(-r)) with the share x of the steps. The
    rate r grows with the learning rates, so who is ahead at a rung is not always ahead in the end: scores at a quarter
    of the steps correlate with those at the end at about 0.8 (Spearman). Each score has a noise of 0.02. A merged
    candidate has the average of its parents, and `gain` more.
    """

    def __init__(self, config: SearchConfig, seed: int, settings: int = 1, gain: float = 0.0) -> None:
        self._objectives, self._full, self._seed, self._gain = config.objectives, config.search.steps, seed, gain
        genes = config.search_space.of("training").genes
        rng = random.Random(f"landscape {seed}")
        self._weights = [g for g in genes if g.name.startswith("weight.")]
        self._others = [g for g in genes if not g.name.startswith("weight.")]
        self._optimum = {g.name: (rng.uniform(0.2, 0.8), rng.uniform(-0.3, 0.3)) for g in self._others}
        self._importance = {g.name: rng.expovariate(1.5) for g in self._others}
        self._warm: Point = (0.5, *(0.3 for _ in self._weights))
        self._trained: dict[str, Point] = {}
        # A setting gives some accuracy for some of a list's objective.
        self._settings = [
            (rng.randrange(len(self._weights)), 0.3 * rng.random()) if number else (0, 0.0)
            for number in range(settings)
        ]

    def true(self, candidate: Candidate, steps: int) -> Point:
        """Without noise."""
        if candidate.kind != "trained":
            share, point = float(candidate.genes.get("share", 0.0)), self._warm
            if candidate.parents:
                first, second = (self._trained[parent] for parent in candidate.parents)
                point = tuple(share * a + (1 - share) * b + self._gain for a, b in zip(first, second, strict=True))
        else:
            place = {g.name: _unit(g, candidate.genes[g.name]) for g in (*self._weights, *self._others)}
            point = self._reached(place, steps / self._full)
        if steps == self._full:
            self._trained[candidate.id] = point
        return point

    def evaluations(self, attempt: Attempt) -> tuple[Evaluation, ...]:
        """With noise; of all settings at the full rung, and of the checkpoint alone below."""
        candidate, steps = attempt.candidate, attempt.steps or self._full
        rng = random.Random(f"{self._seed} {candidate.id} scores at {steps}")
        noisy = [value + rng.gauss(0.0, NOISE) for value in self.true(candidate, steps)]
        settings = self._settings if steps == self._full else self._settings[:1]
        return tuple(
            Evaluation(candidate.id, attempt.number, steps, number, {}, self.named(self._served(noisy, *setting)))
            for number, setting in enumerate(settings)
        )

    def named(self, point: Sequence[float]) -> dict[str, float]:
        """As raw values of the objectives."""
        return {o.name: o.reference + p * (o.ideal - o.reference) for o, p in zip(self._objectives, point, strict=True)}

    def served(self, evaluation: Evaluation) -> dict[str, float]:
        """The noiseless values of an evaluation at the full rung."""
        return self.named(self._served(self._trained[evaluation.candidate], *self._settings[evaluation.setting]))

    @staticmethod
    def _served(point: Sequence[float], chosen: int, amount: float) -> list[float]:
        served = list(point)
        served[0] -= 0.7 * amount
        served[1 + chosen] += amount * (1 - served[1 + chosen])
        return served

    def _reached(self, place: Mapping[str, float], part: float) -> Point:
        s = [place[g.name] for g in self._weights]
        mean = statistics.fmean(s)
        misses = [
            self._importance[name] * (place[name] - best - shift * (mean - 0.5)) ** 2
            for name, (best, shift) in self._optimum.items()
        ]
        q = math.exp(-sum(misses))
        ends = (
            (0.95 - 0.8 * statistics.fmean(x * x for x in s)) * q,
            *(0.2 + 0.65 * x * (2 - x) * (0.5 + 0.5 * q) for x in s),
        )
        rate = 3 * math.exp(UNEVEN * (place["adapter_lr"] + place["tower_lr"] - 1))
        curve = (1 - math.exp(-rate * part)) / (1 - math.exp(-rate))
        return tuple(w + curve * (end - w) for w, end in zip(self._warm, ends, strict=True))


def _unit(gene: Gene, value: GeneValue) -> float:
    """Where in [0, 1] a gene's value lies."""
    if gene.kind == "choice":
        return gene.choices.index(value) / (len(gene.choices) - 1)
    return gene.to_unit(value) if gene.kind == "real" else (float(value) - gene.low) / (gene.high - gene.low)


@dataclass(frozen=True)
class Job:
    """What will become of an attempt."""

    seconds: float
    dies: bool = False
    fails: bool = False

    @classmethod
    def of(cls, attempt: Attempt, rungs: Sequence[int], seed: int) -> "Job":
        """The same for the same attempt in every search."""
        candidate, steps = attempt.candidate, attempt.steps or rungs[-1]
        pace = random.Random(f"{seed} pace of {candidate.id}").lognormvariate(-(SPREAD**2) / 2, SPREAD)
        fate = random.Random(f"{seed} fate of {candidate.id} at {steps}, attempt {attempt.number}")
        part = (steps - max((r for r in rungs if r < steps), default=0)) / rungs[-1]
        seconds = FULL * pace * (part if candidate.kind == "trained" else MERGER)
        seconds *= SLOWDOWN if fate.random() < STRAGGLERS else 1.0
        drawn = fate.random()
        if drawn >= FAILURES + DEATHS:
            return cls(seconds)
        return cls(seconds * fate.random(), dies=drawn < DEATHS, fails=drawn >= DEATHS)


class TimeUpError(Exception):
    """It is later than a fleet was told to go on."""


class Fleet:
    """An executor of simulated workers.

    Args:
        is_charged: whether the driver's own time moves the clock.
        until: when time is over.

    Attributes:
        spans: from when to when workers were busy.
        asked: when the last candidate was begun.
        log: when each leg at the full rung ended, with its evaluations.
        legs: how many ended.
        driver: seconds that the driver took.
    """

    def __init__(
        self,
        config: SearchConfig,
        landscape: Landscape,
        *,
        workers: int,
        is_charged: bool = False,
        until: float = math.inf,
    ) -> None:
        self._budget, self._landscape = config.search, landscape
        self._is_charged, self._until = is_charged, until
        self._idle, self._running = workers, 0
        self._events: list[tuple[float, int, Attempt | None, Job | None]] = []
        self._since = time.process_time()
        self._now = 0.0
        self._number = 0
        self.spans: list[tuple[float, float]] = []
        self.asked = 0.0
        self.log: list[tuple[float, Sequence[Evaluation]]] = []
        self.legs = 0
        self.driver = 0.0

    @property
    def now(self) -> float:
        """Seconds since the search began."""
        return self._now + (time.process_time() - self._since if self._is_charged else 0.0)

    @property
    def free(self) -> int:
        return self._idle

    @property
    def idle(self) -> int:
        return self._idle

    @property
    def busy(self) -> int:
        return self._running

    def submit(self, attempt: Attempt, _: Sequence[Files] = ()) -> str:
        job, now = Job.of(attempt, self._budget.rungs, self._budget.seed), self.now
        self._idle -= 1
        self._running += 1
        self._push(now + job.seconds, attempt, job)
        self.spans.append((now, now + job.seconds))
        if attempt.candidate.kind == "trained" and attempt.steps == self._budget.rungs[0]:
            self.asked = now
        return "simulated"

    def wait(self) -> list[Outcome]:
        """What has ended meanwhile, or else what ends next.

        Raises:
            TimeUpError: that is later than was wished.
        """
        self.driver += time.process_time() - self._since
        self._now = max(self.now, self._events[0][0])
        if self._now > self._until:
            raise TimeUpError
        outcomes: list[Outcome] = []
        while self._events and self._events[0][0] <= self._now:
            ended, _, attempt, job = heapq.heappop(self._events)
            if attempt is None or job is None:
                self._idle += 1
                continue
            self._running -= 1
            if job.dies:
                self._push(ended + RESTART)
            else:
                self._idle += 1
            outcomes.append(self._outcome(ended, attempt, job))
        self._since = time.process_time()
        return outcomes

    def _push(self, when: float, attempt: Attempt | None = None, job: Job | None = None) -> None:
        """Something will happen: an attempt ends, or else a worker is there again."""
        self._number += 1  # of two at the same time the first one happens first
        heapq.heappush(self._events, (when, self._number, attempt, job))

    def _outcome(self, ended: float, attempt: Attempt, job: Job) -> Outcome:
        self.legs += 1
        if job.dies or job.fails:
            return Outcome(attempt, error="simulated", lost=job.dies, seconds=job.seconds)
        evaluations = self._landscape.evaluations(attempt)
        if evaluations[0].steps == self._budget.steps:
            self.log.append((ended, evaluations))
        return Outcome(attempt, Result(evaluations, {"simulated": b""}, job.seconds), seconds=job.seconds)


def config(workers: int, population: int, candidates: int, seed: int, **wishes: Any) -> SearchConfig:
    budget = {"population": population, "candidates": candidates, "seed": seed, "rungs": list(RUNGS), **wishes}
    sections = {"search": budget, "workers": {"count": workers}}
    return SearchConfig.parse({"name": "simulated", "data": {"source": "nowhere"}, **sections})


def simulate(config: SearchConfig, fleet: Fleet) -> None:
    """Runs the real search on a fleet, to its end or that of the time."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        record = SearchRecord(config.name, "", "", config.search.seed, "", "", "", "", lanes=config.workers.count)
        store = Store.create(Path(folder, "search.db"), record)
        with suppress(TimeUpError):
            Search(config, store, Path(folder)).run(fleet)
        store.close()


def scale(workers: int, rounds: int, settings: int) -> dict[str, float]:
    """One row of the first table."""
    candidates = max(LEAST, rounds * workers)
    wish = config(workers, max(16, workers), candidates, seed=0)
    fleet = Fleet(wish, Landscape(wish, 0, settings), workers=workers, is_charged=True)
    simulate(wish, fleet)
    end = max(end for _, end in fleet.spans)
    return {
        "workers": workers,
        "busy": _busy(fleet.spans, fleet.asked, workers),
        "busy_with_tail": _busy(fleet.spans, end, workers),
        "busy_in_generations": _generations(workers, candidates),
        "driver_ms": 1000 * fleet.driver / fleet.legs,
        "driver_share": fleet.driver / end,
        "legs": fleet.legs,
    }


def _busy(spans: Sequence[tuple[float, float]], until: float, workers: int) -> float:
    return sum(max(0.0, min(end, until) - begin) for begin, end in spans) / (workers * until)


def _generations(workers: int, candidates: int) -> float:
    """The busy share where each worker gets one candidate, and all wait for the last one."""
    seconds = []
    for number in range(1, candidates + 1):
        first = Attempt(Candidate(candidate_id(number), {}))
        job = Job.of(first, RUNGS[-1:], seed=0)
        again = Job.of(replace(first, number=2), RUNGS[-1:], seed=0) if job.dies else Job(0.0)
        seconds.append(job.seconds + again.seconds)
    generations = [seconds[i : i + workers] for i in range(0, candidates, workers)]
    return sum(seconds) / (workers * sum(max(several) for several in generations))


def quality(variants: Mapping[str, Mapping[str, Any]], seed: int, gain: float) -> dict[str, Curve]:
    """The hypervolume of each variant's search over time."""
    found: dict[str, Curve] = {}
    for name, wishes in variants.items():
        wish = config(WORKERS, 16, ENDLESS, seed, **wishes)
        landscape = Landscape(wish, seed, gain=gain)
        fleet = Fleet(wish, landscape, workers=WORKERS, until=60 * MINUTES)
        simulate(wish, fleet)
        found[name] = _curve(fleet.log, landscape, wish)
    return found


def _curve(log: Sequence[tuple[float, Sequence[Evaluation]]], landscape: Landscape, wish: SearchConfig) -> Curve:
    """What the front, by its noisy scores, covers in truth."""
    covered, front, ended = list[tuple[float, float]](), list[Evaluation](), deque(log)
    for moment in range(1, MOMENTS + 1):
        now = 60 * MINUTES * moment / MOMENTS
        while ended and ended[0][0] <= now:
            front += ended.popleft()[1]
        front = archive.front(front, wish.objectives, wish.constraints, wish.search.steps)
        covered.append((now, archive.hypervolume([landscape.served(e) for e in front], wish.objectives)))
    return covered


def _ratio(whole: Curve, other: Curve) -> float:
    """How much longer the other takes to most of what it has in the end; 0 where the whole never keeps as much."""
    value = SHARE * other[-1][1]
    return reached(other, value) / kept(whole, value)


def agreement(candidates: int = 300) -> float:
    """Spearman's correlation of scores at the first rung and the full one, on average over objectives."""
    wish = config(1, 16, ENDLESS, 0)
    landscape, rng = Landscape(wish, 0), random.Random(0)
    space = wish.search_space.of("training")
    scores: dict[int, list[list[float]]] = {steps: [] for steps in (RUNGS[0], RUNGS[-1])}
    for number in range(1, candidates + 1):
        candidate = Candidate(candidate_id(number), space.from_unit([rng.random() for _ in space.genes]))
        for steps, several in scores.items():
            several.append(list(landscape.evaluations(Attempt(candidate, steps=steps))[0].values.values()))
    columns = zip(*(zip(*several, strict=True) for several in scores.values()), strict=True)
    return statistics.fmean(float(spearmanr(early, late).statistic) for early, late in columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 4, 16, 64, 256, 1000])
    parser.add_argument("--rounds", type=int, default=4, help="candidates for each worker")
    parser.add_argument("--settings", type=int, default=16, help="evaluations of a candidate at the full rung")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument(
        "--gain", type=float, default=0.0, help="what a merged candidate has beyond its parents' average"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    print(f"{'workers':>8}{'busy':>8}{'with tail':>11}{'generations':>13}{'driver, ms':>12}{'its share':>11}")
    rows = []
    for workers in options.workers:
        row = scale(workers, options.rounds, options.settings)
        rows.append(row)
        print(
            f"{workers:8}{row['busy']:8.3f}{row['busy_with_tail']:11.3f}{row['busy_in_generations']:13.3f}"
            f"{row['driver_ms']:12.2f}{row['driver_share']:11.3f}",
            flush=True,
        )
    print(f"\nscores at {RUNGS[0]} and at {RUNGS[-1]} steps correlate at {agreement():.2f}; {WORKERS} workers")
    curves = [quality(VARIANTS, seed, options.gain) for seed in range(options.seeds)]
    ratios = {
        name: [_ratio(found[WHOLE], found[name]) for found in curves] for name in VARIANTS if name != WHOLE and curves
    }
    for name, several in ratios.items():
        final = statistics.median(found[name][-1][1] / found[WHOLE][-1][1] for found in curves)
        print(
            f"{name:18}{statistics.median(several):6.2f} times as long ({min(several):.2f} to {max(several):.2f}), "
            f"{final:.3f} of the hypervolume in the end"
        )
    if options.json:
        found = {"scale": rows, "ratios": ratios, "curves": curves, "gain": options.gain}
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
