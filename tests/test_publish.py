"""A run at a URL: the same bytes come back, an older state stays readable, and nothing leads out of the folder."""

import hashlib
import json
import sqlite3
import uuid
from pathlib import Path

import fsspec
import pytest

from pareto_search import publish
from pareto_search.errors import RunError
from pareto_search.store import lock


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Something like a finished run, of which the record's last change is in its log only."""
    folder = tmp_path / "run"
    (folder / "checkpoints" / "c0001").mkdir(parents=True)
    (folder / "checkpoints" / "c0001" / "model.safetensors").write_bytes(bytes(range(256)))
    (folder / "front.json").write_text('{"front": []}')
    (folder / ".front.json.new").write_text("unfinished")
    (folder / "search.lock").touch()
    return folder


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{uuid.uuid4().hex}/first" if request.param == "memory" else f"file://{tmp_path}/far/first"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PARETO_SEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "runs"


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_was_published_comes_back_byte_for_byte(run: Path, url: str, tmp_path: Path) -> None:
    publish.publish(run, url)
    publish.fetch(url, tmp_path / "back")
    kept = {name: data for name, data in content(run).items() if not name.startswith((".", "search.lock"))}
    assert content(tmp_path / "back") == kept
    with pytest.raises(RunError, match=r"back is there already; give --to a new folder"):
        publish.fetch(url, tmp_path / "back")


def test_the_record_comes_with_what_its_log_still_holds(run: Path, url: str, tmp_path: Path) -> None:
    record = sqlite3.connect(run / "search.db")
    record.execute("PRAGMA journal_mode=WAL")
    record.execute("CREATE TABLE kept (value TEXT)")
    record.commit()
    record.execute("INSERT INTO kept VALUES ('late')")
    record.commit()
    assert b"late" not in (run / "search.db").read_bytes()
    publish.publish(run, url)
    record.close()
    publish.fetch(url, tmp_path / "back")
    assert not list((tmp_path / "back").glob("search.db-*"))
    with sqlite3.connect(tmp_path / "back" / "search.db") as back:
        assert back.execute("SELECT value FROM kept").fetchall() == [("late",)]


def test_a_url_is_fetched_once_and_again_when_it_was_published_anew(
    run: Path, url: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert publish.local(str(run)) == run
    publish.publish(run, url)
    first = publish.local(url)
    assert first.parent == cache
    with monkeypatch.context() as patch:
        patch.setattr(publish, "fetch", lambda *_: pytest.fail("it is there"))
        assert publish.local(url) == first
    (run / "front.json").write_text('{"front": [], "test_evaluations": 2}')
    publish.publish(run, url)
    second = publish.local(url)
    assert second != first
    assert (first / "front.json").read_text() == '{"front": []}'
    assert json.loads((second / "front.json").read_text())["test_evaluations"] == 2


def test_a_reader_of_the_older_state_is_not_disturbed_by_a_newer_one(run: Path, url: str, tmp_path: Path) -> None:
    publish.publish(run, url)
    system, root = fsspec.core.url_to_fs(url)
    index = system.cat_file(f"{root}/run.json")
    (run / "front.json").write_text('{"front": [1]}')
    publish.publish(run, url)
    system.pipe_file(f"{root}/run.json", index)  # what the reader has begun with
    publish.fetch(url, tmp_path / "back")
    assert (tmp_path / "back" / "front.json").read_text() == '{"front": []}'


def test_what_was_changed_or_is_gone_is_named_and_leaves_nothing(run: Path, url: str, tmp_path: Path) -> None:
    publish.publish(run, url)
    system, root = fsspec.core.url_to_fs(url)
    digest = hashlib.sha256(bytes(range(256))).hexdigest()
    system.pipe_file(f"{root}/objects/{digest}", b"other")
    with pytest.raises(
        RunError, match=r"checkpoints/c0001/model\.safetensors of .* was changed; publish the run again"
    ):
        publish.fetch(url, tmp_path / "back")
    system.rm_file(f"{root}/objects/{digest}")
    with pytest.raises(RunError, match=r"lacks .*; publish the run again"):
        publish.fetch(url, tmp_path / "back")
    assert sorted(p.name for p in tmp_path.iterdir() if "back" in p.name) == []


@pytest.mark.parametrize(
    "index",
    [
        "[]",
        "no json",
        '{"../outside": "%s"}' % ("0" * 64),
        '{"/etc/passwd": "%s"}' % ("0" * 64),
        '{"a//b": "%s"}' % ("0" * 64),
        '{".ssh/keys": "%s"}' % ("0" * 64),
        '{"front.json": "../../secret"}',
        '{"front.json": 3}',
    ],
)
def test_an_index_of_whoever_leads_nowhere(index: str, url: str, tmp_path: Path) -> None:
    system, root = fsspec.core.url_to_fs(url)
    system.makedirs(root, exist_ok=True)
    system.pipe_file(f"{root}/run.json", index.encode())
    with pytest.raises(RunError, match=r"run\.json at .* was not written by 'pareto-search publish'"):
        publish.fetch(url, tmp_path / "back")


def test_what_cannot_be_published_or_fetched_gets_one_line(run: Path, url: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing is published at"):
        publish.local(url)
    with pytest.raises(RunError, match=r"cannot be reached .*; expected a URL that fsspec opens"):
        publish.local("nothing://there")
    with lock(run), pytest.raises(RunError, match="another process is running this search"):
        publish.publish(run, url)
    (run / "front.json").unlink()
    with pytest.raises(RunError, match=r"front\.json is not there"):
        publish.publish(run, url)
