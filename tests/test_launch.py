import dataclasses
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import sqlalchemy as sa
from running import Finished, Untouchable, undisturbed

from pareto_search import SearchConfig, load_front
from pareto_search.errors import CheckpointError, ConfigError, DataError, RunError
from pareto_search.launch import run_search
from pareto_search.recsys import dataset
from pareto_search.search import Watcher
from pareto_search.store import Store
from pareto_search.workers import pool
from pareto_search.workers.base import locate
from pareto_search.workers.workload import Workload

__all__ = ["undisturbed"]


class Idle:
    """In place of one that starts, and is stopped when it is told something."""

    unused_gpus = 3.0

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, calls: Sequence[tuple[str, ...]]) -> list[str]:
        assert calls == [("precision",)]
        return ["float32"]

    def tell_all(self, *_: object) -> None:
        raise KeyboardInterrupt


@pytest.fixture
def run(undisturbed: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pool, "RayPool", Untouchable)
    return undisturbed.copy(tmp_path / "moved")


def budget(config: SearchConfig, candidates: int) -> SearchConfig:
    return config.model_copy(update={"search": config.search.model_copy(update={"candidates": candidates})})


def test_a_search_that_is_over_gives_its_front_without_workers_even_where_its_folder_was_moved(run: Path) -> None:
    assert run_search(SearchConfig.load(run / "search.yaml"), run) == load_front(run)


def test_a_control_that_is_asked_for_later_wants_workers_and_leaves_the_front_until_it_has_them(run: Path) -> None:
    front = load_front(run)
    with pytest.raises(KeyboardInterrupt):
        run_search(SearchConfig.load(run / "search.yaml"), run, retrain=True)
    assert load_front(run) == front


def test_a_larger_budget_whose_workers_never_start_changes_nothing(run: Path) -> None:
    config, front = SearchConfig.load(run / "search.yaml"), load_front(run)
    with pytest.raises(KeyboardInterrupt):
        run_search(budget(config, config.search.candidates + 2), run)
    assert load_front(run) == front
    assert SearchConfig.load(run / "search.yaml") == config


def test_with_a_larger_budget_the_old_front_speaks_for_nobody(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "RayPool", Idle)
    config = SearchConfig.load(run / "search.yaml")
    larger, notices = budget(config, config.search.candidates + 2), list[str]()
    with pytest.raises(KeyboardInterrupt):
        run_search(larger, run, watcher=Watcher(notices.append))
    assert notices[-1] == "There are 3 GPUs, but workers.gpus is 0: candidates train on CPUs."
    with pytest.raises(RunError, match="resume it with 'pareto-search resume'"):
        load_front(run)
    assert SearchConfig.load(run / "search.yaml") == larger


def test_who_asks_for_more_candidates_is_told_that_the_minutes_are_spent(run: Path) -> None:
    config, notices = SearchConfig.load(run / "search.yaml"), list[str]()
    larger = budget(config, config.search.candidates + 2)
    spent = larger.model_copy(update={"search": larger.search.model_copy(update={"minutes": 0.001})})
    assert run_search(spent, run, watcher=Watcher(notices.append)) == load_front(run)
    assert len(notices) == 1
    number = config.search.candidates
    assert f"are spent with {number} of {number + 2} candidates; `pareto-search resume --minutes`" in notices[0]


def test_more_workers_than_cores_are_told_of(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    config, notices = SearchConfig.load(run / "search.yaml"), list[str]()
    with pytest.raises(KeyboardInterrupt):
        run_search(budget(config, config.search.candidates + 2), run, watcher=Watcher(notices.append))
    told = "2 workers with 1 CPUs each are more than this machine's 1 cores; --address uses a cluster."
    assert notices == ["Starting workers.", told]


def test_a_resume_keeps_the_precision_that_the_search_began_with(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Told(Idle):
        def __init__(self, load: Workload, **_: object) -> None:
            asked.append(load.dtype)

    monkeypatch.setattr(pool, "RayPool", Told)
    config = SearchConfig.load(run / "search.yaml")
    with closing(Store.open(run / "search.db")) as store, store.transaction() as changes:
        changes.put_fact("precision", None)  # as an earlier release left it
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_search(budget(config, config.search.candidates + 2), run)
    assert asked == [config.model.dtype, "float32"]


@pytest.mark.parametrize("left", [load_front, lambda run: list((run / "checkpoints").iterdir())])
def test_a_folder_without_its_record_is_left_as_it_is(run: Path, left: Callable[[Path], object]) -> None:
    before = left(run)
    (run / "search.db").unlink()
    for path in run.glob("search.db-*"):
        path.unlink()
    with pytest.raises(RunError, match="its record is not there; restore that"):
        run_search(SearchConfig.load(run / "search.yaml"), run)
    assert left(run) == before
    assert not (run / "search.db").exists()


def test_a_file_is_no_run_folder(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("something else")
    with pytest.raises(RunError, match="cannot be used"):
        run_search(SearchConfig.load(run / "search.yaml"), tmp_path / "file")


def test_a_database_that_did_not_answer_can_be_named_again(run: Path, tmp_path: Path, postgresql: str) -> None:
    config, new = SearchConfig.load(run / "search.yaml"), tmp_path / "new"
    with pytest.raises(RunError, match="none"):
        run_search(config.model_copy(update={"store": "postgresql://nobody@127.0.0.1:1/none"}), new)
    with pytest.raises(KeyboardInterrupt):
        run_search(config.model_copy(update={"store": postgresql}), new)
    assert SearchConfig.load(new / "search.yaml").store == postgresql
    assert (new / "search.yaml").stat().st_mode & 0o077 == 0


def test_another_password_leads_to_the_same_record(run: Path, tmp_path: Path, postgresql: str) -> None:
    config, new = SearchConfig.load(run / "search.yaml"), tmp_path / "new"
    for password in ("secret-1", "secret-2"):  # this server trusts whoever is on its machine
        url = sa.make_url(postgresql).set(password=password).render_as_string(hide_password=False)
        with pytest.raises(KeyboardInterrupt):
            run_search(config.model_copy(update={"store": url}), new)
        with closing(Store.open(url, config.name)) as store:
            assert password not in store.search.config


def test_a_search_that_was_killed_before_its_folder_was_noted_goes_on(
    run: Path, tmp_path: Path, postgresql: str
) -> None:
    config = SearchConfig.load(run / "search.yaml").model_copy(update={"store": postgresql})
    new = tmp_path / "new"
    with pytest.raises(KeyboardInterrupt):
        run_search(config, new)
    engine = sa.create_engine(postgresql.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        assert connection.exec_driver_sql("DELETE FROM fact WHERE key = 'run'").rowcount == 1
    engine.dispose()
    with pytest.raises(KeyboardInterrupt):
        run_search(config, new)
    with closing(Store.open(postgresql, config.name)) as store:
        assert store.fact("run") == str(new)
    with pytest.raises(RunError, match=f"is searched in {new}"):
        run_search(config, tmp_path / "other")


def test_a_run_folder_keeps_its_store(run: Path) -> None:
    config = SearchConfig.load(run / "search.yaml").model_copy(update={"store": "postgresql://nobody@127.0.0.1/none"})
    with pytest.raises(RunError, match="is in another store"):
        run_search(config, run)


@pytest.mark.parametrize(
    ("split", "change", "complaint"),
    [
        ("leave_last_out", {"ratings": None}, "credibility@10 needs ratings"),
        ("temporal", {"timed": False}, "split temporal needs timestamps"),
        ("leave_last_out", {}, r"ndcg@10\[town\] wants the users' town, but ratings has user, item"),
        (
            "leave_last_out",
            {"groups": {"gender": ("F",) * 40}},
            r"wants the users' town, but ratings has gender, user, item",
        ),
        (
            "leave_last_out",
            {"groups": {"town": ("Ulm",) * 40}},
            r"ndcg@10\[town\]: 1 groups have 2% of the users of the",
        ),
        (
            "leave_last_out",
            {"groups": {"town": ("Ulm", "Rom") * 20}},
            r"ndcg@10\[town=Ulmm\]: no user of the validation part has the town 'Ulmm'; there is Ulm, Rom",
        ),
    ],
)
def test_what_the_data_cannot_give_is_refused(
    split: str,
    change: dict[str, Any],
    complaint: str,
    undisturbed: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = SearchConfig.load(undisturbed.config)
    changes = {
        "data": config.data.model_copy(update={"split": split}),
        "constraint_texts": ("credibility@10 >= 0.1", "ndcg@10[town] <= 0.1", "ndcg@10[town=Ulmm] >= 0"),
    }
    config = config.model_copy(update=changes)
    lacking = dataclasses.replace(dataset.load(**config.data.arguments()), **change)
    monkeypatch.setattr("pareto_search.inputs.load", lambda **_: lacking)
    with pytest.raises(ConfigError, match=complaint):
        run_search(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("alike", "metric", "complaint"),
    [
        ("ratings", "credibility@10", "credibility@10 needs ratings that differ, and all of ratings are the same"),
        ("categories", "ild@5", "ild@5 needs categories that differ, and all items of ratings have Horror, War;"),
        ("nothing", "ndcg@5", "ild@5 needs categories that differ, and all items of ratings have none;"),
        ("tags", "ndcg@5", "ratings has 30 categories for 30 items, which do not fit into memory"),
    ],
)
def test_data_in_which_all_is_alike_is_refused_where_a_metric_asks_for_differences(
    alike: str, metric: str, complaint: str, undisturbed: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SearchConfig.load(undisturbed.config)
    whole = dataset.load(**config.data.arguments())
    assert whole.ratings is not None
    monkeypatch.setattr("pareto_search.inputs.MOST_FEATURES", len(whole.item_ids) ** 2 - 1)
    changes: dict[str, dict[str, Any]] = {
        "ratings": {"ratings": np.full_like(whole.ratings, 4)},
        "categories": {"categories": (("War", "Horror"),) * len(whole.item_ids)},
        "nothing": {"categories": ((),) * len(whole.item_ids)},
        "tags": {"categories": tuple((item,) for item in whole.item_ids)},
    }
    lacking = dataclasses.replace(whole, **changes[alike])
    monkeypatch.setattr("pareto_search.inputs.load", lambda **_: lacking)
    with pytest.raises(ConfigError, match=complaint):
        run_search(config.model_copy(update={"constraint_texts": (f"{metric} <= 1",)}), tmp_path / "run")


def test_a_catalogue_that_ease_is_too_large_for_has_no_teacher(
    undisturbed: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pareto_search.inputs.LARGEST_SQUARE", 5)
    config = SearchConfig.load(undisturbed.config)
    for wish in (0.1, [0.1, 0.5]):
        taught = config.model_copy(update={"space": {**config.space, "distillation": wish}})
        with pytest.raises(ConfigError, match=r"space.distillation needs EASE, which is fitted to 5 items at most; "):
            run_search(taught, tmp_path / "run")
    first, *others = config.objective_sections
    longer = (first.model_copy(update={"metric": "ndcg@1000"}), *others)
    without = {"space": {**config.space, "distillation": 0}, "objective_sections": longer}
    with pytest.raises(ConfigError, match="ndcg@1000 needs more items"):  # which is looked at later
        run_search(config.model_copy(update=without), tmp_path / "run")


def test_a_cut_off_beyond_the_catalogue_is_refused(undisturbed: Finished, tmp_path: Path) -> None:
    config = SearchConfig.load(undisturbed.config)
    first, *others = config.objective_sections
    longer = (first.model_copy(update={"metric": "ndcg@1000"}), *others)
    with pytest.raises(ConfigError, match="ndcg@1000 needs more items than the"):
        run_search(config.model_copy(update={"objective_sections": longer}), tmp_path / "run")


def targeted(
    finished: Finished, metrics: list[str], target: str, shots: float | None, distillation: float
) -> SearchConfig:
    """The small search for one of two domains."""
    config = SearchConfig.load(finished.config)
    first, second, _ = config.objective_sections
    sections = tuple(s.model_copy(update={"metric": m}) for s, m in zip((first, second), metrics, strict=True))
    data = config.data.model_copy(update={"target": target, "shots": shots})
    space = {**config.space, "distillation": distillation}
    return config.model_copy(update={"objective_sections": sections, "data": data, "space": space})


@pytest.mark.parametrize(
    ("metrics", "shots", "distillation", "complaint"),
    [
        (["ndcg@5", "ild@8"], None, 0.0, "ild@8 needs more items than the 7 of few of ratings; lower its cut-off"),
        (["ndcg@5", "novelty@5"], 0.0, 0.0, "objective novelty@5 tells no items of few of ratings apart, .* above 0"),
        (["ndcg@5", "ild@5"], 0.0, 0.3, "EASE as a teacher, which knows no item of few of ratings, .* above 0"),
    ],
)
def test_what_a_target_cannot_give_is_refused(
    undisturbed: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    metrics: list[str],
    shots: float | None,
    distillation: float,
    complaint: str,
) -> None:
    config = targeted(undisturbed, metrics, "few", shots, distillation)
    whole = dataset.load(**config.data.arguments())
    data = dataclasses.replace(whole, domains=("few",) * 7 + ("many",) * (len(whole.item_ids) - 7))
    monkeypatch.setattr("pareto_search.inputs.load", lambda **_: data)
    with pytest.raises(ConfigError, match=complaint):
        run_search(config, tmp_path / "run")


def test_data_and_base_model_have_to_be_what_a_search_was_begun_with(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SearchConfig.load(run / "search.yaml")
    data, base = dataset.load(**config.data.arguments()), locate(config.model.base)
    for name, other, error in (
        ("inputs.load", lambda **_: dataclasses.replace(data, timestamps=data.timestamps + 1), DataError),
        ("launch.locate", lambda *_: dataclasses.replace(base, sha256="0" * 64), CheckpointError),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(f"pareto_search.{name}", other)
            with pytest.raises(error, match=r"is not what .* was begun with; bring that back, or begin a new run"):
                run_search(config, run)


def test_whose_record_is_elsewhere_is_told_to_resume_all_the_same(run: Path) -> None:
    (run / "front.json").unlink()
    (run / "search.db").unlink()  # as where the config names a store
    with pytest.raises(RunError, match="resume it with 'pareto-search resume'"):
        load_front(run)
