"""Data sets: one canonical form, whatever the format and the order of rows, and one clear line for bad input."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest

from pareto_search.errors import DataError
from pareto_search.recsys.dataset import Columns, Dataset, load, load_atomic, load_tables
from pareto_search.recsys.tables import read

INTERACTIONS = """\
user,item,rating,time
10,1,5,300
2,3,1.5,30
10,2,4,200
2,1,2,10
10,10,3,100
2,1,3,20
"""
ITEMS = """\
item,title,genres
10,Ten Things,Comedy|Drama
2,Two  Days,
1,One,Drama
3,"Three, Again",Horror
"""
COLUMNS = Columns(
    user="user", item="item", rating="rating", timestamp="time", text=("title", "genres"), categories="genres"
)
PLAIN = Columns(user="user", item="item", text=("title",))


def written(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


def tables(folder: Path, interactions: str = INTERACTIONS, items: str = ITEMS) -> tuple[str, str]:
    return written(folder / "ratings.csv", interactions), written(folder / "items.csv", items)


def message_of(folder: Path, columns: Columns = COLUMNS, **contents: str) -> str:
    """The one line that loading these tables fails with."""
    with pytest.raises(DataError) as raised:
        load_tables(*tables(folder, **contents), columns, "bad")
    line = str(raised.value)
    assert "\n" not in line
    return line


def atomic(folder: Path) -> Path:
    """The tables above as RecBole atomic files."""
    rows = [line.split(",") for line in INTERACTIONS.splitlines()[1:]]
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    written(folder / "toy.inter", "\n".join([header, *("\t".join(r) for r in rows)]) + "\n")
    items = ["10\tTen Things\tComedy Drama", "2\tTwo Days\t", "1\tOne\tDrama", "3\tThree, Again\tHorror"]
    written(folder / "toy.item", "\n".join(["item_id:token\ttitle:token_seq\tgenres:token_seq", *items]) + "\n")
    return folder


def test_interactions_are_ordered_by_user_and_time_with_ids_in_numeric_order(tmp_path: Path) -> None:
    data = load_tables(*tables(tmp_path), COLUMNS, "toy")
    assert data.user_ids == ("2", "10")
    assert data.item_ids == ("1", "2", "3", "10")
    assert data.users.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.items.tolist() == [0, 0, 2, 3, 1, 0]
    assert data.ratings is not None
    assert data.ratings.tolist() == [2, 3, 1.5, 3, 4, 5]
    assert data.timestamps.tolist() == [10, 20, 30, 100, 200, 300]
    assert [a.dtype.name for a in (data.users, data.items, data.ratings)] == ["int32", "int32", "float32"]
    assert data.dropped == {}


def test_the_text_is_the_title_and_then_each_category(tmp_path: Path) -> None:
    data = load_tables(*tables(tmp_path), COLUMNS, "toy")
    assert data.texts == ("One, Drama", "Two Days", "Three, Again, Horror", "Ten Things, Comedy, Drama")
    assert data.titles == ("One", "Two Days", "Three, Again", "Ten Things")
    assert data.categories == (("Drama",), (), ("Horror",), ("Comedy", "Drama"))


def test_an_interaction_that_is_there_more_than_once_counts_once(tmp_path: Path) -> None:
    rows = INTERACTIONS.splitlines()
    again = tables(tmp_path, "\n".join([*rows, rows[1], rows[-1], rows[1]]))
    data = load_tables(*again, COLUMNS, "toy")
    assert data.dropped == {"interactions that are there more than once": 3}
    untimed = load_tables(*again, replace(COLUMNS, timestamp=None), "toy")  # who knows
    assert len(untimed.items) == len(data.items) + 3
    assert data.sha256 == load_tables(*tables(tmp_path), COLUMNS, "toy").sha256


def test_the_order_of_rows_does_not_change_the_hash(tmp_path: Path) -> None:
    expected = load_tables(*tables(tmp_path), COLUMNS, "toy").sha256
    rows, items = INTERACTIONS.splitlines(), ITEMS.splitlines()
    shuffled = tables(tmp_path, "\n".join([rows[0], *rows[:0:-1]]), "\n".join([items[0], *items[:0:-1]]))
    assert load_tables(*shuffled, COLUMNS, "other name").sha256 == expected


def test_another_rating_or_title_changes_the_hash(tmp_path: Path) -> None:
    hashes = {
        load_tables(*tables(tmp_path), COLUMNS, "toy").sha256,
        load_tables(*tables(tmp_path, INTERACTIONS.replace("1.5", "2.5")), COLUMNS, "toy").sha256,
        load_tables(*tables(tmp_path, items=ITEMS.replace("One", "Once")), COLUMNS, "toy").sha256,
    }
    assert len(hashes) == 3


def test_csv_parquet_and_atomic_files_give_the_same_hash(tmp_path: Path) -> None:
    interactions, items = tables(tmp_path)
    expected = load_tables(interactions, items, COLUMNS, "toy").sha256
    typed = pd.read_csv(interactions), pd.read_csv(items)
    typed[1]["genres"] = typed[1]["genres"].str.split("|")  # lists, as Parquet files often have them
    for frame, name in zip(typed, ("i.parquet", "t.parquet"), strict=True):
        frame.to_parquet(tmp_path / name)
    parquet = load_tables(str(tmp_path / "i.parquet"), str(tmp_path / "t.parquet"), COLUMNS, "toy")
    assert parquet.sha256 == expected
    assert load_atomic(atomic(tmp_path)).sha256 == expected


@pytest.mark.parametrize("genres", [["Drama", "", "Horror", "Comedy Drama"], [""] * 4])
def test_atomic_files_are_titled_by_what_is_called_so_and_have_categories_if_any_item_has(
    tmp_path: Path, genres: list[str]
) -> None:
    atomic(tmp_path)
    names = ["One", "Two Days", "Three, Again", "Ten Things"]
    rows = [f"{i}\t{g}\tACME\t{n}" for i, g, n in zip(("1", "2", "3", "10"), genres, names, strict=True)]
    header = "item_id:token\tgenres:token_seq\tbrand:token\ttitle:token_seq"
    written(tmp_path / "toy.item", "\n".join([header, *rows]) + "\n")
    data = load_atomic(tmp_path)
    assert data.titles == tuple(names)
    assert data.texts[0] == ("One, Drama, ACME" if any(genres) else "One, ACME")
    assert data.categories == (tuple(tuple(g.split()) for g in genres) if any(genres) else None)


PEOPLE = """\
user,gender,town
10,F,Ulm
7,M,Bonn
2,,Ulm
"""
GROUPED = replace(COLUMNS, groups=("gender", "town"))


def test_users_belong_together_by_the_columns_of_their_table(tmp_path: Path) -> None:
    both, people = tables(tmp_path), written(tmp_path / "people.csv", PEOPLE)
    data = load(interactions=both[0], items=both[1], users=people, columns=GROUPED)
    assert data.groups == {"gender": ("", "F"), "town": ("Ulm", "Ulm")}  # of the users 2 and 10
    fewer = load_tables(*both, GROUPED, "toy", written(tmp_path / "fewer.csv", "user,gender,town\n10,F,Ulm\n"))
    assert fewer.groups == {"gender": ("", "F"), "town": ("", "Ulm")}
    plain = load_tables(*both, COLUMNS, "toy")
    assert plain.groups == {}
    assert plain.sha256 == data.sha256 == fewer.sha256  # nothing of it reaches a model
    atomic(tmp_path)
    rows = PEOPLE.replace(",", "\t").replace("user\tgender\ttown", "user_id:token\tgender:token\ttown:token")
    written(tmp_path / "toy.user", rows)
    assert load_atomic(tmp_path).groups == data.groups
    written(tmp_path / "toy.user", "user_id:token\tgender:token\tage:float\n2\t\t7\n10\t\t8\n")
    assert load_atomic(tmp_path).groups == {}  # nobody has one


@pytest.mark.parametrize(
    ("people", "complaint"),
    [
        (PEOPLE + "10,M,Rom\n", "user id '10' has been given in line 2; expected one row for each user"),
        ("user,town\n10,Ulm\n", "has no column 'gender' (columns.groups)"),
        ("user,gender,town\n5,F,Ulm\n", "column 'gender' has a group for no user; expected some, or the same ids"),
    ],
    ids=["twice", "no column", "nobody"],
)
def test_a_table_of_users_that_does_not_fit_is_one_line(tmp_path: Path, people: str, complaint: str) -> None:
    with pytest.raises(DataError) as raised:
        load_tables(*tables(tmp_path), GROUPED, "toy", written(tmp_path / "people.csv", people))
    assert complaint in str(raised.value)


def test_a_category_of_type_token_keeps_its_blanks(tmp_path: Path) -> None:
    atomic(tmp_path)
    written(tmp_path / "toy.item", "item_id:token\ttitle:token_seq\tcategory:token\n1\tOne\tWar Film\n2\tTwo\tDrama\n")
    written(tmp_path / "toy.inter", "user_id:token\titem_id:token\n7\t1\n7\t2\n7\t1\n")
    data = load_atomic(tmp_path)
    assert data.categories == (("War Film",), ("Drama",))
    assert data.texts == ("One, War Film", "Two, Drama")
    assert data.ratings is None


def test_tables_are_read_by_fsspec_url() -> None:
    for name, content in (("toy-r.csv", INTERACTIONS), ("toy-i.csv", ITEMS)):
        with fsspec.open(f"memory://{name}", "w") as file:
            file.write(content)
    assert load(interactions="memory://toy-r.csv", items="memory://toy-i.csv", columns=COLUMNS).name == "toy-r"


def test_a_folder_is_read_as_atomic_files(tmp_path: Path) -> None:
    assert load(source=str(atomic(tmp_path))).name == "toy"


def test_without_timestamps_the_order_of_a_users_rows_is_time(tmp_path: Path) -> None:
    data = load_tables(*tables(tmp_path), PLAIN, "toy")
    assert data.items.tolist() == [2, 0, 0, 0, 1, 3]
    assert data.timestamps.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.categories is None


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    interactions = INTERACTIONS + "10,99,3,1\n10,4,3,2\n30,1,3,3\n30,2,3,4\n30,4,3,5\n"
    data = load_tables(*tables(tmp_path, interactions, ITEMS + "4,,\n"), COLUMNS, "toy")
    assert data.user_ids == ("2", "10")
    assert data.item_ids == ("1", "2", "3", "10")
    assert len(data.items) == 6
    assert data.dropped == {
        "items without text": 1,
        "interactions of items without text": 2,
        "interactions of items that the items table lacks": 1,
        "users with fewer than 3 interactions": 1,
    }


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.csv does not exist; check the path"):
        load_tables(str(tmp_path / "absent.csv"), tables(tmp_path)[1], COLUMNS, "bad")


def test_a_missing_column_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    line = message_of(tmp_path, Columns(user="usr", item="item", text=("title",)))
    assert "ratings.csv has no column 'usr' (columns.user); did you mean 'user'?" in line


@pytest.mark.parametrize("content", ["", "user,item,rating,time\n"])
def test_an_empty_file_is_an_error(tmp_path: Path, content: str) -> None:
    assert "ratings.csv has no rows; expected a header" in message_of(tmp_path, interactions=content)


@pytest.mark.parametrize(
    ("good", "bad", "place"),
    [
        ("2,3,1.5,30", "2,3,good,30", "line 3: 'good' in column 'rating' is no number"),
        ("2,1,2,10", "2,1,2,yesterday", "line 5: 'yesterday' in column 'time' is no number"),
        ("2,1,2,10", "2,1,2,nan", "line 5: 'nan' in column 'time' is no number"),
        ("2,1,2,10", "2,1", "line 5: '' in column 'rating' is no number"),
        ("2,1,3,20", ",1,3,20", "line 7: '' in column 'user' is no id"),
        ("2,1,3,20", "NaN,1,3,20", "line 7: 'NaN' in column 'user' is no id"),
        ("2,1,3,20", "\n\n2,,3,20", "line 9: '' in column 'item' is no id"),
        ("2,1,2,10", "2,1,2,10,7", "Expected 4 fields in line 5, saw 5"),
    ],
)
def test_a_bad_value_is_named_with_its_line_and_column(tmp_path: Path, good: str, bad: str, place: str) -> None:
    line = message_of(tmp_path, interactions=INTERACTIONS.replace(good, bad))
    assert "ratings.csv" in line
    assert place in line
    assert "expected" in line


def test_however_few_cells_are_read_at_a_time_it_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_tables(*tables(tmp_path), COLUMNS, "toy")
    monkeypatch.setattr("pareto_search.recsys.tables.CHUNK", 4)
    assert load_tables(*tables(tmp_path), COLUMNS, "toy").sha256 == whole.sha256
    bad = INTERACTIONS.replace("2,1,3,20", "2,1,3,then")
    assert "line 7: 'then' in column 'time' is no number" in message_of(tmp_path, interactions=bad)


def test_an_id_with_blanks_round_it_is_the_same_id(tmp_path: Path) -> None:
    blank = INTERACTIONS.replace("2,1,2,10", " 2 ,1 ,2,10")
    found = load_tables(*tables(tmp_path, blank), COLUMNS, "toy")
    assert found.sha256 == load_tables(*tables(tmp_path), COLUMNS, "toy").sha256


def test_rows_longer_than_the_header_are_an_error(tmp_path: Path) -> None:
    line = message_of(tmp_path, interactions="user,item,rating\n1,1,5,300\n1,2,5,400\n")
    assert "ratings.csv has rows with more cells than its header" in line


def test_a_missing_timestamp_or_a_date_in_parquet_is_an_error(tmp_path: Path) -> None:
    interactions, items = tables(tmp_path)
    frame = pd.read_csv(interactions)
    for bad in (frame["time"].where(frame["time"] != 30), pd.to_datetime(frame["time"])):
        frame.assign(time=bad).to_parquet(tmp_path / "bad.parquet")
        with pytest.raises(DataError, match=r"bad\.parquet, row [12]: '.*' in column 'time' is no number"):
            load_tables(str(tmp_path / "bad.parquet"), items, COLUMNS, "bad")


def parquet(folder: Path, items: pd.DataFrame, columns: Columns) -> Dataset:
    """The tables above with these items."""
    items.to_parquet(folder / "items.parquet")
    return load_tables(tables(folder)[0], str(folder / "items.parquet"), columns, "toy")


@pytest.mark.parametrize(
    ("values", "ids"),
    [
        ([7, 8, 7], ["7", "8"]),
        ([7.0, 8.0, 7.0], ["7", "8"]),
        (pd.array([7, 8, 7], "Int64"), ["7", "8"]),
        (pd.array([7, 8, 7], "Float32"), ["7", "8"]),
        (pd.Categorical(["b", "a", "b"]), ["b", "a"]),
        (pd.array(["b", " b", "b "], "string"), ["b"]),
        ([b"b", b"a", b"b"], ["b'b'", "b'a'"]),
        (pd.to_datetime(["2026-01-02", "2026-01-01", "2026-01-02"]), ["2026-01-02 00:00:00", "2026-01-01 00:00:00"]),
        ([{"oid": 7}, {"oid": 8}, {"oid": 7}], ["{'oid': 7}", "{'oid': 8}"]),
    ],
    ids=str,
)
def test_ids_are_what_a_person_reads_of_a_cell_in_parquet(values: Any, ids: list[str], tmp_path: Path) -> None:
    pd.DataFrame({"user": values}).to_parquet(tmp_path / "ids.parquet")
    places, distinct = read(str(tmp_path / "ids.parquet")).places("user", "user")
    assert distinct == ids
    assert read(str(tmp_path / "ids.parquet")).ids("user", "user") == [ids[place] for place in places]


@pytest.mark.parametrize("values", [[7, None], pd.array([7, None], "Int64"), ["a", None], pd.Categorical(["a", None])])
def test_a_null_is_no_id(values: Any, tmp_path: Path) -> None:
    pd.DataFrame({"user": values}).to_parquet(tmp_path / "ids.parquet")
    with pytest.raises(DataError, match=r"ids\.parquet, row 2: '' in column 'user' is no id"):
        read(str(tmp_path / "ids.parquet")).places("user", "user")


def test_lists_in_parquet_are_text_too_but_no_ids(tmp_path: Path) -> None:
    items = pd.DataFrame({"item": [10, 2, 1, 3], "tags": [["new", " very  old"], ["new"], [], [None, "old"]]})
    items["title"] = list("abcd")
    columns = Columns(user="user", item="item", text=("title", "tags"))
    assert parquet(tmp_path, items, columns).texts == ("c", "b, new", "d, old", "a, new, very old")
    with pytest.raises(DataError, match=r"items.parquet: column 'tags' has lists; expected an id in every row"):
        parquet(tmp_path, items, replace(columns, item="tags"))


def test_an_index_with_a_name_is_a_column_of_a_parquet_file(tmp_path: Path) -> None:
    items = pd.DataFrame({"title": list("abcd")}, index=pd.Index([10, 2, 1, 3], name="item"))
    assert parquet(tmp_path, items, PLAIN).texts == ("c", "b", "d", "a")
    items.index.name = "title"
    with pytest.raises(DataError, match=r"items\.parquet cannot be read .*title.*already exists"):
        parquet(tmp_path, items, PLAIN)


def test_numbers_that_nulls_made_floats_are_categories_without_decimals(tmp_path: Path) -> None:
    items = pd.DataFrame({"item": [10, 2, 1, 3], "title": list("abcd"), "genres": [28, None, 12, 2.5]})
    data = parquet(tmp_path, items, replace(COLUMNS, separator="."))
    assert data.categories == (("12",), (), ("2", "5"), ("28",))
    assert data.texts == ("c, 12", "b", "d, 2, 5", "a, 28")


def test_a_repeated_item_id_is_an_error(tmp_path: Path) -> None:
    line = message_of(tmp_path, items=ITEMS + "2,Again,Drama\n")
    assert "items.csv, line 6: item id '2' has been given in line 3; expected one row for each item" in line


def test_items_without_any_text_are_an_error(tmp_path: Path) -> None:
    assert "no item of" in message_of(tmp_path, items="item,title,genres\n1,,\n2,,\n")


def test_no_user_left_is_an_error(tmp_path: Path) -> None:
    line = message_of(tmp_path, interactions="user,item,rating,time\n1,1,1,1\n1,2,1,2\n")
    assert "no user of" in line
    assert "the most is 2" in line


def test_ids_that_never_meet_are_an_error(tmp_path: Path) -> None:
    assert "the first is '1'" in message_of(tmp_path, items="item,title,genres\nA,Title,Drama\n")


@pytest.mark.parametrize("name", ["ratings.json", "broken.parquet"])
def test_a_file_in_another_format_is_an_error(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, "no table\n")
    with pytest.raises(DataError, match="expected") as raised:
        load_tables(path, tables(tmp_path)[1], COLUMNS, "bad")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("other.item", "item_id:token\n1\n", "has not one .item file"),
        ("toy.item", "item_id\ttitle:token_seq\n1\tOne\n", "header field 'item_id' has no type"),
        ("toy.item", "movie_id:token\ttitle:token_seq\n1\tOne\n", "has no field 'item_id'"),
        ("toy.item", "item_id:token\ttitle:token_seq\ttitle:token\n1\tOne\t1\n", "has field 'title' twice"),
        ("toy.inter", "user_id:token\trating:float\n1\t1\n", "toy.inter lacks an id field"),
    ],
)
def test_bad_atomic_files_are_named(tmp_path: Path, name: str, content: str, words: str) -> None:
    atomic(tmp_path)
    written(tmp_path / name, content)
    with pytest.raises(DataError) as raised:
        load_atomic(tmp_path)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_source_that_is_no_folder_and_half_a_source_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected 'movielens-100k', or a folder"):
        load(source=str(tmp_path / "absent"))
    with pytest.raises(DataError, match="give either source, or interactions, items and columns"):
        load(interactions="ratings.csv")


def test_groups_that_every_split_knows_are_not_the_datas_to_name(tmp_path: Path) -> None:
    both, people = tables(tmp_path), written(tmp_path / "people.csv", "user,item\n10,x\n")
    with pytest.raises(DataError, match=r"people.csv: 'item' is no name for groups, .*; rename the column"):
        load_tables(*both, replace(COLUMNS, groups=("item",)), "toy", people)
    atomic(tmp_path)
    written(tmp_path / "toy.user", "user_id:token\titem:token\ttown:token\n10\tx\tUlm\n")
    assert load_atomic(tmp_path).groups == {"town": ("", "Ulm")}  # which has such a name by chance


def test_items_have_a_domain(tmp_path: Path) -> None:
    shops = ITEMS.replace("\n", ",film\n").replace("genres,film", "genres,shop").replace("Days,,film", "Days,,book")
    named = replace(COLUMNS, domain="shop")
    data = load_tables(*tables(tmp_path, items=shops), named, "toy")
    assert dict(zip(data.item_ids, data.domains or (), strict=True)) == {
        "1": "film", "2": "book", "3": "film", "10": "film",
    }  # fmt: skip
    plain = load_tables(*tables(tmp_path), COLUMNS, "toy")
    assert plain.domains is None
    assert plain.sha256 == data.sha256  # what is trained on is the split's to say
    some = load_tables(*tables(tmp_path, items=shops.replace("Days,,book", "Days,,")), named, "toy")
    assert (some.domains or ())[1] == ""


def test_a_domain_in_atomic_files_stays_text(tmp_path: Path) -> None:
    atomic(tmp_path)
    plain = load_atomic(tmp_path)
    lines = (tmp_path / "toy.item").read_text().splitlines()
    ends = ["domain:token", "film", "book", "film", "film"]
    written(tmp_path / "toy.item", "\n".join(f"{a}\t{b}" for a, b in zip(lines, ends, strict=True)) + "\n")
    data = load_atomic(tmp_path)
    assert data.domains == ("film", "book", "film", "film")
    assert plain.domains is None
    assert data.texts == tuple(f"{text}, {name}" for text, name in zip(plain.texts, data.domains, strict=True))
