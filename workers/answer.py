"""What a deployment answers: several entries of one run at work over one base model, without Ray and HTTP."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from pareto_search import decide
from pareto_search.entry import of_run
from pareto_search.errors import ConfigError, DataError, ParetoSearchError, nearest
from pareto_search.objective import Objective
from pareto_search.recsys.dataset import Dataset
from pareto_search.recsys.rerank import POOL, arrange, blend, choose, relevance
from pareto_search.results import find_entry, load_front
from pareto_search.workers.recommend import Serving, sequences

KNOWN = 100_000
"""How many lists of known users are kept for each entry, at most."""


class Question(BaseModel):
    """A request: who, how many items, of which kind, and by which entry.

    Attributes:
        user, history: one of them; a user of the data set, or items, oldest first.
        k: how many items.
        exclude: items that must not be shown, beside those of the history.
        least: `credibility` or `novelty` -> the least that an item must have, 0..1.
        entry: the name of a served one; or else:
        prefer: objective -> weight, which pick the nearest of the served entries; without both, the first one answers.
        explain: whether to give reasons.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    user: str | None = None
    history: tuple[str, ...] | None = None
    k: Annotated[int, Field(ge=1, le=POOL)] = 10
    exclude: tuple[str, ...] = ()
    least: dict[str, FiniteFloat] = {}
    entry: str | None = None
    prefer: dict[str, FiniteFloat] | None = None
    explain: bool = False

    @model_validator(mode="after")
    def _is_one_wish(self) -> "Question":
        if (self.user is None) == (self.history is None):
            raise ValueError("give either user or history")
        if self.entry is not None and self.prefer is not None:
            raise ValueError("give either entry or prefer")
        if unknown := self.least.keys() - {"credibility", "novelty"}:
            raise ValueError(f"least has '{min(unknown)}'; expected credibility or novelty")
        return self


@dataclass(frozen=True)
class Answer:
    """The items for one question, best first, and the entry that chose them."""

    entry: str
    items: tuple[dict[str, object], ...]


@dataclass(frozen=True)
class _List:
    """All that is known of a user: the history, the scores `(n_items,)` and some of the items as chosen."""

    history: NDArray[np.int32]
    scores: NDArray[np.float32]
    items: NDArray[np.int32]


class Desk:
    """Answers questions from the entries that it serves; another choice of them takes the place of the old at once.

    Args:
        base: where the base model is, if not where it was in the search.

    Raises:
        RunError: the front has no such entry.
        UserError: an entry's files, data or base model do not fit.
    """

    def __init__(self, run: Path, names: Sequence[str], data: Dataset, base: str | None = None) -> None:
        self._run = run
        self._front = load_front(run)
        self._objectives = [Objective(**o) for o in self._front["objectives"]]
        self._place = {item: i for i, item in enumerate(data.item_ids)}
        first = Serving(of_run(run, names[0]), data, base)
        self._serving = first
        self._histories = first.histories()
        self._shelf = self._shelve([first, *(first.beside(of_run(run, name)) for name in names[1:])])

    def swap(self, names: Sequence[str]) -> None:
        """Serves these entries from now on; questions meanwhile are answered by those served before.

        Raises:
            UserError: as for the class; the old ones stay.
        """
        held = self._shelf
        self._shelf = self._shelve(
            [held.entries[n] if n in held.entries else self._serving.beside(of_run(self._run, n)) for n in names]
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The entries that are served, the default first."""
        return tuple(self._shelf.entries)

    def known(self, question: Question) -> Answer | None:
        """The answer to a question that was computed for its user before, if nothing in it asks for more."""
        if question.user is None or question.exclude or question.least or question.explain:
            return None
        shelf = self._shelf
        name = shelf.choose(question)
        found = shelf.lists[name].get(question.user)
        return (
            None if found is None or len(found.items) < question.k else self._answer(name, found, found.items, question)
        )

    def answer(self, questions: Sequence[Question]) -> list[Answer | ParetoSearchError]:
        """An answer to each question, or what is wrong with it; those for one entry are computed together."""
        shelf = self._shelf
        answers: list[Answer | ParetoSearchError] = [ParetoSearchError()] * len(questions)
        asked: dict[str, list[tuple[int, NDArray[np.int32]]]] = {}
        for number, question in enumerate(questions):
            try:
                name, history = shelf.choose(question), self._history(question)
                asked.setdefault(name, []).append((number, history))
            except ParetoSearchError as error:
                answers[number] = error
        for name, several in asked.items():
            longest = max(questions[number].k for number, _ in several)
            lists = self._lists(shelf.entries[name], [history for _, history in several], longest)
            for (number, _), found in zip(several, lists, strict=True):
                question = questions[number]
                if question.user is not None:
                    shelf.remember(name, question.user, found)
                try:
                    answers[number] = self._filtered(shelf.entries[name], found, question)
                except ParetoSearchError as error:
                    answers[number] = error
        return answers

    def _shelve(self, entries: Iterable[Serving]) -> "_Shelf":
        served = {serving.entry.name: serving for serving in entries}
        values = [find_entry(self._front, name)["validation"] for name in served]
        return _Shelf(served, values, self._objectives)

    def _history(self, question: Question) -> NDArray[np.int32]:
        if question.user is not None:
            if question.user not in self._histories:
                raise DataError(f"user '{question.user}' is not in the data; give a history for a new user")
            return self._histories[question.user]
        return self._indices(question.history or ())

    def _indices(self, items: Sequence[str]) -> NDArray[np.int32]:
        for item in items:
            if item not in self._place:
                raise DataError(f"item '{item}' is not in the data; expected ids as in its item table")
        return np.array([self._place[item] for item in items], np.int32)

    def _lists(self, serving: Serving, histories: Sequence[NDArray[np.int32]], k: int) -> list[_List]:
        seen = np.zeros((len(histories), len(self._place)), bool)
        for row, history in zip(seen, histories, strict=True):
            row[history] = True
        several, setting = sequences(histories), serving.entry.serving
        scores = blend({n: relevance(s, several, seen) for n, s in serving.scorers.items()}, setting)
        lists = choose(scores, serving.items, setting, k)
        return [
            _List(history, row, items[np.isfinite(row[items])])
            for history, row, items in zip(histories, scores, lists, strict=True)
        ]

    def _filtered(self, serving: Serving, found: _List, question: Question) -> Answer:
        """The answer to a question, re-ranked without the items that it does not want."""
        items = found.items
        if question.exclude or question.least:
            scores = found.scores.copy()
            scores[self._indices(question.exclude)] = -np.inf
            for name, least in question.least.items():
                values = getattr(serving.items, name)
                if values is None:
                    raise DataError(f"least asks for {name}, but the data has no ratings")
                scores[values < least] = -np.inf
            [items] = choose(scores[None], serving.items, serving.entry.serving, question.k)
            items = items[np.isfinite(scores[items])]
        if len(items) < question.k:
            raise DataError(f"k is {question.k}, but only {len(items)} items are left; lower it or filter less")
        return self._answer(serving.entry.name, found, items, question, serving)

    def _answer(
        self,
        name: str,
        found: _List,
        items: NDArray[np.int32],
        question: Question,
        serving: Serving | None = None,
    ) -> Answer:
        data = self._serving.data
        [chosen] = arrange(found.scores[None], items[None, : question.k])
        shown: list[dict[str, object]] = [
            {"item": data.item_ids[i], "title": data.titles[i], "score": float(found.scores[i])}
            for i in chosen.tolist()
        ]
        if question.explain and serving is not None and len(found.history):
            for item, because in zip(shown, serving.because(found.history, chosen), strict=True):
                item["because"] = list(because)
        return Answer(name, tuple(shown))


class _Shelf:
    """One choice of entries with what has been computed by them; never changed but for its memory."""

    def __init__(
        self, entries: Mapping[str, Serving], values: Sequence[Mapping[str, float]], objectives: Sequence[Objective]
    ) -> None:
        self.entries = dict(entries)
        self.lists: dict[str, OrderedDict[str, _List]] = {name: OrderedDict() for name in entries}
        names = list(entries)

        @lru_cache(maxsize=1024)  # people do not prefer in many ways
        def preferred(weights: tuple[tuple[str, float], ...]) -> str:
            return names[decide.prefer(values, objectives, dict(weights)).index]

        self._preferred = preferred

    def choose(self, question: Question) -> str:
        """The name of the entry that answers.

        Raises:
            ConfigError: it is not served, or a preference names no objective.
        """
        if question.prefer is not None:
            return self._preferred(tuple(sorted(question.prefer.items())))
        if question.entry is None:
            return next(iter(self.entries))
        if question.entry not in self.entries:
            raise ConfigError(f"entry '{question.entry}' is not served; {nearest(question.entry, self.entries)}")
        return question.entry

    def remember(self, name: str, user: str, found: _List) -> None:
        """Keeps a known user's longest list, in place of the oldest where there are too many."""
        lists = self.lists[name]
        if user not in lists or len(lists[user].items) < len(found.items):
            lists[user] = found
        if len(lists) > KNOWN:
            lists.popitem(last=False)
