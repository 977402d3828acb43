"""A worker in this process, from the components to a candidate's result."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from pareto_search import __version__
from pareto_search.candidate import FIRST_TOWERS, WARM_START, Attempt, Candidate
from pareto_search.errors import DivergedError
from pareto_search.executor import Result
from pareto_search.recsys import baselines
from pareto_search.recsys.dataset import Dataset
from pareto_search.recsys.inner_search import FIRST
from pareto_search.recsys.ranking import Ranking
from pareto_search.recsys.split import Split, split
from pareto_search.workers import worker as module
from pareto_search.workers.base import Base
from pareto_search.workers.distillation import Teacher
from pareto_search.workers.evaluate import component, score, scorer
from pareto_search.workers.recommender import joined
from pareto_search.workers.train import OPTIMISER
from pareto_search.workers.worker import PackWorker, Worker
from pareto_search.workers.workload import Workload

NAMES = ("ease", "sasrec", "text", "warm-start")


@pytest.fixture(scope="module")
def worker(workload: Workload) -> Worker:
    return equipped(workload)


def equipped(workload: Workload) -> Worker:
    worker = Worker(workload)
    worker.equip({name: files for name in NAMES if (files := worker.fit(name)) is not None})
    return worker


def test_a_control_of_what_inherited_nothing_is_what_it_was(worker: Worker, result: Result, attempt: Attempt) -> None:
    settings = [dict(e.serving) for e in result.evaluations]
    control = worker.retrained(attempt.candidate, 3, settings)
    assert control is not None
    for evaluation, (validation, tested), expected in zip(
        result.evaluations, control, worker.test(result.files, settings), strict=True
    ):
        assert dict(validation) == pytest.approx(dict(evaluation.values))
        assert tested == expected


def test_a_control_that_diverges_is_none(worker: Worker, genes: dict[str, Any]) -> None:
    assert worker.retrained(Candidate("c0003", {**genes, "tower_lr": 1e30}), 3, [{}]) is None


@pytest.fixture(scope="module")
def attempt(genes: dict[str, Any]) -> Attempt:
    return Attempt(Candidate("c0003", genes), number=2)


@pytest.fixture(scope="module")
def result(worker: Worker, attempt: Attempt) -> Result:
    return worker.run(attempt)


def test_the_first_evaluation_is_the_checkpoint_alone(result: Result, workload: Workload) -> None:
    assert [e.setting for e in result.evaluations] == list(range(workload.serving_settings + 1))
    alone, plain, *others = (e.serving for e in result.evaluations)
    assert alone == {}
    assert set(plain) == set(workload.space.fitted) == {"sharpness", "ease", "sasrec", "text"}
    assert all(set(s) == {g.name for g in workload.space.genes} | set(plain) for s in others)
    assert all(plain.items() <= s.items() for s in others)
    assert {(e.candidate, e.attempt, e.steps) for e in result.evaluations} == {("c0003", 2, 3)}


def test_margins_are_the_standard_error_of_the_difference_from_the_warm_start(
    worker: Worker, result: Result, workload: Workload
) -> None:
    part = workload.split.validation
    files = worker.fit("warm-start")
    assert files is not None
    models = (scorer(result.files, worker.encoder), scorer(files, worker.encoder))
    names = list(workload.metrics)
    mine, theirs = (Ranking(part, worker.items, {"model": m}).tallies([{}], names)[0].per_user() for m in models)
    for evaluation in result.evaluations:
        assert set(evaluation.margins) == set(names)
        for name in names:
            expected = np.std(mine[name] - theirs[name]) / np.sqrt(len(part.users))
            assert evaluation.margins[name] == pytest.approx(expected)
    assert result.evaluations[0].margins["ndcg@5"] > 0
    start = worker.run(Attempt(Candidate("m0000", {}, (), "merged")))
    assert all(e.margins == {} for e in start.evaluations)


def test_the_raw_values_are_those_of_the_files_by_brute_force(worker: Worker, result: Result, toy_split: Split) -> None:
    validation = toy_split.validation
    scores = scorer(result.files, worker.encoder).scores(validation.history)
    gains = []
    for user in range(len(validation.users)):
        scores[user, validation.history.of(user)] = -np.inf
        (place,) = np.flatnonzero(np.argsort(-scores[user])[:5] == validation.targets.of(user)[0]).tolist() or [None]
        gains.append(0.0 if place is None else 1 / np.log2(place + 2))
    assert result.evaluations[0].values["ndcg@5"] == pytest.approx(np.mean(gains))


def test_every_setting_is_reproduced_from_the_files(worker: Worker, result: Result, workload: Workload) -> None:
    fresh = Worker(workload)
    components = {name: component(worker_files) for name, worker_files in fitted(worker).items()}
    again = score(
        workload.split.validation,
        fresh.items,
        {"model": scorer(result.files, fresh.encoder), **components},
        [e.serving for e in result.evaluations],
        workload.metrics,
    )
    for evaluation, scores in zip(result.evaluations, again, strict=True):
        assert {name: s["mean"] for name, s in scores.items()} == pytest.approx(dict(evaluation.values), abs=1e-6)


def fitted(worker: Worker) -> dict[str, dict[str, bytes]]:
    """The components that entries blend in, trained once more."""
    return {name: files for name in ("ease", "sasrec", "text") if (files := worker.fit(name)) is not None}


def test_the_test_part_is_scored_from_the_files_alone(worker: Worker, result: Result, workload: Workload) -> None:
    settings = [{}, {"ease": 0.5, "diversity": 0.3}]
    first = worker.test(result.files, settings)
    assert equipped(workload).test(result.files, settings) == first
    for scores in first:
        assert set(scores) == set(workload.metrics)
        assert all(s["low"] <= s["mean"] <= s["high"] for s in scores.values())
    assert first[0] != first[1]


def test_the_files_are_complete(result: Result, worker: Worker, workload: Workload, genes: dict[str, Any]) -> None:
    assert set(result.files) == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "recommender.json",
        "recommender.safetensors",
    }
    notes = json.loads(result.files["recommender.json"])
    assert notes["base"] == {"id": workload.base, "revision": None, "sha256": worker.base.sha256}
    assert notes["pooling"] == "mean"
    assert (notes["dtype"], notes["max_item_tokens"], notes["history"]) == ("float32", 16, 6)
    assert (notes["candidate"], notes["genes"], notes["steps"]) == ("c0003", genes, 3)
    assert notes["items"] == [str(i) for i in range(20)]


def test_a_candidate_gives_the_same_files_on_whichever_worker_and_attempt(
    result: Result, workload: Workload, attempt: Attempt
) -> None:
    again = equipped(workload).run(replace(attempt, number=1))
    assert again.files == result.files
    assert [e.values for e in again.evaluations] == [e.values for e in result.evaluations]


def test_a_workers_teacher_is_ease(workload: Workload, attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(module, "Teacher", lambda *given: asked.append(given) or Teacher(*given))
    worker = equipped(workload)
    candidate = attempt.candidate
    taught = replace(attempt, candidate=replace(candidate, genes={**candidate.genes, "distillation": 1.0}))
    assert worker.run(taught).files != worker.run(attempt).files
    [(ease, items, validation)] = asked
    assert np.allclose(ease.weights, baselines.ease(workload.split.train, 20).weights, atol=1e-6)
    assert (items, validation) == (worker.items, workload.split.validation)


def test_another_candidate_with_the_same_genes_has_a_seed_of_its_own(
    worker: Worker, result: Result, genes: dict[str, Any]
) -> None:
    other = worker.run(Attempt(Candidate("c0004", genes)))
    assert other.files["recommender.safetensors"] != result.files["recommender.safetensors"]


def test_a_worker_that_was_taught_starts_from_the_known_settings(
    workload: Workload, worker: Worker, attempt: Attempt
) -> None:
    known = {g.name: g.from_unit(0.25) for g in workload.space.genes}
    worker.teach([known])
    try:
        alone, fitted, third, *_ = (e.serving for e in worker.run(attempt).evaluations)
    finally:
        worker.teach(())
    assert alone == {}
    assert third == pytest.approx(known | dict(fitted))


def test_what_the_warm_start_has_already_is_not_looked_for(
    workload: Workload, worker: Worker, attempt: Attempt
) -> None:
    known = {g.name: g.from_unit(0.25) for g in workload.space.genes}

    def found(share: float) -> list[Mapping[str, Any]]:
        covered = {o.name: o.reference + share * (o.ideal - o.reference) for o in workload.objectives}
        worker.teach([known], [covered])
        try:
            return [e.serving for e in worker.run(attempt).evaluations]
        finally:
            worker.teach(())

    nothing, everything = found(0.0), found(5.0)
    begun = 2 + FIRST  # with the model alone, and what is fixed alone
    assert nothing[:begun] == everything[:begun]
    assert nothing[begun:] != everything[begun:]


@pytest.mark.parametrize("warm", [Candidate(FIRST_TOWERS, {}, (), "early"), Candidate(WARM_START, {}, (), "merged")])
def test_the_warm_start_has_the_curve_that_was_found_for_it(
    workload: Workload, worker: Worker, warm: Candidate
) -> None:
    alone, *curve = worker.curve("warm-start", ("ease", "text"), 4)
    for found in (curve[::-1], [*curve, alone]):
        worker.teach([serving for serving, _ in found], [{**values, "ndcg@5": 0.9} for _, values in found])
        try:
            first, *others = worker.run(Attempt(warm)).evaluations
        finally:
            worker.teach(())
        assert (first.serving, first.values) == ({}, pytest.approx(alone[1]))
        # They are not measured once more.
        known = [(serving, {**values, "ndcg@5": 0.9}) for serving, values in found if serving]
        assert [(e.serving, e.values) for e in others] == known
        assert [e.setting for e in others] == list(range(1, 5))
    # Nobody has found it yet.
    assert len(worker.run(Attempt(warm)).evaluations) == 1 + workload.serving_settings


def test_the_warm_start_costs_what_its_checkpoint_does(workload: Workload, worker: Worker) -> None:
    metrics = (*workload.metrics, "parameters")
    counting = Worker(replace(workload, metrics=metrics))
    counting.equip({name: files for name in NAMES if (files := worker.fit(name)) is not None})
    curve = counting.curve("warm-start", ("ease", "text"), 4)
    counting.teach([serving for serving, _ in curve], [values for _, values in curve])
    result = counting.run(Attempt(Candidate(WARM_START, {}, (), "merged")))
    tested = counting.test(result.files, [e.serving for e in result.evaluations])
    assert [e.values["parameters"] for e in result.evaluations] == [t["parameters"]["mean"] for t in tested]
    assert result.evaluations[1].values["parameters"] > curve[1][1]["parameters"]


def test_every_model_is_blended_in_the_likeliest_way(worker: Worker, result: Result, workload: Workload) -> None:
    model = scorer(result.files, worker.encoder)
    ranking = Ranking(workload.split.validation, worker.items, {"model": model, **worker.components})
    assert result.evaluations[1].serving == ranking.fitted(workload.space).fixed


def test_each_baseline_has_values(worker: Worker, workload: Workload) -> None:
    names = ("popularity", "item-knn", "ease", "sasrec", "frozen-encoder", "warm-start")
    values = {name: worker.baseline(name) for name in names}
    assert all(set(v) == set(workload.metrics) for v in values.values())
    # What follows what is all that there is to know here, and only SASRec and the warm start look at the order.
    assert min(values[n]["ndcg@5"] for n in ("sasrec", "warm-start")) > values["popularity"]["ndcg@5"]
    assert worker.test_baseline("popularity", [{}])[0]["ndcg@5"]["mean"] > 0


def test_a_baselines_curve_starts_with_the_baseline_and_blends_only_what_is_named(
    worker: Worker, workload: Workload
) -> None:
    plain, blended = worker.curve("sasrec", (), 10), worker.curve("sasrec", ("ease",), 10)
    assert len(plain) == len(blended) == 11
    assert plain[0][1] == blended[0][1] == worker.baseline("sasrec")
    reranking = {"diversity", "novelty", "credibility", "sharpness"}
    assert {name for s, _ in plain for name in s} == reranking
    assert {name for s, _ in blended for name in s} == reranking | {"ease"}


def test_ease_is_left_out_where_the_catalogue_is_too_large_for_it(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGEST_SQUARE", 19)
    assert worker.fit("ease") is None


@pytest.mark.parametrize(
    ("name", "changes", "reads"),
    [
        ("warm-start", {}, True),
        ("warm-start", {"time_gaps": False}, False),
        ("warm-start", {"tower": "decayed_mean"}, False),
        ("sasrec", {}, False),
    ],
    ids=str,
)
def test_only_a_warm_start_with_attention_reads_gaps_and_only_if_it_may(
    workload: Workload, name: str, changes: dict[str, Any], reads: bool
) -> None:
    files = Worker(replace(workload, **changes)).fit(name)
    assert files is not None
    assert json.loads(files["recommender.json"])["gaps"] is reads
    gap = load(files["recommender.safetensors"]).get("gap")
    assert (gap is not None and bool(gap.any())) is reads


@pytest.mark.parametrize(
    ("name", "changes", "reads"),
    [("warm-start", {}, True), ("warm-start", {"tower": "decayed_mean"}, False), ("sasrec", {}, False)],
    ids=str,
)
def test_only_a_warm_start_with_attention_reads_groups(
    toy: Dataset, workload: Workload, name: str, changes: dict[str, Any], reads: bool
) -> None:
    people = replace(toy, groups={"side": tuple("left" if u % 2 else "right" for u in range(30))})
    parts = split(people, "leave_last_out", 0, groups=("side",))
    worker = Worker(replace(workload, split=parts, **changes))
    files = worker.fit(name)
    assert files is not None
    assert json.loads(files["recommender.json"])["groups"] == ([2] if reads else [])
    group = load(files["recommender.safetensors"]).get("group")
    assert (group is not None) is reads
    if group is not None:
        assert not group[:, 0].any()
        assert group[:, 1:].any(-1).all()


def test_fine_tuning_moves_what_groups_are_worth(toy: Dataset, workload: Workload, genes: dict[str, Any]) -> None:
    people = replace(toy, groups={"side": tuple("left" if u % 2 else "right" for u in range(30))})
    worker = Worker(replace(workload, split=split(people, "leave_last_out", 0, groups=("side",))))
    start = worker.fit("warm-start")
    assert start is not None
    worker.equip({"warm-start": start})
    files = worker.run(Attempt(Candidate("c0000", genes))).files
    before, after = (load(f["recommender.safetensors"])["group"] for f in (start, files))
    assert (before != after)[:, 1:].any(-1).all()


def test_the_towers_of_the_warm_start_differ_wherever_they_are_trained(worker: Worker) -> None:
    whole = worker.fit("warm-start")
    assert whole is not None
    notes, tensors = json.loads(whole["recommender.json"]), load(whole["recommender.safetensors"])
    assert notes["towers"] == len(tensors["projection.weight"]) == 2
    assert not np.allclose(*tensors["projection.weight"], atol=0.01)
    parts = [worker.fit("warm-start", number) for number in range(2)]
    assert joined([part for part in parts if part]) == whole
    sasrec = worker.fit("sasrec")
    assert sasrec is not None
    assert json.loads(sasrec["recommender.json"])["towers"] == 1


@pytest.mark.parametrize(("share", "dropout"), [(0.1, 0.3), (0.5, 0.1)])
def test_where_much_is_tied_there_is_less_dropout(workload: Workload, share: float, dropout: float) -> None:
    train = workload.split.train
    tied = replace(train, gaps=np.where(np.arange(len(train.items)) % 10 < 10 * share, 1, 5).astype(np.uint8))
    worker = Worker(replace(workload, split=replace(workload.split, train=tied)))
    warm, sasrec = worker.fit("warm-start", 0), worker.fit("sasrec")
    assert warm is not None
    assert sasrec is not None
    assert json.loads(warm["recommender.json"])["dropout"] == dropout
    assert json.loads(sasrec["recommender.json"])["dropout"] == 0.3


def test_sasrec_reads_no_text_whatever_the_tower(workload: Workload) -> None:
    other = Worker(replace(workload, tower="decayed_mean"))
    sasrec, warm = other.fit("sasrec"), other.fit("warm-start")
    assert sasrec is not None
    assert warm is not None
    assert "projection.weight" not in load(sasrec["recommender.safetensors"])
    assert "position" in load(sasrec["recommender.safetensors"])
    assert "position" not in load(warm["recommender.safetensors"])


def test_with_the_decayed_mean_a_candidate_runs_too(workload: Workload, attempt: Attempt) -> None:
    result = equipped(replace(workload, tower="decayed_mean", serving_settings=2)).run(attempt)
    assert json.loads(result.files["recommender.json"])["tower"] == "decayed_mean"
    assert all(np.isfinite(v) for e in result.evaluations for v in e.values.values())


def test_distances_come_from_the_categories_where_there_are_any(worker: Worker, toy: Dataset) -> None:
    assert toy.categories is not None
    # Item 6 is comedy and drama, item 9 is drama: their cosine is 1 / √2.
    assert (toy.categories[6], toy.categories[9]) == (("comedy", "drama"), ("drama",))
    assert worker.items.features[6] @ worker.items.features[9] == pytest.approx(0.5**0.5)


def test_without_categories_distances_come_from_the_frozen_text_vectors(workload: Workload) -> None:
    bare = Worker(replace(workload, categories=None))
    assert bare.items.features == pytest.approx(bare.encoder.frozen.numpy(), abs=1e-6)


def test_the_base_is_named_by_its_bytes(worker: Worker, tiny_base: Base) -> None:
    assert worker.identity() == f"{__version__} {tiny_base.sha256} float32 mean"


RUNGS = (2, 4, 6)


@pytest.fixture(scope="module")
def climber(workload: Workload) -> Worker:
    """A worker of a search with several rungs."""
    return equipped(replace(workload, rungs=RUNGS, serving_settings=4))


def awkward(genes: dict[str, Any], **others: Any) -> dict[str, Any]:
    """With an alpha / rank that a computer does not hold exactly."""
    return {**genes, "rank": 6, "alpha": 11.0, "dropout": 0.2, **others}


@pytest.fixture(scope="module")
def climb(climber: Worker, genes: dict[str, Any]) -> list[Result]:
    """A candidate's results at each rung, each from the state that the one before has left."""
    candidate, results = Candidate("c0003", awkward(genes)), list[Result]()
    for number, rung in enumerate(RUNGS, start=1):
        results.append(climber.run(Attempt(candidate, number, rung), [r.files for r in results[-1:]]))
    return results


def values(result: Result) -> list[dict[str, float]]:
    return [dict(e.values) for e in result.evaluations]


@pytest.mark.parametrize("place", [0, 1])
def test_below_the_full_rung_the_checkpoint_alone_is_scored_and_the_files_are_a_state(
    climber: Worker, climb: list[Result], workload: Workload, place: int
) -> None:
    result = climb[place]
    (evaluation,) = result.evaluations
    assert (evaluation.candidate, evaluation.attempt, evaluation.steps) == ("c0003", place + 1, RUNGS[place])
    assert (evaluation.setting, evaluation.serving) == (0, {})
    assert OPTIMISER in result.files
    assert json.loads(result.files["recommender.json"])["steps"] == RUNGS[place]
    model = {"model": scorer(result.files, climber.encoder)}
    (scores,) = score(workload.split.validation, climber.items, model, [{}], workload.metrics)
    assert {name: s["mean"] for name, s in scores.items()} == pytest.approx(dict(evaluation.values), abs=1e-6)


def test_at_the_full_rung_there_are_settings_and_a_checkpoint_without_a_state(climb: list[Result]) -> None:
    assert [e.setting for e in climb[-1].evaluations] == list(range(5))
    assert {(e.candidate, e.attempt, e.steps) for e in climb[-1].evaluations} == {("c0003", 3, 6)}
    assert climb[-1].files.keys() == climb[0].files.keys() - {OPTIMISER}
    assert json.loads(climb[-1].files["recommender.json"])["steps"] == 6


def test_a_promoted_candidate_ends_as_one_that_was_trained_straight(
    climber: Worker, climb: list[Result], genes: dict[str, Any]
) -> None:
    straight = climber.run(Attempt(Candidate("c0003", awkward(genes))))
    assert straight.files == climb[-1].files
    assert values(straight) == values(climb[-1])
    assert [e.serving for e in straight.evaluations] == [e.serving for e in climb[-1].evaluations]


def test_a_promoted_candidate_may_begin_anew_where_its_state_is_lost(
    climber: Worker, climb: list[Result], genes: dict[str, Any]
) -> None:
    again = climber.run(Attempt(Candidate("c0003", awkward(genes)), 5, 4))
    assert again.files == climb[1].files
    assert values(again) == values(climb[1])


def test_a_candidate_whose_state_has_reached_the_rung_is_scored_again_and_not_trained(
    climber: Worker, climb: list[Result], genes: dict[str, Any]
) -> None:
    again = climber.run(Attempt(Candidate("c0003", awkward(genes)), 2, 2), [climb[0].files])
    assert again.files == climb[0].files
    assert values(again) == values(climb[0])
    assert again.evaluations[0].attempt == 2


@pytest.fixture(scope="module")
def parents(climber: Worker, climb: list[Result], genes: dict[str, Any]) -> list[Result]:
    """Two candidates of different shapes, at the full rung."""
    other = awkward(genes, rank=32, targets="all", layers=3, id_embeddings=False)
    return [climb[-1], climber.run(Attempt(Candidate("c0004", other)))]


MERGED = Candidate("m0001", {"share": 0.3}, ("c0003", "c0004"), "merged")


def test_a_merged_candidate_is_evaluated_with_settings_and_counts_as_fully_trained(
    climber: Worker, parents: list[Result], workload: Workload
) -> None:
    result = climber.run(Attempt(MERGED, 1, 6), [p.files for p in parents])
    assert [e.setting for e in result.evaluations] == list(range(5))
    assert {(e.candidate, e.attempt, e.steps) for e in result.evaluations} == {("m0001", 1, 6)}
    alone, plain, *others = (e.serving for e in result.evaluations)
    assert alone == {}
    assert set(plain) == set(workload.space.fitted) == {"sharpness", "ease", "sasrec", "text"}
    assert all(set(s) == {g.name for g in workload.space.genes} | set(plain) for s in others)
    assert all(plain.items() <= s.items() for s in others)
    again = score(
        workload.split.validation,
        climber.items,
        {"model": scorer(result.files, climber.encoder), **climber.components},
        [e.serving for e in result.evaluations],
        workload.metrics,
    )
    for evaluation, scores in zip(result.evaluations, again, strict=True):
        assert {name: s["mean"] for name, s in scores.items()} == pytest.approx(dict(evaluation.values), abs=1e-6)


def test_a_merged_candidate_is_its_parents_average_by_its_share(climber: Worker, parents: list[Result]) -> None:
    result = climber.run(Attempt(MERGED), [p.files for p in parents])
    one, two, merged = (load(files["recommender.safetensors"]) for files in (*(p.files for p in parents), result.files))
    assert merged["projection.weight"] == pytest.approx(
        0.3 * one["projection.weight"] + 0.7 * two["projection.weight"], abs=1e-6
    )
    assert merged["item_embedding"] == pytest.approx(0.3 * one["item_embedding"], abs=1e-6)
    notes, adapter = (json.loads(result.files[name]) for name in ("recommender.json", "adapter_config.json"))
    assert (notes["candidate"], notes["genes"], notes["merges"]) == ("m0001", {"share": 0.3}, ["c0003", "c0004"])
    assert notes["items"] == [str(i) for i in range(20)]
    assert adapter["r"] == climber.load.rank == 32  # 6 + 32 do not fit
    assert result.files.keys() == parents[0].files.keys()


def test_merging_gives_the_same_files_on_whichever_worker(
    climber: Worker, parents: list[Result], workload: Workload
) -> None:
    sources = [p.files for p in parents]
    other = equipped(replace(workload, rungs=RUNGS, serving_settings=4))
    one, two = (w.run(Attempt(MERGED), sources) for w in (climber, other))
    assert one.files == two.files
    assert values(one) == values(two)


def test_merged_with_nobody_it_is_the_warm_start(climber: Worker) -> None:
    result = climber.run(Attempt(Candidate("m0000", {}, (), "merged"), 1, 6))
    assert result.evaluations[0].values == pytest.approx(dict(climber.baseline("warm-start")), abs=1e-6)
    assert [e.setting for e in result.evaluations] == list(range(5))
    assert {(e.candidate, e.attempt, e.steps) for e in result.evaluations} == {("m0000", 1, 6)}
    history = climber.load.split.validation.history
    warm = scorer(climber.fit("warm-start") or {}, climber.encoder).scores(history)
    assert scorer(result.files, climber.encoder).scores(history) == pytest.approx(warm, abs=1e-5)


def test_the_warm_start_can_be_merged_with_a_candidate(climber: Worker, parents: list[Result]) -> None:
    warm = climber.run(Attempt(Candidate("m0000", {}, (), "merged")))
    candidate = Candidate("m0001", {"share": 0.4}, ("c0003", "m0000"), "merged")
    result = climber.run(Attempt(candidate), [parents[0].files, warm.files])
    one, two, merged = (load(f["recommender.safetensors"]) for f in (parents[0].files, warm.files, result.files))
    assert all(merged[n] == pytest.approx(0.4 * one[n] + 0.6 * two[n], abs=1e-6) for n in one)
    assert json.loads(result.files["adapter_config.json"])["r"] <= 6 + 1


def test_a_candidate_that_inherits_starts_from_its_parents_checkpoint(
    climber: Worker, climb: list[Result], genes: dict[str, Any]
) -> None:
    still = awkward(genes, adapter_lr=0.0, tower_lr=1e-12, weight_decay=0.0)
    child = Attempt(Candidate("c0009", still, ("c0003", "c0004")))
    heir, orphan = climber.run(child, [climb[-1].files]), climber.run(child)
    ours, parents, others = (load(r.files["recommender.safetensors"]) for r in (heir, climb[-1], orphan))
    assert all(ours[name] == pytest.approx(parents[name], abs=1e-6) for name in parents)
    assert not any(np.allclose(others[name], parents[name], atol=1e-4) for name in ("projection.weight", "item_bias"))
    assert heir.files["adapter_model.safetensors"] == climb[-1].files["adapter_model.safetensors"]
    assert heir.evaluations[0].values == pytest.approx(dict(climb[-1].evaluations[0].values), abs=1e-6)
    assert json.loads(heir.files["recommender.json"])["steps"] == 6


def test_side_by_side_each_attempt_has_the_result_that_it_has_alone(
    climber: Worker, parents: list[Result], genes: dict[str, Any]
) -> None:
    packed = PackWorker(climber.load)
    packed.equip({name: files for name in NAMES if (files := climber.fit(name)) is not None})
    climbing = Candidate("c0005", awkward(genes, layers=1))
    paused = climber.run(Attempt(climbing, 1, RUNGS[0]))
    attempts: list[tuple[Attempt, list[Any]]] = [
        (Attempt(Candidate("c0003", awkward(genes, rank=2))), []),
        (Attempt(climbing, 2, RUNGS[1]), [paused.files]),
        (Attempt(MERGED, 1, 6), [p.files for p in parents]),
        (Attempt(Candidate("c0007", {**genes, "tower_lr": 1e30})), []),
    ]

    async def all_of_them() -> list[Any]:
        calls = (packed.run_beside(attempt, sources) for attempt, sources in attempts)
        return await asyncio.gather(*calls, return_exceptions=True)

    *results, diverged = asyncio.run(all_of_them())
    assert isinstance(diverged, DivergedError)
    for (attempt, sources), ours in zip(attempts, results, strict=False):
        theirs = climber.run(attempt, sources)
        assert [(e.attempt, e.steps, e.setting) for e in ours.evaluations] == [
            (e.attempt, e.steps, e.setting) for e in theirs.evaluations
        ]
        assert ours.files.keys() == theirs.files.keys()
        history = climber.load.split.validation.history
        one, other = (scorer(r.files, climber.encoder).scores(history) for r in (ours, theirs))
        assert one == pytest.approx(other, abs=1e-4)
        model = {"model": scorer(ours.files, climber.encoder)}
        (scores,) = score(climber.load.split.validation, climber.items, model, [{}], climber.load.metrics)
        assert {n: s["mean"] for n, s in scores.items()} == pytest.approx(dict(ours.evaluations[0].values), abs=1e-6)


def test_what_training_costs_is_counted_with_what_it_began_from(
    climber: Worker, climb: list[Result], parents: list[Result], genes: dict[str, Any]
) -> None:
    def operations(result: Result) -> dict[str, float]:
        return json.loads(result.files["recommender.json"])["training"]

    each = operations(climb[-1])["c0003"]
    for rung, result in zip(RUNGS, climb, strict=True):
        assert operations(result) == {"c0003": pytest.approx(each * rung / 6)}
    both = operations(climber.run(Attempt(MERGED), [p.files for p in parents]))
    assert both == operations(parents[0]) | operations(parents[1])
    assert both["c0004"] > both["c0003"]  # it goes through more blocks
    merged = climber.run(Attempt(MERGED), [p.files for p in parents])
    child = Candidate("c0005", awkward(genes), ("old/c0003", "c0004"))
    assert operations(climber.run(Attempt(child), [climb[-1].files])) == {"old/c0003": each, "c0005": each}
    heir, results = Candidate("c0003", awkward(genes), ("old/c0003",)), [climb[-1]]
    for number, rung in enumerate(RUNGS, start=1):
        results.append(climber.run(Attempt(heir, number, rung), [results[-1].files]))
    assert operations(results[-1]) == {"old/c0003": each, "c0003": each}  # from its own state, nothing becomes older
    again = Candidate("m0002", {"share": 0.5}, ("m0001", "c0003"), "merged")
    assert operations(climber.run(Attempt(again), [merged.files, climb[-1].files])) == both
    model = Ranking(climber.load.split.validation, climber.items, {"model": scorer(merged.files, climber.encoder)})
    assert model.costs({}, ["training"]) == {"training": pytest.approx(sum(both.values()) / 1e12)}


def test_a_baseline_is_judged_by_what_it_costs_too(workload: Workload, result: Result) -> None:
    costs = Worker(replace(workload, metrics=("ndcg@5", "parameters", "latency", "ece@5")))
    assert costs.baseline("popularity")["parameters"] == 20
    ease = costs.fit("ease")
    assert ease is not None
    costs.equip({"ease": ease})
    [alone, blended] = costs.test(result.files, [{}, {"ease": 0.5}])
    counts = [tensors.size for name in ("adapter_model", "recommender") for tensors in stored(result, name)]
    temperatures = workload.towers
    assert alone["parameters"]["mean"] == sum(counts) - temperatures
    added = np.count_nonzero(component(ease).weights)  # type: ignore[attr-defined]
    assert blended["parameters"]["mean"] == alone["parameters"]["mean"] + added
    assert blended["latency"]["mean"] > 0
    assert 0 < blended["ece@5"]["mean"] < 1


def stored(result: Result, name: str) -> list[Any]:
    return list(load(result.files[f"{name}.safetensors"]).values())
