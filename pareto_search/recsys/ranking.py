"""Ranks a part under many settings, in chunks of users, and searches for good settings."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from pareto_search.archive import choose
from pareto_search.candidate import Genes
from pareto_search.objective import Constraint, Objective, Values, is_feasible
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
KEPT = 20 * CHUNK
"""Up to how many scores of each model a ranking keeps."""
TIMED, LISTED = 11, 10
"""Latency is timed of so many users, for a list of so many items."""
ROUNDS, ROUND = 24, 8
"""The inner search proposes in so many rounds, but at least so many settings in each."""
SPREAD = (0.12, 0.02)
"""The deviation of the first round's proposals and of the last one's, in units of a serving gene's range."""
STEP = 0.6
"""How far a proposal goes, at most, from one good setting towards another."""
ELITE = 32


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
        return range(0, len(self._part.users), max(1, CHUNK // len(self._items.users)))

    def _compute(self, starts: range) -> Iterator[Chunk]:
        size = self._starts.step
        for start in starts:
            history = self._part.history.rows(start, start + size)
            targets = self._part.targets.rows(start, start + size)
            barred = self._items.barred(history)
            barred[np.repeat(np.arange(len(barred)), np.diff(targets.indptr)), targets.items] = False  # bought again
            yield Chunk(history, targets, {n: relevance(s, history, barred) for n, s in self._scorers.items()})


def search_settings(
    evaluate: Callable[[Sequence[Genes]], Sequence[Values]],
    space: SearchSpace,
    objectives: Sequence[Objective],
    *,
    constraints: Sequence[Constraint] = (),
    count: int,
    seed: int,
    known: Sequence[Genes] = (),
) -> list[tuple[Genes, Values]]:
    """The inner search: serving settings of one model that together cover most hypervolume.

    First come the model alone, what is fixed alone, and the known settings, or a Sobol sequence where none are known;
    then rounds of settings between two of those that add most hypervolume so far, with ever less noise: good settings
    lie near a surface, and what is between two of them is near it too.

    Args:
        evaluate: from settings to their values on validation.
        space: serving genes only.
        constraints: what is good keeps these, if any setting does.
        count: how many settings to evaluate beside the model alone.
        known: settings that served a similar model well.

    Returns:
        Each setting with its values, the model alone first.
    """
    genes = space.genes
    rng = np.random.default_rng(seed)
    settings: list[Genes] = [{}, *([dict(space.fixed)] if space.fixed and count else [])]
    left = count + 1 - len(settings)
    known = [k for k in known if genes and k.keys() >= {g.name for g in genes}][:left]
    vectors = np.array([space.to_unit(k) for k in known]).reshape(len(known), len(genes))
    if not known and genes:
        vectors = qmc.Sobol(len(genes), rng=rng).random_base2(max(0, int(left / 8).bit_length() - 1))[:left]
    tried = np.concatenate([np.zeros((len(settings), len(genes))), vectors])
    settings += [space.from_unit(list(v)) for v in vectors]
    values = [*evaluate(settings)]
    left = count + 1 - len(settings)
    rounds = min(ROUNDS, -(-left // ROUND)) if genes else 0
    for number, spread in enumerate(np.geomspace(*SPREAD, rounds)):
        kept = [i for i, v in enumerate(values) if is_feasible(v, objectives, constraints)] or list(range(len(values)))
        good = tried[[kept[i] for i in choose([values[i] for i in kept], objectives, ELITE)] or [0]]
        size = left * (number + 1) // rounds - left * number // rounds
        one, other = good[rng.integers(len(good), size=(2, size))]
        near = one + rng.uniform(0.0, STEP, (size, 1)) * (other - one) + rng.normal(0.0, spread, (size, len(genes)))
        near = np.clip(near, 0.0, np.nextafter(1.0, 0.0))
        proposed = [space.from_unit(list(v)) for v in near]
        tried = np.concatenate([tried, near])
        settings += proposed
        values += evaluate(proposed)
    return list(zip(settings, values, strict=True))
