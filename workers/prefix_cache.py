"""The frozen prefixes that all workers of a machine need: each is computed by one of them, and is in memory once."""

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pareto_search.workers.scratch import hold

Tensors = dict[str, Tensor]


def shared_prefixes(scratch: str) -> "PrefixCache | None":
    """Those of all workers that are given this `scratch.name`; None where this machine has no room for them."""
    try:
        return PrefixCache(hold(scratch))
    except OSError:
        return None


class PrefixCache:
    """Parts, each in a file that all workers map into their memory.

    Args:
        folder: on a disk of this machine, kept as long as any worker lives; see `scratch.hold`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def each(self, names: Sequence[str], compute: Callable[[str], Tensors]) -> Iterator[tuple[str, Tensors]]:
        """All of these parts, those that another worker is at last; who finds one missing computes it.

        Args:
            compute: the tensors of a part, on the CPU.
        """
        others: list[str] = []
        for name in names:
            part = self._part(name, compute, fcntl.LOCK_NB)
            if part is None:
                others.append(name)
            else:
                yield name, part
        for name in others:
            part = self._part(name, compute, 0)
            assert part is not None
            yield name, part

    def _part(self, name: str, compute: Callable[[str], Tensors], how: int) -> Tensors | None:
        """None where another worker is at it and `how` says not to wait."""
        path, unfinished = self._folder / name, self._folder / f"{name}.part"
        homeless = self._folder / f"{name}.full"  # for it there was no room: each worker has its own, then
        with (self._folder / f"{name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | how)
            except BlockingIOError:
                return None
            if not path.exists() and not homeless.exists():
                part = compute(name)
                try:
                    save_file(part, unfinished)
                except (OSError, SafetensorError):
                    unfinished.unlink(missing_ok=True)
                    homeless.touch()
                    return part
                os.replace(unfinished, path)
        return load_file(path) if path.exists() else compute(name)
