import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from running import Finished, pareto_search

from benchmarks import kills

SPARE = 150_000
"""Bytes that are left: enough for the components and for some checkpoints."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("only root can mount a small disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def ballast(disk: Path, spare: int) -> Iterator[None]:
    """Fills the disk but for so many bytes."""
    free = os.statvfs(disk)
    heavy = disk / "ballast"
    with heavy.open("wb") as file:
        file.write(bytes(free.f_bavail * free.f_frsize - spare))
    yield
    heavy.unlink()


def test_a_full_disk_stops_the_search_with_one_line_and_it_resumes_with_the_same_front(
    undisturbed: Finished, disk: Path
) -> None:
    run = disk / "run"
    with ballast(disk, SPARE):
        ended = pareto_search("run", undisturbed.config, "--out", run)
        assert "no space left" in ended.complaint.lower()
        assert "resume" in ended.complaint
    resumed = pareto_search("resume", run)
    assert resumed.code == 0, resumed.err
    assert kills.essence(run) == kills.essence(undisturbed.run)
    assert kills.attempts_after_the_end(run) == 0
