"""Answers to questions; scores are expected as plain.py computes them from the checkpoint's files."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
from pydantic import ValidationError
from safetensors.numpy import load_file

from pareto_search.errors import ConfigError, DataError, ParetoSearchError, RunError
from pareto_search.question import Canary, Question
from pareto_search.recsys.dataset import Dataset
from pareto_search.recsys.split import split
from pareto_search.workers.answer import Answer, Desk

RERANKED, ALONE = "c0000-s02", "c0000-s00"


@pytest.fixture
def desk(toy_run: Path, toy: Dataset) -> Desk:
    return Desk(toy_run, [RERANKED, ALONE], toy)


def history(toy: Dataset, user: str) -> list[int]:
    """A user's items, which the toy data has in the order of time."""
    mine = toy.users == toy.user_ids.index(user)
    return [int(i) for i in toy.items[mine][np.argsort(toy.timestamps[mine], kind="stable")]]


def times_of(toy: Dataset, user: str) -> list[float]:
    """When each of them was."""
    return sorted(toy.timestamps[toy.users == toy.user_ids.index(user)].tolist())


def ask(desk: Desk, **question: Any) -> Answer:
    [answer] = desk.answer([Question(**question)])
    assert isinstance(answer, Answer), answer
    return answer


def items(answer: Answer) -> list[object]:
    return [item["item"] for item in answer.items]


def refusal(desk: Desk, **question: Any) -> str:
    [answer] = desk.answer([Question(**question)])
    assert isinstance(answer, ParetoSearchError)
    return str(answer)


def test_the_checkpoint_alone_ranks_by_the_written_formula(
    desk: Desk, toy_run: Path, toy: Dataset, tiny_base: Any
) -> None:
    folder = toy_run / "checkpoints" / "c0000"
    text = plain.text_vectors(str(tiny_base.folder), str(folder), toy.texts)
    notes = json.loads((folder / "recommender.json").read_text())
    seen = history(toy, "3")
    passed = np.floor(1 + np.log2(1 + np.diff(times_of(toy, "3"))))
    tensors, gaps = load_file(folder / "recommender.safetensors"), [0, *passed.astype(int)]
    [scores] = plain.scores(notes, tensors, text, [seen], [gaps])
    unseen = np.delete(np.arange(20), seen)
    expected = sorted(unseen, key=lambda i: -scores[i])[:5]
    answer = ask(desk, user="3", k=5, entry=ALONE)
    assert items(answer) == [toy.item_ids[i] for i in expected]
    assert [item["score"] for item in answer.items] == pytest.approx(scores[expected], abs=1e-3)
    assert [item["title"] for item in answer.items] == [toy.titles[i] for i in expected]


def test_a_history_is_answered_as_the_user_who_has_it(desk: Desk, toy: Dataset) -> None:
    known = [toy.item_ids[i] for i in history(toy, "7")]
    times = times_of(toy, "7")
    assert ask(desk, history=known, times=times, k=5) == ask(desk, user="7", k=5)
    assert ask(desk, history=known, k=5).items  # when it was is not always known


def test_a_new_user_is_answered_as_whoever_belongs_to_the_same_groups(
    make_run: Callable[[Any], Path], workload: Any, toy: Dataset
) -> None:
    sides = tuple("left" if user % 2 else "right" for user in range(30))
    people = replace(toy, groups={"side": sides, "town": ("Ulm",) * 30})
    run = make_run(replace(workload, split=split(people, "leave_last_out", 0, groups=("side",))))
    desk = Desk(run, [ALONE], people)
    known, times = [toy.item_ids[i] for i in history(toy, "7")], times_of(toy, "7")
    mine = {"history": known, "times": times, "k": 5}
    assert ask(desk, **mine, groups={"side": sides[toy.user_ids.index("7")]}) == ask(desk, user="7", k=5)
    scores = [
        [item["score"] for item in ask(desk, **mine, groups=groups).items]
        for groups in ({}, {"side": "left"}, {"side": "right"})
    ]
    assert scores[0] != scores[1] != scores[2] != scores[0]
    assert refusal(desk, **mine, groups={"side": "lefd"}).startswith("no user of toy has the side 'lefd'; did you mean")
    assert refusal(desk, **mine, groups={"town": "Ulm"}) == "the model does not read the town of a user; it reads side"
    others = replace(people, groups={**people.groups, "side": sides[::-1]})
    with pytest.raises(DataError, match="divided in another way"):
        Desk(run, [ALONE], others)


def test_questions_are_answered_together_as_each_alone(desk: Desk) -> None:
    questions = [Question(user=str(u), k=3 + u % 2, entry=(RERANKED, ALONE)[u % 2]) for u in range(8)]
    for together, question in zip(desk.answer(questions), questions, strict=True):
        assert isinstance(together, Answer)
        [alone] = desk.answer([question])
        assert isinstance(alone, Answer)
        assert (together.entry, items(together)) == (alone.entry, items(alone))


def test_a_known_user_is_answered_from_memory_and_alike(desk: Desk) -> None:
    question = Question(user="5", k=4)
    assert desk.known(question) is None
    [answer] = desk.answer([question])
    assert desk.known(question) == answer
    assert desk.known(Question(user="5", k=4, exclude=("1",))) is None
    assert desk.known(Question(user="5", k=4, entry=ALONE)) is None


def test_what_is_excluded_or_too_little_known_is_not_shown(desk: Desk, toy: Dataset) -> None:
    first = items(ask(desk, user="2", k=5))
    rest = items(ask(desk, user="2", k=5, exclude=first[:2]))
    assert not set(first[:2]) & set(rest)
    assert not set(rest) & {toy.item_ids[i] for i in history(toy, "2")}
    # Novelty by hand: each user's last two interactions are not in the training part.
    counts = np.zeros(20)
    for user in toy.user_ids:
        counts[history(toy, user)[:-2]] += 1
    novelty = -np.log2(counts / 30) / math.log2(30)
    least = float(np.median(novelty))
    novel = items(ask(desk, user="2", k=3, least={"novelty": least}))
    assert all(novelty[toy.item_ids.index(str(i))] >= least - 1e-6 for i in novel)


def test_items_that_nobody_knows_are_left_out_and_named(desk: Desk) -> None:
    known = ask(desk, history=["1", "4", "2"], times=[1.0, 2.0, 9.0], k=3, exclude=["7"])
    more = ask(
        desk, history=["98", "1", "4", "99", "2"], times=[0.0, 1.0, 2.0, 3.0, 9.0], k=3, exclude=["7", "97", "98"]
    )
    assert more.items == known.items
    assert (known.unknown, more.unknown) == ((), ("98", "99", "97"))
    assert ask(desk, user="1", k=3, exclude=["97"]).items == ask(desk, user="1", k=3).items
    assert len(ask(desk, history=[], k=3).items) == 3


def test_preferences_pick_the_nearest_entry(desk: Desk) -> None:
    assert ask(desk, user="1", k=3, prefer={"ndcg@5": 1.0}).entry == ALONE
    assert ask(desk, user="1", k=3, prefer={"ild@5": 1.0}).entry == RERANKED
    assert ask(desk, user="1", k=3).entry == RERANKED  # the first that is served


def test_reasons_are_titles_from_the_history(desk: Desk, toy: Dataset) -> None:
    answer = ask(desk, user="4", k=3, explain=True)
    titles = {toy.titles[i] for i in history(toy, "4")}
    reasons = [reason for item in answer.items for reason in item["because"]]  # type: ignore[attr-defined]
    assert reasons
    assert set(reasons) <= titles


def test_a_swap_changes_who_answers_and_a_bad_one_nothing(desk: Desk) -> None:
    desk.swap([ALONE])
    assert desk.names == (ALONE,)
    assert ask(desk, user="1", k=3).entry == ALONE
    with pytest.raises(RunError, match="'c0000-s99' is not on the front"):
        desk.swap(["c0000-s99"])
    assert desk.names == (ALONE,)


@pytest.mark.parametrize(
    ("question", "complaint"),
    [
        ({"user": "99"}, "user '99' is not in the data; expected one such as '0', or give a history"),
        ({"history": ["98", "99"]}, "no item of the history is in toy; expected ids as in its item table"),
        ({"user": "1", "k": 20}, "k is 20, but only 11 items are left; lower it or filter less"),
        ({"user": "1", "entry": "c0000-s03"}, "entry 'c0000-s03' is not served; did you mean 'c0000-s0"),
        ({"user": "1", "prefer": {"gini@5": 1.0}}, "'gini@5' is no objective"),
        ({"history": ["1"], "groups": {"side": "left"}}, "the model does not read the side of a user; it reads none"),
        ({"history": ["1", "2"], "times": [5.0, 4.0]}, "times must be numbers, one for each of the 2 items"),
    ],
    ids=str,
)
def test_a_question_that_has_no_answer_gets_one_line(desk: Desk, question: dict[str, Any], complaint: str) -> None:
    assert refusal(desk, **question).startswith(complaint)


def test_a_bad_question_spoils_no_other(desk: Desk) -> None:
    good, bad, again = desk.answer([Question(user="1", k=3), Question(user="99"), Question(user="1", k=3)])
    assert isinstance(bad, ParetoSearchError)
    assert isinstance(good, Answer)
    assert good == again


@pytest.mark.parametrize(
    "question",
    [
        {},
        {"user": "1", "history": ["1"]},
        {"user": "1", "k": 0},
        {"user": "1", "k": 201},
        {"user": "1", "entry": ALONE, "prefer": {"ild@5": 1}},
        {"user": "1", "least": {"price": 1}},
        {"user": "1", "least": {"novelty": math.nan}},
        {"user": "1", "colour": "red"},
        {"user": "1", "times": [5.0]},
        {"history": ["1", "2"], "times": [5.0]},
        {"user": "1", "groups": {"side": "left"}},
    ],
    ids=str,
)
def test_a_question_that_makes_no_sense_is_refused(question: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Question(**question)


def test_a_canary_takes_the_users_that_a_larger_share_takes_too(toy_run: Path, toy: Dataset) -> None:
    def taken(share: float) -> set[str]:
        desk = Desk(toy_run, [RERANKED], toy, canary=Canary(ALONE, share))
        return {user for user in toy.user_ids if ask(desk, user=user, k=3).entry == ALONE}

    none, some, more, everybody = (taken(share) for share in (0, 0.3, 0.6, 1))
    assert (none, everybody) == (set(), set(toy.user_ids))
    assert none < some < more < everybody


def test_preferences_do_not_lead_to_a_canary_but_its_name_does(toy_run: Path, toy: Dataset) -> None:
    desk = Desk(toy_run, [RERANKED], toy, canary=Canary(ALONE, 1))
    assert ask(desk, user="1", k=3, prefer={"ndcg@5": 1}).entry == RERANKED
    assert ask(desk, user="1", k=3, entry=ALONE).entry == ALONE
    desk.swap([ALONE, RERANKED])
    assert desk.canary is None
    assert ask(desk, user="1", k=3, prefer={"ndcg@5": 1}).entry == ALONE


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_lies_within_0_and_1(share: float) -> None:
    with pytest.raises(ConfigError, match="expected 0 to 1"):
        Canary(ALONE, share)


def test_a_canary_is_read_from_text() -> None:
    assert Canary.parse("c0009-s07=0.1") == Canary("c0009-s07", 0.1)
    for text in ("c0009-s07", "c0009-s07=", "c0009-s07=much"):
        with pytest.raises(ConfigError, match="is not of the form"):
            Canary.parse(text)
