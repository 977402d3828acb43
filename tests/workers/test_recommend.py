"""Reasons: what each item of a history adds to a score."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pareto_search.entry import of_run
from pareto_search.errors import CheckpointError
from pareto_search.recsys.baselines import ItemSimilarity
from pareto_search.recsys.dataset import Dataset
from pareto_search.workers.base import Base
from pareto_search.workers.recommend import History, Serving, sequences
from pareto_search.workers.recommender import Recommender, Shape, TowerScorer
from pareto_search.workers.workload import TowerKind

CHOSEN = np.array([3, 11, 0], np.int32)
NO_GROUPS = np.zeros(0, np.int32)
SEEN = History.timed(np.array([5, 9, 2, 14, 5, 7, 19, 8], np.int32), [0, 0, 5, 60, 61, 3000, 3001, 9000], NO_GROUPS)
WINDOW = 6


@pytest.fixture
def serving(toy_run: Path, toy: Dataset) -> Serving:
    return Serving(of_run(toy_run, "c0000-s00"), toy)


def test_the_base_model_may_have_moved_but_has_to_be_the_same(
    serving: Serving, toy: Dataset, tiny_base: Base, tmp_path: Path
) -> None:
    for name in ("moved", "changed"):
        shutil.copytree(tiny_base.folder, tmp_path / name)
    notes = {**serving.entry.notes, "base": {**serving.entry.notes["base"], "id": str(tmp_path / "gone")}}
    files = {**serving.entry.files, "recommender.json": json.dumps(notes).encode()}
    entry = replace(serving.entry, files=files)
    moved = Serving(entry, toy, base=str(tmp_path / "moved"))
    assert moved.evaluate("test") == serving.evaluate("test")
    weights = tmp_path / "changed" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not the one that c0000-s00 was trained on"):
        Serving(entry, toy, base=str(tmp_path / "changed"))


def stirred(tower: TowerKind, text: torch.Tensor) -> TowerScorer:
    torch.manual_seed(0)
    shape = Shape(20, 8, WINDOW, tower, text.shape[1], item_embeddings=True, gaps=True, towers=2)
    model = Recommender(shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
        for number in range(2):
            model.towers[number].temperature.fill_(0.8 + number)
    return TowerScorer.of(model, text)


def test_reasons_of_a_decayed_mean_sum_to_the_score(serving: Serving) -> None:
    serving.scorers = {"model": stirred("decayed_mean", serving.encoder.frozen)}
    added = serving.contributions(SEEN, CHOSEN)
    model = serving.scorers["model"]
    assert isinstance(model, TowerScorer)
    scores = model.scores(sequences([SEEN]))[0, CHOSEN]
    first, second = (model.model.towers[number].item_bias for number in range(2))
    bias = ((first + second) / 2).detach().numpy()[CHOSEN]
    assert added.sum(1) + bias == pytest.approx(scores, abs=1e-5)
    assert added.shape == (3, 8)
    assert not added[:, :2].any()  # before the window
    assert np.abs(added[:, 2:]).min() > 0


def test_reasons_of_the_attention_tower_are_what_the_score_loses_without_the_item(serving: Serving) -> None:
    model = stirred("attention", serving.encoder.frozen)
    serving.scorers = {"model": model}
    added = serving.contributions(SEEN, CHOSEN)
    full = model.scores(sequences([SEEN]))[0, CHOSEN]
    # Gaps are 0 and then 0, 5, 55, 1, 2939, 1, 5999 units of time, in powers of two, rounded up.
    assert SEEN.gaps.tolist() == [0, 1, 4, 7, 2, 13, 2, 14]
    without = {
        2: [0, 1, 7, 2, 13, 2, 14],
        3: [0, 1, 4, 7, 13, 2, 14],
        4: [0, 1, 4, 7, 13, 2, 14],
        5: [0, 1, 4, 7, 2, 13, 14],
        6: [0, 1, 4, 7, 2, 13, 14],
        7: [0, 1, 4, 7, 2, 13, 2],
    }
    without = {place: np.array(kinds, np.uint8) for place, kinds in without.items()}
    for place in range(8 - WINDOW, 8):
        others = np.arange(8) != place
        left = model.scores(sequences([History(SEEN.items[others], without[place], NO_GROUPS)]))[0, CHOSEN]
        assert added[:, place] == pytest.approx(full - left, abs=1e-4)
    assert not added[:, :2].any()


def test_reasons_are_found_tower_by_tower_where_each_reads_ties_in_another_order(serving: Serving) -> None:
    model = stirred("attention", serving.encoder.frozen)
    serving.scorers = {"model": model}
    # One moment lies across the border of the window, and another one is the last.
    seen = History.timed(np.array([5, 9, 2, 14, 6, 7, 19, 8], np.int32), [0, 0, 0, 0, 61, 3000, 3000, 3000], NO_GROUPS)
    assert seen.gaps.tolist() == [0, 1, 1, 1, 7, 13, 1, 1]
    orders = [[0, 1, 2, 3, 4, 5, 6, 7], [2, 3, 0, 1, 4, 6, 7, 5]]
    expected = np.zeros((3, 8))
    for number, order in enumerate(orders):
        single = Recommender(replace(model.model.shape, towers=1)).eval()
        single.towers[0].load_state_dict(model.model.towers[number].state_dict())
        alone = TowerScorer.of(single, serving.encoder.frozen)
        read = History(seen.items[order], seen.gaps, NO_GROUPS)
        full = alone.scores(sequences([read]))[0, CHOSEN]
        for place in range(8 - WINDOW, 8):
            expected[:, order[place]] += (full - alone.scores(sequences([read.without(place)]))[0, CHOSEN]) / 2
    added = serving.contributions(seen, CHOSEN)
    assert added == pytest.approx(expected, abs=1e-4)
    assert np.abs(added).min() > 0  # of each item of the moment at the border, one tower or the other reads it


def test_without_its_first_item_a_history_has_no_first_gap() -> None:
    assert SEEN.without(0).gaps.tolist() == [0, 4, 7, 2, 13, 2, 14]


def test_the_strongest_reasons_are_told(serving: Serving, toy: Dataset, monkeypatch: Any) -> None:
    added = np.array([[0.1, 0.3, -0.5, 0.2, 0, 0, 0, 0], [-1.0, -2, -3, -4, -5, -6, -7, -8], [0, 0, 0, 0, 0, 0, 0, 1]])
    monkeypatch.setattr(serving, "contributions", lambda *_: added)
    titles = [toy.titles[i] for i in SEEN.items]
    assert serving.because(SEEN, CHOSEN) == [(titles[1], titles[3]), (), (titles[7],)]


def test_reasons_of_what_is_blended_in_add_up_too(serving: Serving) -> None:
    model = stirred("decayed_mean", serving.encoder.frozen)
    serving.scorers = {"model": model}
    alone = serving.contributions(SEEN, CHOSEN)
    ease = ItemSimilarity(np.random.default_rng(0).normal(size=(20, 20)).astype(np.float32))
    serving.scorers = {"model": model, "ease": ease, "sasrec": model}
    serving.entry = replace(serving.entry, serving={"ease": 0.3, "sasrec": 0.5})
    left = np.setdiff1d(np.arange(20), SEEN.items)
    scores = ease.scores(sequences([SEEN]))[0]
    by_ease = (serving.contributions(SEEN, CHOSEN) - 1.5 * alone) * scores[left].std() / 0.3
    assert by_ease.sum(1) == pytest.approx(scores[CHOSEN], abs=1e-5)
    # Item 5 was there twice and counts once.
    expected = ease.weights[np.ix_(SEEN.items, CHOSEN)].T
    expected[:, 0] = 0
    assert by_ease == pytest.approx(expected, abs=1e-5)
