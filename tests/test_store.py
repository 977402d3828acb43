import fcntl
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from pareto_search import database
from pareto_search.candidate import Attempt, Candidate, Evaluation, Leg, candidate_id
from pareto_search.errors import AbsentError, RunError
from pareto_search.store import LateResultError, Record, SearchRecord, Store, lock

SEARCH = SearchRecord("movielens", "id", "name: movielens\n", 2**40, "d" * 64, "s" * 64, "minilm", "b" * 64, lanes=2)
ONE, TWO = (Candidate(candidate_id(n), {"rank": 8 * n, "alpha": 0.1, "bias": True, "base": "ü"}) for n in (1, 2))


def scores(attempt: Attempt, *, steps: int = 40, setting: int = 0, value: float = 0.5) -> Evaluation:
    return Evaluation(attempt.candidate.id, attempt.number, steps, setting, {"blend": 0.25}, {"ndcg@10": value})


@pytest.fixture
def store(where: str) -> Iterator[Store]:
    """With both candidates asked for."""
    store = Store.create(where, SEARCH)
    with store.transaction() as record:
        record.decided("ask", ONE, 40)
        record.decided("ask", TWO, 40)
    yield store
    store.close()


def test_what_was_recorded_is_read_again_by_another_process_bit_for_bit(store: Store, where: str) -> None:
    values = {"ndcg@10": 0.1 + 0.2, "ild@10": 5e-324, "novelty@10": -1.7976931348623157e308, "coverage@10": 1 / 3}
    attempt = Attempt(ONE)
    evaluation = replace(scores(attempt), values=values)
    child = Candidate("c0003", {"alpha": 0.1 + 0.7}, ("c0001", "c0002"))
    with store.transaction() as record:
        record.started(attempt, "worker 1")
        record.finished(attempt, [evaluation], seconds=1.5)
        record.decided("ask", child, 40)
    again = Store.open(where)
    assert again.search == SEARCH
    assert again.candidates() == [ONE, TWO, child]
    assert list(again.candidates()[0].genes) == ["rank", "alpha", "bias", "base"]
    assert again.evaluations() == [evaluation]
    (done,) = again.attempts()
    assert (done.candidate, done.number, done.state, done.worker, done.seconds) == (
        "c0001",
        1,
        "finished",
        "worker 1",
        1.5,
    )
    assert done.ended is not None
    assert done.ended >= done.started
    again.close()


def test_random_floats_come_back_bit_for_bit(store: Store) -> None:
    rng = np.random.default_rng(0)
    floats = rng.integers(0, 2**64, 500, dtype=np.uint64).view(np.float64)
    values = {f"m{n}": float(value) for n, value in enumerate(floats) if math.isfinite(value)}
    with store.transaction() as record:
        record.put_fact("values", values)
    assert store.fact("values") == values


def test_numpy_scalars_become_plain_numbers(store: Store) -> None:
    arrays: dict[str, Any] = {"steps": np.int64(40), "setting": np.int32(3), "serving": {"k": np.int64(5)}}
    values: dict[str, Any] = {"a": np.float32(0.1), "b": np.float64(0.1)}
    with store.transaction() as record:
        record.started(Attempt(ONE), "w")
        record.finished(Attempt(ONE), [Evaluation("c0001", 1, **arrays, values=values)], seconds=np.float64(1.0))
    assert store.evaluations() == [Evaluation("c0001", 1, 40, 3, {"k": 5}, {"a": 0.10000000149011612, "b": 0.1})]


def test_connections_that_all_wait_are_told_in_plain_words(tmp_path: Path) -> None:
    place = database.Database(str(tmp_path / "record.db"))
    with pytest.raises(RunError, match="all connections wait for an answer"), place._in_plain_words():
        raise sa.exc.TimeoutError("QueuePool limit reached")


def test_the_journal_keeps_the_order_of_deciding_and_hearing(store: Store) -> None:
    merged = Candidate("m0001", {"share": 0.3}, ("c0001", "c0002"), "merged")
    with store.transaction() as record:
        record.heard(Leg("c0002", 40))
        record.decided("ask", Candidate("c0003", {}), 10)
        record.heard(Leg("c0003", 10))
    with store.transaction() as record:
        record.heard(Leg("c0001", 40))
        record.decided("merge", merged, 40)
        record.decided("promote", Candidate("c0003", {}), 40)
    assert store.journal() == [
        ("ask", Leg("c0001", 40)),
        ("ask", Leg("c0002", 40)),
        ("hear", Leg("c0002", 40)),
        ("ask", Leg("c0003", 10)),
        ("hear", Leg("c0003", 10)),
        ("hear", Leg("c0001", 40)),
        ("merge", Leg("m0001", 40)),
        ("promote", Leg("c0003", 40)),
    ]


def test_a_merged_candidate_comes_back_as_one_and_a_promoted_one_is_no_new_candidate(store: Store) -> None:
    merged = Candidate("m0001", {"share": 0.1 + 0.2}, ("c0002", "c0001"), "merged")
    with store.transaction() as record:
        record.decided("merge", merged, 40)
        record.decided("promote", ONE, 80)
    assert store.candidates() == [ONE, TWO, merged]


def ask_again(record: Record) -> None:
    record.decided("ask", ONE, 40)


def promote_again(record: Record) -> None:
    record.decided("promote", ONE, 80)


def hear_again(record: Record) -> None:
    record.heard(Leg("c0001", 40))


@pytest.mark.parametrize("act", [ask_again, promote_again, hear_again])
def test_a_leg_is_decided_and_heard_once(store: Store, act: Callable[[Record], None]) -> None:
    with store.transaction() as record:
        record.heard(Leg("c0001", 40))
        record.decided("promote", ONE, 80)
    with pytest.raises(sa.exc.IntegrityError), store.transaction() as record:
        act(record)


def test_nothing_of_a_transaction_that_raised_is_kept(store: Store) -> None:
    def interrupted() -> None:
        with store.transaction() as record:
            record.started(Attempt(ONE), "w")
            record.finished(Attempt(ONE), [scores(Attempt(ONE))], 1.0)
            record.heard(Leg("c0001", 40))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (store.attempts(), store.evaluations(), len(store.journal())) == ([], [], 2)


def test_a_late_result_of_a_lost_attempt_is_refused(store: Store) -> None:
    first, second = Attempt(ONE, 1), Attempt(ONE, 2)
    with store.transaction() as record:
        record.started(first, "w1")
        record.lost(first, "its lease has passed")
    late = "attempt 1 of c0001 is not running, but lost"
    with pytest.raises(LateResultError, match=late), store.transaction() as record:
        record.finished(first, [scores(first)], 1.0)
    with store.transaction() as record:
        record.started(second, "w2")
    reports: dict[str, list[Any]] = {
        "finished": [[scores(first)], 1.0],
        "failed": ["out of memory", 1.0],
        "lost": ["its worker died"],
    }
    for report, arguments in reports.items():
        with pytest.raises(LateResultError, match=late), store.transaction() as record:
            getattr(record, report)(first, *arguments)
    assert store.evaluations() == []
    assert [a.state for a in store.attempts()] == ["lost", "running"]


def test_a_refused_result_does_not_spoil_its_transaction(store: Store) -> None:
    with store.transaction() as record:
        record.started(Attempt(TWO), "w")
        with pytest.raises(LateResultError):
            record.finished(Attempt(ONE), [scores(Attempt(ONE))], 1.0)
        record.finished(Attempt(TWO), [scores(Attempt(TWO))], 1.0)
    assert [e.candidate for e in store.evaluations()] == ["c0002"]


def test_an_attempt_ends_once(store: Store) -> None:
    attempt = Attempt(ONE)
    with store.transaction() as record:
        record.started(attempt, "w")
        record.finished(attempt, [scores(attempt)], 1.0)
        with pytest.raises(LateResultError, match="not running, but finished"):
            record.failed(attempt, "too late", 1.0)
    assert store.attempts()[0].state == "finished"


def test_the_next_attempt_takes_the_place_of_a_running_one(store: Store) -> None:
    for number in (1, 2):
        with store.transaction() as record:
            record.started(Attempt(ONE, number), "w")
    assert [(a.state, a.error) for a in store.attempts()] == [("lost", "succeeded by attempt 2"), ("running", None)]


@pytest.mark.parametrize("number", [0, 2])
def test_attempts_are_counted_without_gaps(store: Store, number: int) -> None:
    with pytest.raises(ValueError, match="does not follow"), store.transaction() as record:
        record.started(Attempt(ONE, number), "w")


def test_unfinished_are_those_that_a_resume_has_to_run(store: Store) -> None:
    three, four, five = (Candidate(candidate_id(n), {}) for n in (3, 4, 5))
    with store.transaction() as record:
        for candidate in (three, four, five):
            record.decided("ask", candidate, 40)
        record.started(Attempt(ONE), "w")
        record.finished(Attempt(ONE), [], 1.0)
        record.started(Attempt(TWO), "w")
        record.failed(Attempt(TWO), "nan", 1.0)
        record.started(Attempt(three), "w")
        record.started(Attempt(four), "w")
        record.lost(Attempt(four), "worker died")
    assert store.unfinished() == [Attempt(three, 2), Attempt(four, 2), Attempt(five, 1)]
    with store.transaction() as record:
        record.started(Attempt(TWO, 2), "w")
    assert store.unfinished()[0] == Attempt(TWO, 3)


def test_a_rung_that_was_scored_again_counts_once(store: Store) -> None:
    first, second = Attempt(ONE, 1), Attempt(ONE, 2)
    with store.transaction() as record:
        record.started(first, "w")
        record.finished(first, [scores(first, steps=10), scores(first, steps=20)], 1.0)
        record.started(second, "w")
        record.finished(second, [scores(second, steps=20), scores(second, steps=40)], 1.0)
    assert store.evaluations() == [
        scores(first, steps=10),
        scores(second, steps=20),
        scores(second, steps=40),
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, float(np.float32("nan"))])
def test_a_value_that_is_not_finite_is_refused(store: Store, value: float) -> None:
    attempt = Attempt(ONE)
    with store.transaction() as record:
        record.started(attempt, "w")
        with pytest.raises(ValueError, match=r"ndcg@10 of c0001-s00 is -?(nan|inf)"):
            record.finished(attempt, [scores(attempt, value=value)], 1.0)
    assert store.attempts()[0].state == "running"


def test_what_json_does_not_have_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="JSON"), store.transaction() as record:
        record.put_fact("x", [math.nan])
    with pytest.raises(TypeError, match="JSON has nothing for set"), store.transaction() as record:
        record.put_fact("x", {1})
    assert store.fact("x") is None


def test_an_evaluation_of_another_attempt_is_refused(store: Store) -> None:
    with store.transaction() as record:
        record.started(Attempt(ONE), "w")
        with pytest.raises(ValueError, match="is not of attempt 1 of c0001"):
            record.finished(Attempt(ONE), [scores(Attempt(TWO))], 1.0)


def test_an_error_is_kept_as_one_short_line_whatever_it_holds(store: Store) -> None:
    with store.transaction() as record:
        record.started(Attempt(ONE), "w")
        record.failed(Attempt(ONE), "Boom:\n\x00\x1b[31m \udc80 out of\tmemory\n" + "x" * 10**6, 1.0)
    error = store.attempts()[0].error
    assert error is not None
    assert error.startswith("Boom: [31m out of memory xxx")
    assert len(error) == 500


def test_facts_and_totals_are_kept(store: Store, where: str) -> None:
    for seconds, fact in ((1.5, {"ease": {"ndcg@10": 0.06}}), (2.25, None), (0.25, [1, 0.1])):
        with store.transaction() as record:
            record.add_elapsed(seconds)
            record.count_test_evaluation()
            record.put_fact("baselines", fact)
    again = Store.open(where)
    assert again.search == replace(SEARCH, elapsed_seconds=4.0, test_evaluations=3)
    assert (again.fact("baselines"), again.fact("unknown")) == ([1, 0.1], None)
    again.close()


def test_searches_share_a_database_without_mixing(store: Store, where: str) -> None:
    other = Store.create(where, replace(SEARCH, name="books", seed=1))
    with other.transaction() as record:
        record.decided("ask", ONE, 40)
        record.started(Attempt(ONE), "w")
        record.put_fact("x", 1)
    assert (len(store.candidates()), store.attempts(), store.fact("x")) == (2, [], None)
    assert Store.open(where, "books").journal() == [("ask", Leg("c0001", 40))]
    with pytest.raises(RunError, match="holds books, movielens; expected one search, or the name of one"):
        Store.open(where)
    with pytest.raises(RunError, match="holds books, movielens; expected films"):
        Store.open(where, "films")
    other.close()


def test_a_search_that_is_removed_leaves_the_others_and_its_name(store: Store, where: str) -> None:
    other = Store.create(where, replace(SEARCH, name="books"))
    with store.transaction() as record:
        record.started(Attempt(ONE), "w")
        record.finished(Attempt(ONE), [scores(Attempt(ONE))], 1.0)
        record.put_fact("x", 1)
    store.remove()
    assert other.search.name == "books"
    with pytest.raises(AbsentError):
        Store.open(where, "movielens")
    again = Store.create(where, SEARCH)
    assert (again.candidates(), again.evaluations(), again.fact("x")) == ([], [], None)
    again.close()
    other.close()


def test_the_revision_changes_with_every_transaction_that_is_kept(store: Store) -> None:
    before = store.revision
    with store.transaction() as record:
        record.started(Attempt(ONE), "w")
    assert store.revision == before + 1
    with pytest.raises(ValueError, match="does not follow"), store.transaction() as record:
        record.started(Attempt(TWO, 7), "w")
    assert store.revision == before + 1


def test_evaluations_after_a_position_are_those_that_have_come_since(store: Store) -> None:
    position, none = store.evaluations_after(0)
    for attempt in (Attempt(ONE), Attempt(TWO)):
        with store.transaction() as record:
            record.started(attempt, "w")
            record.finished(attempt, [scores(attempt)], 1.0)
        position, news = store.evaluations_after(position)
        assert news == [scores(attempt)]
    assert (none, store.evaluations_after(position)) == ([], (position, []))


def test_a_name_is_taken_once(store: Store, where: str) -> None:
    with pytest.raises(RunError, match="has a search 'movielens'; resume it or choose another name"):
        Store.create(where, SEARCH)
    assert len(store.candidates()) == 2


def test_tables_of_others_are_not_taken_for_ours(where: str) -> None:
    place = database.Database(where)
    with place.writing() as connection:
        connection.exec_driver_sql("CREATE TABLE candidate (id INTEGER, vote VARCHAR)")
    for act in (Store.open, lambda where: Store.create(where, SEARCH)):
        with pytest.raises(RunError, match="a database, but not the record of a search"):
            act(where)
    place.close()


def test_threads_take_turns_at_writing(store: Store) -> None:
    def write() -> None:
        for _ in range(10):
            with store.transaction() as record:
                record.count_test_evaluation()

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.search.test_evaluations == 40


WRITER = """
    import sys
    from pareto_search.candidate import Attempt, Candidate, Evaluation, Leg, candidate_id
    from pareto_search.store import Store
    store = Store.open(sys.argv[1])
    n = len(store.candidates())
    while True:
        n += 1
        candidate = Candidate(candidate_id(n), {"n": n})
        attempt = Attempt(candidate)
        with store.transaction() as record:
            record.decided("ask", candidate, 40)
            record.started(attempt, "w")
        with store.transaction() as record:
            values = {"ndcg@10": n / 7}
            record.finished(attempt, [Evaluation(candidate.id, 1, 40, s, {}, values) for s in range(20)], 1.0)
            record.heard(Leg(candidate.id, 40))
        print(candidate.id, flush=True)
"""


def test_what_was_acknowledged_survives_kill_9(where: str) -> None:
    Store.create(where, SEARCH).close()
    rng = random.Random(0)
    acknowledged: set[str] = set()
    for _ in range(5):
        command = [sys.executable, "-c", textwrap.dedent(WRITER), where]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            acknowledged |= {child.stdout.readline().strip() for _ in range(rng.randint(1, 15))}
            threading.Event().wait(rng.random() / 50)
            os.kill(child.pid, signal.SIGKILL)
            acknowledged |= set(child.stdout.read().split())
        store = Store.open(where)
        evaluations = store.evaluations()
        finished = [a.candidate for a in store.attempts() if a.state == "finished"]
        assert acknowledged <= set(finished)
        assert [e.candidate for e in evaluations] == [c for c in finished for _ in range(20)]
        assert [leg.candidate for deed, leg in store.journal() if deed == "hear"] == finished
        store.close()


# What follows is about files, or about URLs that lead nowhere.


@pytest.fixture
def file(tmp_path: Path) -> Path:
    Store.create(tmp_path / "search.db", SEARCH).close()
    return tmp_path / "search.db"


def test_sqlite_writes_ahead_and_waits_for_the_disk(file: Path) -> None:
    with database.Database(file).reading() as connection:
        pragmas = {
            p: connection.exec_driver_sql(f"PRAGMA {p}").scalar()
            for p in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("missing.db", "missing.db: not there; expected the record of a search"),
        ("mysql://me:secret@host/db", "a store of kind 'mysql' is not known; expected postgresql://USER@HOST/NAME"),
        ("://", "the store's URL cannot be read; expected postgresql://USER@HOST/NAME"),
    ],
)
def test_a_place_that_does_not_fit_is_named(where: str, message: str) -> None:
    with pytest.raises(RunError) as caught:
        Store.open(where)
    assert str(caught.value).startswith(message)
    assert "secret" not in str(caught.value)


def test_a_server_that_does_not_answer_is_named_without_its_password() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(RunError, match=r"database 'db' on 127\.0\.0\.1: .*mend that and try again") as caught:
        Store.open("postgresql://me:secret@127.0.0.1:1/db")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "search.db").write_text("not a database" * 100)
    with pytest.raises(RunError, match=r"search\.db: not a database; expected the record of a search"):
        Store.open(tmp_path / "search.db")


def test_a_creation_that_was_cut_short_is_done_again(tmp_path: Path) -> None:
    place = database.Database(tmp_path / "search.db")
    with place.reading():  # the file is there, its tables are not
        pass
    place.close()
    with pytest.raises(RunError, match="not the record of a search"):
        Store.open(tmp_path / "search.db")
    Store.create(tmp_path / "search.db", SEARCH).close()
    assert Store.open(tmp_path / "search.db").search == SEARCH


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be opened; check that its folder exists"):
        Store.create(tmp_path / "missing" / "search.db", SEARCH)


def test_a_full_disk_stops_with_one_line_and_loses_nothing(file: Path) -> None:
    store = Store.open(file)
    with store.transaction() as record:
        record.decided("ask", ONE, 40)

    def fill(connection: sqlite3.Connection, *_: object) -> None:
        connection.execute("PRAGMA max_page_count = 1")

    engine = store._database._reader
    engine.dispose()
    sa.event.listen(engine, "connect", fill)
    big = Candidate("c0002", {"text": "x" * 10**6})
    full = r"search\.db: no space left on its disk; free some and resume"
    with pytest.raises(RunError, match=full), store.transaction() as record:
        record.decided("ask", big, 40)
    assert store.candidates() == [ONE]
    sa.event.remove(engine, "connect", fill)
    engine.dispose()
    with store.transaction() as record:
        record.decided("ask", big, 40)
    assert store.candidates() == [ONE, big]
    store.close()


def test_a_second_writer_is_told_to_wait(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0)
    one, other = Store.open(file), Store.open(file)
    with one.transaction() as record:
        record.decided("ask", ONE, 40)
        assert other.candidates() == []  # reading does not wait
        with pytest.raises(RunError, match="another process is writing to it"), other.transaction():
            pass
    assert other.candidates() == [ONE]
    one.close()
    other.close()


def test_a_run_folder_belongs_to_one_process_until_it_dies(tmp_path: Path) -> None:
    script = "import sys, time; from pathlib import Path; from pareto_search.store import lock\n"
    script += "with lock(Path(sys.argv[1])): print('locked', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "locked\n"
        with pytest.raises(RunError, match="another process is running this search"), lock(tmp_path):
            pass
        child.kill()
        child.wait()
    with lock(tmp_path):
        pass
    with lock(tmp_path), (tmp_path / "search.lock").open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_run_folder_that_is_not_there_cannot_be_locked(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be locked"), lock(tmp_path / "missing"):
        pass


def test_many_transactions_leave_no_files_open(file: Path) -> None:
    store = Store.open(file)
    store.candidates()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        with store.transaction() as record:
            record.add_elapsed(1.0)
        store.evaluations()
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    store.close()
