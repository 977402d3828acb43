import threading
from pathlib import Path

import pytest
from running import PATIENCE

from pareto_search.service.processes import kept


def test_who_looks_after_processes_goes_on_after_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    looks: list[None] = []
    gone_on = threading.Event()

    def look() -> None:
        looks.append(None)
        if len(looks) == 2:
            raise ZeroDivisionError("a mistake")
        if len(looks) == 3:
            gone_on.set()

    with kept(tmp_path, "searches", look):
        assert gone_on.wait(PATIENCE)
    assert "ZeroDivisionError: a mistake" in capsys.readouterr().err
