"""What a variant's search begins with."""

from pathlib import Path

import pytest

from benchmarks.ablations import VARIANTS, configured, prepare
from pareto_search.store import SearchRecord, Store

OTHER_SERVING = ("without serving genes", "without text", "blends searched, not fitted")


@pytest.mark.parametrize("name", VARIANTS)
def test_curves_are_taken_over_where_the_serving_genes_are_the_same(name: str, tmp_path: Path) -> None:
    prepared, run = tmp_path / "prepared", tmp_path / "run"
    config = configured({}, seed=0, steps=10, candidates=1)
    (prepared / "components" / "ease").mkdir(parents=True)
    (prepared / "search.yaml").write_text(config.to_yaml())
    record = SearchRecord(config.name, config.identity(), config.to_yaml(), 0, "", "", "", "", lanes=2)
    store = Store.create(prepared / "search.db", record)
    facts = {"components": {"ease": {}}, "baselines": [], "curves": {"warm-start": []}}
    with store.transaction() as changes:
        for fact, value in facts.items():
            changes.put_fact(fact, value)
    store.close()

    prepare(prepared, run, configured(VARIANTS[name], seed=0, steps=10, candidates=1000, minutes=2.5))

    begun = Store.open(run / "search.db")
    taken = {fact for fact in facts if begun.fact(fact) is not None}
    begun.close()
    assert taken == ({"components"} if name in OTHER_SERVING else facts.keys())
    assert (run / "components" / "ease").is_dir()
