"""Objectives and constraints: named metrics with a direction, a floor and an ideal."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pareto_search.errors import ConfigError

Direction = Literal["maximise", "minimise"]
Values = Mapping[str, float]
"""Metric name -> raw value, in the metric's own direction."""


@dataclass(frozen=True)
class Objective:
    """A metric to improve.

    Attributes:
        name: the metric, such as `ndcg@10`.
        direction: whether more or less of it is better.
        reference: the floor under which a model is worthless; the hypervolume is measured from here.
        ideal: scales the hypervolume; no bound.
    """

    name: str
    direction: Direction
    reference: float
    ideal: float

    @property
    def sign(self) -> float:
        """By what a raw value is multiplied for more to be better."""
        return 1.0 if self.direction == "maximise" else -1.0

    def normalise(self, value: float) -> float:
        """0 at the reference and 1 at the ideal, whatever the direction."""
        return (value - self.reference) / (self.ideal - self.reference)

    def violation(self, value: float) -> float:
        """By how much the reference is missed, in distances to the ideal; 0 where it is kept, infinite for NaN."""
        return math.inf if math.isnan(value) else max(0.0, -self.normalise(value))


@dataclass(frozen=True)
class Constraint:
    """A bound on a metric that every front member keeps, such as `coverage@10 >= 0.05`."""

    metric: str
    at_least: bool
    bound: float

    @classmethod
    def parse(cls, text: str) -> "Constraint":
        """Reads `METRIC >= NUMBER` or `METRIC <= NUMBER`.

        Raises:
            ConfigError: the text has another form.
        """
        match = re.fullmatch(r"\s*([a-z_]+(?:@\d+)?(?:\[[^\[\]]+\])?)\s*(>=|<=)\s*([-+.\deE]+)\s*", text)
        try:
            if match is None:
                raise ValueError
            return cls(match[1], match[2] == ">=", float(match[3]))
        except ValueError:
            raise ConfigError(
                f"constraint '{text}' is not of the form 'coverage@10 >= 0.05' or 'latency <= 5'"
            ) from None

    def violation(self, value: float) -> float:
        """By how much the bound is missed; 0 where it is kept, infinite for NaN."""
        if math.isnan(value):
            return math.inf
        return max(0.0, self.bound - value if self.at_least else value - self.bound)

    def __str__(self) -> str:
        return f"{self.metric} {'>=' if self.at_least else '<='} {self.bound:.12g}"


def violations(values: Values, objectives: Sequence[Objective], constraints: Sequence[Constraint]) -> list[float]:
    """How far a point is from feasible: one number per objective (its reference), then one per constraint; 0 is kept.

    References count in units of the distance to the ideal, constraints in their metric's units, or of their bound where
    that is above 1: a million parameters too many are not to hide all else.
    """
    return [
        *(o.violation(values[o.name]) for o in objectives),
        *(c.violation(values[c.metric]) / max(1.0, abs(c.bound)) for c in constraints),
    ]


def is_feasible(values: Values, objectives: Sequence[Objective], constraints: Sequence[Constraint]) -> bool:
    """Whether every reference and every constraint is kept; NaN never is."""
    return all(v == 0 for v in violations(values, objectives, constraints))
