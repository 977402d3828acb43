"""Items and histories that are made up."""

from dataclasses import replace

import numpy as np

from pareto_search.recsys.split import Sequences
from pareto_search.recsys.statistics import ItemStatistics


def sequences(*rows: list[int]) -> Sequences:
    """Users' items, oldest first; when they were is not known."""
    ends = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64)
    return Sequences(ends, np.array([i for row in rows for i in row], np.int32), None)


def statistics(n_items: int = 7, dtype: type = np.float32) -> ItemStatistics:
    """Random ones with features of unit length, the same each time."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(n_items, 4))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    novelty, credibility = rng.random((2, n_items)).astype(dtype)
    return ItemStatistics(np.zeros(n_items, np.int64), novelty, credibility, features.astype(dtype))


def categorised(n_items: int, rated: bool = True) -> ItemStatistics:
    """The same, with features as categories give them: none is negative."""
    items = statistics(n_items)
    return replace(items, features=np.abs(items.features), credibility=items.credibility if rated else None)
