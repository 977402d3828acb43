"""Searches as processes: some run, the others queue, and all of them outlive the service."""

import fcntl
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from pareto_search import results
from pareto_search.config import SearchConfig, read
from pareto_search.database import same_database
from pareto_search.errors import AbsentError, RunError, UserError
from pareto_search.results import write_whole
from pareto_search.service.catalogue import Catalogue
from pareto_search.service.processes import TRASH, Processes, kept, minded, status_of
from pareto_search.service.record import ConflictError, Job, Record
from pareto_search.service.runner import CONFIG, RUN
from pareto_search.store import Store


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
        self._most, self._store = most, store
        self._processes = Processes("pareto_search.service.runner", *([address] if address else []))
        self._lock = threading.Lock()

    def kept(self) -> AbstractContextManager[None]:
        """Looks after the processes for the length of a block; raises as `processes.kept`."""
        if self._store:
            for job in self._record.searches():
                _renew(self.run_of(job), self._store)
        return kept(self._folder, "searches", self.look)

    def folder(self, name: str) -> Path:
        """The folder of a search that is in the record."""
        return self._folder_of(self._record.search(name))

    def run(self, name: str) -> Path:
        """The run folder of a search, which need not be there yet."""
        return self.folder(name) / RUN

    def run_of(self, job: Job) -> Path:
        """The same, of a job at hand."""
        return self._folder_of(job) / RUN

    def finished(self, name: str) -> Path:
        """The run folder of a search that has ended with a front.

        Raises:
            MissingError: there is no such search.
            ConflictError: it has not ended, or has gone on since.
        """
        if not (self.run(name) / results.FRONT).is_file():
            raise ConflictError(f"search '{name}' has not ended; its entries are there when it has")
        return self.run(name)

    def status(self, job: Job) -> dict[str, Any]:
        """What its process has written last: notice, progress, and how it ended."""
        return {"notice": None, "progress": None, "ended": None, "error": None} | status_of(self._folder_of(job))

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
            self._record.change_search(name, config=config, state="queued", wish="run", error=None)
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
                with minded(f"search {job.id}"):
                    self._follow(job)
            room = self._most - len(self._record.searches("running"))
            for job in self._record.searches("queued")[:room] if room > 0 else ():
                self._start(job)

    def _follow(self, job: Job) -> None:
        """Brings the record to where the process is."""
        folder = self._folder_of(job)
        if self._processes.is_running(folder):
            if job.wish != "run":
                self._processes.stop(folder)
            return
        ended = self.status(job)
        if ended["ended"] == "finished":
            self._record.change_search(job.id, state="finished", wish="run")
        elif job.wish != "run":
            self._record.change_search(job.id, state="paused" if job.wish == "pause" else "cancelled", wish="run")
        else:
            error = ended["error"] or "its process was ended from outside, or had no memory left; resume it"
            self._record.change_search(job.id, state="failed", error=error)

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
            self._processes.start(folder, lambda: write_whole(folder / CONFIG, config.to_yaml(), private=True))
        except (UserError, OSError) as error:
            self._record.change_search(job.id, state="failed", error=str(error))
        else:
            self._record.change_search(job.id, state="running")

    def _stop(self, name: str, wish: str, state: str, stoppable: tuple[str, ...]) -> Job:
        with self._lock:
            job = self._record.search(name)
            if job.state not in stoppable:
                raise ConflictError(f"search '{name}' is {job.state}; there is nothing to {wish}")
            self._record.change_search(name, **({"wish": wish} if job.state == "running" else {"state": state}))
        self.look()
        return self._record.search(name)


@contextmanager
def only_service(root: Path) -> Iterator[str]:
    """Keeps the root to one service, and gives what tells the root from every other, wherever it lies.

    Raises:
        RunError: another one has it, or it cannot be written.
    """
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds tokens of deployments
        file = (root / "service.lock").open("w")
    except OSError as error:
        raise RunError(f"{root} cannot be written ({error.strerror}); give --root a folder that can") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"another service uses {root}; stop it, or give --root another folder") from None
        if not (root / "service.id").is_file():
            write_whole(root / "service.id", secrets.token_hex(8))
        yield (root / "service.id").read_text(encoding="utf-8")


def _renew(run: Path, store: str) -> None:
    """Lets a config that names the service's database name it as the service does now: the password may be another.

    Raises:
        TroubleError: the disk is full, or the folder cannot be written.
    """
    path = run / "search.yaml"
    try:
        held = read(path).get("store")
        if held in (None, store) or not same_database(held, store):
            return
        config = SearchConfig.load(path)
    except UserError:  # not there yet, or of a release whose config reads otherwise
        return
    write_whole(path, config.model_copy(update={"store": store}).to_yaml(), private=True)


def _forget(run: Path) -> None:
    """Removes a search's record from a database that others share.

    Raises:
        UserError: the config cannot be read, or the database not be used.
    """
    if not (run / "search.yaml").is_file():
        return
    config = read(run / "search.yaml")  # and no more: an earlier release may have written what this one refuses
    if config.get("store"):
        with suppress(AbsentError), closing(Store.open(config["store"], config["name"])) as store:
            store.remove()
