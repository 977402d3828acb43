"""Training: the tower on frozen item vectors (once), and the fine-tuning of one candidate (many times)."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor, nn

from pareto_search.candidate import Genes
from pareto_search.errors import ParetoSearchError
from pareto_search.objective import Objective
from pareto_search.recsys.ranking import KEPT, Ranking
from pareto_search.recsys.split import Sequences
from pareto_search.workers.batches import Batch, Batches
from pareto_search.workers.encoder import Encoder
from pareto_search.workers.lora import Adapter, Form, LoraShape, Targets, fresh, inherit, placed
from pareto_search.workers.losses import (
    Histories,
    ItemTensors,
    Scalarisation,
    Scalariser,
    cross_entropy,
    list_values,
    sampled_cross_entropy,
)
from pareto_search.workers.recommender import Recommender, Shape, Tower, TowerScorer
from pareto_search.workers.sample import Sampler, Scope

BATCH = 128
ID_DROPOUT = 0.2
LISTS = 256
"""How many positions of a batch the list surrogates look at."""
TOWER_BATCHES = 6
"""Tower batches per encoder step: an encode costs as much as many of them."""
FULL_SOFTMAX = 20_000
"""Items up to which the losses see the whole catalogue; of a larger one they see a sample."""
SAMPLED = 4096
"""How many items such a sample has."""
ENCODED = 6144
"""How many items an encoder step takes, at most."""
OPTIMISER = "optimiser.safetensors"
"""The file that makes a state of a checkpoint."""


class DivergedError(ParetoSearchError):
    """The loss is no longer a number."""


def train_tower(
    shape: Shape,
    text: Tensor | None,
    train: Sequences,
    *,
    epochs: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    offered: NDArray[np.bool_] | None = None,
) -> Recommender:
    """A recommender with one tower, trained on frozen text vectors, or on IDs alone (SASRec).

    AdamW with one cycle to a peak of 5e-3 and decay 0.05, softmax at every position: full, or sampled where the
    catalogue is large.

    Args:
        shape: `towers` is 1.
        text: `(n_items, t)`, or None for IDs alone.
        dtype: of products; parameters are float32.
        offered: as for `Batches`.
    """
    torch.manual_seed(seed)
    model = Recommender(shape).to(device).train()
    tower = model.towers[0]
    if text is not None:
        tower.centre(text)
    batches = Batches(train, shape.history, BATCH, seed, ties=shape.gaps, offered=offered)
    steps = epochs * batches.per_epoch
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=steps)
    scopes = _Scopes(train, shape, seed, device)
    for batch in islice(batches, steps):
        scope = scopes.of(batch)
        loss, _, _ = _forward(tower, batch, scope, None if text is None else scope.of(text), dtype)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    scopes.settle(tower)
    return model.eval()


@dataclass(frozen=True)
class Task:
    """What every fine-tuning of a search has in common."""

    encoder: Encoder
    start: Recommender
    train: Sequences
    items: ItemTensors
    objectives: Sequence[Objective]
    offered: NDArray[np.bool_] | None = None


@contextmanager
def fine_tune(
    task: Task, genes: Genes, *, steps: int, seed: int, source: Mapping[str, bytes] | None = None
) -> Iterator["FineTuning"]:
    """A fine-tuning of adapter and tower as the genes say, to be advanced rung by rung.

    Args:
        steps: of the full rung, over which the learning rates rise and fall.
        source: a state, which goes on as if it had never stopped; or the checkpoint of a parent, whose adapter, tower
            and IDs are where this one starts; None starts from the shared warm start.

    Yields:
        The fine-tuning, its adapter in the encoder; afterwards the encoder is as it was.
    """
    tuning = FineTuning(task, genes, steps=steps, seed=seed, source=source)
    with placed(task.encoder, dict(tuning.adapter.named())):
        yield tuning


@dataclass(frozen=True)
class EncoderStep:
    """The encoder's part of a training step: the gradient of some items goes through it, and their vectors are renewed.

    Attributes:
        text, gradient: `(n_items, t)` the cached vectors, and the gradient collected for each.
        adapter: whose weights get theirs.
    """

    text: Tensor
    gradient: Tensor
    adapter: Adapter

    def turn(self, encoder: Encoder) -> NDArray[np.int64]:
        """Whose turn it is: the items with the largest gradient."""
        count = min(len(self.text), max(256, min(len(self.text) // 3, ENCODED)))
        return encoder.foremost(self.gradient.square().sum(1).cpu().numpy(), count)


class FineTuning:
    """One candidate in training, which draws from a generator of its own: who trains beside it makes no difference.

    A step is a few tower batches against cached text vectors, whose gradient is collected (gradient caching: Gao et
    al., RepL4NLP 2021), then one pass of the encoder over the items with the largest collected gradient. The others
    keep their vectors and their gradient until it is their turn, or until the next pause, after which all are encoded
    afresh.

    Attributes:
        done: the steps taken so far, on all workers together.
    """

    def __init__(
        self,
        task: Task,
        genes: Genes,
        *,
        steps: int,
        seed: int,
        source: Mapping[str, bytes] | None,
    ) -> None:
        self._task, self._seed, self._steps = task, seed, steps
        self._generator = torch.Generator(task.encoder.device).manual_seed(seed)
        adapter = fresh(task.encoder, _shape(genes, task.encoder), generator=self._generator)
        self.adapter = adapter.eval()  # until it is trained, what the encoder gives is without dropout
        self.model = _start(task.start, source, genes, self._generator)
        self.done = 0
        self._loss = _Loss(task, genes, self.model)
        self._scalarise_part = copy(self._loss.scalarise)  # from its own first loss on
        self._adapts = float(genes["adapter_lr"]) > 0  # without, the encoder stays as it is and costs nothing
        decay = float(genes["weight_decay"])
        parameters = list(self.model.parameters())
        self._tower = _Optimiser(parameters, float(genes["tower_lr"]), decay, steps * TOWER_BATCHES)
        factors, magnitudes = adapter.factors(), adapter.magnitudes()
        self._lora = _Optimiser(factors, float(genes["adapter_lr"]), decay, steps, steady=magnitudes)
        self._moved = source is not None
        self._encoded: Tensor | None = None  # the text vectors, from when it was last looked at
        if source is not None:
            inherit(adapter, source)
            if OPTIMISER in source:
                self._resume(load(source[OPTIMISER]))

    def advance(self, to: int) -> None:
        """Trains until so many steps are done, with the adapter in the encoder.

        Raises:
            DivergedError: the loss or a weight is not finite.
        """
        for step in self.steps(to):
            encoder_pass(self._task.encoder, [step])

    def steps(self, to: int) -> Iterator[EncoderStep]:
        """Trains until so many steps are done, with the adapter in the encoder, but for what it yields.

        What chance decides depends on the seed and on where it begins, so that a pause at a rung changes nothing.

        Yields:
            The encoder's part of each step, to be done before the next one is asked for.

        Raises:
            DivergedError: the loss or a weight is not finite.
        """
        self._generator.manual_seed(self._seed + self.done)
        self._loss.shuffle(self._seed + self.done, self.done * TOWER_BATCHES)
        text = self._text() if self._encoded is None else self._encoded
        self._encoded = None
        gradient = torch.zeros_like(text)
        self.adapter.train()
        self.model.train()
        for step in range(self.done, to):
            for _ in range(TOWER_BATCHES):
                if not math.isfinite(self._loss(text, gradient)):
                    raise DivergedError(f"the loss is not finite at step {step + 1} of {self._steps}")
                self._tower.step()
            if self._adapts:
                yield EncoderStep(text, gradient, self.adapter)
                self._lora.step()
        if not all(bool(p.isfinite().all()) for p in self._moving()):
            raise DivergedError(f"the weights are not finite after step {to} of {self._steps}")
        self._loss.settle()
        self.adapter.eval()
        self.model.eval()
        self.done, self._moved = to, True

    def scorer(self) -> TowerScorer:
        """The recommender as it is now."""
        with placed(self._task.encoder, dict(self.adapter.named())):
            self._encoded = self._text()
        return TowerScorer.of(self.model, self._encoded)

    @torch.no_grad()
    def loss_on(self, ranking: Ranking) -> float:
        """The candidate's loss over a part as lists are made of it, without what was seen or is not offered; each user
        counts as one, and of many some.

        Args:
            ranking: of the part, with the `scorer` of now.

        Raises:
            DivergedError: it is not finite.
        """
        task, users, accuracy = self._task, 0, torch.zeros((), device=self._task.encoder.device)
        sums: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=task.encoder.device))
        for chunk in ranking.some(KEPT):
            logits = torch.from_numpy(chunk.scores["model"]).to(task.encoder.device)
            row, wanted = (x.to(logits.device) for x in _pairs(chunk.targets))
            nats = (logits.logsumexp(1)[row] - logits[row, wanted]) / torch.bincount(row)[row]
            owner, item = (x.to(logits.device) for x in _pairs(chunk.history))
            histories = Histories(owner, item, len(logits), task.items.features)
            for name, value in list_values(logits, task.items, histories, task.objectives).items():
                sums[name] += value * len(logits)
            accuracy += nats.sum()
            users += len(logits)
        loss = float(self._scalarise_part(accuracy / users, {name: total / users for name, total in sums.items()}))
        if not math.isfinite(loss):
            raise DivergedError(f"the loss on validation is not finite after step {self.done} of {self._steps}")
        return loss

    def snapshot(self) -> tuple[int, list[Tensor]]:
        """The steps done, and a copy of what training moves."""
        return self.done, [p.detach().clone() for p in self._moving()]

    @torch.no_grad()
    def restore(self, snapshot: tuple[int, list[Tensor]]) -> None:
        """Goes back to a snapshot, from which it is not to go on."""
        (self.done, weights), self._encoded = snapshot, None
        for mine, kept in zip(self._moving(), weights, strict=True):
            mine.copy_(kept)

    def _moving(self) -> list[nn.Parameter]:
        return [*self.adapter.weights(), *self.model.parameters()]

    def _text(self) -> Tensor:
        """The text vectors of now, with the adapter in the encoder."""
        encoder = self._task.encoder
        return (
            encoder.catalogue(self.adapter.shape.layers)
            if self._moved
            else encoder.frozen.to(encoder.device, copy=True)
        )

    def state(self) -> dict[str, bytes]:
        """What a checkpoint lacks for its training to go on."""
        own = {"done": torch.tensor(self.done), "start": torch.tensor(self._loss.scalarise.start)}
        return {OPTIMISER: save(own | self._tower.state("tower") | self._lora.state("lora"))}

    def _resume(self, state: Mapping[str, Tensor]) -> None:
        self.done = int(state["done"])
        self._loss.scalarise.start = float(state["start"])
        self._tower.load("tower", state, self.done * TOWER_BATCHES)
        self._lora.load("lora", state, self.done)


def _pairs(some: Sequences) -> tuple[Tensor, Tensor]:
    """`(n,)` each item of some users' rows, and `(n,)` the row that it is in, which comes first."""
    owner = np.repeat(np.arange(len(some.indptr) - 1), np.diff(some.indptr))
    return torch.from_numpy(owner), torch.from_numpy(some.items.astype(np.int64))


def _shape(genes: Genes, encoder: Encoder) -> LoraShape:
    return LoraShape(
        rank=int(genes["rank"]),
        alpha=float(genes["alpha"]),
        dropout=float(genes["dropout"]),
        targets=cast(Targets, genes["targets"]),
        layers=min(int(genes["layers"]), encoder.layers),
        form=cast(Form, genes["adapter"]),
    )


def _start(
    start: Recommender, source: Mapping[str, bytes] | None, genes: Genes, generator: torch.Generator
) -> Recommender:
    """The source's tower, or the warm start, in the form that the genes ask for."""
    embeddings = start.shape.item_embeddings and bool(genes["id_embeddings"])
    model = Recommender(replace(start.shape, item_embeddings=embeddings), generator=generator)
    weights = start.state_dict() | ({} if source is None else Recommender.loaded(source).state_dict())
    model.load_state_dict({k: v for k, v in weights.items() if k in model.state_dict()})
    for tower in model.towers:
        tower.temperature.fill_(float(genes["temperature"]))
    return model.to(start.towers[0].item_bias.device)


class _Optimiser:
    """AdamW with gradient clipping and a learning rate that rises over a tenth of the steps and then falls to zero.

    Args:
        steady: parameters beside the others that do not decay.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        lr: float,
        decay: float,
        steps: int,
        steady: Sequence[nn.Parameter] = (),
    ) -> None:
        self._parameters, self._lr, self._steps = [*parameters, *steady], lr, steps
        groups: list[dict[str, Any]] = [{"params": parameters}, {"params": steady, "weight_decay": 0.0}]
        self._adamw = torch.optim.AdamW(groups, lr=lr, weight_decay=decay, fused=True)
        self._done = 0

    def step(self) -> None:
        """Moves along the gradients, and clears them."""
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        rise = max(1, self._steps // 10)
        fall = (self._steps - self._done) / max(1, self._steps - rise)
        for group in self._adamw.param_groups:
            group["lr"] = self._lr * min((self._done + 1) / rise, fall, 1.0)
        self._adamw.step()
        self._adamw.zero_grad()
        self._done += 1

    def state(self, name: str) -> dict[str, Tensor]:
        """The moments, each under the optimiser's name, the parameter's number and its own name."""
        moments = self._adamw.state_dict()["state"]
        return {f"{name}.{i}.{key}": tensor for i, own in moments.items() for key, tensor in own.items()}

    def load(self, name: str, state: Mapping[str, Tensor], done: int) -> None:
        """Takes the moments back, after so many steps."""
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in state.items():
            owner, _, rest = key.partition(".")
            if owner == name:
                number, _, moment = rest.partition(".")
                moments.setdefault(int(number), {})[moment] = tensor
        self._adamw.load_state_dict({"state": moments, "param_groups": self._adamw.state_dict()["param_groups"]})
        self._done = done


class _Loss:
    """The scalarised loss of a candidate, one batch a call; the towers take turns."""

    def __init__(self, task: Task, genes: Genes, model: Recommender) -> None:
        self._task, self._model = task, model
        weights = {n.removeprefix("weight."): float(w) for n, w in genes.items() if n.startswith("weight.")}
        self.scalarise = Scalariser(cast(Scalarisation, genes["scalarisation"]), weights, task.objectives)
        self.shuffle(0, 0)

    def shuffle(self, seed: int, done: int) -> None:
        """Begins a new epoch, in the order that the seed gives, after so many batches."""
        shape = self._model.shape
        self._turns = islice(cycle(self._model.towers), done % shape.towers, None)
        train, offered = self._task.train, self._task.offered
        self._batches = Batches(train, shape.history, BATCH, seed, ties=shape.gaps, offered=offered)
        self._stream = iter(self._batches)
        self._scopes = _Scopes(self._task.train, shape, seed, self._task.encoder.device, self._task.offered)
        self._rng = np.random.default_rng(seed)

    def settle(self) -> None:
        """See `_Scopes.settle`."""
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
        accuracy, states, vectors = _forward(tower, batch, scope, some, dtype)
        items = self._task.items if scope.drawn is None else self._task.items.of(scope.drawn)
        logits, histories = self._logits(tower, batch, scope, states, vectors)
        loss = self.scalarise(accuracy, list_values(logits, items, histories, self._task.objectives))
        loss.backward()  # type: ignore[no-untyped-call]
        assert some.grad is not None
        if scope.rows is None:
            gradient += some.grad
        else:
            gradient.index_add_(0, scope.rows, some.grad)
        return float(loss.detach())

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


class _Scopes:
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


def _forward(
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


def encoder_pass(
    encoder: Encoder, steps: Sequence[EncoderStep], begin: Callable[[Sequence[NDArray[np.int64]]], None] | None = None
) -> None:
    """The encoder's part of some steps, the rows of all together, with their adapters in the encoder.

    Args:
        steps: those that adapt most layers first.
        begin: is told of each chunk, one selection of items a step, before it is encoded.
    """
    layers = [step.adapter.shape.layers for step in steps]
    for chunks in encoder.chunks_together([step.turn(encoder) for step in steps]):
        if begin is not None:
            begin(chunks)
        vectors = encoder.encode_together(chunks, layers)
        gradient = torch.zeros_like(vectors)  # of rows that only fill up it stays so
        for place, (step, chunk) in enumerate(zip(steps, chunks, strict=True)):
            rows = torch.from_numpy(chunk).to(vectors.device)
            gradient[place, : len(chunk)] = step.gradient[rows]
            step.text[rows] = vectors[place, : len(chunk)].detach()
            step.gradient[rows] = 0.0
        vectors.backward(gradient)  # type: ignore[no-untyped-call]
