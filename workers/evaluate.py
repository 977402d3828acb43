"""From a checkpoint's files to a scorer, and from scorers to the scores of entries."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save

from pareto_search.candidate import Genes
from pareto_search.errors import CheckpointError
from pareto_search.executor import Files
from pareto_search.fusion import members_of, numbered, weights_of
from pareto_search.recsys.baselines import DecayedMean, ItemSimilarity, Scorer
from pareto_search.recsys.ensemble import Ensemble
from pareto_search.recsys.metrics import interval
from pareto_search.recsys.ranking import Ranking
from pareto_search.recsys.split import Part
from pareto_search.recsys.statistics import ItemStatistics
from pareto_search.workers.encoder import Encoder
from pareto_search.workers.lora import loaded, parts
from pareto_search.workers.recommender import Recommender, TowerScorer

Scores = dict[str, dict[str, float]]
"""Metric -> mean and, where a bootstrap over users is unbiased, low and high of its 95 % interval."""

WEIGHTS, VECTORS = "weights.safetensors", "vectors.safetensors"
FEATURES = "features.safetensors"
"""The base model's text vectors where distances are measured by them, for whoever does not have that model."""
ITEM_VECTORS = "item_vectors.safetensors"


def scorer(files: Files, encoder: Encoder) -> Scorer:
    """The scorer of a checkpoint, of which a fused one has several.

    Raises:
        CheckpointError: the files do not fit the base model.
    """
    return _scorer(files, lambda own: tower_scorer(own, encoder))


def scorer_with(files: Files, vectors: Files) -> Scorer:
    """The scorer of a checkpoint whose item vectors are known, on a CPU and without the base model.

    Args:
        vectors: as `vector_files` gives them.

    Raises:
        CheckpointError: the files do not fit each other.
    """
    return _scorer({**files, **vectors}, _tower_scorer_with)


def vector_files(model: Scorer) -> dict[str, bytes]:
    """The files of the item vectors `(towers, n_items, d)` of a checkpoint's scorer."""
    if isinstance(model, Ensemble):
        return numbered(map(vector_files, model.members))
    assert isinstance(model, TowerScorer), "what checkpoints are"
    return {ITEM_VECTORS: save({"vectors": torch.stack(list(model.vectors)).cpu().numpy()})}


def _scorer(files: Files, of: Callable[[Files], TowerScorer]) -> Scorer:
    weights = weights_of(files)
    if not weights:
        return of(files)
    members = members_of(files)
    return Ensemble([of(members[name]) for name in weights], list(weights.values()))


def tower_scorer(files: Files, encoder: Encoder) -> TowerScorer:
    """The scorer of a trained model: with an adapter over adapted text, without one over frozen text.

    Raises:
        CheckpointError: the files do not fit the base model.
    """
    model = Recommender.loaded(files).to(encoder.device)
    if model.shape.text_width != encoder.width:
        raise CheckpointError(
            f"the checkpoint reads text vectors of width {model.shape.text_width}, but base model '{encoder.base.id}' "
            f"has {encoder.width}; give it the base model that it was trained on"
        )
    if "adapter_model.safetensors" not in files:
        return TowerScorer.of(model, encoder.frozen.to(encoder.device))
    with loaded(encoder, files) as adapter:
        size = sum(weights.numel() for weights in adapter.weights())
        return TowerScorer.of(model, encoder.catalogue(adapter.shape.layers), size, training_of(files))


def _tower_scorer_with(files: Files) -> TowerScorer:
    vectors = torch.from_numpy(load(files[ITEM_VECTORS])["vectors"])
    size = sum(tensor.numel() for tensor in parts(files)[1].values())
    return TowerScorer(Recommender.loaded(files), list(vectors), size, training_of(files))


def training_of(files: Files) -> dict[str, float]:
    """The operations of the fine-tunings that a checkpoint's weights come from, by candidate."""
    found: dict[str, float] = json.loads(files["recommender.json"]).get("training", {})
    return found


def component(files: Files, device: str = "cpu") -> Scorer:
    """The scorer of a component that entries blend in: EASE's weights, whitened text vectors, or SASRec."""
    if VECTORS in files:
        return DecayedMean(load(files[VECTORS])["vectors"].astype(np.float32))
    if WEIGHTS in files:
        return similarity(files)
    model = Recommender.loaded(files).to(device)
    assert not model.shape.text_width, "SASRec reads IDs alone"
    return TowerScorer.of(model, None)


def text_files(vectors: NDArray[np.float32]) -> dict[str, bytes]:
    """The files of a decayed mean over text vectors `(n_items, t)`."""
    return {VECTORS: save({"vectors": np.ascontiguousarray(vectors, np.float16)})}


def feature_files(vectors: NDArray[np.float32]) -> dict[str, bytes]:
    """The file of the base model's text vectors `(n_items, t)`."""
    return {FEATURES: save({"features": vectors})}


def similarity(files: Files) -> ItemSimilarity:
    """An item-item model from its files."""
    return ItemSimilarity(load(files[WEIGHTS])["weights"])


def similarity_files(weights: NDArray[np.float32]) -> dict[str, bytes]:
    """The files of an item-item model with weights `(n_items, n_items)`."""
    return {WEIGHTS: save({"weights": np.ascontiguousarray(weights)})}


def score(
    part: Part, items: ItemStatistics, scorers: Mapping[str, Scorer], settings: Sequence[Genes], metrics: Sequence[str]
) -> list[Scores]:
    """The metrics of entries that share a model, with bootstrap intervals over users."""
    results: list[Scores] = []
    ranking = Ranking(part, items, scorers)
    for setting, tally in zip(settings, ranking.tallies(settings, metrics), strict=True):
        values = tally.values() | ranking.costs(setting, metrics)
        scores: Scores = {name: {"mean": value} for name, value in values.items()}
        for name, per_user in tally.per_user().items():
            low, high = interval(per_user)
            scores[name] |= {"low": low, "high": high}
        results.append(scores)
    return results


def blended(settings: Sequence[Genes], components: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the components that any of the settings gives a weight."""
    return {name: c for name, c in components.items() if any(float(s.get(name, 0.0)) for s in settings)}
