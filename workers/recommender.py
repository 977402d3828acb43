"""The recommender on top of item text vectors: item vectors, user vectors and scores, for training and serving alike.

v_i = projection(text_i) + item_embedding_i, u = tower(v of the last items), s(u, i) = u·v_i / temperature + bias_i.
The tower is one causal self-attention block (SASRec, Kang & McAuley, ICDM 2018; over text vectors as in UniSRec, Hou et
al., KDD 2022), which may also read how long after the one before it each item came (Li et al., WSDM 2020, for time
between interactions) and which groups the user belongs to, or the decayed mean of the history. Several towers that
differ by chance may stand on the same text, and a score is the mean of theirs (deep ensembles: Lakshminarayanan et al.,
NeurIPS 2017).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor, nn

from pareto_search.errors import CheckpointError
from pareto_search.executor import Files
from pareto_search.recsys.split import GAPS, SAME_MOMENT, Sequences
from pareto_search.workers.dropout import dropout
from pareto_search.workers.workload import TowerKind

HEADS = 2
UNTOLD = 0.1
"""The share of windows that go without their gaps in training, so that histories without times are served too; and
that of those that go without their user's groups."""
DECAY = 0.8


@dataclass(frozen=True)
class Shape:
    """What a recommender is made of.

    Attributes:
        n_items: the size of the catalogue.
        width: the width d of item and user vectors.
        history: how many of a user's last items the tower sees.
        text_width: the width t of the text vectors; 0 for a model on IDs alone, which is SASRec.
        item_embeddings: whether items have an ID embedding beside their text.
        gaps: whether the attention tower reads how long after the one before it each item came.
        towers: how many there are.
        dropout: in training.
        groups: of each kind that the attention tower reads, how many groups there are.
    """

    n_items: int
    width: int
    history: int
    tower: TowerKind
    text_width: int
    item_embeddings: bool
    gaps: bool = False
    towers: int = 1
    dropout: float = 0.3
    groups: tuple[int, ...] = ()

    @classmethod
    def of(cls, notes: Mapping[str, Any]) -> "Shape":
        """The shape among a checkpoint's notes."""
        shape = cls(**{name: notes[name] for name in cls.__dataclass_fields__ if name in notes})
        return replace(shape, groups=tuple(shape.groups))


class Tower(nn.Module):
    """Item vectors and user vectors, whose products are scores.

    Args:
        generator: what dropout draws from; None is torch's own.
    """

    def __init__(self, shape: Shape, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.shape, self.generator = shape, generator
        d = shape.width
        self.item_bias = nn.Parameter(torch.zeros(shape.n_items))
        self.temperature = nn.Buffer(torch.ones(()))
        if shape.item_embeddings:
            self.item_embedding = nn.Parameter(torch.randn(shape.n_items, d) * 0.02)
        if shape.text_width:
            self.projection = nn.Linear(shape.text_width, d)
        if shape.tower == "attention":
            self.position = nn.Parameter(torch.randn(shape.history, d) * 0.02)
            if shape.gaps:
                self.gap = nn.Parameter(torch.zeros(GAPS, d))
            if shape.groups:
                self.group = nn.Parameter(torch.zeros(1 + sum(shape.groups), d))
            self.attention_norm = nn.LayerNorm(d)
            self.attention_in = nn.Linear(d, 3 * d)
            self.attention_out = nn.Linear(d, d)
            self.feed_norm = nn.LayerNorm(d)
            self.feed_in = nn.Linear(d, d)
            self.feed_out = nn.Linear(d, d)
            self.final_norm = nn.LayerNorm(d)
            for linear in (self.attention_in, self.attention_out, self.feed_in, self.feed_out):
                nn.init.normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)

    def centre(self, text: Tensor) -> None:
        """Starts the projection so that the mean text vector maps to zero: text encoders are far from isotropic."""
        with torch.no_grad():
            self.projection.bias.copy_(-self.projection.weight @ text.mean(0))

    def item_vectors(self, text: Tensor | None, id_dropout: float = 0.0, rows: Tensor | None = None) -> Tensor:
        """Item vectors `(n_items, d)` from text vectors `(n_items, t)`.

        Args:
            rows: which items these are, where they are not the whole catalogue.
            id_dropout: the share of items that go without their ID embedding, so that the text alone serves too
                (DropoutNet, Volkovs et al., NeurIPS 2017).
        """
        if not self.shape.item_embeddings:
            return self.projection(text)
        own = self.item_embedding if rows is None else nn.functional.embedding(rows, self.item_embedding)
        if text is None:
            return own
        if id_dropout and self.training:
            own = own * (torch.rand(len(own), 1, device=own.device, generator=self.generator) >= id_dropout)
        return self.projection(text) + own

    def states(
        self,
        items: Tensor,
        lengths: Tensor,
        vectors: Tensor,
        gaps: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> Tensor:
        """User vectors `(b, h, d)` after each item of right-padded histories.

        Args:
            items: `(b, h)` item indices, padded on the right with any index; h <= history.
            lengths: `(b,)` how many of them count.
            vectors: `(n_items, d)`.
            gaps: `(b, h)` how long after the one before it each item came, or None where that is not known.
            groups: `(b, kinds)` those of the users, as `Sequences` has them, or None where they are not known.
        """
        window = nn.functional.embedding(items, vectors)
        if self.shape.tower == "decayed_mean":
            return _decay(items.shape[1], window) @ window
        if self.shape.gaps and gaps is not None:
            # The gap that is not known stays zero: it has no gradient. Neither has the group.
            window = window + nn.functional.embedding(self._told(gaps), self.gap, padding_idx=0)
        if self.shape.groups and groups is not None:
            first = torch.tensor([0, *self.shape.groups[:-1]], device=groups.device).cumsum(0)
            rows = torch.where(groups > 0, first + groups, 0)
            window = window + nn.functional.embedding(self._told(rows), self.group, padding_idx=0).sum(1, keepdim=True)
        return self._attend(window, lengths)

    def users(self, items: Tensor, gaps: Tensor, lengths: Tensor, vectors: Tensor, groups: Tensor | None) -> Tensor:
        """User vectors `(b, d)` after histories as for `states`, zero for a user without one."""
        states = self.states(items, lengths, vectors, gaps, groups)
        last = states[torch.arange(len(states), device=states.device), (lengths - 1).clamp(min=0)]
        return torch.where(lengths[:, None] > 0, last, 0.0)

    def _attend(self, window: Tensor, lengths: Tensor) -> Tensor:
        b, h, d = window.shape
        # Positions count from the end: the last item is always at the last position.
        place = torch.arange(h, device=window.device) + (self.shape.history - lengths)[:, None]
        position = nn.functional.embedding(place.clamp(max=self.shape.history - 1), self.position)
        x = self._dropout(window + position)
        qkv = self.attention_in(self.attention_norm(x)).view(b, h, 3, HEADS, d // HEADS)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        # Written out: torch's fused kernel takes five times as long for windows this short on a CPU. Padding is on the
        # right, so the causal mask hides it from every item that counts.
        future = torch.full((h, h), -1e9, dtype=query.dtype, device=query.device).triu(1)
        weights = (query * (d // HEADS) ** -0.5 @ key.transpose(-1, -2) + future).softmax(-1).to(value.dtype)
        heads = (weights @ value).transpose(1, 2).reshape(b, h, d)
        x = x + self._dropout(self.attention_out(heads))
        inner = self._dropout(nn.functional.gelu(self.feed_in(self.feed_norm(x))))
        x = x + self._dropout(self.feed_out(inner))
        return self.final_norm(x)

    def _told(self, kinds: Tensor) -> Tensor:
        """Kinds `(b, n)`, but those of some windows in training, which are all 0."""
        if not self.training:
            return kinds
        return kinds * (torch.rand(len(kinds), 1, device=kinds.device, generator=self.generator) >= UNTOLD)

    def _dropout(self, x: Tensor) -> Tensor:
        return dropout(x, self.shape.dropout, self.training, self.generator)


class Recommender(nn.Module):
    """Towers side by side, all of the same shape.

    Args:
        generator: what dropout draws from; None is torch's own.
    """

    def __init__(self, shape: Shape, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.shape = shape
        self._towers = nn.ModuleList(Tower(shape, generator) for _ in range(shape.towers))

    @property
    def towers(self) -> list[Tower]:
        """All of them."""
        return [tower for tower in self._towers if isinstance(tower, Tower)]

    def files(self, notes: Mapping[str, object]) -> dict[str, bytes]:
        """`recommender.json` (the shape and notes) and `recommender.safetensors`: the parameters by plain names, those
        of all towers stacked along the first axis.
        """
        states = [tower.state_dict() for tower in self.towers]
        tensors = {name: torch.stack([s[name].detach().float().cpu() for s in states]) for name in states[0]}
        text = json.dumps({**asdict(self.shape), **notes}, indent=2, sort_keys=True)
        return {"recommender.json": text.encode(), "recommender.safetensors": save(tensors)}

    @classmethod
    def loaded(cls, files: Files) -> Self:
        """The recommender of a checkpoint's files.

        Raises:
            CheckpointError: they do not fit each other, as those of another release do not.
        """
        notes = json.loads(files["recommender.json"])
        model = cls(Shape.of(notes))
        tensors = load(files["recommender.safetensors"])
        try:
            for number, tower in enumerate(model.towers):
                tower.load_state_dict({name: tensor[number] for name, tensor in tensors.items()})
        except (IndexError, RuntimeError):
            whose = notes.get("candidate") or notes.get("component") or "a checkpoint"
            raise CheckpointError(
                f"recommender.safetensors of {whose} is not what its recommender.json says; another release has "
                "probably written it, and can read it"
            ) from None
        return model.eval()


def joined(parts: Sequence[Files]) -> dict[str, bytes]:
    """The files of one recommender that has the towers of several, with the notes of the first."""
    notes = [json.loads(files["recommender.json"]) for files in parts]
    shape = replace(Shape.of(notes[0]), towers=sum(n["towers"] for n in notes))
    tensors = [load(files["recommender.safetensors"]) for files in parts]
    text = json.dumps({**notes[0], **asdict(shape)}, indent=2, sort_keys=True)
    stacked = {name: torch.cat([t[name] for t in tensors]) for name in tensors[0]}
    return {"recommender.json": text.encode(), "recommender.safetensors": save(stacked)}


@dataclass(frozen=True)
class TowerScorer:
    """A trained recommender with its item vectors, as a scorer of histories.

    Attributes:
        vectors: of each tower, `(n_items, d)`.
        adapter: how many numbers the adapter of the encoder has, from which they come.
        training: see `Scorer`.
    """

    model: Recommender
    vectors: Sequence[Tensor]
    adapter: int = 0
    training: Mapping[str, float] = field(default_factory=dict)
    logits = True

    @classmethod
    @torch.no_grad()
    def of(
        cls, model: Recommender, text: Tensor | None, adapter: int = 0, training: Mapping[str, float] | None = None
    ) -> "TowerScorer":
        model.eval()
        return cls(model, [tower.item_vectors(text) for tower in model.towers], adapter, training or {})

    @property
    def parameters(self) -> int:
        return self.adapter + sum(p.numel() for p in self.model.parameters())

    @torch.no_grad()
    def shares(self, window: NDArray[np.int32], chosen: NDArray[np.int32]) -> NDArray[np.float64]:
        """What each item of a decayed mean's window `(h,)` adds to the scores of some items: `(k, h)`."""
        total = np.zeros((len(chosen), len(window)))
        for tower, vectors in zip(self.model.towers, self.vectors, strict=True):
            read, wanted = (vectors[torch.from_numpy(x.astype(np.int64))].double() for x in (window, chosen))
            weights = _decay(len(window), read)[-1]
            total += (wanted @ (weights[:, None] * read).T / tower.temperature.double()).cpu().numpy()
        return total / len(self.vectors)

    @torch.no_grad()
    def scores(self, history: Sequences) -> NDArray[np.float32]:
        """Scores `(m, n_items)`: the mean over towers of u·v / temperature + bias."""
        total = self.of_tower(0, self.read_by(0, history))
        for number in range(1, len(self.vectors)):
            total += self.of_tower(number, self.read_by(number, history))
        return total / np.float32(len(self.vectors))

    def read_by(self, number: int, history: Sequences) -> Sequences:
        """Histories in the order in which a tower reads them.

        Items of one moment have no order, so each tower takes another one: of J towers the j-th, counted from 0, begins
        with the item after ⌊m·j / J⌋ of the m.
        """
        if not self.model.shape.gaps:
            return history
        return replace(history, items=history.items[ties_turned(history, number, len(self.vectors))])

    @torch.no_grad()
    def of_tower(self, number: int, history: Sequences) -> NDArray[np.float32]:
        """The scores `(m, n_items)` that one tower gives to histories in the order in which it reads them."""
        tower, vectors = self.model.towers[number], self.vectors[number]
        windows = last_items(history, self.model.shape.history)
        belongs = None if history.groups is None else torch.tensor(history.groups, device=vectors.device)
        scores = np.empty((len(windows[0]), len(vectors)), np.float32)
        for start in range(0, len(scores), 512):  # bounds the memory of the attention windows
            rows = slice(start, start + 512)
            items, gaps, lengths = (torch.from_numpy(x[rows]).to(vectors.device) for x in windows)
            groups = None if belongs is None else belongs[rows]
            users = tower.users(items, gaps, lengths, vectors, groups) / tower.temperature
            scores[rows] = torch.addmm(tower.item_bias, users, vectors.T).cpu().numpy()
        return scores


def _decay(size: int, like: Tensor) -> Tensor:
    """The weights `(size, size)` of a window's items in its decayed mean after each of them."""
    age = torch.arange(size, device=like.device)
    weights = (DECAY ** (age[:, None] - age).clamp(min=0)).tril().to(like.dtype)
    return weights / weights.sum(1, keepdim=True)


def ties_turned(history: Sequences, turn: int, turns: int) -> NDArray[np.int64]:
    """The places `(n,)` of histories' items in an order in which the m items of each moment begin with the one after
    ⌊m · turn / turns⌋ of them; as they are where there are no times.
    """
    if history.gaps is None:
        return np.arange(len(history.items))
    first = history.gaps != SAME_MOMENT
    first[history.indptr[:-1][np.diff(history.indptr) > 0]] = True
    begin = np.flatnonzero(first)
    count = np.diff(np.append(begin, len(first)))
    moment = np.cumsum(first) - 1
    place = np.arange(len(first)) - begin[moment] + count[moment] * turn // turns
    return begin[moment] + place % count[moment]


def last_items(history: Sequences, size: int) -> tuple[NDArray[np.int64], ...]:
    """The last `size` items of each history and their gaps `(m, size)`, right-padded with 0, and how many `(m,)`."""
    lengths = np.minimum(np.diff(history.indptr), size)
    column = np.arange(size)
    inside = column < lengths[:, None]
    source = (history.indptr[1:, None] - lengths[:, None] + column)[inside]
    items, gaps = (np.zeros((len(lengths), size), np.int64) for _ in range(2))
    items[inside] = history.items[source]
    if history.gaps is not None:
        gaps[inside] = history.gaps[source]
    return items, gaps, lengths
