"""Baselines against closed forms, by brute force and by hand."""

from math import sqrt

import numpy as np
import pytest
from items import sequences

from pareto_search.recsys.baselines import DecayedMean, ItemSimilarity, Popularity, ease, item_knn, whitened
from pareto_search.recsys.split import Sequences


@pytest.fixture(scope="module")
def train() -> Sequences:
    """40 users with 2 to 7 of 12 items each, in no order of their numbers, some of them twice."""
    rng = np.random.default_rng(0)
    return sequences(*(rng.integers(0, 12, 2 + u % 6).tolist() for u in range(40)))


@pytest.fixture(scope="module")
def matrix(train: Sequences) -> np.ndarray:
    """Who had what, as zeros and ones."""
    x = np.zeros((40, 12))
    for user in range(40):
        x[user, train.of(user)] = 1
    return x


def test_ease_has_a_zero_diagonal(train: Sequences) -> None:
    assert not np.diag(ease(train, 12, 5.0).weights).any()


def test_ease_is_a_ridge_regression_of_each_item_on_all_others(train: Sequences, matrix: np.ndarray) -> None:
    weights = ease(train, 12, 5.0).weights
    for item in range(12):
        others = np.delete(np.arange(12), item)
        x, y = matrix[:, others], matrix[:, item]
        expected = np.linalg.solve(x.T @ x + 5.0 * np.eye(11), x.T @ y)
        assert weights[others, item] == pytest.approx(expected, abs=1e-6)


def test_ease_is_stationary_off_the_diagonal(train: Sequences, matrix: np.ndarray) -> None:
    # The gradient of |X - XB|² / 2 + λ |B|² / 2.
    weights = ease(train, 12, 5.0).weights.astype(np.float64)
    gradient = matrix.T @ (matrix @ weights - matrix) + 5.0 * weights
    assert gradient[~np.eye(12, dtype=bool)] == pytest.approx(0, abs=1e-5)


def test_item_knn_by_hand() -> None:
    # Items 0, 1 and 2 have 3, 2 and 1 users; 0 and 1 share two, 0 and 2 share one. Shrunk by 10.
    with_one, with_two = 2 / (sqrt(3 * 2) + 10), 1 / (sqrt(3 * 1) + 10)
    model = item_knn(sequences([0, 1], [1, 0], [2, 0]), 3)
    expected = np.array([[0, with_one, with_two], [with_one, 0, 0], [with_two, 0, 0]])
    assert model.weights == pytest.approx(expected)
    assert model.scores(sequences([1, 2])) == pytest.approx(np.array([[with_one + with_two, 0, 0]]))


def test_item_knn_keeps_the_nearest_neighbours_of_each_item() -> None:
    model = item_knn(sequences([0, 1], [1, 0], [2, 0]), 3, neighbours=1)
    # Item 0 keeps 1 and drops 2; item 2 keeps 0, its only one.
    assert (model.weights > 0).tolist() == [[False, True, True], [True, False, False], [False, False, False]]


def test_similarities_add_up_over_the_history_and_a_repeat_counts_once() -> None:
    model = ItemSimilarity(np.array([[0, 1, 2], [3, 0, 4], [5, 6, 0]], np.float32))
    assert model.scores(sequences([2, 0], [1, 1], [])).tolist() == [[5, 7, 2], [3, 0, 4], [0, 0, 0]]


def test_popularity_is_the_same_for_everyone() -> None:
    assert Popularity(np.array([4, 2, 9])).scores(sequences([0], [1, 2])).tolist() == [[4, 2, 9], [4, 2, 9]]


def test_the_decayed_mean_by_hand() -> None:
    # The item before the last counts half: (0.5·e0 + 1·e1) / 1.5.
    model = DecayedMean(np.eye(3, dtype=np.float32), decay=0.5)
    assert model.scores(sequences([0, 1], [2])) == pytest.approx(np.array([[1 / 3, 2 / 3, 0], [0, 0, 1]]))


def test_the_decayed_mean_forgets_what_lies_before_its_window() -> None:
    model = DecayedMean(np.eye(4, dtype=np.float32), decay=0.5, window=2)
    assert model.scores(sequences([3, 3, 0, 1])) == pytest.approx(np.array([[1 / 3, 2 / 3, 0, 0]]))


def test_an_item_twice_in_the_history_counts_twice_in_the_decayed_mean() -> None:
    model = DecayedMean(np.eye(2, dtype=np.float32), decay=0.5)
    # Weights 1/4, 1/2 and 1 for items 0, 1 and 0.
    assert model.scores(sequences([0, 1, 0])) == pytest.approx(np.array([[1.25 / 1.75, 0.5 / 1.75]]))


def test_fitting_and_scoring_leave_the_order_of_the_histories(train: Sequences) -> None:
    # scipy sorts the indices of a sparse matrix in place, and the order of a history is its time.
    before = train.items.copy()
    vectors = np.eye(12, dtype=np.float32)
    for model in (ease(train, 12), item_knn(train, 12), Popularity(np.arange(12)), DecayedMean(vectors)):
        model.scores(train)
    assert train.items.tolist() == before.tolist()
    assert sorted(train.of(5)) != train.of(5).tolist()  # the example is one that sorting would change


def test_whitened_vectors_by_hand() -> None:
    # About the mean (1, 2), with variances 16 and 1 along the axes, and .03 of their mean added to both.
    vectors = np.array([[5, 3], [-3, 3], [5, 1], [-3, 1], [1, 7]], np.float32)
    found = whitened(vectors, np.array([True] * 4 + [False]))
    wide, narrow = 4 / 16.255**0.25, 1 / 1.255**0.25
    by_hand = np.array([[wide, narrow], [-wide, narrow], [wide, -narrow], [-wide, -narrow], [0, 5 * narrow]])
    by_hand /= np.linalg.norm(by_hand, axis=1, keepdims=True)
    assert found @ found.T == pytest.approx(by_hand @ by_hand.T, abs=1e-6)  # the axes may be turned round
    assert not np.allclose(whitened(vectors, None) @ whitened(vectors, None).T, found @ found.T, atol=1e-2)


def test_what_few_items_do_not_vary_in_does_not_drown_the_rest() -> None:
    # Those that count vary along the first axis alone; one of the others is as far along the second.
    vectors = np.array([[1, 0], [-1, 0], [1, 1]], np.float32)
    third = whitened(vectors, np.array([True, True, False]))[2]
    assert abs(third[np.abs(third).argmin()]) > 0.3
    assert np.isfinite(whitened(vectors, np.array([True, False, False]))).all()


def test_the_shares_of_a_decayed_mean_sum_to_its_scores() -> None:
    vectors = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    mean = DecayedMean(vectors, decay=0.8, window=3)
    history = np.array([8, 1, 4, 2], np.int32)
    shares = mean.shares(history, np.array([0, 5], np.int32))
    assert shares.sum(1) == pytest.approx(mean.scores(sequences(history.tolist()))[0, [0, 5]], abs=1e-6)
    assert (shares[:, 0] == 0).all()  # before the window


def test_directions_that_nothing_spreads_along_stay_finite() -> None:
    found = whitened(np.array([[1, 0, 5], [3, 0, 5], [2, 0, 5]], np.float32), None)
    assert np.isfinite(found).all()
    assert np.linalg.norm(found, axis=1)[:2] == pytest.approx([1, 1])
