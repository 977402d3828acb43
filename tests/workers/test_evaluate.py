"""From files to scorers, and from scorers to scores."""

from typing import Any

import numpy as np
import pytest
import torch

from pareto_search.errors import CheckpointError
from pareto_search.recsys.baselines import ItemSimilarity, Popularity, ease
from pareto_search.recsys.dataset import Dataset
from pareto_search.recsys.split import Split
from pareto_search.recsys.statistics import ItemStatistics, category_features
from pareto_search.workers.encoder import Encoder
from pareto_search.workers.evaluate import (
    blended,
    component,
    score,
    scorer,
    scorer_with,
    similarity_files,
    vector_files,
)
from pareto_search.workers.lora import LoraShape, attached
from pareto_search.workers.recommender import Recommender, Shape, TowerScorer


def recommender(text_width: int) -> Recommender:
    torch.manual_seed(0)
    return Recommender(Shape(20, 8, 6, "attention", text_width, item_embeddings=True)).eval()


def test_ease_comes_back_from_its_files(encoder: Encoder, toy_split: Split) -> None:
    weights = ease(toy_split.train, 20).weights
    again = component(similarity_files(weights))
    assert isinstance(again, ItemSimilarity)
    assert np.array_equal(again.weights, weights)


def test_a_model_on_ids_alone_needs_no_text(encoder: Encoder, toy_split: Split) -> None:
    model = recommender(text_width=0)
    history = toy_split.validation.history
    expected = TowerScorer.of(model, None).scores(history)
    assert np.array_equal(component(model.files({})).scores(history), expected)


def test_without_an_adapter_a_model_reads_frozen_text_and_with_one_adapted_text(
    encoder: Encoder, toy_split: Split
) -> None:
    model, history = recommender(text_width=32), toy_split.validation.history
    with attached(encoder, LoraShape(4, 16.0, 0.0, "query_value", 2)) as adapter:
        with torch.no_grad():
            for _, module in adapter.named():
                module.B.normal_(std=0.3)
        text, files = encoder.catalogue(2), adapter.files("tiny", None)
    frozen, adapted = scorer(model.files({}), encoder), scorer(files | model.files({}), encoder)
    assert np.array_equal(frozen.scores(history), TowerScorer.of(model, encoder.frozen).scores(history))
    assert np.array_equal(adapted.scores(history), TowerScorer.of(model, text).scores(history))
    assert not np.allclose(frozen.scores(history), adapted.scores(history), atol=1e-4)


def test_a_checkpoint_whose_item_vectors_are_known_scores_alike_without_the_base_model(
    encoder: Encoder, toy_split: Split
) -> None:
    with attached(encoder, LoraShape(4, 16.0, 0.0, "query_value", 2)) as adapter:
        with torch.no_grad():
            for _, module in adapter.named():
                module.B.normal_(std=0.3)
        files = adapter.files("tiny", None)
    files |= recommender(text_width=32).files({"training": {"c0001": 5.0}})
    expected = scorer(files, encoder)
    found = scorer_with(files, vector_files(expected))
    history = toy_split.validation.history
    assert np.array_equal(found.scores(history), expected.scores(history))
    assert (found.parameters, found.training) == (expected.parameters, {"c0001": 5.0})


def test_a_checkpoint_of_a_base_of_another_width_is_refused(encoder: Encoder) -> None:
    with pytest.raises(CheckpointError, match=r"reads text vectors of width 48, but base model .* has 32"):
        scorer(recommender(text_width=48).files({}), encoder)


def test_scores_have_intervals_where_a_bootstrap_over_users_is_unbiased(toy: Dataset, toy_split: Split) -> None:
    assert toy.categories is not None
    items = ItemStatistics.of(toy_split.train, 20, category_features(toy.categories))
    settings: list[dict[str, Any]] = [{}, {"novelty": 4.0}]
    metrics = ("hr@5", "novelty@5", "coverage@5", "gini@5")
    alone, novel = score(toy_split.test, items, {"model": Popularity(items.users)}, settings, metrics)
    assert [set(alone[name]) for name in metrics] == [{"mean", "low", "high"}] * 2 + [{"mean"}] * 2
    assert alone["hr@5"]["low"] <= alone["hr@5"]["mean"] <= alone["hr@5"]["high"]
    assert novel["novelty@5"]["mean"] > alone["novelty@5"]["mean"]


def test_only_components_with_a_weight_in_some_setting_are_blended() -> None:
    components = {"ease": 1, "sasrec": 2}
    assert blended([{}, {"ease": 0.0, "diversity": 0.5}], components) == {}
    assert blended([{"ease": 0.0}, {"ease": 0.1, "sasrec": 0.0}], components) == {"ease": 1}
