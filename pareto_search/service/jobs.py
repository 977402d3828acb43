"""Searches as processes: some run, the others queue, and all of them outlive the service.

Whether a search's process is there is a question to the system and not to memory: the process holds the lock that it
was born with. So a service that was killed and starts again finds what goes on, and what has ended meanwhile.
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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pareto_search.config import SearchConfig
from pareto_search.errors import AbsentError, RunError, UserError
from pareto_search.results import write_whole
from pareto_search.service.catalogue import Catalogue
from pareto_search.service.record import ConflictError, Job, Record
from pareto_search.service.runner import CONFIG, LOCK, RUN, STATUS, STOP
from pareto_search.store import Store

TRASH = "trash"
EVERY = 0.5
"""Seconds between two looks at the processes."""
GRACE = 60.0
"""Seconds that a process has to stop in; a worker may be in the middle of something."""


class Jobs:
    """The searches of a service.

    Args:
        root: the service's folder.
        address: of the Ray cluster that searches use; None lets each start its own.
        most: how many run at the same time.
        store: the URL of a database for the records of new searches; None leaves each in its run folder.
    """

    def __init__(
        self,
        root: Path,
        record: Record,
        catalogue: Catalogue,
        *,
        address: str | None = None,
        most: int,
        store: str | None = None,
    ) -> None:
        self._folder, self._record, self._catalogue = root, record, catalogue
        self._address, self._most, self._store = address, most, store
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._asked: dict[str, float] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Looks after the processes for the length of a block; they go on after it.

        Raises:
            RunError: the root cannot be written.
        """
        try:
            for name in ("searches", TRASH):
                (self._folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self._folder} cannot be made ({error.strerror}); give --root a folder that can") from None
        for folder in (self._folder / TRASH).iterdir():  # the service was killed while it deleted
            shutil.rmtree(folder, ignore_errors=True)
        self.look()
        keeper = threading.Thread(target=self._keep, daemon=True, name="jobs")
        keeper.start()
        try:
            yield
        finally:
            self._over.set()
            keeper.join()

    def folder(self, name: str) -> Path:
        """The folder of a search that is in the record."""
        return self._folder_of(self._record.search(name))

    def run(self, name: str) -> Path:
        """The run folder of a search, which need not be there yet."""
        return self.folder(name) / RUN

    def status(self, job: Job) -> dict[str, Any]:
        """What its process has written last: notice, progress, and how it ended."""
        return _status(self._folder_of(job))

    def pause(self, name: str) -> Job:
        """Stops it so that it can go on later.

        Raises:
            MissingError: there is no such search.
            ConflictError: it has ended.
        """
        return self._stop(name, "pause", "paused", ("queued", "running", "paused"))

    def cancel(self, name: str) -> Job:
        """Stops it for good. Raises as `pause`."""
        return self._stop(name, "cancel", "cancelled", ("queued", "running", "paused", "failed", "cancelled"))

    def resume(self, name: str, **budget: float) -> Job:
        """Lets a search go on, with a new budget where one is given.

        Raises:
            MissingError: there is no such search.
            ConflictError: it runs, or was cancelled.
            ConfigError: the budget does not fit.
        """
        with self._lock:
            job = self._record.search(name)
            if job.state not in ("paused", "failed", "finished"):
                raise ConflictError(f"search '{name}' is {job.state}; what can go on is paused, failed or finished")
            config = {**job.config, "search": {**job.config.get("search", {}), **budget}}
            SearchConfig.parse(self._catalogue.resolved(config))
            self._record.change(name, config=config, state="queued", wish="run", error=None)
        self.look()
        return self._record.search(name)

    def delete(self, name: str) -> None:
        """Removes a search with all of its files.

        Raises:
            MissingError: there is no such search.
            ConflictError: it runs.
        """
        with self._lock:
            if self._record.search(name).state == "running":
                raise ConflictError(f"search '{name}' is running; cancel it first")
            folder, trash = self.folder(name), self._folder / TRASH / name
            _forget(folder / RUN)
            if folder.is_dir():
                folder.rename(trash)
            self._record.remove_search(name)
        shutil.rmtree(trash, ignore_errors=True)

    def look(self) -> None:
        """Takes notice of what has ended, and starts what waits as far as there is room."""
        with self._lock:
            for job in self._record.searches("running"):
                self._follow(job)
            room = self._most - len(self._record.searches("running"))
            for job in self._record.searches("queued")[:room] if room > 0 else ():
                self._start(job)

    def _keep(self) -> None:
        while not self._over.wait(EVERY):
            try:
                self.look()
            except (UserError, OSError) as error:  # a full disk, a database that is away: it may be mended soon
                print(f"pareto-search: {error}", file=sys.stderr, flush=True)

    def _follow(self, job: Job) -> None:
        """Brings the record to where the process is."""
        folder = self.folder(job.id)
        if (child := self._children.get(job.id)) is not None:
            child.poll()  # else it stays behind as a zombie
        with _held(folder) as free:
            if free:
                ended = _status(folder)
                self._asked.pop(job.id, None)
                if ended["ended"] == "finished":
                    self._record.change(job.id, state="finished", wish="run")
                elif job.wish != "run":
                    self._record.change(job.id, state="paused" if job.wish == "pause" else "cancelled", wish="run")
                else:
                    error = ended["error"] or "its process was ended from outside, or had no memory left; resume it"
                    self._record.change(job.id, state="failed", error=error)
                return
        if job.wish == "run":
            return
        asked = self._asked.get(job.id)
        if asked is None:
            if _signal(folder, STOP):
                self._asked[job.id] = time.monotonic()
        elif time.monotonic() - asked > GRACE:
            _signal(folder, signal.SIGKILL)

    def _folder_of(self, job: Job) -> Path:
        return self._folder / "searches" / job.id

    def _start(self, job: Job) -> None:
        folder = self._folder_of(job)
        try:
            resolved = self._catalogue.resolved(job.config)
            # Its name in a database that many searches share; one that was begun in a file goes on there.
            if self._store and not (folder / RUN / "search.db").is_file():
                resolved |= {"store": self._store, "name": job.id}
            config = SearchConfig.parse(resolved)
            folder.mkdir(parents=True, exist_ok=True)
            with _held(folder) as lock:
                if lock:  # else it runs: the service was killed before it could note that
                    write_whole(folder / CONFIG, config.to_yaml())
                    (folder / STATUS).unlink(missing_ok=True)
                    os.truncate(lock, 0)
                    self._children[job.id] = self._spawn(folder, lock)
        except (UserError, OSError) as error:
            self._record.change(job.id, state="failed", error=str(error))
        else:
            self._record.change(job.id, state="running")

    def _spawn(self, folder: Path, lock: int) -> "subprocess.Popen[bytes]":
        """The process, which inherits the lock; whoever else holds it lets go."""
        command = [sys.executable, "-m", "pareto_search.service.runner", str(folder)]
        kept = {k: v for k, v in os.environ.items() if k != "PARETO_SEARCH_TOKEN"}  # which is none of its business
        with (folder / "log.txt").open("ab") as log:
            return subprocess.Popen(
                [*command, self._address] if self._address else command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=kept,
                pass_fds=[lock],
                start_new_session=True,
            )

    def _stop(self, name: str, wish: str, state: str, stoppable: tuple[str, ...]) -> Job:
        with self._lock:
            job = self._record.search(name)
            if job.state not in stoppable:
                raise ConflictError(f"search '{name}' is {job.state}; there is nothing to {wish}")
            self._record.change(name, **({"wish": wish} if job.state == "running" else {"state": state}))
        self.look()
        return self._record.search(name)


@contextmanager
def only_service(root: Path) -> Iterator[None]:
    """Keeps the root to one service.

    Raises:
        RunError: another one has it, or it cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = (root / "service.lock").open("w")
    except OSError as error:
        raise RunError(f"{root} cannot be written ({error.strerror}); give --root a folder that can") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"another service uses {root}; stop it, or give --root another folder") from None
        yield


@contextmanager
def _held(folder: Path) -> Iterator[int]:
    """The lock of a search's process for the length of the block, a file descriptor; 0 where the process has it."""
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


def _forget(run: Path) -> None:
    """Removes a search's record from a database that others share."""
    if (run / "search.yaml").is_file():
        config = SearchConfig.load(run / "search.yaml")
        if config.store:
            with suppress(AbsentError):
                store = Store.open(config.store, config.name)
                store.remove()
                store.close()


def _signal(folder: Path, number: int) -> bool:
    """To the process that holds the lock, whose id is therefore still its own; False where it has not begun."""
    text = (folder / LOCK).read_text()
    if text:
        with suppress(ProcessLookupError):  # it has ended this moment
            os.kill(int(text), number)
    return bool(text)


def _status(folder: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"notice": None, "progress": None, "ended": None, "error": None}
    return content
