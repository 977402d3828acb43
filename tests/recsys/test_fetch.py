"""Fetching: two sources with one result, verified before and after, and a cache that notices damage."""

import hashlib
import io
import time
import urllib.error
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pareto_search.errors import DataError
from pareto_search.recsys import fetch
from pareto_search.recsys.dataset import Dataset

RATINGS = "2\t1\t5\t20\n1\t267\t3\t10\n1\t1\t4\t30\n"


def archive(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return content.getvalue()


def grouplens_line(number: int, title: str, date: str, genres: set[str]) -> str:
    return "|".join([str(number), title, date, "", "", *(str(int(g in genres)) for g in fetch.GENRES)])


def grouplens() -> bytes:
    """Three movies as GroupLens writes them, with a stray blank and an accent in Latin-1."""
    items = [
        grouplens_line(1, "Toy Story (1995)", "01-Jan-1995", {"Animation", "Children's", "Comedy"}),
        grouplens_line(267, "unknown", "", {"unknown"}),
        grouplens_line(543, "Misérables, Les (1995) ", "01-Jan-1995", {"Drama", "Musical"}),
    ]
    content = "\n".join(items) + "\n"
    users = b"1|24|M|technician|85711\n2|53|F|other|94043\n"
    both = {"ml-100k/u.data": RATINGS.encode(), "ml-100k/u.item": content.encode("latin-1")}
    return archive({**both, "ml-100k/u.user": users})


def recbole() -> bytes:
    """The same movies as RecBole writes them."""
    folder = "recbole/dataset_example/ml-100k/ml-100k"
    items = (
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "543\tMisérables, Les\t1995\tDrama Musical\n"
        "1\tToy Story\t1995\tAnimation Children's Comedy\n"
        "267\tunkonwn\tunkonwn\tunknown\n"
    )
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    users = (
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
        "2\t53\tF\tother\t94043\n1\t24\tM\ttechnician\t85711\n"
    )
    contents = {"inter": header + RATINGS, "item": items, "user": users}
    return archive({f"{folder}.{suffix}": content.encode() for suffix, content in contents.items()})


def unreachable(*_: Any, **__: Any) -> bytes:
    raise urllib.error.URLError("no network")


def source(content: bytes | None, checksum: str | None = None) -> fetch.Source:
    """A source of the small GroupLens archive, or one out of reach."""
    checksum = checksum or hashlib.sha256(content or b"").hexdigest()
    return fetch.Source(
        "here", (lambda _: content) if content else unreachable, "sha256", checksum, fetch.from_grouplens
    )


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that has fetched the small archive."""
    monkeypatch.setattr(fetch, "SOURCES", (source(grouplens()),))
    return fetch.movielens_100k(tmp_path)


def message_of(cache: Path) -> str:
    with pytest.raises(DataError) as raised:
        fetch.movielens_100k(cache)
    line = str(raised.value)
    assert "\n" not in line
    return line


def test_both_sources_give_the_same_canonical_files() -> None:
    files = fetch.from_grouplens(grouplens())
    assert files[fetch.INTERACTIONS].decode() == "user_id,item_id,rating,timestamp\n1,1,4,30\n1,267,3,10\n2,1,5,20\n"
    assert files[fetch.ITEMS].decode().splitlines() == [
        "item_id,title,genres",
        "1,Toy Story (1995),Animation|Children's|Comedy",
        "267,unknown,unknown",
        '543,"Misérables, Les (1995)",Drama|Musical',
    ]
    assert files[fetch.USERS].decode() == "user_id,gender,occupation\n1,M,technician\n2,F,other\n"
    assert fetch.from_recbole(recbole()) == files


def test_movielens_has_its_known_numbers(movielens: Dataset) -> None:
    data = movielens
    assert (len(data.user_ids), len(data.item_ids), len(data.users)) == (943, 1682, 100_000)
    assert data.texts[0] == "Toy Story (1995), Animation, Children's, Comedy"
    assert data.titles[0] == "Toy Story (1995)"
    assert data.dropped == {}
    assert {name: len(set(groups)) for name, groups in data.groups.items()} == {"gender": 2, "occupation": 21}
    assert (data.groups["gender"].count("F"), data.groups["occupation"][0]) == (273, "technician")


def test_what_is_there_is_not_fetched_again(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "SOURCES", (source(None),))
    notices: list[str] = []
    assert fetch.movielens_100k(small.parent, notices.append) == small
    assert notices == []


def test_the_next_source_is_tried_and_the_licence_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "SOURCES", (source(None), source(b"torn", "0" * 64), source(grouplens())))
    notices: list[str] = []
    folder = fetch.movielens_100k(tmp_path, notices.append)
    fetch.movielens_100k(tmp_path, notices.append)
    assert sorted(f.name for f in folder.iterdir()) == [fetch.INTERACTIONS, fetch.ITEMS, fetch.MANIFEST, fetch.USERS]
    assert [f.name for f in tmp_path.iterdir()] == [fetch.FOLDER]
    assert notices == [fetch.LICENCE]


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "SOURCES", (source(grouplens()),))
    monkeypatch.setenv("PARETO_SEARCH_CACHE", str(tmp_path / "there"))
    assert fetch.movielens_100k() == tmp_path / "there" / fetch.FOLDER


def test_without_a_network_both_sources_give_up_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    started = time.monotonic()
    line = message_of(tmp_path)
    assert time.monotonic() - started < 2 * fetch.PATIENCE
    assert "pip: " in line
    assert "files.grouplens.org: " in line
    assert "connect to the network and fetch again" in line
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_download_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "SOURCES", (source(grouplens(), "0" * 64),))
    assert f"expected {'0' * 64}" in message_of(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [fetch.INTERACTIONS, fetch.ITEMS, fetch.USERS])
def test_a_changed_file_in_the_cache_is_noticed(small: Path, name: str) -> None:
    (small / name).write_text("user_id\n")
    assert f"{small} is damaged ({name} has changed since it was fetched); delete that folder" in message_of(
        small.parent
    )


@pytest.mark.parametrize("name", [fetch.INTERACTIONS, fetch.MANIFEST])
def test_a_missing_file_in_the_cache_is_noticed(small: Path, name: str) -> None:
    (small / name).unlink()
    assert f"{small} is damaged ({name} is not there); delete that folder" in message_of(small.parent)


def test_a_torn_manifest_is_noticed(small: Path) -> None:
    (small / fetch.MANIFEST).write_text('{"sha256": {')
    assert f"{small} is damaged" in message_of(small.parent)


def test_a_faster_process_is_no_error(small: Path) -> None:
    manifest = (small / fetch.MANIFEST).read_text()
    fetch._store(small, "the slower one", {})
    assert (small / fetch.MANIFEST).read_text() == manifest
    assert [f.name for f in small.parent.iterdir()] == [small.name]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "SOURCES", (source(grouplens()),))
    (tmp_path / "file").write_text("")
    assert "cannot be written" in message_of(tmp_path / "file")
