"""What each lever is worth: the same search without it, or with it, at equal time.

The components and all curves are prepared once, and every search begins with them. But a variant of other serving genes
finds curves of its own, in its time, because the points of the warm start's are entries. A lever is worth what the
hypervolume on test says (at most 32 entries, chosen on validation), over several seeds.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.runs import ended
from pareto_search.config import SearchConfig
from pareto_search.launch import load_config, run_search
from pareto_search.store import SearchRecord, Store

CURVES = ("curves", "baselines")
"""The facts of what is found in a space of serving genes, and of what is found together with that."""
FROZEN = {"adapter_lr": 0.0, "layers": 1, "rank": 4, "alpha": 4.0, "dropout": 0.0, "targets": "query_value"}
SERVING = ("diversity", "novelty", "credibility", "ease", "text")

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "as it is": {},
    "without merging": {"search": {"merging": False}},
    "with rungs": {"search": {"rungs": [5, 10]}},
    "with inheritance": {"search": {"inheritance": True}},
    "with packs of two": {"workers": {"pack": 2}},
    "stopped early": {"search": {"patience": 2}},
    "without fine-tuning of the encoder": {"space": FROZEN},
    "without serving genes": {"space": {**dict.fromkeys(SERVING, 0.0), "sharpness": 1.0}},
    "blends searched, not fitted": {"space": {"ease": [0.0, 1.0], "text": [0.0, 1.0], "sharpness": [0.4, 2.0]}},
    "without text": {"space": {"text": 0.0}},
    "in order, not as they come": {"search": {"mode": "ordered"}},
}
"""Name -> what is different in the config."""


def configured(variant: Mapping[str, Any], *, seed: int, steps: int, **budget: float) -> SearchConfig:
    """The config of a variant; the seed also breaks ties in the data."""
    search = {"population": 6, "steps": steps, "seed": seed, **budget}
    return SearchConfig.parse(
        {
            "name": "ablation",
            "data": {"source": "movielens-100k", "tie_seed": seed},
            "space": variant.get("space", {}),
            "search": search | variant.get("search", {}),
            "workers": variant.get("workers", {}),
        }
    )


def prepare(prepared: Path, run: Path, config: SearchConfig) -> None:
    """Begins a run with the components of another one of the same data, base model and seed, and with its curves if it
    has the same serving genes.
    """
    run.mkdir(parents=True)
    shutil.copytree(prepared / "components", run / "components")
    (run / "search.yaml").write_text(config.to_yaml(), encoding="utf-8")
    done = Store.open(prepared / "search.db")
    known = {name: getattr(done.search, name) for name in ("data_sha256", "split_sha256", "base_id", "base_sha256")}
    record = SearchRecord(
        name=config.name,
        identity=config.identity(),
        config=config.to_yaml(),
        seed=config.search.seed,
        lanes=config.workers.count,
        **known,
    )
    serving, prepared_serving = (c.search_space.of("serving") for c in (config, load_config(prepared)))
    store = Store.create(run / "search.db", record)
    with store.transaction() as changes:
        for fact in ("components", *(CURVES if serving == prepared_serving else ())):
            changes.put_fact(fact, done.fact(fact))
    store.close()
    done.close()


def searched(config: SearchConfig, run: Path) -> dict[str, Any]:
    """Runs a search; what came out, and how many candidates of either kind ended."""
    front = run_search(config, run)
    store = Store.open(run / "search.db")
    kinds = ended(store, config.search.steps)
    begun = sum(c.kind == "trained" for c in store.candidates())
    attempts = [a for a in store.attempts() if a.seconds is not None and a.ended is not None]
    span = max(a.ended or 0.0 for a in attempts) - min(a.started for a in attempts)
    store.close()
    return {
        "validation": front["hypervolume"]["validation"],
        "test": front["hypervolume"]["test"],
        "busy share": sum(a.seconds or 0.0 for a in attempts) / span / config.workers.count / config.workers.pack,
        "begun": begun,
        "trained": kinds["trained"],
        "merged": kinds["merged"],
        "most accurate on test": max(e["test"]["ndcg@10"]["mean"] for e in front["front"]),
        "practitioner": front["hypervolume"]["practitioner"],
        "warm start": front["hypervolume"]["warm-start"],
    }


def measure(names: Sequence[str], *, seeds: int, minutes: float, steps: int, folder: Path) -> dict[str, list[Any]]:
    """The results of each variant, one a tie seed."""
    found: dict[str, list[Any]] = {name: [] for name in names}
    for seed in range(seeds):
        prepared = folder / f"prepared{seed}"
        run_search(configured({}, seed=seed, steps=steps, candidates=1), prepared)
        for name in names:
            config = configured(VARIANTS[name], seed=seed, steps=steps, candidates=1000, minutes=minutes)
            run = folder / f"{seed}-{name.replace(' ', '-')}"
            prepare(prepared, run, config)
            result = searched(config, run)
            found[name].append(result)
            counts = f"{result['trained']} trained of {result['begun']} begun, {result['merged']} merged"
            values = (
                f"test {result['test']:.4f}, validation {result['validation']:.4f}, busy {result['busy share']:.2f}"
            )
            print(f"seed {seed}, {name}: {values}, {counts}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablations", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--minutes", type=float, default=4.0, help="of each search, without what is prepared once")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="pareto-search-ablations-") as folder:
        found = measure(
            options.variants,
            seeds=options.seeds,
            minutes=options.minutes,
            steps=options.steps,
            folder=Path(folder),
        )
    for name, results in found.items():
        tests = [r["test"] for r in results]
        print(f"{name:36} test {statistics.median(tests):.4f} ({min(tests):.4f} to {max(tests):.4f})")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
