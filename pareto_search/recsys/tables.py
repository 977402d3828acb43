"""Tables of strings and numbers from CSV, Parquet and RecBole's atomic files; a misfit is one line that says where."""

import csv
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pareto_search.errors import DataError, nearest

LISTS = (list, tuple, np.ndarray)
"""What a Parquet cell with several values comes as."""
CHUNK = 500_000
"""How many cells of text are read as numbers at a time."""


@dataclass(frozen=True)
class Table:
    """A file's rows, and how a message names one of them; `first` is the number of the row under the header."""

    location: str
    frame: pd.DataFrame
    unit: str
    first: int

    def where(self, row: int) -> str:
        """How a message names a row: `line 12`."""
        return f"{self.unit} {int(self.frame.index[row]) + self.first}"

    def column(self, name: str, wish: str) -> "pd.Series[Any]":
        """A column, by its name and what the config wants it for."""
        if name not in self.frame:
            known = [str(c) for c in self.frame.columns]
            raise DataError(f"{self.location} has no column '{name}' (columns.{wish}); {nearest(name, known)}")
        return self.frame[name]

    def ids(self, name: str, wish: str) -> list[str]:
        """A column of ids, one in every row."""
        places, distinct = self.places(name, wish)
        return [distinct[place] for place in places.tolist()]

    def places(self, name: str, wish: str) -> tuple[NDArray[np.int64], list[str]]:
        """A column of ids, one in every row, as the place `(rows,)` of each among the distinct ones: no string is made
        for each row.
        """
        column = self.column(name, wish)
        if column.dtype == object and column.map(lambda value: isinstance(value, LISTS)).any():
            raise DataError(f"{self.location}: column '{name}' has lists; expected an id in every row (columns.{wish})")
        # What a Parquet file may have as an object, a struct say, need not be hashable.
        places, values = pd.factorize(column.map(cell) if column.dtype == object else column, use_na_sentinel=False)
        same, distinct = pd.factorize(np.array([cell(value) for value in values.tolist()], object))  # '7' and ' 7'
        places, ids = same[places], [str(id_) for id_ in distinct]
        missing = [place for place, id_ in enumerate(ids) if id_.lower() in ("", "nan")]
        if missing:
            row = int(np.argmax(np.isin(places, missing)))
            raise DataError(
                f"{self.location}, {self.where(row)}: '{ids[places[row]]}' in column '{name}' is no id; expected one "
                "in every row; fill it in or remove the row"
            )
        return places, ids

    def numbers(self, name: str, wish: str) -> NDArray[np.float64]:
        """A column `(rows,)` of finite numbers."""
        column = self.column(name, wish)
        # Dates would pass for nanoseconds: as strings, they are found not to be numbers.
        readable = column if pd.api.types.is_numeric_dtype(column) else column.astype(str)
        numbers = np.empty(len(readable))
        for start in range(0, len(readable), CHUNK):  # each string becomes an object on the way
            chunk = pd.to_numeric(readable.iloc[start : start + CHUNK], errors="coerce")
            numbers[start : start + CHUNK] = chunk.to_numpy(np.float64, na_value=np.nan)
        if not np.isfinite(numbers).all():
            row = int(np.argmin(np.isfinite(numbers)))
            remedy = "convert dates, to Unix seconds, say" if wish == "timestamp" else "correct it or remove the row"
            raise DataError(
                f"{self.location}, {self.where(row)}: '{cell(column.iloc[row])}' in column '{name}' is no number; "
                f"expected a finite number as {wish} in every row; {remedy}"
            )
        return numbers


def read(location: str, atomic: bool = False) -> Table:
    """A Parquet file, or a file of separated text with a header, whose cells become strings."""
    parquet = location.lower().endswith(".parquet")
    if not parquet and not atomic and not location.lower().endswith(".csv"):
        raise DataError(f"{location} is of an unknown format; expected a name that ends in .csv or .parquet")
    try:
        with warnings.catch_warnings():
            # pandas would drop surplus cells with no more than this warning.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = (
                _flat(pd.read_parquet(location))
                if parquet
                else pd.read_csv(
                    location,
                    sep="\t" if atomic else ",",
                    quoting=csv.QUOTE_NONE if atomic else csv.QUOTE_MINIMAL,
                    dtype=str,
                    na_filter=False,
                    index_col=False,
                    skip_blank_lines=False,  # so that the index gives line numbers
                    encoding="utf-8-sig",
                )
            )
    except pd.errors.EmptyDataError:
        frame = pd.DataFrame()
    except pd.errors.ParserWarning:
        raise DataError(
            f"{location} has rows with more cells than its header; expected a name for each column in the first line; "
            "name them or export it again"
        ) from None
    except FileNotFoundError:
        raise DataError(f"{location} does not exist; check the path") from None
    except MemoryError as error:
        raise DataError(f"{location} takes more memory than there is; give less of it") from error
    except Exception as error:  # each fsspec back end has errors of its own
        reason = " ".join(str(error).split())
        kind = "a Parquet file" if parquet else "a text file in UTF-8 with a header"
        raise DataError(f"{location} cannot be read ({reason}); expected {kind}; check or export it again") from None
    frame = frame if parquet else frame[(frame.fillna("") != "").any(axis=1)]
    if frame.empty:
        raise DataError(
            f"{location} has no rows; expected a header in the first line and rows under it; check or export it again"
        )
    return Table(location, frame, *(("row", 1) if parquet else ("line", 2)))


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows counted from 0; an index that has a name is a column of the file."""
    named = [name for name in frame.index.names if name is not None]
    return frame.reset_index(named).reset_index(drop=True)


def read_atomic(path: Path) -> tuple[Table, dict[str, str]]:
    """An atomic file under plain column names, and name -> type."""
    table = read(str(path), atomic=True)
    types: dict[str, str] = {}
    for header in table.frame.columns:
        name, colon, kind = str(header).rpartition(":")
        if not colon or kind not in ("token", "token_seq", "float", "float_seq"):
            raise DataError(f"{path}: header field '{header}' has no type; expected name:type such as user_id:token")
        if name in types:
            raise DataError(f"{path} has field '{name}' twice in its header; expected each once; remove or rename one")
        types[name] = kind
    return Table(table.location, table.frame.set_axis(list(types), axis=1), table.unit, table.first), types


def only_file(folder: Path, suffix: str) -> Path:
    """The one file with this suffix."""
    found = sorted(folder.glob(f"*{suffix}"))
    if len(found) != 1:
        names = ", ".join(f.name for f in found) or "none"
        raise DataError(f"{folder} has not one {suffix} file (found: {names}); expected one .inter and one .item file")
    return found[0]


def cell(value: Any) -> str:
    """A cell as one line of text: missing is empty, a list has commas between its values, and a whole number that nulls
    made a float has no decimals.
    """
    if isinstance(value, LISTS):
        return ", ".join(filter(None, map(cell, value)))
    if pd.isna(value):
        return ""
    whole = isinstance(value, float) and value.is_integer()
    return " ".join(str(int(value) if whole else value).split())


def parts(value: Any, separator: str) -> tuple[str, ...]:
    """The non-empty names in a cell of categories."""
    if not isinstance(value, LISTS):
        value = (value if isinstance(value, str) else cell(value)).split(separator)
    return tuple(filter(None, map(cell, value)))
