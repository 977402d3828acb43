"""What the loop of a search asks of whatever runs its attempts."""

from dataclasses import dataclass
from typing import Protocol

from pareto_search.candidate import Attempt, Evaluation


@dataclass(frozen=True)
class Result:
    """What a finished attempt sends back.

    Attributes:
        evaluations: the checkpoint alone first, then its settings.
        files: the checkpoint.
        seconds: training and evaluation.
    """

    evaluations: tuple[Evaluation, ...]
    files: dict[str, bytes]
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: with a result, with an error, or lost with its worker.

    Attributes:
        lost: the worker died, which says nothing about the candidate.
        seconds: from submission.
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
    def busy(self) -> int:
        """How many attempts are under way."""
        ...

    def submit(self, attempt: Attempt) -> str:
        """Starts an attempt and names its worker."""
        ...

    def wait(self) -> list[Outcome]:
        """Waits until attempts end or workers become free; each attempt ends in exactly one outcome.

        Raises:
            ClusterError: no worker is left.
        """
        ...
