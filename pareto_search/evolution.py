"""Evolution: proposes candidates and learns from their scores, by pymoo's NSGA2 or SPEA2.

Only this file knows that pymoo minimises, and that it holds its variables, objectives and violations in arrays named X,
F and G. A search holds named values in their own direction, and asks and tells in whatever order its workers finish.
"""

import math
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Literal

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2, RankAndCrowdingSurvival, binary_tournament
from pymoo.algorithms.moo.spea2 import SPEA2, SPEA2Survival, spea_binary_tournament
from pymoo.core.algorithm import Algorithm
from pymoo.core.individual import Individual
from pymoo.core.mixed import MixedVariableMating, MixedVariableSampling
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.core.variable import Binary, Choice, Integer, Real, Variable
from pymoo.operators.selection.tournament import TournamentSelection

from pareto_search.candidate import Candidate, Forerunner, Genes, candidate_id
from pareto_search.objective import Constraint, Objective, Values, violations
from pareto_search.space import Gene, SearchSpace

AlgorithmName = Literal["nsga2", "spea2"]

_TRIES = 100
"""How often each random source may repeat an earlier proposal before the next source is tried."""

_FAILED = 1e30
"""F and G of a failed candidate, in distances from reference to ideal: finite, and worse than any that was scored."""


class Evolution:
    """A steady-state evolutionary algorithm that is asked once per free worker and told once per finished candidate.

    The first `population` proposals are a random sample, which pymoo wants told together: what is told is held back
    until all of it has come back or been put off. Asking meanwhile never blocks; it gives further random points, which
    join the population as offspring do. After that every proposal is one offspring of two parents chosen by tournament.
    Forerunners take the place of the first of the sample: the genes are theirs, and they are the parents.

    The same seed and the same order of calls give the same proposals, bit for bit. No proposal equals an earlier one.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint],
        *,
        algorithm: AlgorithmName,
        population: int,
        seed: int,
        forerunners: Sequence[Forerunner] = (),
    ) -> None:
        self._space = space
        self._objectives = tuple(objectives)
        self._constraints = tuple(constraints)
        self._asked: dict[str, Candidate] = {}
        self._in_flight: dict[str, Individual] = {}
        self._seen: set[tuple[object, ...]] = set()

        self._algorithm = _algorithm(algorithm, population)
        problem = Problem(
            vars={g.name: _variable(g) for g in space.genes},
            n_obj=len(self._objectives),
            n_ieq_constr=len(self._objectives) + len(self._constraints),
        )
        self._algorithm.setup(problem, termination=NoTermination(), seed=seed)
        # A small space repeats itself in a random sample; the population then starts smaller and grows.
        distinct: dict[tuple[object, ...], tuple[Individual, tuple[str, ...]]] = {}
        for individual, parents in (
            *((self._encode(s.genes), (s.id,)) for s in forerunners),
            *((i, ()) for i in self._algorithm.ask()),
        ):
            distinct.setdefault(_key(self._decode(individual)), (individual, parents))
        self._unasked = deque(list(distinct.values())[:population])
        self._founders = {candidate_id(n + 1) for n in range(len(self._unasked))}
        self._awaited = set(self._founders)
        self._held: dict[str, Individual] = {}  # what was told before the population was founded
        self._begun = False

    def ask(self) -> Candidate | None:
        """The next candidate, unlike any before it; None when the space is exhausted.

        A space with a real gene counts as exhausted when chance alone finds nothing new in it.
        """
        for individual, parents in self._proposals():
            genes = self._decode(individual)
            if _key(genes) not in self._seen:
                candidate = Candidate(candidate_id(len(self._asked) + 1), genes, parents)
                individual.set("candidate", candidate.id)
                self._seen.add(_key(genes))
                self._asked[candidate.id] = candidate
                self._in_flight[candidate.id] = individual
                return candidate
        return None

    def tell(self, candidate: Candidate, values: Values | None) -> None:
        """Learns a candidate's scores, in their own directions; None for a candidate that failed.

        Raises:
            ValueError: the candidate was not asked for here or was told before, or a value is missing or not finite.
        """
        asked = self._asked.get(candidate.id)
        if asked is None or dict(asked.genes) != dict(candidate.genes):
            raise ValueError(f"candidate {candidate.id} was told, but ask() never gave it")
        if candidate.id not in self._in_flight:
            raise ValueError(f"candidate {candidate.id} was told twice; tell each candidate once")
        F, G = self._minimised(candidate, values)
        individual = self._in_flight.pop(candidate.id)
        individual.set("F", F)
        individual.set("G", G)

        if self._begun:
            self._advance(individual)
            return
        self._held[candidate.id] = individual
        self.put_off(candidate)

    def put_off(self, candidate: Candidate) -> None:
        """A candidate will be told later or never: it waits at a rung, and nobody should wait for it."""
        self._awaited.discard(candidate.id)
        self._begin()

    @property
    def population(self) -> set[str]:
        """The ids of the candidates that may become parents."""
        if not self._begun:
            return set(self._asked) - set(self._in_flight)
        return {i.data["candidate"] for i in self._algorithm.pop}

    def _proposals(self) -> Iterator[tuple[Individual, tuple[str, ...]]]:
        """Individuals with their parents' ids, from the best source to the last resort; some may be known already."""
        while self._unasked:
            yield self._unasked.popleft()
        if self._begun:
            for _ in range(_TRIES):
                yield self._offspring()
        for _ in range(_TRIES):
            yield from ((i, ()) for i in self._random())
        if all(g.kind != "real" for g in self._space.genes):
            # Ends after one step more than there were proposals, however large the space: one of those must be new.
            for point in product(*(_levels(g) for g in self._space.genes)):
                names = (g.name for g in self._space.genes)
                yield Individual(X=dict(zip(names, point, strict=True))), ()

    def _begin(self) -> None:
        """Lets the founders found the population once none is awaited and there are two to mate."""
        if self._begun or self._awaited or len(self._held) < 2:
            return
        self._begun = True
        first = sorted(self._founders & self._held.keys()) or list(self._held)
        self._advance(*(self._held.pop(name) for name in first))
        while self._held:
            self._advance(self._held.pop(next(iter(self._held))))

    def _advance(self, *individuals: Individual) -> None:
        # pymoo's own `tell` also looks for the best of the population, which nobody asks for.
        algorithm, new = self._algorithm, Population.create(*individuals)
        size = algorithm.pop_size if len(algorithm.pop) else len(new)
        everyone = Population.merge(algorithm.pop, new)
        context = {"algorithm": algorithm, "random_state": algorithm.random_state}
        # SPEA2 in pymoo silences all warnings of the process, and divides by zero where an objective is constant.
        with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
            algorithm.pop = algorithm.survival.do(algorithm.problem, everyone, n_survive=size, **context)

    def _random(self) -> Population:
        sampling = MixedVariableSampling()
        return sampling(self._algorithm.problem, 1, random_state=self._algorithm.random_state)

    def _offspring(self) -> tuple[Individual, tuple[str, ...]]:
        # pymoo's mating would select the parents itself and then forget them.
        algorithm, mating = self._algorithm, self._algorithm.mating
        context = {"algorithm": algorithm, "random_state": algorithm.random_state}
        pairs = mating.selection(algorithm.problem, algorithm.pop, 1, 2, **context)
        (child,) = mating.do(algorithm.problem, pairs, 1, parents=True, **context)
        return child, tuple(dict.fromkeys(parent.get("candidate") for parent in pairs[0]))

    def _encode(self, genes: Genes) -> Individual:
        chosen = {g.name: g.choices.index(genes[g.name]) for g in self._space.genes if g.kind == "choice"}
        return Individual(X=self._space.encode(genes) | chosen)

    def _decode(self, individual: Individual) -> Genes:
        encoded = {g.name: individual.X[g.name] for g in self._space.genes}
        chosen = {g.name: g.choices[encoded[g.name]] for g in self._space.genes if g.kind == "choice"}
        return self._space.decode(encoded | chosen)

    def _minimised(self, candidate: Candidate, values: Values | None) -> tuple[np.ndarray, np.ndarray]:
        """F `(objectives,)` and G `(objectives + constraints,)`: less is better, and G above 0 is infeasible."""
        if values is None:
            m = len(self._objectives)
            return np.full(m, _FAILED), np.full(m + len(self._constraints), _FAILED)
        for name in [o.name for o in self._objectives] + [c.metric for c in self._constraints]:
            if not math.isfinite(values.get(name, math.nan)):
                raise ValueError(
                    f"candidate {candidate.id} has {name} = {values.get(name)}; expected a finite number, "
                    "or None instead of the values for a candidate that failed"
                )
        F = np.array([-o.normalise(values[o.name]) for o in self._objectives])
        return F, np.array(violations(values, self._objectives, self._constraints))


def _algorithm(name: AlgorithmName, population: int) -> Algorithm:
    kind, survival, compare = {
        "nsga2": (NSGA2, RankAndCrowdingSurvival(), binary_tournament),
        # A fresh survival each time: pymoo's default one is shared by all searches of a process and keeps state.
        "spea2": (SPEA2, SPEA2Survival(normalize=True), spea_binary_tournament),
    }[name]
    return kind(
        pop_size=population,
        n_offsprings=1,
        sampling=MixedVariableSampling(),
        # pymoo looks for duplicates in the population only; `Evolution.ask` knows every proposal.
        mating=MixedVariableMating(selection=TournamentSelection(func_comp=compare), eliminate_duplicates=None),
        survival=survival,
        eliminate_duplicates=False,
    )


def _variable(gene: Gene) -> Variable:
    if gene.kind == "real":
        return Real(bounds=(gene.encode(gene.low), gene.encode(gene.high)))
    if gene.kind == "integer":
        return Integer(bounds=(int(gene.low), int(gene.high)))
    # Choices are searched by position: NumPy would turn the values into its own types, and mixed ones into strings.
    return Binary() if gene.kind == "boolean" else Choice(options=_levels(gene))


def _levels(gene: Gene) -> Sequence[int]:
    """The encoded values of a gene that is not real."""
    if gene.kind == "integer":
        return range(int(gene.low), int(gene.high) + 1)
    return (False, True) if gene.kind == "boolean" else range(len(gene.choices))


def _key(genes: Genes) -> tuple[object, ...]:
    return tuple(genes.values())
