"""The model card of an exported entry: what it was made from, what it is worth and how to load it."""

import hashlib
import platform
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pareto_search.entry import Entry
from pareto_search.recsys.dataset import Dataset
from pareto_search.results import Document, find_entry, readable, with_interval

PACKAGES = ("pareto-search", "torch", "transformers", "peft", "numpy", "safetensors")
LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "adapter": ("peft",),
    "merged": ("transformers",),
    "sentence-transformers": ("sentence-transformers",),
    "onnx": ("onnx", "onnxruntime"),
}
"""The packages that load each format; the first gives the card its library."""
_LOAD: Mapping[str, str] = {
    "adapter": """from peft import PeftModel
from transformers import AutoModel

encoder = PeftModel.from_pretrained(AutoModel.from_pretrained(base), folder)
# a text vector is {pooled}, at unit length""",
    "adapter, nf4": """import torch
from peft import PeftModel
from transformers import AutoModel, BitsAndBytesConfig

nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
model = AutoModel.from_pretrained(base, dtype=torch.bfloat16, quantization_config=nf4)
encoder = PeftModel.from_pretrained(model, folder)
# a text vector is {pooled}, at unit length""",
    "merged": """from transformers import AutoModel, AutoTokenizer

encoder, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
# a text vector is {pooled}, at unit length""",
    "sentence-transformers": """from sentence_transformers import SentenceTransformer

vectors = SentenceTransformer(folder).encode(texts)""",
    "onnx": """from onnxruntime import InferenceSession
from transformers import AutoTokenizer

tokenizer, names = AutoTokenizer.from_pretrained(folder), ("input_ids", "attention_mask")
tokens = tokenizer(texts, padding=True, truncation=True, max_length={length}, return_tensors="np")
inputs = {{name: tokens[name] for name in names}}
[vectors] = InferenceSession(f"{{folder}}/model_int8.onnx").run(None, inputs)  # or model.onnx, in float32""",
}

_POOLED: Mapping[str, str] = {
    "mean": "the mean of last_hidden_state over the tokens",
    "first": "last_hidden_state at the first token",
    "last": "last_hidden_state at the last token that is no padding",
}


def card(
    entry: Entry, front: Document, data: Dataset, form: str, *, measures: Mapping[str, Any], files: Mapping[str, bytes]
) -> str:
    """The card as Markdown with the metadata that model hubs read.

    Args:
        front: the content of the run's `front.json`.
        measures: what the export found of itself.
        files: of the export, whose checksums the card lists.
    """
    found, notes = find_entry(front, entry.name), entry.notes
    base, split = notes["base"], notes["split"]
    way = "adapter, nf4" if form == "adapter" and notes["dtype"] == "nf4" else form
    loading = _LOAD[way].format(length=notes["max_item_tokens"], pooled=_POOLED[notes["pooling"]])
    made = f"```python\n{loading}\n```"
    if entry.fuses:
        shares = ", ".join(f"{weight:.3g} of {name}" for name, weight in entry.fuses.items())
        made = (
            f"Its scores are the mean of those of {len(entry.fuses)} checkpoints: {shares}. The files of each carry "
            f"its number in front, from `member0.` on; without it they are a checkpoint of their own, such as `folder` "
            f"here:\n\n{made}"
        )
    hub = base["id"] if base["id"].count("/") == 1 and not Path(base["id"]).is_absolute() else None
    sections = (
        _metadata(form, hub),
        f"# {entry.name}",
        f"One point of the front that pareto-search found in the search `{front['search']}`: a {found['kind']} "
        f"checkpoint of the base model `{hub or Path(base['id']).name}` with one choice of serving genes.",
        f"## Loading the text encoder\n\n{made}",
        f"From text vectors to recommendations lead `{'member0.' if entry.fuses else ''}recommender.safetensors` "
        "and `serving.json`; `pareto-search evaluate FOLDER --data DATA` takes that way.",
        "## Data",
        f"{data.name}: {len(data.user_ids)} users, {len(data.item_ids)} items, {len(data.users)} interactions, split "
        f"`{split['strategy']}` with tie seed {split['tie_seed']}{_target(split)}.",
        _table(("what", "sha256"), _origins(front)),
        "## Objectives and scores",
        f"{'All of the target' if split.get('target') else 'The whole catalogue'} is ranked. The search saw validation "
        "only; test comes with 95 % intervals of a bootstrap over users.",
        _table(("objective", "direction", "reference", "validation", "test"), _scores(front, found)),
        "## Genes",
        _table(("training", "value"), _values({**found["weighting"], **found["genes"]})),
        _table(("serving", "value"), _values(entry.serving)),
        *_checks(measures),
        "## Versions",
        _table(("package", "version"), _versions(form)),
        "## Checksums",
        _table(("file", "sha256"), ((name, f"`{_sha256(content)}`") for name, content in sorted(files.items()))),
    )
    return "\n\n".join(sections) + "\n"


def _metadata(form: str, hub: str | None) -> str:
    lines = [f"library_name: {LIBRARIES[form][0]}", "pipeline_tag: feature-extraction"]
    lines += [f"base_model: {hub}"] if hub else []
    return "\n".join(("---", *lines, "tags: [recommendation, lora, pareto-search]", "---"))


def _origins(front: Document) -> Iterator[tuple[str, str]]:
    hashes = {"data": front["data_sha256"], "split": front["split_sha256"], "base model": front["base"]["sha256"]}
    for what, sha256 in hashes.items():
        yield what, f"`{sha256}`"


def _scores(front: Document, found: Document) -> Iterator[tuple[str, ...]]:
    for objective in front["objectives"]:
        name = objective["name"]
        values = (readable(found["validation"][name]), with_interval(found["test"][name]))
        yield name, objective["direction"], f"{objective['reference']:g}", *values


def _checks(measures: Mapping[str, Any]) -> Iterator[str]:
    """How near an export is to its checkpoint, and what int8 is worth."""
    if not measures:
        return
    yield "## Checked when it was exported"
    yield (
        "The least cosine between an item's text vector and the one that base model and adapter give in float32: "
        f"{measures['cosine']:.6f}."
    )
    kinds = [kind for kind in ("float32", "int8") if kind in measures]
    if kinds:
        int8 = measures["int8"]
        head = ("weights", "MB", "ms for one text", "ms for 32 texts", "NDCG@10 alone", "NDCG@10 of the entry")
        yield _table(head, ((kind, *_costs(measures[kind])) for kind in kinds))
        yield (
            "NDCG@10 is on validation: of the checkpoint alone, and with the entry's blend and re-ranking. int8 is: "
            f"{int8['way']}; its least cosine is {int8['cosine']:.4f}. Times are medians on one thread of the machine "
            f"that exported ({platform.machine()})."
        )


def _costs(of: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{of[name]:.1f}" for name in ("megabytes", "one_ms", "batch_ms"))
    yield from (f"{of['ndcg'][name]:.4f}" for name in ("alone", "entry"))


def _values(genes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in genes.items():
        yield name, f"{value:.4g}" if isinstance(value, float) else str(value)


def _versions(form: str) -> Iterator[tuple[str, str]]:
    yield "Python", platform.python_version()
    for package in dict.fromkeys((*PACKAGES, *LIBRARIES[form])):
        try:
            yield package, version(package)
        except PackageNotFoundError:  # run from a checkout, or a format that needs no package
            continue


def _target(split: Mapping[str, Any]) -> str:
    """What the card says of a target domain."""
    if not split.get("target"):
        return ""
    shots = split.get("shots")
    known = "" if shots is None else f", trained on the interactions of {shots:.0%} of the users with it"
    return f"; target `{split['target']}`, whose items alone are recommended{known}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = (head, tuple("---" for _ in head), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
