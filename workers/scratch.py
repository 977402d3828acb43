"""A folder for what the workers of one search on one machine share while it runs."""

import fcntl
import os
import secrets
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX = "pareto-search-workers-"


def name() -> str:
    """A new one, which nobody can guess and prepare before us."""
    return PREFIX + secrets.token_hex(16)


def hold(folder: str) -> Path:
    """Makes the folder where files of this machine lie for a while, unless another worker has, and keeps it as long as
    this process lives. Those that nobody keeps, of searches that were killed, are removed.

    Args:
        folder: a `name`.
    """
    path = _path(folder)
    while True:
        path.mkdir(mode=0o700, exist_ok=True)
        held = os.open(path, os.O_RDONLY)  # closed as the process ends, however it ends
        fcntl.flock(held, fcntl.LOCK_SH)
        if path.exists() and os.path.samestat(os.fstat(held), path.stat()):
            break
        os.close(held)  # it was removed before anyone kept it
    for other in path.parent.glob(PREFIX + "*"):
        if other != path:
            _remove_deserted(other)
    return path


def discard(folder: str) -> None:
    """Removes it, if it is on this machine; who has mapped its files into memory keeps them."""
    shutil.rmtree(_path(folder), ignore_errors=True)


def _path(folder: str) -> Path:
    return Path(tempfile.gettempdir()) / folder


def _remove_deserted(folder: Path) -> None:
    with suppress(OSError):  # it is another user's, or in use, or gone
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        finally:
            os.close(lock)
