"""Packs: whatever trains beside it, a candidate becomes what it becomes alone."""

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from pareto_search.errors import DivergedError
from pareto_search.objective import Objective
from pareto_search.recsys.baselines import ease
from pareto_search.recsys.dataset import Dataset
from pareto_search.recsys.split import Split
from pareto_search.recsys.statistics import ItemStatistics, category_features
from pareto_search.workers import encoder as encoder_module
from pareto_search.workers import pack as module
from pareto_search.workers import sample
from pareto_search.workers.base import Base
from pareto_search.workers.distillation import Teacher
from pareto_search.workers.encoder import Encoder
from pareto_search.workers.lora import LoraShape, attached, fresh
from pareto_search.workers.losses import ItemTensors
from pareto_search.workers.pack import Pack, Stack, encoder_step
from pareto_search.workers.recommender import Shape
from pareto_search.workers.task import Task
from pareto_search.workers.train import EncoderStep, FineTuning, fine_tune, train_tower

SHAPE = Shape(n_items=20, width=16, history=6, tower="attention", text_width=32, item_embeddings=True)
STEPS = 4


@pytest.fixture(scope="module")
def task(encoder: Encoder, toy: Dataset, toy_split: Split, objectives: Sequence[Objective]) -> Task:
    assert toy.categories is not None
    items = ItemStatistics.of(toy_split.train, 20, category_features(toy.categories))
    start = train_tower(SHAPE, encoder.frozen, toy_split.train, epochs=2, seed=0)
    teacher = Teacher(ease(toy_split.train, 20), items, toy_split.validation)
    return Task(encoder, start, toy_split.train, ItemTensors(items, "cpu"), objectives, teacher=teacher)


@pytest.fixture
def several(genes: dict[str, Any]) -> list[dict[str, Any]]:
    """Candidates that have nothing in common."""
    return [
        {**genes, "dropout": 0.0, "rank": 2, "layers": 1, "adapter_lr": 1e-3},
        {**genes, "dropout": 0.3, "rank": 8, "layers": 3, "targets": "all", "weight_decay": 0.2, "tower_lr": 1e-3},
        {**genes, "dropout": 0.1, "rank": 4, "targets": "attention", "alpha": 11.0, "id_embeddings": False}
        | {"adapter": "dora", "distillation": 0.5},
        {**genes, "dropout": 0.2, "layers": 1, "scalarisation": "tchebycheff", "temperature": 1.3}
        | {"adapter": "full", "targets": "all"},
    ]


def files(tuning: FineTuning) -> dict[str, bytes]:
    return tuning.adapter.files("tiny", None) | tuning.model.files({}) | tuning.state()


def begun(
    task: Task, genes: dict[str, Any], seed: int, steps: int = STEPS, source: dict[str, bytes] | None = None
) -> FineTuning:
    return FineTuning(task, genes, steps=steps, seed=seed, source=source)


def alone(task: Task, genes: dict[str, Any], seed: int, steps: int = STEPS) -> dict[str, bytes]:
    with fine_tune(task, genes, steps=steps, seed=seed) as tuning:
        tuning.advance(steps)
        return files(tuning)


def together(pack: Pack, tunings: Sequence[FineTuning], to: int = STEPS) -> list[BaseException | None]:
    """Trains them side by side; what each raised."""

    async def all_of_them() -> list[BaseException | None]:
        return await asyncio.gather(*(pack.advance(t, to) for t in tunings), return_exceptions=True)

    return asyncio.run(all_of_them())


def assert_alike(some: dict[str, bytes], others: dict[str, bytes]) -> None:
    """Every tensor of two states within 1e-4.

    But for the bias of the tower's keys: it changes no softmax, so that its gradient is nothing but rounding, and Adam
    makes steps of full size of it.
    """
    assert some.keys() == others.keys()
    for name in (n for n in some if n.endswith(".safetensors")):
        ours, theirs = load(some[name]), load(others[name])
        assert ours.keys() == theirs.keys()
        width = SHAPE.width
        for key, tensor in ours.items():
            if key == "attention_in.bias":
                tensor[width : 2 * width] = theirs[key][width : 2 * width]
            assert torch.allclose(tensor, theirs[key], rtol=0, atol=1e-4), (name, key)


def test_side_by_side_each_becomes_what_it_becomes_alone(task: Task, several: list[dict[str, Any]]) -> None:
    tunings = [begun(task, genes, seed) for seed, genes in enumerate(several)]
    before = {name: tensor.clone() for name, tensor in task.encoder.model.state_dict().items()}
    assert together(Pack(task.encoder), tunings) == [None] * 4
    for seed, (genes, tuning) in enumerate(zip(several, tunings, strict=True)):
        assert tuning.done == STEPS
        assert any(bool(m.factors()[-1].abs().max() > 1e-3) for _, m in tuning.adapter.named())
        assert_alike(files(tuning), alone(task, genes, seed))
    after = task.encoder.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_who_trains_beside_it_changes_nothing_that_chance_decides(task: Task, several: list[dict[str, Any]]) -> None:
    draws: list[torch.Tensor] = []
    for beside in (several[:1], several[2:]):
        tunings = [begun(task, several[1], 7), *(begun(task, genes, 8) for genes in beside)]
        together(Pack(task.encoder), tunings)
        draws.append(tunings[0]._generator.get_state())
    assert torch.equal(*draws)


@pytest.mark.parametrize("widths", [1, 8])
def test_one_encoder_step_gives_each_the_gradient_of_its_own_items(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch, widths: int
) -> None:
    monkeypatch.setattr(encoder_module, "TOKENS", 400)  # several chunks of a length, of different sizes
    texts = [f"{i} red" if i % 3 else "red" for i in range(400)]
    many = Encoder(tiny_base, texts, max_tokens=16, layers=3, widths=widths)
    shapes = [
        LoraShape(4, 16.0, 0.0, "query_value", 1),
        LoraShape(7, 11.0, 0.0, "all", 3),
        LoraShape(2, 2.0, 0.0, "attention", 2),
        LoraShape(3, 6.0, 0.0, "all", 2, "dora"),
    ]
    generator = torch.Generator().manual_seed(0)
    found, steps = [], []
    for place, shape in enumerate(shapes):
        adapter = fresh(many, shape)
        with torch.no_grad():
            for _, correction in adapter.named():
                correction.B.normal_(std=0.3, generator=generator)
        gradient = torch.randn(400, 32, generator=generator)
        gradient[place::4] *= 10  # another part of the catalogue for each
        steps.append(EncoderStep(torch.zeros(400, 32), gradient, adapter))
        found.append((gradient.clone(), steps[-1].turn(many)))
    assert len({tuple(turn.tolist()) for _, turn in found}) == 4
    encoder_step(many, steps)
    for step, (gradient, turn) in zip(steps, found, strict=True):
        layers = step.adapter.shape.layers
        ours = [p.grad.clone() for p in step.adapter.weights() if p.grad is not None]
        step.adapter.zero_grad()
        with attached(many, step.adapter.shape) as again:
            again.load_state_dict(step.adapter.state_dict())
            for chunk in many.chunks(turn):
                (many.encode(chunk, layers) * gradient[chunk]).sum().backward()
            renewed = many.catalogue(layers)
        for mine, theirs in zip(ours, again.weights(), strict=True):
            assert torch.allclose(mine, theirs.grad, rtol=1e-4, atol=1e-3)
        assert torch.allclose(step.text[turn], renewed[turn], atol=1e-5)
        rest = np.setdiff1d(np.arange(400), turn)
        assert not step.text[rest].any()
        assert not step.gradient[turn].any()
        assert torch.equal(step.gradient[rest], gradient[rest])


@pytest.mark.parametrize("where", ["tower", "adapter"])
def test_one_that_diverges_does_not_touch_the_others(task: Task, several: list[dict[str, Any]], where: str) -> None:
    tunings = [begun(task, genes, seed) for seed, genes in enumerate(several)]
    with torch.no_grad():
        if where == "tower":
            tunings[1].model.towers[0].projection.weight[0, 0] = math.nan
        else:
            next(tunings[1].adapter.named())[1].B.fill_(math.nan)
    first, failed, *others = together(Pack(task.encoder), tunings)
    assert isinstance(failed, DivergedError)
    assert [first, *others] == [None] * 3
    for seed in (0, 2, 3):
        assert_alike(files(tunings[seed]), alone(task, several[seed], seed))


def test_a_place_that_becomes_free_is_filled_while_the_others_go_on(
    task: Task, several: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = (2, 6, 3, 2)
    tunings = [begun(task, g, seed, n) for seed, (g, n) in enumerate(zip(several, lengths, strict=True))]
    sizes: list[int] = []

    def counted(encoder: Encoder, steps: Sequence[EncoderStep]) -> None:
        sizes.append(len(steps))
        encoder_step(encoder, steps)

    async def two_at_a_time() -> None:
        pack, waiting = Pack(task.encoder), iter(zip(tunings, lengths, strict=True))

        async def place() -> None:
            for tuning, steps in waiting:
                await pack.advance(tuning, steps)

        await asyncio.gather(place(), place())

    monkeypatch.setattr(module, "encoder_step", counted)
    asyncio.run(two_at_a_time())
    # 2 + 3 + 2 steps in the one place beside 6 in the other: all but the last have company.
    assert sizes == [2, 2, 2, 2, 2, 2, 1]
    for seed, (genes, steps, tuning) in enumerate(zip(several, lengths, tunings, strict=True)):
        assert_alike(files(tuning), alone(task, genes, seed, steps))


def test_one_that_comes_later_joins_those_who_are_there(
    task: Task, several: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tunings = [begun(task, genes, seed) for seed, genes in enumerate(several[:2])]
    sizes: list[int] = []

    def counted(encoder: Encoder, steps: Sequence[EncoderStep]) -> None:
        sizes.append(len(steps))
        encoder_step(encoder, steps)

    async def one_after_the_other() -> None:
        pack = Pack(task.encoder)
        first = asyncio.create_task(pack.advance(tunings[0], STEPS))
        while not sizes:
            await asyncio.sleep(0)
        await asyncio.gather(first, pack.advance(tunings[1], STEPS))

    monkeypatch.setattr(module, "encoder_step", counted)
    asyncio.run(one_after_the_other())
    assert sum(sizes) == 2 * STEPS
    assert sizes[0] == 1
    assert max(sizes) == 2
    for seed, tuning in enumerate(tunings):
        assert_alike(files(tuning), alone(task, several[seed], seed))


def test_paused_at_a_rung_and_continued_in_another_pack_it_ends_as_alone(
    task: Task, several: list[dict[str, Any]]
) -> None:
    tunings = [begun(task, genes, seed) for seed, genes in enumerate(several[:3])]
    together(Pack(task.encoder), tunings, 2)
    states = [files(tuning) for tuning in tunings]
    # The first goes on beside one that begins, the second beside the third.
    newcomer = begun(task, several[3], 9)
    again = [begun(task, genes, seed, source=states[seed]) for seed, genes in enumerate(several[:3])]
    assert [t.done for t in again] == [2] * 3
    together(Pack(task.encoder), [again[0], newcomer])
    together(Pack(task.encoder), again[1:])
    for seed, tuning in enumerate(again):
        with fine_tune(task, several[seed], steps=STEPS, seed=seed) as straight:
            straight.advance(2)
            straight.advance(STEPS)
            assert_alike(files(tuning), files(straight))


def test_one_whose_adapter_does_not_learn_is_waited_for_by_nobody(task: Task, several: list[dict[str, Any]]) -> None:
    still = {**several[0], "adapter_lr": 0.0}
    tunings = [begun(task, still, 0), begun(task, several[1], 1)]
    assert together(Pack(task.encoder), tunings) == [None, None]
    assert_alike(files(tunings[0]), alone(task, still, 0))
    assert_alike(files(tunings[1]), alone(task, several[1], 1))


def test_what_goes_wrong_with_all_of_them_is_told_to_each(
    task: Task, several: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(module, "encoder_step", broken)
    raised = together(Pack(task.encoder), [begun(task, genes, 0) for genes in several[:2]])
    assert [str(error) for error in raised] == ["no more"] * 2
    assert torch.allclose(task.encoder.catalogue(3), task.encoder.frozen, atol=1e-5)


def test_of_a_large_catalogue_each_takes_its_own_sample(
    task: Task, several: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "FULL_SOFTMAX", 0)
    monkeypatch.setattr(sample, "SAMPLED", 8)
    tunings = [begun(task, genes, seed) for seed, genes in enumerate(several[:2])]
    together(Pack(task.encoder), tunings)
    for seed, tuning in enumerate(tunings):
        assert_alike(files(tuning), alone(task, several[seed], seed))


def test_rows_whose_tokens_share_one_axis_lose_what_they_lose_as_a_batch(encoder: Encoder) -> None:
    shape = LoraShape(rank=2, alpha=4.0, dropout=0.5, targets="query_value", layers=1)
    x, found = torch.randn(4, 5, 32), []
    for given in (x, x.flatten(0, 1)):
        torch.manual_seed(0)
        adapters = [fresh(encoder, shape, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
        modules = [next(module for _, module in adapter.named()) for adapter in adapters]
        for correction in modules:
            torch.nn.init.normal_(correction.B)
        stack = Stack(modules)
        stack.rows, stack.size = [2, 1], 2  # the last row only fills up
        found.append(stack(given).view(4, 5, -1)[:3])
    assert torch.equal(*found)
