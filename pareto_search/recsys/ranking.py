"""Ranks a part under many settings, in chunks of users."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pareto_search.candidate import Genes
from pareto_search.recsys.baselines import Scorer
from pareto_search.recsys.ensemble import select
from pareto_search.recsys.likelihood import likeliest
from pareto_search.recsys.metrics import Ranked, Tally, parse_metric
from pareto_search.recsys.rerank import Reranker, blend, relevance, rerank
from pareto_search.recsys.split import Part, Sequences
from pareto_search.recsys.statistics import ItemStatistics
from pareto_search.space import BLENDED, SearchSpace

CHUNK = 2_000_000
"""How many scores of each model are computed at once."""
USERS = 4096
"""Of how many users, at most: of a small catalogue, their lists' features take more than their scores."""
KEPT = 20 * CHUNK
"""Up to how many scores of each model a ranking keeps."""
TIMED, LISTED = 11, 10
"""Latency is timed of so many users, for a list of so many items."""


class Chunk(NamedTuple):
    """Some users.

    Attributes:
        scores: of each model.
    """

    history: Sequences
    targets: Sequences
    scores: Mapping[str, NDArray[np.float32]]


class Ranking:
    """A part to rank with a model and the components that may be blended into its scores.

    Args:
        scorers: `model`, and a component under each name that is a serving gene; or, to be `selected` from, any models.
        reranker: of these items; by default one that works here.
    """

    def __init__(
        self, part: Part, items: ItemStatistics, scorers: Mapping[str, Scorer], reranker: Reranker | None = None
    ) -> None:
        self._part, self._items, self._scorers = part, items, scorers
        self._reranker = reranker or Reranker(items)
        self._kept: list[Chunk] | None = None
        self._taken: dict[int, Mapping[str, Any]] = {}
        self._costs: dict[tuple[str, tuple[str, ...]], float] = {}

    def tallies(self, settings: Sequence[Genes], metrics: Sequence[str]) -> list[Tally]:
        """The metrics of each setting, without the costs; the scores are computed once for all of them."""
        names = [name for name in metrics if not parse_metric(name).metric.is_cost]
        tallies = [Tally(names, self._items, self._part.groups) for _ in settings]
        for number, chunk in enumerate(self._chunks() if settings else ()):
            length, sure = tallies[0].length, tallies[0].wants_probabilities
            shown = self._reranker.shown(self._where_reranked(number, chunk), settings, length, sure=sure)
            for tally, (lists, probable) in zip(tallies, shown, strict=True):
                tally.add(Ranked.of(lists, chunk.targets, chunk.history, probable))
        return tallies

    def costs(self, setting: Genes, metrics: Sequence[str]) -> dict[str, float]:
        """What a setting costs, as far as it is asked for.

        `parameters` counts the numbers that are kept beside the base model, with what the setting blends in. `latency`
        is the milliseconds that the list of one user takes, the median over some. `training` counts the operations of
        the fine-tunings that the weights come from, in 10^12.
        """
        measures = {"parameters": self._parameters, "latency": self._latency, "training": self._training}
        used = tuple(n for n in self._scorers if n == "model" or float(setting.get(n, 0.0)))
        for name in measures.keys() & set(metrics):
            # Once for what the setting uses: among many measurements of one thing the best would be luck.
            if (name, used) not in self._costs:
                self._costs[name, used] = measures[name]({n: self._scorers[n] for n in used}, setting)
        return {name: self._costs[name, used] for name in measures if name in metrics}

    def _parameters(self, used: Mapping[str, Scorer], _: Genes) -> float:
        return float(sum(scorer.parameters for scorer in used.values()))

    def _training(self, used: Mapping[str, Scorer], _: Genes) -> float:
        each = {name: operations for scorer in used.values() for name, operations in scorer.training.items()}
        return sum(each.values()) / 1e12

    def _latency(self, used: Mapping[str, Scorer], setting: Genes) -> float:
        seconds = []
        for user in range(min(TIMED, len(self._part.users))):
            history = self._part.history.rows(user, user + 1)
            began = time.perf_counter()
            barred = self._items.barred(history)
            scores = {name: relevance(s, history, barred) for name, s in used.items()}
            rerank(blend(scores, setting), self._items, setting, LISTED)
            seconds.append(time.perf_counter() - began)
        return 1000 * float(np.median(seconds))

    def values(self, settings: Sequence[Genes], metrics: Sequence[str]) -> list[dict[str, float]]:
        """The values of each setting, averaged over all users."""
        tallies = zip(settings, self.tallies(settings, metrics), strict=True)
        return [tally.values() | self.costs(setting, metrics) for setting, tally in tallies]

    def fitted(self, space: SearchSpace) -> SearchSpace:
        """The space with its fitted genes at their likeliest values, without those of components that are not here."""
        space = space.without(set(BLENDED) - self._scorers.keys())
        return space.at(self.likeliest(space.fitted, space.fixed))

    def likeliest(self, names: Sequence[str], fixed: Genes) -> Genes:
        """The values of some serving genes under which the targets are likeliest; see `likelihood.likeliest`.

        Users count up to `KEPT` scores.
        """
        return likeliest(((chunk.scores, chunk.targets) for chunk in self.some(KEPT)), names, fixed)

    def selected(self, draws: int) -> dict[str, float]:
        """The weights of the scorers under whose average the targets are likely; see `ensemble.select`.

        Users count up to `KEPT` scores of all models together.
        """
        scored = ((chunk.scores, chunk.targets) for chunk in self.some(KEPT // len(self._scorers)))
        return select(scored, draws)

    def some(self, most: int) -> Iterable[Chunk]:
        """Users evenly spread over the part, up to so many scores of each model; all users where these are no more."""
        starts = self._starts
        every = max(1, -(-len(starts) * CHUNK // most))
        return self._chunks() if every == 1 else self._compute(starts[::every])

    def _chunks(self) -> Iterable[Chunk]:
        """All users' scores in chunks; those of a small part are kept for the next call."""
        if len(self._part.users) * len(self._items.users) > KEPT:
            return self._compute(self._starts)
        if self._kept is None:
            self._kept = list(self._compute(self._starts))
        return self._kept

    def _where_reranked(self, number: int, chunk: Chunk) -> Mapping[str, Any]:
        """A chunk's scores as the reranker takes them, kept with those of a small part."""
        if self._kept is None:
            return self._reranker.take(chunk.scores)
        if number not in self._taken:
            self._taken[number] = self._reranker.take(chunk.scores)
        return self._taken[number]

    @property
    def _starts(self) -> range:
        """Where each chunk of users begins."""
        return range(0, len(self._part.users), max(1, min(USERS, CHUNK // len(self._items.users))))

    def _compute(self, starts: range) -> Iterator[Chunk]:
        size = self._starts.step
        for start in starts:
            history = self._part.history.rows(start, start + size)
            targets = self._part.targets.rows(start, start + size)
            barred = self._items.barred(history)
            barred[targets.owners, targets.items] = False  # bought again
            yield Chunk(history, targets, {n: relevance(s, history, barred) for n, s in self._scorers.items()})
