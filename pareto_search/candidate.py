"""Candidates, attempts and evaluations: what is proposed, what is executed and what comes out."""

from collections.abc import Mapping
from dataclasses import dataclass, field

GeneValue = float | int | str | bool
Genes = Mapping[str, GeneValue]
"""Gene name -> value, in natural units (never a logarithm)."""


def candidate_id(number: int) -> str:
    """The id of the `number`-th candidate of a search: 7 -> `c0007`."""
    return f"c{number:04d}"


@dataclass(frozen=True)
class Candidate:
    """A proposed point: its training genes, and the candidates it descends from."""

    id: str
    genes: Genes
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Attempt:
    """One execution of a candidate on a worker, counted from 1; a retry is a new attempt."""

    candidate: Candidate
    number: int = 1


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
    """

    candidate: str
    attempt: int
    steps: int
    setting: int
    serving: Genes
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def entry(self) -> str:
        """The name under which it is selected, exported and deployed: `c0007-s03`."""
        return f"{self.candidate}-s{self.setting:02d}"
