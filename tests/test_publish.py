"""A run at a URL: the same bytes come back, an older state stays readable, and nothing leads out of the folder."""

import hashlib
import json
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pareto_search import checkpoint, publish
from pareto_search.errors import CheckpointError, RunError
from pareto_search.store import lock

WEIGHTS = bytes(range(256))
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()


def front(**more: Any) -> str:
    return json.dumps({"front": [{"candidate": "c0001"}], **more})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Something like a finished run, in a folder whose name is no part of a URL."""
    folder = tmp_path / "run #1"
    checkpoint.write(folder / "checkpoints" / "c0001", {"model.safetensors": WEIGHTS})
    checkpoint.write(folder / "components" / "ease", {"weights.safetensors": b"w"})
    whose = checkpoint.digest({"model.safetensors": WEIGHTS}).encode()
    checkpoint.write(folder / "item_vectors" / "c0001", {"item_vectors.safetensors": b"v", "checkpoint.sha256": whose})
    checkpoint.write(folder / "item_vectors" / "base", {"features.safetensors": b"f"})
    checkpoint.write(folder / "states" / "c0002", {"model.safetensors": b"waits at a rung"})
    (folder / "search.yaml").write_text("name: first")
    (folder / "front.json").write_text(front())
    with closing(sqlite3.connect(folder / "search.db")) as record:
        record.execute("CREATE TABLE kept (value TEXT)")
        record.commit()
    for name in ("search.lock", ".front.json.new", "my notes.txt"):
        (folder / name).write_text("its own")
    return folder


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{uuid.uuid4().hex}/first" if request.param == "memory" else f"file://{tmp_path}/far/first"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PARETO_SEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "runs"


def content(folder: Path) -> dict[str, bytes]:
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: data for name, data in files.items() if name != "search.db"}


def put(url: str, place: str, data: bytes) -> None:
    system, root = fsspec.core.url_to_fs(url)
    system.makedirs(f"{root}/{place}".rsplit("/", 1)[0], exist_ok=True)
    system.pipe_file(f"{root}/{place}", data)


def test_what_was_published_comes_back_byte_for_byte_without_what_is_the_machines_own(
    run: Path, url: str, tmp_path: Path
) -> None:
    publish.publish(run, url)
    publish.fetch(url, tmp_path / "back")
    own = ("search.lock", ".front.json.new", "my notes.txt")
    assert content(tmp_path / "back") == {name: data for name, data in content(run).items() if name not in own}
    with pytest.raises(RunError, match=r"back is there already; give --to a new folder"):
        publish.fetch(url, tmp_path / "back")


def test_the_record_comes_with_what_its_log_still_holds(run: Path, url: str, tmp_path: Path) -> None:
    record = sqlite3.connect(run / "search.db")
    record.execute("PRAGMA journal_mode=WAL")
    record.execute("INSERT INTO kept VALUES ('late')")
    record.commit()
    assert b"late" not in (run / "search.db").read_bytes()
    publish.publish(run, url)
    record.close()
    publish.fetch(url, tmp_path / "back")
    assert not list((tmp_path / "back").glob("search.db-*"))
    with closing(sqlite3.connect(tmp_path / "back" / "search.db")) as back:
        assert back.execute("SELECT value FROM kept").fetchall() == [("late",)]


def test_a_url_is_fetched_once_and_again_when_it_was_published_anew(
    run: Path, url: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert publish.local(str(run)) == run
    assert publish.pinned(str(run)) == str(run)
    assert not publish.is_copy(run)
    publish.publish(run, url)
    first, place = publish.local(url), publish.pinned(url)
    assert first.parent == cache
    assert publish.is_copy(first)
    with monkeypatch.context() as patch:
        patch.setattr(publish, "fetch", lambda *_: pytest.fail("it is there"))
        assert publish.local(url) == first
    (run / "front.json").write_text(front(test_evaluations=2))
    publish.publish(run, url)
    second = publish.local(url)
    assert publish.pinned(url) != place
    assert publish.local(place) == first
    assert json.loads((first / "front.json").read_text()) == json.loads(front())
    assert json.loads((second / "front.json").read_text())["test_evaluations"] == 2


def test_whoever_holds_an_older_state_can_still_fetch_it(run: Path, url: str, tmp_path: Path) -> None:
    publish.publish(run, url)
    place = publish.pinned(url)
    (run / "front.json").write_text(front(test_evaluations=2))
    publish.publish(run, url)
    publish.fetch(place, tmp_path / "back")
    assert (tmp_path / "back" / "front.json").read_text() == front()


def test_what_was_changed_or_is_gone_is_named_leaves_nothing_and_is_mended_by_publishing_again(
    run: Path, url: str, tmp_path: Path
) -> None:
    publish.publish(run, url)
    system, root = fsspec.core.url_to_fs(url)
    for harm in (lambda: put(url, f"objects/{DIGEST}", b"cut"), lambda: system.rm_file(f"{root}/objects/{DIGEST}")):
        harm()
        with pytest.raises(RunError, match="publish the run again"):
            publish.fetch(url, tmp_path / "back")
        assert [p.name for p in tmp_path.iterdir() if "back" in p.name] == []
        publish.publish(run, url)
        publish.fetch(url, tmp_path / "back")
        assert (tmp_path / "back" / "checkpoints" / "c0001" / "model.safetensors").read_bytes() == WEIGHTS
        (tmp_path / "back").rename(tmp_path / f"mended {uuid.uuid4().hex}")
    put(url, f"objects/{DIGEST}", WEIGHTS[::-1])  # of the same length
    with pytest.raises(
        RunError, match=r"checkpoints/c0001/model\.safetensors of .* was changed; publish the run again"
    ):
        publish.fetch(url, tmp_path / "back")


def entry(digest: object = DIGEST, size: object = 256) -> dict[str, object]:
    return {"sha256": digest, "size": size}


@pytest.mark.parametrize(
    "index",
    [
        [],
        {"../outside": entry()},
        {"/etc/passwd": entry()},
        {"a//b": entry()},
        {".ssh/keys": entry()},
        {"a/../../b": entry()},
        {"more": entry("../../secret")},
        {"more": entry(3)},
        {"more": entry(size="256")},
        {"more": DIGEST},
    ],
    ids=str,
)
def test_an_index_of_whoever_leads_nowhere(index: Any, url: str, tmp_path: Path) -> None:
    if isinstance(index, dict):
        index |= {"search.yaml": entry(), "front.json": entry()}
    text = json.dumps(index).encode()
    put(url, f"objects/{hashlib.sha256(text).hexdigest()}", text)
    put(url, f"objects/{DIGEST}", WEIGHTS)
    put(url, "run.json", json.dumps({"index": hashlib.sha256(text).hexdigest()}).encode())
    with pytest.raises(RunError, match="was not written by 'pareto-search publish'"):
        publish.fetch(url, tmp_path / "back")
    assert [p.name for p in tmp_path.iterdir() if p.name != "far"] == []


@pytest.mark.parametrize("state", [b"no json", b"[]", b'{"index": "../../secret"}', b'{"index": 3}'])
def test_a_state_of_whoever_leads_nowhere(state: bytes, url: str, tmp_path: Path) -> None:
    put(url, "run.json", state)
    with pytest.raises(RunError, match=r"run\.json at .* was not written by 'pareto-search publish'"):
        publish.fetch(url, tmp_path / "back")


def test_no_database_is_named_by_what_is_published(run: Path, url: str, tmp_path: Path) -> None:
    (run / "search.yaml").write_text("{name: first, store: 'postgresql://me:secret@host/db'}")
    with pytest.raises(RunError, match="is in a shared database; only a run with a record of its own") as raised:
        publish.publish(run, url)
    assert "secret" not in str(raised.value)
    text = (run / "search.yaml").read_bytes()
    (run / "search.yaml").write_text("name: first")
    publish.publish(run, url)
    system, root = fsspec.core.url_to_fs(url)
    index = json.loads(system.cat_file(f"{root}/objects/{publish.pinned(url)[-64:]}"))
    index["search.yaml"] = {"sha256": hashlib.sha256(text).hexdigest(), "size": len(text)}
    put(url, f"objects/{hashlib.sha256(text).hexdigest()}", text)
    other = json.dumps(index).encode()
    put(url, f"objects/{hashlib.sha256(other).hexdigest()}", other)
    put(url, "run.json", json.dumps({"index": hashlib.sha256(other).hexdigest()}).encode())
    with pytest.raises(RunError, match=r"search\.yaml of .* names a database"):
        publish.fetch(url, tmp_path / "back")


def test_what_cannot_be_published_or_fetched_gets_one_line(
    run: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match="nothing is published at"):
        publish.local(url)
    with pytest.raises(RunError, match=r"cannot be used .*; expected a URL that fsspec opens"):
        publish.local("nothing://there")
    with pytest.raises(RunError, match="'s3:/models/first' is no URL; expected one such as"):
        publish.publish(run, "s3:/models/first")
    with pytest.raises(RunError, match="'runs/first' is no URL; expected one such as"):
        publish.fetch("runs/first", tmp_path / "back")
    with lock(run), pytest.raises(RunError, match="another process is running this search"):
        publish.publish(run, url)
    publish.publish(run, url)
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("PARETO_SEARCH_CACHE", str(tmp_path / "taken"))
    with pytest.raises(RunError, match=r"cannot be made .*; set PARETO_SEARCH_CACHE to a folder that can"):
        publish.local(url)
    with pytest.raises(RunError, match=r"back cannot be written \(Not a directory\)"):
        publish.fetch(url, tmp_path / "taken" / "back")
    for place in ("item_vectors/base/features", "item_vectors/c0001/item_vectors", "checkpoints/c0001/model"):
        file = run / f"{place}.safetensors"
        before = file.read_bytes()
        file.write_bytes(b"changed")
        with pytest.raises(CheckpointError, match=f"'{file.name}' was changed"):
            publish.publish(run, url)
        file.write_bytes(before)
    (run / "front.json").unlink()
    with pytest.raises(RunError, match=r"front\.json is not there"):
        publish.publish(run, url)
