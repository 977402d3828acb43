"""How sure a ratio of two sides is, over users and seeds."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000

Indices = NDArray[np.int64]


def interval(ratio: Callable[[Indices, Indices], float], seeds: int, users: int) -> tuple[float, float]:
    """The 95 % interval of a ratio, by a paired bootstrap on two levels.

    Of as many seeds and users as there are, each resample draws seeds and, once for all of these, users, with
    replacement: whoever is drawn is so under every seed and on both sides. With one seed, users alone are drawn.

    Args:
        ratio: over some seeds and users, given by their numbers.
    """
    rng = np.random.default_rng(0)
    drawn = [ratio(rng.integers(seeds, size=seeds), rng.integers(users, size=users)) for _ in range(RESAMPLES)]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)
