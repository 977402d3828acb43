"""What all candidates of a search share, in words that need no torch: the driver writes them, workers read them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pareto_search.objective import Constraint, Objective
from pareto_search.recsys.split import Split
from pareto_search.space import SearchSpace

Precision = Literal["auto", "bfloat16", "float32", "nf4"]
TowerKind = Literal["attention", "decayed_mean"]


@dataclass(frozen=True)
class Workload:
    """Sent to each worker once.

    Attributes:
        base, revision, dtype, max_item_tokens, history, tower, towers, time_gaps, width: the config's section `model`.
        texts: what the encoder reads, one an item.
        categories: of each item, or None where distances come from the frozen text vectors.
        space: serving genes only.
        metrics: what is evaluated.
        rungs: the steps at which a candidate is scored; the last one is the full rung.
        patience: see `patience.patiently`; None for none of it.
        layers: the most blocks that any candidate adapts.
        rank: the highest that any candidate's adapter may have, but for whole maps.
        notes: written into each checkpoint's `recommender.json`.
    """

    base: str
    revision: str | None
    dtype: Precision
    max_item_tokens: int
    history: int
    tower: TowerKind
    towers: int
    time_gaps: bool
    width: int
    texts: Sequence[str]
    categories: Sequence[Sequence[str]] | None
    split: Split
    objectives: Sequence[Objective]
    constraints: Sequence[Constraint]
    metrics: Sequence[str]
    space: SearchSpace
    rungs: Sequence[int]
    patience: int | None
    serving_settings: int
    seed: int
    layers: int
    rank: int
    notes: Mapping[str, object] = field(default_factory=dict)
