"""A fused checkpoint as files: several checkpoints side by side, whose scores are averaged.

The files of each carry its number in front (`member0.adapter_model.safetensors`); `recommender.json` has `fuses`, the
weights of all by their names.
"""

import json
from collections.abc import Iterable, Mapping

from pareto_search.executor import Files

FUSES = "fuses"
PREFIX = "member"


def fused(members: Mapping[str, Files], weights: Mapping[str, float], notes: Mapping[str, object]) -> dict[str, bytes]:
    """The files of some checkpoints, by name, as those of one.

    Args:
        weights: of the members that count; the others are left out.
        notes: written into `recommender.json`.
    """
    text = json.dumps({**notes, FUSES: dict(weights)}, indent=2)  # in the order of the members' numbers
    return {"recommender.json": text.encode(), **numbered(members[name] for name in weights)}


def numbered(members: Iterable[Files]) -> dict[str, bytes]:
    """The files of several in one, each with its member's number in front."""
    return {f"{PREFIX}{n}.{file}": content for n, files in enumerate(members) for file, content in files.items()}


def weights_of(files: Files) -> dict[str, float]:
    """What each member of a fused checkpoint counts, by name; nothing where it is not a fused one."""
    found: dict[str, float] = json.loads(files.get("recommender.json", b"{}")).get(FUSES, {})
    return found


def members_of(files: Files) -> dict[str, dict[str, bytes]]:
    """The files of each member of a fused checkpoint."""
    return {
        name: {file.removeprefix(start): content for file, content in files.items() if file.startswith(start)}
        for name, start in ((name, f"{PREFIX}{number}.") for number, name in enumerate(weights_of(files)))
    }
