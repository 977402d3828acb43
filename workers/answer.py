"""What a deployment answers: several entries of one run at work, without Ray and HTTP."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pareto_search import decide
from pareto_search.entry import of_run
from pareto_search.errors import ConfigError, DataError, ParetoSearchError, nearest
from pareto_search.objective import Objective, Values
from pareto_search.question import Canary, Question
from pareto_search.recsys.dataset import Dataset
from pareto_search.recsys.rerank import arrange, choose
from pareto_search.results import find_entry, load_front, objectives_of
from pareto_search.workers.recommend import History, Serving

MEMORY = 2**28
"""How many bytes the lists of known users may take for each entry."""


@dataclass(frozen=True)
class Answer:
    """The items for one question, best first, the entry that chose them, and what was asked with that nobody knows.

    Attributes:
        unknown: items of the question that the search's data does not have; they are left out.
    """

    entry: str
    items: tuple[dict[str, object], ...]
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class _List:
    """All that is known of a user: the history, the scores `(n_items,)` and some of the items as chosen."""

    history: History
    scores: NDArray[np.float32]
    items: NDArray[np.int32]


class Desk:
    """Answers questions from the entries that it serves; another choice of them takes the place of the old at once.

    Args:
        names: of entries, the one first that answers who names none.
        base: where the base model is, if not where it was in the search; one is needed by the runs of older releases,
            which have no item vectors.
        canary: an entry on trial; preferences do not lead to it unless it is among `names` too.

    Raises:
        RunError: the front has no such entry.
        UserError: an entry's files, data or base model do not fit.
    """

    def __init__(
        self, run: Path, names: Sequence[str], data: Dataset, base: str | None = None, canary: Canary | None = None
    ) -> None:
        self._run = run
        first = Serving(of_run(run, names[0], vectors=True), data, base)
        self._serving = first
        self._histories = first.histories()
        self._shelf = self._shelve({first.entry.name: first}, names, canary)

    def swap(self, names: Sequence[str], canary: Canary | None = None) -> None:
        """Serves these entries from now on; questions meanwhile are answered by those served before.

        Raises:
            UserError: as for the class; the old ones stay.
        """
        self._shelf = self._shelve(self._shelf.entries, names, canary)

    @property
    def names(self) -> tuple[str, ...]:
        """The entries that are served, the default first, the canary last unless it is one of the others."""
        return tuple(self._shelf.entries)

    @property
    def canary(self) -> Canary | None:
        """The entry on trial."""
        return self._shelf.canary

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
        asked: dict[str, list[tuple[int, History]]] = {}
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

    def _shelve(self, held: Mapping[str, Serving], names: Sequence[str], canary: Canary | None) -> "_Shelf":
        front = load_front(self._run)  # which may have been written since
        served = dict.fromkeys([*names, canary.entry] if canary else names)
        new = {n: self._serving.beside(of_run(self._run, n, vectors=True)) for n in served if n not in held}
        entries = {n: held[n] if n in held else new[n] for n in served}
        values = {name: find_entry(front, name)["validation"] for name in names}
        return _Shelf(entries, values, objectives_of(front), canary)

    def _history(self, question: Question) -> History:
        if question.user is not None:
            if question.user not in self._histories:
                known = next(iter(self._histories))
                raise DataError(
                    f"user '{question.user}' is not in the data; expected one such as '{known}', or give a history"
                )
            return self._histories[question.user]
        items, times = question.history or (), question.times
        # A log has new items before there is a newer search; one with other ids altogether is a mistake.
        places = [place for place, item in enumerate(items) if self._serving.knows(item)]
        if items and not places:
            raise DataError(
                f"no item of the history is in {self._serving.data.name}; expected ids as in its item table, or an "
                "empty history"
            )
        when = None if times is None else [times[place] for place in places]
        return self._serving.history_with([items[place] for place in places], when, question.groups)

    def _lists(self, serving: Serving, histories: Sequence[History], k: int) -> list[_List]:
        scores = serving.scores(histories)
        lists = choose(scores, serving.items, serving.entry.serving, k)
        return [
            _List(history, row.copy(), items[np.isfinite(row[items])])  # a view would keep all rows
            for history, row, items in zip(histories, scores, lists, strict=True)
        ]

    def _filtered(self, serving: Serving, found: _List, question: Question) -> Answer:
        """The answer to a question, re-ranked without the items that it does not want."""
        items = found.items
        if question.exclude or question.least:
            scores = found.scores.copy()
            scores[serving.places(list(filter(serving.knows, question.exclude)))] = -np.inf
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
        if question.explain and serving is not None and len(found.history.items):
            for item, because in zip(shown, serving.because(found.history, chosen), strict=True):
                item["because"] = list(because)
        asked = dict.fromkeys((*(question.history or ()), *question.exclude))
        return Answer(name, tuple(shown), tuple(item for item in asked if not self._serving.knows(item)))


class _Shelf:
    """One choice of entries with what has been computed by them; never changed but for its memory."""

    def __init__(
        self,
        entries: Mapping[str, Serving],
        values: Mapping[str, Values],
        objectives: Sequence[Objective],
        canary: Canary | None,
    ) -> None:
        self.entries, self.canary = dict(entries), canary
        self.lists: dict[str, OrderedDict[str, _List]] = {name: OrderedDict() for name in entries}
        names = list(values)

        @lru_cache(maxsize=1024)  # people do not prefer in many ways
        def preferred(weights: tuple[tuple[str, float], ...]) -> str:
            return names[decide.prefer(list(values.values()), objectives, dict(weights)).index]

        self._preferred = preferred

    def choose(self, question: Question) -> str:
        """The name of the entry that answers.

        Raises:
            ConfigError: it is not served, or a preference names no objective.
        """
        if question.prefer is not None:
            return self._preferred(tuple(sorted(question.prefer.items())))
        if question.entry is None:
            on_trial = self.canary is not None and _lot(question, self.canary.entry) < self.canary.share
            return self.canary.entry if self.canary and on_trial else next(iter(self.entries))
        if question.entry not in self.entries:
            raise ConfigError(f"entry '{question.entry}' is not served; {nearest(question.entry, self.entries)}")
        return question.entry

    def remember(self, name: str, user: str, found: _List) -> None:
        """Keeps a known user's longest list, in place of the oldest where there are too many."""
        lists = self.lists[name]
        if user not in lists or len(lists[user].items) < len(found.items):
            lists[user] = found
        while len(lists) * found.scores.nbytes > max(MEMORY, found.scores.nbytes):
            lists.popitem(last=False)


def _lot(question: Question, canary: str) -> float:
    """0 to 1, even over people and always the same for one of them; another canary draws anew, and so do others."""
    who = repr((canary, question.user, question.history))
    return int.from_bytes(blake2b(who.encode(), digest_size=8).digest()) / 2**64
