from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import bootstrap

from benchmarks.practitioner import OnTest, PerUser, accuracy, configured, hypervolume, in_words, pooled, row
from pareto_search.candidate import Attempt, Candidate, Evaluation
from pareto_search.objective import Objective
from pareto_search.store import SearchRecord, Store

OBJECTIVES = [
    Objective("a", "maximise", reference=0.0, ideal=1.0),
    Objective("b", "maximise", reference=0.0, ideal=1.0),
]


def on_test(ours: PerUser, theirs: PerUser) -> OnTest:
    return OnTest(tuple(f"u{number}" for number in range(ours.shape[2])), ours, theirs)


def searches(*accuracies: NDArray[np.float64]) -> list[OnTest]:
    """Under each seed one entry, whose users have these accuracies; the other side has 0.5 of everybody."""
    each = [np.stack([users, np.ones(len(users))])[None] for users in accuracies]
    return [on_test(ours, np.full_like(ours, 0.5)) for ours in each]


def entries(*points: tuple[float, float], users: int = 10) -> PerUser:
    """Entries that score the same for every user."""
    return np.repeat(np.array(points)[:, :, None], users, axis=2)


def test_the_hypervolume_is_that_of_the_means_over_the_drawn_users() -> None:
    per_user = np.array([[[0.0, 1.0, 0.5], [1.0, 1.0, 1.0]]])  # one entry, two objectives, three users
    assert hypervolume(per_user, np.array([0, 1, 2]), OBJECTIVES) == pytest.approx(0.5)
    assert hypervolume(per_user, np.array([1, 1, 2]), OBJECTIVES) == pytest.approx(2.5 / 3)


def test_where_all_users_are_alike_chance_is_in_the_seeds_alone() -> None:
    # 1 x 0.5 and 0.5 x 1 overlap in a quarter: 0.75. The other side has 0.5 in one seed and 0.25 in the other.
    front = entries((1.0, 0.5), (0.5, 1.0))
    found = pooled([on_test(front, entries((0.5, 1.0))), on_test(front, entries((0.5, 0.5)))], OBJECTIVES, hypervolume)
    assert found["ours"] == pytest.approx([0.75, 0.75])
    assert found["theirs"] == pytest.approx([0.5, 0.25])
    assert found["ratio"] == pytest.approx(0.75 / 0.375)
    # A quarter of the resamples has the first seed twice, 0.75 / 0.5, and a quarter the second, 0.75 / 0.25.
    assert found["interval"] == pytest.approx([1.5, 3.0])


def test_where_all_seeds_are_alike_chance_is_in_the_users_alone_however_many_seeds_there_are() -> None:
    users = np.random.default_rng(1).random(100)
    expected = bootstrap((users,), np.mean, method="percentile", n_resamples=5000, rng=2)
    interval = np.array(expected.confidence_interval) / 0.5
    for seeds in (1, 5):
        found = pooled(searches(*[users] * seeds), OBJECTIVES, accuracy)
        assert found["ratio"] == pytest.approx(users.mean() / 0.5)
        # Quantiles of a thousand resamples are right to a tenth of a standard error; with users of their own, five
        # seeds would have less than half of the interval.
        assert found["interval"] == pytest.approx(interval, abs=expected.standard_error / 0.5 / 3)


def test_users_of_one_seed_must_be_those_of_the_others() -> None:
    one, other = searches(np.ones(3), np.ones(3))
    with pytest.raises(AssertionError, match="users"):
        pooled([one, replace(other, users=("u0", "u2", "u1"))], OBJECTIVES, accuracy)


def test_both_sides_are_judged_by_the_same_users() -> None:
    # Users differ ten times as much as the sides do, which leaves the ratio as certain as before.
    users = np.linspace(0.1, 1.0, 50)
    theirs = np.stack([users, np.ones(50)])[None]
    found = pooled([on_test(theirs * np.array([1.2, 1.0])[None, :, None], theirs)], OBJECTIVES, hypervolume)
    assert found["ratio"] == pytest.approx(1.2)
    assert found["interval"] == pytest.approx([1.2, 1.2])


def test_the_accuracy_is_that_of_the_first_entry_in_the_first_objective() -> None:
    per_user = np.array([[[0.2, 1.0, 0.5], [1.0, 1.0, 1.0]], [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]])
    assert accuracy(per_user, np.array([1, 1, 2]), OBJECTIVES) == pytest.approx(2.5 / 3)
    found = pooled([on_test(per_user, per_user / 2)], OBJECTIVES, accuracy)
    assert (found["ratio"], found["interval"]) == (pytest.approx(2.0), pytest.approx([2.0, 2.0]))


def test_a_line_says_what_ended_and_whose_the_entries_are(tmp_path: Path) -> None:
    config = configured(0, 20.0)
    full = config.search.steps
    record = SearchRecord(config.name, config.identity(), config.to_yaml(), 0, "", "", "", "", lanes=2)
    store = Store.create(tmp_path / "search.db", record)
    start, first, paused = Candidate("m0000", {}, (), "merged"), Candidate("c0001", {}), Candidate("c0002", {})
    merged = Candidate("m0001", {"share": 0.5}, (first.id, start.id), "merged")
    legs = [(start, full), (first, full), (merged, full), (paused, full - 1)]
    with store.transaction() as changes:
        for candidate, steps in legs:
            attempt = Attempt(candidate, steps=steps)
            changes.decided("ask", candidate, steps)
            changes.started(attempt, "here")
            changes.finished(attempt, [Evaluation(candidate.id, 1, steps, n, {}, {"a": 0.5}) for n in (0, 1)], 1.0)
    store.close()
    volumes = {"test": 0.6, "warm-start": {"test": 0.5}, "practitioner": {"test": 0.4}}
    entries = [{"candidate": name, "kind": kind} for name, kind in [("c0001", "trained"), *[("m0000", "merged")] * 2]]

    found = row(config, tmp_path, {"hypervolume": volumes, "front": entries})

    assert (found["trained"], found["merged"]) == (1, 2)
    assert in_words(found) == (
        "1 trained, 2 merged; front 0.6000, warm start 0.5000, practitioner 0.4000, 1.500 x; "
        "entries: 2 warm start, 1 trained"
    )
