"""Does asynchrony cost quality? Our steady state with 8 candidates in flight against pymoo's own generations.

    python -m benchmarks.evolution [--json FILE] [--seeds 10] [--evaluations 10000] [--problems zdt1 mixed]

Both sides spend the same evaluations with the same population, operators and mixed mating. Ours asks whenever one of
the candidates in flight, drawn at random, has finished; pymoo waits for whole generations. What is compared is the
hypervolume of all that each side evaluated, since a search keeps all of it in its archive. 1 is everything between the
reference (1.1 in each objective) and the ideal, so even the true front is below 1; the ratio of the medians is ours
over pymoo's, and should be at least 0.98.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2, RankAndCrowdingSurvival, binary_tournament
from pymoo.algorithms.moo.spea2 import SPEA2, SPEA2Survival, spea_binary_tournament
from pymoo.core.mixed import MixedVariableDuplicateElimination, MixedVariableMating, MixedVariableSampling
from pymoo.core.problem import ElementwiseProblem
from pymoo.core.variable import Binary, Choice, Integer, Real
from pymoo.operators.selection.tournament import TournamentSelection

from pareto_search import archive
from pareto_search.candidate import Genes
from pareto_search.evolution import AlgorithmName, Evolution
from pareto_search.objective import Objective
from pareto_search.space import Gene, SearchSpace

Scores = tuple[float, ...]

TARGET = 0.98


@dataclass(frozen=True)
class TestProblem:
    """A function of named genes with a known front.

    Attributes:
        ideal: the best value of each objective.
        worst: no value of an objective exceeds this: as a reference it excludes nothing, as pymoo's side has none.
    """

    genes: tuple[Gene, ...]
    score: Callable[[Genes], Scores]
    ideal: Scores
    worst: Scores

    def objectives(self, references: Sequence[float]) -> list[Objective]:
        pairs = zip(references, self.ideal, strict=True)
        return [Objective(f"f{i}", "minimise", reference, ideal) for i, (reference, ideal) in enumerate(pairs, start=1)]

    def named(self, scores: Scores) -> dict[str, float]:
        return {f"f{i}": s for i, s in enumerate(scores, start=1)}

    def hypervolume(self, scores: Sequence[Scores]) -> float:
        return archive.hypervolume([self.named(s) for s in scores], self.objectives([1.1] * len(self.ideal)))


def zdt1(genes: Genes) -> Scores:
    """Zitzler, Deb, Thiele (2000): a convex front, f2 = 1 - sqrt(f1)."""
    first, *rest = _numbers(genes)
    g = 1 + 9 * statistics.fmean(rest)
    return first, g * (1 - math.sqrt(first / g))


def zdt3(genes: Genes) -> Scores:
    """Zitzler, Deb, Thiele (2000): a front of five pieces."""
    first, *rest = _numbers(genes)
    g = 1 + 9 * statistics.fmean(rest)
    return first, g * (1 - math.sqrt(first / g) - first / g * math.sin(10 * math.pi * first))


def dtlz2(genes: Genes) -> Scores:
    """Deb, Thiele, Laumanns, Zitzler (2002): the front is an eighth of the unit sphere."""
    a, b, *rest = _numbers(genes)
    g = 1 + sum((x - 0.5) ** 2 for x in rest)
    alpha, beta = a * math.pi / 2, b * math.pi / 2
    return g * math.cos(alpha) * math.cos(beta), g * math.cos(alpha) * math.sin(beta), g * math.sin(alpha)


def mixed(genes: Genes) -> Scores:
    """Every kind of gene. ZDT1's front, reached at rate 1e-3, depth 7, pooling `mean`, tied weights and x = 0.5.

    The place along the front is made of an integer (which tenth) and a real gene (where in it).
    """
    place = (float(genes["tenth"]) + float(genes["within"])) / 10
    misses = [
        abs(math.log10(float(genes["rate"])) + 3) / 2,
        abs(float(genes["depth"]) - 7) / 13,
        {"mean": 0.0, "max": 0.3, "first": 0.6, "last": 1.0}[str(genes["pooling"])],
        0.0 if genes["tied"] else 0.5,
        *(abs(float(genes[f"x{i}"]) - 0.5) * 2 for i in range(4)),
    ]
    g = 1 + 9 * statistics.fmean(misses)
    return place, g * (1 - math.sqrt(place / g))


def _numbers(genes: Genes) -> list[float]:
    return [float(value) for value in genes.values()]


def _reals(n: int) -> tuple[Gene, ...]:
    return tuple(Gene(f"x{i}", "real") for i in range(n))


PROBLEMS: Mapping[str, TestProblem] = {
    "zdt1": TestProblem(_reals(30), zdt1, (0.0, 0.0), (1.1, 11.0)),
    "zdt3": TestProblem(_reals(30), zdt3, (0.0, -0.7734), (1.1, 11.0)),
    "dtlz2": TestProblem(_reals(12), dtlz2, (0.0, 0.0, 0.0), (4.0, 4.0, 4.0)),
    "mixed": TestProblem(
        (
            Gene("tenth", "integer", low=0, high=9),
            Gene("within", "real"),
            Gene("rate", "real", low=1e-5, high=1e-1, log=True),
            Gene("depth", "integer", low=1, high=20),
            Gene("pooling", "choice", choices=("first", "last", "max", "mean")),
            Gene("tied", "boolean"),
            *_reals(4),
        ),
        mixed,
        (0.0, 0.0),
        (1.1, 11.0),
    ),
}


def asynchronous(
    problem: TestProblem, algorithm: AlgorithmName, seed: int, *, population: int, evaluations: int, in_flight: int
) -> list[Scores]:
    """All scores of our steady state, whose candidates finish in random order."""
    space = SearchSpace.build(problem.genes, {})
    objectives = problem.objectives(problem.worst)
    evolution = Evolution(space, objectives, [], algorithm=algorithm, population=population, seed=seed)
    order = np.random.default_rng(seed)
    flying = [evolution.ask() for _ in range(in_flight)]
    seen: list[Scores] = []
    while len(seen) < evaluations:
        candidate = flying.pop(order.integers(len(flying)))
        assert candidate is not None, "a space with real genes does not run out"
        seen.append(problem.score(candidate.genes))
        evolution.tell(candidate, problem.named(seen[-1]))
        flying.append(evolution.ask())
    return seen


def generational(
    problem: TestProblem, algorithm: AlgorithmName, seed: int, *, population: int, evaluations: int
) -> list[Scores]:
    """All scores of pymoo's own run, one whole generation after the other."""
    seen: list[Scores] = []
    space = SearchSpace.build(problem.genes, {})

    class Peer(ElementwiseProblem):  # type: ignore[misc]
        def _evaluate(self, x: Mapping[str, Any], out: dict[str, Any], *_: Any, **__: Any) -> None:
            seen.append(problem.score(space.decode(x)))
            out["F"] = list(seen[-1])

    kind, survival, winner = {
        "nsga2": (NSGA2, RankAndCrowdingSurvival(), binary_tournament),
        "spea2": (SPEA2, SPEA2Survival(normalize=True), spea_binary_tournament),
    }[algorithm]
    duplicates = MixedVariableDuplicateElimination()
    selection = TournamentSelection(func_comp=winner)
    peer = kind(
        pop_size=population,
        sampling=MixedVariableSampling(),
        mating=MixedVariableMating(selection=selection, eliminate_duplicates=duplicates),
        survival=survival,
        eliminate_duplicates=duplicates,
    )
    variables = {g.name: _variable(g) for g in problem.genes}
    peer.setup(Peer(vars=variables, n_obj=len(problem.ideal)), termination=("n_eval", evaluations), seed=seed)
    peer.run()
    return seen[:evaluations]


def _variable(gene: Gene) -> Any:
    if gene.kind == "real":
        return Real(bounds=(gene.encode(gene.low), gene.encode(gene.high)))
    if gene.kind == "integer":
        return Integer(bounds=(int(gene.low), int(gene.high)))
    return Binary() if gene.kind == "boolean" else Choice(options=list(gene.choices))


def compare(
    name: str, algorithm: AlgorithmName, *, seeds: int, population: int, evaluations: int, in_flight: int
) -> dict[str, Any]:
    """One row of the table: each side's hypervolumes over the seeds, their medians, the ratio, seconds per run."""
    problem = PROBLEMS[name]
    ours: list[float] = []
    peers: list[float] = []
    start = time.perf_counter()
    for seed in range(seeds):
        budget = {"population": population, "evaluations": evaluations}
        ours.append(problem.hypervolume(asynchronous(problem, algorithm, seed, in_flight=in_flight, **budget)))
        peers.append(problem.hypervolume(generational(problem, algorithm, seed, **budget)))
    median, peer_median = statistics.median(ours), statistics.median(peers)
    return {
        "problem": name,
        "algorithm": algorithm,
        "ours": median,
        "pymoo": peer_median,
        "ratio": median / peer_median if peer_median else None,  # too few evaluations to reach the references
        "ours_all": ours,
        "pymoo_all": peers,
        "seconds_per_seed": (time.perf_counter() - start) / seeds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evolution", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--evaluations", type=int, default=10_000)
    parser.add_argument("--population", type=int, default=100)
    parser.add_argument("--in-flight", type=int, default=8)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--algorithms", nargs="+", choices=get_args(AlgorithmName), default=get_args(AlgorithmName))
    options = parser.parse_args()
    budget = {name: getattr(options, name) for name in ("seeds", "population", "evaluations", "in_flight")}

    print(f"{'problem':8} {'algorithm':9} {'ours':>7} {'pymoo':>7} {'ratio':>7}")
    rows = []
    for name in options.problems:
        for algorithm in options.algorithms:
            row = compare(name, algorithm, **budget)
            rows.append(row)
            ratio = math.nan if row["ratio"] is None else row["ratio"]
            verdict = f"  below {TARGET}" if ratio < TARGET else ""
            print(f"{name:8} {algorithm:9} {row['ours']:7.4f} {row['pymoo']:7.4f} {ratio:7.4f}{verdict}", flush=True)
    if options.json:
        options.json.write_text(json.dumps({**budget, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
