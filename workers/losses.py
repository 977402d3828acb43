"""One differentiable surrogate per objective, and the scalarisations that make one loss of them.

Every list surrogate is the expected value of its metric under p, the softmax over the unseen catalogue, so that it is
in the metric's own units and direction.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from pareto_search.objective import Objective
from pareto_search.recsys.metrics import RECENCY, SMOOTHED
from pareto_search.recsys.split import Sequences
from pareto_search.recsys.statistics import ItemStatistics
from pareto_search.space import metric_family
from pareto_search.workers.sample import Sample

Scalarisation = Literal["weighted_sum", "tchebycheff"]

SMOOTHING = 0.1
TINY = torch.finfo(torch.float32).tiny
LEAST = 256
"""How many positions a softmax takes at once, at least: with fewer its products take longer."""
ROWS = 128
"""The positions of a softmax are filled up to a multiple of so many: oneDNN prepares itself for milliseconds for each
shape of a product that it has not seen, and hardly two batches have as many.
"""
CACHED, LOGITS = 3 * 2**20, 2**26
"""About how many logits a chunk has: those that stay in a CPU's cache, and those of a GPU, where each chunk costs the
start of a dozen kernels.
"""


def chunk(n_items: int, device: str) -> int:
    """How many positions a softmax over so many items takes at once."""
    return max(LEAST, (CACHED if device == "cpu" else LOGITS) // n_items // ROWS * ROWS)


def filled(states: Tensor) -> Tensor:
    """States `(p, d)` with rows of zeros after them; see `ROWS`."""
    return nn.functional.pad(states, (0, 0, 0, -len(states) % ROWS))


class FullSoftmax(torch.autograd.Function):
    """Mean cross-entropy of a softmax over the whole catalogue, without holding more logits than a chunk has.

    The gradient of a chunk's logits is taken while they are there, on a CPU in the processor's cache. Logits, shares
    and products are bfloat16 where the states are, sums over chunks and the loss float32.
    """

    @staticmethod
    def forward(ctx, states, vectors, bias, targets):  # type: ignore[no-untyped-def]
        """Loss of states `(p, d)` against item vectors `(n, d)`, biases `(n,)` and target items `(p,)`."""
        count, width = states.shape
        # The bias is the weight of a further input, always 1; there are eight of it because a GPU wants aligned rows.
        # Rows that only fill up are zeros, so that items have no gradient of them.
        inputs = filled(torch.cat([states, states.new_ones(count, 8)], 1))
        size = min(chunk(len(vectors), states.device.type), len(inputs))
        low, low_bias = vectors.to(states.dtype), bias.to(states.dtype)
        d_items = vectors.new_zeros(len(vectors), width + 8)
        d_states, own = states.new_empty(len(inputs), width), states.new_empty(count)
        logits, shares = states.new_empty(2, size, len(vectors))  # the same memory for all chunks
        places = torch.arange(count, device=targets.device) % size * len(vectors) + targets  # in a flattened chunk
        for start in range(0, len(inputs), size):
            rows = slice(start, start + size)
            some, mine = inputs[rows], places[rows]
            torch.addmm(low_bias, some[:, :width], low.T, out=logits[: len(some)])
            error = torch.softmax(logits[: len(some)], 1, out=shares[: len(some)])
            torch.index_select(error.view(-1), 0, mine, out=own[rows])
            # Not by scatter_add_, which takes a hundred times as long in bfloat16 on a CPU.
            error.view(-1).index_add_(0, mine, error.new_full((1,), -1.0).expand(len(mine)))
            torch.mm(error, low, out=d_states[rows])
            d_items += torch.mm(error.T, some)
        ctx.save_for_backward(d_states[:count], d_items[:, :width], d_items[:, width])
        ctx.count = count
        return -own.float().clamp(min=TINY).log().mean()

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        """Scales the gradients found on the way forward."""
        scale = grad / ctx.count
        d_states, d_vectors, d_bias = ctx.saved_tensors
        return d_states * scale.to(d_states.dtype), d_vectors * scale, d_bias * scale, None


def cross_entropy(states: Tensor, vectors: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) over the whole catalogue, averaged over positions; see `FullSoftmax`."""
    loss: Tensor = FullSoftmax.apply(states, vectors, bias, targets)  # type: ignore[no-untyped-call]
    return loss


def sampled_cross_entropy(states: Tensor, vectors: Tensor, bias: Tensor, targets: Tensor, sample: Sample) -> Tensor:
    """`cross_entropy`, with the sum over the catalogue estimated from a sample S.

    Z = e^{s_t} + Σ_{j ∈ S, j ≠ t} e^{s_j} / π_j is unbiased (Horvitz & Thompson, JASA 1952): importance sampling
    (Bengio & Senécal, IEEE TNN 2008), or the logQ correction (Yi et al., RecSys 2019) of all but the target, which is
    always there. Where S is the whole catalogue, this is `cross_entropy`.

    Args:
        states: `(p, d)`.
        vectors, bias: `(n_items, d)` and `(n_items,)`, of the whole catalogue.
        targets: `(p,)`.
    """
    rows, exact = sample.items, vectors.dtype
    own = (states.to(exact) * nn.functional.embedding(targets, vectors)).sum(1) + bias[targets]
    some = vectors.index_select(0, rows).to(states.dtype)
    products = torch.mm(filled(states), some.T)[: len(states)]
    others = products.to(exact) + (bias[rows] - sample.log_inclusion)
    others = others.masked_fill(targets[:, None] == rows, -torch.inf)
    return (torch.logaddexp(own, others.logsumexp(1)) - own).mean()


class Histories:
    """What some users had seen, for the list surrogates that ask.

    Args:
        owner, item: `(n,)` pairs of a user and an item, ordered by user and then by time.
        count: how many users there are.
        features: `(n_items, f)`, of the whole catalogue.
    """

    def __init__(self, owner: Tensor, item: Tensor, count: int, features: Tensor) -> None:
        self._owner, self._item, self._features = owner, item, features
        self._lengths = torch.bincount(owner, minlength=count)

    def recent(self) -> Tensor:
        """The decayed mean `(q, f)` of the features, zero for an empty history; see `metrics.history_novelty`."""
        age = self._lengths.cumsum(0)[self._owner] - torch.arange(len(self._owner), device=self._owner.device) - 1
        weights = RECENCY ** age.to(self._features.dtype)
        rows = weights.new_zeros(len(self._lengths), 1 + self._features.shape[1])
        weighted = torch.cat([torch.ones_like(weights)[:, None], self._features[self._item]], 1) * weights[:, None]
        rows.index_add_(0, self._owner, weighted)
        return rows[:, 1:] / rows[:, :1].clamp(min=1e-9)

    def shares(self) -> Tensor:
        """The share `(q, f)` of each category among the items, each of which counts once; see `metrics.calibration`."""
        pairs = torch.unique(self._owner * len(self._features) + self._item)
        owner, item = pairs // len(self._features), pairs % len(self._features)
        liked = self._features.new_zeros(len(self._lengths), self._features.shape[1])
        liked.index_add_(0, owner, self._features[item].square())
        return liked / liked.sum(1, keepdim=True).clamp(min=1e-9)

    def sequences(self) -> Sequences:
        """The same, as scorers take it."""
        indptr = np.concatenate([[0], self._lengths.cumsum(0).cpu().numpy()])
        return Sequences(indptr, self._item.cpu().numpy().astype(np.int32), None)


def expected_ild(p: Tensor, items: "ItemTensors", _: Histories) -> Tensor:
    """pᵀDp = 1 - ‖Σ p_i f_i‖² for unit features: the expected distance of two items drawn from p."""
    return 1.0 - (p @ items.features).square().sum(1).mean()


def expected_novelty(p: Tensor, items: "ItemTensors", _: Histories) -> Tensor:
    """The expected self-information of an item drawn from p."""
    return (p @ items.novelty).mean()


def expected_credibility(p: Tensor, items: "ItemTensors", _: Histories) -> Tensor:
    """The expected Bayesian average rating of an item drawn from p."""
    return (p @ items.credibility).mean()


def expected_tail(p: Tensor, items: "ItemTensors", _: Histories) -> Tensor:
    """The probability that an item drawn from p is outside the short head."""
    return (p @ items.tail).mean()


def expected_history_novelty(p: Tensor, items: "ItemTensors", histories: Histories) -> Tensor:
    """The expected distance of an item drawn from p from the user's own history."""
    return 1.0 - ((p @ items.features) * histories.recent()).sum(1).mean()


def expected_calibration(p: Tensor, items: "ItemTensors", histories: Histories) -> Tensor:
    """The metric with the expected shares of an item drawn from p in place of those of a list."""
    liked, shown = histories.shares(), p @ items.features.square()
    shown = shown / shown.sum(1, keepdim=True).clamp(min=1e-9)
    mixed = (1 - SMOOTHED) * shown + SMOOTHED * liked
    # What is 0 in p has no part, nor a slope.
    ratio = torch.where(liked > 0, liked, 1.0) / torch.where(liked > 0, mixed, 1.0)
    return (liked * ratio.log()).sum(1).mean()


def spread(p: Tensor, items: "ItemTensors", _: Histories) -> Tensor:
    """The entropy of the batch's mean p over the largest possible: a stand-in for coverage.

    Of a sample's items, each stands for 1 / π of them, among which its share is divided.
    """
    mean = p.mean(0)
    entropy: Tensor = -(mean * (mean.clamp(min=1e-12).log() + items.log_inclusion)).sum()
    return entropy / math.log(items.count)


def concentration(p: Tensor, items: "ItemTensors", histories: Histories) -> Tensor:
    """One less the spread: a stand-in for the Gini coefficient, lower is more even."""
    return 1.0 - spread(p, items, histories)


SURROGATES: Mapping[str, Callable[[Tensor, "ItemTensors", Histories], Tensor]] = {
    "ild": expected_ild,
    "novelty": expected_novelty,
    "credibility": expected_credibility,
    "calibration": expected_calibration,
    "history_novelty": expected_history_novelty,
    "tail": expected_tail,
    "coverage": spread,
    "gini": concentration,
}


class ItemTensors:
    """The items' statistics as tensors on the training device.

    Attributes:
        count: how many items may be recommended.
        log_inclusion: `(n_items,)`, of a sample's items; 0 where they are all there.
    """

    def __init__(self, items: ItemStatistics, device: str) -> None:
        self.count = len(items.among_offered(items.novelty))
        self.features = torch.from_numpy(items.features).to(device)
        self.novelty = torch.from_numpy(items.novelty).to(device)
        credibility = items.novelty * 0 if items.credibility is None else items.credibility
        self.credibility = torch.from_numpy(credibility).to(device)
        self.tail = torch.from_numpy(items.tail.astype(items.novelty.dtype)).to(device)
        self.log_inclusion = torch.zeros_like(self.novelty)

    def of(self, sample: Sample) -> "ItemTensors":
        """The statistics of a sample's items, which stand for the whole catalogue."""
        some = copy(self)
        some.features, some.novelty, some.credibility, some.tail = (
            x[sample.items] for x in (self.features, self.novelty, self.credibility, self.tail)
        )
        some.log_inclusion = sample.log_inclusion
        return some


def list_values(
    logits: Tensor, items: ItemTensors, histories: Histories, objectives: Sequence[Objective]
) -> dict[str, Tensor]:
    """The expected value of each objective that has a surrogate.

    Args:
        logits: `(q, n_items)`, -inf for items already seen.
        items: of these n_items; where they are a sample, expectations over the catalogue are estimated from them.
        histories: of the q users.
    """
    p = (logits - items.log_inclusion).softmax(1)
    families = {o.name: metric_family(o.name) for o in objectives}
    return {name: SURROGATES[family](p, items, histories) for name, family in families.items() if family in SURROGATES}


def divergence(teacher: Tensor, logits: Tensor) -> Tensor:
    """KL(teacher ‖ candidate) in nats, averaged over positions: what the candidate has yet to learn.

    Args:
        teacher: `(q, n)` its logits; a row without any that the candidate has too counts as 0.
        logits: `(q, n)` the candidate's; where they are -inf, the teacher has no say.
    """
    barred = logits.isneginf()
    teacher = teacher.masked_fill(barred, -torch.inf)
    has_say = (teacher > -torch.inf).any(1)
    log_q, log_p = teacher.where(has_say[:, None], 0.0).log_softmax(1), logits.log_softmax(1)
    nats = (log_q - log_p).masked_fill(barred | log_q.isneginf(), 0.0)  # 0 · log 0 = 0
    return ((log_q.exp() * nats).sum(1) * has_say).mean()


class Scalariser:
    """Makes one loss of the accuracy loss and the list surrogates.

    Each list objective counts as its distance to the ideal in units of (ideal - reference): 0 at the ideal, 1 at the
    floor. Accuracy counts in nats relative to the first batch, so that both have the same order of size.
    The weighted sum is L_acc + Σ w·L; the smoothed Tchebycheff is μ·log Σ exp(w·L / μ) (Lin et al., ICML 2024), which
    also reaches the concave parts of a front.
    """

    def __init__(self, kind: Scalarisation, weights: Mapping[str, float], objectives: Sequence[Objective]) -> None:
        self.kind, self.weights = kind, weights
        self.objectives = {o.name: o for o in objectives}
        self.start = 0.0  # the accuracy loss of the first batch

    def __call__(self, accuracy: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """The loss from the cross-entropy and the objectives' expected values."""
        self.start = self.start or float(accuracy.detach())
        terms = [1.0 + accuracy - self.start]
        for name, value in values.items():
            terms.append(self.weights[name] * (1.0 - self._normalise(name, value)))
        stacked = torch.stack(terms)
        if self.kind == "weighted_sum":
            return stacked.sum()
        return SMOOTHING * (stacked / SMOOTHING).logsumexp(0)

    def _normalise(self, name: str, value: Tensor) -> Tensor:
        objective = self.objectives[name]
        return (value - objective.reference) / (objective.ideal - objective.reference)
