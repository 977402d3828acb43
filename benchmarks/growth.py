"""Growth: seconds and memory of one worker with one thread against the number of items.

    python -m benchmarks.growth [--items 1000 10000 100000] [--json FILE]

Items have short generated titles and no categories, so that distances come from the text vectors; ten interactions an
item, fifty a user. The base model is MiniLM. Every size has a process, hence a peak of memory, of its own.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.limit import GENES, WEIGHT
from pareto_search.config import SearchConfig
from pareto_search.recsys.dataset import MOVIELENS
from pareto_search.recsys.ranking import Ranking
from pareto_search.recsys.split import Part, Sequences
from pareto_search.recsys.statistics import ItemStatistics
from pareto_search.workers.base import locate
from pareto_search.workers.encoder import Encoder, precision
from pareto_search.workers.losses import ItemTensors
from pareto_search.workers.recommender import Recommender, Shape, TowerScorer
from pareto_search.workers.task import Task
from pareto_search.workers.train import fine_tune

PER_ITEM, PER_USER = 10, 50
"""How many interactions an item has, and a user."""
RANKED = 1000
"""How many users are ranked; fewer where there are fewer."""
STEPS = 2
LAYERS = 2
WORDS = (
    *("amber", "brisk", "coastal", "distant", "early", "foreign", "gentle", "hidden", "inner", "jagged"),
    *("kettle", "lantern", "meadow", "needle", "orchard", "pocket", "quarry", "ribbon", "saddle", "timber"),
)

Figures = dict[str, float]


def titles(n_items: int) -> list[str]:
    """Titles of two or three words and a number, no two alike."""
    return [
        " ".join([WORDS[i % 10], WORDS[10 + i // 10 % 10], *WORDS[i % 7 : i % 7 + i % 2], str(i)])
        for i in range(n_items)
    ]


def histories(n_items: int) -> Sequences:
    """What users did: popularity falls with the 0.8th power of an item's rank."""
    rng = np.random.default_rng(0)
    popularity = np.arange(1, n_items + 1) ** -0.8
    drawn = rng.choice(n_items, n_items * PER_ITEM, p=popularity / popularity.sum())
    indptr = np.arange(0, len(drawn) + 1, PER_USER)
    ratings = rng.integers(1, 6, len(drawn)).astype(np.float32)
    return Sequences(indptr, rng.permutation(n_items)[drawn].astype(np.int32), ratings)


def last_out(sequences: Sequences, users: int) -> Part:
    """The last interaction of the first users is to be found from those before it."""
    rows = sequences.items.reshape(-1, PER_USER)[:users]
    before = Sequences(np.arange(0, rows[:, 1:].size + 1, PER_USER - 1), rows[:, :-1].ravel(), None)
    return Part(np.arange(len(rows), dtype=np.int32), before, Sequences(np.arange(len(rows) + 1), rows[:, -1], None))


def memory() -> float:
    """The largest resident size of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(n_items: int) -> Figures:
    """The figures of one size, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = SearchConfig.parse({"name": "growth", "data": {"source": MOVIELENS}})
    model, objectives = config.model, config.objectives
    figures = {"memory: imports": memory()}
    moments = [time.process_time()]

    def note(name: str, times: float = 1.0) -> None:
        moments.append(time.process_time())
        figures[f"seconds: {name}"] = (moments[-1] - moments[-2]) / times
        figures[f"memory: {name}"] = memory()

    train = histories(n_items)
    encoder = Encoder(
        locate(model.base),
        titles(n_items),
        max_tokens=model.max_item_tokens,
        layers=3,
        dtype=precision(model.dtype, "cpu"),
    )
    note("encoder")
    items = ItemStatistics.of(train, n_items, encoder.frozen.numpy())
    shape = Shape(n_items, model.width, model.history, model.tower, encoder.width, True, towers=model.towers)
    task = Task(encoder, Recommender(shape), train, ItemTensors(items, "cpu"), objectives)
    note("statistics")
    weights = {f"weight.{o.name}": WEIGHT for o in objectives}
    with fine_tune(task, {**GENES, **weights, "layers": LAYERS}, steps=STEPS, seed=0) as tuning:
        tuning.advance(STEPS)
        note("a step", STEPS)
        text = encoder.catalogue(LAYERS)
    note("catalogue")
    part = last_out(train, RANKED)
    ranking = Ranking(part, items, {"model": TowerScorer.of(tuning.model, text)})
    for name, setting in (("ranked", {}), ("re-ranked", {"diversity": 0.003, "novelty": 0.03})):
        ranking.values([setting], [o.name for o in objectives])
        note(f"1000 users {name}", len(part.users) / 1000)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {n: alone(n) for n in sorted(options.items)}
    print(f"{'':<32}" + "".join(f"{n:>10}" for n in found) + f"{'power':>8}")
    for name in next(iter(found.values())):
        values = [figures[name] for figures in found.values()]
        print(f"{name:<32}" + "".join(f"{v:10.3f}" for v in values) + f"{_power(list(found), values):8.2f}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def alone(n_items: int) -> Figures:
    """The figures of one size, from a process of its own."""
    program = f"import json; from benchmarks.growth import measure; print(json.dumps(measure({n_items})))"
    output = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True).stdout
    figures: Figures = json.loads(output.splitlines()[-1])
    return figures


def _power(sizes: Sequence[int], values: Sequence[float]) -> float:
    """The power of the number of items with which the values grow between the two largest sizes: 1 is linear."""
    if len(sizes) < 2:
        return math.nan
    return math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2])


if __name__ == "__main__":
    main()
