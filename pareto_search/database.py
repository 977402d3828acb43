"""The database behind the record: its tables, how it is reached, and what it says in plain words.

SQLite and PostgreSQL run the same statements; what differs between them is in `Database`. Alembic's migrations, in
`migrations/`, make today's tables of those of an older release, and of none.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy import JSON, BigInteger, Column, Float, ForeignKeyConstraint, Index, Integer, String, UniqueConstraint
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, StatementError

from pareto_search.errors import AbsentError, RunError, TroubleError

MIGRATIONS = Path(__file__).with_name("migrations")

BUSY_SECONDS = 30
"""How long a writer waits for another one."""

_TROUBLES = {
    "SQLITE_FULL": "no space left on its disk; free some and resume",
    "53100": "no space left on the server's disk; free some and resume",
    "SQLITE_IOERR": "its disk fails or is full; mend that and resume",
    "SQLITE_BUSY": "another process is writing to it; wait for its end and try again",
    "SQLITE_NOTADB": "not a database; expected the record of a search, name another or restore it from a copy",
    "SQLITE_CORRUPT": "damaged; restore it from a copy",
    "SQLITE_CANTOPEN": "cannot be opened; check that its folder exists and may be written",
    "SQLITE_READONLY": "may not be written; check the permissions of the file and of its folder",
}
"""What a database's error code means for the user."""

tables = sa.MetaData()


def _filled(kind: Any, *names: str) -> list[Column[Any]]:
    return [Column(name, kind, nullable=False) for name in names]


def _in_order() -> list[Column[Any]]:
    """Rows of a search, in the order in which they came; the position counts over all searches of a database."""
    return [Column("position", Integer, primary_key=True), *_filled(Integer, "search")]


search = sa.Table(
    "search",
    tables,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    *_filled(String, "identity", "config", "data_sha256", "split_sha256", "base_id", "base_sha256"),
    *_filled(BigInteger, "seed"),
    *_filled(Integer, "lanes", "test_evaluations"),
    *_filled(Float, "created", "elapsed_seconds"),
    Column("revision", Integer, nullable=False, server_default="0"),
)
candidate = sa.Table(
    "candidate",
    tables,
    *_in_order(),
    *_filled(String, "id"),
    *_filled(JSON, "genes", "parents"),
    *_filled(String, "kind"),
    UniqueConstraint("search", "id"),
    ForeignKeyConstraint(["search"], ["search.id"]),
)
attempt = sa.Table(
    "attempt",
    tables,
    *_in_order(),
    *_filled(String, "candidate"),
    *_filled(Integer, "number"),
    *_filled(String, "state", "worker"),
    *_filled(Float, "started"),
    Column("ended", Float),
    Column("seconds", Float),
    Column("error", String),
    UniqueConstraint("search", "candidate", "number"),
    ForeignKeyConstraint(["search", "candidate"], ["candidate.search", "candidate.id"]),
)
evaluation = sa.Table(
    "evaluation",
    tables,
    *_in_order(),
    *_filled(String, "candidate"),
    *_filled(Integer, "attempt", "steps", "setting"),
    *_filled(JSON, "serving", "values"),
    Column("margins", JSON, nullable=False, server_default="{}"),
    UniqueConstraint("search", "candidate", "attempt", "steps", "setting"),
    ForeignKeyConstraint(["search", "candidate", "attempt"], ["attempt.search", "attempt.candidate", "attempt.number"]),
    Index("evaluation_in_order", "search", "position"),
)
journal = sa.Table(
    "journal",
    tables,
    *_in_order(),
    *_filled(String, "kind", "candidate"),
    *_filled(Integer, "steps"),
    UniqueConstraint("search", "candidate", "kind", "steps"),
    ForeignKeyConstraint(["search", "candidate"], ["candidate.search", "candidate.id"]),
)
fact = sa.Table(
    "fact",
    tables,
    *_in_order(),
    *_filled(String, "key"),
    *_filled(JSON, "value"),
    UniqueConstraint("search", "key"),
    ForeignKeyConstraint(["search"], ["search.id"]),
)


@dataclass(frozen=True)
class Schema:
    """Tables, and the migrations that lead to them.

    Attributes:
        name: the folder of the migrations; their latest is kept in a table of this name and `_version`.
        tables: what the latest migration leaves.
        version: the latest migration.
        unversioned: the version of tables from before versions were kept, and the table and column that show it.
    """

    name: str
    tables: sa.MetaData
    version: int
    unversioned: tuple[int, str, str]

    @property
    def version_table(self) -> str:
        """Alembic's table; a search's record and the service's may lie in one database."""
        return f"{self.name}_version"


SEARCH = Schema("search", tables, version=4, unversioned=(2, "search", "schema_version"))


class Database:
    """A way to the tables in a file, or in a database named `postgresql://USER@HOST/NAME`.

    Attributes:
        place: the name to show for it, without any password.
    """

    def __init__(self, where: str | Path, schema: Schema = SEARCH) -> None:
        """Connects to nothing yet.

        Args:
            schema: a search's, or the service's.

        Raises:
            RunError: the URL is of another kind, or PostgreSQL's driver is not installed.
        """
        self._schema = schema
        url, self.place = sa.URL.create("sqlite", database=str(Path(where).absolute())), str(where)
        if is_url(where):
            url = _postgresql(str(where))
            self.place = f"database '{url.database}' on {url.host or 'this host'}"
        to_json = partial(json.dumps, allow_nan=False, default=_unwrapped)
        try:
            # Errors end in logs, and what is written has tokens in it.
            self._reader = sa.create_engine(url, json_serializer=to_json, pool_pre_ping=True, hide_parameters=True)
        except ModuleNotFoundError as error:
            raise RunError("PostgreSQL needs its driver; run: pip install 'pareto-search[postgresql]'") from error
        if not is_url(where):
            sa.event.listen(self._reader, "connect", _set_up)
            sa.event.listen(self._reader, "begin", _begin)
        self._writer = self._reader.execution_options(writes=True)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A look at the tables; raises as `writing`."""
        with self._in_plain_words(), self._reader.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction, kept if nothing is raised.

        Raises:
            TroubleError: the disk is full, another process writes, the database is gone, and the like.
            ValueError: JSON has no such number.
            TypeError: JSON has no such thing.
        """
        with self._in_plain_words(), self._writer.begin() as connection:
            yield connection

    def upgrade(self, connection: sa.Connection) -> str | None:
        """Makes the tables where there are none, and today's tables of those that an older release has left.

        Returns:
            One line about an upgrade, where there were older ones.

        Raises:
            RunError: there are other tables, or those of a newer release.
        """
        if connection.dialect.name == "postgresql":  # two searches may begin at once; SQLite has one writer anyway
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(self._schema.version_table))))
        found = self._version(connection)
        if found == self._schema.version:
            return None
        from alembic.migration import MigrationContext  # only now: most records are of today
        from alembic.operations import Operations
        from alembic.script import ScriptDirectory

        scripts = ScriptDirectory(str(MIGRATIONS), version_locations=[str(MIGRATIONS / self._schema.name)])
        context = MigrationContext.configure(connection, opts={"version_table": self._schema.version_table})
        with Operations.context(context):
            for script in reversed(list(scripts.iterate_revisions("head", str(found) if found else "base"))):
                script.module.upgrade()
        context.stamp(scripts, "head")
        return f"Upgraded {self.place} from version {found} to {self._schema.version}." if found else None

    def check(self, connection: sa.Connection) -> None:
        """Makes sure that these are our tables.

        Raises:
            AbsentError: there are none.
            RunError: they are others, or those of another release.
        """
        found = self._version(connection)
        if not found:
            raise AbsentError(self._foreign())
        if found < self._schema.version:
            raise RunError(
                f"{self.place}: of version {found}, and this release reads {self._schema.version}; "
                "'pareto-search resume' on its run folder upgrades it"
            )

    def _version(self, connection: sa.Connection) -> int:
        """Of the tables that are there; 0 where there are none. Raises as `upgrade`."""
        schema, inspector = self._schema, sa.inspect(connection)
        there = set(inspector.get_table_names())
        if schema.version_table in there:
            said = sa.select(sa.column("version_num", String)).select_from(sa.table(schema.version_table))
            found = int(connection.execute(said).scalar_one())
            if found > schema.version:
                raise RunError(
                    f"{self.place}: of version {found}, from a newer release, and this one knows {schema.version}; "
                    "upgrade pareto-search"
                )
            return found
        version, table, column = schema.unversioned
        if table in there and column in {c["name"] for c in inspector.get_columns(table)}:
            return version
        if there.isdisjoint(schema.tables.tables):
            return 0
        raise RunError(self._foreign())

    def _foreign(self) -> str:
        return f"{self.place}: a database, but not the record of a search; name another one"

    def close(self) -> None:
        """Gives back files and connections."""
        self._reader.dispose()

    @contextmanager
    def _in_plain_words(self) -> Iterator[None]:
        """Makes one clear line of a database's error. A broken rule of the tables is a bug of ours, and stays."""
        try:
            yield
        except IntegrityError:
            raise
        except sa.exc.TimeoutError as error:
            raise TroubleError(f"{self.place}: all connections wait for an answer; see to the database") from error
        except DBAPIError as error:
            code = getattr(error.orig, "sqlite_errorname", None) or getattr(error.orig, "sqlstate", None) or ""
            kind = "_".join(code.split("_")[:2])  # SQLITE_IOERR_WRITE is an SQLITE_IOERR
            said = str(error.orig).strip().partition("\n")[0]
            raise TroubleError(f"{self.place}: {_TROUBLES.get(kind, f'{said}; mend that and try again')}") from error
        except StatementError as error:
            if isinstance(error.orig, ValueError | TypeError):
                raise error.orig from None
            raise


def is_url(where: str | Path) -> bool:
    """Whether this names a database server; anything else is a file."""
    return isinstance(where, str) and "://" in where


def same_database(one: str | None, other: str | None) -> bool:
    """Whether two URLs, or the lack of one, name the same database, whoever logs in and with whatever password.

    Raises:
        RunError: a URL is of another kind.
    """
    if one is None or other is None:
        return one is other
    places = [_postgresql(url) for url in (one, other)]
    first, second = (
        (url.host, url.port, url.database, url.difference_update_query(("user", "password")).query) for url in places
    )
    return first == second


def _postgresql(text: str) -> sa.URL:
    try:
        url = sa.make_url(text)
    except ArgumentError:
        raise RunError("the store's URL cannot be read; expected postgresql://USER@HOST/NAME") from None
    if url.drivername not in ("postgresql", "postgresql+psycopg"):
        raise RunError(f"a store of kind '{url.drivername}' is not known; expected postgresql://USER@HOST/NAME")
    return url.set(drivername="postgresql+psycopg")


def _set_up(connection: Any, _: object) -> None:
    """Prepares a connection to SQLite."""
    connection.isolation_level = None  # Python's driver begins late and never for tables; `_begin` does it instead
    connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
    connection.execute("PRAGMA journal_mode = WAL")  # others read while one writes
    connection.execute("PRAGMA synchronous = FULL")  # NORMAL may lose commits in a power cut
    connection.execute("PRAGMA foreign_keys = ON")


def _begin(connection: sa.Connection) -> None:
    """A writer is first in line from the start: one that has read before it waits would be refused."""
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _unwrapped(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"JSON has nothing for {type(value).__name__}")
