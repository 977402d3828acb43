"""Early stopping: a fine-tuning looks at validation now and then, and ends where nothing is gained there any more.

What it looks at is its own loss there, without its teacher's, of lists that hold nothing seen (Prechelt, Neural
Networks: Tricks of the Trade, 1998).
"""

import math
from collections.abc import Callable, Iterator

from pareto_search.recsys.baselines import Scorer
from pareto_search.recsys.ranking import Ranking
from pareto_search.workers.train import FineTuning

LOOKS = 10
"""How often it looks on its way to the last step, at most, beside the look at where it starts."""


def patiently(tuning: FineTuning, steps: int, patience: int, ranking: Callable[[Scorer], Ranking]) -> Iterator[int]:
    """To which step a fine-tuning is to be advanced, time after time; at the end it is what it was at the best of them.

    Each of these is a pause, after which all items are encoded and the batches drawn afresh; see `FineTuning`.

    Args:
        tuning: one that has not begun.
        steps: the last one.
        patience: it ends after so many looks without a gain.
        ranking: of the validation part with a scorer.

    Raises:
        DivergedError: the loss is not finite.
    """
    least, best, waited = math.inf, tuning.snapshot(), 0
    every = -(-steps // LOOKS)
    for step in (0, *range(every, steps, every), steps):
        if step:
            yield step
        loss = tuning.loss_on(ranking(tuning.scorer()))
        if loss < least:
            least, best, waited = loss, tuning.snapshot(), 0
        else:
            waited += 1
        if waited == patience:
            break
    tuning.restore(best)
