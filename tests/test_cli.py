import errno
import json
import re
import shlex
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import optuna
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from click.testing import CliRunner
from running import Call, Finished, call, pareto_search, undisturbed

from benchmarks import kills, small
from pareto_search import SearchConfig, launch, load_front
from pareto_search.cli import DEMO, cli
from pareto_search.display import show_front
from pareto_search.entry import of_run
from pareto_search.errors import CheckpointError, RunError
from pareto_search.launch import load_config
from pareto_search.question import Question
from pareto_search.recsys.dataset import load
from pareto_search.recsys.fetch import FOLDER
from pareto_search.report import report
from pareto_search.store import Store, lock
from pareto_search.workers import everybody
from pareto_search.workers.answer import Desk
from pareto_search.workers.recommend import Serving

__all__ = ["call", "undisturbed"]

ROOT = Path(__file__).parents[1]


@pytest.fixture
def copied(undisturbed: Finished, tmp_path: Path) -> Path:
    """Its run folder, for who changes it: a look at test is counted."""
    return undisturbed.copy(tmp_path / "run")


def commands(group: click.Group, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*names, name), command
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)


EVERY = list(commands(cli))


@pytest.mark.parametrize(("names", "command"), EVERY, ids=[" ".join(names) for names, _ in EVERY])
def test_every_commands_help_shows_an_example_that_the_command_accepts(
    names: tuple[str, ...], command: click.Command
) -> None:
    result = CliRunner().invoke(cli, [*names, "--help"])
    shown = " ".join(result.output.split())
    assert result.exit_code == 0
    if isinstance(command, click.Group):
        return
    example = re.search(rf"Example: pareto-search {' '.join(names)} ?(.*?) Options:", shown)
    assert example, result.output
    command.make_context(names[-1], shlex.split(example[1]))


@pytest.mark.parametrize("names", [(), ("run",), ("recommend",)])
def test_help_is_there_under_its_short_name_too(call: Call, names: tuple[str, ...]) -> None:
    ended = call(*names, "-h")
    assert ended.code == 0
    assert ended.out.startswith("Usage: ")


def test_the_demo_of_the_command_line_is_that_of_the_page() -> None:
    script = (ROOT / "pareto_search" / "service" / "static" / "home.js").read_text()
    found = re.search(r"^const DEMO = (\{.*\});$", script, re.MULTILINE)
    assert found
    page = yaml.safe_load(found[1])  # as which it reads too
    assert page["search"] == DEMO["search"]
    assert SearchConfig.parse({**page, "data": DEMO["data"]}) == SearchConfig.parse(DEMO)


def test_the_version_is_told(call: Call) -> None:
    assert re.fullmatch(r"pareto-search, version \d+\.\d+\.\d+\n", call("--version").out)


def test_no_command_at_all_shows_the_help(call: Call) -> None:
    ended = call()
    assert ended.code == 2
    assert "Commands:" in ended.out + ended.err
    assert "see --help" not in ended.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["rnu"], "No such command 'rnu'"),
        (["run"], "Missing argument 'CONFIG'"),
        (["run", "search.yaml"], "Missing option '--out'"),
        (["run", "search.yaml", "--out", "r", "--sed", "1"], "No such option"),
        (["run", "search.yaml", "--out", "r", "--seed", "one"], "'one' is not a valid integer"),
        (["resume", "r", "--minutes", "soon"], "'soon' is not a valid float"),
        (["front"], "Missing argument 'RUN'"),
        (["export", "r", "c0001-s00"], "Missing option '--to'"),
        (["data", "fetch", "movielens"], "'movielens' is not 'movielens-100k'"),
        (["evaluate", "e", "--split", "train"], "'train' is not one of"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_line_that_does_not_fit_gets_one_line(call: Call, arguments: list[str], complaint: str) -> None:
    said = call(*arguments).complaint
    assert complaint in said
    assert re.search(r"\(see pareto-search.* --help\)$", said)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a base model and a config that fit."""
    folder = tmp_path_factory.mktemp("material")
    small.make(folder)
    return folder


Change = Callable[[dict[str, Any], Path], object]


def replaced(file: str, old: str, new: str) -> Change:
    def change(_: dict[str, Any], folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1))

    return change


def added(file: str, line: str) -> Change:
    return lambda _, folder: (folder / file).write_text((folder / file).read_text() + line + "\n")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        pytest.param(
            lambda config, _: config.update(serach=config.pop("search")),
            "serach is no key; did you mean 'search'?",
            id="misspelt section",
        ),
        pytest.param(
            lambda config, _: config["search"].update(poplation=3),
            "search.poplation is no key; did you mean 'population'?",
            id="misspelt key",
        ),
        pytest.param(
            lambda config, _: config["search"].update(colour="red"),
            "search.colour is no key; expected one of: algorithm, candidate_timeout,",
            id="unknown key",
        ),
        pytest.param(
            lambda config, _: config["search"].update(candidates="many"),
            "search.candidates is 'many'; expected a whole number",
            id="not a number",
        ),
        pytest.param(
            lambda config, _: config["objectives"][0].update(metric="ndgc@5"),
            "metric 'ndgc' is unknown; did you mean 'ndcg'?",
            id="misspelt metric",
        ),
        pytest.param(
            lambda config, _: config["space"].update(rnak=3),
            "space.rnak is no gene; did you mean 'rank'?",
            id="misspelt gene",
        ),
        pytest.param(
            lambda config, _: config["data"]["columns"].update(rating="stars"),
            "ratings.csv has no column 'stars' (columns.rating); expected one of: item, rating, time, user",
            id="missing column",
        ),
        pytest.param(
            lambda config, _: config["data"].update(items="films.csv"),
            "films.csv does not exist; check the path",
            id="missing file",
        ),
        pytest.param(
            lambda _, folder: (folder / "ratings.csv").write_text(""),
            "ratings.csv has no rows; expected a header in the first line and rows under it",
            id="empty file",
        ),
        pytest.param(
            lambda _, folder: (folder / "ratings.csv").write_text("user,item,rating,time\n"),
            "ratings.csv has no rows",
            id="no rows",
        ),
        pytest.param(
            replaced("ratings.csv", ",5,", ",five,"),
            "'five' in column 'rating' is no number; expected a finite number as rating in every row",
            id="rating that is no number",
        ),
        pytest.param(
            added("items.csv", "i1,Again,drama"),
            "items.csv, line 32: item id 'i1' has been given in line 2; expected one row for each item",
            id="item given twice",
        ),
        pytest.param(
            lambda config, _: config["model"].update(base="./nowhere"),
            "base model './nowhere' is no folder; expected 'minilm', a local folder or a hub id",
            id="base model that is not there",
        ),
        pytest.param(
            lambda config, _: config["model"].update(base="nobody/nothing"),
            "base model 'nobody/nothing' is neither a local folder nor reachable on the hub",
            id="hub out of reach",
        ),
        pytest.param(
            lambda _, folder: (folder / "base" / "model.safetensors").rename(folder / "base" / "model.bin"),
            "no .safetensors file in",
            id="pickled base model",
        ),
        pytest.param(
            lambda config, _: config["workers"].update(gpus=64),
            "2 workers with 1 CPUs and 64 GPUs each were asked for, but the cluster has room for 0 (nodes: ",
            id="more GPUs than there are",
        ),
    ],
)
def test_a_config_or_data_that_does_not_fit_gets_one_line(
    call: Call, material: Path, tmp_path: Path, change: Change, complaint: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(material, folder)
    config = yaml.safe_load((folder / "search.yaml").read_text())
    config["space"] = {}
    change(config, folder)
    (folder / "search.yaml").write_text(yaml.safe_dump(config))
    assert complaint in call("run", folder / "search.yaml", "--out", tmp_path / "run").complaint


def test_a_config_that_is_not_there_or_no_yaml_gets_one_line(call: Call, tmp_path: Path) -> None:
    assert "none.yaml cannot be read" in call("run", tmp_path / "none.yaml", "--out", tmp_path / "run").complaint
    (tmp_path / "bad.yaml").write_text("name: [")
    assert "is not valid YAML" in call("run", tmp_path / "bad.yaml", "--out", tmp_path / "run").complaint


def test_what_is_no_address_gets_one_line(call: Call, material: Path, tmp_path: Path) -> None:
    said = call("run", material / "search.yaml", "--out", tmp_path / "run", "--address", "somewhere").complaint
    assert said == "'somewhere' is no Ray address; expected HOST:PORT, ray://HOST:PORT or auto"


def test_what_is_left_out_of_the_data_is_counted(call: Call, material: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(material, folder)
    added("items.csv", "i31,,")({}, folder)
    added("ratings.csv", "lonely,i1,5,1\nlonely,i2,4,2\nu1,i31,3,99999\nu1,i99,3,99999")({}, folder)
    shutil.rmtree(folder / "base")  # so that the search ends before it starts workers
    config = folder / "search.yaml"
    said = call("run", config, "--out", tmp_path / "run").out
    assert "Left out users with fewer than 3 interactions: 1." in said
    assert "Left out items without text: 1." in said
    assert "Left out interactions of items without text: 1." in said
    assert "Left out interactions of items that the items table lacks: 1." in said


def test_a_damaged_download_gets_one_line(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARETO_SEARCH_CACHE", str(tmp_path))
    folder = tmp_path / FOLDER
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"sha256": {"interactions.csv": "0" * 64, "items.csv": "0" * 64}}))
    (folder / "interactions.csv").write_text("user_id,item_id,rating,timestamp\n1,1,1,")
    said = call("data", "fetch", "movielens-100k").complaint
    assert f"{folder} is damaged (interactions.csv has changed since it was fetched); delete that folder" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["front"],
        ["plot"],
        ["select"],
        ["resume"],
        ["evaluate", "c0001-s00"],
        ["export", "c0001-s00", "--to", "x"],
        ["recommend", "c0001-s00", "--user", "u1"],
    ],
    ids=lambda value: value[0],
)
def test_a_run_folder_that_is_not_there_gets_one_line(call: Call, tmp_path: Path, arguments: list[str]) -> None:
    command, *rest = arguments
    said = call(command, tmp_path / "none", *rest).complaint
    assert str(tmp_path / "none") in said
    assert "expected a run folder" in said


def test_a_run_folder_of_another_config_is_refused(call: Call, undisturbed: Finished, tmp_path: Path) -> None:
    said = call("run", undisturbed.config, "--out", undisturbed.run, "--seed", "1").complaint
    assert said == (
        f"{undisturbed.run} holds a search of another config (not the same: search.seed); give --out another folder"
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    said = call("run", undisturbed.config, "--out", tmp_path / "other").complaint
    assert said == f"{tmp_path / 'other'} is not empty and holds no search; give --out a new folder"


def test_a_search_shows_its_progress_and_at_the_end_its_front(undisturbed: Finished) -> None:
    lines = undisturbed.said.splitlines()
    total = int(kills.SEARCH["candidates"])
    form = rf"(\d) of {total} candidates(, \d+ merged)?: front of \d+ entr(?:y|ies), hypervolume 0\."
    progress = [match for line in lines if (match := re.search(form, line))]
    counts = [int(match[1]) for match in progress]
    assert counts == sorted(counts)
    assert set(counts) >= {1, total} or len(set(counts)) > 4  # two that end together are one line
    assert progress[-1][2]
    assert any("left" in line for line in lines)
    assert any(line.strip().startswith("entry") and "ndcg@5" in line for line in lines)
    assert lines[-1] == f"Run folder: {undisturbed.run}; report: {undisturbed.run / 'report.html'}"


def test_a_finished_search_is_shown_again_and_not_run_again(call: Call, undisturbed: Finished, copied: Path) -> None:
    before = (copied / "front.json").read_bytes()
    ended = call("run", undisturbed.config, "--out", copied)
    assert ended.code == 0
    assert "Starting workers" not in ended.out
    assert (copied / "front.json").read_bytes() == before


def test_the_front_is_a_table_with_the_baselines_or_the_file_itself(call: Call, undisturbed: Finished) -> None:
    written = json.loads((undisturbed.run / "front.json").read_text())
    assert json.loads(call("front", undisturbed.run, "--json").out) == written
    shown = call("front", undisturbed.run).out
    for row in written["front"]:
        assert row["entry"] in shown
        assert f"{row['validation']['ndcg@5']:.4f} → {row['test']['ndcg@5']['mean']:.4f}" in shown
    for name in ("popularity", "item-knn", "ease", "sasrec", "practitioner"):
        assert name in shown


def test_a_table_shows_the_brackets_of_a_groups_name(capsys: pytest.CaptureFixture[str]) -> None:
    name, scores = "ndcg@5[gender]", {"validation": {"ndcg@5[gender]": 0.25}, "test": {"ndcg@5[gender]": {"mean": 0.5}}}
    entry = {"entry": "c0000-s00", "serving": {}, **scores}
    show_front(
        {
            "search": "s",
            "objectives": [{"name": name}],
            "front": [entry],
            "baselines": [],
            "hypervolume": {"validation": 0, "test": 0},
        }
    )
    shown = capsys.readouterr().out
    assert name in shown
    assert "0.2500 → 0.5000" in shown


def test_what_was_trained_from_scratch_stands_beside_what_inherited(
    undisturbed: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    front = load_front(undisturbed.run)
    entry = front["front"][0]
    others = {"validation": dict.fromkeys(entry["validation"], 0.125)}
    others["test"] = {name: {"mean": 0.0625} for name in entry["test"]}
    front["front"][0] = entry | {"retrained": others}
    front["hypervolume"]["retrained"] = {"validation": 0.375, "test": 0.1875}
    show_front(front)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    place = next(n for n, row in enumerate(rows) if row[:1] == [entry["entry"]])
    assert rows[place + 1][:5] == ["from", "scratch", "0.1250", "→", "0.0625"]
    assert ["front", "from", "scratch", "0.3750", "0.1875"] in rows
    page = report(front, [], [])
    assert "<th>front from scratch</th><td>0.3750</td><td>0.1875</td>" in page
    assert "<th>from scratch</th><td>0.1250<small>0.0625</small></td>" in page


def test_plot_writes_a_page_that_needs_no_network(call: Call, undisturbed: Finished, tmp_path: Path) -> None:
    page = tmp_path / "front.html"
    assert call("plot", undisturbed.run, "--out", page).out == f"Wrote {page}\n"
    assert not re.search(r'<(script|link)[^>]+(src|href)="http', page.read_text())
    assert "cannot write" in call("plot", undisturbed.run, "--out", tmp_path / "no" / "front.html").complaint


@pytest.mark.parametrize(
    "rule",
    [
        [],
        ["--knee"],
        ["--prefer", "ndcg@5=3,ild@5=1"],
        ["--where", "ndcg@5>=0.0001", "--where", "ild@5 >= 0.1", "--best", "novelty@5"],
        ["--where", "ndcg@5>=0.0001", "--prefer", "ndcg@5=3,ild@5=1"],
    ],
    ids=" ".join,
)
def test_select_names_one_entry_and_says_why(call: Call, undisturbed: Finished, rule: list[str]) -> None:
    chosen = json.loads(call("select", undisturbed.run, *rule, "--json").out)
    written = json.loads((undisturbed.run / "front.json").read_text())
    assert {k: v for k, v in chosen.items() if k != "reason"} in written["front"]
    shown = call("select", undisturbed.run, *rule).out
    assert shown == f"{chosen['entry']}: {chosen['reason']}\n"


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        (
            ["--knee", "--prefer", "ndcg@5=1"],
            "give one of --knee, --prefer WEIGHTS and --best METRIC, with or without --where BOUND",
        ),
        (["--knee", "--best", "ndcg@5"], "give one of --knee"),
        (["--where", "ndcg@5>=2"], "no entry keeps ndcg@5 >= 2; the nearest of"),
        (["--prefer", "ndcg"], "preference 'ndcg' is not of the form 'ndcg@10=3,ild@10=1'"),
        (["--prefer", "ndgc@5=1"], "'ndgc@5' is no objective of this front; did you mean 'ndcg@5'?"),
        (["--where", "ndcg@5 about 1", "--best", "ild@5"], "constraint 'ndcg@5 about 1' is not of the form"),
        (["--where", "gini@5<=1", "--best", "ild@5"], "'gini@5' is no scored metric of this front"),
        (["--where", "ndcg@5>=2", "--best", "ild@5"], "no entry keeps ndcg@5 >= 2; the nearest of"),
        (["--where", "ndcg@5>=0", "--best", "gini@5"], "'gini@5' is no objective of this front"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wish_that_no_entry_can_fulfil_gets_one_line(
    call: Call, undisturbed: Finished, rule: list[str], complaint: str
) -> None:
    assert complaint in call("select", undisturbed.run, *rule).complaint


def chosen(undisturbed: Finished) -> dict[str, Any]:
    """The entry of the front that blends most, for whose files most are needed."""
    front = json.loads((undisturbed.run / "front.json").read_text())["front"]
    entry: dict[str, Any] = max(front, key=lambda e: e["serving"].get("ease", 0) + e["serving"].get("text", 0))
    return entry


def test_evaluate_finds_the_reported_test_scores_again(call: Call, undisturbed: Finished, copied: Path) -> None:
    entry = chosen(undisturbed)
    for part, reported in (
        ("test", {n: s["mean"] for n, s in entry["test"].items()}),
        ("validation", entry["validation"]),
    ):
        ended = call("evaluate", copied, entry["entry"], "--split", part, "--json")
        found = {name: score["mean"] for name, score in json.loads(ended.out).items()}
        assert found == pytest.approx(reported, abs=1e-3)
    shown = call("evaluate", copied, entry["entry"]).out
    assert f"{entry['entry']}  test  ndcg@5  {entry['test']['ndcg@5']['mean']:.4f}" in shown


def test_only_a_look_at_test_that_has_happened_is_counted(
    call: Call, undisturbed: Finished, copied: Path, tmp_path: Path
) -> None:
    entry = chosen(undisturbed)["entry"]
    looks = load_front(copied)["test_evaluations"]
    assert call("evaluate", copied, entry, "--split", "validation").code == 0
    assert call("evaluate", copied, entry, "--data", tmp_path / "nothing").code == 2
    with lock(copied):
        assert "another process is running this search" in call("evaluate", copied, entry).complaint
    assert load_front(copied)["test_evaluations"] == looks
    assert call("evaluate", copied, entry, "--split", "test").code == 0
    assert load_front(copied)["test_evaluations"] == looks + 1


def test_an_exported_entry_is_evaluated_from_its_folder_alone(
    call: Call, undisturbed: Finished, copied: Path, tmp_path: Path
) -> None:
    entry, to = chosen(undisturbed), tmp_path / "exported"
    assert call("export", undisturbed.run, entry["entry"], "--to", to).out == f"Wrote {to}\n"
    ended = call("evaluate", to, "--data", undisturbed.config, "--json")
    assert ended.code == 0, ended.err
    here = json.loads(ended.out)
    again = json.loads(call("evaluate", copied, entry["entry"], "--json").out)
    shared = set(here) & set(again)
    assert {n: here[n]["mean"] for n in shared} == pytest.approx({n: again[n]["mean"] for n in shared})
    wish = ("--user", "u7", "--json")
    asked = call("recommend", to, "--data", undisturbed.config, *wish)
    assert json.loads(asked.out) == json.loads(call("recommend", copied, entry["entry"], *wish).out)
    assert "give RUN ENTRY, or an ENTRY_FOLDER with --data" in call("recommend", to, *wish).complaint
    table = to / "serving.json"
    told = call("evaluate", to, "--data", table).complaint
    assert told.startswith(f"--data {table} is a file; expected movielens-100k, a folder of atomic files, or a config")
    assert "give RUN ENTRY, or an ENTRY_FOLDER with --data" in call("evaluate", to).complaint
    assert (
        "is there already; give --to a new folder"
        in call("export", undisturbed.run, entry["entry"], "--to", to).complaint
    )


def test_an_entry_is_exported_into_a_folder_of_any_name(call: Call, undisturbed: Finished, tmp_path: Path) -> None:
    to = tmp_path / "my exported entry"
    ended = call("export", undisturbed.run, chosen(undisturbed)["entry"], "--to", to)
    assert ended.code == 0, ended.err
    assert (to / "adapter_config.json").is_file()


def test_a_run_recommends_without_its_base_model_and_is_evaluated_with_it(
    call: Call, undisturbed: Finished, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locate(*_: object) -> None:
        raise CheckpointError("the base model is gone")

    name, wish = chosen(undisturbed)["entry"], ("--user", "u7", "--json")
    expected = json.loads(call("recommend", copied, name, *wish, "--base", undisturbed.config.parent / "base").out)
    monkeypatch.setattr("pareto_search.workers.recommend.locate", locate)
    found = json.loads(call("recommend", copied, name, *wish).out)
    assert [r["item"] for r in found] == [r["item"] for r in expected]
    assert [r["score"] for r in found] == pytest.approx([r["score"] for r in expected])
    assert call("evaluate", copied, name, "--split", "validation").complaint == "the base model is gone"
    # So does a deployment, and whatever it is told to change to.
    first, *others = dict.fromkeys(e["entry"] for e in load_front(copied)["front"])
    desk = Desk(copied, [first], load(**load_config(copied).data.arguments()))
    desk.swap([first, *others])
    [answer] = desk.answer([Question(user="u7", entry=name)])
    assert [item["item"] for item in answer.items] == [r["item"] for r in expected]  # type: ignore[union-attr]
    shutil.rmtree(copied / "item_vectors")  # as in the runs of older releases
    assert call("recommend", copied, name, *wish).complaint == "the base model is gone"


def test_a_merged_export_is_evaluated_like_the_entry(call: Call, undisturbed: Finished, tmp_path: Path) -> None:
    entry, to = chosen(undisturbed), tmp_path / "merged"
    ended = call("export", undisturbed.run, entry["entry"], "--to", to, "--format", "merged")
    assert ended.code == 0, ended.err
    assert ended.out.startswith(f"Wrote {to}\nLeast cosine of an item's text vector with the checkpoint's: 1.0000")
    ended = call("evaluate", to, "--data", undisturbed.config, "--json")
    found = {name: score["mean"] for name, score in json.loads(ended.out).items()}
    assert found == pytest.approx({n: s["mean"] for n, s in entry["test"].items()}, abs=1e-3)


def test_a_published_run_is_read_from_its_url(
    call: Call, undisturbed: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARETO_SEARCH_CACHE", str(tmp_path / "cache"))
    url, name = f"file://{tmp_path}/models/first", chosen(undisturbed)["entry"]
    assert call("publish", undisturbed.run, url).out.endswith(f"MB at {url}\n")
    for command in (["front", "--json"], ["select", "--knee"], ["recommend", name, "--user", "u7", "--json"]):
        here = call(command[0], undisturbed.run, *command[1:])
        assert (here.code, call(command[0], url, *command[1:]).out) == (0, here.out)
    assert call("evaluate", url, name, "--split", "validation").code == 0
    assert call("export-study", url, "--to", tmp_path / "study.db").code == 0
    back = tmp_path / "back"
    assert call("fetch", url, "--to", back).out == f"Wrote {back}\n"
    assert call("resume", back).code == 0
    assert "or bring the run into a folder" in call("evaluate", url, name).complaint
    assert "give --out FILE" in call("plot", url).complaint
    assert call("plot", url, "--out", tmp_path / "report.html").code == 0
    assert "nothing is published at" in call("front", f"{url}-other").complaint
    assert "holds no search" in call("resume", url).complaint


def test_export_study_writes_every_evaluation(call: Call, undisturbed: Finished, tmp_path: Path) -> None:
    to = tmp_path / "study.db"
    ended = call("export-study", undisturbed.run, "--to", to)
    assert ended.code == 0, ended.err
    [study] = optuna.get_all_study_summaries(f"sqlite:///{to}")
    assert ended.out.startswith(f"Wrote {study.n_trials} evaluations to {to}; ")
    assert ended.out.endswith(f"optuna-dashboard sqlite:///{to}\n")
    assert study.n_trials > 6  # candidates, each with several settings
    assert "is there already; give --to a new file" in call("export-study", undisturbed.run, "--to", to).complaint
    assert "cannot be written" in call("export-study", undisturbed.run, "--to", to / "below").complaint


def test_an_unknown_tracker_gets_one_line(call: Call, undisturbed: Finished) -> None:
    said = call("resume", undisturbed.run, "--track", "tensorbord").complaint
    assert said == "tracker 'tensorbord' is unknown; did you mean 'tensorboard'?"


def test_export_in_an_unknown_format_gets_one_line(call: Call, undisturbed: Finished, tmp_path: Path) -> None:
    said = call("export", undisturbed.run, chosen(undisturbed)["entry"], "--to", tmp_path / "x", "--format", "adaptor")
    assert said.complaint == "format 'adaptor' is unknown; did you mean 'adapter'?"


def test_recommend_gives_items_that_the_user_has_not_seen_with_titles_and_reasons(
    call: Call, undisturbed: Finished
) -> None:
    name = chosen(undisturbed)["entry"]
    lines = (undisturbed.config.parent / "ratings.csv").read_text().split()
    rows = [line.split(",") for line in lines if line.startswith("u7,")]
    history, times = ",".join(row[1] for row in rows), ",".join(row[3] for row in rows)
    ended = call("recommend", undisturbed.run, name, "--user", "u7", "-k", "5", "--explain", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert len({r["item"] for r in found}) == 5
    assert not {r["item"] for r in found} & set(history.split(","))
    assert all(r["title"].startswith("The ") for r in found)
    assert any(r["because"] for r in found)
    same = ("recommend", undisturbed.run, name, "--history", history, "-k", "5", "--explain", "--json")
    assert json.loads(call(*same, "--times", times).out) == found
    assert len(json.loads(call(*same).out)) == 5  # when it was is not always known
    assert "one for each" in call(*same, "--times", "1,2").complaint
    assert "must not fall" in call(*same, "--times", times.replace("6000", "9000")).complaint
    assert "expected numbers" in call(*same, "--times", "yesterday").complaint
    shown = call("recommend", undisturbed.run, name, "--user", "u7", "-k", "5").out.splitlines()
    assert [line.strip().startswith(f"{place}. The ") for place, line in enumerate(shown, 1)] == [True] * 5


def test_all_users_get_in_a_file_what_each_gets_alone(
    call: Call, undisturbed: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(everybody, "NUMBERS", 7 * small.ITEMS)  # so that seven users come at a time
    run, name = undisturbed.run, chosen(undisturbed)["entry"]
    alike: list[list[tuple[Any, ...]]] = []
    for file, read in (("lists.csv", pd.read_csv), ("lists.parquet", pd.read_parquet)):
        ended = call("recommend-all", run, name, "--to", tmp_path / file, "-k", "5")
        assert (ended.code, ended.out) == (0, f"Wrote 200 items for 40 users to {tmp_path / file}\n")
        alike.append([tuple(row) for row in read(tmp_path / file).itertuples(index=False)])
    assert [row[:3] for row in alike[0]] == [row[:3] for row in alike[1]]
    served = Serving(of_run(run, name, vectors=True), load(**load_config(run).data.arguments()))
    expected = [
        (user, rank, item.item, pytest.approx(item.score, rel=1e-4))
        for user in served.data.user_ids
        for rank, item in enumerate(served.recommend(served.history_of(user), 5), 1)
    ]
    assert alike[1] == expected
    assert call("recommend-all", run, name, "--to", tmp_path / "all.csv", "-k", small.ITEMS).code == 0
    whole = pd.read_csv(tmp_path / "all.csv")
    seen = {user: set(history.items) for user, history in served.histories().items()}
    assert whole.groupby("user").size().to_dict() == {user: small.ITEMS - len(items) for user, items in seen.items()}
    for arguments, complaint in (
        (("--to", tmp_path / "all.csv"), "all.csv is there already; give --to a new file"),
        (("--to", tmp_path / "lists.json"), "expected a name that ends in .csv or .parquet"),
        (("--to", tmp_path / "x" / "lists.csv"), "x is no folder that can be written; make it, or give --to another"),
        (("--to", tmp_path / "more.csv", "-k", "31"), "-k is 31; expected 1 to 30, the items that may be recommended"),
    ):
        assert complaint in call("recommend-all", run, name, *arguments).complaint


def test_a_table_of_lists_is_whole_or_not_there(tmp_path: Path) -> None:
    def parts() -> Iterator[pa.Table]:
        yield pa.table([["u1"], [1], ["i1"], [0.5]], schema=everybody.SCHEMA)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match=r"lists\.parquet cannot be written \(No space left on device\)"):
        everybody.write(parts(), tmp_path / "lists.parquet")
    assert not list(tmp_path.iterdir())


def _halve(run: Path) -> None:
    """Takes every recorded value half the way back to its objective's reference, and margins with it: what is better
    than what stays so, and the search is replayed as it was.
    """
    objectives = load_config(run).objectives
    with closing(sqlite3.connect(run / "search.db")) as record, record:
        for position, *both in record.execute('select position, "values", margins from evaluation').fetchall():
            values, margins = map(json.loads, both)
            values |= {o.name: (values[o.name] + o.reference) / 2 for o in objectives}
            halved = json.dumps(values), json.dumps({name: margin / 2 for name, margin in margins.items()})
            record.execute('update evaluation set "values" = ?, margins = ? where position = ?', (*halved, position))


def test_fusions_are_added_to_a_search_that_is_over(call: Call, undisturbed: Finished, tmp_path: Path) -> None:
    run = undisturbed.copy(tmp_path / "run")
    _halve(run)  # so that a fusion is on the front, which luck decides otherwise
    ended = pareto_search("resume", run, "--fusions", "2")
    assert ended.code == 0, ended.err
    assert "2 fused" in ended.out
    store = Store.open(run / "search.db")
    fused = {c.id: c for c in store.candidates() if c.kind == "fused"}
    scored = {e.candidate for e in store.evaluations() if e.entry.endswith("-s00")}
    store.close()
    assert list(fused) == ["f0000", "f0001"]
    assert scored >= fused.keys()
    assert all(len(c.parents) > 1 and not c.genes for c in fused.values())
    before, after = (json.loads((folder / "front.json").read_text()) for folder in (undisturbed.run, run))
    assert after["test_evaluations"] == before["test_evaluations"] + 1
    mine = [e for e in after["front"] if e["kind"] == "fused"]
    assert mine
    assert all(sum(member["weight"] for member in e["fuses"].values()) == pytest.approx(1.0) for e in mine)
    for entry in mine[:1]:
        assert call("evaluate", run, entry["entry"], "--split", "validation").code == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--user", "u99"], "user 'u99' is not in ratings; give --history 'ITEM,ITEM,…' for a new user"),
        (["--history", "i1,i99"], "item 'i99' is not in ratings; expected ids as in its item table"),
        (["--history", "i1", "-k", "30"], "-k is 30; expected 1 to 29"),
        (["--history", "i1", "-k", "0"], "-k is 0; expected 1 to 29"),
        ([], "give either --user ID or --history"),
        (["--user", "u1", "--history", "i1"], "give either --user ID or --history"),
        (["--user", "u1", "--group", "town=Ulm"], "--group says who has the --history; give both, or --user alone"),
        (["--history", "i1", "--group", "Ulm"], "--group is 'Ulm'; expected 'occupation=artist'"),
        (["--history", "i1", "--group", "town=Ulm"], "the model does not read the town of a user; it reads none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_recommendations_that_cannot_be_made_get_one_line(
    call: Call, undisturbed: Finished, arguments: list[str], complaint: str
) -> None:
    assert complaint in call("recommend", undisturbed.run, chosen(undisturbed)["entry"], *arguments).complaint


@pytest.mark.parametrize("command", [["evaluate"], ["export", "--to", "x"], ["recommend", "--user", "u1"]])
def test_an_entry_that_is_not_on_the_front_gets_one_line(call: Call, undisturbed: Finished, command: list[str]) -> None:
    name = chosen(undisturbed)["entry"]
    verb, *rest = command
    assert (
        f"entry '{name}x' is not on the front; did you mean '{name}'?"
        in call(verb, undisturbed.run, f"{name}x", *rest).complaint
    )


def test_a_checkpoint_with_a_changed_byte_gets_one_line(call: Call, undisturbed: Finished, tmp_path: Path) -> None:
    run, entry = undisturbed.copy(tmp_path / "run"), chosen(undisturbed)
    weights = run / "checkpoints" / entry["candidate"] / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    for command in (["evaluate"], ["export", "--to", tmp_path / "x"], ["recommend", "--user", "u1"], ["deploy"]):
        verb, *rest = command
        said = call(str(verb), run, entry["entry"], *rest).complaint
        assert "'adapter_model.safetensors' was changed" in said
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("given", [None, "a token of our own"])
def test_a_deployment_on_this_machine_makes_its_own_token_where_none_is_given(
    call: Call, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    told: dict[str, Any] = {}
    monkeypatch.setattr(launch, "deploy", lambda run, names, **wish: told.update(wish, run=run, names=names))
    monkeypatch.setattr("pareto_search.cli.threading", SimpleNamespace(Event=lambda: SimpleNamespace(wait=interrupted)))
    monkeypatch.delenv("PARETO_SEARCH_TOKEN", raising=False)
    if given:
        monkeypatch.setenv("PARETO_SEARCH_TOKEN", given)
    ended = call("deploy", "runs/first", "c0001-s00", "c0002-s03", "--port", "8001", "--replicas", "2")
    assert (ended.code, ended.err) == (0, "")
    assert (told["run"], told["names"]) == ("runs/first", ("c0001-s00", "c0002-s03"))
    assert (told["host"], told["port"], told["replicas"], told["address"]) == ("127.0.0.1", 8001, 2, None)
    says, *more, end = ended.out.splitlines()
    assert (says, end) == ("Serving c0001-s00, c0002-s03 at http://127.0.0.1:8001/recommend", "Ctrl-C ends it.")
    assert more == ([] if given else [f"Token: {told['token']}"])
    assert told["token"] == given or (given is None and len(told["token"]) >= 32)


@pytest.mark.parametrize(("host", "others"), [("127.0.0.1", False), ("127.0.0.2", False), ("0.0.0.0", True)])
def test_a_deployment_on_a_cluster_says_who_reaches_it(
    call: Call, monkeypatch: pytest.MonkeyPatch, host: str, others: bool
) -> None:
    monkeypatch.setattr(launch, "deploy", lambda *_, **__: None)
    monkeypatch.setenv("PARETO_SEARCH_TOKEN", "a token of our own")
    says, *more = call("deploy", "runs/first", "c0001-s00", "--address", "auto", "--host", host).out.splitlines()
    assert says == f"Serving c0001-s00 at http://{host}:8000/recommend"
    only = "Only from the nodes that Ray put the replicas on; --host 0.0.0.0 is for others, too."
    assert more == ([] if others else [only])
