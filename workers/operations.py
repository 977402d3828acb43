"""How many floating-point operations a fine-tuning takes, by formula: the same on whatever machine.

Products alone count: of a frozen map with a gradient through it 4 operations a weight and token, of one that learns 6
(Kaplan et al., arXiv:2001.08361, section 2.1). Left out is what is little beside it (what an adapter adds, attention
among the tokens of a short text, the lists, what a batch names beside a sample), and what depends on how the work is
done: blocks below those that are adapted, whose results are cached, and the looks that patience takes.
"""

import math

from pareto_search.workers.batches import Batches
from pareto_search.workers.candidate_loss import BATCH
from pareto_search.workers.encoder import Encoder
from pareto_search.workers.lora import LINEAR, widths
from pareto_search.workers.recommender import Shape
from pareto_search.workers.sample import FULL_SOFTMAX, SAMPLED
from pareto_search.workers.task import Task


def of_encoding(encoder: Encoder, layers: int, items: int) -> float:
    """There and back through the top blocks, for so many items of average length."""
    top = encoder.blocks[len(encoder.blocks) - layers :]
    weights = sum(math.prod(widths(m)) for block in top for m in block.modules() if isinstance(m, LINEAR))
    return 4.0 * weights * items * float(encoder.lengths.mean())


def of_tower_batch(task: Task, shape: Shape) -> float:
    """There and back through the tower and the losses of its windows, for a batch of average size."""
    positions = Batches(task.train, shape.history, BATCH, 0, offered=task.offered).per_batch
    seen = shape.n_items if shape.n_items <= FULL_SOFTMAX else SAMPLED
    block = 6 * shape.width**2 if shape.tower == "attention" else 0
    return 6.0 * (positions * (block + seen * shape.width) + seen * shape.text_width * shape.width)
