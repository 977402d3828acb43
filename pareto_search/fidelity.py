"""Rungs: which candidates go on, and which have had their chance.

Asynchronous successive halving (ASHA: Li et al., MLSys 2020) with non-dominated rank and crowding in the place of one
metric (MO-ASHA: Schmucker et al., 2021). Scores are compared at the same rung only.
"""

from collections.abc import Sequence
from itertools import pairwise

import moocore
import numpy as np
from numpy.typing import NDArray

from pareto_search.candidate import Leg
from pareto_search.objective import Constraint, Objective, Values, violations


class Rungs:
    """The scores of a search at each rung below the full one, and who has gone on from there.

    Of those scored at a rung the best go on to the next, as many as keep the steps spent on each rung about equal:
    half of them where the next rung has twice the steps.

    Args:
        steps: ascending; the last one is the full rung.
    """

    def __init__(
        self, steps: Sequence[int], objectives: Sequence[Objective], constraints: Sequence[Constraint]
    ) -> None:
        self._steps = tuple(steps)
        self._objectives, self._constraints = tuple(objectives), tuple(constraints)
        self._scores: dict[int, dict[str, Values]] = {s: {} for s in self._steps[:-1]}
        self._gone: dict[int, set[str]] = {s: set() for s in self._steps[:-1]}

    def report(self, leg: Leg, values: Values) -> None:
        """A candidate has been scored at a rung below the full one."""
        self._scores[leg.steps][leg.candidate] = values

    def promotable(self) -> Leg | None:
        """Who should go on now, and to which rung; those nearest to the full rung come first."""
        for steps, further in reversed(list(pairwise(self._steps))):
            scores, gone = self._scores[steps], self._gone[steps]
            quota = len(scores) * steps // further
            if len(gone) < quota:
                waiting = [name for name in self._best(scores)[:quota] if name not in gone]
                if waiting:
                    return Leg(waiting[0], further)
        return None

    def promote(self, leg: Leg) -> None:
        """The candidate goes on to this rung."""
        self._gone[self._steps[self._steps.index(leg.steps) - 1]].add(leg.candidate)

    def _best(self, scores: dict[str, Values]) -> list[str]:
        """The candidates of a rung, best first: the feasible by rank, then crowding, then name; the others after."""
        excess = {n: sum(violations(scores[n], self._objectives, self._constraints)) for n in sorted(scores)}
        kept = [n for n in excess if excess[n] == 0]
        losses = np.array([[-o.normalise(scores[n][o.name]) for o in self._objectives] for n in kept])
        ranks = moocore.pareto_rank(losses) if kept else np.empty(0)
        crowding = np.empty(len(kept))
        for rank in np.unique(ranks):
            crowding[ranks == rank] = crowding_distance(losses[ranks == rank])
        order = sorted(range(len(kept)), key=lambda i: (ranks[i], -crowding[i]))
        return [kept[i] for i in order] + sorted((n for n in excess if excess[n] > 0), key=excess.__getitem__)


def crowding_distance(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far the neighbours of each of n points are apart, summed over d objectives; infinite at the ends.

    Deb et al., NSGA-II, IEEE TEC 2002, with each objective scaled to its range among the points. One in which all are
    equal has no ends, and adds nothing.
    """
    n, d = points.shape
    distance = np.zeros(n)
    for j in range(d):
        order = np.argsort(points[:, j], kind="stable")
        along = points[order, j]
        if along[-1] > along[0]:
            distance[order[[0, -1]]] = np.inf
            distance[order[1:-1]] += (along[2:] - along[:-2]) / (along[-1] - along[0])
    return distance
