"""Metrics of ranked lists, each at a cut-off k, and bootstrap intervals over users.

A metric is named `NAME@K`. Per-user metrics are means over users; the others look at all lists at once.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pareto_search.errors import ConfigError, nearest
from pareto_search.recsys.split import Sequences
from pareto_search.recsys.statistics import ItemStatistics

Lists = NDArray[np.int32]
PerUser = NDArray[np.float64]


@dataclass(frozen=True)
class Ranked:
    """Ranked lists of some users, best first, and which of the items are targets.

    Attributes:
        lists: `(m, k)` item indices.
        hits: `(m, k)` whether the item is a target of the user.
        n_targets: `(m,)` how many targets the user has.
    """

    lists: Lists
    hits: NDArray[np.bool_]
    n_targets: NDArray[np.int64]

    @classmethod
    def of(cls, lists: Lists, targets: Sequences) -> "Ranked":
        n_targets = np.diff(targets.indptr)
        rows = np.arange(len(lists))
        stride = 1 + max(int(lists.max(initial=0)), int(targets.items.max(initial=0)))  # makes (row, item) one number
        wanted = np.repeat(rows, n_targets) * stride + targets.items
        hits = np.isin(rows[:, None] * stride + lists, wanted)
        return cls(lists, hits, n_targets)

    def at(self, k: int) -> "Ranked":
        """The first k of each list."""
        return Ranked(self.lists[:, :k], self.hits[:, :k], self.n_targets)


def _discounts(k: int) -> NDArray[np.float64]:
    return 1.0 / np.log2(np.arange(2, k + 2))


def ndcg(ranked: Ranked, _: ItemStatistics) -> PerUser:
    """Binary gains, log2 discounts, divided by the best value that the user's number of targets allows."""
    k = ranked.lists.shape[1]
    ideal = np.cumsum(_discounts(k))
    return ranked.hits @ _discounts(k) / ideal[np.minimum(ranked.n_targets, k) - 1]


def recall(ranked: Ranked, _: ItemStatistics) -> PerUser:
    """The share of the user's targets that the list holds."""
    return ranked.hits.sum(1) / ranked.n_targets


def hit_rate(ranked: Ranked, _: ItemStatistics) -> PerUser:
    """1 where the list holds any target."""
    return np.asarray(ranked.hits.any(1), np.float64)


def mrr(ranked: Ranked, _: ItemStatistics) -> PerUser:
    """The reciprocal rank of the first target in the list; 0 without one."""
    return np.where(ranked.hits.any(1), 1.0 / (ranked.hits.argmax(1) + 1), 0.0)


def precision(ranked: Ranked, _: ItemStatistics) -> PerUser:
    """The share of the list that is a target."""
    return ranked.hits.sum(1) / ranked.hits.shape[1]


def ild(ranked: Ranked, items: ItemStatistics) -> PerUser:
    """Intra-list diversity Σ_{i≠j} d_ij / (k(k-1)), d = 1 - cosine of the fixed features.

    The sum of all cosines is |Σ f|², so no k x k matrix is formed.
    """
    k = ranked.lists.shape[1]
    if k < 2:
        return np.zeros(len(ranked.lists))
    features = items.features[ranked.lists].astype(np.float64)
    cosines = np.square(features.sum(1)).sum(1) - np.square(features).sum((1, 2))
    return 1.0 - cosines / (k * (k - 1))


def novelty(ranked: Ranked, items: ItemStatistics) -> PerUser:
    """Mean inverse user frequency (MIUF), divided by its largest value."""
    return items.novelty[ranked.lists].mean(1, dtype=np.float64)


def credibility(ranked: Ranked, items: ItemStatistics) -> PerUser:
    """Mean Bayesian average rating, scaled to 0..1."""
    assert items.credibility is not None, "checked when the config is read"
    return items.credibility[ranked.lists].mean(1, dtype=np.float64)


def coverage(exposure: NDArray[np.int64]) -> float:
    """The share of items that are in any list."""
    return float((exposure > 0).mean())


def gini(exposure: NDArray[np.int64]) -> float:
    """Gini coefficient of the items' exposure: 0 is even, 1 is all on one item."""
    ordered = np.sort(exposure).astype(np.float64)
    n, total = len(ordered), ordered.sum()
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * total)) if total else 0.0


@dataclass(frozen=True)
class Metric:
    """A metric without its cut-off.

    Attributes:
        per_user: from ranked lists to one value a user, or None.
        overall: from the items' exposure to one value, or None.
    """

    direction: Literal["maximise", "minimise"]
    per_user: Callable[[Ranked, ItemStatistics], PerUser] | None = None
    overall: Callable[[NDArray[np.int64]], float] | None = None


METRICS: Mapping[str, Metric] = {
    "ndcg": Metric("maximise", ndcg),
    "recall": Metric("maximise", recall),
    "hr": Metric("maximise", hit_rate),
    "mrr": Metric("maximise", mrr),
    "precision": Metric("maximise", precision),
    "ild": Metric("maximise", ild),
    "novelty": Metric("maximise", novelty),
    "credibility": Metric("maximise", credibility),
    "coverage": Metric("maximise", overall=coverage),
    "gini": Metric("minimise", overall=gini),
}


def parse_metric(name: str) -> tuple[Metric, int]:
    """The metric and the cut-off of a name such as `ndcg@10`.

    Raises:
        ConfigError: the name is not of this form, or the metric is unknown.
    """
    match = re.fullmatch(r"([a-z_]+)@([1-9]\d{0,3})", name)
    if match is None:
        hint = f"; {nearest(name, METRICS)}" if re.fullmatch(r"[a-z_]+", name) and name not in METRICS else ""
        raise ConfigError(f"metric '{name}' has no cut-off; write it as in 'ndcg@10'{hint}")
    if match[1] not in METRICS:
        raise ConfigError(f"metric '{match[1]}' is unknown; {nearest(match[1], METRICS)}")
    return METRICS[match[1]], int(match[2])


def interval(values: PerUser, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean over users (percentile method).

    Args:
        values: `(m,)` one value a user.
    """
    rng = np.random.default_rng(seed)
    means = np.array([values[rng.integers(0, len(values), len(values))].mean() for _ in range(resamples)])
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


class Tally:
    """Collects metrics over chunks of users, so that memory does not grow with users x items.

    Args:
        names: metric names, each with its cut-off.
    """

    def __init__(self, names: Sequence[str], items: ItemStatistics) -> None:
        self._parsed = {name: parse_metric(name) for name in names}
        self._items = items
        self._per_user: dict[str, list[PerUser]] = {n: [] for n, (m, _) in self._parsed.items() if m.per_user}
        self._exposure = {
            n: np.zeros(len(items.users), np.int64) for n, (m, _) in self._parsed.items() if m.overall is not None
        }

    @property
    def length(self) -> int:
        """The longest cut-off: how long the lists must be."""
        return max(k for _, k in self._parsed.values())

    def add(self, ranked: Ranked) -> None:
        """Adds the lists of a chunk of users."""
        for name, (metric, k) in self._parsed.items():
            if metric.per_user is not None:
                self._per_user[name].append(metric.per_user(ranked.at(k), self._items))
            else:
                shown = ranked.lists[:, :k].ravel()
                self._exposure[name] += np.bincount(shown, minlength=len(self._items.users))

    def per_user(self) -> dict[str, PerUser]:
        """Metric -> `(m,)`, for the metrics that have a value for each user."""
        return {name: np.concatenate(chunks) for name, chunks in self._per_user.items()}

    def values(self) -> dict[str, float]:
        """Metric -> value over all users so far."""
        values = {name: float(v.mean()) for name, v in self.per_user().items()}
        for name, exposure in self._exposure.items():
            overall = self._parsed[name][0].overall
            assert overall is not None
            values[name] = overall(exposure)
        return {name: values[name] for name in self._parsed}
