"""Serving genes at work: scores are blended, then lists are re-ranked for diversity, novelty and credibility.

A setting costs one pass over cached scores and no training, so one checkpoint becomes a curve of entries.

A list is worth its expected gain plus what its diversity, novelty and credibility are worth by the setting's weights.
Probabilities make these comparable from user to user: whoever's next item is nearly certain keeps it, and lists change
where that costs least. (Trading relevance and diversity by expected utility: Agrawal et al., WSDM 2009; one weight for
all users solves the trade-off of their averages, by Lagrange's multipliers.)
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pareto_search.candidate import Genes
from pareto_search.recsys.baselines import Scorer
from pareto_search.recsys.split import Sequences
from pareto_search.recsys.statistics import ItemStatistics

Floats = NDArray[np.float32]

Shown = tuple[NDArray[np.int32], Floats | None]
"""Lists `(m, k)`, and how probable it is of each item that it is the next one, where that is asked for."""

WEIGHTS = ("diversity", "novelty", "credibility")
"""The serving genes that choose otherwise than by scores alone."""
HIDDEN = -1e9
"""What an item is worth that must not be shown: less than all else, but more than one that is in the list already."""
POOL = 200
"""How many items per user the greedy choice has before it."""
NUMBERS = 2**24
"""How many features of theirs it has before it at once: for some users after others, so that memory does not grow."""


class Reranker:
    """Makes the lists of some users under many settings."""

    def __init__(self, items: ItemStatistics) -> None:
        self._items = items

    def take(self, scores: Mapping[str, Floats]) -> Mapping[str, Any]:
        """The scores of each model, as `blend` takes them, where they are needed."""
        return scores

    def shown(
        self, scores: Mapping[str, Any], settings: Sequence[Genes], k: int, *, sure: bool = False
    ) -> Iterator[Shown]:
        """What each setting shows to the users.

        Args:
            scores: what `take` gave.
            sure: whether probabilities are asked for.
        """
        for setting in settings:
            blended = blend(scores, setting)
            lists = rerank(blended, self._items, setting, k)
            yield lists, probabilities(blended, lists, setting) if sure else None


def relevance(scorer: Scorer, history: Sequences, seen: NDArray[np.bool_]) -> Floats:
    """Scores `(m, n)` on a scale that can be blended, and -inf for the seen items.

    Those of a model of probabilities are logits already; those of another are standardised per user.
    """
    scores = scorer.scores(history)
    return np.where(seen, np.float32(-np.inf), scores) if scorer.logits else standardise(scores, seen)


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


def blend(scores: Mapping[str, Floats], setting: Genes) -> Floats:
    """The model's scores plus those of each component, times its weight in the setting.

    Args:
        scores: of `relevance`, of the `model` and each component, `(m, n)`.
    """
    total = scores["model"]
    for name, component in scores.items():
        weight = np.float32(setting.get(name, 0.0))
        if name != "model" and weight:
            total = total + weight * component
    return total


def rerank(scores: Floats, items: ItemStatistics, setting: Genes, k: int) -> NDArray[np.int32]:
    """The k items to show to each user, the likeliest first.

    Args:
        scores: `(m, n)` logits, -inf for items that must not be shown.

    Returns:
        `(m, k)` item indices; only n where the catalogue is smaller than k.
    """
    return arrange(scores, choose(scores, items, setting, k))


def choose(scores: Floats, items: ItemStatistics, setting: Genes, k: int) -> NDArray[np.int32]:
    """The k items `(m, k)` that are worth most together, in the order of a greedy choice: each list begins with the
    shorter ones.

    An item's worth at place r is p / log2(r + 1), what it adds to the expected DCG if it is shown there, plus `novelty`
    and `credibility` times its own, plus `diversity` times its distance from each item that was chosen before.
    p is the softmax of `sharpness` times the scores. Without these three weights the order is that of the scores.
    """
    k = min(k, scores.shape[1])
    diversity, novelty, credibility = (np.float32(setting.get(name, 0.0)) for name in WEIGHTS)
    if diversity == novelty == credibility == 0:
        return _best(scores, k)
    bonus = novelty * items.novelty
    if items.credibility is not None:
        bonus = bonus + credibility * items.credibility
    hit = _softmax(np.float32(setting.get("sharpness", 1.0)) * scores)
    worth = hit + bonus
    np.copyto(worth, -np.inf, where=np.isneginf(scores))
    pool, worth = _pool(worth, max(POOL, k))
    hit = np.take_along_axis(hit, pool, 1)
    other = np.where(np.isfinite(worth), bonus[pool], np.float32(HIDDEN))
    other[pool < 0] = -np.inf
    users = max(1, NUMBERS // (pool.shape[1] * items.features.shape[1]))
    some = (slice(start, start + users) for start in range(0, len(pool), users))
    parts = [_greedy(pool[s], hit[s], other[s], items.features, diversity=diversity, k=k) for s in some]
    return np.concatenate([np.empty((0, k), np.int32), *parts])


def _greedy(
    pool: NDArray[np.int32], hit: Floats, other: Floats, features: Floats, *, diversity: np.float32, k: int
) -> NDArray[np.int32]:
    """The items `(m, k)` that are worth most together.

    Args:
        pool: `(m, p)` item indices.
        hit, other: `(m, p)` how probable each is, and what else it is worth; the latter is overwritten.
        features: of all items.
    """
    own = features[pool]
    rows = np.arange(len(pool))
    chosen = np.empty((len(pool), k), np.int32)
    for place in range(k):
        best = (hit / np.float32(np.log2(place + 2)) + other).argmax(1)
        chosen[:, place] = pool[rows, best]
        if diversity:  # that all are further from it by 1 changes nothing
            other -= diversity * (own @ own[rows, best][:, :, None])[:, :, 0]
        other[rows, best] = -np.inf
    return chosen


def probabilities(scores: Floats, lists: NDArray[np.int32], setting: Genes) -> Floats:
    """How probable it is of each listed item `(m, k)` that it is the next one, by scores `(m, n)` as for `choose`."""
    hit = _softmax(np.float32(setting.get("sharpness", 1.0)) * scores)
    return np.take_along_axis(hit, lists, 1)


def arrange(scores: Floats, chosen: NDArray[np.int32]) -> NDArray[np.int32]:
    """Lists `(m, k)` with their likeliest items first: their diversity, novelty and credibility have no order."""
    order = np.argsort(-np.take_along_axis(scores, chosen, 1), axis=1, kind="stable")
    return np.take_along_axis(chosen, order, 1)


def _softmax(logits: Floats) -> Floats:
    """Overwrites the logits with their softmax."""
    # Of a user to whom nothing can be shown, the largest is -inf.
    logits -= np.maximum(logits.max(1, keepdims=True), np.float32(-1e9))
    np.exp(logits, out=logits)
    logits /= np.maximum(logits.sum(1, keepdims=True), np.float32(1e-30))
    return logits


def _best(scores: Floats, size: int) -> NDArray[np.int32]:
    """The best items of each row in order; ties go to the lower index."""
    pool, values = _pool(scores, size)
    order = np.argsort(-values, axis=1, kind="stable")[:, : min(size, scores.shape[1])]
    return np.take_along_axis(pool, order, 1)


def _pool(scores: Floats, size: int) -> tuple[NDArray[np.int32], Floats]:
    """The best items of each row and some more, by their index, with their scores; -1 with -inf fills up short rows.

    Whatever reaches the size-th largest of some blocks' maxima is taken: little more than is wanted, and no row is
    partitioned as a whole. Where too few may be shown, the first of those that may not make up for them.
    """
    m, n = scores.shape
    size = min(size, n)
    blocks = min(4 * size, n)
    length = n // blocks
    maxima = scores[:, : length * blocks].reshape(m, length, blocks).max(1)
    least = np.partition(maxima, -size, axis=1)[:, -size, None]
    reached = np.flatnonzero(scores >= np.maximum(least, np.finfo(np.float32).min))
    row, item = np.divmod(reached, n)
    counts = np.bincount(row, minlength=m)
    place = np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
    pool = np.full((m, counts.max(initial=size)), -1, np.int32)
    values = np.full(pool.shape, -np.inf, np.float32)
    pool[row, place], values[row, place] = item, scores[row, item]
    for short in np.flatnonzero(counts < size):
        pool[short, counts[short] : size] = np.flatnonzero(np.isneginf(scores[short]))[: size - counts[short]]
    return pool, values
