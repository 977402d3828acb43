"""What the fine-tunings of a search have in common."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pareto_search.objective import Objective
from pareto_search.recsys.split import Sequences
from pareto_search.workers.distillation import Teacher
from pareto_search.workers.encoder import Encoder
from pareto_search.workers.losses import ItemTensors
from pareto_search.workers.recommender import Recommender


@dataclass(frozen=True)
class Task:
    """What every fine-tuning of a search has in common.

    Attributes:
        offered: `(n_items,)` the items of a target domain; None for everything.
        teacher: for candidates that ask for one.
    """

    encoder: Encoder
    start: Recommender
    train: Sequences
    items: ItemTensors
    objectives: Sequence[Objective]
    offered: NDArray[np.bool_] | None = None
    teacher: Teacher | None = None
