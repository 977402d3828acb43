"""What a search decides, given what it has heard."""

import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal

import pytest

from pareto_search import archive
from pareto_search.candidate import Candidate, Deed, Evaluation, Forerunner, Kind, Leg
from pareto_search.config import SearchConfig
from pareto_search.evolution import Evolution
from pareto_search.objective import Values
from pareto_search.schedule import MERGERS, SHARES, Schedule

FULL = 40


def config(space: Mapping[str, object] = {}, **wishes: Any) -> SearchConfig:
    objectives = [
        {"metric": "ndcg@10", "reference": 0.0, "ideal": 1.0},
        {"metric": "ild@10", "reference": 0.0, "ideal": 1.0},
    ]
    budget = {"population": 4, "candidates": 12, "steps": FULL, **wishes}
    content = {"name": "s", "data": {"source": "nowhere"}, "objectives": objectives, "search": budget}
    return SearchConfig.parse({**content, "space": dict(space)})


def schedule(space: Mapping[str, object] = {}, **wishes: Any) -> Schedule:
    return Schedule(config(space, **wishes))


def begun(warm: tuple[float, float] = (-1.0, -1.0), **wishes: Any) -> Schedule:
    """A schedule that has heard of the warm start, which is infeasible unless its scores are given."""
    begun = schedule(**wishes)
    leg = decided(begun, "merge")
    begun.hear(leg, scored(leg, warm))
    return begun


def early(**wishes: Any) -> Schedule:
    """A schedule in which the warm start's first towers come before all of it."""
    return Schedule(config(**wishes), early=True)


def scored(leg: Leg, *points: tuple[float, float]) -> list[Evaluation]:
    """A leg's evaluations, one a setting."""
    return [
        Evaluation(leg.candidate, 1, leg.steps, setting, {}, {"ndcg@10": accuracy, "ild@10": diversity})
        for setting, (accuracy, diversity) in enumerate(points)
    ]


def trade_off(n: int) -> tuple[float, float]:
    """The n-th of points of which none dominates another."""
    return 0.1 + 0.02 * n, 0.9 - 0.02 * n


def always(kind: Kind, steps: int) -> bool:
    return True


def never(kind: Kind, steps: int) -> bool:
    return False


def decided(schedule: Schedule, deed: Deed) -> Leg:
    leg = schedule.decide(deed)
    assert leg is not None
    return leg


def trained(schedule: Schedule, *points: tuple[float, float]) -> Leg:
    """A new candidate, brought to its first rung and heard of there."""
    leg = decided(schedule, "ask")
    schedule.hear(leg, scored(leg, *points))
    return leg


def promoted(schedule: Schedule, *points: tuple[float, float]) -> Leg:
    """The next one to go on, heard of at its next rung."""
    leg = decided(schedule, "promote")
    schedule.hear(leg, scored(leg, *points))
    return leg


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Values | None]]:
    """What the optimiser is told from now on."""
    told: list[tuple[str, Values | None]] = []
    original = Evolution.tell

    def spy(self: Evolution, candidate: Candidate, values: Values | None) -> None:
        told.append((candidate.id, values))
        original(self, candidate, values)

    monkeypatch.setattr(Evolution, "tell", spy)
    return told


def test_without_time_there_is_nothing_to_do_but_to_evaluate_the_warm_start() -> None:
    assert schedule(merging=False).option(never) is None
    begun = schedule()
    assert begun.option(never) == "merge"
    leg = decided(begun, "merge")
    assert begun.candidates[leg.candidate] == Candidate("m0000", {}, (), "merged")
    assert begun.option(never) is None


@pytest.mark.parametrize("rungs", [[40], [10, 20, 40]])
def test_where_merging_is_on_the_warm_start_is_evaluated_first(rungs: list[int]) -> None:
    fresh = schedule(rungs=rungs)
    assert fresh.option(always) == "merge"
    assert decided(fresh, "merge") == Leg("m0000", FULL)
    assert fresh.candidates["m0000"] == Candidate("m0000", {}, (), "merged")
    assert fresh.option(always) == "ask"


def test_the_first_towers_of_the_warm_start_are_evaluated_before_all_of_it_whatever_time_there_is() -> None:
    fresh = early()
    assert fresh.option(never) == "begin"
    assert decided(fresh, "begin") == Leg("e0000", FULL)
    assert fresh.candidates["e0000"] == Candidate("e0000", {}, (), "early")
    assert fresh.option(never) == "merge"
    assert decided(fresh, "merge") == Leg("m0000", FULL)
    assert fresh.option(never) is None
    assert fresh.option(always) == "ask"


def test_the_first_towers_are_on_the_front_until_all_of_the_warm_start_is() -> None:
    fresh = early()
    first, whole = decided(fresh, "begin"), decided(fresh, "merge")
    fresh.hear(first, scored(first, (0.9, 0.1), (0.5, 0.5)))
    assert {e.candidate for e in fresh.front} == {"e0000"}
    trained(fresh, (0.2, 0.6))
    trained(fresh, (0.2, 0.2))
    assert {e.candidate for e in fresh.front} == {"e0000", "c0001"}
    trained(fresh, (0.4, 0.4))
    fresh.hear(whole, scored(whole, (0.6, 0.05)))  # which is dominated by what stood in for it
    assert {e.candidate for e in fresh.front} == {"m0000", "c0001", "c0003"}


def test_the_first_towers_stay_on_the_front_where_all_of_the_warm_start_fails() -> None:
    fresh = early()
    first, whole = decided(fresh, "begin"), decided(fresh, "merge")
    fresh.hear(first, scored(first, (0.9, 0.1)))
    fresh.hear(whole, [])
    assert {e.candidate for e in fresh.front} == {"e0000"}


def test_nothing_is_merged_or_fused_with_the_first_towers() -> None:
    fresh = early(fusions=3)
    first, whole = decided(fresh, "begin"), decided(fresh, "merge")
    fresh.hear(first, scored(first, (0.9, 0.1), (0.1, 0.9)))
    trained(fresh, (0.5, 0.5))
    assert {e.candidate for e in fresh.single} == {"c0001"}
    assert fresh.option(never) is None
    fresh.hear(whole, scored(whole, (0.9, 0.2)))
    assert {e.candidate for e in fresh.single} == {"m0000", "c0001"}
    assert set(fresh.candidates[decided(fresh, "merge").candidate].parents) == {"m0000", "c0001"}
    assert "e0000" not in fresh.candidates[decided(fresh, "fuse").candidate].parents


@pytest.mark.parametrize("rungs", [[40], [10, 20, 40]])
def test_a_candidate_begins_with_the_first_rung(rungs: list[int]) -> None:
    fresh = schedule(rungs=rungs, merging=False)
    assert fresh.option(always) == "ask"
    assert decided(fresh, "ask") == Leg("c0001", rungs[0])


def test_the_budget_counts_the_candidates_that_are_asked_for() -> None:
    small = schedule(candidates=3)
    deeds: list[Deed] = []
    while (deed := small.option(always)) is not None:
        leg = decided(small, deed)
        small.hear(leg, scored(leg, trade_off(len(deeds))))
        deeds.append(deed)
    assert Counter(deeds) == {"ask": 3, "merge": 1 + 3 * MERGERS}


def test_an_exhausted_space_is_not_asked_again() -> None:
    fixed = {
        **{"weight.ild@10": 0.1, "scalarisation": "tchebycheff", "rank": 4, "alpha": 8.0, "dropout": 0.0},
        **{"targets": "all", "layers": 1, "adapter_lr": 1e-3, "tower_lr": 1e-3, "weight_decay": 1e-2},
        "temperature": 1.0,
    }
    tiny = schedule(fixed, merging=False)  # with or without IDs
    for _ in range(2):
        assert tiny.option(always) == "ask"
        decided(tiny, "ask")
    assert tiny.option(always) == "ask"
    assert tiny.decide("ask") is None
    assert tiny.option(always) is None
    assert len(tiny.legs) == 2


def merged(schedule: Schedule) -> list[Leg]:
    """All the mergers that are due."""
    legs = []
    while schedule.option(lambda kind, steps: kind == "merged") == "merge":
        legs.append(decided(schedule, "merge"))
    return legs


def all_at_once() -> Schedule:
    """Everything may be done next: somebody may be promoted, two may be merged, and the budget is not spent."""
    halving = begun(rungs=[20, 40], candidates=100)
    for n in range(4):
        trained(halving, trade_off(n))
    promoted(halving, trade_off(0))
    promoted(halving, trade_off(3))
    trained(halving, trade_off(4))
    trained(halving, trade_off(5))
    return halving


def test_promotions_come_before_mergers_and_mergers_before_new_candidates() -> None:
    halving = all_at_once()
    assert halving.option(always) == "promote"
    promoted(halving, trade_off(5))
    assert halving.option(always) == "merge"
    assert decided(halving, "merge") == Leg("m0001", FULL)
    merged(halving)
    assert halving.option(always) == "ask"


def test_what_does_not_fit_gives_way_to_what_does() -> None:
    halving = all_at_once()
    wanted: list[tuple[Kind, int]] = []

    def none(kind: Kind, steps: int) -> bool:
        wanted.append((kind, steps))
        return False

    assert halving.option(none) is None
    assert wanted == [("trained", 40), ("merged", 40), ("trained", 20)]
    assert halving.option(lambda kind, steps: kind == "merged") == "merge"
    assert halving.option(lambda kind, steps: steps == 20) == "ask"


def test_asking_what_to_do_changes_nothing() -> None:
    halving = schedule(rungs=[20, 40], merging=False)
    trained(halving, trade_off(0))
    trained(halving, trade_off(1))
    assert [halving.option(always) for _ in range(3)] == ["promote"] * 3
    assert len(halving.legs) == 2


def test_a_promoted_candidate_is_the_same_candidate_on_another_leg() -> None:
    halving = schedule(rungs=[10, 20, 40])
    first, second = trained(halving, (0.5, 0.5)), trained(halving, (0.6, 0.6))
    before = dict(halving.candidates)
    assert decided(halving, "promote") == Leg(second.candidate, 20)
    assert halving.candidates == before
    assert halving.legs == [first, second, Leg(second.candidate, 20)]


def test_so_many_mergers_are_due_for_each_candidate_that_reaches_the_full_rung() -> None:
    plain = begun(candidates=100)
    due = []
    for n in range(5):
        trained(plain, trade_off(n))
        legs = merged(plain)
        for leg in legs:
            plain.hear(leg, scored(leg, trade_off(20 + n)))  # a merged one makes no further merger due
        due.append(len(legs))
    # The first one has nobody to be merged with, and what it is due comes later.
    assert due == [0, 2 * MERGERS, MERGERS, MERGERS, MERGERS]


def test_with_a_warm_start_on_the_front_the_first_candidate_is_merged_at_once() -> None:
    plain = begun(warm=(0.05, 0.95))
    trained(plain, trade_off(0))
    legs = merged(plain)
    assert [leg.candidate for leg in legs] == [f"m{n:04d}" for n in range(1, MERGERS + 1)]
    assert all(set(plain.candidates[leg.candidate].parents) == {"m0000", "c0001"} for leg in legs)


def test_mergers_under_way_count() -> None:
    plain = begun()
    trained(plain, trade_off(0))
    trained(plain, trade_off(1))
    assert len(merged(plain)) == 2 * MERGERS  # none was heard of
    assert plain.option(always) == "ask"


def test_the_failed_and_those_below_the_full_rung_make_no_merger_due() -> None:
    halving = begun(rungs=[20, 40], warm=(0.01, 0.99))
    for n in range(6):
        trained(halving, trade_off(n))
    promoted(halving)  # failed
    assert merged(halving) == []
    promoted(halving, trade_off(5))
    assert len(merged(halving)) == MERGERS


def test_one_checkpoint_on_the_front_has_nobody_to_be_merged_with() -> None:
    plain = begun()
    trained(plain, (0.5, 0.5), (0.4, 0.6), (0.6, 0.4))
    trained(plain, (0.1, 0.1))  # dominated
    trained(plain, (0.9, -0.1))  # infeasible
    assert plain.option(always) == "ask"
    trained(plain, (0.7, 0.3))
    assert plain.option(always) == "merge"


def test_where_merging_is_off_nobody_is_merged() -> None:
    plain = schedule(merging=False)
    for n in range(6):
        trained(plain, trade_off(n))
        assert plain.option(always) == "ask"


def mergers(schedule: Schedule, number: int) -> list[Candidate]:
    return [schedule.candidates[decided(schedule, "merge").candidate] for _ in range(number)]


def test_merged_are_two_different_checkpoints_of_the_front_and_their_share_is_in_bounds() -> None:
    plain = begun(candidates=100)
    on_front = {trained(plain, trade_off(n)).candidate for n in range(0, 20, 5)}
    trained(plain, (0.01, 0.01))
    found = mergers(plain, 200)
    assert [m.id for m in found[:2]] == ["m0001", "m0002"]
    assert {m.kind for m in found} == {"merged"}
    assert all(set(m.genes) == {"share"} for m in found)
    assert all(len(set(m.parents)) == 2 for m in found)
    pairs = {m.parents for m in found}
    assert pairs == {(a, b) for a in on_front for b in on_front if a != b}
    shares = [float(m.genes["share"]) for m in found]
    low, high = SHARES
    assert low <= min(shares) < low + 0.02
    assert high - 0.02 < max(shares) <= high


def test_a_merged_candidate_on_the_front_may_be_merged_again() -> None:
    plain = begun(candidates=100)
    trained(plain, (0.2, 0.8))
    trained(plain, (0.8, 0.2))
    leg = decided(plain, "merge")
    plain.hear(leg, scored(leg, (0.6, 0.6)))
    assert {e.candidate for e in plain.front} == {"c0001", "c0002", "m0001"}
    assert {p for m in mergers(plain, 30) for p in m.parents} == {"c0001", "c0002", "m0001"}


def test_a_checkpoint_is_as_likely_to_be_merged_as_it_has_entries_on_the_front() -> None:
    plain = begun(candidates=100)
    rich = trained(plain, *(trade_off(n) for n in range(6)))
    poor = [trained(plain, trade_off(n)) for n in (10, 20)]
    assert len(plain.front) == 8
    first = [m.parents[0] for m in mergers(plain, 400)]
    assert 0.70 <= first.count(rich.candidate) / 400 <= 0.80  # six of eight entries
    assert all(0.08 <= first.count(leg.candidate) / 400 <= 0.17 for leg in poor)


def test_another_seed_merges_others() -> None:
    found = []
    for seed in (0, 0, 1):
        plain = begun(seed=seed)
        for n in range(4):
            trained(plain, trade_off(n))
        found.append([(m.parents, m.genes) for m in mergers(plain, 5)])
    assert found[0] == found[1] != found[2]


LINES = {
    candidate.id: candidate
    for candidate in (
        Candidate("c0001", {}),
        Candidate("c0002", {}),
        Candidate("c0003", {}, ("c0001", "c0002")),
        Candidate("c0004", {}, ("c0001",)),
        Candidate("c0005", {}, ("c0003", "c0004")),
        Candidate("m0000", {}, (), "merged"),
        Candidate("m0001", {"share": 0.5}, ("c0001", "c0002"), "merged"),
        Candidate("m0002", {"share": 0.5}, ("c0003", "c0004"), "merged"),
        Candidate("m0003", {"share": 0.5}, ("m0001", "m0002"), "merged"),
        Candidate("m0004", {"share": 0.5}, ("c0005", "c0003"), "merged"),
        Candidate("m0005", {"share": 0.5}, ("m0000", "c0002"), "merged"),
    )
}


@pytest.mark.parametrize(
    ("name", "inheritance", "lineage"),
    [
        ("c0001", False, {"c0001"}),
        ("c0003", False, {"c0003"}),  # its parents gave it genes only
        ("m0000", False, set()),  # the warm start
        ("m0005", False, {"c0002"}),
        ("m0001", False, {"c0001", "c0002"}),
        ("m0002", False, {"c0003", "c0004"}),
        ("m0003", False, {"c0001", "c0002", "c0003", "c0004"}),
        ("c0001", True, {"c0001"}),
        ("c0003", True, {"c0003", "c0001"}),  # the first parent gave it its weights
        ("c0005", True, {"c0005", "c0003", "c0001"}),
        ("m0001", True, {"c0001", "c0002"}),
        ("m0002", True, {"c0003", "c0004", "c0001"}),  # both from c0001, which counts once
        ("m0003", True, {"c0001", "c0002", "c0003", "c0004"}),
        ("m0004", True, {"c0005", "c0003", "c0001"}),  # merged with its own child
    ],
)
def test_the_lineage_is_all_whose_weights_are_in_a_candidate(name: str, inheritance: bool, lineage: set[str]) -> None:
    family = schedule(inheritance=inheritance)
    family.candidates = dict(LINES)
    assert family.lineage_steps(name) == FULL * len(lineage)


@pytest.mark.parametrize(
    ("name", "inheritance", "sources"),
    [
        ("c0001", True, ()),
        ("c0003", True, ("c0001",)),
        ("c0003", False, ()),
        ("m0001", True, ("c0001", "c0002")),
        ("m0001", False, ("c0001", "c0002")),
        ("m0000", True, ()),
    ],
)
def test_weights_come_from_those_that_are_merged_or_from_the_first_parent(
    name: str, inheritance: bool, sources: tuple[str, ...]
) -> None:
    family = schedule(inheritance=inheritance)
    family.candidates = dict(LINES)
    assert family.sources(name) == sources


def test_a_parent_that_failed_has_no_weights_to_pass_on() -> None:
    family = schedule(inheritance=True, merging=False)
    failed, good = trained(family).candidate, trained(family, trade_off(0)).candidate
    for parents, sources in (((failed, good), (good,)), ((good, failed), (good,)), ((failed,), ())):
        family.candidates["c0003"] = Candidate("c0003", {}, parents)
        assert family.sources("c0003") == sources


def test_only_what_has_reached_the_full_rung_is_told_and_enters_the_front(
    told: list[tuple[str, Values | None]],
) -> None:
    halving = schedule(rungs=[10, 20, 40], inheritance=True)
    for n in range(4):
        trained(halving, trade_off(n))
    promoted(halving, (0.9, 0.9))
    second = promoted(halving, (0.8, 0.8))
    assert (told, halving.front, halving.legators) == ([], [], set())
    last = promoted(halving, (0.3, 0.4), (0.2, 0.5))
    assert last.steps == FULL
    assert last.candidate != second.candidate
    assert told == [(last.candidate, {"ndcg@10": 0.3, "ild@10": 0.4})]  # the checkpoint alone
    assert [(e.candidate, e.setting) for e in halving.front] == [(last.candidate, 0), (last.candidate, 1)]
    assert halving.legators == {last.candidate}


@pytest.mark.parametrize("rung", [10, 20, 40])
def test_a_failure_is_told_at_whatever_rung(told: list[tuple[str, Values | None]], rung: int) -> None:
    halving = schedule(rungs=[10, 20, 40])
    if rung == 10:
        leg = trained(halving)
    else:
        for n in range(4):
            trained(halving, trade_off(n))
        points = [trade_off(0)] if rung == 40 else []
        leg = promoted(halving, *points)
        if rung == 40:
            promoted(halving, trade_off(1))
            leg = promoted(halving)
    assert leg.steps == rung
    assert told == [(leg.candidate, None)]
    assert halving.front == []


def test_a_failure_at_a_rung_takes_nobodys_place_there() -> None:
    halving = schedule(rungs=[20, 40], merging=False)
    trained(halving)
    trained(halving, trade_off(0))
    assert halving.option(always) == "ask"  # one was scored, and two pay for one at the next rung
    trained(halving, trade_off(1))
    assert halving.option(always) == "promote"


def test_a_merged_candidate_enters_the_front_and_is_not_told(told: list[tuple[str, Values | None]]) -> None:
    plain = begun(inheritance=True)
    for n in range(4):
        trained(plain, trade_off(n))
    before = len(told)
    leg = decided(plain, "merge")
    plain.hear(leg, scored(leg, (0.8, 0.8), (0.7, 0.82)))
    assert len(told) == before
    assert leg.candidate not in plain.legators
    assert [(e.candidate, e.setting) for e in plain.front][-2:] == [(leg.candidate, 0), (leg.candidate, 1)]
    leg = decided(plain, "merge")
    plain.hear(leg, [])
    assert len(told) == before
    assert leg in plain.heard


def test_those_who_wait_at_a_rung_do_not_keep_the_others_from_having_children() -> None:
    halving = schedule(rungs=[20, 40], candidates=100, merging=False, inheritance=True)
    for n in range(4):
        trained(halving, trade_off(n))
    first, second = (promoted(halving, trade_off(n)).candidate for n in (0, 3))
    child = halving.candidates[decided(halving, "ask").candidate]
    assert set(child.parents) <= {first, second}
    assert child.parents
    assert halving.legators == {first, second}


def test_of_equal_points_the_first_by_name_is_on_the_front_whoever_was_heard_first() -> None:
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        plain = schedule()
        legs = [decided(plain, "ask") for _ in range(3)]
        for i in order:
            plain.hear(legs[i], scored(legs[i], (0.5, 0.5)))
        assert [e.candidate for e in plain.front] == ["c0001"]


def test_only_more_rungs_or_merging_make_a_report_lead_to_something() -> None:
    assert not schedule(merging=False).listens
    assert schedule(merging=True).listens
    assert schedule(merging=False, rungs=[20, 40]).listens


Event = tuple[Deed | Literal["hear"], Leg]


def drive(
    schedule: Schedule, chance: random.Random, events: int, evaluations: Callable[[Leg], list[Evaluation]]
) -> list[Event]:
    """Decides and hears by chance, as a search whose attempts take any time does; returns its journal."""
    journal: list[Event] = []
    while len(journal) < events:
        deed = schedule.option(always)
        under_way = [leg for leg in schedule.legs if leg not in schedule.heard]
        if deed is not None and (not under_way or (len(under_way) < 5 and chance.random() < 0.6)):
            journal.append((deed, decided(schedule, deed)))
        elif under_way:
            leg = chance.choice(under_way)
            schedule.hear(leg, evaluations(leg))
            journal.append(("hear", leg))
        else:
            break
    return journal


def outcome(leg: Leg) -> list[Evaluation]:
    """What becomes of a leg, the same whenever it is looked at: a tenth fails."""
    chance = random.Random(f"{leg}")
    if chance.random() < 0.1:
        return []
    return scored(leg, *((chance.random(), chance.random()) for _ in range(3 if leg.steps == FULL else 1)))


@pytest.mark.parametrize("algorithm", ["nsga2", "spea2"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("wishes", [{"rungs": [10, 20, 40]}, {"rungs": [20, 40], "inheritance": True}, {}])
def test_replaying_a_journal_gives_the_same_schedule(algorithm: str, seed: int, wishes: dict[str, Any]) -> None:
    wishes = {"algorithm": algorithm, "seed": seed, "candidates": 40, **wishes}
    first, again = schedule(**wishes), schedule(**wishes)
    journal = drive(first, random.Random(seed), 100, outcome)
    for deed, leg in journal:
        if deed == "hear":
            again.hear(leg, outcome(leg))
        else:
            assert again.decide(deed) == leg
    assert {deed for deed, _ in journal} == {"ask", "hear", "merge"} | ({"promote"} if "rungs" in wishes else set())
    assert again.candidates == first.candidates
    assert (again.legs, again.heard, again.front) == (first.legs, first.heard, first.front)
    assert again._evolution.population == first._evolution.population
    assert drive(again, random.Random(99), 60, outcome) == drive(first, random.Random(99), 60, outcome)
    assert again.candidates == first.candidates


@pytest.mark.parametrize("seed", range(4))
def test_at_its_end_a_search_owes_nothing(seed: int) -> None:
    steps = [10, 20, 40]
    halving = schedule(rungs=steps, candidates=40, seed=seed)
    drive(halving, random.Random(seed), 10_000, outcome)
    assert halving.option(always) is None
    assert halving.heard == set(halving.legs)
    assert len(set(halving.legs)) == len(halving.legs)
    mine = [leg for leg in halving.legs if halving.candidates[leg.candidate].kind == "trained"]
    begun = {rung: [leg for leg in mine if leg.steps == rung] for rung in steps}
    succeeded = {rung: sum(bool(outcome(leg)) for leg in begun[rung]) for rung in steps}
    assert len(begun[10]) == 40
    assert len(begun[20]) == succeeded[10] // 2
    assert len(begun[40]) == succeeded[20] // 2
    assert len(halving.legs) - len(mine) == 1 + MERGERS * succeeded[40]
    everything = [e for leg in halving.legs for e in outcome(leg)]
    whole = archive.front(everything, config().objectives, (), FULL)
    assert {e.entry for e in halving.front} == {e.entry for e in whole}


@pytest.mark.parametrize("inheritance", [False, True])
def test_what_is_made_of_a_seed_starts_from_its_weights_and_has_its_steps_in_its_lineage(inheritance: bool) -> None:
    other = schedule(seed=1)
    genes = other.candidates[decided(other, "ask").candidate].genes
    begun = Schedule(config(merging=False, population=2, inheritance=inheritance), [Forerunner("old/c0007", genes, 90)])
    first, second = decided(begun, "ask"), decided(begun, "ask")
    assert begun.candidates[first.candidate].parents == begun.sources(first.candidate) == ("old/c0007",)
    assert (begun.sources(second.candidate), begun.lineage_steps(second.candidate)) == ((), FULL)
    assert begun.lineage_steps(first.candidate) == FULL + 90
    for n, leg in enumerate((first, second)):
        begun.hear(leg, scored(leg, trade_off(n)))
    child = decided(begun, "ask").candidate
    parent = begun.candidates[child].parents[0]
    assert begun.sources(child) == ((parent,) if inheritance else ())
    assert begun.lineage_steps(child) == FULL + (begun.lineage_steps(parent) if inheritance else 0)


def fused(schedule: Schedule) -> list[Candidate]:
    """All the fusions that are due, heard of as points that nobody needs."""
    found = []
    while schedule.option(never) == "fuse":
        leg = decided(schedule, "fuse")
        schedule.hear(leg, scored(leg, (0.05, 0.05)))
        found.append(schedule.candidates[leg.candidate])
    return found


def test_fusions_come_when_all_else_has_ended_and_time_does_not_stop_them() -> None:
    plain = schedule(candidates=3, merging=False, fusions=3)
    trained(plain, (0.2, 0.8))
    trained(plain, (0.5, 0.5))
    last = decided(plain, "ask")
    assert plain.option(always) is None  # it may yet be a member
    plain.hear(last, scored(last, (0.8, 0.2)))
    assert plain.option(always) == plain.option(never) == "fuse"
    assert decided(plain, "fuse") == Leg("f0000", FULL)
    assert plain.option(always) == "fuse"  # it waits for no other fusion
    assert [f.id for f in fused(plain)] == ["f0001", "f0002"]
    assert plain.option(always) is None


def test_one_checkpoint_alone_is_not_fused_and_without_a_wish_none_is() -> None:
    alone = schedule(candidates=1, merging=False, fusions=3)
    trained(alone, (0.2, 0.8))
    assert alone.option(always) is None
    plain = schedule(candidates=2, merging=False)
    trained(plain, (0.2, 0.8))
    trained(plain, (0.8, 0.2))
    assert plain.option(always) is None


def test_the_first_fusion_chooses_among_the_most_accurate_and_the_others_among_any_of_the_front() -> None:
    plain = schedule(candidates=12, merging=False, fusions=101, population=12)
    legs = [trained(plain, trade_off(n), (0.0, 0.99)) for n in (5, 1, 7, 2, 8, 3, 9, 4, 10, 6)]
    trained(plain, (0.01, 0.01))  # is not on the front
    first, *others = fused(plain)
    best = sorted(range(10), key=lambda i: -(5, 1, 7, 2, 8, 3, 9, 4, 10, 6)[i])
    assert first == Candidate("f0000", {}, tuple(legs[i].candidate for i in best[:8]), "fused")
    assert {name for f in others for name in f.parents} == {leg.candidate for leg in legs}
    assert {len(f.parents) for f in others} == {2, 3, 4, 5, 6, 7, 8}
    assert all(len(set(f.parents)) == len(f.parents) and not f.genes for f in others)
    assert len({frozenset(f.parents) for f in (first, *others)}) == 101
    assert plain.sources("f0000") == first.parents
    assert plain.lineage_steps("c0001", "c0002") == 2 * FULL


def test_a_fusion_that_is_better_than_its_members_leaves_them_to_the_next_one() -> None:
    plain = schedule(candidates=3, merging=False, fusions=3)
    names = {trained(plain, trade_off(n)).candidate for n in (1, 5, 9)}
    for number in range(3):
        leg = decided(plain, "fuse")
        assert leg.candidate == f"f000{number}"
        plain.hear(leg, scored(leg, (0.9, 0.9 + 0.01 * number)))
        assert [e.candidate for e in plain.front] == [leg.candidate]
        assert {e.candidate for e in plain.single} == names
        assert set(plain.candidates[leg.candidate].parents) <= names


def test_no_pool_is_fused_twice() -> None:
    plain = schedule(candidates=3, merging=False, fusions=12)
    for n in (1, 5, 9):
        trained(plain, trade_off(n))
    pools = [set(f.parents) for f in fused(plain)]
    assert sorted(map(sorted, pools)) == [
        ["c0001", "c0002"],
        ["c0001", "c0002", "c0003"],
        ["c0001", "c0003"],
        ["c0002", "c0003"],
    ]
    assert pools[0] == {"c0001", "c0002", "c0003"}
    assert plain.option(always) is None


def test_what_is_fused_is_neither_merged_nor_fused_again() -> None:
    plain = begun(candidates=4, fusions=1)
    trained(plain, (0.2, 0.8))
    trained(plain, (0.8, 0.2))
    for leg in merged(plain):
        plain.hear(leg, [])
    leg = decided(plain, "fuse")
    plain.hear(leg, scored(leg, (0.7, 0.7), (0.6, 0.75), (0.75, 0.6)))
    assert {e.candidate for e in plain.front} == {"c0001", "c0002", "f0000"}
    assert {e.candidate for e in plain.single} == {"c0001", "c0002"}
    assert {parent for m in mergers(plain, 30) for parent in m.parents} == {"c0001", "c0002"}
