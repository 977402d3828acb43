import math
import statistics
import warnings
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.algorithms.moo.spea2 import SPEA2, SPEA2Survival
from pymoo.indicators.hv import HV
from pymoo.optimize import minimize
from pymoo.problems import get_problem

from pareto_search.candidate import Candidate, Forerunner, Genes
from pareto_search.evolution import AlgorithmName, Evolution
from pareto_search.objective import Constraint, Objective, Values
from pareto_search.space import Gene, SearchSpace

ALGORITHMS: tuple[AlgorithmName, ...] = ("nsga2", "spea2")
both = pytest.mark.parametrize("algorithm", ALGORITHMS)

MIXED = SearchSpace.build(
    [
        Gene("rate", "real", low=1e-5, high=1e-1, log=True),
        Gene("mix", "real"),
        Gene("depth", "integer", low=1, high=8),
        Gene("pooling", "choice", choices=("mean", "first", 3, None)),  # type: ignore[arg-type]
        Gene("tied", "boolean"),
        Gene("rank", "choice", choices=(2, 4, 8)),
    ],
    {"rank": 4},
)
DISCRETE = SearchSpace.build(
    [
        Gene("depth", "integer", low=1, high=3),
        Gene("pooling", "choice", choices=("mean", "first")),
        Gene("tied", "boolean"),
    ],
    {},
)
# The floors are low enough to exclude nothing.
OBJECTIVES = [Objective("up", "maximise", -10.0, 10.0), Objective("down", "minimise", 10.0, -10.0)]


def evolve(algorithm: AlgorithmName, space: SearchSpace = MIXED, *, population: int = 6, seed: int = 0) -> Evolution:
    return Evolution(space, OBJECTIVES, [], algorithm=algorithm, population=population, seed=seed)


def score(genes: Genes) -> dict[str, float]:
    mix, depth = float(genes["mix"]), float(genes["depth"])
    return {"up": mix * depth / 8, "down": depth / 8 + abs(math.log10(float(genes["rate"])) + 3)}


def asked(evolution: Evolution) -> Candidate:
    candidate = evolution.ask()
    assert candidate is not None
    return candidate


def run(
    evolution: Evolution, score: Callable[[Genes], Values | None], *, evaluations: int, in_flight: int, seed: int = 0
) -> list[Candidate]:
    """All candidates in the order asked; those in flight finish in random order."""
    order = np.random.default_rng(seed)
    flying = [asked(evolution) for _ in range(in_flight)]
    everything = list(flying)
    for _ in range(evaluations):
        candidate = flying.pop(order.integers(len(flying)))
        evolution.tell(candidate, score(candidate.genes))
        flying.append(asked(evolution))
        everything.append(flying[-1])
    return everything


@both
def test_proposals_have_ids_in_order_natural_values_and_the_fixed_genes(algorithm: AlgorithmName) -> None:
    candidates = run(evolve(algorithm), score, evaluations=60, in_flight=3)
    assert [c.id for c in candidates[:3]] == ["c0001", "c0002", "c0003"]
    for genes in (c.genes for c in candidates):
        assert set(genes) == {"rate", "mix", "depth", "pooling", "tied", "rank"}
        assert type(genes["rate"]) is float
        assert 1e-5 <= genes["rate"] <= 1e-1
        assert type(genes["depth"]) is int
        assert 1 <= genes["depth"] <= 8
        assert type(genes["tied"]) is bool
        assert genes["pooling"] in ("mean", "first", 3, None)
        assert type(genes["pooling"]) in (str, int, type(None))
        assert genes["rank"] == 4


@both
def test_all_the_workers_can_ask_before_anything_is_told(algorithm: AlgorithmName) -> None:
    evolution = evolve(algorithm, population=4)
    candidates = [asked(evolution) for _ in range(20)]
    assert len({tuple(c.genes.values()) for c in candidates}) == 20
    assert all(c.parents == () for c in candidates)


@both
def test_offspring_come_once_the_whole_initial_sample_was_told(algorithm: AlgorithmName) -> None:
    evolution = evolve(algorithm, population=4)
    first, *others = (asked(evolution) for _ in range(4))
    extra = asked(evolution)
    for candidate in [*reversed(others), extra]:
        evolution.tell(candidate, score(candidate.genes))
    assert asked(evolution).parents == ()
    evolution.tell(first, score(first.genes))
    parents = asked(evolution).parents
    assert parents
    assert set(parents) <= {c.id for c in [first, *others, extra]}


@both
def test_the_initial_sample_may_come_back_in_any_order(algorithm: AlgorithmName) -> None:
    proposals = []
    for order in ([0, 1, 2, 3, 4, 5], [4, 2, 5, 0, 1, 3]):
        evolution = evolve(algorithm, population=6)
        sample = [asked(evolution) for _ in range(6)]
        for i in order:
            evolution.tell(sample[i], score(sample[i].genes))
        proposals.append([asked(evolution) for _ in range(5)])
    assert proposals[0] == proposals[1]


@both
def test_parents_are_told_candidates_and_offspring_mix_their_genes(algorithm: AlgorithmName) -> None:
    evolution = evolve(algorithm)
    candidates = {c.id: c for c in run(evolution, score, evaluations=200, in_flight=4)}
    offspring = [c for c in candidates.values() if c.parents]
    assert len(offspring) > 150
    inherited = 0
    for child in offspring:
        parents = [candidates[p] for p in child.parents]
        assert len(set(child.parents)) == len(child.parents) <= 2
        assert all(p.id < child.id for p in parents)
        inherited += child.genes["tied"] in [p.genes["tied"] for p in parents]
    # A boolean comes from a parent unless it mutates, which pymoo does to half of them when there is only one.
    assert inherited / len(offspring) > 0.6


@both
@pytest.mark.parametrize(
    "bad",
    [
        None,
        {"up": 9.0, "down": 1.5},  # splendid, but breaks the constraint
        {"up": -11.0, "down": -9.0},  # splendid in one, below the other's reference
    ],
)
def test_a_failed_or_infeasible_candidate_takes_no_feasible_ones_place(
    algorithm: AlgorithmName, bad: Values | None
) -> None:
    constraint = Constraint("down", at_least=False, bound=1.0)
    evolution = Evolution(MIXED, OBJECTIVES, [constraint], algorithm=algorithm, population=4, seed=0)
    good = [asked(evolution) for _ in range(4)]
    for i, candidate in enumerate(good):
        evolution.tell(candidate, {"up": float(i), "down": i / 3})
    for _ in range(30):
        child = asked(evolution)
        assert set(child.parents) <= {c.id for c in good}
        evolution.tell(child, bad)


@both
def test_where_nothing_is_feasible_the_least_violation_wins_and_failure_is_worst(algorithm: AlgorithmName) -> None:
    evolution = evolve(algorithm, population=2)
    failed, poor = asked(evolution), asked(evolution)
    evolution.tell(failed, None)
    evolution.tell(poor, {"up": -1000.0, "down": 1000.0})
    for _ in range(20):
        child = asked(evolution)
        assert child.parents == (poor.id,)  # in a population of two, every tournament is between both
        evolution.tell(child, None)


@both
@pytest.mark.parametrize("fate", [None, {"up": -20.0, "down": 0.0}])
def test_the_search_goes_on_when_nothing_is_feasible(algorithm: AlgorithmName, fate: Values | None) -> None:
    assert len(run(evolve(algorithm), lambda _: fate, evaluations=40, in_flight=3)) == 43


@both
def test_no_proposal_equals_an_earlier_one(algorithm: AlgorithmName) -> None:
    candidates = run(evolve(algorithm), score, evaluations=300, in_flight=8)
    assert len({tuple(c.genes.values()) for c in candidates}) == len(candidates)


@both
@pytest.mark.parametrize("population", [3, 50])
def test_a_discrete_space_is_proposed_completely_and_once(algorithm: AlgorithmName, population: int) -> None:
    evolution = evolve(algorithm, DISCRETE, population=population)
    everything = []
    while candidate := evolution.ask():
        everything.append(tuple(candidate.genes.values()))
        evolution.tell(candidate, {"up": float(candidate.genes["depth"]), "down": 0.0})
    assert sorted(everything) == sorted(product((1, 2, 3), ("mean", "first"), (False, True)))
    assert evolution.ask() is None


@both
def test_a_discrete_space_is_exhausted_with_all_of_it_in_flight(algorithm: AlgorithmName) -> None:
    evolution = evolve(algorithm, DISCRETE, population=3)
    assert [evolution.ask() is None for _ in range(14)] == [False] * 12 + [True] * 2


@both
def test_a_space_where_nothing_varies_has_one_candidate(algorithm: AlgorithmName) -> None:
    evolution = evolve(algorithm, SearchSpace.build([Gene("rank", "choice", choices=(2, 4))], {"rank": 4}))
    candidate = asked(evolution)
    assert candidate == Candidate("c0001", {"rank": 4})
    assert evolution.ask() is None
    evolution.tell(candidate, {"up": 0.0, "down": 0.0})
    assert evolution.ask() is None


@both
def test_a_population_of_one_evolves(algorithm: AlgorithmName) -> None:
    assert len(run(evolve(algorithm, population=1), score, evaluations=20, in_flight=1)) == 21


@both
def test_the_same_calls_give_the_same_proposals_whatever_else_runs(algorithm: AlgorithmName) -> None:
    alone = run(evolve(algorithm, seed=7), score, evaluations=80, in_flight=5)
    other = evolve(algorithm, seed=8)
    np.random.seed(1)  # noqa: NPY002  the global generator must not matter

    def disturbed(genes: Genes) -> Values:
        candidate = asked(other)
        other.tell(candidate, score(candidate.genes))
        return score(genes)

    assert run(evolve(algorithm, seed=7), disturbed, evaluations=80, in_flight=5) == alone


@both
def test_another_seed_gives_other_proposals(algorithm: AlgorithmName) -> None:
    assert asked(evolve(algorithm, seed=1)).genes != asked(evolve(algorithm, seed=2)).genes


@both
def test_the_order_told_matters_after_the_initial_sample(algorithm: AlgorithmName) -> None:
    runs = [run(evolve(algorithm), score, evaluations=60, in_flight=5, seed=seed) for seed in (0, 1)]
    assert runs[0][:5] == runs[1][:5]
    assert runs[0] != runs[1]


def test_telling_a_candidate_that_was_not_asked_is_named() -> None:
    evolution = evolve("nsga2")
    with pytest.raises(ValueError, match=r"candidate c0001 was told, but ask\(\) never gave it"):
        evolution.tell(Candidate("c0001", {}), score({"rate": 1e-3, "mix": 0.5, "depth": 1}))


def test_telling_a_candidate_with_other_genes_is_named() -> None:
    evolution = evolve("nsga2")
    candidate = asked(evolution)
    with pytest.raises(ValueError, match=r"candidate c0001 was told, but ask\(\) never gave it"):
        evolution.tell(Candidate(candidate.id, {**candidate.genes, "depth": 99}), score(candidate.genes))


@pytest.mark.parametrize("again", [None, {"up": 0.0, "down": 0.0}])
def test_telling_a_candidate_twice_is_named(again: Values | None) -> None:
    evolution = evolve("nsga2")
    candidate = asked(evolution)
    evolution.tell(candidate, None)
    with pytest.raises(ValueError, match="candidate c0001 was told twice"):
        evolution.tell(candidate, again)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"up": math.nan, "down": 0.0, "cover": 1.0}, "up = nan"),
        ({"up": 0.0, "down": math.inf, "cover": 1.0}, "down = inf"),
        ({"up": 0.0, "down": 0.0, "cover": math.nan}, "cover = nan"),
        ({"up": 0.0, "down": 0.0}, "cover = None"),
    ],
)
def test_a_value_that_is_no_number_is_refused_and_can_be_told_as_a_failure(values: Values, named: str) -> None:
    constraint = Constraint("cover", at_least=True, bound=0.5)
    evolution = Evolution(MIXED, OBJECTIVES, [constraint], algorithm="nsga2", population=4, seed=0)
    candidate = asked(evolution)
    with pytest.raises(ValueError, match=f"candidate c0001 has {named}; .* None"):
        evolution.tell(candidate, values)
    evolution.tell(candidate, None)


@both
def test_the_warnings_of_the_process_stay_as_they_are(algorithm: AlgorithmName) -> None:
    before = list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(evolve(algorithm), lambda genes: {**score(genes), "down": 0.0}, evaluations=30, in_flight=2)
    assert list(warnings.filters) == before


def peer(algorithm: AlgorithmName, *, seed: int, population: int, evaluations: int) -> np.ndarray:
    """Every F of pymoo's own generational run on ZDT1, `(evaluations, 2)`."""
    kinds = {"nsga2": NSGA2(pop_size=population), "spea2": SPEA2(population, survival=SPEA2Survival(normalize=True))}
    told: list[np.ndarray] = []

    def keep(algorithm: Any) -> None:
        told.append(algorithm.off.get("F"))

    minimize(get_problem("zdt1", n_var=5), kinds[algorithm], ("n_eval", evaluations), callback=keep, seed=seed)
    return np.concatenate(told)


@both
def test_asynchrony_costs_little_quality_against_pymoo_in_generations(algorithm: AlgorithmName) -> None:
    population, evaluations, hypervolume = 20, 1000, HV(ref_point=(1.1, 1.1))
    zdt1 = get_problem("zdt1", n_var=5)
    space = SearchSpace.build([Gene(f"x{i}", "real") for i in range(5)], {})
    objectives = [Objective("f1", "minimise", 1.1, 0.0), Objective("f2", "minimise", 11.0, 0.0)]
    ours, peers = [], []
    for seed in range(3):
        seen: list[np.ndarray] = []

        def score(genes: Genes, seen: list[np.ndarray] = seen) -> Values:
            seen.append(zdt1.evaluate(np.array(list(genes.values()))))
            return {"f1": seen[-1][0], "f2": seen[-1][1]}

        evolution = Evolution(space, objectives, [], algorithm=algorithm, population=population, seed=seed)
        run(evolution, score, evaluations=evaluations, in_flight=8, seed=seed)
        ours.append(hypervolume(np.array(seen)))
        peers.append(hypervolume(peer(algorithm, seed=seed, population=population, evaluations=evaluations)))
    assert statistics.median(ours) >= 0.9 * statistics.median(peers)
    assert statistics.median(peers) > 0.5, "the comparison is void where neither side gets anywhere"


@both
def test_the_population_holds_who_was_told_from_the_first_founder_on(algorithm: AlgorithmName) -> None:
    evolution = evolve(algorithm, population=4)
    founders = [asked(evolution) for _ in range(4)]
    evolution.tell(founders[0], score(founders[0].genes))
    assert evolution.population == {founders[0].id}
    for founder in founders[1:]:
        evolution.tell(founder, score(founder.genes))
    assert evolution.population == {f.id for f in founders}


@both
def test_founders_that_are_put_off_keep_nobody_waiting(algorithm: AlgorithmName) -> None:
    evolution = evolve(algorithm, population=5)
    founders = [asked(evolution) for _ in range(5)]
    for founder in founders[:3]:
        evolution.put_off(founder)
    evolution.tell(founders[3], score(founders[3].genes))
    assert asked(evolution).parents == ()  # the last one is awaited
    evolution.tell(founders[4], score(founders[4].genes))
    for _ in range(10):
        parents = asked(evolution).parents
        assert parents
        assert set(parents) <= {founders[3].id, founders[4].id}
    assert evolution.population == {founders[3].id, founders[4].id}


@both
def test_the_last_awaited_founder_may_be_put_off(algorithm: AlgorithmName) -> None:
    evolution = evolve(algorithm, population=3)
    founders = [asked(evolution) for _ in range(3)]
    for founder in founders[:2]:
        evolution.tell(founder, score(founder.genes))
    assert asked(evolution).parents == ()
    evolution.put_off(founders[2])
    assert asked(evolution).parents


@both
def test_one_alone_has_no_children_until_a_second_one_is_told(algorithm: AlgorithmName) -> None:
    evolution = evolve(algorithm, population=3)
    founders = [asked(evolution) for _ in range(3)]
    for founder in founders[1:]:
        evolution.put_off(founder)
    evolution.tell(founders[0], score(founders[0].genes))
    later = asked(evolution)
    assert later.parents == ()
    assert evolution.population == {founders[0].id}
    evolution.tell(later, score(later.genes))
    assert evolution.population == {founders[0].id, later.id}
    assert set(asked(evolution).parents) <= {founders[0].id, later.id}


@both
def test_where_all_founders_are_put_off_those_who_come_later_found_the_population(algorithm: AlgorithmName) -> None:
    evolution = evolve(algorithm, population=3)
    founders = [asked(evolution) for _ in range(3)]
    later = [asked(evolution) for _ in range(2)]
    for founder in founders:
        evolution.put_off(founder)
    for candidate in later:
        assert asked(evolution).parents == ()
        evolution.tell(candidate, score(candidate.genes))
    assert evolution.population == {c.id for c in later}
    assert all(set(asked(evolution).parents) <= evolution.population for _ in range(10))
    assert asked(evolution).parents


@both
def test_who_was_put_off_is_told_later_as_any_other(algorithm: AlgorithmName) -> None:
    evolution = evolve(algorithm, population=4)
    founders = [asked(evolution) for _ in range(4)]
    evolution.put_off(founders[0])
    evolution.put_off(founders[0])  # at another rung
    for founder in founders[1:]:
        evolution.tell(founder, score(founder.genes))
    assert founders[0].id not in evolution.population
    evolution.tell(founders[0], score(founders[0].genes))
    assert evolution.population == {f.id for f in founders}
    with pytest.raises(ValueError, match="candidate c0001 was told twice"):
        evolution.tell(founders[0], score(founders[0].genes))


@both
def test_the_founders_may_be_told_and_put_off_in_any_order(algorithm: AlgorithmName) -> None:
    proposals = []
    for order in ([0, 1, 2, 3, 4, 5], [4, 2, 5, 0, 1, 3]):
        evolution = evolve(algorithm, population=6)
        founders = [asked(evolution) for _ in range(6)]
        for i in order:
            if i % 2:
                evolution.put_off(founders[i])
            else:
                evolution.tell(founders[i], score(founders[i].genes))
        proposals.append([asked(evolution) for _ in range(5)])
    assert proposals[0] == proposals[1]
    assert all(c.parents for c in proposals[0])


@both
def test_where_only_failures_are_told_the_search_goes_on(algorithm: AlgorithmName) -> None:
    evolution = evolve(algorithm, population=4)
    founders = [asked(evolution) for _ in range(4)]
    for founder in founders[:2]:
        evolution.put_off(founder)
        evolution.tell(founder, None)
    for founder in founders[2:]:
        evolution.put_off(founder)
    assert set(asked(evolution).parents) <= {f.id for f in founders[:2]}
    for founder in founders[2:]:
        evolution.tell(founder, score(founder.genes))
    assert {p for _ in range(20) for p in asked(evolution).parents} >= {f.id for f in founders[2:]}


def test_seeds_come_first_and_chance_fills_up_the_population() -> None:
    genes = {"rate": 1e-3, "mix": 0.5, "depth": 8, "pooling": None, "tied": True, "rank": 4}
    other = genes | {"rate": 0.02, "pooling": "first", "tied": False}
    forerunners = [
        Forerunner("old/c0007", genes, 40),
        Forerunner("old/m0002", genes, 80),
        Forerunner("old/c0001", other, 40),
    ]
    evolution = Evolution(MIXED, OBJECTIVES, [], algorithm="nsga2", population=4, seed=0, forerunners=forerunners)
    first, second, third, fourth = (asked(evolution) for _ in range(4))
    assert (first.genes, first.parents) == (pytest.approx(genes), ("old/c0007",))
    assert (second.genes, second.parents) == (pytest.approx(other), ("old/c0001",))
    by_chance = evolve("nsga2", population=4)
    assert [third.genes, fourth.genes] == [asked(by_chance).genes for _ in range(2)]
    assert third.parents == fourth.parents == ()
    for candidate in (first, second, third, fourth):
        evolution.tell(candidate, score(candidate.genes))
    assert evolution.population == {"c0001", "c0002", "c0003", "c0004"}
    assert set(asked(evolution).parents) <= evolution.population


def test_more_seeds_than_the_population_has_places_are_too_many() -> None:
    genes = {"rate": 1e-3, "mix": 0.5, "pooling": None, "tied": True, "rank": 4}
    forerunners = [Forerunner(f"old/c{depth:04d}", genes | {"depth": depth}, 40) for depth in range(1, 9)]
    evolution = Evolution(MIXED, OBJECTIVES, [], algorithm="spea2", population=3, seed=0, forerunners=forerunners)
    assert [asked(evolution).parents for _ in range(4)] == [("old/c0001",), ("old/c0002",), ("old/c0003",), ()]
