import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from pareto_search.workers import scratch


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where folders are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_is_for_its_owner_alone_and_each_search_has_another(temporary: Path) -> None:
    one, two = scratch.name(), scratch.name()
    assert one != two
    folder = scratch.hold(one)
    assert folder == temporary / one == scratch.hold(one)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not scratch.hold(two).samefile(folder)


def test_what_nobody_keeps_is_removed_and_what_a_worker_keeps_is_not(temporary: Path) -> None:
    kept, left = scratch.name(), scratch.name()
    scratch.hold(kept)
    if not (child := os.fork()):
        (scratch.hold(left) / "7").write_text("of a search that was killed")
        os._exit(0)
    os.waitpid(child, 0)
    assert (temporary / left / "7").exists()
    others = temporary / "someone-elses", temporary / f"{scratch.PREFIX}file"
    others[0].mkdir()
    others[1].touch()

    mine = scratch.hold(scratch.name())
    assert {p.name for p in temporary.iterdir()} == {kept, mine.name, *(p.name for p in others)}


@pytest.mark.parametrize("call", ["open", "flock"])
def test_a_folder_that_is_removed_before_it_is_kept_is_made_again(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    module = {"open": scratch.os, "flock": scratch.fcntl}[call]
    real, removed = getattr(module, call), []

    def late(*arguments: Any) -> Any:
        if not removed:
            removed.append(mine)
            (temporary / mine).rmdir()
        return real(*arguments)

    mine = scratch.name()
    monkeypatch.setattr(module, call, late)
    assert scratch.hold(mine).is_dir()
    assert removed


def test_a_folder_that_somebody_keeps_again_is_not_removed(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, flock = temporary / scratch.name(), scratch.fcntl.flock
    other.mkdir()

    def late(file: int, how: int) -> None:
        if how & scratch.fcntl.LOCK_EX and other.exists():  # another worker has removed it, and its owner made it anew
            other.rename(temporary / "removed")
            other.mkdir()
        flock(file, how)

    monkeypatch.setattr(scratch.fcntl, "flock", late)
    scratch.hold(scratch.name())
    assert other.exists()


def test_a_folder_is_discarded_wherever_it_is(temporary: Path) -> None:
    mine = scratch.name()
    (scratch.hold(mine) / "7").write_text("states")
    scratch.discard(mine)
    scratch.discard(mine)  # none of it on this machine
    assert not list(temporary.iterdir())
