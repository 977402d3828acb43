"""Training: the tower on frozen item vectors (once), and the fine-tuning of one candidate (many times)."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from itertools import islice
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor, nn

from pareto_search.candidate import Genes
from pareto_search.errors import DivergedError
from pareto_search.recsys.ranking import KEPT, Ranking
from pareto_search.recsys.split import Sequences
from pareto_search.workers.batches import Batches
from pareto_search.workers.candidate_loss import CandidateLoss, forward
from pareto_search.workers.encoder import Encoder
from pareto_search.workers.lora import FULL_RATE, Adapter, Form, LoraShape, Targets, fresh, inherit, placed
from pareto_search.workers.losses import Histories, list_values
from pareto_search.workers.operations import of_encoding, of_tower_batch
from pareto_search.workers.optimiser import Optimiser
from pareto_search.workers.recommender import Recommender, Shape, TowerScorer
from pareto_search.workers.sample import Scopes
from pareto_search.workers.task import Task

WINDOWS, RISE = 96, 0.45
"""Of a batch of a tower that is trained from nothing; and the share of its steps in which the learning rate rises."""
TABLE_RATE, LAYER_RATE, DECAY = 1e-2, 5e-3, 0.1
"""The highest learning rates of tables, by item, place, gap or group, and of layers; and the weight decay of both. Most
rows of a table are met by few windows, and may take larger steps."""
TOWER_BATCHES = 6
"""Tower batches per encoder step: an encode costs as much as many of them."""
ENCODED = 6144
"""How many items an encoder step takes, at most."""
OPTIMISER = "optimiser.safetensors"
"""The file that makes a state of a checkpoint."""


def train_tower(
    shape: Shape,
    text: Tensor | None,
    train: Sequences,
    *,
    epochs: int,
    seed: int,
    least: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    offered: NDArray[np.bool_] | None = None,
) -> Recommender:
    """A recommender with one tower, trained on frozen text vectors, or on IDs alone (SASRec).

    AdamW with one cycle, softmax at every position: full, or sampled where the catalogue is large.

    Args:
        shape: `towers` is 1.
        text: `(n_items, t)`, or None for IDs alone.
        least: so many steps at least, however few the epochs have.
        dtype: of products; parameters are float32.
        offered: as for `Batches`.
    """
    torch.manual_seed(seed)
    model = Recommender(shape).to(device).train()
    tower = model.towers[0]
    if text is not None:
        tower.centre(text)
    batches = Batches(train, shape.history, WINDOWS, seed, ties=shape.gaps, offered=offered)
    steps = max(epochs * batches.per_epoch, least)
    tables, layers = list(tower.parameters(recurse=False)), [p for c in tower.children() for p in c.parameters()]
    optimiser = torch.optim.AdamW([{"params": tables}, {"params": layers}], weight_decay=DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [TABLE_RATE, LAYER_RATE], total_steps=steps, pct_start=RISE
    )
    scopes = Scopes(train, shape, seed, device)
    for batch in islice(batches, steps):
        scope = scopes.of(batch)
        loss, _, _ = forward(tower, batch, scope, None if text is None else scope.of(text), dtype)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    scopes.settle(tower)
    return model.eval()


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
        return encoder.foremost(self.gradient.square().sum(1).cpu().numpy(), _encoded(len(self.text)))


class FineTuning:
    """One candidate in training, which draws from a generator of its own: who trains beside it makes no difference.

    A step is a few tower batches against cached text vectors, whose gradient is collected (gradient caching: Gao et
    al., RepL4NLP 2021), then one pass of the encoder over the items with the largest collected gradient. The others
    keep their vectors and their gradient until it is their turn, or until the next pause, after which all are encoded
    afresh.

    Attributes:
        done: the steps taken so far, on all workers together.
        taken: the same, with those that it has gone back from.
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
        self.done = self.taken = 0
        self._loss = CandidateLoss(task, genes, self.model)
        self._scalarise_part = copy(self._loss.scalarise)  # from its own first loss on
        self._adapts = float(genes["adapter_lr"]) > 0  # without, the encoder stays as it is and costs nothing
        decay = float(genes["weight_decay"])
        parameters = list(self.model.parameters())
        self._tower = Optimiser(parameters, float(genes["tower_lr"]), decay, steps * TOWER_BATCHES)
        factors, magnitudes = adapter.factors(), adapter.magnitudes()
        rate = float(genes["adapter_lr"]) * (FULL_RATE if adapter.shape.form == "full" else 1.0)
        self._lora = Optimiser(factors, rate, decay, steps, steady=magnitudes)
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
        self.done, self._moved = to, self._moved or self._adapts
        self.taken = max(self.taken, to)

    def scorer(self) -> TowerScorer:
        """The recommender as it is now."""
        with placed(self._task.encoder, dict(self.adapter.named())):
            self._encoded = self._text()
        return TowerScorer.of(self.model, self._encoded)

    @torch.no_grad()
    def loss_on(self, ranking: Ranking) -> float:
        """The candidate's loss over a part as lists are made of it, without what was seen or is not offered, and
        without its teacher; each user counts as one, and of many some.

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

    @property
    def operations(self) -> float:
        """The floating-point operations of the steps taken, by formula."""
        task, shape = self._task, self.model.shape
        step = TOWER_BATCHES * of_tower_batch(task, shape)
        if self._adapts:
            step += of_encoding(task.encoder, self.adapter.shape.layers, _encoded(shape.n_items))
        return self.taken * step

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
        self.done = self.taken = int(state["done"])
        self._loss.scalarise.start = float(state["start"])
        self._tower.load("tower", state, self.done * TOWER_BATCHES)
        self._lora.load("lora", state, self.done)


def _encoded(n_items: int) -> int:
    """About how many items an encoder step takes."""
    return min(n_items, max(256, min(n_items // 3, ENCODED)))


def _pairs(some: Sequences) -> tuple[Tensor, Tensor]:
    """`(n,)` each item of some users' rows, and `(n,)` the row that it is in, which comes first."""
    return torch.from_numpy(some.owners), torch.from_numpy(some.items.astype(np.int64))


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
