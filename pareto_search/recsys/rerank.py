"""Serving genes at work: scores are blended, then lists are re-ranked for diversity, novelty and credibility.

A setting costs one pass over cached scores and no training, so one checkpoint becomes a curve of entries.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pareto_search.candidate import Genes
from pareto_search.recsys.statistics import ItemStatistics

Floats = NDArray[np.float32]

POOL = 100
"""How many of the best items per user the greedy re-ranking chooses from."""


def standardise(scores: Floats, seen: NDArray[np.bool_]) -> Floats:
    """Scores `(m, n)` with mean 0 and deviation 1 per user over the unseen items, and -inf for the seen ones."""
    count = np.maximum(seen.shape[1] - np.count_nonzero(seen, axis=1, keepdims=True), 1)
    known = np.where(seen, np.float32(0.0), scores)
    mean = known.sum(1, keepdims=True) / count
    deviation = np.sqrt(np.maximum(np.square(known).sum(1, keepdims=True) / count - mean**2, 1e-12))
    known -= mean.astype(np.float32)
    known /= deviation.astype(np.float32)
    known[seen] = -np.inf
    return known


def blend(standardised: Mapping[str, Floats], setting: Genes) -> Floats:
    """The model's standardised scores plus those of each component, times its weight in the setting.

    Args:
        standardised: `model` and the components, each `(m, n)`.
    """
    total = standardised["model"]
    for name, scores in standardised.items():
        weight = np.float32(setting.get(name, 0.0))
        if name != "model" and weight:
            total = total + weight * scores
    return total


def rerank(scores: Floats, items: ItemStatistics, setting: Genes, k: int) -> NDArray[np.int32]:
    """The k items to show each user, best first.

    `novelty` and `credibility` add their weight times the item's standardised value to the score. Of the best `POOL`
    items by that sum, scaled to 0..1 per user, items are taken greedily by (1 - λ)·score + λ·(mean distance from those
    taken), λ being `diversity`: maximal marginal relevance (Carbonell & Goldstein, SIGIR 1998) with the mean in place
    of the nearest item, because ILD is a mean.

    Args:
        scores: `(m, n)`, -inf for items that must not be shown.

    Returns:
        `(m, k)` item indices; only n where the catalogue is smaller than k.
    """
    k = min(k, scores.shape[1])
    for name, values in (("novelty", items.novelty), ("credibility", items.credibility)):
        weight = float(setting.get(name, 0.0))
        if weight and values is not None:
            scores = scores + np.float32(weight) * _standard(values)
    diversity = np.float32(setting.get("diversity", 0.0))
    pool, relevance = _best(scores, k if diversity == 0 else max(POOL, k))
    return pool[:, :k] if diversity == 0 else _diversify(pool, relevance, items.features, diversity, k)


def _standard(values: Floats) -> Floats:
    return (values - values.mean()) / max(float(values.std()), 1e-9)


def _best(scores: Floats, size: int) -> tuple[NDArray[np.int32], Floats]:
    """The best items of each row in order, with their scores; ties go to the lower index.

    Whatever reaches the size-th largest of some blocks' maxima is sorted: little more than is wanted, and no row is
    partitioned as a whole.
    """
    m, n = scores.shape
    size = min(size, n)
    blocks = min(4 * size, n)
    length = n // blocks
    maxima = scores[:, : length * blocks].reshape(m, length, blocks).max(1)
    reached = np.flatnonzero(scores >= np.partition(maxima, -size, axis=1)[:, -size, None])
    row, item = np.divmod(reached, n)
    counts = np.bincount(row, minlength=m)
    place = np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
    pool = np.zeros((m, counts.max(initial=size)), np.int32)
    relevance = np.full(pool.shape, -np.inf, np.float32)
    pool[row, place], relevance[row, place] = item, scores[row, item]
    order = np.argsort(-relevance, axis=1, kind="stable")[:, :size]
    return np.take_along_axis(pool, order, 1), np.take_along_axis(relevance, order, 1)


def _diversify(
    pool: NDArray[np.int32], relevance: Floats, features: Floats, diversity: np.float32, k: int
) -> NDArray[np.int32]:
    finite = np.isfinite(relevance)
    low = np.where(finite, relevance, np.inf).min(1, keepdims=True)
    span = np.maximum(relevance[:, :1] - low, 1e-9)
    # What must not be shown comes after all else, but before what is in the list already.
    gain = np.where(finite, (1 - diversity) * (relevance - low) / span, -1e9).astype(np.float32)
    pooled = features[pool]
    rows = np.arange(len(pool))
    lists = np.empty((len(pool), k), np.int32)
    similar = np.zeros_like(gain)
    for place in range(k):
        value = gain - diversity * similar / np.float32(max(place, 1))
        taken = value.argmax(1)
        lists[:, place] = pool[rows, taken]
        gain[rows, taken] = -np.inf
        similar += (pooled @ pooled[rows, taken][:, :, None])[:, :, 0]
    return lists
