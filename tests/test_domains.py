"""A search for one domain that learns from another, as its users have it: nothing of the target's own is trained on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from running import Finished, pareto_search
from safetensors.numpy import load as tensors

from benchmarks import small
from pareto_search.entry import of_run
from pareto_search.errors import ParetoSearchError
from pareto_search.launch import load_config
from pareto_search.question import Question
from pareto_search.recsys.dataset import load
from pareto_search.workers.answer import Desk
from pareto_search.workers.recommend import Serving, sequences

LIBRARY = {f"i{i}" for i in range(1, small.ITEMS + 1) if i % 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("domains")
    config = small.make(folder)
    head, *rows = (folder / "items.csv").read_text().splitlines()
    domains = ("library" if row.split(",")[0] in LIBRARY else "shop" for row in rows)
    (folder / "items.csv").write_text("\n".join([f"{head},place", *map(",".join, zip(rows, domains, strict=True))]))
    content = yaml.safe_load(config.read_text())
    content["data"] |= {"target": "library", "shots": 0}
    content["data"]["columns"] |= {"domain": "place"}
    del content["data"]["columns"]["categories"]  # so that distances are measured by the texts
    content["objectives"] = [o for o in small.OBJECTIVES if not o["metric"].startswith("novelty")]
    content["constraints"] = ["ndcg@5[domain=library] >= 0"]
    config.write_text(yaml.safe_dump(content))
    ended = pareto_search("run", config, "--out", folder / "run")
    assert ended.code == 0, ended.err
    return Finished(config, folder / "run", ended.out)


@pytest.fixture(scope="module")
def front(finished: Finished) -> dict[str, Any]:
    return dict(json.loads((finished.run / "front.json").read_text()))


@pytest.fixture(scope="module")
def textual(front: dict[str, Any]) -> dict[str, Any]:
    """The entry that makes most of the text."""
    return max(front["front"], key=lambda e: e["serving"].get("text", 0.0))


def test_all_that_is_wanted_belongs_to_the_target(front: dict[str, Any]) -> None:
    for entry in front["front"]:
        assert entry["validation"]["ndcg@5[domain=library]"] == pytest.approx(entry["validation"]["ndcg@5"])


def test_the_text_is_compared_with_and_blended_in(front: dict[str, Any], textual: dict[str, Any]) -> None:
    assert "text" in {b["name"] for b in front["baselines"]}
    assert any("text" in p["name"].split("+") for p in front["curves"]["practitioner"])  # alone or blended in
    assert textual["serving"]["text"] > 0


def test_an_entry_scores_again_as_it_was_reported(finished: Finished, textual: dict[str, Any], tmp_path: Path) -> None:
    reported = {name: score["mean"] for name, score in textual["test"].items()}
    for form in ("adapter", "merged"):  # a merged model's own vectors are others, and the text's stay
        to = tmp_path / form
        assert pareto_search("export", finished.run, textual["entry"], "--to", to, "--format", form).code == 0
        ended = pareto_search("evaluate", to, "--data", finished.config, "--json")
        found = {name: score["mean"] for name, score in json.loads(ended.out).items()}
        assert found == pytest.approx(reported, abs=1e-3)


def test_only_the_targets_items_are_recommended(finished: Finished, textual: dict[str, Any]) -> None:
    name = textual["entry"]
    ended = pareto_search("recommend", finished.run, name, "--history", "i1,i2", "-k", "14", "--json")
    assert {r["item"] for r in json.loads(ended.out)} == LIBRARY - {"i1"}
    ended = pareto_search("recommend", finished.run, name, "--history", "i1,i2", "-k", "15")
    assert "-k is 15; expected 1 to 14" in ended.complaint
    to = finished.run.parent / "lists.csv"
    assert pareto_search("recommend-all", finished.run, name, "--to", to, "-k", "15").code == 0
    assert set(pd.read_csv(to)["item"]) == LIBRARY
    ended = pareto_search("recommend-all", finished.run, name, "--to", to.with_name("more.csv"), "-k", "16")
    assert "-k is 16; expected 1 to 15, the items that may be recommended" in ended.complaint
    data = load(**load_config(finished.run).data.arguments())
    desk = Desk(finished.run, [name], data)
    [answer] = desk.answer([Question(history=("i1", "i2"), k=14)])
    assert {item["item"] for item in answer.items} == LIBRARY - {"i1"}  # type: ignore[union-attr]


def test_it_is_served_without_the_base_model(finished: Finished, textual: dict[str, Any]) -> None:
    data, name = load(**load_config(finished.run).data.arguments()), textual["entry"]
    whole, alone = (
        Serving(of_run(finished.run, name), data),
        Serving(of_run(finished.run, name, vectors=True), data, "x"),
    )
    assert np.array_equal(alone.items.features, whole.items.features)
    history = whole.history_with(["i2", "i4", "i1"])
    expected, found = (serving.recommend(history, 14, explain=True) for serving in (whole, alone))
    assert [r.score for r in found] == pytest.approx([r.score for r in expected])
    assert [(r.item, r.because) for r in found] == [(r.item, r.because) for r in expected]
    with pytest.raises(ParetoSearchError, match="base model 'x'"):
        _ = alone.encoder


def test_the_texts_vectors_are_kept_of_every_item(finished: Finished) -> None:
    vectors = tensors((finished.run / "components" / "text" / "vectors.safetensors").read_bytes())["vectors"]
    assert vectors.shape[0] == small.ITEMS
    assert np.linalg.norm(vectors.astype(np.float32), axis=1) == pytest.approx(1.0, abs=1e-2)


def test_an_item_that_has_changed_its_domain_is_noticed(
    finished: Finished, textual: dict[str, Any], tmp_path: Path
) -> None:
    assert pareto_search("export", finished.run, textual["entry"], "--to", tmp_path / "entry").code == 0
    card = (tmp_path / "entry" / "README.md").read_text()
    assert "target `library`, whose items alone are recommended, trained on the interactions of 0% of the users" in card
    for name in ("search.yaml", "ratings.csv", "items.csv"):
        text = (finished.config.parent / name).read_text()
        (tmp_path / name).write_text(text.replace("library\n", "shop\n", 1) if name == "items.csv" else text)
    ended = pareto_search("evaluate", tmp_path / "entry", "--data", tmp_path / "search.yaml")
    assert "domains or groups have changed; give the data of its search" in ended.complaint


def test_why_an_item_is_recommended_counts_the_text(finished: Finished, textual: dict[str, Any]) -> None:
    data = load(**load_config(finished.run).data.arguments())
    serving = Serving(of_run(finished.run, textual["entry"]), data)
    history = serving.history_with(["i2", "i4", "i1"])
    chosen = np.array([2, 4], np.int32)
    whole = serving.contributions(history, chosen)
    text = serving.scorers.pop("text")
    without = serving.contributions(history, chosen)
    scores = text.scores(sequences([history]))
    deviation = scores[~serving.items.barred(sequences([history]))].std()
    by_text = textual["serving"]["text"] * scores[0, chosen] / deviation
    assert (whole - without).sum(1) == pytest.approx(by_text, rel=1e-4)
