"""What EASE teaches, against torch and by hand."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pareto_search.recsys.baselines import ease
from pareto_search.recsys.dataset import Dataset
from pareto_search.recsys.split import Sequences, Split
from pareto_search.recsys.statistics import ItemStatistics, category_features
from pareto_search.workers.distillation import Teacher
from pareto_search.workers.losses import Histories, divergence

BARRED = -math.inf


@pytest.fixture(scope="module")
def items(toy: Dataset, toy_split: Split) -> ItemStatistics:
    assert toy.categories is not None
    return ItemStatistics.of(toy_split.train, 20, category_features(toy.categories))


def standardised(split: Split, history: Sequences) -> NDArray[np.float64]:
    """EASE's scores with mean 0 and deviation 1 over what each user has not seen, user by user."""
    weights = ease(split.train, 20).weights.astype(np.float64)
    rows = []
    for user in range(len(history.indptr) - 1):
        seen = sorted(set(history.of(user).tolist()))
        row = weights[seen].sum(0)
        row[seen] = np.nan
        rows.append((row - np.nanmean(row)) / np.nanstd(row))
    return np.array(rows)


def test_the_teacher_is_as_sure_as_makes_validation_likeliest(toy_split: Split, items: ItemStatistics) -> None:
    part = toy_split.validation
    logits = Teacher(ease(toy_split.train, 20), items, part).logits(part.history)
    scores = standardised(toy_split, part.history)
    assert (np.isneginf(logits) == np.isnan(scores)).all()
    ratios = (logits / scores)[~np.isnan(scores)]
    assert np.allclose(ratios, sharpness := float(np.median(ratios)), rtol=1e-3)
    base = torch.from_numpy(np.where(np.isnan(scores), -np.inf, scores))
    wanted = torch.from_numpy(part.targets.items.astype(np.int64))

    def loss(times: float) -> float:
        return float(torch.nn.functional.cross_entropy(base * times, wanted))

    assert sharpness > 0.05  # the bound
    assert loss(sharpness) < min(loss(sharpness * 1.05), loss(sharpness / 1.05))


def test_histories_are_the_same_for_scorers() -> None:
    owner, item = torch.tensor([0, 0, 2]), torch.tensor([4, 1, 3])
    given = Histories(owner, item, 3, torch.zeros(5, 2)).sequences()
    assert [given.of(user).tolist() for user in range(3)] == [[4, 1], [], [3]]


def test_the_divergence_is_torchs_where_both_know_all() -> None:
    teacher, logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.kl_div(logits.log_softmax(1), teacher.softmax(1), reduction="batchmean")
    assert float(divergence(teacher, logits)) == pytest.approx(float(expected), rel=1e-5)
    assert float(divergence(teacher, teacher + 2.0)) == pytest.approx(0.0, abs=1e-6)


def test_what_either_bars_by_hand() -> None:
    # The teacher has no say about the third item, and expects nothing of the second.
    teacher, logits = torch.tensor([[0.0, BARRED, 1.0, 3.0]]), torch.tensor([[1.0, 0.0, BARRED, 2.0]])
    q = {0: 1 / (1 + math.exp(3)), 3: math.exp(3) / (1 + math.exp(3))}
    mass = math.exp(1) + 1 + math.exp(2)
    p = {0: math.exp(1) / mass, 3: math.exp(2) / mass}
    assert float(divergence(teacher, logits)) == pytest.approx(sum(q[i] * math.log(q[i] / p[i]) for i in q), rel=1e-5)


def test_the_slope_of_the_divergence_is_what_the_candidate_has_too_much() -> None:
    teacher = torch.tensor([[0.0, BARRED, 1.0, 3.0], [BARRED, BARRED, 1.0, BARRED]])
    scores = torch.tensor([[1.0, 0.0, 0.5, 2.0], [1.0, 0.0, 0.5, 2.0]], requires_grad=True)
    barred = torch.tensor([[False, False, True, False], [False, True, True, False]])
    divergence(teacher, scores.masked_fill(barred, BARRED)).backward()  # type: ignore[no-untyped-call]
    q, p = (torch.tensor(x).softmax(0) for x in ([0.0, BARRED, BARRED, 3.0], [1.0, 0.0, BARRED, 2.0]))
    assert scores.grad is not None
    assert torch.allclose(scores.grad[0], (p - q) / 2, atol=1e-6)
    assert not scores.grad[1].any()  # of what is left the teacher knows nothing
