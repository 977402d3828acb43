import json
import shutil
import signal
from contextlib import closing
from pathlib import Path

from running import Driver, Finished, eventually, pareto_search, started

from benchmarks import kills
from pareto_search.store import Store

KILLS = 3


def killed(driver: Driver, run: Path, count: int) -> dict[str, tuple[int, int]]:
    """Kills it in the middle of a candidate once so many have finished, and says which have."""
    eventually(lambda: len(kills.finished(run)) >= count and driver.at_work())
    driver.process.send_signal(signal.SIGKILL)
    driver.process.wait()
    return kills.finished(run)


def test_a_search_whose_driver_is_killed_again_and_again_ends_as_if_it_had_not(
    undisturbed: Finished, tmp_path: Path
) -> None:
    run, known = tmp_path / "run", dict[str, tuple[int, int]]()
    for _ in range(KILLS):
        with started("run", undisturbed.config, "--out", run) as driver:
            now = killed(driver, run, len(known) + 1)
        assert {name: now[name] for name in known} == known
        known = now
    ended = pareto_search("run", undisturbed.config, "--out", run)
    assert ended.code == 0, ended.err
    assert kills.essence(run) == kills.essence(undisturbed.run)
    assert kills.attempts_after_the_end(run) == 0


def test_a_driver_killed_in_the_middle_of_a_candidate_leaves_no_worker_and_is_resumed(
    undisturbed: Finished, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with started("run", undisturbed.config, "--out", run) as driver:
        before = killed(driver, run, 2)
        eventually(lambda: not driver.heavy(), patience=60)
    ended = pareto_search("resume", run)
    assert ended.code == 0, ended.err
    assert kills.essence(run) == kills.essence(undisturbed.run)
    after = kills.finished(run)
    assert {name: after[name] for name in before} == before
    assert kills.attempts_after_the_end(run) == 0


def test_a_driver_killed_before_its_first_candidate_can_be_started_again(undisturbed: Finished, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with started("run", undisturbed.config, "--out", run) as driver:
        eventually((run / "search.db").exists)
        driver.process.send_signal(signal.SIGKILL)
    (run / "search.yaml").unlink(missing_ok=True)  # as if it had come a moment earlier
    ended = pareto_search("run", undisturbed.config, "--out", run)
    assert ended.code == 0, ended.err
    assert kills.essence(run) == kills.essence(undisturbed.run)


def test_a_driver_killed_while_it_fits_the_other_towers_goes_on_with_them(
    undisturbed: Finished, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with started("run", undisturbed.config, "--out", run) as driver:
        assert driver.process.stdout is not None
        assert any("Fitting the other towers" in line for line in driver.process.stdout)
        driver.process.send_signal(signal.SIGKILL)
        driver.process.wait()
    assert kills.finished(run).keys() == {"e0000"}
    with closing(Store.open(run / "search.db")) as store:
        assert "early-start" in store.fact("components")
    ended = pareto_search("resume", run)
    assert ended.code == 0, ended.err
    assert kills.essence(run) == kills.essence(undisturbed.run)
    assert not (run / "components" / "early-start").exists()


def test_a_driver_killed_before_the_baselines_are_known_finds_them_when_it_is_resumed(
    undisturbed: Finished, tmp_path: Path
) -> None:
    run = undisturbed.copy(tmp_path / "run")
    (run / "front.json").unlink()
    store = Store.open(run / "search.db")
    components, curves = store.fact("components"), store.fact("curves")
    for name in ("sasrec", "text"):  # an older release did without the text
        shutil.rmtree(run / "components" / name)
        del components[name]
    with store.transaction() as record:
        record.put_fact("components", components)
        record.put_fact("curves", {"warm-start": curves["warm-start"]})
        record.put_fact("baselines", None)
    store.close()
    ended = pareto_search("resume", run)
    assert ended.code == 0, ended.err
    assert kills.essence(run) == kills.essence(undisturbed.run)
    fronts = [json.loads((folder / "front.json").read_text()) for folder in (run, undisturbed.run)]
    assert fronts[0]["baselines"] == fronts[1]["baselines"]
    assert fronts[0]["curves"] == fronts[1]["curves"]
