"""Re-ranking on a GPU: what `recsys.rerank` does with one setting after another, done with many at once.

There it would take longer than the training: a core needs some 50 ms for a setting and a thousand users, most of it for
the greedy choice.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pareto_search.candidate import Genes
from pareto_search.recsys.rerank import HIDDEN, POOL, WEIGHTS, Floats, Reranker, Shown
from pareto_search.recsys.statistics import ItemStatistics

NUMBERS = 2**26
"""How many numbers each of its tensors may hold."""


class DeviceReranker(Reranker):
    """A `Reranker` whose scores lie on a device.

    Its lists differ by rounding, and where hundreds of items are worth the same.
    """

    def __init__(self, items: ItemStatistics, device: str) -> None:
        super().__init__(items)
        self._device = device
        self._features, self._novelty = (torch.from_numpy(x).to(device) for x in (items.features, items.novelty))
        credibility = items.novelty * 0 if items.credibility is None else items.credibility
        self._credibility = torch.from_numpy(credibility).to(device)

    def take(self, scores: Mapping[str, Floats]) -> Mapping[str, Tensor]:
        return {name: torch.from_numpy(s).to(self._device) for name, s in scores.items()}

    def shown(
        self, scores: Mapping[str, Tensor], settings: Sequence[Genes], k: int, *, sure: bool = False
    ) -> Iterator[Shown]:
        size = max(1, NUMBERS // max(scores["model"].numel(), 1))
        for start in range(0, len(settings), size):
            yield from self._together(scores, settings[start : start + size], k, sure)

    @torch.no_grad()
    def _together(self, scores: Mapping[str, Tensor], settings: Sequence[Genes], k: int, sure: bool) -> Iterator[Shown]:
        def weights(name: str, default: float = 0.0) -> Tensor:
            """`(s, 1, 1)`."""
            return torch.tensor([[[float(s.get(name, default))]] for s in settings], device=self._device)

        total = scores["model"].expand(len(settings), -1, -1)
        for name, own in scores.items():
            if name != "model":
                weight = weights(name)
                total = total + torch.where(weight != 0, weight * own, 0.0)  # 0 · -inf is no number
        hit = (weights("sharpness", 1.0) * total).softmax(-1).nan_to_num_(0.0)  # of a user to whom nothing can be shown
        k = min(k, total.shape[-1])
        lists = torch.empty(*total.shape[:2], k, dtype=torch.int64, device=self._device)
        bonus = weights("novelty") * self._novelty + weights("credibility") * self._credibility
        diversity = weights("diversity")
        plain = torch.tensor([not any(float(s.get(name, 0.0)) for name in WEIGHTS) for s in settings])
        lists[plain] = _ranked(total[plain])[..., :k]
        if not bool(plain.all()):
            lists[~plain] = self._greedy(k, *(x[~plain] for x in (total, hit, bonus, diversity)))
        lists = lists.gather(-1, _ranked(total.gather(-1, lists)))
        probable = hit.gather(-1, lists).cpu().numpy() if sure else [None] * len(settings)
        yield from zip(lists.cpu().numpy().astype(np.int32), probable, strict=True)

    def _greedy(self, k: int, scores: Tensor, hit: Tensor, bonus: Tensor, diversity: Tensor) -> Tensor:
        """The items `(s, m, k)` that are worth most together, found for some users after others; see `rerank.choose`.

        Args:
            scores, hit: `(s, m, n)`.
            bonus: `(s, 1, n)`.
            diversity: `(s, 1, 1)`.
        """
        users = max(1, NUMBERS // (len(scores) * 2 * max(POOL, k) * self._features.shape[1]))
        if scores.shape[1] > users:
            parts = [slice(start, start + users) for start in range(0, scores.shape[1], users)]
            return torch.cat([self._greedy(k, scores[:, p], hit[:, p], bonus, diversity) for p in parts], 1)
        worth = torch.where(scores == -torch.inf, -torch.inf, hit + bonus)
        size = min(max(POOL, k), worth.shape[-1])
        least = _least(worth, size)
        best, pool = worth.topk(min(2 * size, worth.shape[-1]))
        out = best < least
        pool, order = pool.sort(-1)  # of equal items the first one is chosen
        best, out, hit = best.gather(-1, order), out.gather(-1, order), hit.gather(-1, pool)
        other = torch.where(best == -torch.inf, HIDDEN, bonus.expand_as(scores).gather(-1, pool))
        other.masked_fill_(out, -torch.inf)
        features = self._features[pool]
        chosen: list[Tensor] = []
        for place in range(k):
            best = (hit / np.log2(place + 2) + other).argmax(-1, keepdim=True)
            chosen.append(pool.gather(-1, best))
            newest = self._features[chosen[-1]]
            other = other - diversity * (features @ newest.mT).squeeze(-1)
            other.scatter_(-1, best, -torch.inf)
        return torch.cat(chosen, -1)


def _ranked(scores: Tensor) -> Tensor:
    """The places of scores `(..., n)` from the largest to the smallest; of equal ones the first comes first."""
    return scores.argsort(dim=-1, descending=True, stable=True)


def _least(worth: Tensor, size: int) -> Tensor:
    """What an item `(..., 1)` must be worth to be in the pool; see `rerank._pool`."""
    blocks = min(4 * size, worth.shape[-1])
    length = worth.shape[-1] // blocks
    maxima = worth[..., : length * blocks].reshape(*worth.shape[:-1], length, blocks).amax(-2)
    return maxima.topk(size).values[..., -1:]
