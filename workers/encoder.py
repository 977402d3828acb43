"""The base model over one catalogue: tokens and frozen prefixes are computed once, then only the top blocks run.

Items are encoded in batches of equal token length: there is no padding, hence no mask, and a pooled vector is a plain
mean or one of the states. The hidden states that enter the top blocks do not depend on any adapter, so they are cached
for every depth at which a candidate may start, or at least for the lowest one.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import zip_longest
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging

from pareto_search.errors import CheckpointError, ConfigError
from pareto_search.workers.base import Base

Precision = Literal["auto", "bfloat16", "float32", "nf4"]
Pooling = Literal["mean", "first", "last"]
"""What becomes an item's text vector, brought to unit length: the mean of the last hidden states, or one of them."""
POOLINGS: Mapping[str, Pooling] = {"mean": "mean", "cls": "first", "lasttoken": "last"}
"""By their names in sentence-transformers."""

TOKENS = 4096
"""The largest batch in tokens: activations stay bounded whatever the size of the catalogue."""
CACHED = 2**30
"""How many bytes of hidden states are kept, at most, beside those of the lowest depth."""


def precision(wish: Precision, device: str) -> torch.dtype:
    """The dtype of products: bfloat16 where the hardware multiplies it faster, unless the config insists. With weights
    in 4 bits it is always bfloat16, so that a checkpoint means the same wherever it is loaded.
    """
    if wish != "auto":
        return torch.float32 if wish == "float32" else torch.bfloat16
    fast = torch.cuda.is_bf16_supported() if device != "cpu" else torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


class Encoder:
    """A resident base model over a fixed list of texts.

    Attributes:
        base: which model it is.
        blocks: its transformer blocks, bottom first; adapters are put into them.
        width: the width t of a pooled vector.
        layers: how many of the top blocks a candidate may adapt, at most.
        kept: the precision in which the weights of the base model's linear maps are kept.
        pooling: how a text vector comes from the last hidden states; that of the base model, unless it is given.
        frozen: `(n_items, t)` float32, the vectors of the base model as it is.

    Args:
        dtype: of products, and of the weights but for those that `nf4` keeps in 4 bits.
        nf4: whether the linear maps are kept in 4-bit NormalFloat, from which each product makes them anew (QLoRA,
            Dettmers et al., NeurIPS 2023).
    """

    def __init__(
        self,
        base: Base,
        texts: Sequence[str],
        *,
        max_tokens: int,
        layers: int,
        dtype: torch.dtype = torch.float32,
        nf4: bool = False,
        device: str = "cpu",
        pooling: Pooling | None = None,
    ) -> None:
        self.base, self.dtype, self.device = base, dtype, device
        self.kept = "nf4" if nf4 else str(dtype).removeprefix("torch.")
        self.model = _load(base, dtype, nf4, device)
        self.blocks = _blocks(self.model, base)
        self.width = int(self.model.config.hidden_size)
        self.layers = min(layers, len(self.blocks))
        self.prefix = _prefix(self.model, self.blocks)
        self._final = _final(self.model, self.prefix)
        self.pooling = pooling or _pooling(base, self.model)
        if self.pooling not in get_args(Pooling):
            raise CheckpointError(f"a checkpoint pools by '{pooling}'; another release has written it, and can read it")
        tokens = _tokenise(base, texts, max_tokens)
        lengths = np.array([len(t) for t in tokens])
        self._row = np.empty(len(texts), np.int64)  # an item's row among the items of its length
        self._lengths = lengths
        lowest, size = len(self.blocks) - self.layers, int(lengths.sum()) * self.width * dtype.itemsize
        self._depths = range(lowest, min(len(self.blocks), lowest + 1 + CACHED // size))
        self._hidden: dict[tuple[int, int], Tensor] = {}  # (length, depth) -> (items, length, width)
        self._extra: dict[tuple[int, int], tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self.frozen = torch.empty(len(texts), self.width)
        for length in np.unique(lengths):
            members = np.flatnonzero(lengths == length)
            self._row[members] = np.arange(len(members))
            ids = torch.tensor([tokens[i] for i in members], device=device)
            self.frozen[torch.from_numpy(members)] = self._cache(int(length), ids).cpu()
        self._check()

    def chunks(self, items: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Cuts `(m,)` item indices into batches of one token length, each at most `TOKENS` tokens."""
        lengths = self._lengths[items]
        for length in np.unique(lengths):
            members = items[lengths == length]
            size = max(1, TOKENS // int(length))
            for start in range(0, len(members), size):
                yield members[start : start + size]

    def foremost(self, worth: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """About `count` of the items, ascending: of each length those that are worth most.

        How many of a length there are is rounded to halves of its share, so that a few batch sizes recur: oneDNN takes
        half a millisecond and half a megabyte for every shape of a product that it has not seen.

        Args:
            worth: `(n_items,)`.
        """
        order = np.argsort(-worth, kind="stable")
        first = np.zeros(len(worth), bool)
        first[order[:count]] = True
        chosen: list[NDArray[np.int64]] = []
        for length in np.unique(self._lengths):
            members = order[self._lengths[order] == length]
            unit = math.ceil(len(members) * count / len(worth) / 2)
            chosen.append(members[: round(first[members].sum() / unit) * unit])
        return np.sort(np.concatenate(chosen))

    def chunks_together(self, several: Sequence[NDArray[np.int64]]) -> Iterator[tuple[NDArray[np.int64], ...]]:
        """Cuts each of several selections into its `chunks`, and yields those of one token length together.

        Yields:
            One chunk a selection, empty where it has no more of that length.
        """
        for length in np.unique(self._lengths):
            mine = [self.chunks(items[self._lengths[items] == length]) for items in several]
            yield from zip_longest(*mine, fillvalue=np.empty(0, np.int64))

    def encode(self, items: NDArray[np.int64], layers: int) -> Tensor:
        """Pooled vectors `(m, t)` float32 of one chunk, running the top `layers` blocks from the cached prefix.

        Where the prefix is cached only lower down, the blocks between run as they are.
        """
        return self.encode_together([items], [layers])[0]

    def encode_together(self, chunks: Sequence[NDArray[np.int64]], layers: Sequence[int]) -> Tensor:
        """Pooled vectors `(p, m, t)` float32 of several chunks of one token length, the rows of each together.

        Each chunk joins those before it at the block where its own top `layers` begin.

        Args:
            chunks: the longest has m items; the others are filled up with whatever comes first.
            layers: of each chunk, descending.
        """
        length, size = next(int(self._lengths[c[0]]) for c in chunks if len(c)), max(map(len, chunks))
        depths = [self.depth(n) for n in layers]
        rows = np.zeros((len(chunks), size), np.int64)
        for mine, chunk in zip(rows, chunks, strict=True):
            mine[: len(chunk)] = self._row[chunk]
        hidden: Tensor | None = None
        for index in range(depths[0], len(self.blocks)):
            if index in depths:
                joining = rows[depths.index(index) : depths.index(index) + depths.count(index)]
                prefix = self._hidden[length, index].index_select(0, torch.from_numpy(joining.ravel()).to(self.device))
                hidden = prefix if hidden is None else torch.cat([hidden, prefix])
            arguments, options = self._extra[length, index]
            hidden = _output(self.blocks[index](hidden, *arguments, **options))
        return pool(self._final(hidden), self.pooling).view(len(chunks), size, -1)

    def depth(self, layers: int) -> int:
        """The block with which the top `layers` begin, or the highest below it whose prefix is cached."""
        return min(len(self.blocks) - layers, self._depths[-1])

    @torch.no_grad()
    def catalogue(self, layers: int) -> Tensor:
        """Pooled vectors `(n_items, t)` float32 of all items, on the encoder's device."""
        vectors = torch.empty(len(self._lengths), self.width, device=self.device)
        for chunk in self.chunks(np.arange(len(self._lengths))):
            vectors[torch.from_numpy(chunk).to(self.device)] = self.encode(chunk, layers)
        return vectors

    @torch.no_grad()
    def _check(self) -> None:
        """Refuses a model that does more than its blocks and a final norm: from a prefix it would be another model."""
        some = next(self.chunks(np.arange(len(self._lengths))))
        again = self.encode(some, self.layers).cpu()
        if not bool(((again * self.frozen[torch.from_numpy(some)]).sum(1) > 0.99).all()):
            raise CheckpointError(
                f"base model '{self.base.id}' ({type(self.model).__name__}) is of an unknown architecture: its last "
                "blocks do not lead to its output; give another base model"
            )

    @torch.no_grad()
    def _cache(self, length: int, ids: Tensor) -> Tensor:
        """Runs the whole model over texts of one length and keeps what enters each of the top blocks."""
        top = range(self._depths[0], len(self.blocks))
        for depth in self._depths:
            self._hidden[length, depth] = torch.empty(*ids.shape, self.width, dtype=self.dtype, device=self.device)
        start = 0

        def keep(depth: int) -> Any:
            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                self._extra.setdefault((length, depth), (args[1:], kwargs))
                if depth in self._depths:
                    self._hidden[length, depth][start : start + len(args[0])] = args[0]

            return hook

        hooks = [self.blocks[d].register_forward_pre_hook(keep(d), with_kwargs=True) for d in top]
        pooled: list[Tensor] = []
        size = max(1, TOKENS // length)
        try:
            self.model(input_ids=ids[:1])  # leaves arguments of batch size 1, which broadcast over any batch
            for start in range(0, len(ids), size):
                hidden = self.model(input_ids=ids[start : start + size]).last_hidden_state
                pooled.append(pool(hidden, self.pooling))
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat(pooled)


def pool(hidden: Tensor, pooling: Pooling) -> Tensor:
    """Text vectors `(m, t)` float32 from hidden states `(m, length, t)` without padding."""
    pooled = hidden.float().mean(1) if pooling == "mean" else hidden[:, 0 if pooling == "first" else -1].float()
    return nn.functional.normalize(pooled, dim=1)


def _load(base: Base, dtype: torch.dtype, nf4: bool, device: str) -> Any:
    options: dict[str, Any] = {"dtype": dtype}
    if nf4:
        if find_spec("bitsandbytes") is None:
            raise ConfigError("model.dtype nf4 needs bitsandbytes on every worker: pip install 'pareto-search[nf4]'")
        how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
        # Always from bfloat16: rounded in another way, some weights in a thousand become others.
        options = {"dtype": torch.bfloat16, "quantization_config": how, "device_map": {"": device}}
    logging.disable_progress_bar()  # a second of loading needs no bar, and the search has its own
    # On a CPU, the fused kernel's way back takes ten times as long as plain products in bfloat16.
    if device == "cpu":
        options["attn_implementation"] = "eager"
    try:
        model = AutoModel.from_pretrained(base.folder, use_safetensors=True, local_files_only=True, **options)
    except (ImportError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"base model '{base.id}' cannot be loaded: {str(error).splitlines()[0]}") from error
    model.config.use_cache = False  # of keys and values, which decoders would keep from one call to the next
    model.eval().requires_grad_(False)
    if not nf4:
        return model.to(device)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # It would repack a weight for inference on a CPU, from which there is no way back to a gradient.
            module.support_avx512bf16_for_cpu = False
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
        else:
            parameter.quant_state.dtype = dtype  # else gradients, lengths and exports would be of rounded weights
    return model


def _pooling(base: Base, model: Any) -> Pooling:
    """As the base model's own sentence-transformers folder says; else the mean, or the last token of a decoder, which
    alone has read the whole text.

    Raises:
        CheckpointError: the base model pools in a way that is unknown here.
    """
    for path in sorted(base.folder.glob("*_Pooling/config.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"base model '{base.id}': {path} cannot be read ({error})") from None
        flags = [key.removeprefix("pooling_mode_") for key in content if key.startswith("pooling_mode_")]
        older = [
            flag.removesuffix("_token").removesuffix("_tokens") for flag in flags if content[f"pooling_mode_{flag}"]
        ]
        mode = content.get("pooling_mode", older)
        mode = mode if isinstance(mode, str) else "+".join(mode)
        if mode not in POOLINGS:
            raise CheckpointError(f"base model '{base.id}' pools by '{mode}'; expected one of: {', '.join(POOLINGS)}")
        return POOLINGS[mode]
    return "last" if _is_causal(model) else "mean"


@torch.no_grad()
def _is_causal(model: Any) -> bool:
    """Whether a token is blind to those after it, as in a decoder."""
    hidden = model(input_ids=torch.tensor([[3, 4, 5], [3, 4, 6]], device=model.device)).last_hidden_state.float()
    moved = (hidden[0] - hidden[1]).abs().amax(1)
    return bool(moved[:2].max() < 0.01 * moved[2])  # rounding may move it a little


def _blocks(model: Any, base: Base) -> nn.ModuleList:
    """The list of transformer blocks: the one module list as long as the config says the model is deep."""
    depth = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth and len({type(m) for m in module}) == 1:
            return module
    raise CheckpointError(f"base model '{base.id}' ({type(model).__name__}) has no list of {depth} transformer blocks")


def _prefix(model: Any, blocks: nn.ModuleList) -> str:
    """The blocks' name inside the model, such as `encoder.layer`."""
    return next(name for name, module in model.named_modules() if module is blocks)


def _final(model: Any, prefix: str) -> nn.Module:
    """The norm that some architectures put after their blocks."""
    parent = model.get_submodule(prefix.rpartition(".")[0])
    norms = (getattr(parent, name, None) for name in ("norm", "final_norm", "final_layer_norm", "ln_f"))
    return next((norm for norm in norms if isinstance(norm, nn.Module)), nn.Identity())


def _tokenise(base: Base, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(base.folder, local_files_only=True)
    ids: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]
    # A decoder's tokenizer makes nothing of an empty text.
    return [own or [tokenizer.eos_token_id or 0] for own in ids]


def _output(result: Any) -> Tensor:
    """A block's hidden states: some architectures wrap them in a tuple."""
    return result if isinstance(result, Tensor) else result[0]
