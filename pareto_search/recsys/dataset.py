"""Data sets: interactions and items, read from tables into one canonical form that no file order changes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pareto_search.errors import DataError, nearest
from pareto_search.recsys import fetch
from pareto_search.recsys.tables import Table, cell, only_file, parts, read, read_atomic

MOVIELENS = "movielens-100k"
LEAST_INTERACTIONS = 3
"""One interaction each to train on, to validate on and to test on."""
CATEGORY_FIELDS = ("class", "genre", "genres", "category", "categories")
"""Names under which atomic files carry an item's categories."""
TITLE_FIELDS = ("title", "name", "item_title", "item_name", "movie_title", "book_title", "product_title")
"""Names under which they carry what people call an item."""
DOMAIN = "domain"
"""The name under which they carry its domain, and by which metrics ask for one."""
OWN_GROUPS = ("user", "item", DOMAIN)
"""What metrics can ask for by what every split knows; see `split.Part`."""
LARGEST_SQUARE = 20_000
"""Items up to which EASE and ItemKNN are fitted: their matrices grow with the square."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column holds what; `item` and `user` name the ids' columns in all tables.

    Attributes:
        rating: may be missing; all interactions count, ratings are only carried along.
        timestamp: any number that grows with time; where it is None, the order of a user's rows counts as time.
        text: the columns an encoder reads, in this order; the first is the item's title.
        categories: a column of names divided by `separator` (or of lists, in Parquet).
        groups: columns of the users' table by which users belong together.
        domain: a column of the items' table: which of several catalogues an item belongs to.
    """

    user: str
    item: str
    rating: str | None = None
    timestamp: str | None = None
    text: tuple[str, ...]
    categories: str | None = None
    separator: str = "|"
    groups: tuple[str, ...] = ()
    domain: str | None = None


@dataclass(frozen=True, eq=False)
class Dataset:
    """n interactions of users with items, ordered by (user, time, item, rating).

    Attributes:
        user_ids, item_ids: the original ids, shorter ones first and then alphabetically, so that numbers are in
            numeric order; `item_ids` are all items with text, those without any interaction included.
        users, items: `(n,)` indices into `user_ids` and `item_ids`; a repeated pair is a repeated interaction.
        ratings: `(n,)`, or None where the data has none.
        timestamps: `(n,)`, in the data's own unit.
        timed: whether these were in the data; else the order of a user's rows stands for time.
        texts: what the encoder reads of each item.
        titles: what a person reads of each item.
        categories: each item's categories, or None where the data has none.
        dropped: reason -> how many were left out; only reasons that occurred.
        groups: what users belong together by -> each user's group, empty where it is not known.
        domains: of each item, or None where the data has one catalogue.
    """

    name: str
    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    users: NDArray[np.int32]
    items: NDArray[np.int32]
    ratings: NDArray[np.float32] | None
    timestamps: NDArray[np.float64]
    timed: bool
    texts: tuple[str, ...]
    titles: tuple[str, ...]
    categories: tuple[tuple[str, ...], ...] | None
    dropped: Mapping[str, int]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    domains: tuple[str, ...] | None = None

    @property
    def sha256(self) -> str:
        """The hash of all that reaches a model, whatever its name, file format and order of rows.

        Groups and domains do so by the split.
        """
        words = [self.user_ids, self.item_ids, self.texts, self.titles, self.categories, self.ratings is not None]
        digest = hashlib.sha256(json.dumps(words).encode())
        digest.update(self.users.astype("<i4").tobytes() + self.items.astype("<i4").tobytes())
        digest.update(self.timestamps.astype("<f8").tobytes())
        if self.ratings is not None:
            digest.update(self.ratings.astype("<f4").tobytes())
        return digest.hexdigest()


def load(
    *,
    source: str | None = None,
    interactions: str | None = None,
    items: str | None = None,
    users: str | None = None,
    columns: Columns | None = None,
) -> Dataset:
    """The data set that a config's `data` section names.

    Args:
        source: `movielens-100k`, or a folder of RecBole atomic files; or else:
        interactions, items: a CSV or Parquet file each, local or by fsspec URL.
        users: another one, where `columns` has groups.
        columns: what their columns hold.

    Raises:
        DataError: the data cannot be read or does not fit; one line says where and what to do.
    """
    if source is not None and interactions is None and items is None and columns is None:
        if source == MOVIELENS:
            return load_movielens()
        if Path(source).is_dir():
            return load_atomic(source)
        raise DataError(
            f"data source '{source}' is no folder and no known data set; expected '{MOVIELENS}', or a folder of atomic "
            "files; or give interactions, items and columns"
        )
    if source is None and interactions is not None and items is not None and columns is not None:
        return load_tables(interactions, items, columns, Path(interactions).stem, users)
    raise DataError(
        "data is given incompletely or twice; give either source, or interactions, items and columns together"
    )


def load_movielens(folder: Path | None = None) -> Dataset:
    """MovieLens-100K from a folder of `fetch.movielens_100k`, fetched where None (Harper & Konstan 2015).

    Raises:
        DataError: it cannot be fetched, or the cache is damaged.
    """
    folder = folder or fetch.movielens_100k()
    columns = Columns(
        user="user_id",
        item="item_id",
        rating="rating",
        timestamp="timestamp",
        text=("title", "genres"),
        categories="genres",
        groups=("gender", "occupation"),
    )
    interactions, items, users = (str(folder / name) for name in (fetch.INTERACTIONS, fetch.ITEMS, fetch.USERS))
    return load_tables(interactions, items, columns, MOVIELENS, users)


def load_atomic(folder: str | Path) -> Dataset:
    """A folder with one RecBole `.inter`, one `.item` and perhaps one `.user` file, with `name:type` headers.

    Users and items are the fields `user_id` and `item_id`, or else the first token fields; `rating` and `timestamp` may
    be missing (see `Columns`). All other token and token_seq fields of the items are text, those that `TITLE_FIELDS`
    names before the others, and the first of them that `CATEGORY_FIELDS` names and that says something of any item is
    the categories; one that is called `domain` is the domain too. The other token fields of
    the users are groups, but for those that are called as `OWN_GROUPS`.

    Raises:
        DataError: a file, a field or a value does not fit.
    """
    inter, inter_types = read_atomic(only_file(Path(folder), ".inter"))
    item, item_types = read_atomic(only_file(Path(folder), ".item"))
    tokens = [n for n, kind in inter_types.items() if kind == "token"]
    if len(tokens) < 2 or "token" not in item_types.values():
        short = inter if len(tokens) < 2 else item
        raise DataError(f"{short.location} lacks an id field; expected user_id:token and item_id:token in its header")
    user_field = "user_id" if "user_id" in tokens else next(t for t in tokens if t != "item_id")
    item_field = "item_id" if "item_id" in tokens else next(t for t in tokens if t != user_field)
    if item_field not in item_types:
        raise DataError(f"{item.location} has no field '{item_field}'; {nearest(item_field, item_types)}")
    domain = DOMAIN if item_types.get(DOMAIN) == "token" else None
    text = tuple(n for n, kind in item_types.items() if kind.startswith("token") and n != item_field)
    text = tuple(sorted(text, key=lambda n: n.lower() not in TITLE_FIELDS))  # the first is the title
    categories = next((n for n in text if n.lower() in CATEGORY_FIELDS and any(item.frame[n])), None)
    if categories is not None and item_types[categories] == "token":
        item.frame[categories] = [[value] for value in item.frame[categories]]  # one category, blanks and all
    people: Table | None = None
    groups: tuple[str, ...] = ()
    if any(Path(folder).glob("*.user")):
        people, types = read_atomic(only_file(Path(folder), ".user"))
        fields = (n for n, kind in types.items() if kind == "token" and n not in (user_field, *OWN_GROUPS))
        groups = tuple(name for name in fields if any(people.frame[name]))
    columns = Columns(
        user=user_field,
        item=item_field,
        rating="rating" if "rating" in inter_types else None,
        timestamp="timestamp" if "timestamp" in inter_types else None,
        text=text,
        categories=categories,
        separator=" ",
        groups=groups,
        domain=domain,
    )
    return _assemble(Path(inter.location).stem, inter, item, columns, people)


def load_tables(interactions: str, items: str, columns: Columns, name: str, users: str | None = None) -> Dataset:
    """Two or three CSV (`.csv`) or Parquet (`.parquet`) files, local or by fsspec URL.

    Raises:
        DataError: a file, a column or a value does not fit.
    """
    return _assemble(name, read(interactions), read(items), columns, read(users) if users else None)


def _described(table: Table, columns: Columns) -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """Item id -> (text, title, categories); the text is empty where the item has none."""
    ids = _once(table, columns.item, "item")
    categories: list[tuple[str, ...]] = [()] * len(ids)
    if columns.categories is not None:
        cells = table.column(columns.categories, "categories")
        categories = [parts(value, columns.separator) for value in cells.tolist()]
    texts: list[list[str]] = [[] for _ in ids]
    for name in columns.text:
        for row, value in enumerate(table.column(name, "text").tolist()):
            texts[row] += categories[row] if name == columns.categories else filter(None, [cell(value)])
    if not any(texts):
        raise DataError(
            f"no item of {table.location} has text in the columns {list(columns.text)}; expected a title or a "
            "description; name other columns as text"
        )
    return {
        id_: (", ".join(text), text[0] if text else "", names)
        for id_, text, names in zip(ids, texts, categories, strict=True)
    }


def _domains(table: Table, columns: Columns, item_ids: tuple[str, ...]) -> tuple[str, ...] | None:
    """The domain of each item, empty where it is not known."""
    if columns.domain is None:
        return None
    names = [cell(value) for value in table.column(columns.domain, "domain").tolist()]
    of = dict(zip(table.ids(columns.item, "item"), names, strict=True))
    return tuple(of[id_] for id_ in item_ids)


def _once(table: Table, column: str, noun: str) -> list[str]:
    """A column of ids that has each of them once."""
    ids = table.ids(column, noun)
    first: dict[str, int] = {}
    for row, id_ in enumerate(ids):
        if first.setdefault(id_, row) != row:
            raise DataError(
                f"{table.location}, {table.where(row)}: {noun} id '{id_}' has been given in {table.where(first[id_])}; "
                f"expected one row for each {noun}; remove one"
            )
    return ids


def _grouped(table: Table | None, columns: Columns, user_ids: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """What users belong together by -> each user's group; empty for one that the table lacks."""
    if table is None:
        return {}
    row = {id_: row for row, id_ in enumerate(_once(table, columns.user, "user"))}
    found: dict[str, tuple[str, ...]] = {}
    taken = next((name for name in columns.groups if name in OWN_GROUPS), None)
    if taken is not None:
        raise DataError(
            f"{table.location}: '{taken}' is no name for groups, because metrics ask by it; rename the column"
        )
    for name in columns.groups:
        values = [cell(value) for value in table.column(name, "groups").tolist()]
        found[name] = tuple(values[row[id_]] if id_ in row else "" for id_ in user_ids)
        if not any(found[name]):
            raise DataError(
                f"{table.location}: column '{name}' has a group for no user; expected some, or the same ids"
            )
    return found


def _assemble(name: str, interactions: Table, items: Table, columns: Columns, people: Table | None) -> Dataset:
    """The canonical data set: items with text, users with enough interactions, all in an order of their own."""
    described = _described(items, columns)
    item_ids = _ordered([id_ for id_, (text, _, _) in described.items() if text])
    user_of_row, names = interactions.places(columns.user, "user")
    named_of_row, named_items = interactions.places(columns.item, "item")
    place = {id_: i for i, id_ in enumerate(item_ids)}
    item_of_row = np.array([place.get(id_, -1) for id_ in named_items])[named_of_row]
    listed = np.array([id_ in described for id_ in named_items])[named_of_row]
    if not listed.any():
        raise DataError(
            f"no interaction of {interactions.location} names an item of {items.location} (the first is "
            f"'{named_items[0]}'); expected the same ids in both; check columns.item"
        )

    ratings = None if columns.rating is None else interactions.numbers(columns.rating, "rating")
    times = None if columns.timestamp is None else interactions.numbers(columns.timestamp, "timestamp")
    kept = item_of_row >= 0
    repeated = np.zeros_like(kept)
    if times is not None:  # without times who repeats has bought again
        rows = pd.DataFrame({"user": user_of_row, "item": item_of_row, "time": times, "rating": ratings})
        repeated = rows.duplicated().to_numpy() & kept
        kept &= ~repeated
    counts = np.bincount(user_of_row[kept], minlength=len(names))
    enough = counts >= LEAST_INTERACTIONS
    if not enough.any():
        raise DataError(
            f"no user of {interactions.location} has {LEAST_INTERACTIONS} interactions with known items (the most is "
            f"{counts.max()}); expected some to train, to validate and to test on; give more data"
        )
    dropped = {
        "items without text": len(described) - len(item_ids),
        "interactions of items without text": int((listed & ~kept & ~repeated).sum()),
        "interactions of items that the items table lacks": int((~listed).sum()),
        "interactions that are there more than once": int(repeated.sum()),
        f"users with fewer than {LEAST_INTERACTIONS} interactions": int((~enough).sum()),
    }

    user_ids = _ordered([id_ for id_, e in zip(names, enough, strict=True) if e])
    rank = {id_: i for i, id_ in enumerate(user_ids)}
    new_index = np.array([rank.get(id_, -1) for id_ in names])
    kept &= enough[user_of_row]
    users, item_index = new_index[user_of_row][kept], item_of_row[kept]
    ratings = None if ratings is None else ratings[kept]
    timestamps: NDArray[np.float64] = (
        pd.Series(users).groupby(users).cumcount().to_numpy().astype(np.float64) if times is None else times[kept]
    )
    order = np.lexsort((np.zeros(len(users)) if ratings is None else ratings, item_index, timestamps, users))
    return Dataset(
        name=name,
        user_ids=user_ids,
        item_ids=item_ids,
        users=users[order].astype(np.int32),
        items=item_index[order].astype(np.int32),
        ratings=None if ratings is None else ratings[order].astype(np.float32),
        timestamps=timestamps[order],
        timed=columns.timestamp is not None,
        texts=tuple(described[id_][0] for id_ in item_ids),
        titles=tuple(described[id_][1] for id_ in item_ids),
        categories=None if columns.categories is None else tuple(described[id_][2] for id_ in item_ids),
        dropped={reason: count for reason, count in dropped.items() if count},
        groups=_grouped(people, columns, user_ids),
        domains=_domains(items, columns, item_ids),
    )


def _ordered(ids: list[str]) -> tuple[str, ...]:
    return tuple(sorted(ids, key=lambda id_: (len(id_), id_)))
