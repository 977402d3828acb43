import errno
import hashlib
import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pareto_search import checkpoint
from pareto_search.errors import CheckpointError, RunError, TroubleError

OLD = {"adapter_config.json": b'{"r": 8}', "adapter_model.safetensors": bytes(range(256)), "recommender.json": b""}
NEW = {"adapter_config.json": b'{"r": 16}', "recommender.safetensors": b"\x00" * 1000}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds the old files."""
    checkpoint.write(tmp_path / "checkpoints" / "c0007", OLD)
    return tmp_path / "checkpoints" / "c0007"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read(folder: Path) -> None:
    assert checkpoint.read(folder) == OLD


def test_the_manifest_holds_the_sha256_of_each_file_and_its_own_is_returned(tmp_path: Path) -> None:
    returned = checkpoint.write(tmp_path / "c0001", OLD)
    manifest = (tmp_path / "c0001" / "manifest.json").read_bytes()
    assert json.loads(manifest) == {name: hashlib.sha256(content).hexdigest() for name, content in OLD.items()}
    assert returned == hashlib.sha256(manifest).hexdigest()


def test_the_same_files_give_the_same_manifest_in_whatever_order(tmp_path: Path) -> None:
    backwards = dict(reversed(OLD.items()))
    assert checkpoint.write(tmp_path / "a", OLD) == checkpoint.write(tmp_path / "b", backwards)


def test_a_new_folder_replaces_an_old_one_without_a_trace(folder: Path) -> None:
    checkpoint.write(folder, NEW)
    assert checkpoint.read(folder) == NEW
    assert names(folder.parent) == ["c0007"]


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/x", ".hidden", "", "..", "manifest.json", "a\x00b", "a\n"])
def test_a_name_that_is_not_plain_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is not a plain file name"):
        checkpoint.write(tmp_path / "c0001", {name: b""})
    assert names(tmp_path) == []


class Disk:
    """Does something else than asked at the n-th time that `checkpoint` turns to it."""

    def __init__(self, patch: pytest.MonkeyPatch, strike: int, instead: Callable[[], None]) -> None:
        self.calls = 0

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                self.calls += 1
                if self.calls == strike:
                    instead()
                return real(*arguments, **options)

            return call

        class Raw(io.FileIO):
            write = counted(io.FileIO.write)

        patch.setattr(Path, "open", counted(lambda path, mode: io.BufferedWriter(Raw(path, mode))))
        for owner, name in ((os, "fsync"), (Path, "mkdir"), (Path, "rename")):
            patch.setattr(owner, name, counted(getattr(owner, name)))


CALLS_OF_A_WRITE = 2 + 3 * 3 + 3
"""mkdir twice; open, write and fsync of two files and the manifest; fsync, rename, fsync."""


def test_the_calls_of_a_write_are_counted_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, 0, lambda: None)
    checkpoint.write(tmp_path / "c0007", NEW)
    assert disk.calls == CALLS_OF_A_WRITE


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("strike", range(1, CALLS_OF_A_WRITE + 1))
def test_a_full_disk_leaves_the_new_checkpoint_or_none(tmp_path: Path, strike: int, code: int) -> None:
    fail_to_write(tmp_path / "c0007", strike, code)
    assert names(tmp_path) in ([], ["c0007"])
    if names(tmp_path):
        assert checkpoint.read(tmp_path / "c0007") == NEW


@pytest.mark.parametrize("strike", range(1, CALLS_OF_A_WRITE + 2))  # the old one steps aside
def test_a_full_disk_leaves_the_new_checkpoint_or_the_old_one(folder: Path, strike: int) -> None:
    fail_to_write(folder, strike, errno.ENOSPC)
    assert names(folder.parent) == ["c0007"]
    assert checkpoint.read(folder) in (OLD, NEW)
    checkpoint.write(folder, NEW)
    assert checkpoint.read(folder) == NEW


def fail_to_write(folder: Path, strike: int, code: int) -> None:
    def fail() -> None:
        raise OSError(code, os.strerror(code))

    full = f"no space left on the disk of {folder}; free some and resume"
    torn = f"{folder} cannot be written (Input/output error); mend that and resume"
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, strike, fail)
        with pytest.raises(RunError) as caught:
            checkpoint.write(folder, NEW)
    assert str(caught.value) == (torn if code == errno.EIO else full)


@pytest.mark.parametrize("strike", range(1, CALLS_OF_A_WRITE + 2))
@pytest.mark.parametrize("sweeps", [True, False])
def test_a_crash_leaves_the_new_checkpoint_or_the_old_one(folder: Path, strike: int, sweeps: bool) -> None:
    child = os.fork()
    if child == 0:
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, strike, lambda: os._exit(9))
            checkpoint.write(folder, NEW)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    if folder.exists():
        assert checkpoint.read(folder) in (OLD, NEW)
    if sweeps:
        checkpoint.sweep(folder.parent, keep=["c0007"])
        assert names(folder.parent) == ["c0007"]
        assert checkpoint.read(folder) in (OLD, NEW)
    else:
        checkpoint.write(folder, NEW)
        assert checkpoint.read(folder) == NEW


@pytest.mark.parametrize("name", [*OLD, "manifest.json"])
def test_any_changed_byte_is_noticed(folder: Path, name: str) -> None:
    rng = random.Random(name)
    whole = (folder / name).read_bytes()
    for _ in range(200 if whole else 0):
        changed = bytearray(whole)
        changed[rng.randrange(len(whole))] ^= rng.randrange(1, 256)
        (folder / name).write_bytes(changed)
        with pytest.raises(CheckpointError) as caught:
            checkpoint.read(folder)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)
        if name != "manifest.json":
            assert f"'{name}' was changed" in str(caught.value)


@pytest.mark.parametrize("name", [*OLD, "manifest.json"])
def test_any_other_length_is_noticed(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    for changed in (*(whole[:n] for n in range(len(whole))), whole + b"\n"):
        (folder / name).write_bytes(changed)
        with pytest.raises(CheckpointError):
            checkpoint.read(folder)


@pytest.mark.parametrize("name", [*OLD, "manifest.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"'{name}' is missing"):
        checkpoint.read(folder)


@pytest.mark.parametrize("name", ["extra.bin", ".hidden"])
def test_an_extra_file_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"'{name}' does not belong there"):
        checkpoint.read(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="c0001 is not there; expected a folder with a manifest"):
        checkpoint.read(tmp_path / "c0001")


def test_a_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "c0001").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"c0001 cannot be read \(Not a directory\)"):
        checkpoint.read(tmp_path / "c0001")


def test_no_link_is_followed_and_no_pipe_waited_for(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    (folder / "recommender.json").rename(secret)
    for make in (lambda p: p.symlink_to(secret), os.mkfifo, os.mkdir):
        make(folder / "recommender.json")
        with pytest.raises(CheckpointError, match=r"'recommender\.json' is not a regular file"):
            checkpoint.read(folder)
        (folder / "recommender.json").rename(tmp_path / f"seen {len(names(tmp_path))}")


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/../../secret"])
def test_a_manifest_leads_nowhere_else(folder: Path, name: str) -> None:
    (folder.parent / "secret").write_bytes(b"secret")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest[name] = hashlib.sha256(b"secret").hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=f"'{name}' is missing"):
        checkpoint.read(folder)


@pytest.mark.parametrize(
    "manifest", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 10**5, b'{"a": {"b": []}}', b'[["a", 1]]']
)
def test_a_manifest_of_another_form_is_refused(folder: Path, manifest: bytes) -> None:
    (folder / "manifest.json").write_bytes(manifest)
    with pytest.raises(CheckpointError):
        checkpoint.read(folder)


def test_a_removed_folder_is_gone_and_may_be_removed_again(folder: Path) -> None:
    checkpoint.remove(folder)
    checkpoint.remove(folder)
    assert names(folder.parent) == []


def test_a_sweep_leaves_what_is_kept_and_what_is_not_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    root = folder.parent
    checkpoint.write(root / "c0008", NEW)
    (root / "notes.txt").write_text("mine")
    (root / "link").symlink_to(tmp_path)
    checkpoint.sweep(root, keep={"c0008"})
    assert names(root) == ["c0008", "link", "notes.txt"]
    assert checkpoint.read(root / "c0008") == NEW


def test_a_disk_that_lets_nothing_be_removed_is_told_in_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "rename", fail)
    told = f"{folder} cannot be removed (Input/output error); mend that and resume"
    for attempt in (lambda: checkpoint.remove(folder), lambda: checkpoint.sweep(folder.parent, ())):
        with pytest.raises(TroubleError) as caught:
            attempt()
        assert str(caught.value) == told
    assert checkpoint.read(folder) == OLD


def test_a_sweep_of_nothing_does_nothing(tmp_path: Path) -> None:
    checkpoint.sweep(tmp_path / "checkpoints", keep=[])
    assert names(tmp_path) == []
