"""What a front is compared with."""

from contextlib import closing

import pytest
from running import Finished, undisturbed

from pareto_search import SearchConfig, checkpoint
from pareto_search.archive import choose
from pareto_search.comparison import CURVE_SETTINGS
from pareto_search.launch import workload
from pareto_search.recsys import dataset
from pareto_search.recsys.split import split
from pareto_search.results import ENTRIES
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
