"""Exports as the libraries that they are for see them; what is expected comes from plain.py, not from our code."""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
from transformers import GPT2Config, Qwen3Config

from pareto_search import checkpoint, entry
from pareto_search.errors import CheckpointError, ConfigError, RunError
from pareto_search.export import export
from pareto_search.recsys.dataset import Dataset
from pareto_search.workers import convert
from pareto_search.workers.encoder import Encoder
from pareto_search.workers.lora import loaded
from pareto_search.workers.recommend import Serving

NAME = "c0000-s02"
SMALL = {"vocab_size": 40, "initializer_range": 0.3}
DECODERS = {
    "gpt2": GPT2Config(**SMALL, n_positions=32, n_embd=32, n_layer=3, n_head=2),
    "qwen3": Qwen3Config(
        **SMALL,
        max_position_embeddings=32,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=64,
    ),
}
Export = Callable[[str], Path]


@pytest.fixture(scope="module")
def run(toy_run: Path) -> Path:
    return toy_run


@pytest.fixture(scope="module")
def exported(run: Path, toy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """The folder of an export in some format; each is made once."""

    place = tmp_path_factory.mktemp("exports")

    def make(form: str) -> Path:
        folder = place / form
        if not folder.exists():
            export(run, NAME, toy, folder, form)
        return folder

    return make


@pytest.fixture(scope="module")
def theirs(run: Path, toy: Dataset, tiny_base: Any) -> np.ndarray:
    """The items' text vectors as transformers and PEFT compute them from the checkpoint."""
    return plain.text_vectors(str(tiny_base.folder), str(run / "checkpoints" / "c0000"), toy.texts)


@pytest.fixture(scope="module")
def run_of(
    make_run: Callable[[Any], Path], save_base: Callable[[Any], Any], tiny_base: Any, workload: Any
) -> Callable[[str, str], Path]:
    """The run of a family of base models in some precision; each is made once, and nobody changes it."""

    @cache
    def make(family: str, dtype: str) -> Path:
        base = tiny_base if family == "bert" else save_base(DECODERS[family])
        return make_run(replace(workload, dtype=dtype, base=base.id))

    return make


def tokens(folder: Path, texts: tuple[str, ...]) -> Mapping[str, np.ndarray]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(list(texts), padding=True, truncation=True, max_length=16, return_tensors="np")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def least_cosine(vectors: np.ndarray, others: np.ndarray) -> float:
    return float((vectors * others).sum(1).min())


def test_the_adapter_is_far_from_zero(theirs: np.ndarray, encoder: Any) -> None:
    assert least_cosine(theirs, encoder.frozen.numpy()) < 0.999


def test_an_adapter_gives_the_same_entry_back(run: Path, exported: Export) -> None:
    assert entry.of_folder(exported("adapter")) == entry.of_run(run, NAME)


def test_transformers_alone_loads_a_merged_model(exported: Export, toy: Dataset, theirs: np.ndarray) -> None:
    import torch
    from transformers import AutoModel

    batch = {name: torch.from_numpy(array) for name, array in tokens(exported("merged"), toy.texts).items()}
    model = AutoModel.from_pretrained(exported("merged")).eval()
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).numpy()
    assert least_cosine(vectors, theirs) >= 0.99999


def test_sentence_transformers_encodes_to_the_items_text_vectors(
    exported: Export, toy: Dataset, theirs: np.ndarray
) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(exported("sentence-transformers")), device="cpu")
    assert least_cosine(model.encode(list(toy.texts), batch_size=7), theirs) >= 0.99999
    assert model.max_seq_length == 16


@pytest.mark.parametrize(("file", "least"), [("model.onnx", 0.99999), ("model_int8.onnx", 0.9)])
def test_onnxruntime_gives_the_items_text_vectors_in_batches_of_any_shape(
    exported: Export, toy: Dataset, theirs: np.ndarray, file: str, least: float
) -> None:
    from onnxruntime import InferenceSession

    session = InferenceSession(exported("onnx") / file)
    for rows in (slice(0, 1), slice(3, 20)):
        (vectors,) = session.run(None, dict(tokens(exported("onnx"), toy.texts[rows])))
        assert least_cosine(vectors, theirs[rows]) >= least


@pytest.mark.parametrize("form", ["merged", "sentence-transformers", "onnx"])
@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_a_decoder_is_exported_too(
    run_of: Callable[[str, str], Path], toy: Dataset, tmp_path: Path, family: str, form: str
) -> None:
    run = run_of(family, "float32")
    ours = Serving(entry.of_run(run, NAME), toy)
    theirs = plain.text_vectors(str(ours.encoder.base.folder), str(run / "checkpoints" / "c0000"), toy.texts)
    assert ours.encoder.pooling == "last"
    assert least_cosine(ours.encoder.frozen.numpy(), theirs) < 0.99
    export(run, NAME, toy, tmp_path / form, form)  # refuses what is not the checkpoint
    card = (tmp_path / form / "README.md").read_text()
    assert ("last_hidden_state at the last token that is no padding" in card) == (form == "merged")
    again = Serving(entry.of_folder(tmp_path / form), toy)
    found, expected = again.evaluate("test"), ours.evaluate("test")
    assert {n: s["mean"] for n, s in found.items()} == pytest.approx({n: s["mean"] for n, s in expected.items()})


def test_a_merged_model_pools_as_its_base_did(
    make_run: Callable[[Any], Path], tiny_base: Any, workload: Any, toy: Dataset, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base.folder, base)
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    run = make_run(replace(workload, base=str(base)))
    export(run, NAME, toy, tmp_path / "merged", "merged")
    ours, theirs = Serving(entry.of_run(run, NAME), toy), Serving(entry.of_folder(tmp_path / "merged"), toy)
    assert (ours.encoder.pooling, theirs.encoder.pooling) == ("first", "first")
    expected = plain.text_vectors(str(base), str(run / "checkpoints" / "c0000"), toy.texts)
    assert least_cosine(theirs.encoder.frozen.numpy(), expected) >= 0.99999


@pytest.mark.parametrize("adapter", ["rslora", "dora", "full"])
def test_an_adapter_of_another_form_is_merged_too(
    make_run: Callable[..., Path], tiny_base: Any, workload: Any, toy: Dataset, tmp_path: Path, adapter: str
) -> None:
    run = make_run(workload, adapter=adapter, targets="all")
    export(run, NAME, toy, tmp_path / "merged", "merged")
    ours, theirs = Serving(entry.of_run(run, NAME), toy), Serving(entry.of_folder(tmp_path / "merged"), toy)
    expected = plain.text_vectors(str(tiny_base.folder), str(run / "checkpoints" / "c0000"), toy.texts)
    assert least_cosine(theirs.encoder.frozen.numpy(), expected) >= 0.99999
    assert least_cosine(ours.encoder.frozen.numpy(), expected) < 0.999


@pytest.mark.parametrize(
    ("family", "form"),
    [
        *(("bert", form) for form in ("adapter", "merged", "sentence-transformers", "onnx")),
        *(("gpt2", form) for form in ("merged", "sentence-transformers", "onnx")),
    ],
)
def test_what_was_trained_in_four_bits_is_exported_as_it_was_trained(
    run_of: Callable[[str, str], Path], toy: Dataset, tmp_path: Path, family: str, form: str
) -> None:
    run = run_of(family, "nf4")
    ours = Serving(entry.of_run(run, NAME), toy)
    assert ours.entry.notes["dtype"] == "nf4"
    export(run, NAME, toy, tmp_path / form, form)
    again = Serving(entry.of_folder(tmp_path / form), toy)
    assert again.encoder.kept == ("float32" if form == "merged" else "nf4")
    assert ("load_in_4bit" in (tmp_path / form / "README.md").read_text()) == (form == "adapter")
    with loaded(ours.encoder, ours.entry.files) as adapter:
        vectors = ours.encoder.catalogue(adapter.shape.layers).numpy()
    with loaded(again.encoder, again.entry.files) if form != "merged" else nullcontext():
        merged = again.encoder.catalogue(3).numpy()
    assert least_cosine(merged, vectors) >= 0.999
    unquantised = Encoder(ours.encoder.base, toy.texts, max_tokens=16, layers=3)
    with loaded(unquantised, ours.entry.files) as adapter:
        assert least_cosine(unquantised.catalogue(adapter.shape.layers).numpy(), vectors) < 0.999


def test_int8_weights_are_smaller_bytes(exported: Export) -> None:
    import onnx

    model = onnx.load(exported("onnx") / "model_int8.onnx")
    assert any(tensor.data_type == onnx.TensorProto.UINT8 for tensor in model.graph.initializer)  # around 128
    assert not list(exported("onnx").glob("*.data"))


@pytest.mark.parametrize("form", ["merged", "sentence-transformers", "onnx"])
def test_every_format_recommends_and_scores_as_the_run_does(
    run: Path, exported: Export, toy: Dataset, form: str
) -> None:
    ours = Serving(entry.of_run(run, NAME), toy)
    theirs = Serving(entry.of_folder(exported(form)), toy)
    for part in ("validation", "test"):
        found, expected = theirs.evaluate(part), ours.evaluate(part)
        assert {n: s["mean"] for n, s in found.items()} == pytest.approx({n: s["mean"] for n, s in expected.items()})
    history = ours.history_of("3")
    assert [r.item for r in theirs.recommend(history, 5)] == [r.item for r in ours.recommend(history, 5)]


def test_a_merged_model_keeps_the_distances_of_the_base_where_there_are_no_categories(
    run: Path, toy: Dataset, tmp_path: Path, encoder: Any
) -> None:
    plainer = replace(toy, categories=None)
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    files = checkpoint.read(copy / "checkpoints" / "c0000")
    notes = json.loads(files["recommender.json"]) | {"data_sha256": plainer.sha256}
    checkpoint.write(copy / "checkpoints" / "c0000", files | {"recommender.json": json.dumps(notes).encode()})
    export(copy, NAME, plainer, tmp_path / "merged", "merged")
    found = Serving(entry.of_folder(tmp_path / "merged"), plainer).items.features
    assert found == pytest.approx(encoder.frozen.numpy(), abs=1e-6)


@pytest.mark.parametrize("form", ["adapter", "merged", "sentence-transformers", "onnx"])
def test_the_card_says_what_the_export_is_worth_and_names_the_bytes(exported: Export, toy: Dataset, form: str) -> None:
    card = (exported(form) / "README.md").read_text()
    assert f"toy: 30 users, 20 items, {len(toy.users)} interactions" in card
    assert toy.sha256 in card
    assert "| ndcg@5 | maximise | 0.02 | 0.2500 | 0.2000 [0.1234, 0.3000] |" in card
    for gene in ("| rank | 4 |", "| ild@5 | 0.01 |", "| ease | 0.4 |"):
        assert gene in card
    sums = dict(re.findall(r"^\| (\S+) \| `([0-9a-f]{64})` \|$", card.partition("## Checksums")[2], re.MULTILINE))
    assert len(sums) >= 4
    for file, sha256 in sums.items():
        assert hashlib.sha256((exported(form) / file).read_bytes()).hexdigest() == sha256, file
    assert str(exported(form).parent) not in card
    assert ("int8" in card) == (form == "onnx")


def test_a_changed_byte_of_a_merged_model_is_noticed(exported: Export, tmp_path: Path) -> None:
    shutil.copytree(exported("merged"), tmp_path / "merged")
    weights = tmp_path / "merged" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"'model\.safetensors' was changed"):
        entry.of_folder(tmp_path / "merged")


@pytest.mark.parametrize("form", ["merged", "sentence-transformers", "onnx"])
def test_an_export_that_is_not_the_checkpoint_is_refused(
    run: Path, toy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    from copy import deepcopy

    monkeypatch.setattr(convert, "_merge", lambda encoder, _: deepcopy(encoder.model))  # forgets the adapter
    with pytest.raises(CheckpointError, match=rf"makes of {NAME} is not the checkpoint: .* expected at least 0\.9999"):
        export(run, NAME, toy, tmp_path / "x", form)
    assert not (tmp_path / "x").exists()


def test_int8_that_loses_too_much_is_refused(
    run: Path, toy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "LOSS", -9.0)
    with pytest.raises(CheckpointError, match=r"int8 keeps \d+\.\d% of the ndcg@10 that c0000-s02 has on validation"):
        export(run, NAME, toy, tmp_path / "x", "onnx")


@pytest.mark.parametrize(
    ("form", "package"), [("sentence-transformers", "sentence_transformers"), ("onnx", "onnxruntime")]
)
def test_a_missing_package_names_the_extra(
    run: Path, toy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"format '{form}' needs {package}: pip install 'pareto-search\[export\]'"):
        export(run, NAME, toy, tmp_path / "x", form)


def test_an_export_overwrites_nothing(run: Path, toy: Dataset, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(RunError, match="is there already; give --to a new folder"):
        export(run, NAME, toy, tmp_path)


def test_an_unknown_format_is_named_with_the_nearest(run: Path, toy: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="format 'adaptor' is unknown; did you mean 'adapter'"):
        export(run, NAME, toy, tmp_path / "x", "adaptor")
