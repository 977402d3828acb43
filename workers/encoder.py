"""The base model over one catalogue: tokens and frozen prefixes are computed once, then only the top blocks run.

On a CPU items are encoded in batches of equal token length: there is no padding, hence no mask. On a GPU, where a small
model takes as long to start its kernels as to run them, they are padded to one of a few widths. The hidden states that
enter the top blocks do not depend on any adapter, so they are cached for every depth at which a candidate may start, or
at least for the lowest one.
"""

import json
import math
import sys
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
from pareto_search.workers.bucket import Bucket, arguments
from pareto_search.workers.prefix_cache import PrefixCache, Tensors
from pareto_search.workers.workload import Precision

Pooling = Literal["mean", "first", "last"]
"""What becomes an item's text vector, brought to unit length: the mean of the last hidden states, or one of them."""
POOLINGS: Mapping[str, Pooling] = {"mean": "mean", "cls": "first", "lasttoken": "last"}
"""By their names in sentence-transformers."""

TOKENS = 4096
"""The largest batch in tokens: activations stay bounded whatever the size of the catalogue."""
WIDTHS = {"cpu": 1, "cuda": 8}
"""Texts are padded to a multiple of so many tokens."""
POOLED = "pooled"
"""A text's vector, among the states of the model that are kept."""
CHECKED = 16
"""How many lengths are looked at to see whether a model is what it is taken for."""
CACHED = 2**30
"""How many bytes of hidden states are kept, at most, beside those of the lowest depth."""


def precision(wish: Precision, device: str) -> torch.dtype:
    """The dtype of products: bfloat16 where the hardware multiplies it faster, unless the config insists. With weights
    in 4 bits it is always bfloat16, so that a checkpoint means the same wherever it is loaded.
    """
    if wish != "auto":
        return torch.float32 if wish == "float32" else torch.bfloat16
    fast = (
        torch.cuda.is_bf16_supported(including_emulation=False)
        if device != "cpu"
        else torch.cpu._is_avx512_bf16_supported()
    )
    return torch.bfloat16 if fast else torch.float32


class Encoder:
    """A resident base model over a fixed list of texts. On a GPU, cuDNN's attention is switched off in all the process.

    Attributes:
        base: which model it is.
        blocks: its transformer blocks, bottom first; adapters are put into them.
        width: the width t of a pooled vector.
        layers: how many of the top blocks a candidate may adapt, at most.
        kept: the precision in which the weights of the base model's linear maps are kept.
        pooling: how a text vector comes from the last hidden states; that of the base model, unless it is given.
        lengths: `(n_items,)` how many tokens each text has.
        frozen: `(n_items, t)` float32, the vectors of the base model as it is.

    Args:
        dtype: of products, and of the weights but for those that `nf4` keeps in 4 bits.
        nf4: whether the linear maps are kept in 4-bit NormalFloat, from which each product makes them anew (QLoRA,
            Dettmers et al., NeurIPS 2023).
        widths: texts are padded to a multiple of so many tokens, but no further than the longest; by default as suits
            the device.
        cache: shared with the other workers of this machine; None computes all prefixes here.
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
        widths: int | None = None,
        cache: PrefixCache | None = None,
    ) -> None:
        self.base, self.dtype, self.device = base, dtype, device
        self.kept = "nf4" if nf4 else str(dtype).removeprefix("torch.")
        self.model = _load(base, dtype, nf4, device)
        self.blocks = _blocks(self.model, base)
        self.width = int(self.model.config.get_text_config().hidden_size)
        self.layers = min(layers, len(self.blocks))
        self.prefix = _prefix(self.model, self.blocks)
        self._final = _final(self.model, self.prefix)
        self.pooling = pooling or _pooling(base, self.model)
        if self.pooling not in get_args(Pooling):
            raise CheckpointError(f"a checkpoint pools by '{pooling}'; another release has written it, and can read it")
        tokens, lengths = _tokenise(base, texts, max_tokens)
        if lengths.max() > (most := _most_tokens(self.model)):
            raise CheckpointError(
                f"base model '{base.id}' reads {most} tokens at most, and an item's text has {lengths.max()}; set "
                f"model.max_item_tokens to {most}"
            )
        self.lengths = lengths
        multiple = widths or WIDTHS[device]
        self._row = np.empty(len(texts), np.int64)  # an item's row in its bucket
        self._widths = np.minimum(-(-lengths // multiple) * multiple, lengths.max())
        lowest, size = len(self.blocks) - self.layers, int(self._widths.sum()) * self.width * dtype.itemsize
        self._depths = range(lowest, min(len(self.blocks), lowest + 1 + CACHED // size))
        self._buckets: dict[int, Bucket] = {}
        self.frozen = torch.empty(len(texts), self.width)
        members = {str(width): np.flatnonzero(self._widths == width) for width in np.unique(self._widths)}

        def run(width: str) -> Tensors:
            mine = members[width]
            return self._run(tokens[mine, : int(width)], lengths[mine])

        parts = ((width, run(width)) for width in members) if cache is None else cache.each(list(members), run)
        for width, part in parts:
            mine = members[width]
            self._row[mine] = np.arange(len(mine))
            self._buckets[int(width)] = self._bucket(tokens[mine, : int(width)], lengths[mine], part)
            self.frozen[torch.from_numpy(mine)] = part[POOLED].cpu()
        self._check()

    def chunks(self, items: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Cuts `(m,)` item indices into batches of one width, each at most `TOKENS` tokens."""
        widths = self._widths[items]
        for width in np.unique(widths):
            members = items[widths == width]
            size = max(1, TOKENS // int(width))
            for start in range(0, len(members), size):
                yield members[start : start + size]

    def foremost(self, worth: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """About `count` of the items, ascending: of each width those that are worth most.

        How many of a width there are is rounded to halves of its share, so that a few batch sizes recur: oneDNN takes
        half a millisecond and half a megabyte for every shape of a product that it has not seen.

        Args:
            worth: `(n_items,)`.
        """
        order = np.argsort(-worth, kind="stable")
        first = np.zeros(len(worth), bool)
        first[order[:count]] = True
        chosen: list[NDArray[np.int64]] = []
        for width in np.unique(self._widths):
            members = order[self._widths[order] == width]
            unit = math.ceil(len(members) * count / len(worth) / 2)
            chosen.append(members[: round(first[members].sum() / unit) * unit])
        return np.sort(np.concatenate(chosen))

    def chunks_together(self, several: Sequence[NDArray[np.int64]]) -> Iterator[tuple[NDArray[np.int64], ...]]:
        """Cuts each of several selections into its `chunks`, and yields those of one width together.

        Yields:
            One chunk a selection, empty where it has no more of that width.
        """
        for width in np.unique(self._widths):
            mine = [self.chunks(items[self._widths[items] == width]) for items in several]
            yield from zip_longest(*mine, fillvalue=np.empty(0, np.int64))

    def encode(self, items: NDArray[np.int64], layers: int) -> Tensor:
        """Pooled vectors `(m, t)` float32 of one chunk, running the top `layers` blocks from the cached prefix.

        Where the prefix is cached only lower down, the blocks between run as they are.
        """
        return self.encode_together([items], [layers])[0]

    def encode_together(self, chunks: Sequence[NDArray[np.int64]], layers: Sequence[int]) -> Tensor:
        """Pooled vectors `(p, m, t)` float32 of several chunks of one width, the rows of each together.

        Each chunk joins those before it at the block where its own top `layers` begin.

        Args:
            chunks: the longest has m items; the others are filled up with whatever comes first.
            layers: of each chunk, descending.
        """
        bucket, size = self._buckets[next(int(self._widths[c[0]]) for c in chunks if len(c))], max(map(len, chunks))
        depths = [self.depth(n) for n in layers]
        filled = np.zeros((len(chunks), size), np.int64)
        for mine, chunk in zip(filled, chunks, strict=True):
            mine[: len(chunk)] = self._row[chunk]
        rows = torch.from_numpy(filled.ravel()).to(self.device)
        hidden: Tensor | None = None
        there = 0  # how many rows have joined
        for index in range(depths[0], len(self.blocks)):
            if index in depths:
                before, there = there, there + depths.count(index) * size
                prefix = bucket.hidden[index].index_select(0, rows[before:there])
                hidden = prefix if hidden is None else torch.cat([hidden, prefix])
            others, options = bucket.beside(index, rows[:there])
            hidden = _output(self.blocks[index](hidden, *others, **options))
        return pool(self._final(hidden), self.pooling, bucket.counted(rows)).view(len(chunks), size, -1)

    def depth(self, layers: int) -> int:
        """The block with which the top `layers` begin, or the highest below it whose prefix is cached."""
        return min(len(self.blocks) - layers, self._depths[-1])

    @torch.no_grad()
    def catalogue(self, layers: int) -> Tensor:
        """Pooled vectors `(n_items, t)` float32 of all items, on the encoder's device."""
        vectors = torch.empty(len(self._widths), self.width, device=self.device)
        for chunk in self.chunks(np.arange(len(self._widths))):
            vectors[torch.from_numpy(chunk).to(self.device)] = self.encode(chunk, layers)
        return vectors

    @torch.no_grad()
    def _check(self) -> None:
        """Refuses a model that does more than its blocks and a final norm: from a prefix it would be another model."""
        # Two texts of a length, because what the blocks are told beside the states was heard of the first alone.
        each = np.unique(self.lengths, return_index=True)[1]
        last = len(self.lengths) - 1 - np.unique(self.lengths[::-1], return_index=True)[1]
        places = np.linspace(0, len(each) - 1, min(len(each), CHECKED)).astype(int)
        chunks = list(self.chunks(np.unique([each[places], last[places]])))
        unknown = CheckpointError(
            f"base model '{self.base.id}' ({type(self.model).__name__}) is of an unknown architecture: its last "
            "blocks do not lead to its output; give another base model"
        )
        try:
            again = torch.cat([self.encode(chunk, self.layers) for chunk in chunks]).cpu()
        except torch.OutOfMemoryError:  # a RuntimeError too, and nothing of the architecture
            raise
        except RuntimeError as error:  # what they were told has the shape of one text
            raise unknown from error
        if not bool(((again * self.frozen[torch.from_numpy(np.concatenate(chunks))]).sum(1) > 0.99).all()):
            raise unknown

    def _bucket(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], part: Tensors) -> Bucket:
        """What the top blocks are given for texts of one width.

        Args:
            part: as `_run` gives it.
        """
        _, first, kinds = np.unique(lengths, return_index=True, return_inverse=True)
        top = {d: self.blocks[d] for d in range(self._depths[0], len(self.blocks))}
        ids, counts, mask = self._inputs(tokens, lengths)
        return Bucket(
            None if mask is None else counts,
            torch.from_numpy(kinds).to(self.device),
            {d: part[str(d)] for d in self._depths},
            arguments(self.model, top, ids[first], None if mask is None else mask[first]),
        )

    def _inputs(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Texts of one width, how many tokens of each count, and which; None where all do."""
        ids, counts = torch.from_numpy(tokens).to(self.device), torch.from_numpy(lengths).to(self.device)
        if lengths.min() == tokens.shape[1]:
            return ids, counts, None
        return ids, counts, (torch.arange(tokens.shape[1], device=self.device) < counts[:, None]).long()

    @torch.no_grad()
    def _run(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64]) -> Tensors:
        """Runs the whole model over texts of one width.

        Args:
            tokens: `(items, width)`, of each as many as it is long.

        Returns:
            Pooled vectors `(items, t)`, and by the block's number the states that enter each of the top blocks.
        """
        ids, counts, mask = self._inputs(tokens, lengths)
        hidden = {d: torch.empty(*ids.shape, self.width, dtype=self.dtype, device=self.device) for d in self._depths}
        start = 0

        def keep(depth: int) -> Any:
            def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
                hidden[depth][start : start + len(args[0])] = args[0]

            return hook

        hooks = [self.blocks[d].register_forward_pre_hook(keep(d)) for d in self._depths]
        pooled: list[Tensor] = []
        size = max(1, TOKENS // ids.shape[1])
        try:
            for start in range(0, len(ids), size):
                some = slice(start, start + size)
                states = self.model(input_ids=ids[some], attention_mask=None if mask is None else mask[some])
                counted = None if mask is None else counts[some]
                pooled.append(pool(states.last_hidden_state, self.pooling, counted))
        finally:
            for hook in hooks:
                hook.remove()
        return {POOLED: torch.cat(pooled), **{str(depth): states for depth, states in hidden.items()}}


def pool(hidden: Tensor, pooling: Pooling, lengths: Tensor | None = None) -> Tensor:
    """Text vectors `(m, t)` float32 from hidden states `(m, width, t)`.

    Args:
        lengths: `(m,)` how many of the states count; None for all.
    """
    if pooling == "first":
        pooled = hidden[:, 0].float()
    elif lengths is None:
        pooled = hidden.float().mean(1) if pooling == "mean" else hidden[:, -1].float()
    elif pooling == "mean":
        counts = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
        pooled = torch.where(counts[:, :, None], hidden.float(), 0.0).sum(1) / lengths[:, None]
    else:
        pooled = hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1].float()
    return nn.functional.normalize(pooled, dim=1)


def _load(base: Base, dtype: torch.dtype, nf4: bool, device: str) -> Any:
    if device == "cuda":
        # Where cuDNN has an attention, torch prefers it, which prepares itself for a fifth of a second for each shape.
        torch.backends.cuda.enable_cudnn_sdp(False)
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
        raise CheckpointError(
            f"base model '{base.id}' cannot be loaded: {str(error).splitlines()[0]}; expected a folder that "
            "transformers' AutoModel.from_pretrained loads"
        ) from error
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
    depth = model.config.get_text_config().num_hidden_layers
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
    norms = (
        getattr(parent, name, None) for name in ("norm", "final_norm", "final_layer_norm", "final_layernorm", "ln_f")
    )
    return next((norm for norm in norms if isinstance(norm, nn.Module)), nn.Identity())


def _most_tokens(model: Any) -> int:
    """How long a text may be for the model's positions; without an end where it has none, as with ALiBi."""
    tables = (m for name, m in model.named_modules() if name.endswith("position_embeddings"))
    table = next((m for m in tables if isinstance(m, nn.Embedding)), None)
    # RoBERTa and MPNet count positions from the one after their padding's.
    unused = 0 if table is None or table.padding_idx is None else table.padding_idx + 1
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", sys.maxsize)) - unused


def _tokenise(base: Base, texts: Sequence[str], max_tokens: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens `(items, longest)`, padded on the right, and how many of each count."""
    tokenizer = _tokenizer(base)
    ids: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]
    # A decoder's tokenizer makes nothing of an empty text.
    ids = [own or [tokenizer.eos_token_id or 0] for own in ids]
    lengths = np.array([len(own) for own in ids])
    tokens = np.full((len(ids), lengths.max()), tokenizer.pad_token_id or 0, np.int64)
    tokens[np.arange(lengths.max()) < lengths[:, None]] = np.concatenate(ids)
    return tokens, lengths


def _tokenizer(base: Base) -> Any:
    expected = f"expected its files, such as tokenizer.json, in {base.folder}"
    try:
        tokenizer = AutoTokenizer.from_pretrained(base.folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"the tokenizer of base model '{base.id}' cannot be loaded: {reason}; {expected}"
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes up where there are no files
        raise CheckpointError(f"the tokenizer of base model '{base.id}' knows no words; {expected}")
    return tokenizer


def _output(result: Any) -> Tensor:
    """A block's hidden states: some architectures wrap them in a tuple."""
    return result if isinstance(result, Tensor) else result[0]
