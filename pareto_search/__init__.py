"""Finds the trade-offs of an LLM-based recommender: a front of LoRA checkpoints, searched on Ray.

>>> from pareto_search import SearchConfig, load_front, run_search
>>> front = run_search(SearchConfig.load("search.yaml"), "runs/first")  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pareto_search.config import SearchConfig
    from pareto_search.errors import ParetoSearchError, UserError
    from pareto_search.launch import refresh, run_search
    from pareto_search.results import load_front

__version__ = "0.1.0"
__all__ = ["ParetoSearchError", "SearchConfig", "UserError", "__version__", "load_front", "refresh", "run_search"]

_HOMES = {
    "ParetoSearchError": "errors",
    "SearchConfig": "config",
    "UserError": "errors",
    "load_front": "results",
    "refresh": "launch",
    "run_search": "launch",
}


def __getattr__(name: str) -> Any:
    # Imported when they are used: a worker, for one, knows neither configs nor databases and starts the sooner for it.
    if name in _HOMES:
        return getattr(import_module(f"pareto_search.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
