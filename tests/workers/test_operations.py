"""Operations by hand, and by torch's own counter."""

from dataclasses import replace

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

from pareto_search.recsys.split import Split
from pareto_search.workers import operations
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


def test_a_tower_batch_by_hand(task: Task, toy_split: Split) -> None:
    # All windows fit one batch; everything that learns is multiplied three times, at 2 operations a product.
    positions = len(toy_split.train.items)
    projection, block, softmax = 20 * 32 * 16, 6 * 16 * 16, 20 * 16
    assert of_tower_batch(task, SHAPE) == 6 * (projection + positions * (block + softmax))
    assert of_tower_batch(task, replace(SHAPE, tower="decayed_mean")) == 6 * (projection + positions * softmax)


def test_of_a_large_catalogue_a_sample_counts(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = of_tower_batch(task, SHAPE)
    monkeypatch.setattr(operations, "FULL_SOFTMAX", 10)
    monkeypatch.setattr(operations, "SAMPLED", 8)
    block = 6 * len(task.train.items) * 6 * 16 * 16
    assert of_tower_batch(task, SHAPE) - block == pytest.approx((whole - block) * 8 / 20)
