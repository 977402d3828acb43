"""Blending and re-ranking, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from pareto_search.recsys.rerank import blend, rerank, standardise
from pareto_search.recsys.statistics import ItemStatistics

E = np.eye(3, dtype=np.float32)
# Items 0 and 1 are alike; 2 and 3 differ from all others.
FEATURES = E[[0, 0, 1, 2]]
NOVELTY = np.array([0.0, 0.2, 0.9, 0.5], np.float32)
CREDIBILITY = np.array([0.9, 0.1, 0.5, 0.5], np.float32)
ITEMS = ItemStatistics(np.array([8, 4, 1, 2]), NOVELTY, CREDIBILITY, FEATURES)


def scores(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


def many(n_items: int) -> ItemStatistics:
    rng = np.random.default_rng(0)
    features = np.abs(rng.normal(size=(n_items, 5)))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    novelty, credibility = rng.random((2, n_items)).astype(np.float32)
    return ItemStatistics(np.zeros(n_items, np.int64), novelty, credibility, features.astype(np.float32))


def test_without_serving_genes_the_order_is_that_of_the_scores() -> None:
    assert rerank(scores([1, 4, 2, 3], [0, -1, 5, 2]), ITEMS, {}, 3).tolist() == [[1, 3, 2], [2, 3, 0]]


@pytest.mark.parametrize("n_items", [3, 10, 39, 41, 500])
def test_the_best_are_those_of_a_full_sort_with_unseen_items_first_and_ties_in_order(n_items: int) -> None:
    rng = np.random.default_rng(n_items)
    some = rng.integers(0, 20, (40, n_items)).astype(np.float32)
    some[rng.random(some.shape) < rng.random((40, 1))] = -np.inf  # of some rows little is left, or nothing
    expected = np.argsort(-some, axis=1, kind="stable")[:, :10]
    assert rerank(some, many(n_items), {}, 10).tolist() == expected.tolist()


def test_a_diversity_of_0_is_the_plain_order() -> None:
    rng = np.random.default_rng(1)
    some = rng.normal(size=(7, 300)).astype(np.float32)
    expected = np.argsort(-some, axis=1)[:, :10]
    assert rerank(some, many(300), {"diversity": 0.0}, 10).tolist() == expected.tolist()


def test_greedy_reranking_by_hand() -> None:
    # Scores 4, 3, 2, 1 become 1, 2/3, 1/3, 0. With λ = 1/2, item 0 comes first; then 1 is worth 1/3 - 1/2·1, 2 is worth
    # 1/6 and 3 is worth 0; then 1 is worth 1/3 - 1/2·(1 + 0)/2 = 1/12 and 3 is worth 0.
    assert rerank(scores([4, 3, 2, 1]), ITEMS, {"diversity": 0.5}, 3).tolist() == [[0, 2, 1]]


def test_with_more_diversity_the_item_like_the_first_comes_last() -> None:
    # With λ = 0.8, for the third place item 1 is worth 0.2·2/3 - 0.8/2 < 0 and item 3 is worth 0.
    assert rerank(scores([4, 3, 2, 1]), ITEMS, {"diversity": 0.8}, 4).tolist() == [[0, 2, 3, 1]]


def test_novelty_and_credibility_add_their_standardised_values() -> None:
    plain = np.array([0.5, 0.4, -0.1, 0.2])
    novel = (NOVELTY - 0.4) / np.sqrt(((NOVELTY - 0.4) ** 2).mean())  # the mean of 0, 0.2, 0.9 and 0.5 is 0.4
    credible = (CREDIBILITY - 0.5) / np.sqrt((0.4**2 + 0.4**2) / 4)
    setting = {"novelty": 0.3, "credibility": 0.2}
    expected = np.argsort(-(plain + 0.3 * novel + 0.2 * credible))
    assert rerank(scores(plain.tolist()), ITEMS, setting, 4)[0].tolist() == expected.tolist()
    assert expected.tolist() != np.argsort(-plain).tolist()


def test_a_data_set_without_ratings_is_reranked_as_if_credibility_were_0() -> None:
    unrated = ItemStatistics(ITEMS.users, NOVELTY, None, FEATURES)
    assert rerank(scores([4, 3, 2, 1]), unrated, {"credibility": 2.0}, 4).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("name", ["novelty", "credibility"])
def test_a_larger_weight_never_lowers_the_lists_mean(name: str) -> None:
    items = many(200)
    values = items.novelty if name == "novelty" else items.credibility
    assert values is not None
    some = np.random.default_rng(2).normal(size=(5, 200)).astype(np.float32)
    means = [values[rerank(some, items, {name: w}, 10)].mean(1) for w in (0.0, 0.1, 0.3, 1.0, 4.0)]
    assert (np.diff(means, axis=0) >= -1e-6).all()
    assert (means[-1] > means[0]).all()


@pytest.mark.parametrize(
    "setting", [{}, {"diversity": 0.7}, {"novelty": 4.0, "credibility": 4.0}, {"diversity": 0.98, "novelty": 4.0}]
)
def test_seen_items_never_appear(setting: dict[str, float]) -> None:
    rng = np.random.default_rng(3)
    seen = rng.random((20, 150)) < 0.7
    some = standardise(rng.normal(size=(20, 150)).astype(np.float32), seen)
    lists = rerank(some, many(150), setting, 10)
    assert not np.take_along_axis(seen, lists, 1).any()


@pytest.mark.parametrize("diversity", [0.0, 0.5])
def test_no_item_comes_twice_even_where_nearly_all_are_seen(diversity: float) -> None:
    seen = np.array([[True, False, True, False]])
    lists = rerank(standardise(scores([4, 3, 2, 1]), seen), ITEMS, {"diversity": diversity}, 4)
    assert lists[0, :2].tolist() == [1, 3]
    assert sorted(lists[0].tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("diversity", [0.0, 0.5])
def test_a_list_is_no_longer_than_the_catalogue(diversity: float) -> None:
    lists = rerank(scores([4, 3, 2, 1]), ITEMS, {"diversity": diversity}, 10)
    assert sorted(lists[0].tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("setting", [{}, {"diversity": 1e-6}])
def test_ties_go_to_the_lower_index(setting: dict[str, float]) -> None:
    tied = np.zeros((2, 500), np.float32)
    tied[1, 3::7] = 1.0
    items = replace(many(500), features=np.eye(500, dtype=np.float32))  # all equally far apart
    assert rerank(tied, items, setting, 10).tolist() == [list(range(10)), list(range(3, 73, 7))]


def test_standardised_scores_have_mean_0_and_deviation_1_over_the_unseen() -> None:
    seen = np.array([[False, True, False, False], [False, False, False, False]])
    # Unseen 1, 3 and 5 have mean 3 and variance (4 + 0 + 4) / 3; 2, 2, 4, 4 have mean 3 and variance 1.
    side = 2 / np.sqrt(8 / 3)
    expected = np.array([[-side, -np.inf, 0, side], [-1, -1, 1, 1]])
    assert standardise(scores([1, 99, 3, 5], [2, 2, 4, 4]), seen) == pytest.approx(expected)


def test_equal_scores_standardise_to_finite_numbers() -> None:
    assert np.isfinite(standardise(scores([7, 7, 7]), np.zeros((1, 3), bool))).all()


def test_a_blend_adds_each_component_times_its_weight() -> None:
    parts = {"model": scores([1, 2]), "ease": scores([10, 0]), "sasrec": scores([0, 100])}
    assert blend(parts, {"ease": 0.5, "sasrec": 0.25, "diversity": 0.9}).tolist() == [[6, 27]]


def test_a_blend_without_weights_is_the_model_alone() -> None:
    parts = {"model": scores([1, -np.inf]), "ease": scores([10, -np.inf])}
    assert blend(parts, {}).tolist() == [[1, -np.inf]]
    assert parts["model"].tolist() == [[1, -np.inf]]
