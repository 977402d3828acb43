"""How many floating-point operations a fine-tuning takes, by formula: the same on whatever machine.

Products alone count: of a frozen map with a gradient through it 4 operations a weight and token, of one that learns 6
(Kaplan et al., arXiv:2001.08361, section 2.1). What an adapter adds is left out, and so is attention among the tokens
of a short text.
"""

from torch import nn

from pareto_search.workers.batches import Batches
from pareto_search.workers.candidate_loss import BATCH
from pareto_search.workers.encoder import Encoder
from pareto_search.workers.lora import LINEAR
from pareto_search.workers.recommender import Shape
from pareto_search.workers.sample import FULL_SOFTMAX, SAMPLED
from pareto_search.workers.task import Task


def of_encoding(encoder: Encoder, layers: int, items: int) -> float:
    """There and back through the top blocks, for so many items of average length."""
    maps = (m for block in encoder.blocks[encoder.depth(layers) :] for m in block.modules() if isinstance(m, LINEAR))
    weights = sum(m.nx * m.nf if not isinstance(m, nn.Linear) else m.in_features * m.out_features for m in maps)
    return 4.0 * weights * items * float(encoder.lengths.mean())


def of_tower_batch(task: Task, shape: Shape) -> float:
    """There and back through the tower and the losses of its windows, for a batch of average size."""
    batches = Batches(task.train, shape.history, BATCH, 0, offered=task.offered)
    positions = float(len(task.train.items)) / batches.per_epoch
    seen = shape.n_items if shape.n_items <= FULL_SOFTMAX else SAMPLED
    block = 6 * shape.width**2 if shape.tower == "attention" else 0
    return 6.0 * (positions * (block + seen * shape.width) + seen * shape.text_width * shape.width)
