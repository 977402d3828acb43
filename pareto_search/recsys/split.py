"""Splits: which interactions train a model, which ones select it and which ones judge it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pareto_search.errors import ConfigError, DataError, nearest
from pareto_search.recsys.dataset import DOMAIN, Dataset

Strategy = Literal["leave_last_out", "temporal"]
TRAIN, VALIDATION, TEST = 0, 1, 2
GAPS = 64
"""How many kinds of gaps between interactions there are: see `gaps`. The last takes all that are longer."""
SAME_MOMENT = 1
"""The kind of no gap at all."""
VALIDATED, LEAST_VALIDATED = 40_000_000, 2000
"""Validation ranks for so many users that their scores are no more than this, or for so many, whichever is more: each
checkpoint is tried with dozens of settings on it. Test is of everybody.
"""
COLD = 5
"""From so many interactions on, users and items are no longer cold."""


@dataclass(frozen=True, eq=False)
class Sequences:
    """Each user's items in the order of time, in compressed rows: user u has `items[indptr[u]:indptr[u + 1]]`.

    Attributes:
        indptr: `(n_users + 1,)`.
        items: `(n,)`.
        ratings: `(n,)`, or None where the data has none.
        gaps: `(n,)` how long after the same user's interaction before it each came, as `gaps` counts it; None where
            the data has no times.
        groups: `(n_users, kinds)` which group of each kind a user belongs to, counted from 1 as `Split.groups` names
            them, 0 where it is not known; None where no model reads any.
    """

    indptr: NDArray[np.int64]
    items: NDArray[np.int32]
    ratings: NDArray[np.float32] | None
    gaps: NDArray[np.uint8] | None = None
    groups: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        for array in (self.indptr, self.items, self.ratings, self.gaps, self.groups):
            if array is not None:
                array.flags.writeable = False  # many hands hold these, and an order spoilt in place shows nowhere

    @property
    def owners(self) -> NDArray[np.int64]:
        """`(n,)` the user of each item."""
        return np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))

    def of(self, user: int) -> NDArray[np.int32]:
        """The items of one user."""
        return self.items[self.indptr[user] : self.indptr[user + 1]]

    def rows(self, start: int, stop: int) -> "Sequences":
        """The users from `start` to before `stop`, renumbered from 0."""
        indptr = self.indptr[start : stop + 1]
        inside = slice(int(indptr[0]), int(indptr[-1]))
        ratings = None if self.ratings is None else self.ratings[inside]
        passed = None if self.gaps is None else self.gaps[inside]
        groups = None if self.groups is None else self.groups[start:stop]
        return Sequences(indptr - indptr[0], self.items[inside], ratings, passed, groups)


@dataclass(frozen=True, eq=False)
class Part:
    """What is ranked, for the m users who have something to rank.

    Attributes:
        users: `(m,)` the users with at least one target and at least one interaction before validation, ascending.
        history: over these m users, in this order: all that is known before the part, which evaluation masks.
        targets: over these m users: what should be ranked high, each item once. An item that the history has too (a
            repeat purchase) stays a target: evaluation masks seen items except the targets.
        groups: what users belong together by -> `(m,)` each one's group, empty where it is not known. Beside those of
            the data: `user` is `cold` with fewer than `COLD` interactions to train on, `item` is so where the first
            target has fewer, and else both are `warm`; `domain` is the first target's.
    """

    users: NDArray[np.int32]
    history: Sequences
    targets: Sequences
    groups: Mapping[str, NDArray[np.object_]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Split:
    """Training sequences over all users, and the two parts that are ranked; the test's history includes validation.

    Attributes:
        offered: `(n_items,)` what may be recommended; None for everything.
        groups: what users belong together by, as far as a model reads it -> the groups.
        by: what they belong together by, as far as metrics ask.
        unvalidated: how many users might be validated on and are not, by lot, since there are enough of them.
    """

    n_users: int
    n_items: int
    train: Sequences
    validation: Part
    test: Part
    offered: NDArray[np.bool_] | None = None
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    by: tuple[str, ...] = ()
    unvalidated: int = 0

    @property
    def sha256(self) -> str:
        """The hash of who is ranked on what, after which history, and by which groups."""
        digest = hashlib.sha256(f"{self.n_users} {self.n_items}".encode())
        parts = (self.validation, self.test)
        for sequences in (self.train, *(s for p in parts for s in (p.history, p.targets))):
            digest.update(sequences.indptr.astype("<i8").tobytes() + sequences.items.astype("<i4").tobytes())
        for part in parts:
            digest.update(part.users.astype("<i4").tobytes())
        if self.offered is not None:
            digest.update(self.offered.tobytes())
        if self.train.groups is not None:
            digest.update(json.dumps(self.groups).encode() + self.train.groups.astype("<i4").tobytes())
        for name in self.by:
            members = [part.groups[name].tolist() if name in part.groups else None for part in parts]
            digest.update(json.dumps([name, members]).encode())
        return digest.hexdigest()

    def with_fewer_left(self, k: int) -> int:
        """How many users have fewer than k items left that may be recommended, in the part that has more of them.

        Their lists are filled up with others, which metrics of lists count like any.
        """
        offered = np.ones(self.n_items, bool) if self.offered is None else self.offered

        def pairs(sequences: Sequences) -> NDArray[np.int64]:
            return sequences.owners * self.n_items + sequences.items

        def count(part: Part) -> int:
            had = np.setdiff1d(pairs(part.history), pairs(part.targets))  # which may be bought again
            owners = had[offered[had % self.n_items]] // self.n_items
            return int((offered.sum() - np.bincount(owners, minlength=len(part.users)) < k).sum())

        return max(map(count, (self.validation, self.test)))


def split(
    dataset: Dataset,
    strategy: Strategy,
    tie_seed: int,
    target: str | None = None,
    shots: float | None = None,
    *,
    groups: Sequence[str] = (),
    by: Sequence[str] = (),
) -> Split:
    """Divides a data set's interactions into training, validation and test.

    A user's interactions are ordered by time, and those of the same time by a hash of (seed, user id, item id), so that
    no order of rows in a file decides what is tested.

    Args:
        strategy: `leave_last_out` tests on each user's last interaction and validates on the one before;
            `temporal` cuts once for all users, after 80 % and after 90 % of the interactions by time, and leaves
            interactions of the same time together. It wants timestamps that can be compared between users.
        tie_seed: another seed breaks ties another way, and draws other users for `shots` and, of many, for validation.
        target: the domain that is recommended from. Only its items are validated and tested on, a user's last two of
            them with `leave_last_out`; all other domains are there to learn from.
        shots: the share of users whose interactions with the target are trained on; None for all of them. Of the
            others they are known only as history.
        groups: by what users belong together that a model is to know of them.
        by: by what metrics tell them apart; where the data has no such groups, whoever measures finds out.

    Raises:
        ConfigError: the data has no such domain or groups.
        DataError: nothing is left to train on, to validate on or to test on.
    """
    order = order_of(dataset, tie_seed)
    users, n_users = dataset.users[order], len(dataset.user_ids)
    offered = None if target is None else _in_domain(dataset, target)
    counts = np.ones(len(users), bool) if offered is None else offered[dataset.items[order]]
    role = _last_out(users, counts, n_users) if strategy == "leave_last_out" else _by_time(dataset.timestamps)[order]
    withheld = np.zeros_like(counts) if shots is None else counts & _beyond(dataset, tie_seed, shots)[users]
    ratings = None if dataset.ratings is None else dataset.ratings[order]
    passed = gaps(users, dataset.timestamps[order]) if dataset.timed else None
    # As objects: one long name would make all of them as long.
    named = {name: np.array(each, dtype=object) for name, each in dataset.groups.items()}
    read, codes = _coded(dataset, groups)
    rows = _Rows(users, dataset.items[order], ratings, passed, role, counts, n_users, named, codes)
    able = rows.users_of(VALIDATION)
    drawn = _some(able, dataset, tie_seed)
    parts = {"validation": rows.part(VALIDATION, drawn), "test": rows.part(TEST, rows.users_of(TEST))}
    for name, part in parts.items():
        if len(part.users) == 0:
            raise DataError(
                f"data set '{dataset.name}', split {strategy}: no user of the {name} part has training interactions; "
                "expected at least one; give more data or use leave_last_out"
            )
    everyone = np.arange(n_users, dtype=np.int32)
    kept = (role == TRAIN) & ~withheld
    train = rows.sequences(kept, everyone)
    if dataset.timed:  # what was withheld leaves longer gaps
        train = replace(train, gaps=gaps(users[kept], dataset.timestamps[order][kept]))
    if len(train.items) == 0:
        raise DataError(f"data set '{dataset.name}' has nothing but '{target}' to train on; expected other domains too")
    validation, test = (_grouped(part, train, dataset) for part in parts.values())
    left_out = len(able) - len(drawn)
    return Split(n_users, len(dataset.item_ids), train, validation, test, offered, read, tuple(by), left_out)


def order_of(dataset: Dataset, tie_seed: int) -> NDArray[np.int64]:
    """`(n,)` the interactions by user, time and, where times tie, the hash."""
    return np.lexsort((_tie_breakers(dataset, tie_seed), dataset.timestamps, dataset.users))


def gaps(users: NDArray[np.int32], timestamps: NDArray[np.float64]) -> NDArray[np.uint8]:
    """How long after the same user's interaction before it each one came, by powers of two of the data's unit of time.

    1 + log2(1 + time), rounded up: 1 is the same moment, and 0 is not known, as of a user's first.

    Args:
        users, timestamps: `(n,)`, ordered by user and then by time.
    """
    kinds = np.zeros(len(users), np.uint8)
    same = np.flatnonzero(users[1:] == users[:-1]) + 1
    waited = timestamps[same] - timestamps[same - 1]  # first of all: nanoseconds swallow a 1
    passed = SAME_MOMENT + np.log2(1 + waited)
    kinds[same] = np.minimum(np.ceil(passed), GAPS - 1).astype(np.uint8)
    return kinds


@dataclass(frozen=True, eq=False)
class _Rows:
    """All n interactions, ordered by user and then by time, with each one's role and whether it counts as a target;
    and the groups of their users, by name and as `Sequences` has them.
    """

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    ratings: NDArray[np.float32] | None
    gaps: NDArray[np.uint8] | None
    role: NDArray[np.int8]
    counts: NDArray[np.bool_]
    n_users: int
    groups: Mapping[str, NDArray[np.object_]]
    codes: NDArray[np.int32] | None

    def users_of(self, which: int) -> NDArray[np.int32]:
        """Who can be ranked for: those with a target and something to train on."""
        target = (self.role == which) & self.counts
        trained, ranked = (np.bincount(self.users[m], minlength=self.n_users) for m in (self.role == TRAIN, target))
        return np.flatnonzero((trained > 0) & (ranked > 0)).astype(np.int32)

    def part(self, which: int, users: NDArray[np.int32]) -> Part:
        target = (self.role == which) & self.counts
        history, targets = self.sequences(self.role < which, users), self.sequences(self._once(target), users)
        groups = {name: each[users] for name, each in self.groups.items()}
        return Part(users, history, targets, groups)

    def sequences(self, chosen: NDArray[np.bool_], users: NDArray[np.int32]) -> Sequences:
        """The chosen interactions of these users, who are in ascending order."""
        chosen = chosen & np.isin(self.users, users)
        counts = np.bincount(self.users[chosen], minlength=self.n_users)[users]
        indptr = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        ratings = None if self.ratings is None else self.ratings[chosen]
        passed = None if self.gaps is None else self.gaps[chosen]
        groups = None if self.codes is None else self.codes[users]
        return Sequences(indptr, self.items[chosen], ratings, passed, groups)

    def _once(self, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The first of each user's chosen interactions with an item."""
        rows = np.flatnonzero(chosen)
        pairs = self.users[rows].astype(np.int64) * (int(self.items.max()) + 1) + self.items[rows]
        first = np.zeros_like(chosen)
        first[rows[np.unique(pairs, return_index=True)[1]]] = True
        return first


def _tie_breakers(dataset: Dataset, seed: int) -> NDArray[np.uint64]:
    """`(n,)` the first eight bytes of BLAKE2b over `seed, user id, item id`."""
    digests = (
        hashlib.blake2b(f"{seed}\t{dataset.user_ids[u]}\t{dataset.item_ids[i]}".encode(), digest_size=8).digest()
        for u, i in zip(dataset.users.tolist(), dataset.items.tolist(), strict=True)
    )
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def _grouped(part: Part, train: Sequences, dataset: Dataset) -> Part:
    """A part with the groups that the split itself knows of."""
    wanted = part.targets.items[part.targets.indptr[:-1]]
    met = {
        "user": np.diff(train.indptr)[part.users],
        "item": np.bincount(train.items, minlength=wanted.max() + 1)[wanted],
    }
    names = np.array(["warm", "cold"], dtype=object)
    groups = {name: names[(count < COLD).astype(int)] for name, count in met.items()}
    if dataset.domains is not None:
        groups[DOMAIN] = np.array([dataset.domains[item] for item in wanted], dtype=object)
    return replace(part, groups={**part.groups, **groups})


def _coded(dataset: Dataset, names: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], NDArray[np.int32] | None]:
    """The groups of some kinds, and each user's `(n_users, kinds)`, counted from 1."""
    for name in names:
        if name not in dataset.groups:
            wish = nearest(name, dataset.groups) if dataset.groups else "expected columns.groups to name them"
            raise ConfigError(f"model.groups has '{name}', by which no users of {dataset.name} belong together; {wish}")
    known = {name: tuple(sorted(set(dataset.groups[name]) - {""})) for name in names}
    if not known:
        return known, None
    columns = [pd.Index(("", *known[name])).get_indexer(pd.Index(dataset.groups[name])) for name in known]
    return known, np.stack(columns, axis=1).astype(np.int32)


def _in_domain(dataset: Dataset, target: str) -> NDArray[np.bool_]:
    """`(n_items,)` which items belong to a domain."""
    known = sorted(set(dataset.domains or ()) - {""})
    if target not in known:
        wish = nearest(target, known) if known else "expected columns.domain to name the items' domains"
        raise ConfigError(f"data.target is '{target}', which is no domain of {dataset.name}; {wish}")
    return np.array([name == target for name in dataset.domains or ()])


def _beyond(dataset: Dataset, seed: int, share: float) -> NDArray[np.bool_]:
    """`(n_users,)` those who are not among a share of the users, drawn by the hash of `seed, user id`."""
    return _hashes(dataset, str(seed)) >= share * 2.0**64


def _some(users: NDArray[np.int32], dataset: Dataset, seed: int) -> NDArray[np.int32]:
    """As many of some users as are validated on, drawn by the hash of `seed, "validation", user id`."""
    most = max(LEAST_VALIDATED, VALIDATED // len(dataset.item_ids))
    if len(users) <= most:
        return users
    return np.sort(users[np.argsort(_hashes(dataset, f"{seed}\tvalidation")[users])[:most]])


def _hashes(dataset: Dataset, salt: str) -> NDArray[np.uint64]:
    """`(n_users,)` the first eight bytes of BLAKE2b over `salt, user id`."""
    digests = (hashlib.blake2b(f"{salt}\t{name}".encode(), digest_size=8).digest() for name in dataset.user_ids)
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def _last_out(users: NDArray[np.int32], counts: NDArray[np.bool_], n_users: int) -> NDArray[np.int8]:
    """`(n,)` roles of interactions that are ordered by user and time.

    The last one that counts begins a user's test, and the one before it the validation; all that comes between belongs
    to the part that has begun.
    """
    passed = np.cumsum(counts)
    ends = np.cumsum(np.bincount(users[counts], minlength=n_users))
    left = ends[users] - passed  # how many of the user that count follow
    has = np.bincount(users[counts], minlength=n_users)[users]
    begun = has - left  # how many have come, this one included
    test, validation = (begun >= has) & (has > 0), (begun >= has - 1) & (has > 1)
    return np.select([test, validation], [TEST, VALIDATION], TRAIN).astype(np.int8)


def _by_time(timestamps: NDArray[np.float64]) -> NDArray[np.int8]:
    """`(n,)` roles by two cuts in time; whoever shares the time of a cut comes after it."""
    n, ordered = len(timestamps), np.sort(timestamps)
    cuts = ordered[[n * 8 // 10, n * 9 // 10]]
    return np.searchsorted(cuts, timestamps, side="right").astype(np.int8)
