"""Who goes on to the next rung, worked out by hand."""

from collections.abc import Iterable, Mapping

import numpy as np
import pytest
from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from pareto_search.candidate import Leg
from pareto_search.fidelity import Rungs, crowding_distance
from pareto_search.objective import Constraint, Objective

# Scaled to themselves: 0 at the reference, 1 at the ideal.
UP = Objective("up", "maximise", 0.0, 1.0)
DOWN = Objective("down", "minimise", 1.0, 0.0)
COVER = Constraint("cover", at_least=True, bound=0.5)


def rungs(*steps: int, constraints: Iterable[Constraint] = ()) -> Rungs:
    return Rungs(steps, [UP, DOWN], list(constraints))


def at(up: float, down: float, cover: float = 1.0) -> dict[str, float]:
    return {"up": up, "down": down, "cover": cover}


def report(rungs: Rungs, steps: int, scores: Mapping[str, Mapping[str, float]]) -> None:
    for name, values in scores.items():
        rungs.report(Leg(name, steps), values)


def promoted(rungs: Rungs) -> list[Leg]:
    """All that may go on now, in order."""
    legs = []
    while (leg := rungs.promotable()) is not None:
        rungs.promote(leg)
        legs.append(leg)
    return legs


def worse(n: int) -> dict[str, float]:
    """The n-th of a row in which each one dominates the next."""
    return at(0.9 - 0.05 * n, 0.1 + 0.05 * n)


@pytest.mark.parametrize(
    ("steps", "further", "quotas"),
    [
        (20, 40, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]),
        (10, 40, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]),
        (30, 40, [0, 0, 1, 2, 3, 3, 4, 5, 6, 6]),
        (39, 40, [0, 0, 1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_so_many_go_on_that_the_next_rung_costs_as_much(steps: int, further: int, quotas: list[int]) -> None:
    rising = rungs(steps, further)
    gone = []
    for scored, quota in enumerate(quotas):
        gone += promoted(rising)
        assert len(gone) == quota == scored * steps // further
        report(rising, steps, {f"c{scored:04d}": worse(scored)})


def test_each_rung_has_its_own_quota() -> None:
    three = rungs(10, 20, 40)
    report(three, 10, {f"c{n:04d}": worse(n) for n in range(8)})
    assert promoted(three) == [Leg(f"c{n:04d}", 20) for n in range(4)]
    report(three, 20, {f"c{n:04d}": worse(n) for n in range(4)})
    assert promoted(three) == [Leg("c0000", 40), Leg("c0001", 40)]


def test_a_single_rung_promotes_nobody() -> None:
    assert rungs(40).promotable() is None


def test_whoever_is_nearest_to_the_full_rung_goes_first() -> None:
    three = rungs(10, 20, 40)
    report(three, 10, {"c0001": worse(1), "c0002": worse(2), "c0003": worse(3), "c0004": worse(4)})
    assert promoted(three) == [Leg("c0001", 20), Leg("c0002", 20)]
    report(three, 10, {"c0005": worse(5), "c0006": worse(6)})
    report(three, 20, {"c0001": worse(1), "c0002": worse(2)})
    assert promoted(three) == [Leg("c0001", 40), Leg("c0003", 20)]


def test_the_order_is_rank_then_crowding_then_name() -> None:
    # Better is further right, and further up:
    #
    #   up 0.1  0.3  0.4  0.6  0.9
    #      a                          down 0.1
    #                q                down 0.3
    #           y         b           down 0.4
    #                x                down 0.5
    #                          c      down 0.9
    #
    # a, q, b and c are of the first rank: a and c at its ends, then the one whose neighbours are further apart. Along
    # `up` (0.1, 0.4, 0.6, 0.9) they are 0.5 apart for q and for b, along `down` (0.1, 0.3, 0.4, 0.9) 0.3 for q and 0.6
    # for b. q dominates x and y, which are both ends of the second rank, so that their names decide.
    row = rungs(10, 11)
    points = {
        "x": at(0.4, 0.5),
        "q": at(0.4, 0.3),
        "c": at(0.9, 0.9),
        "y": at(0.3, 0.4),
        "b": at(0.6, 0.4),
        "a": at(0.1, 0.1),
    }
    report(row, 10, points)
    report(row, 10, {"z": at(0.01, 0.99)})  # worse than all: six of seven go on
    assert [leg.candidate for leg in promoted(row)] == ["a", "c", "b", "q", "x", "y"]


@pytest.mark.parametrize("seed", range(5))
def test_the_order_is_pymoos(seed: int) -> None:
    names, points = [f"c{n:04d}" for n in range(60)], np.random.default_rng(seed).random((60, 3))
    objectives = [Objective(name, "minimise", 1.0, 0.0) for name in "xyz"]
    row = Rungs([999, 1000], objectives, [])  # all but the last go on
    report(
        row, 999, {name: dict(zip("xyz", map(float, p), strict=True)) for name, p in zip(names, points, strict=True)}
    )
    expected = []
    for rank in NonDominatedSorting().do(points):
        crowding = calc_crowding_distance(points[rank])
        expected += [names[i] for _, i in sorted(zip(-crowding, rank, strict=True))]
    assert [leg.candidate for leg in promoted(row)] == expected[:-1]


def test_the_feasible_come_first_and_then_the_least_infeasible() -> None:
    row = rungs(10, 11, constraints=[COVER])
    scores = {
        "c0001": at(0.9, 0.1, cover=0.3),  # splendid, but 0.2 off its bound
        "c0002": at(-0.1, 0.2),  # 0.1 below its reference
        "c0003": at(0.1, 0.9),
        "c0004": at(0.2, 1.3),  # 0.3 beyond its reference
        "c0005": at(0.2, 0.8),
        "c0006": at(0.0, 1.0),  # at its references, which is feasible
        "c0007": at(-0.1, 1.1, cover=0.4),  # 0.3 in all
    }
    report(row, 10, scores)
    report(row, 10, {f"z{n}": at(-9.0, 9.0, cover=0.0) for n in range(4)})
    order = [leg.candidate for leg in promoted(row)]
    assert order[:5] == ["c0005", "c0003", "c0006", "c0002", "c0001"]
    assert set(order[5:7]) == {"c0004", "c0007"}


def test_the_infeasible_do_not_change_the_order_of_the_feasible() -> None:
    # a, b and c are of one rank, in a row with b between its neighbours. bad dominates c alone, which must not cost c
    # its rank.
    bad = at(0.95, 0.6, cover=0.0)
    feasible = {"a": at(0.1, 0.1), "b": at(0.5, 0.4), "c": at(0.9, 0.7)}
    orders = []
    for others in ({}, {"bad": bad}):
        row = rungs(10, 11, constraints=[COVER])
        report(row, 10, {**feasible, **others, **{f"z{n}": at(0.0, 1.0, cover=0.0) for n in range(2)}})
        orders.append([leg.candidate for leg in promoted(row)][:3])
    assert orders == [["a", "c", "b"]] * 2


def test_scores_of_other_rungs_never_matter() -> None:
    orders = []
    for at_ten in ([0, 1, 2, 3], [3, 2, 1, 0]):
        three = rungs(10, 20, 40)
        names = ["c0001", "c0002", "c0003", "c0004"]
        report(three, 10, {name: worse(n) for name, n in zip(names, at_ten, strict=True)})
        first = promoted(three)
        report(three, 20, {names[0]: worse(3), names[1]: worse(2), names[2]: worse(1), names[3]: worse(0)})
        orders.append((first, promoted(three)))
    assert orders[0][0] == [Leg("c0001", 20), Leg("c0002", 20)]
    assert orders[1][0] == [Leg("c0004", 20), Leg("c0003", 20)]
    assert orders[0][1] == orders[1][1] == [Leg("c0004", 40), Leg("c0003", 40)]


def test_a_later_better_one_goes_on_although_earlier_ones_were_passed_over() -> None:
    row = rungs(20, 40)
    report(row, 20, {"c0001": worse(5), "c0002": worse(6)})
    assert promoted(row) == [Leg("c0001", 40)]
    report(row, 20, {"c0003": worse(7), "c0004": worse(1)})
    assert promoted(row) == [Leg("c0004", 40)]
    # The quota is three now: the best three are c0004 and c0001, who have gone, and c0002.
    report(row, 20, {"c0005": worse(8), "c0006": worse(9)})
    assert promoted(row) == [Leg("c0002", 40)]


def test_who_has_gone_counts_although_others_have_become_better() -> None:
    row = rungs(20, 40)
    report(row, 20, {"c0001": worse(8), "c0002": worse(9)})
    assert promoted(row) == [Leg("c0001", 40)]
    report(row, 20, {"c0003": worse(1)})  # better than all, but three at this rung pay for one at the next
    assert promoted(row) == []
    report(row, 20, {"c0004": worse(2)})
    assert promoted(row) == [Leg("c0003", 40)]


def test_nobody_goes_on_twice() -> None:
    rng, row, gone = np.random.default_rng(0), rungs(10, 20, 40), []
    for n in range(200):
        report(row, 10, {f"c{n:04d}": at(*rng.random(2))})
        legs = promoted(row)
        gone += legs
        report(row, 20, {leg.candidate: at(*rng.random(2)) for leg in legs if leg.steps == 20})
    gone += promoted(row)
    assert len(set(gone)) == len(gone) == 100 + 50
    at_twenty = {leg.candidate for leg in gone if leg.steps == 20}
    assert {leg.candidate for leg in gone if leg.steps == 40} <= at_twenty


def test_looking_who_may_go_on_changes_nothing() -> None:
    row = rungs(20, 40)
    report(row, 20, {"c0001": worse(1), "c0002": worse(2)})
    assert row.promotable() == row.promotable() == Leg("c0001", 40)


def test_the_order_of_reports_does_not_matter() -> None:
    scores = {f"c{n:04d}": at(*np.random.default_rng(n).random(2)) for n in range(30)}
    backwards = dict(reversed(scores.items()))
    found = []
    for several in (scores, backwards):
        row = rungs(20, 40)
        report(row, 20, several)
        found.append(promoted(row))
    assert found[0] == found[1]


def test_crowding_by_hand() -> None:
    # Along the first objective the neighbours of the second point are 3 of 4 apart, along the other one 6 of 8.
    points = np.array([[0.0, 8.0], [1.0, 4.0], [3.0, 2.0], [4.0, 0.0]])
    assert crowding_distance(points).tolist() == [np.inf, 0.75 + 0.75, 0.75 + 0.5, np.inf]


@pytest.mark.parametrize("d", [2, 3, 4])
@pytest.mark.parametrize("n", [3, 10, 50])
def test_crowding_is_pymoos(n: int, d: int) -> None:
    for seed in range(5):
        points = np.random.default_rng(seed).normal(size=(n, d)) * 10.0 ** np.arange(d)
        # pymoo takes the mean over objectives where the paper has the sum.
        assert crowding_distance(points) == pytest.approx(d * calc_crowding_distance(points))


def test_crowding_with_ties_is_pymoos() -> None:
    for seed in range(20):
        points = np.random.default_rng(seed).integers(0, 4, size=(12, 3)).astype(float)
        assert crowding_distance(points) == pytest.approx(3 * calc_crowding_distance(points))


def test_two_points_are_both_ends_and_equal_ones_are_crowded() -> None:
    assert crowding_distance(np.array([[0.0, 1.0], [1.0, 0.0]])).tolist() == [np.inf, np.inf]
    assert crowding_distance(np.array([[0.5, 0.5]] * 4)).tolist() == [0.0] * 4


def test_an_objective_in_which_all_are_equal_separates_nobody() -> None:
    points = np.array([[0.0, 4.0, 7.0], [1.0, 3.0, 7.0], [2.0, 2.0, 7.0], [4.0, 0.0, 7.0]])
    expected = [np.inf, 2 / 4 + 2 / 4, 3 / 4 + 3 / 4, np.inf]
    assert crowding_distance(points[[1, 0, 3, 2]]).tolist() == [expected[i] for i in (1, 0, 3, 2)]
