"""Cold items: does fine-tuning the encoder pay where an item has nothing but its text?

    python -m benchmarks.cold [--seeds 3] [--steps 20] [--json FILE]

A fifth of MovieLens-100K's items are held out at random with all their interactions. A warm start is trained on the
rest, and fine-tuned with and without adapters, for the same steps. Then the held-out items are ranked among themselves
for every user who has met some of them, from the user's history of other items: NDCG@10. EASE and SASRec have nothing
to say there; beside it stand the frozen encoder with decayed-mean users, and chance.
"""

import argparse
import json
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.limit import GENES
from pareto_search.config import SearchConfig
from pareto_search.executor import Files
from pareto_search.launch import workload
from pareto_search.recsys.baselines import DecayedMean
from pareto_search.recsys.dataset import MOVIELENS, Dataset, load
from pareto_search.recsys.metrics import Ranked, ndcg
from pareto_search.recsys.split import Sequences, gaps, order_of, split
from pareto_search.workers.encoder import Encoder
from pareto_search.workers.evaluate import scorer
from pareto_search.workers.losses import ItemTensors
from pareto_search.workers.recommender import Recommender, TowerScorer
from pareto_search.workers.train import Task, fine_tune
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
        passed = gaps(users, data.timestamps[order])
        self.texts = [text for text, out in zip(data.texts, held, strict=True) if out]
        self.warm = _without(data, held)
        place = np.where(held, np.cumsum(held), np.cumsum(~held)) - 1
        both = np.intersect1d(users[held[items]], users[~held[items]])
        self._history = _rows(users, place[items], passed, ~held[items], both)
        self._targets = _rows(users, place[items], passed, held[items], both)

    def ndcg(self, scores: NDArray[np.float32]) -> float:
        """NDCG@10 of scores `(m, n_cold)`."""
        lists = np.argsort(-scores, axis=1, kind="stable")[:, :K].astype(np.int32)
        return float(ndcg(Ranked.of(lists, self._targets, self._history), None).mean())  # type: ignore[arg-type]

    def chance(self, seed: int) -> float:
        rng = np.random.default_rng(seed)
        shape = len(self._targets.indptr) - 1, len(self.texts)
        return statistics.mean(self.ndcg(rng.random(shape, np.float32)) for _ in range(20))

    def frozen(self, warm: Encoder, cold: Encoder) -> float:
        """Of decayed-mean users over the base model's vectors."""
        vectors = np.concatenate([warm.frozen.numpy(), cold.frozen.numpy()])
        return self.ndcg(DecayedMean(vectors).scores(self._history)[:, -len(self.texts) :])

    @torch.no_grad()
    def tower(self, warm: TowerScorer, cold: TowerScorer) -> float:
        """Of the tower over warm items; a cold one has the projection of its text, and neither embedding nor bias."""
        users = warm.users(self._history)
        return self.ndcg((users @ cold.vectors.T).numpy())


def measure(seed: int, steps: int) -> dict[str, float]:
    """NDCG@10 on the held-out items of each way to rank them."""
    config = SearchConfig.parse({"name": "cold", "data": {"source": MOVIELENS}, "search": {"seed": seed}})
    cold = Cold(load(source=MOVIELENS), seed)
    work = workload(config, cold.warm, split(cold.warm, "leave_last_out", seed))
    worker = Worker(work)
    encoder, objectives = worker.encoder, work.objectives
    others = Encoder(worker.base, cold.texts, max_tokens=work.max_item_tokens, layers=work.layers, dtype=encoder.dtype)

    def scored(files: Files) -> float:
        return cold.tower(scorer(files, encoder), scorer(_without_items(files, len(cold.texts)), others))

    start = worker.fit("warm-start")
    assert start is not None
    found = {
        "chance": cold.chance(seed),
        "frozen encoder": cold.frozen(encoder, others),
        "warm start": scored(start),
    }
    task = Task(encoder, Recommender.loaded(start), work.split.train, ItemTensors(worker.items, "cpu"), objectives)
    weights = {f"weight.{o.name}": LEAST for o in objectives}
    for name, rate in RATES.items():
        genes = {**GENES, **weights, "layers": 2, "adapter_lr": rate}
        with fine_tune(task, genes, steps=steps, seed=seed) as tuning:
            tuning.advance(steps)
            files = tuning.adapter.files(work.base, None) | tuning.model.files({})
        found[name] = scored(files)
    return found


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
    passed: NDArray[np.uint8],
    inside: NDArray[np.bool_],
    users: NDArray[np.int32],
) -> Sequences:
    """What some users did, of the interactions that are inside; these are ordered by user."""
    inside = inside & np.isin(owners, users)
    counts = np.bincount(np.searchsorted(users, owners[inside]), minlength=len(users))
    return Sequences(np.concatenate([[0], np.cumsum(counts)]), items[inside].astype(np.int32), None, passed[inside])


def _without_items(files: Files, n_items: int) -> Files:
    """A checkpoint for items that it has never met: they have neither embedding nor bias."""
    model = Recommender.loaded(files)
    bare = Recommender(replace(model.shape, n_items=n_items, item_embeddings=False))
    kept = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("item_")}
    bare.load_state_dict(kept | {"item_bias": torch.zeros(n_items)})
    return {**files, **bare.files({})}


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
