"""Folders that are filled before the record names them: gone again where that fails, even by a kill."""

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

MARK = ".unfinished"


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """A new folder, which its owner alone may open, for a block that fills it and has the record name it."""
    folder.mkdir(mode=0o700, parents=True)  # what is there already is not ours to remove
    try:
        (folder / MARK).touch()
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    (folder / MARK).unlink()  # where that fails, the record names the folder, and a `sweep` keeps it


def sweep(root: Path, known: Collection[str]) -> None:
    """Removes what a kill has left of folders in `root` that were being filled, but for those that the record names.

    What has no mark stays, whatever the record says: it may be the wrong one.
    """
    for mark in root.glob(f"*/{MARK}"):
        if mark.parent.name in known:
            mark.unlink()
        else:
            shutil.rmtree(mark.parent, ignore_errors=True)
