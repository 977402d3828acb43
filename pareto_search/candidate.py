"""Candidates, attempts and evaluations: what is proposed, what is executed and what comes out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

GeneValue = float | int | str | bool
Genes = Mapping[str, GeneValue]
"""Gene name -> value, in natural units (never a logarithm)."""
Kind = Literal["trained", "merged", "fused", "early"]
Deed = Literal["begin", "ask", "merge", "promote", "fuse"]
"""What a search decides: to evaluate the first towers of the warm start, to train a new candidate, to merge two, to let
one go on to the next rung, or to fuse some.
"""
INITIALS: Mapping[Kind, str] = {"trained": "c", "merged": "m", "fused": "f", "early": "e"}


def candidate_id(number: int, kind: Kind = "trained") -> str:
    """The id of the `number`-th candidate of its kind in a search: 7 -> `c0007`, or `m0007` for a merged one."""
    return f"{INITIALS[kind]}{number:04d}"


FIRST_TOWERS, WARM_START = candidate_id(0, "early"), candidate_id(0, "merged")
"""The first towers of the warm start, and all of it."""


@dataclass(frozen=True)
class Candidate:
    """A proposed point: its training genes, and the candidates it descends from.

    A merged one is the average of its parents' weights; its one gene is `share`, the first parent's part. The one
    without parents, `m0000`, is the warm start itself, with which others can be merged. An early one, `e0000`, is the
    first towers of that, until the others are there. A fused one averages the scores of those among its parents that
    suit each other best, which its worker finds.
    """

    id: str
    genes: Genes
    parents: tuple[str, ...] = ()
    kind: Kind = "trained"

    @property
    def is_warm_start(self) -> bool:
        """Whether it is all of the warm start, or its first towers. Its curve is found before it is run, so that how
        long it takes says nothing of the others.
        """
        return self.kind != "trained" and not self.parents


@dataclass(frozen=True)
class Forerunner:
    """A checkpoint of an older search, of whose genes and weights a candidate of a newer one is made.

    Attributes:
        id: its folder in the newer search's run folder: `old/c0007`.
        steps: the training steps of it and of all whose weights are in it.
    """

    id: str
    genes: Genes
    steps: int


class Leg(NamedTuple):
    """A candidate's way to a rung, from the one before or from its start: decided, executed and reported as one."""

    candidate: str
    steps: int


@dataclass(frozen=True)
class Attempt:
    """One execution of a candidate's leg on a worker, counted from 1; a retry is a new attempt.

    Attributes:
        steps: the rung at which it ends; None is the full one.
        alone: whether nothing may run beside it on its worker, because the one before it was lost with its worker.
    """

    candidate: Candidate
    number: int = 1
    steps: int | None = None
    alone: bool = False


@dataclass(frozen=True)
class Evaluation:
    """The scores of one checkpoint with one setting on the validation part; immutable.

    Attributes:
        candidate: the candidate's id.
        attempt: the attempt that trained the checkpoint.
        steps: the training steps behind the checkpoint, its rung.
        setting: the setting's number; 0 is the checkpoint alone, without blend or re-ranking.
        serving: the setting's serving genes.
        values: every metric that the objectives and constraints name.
        margins: metric -> by how much it may seem to differ from the warm start's by chance: one standard error over
            users of the difference. Nothing where nobody has looked, or where it is the warm start.
    """

    candidate: str
    attempt: int
    steps: int
    setting: int
    serving: Genes
    values: Mapping[str, float] = field(default_factory=dict)
    margins: Mapping[str, float] = field(default_factory=dict)

    @property
    def entry(self) -> str:
        """The name under which it is selected, exported and deployed: `c0007-s03`."""
        return f"{self.candidate}-s{self.setting:02d}"
