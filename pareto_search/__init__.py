"""Finds the trade-offs of an LLM-based recommender: a front of LoRA checkpoints, searched on Ray.

>>> from pareto_search import SearchConfig, load_front, run_search
>>> front = run_search(SearchConfig.load("search.yaml"), "runs/first")  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from pareto_search.config import SearchConfig
from pareto_search.errors import ParetoSearchError, UserError
from pareto_search.results import load_front

if TYPE_CHECKING:
    from pareto_search.launch import refresh, run_search

__version__ = "0.1.0"
__all__ = ["ParetoSearchError", "SearchConfig", "UserError", "__version__", "load_front", "refresh", "run_search"]


def __getattr__(name: str) -> Any:
    # What a search is run with is imported when one is run, not when its words are.
    if name in ("refresh", "run_search"):
        from pareto_search import launch

        return getattr(launch, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
