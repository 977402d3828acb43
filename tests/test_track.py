"""What trackers were told, as their own libraries read it back."""

import json
import sqlite3
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from running import Finished, eventually, undisturbed

from pareto_search import load_front
from pareto_search.config import SearchConfig
from pareto_search.entry import of_folder
from pareto_search.errors import ConfigError
from pareto_search.export import export
from pareto_search.recsys.dataset import load
from pareto_search.search import Progress
from pareto_search.track import register, tracking
from pareto_search.workers.recommend import Serving

__all__ = ["undisturbed"]

SPACE = {"weight.ild@10": 0.1}  # a gene whose name not every library takes
CONFIG = SearchConfig.parse({"name": "movies", "data": {"source": "movielens-100k"}, "space": SPACE})
FRONT = {
    "front": [
        {"validation": {"ndcg@10": 0.5}, "test": {"ndcg@10": {"mean": 0.4, "low": 0.3, "high": 0.5}}},
        {"validation": {"ndcg@10": 0.3}, "test": {"ndcg@10": {"mean": 0.2, "low": 0.1, "high": 0.3}}},
    ]
}


def a_search(tracker: str, run: Path) -> None:
    """A search of two candidates, of which one failed."""
    run.mkdir()
    (run / "front.json").write_text(json.dumps(FRONT))
    with tracking([tracker], CONFIG, run) as told:
        told.progress(Progress(1, 0, 0, 0, 2, 3, 0.25, 1.0, None))
        told.progress(Progress(1, 0, 0, 1, 2, 4, 0.375, 2.0, None))
        told.finished(FRONT, run)


def test_tensorboard_shows_the_search_and_its_front(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    a_search("tensorboard", tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "tensorboard" / "run"))
    events.Reload()

    def read(tag: str) -> list[tuple[int, float]]:
        return [(e.step, float(make_ndarray(e.tensor_proto))) for e in events.Tensors(tag)]

    assert read("search/hypervolume") == [(1, 0.25), (2, 0.375)]
    assert read("search/failed") == [(1, 0.0), (2, 1.0)]
    assert read("front/test/ndcg@10") == [(0, pytest.approx(0.4)), (1, pytest.approx(0.2))]


def test_tensorboards_own_server_finds_the_runs_and_their_scalars(tmp_path: Path) -> None:
    from tensorboard.program import TensorBoard

    a_search("tensorboard", tmp_path / "first")
    a_search("tensorboard", tmp_path / "second")
    program = TensorBoard()
    program.configure(logdir=str(tmp_path / "tensorboard"), port=0, host="127.0.0.1", load_fast="false")
    place = program.launch()

    def read(path: str) -> Any:
        with urllib.request.urlopen(f"{place}data/plugin/scalars/{path}", timeout=60) as answer:
            return json.loads(answer.read())

    tags = eventually(lambda: (found := read("tags")).keys() >= {"first", "second"} and found)
    assert {"search/hypervolume", "front/test/ndcg@10"} <= tags["second"].keys()
    points = read("scalars?run=second&tag=search/hypervolume")
    assert [(step, value) for _, step, value in points] == [(1, 0.25), (2, 0.375)]


def test_mlflow_holds_the_config_the_search_and_its_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.chdir(tmp_path)  # where it puts artifacts by default
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    a_search("mlflow", tmp_path / "run")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("pareto-search")
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("movies", "FINISHED")
    assert run.data.params["search.algorithm"] == "nsga2"
    assert run.data.params["space.weight.ild_at_10"] == "0.1"
    history = client.get_metric_history(run.info.run_id, "search/hypervolume")
    assert [(m.step, m.value) for m in history] == [(1, 0.25), (2, 0.375)]
    assert [m.value for m in client.get_metric_history(run.info.run_id, "front/validation/ndcg_at_10")] == [0.5, 0.3]
    place = client.download_artifacts(run.info.run_id, "front.json", str(tmp_path))
    assert json.loads(Path(place).read_text()) == FRONT


def test_mlflow_is_told_of_a_search_that_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    with pytest.raises(KeyboardInterrupt), tracking(["mlflow"], CONFIG, tmp_path / "run"):
        raise KeyboardInterrupt
    client = mlflow.MlflowClient()
    [run] = client.search_runs([client.get_experiment_by_name("pareto-search").experiment_id])
    assert run.info.status == "FAILED"


def test_an_export_becomes_a_version_of_a_model_whose_files_score_as_before(
    undisturbed: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    front = load_front(undisturbed.run)
    data = load(**SearchConfig.load(undisturbed.run / "search.yaml").data.arguments())
    entries = sorted(front["front"], key=lambda entry: len(entry["genes"]))[-2:]
    for number, entry in enumerate(entries, 1):
        folder = tmp_path / f"exported{number}"
        export(undisturbed.run, entry["entry"], data, folder)
        assert register("books", folder, front, entry) == str(number)

    client = mlflow.MlflowClient()
    latest = client.get_model_version("books", "2")
    chosen = entries[1]
    assert chosen["genes"]
    assert (latest.tags["search"], latest.tags["entry"]) == ("small", chosen["entry"])
    logged = client.get_run(latest.run_id)
    assert logged.data.metrics["test/ndcg_at_5"] == pytest.approx(chosen["test"]["ndcg@5"]["mean"])
    for gene, value in chosen["genes"].items():
        assert logged.data.params[f"genes.{gene}"] == str(value)
    client.set_registered_model_alias("books", "live", "2")
    files = mlflow.artifacts.download_artifacts("models:/books@live")
    found = of_folder(Path(files))
    assert found.name == chosen["entry"]
    assert Serving(found, data).evaluate("test")["ndcg@5"] == pytest.approx(chosen["test"]["ndcg@5"])

    with pytest.raises(ConfigError, match="MLflow does not register '': "):
        register("", tmp_path / "exported1", front, chosen)


def test_weights_and_biases_keeps_the_search_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="a large package, which the extra 'track' has and 'dev' has not")
    monkeypatch.setenv("WANDB_MODE", "offline")
    a_search("wandb", tmp_path / "run")
    [record] = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    # A process of its own writes it, in its own time.
    eventually(lambda: all(text in record.read_bytes() for text in (b"search/hypervolume", b"front/test/ndcg@10")))


def test_a_search_outlives_its_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    database = tmp_path / "mlflow.db"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    notices: list[str] = []
    run = tmp_path / "run"
    run.mkdir()
    with tracking(["mlflow", "tensorboard"], CONFIG, run, notices.append) as told:
        told.progress(Progress(1, 0, 0, 0, 2, 3, 0.25, 1.0, None))
        with sqlite3.connect(database) as connection:
            connection.execute("DROP TABLE metrics")
        told.progress(Progress(1, 0, 0, 1, 2, 4, 0.375, 2.0, None))
        told.progress(Progress(2, 0, 0, 1, 2, 4, 0.5, 3.0, None))
    [notice] = notices
    assert notice.startswith("mlflow fails and is told no more: ")
    events = EventAccumulator(str(tmp_path / "tensorboard" / "run"))
    events.Reload()
    assert [e.step for e in events.Tensors("search/hypervolume")] == [1, 2, 3]


def test_a_tracker_that_does_not_begin_is_the_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://at.all")
    with pytest.raises(ConfigError, match="mlflow does not begin: "), tracking(["mlflow"], CONFIG, tmp_path):
        pass


def test_an_unknown_tracker_is_named_with_the_nearest(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="tracker 'mlfow' is unknown; did you mean 'mlflow'"),
        tracking(["mlfow"], CONFIG, tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("tracker", "module"), [("tensorboard", "tensorboard.summary"), ("mlflow", "mlflow"), ("wandb", "wandb")]
)
def test_a_missing_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with (
        pytest.raises(ConfigError, match=rf"tracking needs {tracker}: pip install 'pareto-search\[track\]'"),
        tracking([tracker], CONFIG, tmp_path),
    ):
        pass
