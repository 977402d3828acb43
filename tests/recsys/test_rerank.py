"""Blending and re-ranking, by hand."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from items import categorised

from pareto_search.recsys import rerank as ranker
from pareto_search.recsys.rerank import blend, choose, relevance, rerank, standardise
from pareto_search.recsys.split import Sequences
from pareto_search.recsys.statistics import ItemStatistics

E = np.eye(3, dtype=np.float32)
# Items 0 and 1 are alike; 2 and 3 differ from all others.
FEATURES = E[[0, 0, 1, 2]]
NOVELTY = np.array([0.0, 0.2, 0.9, 0.5], np.float32)
CREDIBILITY = np.array([0.9, 0.1, 0.5, 0.5], np.float32)
ITEMS = ItemStatistics(np.array([8, 4, 1, 2]), NOVELTY, CREDIBILITY, FEATURES)


LIKELY = np.log([[0.4, 0.3, 0.2, 0.1]]).astype(np.float32)


def scores(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


def test_without_serving_genes_the_order_is_that_of_the_scores() -> None:
    assert rerank(scores([1, 4, 2, 3], [0, -1, 5, 2]), ITEMS, {}, 3).tolist() == [[1, 3, 2], [2, 3, 0]]


@pytest.mark.parametrize("n_items", [3, 10, 39, 41, 500])
def test_the_best_are_those_of_a_full_sort_with_unseen_items_first_and_ties_in_order(n_items: int) -> None:
    rng = np.random.default_rng(n_items)
    some = rng.integers(0, 20, (40, n_items)).astype(np.float32)
    some[rng.random(some.shape) < rng.random((40, 1))] = -np.inf  # of some rows little is left, or nothing
    expected = np.argsort(-some, axis=1, kind="stable")[:, :10]
    assert rerank(some, categorised(n_items), {}, 10).tolist() == expected.tolist()


def test_a_diversity_of_0_is_the_plain_order() -> None:
    rng = np.random.default_rng(1)
    some = rng.normal(size=(7, 300)).astype(np.float32)
    expected = np.argsort(-some, axis=1)[:, :10]
    assert rerank(some, categorised(300), {"diversity": 0.0}, 10).tolist() == expected.tolist()


def test_users_one_after_the_other_get_what_they_get_together(monkeypatch: pytest.MonkeyPatch) -> None:
    some = np.random.default_rng(1).normal(size=(7, 300)).astype(np.float32)
    setting = {"diversity": 0.01, "novelty": 0.02}
    together = rerank(some.copy(), categorised(300), setting, 10).tolist()
    assert together != rerank(some.copy(), categorised(300), {}, 10).tolist()
    monkeypatch.setattr(ranker, "NUMBERS", 2 * 300 * categorised(300).features.shape[1])  # two users or three
    assert rerank(some.copy(), categorised(300), setting, 10).tolist() == together
    assert rerank(some[:0], categorised(300), setting, 10).shape == (0, 10)


def test_greedy_choice_by_hand() -> None:
    # Item 0 comes first. At the second place, item 1 is worth .3 / log2(3) = .189, item 2 .2 / log2(3) + .09 · 1 = .216
    # and item 3 .153; at the third, item 1 is worth .3 / 2 + .09 · (0 + 1) = .24 and item 3 .1 / 2 + .09 · 2 = .23.
    setting = {"diversity": 0.09}
    assert choose(LIKELY, ITEMS, setting, 4).tolist() == [[0, 2, 1, 3]]
    assert choose(LIKELY, ITEMS, setting, 2).tolist() == [[0, 2]]
    assert rerank(LIKELY, ITEMS, setting, 3).tolist() == [[0, 1, 2]]


def test_with_more_diversity_the_item_like_the_first_comes_last() -> None:
    # With .11 it is .15 + .11 = .26 against .05 + .22 = .27 at the third place.
    assert choose(LIKELY, ITEMS, {"diversity": 0.11}, 4).tolist() == [[0, 2, 3, 1]]
    assert rerank(LIKELY, ITEMS, {"diversity": 0.11}, 3).tolist() == [[0, 2, 3]]


def test_novelty_and_credibility_add_their_worth() -> None:
    # At the first place .4, .34, .38, .2; at the second .229, .306, .163; at the third .19 and .15.
    assert choose(LIKELY, ITEMS, {"novelty": 0.2}, 4).tolist() == [[0, 2, 1, 3]]
    # With both .58, .36, .48, .3; then .249, .406, .263; then .21 and .25.
    assert choose(LIKELY, ITEMS, {"novelty": 0.2, "credibility": 0.2}, 4).tolist() == [[0, 2, 3, 1]]


def test_sharpness_makes_the_likely_likelier() -> None:
    # Items 1 and 2 are worth .213 and .234 at the second place. Squares of .4, .3, .2 and .1 in shares of their sum are
    # .533, .3, .133 and .033: now they are worth .213 and .192.
    assert choose(LIKELY, ITEMS, {"novelty": 0.12}, 2).tolist() == [[0, 2]]
    assert choose(LIKELY, ITEMS, {"novelty": 0.12, "sharpness": 2.0}, 2).tolist() == [[0, 1]]


def test_whoever_is_nearly_certain_keeps_the_item() -> None:
    certain = np.log([[0.01, 0.97, 0.01, 0.01], [0.24, 0.28, 0.24, 0.24]]).astype(np.float32)
    assert rerank(certain, ITEMS, {"novelty": 0.1}, 1).tolist() == [[1], [2]]


def test_a_data_set_without_ratings_is_reranked_as_if_credibility_were_0() -> None:
    unrated = ItemStatistics(ITEMS.users, NOVELTY, None, FEATURES)
    assert rerank(scores([4, 3, 2, 1]), unrated, {"credibility": 2.0}, 4).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("name", ["novelty", "credibility"])
def test_a_larger_weight_never_lowers_the_lists_mean(name: str) -> None:
    items = categorised(200)
    values = items.novelty if name == "novelty" else items.credibility
    assert values is not None
    some = np.random.default_rng(2).normal(size=(5, 200)).astype(np.float32)
    means = [values[rerank(some, items, {name: w}, 10)].mean(1) for w in (0.0, 0.001, 0.01, 0.1, 1.0)]
    assert (np.diff(means, axis=0) >= -1e-6).all()
    assert (means[-1] > means[0]).all()


@pytest.mark.parametrize(
    "setting", [{}, {"diversity": 0.03}, {"novelty": 0.3, "credibility": 0.3}, {"diversity": 0.03, "novelty": 0.3}]
)
def test_seen_items_never_appear(setting: dict[str, float]) -> None:
    rng = np.random.default_rng(3)
    seen = rng.random((20, 150)) < 0.7
    some = standardise(rng.normal(size=(20, 150)).astype(np.float32), seen)
    lists = rerank(some, categorised(150), setting, 10)
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


@pytest.mark.parametrize("diversity", [0.0, 0.1])
def test_what_may_not_be_shown_is_not_looked_at_where_little_may(
    monkeypatch: pytest.MonkeyPatch, diversity: float
) -> None:
    rng = np.random.default_rng(0)
    scores = np.full((3, 3000), -np.inf, np.float32)
    for row, count in enumerate((2, 30, 300)):
        scores[row, rng.permutation(3000)[:count]] = rng.normal(size=count)
    looked: list[int] = []
    whole = ranker._pool

    def pool(scores: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        found = whole(scores, size)
        looked.append(found[0].shape[1])
        return found

    monkeypatch.setattr(ranker, "_pool", pool)
    lists = choose(scores, categorised(3000), {"diversity": diversity}, 5)
    assert max(looked) < 400
    assert all(len(set(row)) == 5 for row in lists.tolist())
    shown = np.isfinite(np.take_along_axis(scores, lists, 1))
    assert shown.tolist() == [[True] * 2 + [False] * 3, [True] * 5, [True] * 5]


@pytest.mark.parametrize("setting", [{}, {"diversity": 1e-6}])
def test_ties_go_to_the_lower_index(setting: dict[str, float]) -> None:
    tied = np.zeros((2, 500), np.float32)
    tied[1, 3::7] = 1.0
    items = replace(categorised(500), features=np.eye(500, dtype=np.float32))  # all equally far apart
    assert rerank(tied, items, setting, 10).tolist() == [list(range(10)), list(range(3, 73, 7))]


def test_standardised_scores_have_mean_0_and_deviation_1_over_the_unseen() -> None:
    seen = np.array([[False, True, False, False], [False, False, False, False]])
    # Unseen 1, 3 and 5 have mean 3 and variance (4 + 0 + 4) / 3; 2, 2, 4, 4 have mean 3 and variance 1.
    side = 2 / np.sqrt(8 / 3)
    expected = np.array([[-side, -np.inf, 0, side], [-1, -1, 1, 1]])
    assert standardise(scores([1, 99, 3, 5], [2, 2, 4, 4]), seen) == pytest.approx(expected)


@dataclass(frozen=True)
class Known:
    logits: bool

    def scores(self, history: Sequences) -> np.ndarray:
        return scores([1, 99, 3, 5])


def test_logits_are_kept_and_other_scores_are_standardised() -> None:
    nobody = Sequences(np.array([0, 0]), np.empty(0, np.int32), None)
    seen = np.array([[False, True, False, False]])
    assert relevance(Known(logits=True), nobody, seen).tolist() == [[1, -np.inf, 3, 5]]
    assert np.array_equal(relevance(Known(logits=False), nobody, seen), standardise(scores([1, 99, 3, 5]), seen))


def test_equal_scores_standardise_to_finite_numbers() -> None:
    assert np.isfinite(standardise(scores([7, 7, 7]), np.zeros((1, 3), bool))).all()


def test_a_blend_adds_each_component_times_its_weight() -> None:
    parts = {"model": scores([1, 2]), "ease": scores([10, 0]), "sasrec": scores([0, 100])}
    assert blend(parts, {"ease": 0.5, "sasrec": 0.25, "diversity": 0.9}).tolist() == [[6, 27]]


def test_a_blend_without_weights_is_the_model_alone() -> None:
    parts = {"model": scores([1, -np.inf]), "ease": scores([10, -np.inf])}
    assert blend(parts, {}).tolist() == [[1, -np.inf]]
    assert parts["model"].tolist() == [[1, -np.inf]]
