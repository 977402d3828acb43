"""What can go wrong, as one small tree.

A message says what was wrong, what was expected and what to do, in one line: the command line prints it as it is.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class ParetoSearchError(Exception):
    """Anything this project raises on purpose."""


class UserError(ParetoSearchError):
    """The user can mend it: the command line prints the one line and exits with 2."""


class ConfigError(UserError):
    """The config, an option or a name in it does not fit."""


class DataError(UserError):
    """A data set, a column or a value in it does not fit."""


class RunError(UserError):
    """A run folder, its record or a name in it does not fit."""


class AbsentError(RunError):
    """The place for a record holds no such search; it may come yet."""


class TroubleError(RunError):
    """A disk or a database fails, whatever was asked of it."""


class CheckpointError(UserError):
    """A checkpoint is missing, torn or changed, or its base model is not there."""


class DamageError(CheckpointError):
    """The files of a checkpoint are not those that were written."""


class ClusterError(UserError):
    """Ray cannot be reached, or lacks what the search asks for."""


class SearchError(UserError):
    """The search cannot go on."""


class DivergedError(ParetoSearchError):
    """A loss or a weight is no longer a number; here and not with training, whose torch the driver does without."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that ends a message about an unknown name: the closest known one, or all of them.

    >>> nearest("rnak", ["rank", "alpha"])
    "did you mean 'rank'?"
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"expected one of: {', '.join(names)}"
