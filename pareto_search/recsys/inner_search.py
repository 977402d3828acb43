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
"""So many settings, or those that are known, are evaluated before any is foretold."""
ROUNDS, LEAST, MOST = 6, 8, 32
"""It proposes in so many rounds; in more where a round would have more than `MOST` settings, in fewer where less than
`LEAST`.
"""
FORETOLD = 400
"""The settings among which a round chooses."""
SPREAD = 0.06
"""How far half of these are from what is between two good ones: a deviation, in units of a serving gene's range."""
ELITE = 32
"""How many settings are good: those that stand for all."""
MODELLED = 512
"""From so many evaluations the others are foretold, at most: the latest, which are where it matters."""
SMOOTHING, RANK = 1e-6, 1e-6
"""Enough that settings next to each other, or nearly in one plane, do no harm."""


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

    First come the model alone, what is fixed alone, and the known settings, or a Sobol sequence where few are known.
    Then follow rounds: values move smoothly with the settings, so a trend and radial basis functions through what was
    evaluated foretell many others, and those are evaluated that would add most. (A search for several objectives by
    such a surrogate: Akhtar and Shoemaker, Journal of Global Optimization 2016.)

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
        from scipy.stats import qmc  # only now: it takes .6 s to be imported, and a worker that is taught needs none

        sobol = qmc.Sobol(len(genes), rng=rng).random(FIRST)
        tried = np.concatenate([tried, sobol])[: min(FIRST, count + 1 - before)]
    settings += [space.from_unit(list(v)) for v in tried]
    values = [*evaluate(settings)]
    left = count + 1 - len(settings)
    rounds = max(min(ROUNDS, -(-left // LEAST)), -(-left // MOST)) if genes else 0
    for number in range(rounds):
        size = left * (number + 1) // rounds - left * number // rounds
        kept = [i for i, v in enumerate(values) if is_feasible(v, objectives, constraints)]
        among = kept or range(len(values))
        good = [among[i] for i in choose([values[i] for i in among], objectives, ELITE)]
        others = _others(tried[[i - before for i in good if i >= before]], len(genes), rng)
        metrics = [o.name for o in objectives] + [c.metric for c in constraints]
        foretold = _foretold(tried, values[before:], metrics, others)
        promising = _promising([*beside, *(values[i] for i in kept)], foretold, objectives, constraints)[:size]
        proposed = [space.from_unit(list(v)) for v in others[promising]]
        tried = np.concatenate([tried, others[promising]])
        settings += proposed
        values += evaluate(proposed)
    return list(zip(settings, values, strict=True))


def _others(good: Floats, dimensions: int, rng: np.random.Generator) -> Floats:
    """Settings to choose from: half of them anywhere, half near what is between two good ones, if there are any."""
    near = FORETOLD // 2 if len(good) else 0
    anywhere = rng.random((FORETOLD - near, dimensions))
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
    values: Sequence[Values],
    foretold: Sequence[Values],
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint],
) -> list[int]:
    """All that is foretold: first what would add most to the feasible values, then what is nearest to feasible."""
    misses = [sum(violations(v, objectives, constraints)) for v in foretold]
    kept = [i for i, miss in enumerate(misses) if miss == 0]
    chosen = choose([*values, *(foretold[i] for i in kept)], objectives, 2 * ELITE)
    first = [kept[i - len(values)] for i in chosen if i >= len(values)]
    return first + sorted(set(range(len(foretold))) - set(first), key=lambda i: (misses[i], i))
