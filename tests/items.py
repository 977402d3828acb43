"""Items made up for tests of losses."""

import numpy as np

from pareto_search.recsys.statistics import ItemStatistics


def statistics(n_items: int = 7, dtype: type = np.float32) -> ItemStatistics:
    """Random ones with features of unit length, the same each time."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(n_items, 4))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    novelty, credibility = rng.random((2, n_items)).astype(dtype)
    return ItemStatistics(np.zeros(n_items, np.int64), novelty, credibility, features.astype(dtype))
