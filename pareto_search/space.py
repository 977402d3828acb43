"""Genes and the search space: what can be varied, and the mapping between a vector and named values."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeGuard

from pareto_search.candidate import Genes, GeneValue
from pareto_search.errors import ConfigError, nearest
from pareto_search.objective import Objective

Kind = Literal["real", "integer", "choice", "boolean"]
Role = Literal["training", "serving"]

ACCURACY = ("ndcg", "recall", "hr", "mrr", "precision")
"""The metrics that count hits: -log p(next) is the surrogate of each."""
SURROGATED = ("ild", "novelty", "credibility", "calibration", "history_novelty", "tail", "coverage", "gini")
"""The other metrics that training can be asked for: each has a surrogate loss, whose weight is a gene."""
START = "warm-start"
"""The component that candidates start from."""
TEXT = "text"
FITTED = "fitted"
"""What a config's `space` says of a gene that is to take its likeliest value."""
SASREC = "sasrec"
BLENDED = ("ease", SASREC, TEXT)
"""Components whose scores an entry may add to its own: each is a serving gene, its weight. SASRec, which knows little
that the towers do not, is there only where a config asks for it.
"""


@dataclass(frozen=True)
class Gene:
    """One decision variable.

    Attributes:
        role: `training` costs a fine-tuning, `serving` re-ranks a finished checkpoint.
        low, high: what is searched of a real or integer gene, both included.
        least, most: what makes sense at all, both included; a config may ask for any range inside.
        log: whether a real gene is searched on a log scale.
        optional: whether a log gene may also be fixed at 0, which leaves out what it scales.
        fitted: whether a serving gene takes its likeliest value for each checkpoint, unless a config asks for others.
        default: what it is unless a config asks for others; None for a gene that varies.
        choices: the values of a choice gene.
    """

    name: str
    kind: Kind
    role: Role = "training"
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    optional: bool = False
    fitted: bool = False
    default: GeneValue | None = None
    choices: tuple[GeneValue, ...] = ()
    least: float = 0.0
    most: float = math.inf

    def encode(self, value: GeneValue) -> GeneValue:
        """The value on the scale that is searched: log10 for a log gene, else itself."""
        return math.log10(float(value)) if self.log else value

    def decode(self, encoded: GeneValue) -> GeneValue:
        """The inverse of `encode`, kept inside the bounds and of the gene's own type."""
        if self.kind == "real":
            value = 10.0 ** float(encoded) if self.log else float(encoded)
            return min(max(value, self.low), self.high)
        if self.kind == "integer":
            return min(max(round(float(encoded)), int(self.low)), int(self.high))
        return bool(encoded) if self.kind == "boolean" else encoded

    def from_unit(self, u: float) -> GeneValue:
        """The value at `u` in [0, 1) of the searched scale."""
        if self.kind == "boolean":
            return u >= 0.5
        if self.kind == "choice":
            return self.choices[min(int(u * len(self.choices)), len(self.choices) - 1)]
        if self.kind == "integer":
            return int(self.low) + min(int(u * (self.high - self.low + 1)), int(self.high - self.low))
        low, high = float(self.encode(self.low)), float(self.encode(self.high))
        return self.decode(low + u * (high - low))

    def to_unit(self, value: GeneValue) -> float:
        """Where in [0, 1] of the searched scale a real value lies."""
        low, high, at = (float(self.encode(v)) for v in (self.low, self.high, value))
        return (at - low) / (high - low)

    def narrowed(self, wish: object) -> "Gene | GeneValue":
        """The gene under a config's `space` entry: a new range or list of choices, or one fixed value.

        Raises:
            ConfigError: the wish does not fit the gene's kind.
        """
        wishes: list[object] = wish if isinstance(wish, list) else [wish]
        if self.kind in ("real", "integer"):
            numbers = [float(w) for w in wishes if _is_number(w)]
            fits = len(numbers) == len(wishes) and (self.kind == "real" or all(n.is_integer() for n in numbers))
            off = self.optional and not isinstance(wish, list) and numbers == [0.0]
            fits = fits and not (self.log and not off and min(numbers, default=0.0) <= 0)
            inside = fits and all(self.least <= n <= self.most for n in numbers)
            if inside and isinstance(wish, list) and len(numbers) == 2 and numbers[0] < numbers[1]:
                return replace(self, low=numbers[0], high=numbers[1])
            if inside and not isinstance(wish, list):
                return numbers[0] if self.kind == "real" else int(numbers[0])
            if fits and not inside:
                bounds = f"from {self.least:g}" + (f" to {self.most:g}" if self.most < math.inf else " up")
                raise ConfigError(f"space.{self.name} is {wish!r}; expected values {bounds}")
            positive = " of positive numbers" if self.log else ""
            raise ConfigError(f"space.{self.name} is {wish!r}; expected a range [low, high]{positive} or one value")
        known: tuple[GeneValue, ...] = self.choices if self.kind == "choice" else (False, True)
        kept = tuple(k for k in known if any(_same(k, w) for w in wishes))
        if not wishes or not all(any(_same(k, w) for k in known) for w in wishes):
            raise ConfigError(f"space.{self.name} is {wish!r}; expected some of {list(known)}")
        if len(kept) == 1:
            return kept[0]
        return replace(self, choices=kept) if self.kind == "choice" else self


@dataclass(frozen=True)
class SearchSpace:
    """All genes of a search, and the values that are fixed.

    Attributes:
        genes: what varies.
        fixed: name -> value of genes that a config pinned, with `roles` for each.
        fitted: the serving genes that take their likeliest values; see `recsys.likelihood`.
    """

    genes: tuple[Gene, ...]
    fixed: Mapping[str, GeneValue]
    roles: Mapping[str, Role]
    fitted: tuple[str, ...] = ()

    @classmethod
    def build(cls, genes: Sequence[Gene], wishes: Mapping[str, object]) -> "SearchSpace":
        """The default genes under a config's `space` section.

        Raises:
            ConfigError: a wish names no gene, or does not fit its kind.
        """
        known = {g.name: g for g in genes}
        for name in wishes:
            if name not in known:
                raise ConfigError(f"space.{name} is no gene; {nearest(name, known)}")
        varied: list[Gene] = []
        fixed: dict[str, GeneValue] = {}
        fitted = tuple(gene.name for gene in genes if gene.fitted and wishes.get(gene.name, FITTED) == FITTED)
        for gene in genes:
            if gene.name in fitted:
                continue
            usual = gene if gene.default is None else gene.default
            outcome = gene.narrowed(wishes[gene.name]) if gene.name in wishes else usual
            if isinstance(outcome, Gene):
                varied.append(outcome)
            else:
                fixed[gene.name] = outcome
        return cls(tuple(varied), fixed, {g.name: g.role for g in genes}, fitted)

    def of(self, role: Role) -> "SearchSpace":
        """The part of the space with one role."""
        return SearchSpace(
            tuple(g for g in self.genes if g.role == role),
            {n: v for n, v in self.fixed.items() if self.roles[n] == role},
            {n: r for n, r in self.roles.items() if r == role},
            tuple(n for n in self.fitted if self.roles[n] == role),
        )

    def without(self, names: Collection[str]) -> "SearchSpace":
        """The space without some genes."""
        return SearchSpace(
            tuple(g for g in self.genes if g.name not in names),
            {n: v for n, v in self.fixed.items() if n not in names},
            {n: r for n, r in self.roles.items() if n not in names},
            tuple(n for n in self.fitted if n not in names),
        )

    def at(self, values: Genes) -> "SearchSpace":
        """The space with its fitted genes fixed at some values."""
        return replace(self, fixed={**self.fixed, **values}, fitted=())

    def from_unit(self, vector: Sequence[float]) -> Genes:
        """Named values at a point `(len(genes),)` of the unit cube, fixed ones included."""
        return {g.name: g.from_unit(float(u)) for g, u in zip(self.genes, vector, strict=True)} | dict(self.fixed)

    def to_unit(self, genes: Genes) -> list[float]:
        """The point of the unit cube that stands for real genes: the inverse of `from_unit`."""
        return [g.to_unit(genes[g.name]) for g in self.genes]

    def decode(self, encoded: Mapping[str, GeneValue]) -> Genes:
        """Named values from encoded ones, fixed ones included."""
        return {g.name: g.decode(encoded[g.name]) for g in self.genes} | dict(self.fixed)

    def encode(self, genes: Genes) -> dict[str, GeneValue]:
        """Encoded values of the genes that vary: the inverse of `decode`."""
        return {g.name: g.encode(genes[g.name]) for g in self.genes}


def default_genes(objectives: Sequence[Objective], blended: Collection[str]) -> tuple[Gene, ...]:
    """Everything that a search of these objectives can vary; a config's `space` narrows or fixes it.

    Accuracy metrics share one loss, whose weight is 1. The weights of the others are relative to it and on a log scale:
    a small one on novelty can cost most of the accuracy.

    Args:
        blended: the components whose weights are genes.
    """
    lists = [o.name for o in objectives if metric_family(o.name) in SURROGATED]
    weights = [Gene(f"weight.{name}", "real", low=10**-2.5, high=2.0, log=True, optional=True) for name in lists]
    training = [
        Gene("scalarisation", "choice", choices=("weighted_sum", "tchebycheff")),
        Gene("adapter", "choice", choices=("lora", "rslora", "dora", "full"), default="lora"),
        Gene("rank", "choice", choices=(4, 8, 16, 32)),
        Gene("alpha", "real", low=4.0, high=64.0, log=True),
        Gene("dropout", "real", low=0.0, high=0.2, most=0.9),
        Gene("targets", "choice", choices=("query_value", "attention", "all")),
        Gene("layers", "integer", low=1, high=3, least=1),
        Gene("adapter_lr", "real", low=3e-4, high=1e-2, log=True, optional=True),
        Gene("tower_lr", "real", low=1e-4, high=5e-3, log=True),
        Gene("weight_decay", "real", low=1e-3, high=0.2, log=True),
        Gene("temperature", "real", low=0.7, high=1.4, log=True),
        Gene("id_embeddings", "boolean"),
        Gene("distillation", "real", log=True, optional=True, default=0.0),
    ]
    # Re-ranking for what no objective asks could only cost accuracy.
    families = {metric_family(o.name) for o in objectives}
    reranking = [
        Gene(name, "real", "serving", low=low, high=high, log=True, optional=True)
        for name, family, low, high in (
            ("diversity", "ild", 3e-5, 0.1),
            ("novelty", "novelty", 1e-4, 0.5),
            ("credibility", "credibility", 1e-4, 1.0),
        )
        if family in families
    ]
    # Where nothing is re-ranked, what is blended in is all by which the lists of one checkpoint differ.
    fitted = bool(reranking)
    if reranking or "ece" in families:
        reranking.append(Gene("sharpness", "real", "serving", low=0.4, high=2.0, log=True, fitted=True))
    # A tower that has not met the items has little to say beside their text.
    blending = [
        Gene(name, "real", "serving", high=8.0 if name == TEXT else 1.0, fitted=fitted)
        for name in BLENDED
        if name in blended
    ]
    return (*weights, *training, *reranking, *blending)


def metric_family(name: str) -> str:
    """A metric's name without its cut-off: `ndcg@10` -> `ndcg`; that of a group of users is no such metric."""
    return name if "[" in name else name.partition("@")[0]


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _same(known: GeneValue, wish: object) -> bool:
    # In Python, True equals 1.
    return known == wish and isinstance(known, bool) == isinstance(wish, bool)
