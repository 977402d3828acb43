"""Reads an upload in a process of its own: a small file may need any amount of memory."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from pareto_search.config import ColumnsSection, DataSection
from pareto_search.errors import DataError, RunError, UserError
from pareto_search.recsys.dataset import Dataset, load
from pareto_search.service.turns import Turns

SHARE = 0.5
"""Of the machine's memory, for one upload."""

NO_ROOM = 3
"""How the process ends that had not enough."""

_turns = Turns()


def dataset(section: Mapping[str, Any]) -> Dataset:
    """The data set of a section of the record."""
    columns = section.get("columns")
    own = {"columns": ColumnsSection.model_validate(columns)} if columns else {}
    return load(**DataSection(**{**section, **own}).arguments())


def facts(section: Mapping[str, Any], memory: int | None = None) -> dict[str, Any]:
    """How much there is of a data set, and of what kind.

    Args:
        memory: how many bytes it may take to read; by default a share of the machine's.

    Raises:
        DataError: the data does not fit, or takes more memory.
        RunError: the process has ended over it.
        ConflictError: too many wait for theirs.
    """
    if memory is None:
        memory = int(SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with _turns.taken():
        ended = subprocess.run(
            [sys.executable, "-m", __name__, str(memory)],
            input=json.dumps(section),
            capture_output=True,
            text=True,
            check=False,
        )
    if ended.returncode == NO_ROOM or ended.returncode < 0:  # libraries in C++ abort
        raise DataError(f"the data takes more than {memory >> 20} MiB of memory to read; give less of it")
    if ended.returncode:
        print(ended.stderr, file=sys.stderr, flush=True)
        raise RunError("the reading has ended before its time; the service's log has more")
    told: dict[str, Any] = json.loads(ended.stdout)
    if "error" in told:
        raise DataError(told["error"])
    return told


def main() -> None:
    """Reads what standard input describes, and prints its facts."""
    memory = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    try:
        data = dataset(json.load(sys.stdin))
        told: dict[str, Any] = {
            "users": len(data.user_ids),
            "items": len(data.item_ids),
            "interactions": len(data.users),
            "rated": data.ratings is not None,
            "timed": data.timed,
            "dropped": dict(data.dropped),
        }
    except UserError as error:
        told = {"error": str(error)}
    except MemoryError:
        sys.exit(NO_ROOM)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
