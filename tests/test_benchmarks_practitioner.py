import numpy as np
import pytest

from benchmarks.practitioner import OnTest, accuracy, hypervolume, pooled
from pareto_search.objective import Objective

OBJECTIVES = [
    Objective("a", "maximise", reference=0.0, ideal=1.0),
    Objective("b", "maximise", reference=0.0, ideal=1.0),
]


def entries(*points: tuple[float, float], users: int = 10) -> np.ndarray:
    """Entries that score the same for every user."""
    return np.repeat(np.array(points)[:, :, None], users, axis=2)


def test_the_hypervolume_is_that_of_the_means_over_the_drawn_users() -> None:
    per_user = np.array([[[0.0, 1.0, 0.5], [1.0, 1.0, 1.0]]])  # one entry, two objectives, three users
    assert hypervolume(per_user, np.array([0, 1, 2]), OBJECTIVES) == pytest.approx(0.5)
    assert hypervolume(per_user, np.array([1, 1, 2]), OBJECTIVES) == pytest.approx(2.5 / 3)


def test_where_all_users_are_alike_the_ratio_is_certain() -> None:
    # 1 x 0.5 and 0.5 x 1 overlap in a quarter: 0.75. The other side has 0.5 in one seed and 0.25 in the other.
    front = entries((1.0, 0.5), (0.5, 1.0))
    found = pooled([OnTest(front, entries((0.5, 1.0))), OnTest(front, entries((0.5, 0.5)))], OBJECTIVES, hypervolume)
    assert found["ours"] == pytest.approx([0.75, 0.75])
    assert found["theirs"] == pytest.approx([0.5, 0.25])
    assert found["ratio"] == pytest.approx(0.75 / 0.375)
    assert found["interval"] == pytest.approx([2.0, 2.0])


def test_both_sides_are_judged_by_the_same_users() -> None:
    # Users differ ten times as much as the sides do, which leaves the ratio as certain as before.
    users = np.linspace(0.1, 1.0, 50)
    theirs = np.stack([users, np.ones(50)])[None]
    found = pooled([OnTest(theirs * np.array([1.2, 1.0])[None, :, None], theirs)], OBJECTIVES, hypervolume)
    assert found["ratio"] == pytest.approx(1.2)
    assert found["interval"] == pytest.approx([1.2, 1.2])


def test_the_accuracy_is_that_of_the_first_entry_in_the_first_objective() -> None:
    per_user = np.array([[[0.2, 1.0, 0.5], [1.0, 1.0, 1.0]], [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]])
    assert accuracy(per_user, np.array([1, 1, 2]), OBJECTIVES) == pytest.approx(2.5 / 3)
    found = pooled([OnTest(per_user, per_user / 2)], OBJECTIVES, accuracy)
    assert (found["ratio"], found["interval"]) == (pytest.approx(2.0), pytest.approx([2.0, 2.0]))
