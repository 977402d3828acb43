"""Fused checkpoints as files, and at work like any other."""

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from pareto_search import checkpoint, entry
from pareto_search.candidate import Attempt, Candidate
from pareto_search.errors import ConfigError
from pareto_search.executor import Files
from pareto_search.export import export
from pareto_search.fusion import fused, members_of, weights_of
from pareto_search.recsys.dataset import Dataset
from pareto_search.recsys.ensemble import Ensemble
from pareto_search.recsys.ranking import Ranking
from pareto_search.refreshing import moved
from pareto_search.workers.evaluate import scorer, scorer_with, vector_files
from pareto_search.workers.recommend import Serving, sequences
from pareto_search.workers.recommender import Recommender
from pareto_search.workers.worker import Worker
from pareto_search.workers.workload import Workload

NAME = "f0001-s00"


@pytest.fixture(scope="module")
def worker(workload: Workload) -> Worker:
    worker = Worker(replace(workload, serving_settings=2))
    start = worker.fit("warm-start")
    assert start is not None
    worker.equip({"warm-start": start})
    return worker


@pytest.fixture(scope="module")
def checkpoints(worker: Worker, genes: dict[str, Any]) -> dict[str, Files]:
    start = worker.run(Attempt(Candidate("m0000", {}, (), "merged"))).files
    trained = {
        name: worker.run(Attempt(Candidate(name, {**genes, "id_embeddings": name == "c0001"}))).files
        for name in ("c0001", "c0002")
    }
    return {"m0000": start, **trained}


def mean(worker: Worker, checkpoints: Mapping[str, Files], weights: Mapping[str, float]) -> np.ndarray:
    history = worker.load.split.validation.history
    return sum(w * scorer(checkpoints[n], worker.encoder).scores(history).astype(float) for n, w in weights.items())


def test_what_is_fused_comes_apart_as_it_was(checkpoints: dict[str, Files]) -> None:
    weights = {"c0002": 0.25, "c0001": 0.75}
    files = fused(checkpoints, weights, {"pooling": "mean"})
    assert weights_of(files) == weights
    assert members_of(files) == {name: dict(checkpoints[name]) for name in weights}
    assert weights_of(checkpoints["c0001"]) == members_of(checkpoints["c0001"]) == {}


def test_a_fusion_averages_those_of_its_parents_that_foretell_validation_best(
    worker: Worker, checkpoints: dict[str, Files]
) -> None:
    result = worker.run(Attempt(Candidate("f0000", {}, tuple(checkpoints), "fused")), list(checkpoints.values()))
    weights, part = weights_of(result.files), worker.load.split.validation
    assert len(weights) > 1
    assert sum(weights.values()) == pytest.approx(1.0)
    model = scorer(result.files, worker.encoder)
    assert model.scores(part.history) == pytest.approx(mean(worker, checkpoints, weights), abs=1e-4)
    assert model.parameters == sum(scorer(checkpoints[n], worker.encoder).parameters for n in weights)
    [alone] = Ranking(part, worker.items, {"model": model}).values([{}], list(worker.load.metrics))
    assert result.evaluations[0].values == pytest.approx(alone)
    assert len(result.evaluations) == 3
    assert result.evaluations[0].margins["ndcg@5"] > 0

    def surprise(weights: Mapping[str, float]) -> float:
        barred = worker.items.barred(part.history)
        barred[np.arange(len(barred)), part.targets.items] = False
        shown = np.where(barred, -np.inf, mean(worker, checkpoints, weights))
        log_p = shown - np.log(np.exp(shown).sum(1, keepdims=True))
        return -float(log_p[np.arange(len(shown)), part.targets.items].mean())

    pairs = [dict.fromkeys(pair, 0.5) for pair in combinations(checkpoints, 2)]
    assert surprise(weights) <= min(map(surprise, pairs)) + 1e-6


@pytest.fixture
def run(toy_run: Path, toy: Dataset, tmp_path: Path) -> Path:
    """A run whose front has a fusion of the toy run's checkpoint with itself, its ID embeddings twice as large."""
    files = checkpoint.read(toy_run / "checkpoints" / "c0000")
    other = {**files, "recommender.safetensors": _doubled(files["recommender.safetensors"])}
    weights = {"c0000": 0.25, "c0001": 0.75}
    notes = json.loads(files["recommender.json"])
    shared = {name: notes[name] for name in ("base", "dtype", "max_item_tokens", "layers", "pooling")}
    shared |= {name: notes[name] for name in ("data_sha256", "split", "metrics")}
    checkpoint.write(
        tmp_path / "run" / "checkpoints" / "f0001", fused({"c0000": files, "c0001": other}, weights, shared)
    )
    front = json.loads((toy_run / "front.json").read_text())
    members = {name: {"weight": weight, "lineage_steps": 3} for name, weight in weights.items()}
    front["front"] = [{**front["front"][1], "entry": NAME, "candidate": "f0001", "kind": "fused", "fuses": members}]
    (tmp_path / "run" / "front.json").write_text(json.dumps(front))
    return tmp_path / "run"


def _doubled(content: bytes) -> bytes:
    return save({n: t * 2 if n == "item_embedding" else t for n, t in load(content).items()})


def test_a_fused_entry_serves_and_its_reasons_are_the_means_of_its_members(run: Path, toy: Dataset) -> None:
    serving = Serving(entry.of_run(run, NAME), toy)
    model = serving.scorers["model"]
    assert isinstance(model, Ensemble)
    history = serving.history_of("7")
    one = sequences([history])
    expected = 0.25 * model.members[0].scores(one) + 0.75 * model.members[1].scores(one)
    assert model.scores(one) == pytest.approx(expected, abs=1e-5)
    chosen = np.array([3, 11, 0], np.int32)
    added = serving.contributions(history, chosen)
    parts = []
    for member in model.members:
        serving.scorers = {"model": member}
        parts.append(serving.contributions(history, chosen))
    assert added == pytest.approx(0.25 * parts[0] + 0.75 * parts[1], abs=1e-5)
    assert not np.allclose(parts[0], parts[1])
    again = scorer_with(serving.entry.files, vector_files(model))
    assert np.array_equal(again.scores(one), model.scores(one))


def test_a_fused_entry_is_exported_whole_and_as_nothing_that_holds_one_encoder(
    run: Path, toy: Dataset, tmp_path: Path
) -> None:
    export(run, NAME, toy, tmp_path / "export")
    there, here = entry.of_folder(tmp_path / "export"), entry.of_run(run, NAME)
    assert there == here
    assert there.fuses == {"c0000": 0.25, "c0001": 0.75}
    assert Serving(there, toy).evaluate("test") == Serving(here, toy).evaluate("test")
    card = (tmp_path / "export" / "README.md").read_text()
    assert "the mean of those of 2 checkpoints: 0.25 of c0000, 0.75 of c0001" in card
    for form in ("merged", "sentence-transformers", "onnx"):
        with pytest.raises(ConfigError, match=r"averages the scores of c0000, c0001, and .* export it as adapter"):
            export(run, NAME, toy, tmp_path / "other", form)
    assert not (tmp_path / "other").exists()


def test_a_fused_checkpoint_moves_to_another_catalogue(run: Path) -> None:
    files = checkpoint.read(run / "checkpoints" / "f0001")
    place = np.array([3, -1, *range(19, 3, -1), 0])
    names = [f"n{i}" for i in range(len(place))]
    other = moved(files, names, place, {})
    assert weights_of(other) == weights_of(files)
    assert json.loads(other["recommender.json"])["items"] == names
    there = [Recommender.loaded(member) for member in members_of(files).values()]
    here = [Recommender.loaded(member) for member in members_of(other).values()]
    for old, new in zip(there, here, strict=True):
        for before, after in zip(old.towers, new.towers, strict=True):
            assert torch.equal(after.item_embedding[0], before.item_embedding[3])
            assert not after.item_embedding[1].any()
