"""The test hypervolume of a search over time, from what it left in its folder."""

from dataclasses import replace

from benchmarks.peers.curve import Curve
from benchmarks.peers.peer import PeerSearch
from pareto_search import archive, checkpoint, results
from pareto_search.candidate import Evaluation
from pareto_search.objective import Values
from pareto_search.workers.worker import Worker


def curve_on_test(search: PeerSearch, seconds: float) -> Curve:
    """A point for each trial that ended in time: at most 32 entries of all until then, chosen on validation.

    Checkpoints are read from their folders.
    """
    config = search.config
    front: list[Evaluation] = []
    moments: list[tuple[float, list[Evaluation]]] = []
    for trial in search.trials():
        if trial.elapsed <= seconds:
            everything = [*front, *trial.evaluations]
            front = archive.front(everything, config.objectives, config.constraints, config.search.steps)
            moments.append((trial.elapsed, results.chosen(front, config.objectives)))
    tested = _tested(search, {e.entry: e for _, chosen in moments for e in chosen})
    return [
        (elapsed, archive.hypervolume([tested[e.entry] for e in chosen], config.objectives))
        for elapsed, chosen in moments
    ]


def _tested(search: PeerSearch, entries: dict[str, Evaluation]) -> dict[str, Values]:
    """Entry -> its values on test; each checkpoint is encoded once."""
    if not entries:
        return {}
    # The plain trainer adapts more blocks than the space has, so the worker is to know the prefixes of all of them.
    worker = Worker(replace(search.workload, layers=1000))
    worker.equip(search.components())
    mine: dict[str, list[Evaluation]] = {}
    for evaluation in entries.values():
        mine.setdefault(evaluation.candidate, []).append(evaluation)
    values: dict[str, Values] = {}
    for name, several in mine.items():
        scores = worker.test(checkpoint.read(search.folder / "checkpoints" / name), [e.serving for e in several])
        values |= {e.entry: results.means(s) for e, s in zip(several, scores, strict=True)}
    return values
