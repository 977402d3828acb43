"""Searches and other commands as a user has them, most of them processes of their own, from outside."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil
import pytest
from filelock import FileLock

from benchmarks import kills, small
from pareto_search.cli import main

T = TypeVar("T")
PATIENCE = 120.0
"""Seconds after which a test stops waiting for what should come at once: slow machines are no failure."""
POLL = 0.1
"""Seconds between two looks, each of which may ask for all processes of the machine: the others want the cores too."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line on stderr of a user's error; anything else fails the test."""
        lines = self.err.strip().splitlines()
        assert (self.code, len(lines)) == (2, 1), f"exit {self.code}, stderr:\n{self.err}"
        assert "Traceback" not in self.out
        return lines[0].removeprefix("pareto-search: ")


@dataclass
class Driver:
    """A `pareto-search` under way, in a process group of its own as a terminal gives it."""

    process: "subprocess.Popen[str]"
    seen: dict[int, psutil.Process] = field(default_factory=dict)

    def family(self) -> list[psutil.Process]:
        """All processes that it has started, whoever their parent is by now."""
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            children = []
        self.seen |= {child.pid: child for child in children}
        return [p for p in self.seen.values() if alive(p)]

    def heavy(self) -> list[psutil.Process]:
        """Those that hold memory or take time; two small agents of Ray's need a minute to find out that it is gone."""
        return [p for p in self.family() if not title(p).endswith("Agent")]

    def at_work(self) -> list[psutil.Process]:
        """Its workers that are in the middle of a candidate."""
        return [p for p in self.family() if title(p).startswith("ray::") and title(p).endswith(".run")]

    def end(self) -> Ended:
        """Waits for its end."""
        out, err = self.process.communicate(timeout=PATIENCE)
        return Ended(self.process.returncode, out, err)


@contextmanager
def started(*arguments: str | Path) -> Iterator[Driver]:
    """A `pareto-search` under way; what is left of it afterwards is killed."""
    command = [sys.executable, "-c", "from pareto_search.cli import main; main()", *map(str, arguments)]
    pipe = subprocess.PIPE
    driver = Driver(
        subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment(), start_new_session=True)
    )
    try:
        yield driver
    finally:
        driver.family()
        driver.process.kill()
        driver.process.communicate()
        for process in driver.family():
            process.send_signal(signal.SIGKILL)


def pareto_search(*arguments: str | Path) -> Ended:
    """Runs a command to its end."""
    with started(*arguments) as driver:
        return driver.end()


Call = Callable[..., Ended]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Runs a command in this process, from its arguments to its exit code."""

    def run(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["pareto-search", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Ended(code, *capfd.readouterr())

    return run


@contextmanager
def interruptible() -> Iterator[None]:
    """What is started within hears Ctrl-C, to which all that a shell starts in the background is deaf."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def environment(*without: str) -> dict[str, str]:
    """A user's, but for the rank of Ray's workers: without what a Ray that a test has started here leaves behind.

    Args:
        without: names that are not in it either.
    """
    behind = {name for name in os.environ if name.startswith("RAY_")} - {"RAY_worker_niceness"}
    return {name: value for name, value in os.environ.items() if name not in behind.union(without)}


def eventually(what: Callable[[], T], patience: float = PATIENCE) -> T:
    """The first result that is true; fails the test where none comes."""
    until = time.monotonic() + patience
    while not (found := what()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(POLL)
    return found


def alive(process: psutil.Process) -> bool:
    """Whether it still runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def title(process: psutil.Process) -> str:
    """How it calls itself; Ray's workers say what they do."""
    try:
        return " ".join(process.cmdline()).strip()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


class Untouchable:
    """In place of a pool of workers: whoever wants workers is stopped as by Ctrl-C."""

    def __init__(self, *_: object, **__: object) -> None:
        raise KeyboardInterrupt


@dataclass(frozen=True)
class Finished:
    """A search that nothing happened to."""

    config: Path
    run: Path
    said: str

    def copy(self, to: Path) -> Path:
        """The run folder, for who changes it. Others may be reading the database, which has files of its own then."""
        return Path(shutil.copytree(self.run, to, ignore=shutil.ignore_patterns("*-wal", "*-shm")))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The small search in ordered mode, done once for all modules that import this fixture, in whatever process; nobody
    changes its run folder."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent  # which all processes share
    config, run, said = (place / "small" / name for name in ("search.yaml", "run", "said"))
    with FileLock(place / "small.lock"):
        if not said.exists():
            small.make(place / "small", **kills.SEARCH)
            ended = pareto_search("run", config, "--out", run)
            assert ended.code == 0, ended.err
            said.write_text(ended.out)
    return Finished(config, run, said.read_text())
