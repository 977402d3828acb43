"""A checkpoint used without this project: what its files and the written formulas are worth to a stranger.

    python tests/plain.py BASE_FOLDER CHECKPOINT_FOLDER TEXTS.json HISTORIES.json OUT.npz

Imports nothing of ours; OUT gets the items' text vectors `(n, t)` and the users' scores `(m, n)`. HISTORIES has each
user's `items`, and the `gaps` before them.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from scipy.special import erf

Array = np.ndarray


def text_vectors(base: str, folder: str, texts: Sequence[str]) -> Array:
    """PEFT's model over texts, as recommender.json says."""
    import torch
    from peft import PeftModel
    from transformers import AutoModel

    notes = json.loads(Path(folder, "recommender.json").read_text())
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(base, dtype=getattr(torch, notes["dtype"])), folder)
    return unit_vectors(model, base, texts, notes["max_item_tokens"], notes["pooling"])


def unit_vectors(model: Any, base: str, texts: Sequence[str], max_tokens: int, pooling: str = "mean") -> Array:
    """A model's last states over texts padded on the right, pooled and brought to unit length."""
    import torch
    from transformers import AutoTokenizer

    options = {"padding": True, "truncation": True, "max_length": max_tokens, "return_tensors": "pt"}
    batch = AutoTokenizer.from_pretrained(base)(list(texts), **options)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        hidden = model.eval()(**inputs).last_hidden_state.float()
    mask = inputs["attention_mask"][..., None]
    pooled = {
        "mean": (hidden * mask).sum(1) / mask.sum(1),
        "first": hidden[:, 0],
        "last": hidden[torch.arange(len(hidden)), mask.sum(1)[:, 0] - 1],
    }
    return torch.nn.functional.normalize(pooled[pooling], dim=1).numpy()


def item_vectors(tensors: Mapping[str, Array], text: Array | None) -> Array:
    vectors = 0.0 if text is None else text @ tensors["projection.weight"].T + tensors["projection.bias"]
    return vectors + tensors.get("item_embedding", 0.0)


def decayed_mean(window: Array) -> Array:
    weights = 0.8 ** np.arange(len(window))[::-1]
    return weights @ window / weights.sum()


def attention(window: Array, t: Mapping[str, Array], heads: int = 2) -> Array:
    """The last state of one causal block; the last item is at the last position."""

    def linear(name: str, x: Array) -> Array:
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def norm(name: str, x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        unit = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return unit * t[f"{name}.weight"] + t[f"{name}.bias"]

    x = window + t["position"][len(t["position"]) - len(window) :]
    width = x.shape[1] // heads
    query, key, value = np.split(linear("attention_in", norm("attention_norm", x)), 3, axis=1)
    mixed = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        # The last item sees all others, and only its state is wanted: no mask.
        weights = np.exp(query[-1, part] @ key[:, part].T / np.sqrt(width))
        mixed.append(weights / weights.sum() @ value[:, part])
    last = x[-1] + linear("attention_out", np.concatenate(mixed))
    inner = linear("feed_in", norm("feed_norm", last))
    last = last + linear("feed_out", inner * (1 + erf(inner / np.sqrt(2))) / 2)
    return norm("final_norm", last)


def turned(history: Sequence[int], gaps: Sequence[int], number: int, towers: int) -> list[int]:
    """The items of each moment, those with gap 1 after the one before them, begin further on by a part of them."""
    moments: list[list[int]] = []
    for place, (item, gap) in enumerate(zip(history, gaps, strict=True)):
        if gap == 1 and place > 0:
            moments[-1].append(item)
        else:
            moments.append([item])
    return [item for m in moments for at in [len(m) * number // towers] for item in (*m[at:], *m[:at])]


def scores(
    notes: Mapping[str, Any],
    tensors: Mapping[str, Array],
    text: Array | None,
    histories: Sequence[Any],
    gaps: Sequence[Any] | None = None,
    groups: Sequence[Sequence[int]] | None = None,
) -> Array:
    """The mean over towers of s(u, i) = u·v_i / temperature + item_bias_i.

    Args:
        groups: each user's, of each kind, counted from 1, and 0 for one that is not known.
    """
    total = 0.0
    for number in range(notes["towers"]):
        tower = {name: stacked[number].astype(np.float64) for name, stacked in tensors.items()}
        vectors, read = item_vectors(tower, text), histories
        if notes["gaps"] and gaps is not None:
            read = [turned(*row, number, notes["towers"]) for row in zip(histories, gaps, strict=True)]
        windows = [vectors[np.asarray(history)[-notes["history"] :]] for history in read]
        if notes["gaps"] and gaps is not None:
            windows = [w + tower["gap"][np.asarray(g)[-notes["history"] :]] for w, g in zip(windows, gaps, strict=True)]
        if groups is not None:
            for row, belongs in enumerate(groups):
                for kind, group in enumerate(belongs):
                    if group:
                        windows[row] = windows[row] + tower["group"][sum(notes["groups"][:kind]) + group]
        users = [decayed_mean(w) if notes["tower"] == "decayed_mean" else attention(w, tower) for w in windows]
        total += np.array(users) @ vectors.T / tower["temperature"] + tower["item_bias"]
    return total / notes["towers"]


if __name__ == "__main__":
    base, folder, texts, histories, out = sys.argv[1:]
    text = text_vectors(base, folder, json.loads(Path(texts).read_text()))
    notes = json.loads(Path(folder, "recommender.json").read_text())
    tensors = load_file(Path(folder, "recommender.safetensors"))
    read = json.loads(Path(histories).read_text())
    np.savez(out, text=text, scores=scores(notes, tensors, text, read["items"], read["gaps"]))
    assert not any(name.startswith("pareto_search") for name in sys.modules)
