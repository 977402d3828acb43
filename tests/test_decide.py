import pytest

from pareto_search.decide import Choice, knee, parse_preferences, prefer, where
from pareto_search.errors import ConfigError, RunError
from pareto_search.objective import Constraint, Objective

NDCG = Objective("ndcg@10", "maximise", 0.0, 1.0)
ILD = Objective("ild@10", "maximise", 0.0, 1.0)
GINI = Objective("gini@10", "minimise", 1.0, 0.0)
BOTH = [NDCG, ILD]


def front(*points: tuple[float, float], names: tuple[str, str] = ("ndcg@10", "ild@10")) -> list[dict[str, float]]:
    return [dict(zip(names, point, strict=True)) for point in points]


#  ild
#  0.9  0
#  0.8        1
#  0.6            2        regrets: (1, 0) (.5, .2) (.25, .6) (0, 1)
#  0.4               3     sums:    1      .7      .85      1
#      .02   .06 .08 .10   ndcg
CURVE = front((0.02, 0.9), (0.06, 0.8), (0.08, 0.6), (0.10, 0.4))


def test_the_knee_gives_up_least_in_total() -> None:
    assert knee(CURVE, BOTH) == Choice(
        1,
        "knee: gives up 0.70 of the front's ranges in total, the least of 4 entries; "
        "ndcg@10 0.06 (best 0.1), ild@10 0.8 (best 0.9)",
    )


def test_the_knee_does_not_depend_on_units_or_directions() -> None:
    # The same curve, with ndcg in thousandths and the second objective to be minimised.
    scaled = front((20, 0.1), (60, 0.2), (80, 0.4), (100, 0.6), names=("ndcg@10", "gini@10"))
    choice = knee(scaled, [NDCG, GINI])
    assert choice.index == 1
    assert "gini@10 0.2 (best 0.1)" in choice.reason


def test_the_knee_of_a_straight_front_is_its_middle() -> None:
    assert knee(front((0.0, 0.3), (0.1, 0.2), (0.2, 0.1), (0.3, 0.0), (0.15, 0.15)), BOTH).index == 4


def test_the_knee_counts_every_objective() -> None:
    # Regrets: (0, 1, 1), (1, 0, 0), (0.5, 0.5, 0.5): sums 2, 1, 1.5.
    values = [{"ndcg@10": a, "ild@10": b, "gini@10": c} for a, b, c in ((1, 0, 1), (0, 1, 0), (0.5, 0.5, 0.5))]
    assert knee(values, [NDCG, ILD, GINI]).index == 1


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"ndcg@10": 1}, 3),
        ({"ild@10": 1}, 0),
        ({"ndcg@10": 1, "ild@10": 1}, 1),  # largest: .5, .25, .3, .5
        ({"ndcg@10": 3, "ild@10": 1}, 2),  # .75, .375, .1875, .25
        ({"ndcg@10": 1, "ild@10": 9}, 0),  # .1, .18, .54, .9
        ({"ndcg@10": 0, "ild@10": 0.5}, 0),
    ],
)
def test_a_preference_takes_the_smallest_largest_weighted_regret(weights: dict[str, float], expected: int) -> None:
    assert prefer(CURVE, BOTH, weights).index == expected


def test_a_preference_says_what_it_weighed() -> None:
    assert prefer(CURVE, BOTH, {"ndcg@10": 3, "ild@10": 1}).reason == (
        "preference ndcg@10=3, ild@10=1: the smallest weighted shortfall (0.19) of 4 entries; "
        "ndcg@10 0.08 (best 0.1), ild@10 0.6 (best 0.9)"
    )


def test_a_preference_reaches_a_concave_part_of_the_front() -> None:
    # The middle lies below the line between the extremes, where no weighted sum finds it.
    assert prefer(front((1.0, 0.0), (0.4, 0.4), (0.0, 1.0)), BOTH, {"ndcg@10": 1, "ild@10": 1}).index == 1


def test_objectives_without_a_preference_break_ties() -> None:
    assert prefer(front((0.1, 0.4), (0.1, 0.5), (0.0, 0.9)), BOTH, {"ndcg@10": 1}).index == 1


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"ndgc@10": 1.0}, "'ndgc@10' is no objective of this front; did you mean 'ndcg@10'?"),
        ({"ndcg": 1.0}, "did you mean 'ndcg@10'?"),
        ({"ndcg@10": -1.0}, "the weight of ndcg@10 is -1; expected a number of at least 0"),
        ({"ndcg@10": float("inf")}, "the weight of ndcg@10 is inf"),
        ({"ndcg@10": 0.0}, "no weight is positive"),
        ({}, "no weight is positive"),
    ],
)
def test_a_preference_that_does_not_fit_is_refused(weights: dict[str, float], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prefer(CURVE, BOTH, weights)
    assert expected in str(caught.value)


def test_where_takes_the_best_of_those_that_keep_the_constraints() -> None:
    assert where(CURVE, BOTH, [Constraint("ndcg@10", True, 0.05)], "ild@10") == Choice(
        1, "keeps ndcg@10 >= 0.05 (0.06) and has the best ild@10 (0.8) of the 3 of 4 entries that do"
    )


def test_where_minimises_what_is_to_be_minimised() -> None:
    values = front((0.02, 0.5), (0.06, 0.7), (0.08, 0.6), names=("ndcg@10", "gini@10"))
    assert where(values, [NDCG, GINI], [Constraint("ndcg@10", True, 0.05)], "gini@10").index == 2


def test_where_needs_no_constraint() -> None:
    assert where(CURVE, BOTH, [], "ndcg@10") == Choice(3, "has the best ndcg@10 (0.1) of 4 entries")


def test_where_bounds_metrics_that_are_no_objectives() -> None:
    values = [v | {"coverage@10": c} for v, c in zip(CURVE, (0.4, 0.3, 0.2, 0.1), strict=True)]
    constraints = [Constraint("coverage@10", True, 0.2), Constraint("ild@10", False, 0.85)]
    choice = where(values, BOTH, constraints, "ndcg@10")
    assert choice.index == 2
    assert "keeps coverage@10 >= 0.2 (0.2) and ild@10 <= 0.85 (0.6)" in choice.reason


def test_where_breaks_ties_by_the_other_objectives() -> None:
    assert where(front((0.1, 0.4), (0.1, 0.5), (0.0, 0.9)), BOTH, [], "ndcg@10").index == 1


def test_a_bound_that_is_told_is_kept_by_the_entry_whatever_its_size() -> None:
    costs = [{"ndcg@10": 0.1, "parameters": 4984193.0}, {"ndcg@10": 0.2, "parameters": 5984193.0}]
    objectives = [BOTH[0], Objective("parameters", "minimise", 1e7, 0.0)]
    with pytest.raises(RunError) as caught:
        where(costs, objectives, [Constraint("parameters", False, 1234567.0)], "ndcg@10")
    assert "no entry keeps parameters <= 1234567; " in str(caught.value)
    assert "has parameters 4984193; relax" in str(caught.value)


def test_an_unreachable_bound_tells_the_nearest_reachable_one() -> None:
    with pytest.raises(RunError) as caught:
        where(CURVE, BOTH, [Constraint("ndcg@10", True, 0.2)], "ild@10")
    assert str(caught.value) == (
        "no entry keeps ndcg@10 >= 0.2; the nearest of 4 entries has ndcg@10 0.1; relax the bounds to that"
    )


def test_bounds_that_clash_are_relaxed_together() -> None:
    # Violations as shares of the ranges (.08, .5): entry 1 misses (.25, 0), entry 2 (0, .4), the others more.
    constraints = [Constraint("ndcg@10", True, 0.08), Constraint("ild@10", True, 0.8)]
    with pytest.raises(RunError, match=r"the nearest of 4 entries has ndcg@10 0\.06 and ild@10 0\.8;"):
        where(CURVE, BOTH, constraints, "ild@10")


@pytest.mark.parametrize(("at_least", "bound", "told"), [(True, 0.5, 0.1234), (False, 0.1, 0.1235)])
def test_the_value_told_is_rounded_so_that_it_can_be_kept(at_least: bool, bound: float, told: float) -> None:
    values = front((0.12345, 0.5))
    with pytest.raises(RunError, match=f"ndcg@10 {told};"):
        where(values, BOTH, [Constraint("ndcg@10", at_least, bound)], "ild@10")
    assert where(values, BOTH, [Constraint("ndcg@10", at_least, told)], "ild@10").index == 0


def test_where_knows_the_names_that_were_scored() -> None:
    with pytest.raises(ConfigError, match=r"'ild@1' is no objective of this front; did you mean 'ild@10'\?"):
        where(CURVE, BOTH, [], "ild@1")
    with pytest.raises(ConfigError, match="'coverage@10' is no scored metric of this front"):
        where(CURVE, BOTH, [Constraint("coverage@10", True, 0.1)], "ild@10")


def test_one_entry_is_chosen_by_every_rule() -> None:
    only = front((0.1, 0.4))
    assert knee(only, BOTH).reason.startswith(
        "knee: gives up 0.00 of the front's ranges in total, the least of 1 entry"
    )
    assert prefer(only, BOTH, {"ndcg@10": 1}).index == 0
    assert where(only, BOTH, [], "ild@10") == Choice(0, "has the best ild@10 (0.4) of 1 entry")


def test_ties_go_to_the_first_entry() -> None:
    for values in (front((0.1, 0.4), (0.2, 0.3)), front((0.1, 0.4), (0.1, 0.4))):
        assert knee(values, BOTH).index == 0
        assert prefer(values, BOTH, {"ndcg@10": 1, "ild@10": 1}).index == 0


def test_an_empty_front_has_nothing_to_choose() -> None:
    with pytest.raises(RunError, match="the front is empty: no entry keeps all"):
        knee([], BOTH)
    with pytest.raises(RunError, match="the front is empty"):
        prefer([], BOTH, {"ndcg@10": 1})
    with pytest.raises(RunError, match="the front is empty"):
        where([], BOTH, [], "ild@10")


def test_preferences_are_read_from_text() -> None:
    assert parse_preferences("ndcg@10=3, ild@10 = 0.5") == {"ndcg@10": 3.0, "ild@10": 0.5}
    assert parse_preferences("ndcg@10[gender=F]=3,ndcg@10[gender]=1") == {"ndcg@10[gender=F]": 3, "ndcg@10[gender]": 1}
    assert parse_preferences("ild@5=1,hr@5[town=Ulm, Donau]=2") == {"ild@5": 1, "hr@5[town=Ulm, Donau]": 2}


@pytest.mark.parametrize("text", ["", "ndcg@10", "ndcg@10=", "ndcg@10=much", "=3", "ndcg@10=3,", "ndcg@10=nan"])
def test_text_that_is_no_preference_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not of the form 'ndcg@10=3,ild@10=1'"):
        parse_preferences(text)


def test_a_preference_for_the_same_metric_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="names ndcg@10 twice"):
        parse_preferences("ndcg@10=3,ndcg@10=1")
