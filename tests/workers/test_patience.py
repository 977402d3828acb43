"""Early stopping, on losses that are given, and on the toy data."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from pareto_search.candidate import Attempt, Candidate
from pareto_search.errors import DivergedError
from pareto_search.executor import Result
from pareto_search.objective import Objective
from pareto_search.recsys.ranking import Ranking
from pareto_search.workers.evaluate import scorer
from pareto_search.workers.patience import patiently
from pareto_search.workers.train import OPTIMISER, FineTuning, fine_tune
from pareto_search.workers.worker import PackWorker, Worker
from pareto_search.workers.workload import Workload


class Scripted:
    """A fine-tuning whose loss at each look is known beforehand."""

    def __init__(self, losses: Sequence[float]) -> None:
        self._losses, self.done, self.restored = iter(losses), 0, -1

    def loss_on(self, _: object) -> float:
        return next(self._losses)

    def scorer(self) -> None:
        return None

    def snapshot(self) -> int:
        return self.done

    def restore(self, snapshot: int) -> None:
        self.restored = snapshot


@pytest.mark.parametrize(
    ("steps", "patience", "losses", "stops", "best"),
    [
        (10, 2, [5, 4, 6, 3, 3.5, 3], [1, 2, 3, 4, 5], 3),  # no less than before is no gain
        (10, 1, [5, 4, 6], [1, 2], 1),
        (10, 2, [5, 6, 7], [1, 2], 0),  # nothing was better than the start
        (4, 2, [5, 4, 3, 2, 1], [1, 2, 3, 4], 4),  # fewer steps than looks
        (25, 20, [9, 8, 7, 6, 5, 4, 3, 4, 5, 6], [3, 6, 9, 12, 15, 18, 21, 24, 25], 18),
    ],
    ids=str,
)
def test_it_ends_after_so_many_looks_without_a_gain_as_it_was_at_its_best(
    steps: int, patience: int, losses: Sequence[float], stops: Sequence[int], best: int
) -> None:
    tuning, taken = Scripted(losses), []
    for stop in patiently(cast(FineTuning, tuning), steps, patience, cast(Any, lambda _: None)):
        taken.append(stop)
        tuning.done = stop
    assert taken == stops
    assert tuning.restored == best


@pytest.fixture(scope="module")
def worker(workload: Workload) -> Worker:
    return equipped(Worker(replace(workload, rungs=(20,), patience=2, serving_settings=2)))


def equipped(worker: Worker) -> Worker:
    files = worker.fit("warm-start")
    assert files is not None
    worker.equip({"warm-start": files})
    return worker


@pytest.mark.parametrize("scalarisation", ["weighted_sum", "tchebycheff"])
def test_the_loss_on_a_part_is_the_scalarised_one_of_what_nobody_had_seen(
    worker: Worker, genes: dict[str, Any], objectives: Sequence[Objective], scalarisation: str
) -> None:
    weights = {o.name: 0.1 * (i + 1) for i, o in enumerate(objectives) if not o.name.startswith("ndcg")}
    changes = {"scalarisation": scalarisation} | {f"weight.{n}": w for n, w in weights.items()}
    part, items = worker.load.split.validation, worker.items
    assert items.credibility is not None
    found, nats = [], []
    with fine_tune(worker._task, genes | changes, steps=4, seed=0) as tuning:
        for steps in (0, 4):
            tuning.advance(steps)
            found.append(tuning.loss_on(Ranking(part, items, {"model": tuning.scorer()})))
            scores = tuning.scorer().scores(part.history).astype(np.float64)
            rows: list[tuple[float, ...]] = []
            for user, row in enumerate(scores):
                [target] = part.targets.of(user)
                row[np.setdiff1d(part.history.of(user), [target])] = -np.inf
                p = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
                mean = p @ items.features
                rows.append((-np.log(p[target]), 1 - mean @ mean, p @ items.novelty, p @ items.credibility))
            accuracy, ild, novelty, credibility = np.mean(rows, axis=0)
            nats.append(accuracy)
            terms = [1 + accuracy - nats[0]]
            values = {"ild": ild, "novelty": novelty, "credibility": credibility}
            for o in objectives:
                if o.name in weights:
                    distance = (o.ideal - values[o.name.partition("@")[0]]) / (o.ideal - o.reference)
                    terms.append(weights[o.name] * distance)
            smooth = 0.1 * np.log(np.exp(np.array(terms) / 0.1).sum())
            expected = sum(terms) if scalarisation == "weighted_sum" else smooth
            assert found[-1] == pytest.approx(expected, rel=1e-4)
    assert found[0] != pytest.approx(found[1], abs=1e-3)


def run(worker: Worker, genes: dict[str, Any]) -> Result:
    return worker.run(Attempt(Candidate("c0000", genes)))


def steps_of(result: Result) -> int:
    steps = json.loads(result.files["recommender.json"])["steps"]
    assert isinstance(steps, int)
    return steps


def test_what_only_harms_is_undone_and_is_a_checkpoint_of_the_full_rung(worker: Worker, genes: dict[str, Any]) -> None:
    harmful = genes | {"tower_lr": 0.5, "adapter_lr": 0.5, "temperature": 1.0}
    result = run(worker, harmful)
    assert steps_of(result) == 0
    assert OPTIMISER not in result.files
    assert {e.steps for e in result.evaluations} == {20}
    assert len(result.evaluations) > 1  # the inner search followed
    history = worker.load.split.validation.history
    found = scorer(result.files, worker.encoder).scores(history)
    assert found == pytest.approx(worker._warm.scores(history), abs=1e-4)
    unwatched = run(equipped(Worker(replace(worker.load, patience=None))), harmful)
    assert not np.allclose(scorer(unwatched.files, worker.encoder).scores(history), found, atol=0.1)
    # Its two looks came after two steps each, and those were taken.
    costs = [json.loads(r.files["recommender.json"])["training"] for r in (result, unwatched)]
    [taken, all_of_them] = (operations for cost in costs for operations in cost.values())
    assert taken == pytest.approx(all_of_them * 4 / 20)


def test_in_a_pack_it_ends_as_alone(worker: Worker, genes: dict[str, Any]) -> None:
    load = replace(worker.load, rungs=(6,))
    pack, solo = PackWorker(load), equipped(Worker(load))
    equipped(pack)
    several = [genes | {"tower_lr": rate, "adapter_lr": rate} for rate in (0.003, 0.5)]
    history = load.split.validation.history

    async def beside() -> list[Result]:
        attempts = [Attempt(Candidate(f"c{i:04}", g)) for i, g in enumerate(several)]
        return await asyncio.gather(*(pack.run_beside(a) for a in attempts))

    found = asyncio.run(beside())
    assert steps_of(found[0]) > steps_of(found[1]) == 0
    for number, (result, own) in enumerate(zip(found, several, strict=True)):
        alone = solo.run(Attempt(Candidate(f"c{number:04}", own)))
        assert steps_of(alone) == steps_of(result)
        mine, theirs = (scorer(r.files, solo.encoder).scores(history) for r in (result, alone))
        assert mine == pytest.approx(theirs, abs=1e-3)


def test_a_loss_that_is_no_number_is_a_divergence(worker: Worker, genes: dict[str, Any]) -> None:
    with fine_tune(worker._task, genes, steps=4, seed=0) as tuning:
        tuning.model.towers[0].item_bias.data.fill_(float("nan"))
        with pytest.raises(DivergedError, match=r"loss on validation is not finite after step 0 of 4"):
            tuning.loss_on(Ranking(worker.load.split.validation, worker.items, {"model": tuning.scorer()}))
