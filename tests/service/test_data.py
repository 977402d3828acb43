import io
import json
import threading
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Shared
from running import eventually

from pareto_search.errors import DataError
from pareto_search.service import reader
from pareto_search.service.catalogue import Catalogue
from pareto_search.service.making import MARK, made
from pareto_search.service.record import ConflictError, DataSet, Record

COLUMNS = {"user": "user", "item": "item", "rating": "rating", "timestamp": "time", "text": ["title"]}
INTER = "user_id:token\titem_id:token\ttimestamp:float\n" + "".join(
    f"u{u}\ti{i}\t{i}\n" for u in range(4) for i in range(u, u + 4)
)
ITEM = "item_id:token\ttitle:token_seq\n" + "".join(f"i{i}\tThe film {i}\n" for i in range(7))


def tables(shared: Shared) -> dict[str, tuple[str, bytes]]:
    folder = shared.service.root.parent / "small"
    return {
        "interactions": ("ratings.csv", (folder / "ratings.csv").read_bytes()),
        "items": ("items.csv", (folder / "items.csv").read_bytes()),
    }


def packed(method: int = zipfile.ZIP_DEFLATED, **files: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/").replace("_inter", ".inter").replace("_item", ".item"), text)
    return content.getvalue()


def uploads(shared: Shared) -> set[Path]:
    return uploads_in(shared.service.root)


def uploads_in(root: Path) -> set[Path]:
    return set((root / "data").glob("*"))


def test_tables_that_are_uploaded_can_be_named_until_they_are_deleted(shared: Shared) -> None:
    form = {"name": "mine", "columns": json.dumps(COLUMNS)}
    answer = shared.client.post("/v1/data", data=form, files=tables(shared))
    assert answer.status_code == 201, answer.text
    facts = answer.json()["facts"]
    assert (facts["users"], facts["items"], facts["rated"], facts["timed"]) == (40, 30, True, True)
    assert "mine" in {d["name"] for d in shared.client.get("/v1/data").json()["data"]}
    assert shared.client.post("/v1/data", data=form, files=tables(shared)).status_code == 409

    config = {**shared.config, "data": {"source": "mine"}}
    search = shared.client.post("/v1/searches", json=config).json()["id"]
    assert shared.client.delete("/v1/data/mine").status_code == 409
    shared.client.post(f"/v1/searches/{search}/cancel")
    eventually(lambda: shared.client.delete(f"/v1/searches/{search}").status_code != 409)  # it may have begun
    assert shared.client.delete("/v1/data/mine").status_code == 204
    assert uploads(shared) == set()
    assert shared.client.post("/v1/searches", json=config).status_code == 404


def test_users_may_come_with_their_groups_in_an_archive_or_as_a_table(shared: Shared) -> None:
    people = "user_id:token\ttown:token\nu0\tUlm\nu1\tRom\nu2\tUlm\nu3\tRom\n"
    archive = packed(up_inter=INTER, up_item=ITEM, **{"up.user": people})
    answer = shared.client.post("/v1/data", data={"name": "grouped"}, files={"archive": ("a.zip", archive)})
    assert answer.status_code == 201, answer.text
    assert list((shared.service.root / "data").glob("*/data.user"))
    shared.client.delete("/v1/data/grouped")

    form = {"name": "grouped", "columns": json.dumps({**COLUMNS, "groups": ["town"]})}
    table = {
        "users": ("people.csv", "user,town\n" + "".join(f"u{u},{'Ulm' if u % 2 else 'Rom'}\n" for u in range(1, 41)))
    }
    answer = shared.client.post("/v1/data", data=form, files={**tables(shared), **table})
    assert answer.status_code == 201, answer.text
    config = {**shared.config, "name": "fair", "data": {"source": "grouped"}, "constraints": ["ndcg@5[town] <= 1"]}
    assert shared.client.post("/v1/estimate", json=config).status_code == 200
    shared.client.delete("/v1/data/grouped")
    for files, columns in ((tables(shared), form["columns"]), ({**tables(shared), **table}, json.dumps(COLUMNS))):
        refused = shared.client.post("/v1/data", data={"name": "odd", "columns": columns}, files=files)
        assert (refused.status_code, "expected both, or neither" in refused.json()["error"]) == (400, True)


def test_items_are_found_by_parts_of_their_titles(shared: Shared) -> None:
    archive = packed(up_inter=INTER, up_item=ITEM.replace("The film 3", "The long film 3 of Ünal"))
    shared.client.post("/v1/data", data={"name": "titled"}, files={"archive": ("a.zip", archive)})

    def found(query: str, **more: int) -> list[str]:
        answer = shared.client.get("/v1/data/titled/items", params={"query": query, **more})
        assert answer.status_code == 200, answer.text
        return [f"{i['item']} {i['title']}" for i in answer.json()["items"]]

    assert found("ünAL fil") == ["i3 The long film 3 of Ünal"]
    assert found("film") == [f"i{i} The film {i}" for i in (0, 1, 2, 4, 5, 6)] + ["i3 The long film 3 of Ünal"]
    assert found("film", limit=2) == ["i0 The film 0", "i1 The film 1"]
    assert found("book") == []
    assert shared.client.delete("/v1/data/titled").status_code == 204
    assert shared.client.get("/v1/data/titled/items?query=film").status_code == 404
    again = packed(up_inter=INTER, up_item=ITEM.replace("film", "book"))
    shared.client.post("/v1/data", data={"name": "titled"}, files={"archive": ("a.zip", again)})
    assert len(found("book")) == 7  # and not the titles of the one that had the name before
    shared.client.delete("/v1/data/titled")


def test_few_wait_for_the_first_reading_of_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record(tmp_path / "service.db")
    catalogue = Catalogue(tmp_path, record, [], [])
    for name in ("slow", "quick"):
        record.add_data(DataSet(name, "upload", {"source": name}))
    done = threading.Event()

    def read(section: Mapping[str, Any]) -> reader.Reading:
        if section["source"] == "slow":
            done.wait()
        return reader.Reading({}, [("i0", "The film")])

    monkeypatch.setattr(reader, "read", read)
    assert catalogue.find("quick", "film", 1) == [("i0", "The film")]
    with ThreadPoolExecutor(20) as threads:
        try:
            asked = [threads.submit(catalogue.find, "slow", "film", 1) for _ in range(20)]
            eventually(lambda: sum(a.done() for a in asked) == 12)
            assert all(isinstance(a.exception(), ConflictError) for a in asked if a.done())
            assert catalogue.find("quick", "film", 1) == [("i0", "The film")]
        finally:
            done.set()
    assert sum(a.exception() is None for a in asked) == 8
    record.close()


def test_an_archive_is_read_by_its_two_files_wherever_they_lie_in_it(shared: Shared) -> None:
    archive = packed(**{"..__..__up_inter": INTER, "deep__down_item": ITEM, "..__evil.py": "raise SystemExit"})
    answer = shared.client.post("/v1/data", data={"name": "films"}, files={"archive": ("a.zip", archive)})
    assert answer.status_code == 201, answer.text
    assert answer.json()["facts"]["users"] == 4
    (folder,) = uploads(shared)
    assert {f.name for f in folder.iterdir()} == {"data.inter", "data.item"}
    assert shared.client.delete("/v1/data/films").status_code == 204


@pytest.mark.parametrize(
    ("form", "files", "complaint"),
    [
        ({"name": "bad"}, {"archive": b"no zip"}, "the archive cannot be read"),
        ({"name": "bad"}, {"archive": packed(a_inter=INTER)}, "0 files that end in .item"),
        ({"name": "bad"}, {"archive": packed(a_inter=INTER, b_inter=INTER, a_item=ITEM)}, "2 files that end in .inter"),
        ({"name": "bad"}, {"archive": packed(a_inter=INTER, a_item="item_id:token\n1\n")}, "data.item"),
        ({"name": "bad"}, {}, "give either archive, or interactions, items and columns"),
        ({"name": "bad", "columns": "{"}, {"interactions": b"a", "items": b"a"}, "columns"),
        ({"name": "bad", "columns": '{"user": "u"}'}, {"interactions": b"a", "items": b"a"}, "columns.item"),
        (
            {"name": "bad"},
            {"archive": packed(zipfile.ZIP_BZIP2, a_inter=INTER, a_item=ITEM)},
            "expected zip's usual one",
        ),
        (
            {"name": "bad"},
            {"archive": packed(zipfile.ZIP_LZMA, a_inter=INTER, a_item=ITEM)},
            "expected zip's usual one",
        ),
        ({"name": "../bad"}, {"archive": b""}, "name"),
        ({"name": "movielens-100k"}, {"archive": packed(a_inter=INTER, a_item=ITEM)}, "there already"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line_and_leaves_nothing(
    shared: Shared, form: dict[str, str], files: dict[str, bytes], complaint: str
) -> None:
    named: Any = {key: (f"{key}.csv", content) for key, content in files.items()}
    answer = shared.client.post("/v1/data", data=form, files=named)
    assert answer.status_code in (400, 409, 422)
    assert complaint in answer.json()["error"]
    assert str(shared.service.root) not in answer.text
    assert uploads(shared) == set()


def test_an_archive_that_grows_without_end_is_refused(shared: Shared) -> None:
    # 1.1 GB of zeros pack to about 1 MB.
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.inter", "w") as file:
        for _ in range(1100):
            file.write(bytes(1 << 20))
    answer = shared.client.post("/v1/data", data={"name": "bomb"}, files={"archive": ("a.zip", content.getvalue())})
    assert answer.status_code == 400
    assert "unpacks to more than 1024 MiB" in answer.json()["error"]
    assert uploads(shared) == set()


def test_a_folder_that_is_there_already_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("somebody's")
    with pytest.raises(FileExistsError), made(tmp_path):
        pass
    assert (tmp_path / "file").read_text() == "somebody's"


def test_a_small_file_that_takes_too_much_memory_is_refused(tmp_path: Path) -> None:
    rows = 1_000_000  # equal ones, which take next to no room in a file
    part = pa.table({name: pa.array(["x" * 20]).take(pa.array(bytes(rows), pa.uint8())) for name in ("user", "item")})
    with pq.ParquetWriter(tmp_path / "big.parquet", part.schema) as file:
        for _ in range(40):
            file.write_table(part)
    (tmp_path / "items.csv").write_text("item,title\nx,The film\n")
    assert (tmp_path / "big.parquet").stat().st_size < 1 << 20
    section = {"columns": {"user": "user", "item": "item", "text": ["title"]}, "items": str(tmp_path / "items.csv")}
    with pytest.raises(DataError, match="takes more than 1024 MiB of memory to read; give less of it"):
        reader.read({**section, "interactions": str(tmp_path / "big.parquet")}, memory=1 << 30)
    pq.write_table(pa.table({"user": ["a", "a", "a"], "item": ["x", "x", "x"]}), tmp_path / "small.parquet")
    small = reader.read({**section, "interactions": str(tmp_path / "small.parquet")}, memory=1 << 30)
    assert (small.facts["users"], small.items) == (1, [("x", "The film")])


def test_a_container_has_the_memory_that_its_kernel_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = reader._memory()
    for said, expected in (("max", machine), ("1073741824", 1 << 30), (str(1 << 60), machine)):
        (tmp_path / "limit").write_text(said)
        monkeypatch.setattr(reader, "LIMITS", (str(tmp_path / "limit"), str(tmp_path / "none")))
        assert reader._memory() == expected


def test_what_a_kill_left_of_an_upload_is_swept_and_nothing_else(tmp_path: Path) -> None:
    record = Record(tmp_path / "service.db")
    catalogue = Catalogue(tmp_path, record, [], [])
    kept = Path(catalogue.upload_archive("mine", io.BytesIO(packed(up_inter=INTER, up_item=ITEM))).section["source"])
    half, named = tmp_path / "data" / "half", tmp_path / "data" / "named"
    for folder in (half, named):
        folder.mkdir()
        (folder / MARK).touch()
    record.add_data(DataSet("named", "upload", {"source": str(named)}))
    record.remove_data("mine")  # as where the service was given another record
    Catalogue(tmp_path, record, [], [])
    assert uploads_in(tmp_path) == {kept, named}
    assert not (named / MARK).exists()
    record.close()


def test_the_operators_data_cannot_be_deleted(shared: Shared) -> None:
    answer = shared.client.delete("/v1/data/small")
    assert (answer.status_code, "the operator's" in answer.json()["error"]) == (409, True)
