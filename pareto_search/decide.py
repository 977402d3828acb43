"""Decisions: which one entry of a front to take, by its validation scores alone.

Each rule measures regrets: how far an entry is from the front's best value of an objective, as a share of the range
that the front covers, so that objectives of different units can be added. Ties go to the lower index.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

import numpy as np
from numpy.typing import NDArray

from pareto_search.errors import ConfigError, RunError, nearest
from pareto_search.objective import Constraint, Objective, Values

EMPTY = "the front is empty: no entry keeps all references and constraints; loosen them in a new run folder"
"""What is said of a front without entries."""

_AUGMENTATION = 1e-3
"""Small enough to decide only between entries whose largest regrets are about the same."""

_DIGITS = 12
"""Decimals that count; what differs beyond them is rounding, and a tie."""


@dataclass(frozen=True)
class Choice:
    """The chosen entry's index into the values given, and one sentence that says why."""

    index: int
    reason: str


def knee(values: Sequence[Values], objectives: Sequence[Objective]) -> Choice:
    """The entry that gives up least in total: the smallest sum of regrets, and of equal sums the most even.

    This is the minimum Manhattan distance to the ideal (Chiu, Yen & Juan, IEEE TEVC 20(6), 2016). With two objectives
    it is the point furthest from the line through the extremes, the knee of Das (Structural Optimization 18, 1999),
    and unlike that it is defined where extremes coincide.

    Args:
        values: n entries of a front; each has a value for every objective.
        objectives: d objectives.

    Raises:
        RunError: the front is empty.
    """
    regrets = _regrets(values, objectives)
    totals = regrets.sum(axis=1)
    index = _lowest(totals, regrets.max(axis=1))
    reason = f"gives up {totals[index]:.2f} of the front's ranges in total, the least of {_entries(values)}"
    return Choice(index, f"knee: {reason}; {_scores(index, values, objectives)}")


def prefer(values: Sequence[Values], objectives: Sequence[Objective], weights: Mapping[str, float]) -> Choice:
    """The entry with the smallest augmented weighted Tchebycheff distance to the ideal.

    max_j w_j r_j + ρ Σ_j r_j, with regrets r, weights w scaled to a sum of 1 and ρ = 0.001 (Steuer & Choo, Mathematical
    Programming 26, 1983). It reaches every part of a front, concave ones too, and never a dominated entry.

    Args:
        values: n entries of a front; each has a value for every objective.
        objectives: d objectives.
        weights: objective -> weight, 0 or more; the others have weight 0 and only break ties.

    Raises:
        ConfigError: a weight names no objective or is negative, or none is positive.
        RunError: the front is empty.
    """
    for name, weight in weights.items():
        _check_name(name, [o.name for o in objectives], "objective")
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"the weight of {name} is {weight:g}; expected a number of at least 0")
    if not any(weights.values()):
        raise ConfigError("no weight is positive; expected a preference such as 'ndcg@10=3,ild@10=1'")
    regrets = _regrets(values, objectives)
    scale = np.array([weights.get(o.name, 0.0) for o in objectives])
    shortfalls = (scale / scale.sum() * regrets).max(axis=1)
    index = _lowest(shortfalls + _AUGMENTATION * regrets.sum(axis=1))
    wish = ", ".join(f"{name}={weight:g}" for name, weight in weights.items())
    reason = f"the smallest weighted shortfall ({shortfalls[index]:.2f}) of {_entries(values)}"
    return Choice(index, f"preference {wish}: {reason}; {_scores(index, values, objectives)}")


def where(
    values: Sequence[Values], objectives: Sequence[Objective], constraints: Sequence[Constraint], best: str
) -> Choice:
    """The entry with the best value of one objective among those that keep the constraints.

    Of equally good ones it is the one that gives up least of the other objectives. (This is the ε-constraint method:
    Haimes, Lasdon & Wismer, IEEE SMC 1(3), 1971.)

    Args:
        values: n entries of a front; each has a value for every objective and every constraint.
        objectives: d objectives.
        best: the name of one of the objectives.

    Raises:
        ConfigError: `best` or a constraint names nothing that was scored.
        RunError: the front is empty, or no entry keeps the constraints; the message has what the nearest one reaches.
    """
    regrets = _regrets(values, objectives)
    names = [o.name for o in objectives]
    _check_name(best, names, "objective")
    for constraint in constraints:
        _check_name(constraint.metric, values[0], "scored metric")
    kept = [i for i, v in enumerate(values) if all(c.violation(v[c.metric]) == 0 for c in constraints)]
    if not kept:
        raise RunError(_out_of_reach(values, constraints))
    index = kept[_lowest(regrets[kept, names.index(best)], regrets[kept].sum(axis=1))]
    found = f"has the best {best} ({values[index][best]:.4g}) of"
    if not constraints:
        return Choice(index, f"{found} {_entries(values)}")
    kept_bounds = " and ".join(f"{c} ({values[index][c.metric]:.4g})" for c in constraints)
    return Choice(index, f"keeps {kept_bounds} and {found} the {len(kept)} of {_entries(values)} that do")


def within(
    values: Sequence[Values],
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint],
    *,
    weights: Mapping[str, float],
    best: str | None,
) -> tuple[Choice, list[int]]:
    """The entry that weights, or what is to be best, or neither (the knee), select of those that keep the constraints;
    and which these are.

    Raises:
        ConfigError: a name or a weight does not fit, or there are weights and something to be best.
        RunError: the front is empty, or no entry keeps the constraints.
    """
    if weights and best:
        raise ConfigError("preferences and what is to be best are two ways to select; give one of them")
    # Asked first, because it has the words for unknown names and for bounds out of reach.
    choice = where(values, objectives, constraints, best or objectives[0].name)
    kept = [i for i, v in enumerate(values) if all(c.violation(v[c.metric]) == 0 for c in constraints)]
    if not best:
        among = [values[i] for i in kept]
        found = prefer(among, objectives, weights) if weights else knee(among, objectives)
        choice = Choice(kept[found.index], found.reason)
    return choice, kept


def parse_preferences(text: str) -> dict[str, float]:
    """Reads `METRIC=WEIGHT,METRIC=WEIGHT`; `prefer` checks the names against a front's objectives.

    Raises:
        ConfigError: the text has another form, or names a metric twice.
    """
    weights: dict[str, float] = {}
    for part in re.split(r",(?![^\[]*\])", text):  # a group's name may have a comma
        name, _, number = (word.strip() for word in part.rpartition("="))
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not name or math.isnan(weight):
            raise ConfigError(f"preference '{part.strip()}' is not of the form 'ndcg@10=3,ild@10=1'")
        if name in weights:
            raise ConfigError(f"preference '{text}' names {name} twice; expected each objective once")
        weights[name] = weight
    return weights


def _regrets(values: Sequence[Values], objectives: Sequence[Objective]) -> NDArray[np.float64]:
    """`(n, d)`: 0 at the front's best value, 1 at its worst; all 0 where they are the same."""
    if not values:
        raise RunError(f"{EMPTY}, or resume the search with more candidates")
    # Normalised values grow towards the ideal whatever the direction.
    scores = np.array([[o.normalise(v[o.name]) for o in objectives] for v in values])
    best, span = scores.max(axis=0), np.ptp(scores, axis=0)
    return np.asarray((best - scores) / np.where(span > 0, span, 1.0))


def _lowest(*keys: NDArray[np.float64]) -> int:
    """The index of the lowest first key; of equals, the lowest second key, and then the lowest index."""
    return int(np.lexsort([key.round(_DIGITS) for key in reversed(keys)])[0])


def _check_name(name: str, known: Sequence[str] | Values, what: str) -> None:
    if name not in known:
        raise ConfigError(f"'{name}' is no {what} of this front; {nearest(name, known)}")


def _entries(values: Sequence[Values]) -> str:
    return "1 entry" if len(values) == 1 else f"{len(values)} entries"


def _scores(index: int, values: Sequence[Values], objectives: Sequence[Objective]) -> str:
    """Each objective's value, with the front's best one."""
    best = {o.name: max((v[o.name] for v in values), key=o.normalise) for o in objectives}
    return ", ".join(f"{name} {values[index][name]:.4g} (best {top:.4g})" for name, top in best.items())


def _out_of_reach(values: Sequence[Values], constraints: Sequence[Constraint]) -> str:
    """What the entry reaches whose largest violation, as a share of the metric's range, is the smallest."""
    missed = np.array([[c.violation(v[c.metric]) for c in constraints] for v in values])
    span = np.ptp([[v[c.metric] for c in constraints] for v in values], axis=0)
    nearest_entry = values[_lowest((missed / np.where(span > 0, span, 1.0)).max(axis=1), missed.sum(axis=1))]
    wished = " and ".join(map(str, constraints))
    reached = " and ".join(f"{c.metric} {_reachable(nearest_entry[c.metric], c)}" for c in constraints)
    return f"no entry keeps {wished}; the nearest of {_entries(values)} has {reached}; relax the bounds to that"


def _reachable(value: float, constraint: Constraint) -> str:
    """The value to four decimals, rounded so that as a bound it is kept."""
    rounding = ROUND_FLOOR if constraint.at_least else ROUND_CEILING
    return f"{Decimal(str(value)).quantize(Decimal('0.0001'), rounding).normalize():f}"
