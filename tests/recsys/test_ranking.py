"""Ranking a part under many settings."""

from dataclasses import replace

import numpy as np
import pytest
from items import sequences

from pareto_search.candidate import Genes
from pareto_search.recsys import ranking
from pareto_search.recsys.ranking import Ranking
from pareto_search.recsys.split import Part, Sequences
from pareto_search.recsys.statistics import ItemStatistics
from pareto_search.space import Gene, SearchSpace

GENES = (Gene("diversity", "real", "serving", high=0.98), Gene("ease", "real", "serving"))
SPACE = SearchSpace(GENES, {}, {g.name: g.role for g in GENES})


class Fixed:
    """Scores users by their last item: item i is followed by i + 1, i + 2, …"""

    logits = True
    parameters, training = 7, {"c0001": 2e12, "c0003": 1e12}

    def scores(self, history: Sequences) -> np.ndarray:
        last = history.items[history.indptr[1:] - 1]
        return np.array([[-((i - own) % 6) for i in range(6)] for own in last], np.float32)


def part() -> Part:
    history = sequences([0], [4, 0, 2], [3, 1], [0, 5], [2])
    return Part(np.arange(5, dtype=np.int32), history, sequences([1], [4], [2, 5], [0], [1]))


ITEMS = ItemStatistics(np.arange(6), np.linspace(0, 1, 6).astype(np.float32), None, np.eye(6, dtype=np.float32))
METRICS = ["ndcg@2", "hr@2", "coverage@2"]


def test_groups_go_with_their_users_through_all_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    # Users 0 and 3 find their target at once, user 2 one of two, users 1 and 4 none in two places.
    grouped = replace(part(), groups={"town": np.array(["Ulm", "Rom", "Ulm", "Ulm", "Rom"])})
    names = ["hr@2[town=Ulm]", "hr@2[town=Rom]", "hr@2[town]", "hr@2"]
    whole = Ranking(grouped, ITEMS, {"model": Fixed()}).values([{}], [*names, "hr@2"])[0]
    alone = Ranking(part(), ITEMS, {"model": Fixed()}).tallies([{}], ["hr@2"])[0].per_user()["hr@2"]
    assert whole["hr@2[town=Ulm]"] == pytest.approx(alone[[0, 2, 3]].mean())
    assert whole["hr@2[town=Rom]"] == pytest.approx(alone[[1, 4]].mean())
    assert whole["hr@2[town]"] == pytest.approx(abs(alone[[0, 2, 3]].mean() - alone[[1, 4]].mean())) != 0
    monkeypatch.setattr(ranking, "CHUNK", 12)  # two users at a time
    assert Ranking(grouped, ITEMS, {"model": Fixed()}).values([{}], [*names, "hr@2"])[0] == whole


def test_values_by_hand() -> None:
    # After the masked history, the lists start 0->[1, 2], 2->[3, 4] (its target 4 is in the history, and stays),
    # 1->[2, 4] (3 is seen), 5->[0, 1] (0 is the target again) and 2->[3, 4].
    # NDCG: 1, 1/log2(3), 1/(1 + 1/log2(3)), 1, 0. Items 0 to 4 of 6 appear.
    second = 1 / np.log2(3)
    values = Ranking(part(), ITEMS, {"model": Fixed()}).values([{}], METRICS)[0]
    assert values["ndcg@2"] == pytest.approx((1 + second + 1 / (1 + second) + 1 + 0) / 5)
    assert values["hr@2"] == 4 / 5
    assert values["coverage@2"] == 5 / 6


def test_a_target_that_is_bought_again_is_not_masked() -> None:
    again = Part(np.array([0], np.int32), sequences([2, 3]), sequences([3]))
    only = Ranking(again, ITEMS, {"model": Fixed()}).values([{}], ["ndcg@1"])[0]
    assert only == {"ndcg@1": 1.0}


def test_chunks_of_users_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: list[Genes] = [{}, {"diversity": 0.5}]
    whole = Ranking(part(), ITEMS, {"model": Fixed()}).values(settings, METRICS)
    for name, most in (("CHUNK", 2 * 6), ("USERS", 2)):  # two users at once
        with monkeypatch.context() as few:
            few.setattr(ranking, name, most)
            assert Ranking(part(), ITEMS, {"model": Fixed()}).values(settings, METRICS) == whole


def test_each_setting_is_blended_from_the_same_scores() -> None:
    class Backwards(Fixed):
        def scores(self, history: Sequences) -> np.ndarray:
            return -super().scores(history)

    both = Ranking(part(), ITEMS, {"model": Fixed(), "ease": Backwards()})
    alone, cancelled, turned = both.values([{}, {"ease": 0.5}, {"ease": 2.0}], METRICS)
    assert alone == cancelled  # half of the opposite leaves the order
    assert turned["ndcg@2"] < alone["ndcg@2"]


def test_fitted_genes_take_their_likeliest_values_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    space = SearchSpace(GENES[:1], {}, SPACE.roles, ("sharpness",))
    whole = Ranking(part(), ITEMS, {"model": Fixed()}).fitted(space)
    assert whole.genes == space.genes
    assert 0.05 < float(whole.fixed["sharpness"]) < 5
    monkeypatch.setattr(ranking, "CHUNK", 2 * 6)
    apart = Ranking(part(), ITEMS, {"model": Fixed()}).fitted(space)
    assert apart.fixed == pytest.approx(whole.fixed, rel=1e-4)
    monkeypatch.setattr(ranking, "KEPT", 2 * 6)  # the first two users alone
    few = Ranking(part(), ITEMS, {"model": Fixed()}).fitted(space)
    assert few.fixed != pytest.approx(whole.fixed, rel=1e-2)


def test_only_what_is_offered_is_ranked() -> None:
    # Items 0 and 3 are not offered, though user 3 wants item 0: what is wanted stays in the race.
    some = replace(ITEMS, offered=np.array([False, True, True, False, True, True]))
    lists = Ranking(part(), some, {"model": Fixed()}).tallies([{}], ["coverage@2", "hr@2"])[0]
    by_hand = [[1, 2], [4, 5], [2, 4], [0, 1], [4, 5]]
    assert lists.values()["coverage@2"] == 1.0  # of the four that are offered
    wanted = [{1}, {4}, {2, 5}, {0}, {1}]
    assert lists.per_user()["hr@2"].tolist() == [float(bool(set(b) & w)) for b, w in zip(by_hand, wanted, strict=True)]


def test_probabilities_are_judged_as_the_setting_makes_them() -> None:
    # Users 0 and 3 have their target first, user 2 one of two. A model that is all but certain is wrong about the rest.
    values = Ranking(part(), ITEMS, {"model": Fixed()}).values([{"sharpness": 20.0}, {"sharpness": 1e-6}], ["ece@1"])
    assert values[0]["ece@1"] == pytest.approx(2.5 / 5, abs=1e-3)
    # One that knows nothing gives all of the 5, 4, 4, 5 and 5 items that are left the same, which is too little.
    assert values[1]["ece@1"] == pytest.approx((2.5 - (3 / 5 + 2 / 4)) / 5, abs=1e-3)


def test_costs_count_what_a_setting_uses() -> None:
    class Large(Fixed):
        parameters, training = 100, {"c0001": 2e12, "c0002": 4e12}

    both = Ranking(part(), ITEMS, {"model": Fixed(), "ease": Large()})
    settings: list[Genes] = [{}, {"ease": 0.0}, {"ease": 0.5}]
    found = both.values(settings, ["hr@2", "parameters", "training"])
    assert [v["parameters"] for v in found] == [7, 7, 107]
    assert [v["training"] for v in found] == [3, 3, 7]  # what both come from is trained once


def test_latency_is_that_of_what_a_setting_uses_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(ranking.time, "perf_counter", lambda: clock[0])

    class Slow(Fixed):
        def scores(self, history: Sequences) -> np.ndarray:
            clock[0] += 0.05
            return super().scores(history)

    both = Ranking(part(), ITEMS, {"model": Fixed(), "ease": Slow()})
    assert both.costs({"ease": 0.5}, ["latency"]) == {"latency": pytest.approx(50)}
    assert both.costs({"ease": 0.0}, ["latency"]) == {"latency": 0}
    taken = clock[0]
    assert both.costs({"ease": 1.0, "diversity": 0.5}, ["latency"]) == {"latency": pytest.approx(50)}
    assert clock[0] == taken
    assert both.costs({}, ["hr@2"]) == {}


def test_what_is_not_there_to_be_blended_is_not_fitted() -> None:
    space = SearchSpace(GENES[:1], {}, {**SPACE.roles, "text": "serving"}, ("ease", "text"))
    found = Ranking(part(), ITEMS, {"model": Fixed(), "ease": Fixed()}).fitted(space)
    assert found.fixed.keys() == {"ease"}
