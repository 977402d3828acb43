"""The inner search: serving settings of one model that together cover most hypervolume."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from pareto_search.archive import hypervolume
from pareto_search.candidate import Genes
from pareto_search.objective import Constraint, Objective, Values
from pareto_search.recsys.inner_search import FIRST, search_settings
from pareto_search.space import Gene, SearchSpace

OBJECTIVES = [Objective("up", "maximise", 0.0, 1.0), Objective("across", "maximise", 0.0, 1.0)]
GENES = (Gene("diversity", "real", "serving", high=0.98), Gene("ease", "real", "serving"))
SPACE = SearchSpace(GENES, {}, {g.name: g.role for g in GENES})


def circle(settings: Sequence[Genes]) -> list[dict[str, float]]:
    """A curve of trade-offs: the more diversity the less of `up`; blending is a waste."""
    return [
        {
            "up": 0.9 - float(s.get("diversity", 0)) ** 2 / 2 - 0.1 * float(s.get("ease", 0)),
            "across": 0.1 + 0.8 * float(s.get("diversity", 0)),
        }
        for s in settings
    ]


def search(count: int, known: Sequence[Genes] = (), seed: int = 0) -> list[Genes]:
    return [s for s, _ in search_settings(circle, SPACE, OBJECTIVES, count=count, seed=seed, known=known)]


@pytest.mark.parametrize("count", [0, 1, 2, 5, 7, 24, 64, 900])
def test_the_model_alone_comes_first_and_the_count_is_kept(count: int) -> None:
    found = search(count)
    assert found[0] == {}
    assert len(found) == count + 1


def test_each_setting_has_its_own_values() -> None:
    found = search_settings(circle, SPACE, OBJECTIVES, count=20, seed=0)
    assert [v for _, v in found] == circle([s for s, _ in found])


def test_settings_stay_within_the_genes_bounds() -> None:
    found = search(64)
    assert all(0 <= float(s.get("diversity", 0)) <= 0.98 and 0 <= float(s.get("ease", 0)) <= 1 for s in found[1:])


def test_known_settings_are_evaluated_first() -> None:
    known = [{"diversity": 0.1, "ease": 0.7}, {"diversity": 0.98, "ease": 0.0}, {"diversity": 0.5, "ease": 1.0}]
    found = search(10, known)
    assert [found[1 + i]["diversity"] for i in range(3)] == pytest.approx([0.1, 0.98, 0.5])
    assert [found[1 + i]["ease"] for i in range(3)] == pytest.approx([0.7, 0.0, 1.0])
    assert len(found) == 11


def test_more_known_settings_than_fit_are_cut() -> None:
    known = [{"diversity": i / 10, "ease": 0.5} for i in range(9)]
    assert [s.get("diversity", 0) for s in search(4, known)] == pytest.approx([0, 0, 0.1, 0.2, 0.3])


def test_a_seed_decides_everything() -> None:
    assert search(24) == search(24)
    assert search(24) != search(24, seed=1)


def test_without_serving_genes_only_the_model_alone_is_evaluated() -> None:
    asked: list[Sequence[Genes]] = []

    def evaluate(settings: Sequence[Genes]) -> list[dict[str, float]]:
        asked.append(settings)
        return [{"up": 0.5, "across": 0.5} for _ in settings]

    nothing = SearchSpace((), {}, {})
    assert search_settings(evaluate, nothing, OBJECTIVES, count=8, seed=0) == [({}, {"up": 0.5, "across": 0.5})]
    assert [len(s) for s in asked] == [1]


def test_a_fixed_gene_holds_in_every_setting_but_the_model_alone() -> None:
    fixed = SearchSpace(GENES[:1], {"ease": 0.3}, SPACE.roles)
    alone, *others = [s for s, _ in search_settings(circle, fixed, OBJECTIVES, count=9, seed=0)]
    assert alone == {}
    assert {s.get("ease", 0) for s in others} == {0.3}
    assert others[0] == {"ease": 0.3}
    assert len(others) == 9


def test_a_setting_that_lacks_what_varies_is_not_known() -> None:
    known = [{"ease": 0.1}, {"diversity": 0.5, "ease": 0.2}]
    assert search(4, known)[1] == pytest.approx({"diversity": 0.5, "ease": 0.2})


def test_later_rounds_look_near_what_was_good() -> None:
    # Blending only costs here, so settings that cover much have little of it.
    found = search(64)
    blended = [float(s.get("ease", 0)) for s in found]
    assert np.mean(blended[-16:]) < np.mean(blended[1:17]) / 2


@pytest.mark.parametrize("seed", range(5))
def test_few_settings_cover_nearly_what_there_is(seed: int) -> None:
    # All of the curve covers .1 x .9 before it begins, and .8 (.9 x - x^3 / 6) at x = .98: .670.
    whole = 0.09 + 0.8 * (0.9 * 0.98 - 0.98**3 / 6)
    found = hypervolume(circle(search(24, seed=seed)), OBJECTIVES)
    assert 0.95 * whole < found < whole
    # Settings drawn by chance lie below the curve.
    anywhere = np.random.default_rng(seed).random((24, 2)) * [0.98, 1.0]
    chance = hypervolume(circle([{"diversity": x, "ease": y} for x, y in anywhere.tolist()]), OBJECTIVES)
    assert whole - found < 0.6 * (whole - chance)


@pytest.mark.parametrize("seed", range(5))
def test_what_a_constraint_forbids_is_seldom_evaluated(seed: int) -> None:
    least = [Constraint("across", True, 0.66)]  # a diversity of .7 at least
    found = search_settings(circle, SPACE, OBJECTIVES, constraints=least, count=40, seed=seed)
    assert sum(v["across"] >= 0.66 for _, v in found[1 + FIRST :]) > 0.8 * (40 - FIRST)


@pytest.mark.parametrize("seed", range(5))
def test_where_nothing_is_good_enough_it_goes_where_something_may_be(seed: int) -> None:
    # Good enough is a diversity of .95 at least with an ease of .39 at most, and .1 at a diversity of .98: one setting
    # in 130.
    high = [Objective("up", "maximise", 0.41, 1.0), Objective("across", "maximise", 0.86, 1.0)]
    found = search_settings(circle, SPACE, high, count=40, seed=seed)
    assert hypervolume([v for _, v in found], high) > 0


def test_what_is_there_already_is_not_looked_for_again() -> None:
    there = circle([{"diversity": x} for x in np.linspace(0, 0.49, 50).tolist()])
    count = 32

    def beyond(beside: Sequence[Values]) -> int:
        found = search_settings(circle, SPACE, OBJECTIVES, count=count, seed=0, beside=beside)
        return sum(float(s["diversity"]) > 0.49 for s, _ in found[1 + FIRST :])

    assert beyond(there) > 0.8 * (count - FIRST)
    assert beyond([]) < beyond(there)


def test_where_nothing_can_be_added_it_looks_near_what_is_good() -> None:
    # All of the curve is there, so whatever is foretold adds nothing; good is a little of everything without ease.
    there = circle([{"diversity": x} for x in np.linspace(0, 0.98, 400).tolist()])
    found = search_settings(circle, SPACE, OBJECTIVES, count=40, seed=0, beside=there)
    assert np.mean([float(s["ease"]) for s, _ in found[-24:]]) < 0.2  # anywhere it would be .5


def test_a_constraint_that_all_just_keep_forbids_nothing() -> None:
    def with_size(settings: Sequence[Genes]) -> list[dict[str, float]]:
        return [v | {"parameters": 22_713_216.1} for v in circle(settings)]

    def found(*constraints: Constraint) -> list[Genes]:
        return [s for s, _ in search_settings(with_size, SPACE, OBJECTIVES, constraints=constraints, count=24, seed=0)]

    assert found(Constraint("parameters", False, 22_713_216.1)) == found()


@pytest.mark.parametrize("hole", [0.3, 1.0])
def test_settings_without_a_value_do_no_harm(hole: float) -> None:
    def torn(settings: Sequence[Genes]) -> list[dict[str, float]]:
        return [
            v | ({"up": math.nan} if float(s.get("diversity", 0)) <= hole else {})
            for s, v in zip(settings, circle(settings), strict=True)
        ]

    found = search_settings(torn, SPACE, OBJECTIVES, count=24, seed=0)
    assert len(found) == 25
    assert math.isfinite(found[-1][1]["up"]) == (hole < 1)


@pytest.mark.parametrize("known", [[(0.5, 0.0)] * 12, [(x / 12, 0.5) for x in range(12)]])
def test_known_settings_in_one_place_or_on_one_line_are_enough(known: Sequence[tuple[float, float]]) -> None:
    settings = [{"diversity": x, "ease": y} for x, y in known]
    found = search(36, settings)
    assert len({tuple(s.items()) for s in found}) >= 1 + 1 + 24
    assert hypervolume(circle(found), OBJECTIVES) > hypervolume(circle(settings), OBJECTIVES) + 0.05
