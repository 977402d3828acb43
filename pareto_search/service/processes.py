"""Processes that outlive the service, each with a folder through which the two speak.

Whether one is there is a question to the system and not to memory: it holds the lock that it was born with. So a
service that was killed and starts again finds what goes on, and what has ended meanwhile.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pareto_search.errors import RunError, UserError

LOCK, STATUS, LOG = "runner.lock", "status.json", "log.txt"
TRASH = "trash"
STOP = signal.SIGUSR1
"""Asks a process to stop: Ray has plans of its own for SIGTERM, and a process that has not begun simply ends."""
EVERY = 0.5
"""Seconds between two looks at the processes."""
GRACE = 60.0
"""Seconds that a process has to stop in; a worker may be in the middle of something."""


class Processes:
    """The processes of one kind: `python -m MODULE FOLDER ARGUMENTS`."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._module, self._arguments = module, arguments
        self._asked: dict[Path, float] = {}
        self._children: dict[Path, subprocess.Popen[bytes]] = {}

    def is_running(self, folder: Path) -> bool:
        """Whether a folder's process is there."""
        if (child := self._children.get(folder)) is not None:
            child.poll()  # else it stays behind as a zombie
        with _held(folder) as free:
            if free:
                self._asked.pop(folder, None)
            return not free

    def start(self, folder: Path, prepare: Callable[[], None]) -> None:
        """Starts a folder's process, unless it is there: the service was killed before it could note that.

        Args:
            prepare: writes what the process reads.
        """
        with _held(folder) as lock:
            if lock:
                prepare()
                forget_status(folder)
                os.truncate(lock, 0)
                self._children[folder] = self._spawn(folder, lock)

    def stop(self, folder: Path) -> None:
        """Asks a process to stop, and kills it where it has not done so in time; called until it is gone."""
        asked = self._asked.get(folder)
        if asked is None:
            if _signal(folder, STOP):
                self._asked[folder] = time.monotonic()
        elif time.monotonic() - asked > GRACE:
            _signal(folder, signal.SIGKILL)

    def _spawn(self, folder: Path, lock: int) -> "subprocess.Popen[bytes]":
        """The process, which inherits the lock; whoever else holds it lets go."""
        kept = {k: v for k, v in os.environ.items() if k != "PARETO_SEARCH_TOKEN"}  # which is none of its business
        with (folder / LOG).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", self._module, str(folder), *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=kept,
                pass_fds=[lock],
                start_new_session=True,
            )


def status_of(folder: Path) -> dict[str, Any]:
    """What a folder's process has written last; empty where it has not."""
    try:
        content: dict[str, Any] = json.loads((folder / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content


def forget_status(folder: Path) -> None:
    """Lets a folder's process be as one that has not begun."""
    (folder / STATUS).unlink(missing_ok=True)


def begin(folder: Path) -> None:
    """What such a process does first: from here on it can be told to stop, which raises KeyboardInterrupt in it."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(STOP, stop)
    # A service that a script has started in the background ignores it, and so would Ray's workers, which need it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    (folder / LOCK).write_text(str(os.getpid()))


@contextmanager
def kept(root: Path, name: str, look: Callable[[], None]) -> Iterator[None]:
    """Looks after the processes whose folders are in `root / name` for the length of a block; they go on after it.

    Raises:
        RunError: the root cannot be written.
    """
    try:
        for folder in (root / name, root / TRASH):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{root} cannot be made ({error.strerror}); give --root a folder that can") from None
    for folder in (root / TRASH).iterdir():  # the service was killed while it deleted
        shutil.rmtree(folder, ignore_errors=True)
    over = threading.Event()

    def keep() -> None:
        while not over.wait(EVERY):
            with minded(name):
                look()

    with minded(name):
        look()
    keeper = threading.Thread(target=keep, daemon=True, name=name)
    keeper.start()
    try:
        yield
    finally:
        over.set()
        keeper.join()


@contextmanager
def minded(what: str) -> Iterator[None]:
    """Lets the care of processes go on where it fails over this, and the log say so."""
    try:
        yield
    except (UserError, OSError) as error:  # a full disk, a database that is away: it may be mended soon
        with suppress(OSError):  # the log may be on that disk
            print(f"pareto-search: {what}: {error}", file=sys.stderr, flush=True)
    except Exception:  # a mistake of ours, perhaps over one process alone: the others are still looked after
        with suppress(OSError):
            traceback.print_exc()


@contextmanager
def _held(folder: Path) -> Iterator[int]:
    """The lock of a folder's process for the length of the block, a file descriptor; 0 where the process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        yield 0
        return
    try:
        yield lock
    finally:
        os.close(lock)


def _signal(folder: Path, number: int) -> bool:
    """To the process that holds the lock, whose id is therefore still its own; False where it has not begun."""
    text = (folder / LOCK).read_text()
    if text:
        with suppress(ProcessLookupError):  # it has ended this moment
            os.kill(int(text), number)
    return bool(text)
