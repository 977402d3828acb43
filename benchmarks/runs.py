"""Run folders that benchmarks come back to."""

import sys
from collections import Counter
from pathlib import Path

from pareto_search.candidate import Kind
from pareto_search.config import SearchConfig
from pareto_search.store import Store


def want_same(run: Path, config: SearchConfig) -> None:
    """Ends the process if the folder holds a search of another config or budget, whose result would be taken for this
    one's: a search itself goes on with another budget, or is over.
    """
    held = run / "search.yaml"
    if held.is_file() and SearchConfig.load(held) != config:
        sys.exit(f"{run} holds a search of another config; give --out another folder")


def ended(store: Store, steps: int) -> Counter[Kind]:
    """How many candidates of each kind were evaluated at the full rung; the warm start is one of the merged ones."""
    kinds = {c.id: c.kind for c in store.candidates()}
    return Counter(kinds[name] for name in {e.candidate for e in store.evaluations() if e.steps == steps})
