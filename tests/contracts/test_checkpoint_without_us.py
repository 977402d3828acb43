"""A checkpoint is usable without this project: plain.py imports none of it."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import plain
import pytest

from pareto_search import checkpoint
from pareto_search.candidate import Attempt, Candidate
from pareto_search.executor import Result
from pareto_search.objective import Objective
from pareto_search.recsys import fetch
from pareto_search.recsys.dataset import Columns, Dataset, load_tables
from pareto_search.recsys.split import split
from pareto_search.workers.base import locate
from pareto_search.workers.evaluate import scorer
from pareto_search.workers.lora import loaded
from pareto_search.workers.worker import Worker
from pareto_search.workers.workload import Workload

COLUMNS = Columns(
    user="user_id",
    item="item_id",
    rating="rating",
    timestamp="timestamp",
    text=("title", "genres"),
    categories="genres",
)


@pytest.fixture(scope="module")
def some_movies(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The first 300 movies of MovieLens, and what the first 100 users thought of them."""
    source, folder = fetch.movielens_100k(), tmp_path_factory.mktemp("movies")
    for name in (fetch.INTERACTIONS, fetch.ITEMS):
        with (source / name).open(newline="") as file, (folder / name).open("w", newline="") as copy:
            rows = csv.DictReader(file)
            writer = csv.DictWriter(copy, rows.fieldnames or ())
            writer.writeheader()
            writer.writerows(r for r in rows if int(r["item_id"]) <= 300 and int(r.get("user_id", 1)) <= 100)
    return load_tables(str(folder / fetch.INTERACTIONS), str(folder / fetch.ITEMS), COLUMNS, "some movies")


@pytest.fixture(scope="module")
def worker(workload: Workload, some_movies: Dataset, objectives: tuple[Objective, ...]) -> Worker:
    worker = Worker(
        replace(
            workload,
            base="minilm",
            dtype="auto",
            max_item_tokens=32,
            width=32,
            texts=some_movies.texts,
            categories=some_movies.categories,
            split=split(some_movies, "leave_last_out", 0),
            rungs=(2,),
            serving_settings=1,
        )
    )
    files = worker.fit("warm-start")
    assert files is not None
    worker.equip({"warm-start": files})
    return worker


@pytest.fixture(scope="module")
def result(worker: Worker, genes: dict[str, Any]) -> Result:
    return worker.run(Attempt(Candidate("c0000", genes)))


@pytest.fixture(scope="module")
def theirs(
    worker: Worker, result: Result, some_movies: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, np.ndarray]:
    """What plain transformers, PEFT and NumPy make of the folder, in a process of their own."""
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoint.write(folder / "c0000", result.files)
    history = worker.load.split.validation.history
    assert history.gaps is not None
    rows = {"items": history.items, "gaps": history.gaps}
    histories = {name: [r.tolist() for r in np.split(x, history.indptr[1:-1])] for name, x in rows.items()}
    (folder / "texts.json").write_text(json.dumps(some_movies.texts))
    (folder / "histories.json").write_text(json.dumps(histories))
    base, out = locate("minilm").folder, folder / "out.npz"
    command = [base, folder / "c0000", folder / "texts.json", folder / "histories.json", out]
    environment = {**os.environ, "PYTHONPATH": ""}
    subprocess.run([sys.executable, plain.__file__, *map(str, command)], check=True, env=environment, cwd=folder)
    return dict(np.load(out))


def test_peft_gives_our_text_vectors(worker: Worker, result: Result, theirs: dict[str, np.ndarray]) -> None:
    with loaded(worker.encoder, result.files) as adapter:
        ours = worker.encoder.catalogue(adapter.shape.layers).numpy()
    assert (ours * theirs["text"]).sum(1).min() >= 0.999
    assert (ours * worker.encoder.frozen.numpy()).sum(1).min() < 0.99  # the adapter does something


def test_the_written_formulas_give_our_scores(worker: Worker, result: Result, theirs: dict[str, np.ndarray]) -> None:
    ours = scorer(result.files, worker.encoder).scores(worker.load.split.validation.history)
    correlations = [np.corrcoef(a, b)[0, 1] for a, b in zip(ours, theirs["scores"], strict=True)]
    assert min(correlations) > 0.999


def test_the_reported_ndcg_follows_from_the_scores(
    worker: Worker, result: Result, theirs: dict[str, np.ndarray]
) -> None:
    validation = worker.load.split.validation
    gains = []
    for user, scores in enumerate(theirs["scores"]):
        scores[validation.history.of(user)] = -np.inf
        rank = int((scores > scores[validation.targets.of(user)[0]]).sum())
        gains.append(1 / np.log2(rank + 2) if rank < 5 else 0.0)
    # Rounding to bfloat16 may swap neighbours for a user or two.
    assert result.evaluations[0].values["ndcg@5"] == pytest.approx(np.mean(gains), abs=0.01)
    assert np.mean(gains) > 0
