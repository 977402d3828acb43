"""Reads data sets in a process of its own: a small upload may need any amount of memory."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pareto_search.config import ColumnsSection, DataSection
from pareto_search.errors import DataError, UserError
from pareto_search.recsys.dataset import load
from pareto_search.service.turns import Turns

SHARE = 0.5
"""Of the memory that the service may have, for what is read."""
NO_ROOM = 3
"""How the process ends that had not enough."""
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where a container's kernel says how much memory it may have; a number, or `max`."""

_turns = Turns()


@dataclass(frozen=True)
class Reading:
    """What a service has to know of a data set.

    Attributes:
        facts: how much there is of it, and of what kind.
        items: id and title.
    """

    facts: Mapping[str, Any]
    items: list[tuple[str, str]]


def read(section: Mapping[str, Any], memory: int | None = None) -> Reading:
    """Reads the data set of a section of the record.

    Args:
        memory: how many bytes it may take; by default a share of what there is.

    Raises:
        DataError: the data does not fit, or takes more memory.
        ConflictError: too many wait for theirs.
    """
    memory = memory or int(SHARE * _memory())
    with _turns.taken():
        ended = subprocess.run(
            [sys.executable, "-m", __name__, str(memory)],
            input=json.dumps(section),
            capture_output=True,
            text=True,
            errors="replace",  # a library may print anything
            check=False,
        )
    if ended.returncode in (NO_ROOM, -signal.SIGABRT, -signal.SIGKILL):  # libraries in C++ abort
        raise DataError(f"the data takes more than {memory >> 20} MiB of memory to read; give less of it")
    if ended.returncode:
        raise RuntimeError(f"the reader ended with {ended.returncode}: {ended.stderr}")
    told = json.loads(ended.stdout)
    if "error" in told:
        raise DataError(told["error"])
    return Reading(told["facts"], [(item, title) for item, title in told["items"]])


def _memory() -> int:
    """The bytes of memory that this machine has, or this container may have."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in map(Path, LIMITS):
        if path.is_file() and (limit := path.read_text().strip()).isdigit():
            found.append(int(limit))
    return min(found)


def main() -> None:
    """Reads what standard input describes, and prints what there is."""
    told_to = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    memory = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    section = json.load(sys.stdin)
    try:
        columns = {"columns": ColumnsSection.model_validate(section["columns"])} if section.get("columns") else {}
        data = load(**DataSection(**{**section, **columns}).arguments())
        facts = {
            "users": len(data.user_ids),
            "items": len(data.item_ids),
            "interactions": len(data.users),
            "rated": data.ratings is not None,
            "timed": data.timed,
            "dropped": dict(data.dropped),
        }
        told = json.dumps({"facts": facts, "items": list(zip(data.item_ids, data.titles, strict=True))})
    except MemoryError:
        sys.exit(NO_ROOM)
    except UserError as error:
        if isinstance(error.__cause__, MemoryError):
            sys.exit(NO_ROOM)
        told = json.dumps({"error": str(error)})
    print(told, file=told_to)


if __name__ == "__main__":
    main()
