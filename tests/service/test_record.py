"""What the service remembers, on both databases."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError

from pareto_search.errors import RunError
from pareto_search.service.record import ConflictError, DataSet, Deployment, Job, MissingError, Record

ONE = Job("one-1", "one", "films", "minilm", {"name": "one", "search": {"candidates": 3}}, key="first", created=1.5)
TWO = Job("two-2", "two", "films", "tiny", {"name": "two", "ü": [1, 0.1, None]}, created=2.5)
DEPLOYED = Deployment("one-1", "one-1", "films", ["c0000-s00"], 1, "a token of its own")


@pytest.fixture
def record(where: str) -> Iterator[Record]:
    record = Record(where)
    assert record.add_search(ONE)
    assert record.add_search(TWO)
    yield record
    record.close()


def test_searches_come_back_in_order_to_another_service(record: Record, where: str) -> None:
    again = Record(where)
    assert again.searches() == [ONE, TWO]
    assert again.search("two-2") == TWO
    again.close()


def test_pages_begin_with_what_runs_or_waits_and_then_the_latest(record: Record) -> None:
    three, four = replace(TWO, id="three-3", state="finished"), replace(TWO, id="four-4", state="paused")
    record.add_search(three)
    record.add_search(four)
    record.change_search("one-1", state="running")
    assert record.latest(0, 3) == (4, [TWO, replace(ONE, state="running"), four])
    assert record.latest(3, 2) == (4, [three])
    assert record.latest(4, 2) == (4, [])


def test_those_alike_are_over_the_same_data_and_base_model(record: Record) -> None:
    assert record.like("films", "minilm") == [ONE]
    assert record.like("films", "large") == record.like("books", "minilm") == []


def test_what_has_changed_is_found_by_its_state(record: Record) -> None:
    record.change_search("one-1", state="failed", error="why")
    failed = replace(ONE, state="failed", error="why")
    assert record.search("one-1") == failed
    assert (record.searches("failed"), record.searches("queued"), record.searches("running")) == ([failed], [TWO], [])


def test_a_key_is_used_once_and_many_searches_have_none(record: Record) -> None:
    assert not record.add_search(replace(TWO, id="three-3", key="first"))
    assert record.add_search(replace(TWO, id="three-3"))
    assert record.submitted("first") == ONE
    assert record.submitted("second") is None
    assert [job.id for job in record.searches()] == ["one-1", "two-2", "three-3"]


def test_of_many_at_once_under_one_key_one_is_added(record: Record) -> None:
    with ThreadPoolExecutor(8) as threads:
        added = list(threads.map(lambda n: record.add_search(replace(TWO, id=f"n-{n}", key="same")), range(16)))
    assert sum(added) == 1
    assert len(record.searches()) == 3


def test_a_search_that_is_removed_is_missing(record: Record) -> None:
    record.remove_search("one-1")
    with pytest.raises(MissingError, match="there is no search 'one-1'"):
        record.search("one-1")
    assert record.searches() == [TWO]


def test_data_sets_have_one_name_each(record: Record) -> None:
    films = DataSet("films", "upload", {"source": "x"}, {"users": 4}, 1.5)
    record.add_data(films)
    with pytest.raises(ConflictError, match="data set 'films' is there already"):
        record.add_data(replace(films, origin="operator"))
    assert (record.data_set("films"), record.data_sets()) == (films, [films])
    record.remove_data("films")
    with pytest.raises(MissingError, match="data set 'films' is not registered"):
        record.data_set("films")


def test_a_record_is_of_the_root_that_came_first_wherever_that_lies(record: Record, where: str) -> None:
    record.claim("mine", Path("/there"))
    again = Record(where)
    again.claim("mine", Path("/elsewhere"))
    with pytest.raises(RunError, match=r"of another root, /there \(its service.id is mine\); give --root that folder"):
        again.claim("other", Path("/other"))
    again.close()


@pytest.mark.parametrize("name", ["\0", "one-1\0", "\ud800", "one-1\n", "One"])
def test_what_cannot_be_an_id_is_missing(record: Record, name: str) -> None:
    for find in (record.search, record.deployment):
        with pytest.raises(MissingError, match="there is no"):
            find(name)


def test_an_error_that_quotes_anything_is_kept_as_one_line(record: Record) -> None:
    record.add_deployment(DEPLOYED)
    record.change_search("one-1", error="no item\0\ud800\nof films")
    record.change_deployment("one-1", error="no item\0\ud800\nof films")
    assert record.search("one-1").error == record.deployment("one-1").error == "no item of films"


def test_an_error_of_the_database_does_not_say_what_was_written(record: Record) -> None:
    record.add_deployment(DEPLOYED)
    with pytest.raises(IntegrityError) as caught:
        record.add_deployment(DEPLOYED)
    assert DEPLOYED.token not in str(caught.value)
