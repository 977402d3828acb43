"""What a search on newer data takes over from an older one, and what comes out of it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from running import Finished, Untouchable, pareto_search, undisturbed

from pareto_search import SearchConfig, checkpoint, load_front, refresh
from pareto_search.candidate import Candidate
from pareto_search.entry import Entry
from pareto_search.errors import DataError, RunError
from pareto_search.fusion import fused
from pareto_search.recsys.dataset import Columns, Dataset, load, load_tables
from pareto_search.recsys.split import Strategy, split
from pareto_search.refreshing import forerunners, leaked, moved, take_over
from pareto_search.store import Store
from pareto_search.workers import pool
from pareto_search.workers.evaluate import similarity
from pareto_search.workers.recommend import History, Serving, sequences
from pareto_search.workers.recommender import Recommender, Shape, TowerScorer

__all__ = ["undisturbed"]


@pytest.fixture
def first(undisturbed: Finished, tmp_path: Path) -> Path:
    """A search that is over, in a folder of its own."""
    return undisturbed.copy(tmp_path / "first")


@pytest.fixture
def newer(undisturbed: Finished, tmp_path: Path) -> Path:
    """Its data some time later: a new item, and interactions with it and with others."""
    old, folder = undisturbed.config.parent, tmp_path / "october"
    folder.mkdir()
    rows = [f"u{user},i{1 + 7 * user % 30},4,{1000 * user + 500}\n" for user in range(1, 41, 2)]
    rows += [f"u{user},i31,5,{1000 * user + 501}\n" for user in range(3, 41, 3)]
    (folder / "ratings.csv").write_text((old / "ratings.csv").read_text() + "".join(rows))
    (folder / "items.csv").write_text((old / "items.csv").read_text() + "i31,The night and the island 31,drama|music\n")
    return folder


def trained(run: Path) -> list[Candidate]:
    """The trained candidates of a run, in the order of asking."""
    store = Store.open(run / "search.db")
    found = [c for c in store.candidates() if c.kind == "trained"]
    store.close()
    return found


def test_a_refresh_begins_with_the_old_front_and_shows_both_even_if_it_was_stopped(
    first: Path, newer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, before = tmp_path / "run", load_front(first)
    with monkeypatch.context() as patch:
        patch.setattr(pool, "RayPool", Untouchable)
        with pytest.raises(KeyboardInterrupt):
            refresh(first, str(newer), run)
    first.rename(tmp_path / "away")  # from now on it is not wanted
    resumed = pareto_search("resume", run)
    assert resumed.code == 0, resumed.err
    found = load_front(run)

    old, volumes = found["curves"]["old"], found["hypervolume"]
    assert found["test_evaluations"] == 1
    assert {p["name"] for p in old} <= {e["entry"] for e in before["front"]}
    assert volumes["validation"] > volumes["old"]["validation"] > 0
    shown = " ".join(resumed.out.split())
    assert f"front {volumes['validation']:.4f} {volumes['test']:.4f}" in shown
    assert f"old front {volumes['old']['validation']:.4f} {volumes['old']['test']:.4f}" in shown
    assert "Old front" in (run / "report.html").read_text()

    config = SearchConfig.load(run / "search.yaml")
    mine, given = trained(run), forerunners(run)[: config.search.population]
    assert [c.parents for c in mine[: len(given)]] == [(f.id,) for f in given]
    assert [c.genes for c in mine[: len(given)]] == [pytest.approx(f.genes) for f in given]
    # A merged one has the genes of an ancestor.
    theirs = {c.id: c.genes for c in trained(tmp_path / "away")}
    assert all(f.genes in ([theirs[name]] if (name := Path(f.id).name) in theirs else theirs.values()) for f in given)

    # An entry of the old front as it would be served, with the components of its own search.
    data = load(**config.data.arguments())
    point = max(old, key=lambda p: p["serving"].get("ease", 0.0) + p["serving"].get("text", 0.0))
    assert point["serving"]["ease"] + point["serving"]["text"] > 0
    files = checkpoint.read(run / "old" / point["candidate"])
    notes = json.loads(files["recommender.json"])
    assert notes["items"] == list(data.item_ids)
    notes["data_sha256"], notes["split"]["sha256"] = data.sha256, found["split_sha256"]
    blended = {name: checkpoint.read(run / "old" / name) for name in ("ease", "text") if point["serving"][name]}
    entry = Entry(point["name"], files | {"recommender.json": json.dumps(notes).encode()}, point["serving"], blended)
    scores = Serving(entry, data).evaluate("test")
    assert scores["ndcg@5"] == pytest.approx(point["test"]["ndcg@5"], abs=1e-6)

    (tmp_path / "away").rename(first)
    again = pareto_search("refresh", first, "--data", newer, "--out", run)
    assert (again.code, load_front(run)) == (0, found)
    assert load_front(first) == before
    with pytest.raises(RunError, match="holds a search that is no refresh of"):
        refresh(run, str(newer), run)


def without_a_table(folder: Path) -> None:
    (folder / "items.csv").unlink()


def without_ratings(folder: Path) -> None:
    edit(folder / "ratings.csv", "user,item,rating,time", "user,item,stars,time")


def with_other_ids(folder: Path) -> None:
    edit(folder / "items.csv", "\ni", "\nj")
    edit(folder / "ratings.csv", ",i", ",j")
    edit(folder / "ratings.csv", "user,jtem", "user,item")


def without_the_last_months(folder: Path) -> None:
    head, *rows = (folder / "ratings.csv").read_text().splitlines(keepends=True)
    kept = [row for row in rows if int(row.rpartition(",")[2]) % 1000 < 6]
    (folder / "ratings.csv").write_text(head + "".join(kept))


def edit(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (without_a_table, "items.csv does not exist; check the path"),
        (without_ratings, "has no column 'rating'"),
        (with_other_ids, "no item of ratings is known to .*; expected the same ids"),
        (without_the_last_months, "80 of the 80 .* the old front was trained on; expected data that goes on where"),
    ],
)
def test_data_that_does_not_fit_is_refused_in_one_line(
    first: Path, newer: Path, tmp_path: Path, spoil: Callable[[Path], None], complaint: str
) -> None:
    spoil(newer)
    with pytest.raises(DataError, match=complaint) as error:
        refresh(first, str(newer), tmp_path / "run")
    assert "\n" not in str(error.value)


def table(folder: Path, rows: Sequence[str]) -> Dataset:
    """A data set of rows such as `ann a 1`: user, item, time."""
    folder.mkdir()
    items = sorted({row.split()[1] for row in rows})
    (folder / "r.csv").write_text("user,item,time\n" + "".join(",".join(row.split()) + "\n" for row in rows))
    (folder / "i.csv").write_text("item,title\n" + "".join(f"{item},the {item}\n" for item in items))
    columns = Columns(user="user", item="item", timestamp="time", text=("title",))
    return load_tables(str(folder / "r.csv"), str(folder / "i.csv"), columns, folder.name)


OLD = ("ann c 1", "ann d 2", "ann e 3", "ann f 4", "bob d 1", "bob f 2", "bob g 3")


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        ((*OLD, "ann a 9", "bob d 9", "eve c 1", "eve d 2", "eve e 3"), 0),
        ([row for row in OLD if row not in ("ann e 3", "ann f 4")] + ["ann a 0"], 2),  # holds out c and d
        ([row for row in OLD if row != "ann f 4"], 1),  # holds out d and e, and e was held out before
    ],
    ids=["later", "two gone", "one gone"],
)
def test_what_was_trained_on_and_is_held_out_now_is_counted(tmp_path: Path, rows: Sequence[str], count: int) -> None:
    old, new = table(tmp_path / "old", OLD), table(tmp_path / "new", rows)
    strategy: Strategy = "leave_last_out"
    assert leaked((old, split(old, strategy, 0)), (new, split(new, strategy, 0))) == count


def test_a_checkpoint_over_another_catalogue_scores_what_it_knows_as_before_and_the_rest_by_text(toy_run: Path) -> None:
    files = checkpoint.read(toy_run / "checkpoints" / "c0000")
    place = np.array([3, -1, *range(19, 3, -1), 0])  # items 1 and 2 are gone, and one is new
    other = moved(files, [f"n{i}" for i in range(len(place))], place, {})
    assert other["adapter_model.safetensors"] == files["adapter_model.safetensors"]

    text = torch.randn(20, 32, generator=torch.Generator().manual_seed(0))
    there = TowerScorer.of(Recommender.loaded(files), text)
    fresh = torch.randn(1, 32, generator=torch.Generator().manual_seed(1))
    here = TowerScorer.of(Recommender.loaded(other), torch.where(torch.tensor(place)[:, None] >= 0, text[place], fresh))
    history = np.array([0, 2, 5, 18], np.int32)
    nobody = np.zeros(0, np.int32)
    before = there.scores(sequences([History.timed(place[history].astype(np.int32), None, nobody)]))[0]
    after = here.scores(sequences([History.timed(history, None, nobody)]))[0]
    known = place >= 0
    assert after[known] == pytest.approx(before[place[known]], rel=1e-5)

    model, old = Recommender.loaded(other), Recommender.loaded(files)
    assert len(here.vectors) > 1
    for number, vectors in enumerate(here.vectors):
        tower = model.towers[number]
        assert torch.allclose(vectors[1], tower.projection(fresh)[0], atol=1e-5)  # no embedding of its own
        assert tower.item_bias[1].item() == pytest.approx(old.towers[number].item_bias.mean().item())

    weights = similarity(checkpoint.read(toy_run / "components" / "ease")).weights
    carried = similarity(moved(checkpoint.read(toy_run / "components" / "ease"), [""] * len(place), place, {})).weights
    assert carried[2, 0] == weights[19, 3]
    assert not carried[1].any()
    assert not carried[:, 1].any()


def test_groups_go_to_their_new_places_and_new_ones_are_as_if_nobody_had_told() -> None:
    torch.manual_seed(0)
    model = Recommender(Shape(3, 4, 5, "attention", 0, item_embeddings=True, towers=2, groups=(1, 2)))
    with torch.no_grad():
        for tower in model.towers:
            tower.group[1:].normal_()
    files = model.files({"towers": 2, "group_names": [["town", ["Ulm"]], ["gender", ["F", "M"]]]})
    new = {"town": ("Bonn", "Ulm"), "gender": ("F", "M", "X")}
    once = moved(files, ["a", "b", "c"], np.arange(3), new)
    twice = moved(once, ["a", "b", "c"], np.arange(3), new)  # as the refresh of a refresh
    for other in map(Recommender.loaded, (once, twice)):
        assert other.shape.groups == (2, 3)
        for old, tower in zip(model.towers, other.towers, strict=True):
            assert torch.equal(tower.group, old.group[[0, 0, 1, 2, 3, 0]])


def test_a_refresh_takes_over_the_members_of_what_is_fused(first: Path, newer: Path, tmp_path: Path) -> None:
    front, run = load_front(first), tmp_path / "run"
    kinds = {e["candidate"]: e["kind"] for e in front["front"]}
    names = sorted(kinds, key=lambda name: (kinds[name] != "trained", name))[-2:]
    files = {name: checkpoint.read(first / "checkpoints" / name) for name in names}
    items = json.loads(files[names[0]]["recommender.json"])["items"]
    checkpoint.write(first / "checkpoints" / "f0000", fused(files, dict.fromkeys(names, 0.5), {"items": items}))
    members = {name: {"weight": 0.5, "lineage_steps": 6 + n} for n, name in enumerate(names)}
    entry = {**front["front"][0], "candidate": "f0000", "kind": "fused", "fuses": members}
    (first / "front.json").write_text(json.dumps({**front, "front": [entry]}))

    config = SearchConfig.load(first / "search.yaml").refreshed(str(newer))
    data = load(**config.data.arguments())
    parts = split(data, **config.splitting())
    take_over(first, SearchConfig.load(first / "search.yaml"), run, data, parts, base_sha256=front["base"]["sha256"])
    for name in ("f0000", *names):
        assert checkpoint.read(run / "old" / name)
    found = forerunners(run)
    assert found
    assert {f.id: f.steps for f in found}.items() <= {
        f"old/{n}": m["lineage_steps"] for n, m in members.items()
    }.items()
