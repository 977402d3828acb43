"""The likeliest weights of a blend: known in closed form, and by what every maximum has in common."""

import numpy as np
import pytest

from pareto_search.recsys.likelihood import LEAST, Scored, likeliest
from pareto_search.recsys.split import Sequences

HALF_LOG_3 = np.log(3) / 2


def targets(*items: int) -> Sequences:
    """One for each user."""
    return Sequences(np.arange(len(items) + 1), np.array(items, np.int32), None)


def scores(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


RIGHT_THRICE = scores([1, -1], [1, -1], [1, -1], [1, -1])
NOTHING = np.zeros_like(RIGHT_THRICE)
WANTED = targets(0, 0, 0, 1)


def chunk(model: np.ndarray, wanted: Sequences = WANTED, **parts: np.ndarray) -> list[Scored]:
    return [({"model": model, **parts}, wanted)]


def test_who_is_right_three_times_of_four_is_made_as_sure_of_it() -> None:
    # p = 1 / (1 + exp(-2θ)) is 3/4 where θ is log(3) / 2.
    assert likeliest(chunk(RIGHT_THRICE), ["sharpness"], {}) == {"sharpness": pytest.approx(HALF_LOG_3, rel=1e-3)}
    found = likeliest(chunk(NOTHING, ease=RIGHT_THRICE), ["ease"], {"sharpness": 1.0})
    assert found == {"ease": pytest.approx(HALF_LOG_3, rel=1e-3)}


def test_weights_are_relative_to_the_sharpness() -> None:
    found = likeliest(chunk(NOTHING, ease=RIGHT_THRICE), ["ease"], {"sharpness": 2.0})
    assert found == {"ease": pytest.approx(HALF_LOG_3 / 2, rel=1e-3)}


def test_a_sharpness_that_is_searched_suits_the_weights() -> None:
    mixed = scores([1, -1], [1, -1], [-1, 1], [1, -1])
    both = likeliest(chunk(RIGHT_THRICE, ease=mixed), ["sharpness", "ease"], {})
    assert likeliest(chunk(RIGHT_THRICE, ease=mixed), ["ease"], {}) == {"ease": pytest.approx(both["ease"])}


def test_each_user_counts_as_one() -> None:
    # One user has the first item, and another one the second and the third.
    wanted = Sequences(np.array([0, 1, 3]), np.array([0, 1, 2], np.int32), None)
    model = scores([1, 0, 0], [1, 0, 0])
    # Of two votes one is for the first item: e^θ / (e^θ + 2) = 1/2.
    assert likeliest(chunk(model, wanted), ["sharpness"], {}) == {"sharpness": pytest.approx(np.log(2), rel=1e-3)}


def test_what_is_fixed_is_blended_in_before() -> None:
    found = likeliest(chunk(NOTHING, ease=RIGHT_THRICE), ["sharpness"], {"ease": 0.5})
    assert found == {"sharpness": pytest.approx(2 * HALF_LOG_3, rel=1e-3)}


def test_who_is_mostly_wrong_has_no_say() -> None:
    assert likeliest(chunk(RIGHT_THRICE, ease=-RIGHT_THRICE), ["ease"], {"sharpness": 0.1})["ease"] == 0.0
    assert likeliest(chunk(-RIGHT_THRICE), ["sharpness"], {}) == {"sharpness": LEAST}


def test_what_must_not_be_shown_counts_nowhere() -> None:
    barred = np.full((4, 1), -np.inf, np.float32)
    wide = np.concatenate([RIGHT_THRICE, barred], 1)
    nothing = np.concatenate([NOTHING, barred], 1)
    assert likeliest(chunk(nothing, ease=wide), ["ease"], {"sharpness": 1.0})["ease"] == pytest.approx(
        HALF_LOG_3, rel=1e-3
    )


def test_nothing_to_fit() -> None:
    assert likeliest(chunk(RIGHT_THRICE), [], {"sharpness": 1.0}) == {}


def test_at_the_maximum_each_score_is_expected_to_be_what_it_is_of_the_targets() -> None:
    rng = np.random.default_rng(0)
    m, n = 400, 30
    model, ease, text = (rng.normal(size=(m, n)).astype(np.float32) for _ in range(3))
    utility = 1.5 * model + 0.6 * ease + rng.gumbel(size=(m, n))
    counts = rng.integers(1, 4, m)
    best = [row[:count] for row, count in zip(np.argsort(-utility, axis=1), counts, strict=True)]
    wanted = Sequences(np.cumsum([0, *counts]), np.concatenate(best).astype(np.int32), None)
    halves = []
    for rows in (slice(0, 150), slice(150, m)):
        part = wanted.rows(rows.start, rows.stop)
        halves.append(({"model": model[rows], "ease": ease[rows], "text": text[rows]}, part))
    found = likeliest(halves, ["sharpness", "ease", "text"], {})

    logits = found["sharpness"] * (model + found["ease"] * ease + found["text"] * text)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    for name, x in (("sharpness", model), ("ease", ease), ("text", text)):
        expected = (p * x).sum(1).mean()
        seen = np.mean([x[user, wanted.of(user)].mean() for user in range(m)])
        assert expected == pytest.approx(seen, abs=2e-3) if found[name] else expected >= seen
    assert found["ease"] == pytest.approx(0.4, abs=0.1)
