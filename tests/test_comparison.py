"""What a front is compared with."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from running import Finished, undisturbed

from pareto_search import SearchConfig, checkpoint, load_front
from pareto_search.archive import choose
from pareto_search.candidate import Candidate, Evaluation
from pareto_search.comparison import CURVE_SETTINGS, Comparison
from pareto_search.launch import workload
from pareto_search.objective import Values
from pareto_search.recsys import dataset
from pareto_search.recsys.split import split
from pareto_search.results import ENTRIES, Document, entry
from pareto_search.search import Search
from pareto_search.space import START
from pareto_search.store import Store
from pareto_search.workers.worker import Worker

__all__ = ["undisturbed"]


def test_the_curve_that_all_workers_find_together_is_the_one_that_each_finds_alone(undisturbed: Finished) -> None:
    config = SearchConfig.load(undisturbed.config)
    assert config.workers.count == 2
    with closing(Store.open(undisturbed.run / "search.db")) as store:
        points, components = store.fact("curves")[START], store.fact("components")
    data = dataset.load(**config.data.arguments())
    worker = Worker(workload(config, data, split(data, **config.splitting())))
    worker.equip({name: checkpoint.read(undisturbed.run / "components" / name) for name in components})
    blend = tuple(name for name in config.blended if name in components)
    alone = worker.curve(START, blend, CURVE_SETTINGS * config.search.serving_settings)
    chosen = [alone[i] for i in choose([values for _, values in alone], config.objectives, ENTRIES)]
    assert [p["serving"] for p in points] == [pytest.approx(dict(setting)) for setting, _ in chosen]
    assert [p["validation"] for p in points] == [pytest.approx(dict(values)) for _, values in chosen]


class Measuring:
    """In place of workers: whatever the setting, a model has these values."""

    def __init__(self, config: SearchConfig, values: Values) -> None:
        self._space, self._values = config.search_space.of("serving").at({}), values

    def map(self, calls: Sequence[tuple[Any, ...]], *_: object) -> list[Any]:
        return [self._space if c[0] == "curve_space" else [self._values] * len(c[3]) for c in calls]

    def tell_all(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("missed", [[], ["ndcg@5"], ["ild@5", "novelty@5"]])
def test_who_asks_for_more_than_the_warm_start_has_is_told_before_anything_is_trained(
    undisturbed: Finished, tmp_path: Path, missed: Sequence[str]
) -> None:
    run = undisturbed.copy(tmp_path / "run")
    config = SearchConfig.load(run / "search.yaml")
    values = {o.name: o.reference - 0.001 if o.name in missed else o.ideal for o in config.objectives}
    notices: list[str] = []
    with closing(Store.open(run / "search.db")) as store:
        with store.transaction() as record:
            record.put_fact("curves", None)
        Comparison(run, Search(config, store, run), Measuring(config, values), notices.append).prepare()
    told = [line for line in notices if line.startswith("No setting of the warm start keeps")]
    assert len(told) == bool(missed)
    for objective in config.objectives:
        bound = f"{objective.name} >= {objective.reference:g} (it has {objective.reference - 0.001:.4g})"
        assert (bound in "".join(told)) == (objective.name in missed)


class Control:
    """In place of workers: whatever is trained from scratch has these scores, and one candidate diverges."""

    def __init__(self, scores: tuple[Values, Document], diverges: str) -> None:
        self._scores, self._diverges = scores, diverges
        self.calls: list[tuple[Any, ...]] = []

    def map(self, calls: Sequence[tuple[Any, ...]], *_: object) -> list[Any]:
        self.calls += calls
        return [None if c[1].id == self._diverges else [self._scores] * len(c[3]) for c in calls]

    def tell_all(self, *_: object) -> None:
        pass


def test_each_checkpoint_that_inherited_weights_is_trained_once_from_scratch(tmp_path: Path) -> None:
    known = {n: Candidate(n, {"rank": 4}, ("c0001",)) for n in ("c0001", "c0002", "c0003")}
    known["m0001"] = Candidate("m0001", {"share": 0.5}, ("c0001", "c0002"), "merged")
    lineage = {"c0001": 40, "c0002": 80, "c0003": 120, "m0001": 80}

    def entry_of(name: str, setting: int) -> Document:
        evaluation = Evaluation(name, 1, 40, setting, {"ease": setting / 10}, {"ndcg@5": 0.5})
        return entry(evaluation, known[name], lineage[name], 1.0, {"ndcg@5": {"mean": 0.4}}, fuses={})

    order = [("c0002", 0), ("m0001", 0), ("c0001", 1), ("c0003", 2), ("c0002", 3)]
    entries = [entry_of(*place) for place in order]
    search: Any = SimpleNamespace(store=None, config=None, schedule=SimpleNamespace(candidates=known))
    validation, tested = {"ndcg@5": 0.3}, {"ndcg@5": {"mean": 0.2}}
    pool, notices = Control((validation, tested), diverges="c0003"), list[str]()
    Comparison(tmp_path, search, pool, notices.append)._retrain(entries)
    assert pool.calls == [
        ("retrained", known["c0002"], 80, [{"ease": 0.0}, {"ease": 0.3}]),
        ("retrained", known["c0003"], 120, [{"ease": 0.2}]),
    ]
    assert notices == ["c0003 diverges when it is trained from scratch."]
    retrained = {"validation": validation, "test": tested}
    assert [e.get("retrained") for e in entries] == [retrained, None, None, None, retrained]


class Scoring:
    """In place of workers: whatever is tested has these scores."""

    def __init__(self, config: SearchConfig) -> None:
        self._scores = {o.name: {"mean": o.reference} for o in config.objectives}

    def map(self, calls: Sequence[tuple[Any, ...]], *_: object) -> list[Any]:
        return [None if call == ("features",) else [self._scores] * len(call[-1]) for call in calls]

    def each(self, calls: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        for place, (_, files, settings) in enumerate(calls):
            yield place, ([self._scores] * len(settings), {"of": files["recommender.json"]})

    def tell_all(self, *_: object) -> None:
        pass


def test_a_control_that_is_stopped_does_not_cost_the_front(
    undisturbed: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Comparison, "_retrain", stopped)
    run = undisturbed.copy(tmp_path / "run")
    config, notices = SearchConfig.load(run / "search.yaml"), list[str]()
    (run / "front.json").unlink()
    with closing(Store.open(run / "search.db")) as store:
        comparison = Comparison(run, Search(config, store, run), Scoring(config), notices.append)
        with pytest.raises(KeyboardInterrupt):
            comparison.finish(retrain=True)
    assert notices[-1] == "Training what inherited weights from scratch, as a control."
    entries = [e["entry"] for e in load_front(run)["front"]]
    assert entries == [e["entry"] for e in load_front(undisturbed.run)["front"]]


def test_a_damaged_checkpoint_costs_the_front_its_own_entries(undisturbed: Finished, tmp_path: Path) -> None:
    run = undisturbed.copy(tmp_path / "run")
    config, notices = SearchConfig.load(run / "search.yaml"), list[str]()
    before = load_front(run)["front"]
    damaged = before[0]["candidate"]
    assert {e["candidate"] for e in before} > {damaged}
    (run / "checkpoints" / damaged / "recommender.json").write_text("{}")
    with closing(Store.open(run / "search.db")) as store:
        front = Comparison(run, Search(config, store, run), Scoring(config), notices.append).finish(retrain=False)
    left = {e["candidate"] for e in front["front"]}
    assert left
    assert damaged not in left
    assert {p.name for p in (run / "item_vectors").iterdir()} == left
    for name in left:
        content, own = checkpoint.read(run / "item_vectors" / name), checkpoint.read(run / "checkpoints" / name)
        assert content == {"of": own["recommender.json"], "checkpoint.sha256": checkpoint.digest(own).encode()}
    assert [line for line in notices if line.startswith("Left out of the front: ")] == [
        f"Left out of the front: {run / 'checkpoints' / damaged}: 'recommender.json' was changed; "
        "restore the folder from a copy, delete front.json and resume to have it back."
    ]
