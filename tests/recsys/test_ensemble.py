"""Ensembles: against SciPy, and by hand."""

from collections.abc import Iterable, Sequence
from itertools import combinations, combinations_with_replacement

import numpy as np
import pytest
from scipy.special import logsumexp

from pareto_search.recsys.baselines import Popularity
from pareto_search.recsys.ensemble import Ensemble, select
from pareto_search.recsys.split import Sequences

Scores = dict[str, np.ndarray]


def wanted(*rows: Sequence[int]) -> Sequences:
    ends = np.cumsum([0, *(len(row) for row in rows)])
    return Sequences(ends, np.array([i for row in rows for i in row], np.int32), None)


def loss(scores: Scores, targets: Sequences, bag: Sequence[str]) -> float:
    mean = np.mean([scores[name].astype(float) for name in bag], axis=0)
    log_p = mean - logsumexp(mean, axis=1, keepdims=True)
    rows = [log_p[user, targets.of(user)].mean() for user in range(len(mean))]
    return -float(np.mean(rows))


@pytest.fixture
def scores() -> Scores:
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 2, (40, 9)).astype(np.float32) for name in "abcd"}


TARGETS = wanted(*([u % 9] if u % 3 else [u % 9, (u + 4) % 9] for u in range(40)))


def test_after_the_best_two_each_draw_is_the_best_beside_those_before_it_and_the_best_bag_counts(
    scores: Scores,
) -> None:
    for several in scores.values():
        several[:, 8] = -np.inf  # barred, and nobody's target
    targets = wanted(*([u % 8] if u % 3 else [u % 8, (u + 4) % 8] for u in range(40)))

    def best_of(bags: Iterable[Sequence[str]]) -> list[str]:
        return list(min(bags, key=lambda bag: loss(scores, targets, bag)))

    bags = [best_of(combinations("abcd", 2))]
    while len(bags[-1]) < 6:
        bags.append(best_of([*bags[-1], name] for name in "abcd"))
    best = best_of(bags)
    assert len(best) > 2  # of noise, more is better
    found = select([(scores, targets)], draws=6)
    assert found == pytest.approx({name: best.count(name) / len(best) for name in best})
    assert select([(scores, targets)], draws=2) == dict.fromkeys(bags[0], 0.5)


def test_users_in_several_chunks_count_as_in_one(scores: Scores) -> None:
    parts = [
        ({n: s[rows] for n, s in scores.items()}, TARGETS.rows(rows.start, rows.stop))
        for rows in (slice(0, 13), slice(13, 40))
    ]
    assert select(parts, draws=5) == select([(scores, TARGETS)], draws=5)


def test_a_model_that_knows_the_targets_counts_as_much_as_it_may(scores: Scores) -> None:
    scores["c"] = np.zeros((40, 9), np.float32)
    for user in range(40):
        scores["c"][user, TARGETS.of(user)] = 6.0
    found = select([(scores, TARGETS)], draws=8)
    assert len(found) == 2  # one alone would be no ensemble
    assert found["c"] == 7 / 8


def test_two_that_are_sure_of_different_users_go_together() -> None:
    truth = np.full((6, 4), -3.0, np.float32)
    truth[np.arange(6), np.arange(6) % 4] = 3.0
    first, second = truth.copy(), truth.copy()
    first[3:], second[:3] = 0.0, 0.0
    scores, targets = {"a": first, "b": second}, wanted(*([u % 4] for u in range(6)))
    bags = [bag for size in (1, 2, 3, 4) for bag in combinations_with_replacement("ab", size)]
    assert loss(scores, targets, "ab") == pytest.approx(min(loss(scores, targets, bag) for bag in bags))
    assert select([(scores, targets)], draws=4) == {"a": 0.5, "b": 0.5}


def test_an_ensemble_averages_by_its_weights_and_keeps_what_all_members_keep() -> None:
    members = [Popularity(np.array(counts)) for counts in ([1, 2, 3], [5, 0, 1])]
    history = wanted([0], [1])
    mixed = Ensemble(members, [0.25, 0.75])
    expected = 0.25 * members[0].scores(history) + 0.75 * members[1].scores(history)
    assert mixed.scores(history) == pytest.approx(expected)
    assert mixed.parameters == sum(m.parameters for m in members)
    assert mixed.logits
