"""Merged checkpoints against what the average of their maps is by hand."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from plain import unit_vectors
from safetensors.torch import load
from torch import Tensor, nn
from transformers import AutoModel

from pareto_search.recsys.dataset import Dataset
from pareto_search.recsys.split import Split
from pareto_search.workers.encoder import Encoder
from pareto_search.workers.evaluate import scorer
from pareto_search.workers.lora import LoraShape, attached, loaded
from pareto_search.workers.merge import merge
from pareto_search.workers.recommender import Recommender, Shape

NARROW = LoraShape(rank=4, alpha=11.0, dropout=0.1, targets="query_value", layers=2)
WIDE = LoraShape(rank=6, alpha=20.0, dropout=0.0, targets="all", layers=3)
TOWER = Shape(n_items=20, width=16, history=6, tower="attention", text_width=32, item_embeddings=True, towers=2)
WEIGHTS = (0.3, 0.7)


def checkpoint(
    encoder: Encoder, shape: LoraShape, seed: int, *, ids: bool = True, names: Sequence[str] | None = None
) -> dict[str, bytes]:
    """A checkpoint with random weights that nobody trained."""
    torch.manual_seed(seed)
    model = Recommender(replace(TOWER, item_embeddings=ids))
    with attached(encoder, shape, names) as adapter, torch.no_grad():
        for _, module in adapter.named():
            module.factors()[-1].normal_(std=0.3)
            if module.magnitude is not None:
                module.magnitude.mul_(torch.rand(len(module.magnitude)) + 0.5)
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
        for number in range(TOWER.towers):
            model.towers[number].temperature.fill_(1.0 + number + seed / 10)
        return adapter.files("tiny", None) | model.files({"candidate": f"c{seed:04d}"})


def average(checkpoints: Sequence[Mapping[str, bytes]], weights: Sequence[float] = WEIGHTS) -> dict[str, Tensor]:
    """Place -> Σ w·(alpha / rank)·B·A in double precision, from nothing but the files."""
    total: dict[str, Tensor] = {}
    for files, weight in zip(checkpoints, weights, strict=True):
        config, tensors = json.loads(files["adapter_config.json"]), load(files["adapter_model.safetensors"])
        for place in config["target_modules"]:
            b, a = (tensors[f"base_model.model.{place}.lora_{x}.weight"].double() for x in "BA")
            total[place] = total.get(place, 0.0) + weight * config["lora_alpha"] / config["r"] * (b @ a)
    return total


def nearest(matrix: Tensor, rank: int) -> Tensor:
    """The best approximation of that rank, by torch's SVD of the whole matrix."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank] @ vh[:rank]


def by_hand(encoder: Encoder, maps: Mapping[str, Tensor]) -> Tensor:
    """The vectors of the base model with these matrices added to its own weights."""
    linears: dict[str, nn.Linear] = {name: encoder.model.get_submodule(name) for name in maps}
    before = {name: linear.weight.data for name, linear in linears.items()}
    for name, linear in linears.items():
        linear.weight.data = before[name] + maps[name].float()
    try:
        return encoder.catalogue(3)
    finally:
        for name, linear in linears.items():
            linear.weight.data = before[name]


def vectors(encoder: Encoder, files: Mapping[str, bytes]) -> Tensor:
    with loaded(encoder, files) as adapter:
        return encoder.catalogue(adapter.shape.layers)


PAIRS = {
    "alike": (NARROW, NARROW),
    "of two ranks": (NARROW, replace(NARROW, rank=7, alpha=5.0)),
    "of two depths": (NARROW, replace(NARROW, layers=3)),
    "of other targets": (replace(NARROW, targets="attention"), replace(WIDE, layers=1)),
    "of other everything": (NARROW, WIDE),
}


@pytest.mark.parametrize("pair", list(PAIRS))
@pytest.mark.parametrize("weights", [WEIGHTS, (0.5, 0.5)])
def test_where_the_ranks_fit_together_a_merged_adapter_is_the_average_of_the_maps(
    encoder: Encoder, pair: str, weights: tuple[float, float]
) -> None:
    both = [checkpoint(encoder, shape, seed) for seed, shape in enumerate(PAIRS[pair])]
    merged, expected = merge(both, weights, 16, {}, encoder), average(both, weights)
    found = average([merged], [1.0])
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[place], expected[place], atol=1e-6) for place in expected)
    assert torch.allclose(vectors(encoder, merged), by_hand(encoder, expected), atol=1e-5)
    assert not torch.allclose(vectors(encoder, merged), encoder.frozen, atol=1e-2)


@pytest.mark.parametrize("rank", [1, 4, 8, 9])
@pytest.mark.parametrize("pair", ["alike", "of other everything"])
def test_where_they_do_not_fit_it_is_the_nearest_of_the_rank_at_each_place(
    encoder: Encoder, pair: str, rank: int
) -> None:
    both = [checkpoint(encoder, shape, seed) for seed, shape in enumerate(PAIRS[pair])]
    merged, full = merge(both, WEIGHTS, rank, {}, encoder), average(both)
    best, found = {place: nearest(matrix, rank) for place, matrix in full.items()}, average([merged], [1.0])
    assert json.loads(merged["adapter_config.json"])["r"] <= rank
    assert found.keys() == best.keys()
    assert all(torch.allclose(found[place], best[place], atol=1e-5) for place in best)
    assert torch.allclose(vectors(encoder, merged), by_hand(encoder, best), atol=1e-4)


FORMS = {
    "both": (replace(NARROW, form="dora"), replace(NARROW, form="dora", rank=7, alpha=5.0)),
    "one": (replace(NARROW, form="dora"), replace(NARROW, form="rslora")),
    "one, of other everything": (WIDE, replace(NARROW, form="dora")),
    "neither": (replace(NARROW, form="rslora"), NARROW),
    "neither, whole maps": (replace(WIDE, form="full"), NARROW),
    "one, and whole maps": (replace(WIDE, form="full"), replace(NARROW, form="dora")),
}


def whole(encoder: Encoder, files: Mapping[str, bytes], places: Sequence[str]) -> dict[str, Tensor]:
    """Place -> the map that an adapter makes of W, in double precision, from nothing but the files."""
    config, tensors = json.loads(files["adapter_config.json"]), load(files["adapter_model.safetensors"])
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    found: dict[str, Tensor] = {}
    for place in places:
        found[place] = encoder.model.get_submodule(place).weight.double()
        if place in config["target_modules"]:
            b, a = (tensors[f"base_model.model.{place}.lora_{x}.weight"].double() for x in "BA")
            found[place] = found[place] + scale * b @ a
            if config["use_dora"]:
                wanted = tensors[f"base_model.model.{place}.lora_magnitude_vector"].double()
                found[place] = found[place] * (wanted / found[place].square().sum(1).sqrt())[:, None]
    return found


@pytest.mark.parametrize("pair", list(FORMS))
def test_adapters_of_every_form_are_averaged_as_the_maps_that_they_make(encoder: Encoder, pair: str) -> None:
    both = [checkpoint(encoder, shape, seed) for seed, shape in enumerate(FORMS[pair])]
    merged = merge(both, WEIGHTS, 16, {}, encoder)
    config = json.loads(merged["adapter_config.json"])
    assert config["use_dora"] == (not pair.startswith("neither"))
    one, two = (whole(encoder, files, config["target_modules"]) for files in both)
    expected = {place: 0.3 * one[place] + 0.7 * two[place] for place in one}
    found = whole(encoder, merged, config["target_modules"])
    assert all(torch.allclose(found[place], expected[place], atol=1e-5) for place in expected)
    base = whole(encoder, both[0], []) | {p: encoder.model.get_submodule(p).weight.double() for p in expected}
    corrections = {place: expected[place] - base[place] for place in expected}
    assert torch.allclose(vectors(encoder, merged), by_hand(encoder, corrections), atol=1e-4)


def test_the_average_of_the_factors_would_be_another_map(encoder: Encoder) -> None:
    both = [checkpoint(encoder, NARROW, seed) for seed in (0, 1)]
    one, two = (load(files["adapter_model.safetensors"]) for files in both)
    place, expected = next(iter(average(both).items()))
    names = (f"base_model.model.{place}.lora_{x}.weight" for x in "BA")
    b, a = (0.3 * one[name].double() + 0.7 * two[name].double() for name in names)
    assert not torch.allclose(NARROW.alpha / NARROW.rank * b @ a, expected, atol=0.1)


@pytest.mark.parametrize("rank", [4, 8])
def test_merged_with_itself_a_checkpoint_is_itself(encoder: Encoder, toy_split: Split, rank: int) -> None:
    files = checkpoint(encoder, NARROW, 0)
    merged = merge([files, files], WEIGHTS, rank, {}, encoder)
    history = toy_split.validation.history
    ours, theirs = (torch.from_numpy(scorer(f, encoder).scores(history)) for f in (merged, files))
    assert torch.allclose(ours, theirs, atol=1e-3)
    assert torch.allclose(vectors(encoder, merged), vectors(encoder, files), atol=1e-5)


def test_a_share_of_one_leaves_the_first(encoder: Encoder) -> None:
    both = [checkpoint(encoder, shape, seed) for seed, shape in enumerate((NARROW, WIDE))]
    merged = merge(both, (1.0, 0.0), 10, {}, encoder)
    assert torch.allclose(vectors(encoder, merged), vectors(encoder, both[0]), atol=1e-5)
    ours, theirs = (load(files["recommender.safetensors"]) for files in (merged, both[0]))
    assert all(torch.allclose(ours[name], theirs[name]) for name in theirs)


def test_the_order_matters_as_little_as_it_should(encoder: Encoder) -> None:
    one, two = (checkpoint(encoder, shape, seed) for seed, shape in enumerate((NARROW, WIDE)))
    merged, swapped = merge([one, two], (0.3, 0.7), 16, {}, encoder), merge([two, one], (0.7, 0.3), 16, {}, encoder)
    assert torch.allclose(vectors(encoder, merged), vectors(encoder, swapped), atol=1e-5)


def test_merging_is_the_same_each_time(encoder: Encoder) -> None:
    both = [checkpoint(encoder, shape, seed) for seed, shape in enumerate((NARROW, WIDE))]
    assert merge(both, WEIGHTS, 5, {}, encoder) == merge(both, WEIGHTS, 5, {}, encoder)


def test_three_and_merged_ones_can_be_merged(encoder: Encoder) -> None:
    three = [checkpoint(encoder, NARROW, seed) for seed in range(3)]
    at_once = merge(three, (0.25, 0.25, 0.5), 32, {}, encoder)
    in_turn = merge([merge(three[:2], (0.5, 0.5), 32, {}, encoder), three[2]], (0.5, 0.5), 32, {}, encoder)
    assert torch.allclose(vectors(encoder, at_once), vectors(encoder, in_turn), atol=1e-5)
    ours, theirs = (load(files["recommender.safetensors"]) for files in (at_once, in_turn))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)


def test_places_without_a_common_one_are_all_there(encoder: Encoder) -> None:
    query, dense = "encoder.layer.0.attention.self.query", "encoder.layer.2.output.dense"
    both = [checkpoint(encoder, WIDE, seed, names=[name]) for seed, name in enumerate((query, dense))]
    merged = merge(both, WEIGHTS, 16, {}, encoder)
    assert json.loads(merged["adapter_config.json"])["target_modules"] == [query, dense]
    assert json.loads(merged["adapter_config.json"])["r"] == 6  # the ranks meet nowhere
    assert torch.allclose(vectors(encoder, merged), by_hand(encoder, average(both)), atol=1e-5)


@pytest.mark.parametrize("rank", [32, 5])
@pytest.mark.parametrize("pair", ["alike", "of other everything"])
def test_peft_loads_a_merged_adapter_and_computes_the_same_vectors(
    encoder: Encoder, toy: Dataset, tmp_path: Path, pair: str, rank: int
) -> None:
    both = [checkpoint(encoder, shape, seed) for seed, shape in enumerate(PAIRS[pair])]
    merged = merge(both, WEIGHTS, rank, {}, encoder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes(merged[name])
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(encoder.base.folder), tmp_path)
    theirs = torch.from_numpy(unit_vectors(model, str(encoder.base.folder), toy.texts, 16))
    assert torch.allclose(vectors(encoder, merged), theirs, atol=1e-5)
    assert not torch.allclose(theirs, encoder.frozen, atol=1e-2)


def test_towers_are_averaged_by_name(encoder: Encoder) -> None:
    both = [checkpoint(encoder, NARROW, seed) for seed in (0, 1)]
    one, two, merged = (load(f["recommender.safetensors"]) for f in (*both, merge(both, WEIGHTS, 8, {}, encoder)))
    assert merged.keys() == one.keys()
    assert all(torch.allclose(merged[n], 0.3 * one[n] + 0.7 * two[n]) for n in one)
    assert merged["temperature"].tolist() == pytest.approx([0.3 * 1.0 + 0.7 * 1.1, 0.3 * 2.0 + 0.7 * 2.1])


@pytest.mark.parametrize("ids", [(True, False), (False, True), (True, True), (False, False)])
def test_ids_that_one_lacks_count_as_zero_there(encoder: Encoder, ids: tuple[bool, bool]) -> None:
    both = [checkpoint(encoder, NARROW, seed, ids=has) for seed, has in enumerate(ids)]
    merged = merge(both, WEIGHTS, 8, {}, encoder)
    tensors = load(merged["recommender.safetensors"])
    assert ("item_embedding" in tensors) == json.loads(merged["recommender.json"])["item_embeddings"] == any(ids)
    if any(ids):
        theirs = [load(f["recommender.safetensors"]).get("item_embedding", torch.zeros(2, 20, 16)) for f in both]
        assert torch.allclose(tensors["item_embedding"], 0.3 * theirs[0] + 0.7 * theirs[1])
    assert Recommender.loaded(merged).shape == replace(TOWER, item_embeddings=any(ids))


def test_the_files_are_those_of_a_checkpoint_and_say_whose_they_are(encoder: Encoder) -> None:
    both = [checkpoint(encoder, shape, seed) for seed, shape in enumerate((NARROW, WIDE))]
    notes: dict[str, Any] = {"candidate": "m0001", "merges": ["c0000", "c0001"]}
    merged = merge(both, WEIGHTS, 16, notes, encoder)
    assert merged.keys() == both[0].keys()
    found = json.loads(merged["recommender.json"])
    assert {name: found[name] for name in notes} == notes
    assert (found["width"], found["tower"], found["history"], found["n_items"]) == (16, "attention", 6, 20)
    config = json.loads(merged["adapter_config.json"])
    assert (config["peft_type"], config["task_type"]) == ("LORA", "FEATURE_EXTRACTION")
    assert config["base_model_name_or_path"] == "tiny"
    assert config["lora_alpha"] == config["r"] == 10
    assert all(t.shape[0 if "lora_A" in n else 1] == 10 for n, t in load(merged["adapter_model.safetensors"]).items())


def test_a_state_can_be_merged_and_leaves_its_optimiser_behind(encoder: Encoder) -> None:
    both = [checkpoint(encoder, NARROW, seed) for seed in (0, 1)]
    states = [{**f, "optimiser.safetensors": b""} for f in both]
    assert merge(states, WEIGHTS, 8, {}, encoder) == merge(both, WEIGHTS, 8, {}, encoder)
