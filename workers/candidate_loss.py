"""What a candidate is trained for: accuracy over windows, the other objectives over lists, and its teacher's
expectations, in one number.
"""

from itertools import cycle, islice
from typing import cast

import numpy as np
import torch
from torch import Tensor

from pareto_search.candidate import Genes
from pareto_search.workers.batches import Batch, Batches
from pareto_search.workers.losses import (
    Histories,
    Scalarisation,
    Scalariser,
    cross_entropy,
    divergence,
    list_values,
    sampled_cross_entropy,
)
from pareto_search.workers.recommender import Recommender, Tower
from pareto_search.workers.sample import Scope, Scopes
from pareto_search.workers.task import Task

BATCH = 128
ID_DROPOUT = 0.2
LISTS = 256
"""How many positions of a batch the list surrogates look at."""


class CandidateLoss:
    """The scalarised loss of a candidate, one batch a call; the towers take turns."""

    def __init__(self, task: Task, genes: Genes, model: Recommender) -> None:
        self._task, self._model = task, model
        weights = {n.removeprefix("weight."): float(w) for n, w in genes.items() if n.startswith("weight.")}
        self._distillation = float(genes["distillation"])
        self.scalarise = Scalariser(cast(Scalarisation, genes["scalarisation"]), weights, task.objectives)
        self.shuffle(0, 0)

    def shuffle(self, seed: int, done: int) -> None:
        """Begins a new epoch, in the order that the seed gives, after so many batches."""
        shape = self._model.shape
        self._turns = islice(cycle(self._model.towers), done % shape.towers, None)
        train, offered = self._task.train, self._task.offered
        self._batches = Batches(train, shape.history, BATCH, seed, ties=shape.gaps, offered=offered)
        self._stream = iter(self._batches)
        self._scopes = Scopes(self._task.train, shape, seed, self._task.encoder.device, self._task.offered)
        self._rng = np.random.default_rng(seed)

    def settle(self) -> None:
        """See `Scopes.settle`."""
        for tower in self._model.towers:
            self._scopes.settle(tower)

    def __call__(self, text: Tensor, gradient: Tensor) -> float:
        """The loss of the next batch; its gradient is added to that of the parameters and of the text vectors.

        Args:
            text, gradient: `(n_items, t)`.
        """
        batch, tower, dtype = next(self._stream), next(self._turns), self._task.encoder.dtype
        scope = self._scopes.of(batch)
        some = scope.of(text).detach().requires_grad_()
        accuracy, states, vectors = forward(tower, batch, scope, some, dtype)
        items = self._task.items if scope.drawn is None else self._task.items.of(scope.drawn)
        logits, histories = self._logits(tower, batch, scope, states, vectors)
        loss = self.scalarise(accuracy, list_values(logits, items, histories, self._task.objectives))
        if self._distillation:
            # Beside the scalarisation: inside the smoothed maximum, what is learned of it would take from accuracy.
            loss = loss + self._distillation * self._divergence(logits, histories)
        loss.backward()  # type: ignore[no-untyped-call]
        assert some.grad is not None
        if scope.rows is None:
            gradient += some.grad
        else:
            gradient.index_add_(0, scope.rows, some.grad)
        return float(loss.detach())

    def _divergence(self, logits: Tensor, histories: Histories) -> Tensor:
        """How far the candidate is from its teacher, at the places that the lists are at."""
        # EASE has no catalogue of which only a sample is looked at.
        assert self._task.teacher is not None, "a search with this gene has EASE"
        teacher = torch.from_numpy(self._task.teacher.logits(histories.sequences()))
        return divergence(teacher.to(logits.device), logits)

    def _logits(
        self, tower: Tower, batch: Batch, scope: Scope, states: Tensor, vectors: Tensor
    ) -> tuple[Tensor, Histories]:
        """Scores at some random places of the windows, -inf for what the user had seen by then, and what that is.

        Of a user to whom nothing is left all of them are 0, from which there is nothing to learn.

        Returns:
            `(q, n_items)`, or `(q, s)` for a sample of s items; and q histories.
        """
        rows, places = np.nonzero(batch.targets.numpy() >= 0)
        some = self._rng.choice(len(rows), min(LISTS, len(rows)), replace=False)
        rows, places = rows[some], places[some]
        users = states[torch.from_numpy(rows), torch.from_numpy(places)].float() / tower.temperature
        bias = scope.biases(tower.item_bias + self._scopes.hidden)
        if scope.sample is not None:
            vectors, bias = vectors[scope.sample.items], bias[scope.sample.items]
        logits = torch.addmm(bias, users, vectors.T)
        owner, item = (x.to(logits.device) for x in self._batches.seen(batch, rows, places))
        column = scope.columns(item)
        masked = logits.index_put((owner[column >= 0], column[column >= 0]), logits.new_tensor(-torch.inf))
        masked = masked.where((masked > -torch.inf).any(1, keepdim=True), 0.0)
        return masked, Histories(owner, item, len(rows), self._task.items.features)


def forward(
    tower: Tower, batch: Batch, scope: Scope, text: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The tower over a batch, with products in `dtype`.

    Args:
        text: of the scope's rows.

    Returns:
        -log p(next) at every place of the windows, the tower's states there, and the vectors of the scope's rows.
    """
    vectors = tower.item_vectors(text, ID_DROPOUT, scope.rows)
    device = vectors.device
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype != torch.float32):
        gaps, groups = (None if kinds is None else kinds.to(device) for kinds in (batch.gaps, batch.groups))
        states = tower.states(scope.places(batch.items.to(device)), batch.lengths.to(device), vectors, gaps, groups)
    known = batch.targets >= 0
    scaled = (states[known.to(device)] / tower.temperature).to(dtype)
    wanted, bias = scope.places(batch.targets[known].to(device)), scope.biases(tower.item_bias)
    if scope.sample is None:
        return cross_entropy(scaled, vectors, bias, wanted), states, vectors
    return sampled_cross_entropy(scaled, vectors, bias, wanted, scope.sample), states, vectors
