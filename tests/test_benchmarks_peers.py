import math

import pytest

from benchmarks.peers.curve import Comparison, Curve, kept, reached

PEER: Curve = [(10.0, 0.10), (20.0, 0.195), (30.0, 0.17), (40.0, 0.20)]
"""Ends with 0.20, of which 95 % is 0.19: first there after 20 s, though it falls below once more."""


def test_a_value_is_reached_when_the_curve_first_has_it() -> None:
    assert reached(PEER, 0.10) == 10.0
    assert reached(PEER, 0.18) == 20.0
    assert reached(PEER, 0.30) == math.inf
    assert reached([], 0.10) == math.inf


def test_a_value_is_kept_from_the_last_time_that_the_curve_rises_to_it() -> None:
    assert kept(PEER, 0.10) == 10.0
    assert kept(PEER, 0.18) == 40.0
    assert kept(PEER, 0.30) == math.inf
    assert kept([(5.0, 0.3), (6.0, 0.1)], 0.2) == math.inf
    assert kept([], 0.10) == math.inf


def test_the_peer_has_to_get_there_and_we_have_to_stay() -> None:
    ours = [(5.0, 0.1), (8.0, 0.2), (12.0, 0.15), (16.0, 0.21), (25.0, 0.22)]

    comparison = Comparison.of(PEER, ours)

    # There after 8 s and gone after 12 s, for good after 16 s: 20 / 16.
    assert comparison == Comparison(trials=4, final=0.20, seconds=20.0, ours=16.0, ratio=1.25)


def test_a_value_that_we_never_keep_counts_as_no_speed_at_all() -> None:
    comparison = Comparison.of(PEER, [(5.0, 0.3), (30.0, 0.1)])

    assert comparison is not None
    assert (comparison.ours, comparison.ratio) == (math.inf, 0.0)


@pytest.mark.parametrize("curve", [[], [(10.0, 0.0)]])
def test_a_peer_that_found_nothing_is_not_compared(curve: Curve) -> None:
    assert Comparison.of(curve, PEER) is None
