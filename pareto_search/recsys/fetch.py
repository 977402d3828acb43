"""Public data sets: fetched once, verified, and kept in a cache in one canonical form."""

import csv
import hashlib
import http.client
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pareto_search.errors import DataError

INTERACTIONS = "interactions.csv"
ITEMS = "items.csv"
USERS = "users.csv"
MANIFEST = "manifest.json"
PATIENCE = 15
"""Seconds until a silent server counts as out of reach."""
LICENCE = (
    "MovieLens-100K (GroupLens, University of Minnesota) is for research: no redistribution and no commercial use "
    "without permission; publications cite Harper & Konstan 2015, The MovieLens Datasets, doi:10.1145/2827872."
)
# fmt: off
GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)
# fmt: on
"""The order of the genre flags in GroupLens' `u.item`."""

Movie = tuple[int, str, tuple[str, ...]]
"""Id, title with year, genres."""
Person = tuple[int, str, str]
"""Id, gender, occupation."""
FOLDER = "movielens-100k.2"
"""In the cache; an earlier release kept no users in `movielens-100k`."""


@dataclass(frozen=True)
class Source:
    """A place that MovieLens-100K can be had from.

    Attributes:
        name: how a message calls it.
        download: brings the archive, given a folder for temporary files.
        algorithm, checksum: what the whole archive must hash to before anything in it is read.
        convert: the archive's bytes as the canonical files, name -> content.
    """

    name: str
    download: Callable[[Path], bytes]
    algorithm: Literal["md5", "sha256"]
    checksum: str
    convert: Callable[[bytes], dict[str, bytes]]


class _FetchError(Exception):
    """One source did not give the data; the next one may."""


def to_stderr(line: str) -> None:
    """Tells a person, and leaves standard output to the results."""
    print(line, file=sys.stderr)


def cache_folder() -> Path:
    """Where what was fetched is kept: `PARETO_SEARCH_CACHE`, or else `~/.cache/pareto-search`."""
    return Path(os.environ.get("PARETO_SEARCH_CACHE") or Path.home() / ".cache" / "pareto-search")


def movielens_100k(cache: Path | None = None, notify: Callable[[str], None] = to_stderr) -> Path:
    """The folder with MovieLens-100K's interactions, items and users, fetched where the cache lacks it.

    Args:
        cache: where fetched data is kept; by default `cache_folder()`.
        notify: is told the licence, once, when the data is fetched.

    Raises:
        DataError: no source can be reached, or the cached files are not what was fetched.
    """
    folder = (cache or cache_folder()) / FOLDER
    if not folder.exists():
        source, files = _fetch(SOURCES)
        _store(folder, source, files)
        notify(LICENCE)
    _verify(folder)
    return folder


def _fetch(sources: Iterable[Source]) -> tuple[str, dict[str, bytes]]:
    """The first source that gives the data: its name and the canonical files."""
    failures = []
    for source in sources:
        try:
            with tempfile.TemporaryDirectory() as scratch:
                archive = source.download(Path(scratch))
            found = hashlib.new(source.algorithm, archive).hexdigest()
            if found != source.checksum:
                raise _FetchError(f"{source.algorithm} of the download is {found}, expected {source.checksum}")
            return source.name, source.convert(archive)
        except (_FetchError, OSError, http.client.HTTPException) as error:
            failures.append(f"{source.name}: {' '.join(str(error).split())}")
    raise DataError(
        f"MovieLens-100K could not be fetched ({'; '.join(failures)}); connect to the network and fetch again, or set "
        "PARETO_SEARCH_CACHE to a cache that has it"
    )


def _store(folder: Path, source: str, files: dict[str, bytes]) -> None:
    """Writes the files and their manifest beside the target, then renames: the folder is whole or not there."""
    manifest = {"source": source, "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for name, data in files.items():
                (scratch / name).write_bytes(data)
            (scratch / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            scratch.chmod(0o755)
            scratch.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was faster, with the same content
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written ({error.strerror}); expected a writable folder; set PARETO_SEARCH_CACHE to one"
        ) from None


def _verify(folder: Path) -> None:
    """Compares every file with the manifest.

    Raises:
        DataError: a file is missing, torn or changed.
    """
    try:
        expected = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"]
        for name in (INTERACTIONS, ITEMS, USERS):
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected[name]:
                raise ValueError(f"{name} has changed since it was fetched")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{Path(error.filename).name} is not there" if isinstance(error, FileNotFoundError) else str(error)
        raise DataError(f"{folder} is damaged ({reason}); delete that folder and fetch movielens-100k again") from None


def from_recbole(archive: bytes) -> dict[str, bytes]:
    """RecBole's wheel -> the canonical files. It keeps the year apart from the title, and genres between blanks."""
    with zipfile.ZipFile(io.BytesIO(archive)) as wheel:
        folder = "recbole/dataset_example/ml-100k/ml-100k"
        ratings = wheel.read(f"{folder}.inter").decode().splitlines()[1:]
        items = wheel.read(f"{folder}.item").decode().splitlines()[1:]
        users = wheel.read(f"{folder}.user").decode().splitlines()[1:]
    movies: list[Movie] = []
    for line in items:
        number, title, year, genres = line.split("\t")
        # Movie 267 is "unknown" at GroupLens, without a year.
        movies.append((int(number), "unknown" if title == "unkonwn" else f"{title} ({year})", tuple(genres.split())))
    return _canonical(ratings, movies, (_person(line.split("\t")) for line in users))


def from_grouplens(archive: bytes) -> dict[str, bytes]:
    """GroupLens' archive -> the canonical files."""
    with zipfile.ZipFile(io.BytesIO(archive)) as members:
        ratings = members.read("ml-100k/u.data").decode().splitlines()
        items = members.read("ml-100k/u.item").decode("latin-1").split("\n")
        users = members.read("ml-100k/u.user").decode().splitlines()
    movies: list[Movie] = []
    for line in filter(None, items):
        number, title, _, _, _, *flags = line.split("|")
        movies.append((int(number), title, tuple(g for g, flag in zip(GENRES, flags, strict=True) if int(flag))))
    return _canonical(ratings, movies, (_person(line.split("|")) for line in users))


def _person(cells: list[str]) -> Person:
    number, _, gender, occupation, _ = cells  # neither age nor zip code is wanted
    return int(number), gender, occupation


def _canonical(ratings: Iterable[str], movies: Iterable[Movie], people: Iterable[Person]) -> dict[str, bytes]:
    """All tables, ordered by their ids, from lines of `user item rating timestamp`, movies and people."""
    rows = sorted(tuple(int(cell) for cell in line.split("\t")) for line in ratings)
    described = [(n, " ".join(title.split()), "|".join(sorted(g, key=GENRES.index))) for n, title, g in sorted(movies)]
    return {
        INTERACTIONS: _table(("user_id", "item_id", "rating", "timestamp"), rows),
        ITEMS: _table(("item_id", "title", "genres"), described),
        USERS: _table(("user_id", "gender", "occupation"), sorted(people)),
    }


def _table(header: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().encode()


def _download_with_pip(scratch: Path) -> bytes:
    command = [sys.executable, "-m", "pip", "download", "recbole==1.2.1", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += [
        "--no-input",
        "--disable-pip-version-check",
        f"--timeout={PATIENCE}",
        "--retries=1",
        "--dest",
        str(scratch),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=8 * PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise _FetchError("pip took too long") from None
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        raise _FetchError((done.stderr.strip().splitlines() or ["pip gave no file"])[-1])
    return wheels[0].read_bytes()


def _download_from_grouplens(_: Path) -> bytes:
    address = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
    with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
        content: bytes = answer.read()
    return content


# The wheel comes first because it can be had wherever this package can be installed from, so that nearly everyone's
# files, down to the titles' spelling, come from the same bytes.
SOURCES = (
    Source(
        "the wheel recbole==1.2.1 through pip",
        _download_with_pip,
        "sha256",
        "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        from_recbole,
    ),
    Source(
        "files.grouplens.org",
        _download_from_grouplens,
        "md5",
        "0e33842e24a9c977be4e0107933c0723",
        from_grouplens,
    ),
)
