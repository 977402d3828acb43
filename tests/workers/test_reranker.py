"""Re-ranking on a device against the one in NumPy."""

from dataclasses import replace

import numpy as np
import pytest
from items import categorised

from pareto_search.recsys import ranking
from pareto_search.recsys.ranking import Ranking
from pareto_search.recsys.rerank import Reranker
from pareto_search.recsys.split import Part, Sequences
from pareto_search.workers import reranker as module
from pareto_search.workers.reranker import DeviceReranker

USERS, N_ITEMS = 30, 150  # fewer than the pool, of which both then have all
SETTINGS = [
    {},
    {"ease": 0.7, "text": 0.3, "sasrec": 1.1},
    {"diversity": 0.02, "sharpness": 1.5},
    {"novelty": 0.05, "credibility": 0.03, "ease": 0.2},
    {"diversity": 0.01, "novelty": 0.02, "credibility": 0.01, "sharpness": 0.6, "ease": 1.3},
    {"diversity": 50.0},
]


def scores(n_items: int) -> dict[str, np.ndarray]:
    """With items that must not be shown: nearly all to the first user, all to the second."""
    rng = np.random.default_rng(1)
    barred = rng.random((USERS, n_items)) < 0.1
    barred[0, 4:] = barred[1] = True
    return {
        name: np.where(barred, -np.inf, 3 * rng.normal(size=barred.shape)).astype(np.float32)
        for name in ("model", "ease", "text", "sasrec")
    }


@pytest.mark.parametrize("rated", [True, False])
@pytest.mark.parametrize("numbers", [1, 10**9])
def test_each_setting_shows_what_it_shows_alone(monkeypatch: pytest.MonkeyPatch, numbers: int, rated: bool) -> None:
    monkeypatch.setattr(module, "NUMBERS", numbers)
    some = categorised(N_ITEMS, rated)
    here, there = Reranker(some), DeviceReranker(some, "cpu")
    mine = list(here.shown(here.take(scores(N_ITEMS)), SETTINGS, 10, sure=True))
    theirs = list(there.shown(there.take(scores(N_ITEMS)), SETTINGS, 10, sure=True))
    assert len(theirs) == len(SETTINGS)
    for (ours, probable), (lists, sure) in zip(mine, theirs, strict=True):
        assert lists.dtype == np.int32
        shown = np.arange(USERS) > 1  # what must not be shown has no order
        assert lists[shown].tolist() == ours[shown].tolist()
        assert lists[0, :4].tolist() == ours[0, :4].tolist()
        assert all(len(set(row)) == 10 for row in lists.tolist())
        assert sure is not None
        assert probable is not None
        np.testing.assert_allclose(sure[shown], probable[shown], rtol=1e-4, atol=1e-7)
        assert not sure[1].any()


def test_of_a_large_catalogue_the_pool_is_the_same() -> None:
    some = categorised(3000)
    here, there = Reranker(some), DeviceReranker(some, "cpu")
    mine = here.shown(here.take(scores(3000)), SETTINGS, 10)
    theirs = there.shown(there.take(scores(3000)), SETTINGS, 10)
    for (ours, _), (lists, _) in zip(mine, theirs, strict=True):
        assert lists[2:].tolist() == ours[2:].tolist()


def test_a_list_is_no_longer_than_the_catalogue() -> None:
    there = DeviceReranker(categorised(6), "cpu")
    for lists, _ in there.shown(there.take(scores(6)), SETTINGS, 10):
        assert np.sort(lists[2:]).tolist() == [list(range(6))] * (USERS - 2)


@pytest.mark.parametrize("n_items", [150, 3000])
def test_of_equal_items_the_first_one_is_shown(n_items: int) -> None:
    rng = np.random.default_rng(2)
    levels = np.linspace(0.0, 1.0, max(20, n_items // 20), dtype=np.float32)  # twenty items of each
    some = replace(
        categorised(n_items),
        novelty=rng.permutation(np.resize(levels, n_items)),
        credibility=np.zeros(n_items, np.float32),
        features=np.eye(3, dtype=np.float32)[rng.integers(0, 3, n_items)],
    )
    equal = {"model": rng.integers(0, n_items // 10, (USERS, n_items)).astype(np.float32)}
    settings = [{}, {"novelty": 0.1}, {"novelty": 50.0}, {"novelty": 1.0, "diversity": 0.25}]
    here, there = Reranker(some), DeviceReranker(some, "cpu")
    mine, theirs = (r.shown(r.take(equal), settings, 10) for r in (here, there))
    for (ours, _), (lists, _) in zip(mine, theirs, strict=True):
        assert lists.tolist() == ours.tolist()


def test_a_ranking_has_the_same_values_with_either(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        logits, parameters = True, 1

        def __init__(self, seed: int) -> None:
            self._all = np.random.default_rng(seed).normal(size=(USERS, N_ITEMS)).astype(np.float32)

        def scores(self, history: Sequences) -> np.ndarray:
            return self._all[history.items[history.indptr[:-1]] % USERS]

    some, rng = categorised(N_ITEMS), np.random.default_rng(3)
    history = Sequences(np.arange(0, 5 * USERS + 1, 5), rng.permutation(5 * USERS).astype(np.int32) % N_ITEMS, None)
    targets = Sequences(np.arange(USERS + 1), rng.integers(0, N_ITEMS, USERS).astype(np.int32), None)
    scorers = {"model": Model(0), "ease": Model(1)}
    names = ["ndcg@10", "ild@10", "coverage@5", "ece@10"]
    for kept in (10**9, 0):  # whether a part's scores are kept
        monkeypatch.setattr(ranking, "KEPT", kept)
        here, there = (
            Ranking(Part(np.arange(USERS), history, targets), some, scorers, r)
            for r in (None, DeviceReranker(some, "cpu"))
        )
        for _ in range(2):
            for mine, theirs in zip(here.values(SETTINGS, names), there.values(SETTINGS, names), strict=True):
                assert theirs == pytest.approx(mine, abs=1e-6)
