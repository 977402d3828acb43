"""What a front is compared with."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from running import Finished, undisturbed

from pareto_search import SearchConfig, checkpoint
from pareto_search.archive import choose
from pareto_search.comparison import CURVE_SETTINGS, Comparison
from pareto_search.launch import workload
from pareto_search.objective import Values
from pareto_search.recsys import dataset
from pareto_search.recsys.split import split
from pareto_search.results import ENTRIES
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
