"""Training windows: each transition is predicted once, from all that the window holds before it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from pareto_search.errors import DataError
from pareto_search.recsys.split import Sequences
from pareto_search.workers import batches as batches_of
from pareto_search.workers.batches import Batch, Batches

LENGTHS = (1, 2, 3, 5, 6, 17, 40)
TRANSITIONS = sum(length - 1 for length in LENGTHS)


@pytest.fixture(scope="module")
def train() -> Sequences:
    """Users of various lengths; no item occurs twice anywhere, so an item says where it comes from."""
    ends = np.cumsum([0, *LENGTHS]).astype(np.int64)
    items = np.random.default_rng(0).permutation(ends[-1]).astype(np.int32)
    return Sequences(ends, items, None, (items % 48).astype(np.uint8))


def epoch(stream: Iterator[Batch]) -> list[Batch]:
    """Batches until every transition had its turn; fails where they do not end there."""
    batches, predicted = [], 0
    while predicted < TRANSITIONS:
        batches.append(next(stream))
        predicted += int((batches[-1].targets >= 0).sum())
    assert predicted == TRANSITIONS
    return batches


def test_each_window_has_the_groups_of_its_user(train: Sequences) -> None:
    groups = np.stack([np.arange(len(LENGTHS)), np.arange(len(LENGTHS)) % 3], axis=1).astype(np.int32)
    for batch in epoch(iter(Batches(replace(train, groups=groups), 4, size=3, seed=0))):
        assert batch.groups is not None
        assert batch.groups.tolist() == groups[batch.users].tolist()


@pytest.mark.parametrize("history", [1, 4, 5, 50])
def test_every_transition_is_predicted_once_an_epoch(train: Sequences, history: int) -> None:
    stream = iter(Batches(train, history, size=3, seed=0))
    everything = {(user, place) for user, length in enumerate(LENGTHS) for place in range(length - 1)}
    for _ in range(4):
        predicted: Counter[tuple[int, int]] = Counter()
        for batch in epoch(stream):
            for row, column in zip(*np.nonzero(batch.targets.numpy() >= 0), strict=True):
                predicted[int(batch.users[row]), int(batch.starts[row] + column)] += 1
        assert set(predicted) == everything
        assert set(predicted.values()) == {1}


@pytest.mark.parametrize("history", [1, 4, 50])
def test_the_target_is_the_item_after(train: Sequences, history: int) -> None:
    for batch in epoch(iter(Batches(train, history, size=3, seed=1))):
        assert int(batch.lengths.max()) <= history
        for row, user in enumerate(batch.users):
            start, length = int(batch.starts[row]), int(batch.lengths[row])
            own = train.of(user)
            assert batch.items[row, :length].tolist() == own[start : start + length].tolist()
            assert batch.gaps is not None
            assert batch.gaps[row, :length].tolist() == (own[start : start + length] % 48).tolist()
            assert not batch.gaps[row, length:].any()
            for column, target in enumerate(batch.targets[row].tolist()):
                if target >= 0:
                    assert column < length
                    assert target == own[start + column + 1]


def test_each_epoch_cuts_long_histories_elsewhere(train: Sequences) -> None:
    stream = iter(Batches(train, 4, size=3, seed=0))
    cuts = [{(int(u), int(s)) for b in epoch(stream) for u, s in zip(b.users, b.starts, strict=True)} for _ in range(3)]
    assert len({frozenset(c) for c in cuts}) > 1


def test_seen_is_the_whole_history_up_to_a_place_not_only_the_window(train: Sequences) -> None:
    batches = Batches(train, 4, size=3, seed=0)
    for batch in epoch(iter(batches)):
        rows, places = np.nonzero(batch.targets.numpy() >= 0)
        owner, item = batches.seen(batch, rows, places)
        for query, (row, place) in enumerate(zip(rows, places, strict=True)):
            expected = train.of(batch.users[row])[: batch.starts[row] + place + 1]
            assert item[owner == query].tolist() == expected.tolist()
            assert batch.targets[row, place] not in item[owner == query]


def test_items_of_one_moment_change_places_and_all_others_stay(train: Sequences) -> None:
    # Of each user the second and third are of one moment, and from the fifth on all are.
    place = np.concatenate([np.arange(length) for length in LENGTHS])
    tied = Sequences(train.indptr, train.items, None, np.where(np.isin(place, [0, 1, 3, 4]), 2, 1).astype(np.uint8))
    batches = Batches(tied, 50, size=3, seed=0, ties=True)
    stream, orders = iter(batches), []
    for _ in range(20):
        found: dict[int, list[int]] = {}
        for batch in epoch(stream):
            assert batch.gaps is not None
            for row, user in enumerate(batch.users.tolist()):
                length = int(batch.lengths[row])
                read, targets = batch.items[row, :length].tolist(), batch.targets[row, :length].tolist()
                found[user] = [*read, targets[-1]]
                assert read[1:] == targets[:-1]
                assert batch.gaps[row, :length].tolist() == tied.gaps[tied.indptr[user] :][:length].tolist()  # type: ignore[index]
                _, item = batches.seen(batch, np.array([row]), np.array([length - 1]))
                assert item.tolist() == read
        for user, items in found.items():
            own = train.of(user).tolist()
            moments = [own[:1], own[1:3], own[3:4], own[4:]]
            assert [sorted(items[i:j]) for i, j in ((0, 1), (1, 3), (3, 4), (4, None))] == [sorted(m) for m in moments]
        orders.append(tuple(found[6][:3]))
    assert set(orders) == {tuple(train.of(6)[[0, 1, 2]].tolist()), tuple(train.of(6)[[0, 2, 1]].tolist())}


def test_without_times_there_are_no_ties(train: Sequences) -> None:
    untimed = Sequences(train.indptr, train.items, None)
    first, second = ([b.items.tolist() for b in epoch(iter(Batches(untimed, 4, 3, 0, ties=t)))] for t in (False, True))
    assert first == second


@pytest.mark.parametrize("history", [1, 4, 50])
def test_the_number_of_batches_an_epoch_is_about_right(train: Sequences, history: int) -> None:
    batches = Batches(train, history, size=3, seed=0)
    stream = iter(batches)
    assert batches.per_epoch == pytest.approx(np.mean([len(epoch(stream)) for _ in range(5)]), abs=1)


def test_users_with_one_item_each_are_nothing_to_learn_from() -> None:
    alone = Sequences(np.arange(4), np.array([2, 0, 1], np.int32), None)
    with pytest.raises(DataError, match="no user has two interactions to train on"):
        Batches(alone, 4, size=3, seed=0)


def test_a_seed_decides_the_stream(train: Sequences) -> None:
    first, again, other = (
        [b.items.tolist() for b in epoch(iter(Batches(train, 4, size=3, seed=seed)))] for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_an_epoch_takes_no_more_users_of_other_domains_than_of_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    # Users 0 and 1 have met an item of the target, 9, once; 2 to 9 have not.
    rows = [[0, 9, 1], [2, 3, 9], *([i % 4, 4, 5 + i % 3] for i in range(8))]
    indptr = np.cumsum([0, *(len(row) for row in rows)])
    train = Sequences(indptr, np.array([i for row in rows for i in row], np.int32), None)
    offered = np.arange(10) == 9
    batches = Batches(train, 4, size=4, seed=0, offered=offered)
    assert batches.per_epoch == 1
    stream = iter(batches)
    epochs = [set(next(stream).users.tolist()) for _ in range(40)]
    assert all({0, 1} < users and len(users) == 4 for users in epochs)
    assert set.union(*epochs) == set(range(10))
    monkeypatch.setattr(batches_of, "MOST", 2)  # four of the eight, and two
    assert {len(next(iter(Batches(train, 4, size=10, seed=s, offered=offered))).users) for s in range(9)} == {6}
    nobody = Batches(train, 4, size=10, seed=0, offered=np.zeros(10, bool))
    assert set(next(iter(nobody)).users.tolist()) == set(range(10))
    everybody = Batches(train, 4, size=10, seed=0, offered=np.ones(10, bool))
    whole = Batches(train, 4, size=10, seed=0)
    assert next(iter(everybody)).users.tolist() == next(iter(whole)).users.tolist()
