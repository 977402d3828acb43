"""What the peers' trials run: our worker (tier `tuned`), or what one writes first (tier `default`)."""

from functools import cache
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from benchmarks.peers.peer import PeerSearch, Report
from pareto_search.candidate import Attempt, Candidate, Genes
from pareto_search.executor import Files, Result
from pareto_search.objective import Values
from pareto_search.workers.worker import Worker


class Trainer(Protocol):
    """Trains and evaluates one candidate after another."""

    def run(self, name: str, genes: Genes, report: Report) -> Result:
        """What comes out at the full rung.

        Raises:
            DivergedError: the loss is not finite.
        """
        ...


class TunedTrainer:
    """Our worker, resident, with what our own search gives it."""

    def __init__(self, search: PeerSearch) -> None:
        self._rungs = search.config.search.rungs
        self._worker = Worker(search.workload, search.config.workers.cpus)
        search.prepare(self._worker)

    def run(self, name: str, genes: Genes, report: Report) -> Result:
        candidate = Candidate(name, genes)
        state: list[Files] = []
        for number, steps in enumerate(self._rungs[:-1], start=1):
            result = self._worker.run(Attempt(candidate, number, steps), state)
            report(steps, result.evaluations[0].values)
            state = [result.files]
        return self._worker.run(Attempt(candidate, len(self._rungs)), state)


@cache
def trainer(folder: Path) -> Trainer:
    """This process's trainer, which serves all the trials that the process is given."""
    search = PeerSearch.open(folder)
    if search.tier == "tuned":
        return TunedTrainer(search)
    from benchmarks.peers.plain import PlainTrainer  # which wants PEFT, and time to import it

    return PlainTrainer(search)


def run_trial(folder: Path, varied: Genes, report: Report = lambda _steps, _values: None) -> Values:
    """Runs a trial and records it; returns the values of its first evaluation.

    Args:
        varied: the genes that the config does not fix.

    Raises:
        DivergedError: the loss is not finite.
    """
    search = PeerSearch.open(folder)
    genes = {**varied, **search.space.fixed}
    result = trainer(folder).run(uuid4().hex[:12], genes, report)
    search.record(genes, result)
    return result.evaluations[0].values
