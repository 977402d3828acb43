"""What an entry recommends to every user of its data, as a table: for whoever looks lists up and does not ask."""

import os
from pathlib import Path
from uuid import uuid4

import numpy as np
import pandas as pd

from pareto_search.errors import ConfigError, RunError
from pareto_search.workers.recommend import Serving, want

NUMBERS = 2**25
"""How many scores are computed at a time, 128 MB of each model that is blended."""


def want_new(path: Path) -> None:
    """Refuses a file that `write` would not write.

    Raises:
        ConfigError: its name says no format that is known here.
        RunError: it is there already, or its folder is not.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"{path} is of an unknown format; expected a name that ends in .csv or .parquet")
    if path.exists():
        raise RunError(f"{path} is there already; give --to a new file")
    if not path.parent.is_dir():
        raise RunError(f"{path.parent} is no folder; make it, or give --to another file")


def table(serving: Serving, k: int) -> pd.DataFrame:
    """`user`, `rank` from 1, `item` and `score` of k items for every user, or of as many as are left for one.

    Raises:
        DataError: there are not so many items.
    """
    data = serving.data
    want(k, len(data.item_ids))
    histories, size = list(serving.histories().values()), max(1, NUMBERS // len(data.item_ids))
    parts: list[pd.DataFrame] = []
    for start in range(0, len(histories), size):
        chosen, scores = serving.lists(histories[start : start + size], k)
        user, place = np.nonzero(np.isfinite(scores))
        columns = {"user": start + user, "rank": 1 + place, "item": chosen[user, place], "score": scores[user, place]}
        parts.append(pd.DataFrame(columns))
    found = pd.concat(parts, ignore_index=True)
    for name, ids in (("user", data.user_ids), ("item", data.item_ids)):
        found[name] = pd.Categorical.from_codes(found[name].to_numpy(np.int64), pd.Index(ids))
    return found


def write(lists: pd.DataFrame, path: Path) -> None:
    """Writes a table whole or not at all.

    Raises:
        RunError: the file cannot be written.
    """
    new = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        lists.to_csv(new, index=False) if path.suffix == ".csv" else lists.to_parquet(new, index=False)
        os.replace(new, path)
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"{path} cannot be written ({reason}); mend that, or give --to another file") from None
    finally:
        new.unlink(missing_ok=True)  # gone already, unless something went wrong
