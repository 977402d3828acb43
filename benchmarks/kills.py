"""The driver is killed at random moments, again and again, over small searches in ordered mode.

Every search is resumed until it ends. Then nothing that was evaluated may be lost, nothing trained twice, and the front
must be that of a search that was never killed.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import small
from pareto_search import load_front
from pareto_search.errors import RunError
from pareto_search.store import Store

SEARCH: Mapping[str, Any] = {"candidates": 6, "steps": 15}
"""Candidates that take most of a second, so that many kills find one under way."""


@dataclass
class Tally:
    """What the kills did; all but the kills should stay at nothing."""

    kills: int = 0
    searches: int = 0
    lost: int = 0
    trained_twice: int = 0
    fronts_that_differ: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether nothing was lost, repeated or changed."""
        return not (self.lost or self.trained_twice or self.fronts_that_differ or self.failures)


def command(config: Path, run: Path) -> list[str]:
    """Starts a search, or goes on with it."""
    program = [sys.executable, "-c", "from pareto_search.cli import main; main()"]
    return [*program, "run", str(config), "--out", str(run)]


def essence(run: Path) -> list[Mapping[str, Any]]:
    """What must be the same of two fronts: all but the seconds that training took."""
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in load_front(run)["front"]]


def finished(run: Path) -> dict[str, tuple[int, int]]:
    """Candidate -> the attempt that finished it, and how many evaluations it has."""
    try:
        store = Store.open(run / "search.db")
    except RunError:  # it has not begun
        return {}
    evaluations = store.evaluations()
    found = {
        a.candidate: (a.number, sum((e.candidate, e.attempt) == (a.candidate, a.number) for e in evaluations))
        for a in store.attempts()
        if a.state == "finished"
    }
    store.close()
    return found


def attempts_after_the_end(run: Path) -> int:
    """How many attempts were made of candidates that had been finished."""
    store = Store.open(run / "search.db")
    attempts = store.attempts()
    store.close()
    ends = {a.candidate: a.number for a in attempts if a.state == "finished"}
    return sum(a.number > ends.get(a.candidate, a.number) for a in attempts)


def killed_until_done(
    config: Path, run: Path, moment: Callable[[], float], tally: Tally, most: int | None = None
) -> None:
    """Runs a search, killing its driver `moment()` seconds after each start until it ends sooner.

    Args:
        most: after so many kills it is left in peace.
    """
    known: dict[str, tuple[int, int]] = {}
    kills = 0
    while True:
        limit = None if most is not None and kills >= most else moment()
        with tempfile.TemporaryFile("w+") as output:
            driver = subprocess.Popen(command(config, run), stdout=output, stderr=output, start_new_session=True)
            try:
                code = driver.wait(limit)
            except subprocess.TimeoutExpired:
                driver.send_signal(signal.SIGKILL)
                driver.wait()
                code = None
                kills += 1
                tally.kills += 1
            output.seek(0)
            said = output.read().strip().splitlines()
        now = finished(run)
        tally.lost += sum(now.get(name) != found for name, found in known.items())
        known = now
        if code is not None:
            break
    tally.searches += 1
    if code:
        tally.failures.append(f"exit {code}: {said[-1] if said else ''}")
    tally.trained_twice += attempts_after_the_end(run)


def measure(kills: int, seed: int, folder: Path, say: Callable[[str], None]) -> tuple[Tally, float]:
    """Kills until there were so many; returns the tally and how long an undisturbed search takes."""
    config = small.make(folder, **SEARCH)
    undisturbed: list[float] = []
    for name in ("warm-up", "undisturbed"):  # the first one pays for what the system then has in memory
        began = time.monotonic()
        subprocess.run(command(config, folder / name), check=True, stdout=subprocess.DEVNULL)
        undisturbed.append(time.monotonic() - began)
    seconds = min(undisturbed)
    expected, rng, tally = essence(folder / "undisturbed"), random.Random(seed), Tally()
    while tally.kills < kills and not tally.failures:
        run = folder / f"run{tally.searches}"
        killed_until_done(config, run, lambda: rng.uniform(0, seconds), tally, kills - tally.kills)
        tally.fronts_that_differ += not tally.failures and essence(run) != expected
        say(f"{tally.kills:4} kills, {tally.searches} searches, {'all well' if tally.is_clean else tally}")
    return tally, seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="pareto-search-kills-") as folder:
        tally, seconds = measure(options.kills, options.seed, Path(folder), lambda text: print(text, flush=True))
    figures = {
        "kills": tally.kills,
        "searches": tally.searches,
        "evaluated candidates lost": tally.lost,
        "trained twice": tally.trained_twice,
        "fronts that differ": tally.fronts_that_differ,
        "failures": tally.failures,
        "seconds of an undisturbed search": round(seconds, 1),
    }
    for name, value in figures.items():
        print(f"{name:34} {value}")
    if options.json:
        options.json.write_text(json.dumps({"seed": options.seed, **figures}, indent=2) + "\n")
    sys.exit(0 if tally.is_clean else 1)


if __name__ == "__main__":
    main()
