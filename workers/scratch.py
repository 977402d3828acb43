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

    Raises:
        OSError: there is no room, or no way to keep it.
    """
    path = _path(folder)
    while not _held(path):
        pass  # it was removed before anyone kept it
    for other in path.parent.glob(PREFIX + "*"):
        if other != path:
            _remove_deserted(other)
    return path


def discard(folder: str) -> None:
    """Removes it, if it is on this machine; who has mapped its files into memory keeps them."""
    with suppress(OSError):
        shutil.rmtree(_path(folder))


def _path(folder: str) -> Path:
    return Path(tempfile.gettempdir()) / folder


def _held(path: Path) -> bool:
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)  # closed as the process ends, however it ends
    except FileNotFoundError:
        return False
    fcntl.flock(lock, fcntl.LOCK_SH)
    if not _is(path, lock):
        os.close(lock)
        return False
    return True


def _remove_deserted(path: Path) -> None:
    with suppress(OSError):  # it is another user's, or in use, or gone
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(path, lock):
                shutil.rmtree(path)
        finally:
            os.close(lock)


def _is(path: Path, file: int) -> bool:
    """Whether what is open is still what is there."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
