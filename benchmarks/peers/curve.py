"""How the hypervolume of a search grew over time, and how two searches compare by it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Curve = Sequence[tuple[float, float]]
"""Seconds since the search's process began, and the hypervolume from then on."""

SHARE = 0.95
"""The part of its own final hypervolume at which a peer counts as having arrived."""


@dataclass(frozen=True)
class Comparison:
    """A peer beside our search of the same seed.

    Attributes:
        final: the peer's hypervolume in the end.
        seconds: the peer's until it has `SHARE` of that.
        ours: ours until we have as much for good; infinite where we never do.
        ratio: the peer's seconds over ours; above 1 we are faster, and 0 says that we never arrive.
    """

    trials: int
    final: float
    seconds: float
    ours: float
    ratio: float

    @classmethod
    def of(cls, peer: Curve, ours: Curve) -> "Comparison | None":
        """None for a peer without a hypervolume, which cannot be reached or missed."""
        if not peer or peer[-1][1] <= 0:
            return None
        final = peer[-1][1]
        theirs, mine = reached(peer, SHARE * final), kept(ours, SHARE * final)
        return cls(len(peer), final, theirs, mine, theirs / mine)


def reached(curve: Curve, value: float) -> float:
    """When the curve first has this hypervolume; infinite if never."""
    return next((seconds for seconds, volume in curve if volume >= value), math.inf)


def kept(curve: Curve, value: float) -> float:
    """When the curve comes to have this hypervolume for good; infinite if it ends below.

    On test a curve may fall: its entries were chosen on validation.
    """
    since = math.inf
    for seconds, volume in reversed(curve):
        if volume < value:
            break
        since = seconds
    return since
