"""Cold items: does fine-tuning the encoder pay where an item has nothing but its text?

    python -m benchmarks.cold [--seeds 3] [--steps 20] [--json FILE]

A fifth of MovieLens-100K's items are held out at random with all their interactions. A warm start is trained on the
rest, and fine-tuned with and without adapters, for the same steps. Then the held-out items are ranked among themselves
for every user who has met some of them, from the user's history of other items: NDCG@10. EASE and SASRec have nothing
to say there; beside it stand the frozen encoder with decayed-mean users, the same with whitened vectors (`text`), the
warm start with that blended in as an entry would have it, by a weight fitted to the validation part of the rest, and
chance.
"""

import argparse
import json
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.limit import GENES
from pareto_search.config import SearchConfig
from pareto_search.executor import Files
from pareto_search.launch import workload
from pareto_search.recsys.baselines import DecayedMean, interactions, whitened
from pareto_search.recsys.dataset import MOVIELENS, Dataset, load
from pareto_search.recsys.metrics import Ranked, ndcg
from pareto_search.recsys.ranking import Ranking
from pareto_search.recsys.rerank import standardise
from pareto_search.recsys.split import Sequences, gaps, order_of, split
from pareto_search.refreshing import moved
from pareto_search.space import TEXT
from pareto_search.workers.encoder import Encoder
from pareto_search.workers.evaluate import component, scorer
from pareto_search.workers.losses import ItemTensors
from pareto_search.workers.recommender import Recommender
from pareto_search.workers.task import Task
from pareto_search.workers.train import fine_tune
from pareto_search.workers.worker import Worker

SHARE = 0.2
"""Of the items, which are held out."""
K = 10
LEAST = 10**-2.5
"""The weight of every list objective, so that accuracy decides."""
RATES: Mapping[str, float] = {"warm start, fine-tuned": 3e-3, "the same, encoder frozen": 0.0}
"""Name -> learning rate of the adapter."""


class Cold:
    """Items that are held out, and the users who have met some of them."""

    def __init__(self, data: Dataset, seed: int) -> None:
        held = np.zeros(len(data.item_ids), bool)
        held[np.random.default_rng(seed).permutation(len(held))[: round(SHARE * len(held))]] = True
        order = order_of(data, seed)
        users, items = data.users[order], data.items[order]
        times = data.timestamps[order]
        self.warm, self.count = _without(data, held), int(held.sum())
        self.texts = [*self.warm.texts, *(text for text, out in zip(data.texts, held, strict=True) if out)]
        place = np.where(held, np.cumsum(held), np.cumsum(~held)) - 1
        both = np.intersect1d(users[held[items]], users[~held[items]])
        self._history = _rows(users, place[items], times, ~held[items], both)
        self._targets = _rows(users, place[items], times, held[items], both)

    def ndcg(self, scores: NDArray[np.float32]) -> float:
        """NDCG@10 of the cold items, which are the last of scores `(m, n)`."""
        lists = np.argsort(-scores[:, -self.count :], axis=1, kind="stable")[:, :K].astype(np.int32)
        return float(ndcg(Ranked.of(lists, self._targets, self._history), None).mean())  # type: ignore[arg-type]

    def chance(self, seed: int) -> float:
        rng = np.random.default_rng(seed)
        shape = len(self._targets.indptr) - 1, self.count
        return statistics.mean(self.ndcg(rng.random(shape, np.float32)) for _ in range(20))

    def frozen(self, encoder: Encoder) -> float:
        """Of decayed-mean users over the base model's vectors."""
        return self.ndcg(DecayedMean(encoder.frozen.numpy()).scores(self._history))

    def text(self, encoder: Encoder) -> NDArray[np.float32]:
        """Scores by whitened vectors, of which only the warm items' say what is usual."""
        warm = np.arange(len(self.texts)) < len(self.texts) - self.count
        return DecayedMean(whitened(encoder.frozen.numpy(), warm)).scores(self._history)

    def checkpoint(self, files: Files, encoder: Encoder) -> NDArray[np.float32]:
        """Scores of a checkpoint over the warm items; a cold one has its text, and no embedding.

        Args:
            encoder: over all texts, the warm items' first.
        """
        place = np.arange(len(self.texts))
        place[-self.count :] = -1
        return scorer(moved(files, [str(item) for item in place], place, {}), encoder).scores(self._history)

    def blended(self, model: NDArray[np.float32], text: NDArray[np.float32], weight: float) -> float:
        """NDCG@10 of both together."""
        seen = interactions(self._history, len(self.texts)).toarray() > 0
        return self.ndcg(model + np.float32(weight) * standardise(text, seen))


def measure(seed: int, steps: int) -> dict[str, float]:
    """NDCG@10 on the held-out items of each way to rank them."""
    config = SearchConfig.parse({"name": "cold", "data": {"source": MOVIELENS}, "search": {"seed": seed}})
    cold = Cold(load(source=MOVIELENS), seed)
    work = workload(config, cold.warm, split(cold.warm, "leave_last_out", seed))
    worker = Worker(work)
    encoder, objectives = worker.encoder, work.objectives
    whole = Encoder(worker.base, cold.texts, max_tokens=work.max_item_tokens, layers=work.layers, dtype=encoder.dtype)
    start = worker.fit("warm-start")
    assert start is not None
    warm, text = cold.checkpoint(start, whole), cold.text(whole)
    found = {
        "chance": cold.chance(seed),
        "frozen encoder": cold.frozen(whole),
        "text": cold.ndcg(text),
        "warm start": cold.ndcg(warm),
        "warm start and text": cold.blended(warm, text, _weight(worker, start)),
    }
    task = Task(encoder, Recommender.loaded(start), work.split.train, ItemTensors(worker.items, "cpu"), objectives)
    weights = {f"weight.{o.name}": LEAST for o in objectives}
    for name, rate in RATES.items():
        genes = {**GENES, **weights, "layers": 2, "adapter_lr": rate}
        with fine_tune(task, genes, steps=steps, seed=seed) as tuning:
            tuning.advance(steps)
            files = tuning.adapter.files(work.base, None) | tuning.model.files({})
        found[name] = cold.ndcg(cold.checkpoint(files, whole))
    return found


def _weight(worker: Worker, start: Files) -> float:
    """What the text weighs beside the warm start, where validation is likeliest."""
    text = worker.fit(TEXT)
    assert text is not None
    scorers = {"model": scorer(start, worker.encoder), TEXT: component(text)}
    ranking = Ranking(worker.load.split.validation, worker.items, scorers)
    return float(ranking.fitted(worker.load.space).fixed[TEXT])


def _without(data: Dataset, held: NDArray[np.bool_]) -> Dataset:
    """The data without some items and all that was done with them."""
    kept, rows = np.flatnonzero(~held), ~held[data.items]
    assert data.ratings is not None
    assert data.categories is not None
    return replace(
        data,
        item_ids=tuple(data.item_ids[i] for i in kept),
        users=data.users[rows],
        items=(np.cumsum(~held) - 1)[data.items[rows]].astype(np.int32),
        ratings=data.ratings[rows],
        timestamps=data.timestamps[rows],
        texts=tuple(data.texts[i] for i in kept),
        titles=tuple(data.titles[i] for i in kept),
        categories=tuple(data.categories[i] for i in kept),
    )


def _rows(
    owners: NDArray[np.int32],
    items: NDArray[np.int64],
    times: NDArray[np.float64],
    inside: NDArray[np.bool_],
    users: NDArray[np.int32],
) -> Sequences:
    """What some users did, of the interactions that are inside; these are ordered by user."""
    inside = inside & np.isin(owners, users)
    counts = np.bincount(np.searchsorted(users, owners[inside]), minlength=len(users))
    passed = gaps(owners[inside], times[inside])
    return Sequences(np.concatenate([[0], np.cumsum(counts)]), items[inside].astype(np.int32), None, passed)


def main() -> None:
    """Prints a line for each way: mean over the seeds, and the range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    measured = [measure(seed, options.steps) for seed in range(options.seeds)]
    for name in measured[0]:
        values = [figures[name] for figures in measured]
        print(f"{name:<28}{statistics.mean(values):.4f} ({min(values):.4f}–{max(values):.4f})")
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
