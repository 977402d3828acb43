"""pymoo's NSGA-II with its own Ray parallelisation: whole generations, each of which waits for its last member."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.mixed import MixedVariableDuplicateElimination, MixedVariableMating, MixedVariableSampling
from pymoo.core.problem import ElementwiseProblem
from pymoo.core.variable import Binary, Choice, Integer, Real, Variable
from pymoo.optimize import minimize
from pymoo.parallelization.ray import RayParallelization

from benchmarks.peers.peer import PeerSearch
from pareto_search.errors import ParetoSearchError
from pareto_search.space import Gene

PER_WORKER = 4
"""Members of a generation for each worker."""
FAILED = 1e6
"""Every objective of a trial that failed."""


class Problem(ElementwiseProblem):  # type: ignore[misc]
    """A trial for each member; Ray runs them in processes that it uses again, and each keeps its trainer."""

    def __init__(self, peer: PeerSearch) -> None:
        self._folder, self._genes = str(peer.folder), peer.space.genes
        super().__init__(
            vars={gene.name: _variable(gene) for gene in self._genes},
            n_obj=len(peer.config.objectives),
            elementwise_runner=RayParallelization({"num_cpus": peer.config.workers.cpus}),
        )

    def _evaluate(self, x: Mapping[str, Any], out: dict[str, Any], *_: Any, **__: Any) -> None:
        from benchmarks.peers.trainers import run_trial  # torch is for those who train

        folder = Path(self._folder)
        picked = {g.name: g.choices[x[g.name]] if g.kind == "choice" else x[g.name] for g in self._genes}
        try:
            values = run_trial(folder, {g.name: g.decode(picked[g.name]) for g in self._genes})
        except ParetoSearchError:
            out["F"] = [FAILED] * self.n_obj
        else:
            out["F"] = list(PeerSearch.open(folder).losses(values).values())


def search(peer: PeerSearch) -> None:
    """Goes on until it is ended."""
    workers = peer.config.workers
    ray.init(
        address="local",
        num_cpus=round(workers.count * workers.cpus),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    duplicates = MixedVariableDuplicateElimination()
    algorithm = NSGA2(
        pop_size=PER_WORKER * workers.count,
        sampling=MixedVariableSampling(),
        mating=MixedVariableMating(eliminate_duplicates=duplicates),
        eliminate_duplicates=duplicates,
    )
    minimize(Problem(peer), algorithm, ("n_gen", 10**6), seed=peer.config.search.seed)


def _variable(gene: Gene) -> Variable:
    if gene.kind == "real":
        return Real(bounds=(gene.encode(gene.low), gene.encode(gene.high)))
    if gene.kind == "integer":
        return Integer(bounds=(int(gene.low), int(gene.high)))
    # Choices by position: NumPy would turn the values into its own types.
    return Binary() if gene.kind == "boolean" else Choice(options=range(len(gene.choices)))
