"""A sample of the catalogue: by hand, and against the whole."""

from typing import Any

import numpy as np
import pytest
import torch
from items import statistics

from pareto_search.objective import Objective
from pareto_search.workers.batches import Batch
from pareto_search.workers.losses import (
    SURROGATES,
    Histories,
    ItemTensors,
    cross_entropy,
    list_values,
    sampled_cross_entropy,
)
from pareto_search.workers.sample import Sample, Sampler, Scope


class Grid:
    """A stand-in for a random generator whose numbers are spread evenly over 0 to 1."""

    def __init__(self, size: int) -> None:
        self._numbers = iter((np.arange(size) + 0.5) / size)

    def random(self) -> float:
        return float(next(self._numbers))


def draws(sampler: Sampler, count: int) -> list[Sample]:
    grid: Any = Grid(count)
    return [sampler.draw(grid) for _ in range(count)]


@pytest.mark.parametrize(
    ("weights", "size", "inclusion"),
    [
        ([1, 1, 1, 1], 2, [1 / 2] * 4),
        ([1, 2, 5], 1, [1 / 8, 2 / 8, 5 / 8]),
        ([9, 1, 1, 1], 2, [1, 1 / 3, 1 / 3, 1 / 3]),  # the first would be included 1.5 times
        ([30, 8, 1, 1], 3, [1, 1, 1 / 2, 1 / 2]),  # and the second, once the first is certain, 1.6 times
        ([5, 1, 1], 3, [1, 1, 1]),
        ([5, 1, 1], 9, [1, 1, 1]),
        ([0, 2, 6, 0], 1, [0, 1 / 4, 3 / 4, 0]),  # what has no weight is never drawn
        ([0, 2, 6], 3, [0, 1, 1]),
    ],
)
def test_items_are_sampled_in_proportion_to_their_weights(
    weights: list[float], size: int, inclusion: list[float]
) -> None:
    samples = draws(Sampler(np.array(weights, float), size), 1200)
    assert {len(s.items) for s in samples} == {min(size, sum(w > 0 for w in weights))}
    counts = np.bincount(np.concatenate([s.items.numpy() for s in samples]), minlength=len(weights))
    assert counts / 1200 == pytest.approx(inclusion, abs=2e-3)
    for sample in samples:
        assert sample.log_inclusion.exp().tolist() == pytest.approx([inclusion[i] for i in sample.items])


def test_a_sample_of_the_whole_catalogue_gives_the_full_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    states, vectors = torch.randn(50, 8, generator=generator), torch.randn(30, 8, generator=generator)
    bias = torch.randn(30, generator=generator)
    targets = torch.randint(0, 30, (50,), generator=generator)
    whole = Sampler(np.arange(1.0, 31.0), 30).draw(np.random.default_rng(0))
    ours = [x.clone().requires_grad_() for x in (states, vectors, bias)]
    theirs = [x.clone().requires_grad_() for x in (states, vectors, bias)]
    loss, expected = sampled_cross_entropy(*ours, targets, whole), cross_entropy(*theirs, targets)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    loss.backward()
    expected.backward()
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine.grad, other.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("target", [0, 8])
def test_the_sampled_sum_over_the_catalogue_is_unbiased(target: int) -> None:
    generator = torch.Generator().manual_seed(1)
    states, vectors = torch.randn(1, 4, generator=generator), torch.randn(9, 4, generator=generator)
    bias, wanted = torch.randn(9, generator=generator), torch.tensor([target])
    samples = draws(Sampler(np.arange(1.0, 10.0), 4), 4500)
    # Of one position the loss is log Z - s_t, so that its exponential is as unbiased as Z.
    sampled = np.mean([float(sampled_cross_entropy(states, vectors, bias, wanted, s).exp()) for s in samples])
    assert sampled == pytest.approx(float(cross_entropy(states, vectors, bias, wanted).exp()), rel=1e-3)


def test_the_gradient_of_the_sampled_softmax_is_its_slope() -> None:
    generator = torch.Generator().manual_seed(2)
    inputs = [torch.randn(*size, generator=generator).double().requires_grad_() for size in ((6, 4), (9, 4), (9,))]
    targets = torch.tensor([0, 3, 3, 8, 1, 5])
    sample = Sampler(np.arange(1.0, 10.0), 5).draw(np.random.default_rng(0))
    double = Sample(sample.items, sample.log_inclusion.double())
    assert torch.autograd.gradcheck(lambda s, v, b: sampled_cross_entropy(s, v, b, targets, double), inputs)


def test_in_bfloat16_the_sampled_softmax_is_near() -> None:
    generator = torch.Generator().manual_seed(0)
    states, vectors = torch.randn(300, 16, generator=generator), torch.randn(50, 16, generator=generator)
    targets, bias = torch.randint(0, 50, (300,), generator=generator), torch.zeros(50)
    sample = Sampler(np.ones(50), 30).draw(np.random.default_rng(0))
    loss = sampled_cross_entropy(states.bfloat16(), vectors, bias, targets, sample)
    assert float(loss) == pytest.approx(float(sampled_cross_entropy(states, vectors, bias, targets, sample)), rel=0.01)


def test_the_list_values_of_a_sample_estimate_those_of_the_catalogue() -> None:
    items = ItemTensors(statistics(3000), "cpu")
    objectives = [Objective(f"{family}@10", "maximise", 0, 1) for family in SURROGATES]
    logits = torch.randn(20, 3000, generator=torch.Generator().manual_seed(0))
    owner, item = torch.arange(20).repeat_interleave(5), torch.arange(100) * 7
    histories = Histories(owner, item, 20, items.features)
    whole = list_values(logits, items, histories, objectives)
    rng, sampler = np.random.default_rng(0), Sampler(np.arange(1.0, 3001.0), 1000)
    estimates = [
        list_values(logits[:, sample.items], items.of(sample), histories, objectives)
        for sample in (sampler.draw(rng) for _ in range(20))
    ]
    for name, value in whole.items():
        assert np.mean([float(e[name]) for e in estimates]) == pytest.approx(float(value), abs=0.01)


def test_a_scope_is_what_a_batch_names_and_a_sample() -> None:
    batch = Batch(
        torch.tensor([[7, 2], [7, 0]]),
        None,
        None,
        torch.tensor([2, 1]),
        torch.tensor([[2, 9], [5, -1]]),
        np.arange(2),
        np.zeros(2, np.int64),
    )
    drawn = Sample(torch.tensor([3, 5]), torch.tensor([0.5, 0.25]).log())
    scope = Scope(batch, drawn, torch.zeros(10))

    # Padding is an item like any other, for the tower looks it up.
    assert scope.rows is not None
    assert scope.rows.tolist() == [0, 2, 3, 5, 7, 9]
    assert scope.of(torch.arange(10.0)).tolist() == [0, 2, 3, 5, 7, 9]
    assert scope.places(batch.items).tolist() == [[4, 1], [4, 0]]
    assert scope.sample is not None
    assert scope.sample.items.tolist() == [2, 3]
    assert scope.columns(torch.tensor([5, 7, 3])).tolist() == [1, -1, 0]


def test_without_a_sample_a_scope_is_the_whole_catalogue() -> None:
    items = torch.tensor([[7, 2]])
    scope = Scope(
        Batch(items, None, None, torch.tensor([2]), items, np.arange(1), np.zeros(1, np.int64)), None, torch.zeros(10)
    )
    whole = torch.arange(10.0)
    assert scope.rows is None
    assert scope.of(whole) is whole
    assert scope.places(items) is scope.columns(items) is items


def test_a_scope_bars_what_the_losses_do_not_range_over() -> None:
    batch = Batch(
        torch.tensor([[1]]), None, None, torch.tensor([1]), torch.tensor([[4]]), np.arange(1), np.zeros(1, np.int64)
    )
    barred = torch.tensor([0.0, 0.0, -torch.inf, 0.0, 0.0])
    own = torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0])
    assert Scope(batch, None, barred).biases(own).tolist() == [0.5, 1.0, -torch.inf, 3.0, 4.0]
    drawn = Sample(torch.tensor([3]), torch.tensor([0.0]))
    assert Scope(batch, drawn, barred).biases(own).tolist() == [1.0, 3.0, 4.0]  # of the rows 1, 3 and 4
