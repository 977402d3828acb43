"""What the training part says of each item: popularity, novelty, credibility, and fixed features for distances."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pareto_search.recsys.split import Sequences

Floats = NDArray[np.float32]

HEAD = 0.8


@dataclass(frozen=True)
class ItemStatistics:
    """Statistics of the training part, one row an item.

    Attributes:
        users: `(n_items,)` how many users interacted with the item.
        novelty: `(n_items,)` self-information -log2(n_i / users), n_i >= 1, divided by its largest value log2(users);
            users are those with any training interaction.
        credibility: `(n_items,)` Bayesian average rating scaled to 0..1; None where the data set has no ratings.
        features: `(n_items, f)` rows of unit length (or zero), which training cannot change.
        offered: `(n_items,)` what may be recommended; None for everything.
    """

    users: NDArray[np.int64]
    novelty: Floats
    credibility: Floats | None
    features: Floats
    offered: NDArray[np.bool_] | None = None

    @classmethod
    def of(
        cls, train: Sequences, n_items: int, features: Floats, offered: NDArray[np.bool_] | None = None
    ) -> "ItemStatistics":
        """The statistics of a training part.

        Args:
            features: `(n_items, f)` any scale; rows are brought to unit length.
        """
        n_users = int((np.diff(train.indptr) > 0).sum())
        pairs = np.unique(train.owners * n_items + train.items)
        users = np.bincount(pairs % n_items, minlength=n_items)
        novelty = -np.log2(np.maximum(users, 1) / n_users) / np.log2(max(n_users, 2))
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        unit = np.divide(features, norms, out=np.zeros(features.shape, np.float32), where=norms > 0)
        credibility = _credibility(train, n_items)
        return cls(users, novelty.astype(np.float32), credibility, unit, offered)

    def barred(self, histories: Sequences) -> NDArray[np.bool_]:
        """`(m, n_items)` what must not be recommended after each history: what it holds, and what is not offered."""
        barred = np.zeros((len(histories.indptr) - 1, len(self.users)), bool)
        if self.offered is not None:
            barred[:] = ~self.offered
        barred[histories.owners, histories.items] = True
        return barred

    @cached_property
    def shares(self) -> Floats:
        """`(n_items, f)` what part of an item belongs to each of its categories, alike: the squares of its features,
        where these are categories.
        """
        return np.square(self.features)

    @cached_property
    def tail(self) -> NDArray[np.bool_]:
        """`(n_items,)` what is outside the short head, the fewest items that have `HEAD` of all interactions with what
        may be recommended.
        """
        users = self.users if self.offered is None else np.where(self.offered, self.users, 0)
        order = np.argsort(-users, kind="stable")
        before = np.cumsum(users[order]) - users[order]
        outside = np.empty(len(order), bool)
        outside[order] = before >= HEAD * users.sum()
        return outside

    def among_offered(self, values: NDArray[Any]) -> NDArray[Any]:
        """Those of `(n_items,)` values that belong to what may be recommended."""
        return values if self.offered is None else values[self.offered]


def _credibility(train: Sequences, n_items: int) -> Floats | None:
    """The Bayesian average (C·m + Σr) / (C + n), scaled by the range of the ratings.

    m is the mean rating and C the mean number of ratings an item has, so that an item with as many ratings as the
    average one lies half way between its own mean and everybody's.
    """
    if train.ratings is None:
        return None
    counts = np.bincount(train.items, minlength=n_items)
    sums = np.bincount(train.items, weights=train.ratings, minlength=n_items)
    weight, mean = len(train.items) / n_items, float(train.ratings.mean(dtype=np.float64))
    low, high = float(train.ratings.min()), float(train.ratings.max())
    average = (weight * mean + sums) / (weight + counts)
    return ((average - low) / max(high - low, 1e-9)).astype(np.float32)


def category_features(categories: Sequence[Sequence[str]]) -> Floats:
    """Categories as indicator rows `(n_items, categories)`; to have none is one of them, which such items share.

    Without it they would be as far from each other as from all else, and the most diverse lists those of which least is
    known.
    """
    categories = [row or ("",) for row in categories]
    names = sorted({c for row in categories for c in row})
    column = {name: i for i, name in enumerate(names)}
    features = np.zeros((len(categories), len(names)), np.float32)
    for item, row in enumerate(categories):
        for name in row:
            features[item, column[name]] = 1.0
    return features
