"""Packs: several fine-tunings side by side in one process, the encoder's part of their steps done in one pass.

A small model on a GPU takes as long to start its kernels as to run them; with the rows of p candidates in one batch,
one start serves p of them (mLoRA: Ye et al., VLDB 2025). The frozen maps run over all rows at once; what is a
candidate's own, A and B, is stacked and multiplied as a batch of matrices. Towers and losses are not stacked: each
candidate takes its tower's batches by itself, and has its own optimisers, so that learning rates, decay and clipping
are its own as well.
"""

import asyncio
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pareto_search.workers.dropout import JointDropout, kept
from pareto_search.workers.encoder import Encoder
from pareto_search.workers.lora import LoraLinear, placed, stretched
from pareto_search.workers.train import EncoderStep, FineTuning, encoder_pass


class Pack:
    """Fine-tunings that meet at each encoder step, in one thread.

    Whoever comes to its encoder step waits until all have come; the last one takes the step for all. Who joins is
    waited for from then on, and who ends or fails no more, so that a place that becomes free is filled again while the
    others go on. Between meetings the encoder is as it was: others in the same thread may use it.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._members = 0
        self._met: list[tuple[EncoderStep, asyncio.Future[None]]] = []

    async def advance(self, tuning: FineTuning, to: int) -> None:
        """Does what `FineTuning.advance` does, beside whoever else does.

        Raises:
            DivergedError: the loss or a weight of this fine-tuning is not finite.
        """
        self._members += 1
        try:
            steps = tuning.steps(to)
            while True:
                with placed(self._encoder, dict(tuning.adapter.named())):
                    step = next(steps, None)
                if step is None:
                    return
                await self._meet(step)
        finally:
            self._members -= 1
            self._go_if_all_have_come()

    async def _meet(self, step: EncoderStep) -> None:
        await asyncio.sleep(0)  # lets who has just been given to us join
        taken = asyncio.get_running_loop().create_future()
        self._met.append((step, taken))
        self._go_if_all_have_come()
        await taken

    def _go_if_all_have_come(self) -> None:
        if not self._met or len(self._met) < self._members:
            return
        met, self._met = self._met, []
        try:
            encoder_step(self._encoder, [step for step, _ in met])
        except Exception as error:
            for _, taken in met:
                taken.set_exception(error)
        else:
            for _, taken in met:
                taken.set_result(None)


def encoder_step(encoder: Encoder, steps: Sequence[EncoderStep]) -> None:
    """Takes the encoder's part of several candidates' steps in one pass, as each would alone."""
    steps = sorted(steps, key=lambda s: -s.adapter.shape.layers)
    layers = [step.adapter.shape.layers for step in steps]
    corrections = [dict(step.adapter.named()) for step in steps]
    stacks: dict[str, Stack] = {}
    for name in dict.fromkeys(name for mine in corrections for name in mine):
        block = int(name.removeprefix(f"{encoder.prefix}.").partition(".")[0])
        there = sum(encoder.depth(n) <= block for n in layers)  # the others join further up
        stacks[name] = Stack([mine.get(name) for mine in corrections[:there]])

    def begin(chunks: Sequence[NDArray[np.int64]]) -> None:
        longest = max(map(len, chunks))  # perhaps of one that joins further up
        for stack in stacks.values():
            stack.rows, stack.size = [len(chunk) for chunk in chunks[: len(stack.A)]], longest

    with placed(encoder, stacks):
        encoder_pass(encoder, steps, begin)
    for stack in stacks.values():
        stack.hand_out()


class Stack(nn.Module):
    """A frozen linear map with the corrections of several candidates, the rows of each together.

    A `(p, rank, in)` and B `(p, out, rank)` have the widest rank, with zeros where a candidate has less, or none at
    all: these add nothing to its product, and the gradient that they get goes nowhere. Beside a whole map all are as
    wide as it is. Rows without a magnitude have their own lengths.

    Args:
        slots: each candidate's correction here, or None; at least one has one.

    Attributes:
        rows: how many of each candidate's rows count; the others only fill up.
        size: how many there are of each.
    """

    def __init__(self, slots: Sequence[LoraLinear | None]) -> None:
        super().__init__()
        self._slots = slots
        mine = [m for m in slots if m is not None]
        self.linear, device = mine[0].linear, mine[0].A.device
        rank = max(len(m.A) for m in mine)
        self.A = nn.Parameter(torch.zeros(len(slots), rank, mine[0].A.shape[1], device=device))
        self.B = nn.Parameter(torch.zeros(len(slots), len(mine[0].B), rank, device=device))
        self.rows: Sequence[int] = ()
        self.size = 0
        drops = [0.0 if m is None else m.drop for m in slots]
        self._dropout = JointDropout(drops, [None if m is None else m.generator for m in slots], device)
        scales = [0.0 if m is None else m.scale / kept(m.drop) for m in slots]
        self._scale = torch.tensor(scales, device=device)[:, None, None]
        self.magnitude: nn.Parameter | None = None
        if any(m.magnitude is not None for m in mine):
            self._lengths = torch.ones(len(slots), len(mine[0].B), device=device)
            self.magnitude = nn.Parameter(torch.ones_like(self._lengths))
        with torch.no_grad():
            for place, module in enumerate(slots):
                if module is not None:
                    self.A[place, : len(module.A)] = module.A
                    self.B[place, :, : len(module.A)] = module.B
                if self.magnitude is not None and module is not None and module.magnitude is not None:
                    self.magnitude[place], self._lengths[place] = module.magnitude, module.lengths()

    def forward(self, x: Tensor) -> Tensor:
        """From `(p · m, ..., in)` to `(p · m, ..., out)`; some blocks have the tokens of all rows in the first axis."""
        mine = x.reshape(len(self._slots), -1, x.shape[-1])
        each = mine.shape[1] // self.size
        low = self._dropout(mine, [each * count for count in self.rows]) @ self.A.to(x.dtype).mT
        correction = low @ (self.B * self._scale).to(x.dtype).mT
        out: Tensor = self.linear(x)
        corrected = out + correction.view(out.shape)
        if self.magnitude is None:
            return corrected
        share = (self.magnitude / self._lengths)[:, None]
        return stretched(self.linear, corrected.view(correction.shape), share).view(out.shape)

    def hand_out(self) -> None:
        """Gives each candidate's own parameters their gradient."""
        assert self.A.grad is not None
        assert self.B.grad is not None
        for module, a, b in zip(self._slots, self.A.grad, self.B.grad, strict=True):
            if module is not None:
                rank = len(module.A)
                if module.identity != "A":
                    module.A.grad = a[:rank].clone()
                if module.identity != "B":
                    module.B.grad = b[:, :rank].contiguous()
        if self.magnitude is not None:
            assert self.magnitude.grad is not None
            for module, gradient in zip(self._slots, self.magnitude.grad, strict=True):
                if module is not None and module.magnitude is not None:
                    module.magnitude.grad = gradient.clone()
