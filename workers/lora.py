"""LoRA for one candidate, put into the resident base model and taken out again; to and from PEFT's file format.

LoRA: Hu et al., ICLR 2022. A linear map W gains s·B·A with A (rank, in), B (out, rank); B starts at zero, and the scale
s is alpha / rank.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from pareto_search.errors import CheckpointError
from pareto_search.workers.dropout import dropout
from pareto_search.workers.encoder import Encoder

Targets = Literal["query_value", "attention", "all"]
Form = Literal["lora", "rslora", "dora", "full"]
"""LoRA as it is; with s = alpha / √rank, so that a larger rank learns no more slowly (rsLoRA: Kalajdzievski,
arXiv:2312.03732); with the lengths of a map's rows learned apart from directions (DoRA: Liu et al., ICML 2024); or the
whole map, as plain fine-tuning has it: one factor is the identity, and the other one all of the change.
"""
FULL_RATE = 0.1
"""What suits a whole map of a learning rate that suits its factors (Schulman et al., LoRA Without Regret, 2025)."""

MAGNITUDE = "lora_magnitude_vector"
FUSED = ("Wqkv", "qkv", "qkv_proj", "query_key_value", "c_attn")
"""Query, key and value in one map, as ModernBERT and GPT-2 have them: whoever wants one of them gets all."""
QUERY_VALUE = ("query", "value", "q_proj", "v_proj", "q_lin", "v_lin", "q", "v", "query_proj", "value_proj", *FUSED)
OUTPUT = ("o_proj", "out_lin", "out_proj", "o", "attention.output.dense", "attn.Wo", "attn.c_proj")
ATTENTION = (*QUERY_VALUE, "key", "k_proj", "k_lin", "k", "key_proj", *OUTPUT)
LINEAR = (nn.Linear, Conv1D)
"""Conv1D is what GPT-2 calls a linear map with its weights the other way round: `(in, out)`."""


@dataclass(frozen=True)
class LoraShape:
    """The genes that give an adapter its form; whole maps have neither rank nor alpha."""

    rank: int
    alpha: float
    dropout: float
    targets: Targets
    layers: int
    form: Form = "lora"

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by."""
        if self.form == "full":
            return 1.0
        return self.alpha / (self.rank**0.5 if self.form == "rslora" else self.rank)


class LoraLinear(nn.Module):
    """A frozen linear map with a correction; adapters are float32, products in the base's dtype.

    Attributes:
        A, B: `(rank, in)` and `(out, rank)`.
        identity: which of them is the identity and does not learn, so that the correction may be any map: `A` or `B`;
            None where it is of low rank.
        magnitude: `(out,)` the lengths that the rows of W + s·B·A are brought to; None for those that they have.

    Args:
        linear: one of `LINEAR`.
    """

    def __init__(self, linear: Any, shape: LoraShape, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.linear, self.scale, self.drop, self.generator = linear, shape.scale, shape.dropout, generator
        device = linear.weight.device
        into, out = widths(linear)
        self.identity: Literal["A", "B"] | None = None
        if shape.form == "full":
            self.identity = "A" if into <= out else "B"
            b, a = factored(torch.zeros(out, into, device=device))
            self.A = nn.Parameter(a, requires_grad=self.identity != "A")
            self.B = nn.Parameter(b, requires_grad=self.identity != "B")
        else:
            self.A = nn.Parameter(torch.empty(shape.rank, into, device=device))
            self.B = nn.Parameter(torch.zeros(out, shape.rank, device=device))
            nn.init.kaiming_uniform_(self.A, a=5**0.5, generator=generator)  # PEFT's own start
        self.magnitude = nn.Parameter(self.lengths()) if shape.form == "dora" else None

    def forward(self, x: Tensor) -> Tensor:
        correction = dropout(x, self.drop, self.training, self.generator)
        if self.identity != "A":
            correction = nn.functional.linear(correction, self.A.to(x.dtype))
        if self.identity != "B":
            correction = nn.functional.linear(correction, (self.B * self.scale).to(x.dtype))
        corrected: Tensor = self.linear(x) + correction
        return (
            corrected if self.magnitude is None else stretched(self.linear, corrected, self.magnitude / self.lengths())
        )

    @torch.no_grad()
    def lengths(self) -> Tensor:
        """Those `(out,)` of the rows of W + s·B·A; to training they are constants, as the paper has it."""
        return lengths(self.linear, self.scale * self.B, self.A)

    def factors(self) -> list[nn.Parameter]:
        """Those of A and B that learn."""
        return [factor for name, factor in (("A", self.A), ("B", self.B)) if name != self.identity]

    @torch.no_grad()
    def become(self, b: Tensor, a: Tensor) -> None:
        """Takes the correction s·b·a, or the nearest of its rank; of a higher rank than b's it keeps its own A."""
        if self.identity:
            self.factors()[0].copy_(product(b, a))
            return
        b, a = truncated(b, a, len(self.A))
        says = a.abs().amax(1) > 0  # a direction of which both factors were zero would never learn
        self.A[: len(a)][says] = a[says]
        self.B[:, : len(a)] = b

    def weights(self) -> dict[str, nn.Parameter]:
        """All of it, by PEFT's names."""
        named = {"lora_A.weight": self.A, "lora_B.weight": self.B}
        return named if self.magnitude is None else {**named, MAGNITUDE: self.magnitude}


class Adapter(nn.Module):
    """One candidate's corrections, by the full name of the linear map that each belongs to."""

    def __init__(self, shape: LoraShape, corrections: Mapping[str, LoraLinear]) -> None:
        super().__init__()
        self.shape = shape
        self.corrections = nn.ModuleDict({name.replace(".", "/"): m for name, m in corrections.items()})

    def named(self) -> Iterator[tuple[str, LoraLinear]]:
        for name, module in self.corrections.items():
            assert isinstance(module, LoraLinear)
            yield name.replace("/", "."), module

    def weights(self) -> list[nn.Parameter]:
        """What training moves."""
        return [*self.factors(), *self.magnitudes()]

    def factors(self) -> list[nn.Parameter]:
        """A and B of each place, as far as they learn; where these are zero, the base model is as it was."""
        return [factor for _, m in self.named() for factor in m.factors()]

    def magnitudes(self) -> list[nn.Parameter]:
        """The others, which have no business at zero."""
        return [m.magnitude for _, m in self.named() if m.magnitude is not None]

    def files(self, base: str, revision: str | None) -> dict[str, bytes]:
        """The adapter as PEFT writes it: `adapter_config.json` and `adapter_model.safetensors`."""
        rank = max(len(module.A) for _, module in self.named())
        config = {  # by hand, because PEFT takes two seconds to import, and its older releases warn of newer keys
            "peft_type": "LORA",
            "task_type": "FEATURE_EXTRACTION",
            "base_model_name_or_path": base,
            "revision": revision,
            "inference_mode": True,
            "r": rank,
            "lora_alpha": rank if self.shape.form == "full" else self.shape.alpha,
            "lora_dropout": self.shape.dropout,
            "target_modules": sorted(name for name, _ in self.named()),
            "fan_in_fan_out": any(isinstance(module.linear, Conv1D) for _, module in self.named()),
            "use_rslora": self.shape.form == "rslora",
            "use_dora": self.shape.form == "dora",
            "bias": "none",
        }
        tensors = {
            f"base_model.model.{name}.{what}": weight.detach().cpu().contiguous()
            for name, module in self.named()
            for what, weight in {**module.weights(), **padded(module.B, module.A, rank)}.items()
        }
        text = json.dumps(config, indent=2, sort_keys=True)
        return {"adapter_config.json": text.encode(), "adapter_model.safetensors": save(tensors)}


def fresh(
    encoder: Encoder,
    shape: LoraShape,
    names: Collection[str] | None = None,
    generator: torch.Generator | None = None,
) -> Adapter:
    """An adapter for the encoder's top blocks, not in it yet.

    Args:
        names: full names of the linear maps that get one, in place of those that the shape's targets mean.
        generator: what its start and its dropout are drawn from; None is torch's own.

    Raises:
        CheckpointError: the base model has no such linear maps.
    """
    places = {n: linear for n, linear in _places(encoder, shape).items() if names is None or n in names}
    if not places or (names is not None and len(places) < len(names)):
        wish = f"targets '{shape.targets}'" if names is None else f"the adapter's {len(names)} targets"
        raise CheckpointError(f"base model '{encoder.base.id}' has no linear maps for {wish}")
    return Adapter(shape, {name: LoraLinear(linear, shape, generator) for name, linear in places.items()})


@contextmanager
def placed(encoder: Encoder, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Modules in the encoder, each in the place of the linear map of that full name; on leaving, it is as it was."""
    places: list[tuple[nn.Module, str, nn.Module]] = []
    for name in modules:
        parent, _, child = name.rpartition(".")
        places.append((encoder.model.get_submodule(parent), child, encoder.model.get_submodule(name)))
    for (owner, child, _), module in zip(places, modules.values(), strict=True):
        setattr(owner, child, module)
    try:
        yield
    finally:
        for owner, child, before in places:
            setattr(owner, child, before)


@contextmanager
def attached(encoder: Encoder, shape: LoraShape, names: Collection[str] | None = None) -> Iterator[Adapter]:
    """A fresh adapter in the encoder; on leaving, the base model is as it was."""
    adapter = fresh(encoder, shape, names)
    with placed(encoder, dict(adapter.named())):
        yield adapter


@contextmanager
def loaded(encoder: Encoder, files: Mapping[str, bytes]) -> Iterator[Adapter]:
    """The adapter of a checkpoint's files in the encoder, for evaluation.

    Raises:
        CheckpointError: the files do not fit the base model.
    """
    config = json.loads(files["adapter_config.json"])
    tensors = load(files["adapter_model.safetensors"])
    layers, form = adapted_layers(files, len(encoder.blocks)), _form(config)
    shape = LoraShape(config["r"], config["lora_alpha"], 0.0, "all", layers, form)
    with attached(encoder, shape, config["target_modules"]) as adapter:
        try:
            for name, module in adapter.named():
                for what, weight in module.weights().items():
                    weight.data.copy_(tensors[f"base_model.model.{name}.{what}"])
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"the adapter does not fit base model '{encoder.base.id}': {error}") from error
        yield adapter.eval()


@torch.no_grad()
def inherit(adapter: Adapter, files: Mapping[str, bytes]) -> None:
    """Starts an adapter as the map that a checkpoint's adapter is, wherever both have a place.

    A smaller rank takes the nearest map of that rank; a larger one keeps its own random directions beside the parent's.
    Where only the parent has magnitudes, they are left behind; where only the child has, they are those of the map.
    """
    scale, tensors = parts(files)
    for name, module in adapter.named():
        place = f"base_model.model.{name}"
        if f"{place}.lora_A.weight" not in tensors:
            continue
        b, a = (tensors[f"{place}.lora_{factor}.weight"].to(module.A.device) for factor in "BA")
        module.become(b * (scale / module.scale), a)  # bit for bit where both scales are the same
        if module.magnitude is not None:
            own = tensors.get(f"{place}.{MAGNITUDE}")
            module.magnitude.copy_(module.lengths() if own is None else own)


def parts(files: Mapping[str, bytes]) -> tuple[float, dict[str, Tensor]]:
    """An adapter's scale s, and its tensors by PEFT's names."""
    config = json.loads(files["adapter_config.json"])
    shape = LoraShape(config["r"], config["lora_alpha"], 0.0, "all", 0, _form(config))
    return shape.scale, load(files["adapter_model.safetensors"])


def widths(linear: Any) -> tuple[int, int]:
    """How many numbers a linear map takes, and how many it gives."""
    return (linear.nx, linear.nf) if isinstance(linear, Conv1D) else (linear.in_features, linear.out_features)


def dense(linear: Any) -> Tensor:
    """W `(out, in)` of a linear map in float32, however it is kept."""
    weight = linear.weight
    if not weight.is_floating_point():  # in 4 bits
        from peft.utils.integrations import dequantize_module_weight

        weight = dequantize_module_weight(linear)
    weight = weight.detach().float()
    return weight.T if isinstance(linear, Conv1D) else weight


def lengths(linear: Any, b: Tensor, a: Tensor) -> Tensor:
    """Those `(out,)` of the rows of W + b·a, on b's device."""
    return torch.addmm(dense(linear).to(b.device), b, a).norm(dim=1)


def stretched(linear: Any, products: Tensor, share: Tensor) -> Tensor:
    """A linear map's products `(..., out)` with each row of the map as many times as long; its bias stays as it is."""
    bias = 0.0 if linear.bias is None else linear.bias * (1.0 - share)
    return (products * share + bias).to(products.dtype)


def truncated(b: Tensor, a: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors `(out, rank)` and `(rank, in)` of the map nearest to b·a (Eckart & Young, 1936); themselves if no wider.

    The singular values are shared between both factors, so that neither learns much faster than the other.
    """
    if len(a) <= rank:
        return b, a
    # The product is never formed: its singular values are those of two small triangles' product.
    q_out, r_out = torch.linalg.qr(b)
    q_in, r_in = torch.linalg.qr(a.T)
    u, s, v = torch.linalg.svd(r_out @ r_in.T, full_matrices=False)  # a map may be narrower than the rank
    root = s[:rank].sqrt()
    return q_out @ u[:, :rank] * root, (q_in @ v[:rank].T * root).T


def factored(change: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of a map `(out, in)`, the square one of which is the identity."""
    identity = torch.eye(min(change.shape), device=change.device)
    return (change, identity) if change.shape[1] <= change.shape[0] else (identity, change)


def product(b: Tensor, a: Tensor) -> Tensor:
    """The map b·a, without a multiplication where one of them is the identity, filled up with zeros perhaps."""
    if len(a) >= a.shape[1] and torch.equal(a, torch.eye(*a.shape, device=a.device)):
        return b[:, : a.shape[1]]
    if b.shape[1] >= len(b) and torch.equal(b, torch.eye(*b.shape, device=b.device)):
        return a[: len(b)]
    return b @ a


def padded(b: Tensor, a: Tensor, rank: int) -> dict[str, Tensor]:
    """The same map by factors of this rank, by PEFT's names: it has one rank for all places."""
    missing = rank - len(a)
    return {
        "lora_A.weight": nn.functional.pad(a, (0, 0, 0, missing)),
        "lora_B.weight": nn.functional.pad(b, (0, missing)),
    }


def adapted_layers(files: Mapping[str, bytes], depth: int) -> int:
    """How many of a base model's `depth` blocks, from the top, a checkpoint's adapter may reach."""
    names = json.loads(files["adapter_config.json"])["target_modules"]
    numbers = [int(part) for name in names for part in name.split(".") if part.isdigit()]
    return depth - min(numbers, default=0)


def is_target(name: str, targets: str) -> bool:
    """Whether targets mean the linear map of that name within a block."""
    wanted = {"query_value": QUERY_VALUE, "attention": ATTENTION}.get(targets)
    return wanted is None or any(f".{name}".endswith(f".{child}") for child in wanted)


def _form(config: Mapping[str, Any]) -> Form:
    """That of an adapter with this PEFT config."""
    if config.get("use_dora"):
        return "dora"
    return "rslora" if config.get("use_rslora") else "lora"


def _places(encoder: Encoder, shape: LoraShape) -> dict[str, nn.Module]:
    """The linear maps that the shape's targets mean, by full name."""
    depth = len(encoder.blocks)
    return {
        f"{encoder.prefix}.{index}.{name}": module
        for index in range(depth - shape.layers, depth)
        for name, module in encoder.blocks[index].named_modules()
        if isinstance(module, LINEAR) and is_target(name, shape.targets)
    }
