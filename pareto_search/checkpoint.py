"""A verified folder of files: whole or not there, and no changed byte goes unnoticed.

A candidate's checkpoint is one, and so is each component that blends need. The files come as bytes and go as bytes:
what they mean is known elsewhere. Beside them lies `manifest.json`, the sha256 of each.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

from pareto_search.errors import CheckpointError, DamageError, TroubleError

MANIFEST = "manifest.json"

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ASIDE = ".old"
_UNFINISHED = ".tmp"


def write(folder: Path, files: Mapping[str, bytes]) -> str:
    """Writes the files and their manifest as `folder`, in place of what was there; returns the manifest's sha256.

    The disk holds them before they get their name. A crash leaves the old folder or the new one; where it struck
    between the two renames of a replacement, the old one lies aside until the next `write` or `sweep` puts it back.

    Raises:
        TroubleError: the disk is full, or the folder cannot be written; there is the old folder or the new one, if any.
        ValueError: a file's name is not a plain one.
    """
    for name in files:
        if not _PLAIN.fullmatch(name) or name == MANIFEST:
            raise ValueError(f"'{name}' is not a plain file name")
    manifest = _manifest(files)
    new, aside = _hidden(folder), folder.with_name(f".{folder.name}{_ASIDE}")
    try:
        is_first = not folder.parent.exists()
        folder.parent.mkdir(parents=True, exist_ok=True)
        if is_first:
            sync(folder.parent.parent)
        _recover(aside)
        new.mkdir()
        for name, content in {**files, MANIFEST: manifest}.items():
            with (new / name).open("xb") as file:
                file.write(content)
        # All at once, which takes the disk little longer than one of them.
        with ThreadPoolExecutor(len(files) + 2) as threads:
            list(threads.map(sync, (new, *new.iterdir())))
        _replace(folder, new, aside)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TroubleError(f"no space left on the disk of {folder}; free some and resume") from error
        raise TroubleError(f"{folder} cannot be written ({error.strerror}); mend that and resume") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)  # gone already, unless something went wrong
    return hashlib.sha256(manifest).hexdigest()


def read(folder: Path) -> dict[str, bytes]:
    """The files by name, without the manifest, each as it was written.

    Only what lies in the folder itself is opened: a name in a manifest never becomes a path, and links are refused.

    Raises:
        CheckpointError: the folder is missing, or cannot be read.
        DamageError: a file is missing or was added, or a byte was changed; names the file.
    """
    try:
        with os.scandir(folder) as entries:
            regular = {entry.name: entry.is_file(follow_symlinks=False) for entry in entries}
        for name in sorted(regular):
            if not regular[name]:
                raise DamageError(f"{folder}: {name!r} is not a regular file; restore the folder from a copy")
        files = {name: (folder / name).read_bytes() for name in regular}
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not there; expected a folder with a {MANIFEST}") from None
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read ({error.strerror})") from error
    manifest = files.pop(MANIFEST, None)
    if manifest is None:
        raise DamageError(f"{folder}: '{MANIFEST}' is missing; restore the folder from a copy")
    # Byte for byte, so that a change to the manifest itself is noticed wherever it falls.
    if manifest != _manifest(files):
        raise DamageError(f"{folder}: {_difference(manifest, files)}; restore the folder from a copy")
    return files


def digest(files: Mapping[str, bytes]) -> str:
    """What `write` returns for these files."""
    return hashlib.sha256(_manifest(files)).hexdigest()


def remove(folder: Path) -> None:
    """Removes a folder, if it is there; a crash on the way leaves no half of it under its name.

    Raises:
        TroubleError: the disk does not let it.
    """
    doomed = _hidden(folder)
    try:
        folder.rename(doomed)
    except FileNotFoundError:
        return
    except OSError as error:
        raise TroubleError(f"{folder} cannot be removed ({error.strerror}); mend that and resume") from error
    shutil.rmtree(doomed, ignore_errors=True)  # what is left of it, as of open files on NFS, goes with the next sweep


def sweep(root: Path, keep: Collection[str]) -> None:
    """Removes the folders in `root` that are not in `keep`, and what crashes have left of others.

    Nobody else may be writing in `root` meanwhile.

    Raises:
        TroubleError: the disk does not let it.
    """
    try:
        for aside in root.glob(f".*{_ASIDE}"):
            _recover(aside)
    except OSError as error:
        raise TroubleError(f"{root} cannot be written ({error.strerror}); mend that and resume") from error
    for unfinished in root.glob(f".*{_UNFINISHED}"):
        shutil.rmtree(unfinished, ignore_errors=True)
    for folder in root.glob("[!.]*"):
        if folder.name not in keep and folder.is_dir() and not folder.is_symlink():
            remove(folder)


def sync(path: Path) -> None:
    """Lets the disk hold a file, or which names a folder has."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _manifest(files: Mapping[str, bytes]) -> bytes:
    digests = {name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)}
    return (json.dumps(digests, indent=1) + "\n").encode()


def _difference(manifest: bytes, files: Mapping[str, bytes]) -> str:
    """What to say of files that do not fit their manifest."""
    try:
        expected = json.loads(manifest)
    except (ValueError, RecursionError):
        expected = None
    if isinstance(expected, dict):
        for name in sorted(expected.keys() | files.keys()):
            if name not in files:
                return f"{name!r} is missing"
            if name not in expected:
                return f"{name!r} does not belong there"
            if hashlib.sha256(files[name]).hexdigest() != expected[name]:
                return f"{name!r} was changed"
    return f"'{MANIFEST}' was changed"


def _hidden(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{uuid4().hex}{_UNFINISHED}")


def _replace(folder: Path, new: Path, aside: Path) -> None:
    """Gives the new folder its name; POSIX renames onto an empty folder only, so an old one steps aside first."""
    try:
        if folder.exists():
            folder.rename(aside)
        new.rename(folder)
        sync(folder.parent)
    finally:
        _recover(aside)


def _recover(aside: Path) -> None:
    """Puts an old folder back where its successor never arrived, and removes it where it did."""
    if not aside.exists():
        return
    folder = aside.with_name(aside.name.removeprefix(".").removesuffix(_ASIDE))
    if folder.exists():
        shutil.rmtree(aside)
    else:
        aside.rename(folder)
