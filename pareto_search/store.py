"""The durable record of a search: what was proposed, executed and scored, and in which order the optimiser heard of it.

Replay is the only resume: asked and told again in the journal's order, a fresh optimiser is where the old one was.
"""

import fcntl
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import sqlalchemy as sa

from pareto_search import database as db
from pareto_search.candidate import Attempt, Candidate, Deed, Evaluation, Leg
from pareto_search.errors import AbsentError, ParetoSearchError, RunError

_SESSIONS = "sessions"
"""The fact of when the search went on each time, as a Unix time, and the seconds that it had taken by then."""

State = Literal["running", "finished", "failed", "lost"]

_SUCCEEDED = "succeeded by attempt"

# What every candidate needs is built once: that takes several times as long as to execute it.
_CANDIDATES = (db.attempt.c.search == sa.bindparam("in_search")) & (db.attempt.c.candidate == sa.bindparam("of"))
_THIS = _CANDIDATES & (db.attempt.c.number == sa.bindparam("this"))
_LATEST = sa.select(sa.func.max(db.attempt.c.number)).where(_CANDIDATES)
_SUCCEED = sa.update(db.attempt).where(_CANDIDATES, db.attempt.c.state == "running")
_STATE = sa.select(db.attempt.c.state).where(_THIS)
_END = sa.update(db.attempt).where(_THIS, db.attempt.c.state == "running")
_SEARCH = db.search.c.id == sa.bindparam("this")
_ADD = {
    column: sa.update(db.search).where(_SEARCH).values({column: column + sa.bindparam("by")})
    for column in (db.search.c.elapsed_seconds, db.search.c.test_evaluations, db.search.c.revision)
}
_REVISION = sa.select(db.search.c.revision).where(_SEARCH)


class LateResultError(ParetoSearchError):
    """A report of an attempt that is not running: its lease was lost, another took its place, or it has ended."""


@dataclass(frozen=True)
class SearchRecord:
    """What a search is. Only the elapsed seconds and the test evaluations change; `created` is a Unix time."""

    name: str
    identity: str
    config: str
    seed: int
    data_sha256: str
    split_sha256: str
    base_id: str
    base_sha256: str
    lanes: int
    created: float = field(default_factory=time.time)
    elapsed_seconds: float = 0.0
    test_evaluations: int = 0


@dataclass(frozen=True)
class AttemptRecord:
    """What became of an attempt; `started` and `ended` are Unix times."""

    candidate: str
    number: int
    state: State
    worker: str
    started: float
    ended: float | None
    seconds: float | None
    error: str | None

    @property
    def worker_died(self) -> bool:
        """Whether it was lost with its worker, and not with the driver."""
        return self.state == "lost" and not (self.error or "").startswith(_SUCCEEDED)


class Store:
    """One search's record, in an SQLite file or a PostgreSQL database.

    Durability: once a `transaction` has ended without an exception, all of it survives the death of any process and, as
    far as the disk keeps its word, a power cut. After an exception nothing of it is there, and the store is usable.

    One writer: the process that holds `lock` on the run folder. Others may read at any time and count test evaluations.
    Several threads may share a store; a transaction belongs to one. Floats come back bit for bit.

    A candidate has at most one running attempt, its latest. It belongs to whoever started it until it ends, is lost, or
    is succeeded by the next attempt, which makes it lost. From then on its reports are refused, and change nothing.
    """

    def __init__(self, database: db.Database, search: int) -> None:
        """Use `create` or `open`."""
        self._database = database
        self._search = search

    @classmethod
    def create(cls, where: str | Path, search: SearchRecord) -> Self:
        """Starts a record in a file, which may be new, or in a database, `postgresql://USER@HOST/NAME`.

        Raises:
            RunError: the place cannot be written, holds other tables, or holds a search of that name already.
        """
        with ExitStack() as opened:
            database = opened.enter_context(closing(db.Database(where)))
            with database.writing() as connection:
                database.upgrade(connection)
                if search.name in connection.scalars(sa.select(db.search.c.name)).all():
                    raise RunError(f"{database.place}: has a search '{search.name}'; resume it or choose another name")
                row = sa.insert(db.search).values(**asdict(search))
                number = connection.execute(row.returning(db.search.c.id)).scalar_one()
            opened.pop_all()
        return cls(database, number)

    @classmethod
    def open(cls, where: str | Path, name: str | None = None, upgraded: Callable[[str], None] | None = None) -> Self:
        """Opens a record; where a database holds several searches, the one of that name.

        Args:
            upgraded: given by the one writer, who may upgrade the record of an older release: is told so in one line.

        Raises:
            AbsentError: it is not there.
            RunError: it cannot be read, or is of another release and not to be upgraded.
        """
        if not db.is_url(where) and not Path(where).is_file():
            raise AbsentError(f"{where}: not there; expected the record of a search, which 'pareto-search run' starts")
        with ExitStack() as opened:
            database = opened.enter_context(closing(db.Database(where)))
            if upgraded is not None:
                with database.writing() as connection:
                    line = database.upgrade(connection)
                if line:
                    upgraded(line)
            with database.reading() as connection:
                database.check(connection)
                found = connection.execute(sa.select(db.search)).all()
            chosen = [row for row in found if name is None or row.name == name]
            if len(chosen) != 1:
                held = ", ".join(sorted(row.name for row in found)) or "no search"
                expected = name or "one search, or the name of one"
                raise AbsentError(f"{database.place}: holds {held}; expected {expected}")
            opened.pop_all()
        return cls(database, chosen[0].id)

    def close(self) -> None:
        """Gives back files and connections."""
        self._database.close()

    @contextmanager
    def transaction(self) -> Iterator["Record"]:
        """The one way to write: all that is recorded inside is kept together, or none of it.

        Raises:
            RunError: the disk is full, another process writes, the database is gone, and the like.
        """
        with self._database.writing() as connection:
            yield Record(connection, self._search)
            connection.execute(_ADD[db.search.c.revision], {"this": self._search, "by": 1})

    @property
    def revision(self) -> int:
        """How many transactions there were: while it stays the same, so does all else here."""
        with self._database.reading() as connection:
            return connection.execute(_REVISION, {"this": self._search}).scalar_one()

    @property
    def search(self) -> SearchRecord:
        """What the search is, and its totals so far."""
        columns = [db.search.c[name] for name in SearchRecord.__dataclass_fields__]
        with self._database.reading() as connection:
            return SearchRecord(*connection.execute(sa.select(*columns).where(db.search.c.id == self._search)).one())

    def candidates(self) -> list[Candidate]:
        """Every candidate, in the order of asking."""
        rows = self._rows(db.candidate, "id", "genes", "parents", "kind")
        return [Candidate(name, genes, tuple(parents), kind) for name, genes, parents, kind in rows]

    def journal(self) -> list[tuple[Deed | Literal["hear"], Leg]]:
        """What was decided and heard, in order."""
        rows = self._rows(db.journal, "kind", "candidate", "steps")
        return [(kind, Leg(candidate, steps)) for kind, candidate, steps in rows]

    def attempts(self) -> list[AttemptRecord]:
        """Every attempt, in the order of starting."""
        return [AttemptRecord(*row) for row in self._rows(db.attempt, *AttemptRecord.__dataclass_fields__)]

    def evaluations(self) -> list[Evaluation]:
        """The evaluation of each (candidate, steps, setting) by the latest attempt that made it, in the order made."""
        return list({(e.candidate, e.steps, e.setting): e for e in self.evaluations_after(0)[1]}.values())

    def evaluations_after(self, position: int) -> tuple[int, list[Evaluation]]:
        """Every evaluation that came after a position, 0 for all, and the position of the last of them."""
        table = db.evaluation.c
        columns = [table[name] for name in ("position", *Evaluation.__dataclass_fields__)]
        query = sa.select(*columns).where(table.search == self._search, table.position > position)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(table.position)).all()
        return rows[-1].position if rows else position, [Evaluation(*row[1:]) for row in rows]

    def unfinished(self) -> list[Attempt]:
        """What a resume starts: the next attempt of each candidate whose latest neither finished nor failed."""
        latest = {attempt.candidate: attempt for attempt in self.attempts()}
        return [
            Attempt(candidate, latest[candidate.id].number + 1 if candidate.id in latest else 1)
            for candidate in self.candidates()
            if candidate.id not in latest or latest[candidate.id].state in ("running", "lost")
        ]

    def fact(self, key: str) -> Any:
        """What was noted under the key, as JSON gives it; None where nothing was."""
        return dict(self._rows(db.fact, "key", "value")).get(key)

    def seconds_until(self, moments: Sequence[float]) -> list[float]:
        """The seconds that the search had taken by Unix times at which it ran, standing still left out."""
        sessions = self.fact(_SESSIONS) or []
        first = (self.search.created, 0.0)  # of which older releases have noted nothing
        last = [max((s for s in sessions if s[0] <= moment), default=first) for moment in moments]
        return [before + moment - began for moment, (began, before) in zip(moments, last, strict=True)]

    def remove(self) -> None:
        """Forgets the search, for a database that holds others: nothing can be read or written any more."""
        with self._database.writing() as connection:
            for table in reversed(db.tables.sorted_tables):
                column = table.c.id if table is db.search else table.c.search
                connection.execute(sa.delete(table).where(column == self._search))

    def _rows(self, table: sa.Table, *columns: str) -> Sequence[Any]:
        query = sa.select(*(table.c[name] for name in columns)).where(table.c.search == self._search)
        with self._database.reading() as connection:
            return connection.execute(query.order_by(table.c.position)).all()


class Record:
    """The writing half of a store, for the length of one transaction."""

    def __init__(self, connection: sa.Connection, search: int) -> None:
        """Use `Store.transaction`."""
        self._connection = connection
        self._search = search

    def decided(self, deed: Deed, candidate: Candidate, steps: int) -> None:
        """The candidate, which is new unless it is promoted, is to reach this rung."""
        if deed != "promote":
            row = {"id": candidate.id, "genes": dict(candidate.genes), "parents": list(candidate.parents)}
            self._insert(db.candidate, {**row, "kind": candidate.kind})
        self._insert(db.journal, {"kind": deed, "candidate": candidate.id, "steps": steps})

    def heard(self, leg: Leg) -> None:
        """The schedule has heard what became of the leg, which is recorded before or in the same transaction."""
        self._insert(db.journal, {"kind": "hear", "candidate": leg.candidate, "steps": leg.steps})

    def started(self, attempt: Attempt, worker: str) -> None:
        """The candidate's next attempt runs on the worker; one that is still running is lost.

        Raises:
            ValueError: its number does not follow that of the latest attempt.
        """
        mine = {"in_search": self._search, "of": attempt.candidate.id}
        latest = self._connection.scalar(_LATEST, mine) or 0
        if attempt.number != latest + 1:
            raise ValueError(f"attempt {attempt.number} of {attempt.candidate.id} does not follow attempt {latest}")
        lost = {"state": "lost", "ended": time.time(), "error": f"{_SUCCEEDED} {attempt.number}"}
        self._connection.execute(_SUCCEED, {**mine, **lost})
        row = {"candidate": attempt.candidate.id, "number": attempt.number, "state": "running", "worker": worker}
        self._insert(db.attempt, {**row, "started": time.time()})

    def finished(self, attempt: Attempt, evaluations: Sequence[Evaluation], seconds: float) -> None:
        """The running attempt has ended well, with these evaluations beside those of earlier attempts.

        Raises:
            LateResultError: the attempt is not running; the transaction may go on without it.
            ValueError: a value is not finite, or an evaluation is another attempt's.
        """
        rows = [_row(attempt, evaluation) for evaluation in evaluations]
        self._end(attempt, "finished", seconds=float(seconds))
        self._insert(db.evaluation, *rows)

    def failed(self, attempt: Attempt, error: str, seconds: float) -> None:
        """The attempt has ended badly, and with it its candidate. Raises as `finished`."""
        self._end(attempt, "failed", error=one_line(error), seconds=float(seconds))

    def lost(self, attempt: Attempt, error: str) -> None:
        """Nobody runs the attempt any more: its worker died or let its lease pass. Raises as `finished`."""
        self._end(attempt, "lost", error=one_line(error))

    def went_on(self, seconds: float) -> None:
        """The search, which had taken so many seconds, goes on now: it may have stood still for days."""
        mine = sa.select(db.fact.c.value).where(db.fact.c.search == self._search, db.fact.c.key == _SESSIONS)
        self.put_fact(_SESSIONS, [*(self._connection.scalar(mine) or []), (time.time(), seconds)])

    def add_elapsed(self, seconds: float) -> None:
        """Adds to the time that the search has taken."""
        self._add(db.search.c.elapsed_seconds, float(seconds))

    def count_test_evaluation(self) -> None:
        """Somebody looked at the test part once more."""
        self._add(db.search.c.test_evaluations, 1)

    def put_fact(self, key: str, value: Any) -> None:
        """Notes under the key what a resume need not do again: anything JSON holds, in place of what was there."""
        self._connection.execute(sa.delete(db.fact).where(db.fact.c.search == self._search, db.fact.c.key == key))
        self._insert(db.fact, {"key": key, "value": value})

    def _end(self, attempt: Attempt, state: State, **how: Any) -> None:
        row = {"in_search": self._search, "of": attempt.candidate.id, "this": attempt.number}
        if not self._connection.execute(_END, {**row, "state": state, "ended": time.time(), **how}).rowcount:
            found = self._connection.scalar(_STATE, row)
            raise LateResultError(f"attempt {attempt.number} of {attempt.candidate.id} is not running, but {found}")

    def _insert(self, table: sa.Table, *rows: Mapping[str, Any]) -> None:
        if rows:
            self._connection.execute(sa.insert(table), [{"search": self._search, **row} for row in rows])

    def _add(self, column: sa.Column[Any], amount: float) -> None:
        self._connection.execute(_ADD[column], {"this": self._search, "by": amount})


@contextmanager
def lock(run: Path) -> Iterator[None]:
    """Keeps the run folder to this process; the system lets go when the process ends, however it ends.

    Raises:
        RunError: another process has it, or the folder cannot be written.
    """
    try:
        file = (run / "search.lock").open("w")
    except OSError as error:
        raise RunError(f"{run} cannot be locked ({error.strerror}); expected a folder to write in") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"another process is running this search in {run}; wait for its end or stop it") from None
        yield


def _row(attempt: Attempt, evaluation: Evaluation) -> dict[str, Any]:
    row = {name: getattr(evaluation, name) for name in Evaluation.__dataclass_fields__}
    if (row["candidate"], row["attempt"]) != (attempt.candidate.id, attempt.number):
        raise ValueError(f"{row} is not of attempt {attempt.number} of {attempt.candidate.id}")
    for name, value in evaluation.values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} of {evaluation.entry} is {value}; an attempt with such a score has failed")
    # Counts may come as NumPy's, which SQLite would keep as bytes.
    counts = {name: int(row[name]) for name in ("attempt", "steps", "setting")}
    return {**row, **counts, **{name: dict(row[name]) for name in ("serving", "values", "margins")}}


def one_line(error: str) -> str:
    """Fit for a table and a terminal, whatever a worker has printed."""
    return " ".join("".join(c if c.isprintable() else " " for c in error).split())[:500]
