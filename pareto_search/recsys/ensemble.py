"""Ensembles: models whose scores are averaged, and which of many to take.

Scores are logits, so an average of them is a product of the models' probabilities, up to a constant for each user.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pareto_search.recsys.baselines import Scorer
from pareto_search.recsys.rerank import Floats
from pareto_search.recsys.split import Sequences


@dataclass(frozen=True)
class Ensemble:
    """A scorer that averages those of its members.

    Attributes:
        weights: one a member; they sum to 1.
    """

    members: Sequence[Scorer]
    weights: Sequence[float]
    logits = True

    @property
    def parameters(self) -> int:
        return sum(member.parameters for member in self.members)

    def scores(self, history: Sequences) -> Floats:
        """The weighted mean of the members' scores, `(m, n_items)`."""
        pairs = zip(self.members, self.weights, strict=True)
        return np.sum([np.float32(weight) * member.scores(history) for member, weight in pairs], axis=0)


def select(chunks: Iterable[tuple[Mapping[str, Floats], Sequences]], draws: int) -> dict[str, float]:
    """The weights of models under whose average the targets are likely: greedy selection with replacement.

    Beginning with nothing, each draw adds the model with which the mean log-likelihood of the targets is best, whether
    it was drawn before or not, and the best of all these bags counts (Caruana, Niculescu-Mizil, Crew & Ksikes, ICML
    2004). A few draws among few models leave little to luck; weights that are free of each other overfit sooner. Each
    user counts as one.

    Args:
        chunks: the scores of each model by name, -inf for what must not be shown, and the targets of the same users.

    Returns:
        Name -> weight, in the order of first draws; they sum to 1, and those that were not drawn are left out.
    """
    prepared = [_Chunk(scores, targets) for scores, targets in chunks]
    names = list(prepared[0].scores)
    bag: list[str] = []
    losses: list[float] = []
    while len(bag) < draws:
        trials = [sum(chunk.loss_with(name, len(bag) + 1) for chunk in prepared) for name in names]
        best = int(np.argmin(trials))
        losses.append(trials[best])
        bag.append(names[best])
        for chunk in prepared:
            chunk.add(names[best])
    counts = Counter(bag[: 1 + int(np.argmin(losses))])
    return {name: count / counts.total() for name, count in counts.items()}


class _Chunk:
    """Some users' scores, and the sum of those of the models drawn so far."""

    def __init__(self, scores: Mapping[str, Floats], targets: Sequences) -> None:
        self.scores = scores
        self._sum: NDArray[np.float32] = np.zeros_like(next(iter(scores.values())))
        counts = np.diff(targets.indptr)
        self._row, self._items = np.repeat(np.arange(len(counts)), counts), targets.items
        self._share = 1.0 / counts[self._row]

    def loss_with(self, name: str, count: int) -> float:
        """Σ over users of the mean -log p of their targets, with one more model in the bag, which is `count` then."""
        mean = (self._sum + self.scores[name]) / np.float32(count)
        largest = mean.max(1)
        mass = np.exp(mean - largest[:, None]).sum(1, dtype=np.float64)
        surprise = (largest + np.log(mass))[self._row] - mean[self._row, self._items]
        return float((surprise * self._share).sum())

    def add(self, name: str) -> None:
        self._sum = self._sum + self.scores[name]
