"""A finished run at a URL, for whoever has no disk in common with the machine that searched: copied there, and back.

At the URL lie `objects/<sha256>`, the content of files, of which none is ever changed; one of them is the index, which
says what each file of the run folder holds, and `run.json` says which. It comes last, so that a reader finds the older
state or the newer one, whole.
"""

import hashlib
import json
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pareto_search import checkpoint
from pareto_search.config import read
from pareto_search.entry import BASE, VECTORS, with_vectors
from pareto_search.errors import RunError
from pareto_search.recsys.fetch import cache_folder
from pareto_search.results import FRONT, load_front
from pareto_search.store import lock

STATE, OBJECTS = "run.json", "objects"
CONFIG, RECORD = "search.yaml", "search.db"
FILES, FOLDERS = (CONFIG, FRONT, "report.html"), ("checkpoints", "components", VECTORS, "states", "old")
"""What of a run folder is published; and the record."""
THREADS = 4

_PINNED = re.compile("#[0-9a-f]{64}$")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]*(/[A-Za-z0-9][A-Za-z0-9._@-]*){0,3}")


def publish(run: Path, url: str) -> int:
    """Copies a finished run to a URL of whatever fsspec opens, where it takes the place of an older state; its bytes.

    Raises:
        RunError: the run has no front, keeps its record elsewhere or is being searched; or the URL cannot be written.
        CheckpointError: a file of the front is missing or changed.
    """
    front = load_front(run)
    if read(run / CONFIG).get("store"):
        raise RunError(f"the record of {run} is in a shared database; only a run with a record of its own is published")
    for name in {e["candidate"] for e in front["front"]}:
        with_vectors(run, name)
    if (run / VECTORS / BASE).is_dir():
        checkpoint.read(run / VECTORS / BASE)
    with lock(run), tempfile.TemporaryDirectory() as scratch, _at(url) as (system, root):
        files = {name: run / name for name in _names(run)}
        if (run / RECORD).is_file():
            files[RECORD] = Path(scratch, RECORD)
            files[RECORD].write_bytes(_record(run / RECORD))
        digests = {name: _digest(file) for name, file in files.items()}
        sizes = {name: file.stat().st_size for name, file in files.items()}
        known = _known(system, f"{root}/{OBJECTS}")
        for name, file in files.items():
            if known.get(digests[name]) != sizes[name]:
                _put(system, file, f"{root}/{OBJECTS}/{digests[name]}")
        index = {name: {"sha256": digests[name], "size": sizes[name]} for name in files}
        note = Path(scratch, "note")
        note.write_text(json.dumps(index, indent=1, sort_keys=True), encoding="utf-8")
        state = _digest(note)
        _put(system, note, f"{root}/{OBJECTS}/{state}")
        note.write_text(json.dumps({"index": state}), encoding="utf-8")
        _put(system, note, f"{root}/{STATE}")
    return sum(sizes.values())


def pinned(run: str) -> str:
    """A run's place for others to open: a folder's whole path, or a URL with the state that is published there now.

    Raises:
        RunError: nothing is published there.
    """
    return _pinned(run) if "://" in run else str(Path(run).resolve())


def local(run: str) -> Path:
    """Where a run is on this machine: a folder itself, or what is published at a URL, fetched into the cache once.

    Raises:
        RunError: as for `fetch`.
    """
    if "://" not in run:
        return Path(run)
    run = pinned(run)
    folder = _cache() / run.rsplit("#", 1)[1]
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"{folder.parent} cannot be made ({error.strerror}); set PARETO_SEARCH_CACHE to a folder that can"
            ) from None
        try:
            fetch(run, folder)
        except RunError:
            if not folder.is_dir():  # else another process was faster
                raise
    return folder


def is_copy(folder: Path) -> bool:
    """Whether a folder is what `local` has fetched, which stays as it is."""
    return folder.parent == _cache()


def fetch(url: str, folder: Path) -> None:
    """Brings a published run into a new folder, where its search can go on.

    Raises:
        RunError: nothing is published there, something of it was changed, or the folder cannot be made.
    """
    if os.path.lexists(folder):
        raise RunError(f"{folder} is there already; give --to a new folder")
    place, _, state = _pinned(url).rpartition("#")
    new = folder.with_name(f".{folder.name}.{uuid4().hex}")
    try:
        new.mkdir(parents=True)
        with _at(place) as (system, root):

            def bring(name: str, digest: str, size: int | None) -> None:
                remote, file = f"{root}/{OBJECTS}/{digest}", new / name
                file.parent.mkdir(parents=True, exist_ok=True)
                whole = size is None or system.size(remote) == size
                if whole:
                    system.get_file(remote, str(file))
                if not whole or _digest(file) != digest:
                    raise RunError(f"{name} of {place} was changed; publish the run again")

            bring(".index", state, None)
            index = _index(place, (new / ".index").read_bytes())
            (new / ".index").unlink()
            with ThreadPoolExecutor(THREADS) as threads:
                list(threads.map(lambda item: bring(item[0], item[1]["sha256"], item[1]["size"]), index.items()))
        if read(new / CONFIG).get("store"):
            raise RunError(f"{CONFIG} of {place} names a database; a published run has a record of its own")
        new.rename(folder)
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error.strerror}); mend that") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _pinned(url: str) -> str:
    return url if _PINNED.search(url) else f"{url}#{_state(url)}"


@contextmanager
def _at(url: str) -> Iterator[tuple[Any, str]]:
    """The file system of a URL, and the path there."""
    if "://" not in url:
        raise RunError(f"'{url}' is no URL; expected one such as s3://bucket/run")
    try:
        system, root = fsspec.core.url_to_fs(url)
        yield system, root.rstrip("/")
    except RunError:
        raise
    except FileNotFoundError as error:
        raise RunError(f"{url} lacks {error}; publish the run again") from None
    except Exception as error:  # each fsspec back end has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RunError(f"{url} cannot be used ({reason}); expected a URL that fsspec opens") from None


def _put(system: Any, file: Path, remote: str) -> None:
    """Writes an object, whole or not at all where the file system can."""
    aside = f"{remote}.{uuid4().hex}" if isinstance(system, LocalFileSystem) else remote  # the others are object stores
    try:
        system.put_file(str(file), aside)
    except FileNotFoundError:  # some have folders
        system.makedirs(remote.rsplit("/", 1)[0], exist_ok=True)
        system.put_file(str(file), aside)
    if aside != remote:
        os.replace(aside, remote)


def _known(system: Any, place: str) -> dict[str, int]:
    """The objects that are there already, and their sizes."""
    try:
        found = system.ls(place, detail=True)
    except FileNotFoundError:
        return {}
    return {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in found}


def _state(url: str) -> str:
    with _at(url) as (system, root):
        try:
            content = system.cat_file(f"{root}/{STATE}")
        except FileNotFoundError:
            raise RunError(f"nothing is published at {url}; expected what 'pareto-search publish' wrote") from None
    try:
        state = json.loads(content)["index"]
    except (ValueError, TypeError, KeyError):
        state = None
    if not isinstance(state, str) or not re.fullmatch("[0-9a-f]{64}", state):
        raise RunError(f"{STATE} at {url} was not written by 'pareto-search publish'; publish the run again")
    return state


def _index(url: str, content: bytes) -> dict[str, Mapping[str, Any]]:
    """What the files of a published run hold; no name leads out of the folder, whoever wrote it."""
    try:
        index = json.loads(content)
        whole = all(
            _NAME.fullmatch(name) and re.fullmatch("[0-9a-f]{64}", entry["sha256"]) and isinstance(entry["size"], int)
            for name, entry in index.items()
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        whole = False
    if not whole or not {CONFIG, FRONT} <= index.keys():
        raise RunError(f"the index at {url} was not written by 'pareto-search publish'; publish the run again")
    return dict(index)


def _names(run: Path) -> list[str]:
    """The files of a run folder that are published, but for the record."""
    inside = (path for folder in FOLDERS for path in (run / folder).rglob("*") if path.is_file())
    names = (path.relative_to(run).as_posix() for path in inside)
    return [*(name for name in FILES if (run / name).is_file()), *(n for n in sorted(names) if _NAME.fullmatch(n))]


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _record(file: Path) -> bytes:
    """The record as one file, with what its log still holds."""
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        return connection.serialize()


def _cache() -> Path:
    return cache_folder() / "runs"
