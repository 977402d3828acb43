"""Metrics against values computed by hand, by brute force or by another library."""

import math
import sys
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from items import sequences
from scipy.stats import bootstrap

from pareto_search.errors import ConfigError
from pareto_search.recsys import metrics
from pareto_search.recsys.metrics import (
    METRICS,
    Ranked,
    Tally,
    calibration_error,
    confidence,
    coverage,
    find_metric,
    gini,
    ild,
    interval,
    parse_metric,
)
from pareto_search.recsys.statistics import ItemStatistics


def ranked(lists: list[list[int]], *targets: list[int]) -> Ranked:
    return Ranked.of(np.array(lists, np.int32), sequences(*targets), sequences(*targets))


def statistics(features: np.ndarray | None = None, n_items: int = 6) -> ItemStatistics:
    """Six items, of which item i was chosen by i of 8 users and has credibility i / 10."""
    users = np.arange(n_items)
    novelty = -np.log2(np.maximum(users, 1) / 8) / 3
    features = np.eye(n_items, dtype=np.float32) if features is None else features.astype(np.float32)
    return ItemStatistics(users, novelty.astype(np.float32), (users / 10).astype(np.float32), features)


# The first user has one target, in the second place. The second has three, of which the first and the third place hold
# two. The third has two, and the list has none of them.
LISTS = [[3, 1, 4, 0], [0, 2, 5, 1], [5, 4, 3, 2]]
TARGETS = [1], [0, 5, 3], [0, 1]
SECOND, THIRD = 1 / math.log2(3), 1 / math.log2(4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ndcg@4", [SECOND / 1, (1 + THIRD) / (1 + SECOND + THIRD), 0]),
        ("ndcg@2", [SECOND / 1, 1 / (1 + SECOND), 0]),  # three targets do not fit into two places
        ("ndcg@1", [0, 1, 0]),
        ("recall@4", [1 / 1, 2 / 3, 0 / 2]),
        ("hr@4", [1, 1, 0]),
        ("hr@1", [0, 1, 0]),
        ("mrr@4", [1 / 2, 1 / 1, 0]),
        ("mrr@1", [0, 1, 0]),
        ("precision@4", [1 / 4, 2 / 4, 0 / 4]),
    ],
)
def test_accuracy_by_hand(name: str, expected: list[float]) -> None:
    tally = Tally([name], statistics())
    tally.add(ranked(LISTS, *TARGETS))
    assert tally.per_user()[name] == pytest.approx(expected)
    assert tally.values()[name] == pytest.approx(sum(expected) / 3)


def test_one_target_each_is_found_as_several_are() -> None:
    assert ranked([[3, 1, 4], [0, 2, 5]], [4], [1]).hits.tolist() == [[False, False, True], [False, False, False]]


def test_ild_by_hand() -> None:
    # Items 0 and 1 are alike (distance 0), item 2 differs from both (distance 1): (0 + 1 + 1) / 3 pairs.
    features = np.array([[1, 0], [1, 0], [0, 1]])
    assert ild(ranked([[0, 1, 2], [2, 1, 0]], [], []), statistics(features, 3)) == pytest.approx([2 / 3, 2 / 3])


def test_ild_is_the_mean_over_all_ordered_pairs() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, 7))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    lists = [rng.permutation(30)[:6].tolist() for _ in range(5)]
    distances = [[1 - float(features[i] @ features[j]) for i, j in permutations(row, 2)] for row in lists]
    expected = [sum(pairs) / (6 * 5) for pairs in distances]
    assert ild(ranked(lists, *[[]] * 5), statistics(features, 30)) == pytest.approx(expected, abs=1e-6)


def test_a_list_of_one_has_no_diversity() -> None:
    assert ild(ranked([[0], [3]], [], []), statistics()).tolist() == [0, 0]


def test_novelty_is_rectools_miuf_over_its_largest_value() -> None:
    # The example in RecTools' documentation of MeanInvUserFreq: user 1 had items 1 and 2, users 2 and 3 had item 1; it
    # recommends [3], [2, 3] and [1, 2], and publishes [1.5849625, 1.5849625, 0.79248125] for k = 3. Items count from 0
    # here. Its largest value, of three users, is log2(3).
    items = ItemStatistics.of(sequences([0, 1], [0], [0]), 3, np.eye(3, dtype=np.float32))
    one, others = Tally(["novelty@3"], items), Tally(["novelty@3"], items)
    one.add(ranked([[2]], []))
    others.add(ranked([[1, 2], [0, 1]], [], []))
    values = [*one.per_user()["novelty@3"], *others.per_user()["novelty@3"]]
    assert np.array(values) * np.log2(3) == pytest.approx([1.5849625, 1.5849625, 0.79248125])


def test_novelty_and_credibility_are_means_over_the_list() -> None:
    tally = Tally(["novelty@2", "credibility@3"], statistics())
    tally.add(ranked([[4, 2, 1]], []))
    # Of 8 users 4 and 2 had the items: 1 and 2 bits, of at most 3.
    assert tally.values() == pytest.approx({"novelty@2": (1 / 3 + 2 / 3) / 2, "credibility@3": (0.4 + 0.2 + 0.1) / 3})


@pytest.mark.parametrize(("k", "published"), [(1, [0.0, 0.25, 0.0, 0.25]), (2, [0.0, 0.5, 0.0, 0.125])])
def test_serendipity_is_rectools(k: int, published: list[float]) -> None:
    # The example in RecTools' documentation of Serendipity; its third user has a list of one item, filled up here with
    # one that is no target.
    items = ItemStatistics.of(sequences([0, 1], [0, 1], [0]), 4, np.eye(4, dtype=np.float32))
    tally = Tally([f"serendipity@{k}"], items)
    tally.add(ranked([[0, 1], [1, 2], [2, 3], [1, 2]], [0, 1], [1, 2], [1], [1]).at(k))
    assert tally.per_user()[f"serendipity@{k}"] == pytest.approx(published)


# Item 0 is in category a, item 1 in b, item 2 in both and item 3 in neither.
CATEGORIES = np.array([[1, 0], [0, 1], [1 / math.sqrt(2), 1 / math.sqrt(2)], [0, 0]])


def known(lists: list[list[int]], *histories: list[int]) -> Ranked:
    return Ranked.of(np.array(lists, np.int32), sequences(*[[] for _ in histories]), sequences(*histories))


def test_calibration_by_hand() -> None:
    # Who had 0 and 2 has shares (3/4, 1/4). The list 0, 1 has (1/2, 1/2), of which .99 and .01 of the former are mixed.
    expected = sum(p * math.log(p / (0.99 / 2 + 0.01 * p)) for p in (3 / 4, 1 / 4))
    # Who had 0 alone and is shown 1 has the largest: log(1 / .01). With the same shares it is 0, as for whom nothing
    # is known.
    ranked = known([[0, 1], [1, 1], [2, 2], [0, 1], [0, 1]], [0, 2], [0], [0, 1], [], [3])
    values = METRICS["calibration"].per_user(ranked, statistics(CATEGORIES, 4))  # type: ignore[misc]
    assert values == pytest.approx([expected, math.log(100), 0, 0, 0], abs=1e-6)


def test_calibration_error_by_hand() -> None:
    # From 1/2 up: .9 and .6, one hit; from 1/4 up: .3, no hit; what is all but impossible: 2^-30, hit.
    sure = np.array([[0.9, 0.3], [0.6, 2.0**-30]], np.float32)
    hits = np.array([[True, False], [False, True]])
    lists = np.zeros((2, 2), np.int32)
    history = sequences([0], [0])
    bins = confidence(Ranked(lists, hits, np.ones(2, np.int64), history, sure))
    assert calibration_error(bins) == pytest.approx((abs(1.5 - 1) + 0.3 + 1) / 4)
    # One of two targets is the next with 1/2: .9 is .4 too sure of it.
    two = confidence(Ranked(lists[:1, :1], hits[:1, :1], np.array([2]), history, sure[:1, :1]))
    assert calibration_error(two) == pytest.approx(0.4)
    halves = [confidence(Ranked(lists[:1], hits[[n]], np.ones(1, np.int64), history, sure[[n]])) for n in range(2)]
    assert calibration_error(halves[0] + halves[1]) == pytest.approx(calibration_error(bins))
    assert calibration_error(np.zeros_like(bins)) == 0.0


def test_history_novelty_by_hand() -> None:
    # Who had 0 and then 1 has (.8, 1) / 1.8. The distance of 0 is 1 - .8 / 1.8, that of 1 is 1 - 1 / 1.8; of what
    # has no category, and from no history, it is 1.
    ranked = known([[0, 1], [0, 3], [0, 1]], [0, 1], [0, 1], [])
    values = METRICS["history_novelty"].per_user(ranked, statistics(CATEGORIES, 4))  # type: ignore[misc]
    assert values == pytest.approx([(1 / 1.8 + 0.8 / 1.8) / 2, (1 / 1.8 + 1) / 2, 1], abs=1e-6)


def test_the_tail_is_what_the_most_popular_leave_of_the_last_fifth() -> None:
    # Of 20 interactions, items 3 and 1 have 16, so these are the head; of equals the lower index comes first.
    items = ItemStatistics(np.array([2, 6, 2, 10]), np.zeros(4, np.float32), None, np.eye(4, dtype=np.float32))
    assert items.tail.tolist() == [True, False, True, False]
    assert METRICS["tail"].per_user(known([[0, 1], [3, 1], [0, 2]], [], [], []), items).tolist() == [0.5, 0, 1]  # type: ignore[misc]


def installed(folder: Path, line: str, code: str) -> None:
    """A package with an entry point and a module `mine`, as if it were installed in this folder."""
    info = folder / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[pareto_search.metrics]\n{line}\n")
    (folder / "mine.py").write_text(code)


CODE = """
from pareto_search.recsys.metrics import Metric
ODD = Metric("maximise", lambda ranked, items: (ranked.lists % 2).mean(1))
"""


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that packages are found in."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    find_metric.cache_clear()
    yield tmp_path
    find_metric.cache_clear()


def test_a_package_adds_a_metric_by_an_entry_point(elsewhere: Path) -> None:
    installed(elsewhere, "odd = mine:ODD", CODE)
    tally = Tally(["odd@2"], statistics())
    tally.add(ranked([[3, 2, 1], [1, 5, 0]], [], []))
    assert tally.values() == {"odd@2": 0.75}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("odd = mine:CODE", "expected a Metric"),
        ("odd = mine:NONE", "which cannot be loaded .AttributeError"),
        ("odd = nowhere:ODD", "which cannot be loaded .ModuleNotFoundError"),
        ("odd = mine:ODD\nodder = mine:ODD", "metric 'odde' is unknown; did you mean 'odder'"),
    ],
)
def test_an_entry_point_that_does_not_fit_is_named_and_in_nobodys_way(elsewhere: Path, line: str, problem: str) -> None:
    installed(elsewhere, line, CODE + "CODE = 3")
    assert parse_metric("ndcg@10").metric is METRICS["ndcg"]
    with pytest.raises(ConfigError, match=problem):
        parse_metric("odde@10" if "odde" in problem else "odd@10")


def test_the_name_of_a_metric_that_is_there_already_is_not_taken_over(elsewhere: Path) -> None:
    installed(elsewhere, "ndcg = mine:ODD", CODE)
    assert parse_metric("ndcg@10").metric is METRICS["ndcg"]


def test_coverage_and_gini_by_hand() -> None:
    tally = Tally(["coverage@2", "gini@2", "coverage@1"], statistics(n_items=4))
    tally.add(ranked([[0, 1], [0, 2], [0, 1]], [], [], []))
    # Shown 3, 2, 1 and 0 times. In order: (1·0 + 2·1 + 3·2 + 4·3)·2 / (4·6) - 5/4 = 40/24 - 30/24.
    assert tally.values() == pytest.approx({"coverage@2": 3 / 4, "gini@2": 10 / 24, "coverage@1": 1 / 4})


def test_gini_is_half_the_relative_mean_absolute_difference() -> None:
    exposure = np.random.default_rng(0).poisson(3.0, 50)
    differences = np.abs(exposure[:, None] - exposure[None, :]).mean()
    assert gini(exposure) == pytest.approx(differences / (2 * exposure.mean()))


def test_gini_is_0_for_even_exposure_and_nearly_1_for_one_item() -> None:
    assert gini(np.full(5, 7)) == pytest.approx(0)
    assert gini(np.array([0, 0, 9, 0, 0])) == pytest.approx(4 / 5)
    assert gini(np.zeros(5, np.int64)) == 0
    assert coverage(np.array([0, 2, 0, 1])) == 0.5


def test_chunks_of_users_add_up() -> None:
    rng = np.random.default_rng(0)
    lists = np.array([rng.permutation(6)[:4] for _ in range(20)], np.int32)
    targets = sequences(*(rng.permutation(6)[: 1 + i % 3].tolist() for i in range(20)))
    sure = rng.random((20, 4)).astype(np.float32)
    names = [f"{family}@{k}" for family, metric in METRICS.items() if not metric.is_cost for k in (1, 3, 4)]
    whole, chunked = Tally(names, statistics()), Tally(names, statistics())
    assert whole.wants_probabilities
    assert not Tally(["ndcg@3", "gini@2"], statistics()).wants_probabilities
    whole.add(Ranked.of(lists, targets, targets, sure))
    for start, stop in ((0, 1), (1, 8), (8, 20)):
        rows = targets.rows(start, stop)
        chunked.add(Ranked.of(lists[start:stop], rows, rows, sure[start:stop]))
    assert chunked.values() == pytest.approx(whole.values())
    assert list(whole.values()) == names


def test_a_tally_needs_lists_of_its_longest_cut_off() -> None:
    assert Tally(["ndcg@10", "hr@3", "coverage@20"], statistics()).length == 20


def test_the_interval_is_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(0).choice([0, 0.43, 0.63, 1.0], 400, p=[0.8, 0.1, 0.05, 0.05])
    low, high = interval(values)
    theirs = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    error = values.std() / 20  # the standard error of the mean of 400
    assert low == pytest.approx(theirs.low, abs=0.3 * error)
    assert high == pytest.approx(theirs.high, abs=0.3 * error)


def test_the_interval_does_not_change_from_one_call_to_the_next() -> None:
    values = np.random.default_rng(0).random(50)
    assert interval(values) == interval(values)


def test_the_interval_is_the_same_however_many_users_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values, rng = np.random.default_rng(0).random(50), np.random.default_rng(0)
    means = [values[rng.integers(0, 50, 50)].mean() for _ in range(1000)]
    for drawn in (20_000, 350, 1):
        monkeypatch.setattr(metrics, "DRAWN", drawn)
        assert interval(values) == pytest.approx(np.percentile(means, [2.5, 97.5]))


def test_nobody_has_no_interval() -> None:
    assert all(math.isnan(bound) for bound in interval(np.empty(0)))


def test_coverage_and_gini_have_no_value_for_a_user() -> None:
    tally = Tally(["ndcg@2", "coverage@2", "gini@2"], statistics())
    tally.add(ranked([[0, 1]], [0]))
    assert list(tally.per_user()) == ["ndcg@2"]


GROUPS = {"town": np.array(["Ulm", "Rom", "Ulm", "Rom", "Bonn", "", "Ulm"])}
"""Of seven users, two of whom are the only ones of their town, one without a name."""


def test_a_group_has_the_mean_of_its_users_and_a_gap_is_between_the_best_and_the_worst_served_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The target is in the first place for users 0, 3 and 5, in the second for user 1, nowhere for 2, 4 and 6.
    lists = [[0, 1], [1, 0], [1, 2], [0, 2], [1, 2], [0, 1], [1, 2]]
    names = ["hr@2[town=Ulm]", "mrr@2[town=Rom]", "mrr@2[town]", "mrr@2", "hr@1[town=Bonn]", "mrr@1[town]", "gini@2"]
    tally = Tally(names, statistics(), GROUPS)
    tally.add(ranked(lists[:3], *[[0]] * 3))
    tally.add(ranked(lists[3:], *[[0]] * 4))
    values = tally.values()
    assert list(values) == names
    assert values["hr@2[town=Ulm]"] == pytest.approx(1 / 3)
    assert values["mrr@2[town=Rom]"] == pytest.approx((1 / 2 + 1) / 2)
    assert values["mrr@2[town]"] == pytest.approx(3 / 4 - 0)  # Rom and Bonn; who has no town is in no group
    assert values["mrr@2"] == pytest.approx(3.5 / 7)
    assert values["hr@1[town=Bonn]"] == 0
    assert values["mrr@1[town]"] == pytest.approx(1 / 2 - 0)
    per_user = tally.per_user()
    assert per_user["hr@2[town=Ulm]"].tolist() == [1, 0, 0]
    assert set(per_user) == set(names) - {"mrr@2[town]", "mrr@1[town]", "gini@2"}  # gaps have no user bootstrap
    monkeypatch.setattr(metrics, "LEAST_SHARE", 2 / 7)
    assert tally.values()["mrr@2[town]"] == pytest.approx(3 / 4 - 1 / 3)  # Bonn is too small to count


def test_a_group_of_nobody_has_no_value() -> None:
    tally = Tally(["hr@1[town=Rom]", "hr@1[town]"], statistics(), {"town": np.array(["", ""])})
    tally.add(ranked([[0], [1]], [0], [0]))
    assert math.isnan(tally.values()["hr@1[town=Rom]"])
    assert math.isnan(tally.values()["hr@1[town]"])


def test_a_gap_is_to_be_minimised_whatever_it_is_a_gap_of() -> None:
    wanted = {"ndcg@10[gender]": "minimise", "ndcg@10[gender=F]": "maximise", "calibration@5[gender=F]": "minimise"}
    assert {name: parse_metric(name).direction for name in wanted} == wanted
    found = parse_metric("ndcg@10[home town=New York]")
    assert (found.plain, found.k, found.by, found.group) == ("ndcg@10", 10, "home town", "New York")


def test_what_is_to_be_minimised() -> None:
    wanted = ["calibration", "gini", "ece", "parameters", "latency", "training"]
    assert [name for name, metric in METRICS.items() if metric.direction == "minimise"] == wanted


def test_costs_have_no_cut_off() -> None:
    assert [name for name, metric in METRICS.items() if metric.is_cost] == ["parameters", "latency", "training"]
    assert parse_metric("latency").direction == "minimise"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ndgc@10", "metric 'ndgc' is unknown; did you mean 'ndcg'?"),
        ("xyz@3", "metric 'xyz' is unknown; expected one of: calibration, "),
        ("ndcg", "metric 'ndcg' has no cut-off; write it as in 'ndcg@10'"),
        ("ndcg@0", "has no cut-off"),
        ("ndcg@-1", "has no cut-off"),
        ("NDCG@10", "has no cut-off"),
        ("ndcg@10 ", "has no cut-off"),
        ("novelt", "write it as in 'ndcg@10' or 'ndcg@10[gender]'; did you mean 'novelty'?"),
        ("ndcg@10[]", "has no cut-off"),
        ("ndcg@10[gender=]", "has no cut-off"),
        ("latency@10", "metric 'latency@10' is a cost, which has no cut-off; expected 'latency'"),
        ("latency[gender]", "has no cut-off"),
        ("ece@10[gender]", "is one of all lists together, which has no groups; expected 'ece@10'"),
        ("coverage@10[gender]", "is one of all lists together, which has no groups; expected 'coverage@10'"),
    ],
)
def test_a_wrong_name_says_what_was_expected(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_metric(name)
    assert message in str(raised.value)
