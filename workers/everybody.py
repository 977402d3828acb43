"""What an entry recommends to every user of its data, as a table: for whoever looks lists up and does not ask."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from pareto_search.errors import ConfigError, DataError, RunError
from pareto_search.workers.recommend import Serving

USERS, NUMBERS = 4096, 2**22
"""How many users' lists are made at a time, at most, and of how many scores."""
SCHEMA = pa.schema([("user", pa.string()), ("rank", pa.int32()), ("item", pa.string()), ("score", pa.float32())])


def want_new(path: Path) -> None:
    """Refuses a file that `write` would not write.

    Raises:
        ConfigError: its name says no format that is known here.
        RunError: it is there already, or its folder cannot be written.
    """
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise ConfigError(f"{path} is of an unknown format; expected a name that ends in .csv or .parquet")
    if path.exists():
        raise RunError(f"{path} is there already; give --to a new file")
    if not os.access(path.parent, os.W_OK):
        raise RunError(f"{path.parent} is no folder that can be written; make it, or give --to another file")


def lists(serving: Serving, k: int) -> Iterator[pa.Table]:
    """User, rank from 1, item and score of k items for each user of the data, or of as many as are left for one; the
    rows of some users at a time.

    Raises:
        DataError: there are not so many items.
    """
    offered, ids = serving.items.offered, np.array(serving.data.item_ids, object)
    count = len(ids) if offered is None else int(offered.sum())
    if not 0 < k <= count:
        raise DataError(f"-k is {k}; expected 1 to {count}, the items that may be recommended")
    users, histories = zip(*serving.histories().items(), strict=True)
    size = min(USERS, max(1, NUMBERS // len(ids)))
    for start in range(0, len(users), size):
        some = slice(start, start + size)
        items, scores = serving.lists(histories[some], k)
        user, place = np.nonzero(np.isfinite(scores))
        columns = np.array(users[some], object)[user], 1 + place, ids[items[user, place]], scores[user, place]
        yield pa.table(list(columns), schema=SCHEMA)


def write(parts: Iterable[pa.Table], path: Path) -> tuple[int, int]:
    """Writes the parts of a table, whole or not at all; how many users and rows it has.

    Raises:
        RunError: the file cannot be written.
    """
    new = path.with_name(f".{path.name}.{uuid4().hex}")
    users = rows = 0
    try:
        writer = csv.CSVWriter if path.suffix.lower() == ".csv" else parquet.ParquetWriter
        with writer(str(new), SCHEMA) as file:
            for part in parts:
                file.write_table(part)
                users, rows = users + len(part["user"].unique()), rows + len(part)
        os.replace(new, path)
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"{path} cannot be written ({reason}); mend that, or give --to another file") from None
    finally:
        new.unlink(missing_ok=True)  # gone already, unless something went wrong
    return users, rows
