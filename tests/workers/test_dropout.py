import pytest
import torch

from pareto_search.workers.dropout import dropout


def test_dropout_keeps_the_mean_and_drops_the_share_asked_for() -> None:
    torch.manual_seed(0)
    dropped = dropout(torch.ones(400, 500), 0.25, training=True)
    # Each of 200,000 elements is dropped with probability 1/4: the share has a deviation of 0.001.
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.005)
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.01)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])


@pytest.mark.parametrize(("rate", "training"), [(0.5, False), (0.0, True)])
def test_dropout_changes_nothing_in_evaluation_or_at_rate_0(rate: float, training: bool) -> None:
    x = torch.randn(3, 5)
    assert dropout(x, rate, training) is x


def test_dropout_passes_the_gradient_of_what_it_kept() -> None:
    torch.manual_seed(0)
    x = torch.ones(7, 9, requires_grad=True)
    y = dropout(x, 0.5, training=True)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_dropout_drops_other_elements_each_time() -> None:
    torch.manual_seed(0)
    x = torch.ones(100)
    assert not torch.equal(dropout(x, 0.5, training=True), dropout(x, 0.5, training=True))
