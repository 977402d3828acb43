"""Distillation: what EASE expects of a user, as a teacher of the tower (Hinton et al., arXiv:1503.02531)."""

from functools import cached_property

import numpy as np

from pareto_search.recsys.baselines import Floats, ItemSimilarity
from pareto_search.recsys.likelihood import SHARPNESS
from pareto_search.recsys.ranking import Ranking
from pareto_search.recsys.rerank import relevance
from pareto_search.recsys.split import Part, Sequences
from pareto_search.recsys.statistics import ItemStatistics


class Teacher:
    """EASE's scores as logits, sharpened so that what follows on the validation part is likeliest.

    EASE itself has no probabilities, and what it was fitted to would look likelier to it than anything new does.
    """

    def __init__(self, ease: ItemSimilarity, items: ItemStatistics, validation: Part) -> None:
        self._ease, self._items, self._validation = ease, items, validation

    def logits(self, history: Sequences) -> Floats:
        """`(m, n_items)` after each history, -inf for what it holds and for what is not offered."""
        return relevance(self._ease, history, self._items.barred(history)) * self._sharpness

    @cached_property
    def _sharpness(self) -> np.float32:
        ranking = Ranking(self._validation, self._items, {"model": self._ease})
        return np.float32(ranking.likeliest([SHARPNESS], {})[SHARPNESS])
