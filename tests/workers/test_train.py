"""Training on data whose answer is known: item i + 1 follows item i."""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from pareto_search.errors import DivergedError
from pareto_search.objective import Objective
from pareto_search.recsys.baselines import Popularity, Scorer, ease
from pareto_search.recsys.dataset import Dataset
from pareto_search.recsys.ranking import Ranking
from pareto_search.recsys.split import Sequences, Split
from pareto_search.recsys.statistics import ItemStatistics, category_features
from pareto_search.space import default_genes
from pareto_search.workers import candidate_loss, sample, train
from pareto_search.workers.base import Base
from pareto_search.workers.batches import Batches
from pareto_search.workers.distillation import Teacher
from pareto_search.workers.encoder import Encoder
from pareto_search.workers.lora import LoraShape, attached
from pareto_search.workers.losses import ItemTensors, divergence, list_values
from pareto_search.workers.recommender import Recommender, Shape, TowerScorer, joined
from pareto_search.workers.sample import Scopes
from pareto_search.workers.task import Task
from pareto_search.workers.train import OPTIMISER, EncoderStep, FineTuning, fine_tune, train_tower

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
    teacher = Teacher(ease(toy_split.train, 20), items, toy_split.validation)
    return Task(encoder, start, toy_split.train, ItemTensors(items, "cpu"), objectives, teacher=teacher)


def tuned(task: Task, genes: dict[str, Any], steps: int = 3, seed: int = 0) -> tuple[TowerScorer, dict[str, bytes]]:
    """The scorer of a fine-tuned candidate, and its files."""
    with fine_tune(task, genes, steps=steps, seed=seed) as tuning:
        tuning.advance(steps)
        scorer = TowerScorer.of(tuning.model, task.encoder.catalogue(tuning.adapter.shape.layers))
        return scorer, files(tuning)


def files(tuning: FineTuning) -> dict[str, bytes]:
    """The checkpoint as it is now."""
    return tuning.adapter.files("tiny", None) | tuning.model.files({})


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


def test_all_towers_are_fine_tuned_in_turn(task: Task, genes: dict[str, Any]) -> None:
    frozen, parts = task.encoder.frozen, []
    for seed in range(5):
        parts.append(train_tower(SHAPE, frozen, task.train, epochs=2, seed=seed).files({}))
    task = replace(task, start=Recommender.loaded(joined(parts)))
    with fine_tune(task, genes, steps=2, seed=0) as tuning:
        tuning.advance(1)  # six batches for five towers
        halfway = [tower.projection.weight.detach().clone() for tower in tuning.model.towers]
        before = [tower.projection.weight for tower in task.start.towers]
        assert all(not torch.equal(now, then) for now, then in zip(halfway, before, strict=True))
        tuning.advance(2)  # goes on where the first step has ended: with the second tower
        again = [tower.projection.weight.detach().clone() for tower in tuning.model.towers]
        assert all(not torch.equal(now, then) for now, then in zip(again, halfway, strict=True))


@pytest.mark.parametrize("gaps", [True, False])
def test_only_a_tower_that_reads_gaps_is_shown_other_orders_of_ties(
    task: Task, genes: dict[str, Any], monkeypatch: pytest.MonkeyPatch, gaps: bool
) -> None:
    told: list[bool] = []

    class Spy(Batches):
        def __init__(self, *args: Any, ties: bool, **kwargs: Any) -> None:
            told.append(ties)
            super().__init__(*args, ties=ties, **kwargs)

    for where in (train, candidate_loss):
        monkeypatch.setattr(where, "Batches", Spy)
    start = train_tower(replace(SHAPE, gaps=gaps), task.encoder.frozen, task.train, epochs=1, seed=0)
    assert told == [gaps]
    FineTuning(replace(task, start=start), genes, steps=1, seed=0, source=None)
    assert set(told[1:]) == {gaps}


def test_fine_tuning_leaves_encoder_and_warm_start_as_they_were(task: Task, genes: dict[str, Any]) -> None:
    def state() -> dict[str, torch.Tensor]:
        both = {**task.encoder.model.state_dict(), **task.start.state_dict(), "frozen": task.encoder.frozen}
        return {name: tensor.clone() for name, tensor in both.items()}

    before = state()
    with fine_tune(task, genes, steps=3, seed=0) as tuning:
        tuning.advance(3)
        assert all(float(m.B.detach().abs().max()) > 1e-4 for _, m in tuning.adapter.named())
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
    with pytest.raises(DivergedError), fine_tune(task, {**genes, gene: math.inf}, steps=steps, seed=0) as tuning:
        tuning.advance(steps)
    assert torch.allclose(task.encoder.catalogue(2), task.encoder.frozen, atol=1e-5)


def test_an_overflowing_learning_rate_is_noticed(task: Task, genes: dict[str, Any]) -> None:
    with pytest.raises(DivergedError), fine_tune(task, {**genes, "tower_lr": 1e38}, steps=3, seed=0) as tuning:
        tuning.advance(3)


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


def test_tables_and_layers_of_a_new_tower_learn_at_rates_of_their_own(
    encoder: Encoder, toy_split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.optim.Optimizer] = []

    class Watched(torch.optim.AdamW):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    [tower] = train_tower(SHAPE, encoder.frozen, toy_split.train, epochs=1, seed=0).towers
    names = {id(parameter): name for name, parameter in tower.named_parameters()}
    tables, layers = ({names[id(p)] for p in group["params"]} for group in made[0].param_groups)
    assert {"item_bias", "item_embedding", "position"} <= tables
    assert {"projection.weight", "attention_in.weight", "final_norm.bias"} <= layers
    assert tables | layers == set(names.values())
    assert [group["max_lr"] for group in made[0].param_groups] == [train.TABLE_RATE, train.LAYER_RATE]


def test_however_few_the_epochs_a_tower_takes_the_least_steps(encoder: Encoder, toy_split: Split) -> None:
    assert Batches(toy_split.train, SHAPE.history, train.WINDOWS, 0).per_epoch == 1
    as_three, three, more, one = (
        train_tower(SHAPE, encoder.frozen, toy_split.train, epochs=epochs, least=least, seed=0).files({})
        for epochs, least in ((1, 3), (3, 0), (3, 2), (1, 0))
    )
    assert as_three == three == more != one


def test_the_list_objectives_see_only_what_a_user_had_not_seen(
    task: Task, genes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    masks: set[tuple[int, ...]] = set()

    def spy(logits: torch.Tensor, *rest: Any) -> dict[str, torch.Tensor]:
        masks.update(tuple(row.nonzero().flatten().tolist()) for row in logits.isneginf())
        return list_values(logits, *rest)

    monkeypatch.setattr(candidate_loss, "list_values", spy)
    tuned(task, genes, steps=1)
    histories = [task.train.of(user).tolist() for user in range(30)]
    assert masks == {tuple(sorted(h[:n])) for h in histories for n in range(1, len(h))}


def sampled(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Makes every catalogue a large one."""
    monkeypatch.setattr(sample, "FULL_SOFTMAX", 0)
    monkeypatch.setattr(sample, "SAMPLED", size)


def test_a_sample_of_the_whole_catalogue_trains_alike(
    task: Task, genes: dict[str, Any], toy_split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, towers = tuned(task, genes)[0], [train_tower(SHAPE, task.encoder.frozen, task.train, epochs=2, seed=0)]
    sampled(monkeypatch, 20)
    same, towers = (
        tuned(task, genes)[0],
        [*towers, train_tower(SHAPE, task.encoder.frozen, task.train, epochs=2, seed=0)],
    )
    history = toy_split.validation.history
    assert np.allclose(full.scores(history), same.scores(history), atol=1e-3)
    first, second = (TowerScorer.of(t, task.encoder.frozen).scores(history) for t in towers)
    assert np.allclose(first, second, atol=1e-3)


@pytest.mark.parametrize("text", [True, False])
def test_a_sample_of_a_part_of_it_trains_a_tower_too(
    encoder: Encoder, toy_split: Split, items: ItemStatistics, text: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled(monkeypatch, 8)
    frozen = encoder.frozen if text else None
    shape = Shape(20, 16, 6, "attention", 32 if text else 0, item_embeddings=True)
    model = train_tower(shape, frozen, toy_split.train, epochs=60, seed=0)
    assert ndcg(TowerScorer.of(model, frozen), toy_split, items) > 1.5 * ndcg(Popularity(items.users), toy_split, items)


def test_a_sample_of_a_part_of_it_fine_tunes_too(
    task: Task, genes: dict[str, Any], toy_split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled(monkeypatch, 8)
    before = TowerScorer.of(task.start, task.encoder.frozen)
    after, _ = tuned(task, genes, steps=10)
    assert loss(after, toy_split) < loss(before, toy_split) - 0.3


def test_an_encoder_step_trains_on_the_items_with_the_largest_gradient_and_leaves_the_others(tiny_base: Base) -> None:
    many = Encoder(tiny_base, [f"{i} red river" for i in range(300)], max_tokens=16, layers=1)
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(300, 32, generator=generator)
    taken = many.foremost(gradient.square().sum(1).numpy(), 256)  # of 300
    least = np.setdiff1d(np.arange(300), taken)
    text, collected = torch.zeros(300, 32), gradient.clone()
    with attached(many, LoraShape(4, 16.0, 0.0, "query_value", 1)) as adapter:
        with torch.no_grad():
            for _, module in adapter.named():
                module.B.normal_(std=0.3, generator=generator)
        train.encoder_pass(many, [EncoderStep(text, collected, adapter)])
        found = [p.grad.clone() for p in adapter.weights() if p.grad is not None]
        adapter.zero_grad()
        for chunk in many.chunks(taken):
            (many.encode(chunk, 1) * gradient[chunk]).sum().backward()
        assert all(torch.allclose(p.grad, g, atol=1e-4) for p, g in zip(adapter.weights(), found, strict=True))
        renewed = many.catalogue(1)
    assert torch.allclose(text[taken], renewed[taken], atol=1e-6)
    assert not collected[taken].any()
    assert not text[least].any()
    assert torch.equal(collected[least], gradient[least])


OTHERS = {
    "weight.ild@5": 0.5,
    "weight.novelty@5": 0.5,
    "weight.credibility@5": 0.5,
    "scalarisation": "tchebycheff",
    "adapter": "dora",
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
    "distillation": 1.0,
}


@pytest.fixture(scope="module")
def unchanged(task: Task, genes: dict[str, Any], toy_split: Split) -> np.ndarray:
    """The scores of a candidate with the usual genes."""
    return tuned(task, genes)[0].scores(toy_split.validation.history)


@pytest.mark.parametrize("gene", list(OTHERS))
def test_each_training_gene_changes_the_scores(
    task: Task, genes: dict[str, Any], toy_split: Split, unchanged: np.ndarray, gene: str
) -> None:
    changed = tuned(task, {**genes, gene: OTHERS[gene]})[0].scores(toy_split.validation.history)
    assert not np.allclose(unchanged, changed, atol=1e-6)


def test_a_candidate_that_is_taught_comes_nearer_to_its_teacher(
    task: Task, genes: dict[str, Any], toy_split: Split, items: ItemStatistics
) -> None:
    history = toy_split.validation.history
    assert task.teacher is not None
    teacher = task.teacher.logits(history)

    def distance(weight: float) -> float:
        scores = tuned(task, {**genes, "distillation": weight}, steps=10)[0].scores(history)
        return float(divergence(*map(torch.from_numpy, (teacher, np.where(items.barred(history), -np.inf, scores)))))

    assert distance(3.0) < 0.8 * distance(0.0)


def test_a_teacher_stands_beside_the_scalarisation(task: Task, genes: dict[str, Any]) -> None:
    def first_loss(weight: float) -> float:
        model = deepcopy(task.start).eval()
        taught = genes | {"scalarisation": "tchebycheff", "distillation": weight}
        text = task.encoder.frozen
        return candidate_loss.CandidateLoss(task, taught, model)(text, torch.zeros_like(text))

    without, once, twice = map(first_loss, (0.0, 1.0, 2.0))
    assert once > without + 0.01
    assert twice - once == pytest.approx(once - without, rel=1e-4)


def test_all_training_genes_are_tried_here(genes: dict[str, Any], objectives: Sequence[Objective]) -> None:
    names = {g.name for g in default_genes(objectives, ()) if g.role == "training"}
    assert set(OTHERS) == names == set(genes)


def test_a_whole_map_learns_at_a_tenth_of_the_rate(task: Task, genes: dict[str, Any]) -> None:
    # Whatever a gradient is, AdamW's first step is as long as the rate.
    longest = {}
    for form in ("lora", "full"):
        with fine_tune(task, genes | {"adapter": form, "weight_decay": 0.0}, steps=1, seed=0) as tuning:
            before = [p.detach().clone() for p in tuning.adapter.factors()]
            tuning.advance(1)
            pairs = zip(before, tuning.adapter.factors(), strict=True)
            longest[form] = max(float((new - old).detach().abs().max()) for old, new in pairs)
    assert longest["lora"] == pytest.approx(float(genes["adapter_lr"]), rel=0.01)
    assert longest["full"] == pytest.approx(float(genes["adapter_lr"]) / 10, rel=0.01)


def test_factors_decay_and_magnitudes_do_not(task: Task, genes: dict[str, Any]) -> None:
    with fine_tune(task, genes | {"adapter": "dora", "weight_decay": 0.2}, steps=3, seed=0) as tuning:
        adapter = tuning.adapter
        before = [p.detach().clone() for p in adapter.weights()]
        for parameter in adapter.weights():
            parameter.grad = torch.zeros_like(parameter)
        tuning._lora.step()
        for old, parameter in zip(before, adapter.weights(), strict=True):
            is_magnitude = any(parameter is m for m in adapter.magnitudes())
            assert torch.allclose(parameter, old * (1.0 if is_magnitude else 1 - 0.2 * 1e-2))
        assert len(adapter.magnitudes()) == len(adapter.factors()) / 2 == 4


def test_without_id_embeddings_the_file_has_none(task: Task, genes: dict[str, Any]) -> None:
    scorer, _ = tuned(task, {**genes, "id_embeddings": False})
    assert not scorer.model.shape.item_embeddings
    assert "item_embedding" not in parameters(scorer.model)
    assert task.start.shape.item_embeddings


RUNGS = (2, 4, 6)
# Neither alpha / rank nor its inverse is a number that a computer holds exactly.
AWKWARD = {"rank": 6, "alpha": 11.0, "dropout": 0.2, "temperature": 1.3, "weight_decay": 0.1, "distillation": 0.3}


@pytest.fixture(scope="module", params=["attention", "decayed_mean"])
def some_task(request: pytest.FixtureRequest, task: Task) -> Task:
    """With either tower."""
    shape = replace(SHAPE, tower=request.param)
    return replace(task, start=train_tower(shape, task.encoder.frozen, task.train, epochs=2, seed=0))


def straight(task: Task, genes: dict[str, Any]) -> list[dict[str, bytes]]:
    """The states at each rung of a candidate that stays where it is."""
    states = []
    with fine_tune(task, genes, steps=RUNGS[-1], seed=3) as tuning:
        for rung in RUNGS:
            tuning.advance(rung)
            states.append(files(tuning) | tuning.state())
    return states


def paused(task: Task, genes: dict[str, Any]) -> list[dict[str, bytes]]:
    """The states at each rung of a candidate that is begun anew there, from what it has left as bytes."""
    states: list[dict[str, bytes]] = []
    for rung in RUNGS:
        torch.manual_seed(rung)  # what chance has done elsewhere does not matter
        source = states[-1] if states else None
        with fine_tune(task, genes, steps=RUNGS[-1], seed=3, source=source) as tuning:
            assert tuning.done == rung - 2
            tuning.advance(rung)
            states.append(files(tuning) | tuning.state())
    return states


def differing(some: Sequence[dict[str, bytes]], others: Sequence[dict[str, bytes]]) -> list[tuple[int, str]]:
    """Rungs and names of the files that are not the same."""
    return [
        (rung, name)
        for rung, ours, theirs in zip(RUNGS, some, others, strict=True)
        for name in ours.keys() | theirs.keys()
        if ours.get(name) != theirs.get(name)
    ]


@pytest.mark.parametrize("scalarisation", ["weighted_sum", "tchebycheff"])
@pytest.mark.parametrize("id_embeddings", [True, False])
def test_paused_at_each_rung_and_continued_elsewhere_it_ends_as_if_it_had_never_stopped(
    some_task: Task, genes: dict[str, Any], scalarisation: str, id_embeddings: bool
) -> None:
    genes = {**genes, **AWKWARD, "scalarisation": scalarisation, "id_embeddings": id_embeddings}
    assert differing(straight(some_task, genes), paused(some_task, genes)) == []


@pytest.mark.parametrize("adapter", ["rslora", "dora", "full"])
def test_adapters_of_every_form_go_on_as_if_they_had_never_stopped(
    task: Task, genes: dict[str, Any], adapter: str
) -> None:
    genes = {**genes, **AWKWARD, "adapter": adapter}
    assert differing(straight(task, genes), paused(task, genes)) == []


def test_where_the_adapter_does_not_learn_a_pause_changes_nothing_either(task: Task, genes: dict[str, Any]) -> None:
    genes = {**genes, **AWKWARD, "adapter_lr": 0.0}
    assert differing(straight(task, genes), paused(task, genes)) == []


def test_a_state_that_is_taken_up_and_laid_down_is_the_same_state(task: Task, genes: dict[str, Any]) -> None:
    genes = {**genes, **AWKWARD}
    with fine_tune(task, genes, steps=6, seed=0) as tuning:
        tuning.advance(2)
        state, vectors = files(tuning) | tuning.state(), task.encoder.catalogue(2)
    with fine_tune(task, genes, steps=6, seed=0, source=state) as tuning:
        assert files(tuning) | tuning.state() == state
        assert torch.equal(task.encoder.catalogue(2), vectors)


def test_a_candidate_that_goes_on_learns_more(task: Task, genes: dict[str, Any], toy_split: Split) -> None:
    losses = []
    with fine_tune(task, genes, steps=12, seed=0) as tuning:
        for rung in (2, 6, 12):
            tuning.advance(rung)
            assert tuning.done == rung
            losses.append(loss(TowerScorer.of(tuning.model, task.encoder.catalogue(2)), toy_split))
    assert losses == sorted(losses, reverse=True)


def test_the_learning_rate_falls_over_the_steps_of_the_full_rung(task: Task, genes: dict[str, Any]) -> None:
    moved = []
    for steps in (2, 20):
        with fine_tune(task, {**genes, "weight_decay": 0.0}, steps=steps, seed=0) as tuning:
            tuning.advance(1)
            before = tuning.model.towers[0].projection.weight.detach().clone()
            tuning.advance(2)
            moved.append(float((tuning.model.towers[0].projection.weight - before).detach().abs().mean()))
    # The second of two steps is the last, on the way down to zero; the second of twenty is at full height.
    assert moved[0] < 0.7 * moved[1]


def test_a_divergence_after_a_pause_is_noticed(task: Task, genes: dict[str, Any]) -> None:
    with fine_tune(task, genes, steps=4, seed=0) as tuning:
        tuning.advance(2)
        with torch.no_grad():
            tuning.model.towers[0].projection.weight[0, 0] = math.nan
        with pytest.raises(DivergedError, match="step 3 of 4"):
            tuning.advance(4)


@pytest.fixture(scope="module")
def parent(task: Task, genes: dict[str, Any]) -> tuple[dict[str, bytes], torch.Tensor]:
    """The checkpoint of a candidate, far from the warm start, and its text vectors."""
    with fine_tune(task, genes, steps=8, seed=7) as tuning:
        tuning.advance(8)
        return files(tuning), task.encoder.catalogue(2)


CHILD = {"dropout": 0.2, "alpha": 11.0, "adapter_lr": 1e-3, "tower_lr": 1e-3, "temperature": 0.8}


@pytest.mark.parametrize("rank", [4, 8])
def test_a_child_starts_from_its_parents_vectors(
    task: Task,
    genes: dict[str, Any],
    parent: tuple[dict[str, bytes], torch.Tensor],
    rank: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint, vectors = parent
    seen: list[torch.Tensor] = []

    def spy(encoder: Encoder, steps: Sequence[EncoderStep]) -> None:
        seen.append(steps[0].text.clone())

    monkeypatch.setattr(train, "encoder_pass", spy)
    with fine_tune(task, {**genes, **CHILD, "rank": rank}, steps=6, seed=1, source=checkpoint) as tuning:
        assert tuning.done == 0
        assert torch.allclose(task.encoder.catalogue(2), vectors, atol=1e-5)
        assert not torch.allclose(vectors, task.encoder.frozen, atol=1e-2)
        tuning.advance(1)
    # Of the first step the tower's batches come first, on what the encoder gave before it.
    assert torch.allclose(seen[0], vectors, atol=1e-5)


def parameters(model: Recommender) -> dict[str, torch.Tensor]:
    """By their names in the file."""
    return load(model.files({})["recommender.safetensors"])


def test_a_child_starts_from_its_parents_tower_with_a_temperature_of_its_own(
    task: Task, genes: dict[str, Any], parent: tuple[dict[str, bytes], torch.Tensor]
) -> None:
    theirs = parameters(Recommender.loaded(parent[0]))
    with fine_tune(task, {**genes, **CHILD}, steps=6, seed=1, source=parent[0]) as tuning:
        ours = parameters(tuning.model)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == ["temperature"]
    assert ours["temperature"].tolist() == pytest.approx([0.8])
    start = parameters(task.start)
    assert not any(torch.equal(theirs[name], start[name]) for name in theirs if name != "temperature")


def test_ids_that_the_parent_lacks_come_from_the_warm_start(task: Task, genes: dict[str, Any]) -> None:
    with fine_tune(task, {**genes, "id_embeddings": False}, steps=4, seed=7) as tuning:
        tuning.advance(4)
        bare = files(tuning)
    with fine_tune(task, genes, steps=4, seed=1, source=bare) as tuning:
        ours = parameters(tuning.model)
    theirs, start = parameters(Recommender.loaded(bare)), parameters(task.start)
    assert set(ours) - set(theirs) == {"item_embedding"}
    assert torch.equal(ours["item_embedding"], start["item_embedding"])
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_ids_that_the_child_does_not_want_are_left_behind(
    task: Task, genes: dict[str, Any], parent: tuple[dict[str, bytes], torch.Tensor]
) -> None:
    with fine_tune(task, {**genes, "id_embeddings": False}, steps=4, seed=1, source=parent[0]) as tuning:
        assert "item_embedding" not in parameters(tuning.model)
        tuning.advance(4)


def test_inheritance_gives_a_lead(
    task: Task, genes: dict[str, Any], parent: tuple[dict[str, bytes], torch.Tensor], toy_split: Split
) -> None:
    losses = []
    for source in (None, parent[0]):
        with fine_tune(task, genes, steps=2, seed=1, source=source) as tuning:
            tuning.advance(2)
            losses.append(loss(TowerScorer.of(tuning.model, task.encoder.catalogue(2)), toy_split))
    assert losses[1] < losses[0] - 0.3


def test_a_parents_checkpoint_brings_no_optimiser_and_a_state_does(
    task: Task, genes: dict[str, Any], parent: tuple[dict[str, bytes], torch.Tensor]
) -> None:
    with fine_tune(task, genes, steps=4, seed=1) as tuning:
        tuning.advance(2)
        assert set(tuning.state()) == {OPTIMISER}
        names = {name.rpartition(".")[2] for name in load(tuning.state()[OPTIMISER])}
    assert names == {"done", "start", "step", "exp_avg", "exp_avg_sq"}
    assert OPTIMISER not in parent[0]


@pytest.mark.parametrize("sampled", [False, True])
def test_items_that_nobody_has_met_are_no_negatives(
    encoder: Encoder, toy_split: Split, monkeypatch: pytest.MonkeyPatch, sampled: bool
) -> None:
    if sampled:
        monkeypatch.setattr(sample, "FULL_SOFTMAX", 10)
        monkeypatch.setattr(sample, "SAMPLED", 8)
    shape = replace(SHAPE, n_items=22)
    frozen = torch.cat([encoder.frozen, encoder.frozen[:1] * torch.tensor([[1.0], [-1.0]])])
    counts = np.bincount(toy_split.train.items, minlength=22)
    counted = train_tower(shape, frozen, toy_split.train, epochs=20, seed=0).towers[0]
    assert (counted.item_embedding[20:] == 0).all()
    rarest = np.flatnonzero(counts == counts[:20].min())
    assert counted.item_bias[20:].tolist() == pytest.approx([float(counted.item_bias[rarest].mean().detach())] * 2)
    # Their texts have no say either: with others of the same mean, all that was trained is the same.
    other = torch.cat([frozen[:20], frozen[20:].flip(0)])
    theirs = train_tower(shape, other, toy_split.train, epochs=20, seed=0).towers[0]
    assert torch.allclose(counted.projection.weight, theirs.projection.weight, atol=1e-5)  # means are sums in an order
    assert torch.allclose(counted.item_bias, theirs.item_bias, atol=1e-5)


def test_on_ids_alone_every_item_is_a_negative(toy_split: Split) -> None:
    shape = Shape(22, 16, 6, "attention", 0, item_embeddings=True)
    tower = train_tower(shape, None, toy_split.train, epochs=20, seed=0).towers[0]
    assert (tower.item_bias[20:] < -0.02).all()  # with a text these would have that of the rarest others
    assert (tower.item_embedding[20:] != 0).all()


def test_an_item_that_fine_tuning_does_not_meet_is_as_the_rarest_others(task: Task, genes: dict[str, Any]) -> None:
    met = replace(task.train, items=np.where(task.train.items == 19, 18, task.train.items))
    with fine_tune(replace(task, train=met), genes, steps=1, seed=0) as tuning:
        tuning.advance(1)
    counts = np.bincount(met.items, minlength=20)
    bias = tuning.model.towers[0].item_bias.detach()
    assert float(bias[19]) == pytest.approx(float(bias[np.flatnonzero(counts == counts[:19].min())].mean()))


def test_users_to_whom_nothing_is_left_are_no_reason_to_diverge(task: Task, genes: dict[str, Any]) -> None:
    both = replace(task.train, items=(task.train.items % 2).astype(np.int32))  # bought again and again
    with fine_tune(replace(task, train=both), genes, steps=2, seed=0) as tuning:
        tuning.advance(2)
    assert all(bool(p.isfinite().all()) for p in tuning.model.parameters())


def test_lists_in_training_are_of_what_is_offered(toy_split: Split) -> None:
    offered = np.arange(20) < 5
    hidden = Scopes(toy_split.train, SHAPE, 0, "cpu", offered).hidden
    assert hidden.tolist() == [0.0] * 5 + [-math.inf] * 15
    unmet = replace(toy_split.train, items=np.where(toy_split.train.items < 5, 7, toy_split.train.items))
    assert Scopes(unmet, SHAPE, 0, "cpu", offered).hidden.tolist() == [0.0] * 20
