"""Share of the limit: the time that a fine-tuning's matrix products need at the measured rate, over the time it takes.

    python -m benchmarks.limit [--layers 1 2 3] [--steps 8] [--uncached] [--json FILE]

MovieLens-100K, the packaged MiniLM, one worker with one thread. Products are counted by formula, from the shapes that a
step really has, and each is timed alone in the same run, at its own shape and dtype. Nothing else counts: the limit of
dropout, norms, softmaxes, the optimiser, sorting and the adapter's own low-rank products is zero.

`--uncached` does all of it once more without the cached prefix, from the lowest block on: what the cache is good for.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice, product
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pareto_search.candidate import Genes
from pareto_search.config import SearchConfig
from pareto_search.recsys.baselines import ease
from pareto_search.recsys.dataset import MOVIELENS, load
from pareto_search.recsys.ranking import Ranking
from pareto_search.recsys.rerank import POOL
from pareto_search.recsys.split import split
from pareto_search.recsys.statistics import ItemStatistics, category_features
from pareto_search.space import SearchSpace, default_genes
from pareto_search.workers import encoder
from pareto_search.workers.base import MINILM, locate
from pareto_search.workers.batches import Batch, Batches
from pareto_search.workers.candidate_loss import BATCH, ID_DROPOUT, LISTS
from pareto_search.workers.encoder import TOKENS, Encoder, precision
from pareto_search.workers.lora import LoraShape, attached
from pareto_search.workers.losses import Histories, ItemTensors, chunk, cross_entropy, list_values
from pareto_search.workers.recommender import Recommender, Shape, TowerScorer
from pareto_search.workers.task import Task
from pareto_search.workers.train import TOWER_BATCHES, fine_tune, train_tower

GENES: Genes = {
    "scalarisation": "weighted_sum",
    "adapter": "lora",
    "rank": 8,
    "alpha": 16.0,
    "dropout": 0.1,
    "targets": "query_value",
    "adapter_lr": 1e-3,
    "tower_lr": 5e-4,
    "weight_decay": 0.01,
    "temperature": 1.0,
    "id_embeddings": True,
    "distillation": 0.0,
}
"""A candidate, but for its layers and its objectives' weights."""
WEIGHT = 0.05
ALL = 1000
"""Blocks, of however few there are."""
SHOWN = 10
"""The greedy re-ranking takes so many items from the best `POOL`."""


@dataclass(frozen=True)
class Product:
    """A matrix product (m, k) x (k, n), so many times over."""

    m: int
    k: int
    n: int
    dtype: torch.dtype
    times: float = 1.0

    @property
    def operations(self) -> float:
        return 2.0 * self.m * self.k * self.n * self.times

    def seconds(self, device: str = "cpu") -> float:
        """At the rate of such a product alone."""
        return _seconds(self.m, self.k, self.n, self.dtype, device) * self.times


@dataclass(frozen=True)
class Part:
    """A part of the work: its products, and the seconds it was measured to take."""

    name: str
    products: Sequence[Product]
    measured: float

    @property
    def limit(self) -> float:
        return sum(p.seconds() for p in self.products)

    def figures(self) -> dict[str, Any]:
        operations = sum(p.operations for p in self.products)
        return {
            "part": self.name,
            "operations": operations,
            "limit": self.limit,
            "measured": self.measured,
            "share": self.limit / self.measured,
        }


def timed(work: Callable[[], object], least: int = 5, seconds: float = 0.5, device: str = "cpu") -> float:
    """The median time of a piece of work that is repeated for a while, after a warm-up."""
    work()
    taken: list[float] = []
    while len(taken) < least or sum(taken) < seconds:
        began = clock(device)
        work()
        taken.append(clock(device) - began)
    return median(taken)


def clock(device: str) -> float:
    """Seconds of this process's on a CPU, which others' work does not lengthen; on a GPU, once it has done its work."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@cache
def _seconds(m: int, k: int, n: int, dtype: torch.dtype, device: str) -> float:
    a, b = torch.randn(m, k, device=device).to(dtype), torch.randn(k, n, device=device).to(dtype)
    return timed(partial(torch.mm, a, b), least=9, seconds=0.2, device=device)


def linear(
    m: int, k: int, n: int, dtype: torch.dtype, times: float = 1.0, *, inputs: bool = False, weights: bool = False
) -> Iterator[Product]:
    """A linear map of m rows from k to n, with the gradients of its inputs and of its weights where asked."""
    yield Product(m, k, n, dtype, times)
    if inputs:
        yield Product(m, n, k, dtype, times)
    if weights:
        yield Product(k, m, n, dtype, times)


class Recorder(Encoder):
    """An encoder that remembers which chunks it encoded."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.encoded: list[NDArray[np.int64]] = []
        super().__init__(*args, **options)

    def encode_together(self, chunks: Sequence[NDArray[np.int64]], layers: Sequence[int]) -> Tensor:
        self.encoded.extend(chunks)
        return super().encode_together(chunks, layers)

    def products(self, layers: int, *, train: bool) -> Iterator[Product]:
        """What it encoded, through the top `layers` blocks from the cached prefix.

        Per token and block 2N forward and, under LoRA, 2N backward with N = 4h² + 2hi; but for the inputs of the lowest
        block, whose gradient nobody needs. Attention compares each token with all of its item: 4h a pair forward and
        twice that backward, at the rate of an (h, h) map.
        """
        config, dtype = self.model.config, self.dtype
        h, inner = int(config.hidden_size), int(config.intermediate_size)
        lengths = self.lengths[np.concatenate(self.encoded)]
        m = min(int(lengths.sum()), TOKENS)
        times, pairs = float(lengths.sum()) / m, float(np.square(lengths).sum())
        yield from linear(m, h, h, dtype, 4 * layers * times, inputs=train)
        yield from linear(m, h, inner, dtype, layers * times, inputs=train)
        yield from linear(m, inner, h, dtype, layers * times, inputs=train)
        yield Product(m, h, h, dtype, layers * (6 if train else 2) * pairs / (m * h))
        if train:
            yield Product(m, h, h, dtype, -3 * times)


def tower_products(shape: Shape, lengths: NDArray[np.int64], dtype: torch.dtype, *, train: bool) -> Iterator[Product]:
    """The block over histories of these lengths: 6d² a position in its maps; attention at the rate of a (d, d) map."""
    d, m = shape.width, BATCH * shape.history
    times = float(lengths.sum()) / m
    yield from linear(m, d, 3 * d, dtype, times, inputs=train, weights=train)
    yield from linear(m, d, d, dtype, 3 * times, inputs=train, weights=train)
    yield Product(m, d, d, dtype, (6 if train else 2) * float(np.square(lengths).sum()) / (m * d))


def projection_products(shape: Shape, times: int = 1, *, train: bool) -> Iterator[Product]:
    """From text vectors to item vectors, in float32."""
    yield from linear(shape.n_items, shape.text_width, shape.width, torch.float32, times, inputs=train, weights=train)


def list_products(shape: Shape, features: int, times: int) -> Iterator[Product]:
    """Logits at some positions, then what p expects of each item: its features, its novelty and its credibility."""
    yield from linear(LISTS, shape.width, shape.n_items, torch.float32, times, inputs=True, weights=True)
    yield from linear(LISTS, shape.n_items, features + 2, torch.float32, times, inputs=True)


class Bench:
    """The work of one worker on MovieLens-100K."""

    def __init__(self, device: str = "cpu", cached: bool = True) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        data = load(source=MOVIELENS)
        assert data.categories is not None
        self.config = SearchConfig.parse({"name": "limit", "data": {"source": MOVIELENS}})
        model = self.config.model
        self.split = split(data, "leave_last_out", 0)
        self.items = ItemStatistics.of(self.split.train, self.split.n_items, category_features(data.categories))
        dtype = precision(model.dtype, device)
        options: dict[str, Any] = {"max_tokens": model.max_item_tokens, "dtype": dtype, "device": device}
        with patch.object(encoder, "CACHED", encoder.CACHED if cached else 0):
            self.encoder = Recorder(locate(MINILM), data.texts, layers=3 if cached else ALL, **options)
        width, gaps = self.encoder.width, model.time_gaps
        self.shape = Shape(self.split.n_items, model.width, model.history, model.tower, width, True, gaps)
        frozen = self.encoder.frozen.to(device)
        self.start = train_tower(self.shape, frozen, self.split.train, epochs=1, seed=0, dtype=dtype, device=device)
        self.task = Task(
            self.encoder, self.start, self.split.train, ItemTensors(self.items, device), self.config.objectives
        )
        self.weights = {f"weight.{o.name}": WEIGHT for o in self.config.objectives}

    def products(self, layers: int, batches: Sequence[Batch]) -> dict[str, tuple[Product, ...]]:
        """Of a training's parts: what the encoder has encoded since it was cleared, and some tower batches."""
        shape, dtype, n = self.shape, self.encoder.dtype, len(batches)
        lengths = np.concatenate([b.lengths.numpy() for b in batches])
        projected, tower = projection_products(shape, n, train=True), tower_products(shape, lengths, dtype, train=True)
        positions = sum(int((b.targets >= 0).sum()) for b in batches)
        m = min(positions // n, chunk(shape.n_items, self.encoder.device))
        softmax = linear(m, shape.width, shape.n_items, dtype, positions / m, inputs=True, weights=True)
        return {
            "encoder": tuple(self.encoder.products(layers, train=True)),
            "tower": (*projected, *tower),
            "softmax": tuple(softmax),
            "list losses": tuple(list_products(shape, self.items.features.shape[1], n)),
        }

    def stream(self) -> Batches:
        """The tower batches of a fine-tuning, from the first."""
        return Batches(self.split.train, self.shape.history, BATCH, seed=0, ties=self.shape.gaps)

    def training(self, layers: int, steps: int) -> list[Part]:
        """The parts of a fine-tuning, and at last the whole."""
        encoder = self.encoder
        encoder.encoded.clear()
        began = time.process_time()
        with fine_tune(self.task, {**GENES, **self.weights, "layers": layers}, steps=steps, seed=0) as tuning:
            tuning.advance(steps)
            whole = time.process_time() - began
        products = self.products(layers, list(islice(self.stream(), steps * TOWER_BATCHES)))
        stream = self.stream()
        measured = [
            self._encode(tuple(encoder.encoded), layers),
            *np.sum([self._batch(b, stream) for b in islice(stream, steps * TOWER_BATCHES)], axis=0),
        ]
        parts = [Part(name, products[name], seconds) for name, seconds in zip(products, measured, strict=True)]
        parts.append(Part("all else", (), whole - sum(p.measured for p in parts)))
        return [*parts, Part(f"fine-tuning, {steps} steps", [p for part in parts for p in part.products], whole)]

    def evaluation(self, layers: int, settings: int = 16) -> list[Part]:
        """What follows a fine-tuning: the catalogue, the ranking of all users, and each setting of the inner search."""
        encoder, shape, part = self.encoder, self.shape, self.split.validation
        encoder.encoded.clear()
        with attached(encoder, lora_shape(layers)) as adapter, torch.no_grad():
            adapter.eval()
            encoder.catalogue(layers)
            products = tuple(encoder.products(layers, train=False))
            parts = [Part("catalogue", products, timed(partial(encoder.catalogue, layers)))]

        users = len(part.users)
        lengths = np.minimum(np.diff(part.history.indptr), shape.history)
        towers = self.config.model.towers
        model = TowerScorer.of(Recommender(replace(shape, towers=towers)), self.encoder.frozen)
        scores = towers * [
            *projection_products(shape, train=False),
            *tower_products(shape, lengths, torch.float32, train=False),
            Product(users, shape.width, shape.n_items, torch.float32),
        ]
        metrics = [o.name for o in self.config.objectives]

        def ranking() -> Ranking:
            return Ranking(part, self.items, {"model": TowerScorer.of(model.model, self.encoder.frozen)})

        alone = timed(lambda: ranking().values([{}], metrics))
        parts.append(Part(f"{users} users scored", scores, alone))

        blended = Ranking(part, self.items, {"model": model, "ease": ease(self.split.train, shape.n_items)})
        genes = SearchSpace.build(default_genes(self.config.objectives, ("ease",)), {}).of("serving")
        space = blended.fitted(genes)
        tried = [space.from_unit(list(u)) for u in np.random.default_rng(0).random((settings, len(space.genes)))]
        blended.values([{}], metrics)  # the scores are kept
        greedy = Product(users * POOL, self.items.features.shape[1], 1, torch.float32, SHOWN)
        parts.append(Part("a setting", [greedy], timed(lambda: blended.values(tried, metrics), least=3) / settings))
        return parts

    def _encode(self, chunks: Sequence[NDArray[np.int64]], layers: int) -> float:
        """Seconds to encode some chunks and to go back."""
        with attached(self.encoder, lora_shape(layers)) as adapter:
            adapter.train()
            began = time.process_time()
            for chunk in chunks:
                vectors = self.encoder.encode(chunk, layers)
                vectors.backward(torch.ones_like(vectors))  # type: ignore[no-untyped-call]
            return time.process_time() - began

    def _batch(self, batch: Batch, stream: Batches) -> tuple[float, float, float]:
        """Seconds that the tower, the softmax and the list losses take of a batch, there and back."""
        tower, dtype = self.start.train().towers[0], self.encoder.dtype
        text = self.encoder.frozen.clone().requires_grad_()
        moments = [time.process_time()]

        vectors = tower.item_vectors(text, ID_DROPOUT)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            states = tower.states(batch.items, batch.lengths, vectors, batch.gaps)
        leaves = [x.detach().requires_grad_() for x in (states, vectors)]
        moments.append(time.process_time())

        known = batch.targets >= 0
        scaled = (leaves[0][known] / tower.temperature).to(dtype)
        cross_entropy(scaled, leaves[1], tower.item_bias, batch.targets[known]).backward()  # type: ignore[no-untyped-call]
        moments.append(time.process_time())

        rows, places = (x[:LISTS] for x in np.nonzero(known.numpy()))
        users = leaves[0][torch.from_numpy(rows), torch.from_numpy(places)].float() / tower.temperature
        logits = torch.addmm(tower.item_bias, users, leaves[1].T)
        owner, item = stream.seen(batch, rows, places)
        logits = logits.index_put((owner, item), torch.tensor(-torch.inf))
        items = ItemTensors(self.items, "cpu")
        histories = Histories(owner, item, len(rows), items.features)
        values = list_values(logits, items, histories, self.config.objectives)
        torch.stack(list(values.values())).sum().backward()  # type: ignore[no-untyped-call]
        moments.append(time.process_time())

        torch.autograd.backward([states, vectors], [leaf.grad for leaf in leaves])
        moments.append(time.process_time())
        there, softmax, lists, back = np.diff(moments)
        return there + back, softmax, lists


def lora_shape(layers: int) -> LoraShape:
    return LoraShape(int(GENES["rank"]), float(GENES["alpha"]), float(GENES["dropout"]), "query_value", layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--uncached", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    print(f"{'':<24}{'GFLOP':>10}{'limit, s':>10}{'measured, s':>13}{'share':>8}{'GFLOP/s':>9}")
    benches = {"": Bench(), **({", nothing cached": Bench(cached=False)} if options.uncached else {})}
    for (how, bench), layers in product(benches.items(), options.layers):
        parts = [*bench.training(layers, options.steps), *bench.evaluation(layers)]
        name = f"{layers} layers{how}"
        found[name] = [part.figures() for part in parts]
        print(name)
        for part in found[name]:
            rate = part["operations"] / part["limit"] / 1e9 if part["limit"] else 0.0
            print(
                f"  {part['part']:<22}{part['operations'] / 1e9:10.1f}{part['limit']:10.3f}{part['measured']:13.3f}"
                f"{part['share']:8.2f}{rate:9.0f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
