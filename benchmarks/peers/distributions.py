"""Our search space in Optuna's words."""

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from pareto_search.space import Gene, SearchSpace


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """A distribution for each gene that varies."""
    return {gene.name: _distribution(gene) for gene in space.genes}


def _distribution(gene: Gene) -> BaseDistribution:
    if gene.kind == "real":
        return FloatDistribution(gene.low, gene.high, log=gene.log)
    if gene.kind == "integer":
        return IntDistribution(int(gene.low), int(gene.high))
    return CategoricalDistribution(gene.choices if gene.kind == "choice" else (False, True))
