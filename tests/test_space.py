import math

import pytest

from pareto_search.candidate import GeneValue
from pareto_search.errors import ConfigError
from pareto_search.space import Gene, SearchSpace

RATE = Gene("rate", "real", low=1e-4, high=1e-2, log=True)
DROPOUT = Gene("dropout", "real", low=0.0, high=0.5)
DEPTH = Gene("depth", "integer", low=1, high=4)
RANK = Gene("rank", "choice", choices=(2, 4, 8))
TIED = Gene("tied", "boolean")
BLEND = Gene("blend", "real", role="serving")
ALL = [RATE, DROPOUT, DEPTH, RANK, TIED, BLEND]


def same(got: object, expected: GeneValue) -> bool:
    return type(got) is type(expected) and got == expected


@pytest.mark.parametrize(
    ("gene", "u", "expected"),
    [
        (DROPOUT, 0.0, 0.0),
        (DROPOUT, 0.5, 0.25),
        (DEPTH, 0.0, 1),
        (DEPTH, 0.26, 2),
        (DEPTH, 0.999, 4),
        (RANK, 0.0, 2),
        (RANK, 0.34, 4),
        (RANK, 0.999, 8),
        (TIED, 0.49, False),
        (TIED, 0.5, True),
    ],
)
def test_the_unit_interval_covers_every_value_evenly(gene: Gene, u: float, expected: GeneValue) -> None:
    assert same(gene.from_unit(u), expected)


def test_a_log_gene_is_even_in_the_exponent() -> None:
    assert RATE.from_unit(0.5) == pytest.approx(1e-3)
    assert RATE.encode(1e-3) == pytest.approx(-3)
    assert RATE.decode(-3.0) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("gene", "encoded", "expected"),
    [
        (RATE, -9.0, 1e-4),
        (RATE, 0.0, 1e-2),
        (DROPOUT, 0.7, 0.5),
        (DEPTH, 2.6, 3),
        (DEPTH, 9, 4),
        (TIED, 1, True),
        (RANK, 8, 8),
    ],
)
def test_decoding_keeps_the_bounds_and_the_genes_own_type(gene: Gene, encoded: float, expected: GeneValue) -> None:
    assert same(gene.decode(encoded), expected)


def test_a_space_decodes_what_it_encoded() -> None:
    space = SearchSpace.build(ALL, {"dropout": 0.1})
    genes = {"rate": 1e-3, "depth": 2, "rank": 4, "tied": True, "blend": 0.5, "dropout": 0.1}
    encoded = space.encode(genes)
    assert set(encoded) == {"rate", "depth", "rank", "tied", "blend"}
    assert encoded["rate"] == pytest.approx(math.log10(1e-3))
    assert space.decode(encoded) == pytest.approx(genes)


def test_a_point_of_the_unit_cube_becomes_named_values_fixed_ones_included() -> None:
    space = SearchSpace.build([DROPOUT, RANK], {"rank": 8})
    assert space.from_unit([0.5]) == {"dropout": 0.25, "rank": 8}


@pytest.mark.parametrize("length", [0, 2])
def test_a_point_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="zip"):
        SearchSpace.build([DROPOUT], {}).from_unit([0.5] * length)


@pytest.mark.parametrize(
    ("gene", "wish", "low", "high"),
    [(DROPOUT, [0.1, 0.2], 0.1, 0.2), (DEPTH, [2, 8], 2, 8), (RATE, [1e-5, 1e-3], 1e-5, 1e-3)],
)
def test_a_range_replaces_the_default_range(gene: Gene, wish: list[float], low: float, high: float) -> None:
    (narrowed,) = SearchSpace.build([gene], {gene.name: wish}).genes
    assert (narrowed.low, narrowed.high, narrowed.log) == (low, high, gene.log)


@pytest.mark.parametrize(
    ("gene", "wish", "expected"),
    [
        (DROPOUT, 0, 0.0),
        (DEPTH, 3.0, 3),
        (RANK, 4, 4),
        (RANK, 4.0, 4),
        (RANK, [8], 8),
        (RANK, [8, 8], 8),
        (TIED, True, True),
        (TIED, [False], False),
    ],
)
def test_one_value_fixes_a_gene_in_its_own_type(gene: Gene, wish: object, expected: GeneValue) -> None:
    space = SearchSpace.build([gene], {gene.name: wish})
    assert space.genes == ()
    assert same(space.fixed[gene.name], expected)


def test_choices_can_be_narrowed_and_repeats_count_once() -> None:
    assert SearchSpace.build([RANK], {"rank": [8, 2, 8]}).genes[0].choices == (2, 8)


def test_both_values_of_a_boolean_leave_it_as_it_is() -> None:
    assert SearchSpace.build([TIED], {"tied": [True, False]}).genes == (TIED,)


@pytest.mark.parametrize(
    ("gene", "wish"),
    [
        (DROPOUT, [0.2, 0.1]),
        (DROPOUT, [0.1]),
        (DROPOUT, []),
        (DROPOUT, [0.1, 0.2, 0.3]),
        (DROPOUT, "0.1"),
        (DROPOUT, True),
        (DROPOUT, math.nan),
        (DROPOUT, [0.0, math.inf]),
        (DROPOUT, None),
        (DROPOUT, {"low": 0.1}),
        (DEPTH, [1.5, 3]),
        (DEPTH, 1.5),
        (RATE, [0.0, 1e-2]),
        (RATE, 0.0),
        (RANK, 3),
        (RANK, []),
        (RANK, [2, 3]),
        (RANK, None),
        (TIED, 1),
        (TIED, ["yes"]),
    ],
)
def test_a_wish_that_does_not_fit_the_gene_is_refused_by_name(gene: Gene, wish: object) -> None:
    with pytest.raises(ConfigError, match=rf"space\.{gene.name} is .*expected"):
        SearchSpace.build([gene], {gene.name: wish})


def test_an_unknown_gene_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match=r"space\.rnak is no gene; did you mean 'rank'\?"):
        SearchSpace.build(ALL, {"rnak": 8})


def test_a_space_splits_by_role_fixed_genes_included() -> None:
    space = SearchSpace.build([*ALL, Gene("mmr", "real", role="serving")], {"rank": 8, "mmr": 0.3})
    training, serving = space.of("training"), space.of("serving")
    assert [g.name for g in training.genes] == ["rate", "dropout", "depth", "tied"]
    assert training.fixed == {"rank": 8}
    assert [g.name for g in serving.genes] == ["blend"]
    assert serving.fixed == {"mmr": 0.3}
