"""Statistics of the training part, by hand."""

import numpy as np
import pytest

from pareto_search.recsys.split import Sequences
from pareto_search.recsys.statistics import ItemStatistics, category_features


def statistics(*rows: list[int], n_items: int = 3, ratings: list[float] | None = None) -> ItemStatistics:
    ends = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64)
    rated = None if ratings is None else np.array(ratings, np.float32)
    train = Sequences(ends, np.array([i for row in rows for i in row], np.int32), rated)
    return ItemStatistics.of(train, n_items, np.eye(n_items, dtype=np.float32))


def test_the_bayesian_average_by_hand() -> None:
    # Three ratings of three items: C = 1 and m = (5 + 1 + 4) / 3. Item 0 has 5 and 4, item 1 has 1, item 2 has none.
    m = 10 / 3
    averages = [(m + 5 + 4) / (1 + 2), (m + 1) / (1 + 1), m / 1]
    scaled = [(average - 1) / (5 - 1) for average in averages]
    assert statistics([0, 1], [0], ratings=[5, 1, 4]).credibility == pytest.approx(scaled)


def test_without_ratings_there_is_no_credibility() -> None:
    assert statistics([0, 1], [0]).credibility is None


@pytest.mark.parametrize("rating", [4.0, 0.1, 3.3])
def test_where_all_ratings_are_equal_all_items_are_equally_credible(rating: float) -> None:
    credibility = statistics(list(range(1000)), n_items=1001, ratings=[rating] * 1000).credibility
    assert credibility == pytest.approx(np.zeros(1001), abs=1e-3)


def test_novelty_goes_from_0_for_everyones_item_to_1_for_one_users() -> None:
    # Of 4 users all had item 0, two had item 1, one had item 2 and none had item 3, which counts as one.
    items = statistics([0, 1], [0, 1, 2], [0], [0], n_items=4)
    assert items.users.tolist() == [4, 2, 1, 0]
    assert items.novelty == pytest.approx([0, 1 / 2, 1, 1])


def test_who_comes_back_to_an_item_counts_once() -> None:
    assert statistics([0, 0, 1, 0], [1]).users.tolist() == [1, 2, 0]


def test_one_user_alone_finds_nothing_novel() -> None:
    assert statistics([0, 1]).novelty.tolist() == [0, 0, 0]


def test_features_have_unit_length_and_an_item_without_any_stays_zero() -> None:
    train = Sequences(np.array([0, 1]), np.array([0], np.int32), None)
    items = ItemStatistics.of(train, 2, np.array([[3, 4], [0, 0]], np.float32))
    assert items.features == pytest.approx(np.array([[0.6, 0.8], [0, 0]]))


def test_categories_become_indicators_in_alphabetical_order() -> None:
    rows = category_features([("war", "comedy"), (), ("drama",)])
    assert rows.tolist() == [[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 1, 0]]


def test_items_without_categories_are_as_near_to_each_other_as_those_of_one_category() -> None:
    rows = category_features([(), ("drama",), (), ("drama",)])
    assert (rows @ rows.T).tolist() == [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]
