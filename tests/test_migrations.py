"""Records that older releases have left, on both databases, and those of newer ones."""

import json
from collections.abc import Sequence

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from pareto_search import database
from pareto_search.candidate import Attempt, Candidate, Evaluation, Leg
from pareto_search.database import SEARCH, Database, Schema
from pareto_search.errors import RunError
from pareto_search.service.record import SERVICE, DataSet, Job, Record
from pareto_search.store import SearchRecord, Store

# As they were before the tables had a version; KEY is what either database calls a number that counts up.
SEARCH_2 = (
    """CREATE TABLE search (id KEY, name VARCHAR NOT NULL, identity VARCHAR NOT NULL, config VARCHAR NOT NULL,
    data_sha256 VARCHAR NOT NULL, split_sha256 VARCHAR NOT NULL, base_id VARCHAR NOT NULL, base_sha256 VARCHAR NOT NULL,
    seed BIGINT NOT NULL, lanes INTEGER NOT NULL, test_evaluations INTEGER NOT NULL, schema_version INTEGER NOT NULL,
    created FLOAT NOT NULL, elapsed_seconds FLOAT NOT NULL, UNIQUE (name))""",
    """CREATE TABLE candidate (position KEY, search INTEGER NOT NULL, id VARCHAR NOT NULL, genes JSON NOT NULL,
    parents JSON NOT NULL, kind VARCHAR NOT NULL, UNIQUE (search, id), FOREIGN KEY(search) REFERENCES search (id))""",
    """CREATE TABLE attempt (position KEY, search INTEGER NOT NULL, candidate VARCHAR NOT NULL, number INTEGER NOT NULL,
    state VARCHAR NOT NULL, worker VARCHAR NOT NULL, started FLOAT NOT NULL, ended FLOAT, seconds FLOAT, error VARCHAR,
    UNIQUE (search, candidate, number), FOREIGN KEY(search, candidate) REFERENCES candidate (search, id))""",
    """CREATE TABLE evaluation (position KEY, search INTEGER NOT NULL, candidate VARCHAR NOT NULL,
    attempt INTEGER NOT NULL, steps INTEGER NOT NULL, setting INTEGER NOT NULL, serving JSON NOT NULL,
    "values" JSON NOT NULL, UNIQUE (search, candidate, attempt, steps, setting),
    FOREIGN KEY(search, candidate, attempt) REFERENCES attempt (search, candidate, number))""",
    """CREATE TABLE journal (position KEY, search INTEGER NOT NULL, kind VARCHAR NOT NULL, candidate VARCHAR NOT NULL,
    steps INTEGER NOT NULL, UNIQUE (search, candidate, kind, steps),
    FOREIGN KEY(search, candidate) REFERENCES candidate (search, id))""",
    """CREATE TABLE fact (position KEY, search INTEGER NOT NULL, key VARCHAR NOT NULL, value JSON NOT NULL,
    UNIQUE (search, key), FOREIGN KEY(search) REFERENCES search (id))""",
    "INSERT INTO search VALUES (1, 'old', 'i', 'name: old', 'd', 's', 'b', 'b', 7, 2, 3, 2, 1700000000.5, 12.25)",
    "INSERT INTO candidate VALUES (1, 1, 'c0000', '{\"rank\": 8}', '[]', 'trained')",
    "INSERT INTO attempt VALUES (1, 1, 'c0000', 1, 'finished', 'w', 1700000001, 1700000002, 1.5, NULL)",
    "INSERT INTO evaluation VALUES (1, 1, 'c0000', 1, 40, 0, '{}', '{\"ndcg@10\": 0.30000000000000004}')",
    "INSERT INTO journal VALUES (1, 1, 'ask', 'c0000', 40), (2, 1, 'hear', 'c0000', 40)",
    "INSERT INTO fact VALUES (1, 1, 'curves', '{\"practitioner\": []}')",
)
SERVICE_1 = (
    """CREATE TABLE service_search (position KEY, id VARCHAR NOT NULL, name VARCHAR NOT NULL, data VARCHAR NOT NULL,
    base VARCHAR NOT NULL, state VARCHAR NOT NULL, wish VARCHAR NOT NULL, body_sha256 VARCHAR NOT NULL,
    config JSON NOT NULL, error VARCHAR, key VARCHAR, created FLOAT NOT NULL, UNIQUE (id), UNIQUE (key))""",
    """CREATE TABLE service_data (position KEY, name VARCHAR NOT NULL, origin VARCHAR NOT NULL, section JSON NOT NULL,
    facts JSON NOT NULL, created FLOAT NOT NULL, UNIQUE (name))""",
    """INSERT INTO service_search VALUES (1, 'old-1', 'old', 'films', 'minilm', 'paused', 'run', 'x', '{"name": "old"}',
    NULL, 'mine', 1700000000.5)""",
    """INSERT INTO service_data VALUES (1, 'films', 'upload', '{"source": "films"}', '{"users": 4}', 1700000000.5)""",
)
OLD_JOB = Job(
    "old-1", "old", "films", "minilm", {"name": "old"}, "paused", key="mine", body_sha256="x", created=1.7e9 + 0.5
)


def fill(where: str, statements: Sequence[str]) -> None:
    place = Database(where)
    key = "SERIAL PRIMARY KEY" if database.is_url(where) else "INTEGER NOT NULL PRIMARY KEY"
    with place.writing() as connection:
        for statement in statements:
            connection.execute(sa.text(statement.replace(" KEY,", f" {key},", 1)))
        if database.is_url(where):  # rows with numbers of their own have not counted up
            for table in ("candidate", "attempt", "evaluation", "journal", "fact", "service_search", "service_data"):
                if sa.inspect(connection).has_table(table):
                    connection.exec_driver_sql(f"SELECT setval('{table}_position_seq', 10)")
            if sa.inspect(connection).has_table("search"):
                connection.exec_driver_sql("SELECT setval('search_id_seq', 10)")
    place.close()


def differences(where: str, schema: Schema) -> list[object]:
    """Between the tables there and those that this release works with."""
    place = Database(where, schema)
    with place.reading() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": schema.version_table})
        found = compare_metadata(context, schema.tables)
    place.close()
    return found


@pytest.mark.parametrize("schema", [SEARCH, SERVICE], ids=lambda schema: schema.name)
def test_migrations_from_nothing_end_at_the_tables_that_are_worked_with(where: str, schema: Schema) -> None:
    place = Database(where, schema)
    with place.writing() as connection:
        assert place.upgrade(connection) is None
        assert place.upgrade(connection) is None
    place.close()
    assert differences(where, schema) == []
    folder = database.MIGRATIONS
    assert ScriptDirectory(str(folder), version_locations=[str(folder / schema.name)]).get_heads() == [
        str(schema.version)
    ]


def test_a_search_of_the_former_version_is_upgraded_by_its_writer_and_loses_nothing(where: str) -> None:
    fill(where, SEARCH_2)
    with pytest.raises(RunError, match="of version 2, and this release reads 4; 'pareto-search resume'"):
        Store.open(where)
    told: list[str] = []
    store = Store.open(where, "old", told.append)
    assert [line.partition(" from ")[2] for line in told] == ["version 2 to 4."]
    assert differences(where, SEARCH) == []

    assert store.search == SearchRecord("old", "i", "name: old", 7, "d", "s", "b", "b", 2, 1.7e9 + 0.5, 12.25, 3)
    assert store.candidates() == [Candidate("c0000", {"rank": 8})]
    assert store.evaluations() == [Evaluation("c0000", 1, 40, 0, {}, {"ndcg@10": 0.1 + 0.2})]
    assert store.journal() == [("ask", Leg("c0000", 40)), ("hear", Leg("c0000", 40))]
    assert store.fact("curves") == {"practitioner": []}
    new = Candidate("c0001", {"rank": 4})
    with store.transaction() as record:
        record.decided("ask", new, 40)
        record.started(Attempt(new), "w")
    assert (store.revision, len(store.unfinished())) == (1, 1)
    store.close()

    again = Store.open(where, "old", told.append)
    assert (len(told), len(again.candidates())) == (1, 2)
    again.close()


def test_a_service_of_the_former_version_is_upgraded_and_loses_nothing(where: str) -> None:
    fill(where, SERVICE_1)
    told: list[str] = []
    record = Record(where, told.append)
    assert [line.partition(" from ")[2] for line in told] == ["version 1 to 5."]
    assert differences(where, SERVICE) == []
    assert record.searches() == [OLD_JOB]
    assert record.data_sets() == [DataSet("films", "upload", {"source": "films"}, {"users": 4}, 1.7e9 + 0.5)]
    assert not record.add_search(Job("new-1", "new", "films", "minilm", {}, key="mine"))
    record.close()


def test_one_database_may_hold_both_each_of_its_own_version(where: str) -> None:
    fill(where, SEARCH_2)
    fill(where, SERVICE_1)
    record = Record(where)
    with pytest.raises(RunError, match="of version 2"):
        Store.open(where)
    Store.open(where, None, lambda _: None).close()
    assert record.searches() == [OLD_JOB]
    record.close()


def test_what_a_newer_release_has_written_is_refused_in_one_line(where: str) -> None:
    Store.create(where, SearchRecord("s", "i", "c", 0, "d", "s", "b", "b", lanes=1)).close()
    Record(where).close()
    place = Database(where)
    with place.writing() as connection:
        for table in ("search_version", "service_version"):
            connection.exec_driver_sql(f"UPDATE {table} SET version_num = '9'")
    place.close()
    newer = r"of version 9, from a newer release, and this one knows \d; upgrade pareto-search$"
    for act in (Store.open, lambda where: Store.open(where, None, print), Record):
        with pytest.raises(RunError, match=newer) as caught:
            act(where)
        assert "\n" not in str(caught.value)


def test_an_upgrade_that_fails_leaves_the_record_as_it_was(where: str) -> None:
    fill(where, [*SEARCH_2, "UPDATE search SET schema_version = 1"])
    for _ in range(2):
        with pytest.raises(RunError, match="version 1, from before the first release, cannot be upgraded"):
            Store.open(where, "old", print)
    place = Database(where)
    with place.reading() as connection:
        names = set(sa.inspect(connection).get_table_names())
        kept = connection.exec_driver_sql("SELECT value FROM fact").scalar_one()
    assert "search_version" not in names
    assert (json.loads(kept) if isinstance(kept, str) else kept) == {"practitioner": []}
    place.close()


def test_a_wheel_has_the_migrations() -> None:
    setuptools = pytest.importorskip("setuptools")
    found = setuptools.find_namespace_packages(str(database.MIGRATIONS.parent.parent), include=["pareto_search*"])
    assert {"pareto_search.migrations.search", "pareto_search.migrations.service"} <= set(found)
