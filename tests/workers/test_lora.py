"""Adapters: put in, taken out, and as files that PEFT reads."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from peft import PeftModel
from plain import unit_vectors
from transformers import AutoModel, BertConfig, DistilBertConfig

from pareto_search.errors import CheckpointError
from pareto_search.recsys.dataset import Dataset
from pareto_search.workers.base import Base
from pareto_search.workers.encoder import Encoder
from pareto_search.workers.lora import Adapter, Form, LoraShape, attached, inherit, loaded, truncated

SHAPE = LoraShape(rank=4, alpha=16.0, dropout=0.0, targets="query_value", layers=2)
SELF = "attention.self"
DENSE = ("attention.output.dense", "intermediate.dense", "output.dense")


def stir(adapter: Adapter) -> None:
    """Moves an adapter away from its start, where B is zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for _, module in adapter.named():
            module.factors()[-1].normal_(std=0.3)
            if module.magnitude is not None:
                module.magnitude.mul_(torch.rand(len(module.magnitude)) + 0.5)


def state(encoder: Encoder) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in encoder.model.state_dict().items()}


def write(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_taken_out_an_adapter_leaves_the_base_bit_for_bit(encoder: Encoder) -> None:
    before, vectors = state(encoder), encoder.catalogue(2)
    with attached(encoder, SHAPE) as adapter:
        stir(adapter)
        assert not torch.allclose(encoder.catalogue(2), vectors, atol=1e-3)
    assert same(state(encoder), before)
    assert torch.equal(encoder.catalogue(2), vectors)


def test_an_error_inside_takes_the_adapter_out_too(encoder: Encoder) -> None:
    before = state(encoder)
    with pytest.raises(KeyError), attached(encoder, SHAPE):
        raise KeyError
    assert same(state(encoder), before)


def test_a_fresh_adapter_is_the_identity(encoder: Encoder) -> None:
    vectors = encoder.catalogue(3)
    with attached(encoder, replace(SHAPE, targets="all", layers=3)) as adapter:
        assert torch.equal(encoder.catalogue(3), vectors)
        assert all(float(m.A.detach().abs().sum()) > 0 for _, m in adapter.named())


@pytest.mark.parametrize(
    ("targets", "layers", "children"),
    [
        ("query_value", 1, [f"{SELF}.query", f"{SELF}.value"]),
        ("query_value", 3, [f"{SELF}.query", f"{SELF}.value"]),
        ("attention", 2, [f"{SELF}.query", f"{SELF}.key", f"{SELF}.value", "attention.output.dense"]),
        ("all", 2, [f"{SELF}.query", f"{SELF}.key", f"{SELF}.value", *DENSE]),
    ],
)
def test_targets_and_layers_choose_the_maps(encoder: Encoder, targets: Any, layers: int, children: list[str]) -> None:
    with attached(encoder, replace(SHAPE, targets=targets, layers=layers)) as adapter:
        names = {name for name, _ in adapter.named()}
    assert names == {f"encoder.layer.{i}.{child}" for i in range(3 - layers, 3) for child in children}


def test_other_architectures_name_their_queries_and_values_otherwise(
    save_base: Callable[[Any], Base], toy: Dataset
) -> None:
    config = DistilBertConfig(vocab_size=40, max_position_embeddings=32, dim=32, n_layers=2, n_heads=2, hidden_dim=64)
    with attached(Encoder(save_base(config), toy.texts, max_tokens=16, layers=1), replace(SHAPE, layers=1)) as adapter:
        assert {n for n, _ in adapter.named()} == {f"transformer.layer.1.attention.{c}_lin" for c in "qv"}


def test_only_the_adapter_learns(encoder: Encoder) -> None:
    with attached(encoder, SHAPE) as adapter:
        stir(adapter)
        items = next(iter(encoder.chunks(torch.arange(20).numpy())))
        encoder.encode(items, 2)[:, 0].sum().backward()
        assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in adapter.weights())
        learning = {name for name, p in encoder.model.named_parameters() if p.requires_grad}
        assert len(learning) == len(adapter.weights()) == 2 * 2 * 2
        assert all(name.endswith((".A", ".B")) for name in learning)


@pytest.mark.parametrize("targets", ["query_value", "attention", "all"])
def test_peft_loads_the_files_and_computes_the_same_vectors(
    encoder: Encoder, toy: Dataset, tmp_path: Path, targets: Any
) -> None:
    with attached(encoder, replace(SHAPE, targets=targets)) as adapter:
        stir(adapter)
        ours = encoder.catalogue(2)
        write(adapter.files("tiny", None), tmp_path)
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(encoder.base.folder), tmp_path)
    theirs = torch.from_numpy(unit_vectors(model, str(encoder.base.folder), toy.texts, 16))
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(ours, encoder.frozen, atol=1e-3)


def test_the_config_says_what_peft_wants_to_know(encoder: Encoder) -> None:
    with attached(encoder, replace(SHAPE, dropout=0.125)) as adapter:
        config = json.loads(adapter.files("owner/name", "v1")["adapter_config.json"])
    wanted = {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "r": 4,
        "lora_alpha": 16.0,
        "lora_dropout": 0.125,
        "base_model_name_or_path": "owner/name",
        "revision": "v1",
    }
    assert {name: config[name] for name in wanted} == wanted


@pytest.mark.parametrize("targets", ["query_value", "all"])
@pytest.mark.parametrize("layers", [1, 3])
def test_loaded_files_are_the_adapter_that_was_saved(encoder: Encoder, targets: Any, layers: int) -> None:
    with attached(encoder, replace(SHAPE, targets=targets, layers=layers)) as adapter:
        stir(adapter)
        saved = {name: (m.A.detach().clone(), m.B.detach().clone()) for name, m in adapter.named()}
        vectors, files = encoder.catalogue(layers), adapter.files("tiny", None)
    with loaded(encoder, files) as again:
        found = dict(again.named())
        assert all(torch.equal(found[n].A, a) and torch.equal(found[n].B, b) for n, (a, b) in saved.items())
        assert again.shape.layers == layers
        assert torch.equal(encoder.catalogue(layers), vectors)
    assert torch.equal(encoder.catalogue(layers), Encoder.catalogue(encoder, layers))


WIDE = LoraShape(rank=8, alpha=12.0, dropout=0.1, targets="all", layers=3)


def product(b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    return b.detach().double() @ a.detach().double()


def maps(adapter: Adapter) -> dict[str, torch.Tensor]:
    """What each place adds to its linear map, s·B·A."""
    return {name: m.scale * product(m.B, m.A) for name, m in adapter.named()}


def parent(encoder: Encoder, shape: LoraShape) -> tuple[dict[str, bytes], dict[str, torch.Tensor], torch.Tensor]:
    """A trained adapter: its files, its maps and the vectors that it gives."""
    with attached(encoder, shape) as adapter:
        stir(adapter)
        adapter.eval()
        return adapter.files("tiny", None), maps(adapter), encoder.catalogue(shape.layers)


@pytest.mark.parametrize("rank", [4, 5, 16])
@pytest.mark.parametrize("alpha", [16.0, 11.0])
def test_with_its_rank_or_a_larger_one_an_heir_is_the_same_map(encoder: Encoder, rank: int, alpha: float) -> None:
    files, theirs, vectors = parent(encoder, SHAPE)
    with attached(encoder, replace(SHAPE, rank=rank, alpha=alpha)) as adapter:
        inherit(adapter.eval(), files)
        ours = maps(adapter)
        assert ours.keys() == theirs.keys()
        assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)
        assert torch.allclose(encoder.catalogue(2), vectors, atol=1e-5)
    assert not torch.allclose(vectors, encoder.frozen, atol=1e-2)


def test_with_its_parents_genes_an_heir_is_its_parent_bit_for_bit(encoder: Encoder) -> None:
    shape = replace(SHAPE, rank=6, alpha=11.0)
    files, _, vectors = parent(encoder, shape)
    with attached(encoder, shape) as adapter:
        inherit(adapter.eval(), files)
        assert adapter.files("tiny", None) == files
        assert torch.equal(encoder.catalogue(2), vectors)


def test_a_larger_rank_has_directions_of_its_own_to_learn_along(encoder: Encoder) -> None:
    files, _, _ = parent(encoder, SHAPE)
    with attached(encoder, replace(SHAPE, rank=6)) as adapter:
        inherit(adapter, files)
        for _, module in adapter.named():
            assert not module.B[:, 4:].any()
            assert (module.A[4:].abs().sum(1) > 0).all()


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [("dora", "dora"), ("dora", "lora"), ("rslora", "lora"), ("lora", "rslora"), ("full", "lora"), ("full", "full")],
)
def test_an_heir_of_another_form_is_the_same_map(encoder: Encoder, mine: Form, theirs: Form) -> None:
    files, _, vectors = parent(encoder, replace(SHAPE, form=theirs))
    with attached(encoder, replace(SHAPE, rank=6, form=mine)) as adapter:
        inherit(adapter.eval(), files)
        assert torch.allclose(encoder.catalogue(2), vectors, atol=1e-5)


def test_an_heir_without_magnitudes_leaves_them_behind(encoder: Encoder) -> None:
    files, theirs, _ = parent(encoder, replace(SHAPE, form="dora"))
    with attached(encoder, SHAPE) as adapter:
        inherit(adapter, files)
        assert all(torch.allclose(found, theirs[name], atol=1e-6) for name, found in maps(adapter).items())


def test_at_its_start_every_form_is_the_base_model(encoder: Encoder) -> None:
    for form in get_args(Form):
        with attached(encoder, replace(SHAPE, targets="all", form=form)):
            assert torch.allclose(encoder.catalogue(2), encoder.frozen, atol=1e-5)


def test_a_whole_map_learns_as_the_map_itself_would(encoder: Encoder) -> None:
    shape = replace(SHAPE, targets="all", form="full", layers=1)
    items = next(iter(encoder.chunks(torch.arange(20).numpy())))
    places = {}
    with attached(encoder, shape) as adapter:
        encoder.encode(items, 1)[:, 0].sum().backward()
        for name, module in adapter.named():
            [own] = module.factors()
            assert own.shape == module.linear.weight.shape
            places[name] = own.grad
        assert len(adapter.weights()) == len(adapter.factors()) == len(places) == 6
    for name, ours in places.items():
        weight = encoder.model.get_submodule(name).weight.requires_grad_()
        encoder.encode(items, 1)[:, 0].sum().backward()
        assert torch.allclose(ours, weight.grad, atol=1e-6)
        weight.requires_grad_(False).grad = None


def test_of_a_whole_map_an_heir_of_some_rank_is_the_nearest(encoder: Encoder) -> None:
    shape = replace(SHAPE, targets="all", form="full")
    with attached(encoder, shape) as adapter:
        torch.manual_seed(1)
        for _, module in adapter.named():
            module.become(torch.randn(len(module.B), 9), torch.randn(9, module.A.shape[1]))
        files, theirs, vectors = adapter.files("tiny", None), maps(adapter), encoder.catalogue(2)
    with loaded(encoder, files):
        assert torch.allclose(encoder.catalogue(2), vectors, atol=1e-5)
    with attached(encoder, replace(SHAPE, targets="all")) as adapter:
        inherit(adapter, files)
        for name, found in maps(adapter).items():
            u, s, vh = torch.linalg.svd(theirs[name], full_matrices=False)
            assert torch.allclose(found, u[:, :4] * s[:4] @ vh[:4], atol=1e-3)


def test_the_scale_of_each_form() -> None:
    scales = {form: replace(SHAPE, form=form).scale for form in get_args(Form)}
    assert scales == {"lora": 4, "rslora": 8, "dora": 4, "full": 1}


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_with_a_smaller_rank_an_heir_is_the_nearest_map(encoder: Encoder, rank: int) -> None:
    files, theirs, _ = parent(encoder, SHAPE)
    with attached(encoder, replace(SHAPE, rank=rank, alpha=11.0)) as adapter:
        inherit(adapter, files)
        for name, ours in maps(adapter).items():
            u, s, vh = torch.linalg.svd(theirs[name])
            nearest = u[:, :rank] * s[:rank] @ vh[:rank]
            assert torch.allclose(ours, nearest, atol=1e-5)
            assert not torch.allclose(ours, theirs[name], atol=1e-2)


def test_an_heir_with_more_places_starts_the_others_afresh(encoder: Encoder) -> None:
    files, theirs, vectors = parent(encoder, SHAPE)
    with attached(encoder, WIDE) as adapter:
        before = {name: m.A.detach().clone() for name, m in adapter.named()}
        inherit(adapter.eval(), files)
        ours = maps(adapter)
        assert len(ours) > len(theirs)
        for name, module in adapter.named():
            if name in theirs:
                assert torch.allclose(ours[name], theirs[name], atol=1e-6)
            else:
                assert not module.B.any()
                assert torch.equal(module.A, before[name])
        assert torch.allclose(encoder.catalogue(3), vectors, atol=1e-5)


def test_an_heir_with_fewer_places_leaves_the_others_behind(encoder: Encoder) -> None:
    files, theirs, _ = parent(encoder, WIDE)
    with attached(encoder, replace(SHAPE, rank=8, layers=1)) as adapter:
        inherit(adapter, files)
        ours = maps(adapter)
    assert ours.keys() < theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)


def test_an_heir_of_another_place_altogether_starts_afresh(encoder: Encoder) -> None:
    files, _, _ = parent(encoder, replace(SHAPE, layers=1))
    only = "encoder.layer.0.attention.self.query"
    with attached(encoder, replace(SHAPE, layers=3), [only]) as adapter:
        inherit(adapter, files)
        assert not any(m.B.any() for _, m in adapter.named())


@pytest.mark.parametrize("into", [24, 32])
@pytest.mark.parametrize("out", [24, 40])
@pytest.mark.parametrize("rank", [1, 5, 9, 30])
def test_factors_are_cut_to_the_nearest_map_of_a_rank(out: int, into: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    b, a = torch.randn(out, 36, generator=generator), torch.randn(36, into, generator=generator)
    cut_b, cut_a = truncated(b, a, rank)
    u, s, vh = torch.linalg.svd(product(b, a), full_matrices=False)
    wide = min(rank, len(s))
    assert cut_b.shape == (out, wide)
    assert cut_a.shape == (wide, into)
    assert torch.allclose(product(cut_b, cut_a), u[:, :rank] * s[:rank] @ vh[:rank], atol=1e-3)
    # Each factor has half of every singular value.
    root = s[:wide].sqrt().float()
    assert torch.allclose(cut_b.norm(dim=0), root, rtol=1e-3)
    assert torch.allclose(cut_a.norm(dim=1), root, rtol=1e-3)


def test_factors_that_are_no_wider_than_the_rank_stay_as_they_are() -> None:
    b, a = torch.randn(8, 3), torch.randn(3, 6)
    assert all(truncated(b, a, rank) == (b, a) for rank in (3, 4))


def test_factors_of_nothing_are_cut_to_nothing() -> None:
    b, a = truncated(torch.zeros(8, 4), torch.randn(4, 6), 2)
    assert b.shape == (8, 2)
    assert a.shape == (2, 6)
    assert not (b @ a).any()


def test_a_child_of_lower_rank_than_a_parent_that_has_learned_nothing_can_learn(encoder: Encoder) -> None:
    with attached(encoder, replace(SHAPE, rank=8)) as parent:
        files = parent.files("tiny", None)  # whose B is still zero
    with attached(encoder, SHAPE) as child:
        inherit(child, files)
        assert not any(change.any() for change in maps(child).values())
        encoder.encode(np.array([0]), 2).sum().backward()
        assert all(module.B.grad is not None and module.B.grad.any() for _, module in child.named())


def test_an_adapter_of_another_base_is_refused(
    encoder: Encoder, save_base: Callable[[Any], Base], toy: Dataset
) -> None:
    wide = BertConfig(vocab_size=40, hidden_size=48, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64)
    other = Encoder(save_base(wide), toy.texts, max_tokens=16, layers=3)
    with attached(other, SHAPE) as adapter:
        files = adapter.files("other", None)
    before = state(encoder)
    with pytest.raises(CheckpointError, match="the adapter does not fit base model"), loaded(encoder, files):
        pass
    assert same(state(encoder), before)
