"""Against the practitioner's curve: what do these minutes of search add to EASE and SASRec, blended and re-ranked?

    python -m benchmarks.practitioner [--minutes 20] [--seeds 5] [--first 0] [--out runs/practitioner] [--json FILE]

One search for each tie seed, what candidates need fitted in its minutes, what it is compared with after them. Of the
front and of the curve at most 32 entries each are chosen on validation. Compared is their hypervolume on test, averaged
over the tie seeds, and the accuracy on test of the entry that is the most accurate one on validation. Intervals are
those of a paired bootstrap over tie seeds and users, who are the same people under each seed: see `bootstrap`.

A search that is in `--out` already is not run again, so a long comparison may be made in pieces of the same minutes.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.bootstrap import Indices, interval
from benchmarks.runs import ended, want_same
from pareto_search import archive, checkpoint
from pareto_search.candidate import WARM_START, Genes
from pareto_search.cli import DEMO
from pareto_search.config import SearchConfig
from pareto_search.launch import run_search, workload
from pareto_search.objective import Objective
from pareto_search.recsys.baselines import Scorer
from pareto_search.recsys.dataset import MOVIELENS, load
from pareto_search.recsys.ranking import Ranking
from pareto_search.recsys.split import split
from pareto_search.results import Document
from pareto_search.store import Store
from pareto_search.workers.evaluate import blended, component, scorer
from pareto_search.workers.worker import Worker

ENDLESS = 1_000_000
"""Candidates: time ends a search."""

PerUser = NDArray[np.float64]
"""`(entries, objectives, users)`."""
Measure = Callable[[PerUser, Indices, Sequence[Objective]], float]


@dataclass(frozen=True)
class OnTest:
    """A search's entries and those that they are compared with, user by user on test, the most accurate on validation
    first.

    Attributes:
        users: their ids, in the order of both sides.
    """

    users: tuple[str, ...]
    ours: PerUser
    theirs: PerUser


def configured(seed: int, minutes: float) -> SearchConfig:
    """The demo's search, ended by time; the seed also breaks ties in the data."""
    search = {**DEMO["search"], "seed": seed, "candidates": ENDLESS, "minutes": minutes}
    return SearchConfig.parse({"name": f"tie{seed}", "data": {"source": MOVIELENS, "tie_seed": seed}, "search": search})


def test(config: SearchConfig, run: Path, front: Document) -> OnTest:
    """Scores both sides again, from what the run folder keeps, and keeps each user apart."""
    data = load(**config.data.arguments())
    worker = Worker(workload(config, data, split(data, **config.splitting())))
    folders = (run / "components").iterdir()
    worker.equip({f.name: files for f in folders if (files := checkpoint.read(f))})
    names = [o.name for o in config.objectives]

    def values(model: Scorer, settings: Sequence[Genes]) -> list[list[PerUser]]:
        ranking = Ranking(
            worker.load.split.test, worker.items, {"model": model, **blended(settings, worker.components)}
        )
        return [[t.per_user()[name] for name in names] for t in ranking.tallies(settings, names)]

    def ranked(points: Any) -> Any:
        return sorted(points, key=lambda point: -point["validation"][names[0]])

    mine: dict[str, list[Genes]] = {}
    for entry in ranked(front["front"]):
        mine.setdefault(entry["checkpoint"], []).append(entry["serving"])
    theirs: dict[str, list[Genes]] = {}
    for point in ranked(front["curves"]["practitioner"]):
        theirs.setdefault(point["name"].split("+")[0], []).append(point["serving"])
    ours = [v for f, s in mine.items() for v in values(scorer(checkpoint.read(run / f), worker.encoder), s)]
    components = {name: component(checkpoint.read(run / "components" / name)) for name in theirs}
    others = [v for name, s in theirs.items() for v in values(components[name], s)]
    users = tuple(data.user_ids[user] for user in worker.load.split.test.users)
    return OnTest(users, np.array(ours), np.array(others))


def hypervolume(per_user: PerUser, users: Indices, objectives: Sequence[Objective]) -> float:
    """Of the entries' means over some users."""
    means = per_user[:, :, users].mean(2)
    points = [dict(zip((o.name for o in objectives), point, strict=True)) for point in means.tolist()]
    return archive.hypervolume(points, objectives)


def accuracy(per_user: PerUser, users: Indices, _: Sequence[Objective]) -> float:
    """Of the most accurate entry, over some users."""
    return float(per_user[0, 0, users].mean())


def pooled(tested: Sequence[OnTest], objectives: Sequence[Objective], measure: Measure) -> dict[str, Any]:
    """What is measured in all tie seeds, the ratio of the means, and its interval."""
    assert len({t.users for t in tested}) == 1, "users are drawn for all tie seeds at once, so they must be the same"

    def both(seeds: Indices, users: Indices) -> NDArray[np.float64]:
        """`(seeds, 2)`."""
        sides = [(tested[seed].ours, tested[seed].theirs) for seed in seeds]
        return np.array([[measure(side, users, objectives) for side in pair] for pair in sides])

    def ratio(seeds: Indices, users: Indices) -> float:
        ours, theirs = both(seeds, users).mean(0)
        return float(ours / theirs)

    all_seeds, everybody = np.arange(len(tested)), np.arange(len(tested[0].users))
    each = both(all_seeds, everybody)
    return {
        "ours": each[:, 0].tolist(),
        "theirs": each[:, 1].tolist(),
        "ratio": ratio(all_seeds, everybody),
        "interval": list(interval(ratio, len(all_seeds), len(everybody))),
    }


def row(config: SearchConfig, run: Path, front: Document) -> dict[str, Any]:
    """A search's line in the table: candidates by kind, hypervolumes on test, and whose the entries are."""
    store = Store.open(run / "search.db")
    kinds = ended(store, config.search.steps)
    store.close()
    volumes = front["hypervolume"]
    whose = Counter("warm start" if e["candidate"] == WARM_START else e["kind"] for e in front["front"])
    return {
        "trained": kinds["trained"],
        "merged": kinds["merged"],
        "front": volumes["test"],
        "warm start": volumes["warm-start"]["test"],
        "practitioner": volumes["practitioner"]["test"],
        "entries": dict(whose.most_common()),
    }


def in_words(found: Mapping[str, Any]) -> str:
    """What `row` found, in a line."""
    volumes = ", ".join(f"{name} {found[name]:.4f}" for name in ("front", "warm start", "practitioner"))
    whose = ", ".join(f"{count} {kind}" for kind, count in found["entries"].items())
    times = found["front"] / found["practitioner"]
    return f"{found['trained']} trained, {found['merged']} merged; {volumes}, {times:.3f} x; entries: {whose}"


def shown(figures: Mapping[str, Any], other: str) -> str:
    """What `pooled` found, in a line, beside what has this name."""
    low, high = figures["interval"]
    ours, theirs = (np.mean(figures[side]) for side in ("ours", "theirs"))
    return f"{ours:.4f}, {other} {theirs:.4f}, {figures['ratio']:.4f} x, 95 % [{low:.4f}, {high:.4f}]"


def main() -> None:
    """Searches what is missing, and prints a line for each tie seed and the pooled ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="of each search, from its start")
    parser.add_argument("--seeds", type=int, default=5, help="how many tie seeds")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--out", type=Path, default=Path("runs/practitioner"), help="where every search has a folder")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()

    seeds = range(options.first, options.first + options.seeds)
    searches = {seed: (configured(seed, options.minutes), options.out / f"tie{seed}") for seed in seeds}
    for config, run in searches.values():
        want_same(run, config)
    tested: list[OnTest] = []
    rows: list[dict[str, Any]] = []
    for seed, (config, run) in searches.items():
        front = run_search(config, run)
        tested.append(test(config, run, front))
        rows.append({"tie_seed": seed, **row(config, run, front)})
        print(f"tie seed {seed}: {in_words(rows[-1])}", flush=True)
    measures: dict[str, Measure] = {"hypervolume": hypervolume, f"best {config.objectives[0].name}": accuracy}
    found = {name: pooled(tested, config.objectives, measure) for name, measure in measures.items()}
    for name, figures in found.items():
        print(f"{name}: {shown(figures, 'practitioner')}")
    if options.json:
        options.json.write_text(json.dumps(found | {"searches": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
