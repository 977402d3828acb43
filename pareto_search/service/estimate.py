"""How long a search will take, judged by what this service has searched before."""

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from pareto_search.config import SearchConfig
from pareto_search.errors import UserError
from pareto_search.store import Store


def estimate(config: SearchConfig, earlier: Iterable[Path]) -> tuple[float | None, str]:
    """Seconds until the last candidate has ended, or None, and one sentence that says why.

    Args:
        earlier: the run folders of searches over the same data and base model, the latest first.
    """
    seconds, why = None, "nothing like it has been searched here yet"
    for run in earlier:
        seconds, why = _by(config, run)
        if seconds is not None:
            break
    minutes = config.search.minutes
    if minutes is not None and (seconds is None or minutes * 60 < seconds):
        return minutes * 60, f"its budget of {minutes:g} minutes; the baselines and the test scores come on top"
    return seconds, why if minutes is not None or seconds else f"{why}; give it minutes to be sure of an end"


def _by(config: SearchConfig, run: Path) -> tuple[float | None, str]:
    """In proportion to candidates, steps and workers; what comes before the first candidate is taken as it was."""
    try:
        before = SearchConfig.load(run / "search.yaml")
        with closing(Store.open(before.store or run / "search.db", before.name)) as store:
            record, attempts, candidates = store.search, store.attempts(), store.candidates()
    except UserError:  # not there yet, or of a release whose config reads otherwise
        return None, "nothing like it has come far enough here yet"
    trained = {c.id for c in candidates if c.kind == "trained"} & {a.candidate for a in attempts if a.ended}
    if not trained or not record.elapsed_seconds:
        return None, "nothing like it has come far enough here yet"
    # What was not killed while it was prepared: a search that went on the day after was not prepared for a day.
    early = {c.id for c in candidates if c.kind == "early"}  # in the midst of it
    begun = next(a.started for a in attempts if a.candidate not in early)
    preparing = min(begun - record.created, record.elapsed_seconds)
    each = (record.elapsed_seconds - preparing) / len(trained)  # with the merging and fusing between them
    more = config.search.steps / before.search.steps * before.workers.count / config.workers.count
    return preparing + each * more * config.search.candidates, f"{before.name} took {each:.1f} s a candidate"
