import os
import signal
from pathlib import Path

from running import Finished, eventually, interruptible, started

from benchmarks import small


def test_ctrl_c_ends_a_search_with_one_line_that_tells_how_to_go_on(undisturbed: Finished, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = small.write_config(undisturbed.config.with_name("long.yaml"), candidates=5000)
    with interruptible(), started("run", config, "--out", run) as driver:
        eventually(driver.at_work)
        os.killpg(driver.process.pid, signal.SIGINT)  # to the whole group, as a terminal does
        ended = driver.end()
        eventually(lambda: not driver.heavy(), patience=60)
    assert ended.code == 130
    assert ended.err.strip() == f"pareto-search: stopped; go on with: pareto-search resume {run}"
    assert "Traceback" not in ended.out
