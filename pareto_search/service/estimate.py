"""How long a search will take, judged by what this service has searched before."""

from pathlib import Path

from pareto_search.config import SearchConfig
from pareto_search.errors import RunError
from pareto_search.store import Store


def estimate(config: SearchConfig, earlier: Path | None) -> tuple[float | None, str]:
    """Seconds until the front is there, or None, and one sentence that says why.

    Args:
        earlier: the run folder of the latest search over the same data and base model, if there is one.
    """
    seconds, why = _by(config, earlier) if earlier else (None, "nothing like it has been searched here yet")
    minutes = config.search.minutes
    if minutes is not None and (seconds is None or minutes * 60 < seconds):
        return minutes * 60, f"its budget of {minutes:g} minutes; the baselines and the test scores come on top"
    return seconds, why if minutes is not None or seconds else f"{why}; give it minutes to be sure of an end"


def _by(config: SearchConfig, run: Path) -> tuple[float | None, str]:
    """In proportion to candidates and steps; what comes before the first candidate is taken as it was."""
    try:
        before = SearchConfig.load(run / "search.yaml")
        store = Store.open(run / "search.db", before.name)
    except RunError:
        return None, "nothing like it has come far enough here yet"
    attempts, began = store.attempts(), store.search.created
    store.close()
    done = [a.seconds for a in attempts if a.seconds]
    if not done:
        return None, "nothing like it has come far enough here yet"
    each = sum(done) / len(done) * config.search.steps / before.search.steps
    loop = each * config.search.candidates / config.workers.count
    return attempts[0].started - began + loop, f"{before.name} took {sum(done) / len(done):.1f} s a candidate"
