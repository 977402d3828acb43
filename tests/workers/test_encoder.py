"""The encoder against plain transformers, which pads and masks."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from peft import PeftModel
from plain import unit_vectors
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BitsAndBytesConfig,
    BloomConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    MPNetConfig,
    Qwen3Config,
    RobertaConfig,
)

from pareto_search.errors import CheckpointError, ConfigError
from pareto_search.recsys.dataset import Dataset
from pareto_search.workers import encoder as module
from pareto_search.workers.base import MINILM_SHA256, Base, locate
from pareto_search.workers.encoder import Encoder, precision
from pareto_search.workers.lora import Form, LoraShape, Targets, attached

SIZE = {"vocab_size": 40, "max_position_embeddings": 32, "pad_token_id": 0, "initializer_range": 0.3}
BERT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
CONFIGS = {
    "bert": BertConfig(**SIZE, **BERT),
    "roberta": RobertaConfig(**SIZE, **BERT),
    "mpnet": MPNetConfig(**SIZE, **BERT),
    "distilbert": DistilBertConfig(**SIZE, dim=32, n_layers=3, n_heads=2, hidden_dim=64),
    "modernbert": ModernBertConfig(**SIZE, **BERT),
    "llama": LlamaConfig(**SIZE, **BERT),
    "qwen3": Qwen3Config(**SIZE, **BERT, num_key_value_heads=1, head_dim=16),
    "gpt2": GPT2Config(vocab_size=40, n_positions=32, n_embd=32, n_layer=3, n_head=2, initializer_range=0.3),
}
DECODERS = ("llama", "qwen3", "gpt2")


def plain(
    base: Base, texts: Sequence[str], max_tokens: int, dtype: torch.dtype = torch.float32, model: Any = None
) -> torch.Tensor:
    """Over padded texts with an attention mask, the mean or a decoder's last token, then L2 normalisation."""
    model = model or AutoModel.from_pretrained(base.folder, dtype=dtype)
    pooling = "last" if model.config.model_type in DECODERS else "mean"
    return torch.from_numpy(unit_vectors(model, str(base.folder), texts, max_tokens, pooling))


@pytest.fixture(scope="module", params=CONFIGS)
def base(request: pytest.FixtureRequest, save_base: Callable[[Any], Base]) -> Base:
    return save_base(CONFIGS[request.param])


def test_frozen_vectors_are_those_of_plain_transformers(base: Base, toy: Dataset) -> None:
    ours = Encoder(base, toy.texts, max_tokens=16, layers=2).frozen
    assert torch.allclose(ours, plain(base, toy.texts, 16), atol=1e-5)
    assert (ours @ ours.T).min() < 0.95  # the texts do not all look alike


def test_a_text_may_be_as_long_as_the_models_positions_and_no_longer(base: Base) -> None:
    text = "red " * 100
    with pytest.raises(CheckpointError, match=r"set model.max_item_tokens to \d+$") as refused:
        Encoder(base, [text], max_tokens=40, layers=1)
    assert "at most, and an item's text has 40" in str(refused.value)
    most = int(str(refused.value).rpartition(" ")[2])
    assert torch.allclose(Encoder(base, [text], max_tokens=most, layers=1).frozen, plain(base, [text], most), atol=1e-5)
    if json.loads((base.folder / "config.json").read_text())["model_type"] not in ("modernbert", "llama", "qwen3"):
        with pytest.raises((IndexError, RuntimeError)):  # there positions are rows, and here angles
            plain(base, [text], most + 1)


def test_peft_loads_an_adapter_of_every_family_and_computes_the_same_vectors(
    base: Base, toy: Dataset, tmp_path: Path
) -> None:
    ours = Encoder(base, toy.texts, max_tokens=16, layers=2)
    found: dict[str, set[str]] = {}
    for targets, form in product(get_args(Targets), get_args(Form)):
        with attached(ours, LoraShape(4, 16.0, 0.0, targets, 2, form)) as adapter, torch.no_grad():
            for _, module in adapter.named():
                module.factors()[-1].normal_(std=0.1)
                if module.magnitude is not None:
                    module.magnitude.mul_(torch.rand(len(module.magnitude)) + 0.5)
            vectors = ours.catalogue(2)
            found[targets] = {name for name, _ in adapter.named()}
            for name, content in adapter.files(base.id, None).items():
                (tmp_path / name).write_bytes(content)
        theirs = PeftModel.from_pretrained(AutoModel.from_pretrained(base.folder), tmp_path).eval()
        assert torch.allclose(vectors, plain(base, toy.texts, 16, model=theirs), atol=1e-4)
        assert not torch.allclose(vectors, ours.frozen, atol=1e-2)
    assert found["query_value"] < found["attention"] < found["all"]


@pytest.mark.parametrize("form", ["lora", "dora"])
def test_in_four_bits_it_is_transformers_own_model_and_peft_loads_an_adapter_into_that(
    base: Base, toy: Dataset, tmp_path: Path, form: Form
) -> None:
    def four_bits() -> Any:
        how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
        bfloat16 = {"dtype": torch.bfloat16, "device_map": {"": "cpu"}}
        model = AutoModel.from_pretrained(base.folder, quantization_config=how, **bfloat16)
        for weight in model.parameters():
            if weight.is_floating_point():
                weight.data = weight.data.float()
            else:
                weight.quant_state.dtype = torch.float32  # PEFT's lengths are otherwise of rounded weights
        for part in model.modules():
            part.support_avx512bf16_for_cpu = False  # its packed weights want maps wider than these
        return model.eval()

    ours = Encoder(base, toy.texts, max_tokens=16, layers=2, nf4=True)
    assert torch.allclose(ours.frozen, plain(base, toy.texts, 16, model=four_bits()), atol=1e-5)
    assert not torch.allclose(ours.frozen, plain(base, toy.texts, 16), atol=1e-2)
    with attached(ours, LoraShape(4, 16.0, 0.0, "all", 2, form)) as adapter:
        for _, module in adapter.named():
            torch.nn.init.normal_(module.B, std=0.3)
        vectors = ours.encode(next(ours.chunks(np.arange(len(toy.texts)))), 2)
        vectors.square().mul(torch.arange(vectors.shape[1])).sum().backward()
        assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in adapter.weights())
        vectors = ours.catalogue(2)
        for name, content in adapter.files(base.id, None).items():
            (tmp_path / name).write_bytes(content)
    theirs = PeftModel.from_pretrained(four_bits(), tmp_path).eval()
    assert torch.allclose(vectors, plain(base, toy.texts, 16, model=theirs), atol=1e-4)
    assert not torch.allclose(vectors, ours.frozen, atol=1e-2)


def test_four_bits_want_a_package(tiny_base: Base, toy: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", {}.get)
    with pytest.raises(ConfigError, match=r"nf4 needs bitsandbytes on every .*: pip install 'pareto-search\[nf4\]'"):
        Encoder(tiny_base, toy.texts, max_tokens=16, layers=2, nf4=True)


@pytest.mark.parametrize(
    ("content", "pooling"),
    [
        ({"pooling_mode": "cls", "include_prompt": True}, "first"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "first"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "include_prompt": True}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}, "last"),
    ],
    ids=str,
)
def test_a_base_model_that_says_how_it_pools_is_obeyed(
    tiny_base: Base, toy: Dataset, tmp_path: Path, content: dict[str, Any], pooling: str
) -> None:
    base = replace(tiny_base, folder=tmp_path / "base")
    shutil.copytree(tiny_base.folder, base.folder)
    (base.folder / "1_Pooling").mkdir()
    (base.folder / "1_Pooling" / "config.json").write_text(json.dumps(content))
    ours = Encoder(base, toy.texts, max_tokens=16, layers=1)
    model, tokens = AutoModel.from_pretrained(base.folder), AutoTokenizer.from_pretrained(base.folder)
    for item in (0, 7):
        with torch.no_grad():
            [hidden] = model(**tokens(toy.texts[item], return_tensors="pt")).last_hidden_state
        wanted = {"mean": hidden.mean(0), "first": hidden[0], "last": hidden[-1]}[pooling]
        assert torch.allclose(ours.frozen[item], torch.nn.functional.normalize(wanted, dim=0), atol=1e-5)
    assert torch.allclose(ours.catalogue(1), ours.frozen, atol=1e-5)


def test_a_pooling_that_is_unknown_is_named(tiny_base: Base, toy: Dataset, tmp_path: Path) -> None:
    base = replace(tiny_base, folder=tmp_path / "base")
    shutil.copytree(tiny_base.folder, base.folder)
    (base.folder / "1_Pooling").mkdir()
    both = {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}
    (base.folder / "1_Pooling" / "config.json").write_text(json.dumps(both))
    with pytest.raises(CheckpointError, match=r"pools by 'max\+mean'; expected one of: mean, cls, lasttoken"):
        Encoder(base, toy.texts, max_tokens=16, layers=1)


def test_an_empty_text_has_a_vector_where_the_tokenizer_makes_nothing_of_it(
    save_base: Callable[[Any], Base], toy: Dataset
) -> None:
    base = save_base(CONFIGS["gpt2"])
    tokens = json.loads((base.folder / "tokenizer.json").read_text()) | {"post_processor": None}
    (base.folder / "tokenizer.json").write_text(json.dumps(tokens))
    ours = Encoder(base, ["", *toy.texts], max_tokens=16, layers=1)
    assert torch.isfinite(ours.frozen).all()
    assert torch.allclose(ours.frozen[1:], Encoder(base, toy.texts, max_tokens=16, layers=1).frozen, atol=1e-5)


@pytest.mark.parametrize("widths", [1, 4])
def test_every_depth_of_the_cached_prefix_leads_to_the_same_vectors(base: Base, toy: Dataset, widths: int) -> None:
    ours = Encoder(base, toy.texts, max_tokens=16, layers=3, widths=widths)
    for layers in (1, 2, 3):
        assert torch.allclose(ours.catalogue(layers), ours.frozen, atol=1e-5)


@pytest.mark.parametrize("pooling", get_args(module.Pooling))
def test_padded_to_a_few_widths_texts_have_the_same_vectors(base: Base, toy: Dataset, pooling: module.Pooling) -> None:
    exact, padded = (Encoder(base, toy.texts, max_tokens=16, layers=3, widths=w, pooling=pooling) for w in (1, 4))
    assert torch.allclose(padded.frozen, exact.frozen, atol=1e-5)
    assert len(list(padded.chunks(np.arange(20)))) < len(list(exact.chunks(np.arange(20))))


def test_padded_texts_have_the_same_vectors_with_the_attention_of_a_gpu(
    base: Base, toy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, load = Encoder(base, toy.texts, max_tokens=16, layers=3).frozen, AutoModel.from_pretrained

    def loaded(*args: Any, attn_implementation: str, **options: Any) -> Any:
        return load(*args, **options)

    monkeypatch.setattr(module.AutoModel, "from_pretrained", loaded)
    ours = Encoder(base, toy.texts, max_tokens=16, layers=3, widths=4)
    assert ours.model.config._attn_implementation == ("eager" if "mpnet" in base.id else "sdpa")
    assert torch.allclose(ours.frozen, expected, atol=1e-5)
    for layers in (1, 3):
        assert torch.allclose(ours.catalogue(layers), expected, atol=1e-5)


def test_rows_of_several_candidates_that_join_at_their_depth_have_the_lengths_of_their_own_texts(
    base: Base, toy: Dataset
) -> None:
    ours = Encoder(base, toy.texts, max_tokens=16, layers=3, widths=16)
    chunks = [np.array([5, 0, 9]), np.array([1, 12]), np.array([7, 3, 2, 0])]
    vectors = ours.encode_together(chunks, [3, 2, 1])
    for mine, chunk in zip(vectors, chunks, strict=True):
        assert torch.allclose(mine[: len(chunk)], ours.frozen[chunk], atol=1e-5)


@pytest.mark.parametrize("depths", [1, 2, 3])
def test_where_upper_depths_are_not_cached_the_blocks_between_are_run(
    tiny_base: Base, encoder: Encoder, toy: Dataset, monkeypatch: pytest.MonkeyPatch, depths: int
) -> None:
    tokens = sum(map(len, AutoTokenizer.from_pretrained(tiny_base.folder)(list(toy.texts))["input_ids"]))
    monkeypatch.setattr(module, "CACHED", (depths - 1) * tokens * 32 * 4)
    ours = Encoder(tiny_base, toy.texts, max_tokens=16, layers=3)
    assert all(bucket.hidden.keys() == set(range(depths)) for bucket in ours._buckets.values())
    for layers in (1, 2, 3):
        assert torch.allclose(ours.catalogue(layers), encoder.frozen, atol=1e-5)


def test_an_architecture_whose_blocks_do_not_lead_to_its_output_is_refused(
    tiny_base: Base, toy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reversed(BertModel):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            return replace(output, last_hidden_state=output.last_hidden_state.flip(-1))

    monkeypatch.setattr(module.AutoModel, "from_pretrained", Reversed.from_pretrained)
    with pytest.raises(CheckpointError, match=r"\(Reversed\) is of an unknown architecture"):
        Encoder(tiny_base, toy.texts, max_tokens=16, layers=2)


def test_an_architecture_whose_blocks_are_told_something_of_a_single_text_is_refused(
    save_base: Callable[[Any], Base], toy: Dataset
) -> None:
    base = save_base(BloomConfig(vocab_size=40, hidden_size=32, n_layer=3, n_head=2))
    with pytest.raises(CheckpointError, match=r"\(BloomModel\) is of an unknown architecture"):
        Encoder(base, toy.texts, max_tokens=16, layers=2)


def test_a_base_model_without_a_tokenizer_is_refused(tiny_base: Base, toy: Dataset, tmp_path: Path) -> None:
    base = replace(tiny_base, folder=tmp_path / "base")
    shutil.copytree(tiny_base.folder, base.folder, ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(CheckpointError, match=r"knows no words; expected its files, such as tokenizer\.json"):
        Encoder(base, toy.texts, max_tokens=16, layers=2)


def test_long_texts_are_truncated_as_transformers_does(tiny_base: Base, toy: Dataset) -> None:
    ours = Encoder(tiny_base, toy.texts, max_tokens=5, layers=1).frozen
    assert torch.allclose(ours, plain(tiny_base, toy.texts, 5), atol=1e-5)


def test_more_layers_than_the_model_has_are_all_of_them(tiny_base: Base, toy: Dataset) -> None:
    assert Encoder(tiny_base, toy.texts, max_tokens=16, layers=1000).layers == 3


def test_chunks_hold_each_item_once_and_only_items_of_one_length(
    tiny_base: Base, toy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOKENS", 15)
    ours = Encoder(tiny_base, toy.texts, max_tokens=16, layers=2)
    lengths = np.array([len(t) for t in AutoTokenizer.from_pretrained(tiny_base.folder)(list(toy.texts))["input_ids"]])
    items = np.array([19, 3, 4, 0, 7, 11, 12, 15, 16, 8])
    chunks = list(ours.chunks(items))
    assert sorted(np.concatenate(chunks).tolist()) == sorted(items.tolist())
    for chunk in chunks:
        assert len(set(lengths[chunk])) == 1
        assert len(chunk) == 1 or len(chunk) * lengths[chunk[0]] <= 15
    assert len(chunks) > len(set(lengths[items]))  # some length needed two


def test_the_size_of_the_chunks_changes_no_vector(
    encoder: Encoder, tiny_base: Base, toy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOKENS", 20)
    chunked = Encoder(tiny_base, toy.texts, max_tokens=16, layers=3)
    assert torch.allclose(chunked.frozen, encoder.frozen, atol=1e-6)
    assert torch.allclose(chunked.catalogue(2), encoder.frozen, atol=1e-5)


def test_the_packaged_minilm_is_what_plain_transformers_computes(minilm: Encoder, movielens: Dataset) -> None:
    some = np.arange(0, len(movielens.texts), 40)
    theirs = plain(minilm.base, [movielens.texts[i] for i in some], 32, minilm.dtype)
    cosines = (minilm.frozen[some] * theirs).sum(1)
    assert cosines.min() > 0.999
    assert minilm.base.sha256 == MINILM_SHA256


def test_a_wish_for_a_precision_is_obeyed() -> None:
    assert precision("float32", "cpu") is torch.float32
    assert precision("bfloat16", "cpu") is torch.bfloat16
    assert precision("nf4", "cpu") is torch.bfloat16


def test_a_base_without_safetensors_is_refused(tmp_path: Any) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(CheckpointError, match=r"no \.safetensors file .* pickled ones are not loaded"):
        locate(str(tmp_path))


def test_a_base_that_is_nowhere_is_named() -> None:
    with pytest.raises(
        CheckpointError, match=r"'\./nowhere' is no folder; expected 'minilm', a local folder or a hub id"
    ):
        locate("./nowhere")


def test_a_hub_id_without_a_hub_is_one_line(tmp_path: Any) -> None:
    with pytest.raises(CheckpointError, match="'nobody/nothing' is neither a local folder nor reachable") as raised:
        locate("nobody/nothing")
    assert "\n" not in str(raised.value)


def test_a_damaged_config_is_one_line(tmp_path: Any) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be loaded") as raised:
        Encoder(locate(str(tmp_path)), ["a text"], max_tokens=8, layers=1)
    assert "\n" not in str(raised.value)


def test_the_foremost_items_are_those_worth_most_of_each_length_in_a_few_batch_sizes(tiny_base: Base) -> None:
    encoder = Encoder(tiny_base, ["red"] * 8 + ["red river"] * 4, max_tokens=16, layers=1)
    worth = np.array([5, 9, 0, 7, 1, 8, 2, 3, 6, 5.5, 4, 10], np.float32)
    # Of the six worth most, three are of either length. Half of the one length's share of six, 4, is 2, of the other's
    # 1: three becomes four of the one, and stays three of the other.
    assert encoder.foremost(worth, 6).tolist() == [0, 1, 3, 5, 8, 9, 11]
