"""NDCG@10 of the baselines on MovieLens-100K over several tie seeds: does our protocol give the known figures?

    python -m benchmarks.baselines [--seeds 5] [--untrained-seeds 20] [--json FILE]

Leave-last-out, full ranking, 943 users. A tie seed decides which of several items of the same second is tested.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from pareto_search.config import SearchConfig
from pareto_search.launch import workload
from pareto_search.recsys.dataset import MOVIELENS, load
from pareto_search.recsys.split import split
from pareto_search.workers.worker import Worker

UNTRAINED = ("popularity", "item-knn", "frozen-encoder", "ease")
TRAINED = ("sasrec", "warm-start")

Figures = dict[str, tuple[float, float]]
"""Baseline -> NDCG@10 on validation and on test."""


def measure(tie_seed: int, names: Sequence[str]) -> Figures:
    """The figures of some baselines under one tie seed."""
    config = SearchConfig.parse({"name": "baselines", "data": {"source": MOVIELENS, "tie_seed": tie_seed}})
    data = load(source=MOVIELENS)
    worker = Worker(workload(config, data, split(data, "leave_last_out", tie_seed)))
    worker.equip({name: files for name in ("ease", *TRAINED) if name in names and (files := worker.fit(name))})
    return {
        name: (worker.baseline(name)["ndcg@10"], worker.test_baseline(name, [{}])[0]["ndcg@10"]["mean"])
        for name in names
    }


def main() -> None:
    """Prints a table: mean over the tie seeds, and the range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--untrained-seeds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in (*UNTRAINED, *TRAINED)}
    for seed in range(max(options.seeds, options.untrained_seeds)):
        names = [*(UNTRAINED if seed < options.untrained_seeds else ()), *(TRAINED if seed < options.seeds else ())]
        for name, figures in measure(seed, names).items():
            measured[name].append(figures)
    print(f"{'NDCG@10':<16}{'tie seeds':<12}{'validation':<28}test")
    for name, pairs in measured.items():
        for count in sorted({min(options.seeds, len(pairs)), len(pairs)}):
            cells = [_cell([pair[part] for pair in pairs[:count]]) for part in (0, 1)]
            print(f"{name:<16}{count:<12}{cells[0]:<28}{cells[1]}")
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1), encoding="utf-8")


def _cell(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.4f} ({min(values):.4f}–{max(values):.4f})"


if __name__ == "__main__":
    main()
