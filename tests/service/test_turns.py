import pytest

from pareto_search.service.record import ConflictError
from pareto_search.service.turns import Turns


def test_whoever_would_make_the_queue_too_long_is_told() -> None:
    turns = Turns(most=1)
    with turns.taken():
        for _ in range(2):
            with pytest.raises(ConflictError, match="too many wait"), turns.taken():
                pass
    with turns.taken():
        pass


def test_several_may_have_their_turn_at_once() -> None:
    turns = Turns(most=2, at_once=2)
    with turns.taken(), turns.taken(), pytest.raises(ConflictError), turns.taken():
        pass
