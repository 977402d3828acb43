"""The recommender against the written formulas, in plain NumPy from the files' plain names (see plain.py)."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import plain
import pytest
import torch
from safetensors.numpy import load

from pareto_search.errors import CheckpointError
from pareto_search.recsys.split import Sequences
from pareto_search.workers.recommender import Recommender, Shape, TowerScorer, joined, last_items, ties_turned

ATTENTION = Shape(n_items=25, width=16, history=6, tower="attention", text_width=9, item_embeddings=True)
HISTORIES = [[3], [1, 2, 3, 4, 5, 6], [9, 8, 9], [0, 24, 0, 11, 17, 2, 5, 21, 3, 3]]
GAPS = [[0], [0, 1, 1, 5, 17, 2], [0, 47, 30], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]]


def sequences(rows: Sequence[Sequence[int]], gaps: Sequence[Sequence[int]] | None = None) -> Sequences:
    ends = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64)
    items = np.array([i for row in rows for i in row], np.int32)
    return Sequences(ends, items, None, None if gaps is None else np.concatenate(gaps).astype(np.uint8))


def stirred(shape: Shape) -> Recommender:
    """A recommender whose parameters are all far from their start."""
    torch.manual_seed(0)
    model = Recommender(shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
        for number in range(shape.towers):
            tower = model.towers[number]
            if shape.gaps:
                tower.gap[0] = 0.0
            if shape.groups:
                tower.group[0] = 0.0
            tower.temperature.fill_(0.8 + number)
    return model


def texts(shape: Shape) -> torch.Tensor | None:
    width = shape.text_width
    return torch.randn(shape.n_items, width, generator=torch.Generator().manual_seed(1)) if width else None


def changed(**given: Any) -> Shape:
    return Shape(**{**ATTENTION.__dict__, **given})


SHAPES = {
    "attention": ATTENTION,
    "text only": changed(item_embeddings=False),
    "IDs only": changed(text_width=0),
    "decayed mean": changed(tower="decayed_mean"),
    "three towers": changed(towers=3),
    "three decayed means": changed(tower="decayed_mean", towers=3),
}


def test_gaps_between_interactions_are_added_to_what_the_tower_reads() -> None:
    model, text = stirred(changed(gaps=True)), texts(ATTENTION)
    assert text is not None
    files, scorer = model.files({}), TowerScorer.of(model, text)
    notes, tensors = json.loads(files["recommender.json"]), load(files["recommender.safetensors"])
    ours = scorer.scores(sequences(HISTORIES, GAPS))
    assert ours == pytest.approx(plain.scores(notes, tensors, text.numpy(), HISTORIES, GAPS), abs=1e-4)
    without = scorer.scores(sequences(HISTORIES))
    assert without == pytest.approx(plain.scores(notes, tensors, text.numpy(), HISTORIES), abs=1e-4)
    assert not np.allclose(ours[1:], without[1:], atol=0.1)
    assert ours[0] == pytest.approx(without[0], abs=1e-5)  # a first interaction has no gap


@pytest.mark.parametrize("towers", [2, 3, 4])
def test_each_tower_reads_the_items_of_one_moment_in_another_order(towers: int) -> None:
    model, text = stirred(changed(gaps=True, towers=towers, history=8)), texts(ATTENTION)
    assert text is not None
    files, scorer = model.files({}), TowerScorer.of(model, text)
    notes, tensors = json.loads(files["recommender.json"]), load(files["recommender.safetensors"])
    histories, gaps = [[5, 1, 2, 3, 4, 9, 7], [8, 6], [3, 3, 1], [2]], [[0, 6, 1, 1, 1, 9, 1], [0, 1], [1, 4, 1], [1]]
    ours = scorer.scores(sequences(histories, gaps))
    assert ours == pytest.approx(plain.scores(notes, tensors, text.numpy(), histories, gaps), abs=1e-4)
    apart = [[7 if gap == 1 else gap for gap in row] for row in gaps]  # no two at one moment
    assert not np.allclose(ours[:3], scorer.scores(sequences(histories, apart))[:3], atol=0.1)


def test_ties_are_turned_by_a_part_of_them() -> None:
    history = sequences([[1, 2, 3, 4, 5, 6, 7], [], [8, 9]], [[0, 1, 1, 5, 1, 1, 1], [], [1, 1]])
    orders = [history.items[ties_turned(history, turn, 4)].tolist() for turn in range(4)]
    assert orders == [
        [1, 2, 3, 4, 5, 6, 7, 8, 9],
        [1, 2, 3, 5, 6, 7, 4, 8, 9],
        [2, 3, 1, 6, 7, 4, 5, 9, 8],
        [3, 1, 2, 7, 4, 5, 6, 9, 8],
    ]
    untimed = sequences([[1, 2, 3]])
    assert ties_turned(untimed, 1, 2).tolist() == [0, 1, 2]


def test_the_groups_of_a_user_are_added_to_what_the_tower_reads() -> None:
    model, text = stirred(changed(gaps=True, towers=2, groups=(2, 3))), texts(ATTENTION)
    assert text is not None
    files, groups = model.files({}), [[2, 3], [0, 1], [1, 0], [0, 0]]
    scorer = TowerScorer.of(Recommender.loaded(files), text)
    notes, tensors = json.loads(files["recommender.json"]), load(files["recommender.safetensors"])
    known = replace(sequences(HISTORIES, GAPS), groups=np.array(groups, np.int32))
    ours = scorer.scores(known)
    assert ours == pytest.approx(plain.scores(notes, tensors, text.numpy(), HISTORIES, GAPS, groups), abs=1e-4)
    without = scorer.scores(sequences(HISTORIES, GAPS))
    assert ours[3] == pytest.approx(without[3], abs=1e-5)
    assert not np.allclose(ours[:3], without[:3], atol=0.1)
    assert scorer.scores(known.rows(1, 3)) == pytest.approx(ours[1:3], abs=1e-5)


def test_groups_that_are_not_known_stay_zero_in_training_and_a_tenth_of_the_windows_goes_without_any() -> None:
    model, text = stirred(changed(groups=(2, 3))).train(), texts(ATTENTION)
    items, groups = torch.tensor([[4, 7, 1]]).expand(2000, 3), torch.tensor([[2, 0]]).expand(2000, 2)
    torch.manual_seed(0)
    tower = model.towers[0]
    read: list[torch.Tensor] = []
    tower._attend = lambda window, _: read.append(window) or window  # type: ignore[method-assign, func-returns-value]
    vectors = tower.item_vectors(text)
    tower.states(items, torch.full((2000,), 3), vectors, groups=groups).square().sum().backward()
    assert tower.group.grad is not None
    assert tower.group.grad.abs().sum(1).nonzero().flatten().tolist() == [2]
    told = (read[0] - vectors[[4, 7, 1]]).abs().sum((1, 2)) > 1e-3
    assert told.float().mean().item() == pytest.approx(0.9, abs=0.03)


def test_gaps_that_are_not_known_stay_zero_in_training() -> None:
    model, text = stirred(changed(gaps=True)).train(), texts(ATTENTION)
    items, gaps = torch.tensor([[4, 7, 1]]).expand(64, 3), torch.tensor([[0, 3, 9]]).expand(64, 3)
    torch.manual_seed(0)
    tower = model.towers[0]
    tower.states(items, torch.full((64,), 3), tower.item_vectors(text), gaps).square().sum().backward()
    assert tower.gap.grad is not None
    assert tower.gap.grad.abs().sum(1).nonzero().flatten().tolist() == [3, 9]


@pytest.mark.parametrize("other", [changed(gaps=True), changed(towers=2), changed(tower="decayed_mean")], ids=str)
def test_files_that_do_not_fit_each_other_are_refused(other: Shape) -> None:
    files = {**stirred(ATTENTION).files({}), "recommender.json": stirred(other).files({})["recommender.json"]}
    with pytest.raises(CheckpointError, match="of a checkpoint is not what its recommender"):
        Recommender.loaded(files)


def test_joined_the_towers_of_several_score_their_mean() -> None:
    one, more, text = stirred(ATTENTION), stirred(changed(towers=2)), texts(ATTENTION)
    files = joined([one.files({"component": "first"}), more.files({"component": "second"})])
    whole = Recommender.loaded(files)
    assert whole.shape == changed(towers=3)
    assert json.loads(files["recommender.json"])["component"] == "first"
    first, second, found = (TowerScorer.of(m, text).scores(sequences(HISTORIES)) for m in (one, more, whole))
    assert found == pytest.approx((first + 2 * second) / 3, abs=1e-4)
    assert not np.allclose(first, second, atol=0.1)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_scores_are_the_written_formula_on_the_files(shape: Shape) -> None:
    model, text = stirred(shape), texts(shape)
    files = model.files({"pooling": "mean"})
    ours = TowerScorer.of(model, text).scores(sequences(HISTORIES))
    notes, tensors = json.loads(files["recommender.json"]), load(files["recommender.safetensors"])
    theirs = plain.scores(notes, tensors, None if text is None else text.numpy(), HISTORIES)
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert np.std(theirs) > 0.5


def test_the_names_in_the_file_are_plain() -> None:
    linear = ("projection", "attention_in", "attention_out", "feed_in", "feed_out")
    norms = ("attention_norm", "feed_norm", "final_norm")
    pairs = {f"{name}.{part}" for name in (*linear, *norms) for part in ("weight", "bias")}
    expected = pairs | {"item_bias", "item_embedding", "position", "temperature"}
    assert set(load(stirred(ATTENTION).files({})["recommender.safetensors"])) == expected


@pytest.mark.parametrize("tower", ["attention", "decayed_mean"])
def test_a_user_is_the_same_alone_as_beside_longer_ones(tower: Any) -> None:
    model = stirred(changed(tower=tower))
    scorer = TowerScorer.of(model, texts(ATTENTION))
    together = scorer.scores(sequences(HISTORIES))
    for row, history in enumerate(HISTORIES):
        assert scorer.scores(sequences([history]))[0] == pytest.approx(together[row], abs=1e-4)


@pytest.mark.parametrize("tower", ["attention", "decayed_mean"])
def test_training_and_serving_see_the_same_states(tower: Any) -> None:
    # In training a window may be shorter than the longest history, and has a state after each item.
    model, text = stirred(changed(tower=tower)), texts(ATTENTION)
    part = model.towers[0]
    vectors = part.item_vectors(text)
    states = part.states(torch.tensor([[4, 7, 1], [2, 0, 0]]), torch.tensor([3, 1]), vectors)
    prefixes = sequences([[4], [4, 7], [4, 7, 1], [2]])
    expected = TowerScorer.of(model, text).scores(prefixes)
    trained = torch.stack([states[0, 0], states[0, 1], states[0, 2], states[1, 0]])
    found = (trained @ vectors.T / part.temperature + part.item_bias).detach().numpy()
    if tower == "decayed_mean":
        assert found == pytest.approx(expected, abs=1e-4)
    else:  # a position counts from the window's end, so only the last state is what serving sees
        assert found[2:] == pytest.approx(expected[2:], abs=1e-4)


def test_what_lies_before_the_window_changes_nothing() -> None:
    scorer = TowerScorer.of(stirred(ATTENTION), texts(ATTENTION))
    long, short = scorer.scores(sequences([[7, 7, 1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]]))
    assert long == pytest.approx(short, abs=1e-5)


def test_a_user_without_history_gets_the_items_biases() -> None:
    model = stirred(changed(towers=2))
    scores = TowerScorer.of(model, texts(ATTENTION)).scores(sequences([[], [3]]))
    biases = (model.towers[0].item_bias + model.towers[1].item_bias) / 2
    assert scores[0] == pytest.approx(biases.detach().numpy(), abs=1e-6)


def test_a_saved_recommender_is_loaded_bit_for_bit() -> None:
    model = stirred(changed(towers=2))
    files = model.files({"note": "kept"})
    again = Recommender.loaded(files)
    assert again.shape == model.shape
    assert again.files({"note": "kept"}) == files
    scored, expected = (TowerScorer.of(m, texts(ATTENTION)).scores(sequences(HISTORIES)) for m in (again, model))
    assert np.array_equal(scored, expected)


def test_the_notes_stand_beside_the_shape() -> None:
    notes = json.loads(stirred(ATTENTION).files({"pooling": "mean"})["recommender.json"])
    assert notes == {**ATTENTION.__dict__, "groups": [], "pooling": "mean"}


def test_centred_the_mean_text_maps_to_zero() -> None:
    tower, text = stirred(ATTENTION).towers[0], texts(ATTENTION)
    assert text is not None
    tower.centre(text)
    assert torch.allclose(tower.projection(text).mean(0), torch.zeros(16), atol=1e-5)


def test_in_training_some_items_go_without_their_id() -> None:
    tower, text = stirred(ATTENTION).train().towers[0], texts(ATTENTION)
    torch.manual_seed(0)
    moved = (tower.item_vectors(text, 0.4) - tower.projection(text)).abs().sum(1) > 1e-4
    assert 0 < int(moved.sum()) < 25
    tower.eval()
    assert torch.equal(tower.item_vectors(text, 0.4), tower.item_vectors(text))


def test_the_last_items_are_padded_on_the_right() -> None:
    items, gaps, lengths = last_items(sequences([[5], [], [1, 2, 3, 4]], [[0], [], [0, 6, 1, 2]]), 3)
    assert items.tolist() == [[5, 0, 0], [0, 0, 0], [2, 3, 4]]
    assert gaps.tolist() == [[0, 0, 0], [0, 0, 0], [6, 1, 2]]
    assert lengths.tolist() == [1, 0, 3]
