"""A run at a URL, for whoever has no disk in common with the machine that searched: copied there, and brought back.

At the URL lie `objects/<sha256>`, the content of files, and `run.json`, which says what each file of the run folder
holds. The latter comes last and no object is ever changed, so that a reader finds the older state or the newer one.
"""

import hashlib
import json
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pareto_search.errors import RunError
from pareto_search.results import load_front
from pareto_search.store import lock

INDEX, OBJECTS = "run.json", "objects"
RECORD = "search.db"
THREADS = 8

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@-]*")
_LEFT = re.compile(r"\..*|search\.lock|search\.db-(wal|shm)")
"""What of a run folder is its machine's own."""


def publish(run: Path, url: str) -> int:
    """Copies a finished run to a URL of whatever fsspec opens, in place of an older state of it; returns its bytes.

    Raises:
        RunError: the run has no front or is being searched, or the URL cannot be written.
    """
    load_front(run)
    with lock(run), _at(url) as (system, root):
        place = f"{root}/{OBJECTS}"
        if isinstance(system, LocalFileSystem):
            system.makedirs(place, exist_ok=True)  # of the others, buckets have no folders
        known = {name.rsplit("/", 1)[-1] for name in (system.ls(place, detail=False) if system.exists(place) else [])}
        index: dict[str, str] = {}
        size = 0
        for file in _files(run):
            content = _record(file) if file.name == RECORD else file.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            if digest not in known:
                system.pipe_file(f"{place}/{digest}", content)
            index[file.relative_to(run).as_posix()] = digest
            size += len(content)
        system.pipe_file(f"{root}/{INDEX}", json.dumps(index, indent=1, sort_keys=True).encode())
    return size


def fetch(url: str, folder: Path) -> None:
    """Brings a published run into a new folder, where a search can go on.

    Raises:
        RunError: nothing is published there, something of it was changed, or the folder cannot be made.
    """
    if folder.exists():
        raise RunError(f"{folder} is there already; give --to a new folder")
    with _at(url) as (system, root):
        index = _index(url, system, root)
        new = folder.with_name(f".{folder.name}.{uuid4().hex}")

        def bring(name: str) -> None:
            content: bytes = system.cat_file(f"{root}/{OBJECTS}/{index[name]}")
            if hashlib.sha256(content).hexdigest() != index[name]:
                raise RunError(f"{name} of {url} was changed; publish the run again")
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_bytes(content)

        try:
            with ThreadPoolExecutor(THREADS) as threads:
                list(threads.map(bring, index))
            new.rename(folder)
        except OSError as error:
            if isinstance(error, FileNotFoundError) or error.errno is None:
                raise
            raise RunError(f"{folder} cannot be written ({error.strerror}); mend that") from None
        finally:
            shutil.rmtree(new, ignore_errors=True)


def local(run: str) -> Path:
    """Where a run is on this machine: a folder itself, or what is published at a URL, fetched into the cache once.

    Raises:
        RunError: as for `fetch`.
    """
    if "://" not in run:
        return Path(run)
    with _at(run) as (system, root):
        state = hashlib.sha256(json.dumps(_index(run, system, root), sort_keys=True).encode()).hexdigest()
    cache = Path(os.environ.get("PARETO_SEARCH_CACHE") or Path.home() / ".cache" / "pareto-search")
    folder = cache / "runs" / state[:16]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            fetch(run, folder)
        except RunError:
            if not folder.is_dir():  # else another process was faster
                raise
    return folder


@contextmanager
def _at(url: str) -> Iterator[tuple[Any, str]]:
    """The file system of a URL, and the path there."""
    try:
        system, root = fsspec.core.url_to_fs(url)
        yield system, root.rstrip("/")
    except RunError:
        raise
    except FileNotFoundError as error:
        raise RunError(f"{url} lacks {error}; publish the run again") from None
    except Exception as error:  # each fsspec back end has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RunError(f"{url} cannot be reached ({reason}); expected a URL that fsspec opens") from None


def _index(url: str, system: Any, root: str) -> dict[str, str]:
    """What the files of a published run hold; no name leads out of the folder, whoever wrote it."""
    try:
        content = json.loads(system.cat_file(f"{root}/{INDEX}"))
    except FileNotFoundError:
        raise RunError(f"nothing is published at {url}; expected what 'pareto-search publish' has written") from None
    except ValueError:
        content = None
    whole = isinstance(content, dict) and all(
        isinstance(digest, str)
        and re.fullmatch("[0-9a-f]{64}", digest)
        and all(_PART.fullmatch(part) for part in name.split("/"))
        for name, digest in content.items()
    )
    if not whole:
        raise RunError(f"{INDEX} at {url} was not written by 'pareto-search publish'; publish the run again")
    return dict(content)


def _files(run: Path) -> Iterator[Path]:
    for path in sorted(run.iterdir()):
        if _LEFT.fullmatch(path.name) or path.is_symlink():
            continue
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _record(file: Path) -> bytes:
    """The record as one file, with what its log still holds."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        return connection.serialize()
