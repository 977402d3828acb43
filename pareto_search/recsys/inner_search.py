"""The inner search: for one model, serving settings that together cover most hypervolume."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator

from pareto_search.archive import choose
from pareto_search.candidate import Genes
from pareto_search.objective import Constraint, Objective, Values, is_feasible, violations
from pareto_search.space import SearchSpace

Floats = NDArray[np.float64]

FIRST = 8
"""So many settings, or as many as are known if these are more, are evaluated before any is foretold."""
ROUNDS, ROUND = 12, 8
"""It proposes in so many rounds, but at least so many settings in each."""
FORETOLD = 400
"""The settings among which a round chooses, but at least twice as many as it takes."""
SPREAD = 0.06
"""How far half of these are from what is between two good ones: a deviation, in units of a serving gene's range."""
ELITE = 32
"""How many settings are good: those that stand for all."""
MODELLED = 512
"""From so many evaluations the others are foretold, at most: the latest, which are where it matters."""
SMOOTHING, RANK = 1e-6, 1e-6
"""Enough that settings next to each other, or nearly in one plane, do no harm."""
ROUNDING = 1e-9
"""By so much a foretold value may miss what is asked for: where all have the same it is foretold so nearly."""


def search_settings(
    evaluate: Callable[[Sequence[Genes]], Sequence[Values]],
    space: SearchSpace,
    objectives: Sequence[Objective],
    *,
    constraints: Sequence[Constraint] = (),
    count: int,
    seed: int,
    known: Sequence[Genes] = (),
    beside: Sequence[Values] = (),
) -> list[tuple[Genes, Values]]:
    """Serving settings of one model that together cover most hypervolume.

    First come the model alone, what is fixed alone, and the known settings, with some of a Sobol sequence where they
    are few. Then follow rounds: values move smoothly with the settings, so a trend and radial basis functions through
    what was evaluated foretell many others, and those are evaluated that would add most. (A search for several
    objectives by such a surrogate: Akhtar and Shoemaker, Journal of Global Optimization 2016.)

    Args:
        evaluate: from settings to their values on validation.
        space: serving genes only.
        constraints: what is good keeps these, if any setting does.
        count: how many settings to evaluate beside the model alone.
        known: settings that served a similar model well.
        beside: values that are there already, to which these are to add.

    Returns:
        Each setting with its values, the model alone first.
    """
    genes = space.genes
    rng = np.random.default_rng(seed)
    settings: list[Genes] = [{}, *([dict(space.fixed)] if space.fixed and count else [])]
    before = len(settings)  # what varies is not in these, so they have no place among the others
    known = [k for k in known if genes and k.keys() >= {g.name for g in genes}][: count + 1 - before]
    tried = np.array([space.to_unit(k) for k in known]).reshape(len(known), len(genes))
    if genes and len(known) < FIRST:
        from scipy.stats import qmc  # only now: it takes .6 s to be imported, and who knows enough needs none

        sobol = qmc.Sobol(len(genes), rng=rng).random(FIRST)
        tried = np.concatenate([tried, sobol])[: min(FIRST, count + 1 - before)]
    settings += [space.from_unit(list(v)) for v in tried]
    values = [*evaluate(settings)]
    left = count + 1 - len(settings)
    rounds = min(ROUNDS, -(-left // ROUND)) if genes else 0
    metrics = [o.name for o in objectives] + [c.metric for c in constraints]
    for number in range(rounds):
        size = left * (number + 1) // rounds - left * number // rounds
        kept = [i for i, v in enumerate(values) if is_feasible(v, objectives, constraints)]
        among = kept or range(len(values))
        good = [among[i] for i in choose([values[i] for i in among], objectives, ELITE)]
        others = _others(tried[[i - before for i in good if i >= before]], len(genes), max(FORETOLD, 2 * size), rng)
        foretold = _foretold(tried, values[before:], metrics, others)
        covered = [*beside, *(values[i] for i in kept)]
        promising = _promising(covered, foretold, objectives, constraints, size)
        proposed = [space.from_unit(list(v)) for v in others[promising]]
        tried = np.concatenate([tried, others[promising]])
        settings += proposed
        values += evaluate(proposed)
    return list(zip(settings, values, strict=True))


def _others(good: Floats, dimensions: int, number: int, rng: np.random.Generator) -> Floats:
    """Settings to choose from: half of them anywhere, then half near what is between good ones, if there are any."""
    near = number // 2 if len(good) else 0
    anywhere = rng.random((number - near, dimensions))
    one, other = good[rng.integers(max(len(good), 1), size=(2, near))]
    between = one + rng.random((near, 1)) * (other - one) + rng.normal(0.0, SPREAD, (near, dimensions))
    return np.clip(np.concatenate([anywhere, between]), 0.0, np.nextafter(1.0, 0.0))


def _foretold(tried: Floats, values: Sequence[Values], metrics: Sequence[str], others: Floats) -> list[Values]:
    """What the latest evaluations foretell of other settings; NaN where none of them has all the metrics."""
    tried, known = tried[-MODELLED:], np.array([[v[m] for m in metrics] for v in values[-MODELLED:]])
    sound = np.isfinite(known).all(axis=1)
    found = np.full((len(others), len(metrics)), np.nan)
    if sound.any():
        # The trend is fitted apart, as far as the settings tell it: they may be two, or all in one plane.
        tried, known = tried[sound], known[sound]
        trend = np.linalg.lstsq(_affine(tried), known, rcond=RANK)[0]
        rest = RBFInterpolator(tried, known - _affine(tried) @ trend, kernel="linear", degree=0, smoothing=SMOOTHING)
        found = _affine(others) @ trend + rest(others)
    return [dict(zip(metrics, row, strict=True)) for row in found.tolist()]


def _affine(settings: Floats) -> Floats:
    """With a column for the trend's constant."""
    return np.column_stack([np.ones(len(settings)), settings])


def _promising(
    covered: Sequence[Values],
    foretold: Sequence[Values],
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint],
    size: int,
) -> list[int]:
    """So many of what is foretold: what would stand for all with what is covered already, then what is near good ones.

    Values are not as smooth as they are foretold, so where nothing is to be expected, something better may be found by
    chance near what is good. Where nothing is feasible, what misses least comes first.
    """
    misses = [sum(violations(v, objectives, constraints)) for v in foretold]
    kept = [i for i, miss in enumerate(misses) if miss <= ROUNDING]
    chosen = choose([*covered, *(foretold[i] for i in kept)], objectives, ELITE + size)
    first = [kept[i - len(covered)] for i in chosen if i >= len(covered)]
    rest = sorted(set(range(len(foretold))) - set(first), key=lambda i: (max(misses[i], ROUNDING), -i))
    return (first + rest)[:size]
