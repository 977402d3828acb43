import math

import pytest

from pareto_search.errors import ConfigError
from pareto_search.objective import Constraint, Objective, is_feasible, violations

ACCURACY = Objective("ndcg@10", "maximise", reference=0.02, ideal=0.12)
LATENCY = Objective("seconds", "minimise", reference=10.0, ideal=2.0)
COVERAGE = Constraint("coverage@10", at_least=True, bound=0.05)


@pytest.mark.parametrize(
    ("objective", "value", "expected"),
    [
        (ACCURACY, 0.02, 0.0),
        (ACCURACY, 0.12, 1.0),
        (ACCURACY, 0.07, 0.5),
        (ACCURACY, 0.0, -0.2),
        (ACCURACY, 0.22, 2.0),
        (LATENCY, 10.0, 0.0),
        (LATENCY, 2.0, 1.0),
        (LATENCY, 14.0, -0.5),
    ],
)
def test_normalised_values_are_0_at_the_reference_and_1_at_the_ideal(
    objective: Objective, value: float, expected: float
) -> None:
    assert objective.normalise(value) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("coverage@10 >= 0.05", Constraint("coverage@10", True, 0.05)),
        ("  novelty@5<=1e-3 ", Constraint("novelty@5", False, 0.001)),
        ("seconds <= 20", Constraint("seconds", False, 20.0)),
        ("delta >= -0.5", Constraint("delta", True, -0.5)),
        ("ndcg@10[home town=New York] >= 0.1", Constraint("ndcg@10[home town=New York]", True, 0.1)),
        ("ndcg@10[gender]<=0.02", Constraint("ndcg@10[gender]", False, 0.02)),
    ],
)
def test_constraints_are_read_from_text(text: str, expected: Constraint) -> None:
    assert Constraint.parse(text) == expected


@pytest.mark.parametrize("text", ["", "coverage@10", "coverage@10 > 0.05", "coverage@10 >= e", "0.05 <= coverage@10"])
def test_other_text_is_no_constraint_and_the_error_quotes_it(text: str) -> None:
    with pytest.raises(ConfigError, match=f"'{text}'"):
        Constraint.parse(text)


@pytest.mark.parametrize("text", ["coverage@10 >= 0.05", "seconds <= 20"])
def test_a_constraint_prints_as_it_was_written(text: str) -> None:
    assert str(Constraint.parse(text)) == text


@pytest.mark.parametrize(
    ("at_least", "value", "expected"),
    [(True, 0.4, 0.1), (True, 0.5, 0.0), (True, 0.6, 0.0), (False, 0.6, 0.1), (False, 0.5, 0.0), (False, 0.4, 0.0)],
)
def test_a_violation_is_the_distance_to_the_bound(at_least: bool, value: float, expected: float) -> None:
    assert Constraint("m", at_least, 0.5).violation(value) == pytest.approx(expected)


def test_violations_list_references_in_normalised_units_then_constraints_in_their_own() -> None:
    values = {"ndcg@10": 0.01, "seconds": 18.0, "coverage@10": 0.03}
    assert violations(values, [ACCURACY, LATENCY], [COVERAGE]) == pytest.approx([0.1, 1.0, 0.02])
    large = Constraint("parameters", False, 2e6)
    assert violations({"parameters": 3e6}, [], [large]) == pytest.approx([0.5])


@pytest.mark.parametrize(
    ("ndcg", "coverage", "expected"),
    [
        (0.02, 0.05, True),
        (0.5, 0.9, True),
        (0.0199, 0.05, False),
        (0.02, 0.0499, False),
        (math.nan, 0.9, False),
        (0.5, math.nan, False),
    ],
)
def test_feasible_means_every_reference_and_constraint_is_kept(ndcg: float, coverage: float, expected: bool) -> None:
    assert is_feasible({"ndcg@10": ndcg, "coverage@10": coverage}, [ACCURACY], [COVERAGE]) is expected


def test_nan_violates_infinitely() -> None:
    assert violations({"ndcg@10": math.nan, "coverage@10": math.nan}, [ACCURACY], [COVERAGE]) == [math.inf, math.inf]
