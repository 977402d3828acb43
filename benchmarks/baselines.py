"""NDCG@10 of the baselines on MovieLens-100K over several tie seeds: does our protocol give the known figures?

    python -m benchmarks.baselines [--seeds 5] [--json FILE]

Leave-last-out, full ranking, 943 users. A tie seed decides which of several items of the same second is tested.
"""

import argparse
import json
from pathlib import Path

from pareto_search.config import SearchConfig
from pareto_search.launch import workload
from pareto_search.recsys.dataset import MOVIELENS, load
from pareto_search.recsys.split import split
from pareto_search.workers.evaluate import Scores
from pareto_search.workers.worker import Worker

NAMES = ("popularity", "item-knn", "frozen-encoder", "ease", "sasrec", "warm-start")


def measure(tie_seed: int) -> dict[str, tuple[float, float]]:
    """Validation and test NDCG@10 of each baseline under one tie seed."""
    config = SearchConfig.parse({"name": "baselines", "data": {"source": MOVIELENS, "tie_seed": tie_seed}})
    data = load(source=MOVIELENS)
    worker = Worker(workload(config, data, split(data, "leave_last_out", tie_seed)), cpus=1)
    fitted = {name: worker.fit(name) for name in ("ease", "sasrec", "warm-start")}
    worker.equip({name: files for name, files in fitted.items() if files is not None})
    figures: dict[str, tuple[float, float]] = {}
    for name in NAMES:
        test: Scores = worker.test_baseline(name, [{}])[0]
        figures[name] = worker.baseline(name)["ndcg@10"], test["ndcg@10"]["mean"]
    return figures


def main() -> None:
    """Prints a table: mean over the tie seeds, and the range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    measured: list[dict[str, tuple[float, float]]] = []
    for seed in range(options.seeds):
        measured.append(measure(seed))
        print(f"tie seed {seed}: {measured[-1]}", flush=True)
    print(f"\n{'NDCG@10':<16}{'validation':<28}test")
    for name in NAMES:
        cells = []
        for part in (0, 1):
            values = [figures[name][part] for figures in measured]
            cells.append(f"{sum(values) / len(values):.4f} ({min(values):.4f}–{max(values):.4f})")
        print(f"{name:<16}{cells[0]:<28}{cells[1]}")
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
