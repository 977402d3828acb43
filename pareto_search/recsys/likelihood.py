"""The weights with which several models' scores are blended, by maximum likelihood.

A blend's probabilities are the softmax of a weighted sum of scores: a logarithmic opinion pool (Genest & Zidek,
Statistical Science 1986). Its log-likelihood is concave in the weights, so the best ones cost a few passes over the
scores, and likelihood is a far smoother guide to them than the accuracy of lists, in which a few users' luck decides.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from pareto_search.candidate import Genes
from pareto_search.recsys.rerank import Floats, blend
from pareto_search.recsys.split import Sequences

SHARPNESS = "sharpness"
LEAST = 0.05
"""What the model itself counts at least, so that the other weights, relative to it, stay within bounds."""

Scored = tuple[Mapping[str, Floats], Sequences]
"""The scores of each model, as `rerank.blend` takes them, and the targets of the same users."""


def likeliest(chunks: Iterable[Scored], names: Sequence[str], fixed: Genes) -> Genes:
    """The values of some serving genes under which the targets are likeliest: θ ≥ 0 that maximise the mean of

        log softmax(Σ_j θ_j · scores_j)[target],

    where the sharpness is the θ of the model, with what is blended in anyway, and the weight of a component is its own
    θ divided by that. Each user counts as one, whatever the number of targets.

    Args:
        names: `sharpness`, or components' names among the scores.
        fixed: what other serving genes are; a sharpness that is neither here nor among the names suits the weights.
    """
    if not names:
        return {}
    parts = [name for name in names if name != SHARPNESS]
    sharpness = float(fixed.get(SHARPNESS, 1.0))
    # Of a large part the chunks are computed one by one, and what is kept of them is kept here alone.
    prepared = [_Chunk(scores, targets, parts, fixed) for scores, targets in chunks]
    count = sum(chunk.users for chunk in prepared)

    def loss(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        each = [chunk.loss(theta) for chunk in prepared]
        return sum(value for value, _ in each) / count, np.sum([slope for _, slope in each], axis=0) / count

    first = (sharpness, sharpness) if SHARPNESS in fixed else (LEAST, None)
    start = np.array([sharpness, *(0.1 for _ in parts)])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[first, *((0.0, None) for _ in parts)]).x
    weights = {name: float(theta / found[0]) for name, theta in zip(parts, found[1:], strict=True)}
    return {**weights, SHARPNESS: float(found[0])} if SHARPNESS in names else weights


class _Chunk:
    """Some users' scores, and how well a weighted sum of them foretells the targets."""

    def __init__(self, scores: Mapping[str, Floats], targets: Sequences, parts: Sequence[str], fixed: Genes) -> None:
        kept = {name: s for name, s in scores.items() if name not in parts}
        whole = blend(kept, fixed)
        self._barred = np.isneginf(whole)
        # 0 · -inf is no number.
        self._scores = [np.where(self._barred, np.float32(0.0), s) for s in (whole, *(scores[name] for name in parts))]
        self.users = len(whole)
        counts = np.diff(targets.indptr)
        row = targets.owners
        wanted = np.array([s[row, targets.items] for s in self._scores], np.float64)
        self._wanted = (wanted / counts[row]).sum(1)

    def loss(self, theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Σ over users of the mean -log p of their targets, and its derivative by θ."""
        total = sum((np.float32(t) * s for t, s in zip(theta, self._scores, strict=True)), np.float32(0.0))
        total = np.where(self._barred, np.float32(-np.inf), total)
        largest = total.max(1, keepdims=True)
        p = np.exp(total - largest)
        mass = p.sum(1, keepdims=True, dtype=np.float64)
        p /= mass.astype(np.float32)
        log_mass = largest[:, 0].astype(np.float64) + np.log(mass[:, 0])
        value = float(log_mass.sum() - theta @ self._wanted)
        expected = np.array([np.einsum("mn,mn->", p, s, dtype=np.float64) for s in self._scores])
        return value, expected - self._wanted
