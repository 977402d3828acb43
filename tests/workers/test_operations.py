"""Operations by hand, and by torch's own counter."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

from pareto_search.recsys.dataset import Dataset
from pareto_search.recsys.split import Sequences, Split
from pareto_search.workers import encoder as module
from pareto_search.workers import operations
from pareto_search.workers.base import Base
from pareto_search.workers.batches import Batches
from pareto_search.workers.candidate_loss import BATCH
from pareto_search.workers.encoder import Encoder
from pareto_search.workers.lora import LoraShape, attached
from pareto_search.workers.operations import of_encoding, of_tower_batch
from pareto_search.workers.recommender import Shape
from pareto_search.workers.task import Task

SHAPE = Shape(20, 16, 6, "attention", 32, item_embeddings=True)


@pytest.fixture
def task(encoder: Encoder, toy_split: Split) -> Task:
    start, items = None, None  # which do not matter here
    return Task(encoder, start, toy_split.train, items, ())  # type: ignore[arg-type]


def test_blocks_below_the_adapted_ones_cost_nothing_whether_they_are_cached_or_not(
    tiny_base: Base, encoder: Encoder, toy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CACHED", 0)
    uncached = Encoder(tiny_base, toy.texts, max_tokens=16, layers=3)
    assert uncached.depth(1) < encoder.depth(1)
    assert of_encoding(uncached, 1, 20) == of_encoding(encoder, 1, 20)


@pytest.mark.parametrize("layers", [1, 3])
def test_an_encoding_is_counted_as_torch_counts_it_but_for_adapter_and_attention(encoder: Encoder, layers: int) -> None:
    everything = np.arange(20)
    counter = FlopCounterMode(display=False)
    with attached(encoder, LoraShape(1, 1.0, 0.0, "all", layers)), counter:
        for chunk in encoder.chunks(everything):
            encoder.encode(chunk, layers).sum().backward()
    counted, formula = counter.get_total_flops(), of_encoding(encoder, layers, 20)
    assert formula == 4 * layers * (4 * 32 * 32 + 2 * 32 * 64) * encoder.lengths.sum()
    assert 0.85 * counted < formula < 1.05 * counted


def test_a_tower_batch_by_hand(task: Task) -> None:
    # All windows fit one batch; everything that learns is multiplied three times, at 2 operations a product.
    [batch] = islice(Batches(task.train, 6, BATCH, seed=0), 1)
    positions = int((batch.targets >= 0).sum())
    assert positions == len(task.train.items) - 30
    projection, block, softmax = 20 * 32 * 16, 6 * 16 * 16, 20 * 16
    assert of_tower_batch(task, SHAPE) == 6 * (projection + positions * (block + softmax))
    assert of_tower_batch(task, replace(SHAPE, tower="decayed_mean")) == 6 * (projection + positions * softmax)


def test_the_mean_of_many_batches_is_what_is_counted() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 12, 400)
    indptr, items = np.append(0, lengths.cumsum()), rng.integers(5, 20, lengths.sum()).astype(np.int32)
    items[indptr[:40]] = 0  # one of the offered items, which every tenth user has met
    train, offered = Sequences(indptr, items, None), np.arange(20) < 5
    for given in (None, offered):
        batches = Batches(train, 6, 16, seed=0, offered=given)
        counts = [int((b.targets >= 0).sum()) for b in islice(batches, 20 * batches.per_epoch)]
        assert batches.per_batch == pytest.approx(np.mean(counts), rel=0.1)


def test_of_a_large_catalogue_a_sample_counts(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = of_tower_batch(task, SHAPE)
    monkeypatch.setattr(operations, "FULL_SOFTMAX", 10)
    monkeypatch.setattr(operations, "SAMPLED", 8)
    block = 6 * (len(task.train.items) - 30) * 6 * 16 * 16
    assert of_tower_batch(task, SHAPE) - block == pytest.approx((whole - block) * 8 / 20)
