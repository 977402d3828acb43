"""Training windows: histories cut into pieces that the tower predicts one item ahead."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pareto_search.errors import DataError
from pareto_search.recsys.split import SAME_MOMENT, Sequences

MOST = 10
"""How many times as often as any others a target's users are seen, at most."""


@dataclass(frozen=True)
class Batch:
    """Windows of some users, right-padded.

    Attributes:
        items: `(b, h)` what the tower reads.
        gaps: `(b, h)` how long after the one before each came, or None where the data has no times.
        groups: `(b, kinds)` those of the users, as `Sequences` has them, or None.
        lengths: `(b,)` how many of them count.
        targets: `(b, h)` the item after each, or -1 where nothing is to be predicted.
        users: `(b,)` whose window it is.
        starts: `(b,)` where in the user's training sequence it begins.
    """

    items: Tensor
    gaps: Tensor | None
    groups: Tensor | None
    lengths: Tensor
    targets: Tensor
    users: NDArray[np.int64]
    starts: NDArray[np.int64]


class Batches:
    """An endless stream of batches over the training sequences, epoch after epoch.

    Each epoch cuts every history at another random place, so that no item is always first in its window; every
    transition is predicted exactly once an epoch.

    Args:
        ties: whether each epoch puts the items of one moment in another order, because the one that they have says
            nothing; without times nothing changes.
        offered: `(n_items,)` the items of a target domain; None for everything. Users who have met none of them may be
            many: an epoch takes as many of these as of the others, drawn anew, or one in `MOST` where that is more.

    Raises:
        DataError: there is no transition.
    """

    def __init__(
        self,
        train: Sequences,
        history: int,
        size: int,
        seed: int,
        *,
        ties: bool = False,
        offered: NDArray[np.bool_] | None = None,
    ) -> None:
        users = np.flatnonzero(np.diff(train.indptr) > 1)
        if not len(users):
            raise DataError("no user has two interactions to train on; expected some, to learn what follows what")
        self._train, self._history, self._size = train, history, size
        self._rng = np.random.default_rng(seed)
        self._items = train.items
        self._moment = np.cumsum(train.gaps != SAME_MOMENT) if ties and train.gaps is not None else None
        met = np.ones(len(train.indptr) - 1, bool)
        if offered is not None:
            met = np.bincount(train.owners, offered[train.items], len(met)) > 0
        self._near, far = users[met[users]], users[~met[users]]
        self._far = far
        self._drawn = min(len(far), max(len(self._near), -(-len(far) // MOST))) if len(self._near) else len(far)

    @property
    def per_epoch(self) -> int:
        """About how many batches an epoch has."""
        transitions = np.diff(self._train.indptr) - 1
        windows = np.ceil(transitions / self._history) + (transitions > self._history) / 2
        share = self._drawn / max(len(self._far), 1)
        return max(1, round(float(windows[self._near].sum() + share * windows[self._far].sum()) / self._size))

    @property
    def per_batch(self) -> float:
        """About how many transitions a batch predicts."""
        transitions = np.diff(self._train.indptr) - 1
        share = self._drawn / max(len(self._far), 1)
        return float(transitions[self._near].sum() + share * transitions[self._far].sum()) / self.per_epoch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            users, starts, ends, fresh = self._windows()
            if self._moment is not None:
                self._items = self._train.items[np.lexsort((self._rng.random(len(self._items)), self._moment))]
            order = self._rng.permutation(len(users))
            for begin in range(0, len(order), self._size):
                rows = order[begin : begin + self._size]
                yield self._batch(users[rows], starts[rows], ends[rows], fresh[rows])

    def _windows(self) -> tuple[NDArray[np.int64], ...]:
        """User, start, end and number of transitions not predicted by another window, for each window."""
        rows: list[tuple[int, int, int, int]] = []
        drawn = self._rng.permutation(self._far)[: self._drawn] if self._drawn else self._far
        for user in [*self._near.tolist(), *drawn.tolist()]:
            end = int(self._train.indptr[user + 1] - self._train.indptr[user]) - 1
            if end > self._history:
                cut = end - int(self._rng.integers(0, self._history))
                if cut < end:
                    rows.append((user, max(0, end - self._history), end, end - cut))
                end = cut
            while end > 0:
                start = max(0, end - self._history)
                rows.append((user, start, end, end - start))
                end = start
        table = np.array(rows, np.int64)
        return table[:, 0], table[:, 1], table[:, 2], table[:, 3]

    def _batch(
        self, users: NDArray[np.int64], starts: NDArray[np.int64], ends: NDArray[np.int64], fresh: NDArray[np.int64]
    ) -> Batch:
        lengths = ends - starts
        column = np.arange(int(lengths.max()))
        inside = column < lengths[:, None]
        source = (self._train.indptr[users] + starts)[:, None] + column
        items, gaps = (np.zeros(inside.shape, np.int64) for _ in range(2))
        items[inside] = self._items[source[inside]]
        if self._train.gaps is not None:
            gaps[inside] = self._train.gaps[source[inside]]
        targets = np.full(inside.shape, -1, np.int64)
        predicted = inside & (column >= (lengths - fresh)[:, None])
        targets[predicted] = self._items[source[predicted] + 1]
        passed = None if self._train.gaps is None else torch.from_numpy(gaps)
        groups = None if self._train.groups is None else torch.from_numpy(self._train.groups[users])
        counts = torch.from_numpy(lengths)
        return Batch(torch.from_numpy(items), passed, groups, counts, torch.from_numpy(targets), users, starts)

    def seen(self, batch: Batch, rows: NDArray[np.int64], places: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """What the users had seen at some places of their windows: index pairs (row in `rows`, item).

        Args:
            batch: the one that was given last.
            rows, places: `(q,)` a window of the batch, and a place in it.
        """
        counts = batch.starts[rows] + places + 1
        owner = np.repeat(np.arange(len(rows)), counts)
        offset = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        items = self._items[self._train.indptr[batch.users[rows]][owner] + offset]
        return torch.from_numpy(owner), torch.from_numpy(items.astype(np.int64))
