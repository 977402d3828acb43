"""The optimiser of a candidate's tower or of its adapter."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Optimiser:
    """AdamW with gradient clipping and a learning rate that rises over a tenth of the steps and then falls to zero.

    Args:
        steady: parameters beside the others that do not decay.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        lr: float,
        decay: float,
        steps: int,
        steady: Sequence[nn.Parameter] = (),
    ) -> None:
        self._parameters, self._lr, self._steps = [*parameters, *steady], lr, steps
        groups: list[dict[str, Any]] = [{"params": parameters}, {"params": steady, "weight_decay": 0.0}]
        self._adamw = torch.optim.AdamW(groups, lr=lr, weight_decay=decay, fused=True)
        self._done = 0

    def step(self) -> None:
        """Moves along the gradients, and clears them."""
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        rise = max(1, self._steps // 10)
        fall = (self._steps - self._done) / max(1, self._steps - rise)
        for group in self._adamw.param_groups:
            group["lr"] = self._lr * min((self._done + 1) / rise, fall, 1.0)
        self._adamw.step()
        self._adamw.zero_grad()
        self._done += 1

    def state(self, name: str) -> dict[str, Tensor]:
        """The moments, each under the optimiser's name, the parameter's number and its own name."""
        moments = self._adamw.state_dict()["state"]
        return {f"{name}.{i}.{key}": tensor for i, own in moments.items() for key, tensor in own.items()}

    def load(self, name: str, state: Mapping[str, Tensor], done: int) -> None:
        """Takes the moments back, after so many steps."""
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in state.items():
            owner, _, rest = key.partition(".")
            if owner == name:
                number, _, moment = rest.partition(".")
                moments.setdefault(int(number), {})[moment] = tensor
        self._adamw.load_state_dict({"state": moments, "param_groups": self._adamw.state_dict()["param_groups"]})
        self._done = done
