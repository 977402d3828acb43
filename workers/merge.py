"""Merging: checkpoints interpolated in their weights, without training (rewarded soups: Ramé et al., NeurIPS 2023).

Fine-tunings of one warm start lie close enough for their average to be a model too. Adapters are averaged as the maps
that they are: Σ wᵢ·sᵢ·BᵢAᵢ is the product of the concatenated factors, which the average of the factors is not. With
magnitudes, which make each map Dᵢ(W + sᵢBᵢAᵢ) with a diagonal Dᵢ, it is D(W + Σ wᵢ·D⁻¹Dᵢ·sᵢ·BᵢAᵢ) with D = Σ wᵢDᵢ.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import torch
from safetensors.torch import load, save
from torch import Tensor

from pareto_search.executor import Files
from pareto_search.workers.encoder import Encoder
from pareto_search.workers.lora import MAGNITUDE, factored, lengths, padded, parts, truncated
from pareto_search.workers.recommender import Shape


def merge(
    checkpoints: Sequence[Files], weights: Sequence[float], rank: int, notes: Mapping[str, object], encoder: Encoder
) -> dict[str, bytes]:
    """The weighted average of checkpoints of one base model and one shape of tower.

    An item or gap embedding that one of them lacks counts as zero there, and the same holds for its adapter's missing
    places.

    Args:
        weights: one a checkpoint; they sum to 1.
        rank: what the merged adapter has at most, but where one of the checkpoints has the whole map. The average is
            exact where the ranks together do not exceed it, and the nearest of that rank otherwise (Eckart & Young,
            1936).
        notes: written into `recommender.json`.
        encoder: of the base model.
    """
    return _adapter(checkpoints, weights, rank, encoder) | _recommender(checkpoints, weights, notes)


def _adapter(checkpoints: Sequence[Files], weights: Sequence[float], rank: int, encoder: Encoder) -> dict[str, bytes]:
    adapters = [parts(c) for c in checkpoints]
    places = sorted({name.rpartition(".lora_")[0] for _, tensors in adapters for name in tensors})
    has_magnitudes = any(name.endswith(MAGNITUDE) for _, tensors in adapters for name in tensors)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    magnitudes: dict[str, Tensor] = {}
    for place in places:
        linear = encoder.model.get_submodule(place.removeprefix("base_model.model."))
        mine: list[tuple[Tensor, Tensor]] = []
        stretches: list[Tensor] = []  # the diagonals of wᵢDᵢ
        total = torch.zeros(())
        for weight, (scale, tensors) in zip(weights, adapters, strict=True):
            stretch = torch.tensor(weight)
            if f"{place}.lora_A.weight" in tensors:
                b, a = scale * tensors[f"{place}.lora_B.weight"], tensors[f"{place}.lora_A.weight"]
                if f"{place}.{MAGNITUDE}" in tensors:
                    stretch = weight * tensors[f"{place}.{MAGNITUDE}"] / lengths(linear, b, a)
                mine.append((b, a))
                stretches.append(stretch)
            total = total + stretch
        bs = [(s / total)[..., None] * b for s, (b, _) in zip(stretches, mine, strict=True)]
        b, a = torch.cat(bs, 1), torch.cat([a for _, a in mine], 0)
        whole = any(len(a) >= min(len(b), a.shape[1]) for b, a in mine)
        factors[place] = factored(b @ a) if whole else truncated(b, a, rank)
        if has_magnitudes:
            magnitudes[f"{place}.{MAGNITUDE}"] = (total * lengths(linear, *factors[place])).contiguous()
    widest = max(a.shape[0] for _, a in factors.values())
    merged = magnitudes
    for place, (b, a) in factors.items():
        merged |= {f"{place}.{what}": weight.contiguous() for what, weight in padded(b, a, widest).items()}
    config = json.loads(checkpoints[0]["adapter_config.json"]) | {
        "r": widest,
        "lora_alpha": float(widest),  # the scale is in the factors
        "use_rslora": False,
        "use_dora": has_magnitudes,
        "target_modules": [place.removeprefix("base_model.model.") for place in places],
    }
    text = json.dumps(config, indent=2, sort_keys=True)
    return {"adapter_config.json": text.encode(), "adapter_model.safetensors": save(merged)}


def _recommender(
    checkpoints: Sequence[Files], weights: Sequence[float], notes: Mapping[str, object]
) -> dict[str, bytes]:
    tensors = [load(c["recommender.safetensors"]) for c in checkpoints]
    merged = {
        name: torch.stack([w * t[name] for w, t in zip(weights, tensors, strict=True) if name in t]).sum(0)
        for name in {name: None for t in tensors for name in t}
    }
    shape = replace(
        Shape.of(json.loads(checkpoints[0]["recommender.json"])),
        item_embeddings="item_embedding" in merged,
        gaps="gap" in merged,
    )
    text = json.dumps({**asdict(shape), **notes}, indent=2, sort_keys=True)
    return {"recommender.json": text.encode(), "recommender.safetensors": save(merged)}
