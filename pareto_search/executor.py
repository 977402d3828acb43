"""What the loop of a search asks of whatever runs its attempts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pareto_search.candidate import Attempt, Evaluation

Files = Mapping[str, bytes]
"""The files of a checkpoint, or of a state: a checkpoint with what its training needs to go on."""


@dataclass(frozen=True)
class Result:
    """What a finished attempt sends back.

    Attributes:
        evaluations: the checkpoint alone first, then its settings.
        files: the checkpoint, or the state below the full rung.
        seconds: training and evaluation.
    """

    evaluations: tuple[Evaluation, ...]
    files: Files
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: with a result, with an error, or lost with its worker.

    Attributes:
        lost: it ended with its worker, or with others beside it there, of which any may be to blame.
        seconds: from when its worker took it up.
    """

    attempt: Attempt
    result: Result | None = None
    error: str = ""
    lost: bool = False
    seconds: float = 0.0


class Executor(Protocol):
    """Runs attempts somewhere."""

    @property
    def free(self) -> int:
        """How many attempts can start at once."""
        ...

    @property
    def idle(self) -> int:
        """How many attempts can start at once that are to be alone: how many workers have nothing to do."""
        ...

    @property
    def busy(self) -> int:
        """How many attempts are under way."""
        ...

    def submit(self, attempt: Attempt, sources: Sequence[Files] = ()) -> str:
        """Starts an attempt and names its worker.

        Args:
            sources: what it starts from, if not from the warm start: its own state at the last rung, the checkpoint
                of the parent that it inherits from, or those that it merges or fuses.
        """
        ...

    def wait(self) -> list[Outcome]:
        """Waits until attempts end or workers become free; each attempt ends in exactly one outcome.

        Raises:
            ClusterError: no worker is left.
        """
        ...
