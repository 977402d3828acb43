"""A checkpoint's text encoder in the formats of other libraries: merged weights, sentence-transformers, ONNX.

Each is written in float32, because rounding would swallow a small correction, and then loaded by the library that it is
for: what that makes of the catalogue's texts must be what base model and adapter make of them.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from pareto_search.entry import Entry
from pareto_search.errors import CheckpointError, ConfigError
from pareto_search.executor import Files
from pareto_search.recsys.dataset import Dataset
from pareto_search.workers.encoder import POOLINGS, Encoder, Pooling
from pareto_search.workers.evaluate import feature_files, score
from pareto_search.workers.lora import MAGNITUDE, dense, loaded, parts
from pareto_search.workers.recommend import Serving
from pareto_search.workers.recommender import TowerScorer

Floats = NDArray[np.float32]
Batch = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Token ids and attention mask, `(m, length)` each."""
Measures = dict[str, Any]

ALIKE = 0.9999
"""The least cosine between an item's text vector and the checkpoint's."""
LOSS = 0.02
"""The largest share of NDCG@10 on validation that int8 may lose, alone and with the entry's serving genes."""
NDCG = "ndcg@10"
OPSET = 18
BLOCK = 32
"""How many weights share a scale, and how many of the values that they are multiplied by: one scale for a whole layer
costs 5 to 10 % of NDCG@10.
"""
PROTOBUF = 2**30
"""Bytes of weights beyond which ONNX wants them in a file of their own."""
QUANTISATIONS: Mapping[str, Sequence[str]] = {
    f"int8 weights, one scale for {BLOCK} of them; embeddings with one scale": ("Gather", "Gemm"),
    f"int8 weights, one scale for {BLOCK} of them; embeddings in float32": (),
}
"""Ways to quantise, the smallest first; the first that loses little enough is taken."""


class Pooled(nn.Module):
    """A text encoder from tokens that are padded on the right to text vectors `(m, t)` of unit length."""

    def __init__(self, model: nn.Module, pooling: Pooling) -> None:
        super().__init__()
        self.model, self.pooling = model, pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        if self.pooling == "first":
            pooled = hidden[:, 0]
        elif self.pooling == "last":
            after = nn.functional.pad(mask, (0, 0, 0, 1))[:, 1:]
            pooled = (hidden * (mask - after)).sum(1)
        else:
            pooled = (hidden * mask).sum(1) / mask.sum(1)
        return nn.functional.normalize(pooled, dim=1)


def convert(entry: Entry, data: Dataset, form: str, folder: Path) -> Measures:
    """Writes an entry's text encoder into an empty folder, and says how near it is to the checkpoint's.

    Args:
        form: `merged`, `sentence-transformers` or `onnx`.

    Raises:
        ConfigError: a package of the extra `export` is missing.
        CheckpointError: the base model is another one, or the export's text vectors are not the checkpoint's.
    """
    served = Serving(entry, data, dtype="float32")
    return _FORMS[form](served, folder)


def features(entry: Entry, data: Dataset) -> dict[str, bytes]:
    """The file of the base model's own text vectors, in the dtype of the search, which a merged model cannot give."""
    return feature_files(Serving(entry, data).encoder.frozen.numpy())


def _to_merged(served: Serving, folder: Path) -> Measures:
    _merge(served.encoder, served.entry.files).save_pretrained(folder)
    _tokenizer(served).save_pretrained(folder)
    encode = Pooled(AutoModel.from_pretrained(folder, local_files_only=True).eval(), served.encoder.pooling)

    @torch.no_grad()
    def run(batch: Batch) -> Floats:
        return encode(*map(torch.from_numpy, batch)).numpy()

    return {"cosine": _alike(served, _over(served, run), "transformers")}


def _to_sentence_transformers(served: Serving, folder: Path) -> Measures:
    library = _needed("sentence_transformers", "sentence-transformers")
    modules = import_module("sentence_transformers.sentence_transformer.modules")
    with TemporaryDirectory() as merged, _quiet():
        _merge(served.encoder, served.entry.files).save_pretrained(merged)
        _tokenizer(served).save_pretrained(merged)
        text = modules.Transformer(merged, max_seq_length=served.entry.notes["max_item_tokens"])
        mode = next(name for name, pooling in POOLINGS.items() if pooling == served.encoder.pooling)
        pooling = modules.Pooling(served.encoder.width, pooling_mode=mode)
        made = library.SentenceTransformer(modules=[text, pooling, modules.Normalize()], device="cpu")
        made.save(str(folder), create_model_card=False)
        again = library.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        vectors = again.encode(list(served.data.texts), show_progress_bar=False)
    return {"cosine": _alike(served, vectors, "sentence-transformers")}


def _to_onnx(served: Serving, folder: Path) -> Measures:
    runtime = _needed("onnxruntime", "onnx")
    _needed("onnxscript", "onnx")
    path, small = folder / "model.onnx", folder / "model_int8.onnx"
    model = Pooled(_merge(served.encoder, served.entry.files), served.encoder.pooling).eval()
    large = sum(p.numel() * p.element_size() for p in model.parameters()) > PROTOBUF
    with _quiet():
        _trace(model, path, large)
    _tokenizer(served).save_pretrained(folder)
    vectors = _over(served, _session(runtime, path))
    cosine = _alike(served, vectors, "onnxruntime")
    floats = _ndcg(served, _reference(served))
    kept = 0.0
    for way, others in QUANTISATIONS.items():
        with _quiet():
            _quantise(path, small, large, others)
        vectors = _over(served, _session(runtime, small))
        ndcg = _ndcg(served, vectors)
        if all(ndcg[what] >= (1 - LOSS) * floats[what] for what in ndcg):
            int8 = {"way": way, "cosine": _cosine(vectors, _reference(served)), "ndcg": ndcg}
            return {
                "cosine": cosine,
                "float32": {"ndcg": floats} | _cost(served, runtime, path),
                "int8": int8 | _cost(served, runtime, small),
            }
        kept = max(kept, min(ndcg[what] / floats[what] for what in ndcg))
    raise CheckpointError(
        f"int8 keeps {kept:.1%} of the {NDCG} that {served.entry.name} has on validation at best, expected at least "
        f"{1 - LOSS:.0%}; export it as merged or sentence-transformers"
    )


_FORMS: Mapping[str, Callable[[Serving, Path], Measures]] = {
    "merged": _to_merged,
    "sentence-transformers": _to_sentence_transformers,
    "onnx": _to_onnx,
}


@torch.no_grad()
def _merge(encoder: Encoder, files: Files) -> Any:
    """A copy of the base model whose maps are what a checkpoint's adapter makes of them.

    What was kept in 4 bits becomes what products made of it, for which the adapter was trained, and not what it was
    before that.
    """
    model = deepcopy(encoder.model)
    if encoder.kept == "nf4":
        with _quiet():
            model = _turned_back(encoder.model, model.dequantize(dtype=encoder.dtype))
    scale, tensors = parts(files)
    for name in {n.partition(".lora_")[0] for n in tensors}:
        linear = model.get_submodule(name.removeprefix("base_model.model."))
        b, a = scale * tensors[f"{name}.lora_B.weight"], tensors[f"{name}.lora_A.weight"]
        whole = dense(linear) + b @ a
        if f"{name}.{MAGNITUDE}" in tensors:
            whole *= (tensors[f"{name}.{MAGNITUDE}"] / whole.norm(dim=1))[:, None]
        linear.weight.copy_(whole.T if isinstance(linear, Conv1D) else whole)
    return model


def _turned_back(quantised: Any, model: Any) -> Any:
    """A model that was in 4 bits, with the maps that GPT-2 has the other way round as it has them."""
    for name, module in quantised.named_modules():
        was: Any = getattr(module, "source_cls", None)
        if was is Conv1D:
            linear = model.get_submodule(name)
            turned = was(linear.out_features, linear.in_features)
            turned.weight.copy_(linear.weight.T)
            turned.bias.copy_(linear.bias)
            model.set_submodule(name, turned)
    return model


@torch.no_grad()
def _reference(served: Serving) -> Floats:
    """The checkpoint's text vectors `(n_items, t)`: base model and adapter, in float32."""
    with loaded(served.encoder, served.entry.files) as adapter:
        return served.encoder.catalogue(adapter.shape.layers).numpy()


def _alike(served: Serving, vectors: Floats, library: str) -> float:
    cosine = _cosine(vectors, _reference(served))
    if not cosine >= ALIKE:
        raise CheckpointError(
            f"what {library} makes of {served.entry.name} is not the checkpoint: an item's text vector has cosine "
            f"{cosine:.6f} with its own, expected at least {ALIKE}; export it as adapter"
        )
    return cosine


def _cosine(vectors: Floats, others: Floats) -> float:
    """The least one of corresponding rows of unit length."""
    return float((vectors * others).sum(1).min())


def _ndcg(served: Serving, vectors: Floats) -> dict[str, float]:
    """On validation, of the checkpoint alone and of the entry, with these text vectors `(n_items, t)`."""
    assert isinstance(served.model, TowerScorer), "a fused entry is refused before"
    scorers = served.scorers | {"model": TowerScorer.of(served.model.model, torch.from_numpy(vectors))}
    settings = [{}, served.entry.serving]
    alone, entry = score(served.split.validation, served.items, scorers, settings, [NDCG])
    return {"alone": alone[NDCG]["mean"], "entry": entry[NDCG]["mean"]}


def _trace(model: Pooled, path: Path, large: bool) -> None:
    """Writes a model as ONNX, for batches of any size and length."""
    # Two tensors: one that is given twice would become one input.
    ids, mask = (torch.ones(2, 5, dtype=torch.long) for _ in range(2))
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    torch.onnx.export(
        model,
        (ids, mask),
        path,
        input_names=["input_ids", "attention_mask"],
        output_names=["text_vector"],
        dynamic_shapes={"input_ids": free, "attention_mask": free},
        opset_version=OPSET,
        dynamo=True,
        external_data=large,
        verbose=False,
    )


def _quantise(path: Path, small: Path, large: bool, others: Sequence[str]) -> None:
    """Writes a model with int8 weights in its products with constant matrices.

    Args:
        others: further operators whose weights become int8, with one scale a tensor.
    """
    blocks = import_module("onnxruntime.quantization.matmul_nbits_quantizer")
    # Level 4 computes in int8 too, and rounds the other factor in blocks of the same size.
    how = blocks.DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True, accuracy_level=4, bits=8)
    quantiser = blocks.MatMulNBitsQuantizer(import_module("onnx").load(path), algo_config=how)
    quantiser.process()
    quantiser.model.save_model_to_file(str(small), large)
    if others:
        quantisation = import_module("onnxruntime.quantization")
        model, int8 = quantiser.model.model, quantisation.QuantType.QInt8
        quantisation.quantize_dynamic(
            model, small, weight_type=int8, use_external_data_format=large, op_types_to_quantize=list(others)
        )


def _session(runtime: Any, path: Path) -> Callable[[Batch], Floats]:
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(None, {"input_ids": batch[0], "attention_mask": batch[1]})[0]


def _cost(served: Serving, runtime: Any, path: Path) -> Measures:
    """Megabytes, and milliseconds for one text and for 32 on one thread, as medians."""
    run, texts = _session(runtime, path), served.data.texts
    size = sum(p.stat().st_size for p in path.parent.glob(f"{path.name}*"))
    times = {}
    tokenizer = _tokenizer(served)
    for name, some in (("one_ms", texts[:1]), ("batch_ms", (texts * 32)[:32])):
        batch = _batch(served, tokenizer, some)
        run(batch)
        seconds = []
        for _ in range(20):
            began = time.perf_counter()
            run(batch)
            seconds.append(time.perf_counter() - began)
        times[name] = 1000 * float(np.median(seconds))
    return {"megabytes": size / 1e6, **times}


def _over(served: Serving, run: Callable[[Batch], Floats]) -> Floats:
    """The text vectors `(n_items, t)` of the catalogue, batch by padded batch."""
    texts, tokenizer = served.data.texts, _tokenizer(served)
    return np.concatenate([run(_batch(served, tokenizer, texts[i : i + 64])) for i in range(0, len(texts), 64)])


def _batch(served: Serving, tokenizer: Any, texts: Sequence[str]) -> Batch:
    limit = served.entry.notes["max_item_tokens"]
    tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="np")
    return tokens["input_ids"].astype(np.int64), tokens["attention_mask"].astype(np.int64)


def _tokenizer(served: Serving) -> Any:
    """The base model's, which pads on the right: many a decoder's does not pad at all."""
    tokenizer = AutoTokenizer.from_pretrained(served.encoder.base.folder, local_files_only=True, padding_side="right")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _needed(module: str, form: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise ConfigError(f"format '{form}' needs {module}: pip install 'pareto-search[export]'") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' remarks on their own workings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
