"""Metrics of ranked lists, each at a cut-off k, and bootstrap intervals over users.

A metric is named `NAME@K`. Per-user metrics are means over users; the others look at all lists at once. A cost has no
cut-off, and is none of the lists but of what makes them: see `ranking.Ranking`.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pareto_search.errors import ConfigError, nearest
from pareto_search.recsys.baselines import decayed_means, interactions
from pareto_search.recsys.split import Sequences
from pareto_search.recsys.statistics import ItemStatistics

Lists = NDArray[np.int32]
PerUser = NDArray[np.float64]

SMOOTHED = 0.01
"""The part of the history's shares that is mixed into the list's, so that calibration is finite."""
LEAST_SHARE = 0.02
"""The share of the users that a group must have for a gap to count it."""
BINS = 12
"""Of probabilities: above 1/2, above 1/4, and so on; the last one reaches down to 0."""
DRAWN = 20_000
"""How many users a bootstrap draws at once: they fit into a cache, and NumPy is called a few times only."""
RECENCY = 0.8
"""The weight of an item of the history relative to the one after it."""


@dataclass(frozen=True)
class Ranked:
    """Ranked lists of some users, best first, and which of the items are targets.

    Attributes:
        lists: `(m, k)` item indices.
        hits: `(m, k)` whether the item is a target of the user.
        n_targets: `(m,)` how many targets the user has.
        history: of these m users, what they had before.
        sure: `(m, k)` how probable the model has it that the item is the next one; None where nobody asks.
    """

    lists: Lists
    hits: NDArray[np.bool_]
    n_targets: NDArray[np.int64]
    history: Sequences
    sure: NDArray[np.float32] | None = None

    @classmethod
    def of(
        cls, lists: Lists, targets: Sequences, history: Sequences, sure: NDArray[np.float32] | None = None
    ) -> "Ranked":
        n_targets = np.diff(targets.indptr)
        rows = np.arange(len(lists))
        stride = 1 + max(int(lists.max(initial=0)), int(targets.items.max(initial=0)))  # makes (row, item) one number
        wanted = np.repeat(rows, n_targets) * stride + targets.items
        hits = np.isin(rows[:, None] * stride + lists, wanted)
        return cls(lists, hits, n_targets, history, sure)

    def at(self, k: int) -> "Ranked":
        """The first k of each list."""
        sure = None if self.sure is None else self.sure[:, :k]
        return Ranked(self.lists[:, :k], self.hits[:, :k], self.n_targets, self.history, sure)


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


def calibration(ranked: Ranked, items: ItemStatistics) -> PerUser:
    """KL(p ‖ 0.99 q + 0.01 p) of the category shares p of the history and q of the list (Steck, RecSys 2018); lower is
    better, and 0 for whoever's history has no categories.
    """
    shares = items.shares
    liked = _normalised((interactions(ranked.history, len(shares)) @ shares).astype(np.float64))
    shown = _normalised(shares[ranked.lists].sum(1, dtype=np.float64))
    mixed = (1 - SMOOTHED) * shown + SMOOTHED * liked
    return np.where(liked > 0, liked * np.log(np.where(liked > 0, liked / np.maximum(mixed, 1e-300), 1.0)), 0.0).sum(1)


def history_novelty(ranked: Ranked, items: ItemStatistics) -> PerUser:
    """The mean distance of the list's items from the user's own history, whose items weigh `RECENCY` times as much as
    those after them.
    """
    recent = decayed_means(ranked.history, items.features, RECENCY)
    return 1.0 - np.einsum("mkf,mf->mk", items.features[ranked.lists], recent).mean(1, dtype=np.float64)


def tail(ranked: Ranked, items: ItemStatistics) -> PerUser:
    """The share of the list outside the short head (APLT: Abdollahpouri et al., FLAIRS 2019)."""
    return items.tail[ranked.lists].mean(1)


def serendipity(ranked: Ranked, items: ItemStatistics) -> PerUser:
    """How much higher the list has its targets than a list of the most popular items would (Ge et al., RecSys 2010).

    The item at place r of n has (n + 1 - r) / n in the list, and as much among all n that may be recommended by
    popularity, where those nobody had have 0 and equal ones share their best place; the mean over the list of what is
    more, for targets.
    """
    known, k = np.sort(items.among_offered(items.users)), ranked.lists.shape[1]
    n = len(known)
    more = n - np.searchsorted(known, items.users, side="right")
    popular = np.where(items.users > 0, (n - more) / n, 0.0)
    shown = (n - np.arange(k)) / n
    return (ranked.hits * np.maximum(shown - popular[ranked.lists], 0.0)).mean(1)


def _normalised(rows: PerUser) -> PerUser:
    return rows / np.maximum(rows.sum(1, keepdims=True), 1e-300)


def coverage(exposure: NDArray[np.int64]) -> float:
    """The share of items, of those that may be recommended, that are in any list."""
    return float((exposure > 0).mean())


def gini(exposure: NDArray[np.int64]) -> float:
    """Gini coefficient of the items' exposure: 0 is even, 1 is all on one item."""
    ordered = np.sort(exposure).astype(np.float64)
    n, total = len(ordered), ordered.sum()
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * total)) if total else 0.0


def confidence(ranked: Ranked) -> NDArray[np.float64]:
    """Of the shown items in each bin of probabilities: how many there are, their probabilities' sum, their hits'.

    One item is the next: of n targets each is so with a probability of 1 / n, which is what it counts as a hit.
    """
    assert ranked.sure is not None, "whoever ranks sees to it"
    sure = ranked.sure.ravel().astype(np.float64)
    place = np.clip(-np.log2(np.maximum(sure, 1e-300)), 0, BINS - 1).astype(np.int64)
    what = (np.ones_like(sure), sure, (ranked.hits / ranked.n_targets[:, None]).ravel())
    return np.array([np.bincount(place, weights, BINS) for weights in what])


def calibration_error(bins: NDArray[np.float64]) -> float:
    """Expected calibration error (Guo et al., ICML 2017) of `confidence`: the mean over shown items of how far the
    probability of their bin is from the share of it that was hit.

    A bin reaches from one half of a probability to the whole, because next items are seldom likely: bins of one width
    would have nearly all of them in the first.
    """
    count, sure, hits = bins
    return float(np.abs(sure - hits).sum() / max(count.sum(), 1.0))


@dataclass(frozen=True)
class Metric:
    """A metric without its cut-off; a cost has nothing but a direction.

    Attributes:
        per_user: from ranked lists of m users to `(m,)` values, or None.
        overall: from the items' exposure to one value, or None.
        of_bins: from what `confidence` gives, summed over all users, to one value, or None.
    """

    direction: Literal["maximise", "minimise"]
    per_user: Callable[[Ranked, ItemStatistics], PerUser] | None = None
    overall: Callable[[NDArray[np.int64]], float] | None = None
    of_bins: Callable[[NDArray[np.float64]], float] | None = None

    @property
    def is_cost(self) -> bool:
        return (self.per_user, self.overall, self.of_bins) == (None, None, None)


METRICS: Mapping[str, Metric] = {
    "ndcg": Metric("maximise", ndcg),
    "recall": Metric("maximise", recall),
    "hr": Metric("maximise", hit_rate),
    "mrr": Metric("maximise", mrr),
    "precision": Metric("maximise", precision),
    "ild": Metric("maximise", ild),
    "novelty": Metric("maximise", novelty),
    "credibility": Metric("maximise", credibility),
    "calibration": Metric("minimise", calibration),
    "history_novelty": Metric("maximise", history_novelty),
    "tail": Metric("maximise", tail),
    "serendipity": Metric("maximise", serendipity),
    "coverage": Metric("maximise", overall=coverage),
    "gini": Metric("minimise", overall=gini),
    "ece": Metric("minimise", of_bins=calibration_error),
    "parameters": Metric("minimise"),
    "latency": Metric("minimise"),
    "training": Metric("minimise"),
}


PACKAGES = "pareto_search.metrics"
"""The entry point by which installed packages add metrics."""


@cache
def find_metric(name: str) -> Metric | None:
    """One of the metrics above, or else one that an installed package adds; None where there is none of that name.

    No package is loaded for another metric than its own, so that one that cannot be loaded is in nobody's way.

    Raises:
        ConfigError: the package cannot be loaded, gives no `Metric`, or is not the only one with that name.
    """
    if name in METRICS:
        return METRICS[name]
    points = [*entry_points(group=PACKAGES, name=name)]
    if not points:
        return None
    if len(points) > 1:
        places = " and ".join(point.value for point in points)
        raise ConfigError(f"metric '{name}' is given by {places}; expected one of them; remove the others' packages")
    [point] = points
    try:
        metric = point.load()
    except Exception as error:  # it runs code of others
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"metric '{name}' is {point.value}, which cannot be loaded ({reason}); mend that") from error
    if not isinstance(metric, Metric) or metric.is_cost:
        raise ConfigError(f"entry point '{name}' of {PACKAGES} is {metric!r}; expected a Metric of lists")
    return metric


def _names() -> list[str]:
    return [*METRICS, *entry_points(group=PACKAGES).names]


@dataclass(frozen=True)
class Asked:
    """What a name such as `ndcg@10`, `ndcg@10[gender=F]` or `ndcg@10[gender]` asks for.

    Attributes:
        plain: the name without a group.
        k: the cut-off.
        by, group: of the users whose `by` is this group alone; without a group, the largest gap between two groups.
    """

    plain: str
    metric: Metric
    k: int
    by: str | None = None
    group: str | None = None

    @property
    def direction(self) -> Literal["maximise", "minimise"]:
        """A gap is better small, whatever of."""
        return "minimise" if self.by is not None and self.group is None else self.metric.direction


def parse_metric(name: str) -> Asked:
    """Reads a metric's name.

    Raises:
        ConfigError: the name has another form, the metric is unknown, or is none of single users and so has no groups.
    """
    if name in METRICS and METRICS[name].is_cost:
        return Asked(name, METRICS[name], 1)
    match = re.fullmatch(r"(([a-z_]+)@([1-9]\d{0,3}))(?:\[([^\[\]=]+)(?:=([^\[\]]+))?\])?", name)
    if match is None:
        hint = f"; {nearest(name, _names())}" if re.fullmatch(r"[a-z_]+", name) and name not in _names() else ""
        raise ConfigError(f"metric '{name}' has no cut-off; write it as in 'ndcg@10' or 'ndcg@10[gender]'{hint}")
    metric = find_metric(match[2])
    if metric is None:
        raise ConfigError(f"metric '{match[2]}' is unknown; {nearest(match[2], _names())}")
    if metric.is_cost:
        raise ConfigError(f"metric '{name}' is a cost, which has no cut-off; expected '{match[2]}'")
    asked = Asked(match[1], metric, int(match[3]), match[4], match[5])
    if asked.by is not None and asked.metric.per_user is None:
        raise ConfigError(
            f"metric '{name}' is one of all lists together, which has no groups; expected '{asked.plain}'"
        )
    return asked


def interval(values: PerUser, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean over users (percentile method); NaN where there are none.

    Args:
        values: `(m,)` one value a user.
    """
    rng, users = np.random.default_rng(seed), len(values)
    if not users:
        return math.nan, math.nan
    some = max(1, DRAWN // users)
    counts = [min(some, resamples - begun) for begun in range(0, resamples, some)]
    means = np.concatenate([values[rng.integers(0, users, (count, users))].mean(1) for count in counts])
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


class Tally:
    """Collects metrics over chunks of users, so that memory does not grow with users x items.

    Args:
        names: metric names, each with its cut-off; no costs.
        groups: what users belong together by -> `(m,)` the group of each, of all that will be added.
    """

    def __init__(
        self, names: Sequence[str], items: ItemStatistics, groups: Mapping[str, NDArray[np.object_]] | None = None
    ) -> None:
        self._asked = {name: parse_metric(name) for name in names}
        self._items, self._groups = items, groups or {}
        self._once = {asked.plain: asked for asked in self._asked.values()}
        self._per_user: dict[str, list[PerUser]] = {n: [] for n, a in self._once.items() if a.metric.per_user}
        self._exposure = {n: np.zeros(len(items.users), np.int64) for n, a in self._once.items() if a.metric.overall}
        self._bins = {n: np.zeros((3, BINS)) for n, a in self._once.items() if a.metric.of_bins}

    @property
    def length(self) -> int:
        """The longest cut-off: how long the lists must be."""
        return max(asked.k for asked in self._once.values())

    @property
    def wants_probabilities(self) -> bool:
        """Whether the lists must say how sure the model is."""
        return bool(self._bins)

    def add(self, ranked: Ranked) -> None:
        """Adds the lists of a chunk of users."""
        for name, asked in self._once.items():
            if asked.metric.per_user is not None:
                self._per_user[name].append(asked.metric.per_user(ranked.at(asked.k), self._items))
            elif asked.metric.of_bins is not None:
                self._bins[name] += confidence(ranked.at(asked.k))
            else:
                shown = ranked.lists[:, : asked.k].ravel()
                self._exposure[name] += np.bincount(shown, minlength=len(self._items.users))

    def per_user(self) -> dict[str, PerUser]:
        """Metric -> a value for each of its users, for the metrics that are a mean over users."""
        each = {name: np.concatenate(chunks) for name, chunks in self._per_user.items()}
        found: dict[str, PerUser] = {}
        for name, asked in self._asked.items():
            if asked.plain in each and asked.by is None:
                found[name] = each[asked.plain]
            elif asked.plain in each and asked.group is not None:
                found[name] = each[asked.plain][self._groups[str(asked.by)] == asked.group]
        return found

    def values(self) -> dict[str, float]:
        """Metric -> value over all users so far; NaN for a group of nobody."""
        values = {name: float(v.mean()) if len(v) else math.nan for name, v in self.per_user().items()}
        for name, asked in self._asked.items():
            if asked.metric.overall is not None:
                values[name] = asked.metric.overall(self._items.among_offered(self._exposure[asked.plain]))
            elif asked.metric.of_bins is not None:
                values[name] = asked.metric.of_bins(self._bins[asked.plain])
            elif asked.by is not None and asked.group is None:
                values[name] = gap(np.concatenate(self._per_user[asked.plain]), self._groups[asked.by])
        return {name: values[name] for name in self._asked}


def gap(values: PerUser, groups: NDArray[np.object_]) -> float:
    """By how much the mean over users of the best-served group is above that of the worst-served one; NaN for fewer
    than two groups that are `counted`.

    Args:
        values, groups: `(m,)`.
    """
    means = [values[groups == name].mean() for name in counted(groups)]
    return float(np.ptp(means)) if len(means) > 1 else math.nan


def counted(groups: NDArray[np.object_]) -> list[str]:
    """The groups among `(m,)` that a gap may lie between, the largest first.

    Of fewer than `LEAST_SHARE` of the users chance decides the mean, and who is in no known group is in none.
    """
    sizes = Counter(groups.tolist())
    return [name for name, size in sizes.most_common() if name and size >= LEAST_SHARE * len(groups)]
