"""The archive's arithmetic: which evaluations form the front, how much it covers, which few stand for it.

Pure functions over evaluations and their values, which keep their raw directions. n is the number of points and d the
number of objectives. Hypervolume and non-dominated sorting are moocore's.
"""

from collections.abc import Sequence

import moocore
import numpy as np
from numpy.typing import NDArray

from pareto_search.candidate import FIRST_TOWERS, WARM_START, Evaluation
from pareto_search.objective import Constraint, Objective, Values

_ROUNDING = 1e-12
"""Gains that differ by less than this part of the largest one are the same gain."""


def non_dominated(values: Sequence[Values], objectives: Sequence[Objective]) -> list[int]:
    """The points that no other point dominates.

    Args:
        values: n points; each has a value for every objective.
        objectives: d objectives, each compared in its own direction.

    Returns:
        Indices into `values`, ascending. Of equal points only the first counts; a point with a NaN never does.
    """
    raw = _raw(values, [o.name for o in objectives])
    return _best(raw, np.flatnonzero(~np.isnan(raw).any(axis=1)), objectives)


def worth(evaluation: Evaluation, objectives: Sequence[Objective]) -> Values:
    """The objectives' values, each less what chance alone may have added to it.

    Among hundreds of checkpoints the best on validation is best by luck, and falls back on test. What one seems to gain
    over the warm start counts only beyond a standard error of the difference: the one-standard-error rule (Breiman et
    al., Classification and Regression Trees, 1984), with the warm start as the simplest model.
    """
    if not evaluation.margins:
        return evaluation.values
    return {o.name: evaluation.values[o.name] - o.sign * evaluation.margins.get(o.name, 0.0) for o in objectives}


def worthy(worths: Values, margins: Values, objectives: Sequence[Objective]) -> dict[str, float]:
    """The values that are worth so much under these margins: the inverse of `worth`."""
    return {o.name: worths[o.name] + o.sign * margins.get(o.name, 0.0) for o in objectives}


def front(
    evaluations: Sequence[Evaluation],
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint],
    steps: int,
) -> list[Evaluation]:
    """The feasible evaluations at full fidelity whose `worth` no other's dominates, in the order they were given.

    The warm start's first towers stand in for all of it: where that is, they are nothing.

    Args:
        steps: the training steps of the full rung; evaluations at other rungs neither enter nor dominate.
    """
    absent = FIRST_TOWERS if any(e.candidate == WARM_START for e in evaluations) else None
    full = [e for e in evaluations if e.steps == steps and e.candidate != absent]
    values = [e.values for e in full]
    raw = _raw(values, [o.name for o in objectives])
    feasible = (_scaled(raw, objectives) >= 0).all(axis=1)
    for constraint in constraints:
        metric = _raw(values, [constraint.metric])[:, 0]
        feasible &= metric >= constraint.bound if constraint.at_least else metric <= constraint.bound
    worths = _raw([worth(e, objectives) for e in full], [o.name for o in objectives])
    return [full[i] for i in _best(worths, np.flatnonzero(feasible), objectives)]


def hypervolume(values: Sequence[Values], objectives: Sequence[Objective]) -> float:
    """The volume that n points dominate above the references, each objective scaled to 0 at reference and 1 at ideal.

    One point at every ideal has hypervolume 1; points beyond the ideal count beyond 1. A point that is not strictly
    better than every reference contributes nothing, nor does one with a NaN. No points have hypervolume 0.
    """
    points = _normalised(values, objectives)
    return _volume(points[(points > 0).all(axis=1)])


def choose(values: Sequence[Values], objectives: Sequence[Objective], k: int = 32) -> list[int]:
    """Up to k points that stand for all n, chosen one by one, each the one that adds most hypervolume.

    Gains equal up to rounding are a tie, which the lowest index wins. The choice ends early when no point adds
    anything. Hypervolume is submodular, so a gain measured against fewer points bounds the present one from above, and
    so does what a point has for itself beside any one chosen point: most points need no second look (lazy greedy:
    Minoux, 1978). The result is that of measuring every point each time.

    Returns:
        Indices into `values`, in the order chosen.
    """
    candidates = non_dominated(values, objectives)
    points = _normalised([values[i] for i in candidates], objectives)
    points, above = points[(points > 0).all(axis=1)], np.flatnonzero((points > 0).all(axis=1))
    alone = points.prod(axis=1)
    tie = _ROUNDING * float(alone.max(initial=0.0))
    bounds = alone.copy()
    chosen: list[int] = []
    covered = 0.0
    while len(chosen) < min(k, len(points)):
        gains: dict[int, float] = {}
        best = 0.0
        waiting = bounds.copy()
        # All points whose gain may reach the best, ties included; the others keep their old bounds.
        while waiting[i := int(waiting.argmax())] >= best - tie:
            gains[i] = bounds[i] = _volume(points[[*chosen, i]]) - covered
            best = max(best, gains[i])
            waiting[i] = -np.inf
        if best <= tie:
            break
        winner = min(i for i, gain in gains.items() if gain >= best - tie)
        chosen.append(winner)
        covered = _volume(points[chosen])
        bounds = np.minimum(bounds, alone - np.minimum(points, points[winner]).prod(axis=1))
        bounds[winner] = -np.inf
    return [candidates[above[i]] for i in chosen]


def representatives(
    evaluations: Sequence[Evaluation], objectives: Sequence[Objective], k: int = 32
) -> list[Evaluation]:
    """Up to k of a front's evaluations that stand for it: those whose worth together covers most hypervolume.

    Where two differ by less than chance may have done, one may still dominate the other; that one is left out.
    """
    found = [evaluations[i] for i in choose([worth(e, objectives) for e in evaluations], objectives, k)]
    return [found[i] for i in non_dominated([e.values for e in found], objectives)]


def _normalised(values: Sequence[Values], objectives: Sequence[Objective]) -> NDArray[np.float64]:
    """`(n, d)`, more is better: 0 at the reference, 1 at the ideal."""
    return _scaled(_raw(values, [o.name for o in objectives]), objectives)


def _raw(values: Sequence[Values], metrics: Sequence[str]) -> NDArray[np.float64]:
    """`(n, d)`, as they are."""
    return np.array([[v[m] for m in metrics] for v in values], dtype=float).reshape(len(values), len(metrics))


def _scaled(raw: NDArray[np.float64], objectives: Sequence[Objective]) -> NDArray[np.float64]:
    """`Objective.normalise` of n points at once."""
    references = np.array([o.reference for o in objectives])
    return (raw - references) / (np.array([o.ideal for o in objectives]) - references)


def _best(raw: NDArray[np.float64], among: NDArray[np.int_], objectives: Sequence[Objective]) -> list[int]:
    """Which of some of n points `(n, d)` no other of them dominates."""
    if among.size == 0:
        return []
    best = moocore.is_nondominated(raw[among], maximise=[o.direction == "maximise" for o in objectives])
    return [int(i) for i in among[best]]


def _volume(points: NDArray[np.float64]) -> float:
    """The volume between the origin and points `(n, d)`, all positive."""
    # Turned round here: to maximise, moocore takes three times as long over so few points.
    return float(moocore.hypervolume(-points, ref=0.0)) if len(points) else 0.0
