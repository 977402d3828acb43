"""An entry at work in this process: scores it again, or recommends to a user and says why."""

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from pareto_search.entry import Entry
from pareto_search.errors import CheckpointError, DataError, nearest
from pareto_search.recsys.baselines import DecayedMean, ItemSimilarity, Scorer
from pareto_search.recsys.dataset import Dataset
from pareto_search.recsys.ensemble import Ensemble
from pareto_search.recsys.metrics import parse_metric
from pareto_search.recsys.rerank import blend, relevance, rerank
from pareto_search.recsys.split import Sequences, Split, gaps, order_of, split
from pareto_search.recsys.statistics import ItemStatistics, category_features
from pareto_search.workers.base import locate
from pareto_search.workers.encoder import Encoder, precision
from pareto_search.workers.evaluate import FEATURES, Scores, component, score, scorer, scorer_with
from pareto_search.workers.recommender import TowerScorer
from pareto_search.workers.workload import Precision

REASONS = 2


@dataclass(frozen=True)
class Recommendation:
    """One item of a list.

    Attributes:
        score: the blended score, to compare for one user only.
        because: titles of the history that add most to the score, the strongest first.
        novelty, credibility: the item's own, 0..1.
    """

    item: str
    title: str
    score: float
    novelty: float
    credibility: float | None
    because: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class History:
    """What one user had seen, oldest first.

    Attributes:
        items: `(n,)` item indices.
        gaps: `(n,)` how long after the one before it each came, as `split.gaps` counts it; 0 where that is not known.
        groups: `(kinds,)` the user's, as `Sequences` has them, of each kind that the model reads.
    """

    items: NDArray[np.int32]
    gaps: NDArray[np.uint8]
    groups: NDArray[np.int32]

    @classmethod
    def timed(cls, items: NDArray[np.int32], times: Sequence[float] | None, groups: NDArray[np.int32]) -> "History":
        """From when each item was, in the data's unit; None where nobody knows.

        Raises:
            DataError: the times do not fit the items.
        """
        if times is None:
            return cls(items, np.zeros(len(items), np.uint8), groups)
        if not (
            len(times) == len(items) and all(map(math.isfinite, times)) and all(a <= b for a, b in pairwise(times))
        ):
            raise DataError(f"times must be numbers, one for each of the {len(items)} items, and must not fall")
        return cls(items, gaps(np.zeros(len(items), np.int32), np.asarray(times, np.float64)), groups)

    def without(self, place: int) -> "History":
        """All but the item at this place; the gap after it is then the longer of the two that were around it."""
        gaps = self.gaps.copy()
        around = gaps[place : place + 2]
        gaps[place + 1 : place + 2] = around.max() if around.all() else 0
        return History(np.delete(self.items, place), np.delete(gaps, place), self.groups)


class Serving:
    """An entry at work over the data set that it was trained on. Its base model is loaded where its item vectors are
    not known, and for whoever wants the encoder.

    Args:
        base: where the base model is, if not where it was in the search.
        dtype: of products with the base model, if not as in the search; what is kept in nf4 stays so.

    Raises:
        DataError: the data set is another one.
        CheckpointError: the base model is another one, or the files do not fit it.
    """

    def __init__(self, entry: Entry, data: Dataset, base: str | None = None, dtype: Precision | None = None) -> None:
        notes = entry.notes
        if notes["data_sha256"] != data.sha256:
            raise DataError(
                f"{data.name} is not the data that {entry.name} was trained on (sha256 {data.sha256[:12]}, expected "
                f"{str(notes['data_sha256'])[:12]}); give the data of its search"
            )
        self.entry, self.data = entry, data
        self._base, self._dtype = base, dtype
        self._place = {item: place for place, item in enumerate(data.item_ids)}
        how = notes["split"]
        self.split: Split = split(data, **{name: value for name, value in how.items() if name != "sha256"})
        if self.split.sha256 != how["sha256"]:
            raise DataError(
                f"{data.name} is divided in another way than for {entry.name}: domains or groups have changed; give "
                "the data of its search"
            )
        self.items = ItemStatistics.of(self.split.train, self.split.n_items, self._features(), self.split.offered)
        self._components: dict[str, Scorer] = {}
        self._equip()

    @cached_property
    def encoder(self) -> Encoder:
        """The base model over the catalogue."""
        notes = self.entry.notes
        if self.entry.merged:
            found = locate(str(self.entry.merged))  # its manifest has been verified
        else:
            found = locate(self._base or notes["base"]["id"], notes["base"]["revision"])
            if found.sha256 != notes["base"]["sha256"]:
                raise CheckpointError(f"base model '{found.id}' is not the one that {self.entry.name} was trained on")
        return Encoder(
            found,
            self.data.texts,
            max_tokens=notes["max_item_tokens"],
            layers=notes["layers"],
            dtype=precision(self._dtype or notes["dtype"], "cpu"),
            nf4=notes["dtype"] == "nf4",
            pooling=notes["pooling"],
        )

    def _equip(self) -> None:
        files, vectors = self.entry.files, self.entry.vectors
        self.model = scorer_with(files, vectors) if vectors else scorer(files, self.encoder)
        for name in self.entry.components.keys() - self._components.keys():  # all entries of a search share them
            self._components[name] = component(self.entry.components[name])
        self.scorers = {"model": self.model, **{name: self._components[name] for name in self.entry.components}}
        self.entry = replace(self.entry, vectors={})  # as files: they have become arrays

    def beside(self, entry: Entry) -> "Serving":
        """Another entry of the same search at work, which shares all that comes from the data, and the base model."""
        if not entry.vectors:
            _ = self.encoder  # loaded now at the latest, and once for all
        other = copy(self)
        other.entry = entry
        other._equip()
        return other

    def _features(self) -> NDArray[np.float32]:
        """What distances between items are measured by, which training cannot change."""
        if self.data.categories is not None:
            return category_features(self.data.categories)
        known = {**self.entry.files, **self.entry.vectors}
        if FEATURES in known:
            return load(known[FEATURES])["features"]
        return self.encoder.frozen.numpy()

    def evaluate(self, part: Literal["validation", "test"]) -> Scores:
        """The entry's scores on a part, by the metrics of its search.

        Raises:
            DataError: the data does not know the groups that a metric asks for.
        """
        ranked = self.split.validation if part == "validation" else self.split.test
        for name in self.entry.notes["metrics"]:
            by = parse_metric(name).by
            if by is not None and by not in ranked.groups:
                raise DataError(f"{name} asks for the {by}, which {self.data.name} lacks; give the data of its search")
        return score(ranked, self.items, self.scorers, [self.entry.serving], self.entry.notes["metrics"])[0]

    def history_of(self, user: str) -> History:
        """All that a user of the data set did.

        Raises:
            DataError: no such user.
        """
        if user not in self.data.user_ids:
            raise DataError(f"user '{user}' is not in {self.data.name}; give --history 'ITEM,ITEM,…' for a new user")
        return self.histories()[user]

    def history_with(
        self, items: Sequence[str], times: Sequence[float] | None = None, groups: Mapping[str, str] | None = None
    ) -> History:
        """That of a new user, oldest item first.

        Args:
            times: when each item was, in the data's unit; None where nobody knows.
            groups: which groups the user belongs to, by kind, as far as somebody knows.

        Raises:
            DataError: an item or a group is unknown, or the times do not fit the items.
        """
        return History.timed(self.places(items), times, self._codes(groups or {}))

    def knows(self, item: str) -> bool:
        """Whether the catalogue has the item."""
        return item in self._place

    def places(self, items: Sequence[str]) -> NDArray[np.int32]:
        """The catalogue's indices of some items.

        Raises:
            DataError: an item is unknown.
        """
        for item in items:
            if item not in self._place:
                raise DataError(f"item '{item}' is not in {self.data.name}; expected ids as in its item table")
        return np.array([self._place[item] for item in items], np.int32)

    def _codes(self, groups: Mapping[str, str]) -> NDArray[np.int32]:
        """A user's groups as `Sequences` has them."""
        read = self.split.groups
        for kind, group in groups.items():
            if kind not in read:
                wish = f"it reads {', '.join(read)}" if read else "it reads none (see model.groups)"
                raise DataError(f"the model does not read the {kind} of a user; {wish}")
            if group not in read[kind]:
                raise DataError(f"no user of {self.data.name} has the {kind} '{group}'; {nearest(group, read[kind])}")
        return np.array([1 + read[kind].index(groups[kind]) if kind in groups else 0 for kind in read], np.int32)

    def histories(self) -> dict[str, History]:
        """What every user of the data set did."""
        order = order_of(self.data, self.entry.notes["split"]["tie_seed"])
        users, items = self.data.users[order], self.data.items[order]
        passed = gaps(users, self.data.timestamps[order]) if self.data.timed else np.zeros(len(users), np.uint8)
        ends = np.cumsum(np.bincount(users, minlength=len(self.data.user_ids)))[:-1]
        belongs = self.split.train.groups
        groups = np.zeros((len(self.data.user_ids), 0), np.int32) if belongs is None else belongs
        rows = map(History, np.split(items, ends), np.split(passed, ends), groups)
        return dict(zip(self.data.user_ids, rows, strict=True))

    def recommend(self, history: History, k: int, *, explain: bool = False) -> list[Recommendation]:
        """The k items to show to a user with this history.

        Raises:
            DataError: fewer than k items are left.
        """
        left = int((~self.items.barred(sequences([history]))).sum())
        if not 0 < k <= left:
            raise DataError(f"-k is {k}; expected 1 to {left}, the items that are left")
        [chosen], [scores] = self.lists([history], k)
        because = self.because(history, chosen) if explain and len(history.items) else [()] * k
        rated = self.items.credibility
        return [
            Recommendation(
                self.data.item_ids[i],
                self.data.titles[i],
                float(score),
                float(self.items.novelty[i]),
                None if rated is None else float(rated[i]),
                reasons,
            )
            for i, score, reasons in zip(chosen, scores, because, strict=True)
        ]

    def lists(self, histories: Sequence[History], k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The k items `(m, k)` to show to each of some users, best first, and their scores, -inf where none is left."""
        scores = self.scores(histories)
        chosen = rerank(scores, self.items, self.entry.serving, k)
        return chosen, np.take_along_axis(scores, chosen, 1)

    def scores(self, histories: Sequence[History]) -> NDArray[np.float32]:
        """The blended scores `(m, n_items)` of all items for some users, -inf for what must not be shown."""
        several = sequences(histories)
        barred = self.items.barred(several)
        return blend({n: relevance(s, several, barred) for n, s in self.scorers.items()}, self.entry.serving)

    def because(self, history: History, chosen: NDArray[np.int32]) -> list[tuple[str, ...]]:
        """For each chosen item, the titles of the history that add most to its score."""
        reasons: list[tuple[str, ...]] = []
        for added in self.contributions(history, chosen):
            best = [place for place in np.argsort(-added)[:REASONS] if added[place] > 0]
            reasons.append(tuple(self.data.titles[history.items[place]] for place in best))
        return reasons

    def contributions(self, history: History, chosen: NDArray[np.int32]) -> NDArray[np.float64]:
        """What each item of a history adds to the scores of the chosen items, by the model and by what is blended in:
        `(k, n)`.

        Of EASE, the text and the decayed mean it is exact: with the item's bias, and what is the same for every item,
        they sum to the score. Of the attention tower, where items act together, it is what the score loses without the
        item (leave one out). Items before a tower's window add nothing to its part.
        """
        one = sequences([history])
        barred = self.items.barred(one)
        total = np.zeros((len(chosen), len(history.items)))
        for name, model in self.scorers.items():
            weight = 1.0 if name == "model" else float(self.entry.serving.get(name, 0.0))
            if not model.logits:  # such scores are blended with a deviation of 1
                weight /= max(float(model.scores(one)[~barred].std()), 1e-6)
            total += weight * _added(model, history, chosen)
        return total


def _added(model: Scorer, history: History, chosen: NDArray[np.int32]) -> NDArray[np.float64]:
    """What each item of a history adds to the scores of the chosen items by one model: `(k, n)`."""
    if isinstance(model, Ensemble):
        pairs = zip(model.weights, model.members, strict=True)
        return np.sum([weight * _added(member, history, chosen) for weight, member in pairs], axis=0)
    if not isinstance(model, TowerScorer):
        assert isinstance(model, DecayedMean | ItemSimilarity), "what else entries blend in"
        return model.shares(history.items, chosen)
    shape = model.model.shape
    first = max(0, len(history.items) - shape.history)
    added = np.zeros((len(chosen), len(history.items)))
    if shape.tower == "decayed_mean":
        added[:, first:] = model.shares(history.items[first:], chosen)
        return added
    places = replace(sequences([history]), items=np.arange(len(history.items), dtype=np.int32))
    for number in range(shape.towers):
        order = model.read_by(number, places).items
        read = History(history.items[order], history.gaps, history.groups)
        without = sequences([read.without(place) for place in range(first, len(order))])
        full = model.of_tower(number, sequences([read]))[0, chosen]
        added[:, order[first:]] += full[:, None] - model.of_tower(number, without)[:, chosen].T
    return added / shape.towers


def sequences(histories: Sequence[History]) -> Sequences:
    """Histories as the scorers want them."""
    ends = np.cumsum([0, *(len(h.items) for h in histories)])
    items, passed = (np.concatenate(rows) for rows in zip(*((h.items, h.gaps) for h in histories), strict=True))
    groups = np.array([h.groups for h in histories])
    return Sequences(ends.astype(np.int64), items.astype(np.int32), None, passed.astype(np.uint8), groups)
