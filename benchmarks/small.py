"""A search that takes seconds, for tests and fault benchmarks: its small data set and tiny base model are made here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

USERS, ITEMS = 40, 30
CATEGORIES = ("drama", "comedy", "war", "crime", "music", "nature")
WORDS = ("night", "river", "city", "train", "garden", "winter", "letter", "island", "mirror", "stone")

OBJECTIVES = (
    {"metric": "ndcg@5", "reference": 0.0001, "ideal": 0.5},
    {"metric": "ild@5", "reference": 0.05, "ideal": 1.0},
    {"metric": "novelty@5", "reference": 0.01, "ideal": 0.8},
)
SEARCH: Mapping[str, Any] = {
    "mode": "ordered",
    "population": 4,
    "candidates": 6,
    "steps": 2,
    "serving_settings": 4,
    "candidate_timeout": 120,
}


def make(folder: Path, *, workers: Mapping[str, Any] | None = None, **search: Any) -> Path:
    """Writes data, base model and config into a folder.

    Args:
        workers: in place of what the section `workers` has.
        search: in place of what `SEARCH` has.

    Returns:
        The config's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_data(folder)
    write_base(folder / "base")
    return write_config(folder / "search.yaml", workers=workers, **search)


def write_config(path: Path, *, workers: Mapping[str, Any] | None = None, **search: Any) -> Path:
    """A config beside data and base model that are there already."""
    columns = {
        "user": "user",
        "item": "item",
        "rating": "rating",
        "timestamp": "time",
        "text": ["title", "categories"],
        "categories": "categories",
    }
    content = {
        "name": "small",
        "data": {"interactions": "ratings.csv", "items": "items.csv", "columns": columns},
        "model": {"base": "base", "dtype": "float32", "history": 10, "width": 16},
        "objectives": list(OBJECTIVES),
        "search": {**SEARCH, **search},
        "workers": {"count": 2, "cpus": 1, **(workers or {})},
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def write_data(folder: Path) -> None:
    """Users with a taste for two categories each, and items with a title and one or two categories."""
    rng = np.random.default_rng(0)
    kinds = [sorted({i % len(CATEGORIES), int(rng.integers(len(CATEGORIES)))}) for i in range(ITEMS)]
    rows = ["item,title,categories"]
    for item, mine in enumerate(kinds):
        title = f"The {WORDS[item % 10]} and the {WORDS[(item * 7 + 3) % 10]} {item + 1}"
        rows.append(f"i{item + 1},{title},{'|'.join(CATEGORIES[k] for k in mine)}")
    (folder / "items.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")

    rows = ["user,item,rating,time"]
    for user in range(USERS):
        taste = {user % len(CATEGORIES), (user + 1) % len(CATEGORIES)}
        liked = np.array([3.0 if taste & set(mine) else 0.5 for mine in kinds])
        items = rng.choice(ITEMS, int(rng.integers(8, 15)), replace=False, p=liked / liked.sum())
        for time, item in enumerate(items):
            rating = int(rng.integers(3, 6)) if taste & set(kinds[item]) else int(rng.integers(1, 4))
            rows.append(f"u{user + 1},i{item + 1},{rating},{1000 * user + time}")
    (folder / "ratings.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_base(folder: Path) -> None:
    """A BERT of two blocks with random weights and a WordPiece tokenizer of letters and our words."""
    import torch
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, "the", "and", *WORDS, *CATEGORIES, *letters, *(f"##{c}" for c in letters), ","]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)

    shape = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(shape).save_pretrained(folder)
