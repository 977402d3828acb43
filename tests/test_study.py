"""The archive as Optuna itself reads it back."""

import io
import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna_dashboard import wsgi

from pareto_search.candidate import Candidate, Evaluation
from pareto_search.errors import RunError
from pareto_search.objective import Objective
from pareto_search.study import write_study

OBJECTIVES = (Objective("ndcg@10", "maximise", 0.0, 1.0), Objective("gini@10", "minimise", 1.0, 0.0))
CANDIDATES = (
    Candidate("c0000", {"rank": 8, "adapter_lr": 1e-3, "targets": "all", "id_embeddings": True}),
    Candidate("c0001", {"rank": 16, "adapter_lr": 1e-2, "targets": "attention", "id_embeddings": False}),
    Candidate("m0000", {"share": 0.25}, ("c0000", "c0001"), "merged"),
)
EVALUATIONS = (
    Evaluation("c0000", 1, 40, 0, {}, {"ndcg@10": 0.10, "gini@10": 0.9}),
    Evaluation("c0001", 1, 40, 3, {"ease": 0.5}, {"ndcg@10": 0.08, "gini@10": 0.5}),
    Evaluation("m0000", 1, 40, 0, {}, {"ndcg@10": 0.07, "gini@10": 0.6}),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    assert write_study(tmp_path / "study.db", "movies", OBJECTIVES, CANDIDATES, EVALUATIONS) == 3
    return tmp_path / "study.db"


def test_optuna_finds_the_same_front_with_genes_and_names(path: Path) -> None:
    study = optuna.load_study(study_name="movies", storage=f"sqlite:///{path}")
    assert study.metric_names == ["ndcg@10", "gini@10"]
    assert {t.user_attrs["entry"] for t in study.best_trials} == {
        "c0000-s00",
        "c0001-s03",
    }  # the merged one is dominated
    second = study.trials[1]
    assert second.values == [0.08, 0.5]
    assert second.params == {**CANDIDATES[1].genes, "serving.ease": 0.5}
    assert (study.trials[2].params, study.trials[2].user_attrs["kind"]) == ({"share": 0.25}, "merged")


def test_the_dashboard_serves_the_study_its_points_and_its_genes(path: Path) -> None:
    application = wsgi(optuna.storages.RDBStorage(f"sqlite:///{path}"))

    def read(place: str) -> Any:
        said: list[str] = []
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": place, "SERVER_NAME": "x", "SERVER_PORT": "80"}
        environ |= {"wsgi.input": io.BytesIO(), "wsgi.errors": io.StringIO(), "wsgi.url_scheme": "http"}  # type: ignore[dict-item]
        body = b"".join(application(environ, lambda status, *_: said.append(status)))
        assert said[0].startswith("200")
        return json.loads(body)

    [study] = read("/api/studies")["study_summaries"]
    assert study["study_name"] == "movies"
    shown = read(f"/api/studies/{study['study_id']}")
    assert [trial["values"] for trial in shown["trials"]] == [[0.10, 0.9], [0.08, 0.5], [0.07, 0.6]]
    assert {gene["name"] for gene in shown["union_search_space"]} >= {"rank", "adapter_lr", "targets", "serving.ease"}
    assert shown["objective_names"] == ["ndcg@10", "gini@10"]


def test_a_file_that_exists_is_not_overwritten(path: Path) -> None:
    with pytest.raises(RunError, match=r"study\.db is there already; give --to a new file"):
        write_study(path, "movies", OBJECTIVES, CANDIDATES, EVALUATIONS)


def test_a_folder_that_is_not_there_gets_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"cannot be written \(No such file or directory\); expected a file name in a folder"
    ):
        write_study(tmp_path / "no" / "study.db", "movies", OBJECTIVES, CANDIDATES, EVALUATIONS)
