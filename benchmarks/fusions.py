"""What do fusions add? Searches that are over go on with some, and both fronts are compared on test.

    python -m benchmarks.fusions [--runs runs/practitioner] [--fusions 12] [--out runs/fusions] [--json FILE]

The searches are those of `benchmarks.practitioner`. Of both fronts at most 32 entries are chosen on validation; the
interval is that of a paired bootstrap over users and tie seeds, as there.
"""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

from benchmarks.practitioner import OnTest, hypervolume, pooled, shown, test
from benchmarks.runs import want_same
from pareto_search import load_front
from pareto_search.config import SearchConfig
from pareto_search.launch import run_search


def main() -> None:
    """Prints a line for each search, and the ratio of all together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/practitioner"), help="run folders of finished searches")
    parser.add_argument("--fusions", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("runs/fusions"), help="where their copies go on")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()

    tested: list[OnTest] = []
    for run in sorted(path.parent for path in options.runs.glob("*/front.json")):
        there = options.out / run.name
        config = SearchConfig.load(run / "search.yaml")
        search = config.search.model_copy(update={"fusions": options.fusions})
        config = config.model_copy(update={"search": search})
        if not there.exists():
            shutil.copytree(run, there)
            (there / "search.yaml").write_text(config.to_yaml(), encoding="utf-8")
        want_same(there, config)
        front, before = run_search(config, there), load_front(run)
        after = test(config, there, front)
        tested.append(replace(after, theirs=test(config, run, before).ours))
        volumes = [f["hypervolume"]["test"] for f in (front, before)]
        count = sum(entry["kind"] == "fused" for entry in front["front"])
        print(f"{run.name}: {volumes[0]:.4f}, before {volumes[1]:.4f}; {count} entries are fused", flush=True)
    figures = pooled(tested, config.objectives, hypervolume)
    print(f"hypervolume: {shown(figures, 'before')}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
