"""The items that the losses of a batch range over: the catalogue, or a sample of a large one that stands for it."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pareto_search.recsys.split import Sequences
from pareto_search.workers.batches import Batch
from pareto_search.workers.recommender import Shape, Tower

FULL_SOFTMAX = 20_000
"""Items up to which the losses see the whole catalogue; of a larger one they see a sample."""
SAMPLED = 4096
"""How many items such a sample has."""


@dataclass(frozen=True)
class Sample:
    """Some items of the catalogue, and how likely each was to be among them.

    Attributes:
        items: `(s,)` their indices, ascending.
        log_inclusion: `(s,)` log π_i, π_i being the probability that a sample holds the item.
    """

    items: Tensor
    log_inclusion: Tensor


class Sampler:
    """Draws samples of the catalogue in which an item is found with probability π_i = min(1, c·w_i).

    Systematic sampling (Madow, Annals of Mathematical Statistics 1949): items are drawn where the running sum of π,
    shifted by one random number, passes a whole number.

    Args:
        weights: `(n_items,)` w; an item of weight 0 is never drawn.
        size: the sum of all π_i, hence how many items a sample has, give or take one.
    """

    def __init__(self, weights: NDArray[np.float64], size: int, device: str = "cpu") -> None:
        inclusion = _inclusion(weights, min(size, int(np.count_nonzero(weights))))
        self._running = np.cumsum(inclusion)
        with np.errstate(divide="ignore"):
            self._log_inclusion = torch.from_numpy(np.log(inclusion).astype(np.float32)).to(device)

    def draw(self, rng: np.random.Generator) -> Sample:
        """A fresh sample."""
        items = np.flatnonzero(np.diff(np.floor(self._running + rng.random()), prepend=0.0))
        rows = torch.from_numpy(items).to(self._log_inclusion.device)
        return Sample(rows, self._log_inclusion[rows])


def _inclusion(weights: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """min(1, c·w), with the c that makes them sum to `size`."""
    possible, certain = weights > 0, np.zeros(len(weights), bool)
    while not certain[possible].all():
        rest = np.where(certain, 0.0, weights)
        shares = (size - certain.sum()) * rest / rest.sum()
        if (shares <= 1.0).all():
            return np.where(certain, 1.0, shares)
        certain |= shares >= 1.0
    return possible.astype(np.float64)


class Scope:
    """The items whose vectors a batch needs: the whole catalogue, or what the batch names and a sample of the rest.

    Attributes:
        rows: `(m,)` their catalogue indices, ascending; None for the whole catalogue.
        drawn: the sample, if any.
        sample: the same, as places among the rows.

    Args:
        barred: `(n_items,)` 0 for what the losses range over, -inf for the rest of the catalogue.
    """

    def __init__(self, batch: Batch, drawn: Sample | None, barred: Tensor) -> None:
        n_items, device = len(barred), barred.device
        self._barred = barred
        self.rows: Tensor | None = None
        self.drawn = drawn
        self.sample: Sample | None = None
        if drawn is not None:
            named = torch.cat([batch.items.flatten(), batch.targets[batch.targets >= 0]]).to(device)
            self.rows = torch.cat([named, drawn.items]).unique()  # type: ignore[no-untyped-call]
            self._place = torch.full((n_items,), -1, dtype=torch.int64, device=device)
            self._place[self.rows] = torch.arange(len(self.rows), device=device)
            self.sample = Sample(self._place[drawn.items], drawn.log_inclusion)
            self._column = torch.full((n_items,), -1, dtype=torch.int64, device=device)
            self._column[drawn.items] = torch.arange(len(drawn.items), device=device)

    def of(self, whole: Tensor) -> Tensor:
        """The rows of what the whole catalogue has."""
        return whole if self.rows is None else whole[self.rows]

    def biases(self, whole: Tensor) -> Tensor:
        """The rows of the items' biases, -inf where the losses do not look."""
        return self.of(whole + self._barred)

    def places(self, items: Tensor) -> Tensor:
        """Where among the rows some items are that the batch names."""
        return items if self.rows is None else self._place[items]

    def columns(self, items: Tensor) -> Tensor:
        """Where some items are in what the list losses range over, the sample or the catalogue; -1 if nowhere."""
        return items if self.rows is None else self._column[items]


class Scopes:
    """Which items each batch's losses range over.

    An item that nobody has met in training is not among them where it has a text: that it was never next says nothing
    of it, but would teach the tower to keep away from texts like its own.

    Attributes:
        hidden: `(n_items,)` -inf for what is not offered, which lists cannot have; 0 for the rest, or for everything
            where nothing that is offered was met.
    """

    def __init__(
        self, train: Sequences, shape: Shape, seed: int, device: str, offered: NDArray[np.bool_] | None = None
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._counts = torch.from_numpy(np.bincount(train.items, minlength=shape.n_items)).to(device)
        weights = 1.0 + self._counts.double()
        if shape.text_width:
            weights *= self._counts > 0
        self._barred = torch.zeros(shape.n_items, device=device).masked_fill_(weights == 0, -torch.inf)
        self.hidden = torch.zeros_like(self._barred)
        if offered is not None and offered[train.items].any():
            self.hidden[torch.from_numpy(~offered).to(device)] = -torch.inf
        self._sampler: Sampler | None = None
        if shape.n_items > FULL_SOFTMAX:
            # Mikolov et al., NeurIPS 2013, for the power.
            self._sampler = Sampler(weights.cpu().numpy() ** 0.75, SAMPLED, device)

    def of(self, batch: Batch) -> Scope:
        drawn = None if self._sampler is None else self._sampler.draw(self._rng)
        return Scope(batch, drawn, self._barred)

    @torch.no_grad()
    def settle(self, tower: Tower) -> None:
        """Gives the items that the losses left out what can be said of them: the bias of the rarest others, no ID."""
        left_out = self._barred < 0
        tower.item_bias[left_out] = tower.item_bias[self._counts == self._counts[~left_out].min()].mean()
        if tower.shape.item_embeddings:
            tower.item_embedding[left_out] = 0.0
