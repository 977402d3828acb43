"""Ensembles: models whose scores are averaged, and which of many to take.

Scores are logits, so an average of them is a product of the models' probabilities, up to a constant for each user.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

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

    @property
    def training(self) -> Mapping[str, float]:
        return {name: operations for member in self.members for name, operations in member.training.items()}

    def scores(self, history: Sequences) -> Floats:
        """The weighted mean of the members' scores, `(m, n_items)`."""
        pairs = zip(self.members, self.weights, strict=True)
        return np.sum([np.float32(weight) * member.scores(history) for member, weight in pairs], axis=0)


def select(chunks: Iterable[tuple[Mapping[str, Floats], Sequences]], draws: int) -> dict[str, float]:
    """The weights of models under whose average the targets are likely: greedy selection with replacement.

    Beginning with the best two, each draw adds the model with which the mean log-likelihood of the targets is best,
    whether it was drawn before or not, and the best of all these bags counts (Caruana, Niculescu-Mizil, Crew & Ksikes,
    ICML 2004). A few draws among few models leave little to luck, and freely fitted weights would overfit more. Each
    user counts as one.

    Args:
        chunks: the scores of at least two models by name, -inf for what must not be shown, and the targets of the same
            users.
        draws: at least 2.

    Returns:
        Name -> weight, in the order of first draws; they sum to 1, and those that were not drawn are left out.
    """
    prepared = [_Chunk(scores, targets) for scores, targets in chunks]
    names = list(prepared[0].scores)

    def loss(bag: tuple[str, ...]) -> float:
        return sum(chunk.loss(bag) for chunk in prepared)

    pairs: list[tuple[str, ...]] = list(combinations(names, 2))
    bags = [min(pairs, key=loss)]
    while len(bags[-1]) < draws:
        longer: list[tuple[str, ...]] = [(*bags[-1], name) for name in names]
        bags.append(min(longer, key=loss))
    best = min(bags, key=loss)
    counts = Counter(best)
    return {name: count / len(best) for name, count in counts.items()}


class _Chunk:
    """Some users' scores and targets."""

    def __init__(self, scores: Mapping[str, Floats], targets: Sequences) -> None:
        self.scores = scores
        self._row, self._items = targets.owners, targets.items
        self._share = 1.0 / np.diff(targets.indptr)[self._row]

    def loss(self, bag: Sequence[str]) -> float:
        """Σ over users of the mean -log p of their targets, by the average of a bag of models."""
        shares = {name: np.float32(count / len(bag)) for name, count in Counter(bag).items()}
        mean: Floats = np.sum([share * self.scores[name] for name, share in shares.items()], axis=0)
        largest = mean.max(1)
        mass = np.exp(mean - largest[:, None]).sum(1, dtype=np.float64)
        surprise = (largest + np.log(mass))[self._row] - mean[self._row, self._items]
        return float((surprise * self._share).sum())
