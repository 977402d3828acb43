"""What the service remembers: searches that were submitted, data sets that they may name, and what is deployed of them.

Users' text is never joined to a path: a name is looked up here, and what is found leads to the files.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from pareto_search.database import Database, Schema
from pareto_search.errors import RunError, UserError, nearest
from pareto_search.store import one_line

State = Literal["queued", "running", "paused", "finished", "failed", "cancelled"]
Wish = Literal["run", "pause", "cancel"]
Origin = Literal["operator", "upload"]

NAME = r"^[a-z0-9][a-z0-9-]{0,63}$"
"""The one pattern of names and ids."""


class MissingError(UserError):
    """Nothing has the name that was given."""


class ConflictError(UserError):
    """What is asked for does not go with how things stand."""


class UnansweredError(RunError):
    """A process that was to answer has ended over it, or is silent: no mistake of who asks."""


@dataclass(frozen=True)
class Job:
    """A search as it was submitted, and what has become of it.

    Attributes:
        config: as submitted, but for a budget that was changed since; its `data.source` is a registered name.
        wish: what the user wants of it; `state` follows as soon as it can.
        error: why it failed, one line.
        key, body_sha256: of the submission that made it, so that repeating that makes no second one.
        created: a Unix time.
    """

    id: str
    name: str
    data: str
    base: str
    config: Mapping[str, Any]
    state: State = "queued"
    wish: Wish = "run"
    error: str | None = None
    key: str | None = None
    body_sha256: str = ""
    created: float = field(default_factory=time.time)


@dataclass(frozen=True)
class DataSet:
    """A data set that configs may name.

    Attributes:
        section: what stands for it in a config: `source`, or `interactions`, `items` and `columns`.
        facts: what was counted in it; empty where nobody has looked yet.
    """

    name: str
    origin: Origin
    section: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)
    created: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Deployment:
    """Entries of a search that recommend over HTTP.

    Attributes:
        data: of the search, which may have been deleted since.
        entries: their names, the one first that answers who names none.
        canary: `entry` and `share` of one on trial.
        earlier: what `entries` was before each promotion that can be rolled back, the latest last.
        port: where it listens on 127.0.0.1, to whoever has the token.
        wish: "delete" while its process stops.
        error: why it does not recommend, one line.
        key, body_sha256: the idempotency key that it was asked for under, if any, and the hash of what was asked.
        created: a Unix time.
    """

    id: str
    search: str
    data: str
    entries: Sequence[str]
    port: int
    token: str = field(repr=False)
    canary: Mapping[str, Any] | None = None
    earlier: Sequence[Sequence[str]] = ()
    wish: Literal["serve", "delete"] = "serve"
    error: str | None = None
    key: str | None = None
    body_sha256: str = ""
    created: float = field(default_factory=time.time)


tables = sa.MetaData()
_searches = sa.Table(
    "service_search",
    tables,
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("id", sa.String, nullable=False, unique=True),
    *(sa.Column(name, sa.String, nullable=False) for name in ("name", "data", "base", "state", "wish", "body_sha256")),
    sa.Column("config", sa.JSON, nullable=False),
    sa.Column("error", sa.String),
    sa.Column("key", sa.String, unique=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Index("service_search_state", "state"),
)
_data = sa.Table(
    "service_data",
    tables,
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("name", sa.String, nullable=False, unique=True),
    sa.Column("origin", sa.String, nullable=False),
    sa.Column("section", sa.JSON, nullable=False),
    sa.Column("facts", sa.JSON, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
)
_deployments = sa.Table(
    "service_deployment",
    tables,
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("id", sa.String, nullable=False, unique=True),
    *(sa.Column(name, sa.String, nullable=False) for name in ("search", "data", "token", "wish")),
    *(sa.Column(name, sa.JSON, nullable=False) for name in ("entries", "earlier")),
    sa.Column("canary", sa.JSON),
    sa.Column("port", sa.Integer, nullable=False, unique=True),
    sa.Column("error", sa.String),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("key", sa.String),
    sa.Column("body_sha256", sa.String, nullable=False, server_default=""),
    sa.UniqueConstraint("key", name="service_deployment_key"),
)
_root = sa.Table(
    "service_root",
    tables,
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("id", sa.String, nullable=False),
    sa.Column("folder", sa.String, nullable=False),
)

SERVICE = Schema("service", tables, version=5, unversioned=(1, "service_search", "body_sha256"))


class Record:
    """The service's record, in an SQLite file or a PostgreSQL database; one service writes it, with several threads.

    Every call is a transaction of its own. All of them raise `RunError` where the database cannot be used.
    """

    def __init__(self, where: str | Path, upgraded: Callable[[str], None] = lambda _: None) -> None:
        """Opens the record, and begins it where there is none.

        Args:
            upgraded: is told in one line of a record that an older release has left.

        Raises:
            RunError: the place holds something else or the record of a newer release, or cannot be reached.
        """
        self._database = Database(where, SERVICE)
        with self._database.writing() as connection:
            line = self._database.upgrade(connection)
        if line:
            upgraded(line)

    def close(self) -> None:
        """Gives back files and connections."""
        self._database.close()

    def claim(self, root: str, folder: Path) -> None:
        """Keeps the record to the services of one root: in another one, what runs would be taken for what has ended.

        Args:
            root: what tells the root from every other, wherever it lies.
            folder: where it lies.

        Raises:
            RunError: the record is another root's.
        """
        with self._database.reading() as connection:
            held = connection.execute(sa.select(_root)).first()
        if held is None:
            with suppress(IntegrityError), self._database.writing() as connection:  # another one may be quicker
                connection.execute(sa.insert(_root).values(position=1, id=root, folder=str(folder)))
            self.claim(root, folder)
        elif held.id != root:
            raise RunError(
                f"{self._database.place}: the record of another root, {held.folder} (its service.id is {held.id}); "
                "give --root that folder, or --store another database"
            )

    def searches(self, state: State | None = None) -> list[Job]:
        """All of them, or those in a state, in the order in which they were submitted."""
        where = [] if state is None else [_searches.c.state == state]
        return [Job(*row) for row in self._rows(_searches, Job, *where)]

    def like(self, data: str, base: str) -> list[Job]:
        """Those over a data set and a base model, in the order in which they were submitted."""
        rows = self._rows(_searches, Job, _searches.c.data == data, _searches.c.base == base)
        return [Job(*row) for row in rows]

    def latest(self, offset: int, limit: int) -> tuple[int, list[Job]]:
        """How many searches there are, and a page of them: first those that run or wait, then the latest."""
        columns = [_searches.c[f.name] for f in fields(Job)]
        live = _searches.c.state.in_(("running", "queued"))
        page = sa.select(*columns).order_by(live.desc(), _searches.c.position.desc()).offset(offset).limit(limit)
        with self._database.reading() as connection:
            total = connection.execute(sa.select(sa.func.count()).select_from(_searches)).scalar_one()
            return total, [Job(*row) for row in connection.execute(page)]

    def search(self, name: str) -> Job:
        """The search of that id.

        Raises:
            MissingError: there is none.
        """
        found = self._named(_searches, Job, name)
        if not found:
            raise MissingError(f"there is no search '{name[:80]}'; GET /v1/searches lists them")
        return Job(*found[0])

    def submitted(self, key: str) -> Job | None:
        """The search that was submitted under an idempotency key."""
        found = self._rows(_searches, Job, _searches.c.key == key)
        return Job(*found[0]) if found else None

    def add_search(self, job: Job) -> bool:
        """Adds a search, unless its key has been used: then nothing is added, and False returned."""
        try:
            with self._database.writing() as connection:
                connection.execute(sa.insert(_searches).values(**_row(job)))
        except IntegrityError:
            return False
        return True

    def change_search(self, name: str, **values: Any) -> None:
        """Sets columns of a search."""
        with self._database.writing() as connection:
            connection.execute(sa.update(_searches).where(_searches.c.id == name).values(**_plain(values)))

    def remove_search(self, name: str) -> None:
        """Forgets a search."""
        with self._database.writing() as connection:
            connection.execute(sa.delete(_searches).where(_searches.c.id == name))

    def deployments(self) -> list[Deployment]:
        """All of them, in the order in which they were made."""
        return [Deployment(*row) for row in self._rows(_deployments, Deployment)]

    def deployment(self, name: str) -> Deployment:
        """The deployment of that id.

        Raises:
            MissingError: there is none.
        """
        found = self._named(_deployments, Deployment, name)
        if not found:
            raise MissingError(f"there is no deployment '{name[:80]}'; GET /v1/deployments lists them")
        return Deployment(*found[0])

    def add_deployment(self, deployment: Deployment) -> None:
        """Adds a deployment."""
        with self._database.writing() as connection:
            connection.execute(sa.insert(_deployments).values(**_row(deployment)))

    def change_deployment(self, name: str, **values: Any) -> None:
        """Sets columns of a deployment."""
        with self._database.writing() as connection:
            connection.execute(sa.update(_deployments).where(_deployments.c.id == name).values(**_plain(values)))

    def remove_deployment(self, name: str) -> None:
        """Forgets a deployment."""
        with self._database.writing() as connection:
            connection.execute(sa.delete(_deployments).where(_deployments.c.id == name))

    def data_sets(self) -> list[DataSet]:
        """All of them, in the order in which they were registered."""
        return [DataSet(*row) for row in self._rows(_data, DataSet)]

    def data_set(self, name: str) -> DataSet:
        """The data set of that name.

        Raises:
            MissingError: there is none.
        """
        known = {d.name: d for d in self.data_sets()}
        if name not in known:
            raise MissingError(f"data set '{name[:80]}' is not registered; {nearest(name, known)}")
        return known[name]

    def add_data(self, data: DataSet) -> None:
        """Registers a data set.

        Raises:
            ConflictError: the name is taken.
        """
        try:
            with self._database.writing() as connection:
                connection.execute(sa.insert(_data).values(**_row(data)))
        except IntegrityError:
            raise ConflictError(f"data set '{data.name}' is there already; choose another name") from None

    def remove_data(self, name: str) -> None:
        """Forgets a data set."""
        with self._database.writing() as connection:
            connection.execute(sa.delete(_data).where(_data.c.name == name))

    def _named(self, table: sa.Table, kind: type, name: str) -> list[Any]:
        """The row of an id, if it is there; of what cannot be an id PostgreSQL must not even be asked."""
        return self._rows(table, kind, table.c.id == name) if re.fullmatch(NAME, name) else []

    def _rows(self, table: sa.Table, kind: type, *where: sa.ColumnElement[bool]) -> list[Any]:
        query = sa.select(*(table.c[f.name] for f in fields(kind))).where(*where)
        with self._database.reading() as connection:
            return list(connection.execute(query.order_by(table.c.position)).all())


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Columns whose error, which may quote anything, is one line that every database takes."""
    return {key: one_line(value) if key == "error" and value else value for key, value in values.items()}


def _row(noun: Job | DataSet | Deployment) -> dict[str, Any]:
    return asdict(noun)
