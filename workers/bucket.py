"""The items of about one token length: what enters each of the base model's top blocks for them, adapters or not."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pareto_search.errors import CheckpointError

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What a block is called with beside the hidden states: position embeddings, a mask, and the like."""


@dataclass(frozen=True)
class PerLength:
    """Of an argument that depends on how many tokens count: `(lengths, ...)`, one for each length that there is."""

    values: Tensor


@dataclass(frozen=True)
class Bucket:
    """Items whose texts are padded to one width, or have it.

    Attributes:
        lengths: `(items,)` how many tokens of each count; None where none only fill up.
        kinds: `(items,)` which of the bucket's lengths each has, ascending.
        hidden: block -> `(items, width, h)` the states that enter it, for the depths that are cached.
        arguments: block -> what else it is called with.
    """

    lengths: Tensor | None
    kinds: Tensor
    hidden: Mapping[int, Tensor]
    arguments: Mapping[int, Arguments]

    def beside(self, block: int, rows: Tensor) -> Arguments:
        """What a block is called with beside the hidden states of some of the items."""

        def of_rows(value: Any) -> Any:
            return value.values.index_select(0, self.kinds[rows]) if isinstance(value, PerLength) else value

        found: Arguments = tree_map(of_rows, self.arguments[block])
        return found

    def counted(self, rows: Tensor) -> Tensor | None:
        """How many tokens of some of the items count; None where all do."""
        return None if self.lengths is None else self.lengths[rows]


def arguments(model: nn.Module, blocks: Mapping[int, nn.Module], ids: Tensor, mask: Tensor | None) -> dict[int, Any]:
    """What some blocks are called with beside the hidden states, for texts of every length that a bucket has.

    Args:
        ids: `(lengths, width)` one text of each length, the shortest first.
        mask: which tokens count; None where all do.

    Raises:
        CheckpointError: something else than its first axis says which text it is of.
    """
    shortest = _heard(blocks, lambda: model(input_ids=ids[:1], attention_mask=None if mask is None else mask[:1]))
    if len(ids) == 1:
        return shortest  # which broadcasts over any number of texts
    each = _heard(blocks, lambda: model(input_ids=ids, attention_mask=mask))

    def merged(one: Any, many: Any) -> Any:
        if not isinstance(many, Tensor) or (isinstance(one, Tensor) and one.shape == many.shape):
            return many
        if isinstance(one, Tensor) and (len(one), len(many)) == (1, len(ids)) and one.shape[1:] == many.shape[1:]:
            return PerLength(many)
        raise CheckpointError(
            f"the blocks of {type(model).__name__} are told of the texts in an unknown way; give another base model"
        )

    found: dict[int, Any] = tree_map(merged, shortest, each)
    return found


def _heard(blocks: Mapping[int, nn.Module], run: Callable[[], object]) -> dict[int, Any]:
    found: dict[int, Any] = {}

    def listen(block: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found[block] = args[1:], kwargs

        return hook

    hooks = [module.register_forward_pre_hook(listen(n), with_kwargs=True) for n, module in blocks.items()]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return found
