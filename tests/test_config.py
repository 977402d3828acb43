from pathlib import Path
from typing import Any

import pytest
import yaml

from pareto_search.config import SearchConfig
from pareto_search.errors import ConfigError
from pareto_search.objective import Constraint, Objective
from pareto_search.recsys.dataset import Columns
from pareto_search.space import Gene

LEAST: dict[str, Any] = {"name": "movielens", "data": {"source": "movielens-100k"}}
TABLES: dict[str, Any] = {
    "interactions": "ratings.csv",
    "items": "s3://shop/movies.parquet",
    "columns": {"user": "userId", "item": "movieId", "rating": "rating", "text": ["title", "genres"]},
}
NDCG = {"metric": "ndcg@10", "reference": 0.02, "ideal": 0.15}
ILD = {"metric": "ild@10", "reference": 0.4, "ideal": 1}
GINI = {"metric": "gini@10", "reference": 0.9, "ideal": 0.5}


def parsed(**sections: Any) -> SearchConfig:
    return SearchConfig.parse(LEAST | sections)


def refusal(mapping: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        SearchConfig.parse(mapping)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_name_and_data_are_enough() -> None:
    config = parsed()
    assert config.objectives == (
        Objective("ndcg@10", "maximise", 0.02, 0.15),
        Objective("ild@10", "maximise", 0.4, 1.0),
        Objective("novelty@10", "maximise", 0.1, 0.8),
        Objective("credibility@10", "maximise", 0.5, 0.85),
    )
    assert config.constraints == ()
    assert config.model.base == "minilm"
    assert (config.search.population, config.search.candidates, config.search.rungs) == (16, 48, (40,))
    assert (config.workers.count, config.workers.cpus, config.workers.gpus) == (2, 1.0, 0.0)
    assert config.store is None


def test_directions_are_the_metrics_own() -> None:
    config = parsed(objectives=[NDCG, GINI], constraints=["coverage@10 >= 0.05"])
    assert [o.direction for o in config.objectives] == ["maximise", "minimise"]
    assert config.constraints == (Constraint("coverage@10", True, 0.05),)


def test_data_becomes_the_arguments_of_the_loader() -> None:
    columns = Columns(user="userId", item="movieId", rating="rating", text=("title", "genres"))
    tables = parsed(data=TABLES).data.arguments()
    interactions = str(Path("ratings.csv").absolute())
    assert tables == {"interactions": interactions, "items": TABLES["items"], "users": None, "columns": columns}
    assert parsed().data.arguments() == {"source": "movielens-100k"}


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"populaton": 3}, ["populaton is no key", "expected one of", "search"]),
        ({"srch": {}}, ["srch is no key; did you mean 'search'?"]),
        ({"search": {"populaton": 3}}, ["search.populaton is no key; did you mean 'population'?"]),
        ({"objectives": [NDCG, ILD | {"refrence": 0}]}, ["objectives.1.refrence is no key", "'reference'"]),
        ({"data": TABLES | {"columns": {"usr": "u"}}}, ["data.columns.usr is no key; did you mean 'user'?"]),
        ({"search": {"population": 1}}, ["search.population is 1; expected a number greater than or equal to 2"]),
        ({"search": {"population": "16"}}, ["search.population is '16'; expected a whole number"]),
        ({"search": {"population": True}}, ["search.population is True; expected a whole number"]),
        ({"search": {"algorithm": "nsga3"}}, ["search.algorithm is 'nsga3'; expected 'nsga2' or 'spea2'"]),
        ({"search": {"minutes": 0}}, ["search.minutes is 0; expected a number greater than 0"]),
        ({"search": {"candidate_timeout": float("inf")}}, ["search.candidate_timeout is inf", "finite"]),
        ({"search": None}, ["search is empty; expected a mapping"]),
        ({"search": {"steps": 0, "rungs": [10]}}, ["search.steps is 0"]),
        ({"search": {"rungs": [10, 20]}}, ["search.rungs: [10, 20]", "growing numbers that end with steps, 40"]),
        ({"search": {"rungs": [40, 40]}}, ["search.rungs: [40, 40]", "growing"]),
        ({"search": {"candidates": 3, "rungs": [10, 20, 40]}}, ["search.rungs", "none of 3 candidates", "full rung"]),
        ({"search": {"patience": 2, "rungs": [20, 40]}}, ["search.patience is 2", "use one of", "search.rungs"]),
        ({"search": {"patience": 0}}, ["search.patience is 0"]),
        ({"model": {"width": 129}}, ["model.width is 129; expected a multiple of 2"]),
        ({"model": {"history": 0}}, ["model.history is 0", "1"]),
        ({"workers": {"gpus": 1.5}}, ["workers.gpus: 1.5", "whole number, or a fraction below 1"]),
        ({"workers": {"cpus": 0}}, ["workers.cpus is 0; expected a number greater than 0"]),
        ({"workers": {"pack": 0}}, ["workers.pack is 0; expected a number greater than"]),
        ({"workers": {"pack": 2}, "search": {"mode": "ordered"}}, ["workers.pack is 2", "bit for bit", "mode async"]),
        ({"name": "My search"}, ["name is 'My search'; expected up to 64 lower-case letters"]),
        ({"name": "a" * 65}, ["name is 'aaaa", "64"]),
        ({"data": {}}, ["data: given incompletely or twice; expected either source, or interactions"]),
        ({"data": TABLES | {"source": "folder"}}, ["data: given incompletely or twice"]),
        ({"data": {"interactions": "a.csv", "items": "b.csv"}}, ["data: given incompletely or twice", "columns"]),
        ({"data": TABLES | {"columns": {"user": "u", "item": "i", "text": []}}}, ["data.columns.text is []", "one"]),
        ({"data": TABLES | {"columns": {"user": "u", "text": ["t"]}}}, ["data.columns.item is missing"]),
        ({"objectives": [NDCG]}, ["objectives has 1 entries; expected at least two"]),
        ({"objectives": [NDCG, ILD, NDCG]}, ["objectives names ndcg@10 twice"]),
        ({"objectives": [ILD, GINI]}, ["no accuracy metric", "ndcg, recall, hr, mrr, precision"]),
        ({"objectives": NDCG}, ["objectives is", "expected a list"]),
        ({"objectives": [NDCG | {"metric": "ndgc@10"}]}, ["objectives.0.metric", "did you mean 'ndcg'?"]),
        ({"objectives": [NDCG | {"ideal": 0.02}]}, ["objectives.0", "is 0.02; expected one above its reference 0.02"]),
        ({"objectives": [NDCG, GINI | {"ideal": 0.95}]}, ["objectives.1", "one below its reference 0.9", "minimise"]),
        ({"constraints": ["coverage@10 > 0.05"]}, ["constraints.0", "coverage@10 >= 0.05"]),
        ({"constraints": ["covrage@10 >= 0.05"]}, ["constraints.0", "did you mean 'coverage'?"]),
        ({"space": {"rnak": 8}}, ["space.rnak is no gene; did you mean 'rank'?"]),
        ({"space": {"rank": [8, 9]}}, ["space.rank is [8, 9]; expected some of [4, 8, 16, 32]"]),
        ({1: 2}, ["1 is 1; expected a text"]),
    ],
)
def test_a_mistake_is_one_line_with_its_key_and_what_was_expected(
    sections: dict[str, Any], expected: list[str]
) -> None:
    message = refusal(LEAST | sections)
    for words in expected:
        assert words in message


def test_a_missing_section_is_named_unless_it_was_only_misspelt() -> None:
    assert refusal({"name": "movielens"}) == "data is missing; add it to the config"
    assert refusal({"name": "movielens", "dta": {}}) == "dta is no key; did you mean 'data'?"


def test_a_bad_database_url_is_not_repeated_because_it_may_hold_a_password() -> None:
    message = refusal(LEAST | {"store": "me:secret@host"})
    assert "store" in message
    assert "postgresql://" in message
    assert "secret" not in message


def test_credibility_needs_a_column_of_ratings() -> None:
    columns = {"user": "u", "item": "i", "text": ["title"]}
    unrated = LEAST | {"data": TABLES | {"columns": columns}}
    assert "credibility@10 needs ratings; expected data.columns.rating" in refusal(unrated)
    without = unrated | {"objectives": [NDCG, ILD]}
    assert len(SearchConfig.parse(without).objectives) == 2
    assert "credibility@5 needs ratings" in refusal(without | {"constraints": ["credibility@5 >= 0.5"]})


def test_every_objective_that_lists_are_judged_by_has_a_weight_and_accuracy_has_none() -> None:
    recall = NDCG | {"metric": "recall@20"}
    names = [g.name for g in parsed(objectives=[ILD, NDCG, recall]).search_space.genes]
    assert [n for n in names if n.startswith("weight.")] == ["weight.ild@10"]


def test_lists_are_re_ranked_only_for_what_an_objective_asks_and_else_blends_are_all_that_varies() -> None:
    def serving(*objectives: dict[str, Any]) -> list[str]:
        return [g.name for g in parsed(objectives=objectives).search_space.of("serving").genes]

    assert serving(NDCG, ILD) == ["diversity"]
    assert serving(NDCG, GINI) == ["ease", "text"]
    whole = parsed().search_space.of("serving").genes
    assert [g.name for g in whole] == ["diversity", "novelty", "credibility"]


def test_blends_are_fitted_unless_the_space_section_asks_for_a_range_or_a_value() -> None:
    assert parsed().search_space.of("serving").fitted == ("sharpness", "ease", "text")
    assert parsed().search_space.of("training").fitted == ()
    space = parsed(space={"ease": [0.0, 0.5]}).search_space.of("serving")
    assert space.fitted == ("sharpness", "text")
    assert [g.name for g in space.genes] == ["diversity", "novelty", "credibility", "ease"]
    assert space.without(["text"]).fitted == ("sharpness",)
    fixed = parsed(space={"ease": 0.2}).search_space.of("serving")
    there = fixed.at({"sharpness": 0.8, "text": 0.1})
    assert (fixed.fixed, there.fitted) == ({"ease": 0.2}, ())
    assert there.fixed == {"ease": 0.2, "sharpness": 0.8, "text": 0.1}


def test_sasrec_is_blended_in_on_request() -> None:
    assert parsed().blended == ("ease", "text")
    asked = parsed(space={"sasrec": [0.0, 1.0]})
    assert asked.blended == ("ease", "sasrec", "text")
    assert "sasrec" in [g.name for g in asked.search_space.genes]
    fitted = parsed(space={"sasrec": "fitted"})
    assert fitted.blended == asked.blended
    assert fitted.search_space.fitted == ("sharpness", "ease", "sasrec", "text")
    assert "space.rank is 'fitted'; expected some of" in refusal(LEAST | {"space": {"rank": "fitted"}})


def test_who_asks_for_calibrated_probabilities_has_them_fitted() -> None:
    ece = {"metric": "ece@10", "reference": 0.1, "ideal": 0.0}
    assert parsed(objectives=[NDCG, ece]).search_space.of("serving").fitted == ("sharpness",)


def test_the_space_section_narrows_and_fixes_genes() -> None:
    space = parsed(space={"rank": 8, "dropout": [0.0, 0.1], "id_embeddings": False}).search_space
    assert space.fixed == {"adapter": "lora", "rank": 8, "id_embeddings": False, "distillation": 0.0}
    assert Gene("dropout", "real", low=0.0, high=0.1, most=0.9) in space.genes


def test_a_gene_with_a_default_varies_where_it_is_asked_for() -> None:
    both = parsed(space={"adapter": ["lora", "dora"]}).search_space
    assert [g.choices for g in both.genes if g.name == "adapter"] == [("lora", "dora")]
    assert parsed(space={"adapter": "dora"}).search_space.fixed == {"adapter": "dora", "distillation": 0.0}


def test_relative_paths_are_relative_to_the_file_and_urls_stay(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    file = tmp_path / "search.yaml"
    file.write_text("name: a\ndata: {source: ../movies}\nmodel: {base: base}\n")
    config = SearchConfig.load(file)
    assert config.data.source == str(tmp_path.parent / "movies")
    assert config.model.base == str(tmp_path / "base")

    file.write_text("name: a\ndata: {source: movielens-100k}\nmodel: {base: owner/name}\n")
    config = SearchConfig.load(file)
    assert config.data.source == "movielens-100k"
    assert config.model.base == "owner/name"


def test_users_are_a_table_of_their_own_with_the_columns_by_which_they_belong_together(tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    tables = "interactions: r.csv, items: i.csv, users: people.csv"
    columns = "user: u, item: i, text: [title], groups: [gender, town]"
    objectives = "[{metric: ndcg@5, reference: 0, ideal: 1}, {metric: 'ndcg@5[gender]', reference: 0.2, ideal: 0}]"
    file.write_text(f"name: a\ndata: {{{tables}, columns: {{{columns}}}}}\nobjectives: {objectives}\n")
    config = SearchConfig.load(file)
    assert config.data.arguments()["users"] == str(tmp_path / "people.csv")
    assert config.data.arguments()["columns"].groups == ("gender", "town")
    assert config.data.at("s3://new/").users == "s3://new/people.csv"
    assert config.objectives[1] == Objective("ndcg@5[gender]", "minimise", 0.2, 0.0)
    assert {
        g.name for g in config.search_space.genes if g.name.startswith("weight.")
    } == set()  # a gap has no surrogate
    for lacking in (columns.replace(", groups: [gender, town]", ""), columns):
        rest = tables if lacking != columns else tables.replace(", users: people.csv", "")
        file.write_text(f"name: a\ndata: {{{rest}, columns: {{{lacking}}}}}\n")
        with pytest.raises(ConfigError, match="expected both, or neither"):
            SearchConfig.load(file)


def test_a_metric_of_a_group_is_no_accuracy_to_train_for() -> None:
    only = [
        {"metric": m, "reference": 0.5 - i, "ideal": i} for i, m in enumerate(("ndcg@5[gender]", "ndcg@5[gender=F]"))
    ]
    with pytest.raises(ConfigError, match="objectives has no accuracy metric"):
        parsed(objectives=only)


def test_an_exponent_is_a_number_without_a_decimal_point(tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text("name: a\ndata: {source: movielens-100k}\nspace: {tower_lr: [1e-4, 2E-3], adapter_lr: 1e-3}\n")
    space = SearchConfig.load(file).search_space
    assert space.fixed == {"adapter": "lora", "adapter_lr": 0.001, "distillation": 0.0}
    assert [(g.low, g.high) for g in space.genes if g.name == "tower_lr"] == [(0.0001, 0.002)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("name: a\ndata: {source: b\nmodel: {}\n", ["search.yaml, line 3 is not valid YAML"]),
        ("name: 2024-13-01\n", ["search.yaml is not valid YAML", "month"]),
        ("- name\n", ["search.yaml holds no config", "mapping"]),
        ("", ["search.yaml holds no config"]),
        (b"name: \xff\n", ["search.yaml is not valid YAML", "utf-8"]),
    ],
)
def test_a_file_that_is_no_config_is_one_line(tmp_path: Path, content: str | bytes, expected: list[str]) -> None:
    file = tmp_path / "search.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        SearchConfig.load(file)
    assert "\n" not in str(caught.value)
    for words in expected:
        assert words in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match=r"cannot be read \(.*\); expected a YAML file$"):
            SearchConfig.load(path)


@pytest.mark.parametrize("name", ["movielens", "1e5", "2024", "null"])
def test_the_resolved_config_reads_back_as_itself(tmp_path: Path, name: str) -> None:
    space = {"adapter_lr": [1e-4, 1e-3], "rank": 8}
    config = parsed(name=name, data=TABLES, constraints=["coverage@10 >= 0.05"], space=space)
    file = tmp_path / "search.yaml"
    file.write_text(config.to_yaml())
    assert SearchConfig.load(file) == config
    assert SearchConfig.load(file).identity() == config.identity()


def test_budget_workers_and_store_are_no_part_of_the_identity() -> None:
    search = {"candidates": 9, "minutes": 1.5, "candidate_timeout": 5, "keep_checkpoints": "all", "rungs": [40]}
    search["fusions"] = 4
    other = parsed(search=search, workers={"count": 5, "pack": 4}, store="postgresql://host/db")
    assert other.identity() == parsed().identity()
    assert len(other.identity()) == 64


@pytest.mark.parametrize(
    "sections",
    [
        {"name": "other"},
        {"data": {"source": "movielens-100k", "tie_seed": 1}},
        {"model": {"history": 20}},
        {"objectives": [NDCG, ILD]},
        {"constraints": ["coverage@10 >= 0.05"]},
        {"space": {"rank": 8}},
        {"search": {"seed": 1}},
        {"search": {"steps": 20}},
        {"search": {"rungs": [20, 40]}},
        {"search": {"inheritance": True}},
        {"search": {"merging": False}},
    ],
)
def test_all_else_is_part_of_the_identity(sections: dict[str, Any]) -> None:
    assert parsed(**sections).identity() != parsed().identity()


@pytest.mark.parametrize(
    ("gene", "wish", "expected"),
    [
        ("layers", 0, "expected values from 1 up"),
        ("layers", [-1, 2], "expected values from 1 up"),
        ("dropout", 1.0, "expected values from 0 to 0.9"),
        ("ease", -0.5, "expected values from 0 up"),
    ],
)
def test_a_gene_stays_where_it_makes_sense(gene: str, wish: object, expected: str) -> None:
    line = refusal(LEAST | {"space": {gene: wish}})
    assert line.startswith(f"space.{gene} is {wish!r}; ")
    assert line.endswith(expected)


def test_newer_data_lies_at_another_place_under_the_same_names_and_a_config_may_say_otherwise(tmp_path: Path) -> None:
    columns = {"user": "u", "item": "i", "rating": "r", "text": ["title"]}
    tables = {"interactions": "old/ratings.csv", "items": "s3://shop/old/items.parquet", "columns": columns}
    config = SearchConfig.parse({"name": "s", "data": {**tables, "split": "temporal", "tie_seed": 3}}, tmp_path)
    newer = config.refreshed("s3://shop/new/")
    assert (newer.data.interactions, newer.data.items) == ("s3://shop/new/ratings.csv", "s3://shop/new/items.parquet")
    assert newer.model_copy(update={"data": config.data}) == config
    assert config.refreshed(str(tmp_path), "other").name == "other"

    other = {"name": "t", "data": {**tables, "interactions": "ratings-10.csv"}}
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(other))
    data = config.refreshed(str(tmp_path / "new.yaml")).data
    assert data.interactions == str(tmp_path / "ratings-10.csv")
    assert (data.split, data.tie_seed) == ("temporal", 3)

    atomic = SearchConfig.parse({"name": "s", "data": {"source": "old"}, "store": "postgresql://me@here/db"}, tmp_path)
    assert atomic.refreshed(str(tmp_path / "new"), "u").data.source == str(tmp_path / "new")
    with pytest.raises(ConfigError, match="the store of s is shared; give the new search another name with --name"):
        atomic.refreshed(str(tmp_path / "new"))


COLUMNS = {"user": "u", "item": "i", "text": ["t"]}


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"shots": 0.1}, "data: has shots and no target; expected the domain that few users are known of as target"),
        (
            {"target": "a", "columns": COLUMNS},
            "data: has a target and no columns.domain; expected it to name the column",
        ),
        ({"target": "a", "shots": 1.5}, "data.shots is 1.5; expected a number less than or equal to 1"),
    ],
)
def test_a_target_that_does_not_fit_is_refused(data: dict[str, Any], complaint: str) -> None:
    place = {"interactions": "a.csv", "items": "b.csv"} if "columns" in data else {"source": "folder"}
    with pytest.raises(ConfigError) as caught:
        SearchConfig.parse({"name": "s", "data": {**place, **data}})
    assert str(caught.value).startswith(complaint)


def test_a_target_says_how_the_data_is_split() -> None:
    targeted = SearchConfig.parse({"name": "s", "data": {"source": "folder", "target": "a"}})
    splitting = {"strategy": "leave_last_out", "tie_seed": 0, "target": "a", "shots": None}
    assert targeted.splitting() == splitting
    gaps = ["ndcg@10[user=cold] >= 0", "ndcg@10[domain] <= 1", "recall@10[domain=a] >= 0", "recall@10 >= 0"]
    asked = SearchConfig.parse({"name": "s", "data": {"source": "folder", "target": "a"}, "constraints": gaps})
    assert asked.splitting() == splitting | {"by": ["domain", "user"]}
    assert SearchConfig.parse(yaml.safe_load(targeted.to_yaml())) == targeted


def test_latency_cannot_be_repeated_bit_for_bit() -> None:
    costs = [NDCG, {"metric": "latency", "reference": 100.0, "ideal": 0.0}]
    assert parsed(objectives=costs).objectives[1] == Objective("latency", "minimise", 100.0, 0.0)
    assert "in ordered mode" in refusal(LEAST | {"objectives": costs, "search": {"mode": "ordered"}})
    assert "use workers.pack 1" in refusal(LEAST | {"objectives": costs, "workers": {"pack": 2}})
