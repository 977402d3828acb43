"""Losses against torch, against brute-force expectations and by hand."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from items import statistics
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from pareto_search.objective import Objective
from pareto_search.recsys import metrics
from pareto_search.recsys.metrics import Ranked
from pareto_search.recsys.split import Sequences
from pareto_search.recsys.statistics import ItemStatistics
from pareto_search.space import SURROGATED
from pareto_search.workers import losses
from pareto_search.workers.losses import (
    CACHED,
    LEAST,
    LOGITS,
    ROWS,
    SURROGATES,
    Histories,
    ItemTensors,
    Scalariser,
    chunk,
    cross_entropy,
    list_values,
    sampled_cross_entropy,
)
from pareto_search.workers.sample import Sampler

ILD = Objective("ild@10", "maximise", reference=0.4, ideal=1.0)
NOVELTY = Objective("novelty@10", "maximise", reference=0.1, ideal=0.8)
GINI = Objective("gini@10", "minimise", reference=1.0, ideal=0.5)


def shares(rows: int = 3, n_items: int = 7) -> Tensor:
    return torch.randn(rows, n_items, generator=torch.Generator().manual_seed(0)).softmax(1)


NOBODY = Sequences(np.zeros(1, np.int64), np.empty(0, np.int32), None)
NONE = Histories(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), 3, torch.zeros(4, 2))
SEEN = [[0, 2], [5, 6, 0, 1], [3]]


def histories(items: ItemStatistics, count: int = 3) -> Histories:
    pairs = [(owner, item) for owner, row in enumerate(SEEN[:count]) for item in row]
    owner, item = torch.tensor(pairs).T
    return Histories(owner, item, count, torch.from_numpy(items.features))


def lists(*rows: list[int]) -> Ranked:
    array = np.array(rows, np.int32)
    return Ranked(array, np.zeros(array.shape, bool), np.ones(len(array), np.int64), NOBODY)


@pytest.mark.parametrize("positions", [5, 512, 1300])
def test_the_full_softmax_is_torchs_cross_entropy(positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CACHED", 0)
    monkeypatch.setattr(losses, "LEAST", 256)  # positions at once
    generator = torch.Generator().manual_seed(positions)
    states = torch.randn(positions, 8, generator=generator)
    vectors = torch.randn(30, 8, generator=generator)
    bias = torch.randn(30, generator=generator)
    targets = torch.randint(0, 30, (positions,), generator=generator)
    ours = [x.clone().requires_grad_() for x in (states, vectors, bias)]
    theirs = [x.clone().requires_grad_() for x in (states, vectors, bias)]
    loss = cross_entropy(*ours, targets)
    expected = functional.cross_entropy(theirs[0] @ theirs[1].T + theirs[2], targets)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    (loss * 2.5).backward()
    (expected * 2.5).backward()
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine.grad, other.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("barred", [0, 5])
def test_in_bfloat16_the_full_softmax_is_near(barred: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CACHED", 0)  # 256 positions at once
    generator = torch.Generator().manual_seed(0)
    states, vectors = torch.randn(300, 16, generator=generator), torch.randn(50, 16, generator=generator)
    bias, targets = torch.randn(50, generator=generator), torch.randint(barred, 50, (300,), generator=generator)
    bias[:barred] = -torch.inf  # nobody has met them
    theirs = [x.clone().requires_grad_() for x in (states, vectors, bias)]
    expected = functional.cross_entropy(theirs[0] @ theirs[1].T + theirs[2], targets)
    expected.backward()
    ours = [x.clone().requires_grad_() for x in (states.bfloat16(), vectors, bias)]
    loss = cross_entropy(*ours, targets)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=0.01)
    for mine, other in zip(ours, theirs, strict=True):
        assert float((mine.grad.float() - other.grad).norm() / other.grad.norm()) < 0.01
        assert mine.grad.dtype == mine.dtype


class Products(TorchDispatchMode):
    """The shapes of all products of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[tuple[int, ...], ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.shapes.add(tuple(tuple(x.shape) for x in args if isinstance(x, Tensor)))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sampled", [False, True])
def test_batches_of_about_as_many_positions_have_products_of_the_same_shapes(
    sampled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CACHED", 0)  # 256 positions at once
    vectors, bias, found = torch.randn(50, 16).requires_grad_(), torch.zeros(50), []
    sample = Sampler(np.ones(50), 30).draw(np.random.default_rng(0))
    for positions in (300, 301, 384):
        states, targets = torch.randn(positions, 16).requires_grad_(), torch.zeros(positions, dtype=torch.int64)
        with Products() as products:
            how = (states, vectors, bias, targets)
            (sampled_cross_entropy(*how, sample) if sampled else cross_entropy(*how)).backward()
        found.append(products.shapes)
    assert len(found[0]) >= 3
    assert found[0] == found[1] == found[2]


def test_a_target_that_is_as_good_as_impossible_has_a_finite_loss() -> None:
    states, vectors = torch.tensor([[200.0]]), torch.tensor([[1.0], [0.0]])
    assert 80.0 < float(cross_entropy(states, vectors, torch.zeros(2), torch.tensor([1]))) < 200.0


@pytest.mark.parametrize(("family", "metric"), [("novelty", metrics.novelty), ("credibility", metrics.credibility)])
def test_a_mean_over_items_has_its_metrics_expectation(family: str, metric: metrics.Metric) -> None:
    items, p = statistics(), shares()
    alone = metric(lists(*([i] for i in range(7))), items)  # the metric of each list of one item
    expected = np.mean([sum(float(p[q, i]) * alone[i] for i in range(7)) for q in range(3)])
    assert float(SURROGATES[family](p, ItemTensors(items, "cpu"), histories(items))) == pytest.approx(
        expected, abs=1e-6
    )


def test_expected_ild_is_its_metrics_expectation_over_all_pairs() -> None:
    items, p = statistics(), shares()
    expected = 0.0
    for i, j in product(range(7), repeat=2):
        if i != j:  # an item is at distance 0 from itself
            distance = metrics.ild(lists([i, j]), items)[0]
            expected += float((p[:, i] * p[:, j]).mean()) * distance
    assert float(SURROGATES["ild"](p, ItemTensors(items, "cpu"), histories(items))) == pytest.approx(expected, abs=1e-6)


def test_every_surrogate_has_a_weight_among_the_genes() -> None:
    assert sorted(SURROGATES) == sorted(SURROGATED)


def categories() -> ItemStatistics:
    """Seven items in one, two or three of three categories, of which the first two have most of the interactions."""
    features = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 1, 1], [1, 0, 1]], np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    users = np.array([50, 40, 9, 1, 0, 0, 0])
    return ItemStatistics(users, np.zeros(7, np.float32), None, features)


def of_seen(lists: list[list[int]]) -> Ranked:
    """These lists, shown to the users who had seen `SEEN`."""
    array = np.array(lists, np.int32)
    ends = np.cumsum([0, *(len(row) for row in SEEN)])
    history = Sequences(ends, np.array([i for row in SEEN for i in row], np.int32), None)
    return Ranked(array, np.zeros(array.shape, bool), np.ones(len(array), np.int64), history)


@pytest.mark.parametrize("family", ["tail", "history_novelty"])
def test_what_is_a_mean_over_the_list_has_its_metrics_expectation_for_each_user(family: str) -> None:
    items, p = categories(), shares()
    metric = metrics.METRICS[family].per_user
    assert metric is not None
    alone = np.array([metric(of_seen([[i]] * 3), items) for i in range(7)])  # `(items, users)`
    expected = np.mean([sum(float(p[q, i]) * alone[i, q] for i in range(7)) for q in range(3)])
    found = SURROGATES[family](p, ItemTensors(items, "cpu"), histories(items))
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_expected_calibration_is_that_of_a_list_in_which_every_item_has_its_share() -> None:
    items = categories()
    p = torch.tensor([[2, 1, 0, 0, 0, 0, 1], [0, 0, 0, 4, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0]]) / 4
    shown = of_seen([[0, 0, 1, 6], [3, 3, 3, 3], [0, 1, 2, 3]])
    expected = metrics.calibration(shown, items).mean()
    found = SURROGATES["calibration"](p, ItemTensors(items, "cpu"), histories(items))
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_what_was_bought_again_is_in_the_shares_once_as_the_metric_has_it() -> None:
    items, owner, item = categories(), torch.tensor([0, 0, 0, 1]), torch.tensor([3, 3, 2, 4])
    bought = losses.Histories(owner, item, 3, torch.from_numpy(items.features))
    assert bought.shares() == pytest.approx(np.array([[0, 0.5, 0.5], [1 / 3] * 3, [0] * 3]), abs=1e-6)


def test_the_spread_is_1_where_all_items_share_alike_and_0_on_one_item() -> None:
    items = ItemTensors(statistics(4), "cpu")
    even, one = torch.full((2, 4), 0.25), torch.tensor([[0.0, 1, 0, 0]] * 2)
    assert [float(SURROGATES["coverage"](p, items, NONE)) for p in (even, one)] == pytest.approx([1, 0], abs=1e-6)
    assert [float(SURROGATES["gini"](p, items, NONE)) for p in (even, one)] == pytest.approx([0, 1], abs=1e-6)


def test_the_spread_is_that_of_the_mean_user() -> None:
    # One user on each of two of four items: the mean is even over two, with entropy log 2 of at most log 4.
    p = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0]])
    assert float(SURROGATES["coverage"](p, ItemTensors(statistics(4), "cpu"), NONE)) == pytest.approx(0.5)


def test_a_seen_item_has_no_share_in_any_list_value() -> None:
    items = statistics()
    logits = torch.zeros(1, 7)
    logits[0, [0, 2, 3, 5, 6]] = -math.inf
    values = list_values(
        logits, ItemTensors(items, "cpu"), histories(items, 1), [Objective("ndcg@10", "maximise", 0, 1), ILD, NOVELTY]
    )
    assert set(values) == {"ild@10", "novelty@10"}
    assert float(values["novelty@10"]) == pytest.approx((items.novelty[1] + items.novelty[4]) / 2, abs=1e-6)
    # Both drawn from {1, 4}: different with probability 1/2.
    assert float(values["ild@10"]) == pytest.approx((1 - items.features[1] @ items.features[4]) / 2, abs=1e-6)


def test_a_data_set_without_ratings_has_tensors_too() -> None:
    rated = statistics()
    unrated = ItemStatistics(rated.users, rated.novelty, None, rated.features)
    assert float(SURROGATES["credibility"](shares(), ItemTensors(unrated, "cpu"), NONE)) == 0


@pytest.mark.parametrize("family", list(SURROGATES))
def test_the_gradient_of_each_surrogate_is_its_slope(family: str) -> None:
    rows = statistics(dtype=np.float64)
    items, known = ItemTensors(rows, "cpu"), histories(rows)
    logits = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: SURROGATES[family](x.softmax(1), items, known), (logits,))


def scalarised(kind: str, weights: dict[str, float], *steps: tuple[float, dict[str, float]]) -> float:
    """The loss of the last step."""
    scalarise = Scalariser(kind, weights, [ILD, NOVELTY, GINI])  # type: ignore[arg-type]
    losses = [scalarise(torch.tensor(a), {n: torch.tensor(v) for n, v in values.items()}) for a, values in steps]
    return float(losses[-1])


# ILD of 0.7 is half way from 0.4 to 1; novelty of 0.1 is at its floor; Gini of 0.6 is 4/5 of the way from 1 to 0.5.
VALUES = {"ild@10": 0.7, "novelty@10": 0.1, "gini@10": 0.6}
WEIGHTS = {"ild@10": 0.2, "novelty@10": 0.3, "gini@10": 0.5}
TERMS = [0.2 * 0.5, 0.3 * 1.0, 0.5 * 0.2]


def test_the_weighted_sum_by_hand() -> None:
    # The first batch's accuracy counts as 1, a later one by how many nats it has gained since.
    assert scalarised("weighted_sum", WEIGHTS, (6.0, VALUES)) == pytest.approx(1.0 + sum(TERMS))
    assert scalarised("weighted_sum", WEIGHTS, (6.0, VALUES), (5.5, VALUES)) == pytest.approx(0.5 + sum(TERMS))


def test_the_smoothed_tchebycheff_by_hand() -> None:
    expected = 0.1 * math.log(sum(math.exp(term / 0.1) for term in [0.5, *TERMS]))
    assert scalarised("tchebycheff", WEIGHTS, (6.0, VALUES), (5.5, VALUES)) == pytest.approx(expected, rel=1e-5)


def test_the_smoothed_tchebycheff_lies_just_above_the_largest_term() -> None:
    loss = scalarised("tchebycheff", {**WEIGHTS, "ild@10": 2.0}, (6.0, {**VALUES, "ild@10": 0.1}))
    largest = 2.0 * 1.5
    assert largest <= loss <= largest + 0.1 * math.log(4)


@pytest.mark.parametrize("kind", ["weighted_sum", "tchebycheff"])
def test_the_gradient_of_a_scalarisation_is_its_slope(kind: str) -> None:
    scalarise = Scalariser(kind, WEIGHTS, [ILD, NOVELTY, GINI])  # type: ignore[arg-type]
    scalarise(torch.tensor(1.0), {})
    inputs = tuple(torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.4, 0.7, 0.3, 0.6))
    names = ("ild@10", "novelty@10", "gini@10")
    assert torch.autograd.gradcheck(lambda a, *v: scalarise(a, dict(zip(names, v, strict=True))), inputs)


def test_on_a_gpu_a_softmax_takes_more_positions_at_once_but_not_more_than_it_can_hold() -> None:
    for device, most in (("cpu", CACHED), ("cuda", LOGITS)):
        assert chunk(1682, device) * 1682 <= most < (chunk(1682, device) + ROWS) * 1682
        assert chunk(1682, device) % ROWS == 0
        assert chunk(10**6, device) == LEAST
