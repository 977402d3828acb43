"""What is an old front worth on newer data: as it is, as the beginning of a search, and against a search from scratch?

    python -m benchmarks.refresh [--candidates 8] [--out runs/refresh] [--json FILE]

MovieLens-100K up to a moment by which four fifths of the ratings are there is searched as the demo does it. All of
MovieLens is the newer data: its search begins with the old front (`refresh`) or from scratch, with as many candidates.
Shown is the hypervolume of at most 32 entries each, chosen on validation. A search that is in `--out` is not run again;
another number of candidates wants another folder.
"""

import argparse
import json
from pathlib import Path

import pandas as pd

from benchmarks.runs import want_same
from pareto_search.cli import DEMO
from pareto_search.config import SearchConfig
from pareto_search.launch import refresh, run_search
from pareto_search.recsys import fetch

SHARE = 0.8


def write_data(folder: Path) -> tuple[Path, Path]:
    """MovieLens until a moment, without the items that nobody had rated by then, and all of it."""
    source = fetch.movielens_100k()
    ratings, items = (pd.read_csv(source / name, dtype=str) for name in (fetch.INTERACTIONS, fetch.ITEMS))
    times = ratings["timestamp"].astype(int)
    early = ratings[times <= times.quantile(SHARE)]
    old, new = folder / "old", folder / "new"
    for place, rows, known in ((old, early, items[items["item_id"].isin(early["item_id"])]), (new, ratings, items)):
        place.mkdir(parents=True, exist_ok=True)
        rows.to_csv(place / fetch.INTERACTIONS, index=False)
        known.to_csv(place / fetch.ITEMS, index=False)
    return old, new


def main() -> None:
    """Searches what is missing, and prints a line for each front."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=8, help="of each of the three searches")
    parser.add_argument("--out", type=Path, default=Path("runs/refresh"), help="where every search has a folder")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()

    old, new = write_data(options.out)
    columns = {"user": "user_id", "item": "item_id", "rating": "rating", "timestamp": "timestamp"}
    columns |= {"text": ["title", "genres"], "categories": "genres"}  # type: ignore[dict-item]
    data = {"interactions": str(old / fetch.INTERACTIONS), "items": str(old / fetch.ITEMS), "columns": columns}
    search = {**DEMO["search"], "candidates": options.candidates, "minutes": None}
    config = SearchConfig.parse({"name": "refresh", "data": data, "search": search})
    newer = config.refreshed(str(new))
    first, onward, anew = (options.out / name for name in ("first", "refreshed", "scratch"))
    for run, wish in ((first, config), (onward, newer), (anew, newer)):
        want_same(run, wish)
    run_search(config, first)
    refreshed = refresh(first, str(new), onward)["hypervolume"]
    scratch = run_search(newer, anew)["hypervolume"]
    rows = {
        "old front": refreshed["old"],
        "from the old front": refreshed,
        "from scratch": scratch,
        "practitioner": scratch["practitioner"],
    }
    for name, volume in rows.items():
        print(f"{name:20} validation {volume['validation']:.4f}  test {volume['test']:.4f}", flush=True)
    if options.json:
        found = {name: {part: v[part] for part in ("validation", "test")} for name, v in rows.items()}
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
