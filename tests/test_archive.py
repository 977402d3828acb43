import math
from collections.abc import Sequence
from dataclasses import replace

import moocore
import numpy as np
import pytest

from pareto_search.archive import choose, front, hypervolume, non_dominated, worth, worthy
from pareto_search.candidate import Evaluation
from pareto_search.objective import Constraint, Objective

UP = Objective("up", "maximise", reference=0.0, ideal=1.0)
DOWN = Objective("down", "minimise", reference=10.0, ideal=0.0)
THREE = [Objective(name, "maximise", reference=0.0, ideal=1.0) for name in ("a", "b", "c")]


def up_down(*points: tuple[float, float]) -> list[dict[str, float]]:
    return [{"up": up, "down": down} for up, down in points]


def abc(points: Sequence[Sequence[float]] | np.ndarray) -> list[dict[str, float]]:
    return [dict(zip("abc", (float(x) for x in p), strict=True)) for p in points]


# Up is better to the right, down is better to the bottom. The second point (o) is at (0.5, 5).
#
#   down   |  dominated | neither   |
#        5 |------------o-----------|
#          |  neither   | dominates |
#          0           0.5          1  up
@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ((0.4, 6.0), [1]),  # worse in both
        ((0.4, 5.0), [1]),  # worse in one, equal in the other
        ((0.5, 6.0), [1]),
        ((0.4, 4.0), [0, 1]),  # a trade-off
        ((0.6, 6.0), [0, 1]),
        ((0.6, 4.0), [0]),  # better in both
        ((0.6, 5.0), [0]),
        ((0.5, 4.0), [0]),
        ((0.5, 5.0), [0]),  # equal: the first counts
    ],
)
def test_dominance(point: tuple[float, float], expected: list[int]) -> None:
    assert non_dominated(up_down(point, (0.5, 5.0)), [UP, DOWN]) == expected


def test_no_points_have_no_front() -> None:
    assert non_dominated([], [UP, DOWN]) == []


def test_a_point_with_nan_neither_survives_nor_dominates() -> None:
    assert non_dominated(up_down((0.9, math.nan), (0.5, 5.0), (math.nan, 0.0)), [UP, DOWN]) == [1]


def test_with_one_objective_only_the_best_point_survives() -> None:
    assert non_dominated(up_down((0.1, 0.0), (0.3, 0.0), (0.2, 0.0)), [UP]) == [1]


def evaluation(number: int, up: float, down: float, *, steps: int = 40) -> Evaluation:
    return Evaluation(f"c{number:04d}", 1, steps, 0, {}, {"up": up, "down": down})


def lucky(number: int, right: float, below: float, **margins: float) -> Evaluation:
    return replace(evaluation(number, right, below), margins=margins)


def test_what_lies_within_a_margin_does_not_count_in_either_direction() -> None:
    assert worth(evaluation(1, 0.5, 5.0), [UP, DOWN]) == {"up": 0.5, "down": 5.0}
    found = worth(lucky(1, 0.5, 5.0, up=0.125, down=1.0), [UP, DOWN])
    assert found == {"up": 0.375, "down": 6.0}
    assert worth(lucky(1, 0.5, 5.0, up=0.125), [UP, DOWN]) == {"up": 0.375, "down": 5.0}  # the other has no margin
    assert worthy(found, {"up": 0.125, "down": 1.0}, [UP, DOWN]) == {"up": 0.5, "down": 5.0}
    assert worthy({"up": 0.375, "down": 5.0}, {"up": 0.125}, [UP, DOWN]) == {"up": 0.5, "down": 5.0}


def test_the_warm_start_stays_on_the_front_until_it_is_beaten_by_more_than_chance() -> None:
    start, no_more, more = evaluation(0, 0.5, 5.0), lucky(1, 0.6, 4.9, up=0.125), lucky(2, 0.7, 4.8, up=0.125)
    assert front([start, no_more], [UP, DOWN], (), 40) == [start, no_more]  # a trade-off: no better in one
    assert front([start, more], [UP, DOWN], (), 40) == [more]
    # Feasible is what the values say: the first keeps the bound, though its worth does not.
    bound = [Constraint("up", True, 0.55)]
    assert front([no_more, start], [UP, DOWN], bound, 40) == [no_more]


def test_the_front_is_feasible_at_full_rung_and_keeps_the_order() -> None:
    evaluations = [
        evaluation(1, 0.2, 2.0),
        evaluation(2, 0.9, 1.0, steps=20),  # would dominate all, but is not fully trained
        evaluation(3, 0.5, 5.0),
        evaluation(4, 0.4, 6.0),  # dominated
        evaluation(5, 0.95, 11.0),  # misses a reference
        evaluation(6, 0.99, 9.5),  # misses the constraint
        evaluation(7, 0.5, 5.0),  # a duplicate
        evaluation(8, 0.8, math.nan),
    ]
    members = front(evaluations, [UP, DOWN], [Constraint("down", at_least=False, bound=9.0)], steps=40)
    assert [e.candidate for e in members] == ["c0001", "c0003"]


def test_an_empty_archive_has_an_empty_front() -> None:
    assert front([], [UP], [], steps=40) == []


# In normalised units; (0.5, 5) is (0.5, 0.5).
@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], 0.0),
        ([(1.0, 0.0)], 1.0),
        ([(0.5, 5.0)], 0.25),
        ([(0.5, 5.0), (0.5, 5.0)], 0.25),
        ([(0.2, 2.0), (0.8, 8.0)], 0.2 * 0.8 + 0.8 * 0.2 - 0.2 * 0.2),
        ([(0.5, 5.0), (0.4, 6.0)], 0.25),
        ([(2.0, 0.0)], 2.0),  # beyond the ideal
        ([(0.0, 0.0)], 0.0),  # on a reference
        ([(0.9, 12.0)], 0.0),  # behind a reference
        ([(-0.5, 12.0)], 0.0),  # behind both: not a positive area
        ([(0.5, 5.0), (math.nan, 0.0)], 0.25),
    ],
)
def test_hypervolume_by_hand_in_two_dimensions(points: list[tuple[float, float]], expected: float) -> None:
    assert hypervolume(up_down(*points), [UP, DOWN]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0.5, 0.5, 0.5)], 0.125),
        ([(1, 1, 1), (0.5, 0.5, 0.5)], 1.0),
        # Two slabs of 0.5 that share a quarter.
        ([(1, 1, 0.5), (1, 0.5, 1)], 0.5 + 0.5 - 0.25),
        # Three slabs: each pair shares 0.25, all three share 0.125.
        ([(1, 1, 0.5), (1, 0.5, 1), (0.5, 1, 1)], 3 * 0.5 - 3 * 0.25 + 0.125),
    ],
)
def test_hypervolume_by_hand_in_three_dimensions(points: list[tuple[float, float, float]], expected: float) -> None:
    assert hypervolume(abc(points), THREE) == pytest.approx(expected)


def test_hypervolume_is_measured_in_units_of_reference_to_ideal() -> None:
    ndcg = Objective("ndcg", "maximise", reference=0.02, ideal=0.12)
    seconds = Objective("seconds", "minimise", reference=20.0, ideal=10.0)
    assert hypervolume([{"ndcg": 0.07, "seconds": 12.0}], [ndcg, seconds]) == pytest.approx(0.5 * 0.8)


def naive_choice(points: np.ndarray, k: int) -> list[int]:
    chosen: list[int] = []
    for _ in range(k):
        volumes = [moocore.hypervolume(points[[*chosen, i]], ref=0.0, maximise=True) for i in range(len(points))]
        chosen.append(int(np.argmax(volumes)))
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_the_choice_equals_naive_greedy(seed: int) -> None:
    generator = np.random.default_rng(seed)
    points = np.abs(generator.normal(size=(60, 3)))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    points[::3] *= 0.7  # some dominated ones
    assert choose(abc(points), THREE, k=12) == naive_choice(points, 12)


def test_the_choice_takes_the_largest_gain_first() -> None:
    # Alone 0.16, 0.25 and 0.16; after the middle one the outer ones add 0.06 each, and the first of them wins.
    values = up_down((0.2, 2.0), (0.5, 5.0), (0.8, 8.0))
    assert choose(values, [UP, DOWN], k=2) == [1, 0]
    assert choose(values, [UP, DOWN]) == [1, 0, 2]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_equal_gains_go_to_the_lowest_index(order: tuple[int, int, int]) -> None:
    corners = [(0.9, 0.3, 0.3), (0.3, 0.9, 0.3), (0.3, 0.3, 0.9)]
    assert choose(abc([corners[i] for i in order]), THREE) == [0, 1, 2]


def test_the_choice_ends_when_nothing_is_gained() -> None:
    values = up_down((0.5, 5.0), (0.5, 5.0), (0.4, 6.0), (0.9, 10.0), (math.nan, 1.0))
    assert choose(values, [UP, DOWN]) == [0]


@pytest.mark.parametrize("values", [[], up_down((-1.0, 20.0))])
def test_nothing_above_the_references_gives_no_choice(values: list[dict[str, float]]) -> None:
    assert choose(values, [UP, DOWN]) == []


def test_the_first_towers_of_the_warm_start_count_until_all_of_it_is_there() -> None:
    first, whole, trained = (
        Evaluation(name, 1, 40, 0, {}, {"up": up, "down": 5.0})
        for name, up in (("e0000", 0.9), ("m0000", 0.3), ("c0001", 0.2))
    )
    assert front([first, trained], [UP, DOWN], (), 40) == [first]
    assert front([first, trained, whole], [UP, DOWN], (), 40) == [whole]
