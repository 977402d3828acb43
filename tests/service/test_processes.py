import threading
from pathlib import Path

import pytest
from running import PATIENCE

from pareto_search.errors import TroubleError
from pareto_search.service.processes import kept


def test_a_full_disk_at_the_first_look_keeps_no_service_from_starting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    looks: list[None] = []
    gone_on = threading.Event()

    def look() -> None:
        looks.append(None)
        if len(looks) == 1:
            raise TroubleError("no space left on the disk")
        gone_on.set()

    with kept(tmp_path, "searches", look):
        assert gone_on.wait(PATIENCE)
    assert "pareto-search: searches: no space left on the disk" in capsys.readouterr().err


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
