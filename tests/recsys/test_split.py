"""Splits: by hand, independent of file order, with ties that only the seed decides."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pareto_search.errors import ConfigError, DataError
from pareto_search.recsys import split as module
from pareto_search.recsys.dataset import Columns, Dataset, load_tables
from pareto_search.recsys.split import Split, gaps, split

Row = tuple[str, str, float]
COLUMNS = Columns(user="user", item="item", timestamp="time", rating="rating", text=("title",))


def toy(folder: Path, rows: Sequence[Row]) -> Dataset:
    """A data set of (user, item, time), with the time's last digit as rating."""
    (folder / "r.csv").write_text("user,item,time,rating\n" + "".join(f"{u},{i},{t},{t % 10}\n" for u, i, t in rows))
    (folder / "i.csv").write_text("item,title\n" + "".join(f"{i},Item {i}\n" for i in range(9)))
    return load_tables(str(folder / "r.csv"), str(folder / "i.csv"), COLUMNS, "toy")


LAST_OUT: list[Row] = [
    ("a", "1", 3), ("a", "0", 1), ("a", "2", 2), ("a", "0", 4),
    ("b", "5", 9), ("b", "4", 8), ("b", "3", 7),
]  # fmt: skip
TIED: list[Row] = [(u, str(i), 1) for u in "abcdefgh" for i in range(6)]


def test_the_last_item_is_tested_and_the_one_before_validates(tmp_path: Path) -> None:
    parts = split(toy(tmp_path, LAST_OUT), "leave_last_out", 0)
    assert (parts.n_users, parts.n_items) == (2, 9)
    assert parts.train.indptr.tolist() == [0, 2, 3]
    assert parts.train.items.tolist() == [0, 2, 3]
    assert parts.train.ratings is not None
    assert parts.train.ratings.tolist() == [1, 2, 7]
    assert parts.validation.users.tolist() == [0, 1]
    assert parts.validation.targets.items.tolist() == [1, 4]
    assert parts.validation.history.items.tolist() == [0, 2, 3]
    assert parts.test.targets.items.tolist() == [0, 5]
    assert parts.test.history.of(0).tolist() == [0, 2, 1]
    assert parts.test.history.of(1).tolist() == [3, 4]


def test_users_are_counted_for_whom_a_list_has_too_few_items(tmp_path: Path) -> None:
    parts = split(toy(tmp_path, LAST_OUT), "leave_last_out", 0)
    # On test user 0 has had 0, 2 and 1, of which 0 is bought again, and user 1 has had 3 and 4.
    assert [parts.with_fewer_left(k) for k in (7, 8)] == [0, 2]  # of 9
    some = replace(parts, offered=np.arange(9) < 4)  # of which user 0 has had two, and user 1 one
    assert [some.with_fewer_left(k) for k in (2, 3, 4)] == [0, 1, 2]


def test_of_many_users_some_are_validated_on_and_all_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = toy(tmp_path, TIED)
    whole = split(data, "leave_last_out", 0)
    assert (len(whole.validation.users), whole.unvalidated) == (8, 0)
    monkeypatch.setattr(module, "LEAST_VALIDATED", 2)
    monkeypatch.setattr(module, "VALIDATED", 3 * 9)  # scores, of 9 items

    def drawn(data: Dataset, seed: int = 0) -> tuple[int, ...]:
        parts = split(data, "leave_last_out", seed)
        assert (len(parts.test.users), parts.unvalidated) == (8, 5)
        if seed == 0:
            assert parts.train.items.tolist() == whole.train.items.tolist()
            for place, user in enumerate(parts.validation.users):
                assert parts.validation.history.of(place).tolist() == whole.validation.history.of(user).tolist()
                assert parts.validation.targets.of(place).tolist() == whole.validation.targets.of(user).tolist()
        return tuple(parts.validation.users.tolist())

    assert list(drawn(data)) == sorted(set(drawn(data)))
    assert drawn(toy(tmp_path, TIED[::-1])) == drawn(data)
    assert len({drawn(data, seed) for seed in range(5)}) > 1
    monkeypatch.setattr(module, "LEAST_VALIDATED", 4)
    assert len(split(data, "leave_last_out", 0).validation.users) == 4


def test_gaps_are_counted_by_powers_of_two_and_the_first_is_not_known() -> None:
    times = np.array([5, 5, 6, 8, 11, 71, 2.0**70, 3, 3.5])
    users = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1], np.int32)
    assert gaps(users, times).tolist() == [0, 1, 2, 3, 3, 7, 63, 0, 2]


def test_gaps_of_nanoseconds_are_none_where_times_tie() -> None:
    times = np.array([1.7e18, 1.7e18, 1.7e18 + 1e9])
    assert gaps(np.zeros(3, np.int32), times).tolist() == [0, 1, 31]  # 2^29 ns < a second < 2^30 ns


def test_gaps_go_with_their_interactions(tmp_path: Path) -> None:
    parts = split(toy(tmp_path, LAST_OUT), "leave_last_out", 0)
    assert np.array_equal(parts.train.gaps, [0, 2, 0])  # type: ignore[arg-type]
    assert np.array_equal(parts.test.history.gaps, [0, 2, 2, 0, 2])  # type: ignore[arg-type]
    assert np.array_equal(parts.test.history.rows(1, 2).gaps, [0, 2])  # type: ignore[arg-type]


def test_groups_that_a_model_reads_go_with_their_users(tmp_path: Path) -> None:
    data = replace(toy(tmp_path, LAST_OUT), groups={"town": ("Ulm", ""), "age": ("9", "10"), "job": ("", "vet")})
    parts = split(data, "leave_last_out", 0, groups=("age", "town"))
    assert parts.groups == {"age": ("10", "9"), "town": ("Ulm",)}
    for sequences in (parts.train, parts.validation.history, parts.test.history):
        assert sequences.groups is not None
        assert sequences.groups.tolist() == [[2, 1], [1, 0]]
        assert sequences.rows(1, 2).groups.tolist() == [[1, 0]]  # type: ignore[union-attr]
    none = split(data, "leave_last_out", 0)
    assert none.train.groups is None
    moved = replace(data, groups={**data.groups, "town": ("", "Ulm")})
    assert none.sha256 == split(moved, "leave_last_out", 0).sha256  # nothing of it reaches a model
    assert len({none.sha256, parts.sha256, split(moved, "leave_last_out", 0, groups=("age", "town")).sha256}) == 3
    asked, asked_of_moved = (split(d, "leave_last_out", 0, by=("town", "user")).sha256 for d in (data, moved))
    assert len({none.sha256, asked, asked_of_moved}) == 3  # scores depend on it
    without = replace(data, groups={})
    assert split(without, "leave_last_out", 0, by=("town",)).sha256 not in (none.sha256, asked)
    with pytest.raises(ConfigError, match=r"model\.groups has 'twon', .* toy belong together; did you mean 'town'"):
        split(data, "leave_last_out", 0, groups=("twon",))


def test_data_without_times_has_no_gaps(tmp_path: Path) -> None:
    toy(tmp_path, LAST_OUT)
    columns = replace(COLUMNS, timestamp=None)
    data = load_tables(str(tmp_path / "r.csv"), str(tmp_path / "i.csv"), columns, "toy")
    assert split(data, "leave_last_out", 0).train.gaps is None


def test_a_repeat_purchase_stays_a_target(tmp_path: Path) -> None:
    test = split(toy(tmp_path, LAST_OUT), "leave_last_out", 0).test
    assert test.targets.of(0).tolist() == [0]
    assert 0 in test.history.of(0)


def test_arrays_are_small_and_contiguous(tmp_path: Path) -> None:
    test = split(toy(tmp_path, LAST_OUT), "leave_last_out", 0).test
    arrays = (test.users, test.history.indptr, test.history.items)
    assert [a.dtype.name for a in arrays] == ["int32", "int64", "int32"]
    assert all(a.flags["C_CONTIGUOUS"] for a in arrays)


def test_the_order_of_the_file_does_not_change_the_split(tmp_path: Path) -> None:
    shuffled = [TIED[i] for i in np.random.default_rng(0).permutation(len(TIED))]
    hashes = {split(toy(tmp_path, rows), "leave_last_out", 0).sha256 for rows in (TIED, TIED[::-1], shuffled)}
    assert len(hashes) == 1


def test_another_seed_breaks_ties_another_way(tmp_path: Path) -> None:
    data = toy(tmp_path, TIED)
    first, second = (split(data, "leave_last_out", seed) for seed in (0, 1))
    assert first.test.targets.items.tolist() != second.test.targets.items.tolist()
    assert first.sha256 != second.sha256


def test_a_tie_is_broken_by_the_hash_of_seed_user_and_item(tmp_path: Path) -> None:
    # `printf '0\tu\t0' | b2sum -l 64` gives 3e27…, and items 1 and 2 give 105b… and bed4….
    data = toy(tmp_path, [("u", "0", 5), ("u", "1", 5), ("u", "2", 5)])
    parts = split(data, "leave_last_out", 0)
    assert [s.of(0).tolist() for s in (parts.train, parts.validation.targets, parts.test.targets)] == [[1], [0], [2]]


def test_another_seed_leaves_what_does_not_tie(tmp_path: Path) -> None:
    data = toy(tmp_path, LAST_OUT)
    assert split(data, "leave_last_out", 0).sha256 == split(data, "leave_last_out", 1).sha256


@pytest.fixture
def temporal(tmp_path: Path) -> Split:
    """40 interactions at times 0 … 39, with the cuts at times 32 and 36; user c comes too late to be trained on."""
    train = [("a" if t % 2 else "b", str(t % 5), t) for t in range(32)]
    validation = [("a", "7", 32), ("a", "7", 33), ("c", "1", 34), ("c", "2", 35)]
    test = [("a", "1", 36), ("a", "8", 37), ("b", "6", 38), ("c", "3", 39)]
    return split(toy(tmp_path, [*train, *validation, *test]), "temporal", 0)


def test_the_temporal_split_cuts_once_for_all_users(temporal: Split) -> None:
    assert np.diff(temporal.train.indptr).tolist() == [16, 16, 0]
    assert temporal.train.of(0).tolist()[:5] == [1, 3, 0, 2, 4]
    assert temporal.test.targets.indptr.tolist() == [0, 2, 3]
    assert temporal.test.targets.items.tolist() == [1, 8, 6]
    assert temporal.test.history.indptr.tolist() == [0, 18, 34]
    assert temporal.test.history.of(0).tolist()[-2:] == [7, 7]


def test_targets_are_deduplicated(temporal: Split) -> None:
    assert temporal.validation.targets.of(0).tolist() == [7]
    assert temporal.validation.targets.ratings is not None
    assert temporal.validation.targets.ratings.tolist() == [2]


def test_users_without_training_history_are_not_evaluated(temporal: Split) -> None:
    assert temporal.validation.users.tolist() == [0]
    assert temporal.test.users.tolist() == [0, 1]


def test_ties_at_a_cut_in_time_stay_together(tmp_path: Path) -> None:
    times = [0, 1, 2, 3, 4, 5, 6, 7, 7, 9]  # 80 % would cut between the two of time 7
    parts = split(toy(tmp_path, [("a", str(i % 9), t) for i, t in enumerate(times)]), "temporal", 0)
    assert len(parts.train.items) == 7
    assert sorted(parts.validation.targets.items.tolist()) == [7, 8]
    assert parts.test.targets.items.tolist() == [0]


def test_an_empty_part_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="split temporal: no user of the validation part") as raised:
        split(toy(tmp_path, TIED), "temporal", 0)
    assert "\n" not in str(raised.value)


def domains(folder: Path) -> Dataset:
    """a buys in both, with the books 5 to 8; b only books; c only films; d one book, at last."""
    rows: list[Row] = [
        *(("a", item, time) for time, item in enumerate("051627")),
        *(("b", item, time) for time, item in enumerate("5678")),
        *(("c", item, time) for time, item in enumerate("0123")),
        *(("d", item, time) for time, item in enumerate("0126")),
    ]
    data = toy(folder, rows)
    return replace(data, domains=("film",) * 5 + ("book",) * 4)


def test_with_a_target_only_its_items_are_ranked_and_all_others_are_learnt_from(tmp_path: Path) -> None:
    parts = split(domains(tmp_path), "leave_last_out", 0, target="book")
    assert parts.offered is not None
    assert np.flatnonzero(parts.offered).tolist() == [5, 6, 7, 8]
    assert [parts.train.of(u).tolist() for u in range(4)] == [[0, 5, 1], [5, 6], [0, 1, 2, 3], [0, 1, 2]]
    assert parts.validation.users.tolist() == [0, 1]
    assert parts.validation.targets.items.tolist() == [6, 7]
    assert [parts.validation.history.of(row).tolist() for row in range(2)] == [[0, 5, 1], [5, 6]]
    assert parts.test.users.tolist() == [0, 1, 3]
    assert parts.test.targets.items.tolist() == [7, 8, 6]
    # The film between a's last two books is known by the time of the test, and no target.
    assert [parts.test.history.of(row).tolist() for row in range(3)] == [[0, 5, 1, 6, 2], [5, 6, 7], [0, 1, 2]]


def test_without_shots_nothing_of_the_target_is_trained_on_and_all_of_it_is_history(tmp_path: Path) -> None:
    data = domains(tmp_path)
    parts = split(data, "leave_last_out", 0, target="book", shots=0.0)
    assert [parts.train.of(u).tolist() for u in range(4)] == [[0, 1], [], [0, 1, 2, 3], [0, 1, 2]]
    whole = split(data, "leave_last_out", 0, target="book")
    assert parts.test.history.items.tolist() == whole.test.history.items.tolist()
    assert parts.test.users.tolist() == whole.test.users.tolist()


def test_what_is_withheld_leaves_longer_gaps_in_training(tmp_path: Path) -> None:
    rows: list[Row] = [("a", "5", 0), ("a", "0", 0), ("a", "6", 4), ("a", "1", 8), ("a", "7", 9), ("a", "8", 9)]
    data = replace(toy(tmp_path, rows), domains=("film",) * 5 + ("book",) * 4)
    parts = split(data, "leave_last_out", 0, target="book", shots=0.0)
    assert parts.train.items.tolist() == [0, 1]
    assert np.array_equal(parts.train.gaps, [0, 5])  # type: ignore[arg-type]  # 8 after, where 4 is not known of
    assert np.array_equal(parts.validation.history.gaps[:4], [0, 1, 4, 4])  # type: ignore[index]


def test_shots_are_a_share_of_the_users_and_more_of_them_hold_the_fewer(tmp_path: Path) -> None:
    rows: list[Row] = [(f"u{u}", item, time) for u in range(400) for time, item in enumerate("05678")]
    data = replace(toy(tmp_path, rows), domains=("film",) * 5 + ("book",) * 4)

    def trained(shots: float, seed: int = 0) -> set[int]:
        train = split(data, "leave_last_out", seed, "book", shots).train
        assert (np.diff(train.indptr)[np.diff(train.indptr) != 1] == 3).all()  # the film, and two books or none
        return set(np.flatnonzero(np.diff(train.indptr) == 3).tolist())

    few, more = trained(0.1), trained(0.5)
    assert 20 < len(few) < 60  # 40 on average, with a deviation of 6
    assert 150 < len(more) < 250
    assert few < more
    assert trained(1.0) == set(range(400))
    assert trained(0.1, seed=1) != few


def test_a_target_in_time_keeps_the_cut(tmp_path: Path) -> None:
    items = "01234567801234567808"
    data = toy(tmp_path, [("a", item, time) for time, item in enumerate(items)])
    parts = split(replace(data, domains=("film",) * 5 + ("book",) * 4), "temporal", 0, target="book")
    assert parts.train.items.tolist() == [int(i) for i in items[:16]]
    assert parts.validation.targets.items.tolist() == [7, 8]
    assert parts.test.history.items.tolist() == [int(i) for i in items[:18]]
    assert parts.test.targets.items.tolist() == [8]
    with pytest.raises(DataError, match="no user of the test part"):
        split(replace(data, domains=("film",) * 7 + ("book", "film")), "temporal", 0, target="book")


def test_parts_know_who_and_what_is_cold(tmp_path: Path) -> None:
    rows: list[Row] = [("a", item, time) for time, item in enumerate("0000012")]  # five to train on, all of item 0
    rows += [("b", item, time) for time, item in enumerate("340")]
    parts = split(toy(tmp_path, rows), "leave_last_out", 0)
    assert parts.train.items.tolist() == [0, 0, 0, 0, 0, 3]
    for part, items in ((parts.validation, ["cold", "cold"]), (parts.test, ["cold", "warm"])):
        assert part.groups["user"].tolist() == ["warm", "cold"]
        assert part.groups["item"].tolist() == items


def test_parts_know_the_domain_of_what_is_wanted(tmp_path: Path) -> None:
    parts = split(domains(tmp_path), "leave_last_out", 0)
    assert parts.test.groups["domain"].tolist() == ["book", "book", "film", "book"]
    assert parts.validation.groups["domain"].tolist() == ["film", "book", "film", "film"]
    assert parts.offered is None


def test_a_target_that_is_no_domain_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.target is 'boks', which is no domain of toy; did you mean 'book'"):
        split(domains(tmp_path), "leave_last_out", 0, target="boks")
    with pytest.raises(ConfigError, match=r"expected columns\.domain to name the items' domains"):
        split(toy(tmp_path, LAST_OUT), "leave_last_out", 0, target="book")
    only = replace(domains(tmp_path), domains=("book",) * 9)
    with pytest.raises(DataError, match="nothing but 'book' to train on; expected other domains too"):
        split(only, "leave_last_out", 0, target="book", shots=0.0)


def test_the_hash_of_a_split_knows_its_target(tmp_path: Path) -> None:
    data = replace(toy(tmp_path, LAST_OUT), domains=("book",) * 8 + ("film",))
    assert split(data, "leave_last_out", 0).sha256 != split(data, "leave_last_out", 0, target="book").sha256
