"""Training on data whose answer is known: item i + 1 follows item i."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pareto_search.objective import Objective
from pareto_search.recsys.baselines import Popularity, Scorer
from pareto_search.recsys.dataset import Dataset
from pareto_search.recsys.ranking import Ranking
from pareto_search.recsys.split import Sequences, Split
from pareto_search.recsys.statistics import ItemStatistics, category_features
from pareto_search.space import default_genes
from pareto_search.workers import train
from pareto_search.workers.base import Base
from pareto_search.workers.encoder import Encoder
from pareto_search.workers.lora import LoraShape, attached
from pareto_search.workers.losses import ItemTensors, list_values
from pareto_search.workers.recommender import Recommender, Shape, TowerScorer
from pareto_search.workers.train import DivergedError, Task, fine_tune, train_tower

SHAPE = Shape(n_items=20, width=16, history=6, tower="attention", text_width=32, item_embeddings=True)


@pytest.fixture(scope="module")
def items(toy: Dataset, toy_split: Split) -> ItemStatistics:
    assert toy.categories is not None
    return ItemStatistics.of(toy_split.train, 20, category_features(toy.categories))


@pytest.fixture(scope="module")
def start(encoder: Encoder, toy_split: Split) -> Recommender:
    """A tower that has learned little yet."""
    return train_tower(SHAPE, encoder.frozen, toy_split.train, epochs=4, seed=0)


@pytest.fixture(scope="module")
def task(
    encoder: Encoder, start: Recommender, toy_split: Split, items: ItemStatistics, objectives: Sequence[Objective]
) -> Task:
    return Task(encoder, start, toy_split.train, ItemTensors(items, "cpu"), objectives)


def tuned(task: Task, genes: dict[str, Any], steps: int = 3, seed: int = 0) -> tuple[TowerScorer, dict[str, bytes]]:
    """The scorer of a fine-tuned candidate, and its files."""
    with fine_tune(task, genes, steps=steps, seed=seed) as (adapter, model):
        scorer = TowerScorer.of(model, task.encoder.catalogue(adapter.shape.layers))
        return scorer, adapter.files("tiny", None) | model.files({})


def ndcg(scorer: Scorer, split: Split, items: ItemStatistics) -> float:
    return Ranking(split.validation, items, {"model": scorer}).values([{}], ["ndcg@5"])[0]["ndcg@5"]


def loss(scorer: Scorer, split: Split) -> float:
    """Mean -log p(next) over the validation part, by torch."""
    scores = torch.from_numpy(scorer.scores(split.validation.history))
    return float(torch.nn.functional.cross_entropy(scores, torch.tensor(split.validation.targets.items.tolist())))


def expected(values: np.ndarray, scorer: Scorer, history: Sequences) -> float:
    """The expected value of an item drawn from the softmax over the unseen catalogue."""
    scores = scorer.scores(history).astype(np.float64)
    for user in range(len(scores)):
        scores[user, history.of(user)] = -np.inf
    p = np.exp(scores - scores.max(1, keepdims=True))
    return float((p / p.sum(1, keepdims=True) @ values).mean())


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("tower", ["attention", "decayed_mean"])
def test_a_trained_tower_beats_popularity(
    encoder: Encoder, toy_split: Split, items: ItemStatistics, tower: Any, text: bool
) -> None:
    frozen = encoder.frozen if text else None
    shape = Shape(20, 16, 6, tower, 32 if text else 0, item_embeddings=True)
    model = train_tower(shape, frozen, toy_split.train, epochs=60, seed=0)
    popular = ndcg(Popularity(items.users), toy_split, items)
    assert ndcg(TowerScorer.of(model, frozen), toy_split, items) > 1.5 * popular


def test_more_epochs_lower_the_loss(encoder: Encoder, toy_split: Split) -> None:
    losses = []
    for epochs in (1, 20, 100):
        model = train_tower(SHAPE, encoder.frozen, toy_split.train, epochs=epochs, seed=0)
        losses.append(loss(TowerScorer.of(model, encoder.frozen), toy_split))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < math.log(20) / 2  # guessing costs log 20


def test_fine_tuning_lowers_the_loss_and_beats_popularity(
    task: Task, genes: dict[str, Any], toy_split: Split, items: ItemStatistics
) -> None:
    before = TowerScorer.of(task.start, task.encoder.frozen)
    after, _ = tuned(task, genes, steps=10)
    assert loss(after, toy_split) < loss(before, toy_split) - 0.3
    assert ndcg(after, toy_split, items) > 1.5 * ndcg(Popularity(items.users), toy_split, items)


def test_fine_tuning_leaves_encoder_and_warm_start_as_they_were(task: Task, genes: dict[str, Any]) -> None:
    def state() -> dict[str, torch.Tensor]:
        both = {**task.encoder.model.state_dict(), **task.start.state_dict(), "frozen": task.encoder.frozen}
        return {name: tensor.clone() for name, tensor in both.items()}

    before = state()
    with fine_tune(task, genes, steps=3, seed=0) as (adapter, _):
        assert all(float(m.B.detach().abs().max()) > 1e-4 for _, m in adapter.named())
        assert not torch.allclose(task.encoder.catalogue(2), task.encoder.frozen, atol=1e-3)
    after = state()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.allclose(task.encoder.catalogue(2), task.encoder.frozen, atol=1e-5)


@pytest.mark.parametrize("scalarisation", ["weighted_sum", "tchebycheff"])
@pytest.mark.parametrize("family", ["novelty", "credibility"])
def test_a_larger_weight_raises_the_expected_value(
    task: Task, genes: dict[str, Any], items: ItemStatistics, family: str, scalarisation: str
) -> None:
    # Here novelty and credibility grow with an item's number, for there is little of either in the toy data.
    values = np.linspace(0, 1, 20, dtype=np.float32)
    task = replace(task, items=ItemTensors(replace(items, **{family: values}), "cpu"))
    means = []
    for weight in (0.003, 2.0):
        scorer, _ = tuned(task, {**genes, f"weight.{family}@5": weight, "scalarisation": scalarisation}, steps=8)
        means.append(expected(values, scorer, task.train))
    assert means[1] > means[0] + 0.05


@pytest.mark.parametrize("gene", ["tower_lr", "adapter_lr"])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_learning_rate_without_bound_is_noticed(task: Task, genes: dict[str, Any], gene: str, steps: int) -> None:
    with pytest.raises(DivergedError), fine_tune(task, {**genes, gene: math.inf}, steps=steps, seed=0):
        pass
    assert torch.allclose(task.encoder.catalogue(2), task.encoder.frozen, atol=1e-5)


def test_an_overflowing_learning_rate_is_noticed(task: Task, genes: dict[str, Any]) -> None:
    with pytest.raises(DivergedError), fine_tune(task, {**genes, "tower_lr": 1e38}, steps=3, seed=0):
        pass


def test_the_same_seed_gives_the_same_files_and_another_seed_others(task: Task, genes: dict[str, Any]) -> None:
    first, again, other = (tuned(task, genes, seed=seed)[1] for seed in (5, 5, 6))
    assert first == again
    assert all(first[name] != other[name] for name in ("adapter_model.safetensors", "recommender.safetensors"))


def test_towers_with_the_same_seed_are_the_same(encoder: Encoder, toy_split: Split) -> None:
    first, again, other = (
        train_tower(SHAPE, encoder.frozen, toy_split.train, epochs=2, seed=seed).files({}) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_the_list_objectives_see_only_what_a_user_had_not_seen(
    task: Task, genes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    masks: set[tuple[int, ...]] = set()

    def spy(logits: torch.Tensor, *rest: Any) -> dict[str, torch.Tensor]:
        masks.update(tuple(row.nonzero().flatten().tolist()) for row in logits.isneginf())
        return list_values(logits, *rest)

    monkeypatch.setattr(train, "list_values", spy)
    tuned(task, genes, steps=1)
    histories = [task.train.of(user).tolist() for user in range(30)]
    assert masks == {tuple(sorted(h[:n])) for h in histories for n in range(1, len(h))}


def test_an_encoder_step_trains_on_the_items_with_the_largest_gradient_and_leaves_the_others(tiny_base: Base) -> None:
    many = Encoder(tiny_base, [f"{i} red river" for i in range(300)], max_tokens=16, layers=1)
    generator = torch.Generator().manual_seed(0)
    scale = torch.ones(300, 1)
    scale[::7] = 1e-3  # 43 items; 256 of 300 are taken
    gradient = torch.randn(300, 32, generator=generator) * scale
    least = gradient.square().sum(1).argsort()[:44]
    text = torch.zeros(300, 32, requires_grad=True)
    text.grad = gradient.clone()
    with attached(many, LoraShape(4, 16.0, 0.0, "query_value", 1)) as adapter:
        with torch.no_grad():
            for _, module in adapter.named():
                module.B.normal_(std=0.3, generator=generator)
        train._encoder_step(many, text, 1)
        found = [p.grad.clone() for p in adapter.weights() if p.grad is not None]
        adapter.zero_grad()
        taken = np.setdiff1d(np.arange(300), least.numpy())
        for chunk in many.chunks(taken):
            (many.encode(chunk, 1) * gradient[chunk]).sum().backward()
        assert all(torch.allclose(p.grad, g, atol=1e-4) for p, g in zip(adapter.weights(), found, strict=True))
        renewed = many.catalogue(1)
    assert torch.allclose(text.detach()[taken], renewed[taken], atol=1e-6)
    assert not text.grad[taken].any()
    assert not text.detach()[least].any()
    assert torch.equal(text.grad[least], gradient[least])


OTHERS = {
    "weight.ild@5": 0.5,
    "weight.novelty@5": 0.5,
    "weight.credibility@5": 0.5,
    "scalarisation": "tchebycheff",
    "rank": 8,
    "alpha": 32.0,
    "dropout": 0.2,
    "targets": "attention",
    "layers": 3,
    "adapter_lr": 3e-3,
    "tower_lr": 1e-3,
    "weight_decay": 0.2,
    "temperature": 1.3,
    "id_embeddings": False,
}


@pytest.mark.parametrize("gene", list(OTHERS))
def test_each_training_gene_changes_the_scores(task: Task, genes: dict[str, Any], toy_split: Split, gene: str) -> None:
    before, after = (
        tuned(task, given)[0].scores(toy_split.validation.history) for given in (genes, {**genes, gene: OTHERS[gene]})
    )
    assert not np.allclose(before, after, atol=1e-6)


def test_all_training_genes_are_tried_here(genes: dict[str, Any], objectives: Sequence[Objective]) -> None:
    names = {g.name for g in default_genes(objectives) if g.role == "training"}
    assert set(OTHERS) == names == set(genes)


def test_without_id_embeddings_the_file_has_none(task: Task, genes: dict[str, Any]) -> None:
    scorer, _ = tuned(task, {**genes, "id_embeddings": False})
    assert not scorer.model.shape.item_embeddings
    assert "item_embedding" not in scorer.model.state_dict()
    assert task.start.shape.item_embeddings
