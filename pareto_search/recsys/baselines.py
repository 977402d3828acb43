"""The models that a front must beat, in plain NumPy.

Each is fitted on the training part and scores the whole catalogue for users given by their histories.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from scipy.sparse import csr_matrix

from pareto_search.recsys.split import Sequences

Floats = NDArray[np.float32]


class Scorer(Protocol):
    """Scores the catalogue for some users.

    Attributes:
        logits: whether the softmax of its scores is meant as probabilities.
        parameters: how many numbers it keeps.
        training: the floating-point operations of the fine-tunings that it comes from, by candidate.
    """

    @property
    def logits(self) -> bool: ...

    @property
    def parameters(self) -> int: ...

    @property
    def training(self) -> Mapping[str, float]: ...

    def scores(self, history: Sequences) -> Floats:
        """Scores `(m, n_items)`, higher is better, for the m users whose histories are given."""
        ...


def interactions(history: Sequences, n_items: int) -> csr_matrix:
    """The binary user-item matrix `(m, n_items)` of some histories."""
    items = history.items.copy()  # summing duplicates sorts it in place, and the order of a history is its time
    matrix = csr_matrix((np.ones(len(items), np.float32), items, history.indptr), (len(history.indptr) - 1, n_items))
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


@dataclass(frozen=True)
class Popularity:
    """How many users interacted with each item."""

    users: NDArray[np.int64]
    logits = False
    training: ClassVar[Mapping[str, float]] = {}

    @property
    def parameters(self) -> int:
        return len(self.users)

    def scores(self, history: Sequences) -> Floats:
        return np.tile(self.users.astype(np.float32), (len(history.indptr) - 1, 1))


@dataclass(frozen=True)
class ItemSimilarity:
    """Scores are the sums of item similarities over the history: EASE and ItemKNN.

    Attributes:
        weights: `(n_items, n_items)`; row i says what having item i adds to every other.
    """

    weights: Floats
    logits = False
    training: ClassVar[Mapping[str, float]] = {}

    @property
    def parameters(self) -> int:
        return int(np.count_nonzero(self.weights))

    def scores(self, history: Sequences) -> Floats:
        return np.asarray(interactions(history, len(self.weights)) @ self.weights, np.float32)

    def shares(self, items: NDArray[np.int32], chosen: NDArray[np.int32]) -> NDArray[np.float64]:
        """What each item of a history `(n,)` adds to the scores of some items: `(k, n)`; of what is there more than
        once, the last time adds all.
        """
        last = len(items) - 1 - np.unique(items[::-1], return_index=True)[1]
        added = np.zeros((len(chosen), len(items)))
        added[:, last] = self.weights[np.ix_(items[last], chosen)].T
        return added


def ease(train: Sequences, n_items: int, regularisation: float = 300.0) -> ItemSimilarity:
    """EASE (Steck, WWW 2019): B = I - P / diag(P) with P = (XᵀX + λI)⁻¹, zero diagonal."""
    x = interactions(train, n_items)
    gram = (x.T @ x).toarray().astype(np.float64)
    gram[np.diag_indices(n_items)] += regularisation
    # In its own place, because of 20,000 items it takes 3 GB; seen in columns, as LAPACK has it, it is the same matrix.
    weights = linalg.inv(gram.T, overwrite_a=True, check_finite=False, assume_a="pos")
    weights /= -np.diag(weights).copy()
    weights[np.diag_indices(n_items)] = 0.0
    return ItemSimilarity(weights.astype(np.float32, order="C"))


BLOCK = 1024
"""Of how many items the neighbours are looked for at once."""


def item_knn(train: Sequences, n_items: int, neighbours: int = 100, shrinkage: float = 10.0) -> ItemSimilarity:
    """ItemKNN: shrunk cosine of the items' user sets, the nearest neighbours of each item kept."""
    x = interactions(train, n_items)
    common = (x.T @ x).toarray().astype(np.float32)
    norms = np.sqrt(np.diag(common))
    similarity = common
    for item, norm in enumerate(norms):  # one by one, in its own place
        similarity[item] /= norm * norms + shrinkage
    similarity[np.diag_indices(n_items)] = 0.0
    for start in range(0, n_items if neighbours < n_items else 0, BLOCK):
        columns = similarity[:, start : start + BLOCK]
        columns[columns < np.partition(columns, -neighbours, axis=0)[-neighbours]] = 0.0
    return ItemSimilarity(similarity)


SHRINKAGE = 0.03
"""How much of the mean variance is added to that of each direction of the text vectors."""


@dataclass(frozen=True)
class DecayedMean:
    """Users as the decayed mean of their items' vectors, scored by dot product: the frozen encoder.

    Attributes:
        vectors: `(n_items, d)`, rows of unit length.
        decay: the weight of an item relative to the one after it.
        window: how many of the last items count.
    """

    vectors: Floats
    decay: float = 0.8
    window: int = 50
    logits = False
    training: ClassVar[Mapping[str, float]] = {}

    @property
    def parameters(self) -> int:
        return self.vectors.size

    def scores(self, history: Sequences) -> Floats:
        users = decayed_means(history, self.vectors, self.decay, self.window)
        return np.asarray(users @ self.vectors.T, np.float32)

    def shares(self, items: NDArray[np.int32], chosen: NDArray[np.int32]) -> NDArray[np.float64]:
        """What each item of a history `(n,)` adds to the scores of some items: `(k, n)`."""
        age = np.arange(len(items))[::-1]
        weights = np.where(age < self.window, self.decay ** np.minimum(age, self.window), 0.0)
        return np.asarray(self.vectors[chosen] @ self.vectors[items].T * (weights / weights.sum()))


def whitened(vectors: Floats, among: NDArray[np.bool_] | None) -> Floats:
    """Text vectors `(n, t)` about their mean, of length 1, with each principal direction divided by the root of its
    deviation.

    Text encoders spread items along a few directions that say little about taste (whitening: Su et al.,
    arXiv:2103.15316; half of it is better here than the whole).

    Args:
        among: `(n,)` the items whose mean and directions these are; None for all.
    """
    some = vectors if among is None else vectors[among]
    mean = some.mean(0, dtype=np.float64)
    variances, axes = np.linalg.eigh((some - mean).T @ (some - mean) / len(some))
    # Of few items some directions have no variance, and are not to be blown up in others.
    scale = np.maximum(variances + SHRINKAGE * variances.mean(), np.finfo(np.float32).tiny) ** -0.25
    turned = (vectors - mean) @ axes * scale
    return np.asarray(turned / np.maximum(np.linalg.norm(turned, axis=1, keepdims=True), 1e-9), np.float32)


def decayed_means(history: Sequences, vectors: Floats, decay: float, window: int = 50) -> Floats:
    """Means `(m, d)` of the vectors of the last items of some histories; zero for an empty one.

    Args:
        vectors: `(n_items, d)`.
        decay: the weight of an item relative to the one after it.
        window: how many of the last items count.
    """
    lengths = np.diff(history.indptr)
    age = np.repeat(history.indptr[1:], lengths) - np.arange(len(history.items)) - 1
    weights = np.where(age < window, decay ** np.minimum(age, window), 0.0).astype(np.float32)
    totals = np.bincount(history.owners, weights, minlength=len(lengths))
    matrix = csr_matrix((weights, history.items, history.indptr), (len(lengths), len(vectors)))
    return np.asarray(matrix @ vectors / np.maximum(totals, 1e-9)[:, None].astype(np.float32))
