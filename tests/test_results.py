"""What front.json says of an entry, and how the front grew."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pareto_search import results
from pareto_search.candidate import Attempt, Candidate, Evaluation
from pareto_search.objective import Objective
from pareto_search.store import SearchRecord, Store

# Scaled to themselves, so that a single point's hypervolume is the product of its values.
OBJECTIVES = [Objective("ndcg@10", "maximise", 0.0, 1.0), Objective("ild@10", "maximise", 0.0, 1.0)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.create(tmp_path / "search.db", SearchRecord("s", "i", "c", 0, "d", "s", "b", "b", lanes=1))
    yield store
    store.close()


def finish(store: Store, candidate: Candidate, number: int, steps: int, *points: tuple[float, float]) -> None:
    """One leg of a candidate, from its decision to its evaluations."""
    attempt = Attempt(candidate, number, steps)
    evaluations = [
        Evaluation(candidate.id, number, steps, setting, {}, {"ndcg@10": accuracy, "ild@10": diversity})
        for setting, (accuracy, diversity) in enumerate(points)
    ]
    with store.transaction() as record:
        if number == 1:
            record.decided("merge" if candidate.kind == "merged" else "ask", candidate, steps)
        else:
            record.decided("promote", candidate, steps)
        record.started(attempt, "w1")
        record.finished(attempt, evaluations, 1.0)


def test_entries_are_chosen_by_their_worth_and_none_of_them_dominates_another() -> None:
    def entry(name: str, accuracy: float, diversity: float, margin: float = 0.0) -> Evaluation:
        values, margins = {"ndcg@10": accuracy, "ild@10": diversity}, {"ndcg@10": margin} if margin else {}
        return Evaluation(name, 1, 40, 0, {}, values, margins)

    start, lucky, better = entry("m0000", 0.5, 0.5), entry("c0001", 0.52, 0.4, 0.1), entry("c0002", 0.3, 0.9, 0.1)
    assert results.chosen([start, lucky, better], OBJECTIVES) == [start, better]  # .42 and .4 is behind the start
    above = entry("c0003", 0.55, 0.55, 0.1)
    assert results.chosen([start, above], OBJECTIVES) == [above]  # both are worth something, but one dominates


def test_the_front_grows_when_a_candidate_reaches_the_full_rung_and_not_before(store: Store) -> None:
    slow, quick = Candidate("c0001", {}), Candidate("c0002", {})
    merged = Candidate("m0001", {"share": 0.5}, ("c0001", "c0002"), "merged")
    finish(store, slow, 1, 20, (0.9, 0.9))
    finish(store, quick, 1, 40, (0.4, 0.4))
    finish(store, slow, 2, 40, (0.6, 0.5), (0.5, 0.6))
    finish(store, merged, 1, 40, (0.8, 0.8))
    moments = results.moments(store, OBJECTIVES, (), 40)
    assert [(volume, name) for _, volume, name in moments] == [
        (0.0, "c0001"),
        (pytest.approx(0.16), "c0002"),
        (pytest.approx(0.3 + 0.3 - 0.25), "c0001"),
        (pytest.approx(0.64), "m0001"),
    ]
    seconds = [moment[0] for moment in moments]
    assert seconds == sorted(seconds)


def test_what_the_first_towers_dominated_is_back_on_the_front_when_the_warm_start_is_there(store: Store) -> None:
    finish(store, Candidate("e0000", {}, (), "early"), 1, 40, (0.5, 0.5))
    finish(store, Candidate("c0001", {}), 1, 40, (0.4, 0.4))
    finish(store, Candidate("m0000", {}, (), "merged"), 1, 40, (0.6, 0.2))
    assert [volume for _, volume, _ in results.moments(store, OBJECTIVES, (), 40)] == [
        pytest.approx(0.25),
        pytest.approx(0.25),
        pytest.approx(0.16 + 0.12 - 0.08),
    ]


def test_the_time_in_which_a_search_stood_still_does_not_count(store: Store) -> None:
    finish(store, Candidate("c0001", {}), 1, 40, (0.4, 0.4))
    [attempt] = store.attempts()
    assert attempt.ended is not None
    ended, created = attempt.ended, store.search.created
    with store.transaction() as record:
        record.put_fact("sessions", [(ended - 90_000, 0.0), (ended - 10, 100.0)])  # a day lies between them
    [(seconds, *_)] = results.moments(store, OBJECTIVES, (), 40)
    assert seconds == pytest.approx(110)
    assert store.seconds_until([ended - 89_950, ended - 5]) == pytest.approx([50, 105])
    with store.transaction() as record:
        record.put_fact("sessions", [(created + 90_000, 40.0)])  # an older release began it, and noted no session
    assert store.seconds_until([created + 30, created + 90_010]) == pytest.approx([30, 50])


def test_the_front_from_scratch_has_the_others_as_they_are(store: Store) -> None:
    def scored(accuracy: float, diversity: float) -> results.Document:
        test = {"ndcg@10": {"mean": accuracy / 2}, "ild@10": {"mean": diversity}}
        return {"validation": {"ndcg@10": accuracy, "ild@10": diversity}, "test": test}

    alone, heir = {"entry": "c0001-s00", **scored(0.8, 0.2)}, {"entry": "c0002-s00", **scored(0.4, 0.6)}
    assert "retrained" not in results.document(store.search, OBJECTIVES, [alone, heir], [], {})["hypervolume"]
    both = [alone, {**heir, "retrained": scored(0.2, 0.6)}]
    volumes = results.document(store.search, OBJECTIVES, both, [], {})["hypervolume"]
    # What both dominate is 0.4 x 0.2, and 0.2 x 0.2 without what was inherited.
    assert volumes.pop("retrained") == pytest.approx({"validation": 0.16 + 0.12 - 0.04, "test": 0.12})
    assert volumes == pytest.approx({"validation": 0.16 + 0.24 - 0.08, "test": 0.16})


def test_of_many_attempts_the_moments_are_evenly_spread_and_those_of_the_whole_curve(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(10):
        finish(store, Candidate(f"c{n:04d}", {}), 1, 40, (0.1 + n / 20, 0.9 - n / 20), (0.05, n / 20))
    whole = results.moments(store, OBJECTIVES, (), 40)
    assert len(whole) == 10
    monkeypatch.setattr(results, "MOMENTS", 4)
    assert results.moments(store, OBJECTIVES, (), 40) == [whole[n] for n in (1, 4, 6, 9)]


def test_an_entry_says_what_its_candidate_cost_and_what_is_in_it() -> None:
    candidate = Candidate("c0003", {"weight.ild@10": 0.5, "rank": 8}, ("c0001", "c0002"))
    evaluation = Evaluation("c0003", 1, 40, 2, {"diversity": 0.3}, {"ndcg@10": 0.1, "ild@10": 0.8})
    tested = {"ndcg@10": {"mean": 0.09, "low": 0.08, "high": 0.1}}
    assert results.entry(evaluation, candidate, 80, 12.34, tested, fuses={}) == {
        "entry": "c0003-s02",
        "candidate": "c0003",
        "kind": "trained",
        "parents": ["c0001", "c0002"],
        "steps": 40,
        "lineage_steps": 80,
        "seconds": 12.3,
        "weighting": {"ild@10": 0.5},
        "genes": {"rank": 8},
        "fuses": {},
        "serving": {"diversity": 0.3},
        "validation": {"ndcg@10": 0.1, "ild@10": 0.8},
        "test": tested,
        "checkpoint": "checkpoints/c0003",
    }


def test_a_merged_entry_took_no_steps_of_its_own_and_stands_for_those_of_its_parents() -> None:
    candidate = Candidate("m0001", {"share": 0.4}, ("c0001", "c0002"), "merged")
    found = results.entry(Evaluation("m0001", 1, 40, 0, {}, {}), candidate, 80, 1.0, {}, fuses={})
    assert (found["kind"], found["steps"], found["lineage_steps"]) == ("merged", 0, 80)
    assert (found["parents"], found["genes"]) == (["c0001", "c0002"], {"share": 0.4})


def test_a_fused_entry_says_what_each_member_counts() -> None:
    candidate, members = (
        Candidate("f0001", {}, ("c0001", "c0002", "m0000"), "fused"),
        {"c0002": {"weight": 0.25, "lineage_steps": 40}},
    )
    found = results.entry(Evaluation("f0001", 1, 40, 0, {}, {}), candidate, 40, 1.0, {}, fuses=members)
    assert (found["kind"], found["steps"], found["genes"], found["fuses"]) == ("fused", 0, {}, members)


def test_values_are_shown_with_as_many_places_as_people_read() -> None:
    assert [results.readable(v) for v in (0.03456, -0.5, 12.34567, 999.0, 1000.0, 4984190.0)] == [
        "0.0346",
        "-0.5000",
        "12.3457",
        "999.0000",
        "1,000",
        "4,984,190",
    ]
