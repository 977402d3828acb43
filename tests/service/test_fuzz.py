"""The service under a few requests of every form; `python -m benchmarks.fuzz` sends ten thousand."""

import pytest

pytest.importorskip("schemathesis")

from benchmarks.fuzz import fuzz


def test_no_request_of_whatever_form_is_answered_by_a_mistake() -> None:
    found = fuzz(230)
    assert found.wrong == []
    assert found.statuses.total() >= 200
    assert len(found.operations) >= 23
