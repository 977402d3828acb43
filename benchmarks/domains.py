"""What one domain gives another: nothing, or a tenth, of a target's interactions is trained on, and what is it worth?

    python -m benchmarks.domains FOLDER FOLDER [--seeds 3] [--json FILE]

Each folder has a domain: `interactions.csv` (user_id, item_id, position) and `items.csv` (item_id, title). Each is the
target once, the other is there to learn from. The user's last interaction is tested, and only the target's items are
ranked. Shown is NDCG@10 on test of:

    frozen encoder      the decayed mean of the history's text vectors
    text                the same over whitened vectors
    0 shots             towers that learnt from the other domain alone, with what is blended in
    .1 shots            and from a tenth of the target's users
    .1 shots, alone     from these only

The weights of the blends are fitted to validation. Ratios are to the frozen encoder, with the 95 % interval of a paired
bootstrap over the users and the seeds, which decide who is trained on; the last line has that of the few shots to the
few alone. This is before any fine-tuning: a search begins where it ends.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.bootstrap import Indices, interval
from pareto_search.candidate import Genes
from pareto_search.config import SearchConfig
from pareto_search.launch import workload
from pareto_search.recsys.baselines import DecayedMean, Scorer
from pareto_search.recsys.dataset import Dataset, load
from pareto_search.recsys.ranking import Ranking
from pareto_search.recsys.split import split
from pareto_search.space import TEXT
from pareto_search.workers.evaluate import component, scorer
from pareto_search.workers.worker import Worker

METRIC = "ndcg@10"
SHOTS = 0.1
FEW, ALONE = f"{SHOTS:g} shots", f"{SHOTS:g} shots, alone"
COLUMNS = {"user": "user_id", "item": "item_id", "timestamp": "position", "text": ["title"], "domain": "domain"}
OBJECTIVES = [
    {"metric": METRIC, "reference": 0.01, "ideal": 0.15},
    {"metric": "ild@10", "reference": 0.1, "ideal": 1.0},
]

PerUser = NDArray[np.float64]


def combined(folders: tuple[Path, Path], to: Path) -> None:
    """Writes both domains as one data set, with the folders' names in front of the ids."""
    for file in ("interactions.csv", "items.csv"):
        tables = [pd.read_csv(folder / file).assign(domain=folder.name) for folder in folders]
        for table in tables:
            for column in {"user_id", "item_id"} & set(table.columns):
                table[column] = table.domain + "-" + table[column].astype(str)
        pd.concat(tables).to_csv(to / file, index=False)


def configured(folder: Path, target: str, seed: int, shots: float) -> SearchConfig:
    """A search for a target that learns from all there is."""
    tables = {"interactions": str(folder / "interactions.csv"), "items": str(folder / "items.csv")}
    data = {**tables, "columns": COLUMNS, "target": target, "shots": shots, "tie_seed": seed}
    content = {"name": "domains", "data": data, "objectives": OBJECTIVES, "search": {"seed": seed}}
    return SearchConfig.parse(content)


def measure(config: SearchConfig, data: Dataset) -> dict[str, PerUser]:
    """Every user's accuracy on test: with the frozen encoder, the text, and the warm start as it is blended."""
    worker = Worker(workload(config, data, split(data, **config.splitting())))
    fitted = {name: worker.fit(name) for name in (*config.blended, "warm-start")}
    files = {name: found for name, found in fitted.items() if found is not None}
    parts = {name: component(found) for name, found in files.items() if name != "warm-start"}
    worker.equip(files)
    blended = {"model": scorer(files["warm-start"], worker.encoder), **parts}
    ranking = Ranking(worker.load.split.validation, worker.items, blended)
    best = ranking.fitted(worker.load.space).fixed

    def tested(scorers: Mapping[str, Scorer], setting: Genes) -> PerUser:
        [tally] = Ranking(worker.load.split.test, worker.items, scorers).tallies([setting], [METRIC])
        return tally.per_user()[METRIC]

    return {
        "frozen encoder": tested({"model": DecayedMean(worker.encoder.frozen.numpy())}, {}),
        "text": tested({"model": parts[TEXT]}, {}),
        "towers": tested(blended, best),
    }


def within(data: Dataset, target: str) -> Dataset:
    """The data without what was done in other domains."""
    assert data.domains is not None
    kept = np.array([name == target for name in data.domains])[data.items]
    return replace(data, users=data.users[kept], items=data.items[kept], timestamps=data.timestamps[kept])


def ratio(mine: PerUser, theirs: PerUser) -> tuple[float, float, float]:
    """Of the means of two `(seeds, users)`, with its interval."""

    def of(seeds: Indices, users: Indices) -> float:
        drawn = np.ix_(seeds, users)
        return float(mine[drawn].mean() / theirs[drawn].mean())

    return float(mine.mean() / theirs.mean()), *interval(of, *mine.shape)


def main() -> None:
    """Prints a table for each target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    shown: dict[str, dict[str, tuple[float, ...]]] = {}
    with TemporaryDirectory() as place:
        combined(tuple(options.folders), Path(place))
        for target in (folder.name for folder in options.folders):
            found: dict[str, list[PerUser]] = {}
            for seed in range(options.seeds):
                none, few = (configured(Path(place), target, seed, shots) for shots in (0.0, SHOTS))
                data = load(**none.data.arguments())
                without, some = measure(none, data), measure(few, data)
                alone = measure(few, within(data, target))
                figures = {
                    "frozen encoder": without["frozen encoder"],
                    "text": without["text"],
                    "0 shots": without["towers"],
                    FEW: some["towers"],
                    ALONE: alone["towers"],
                }
                for name, values in figures.items():
                    found.setdefault(name, []).append(values)
            pooled = {name: np.stack(values) for name, values in found.items()}
            shown[target] = {n: (float(v.mean()), *ratio(v, pooled["frozen encoder"])) for n, v in pooled.items()}
            print(f"target {target}, {METRIC} on test", flush=True)
            for name, (mean, times, low, high) in shown[target].items():
                print(f"  {name:<20}{mean:.4f}  {times:.3f} x [{low:.3f}, {high:.3f}]", flush=True)
            times, low, high = ratio(pooled[FEW], pooled[ALONE])
            print(f"  {FEW}: {times:.3f} x [{low:.3f}, {high:.3f}] of {ALONE}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(shown, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
