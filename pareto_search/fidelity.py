"""Rungs: which candidates go on, and which have had their chance.

Asynchronous successive halving (ASHA: Li et al., MLSys 2020) with non-dominated rank and crowding in the place of one
metric (MO-ASHA: Schmucker et al., 2021). Scores are compared at the same rung only.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import moocore
import numpy as np
from numpy.typing import NDArray

from pareto_search.candidate import Leg
from pareto_search.objective import Constraint, Objective, Values, violations


class _Score(NamedTuple):
    excess: float  # by how much references and constraints are missed
    losses: list[float]  # the objectives, of which less is better


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
        self._scores: dict[int, dict[str, _Score]] = {s: {} for s in self._steps[:-1]}
        self._gone: dict[int, set[str]] = {s: set() for s in self._steps[:-1]}
        self._next: Leg | None = None
        self._is_known = True  # that it is the next one: finding out takes time

    def report(self, leg: Leg, values: Values) -> None:
        """A candidate has been scored at a rung below the full one."""
        excess = sum(violations(values, self._objectives, self._constraints))
        losses = [-o.normalise(values[o.name]) for o in self._objectives]
        self._scores[leg.steps][leg.candidate] = _Score(excess, losses)
        self._is_known = False

    def promotable(self) -> Leg | None:
        """Who should go on now, and to which rung; those nearest to the full rung come first."""
        if not self._is_known:
            self._next, self._is_known = self._find(), True
        return self._next

    def promote(self, leg: Leg) -> None:
        """The candidate goes on to this rung."""
        self._gone[self._steps[self._steps.index(leg.steps) - 1]].add(leg.candidate)
        self._is_known = False

    def _find(self) -> Leg | None:
        for steps, further in reversed(list(pairwise(self._steps))):
            scores, gone = self._scores[steps], self._gone[steps]
            quota = len(scores) * steps // further
            if len(gone) < quota:
                return Leg(next(name for name in _best(scores) if name not in gone), further)
        return None


def _best(scores: Mapping[str, _Score]) -> list[str]:
    """The candidates of a rung, best first: the feasible by rank, then crowding, then name; the others after."""
    names = sorted(scores)
    kept = [n for n in names if scores[n].excess == 0]
    losses = np.array([scores[n].losses for n in kept])
    ranks = moocore.pareto_rank(losses) if kept else np.empty(0)
    crowding = np.empty(len(kept))
    for rank in np.unique(ranks):
        crowding[ranks == rank] = crowding_distance(losses[ranks == rank])
    others = sorted((n for n in names if scores[n].excess > 0), key=lambda n: scores[n].excess)
    return [kept[i] for i in np.lexsort((-crowding, ranks))] + others


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
