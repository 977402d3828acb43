"""What a front needs and what it is compared with: components before the search, baselines and test scores after it.

It asks the workers by the names of their methods, and needs nothing of theirs to be loaded here.
"""

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from pareto_search import checkpoint, refreshing, results
from pareto_search.archive import choose
from pareto_search.candidate import Evaluation, Genes
from pareto_search.entry import BASE, VECTORS, WHOSE
from pareto_search.errors import DamageError
from pareto_search.executor import Files
from pareto_search.fusion import weights_of
from pareto_search.objective import Constraint, Values, is_feasible
from pareto_search.recsys.inner_search import search_settings
from pareto_search.render import write
from pareto_search.report import report
from pareto_search.results import Document
from pareto_search.search import Search
from pareto_search.space import BLENDED, SASREC, START, TEXT

EARLY = "early-start"
"""The component that is the warm start's first towers, until the others are there."""
BASELINES = ("popularity", "item-knn", "ease", SASREC, "frozen-encoder", TEXT, START)
CURVES: Mapping[str, Sequence[tuple[str, tuple[str, ...]]]] = {
    "practitioner": (("ease", ()), (SASREC, ()), (SASREC, ("ease",))),
    START: ((START, BLENDED),),
}
"""What the front is compared with: for each curve its models, with the components blended into each. A component that
was not fitted is left out.
"""
TARGETED = ((TEXT, ()), (TEXT, ("ease",)), (SASREC, ("ease", TEXT)))
"""What a practitioner would try as well where a target's items have little but their text."""
SQUARE = ("item-knn", "ease")
"""Baselines that grow with the square of the catalogue, and are left out where it is large."""
CURVE_SETTINGS = 4
"""A baseline's inner search has this many times the settings of a candidate's: it has no earlier one to start from,
and what it finds for the warm start is where all candidates start."""
EARLY_SETTINGS = 2
"""The same for the warm start's first towers, for which all others wait."""


Call = tuple[Any, ...]
"""A method's name and its arguments."""


class Workers(Protocol):
    """Those who do the work; see `workers.worker.Worker`."""

    def map(self, calls: Sequence[Call], *shared: object) -> list[Any]:
        """The results of some calls in their order, each made by whoever is free; `shared` are further arguments."""
        ...

    def each(self, calls: Iterable[Call], *shared: object) -> Iterator[tuple[int, Any]]:
        """The place and the result of each call, as they come; a call is taken when somebody is free."""
        ...

    def tell_all(self, method: str, *arguments: object) -> None:
        """A call to every worker, and to each that replaces one later."""
        ...


class Comparison:
    """What a search's front is compared with, and how all of them do on test.

    Args:
        notice: is told in one line what happens.
    """

    def __init__(self, run: Path, search: Search, pool: Workers, notice: Callable[[str], None]) -> None:
        self._run, self._search, self._pool, self._notice = run, search, pool, notice
        self._store, self._config = search.store, search.config

    def prepare_early(self) -> None:
        """Fits what the first candidate needs where that is a part of the warm start, and finds its curve."""
        if self._store.fact("components") is None:
            count = self._search.early_towers
            self._notice(f"Fitting the first {count} of {self._config.model.towers} towers of the warm start.")
            self._fit(EARLY, range(count), self._config.blended)
        self._equip(EARLY)
        self._notice("Finding their curve.")
        self._teach(self._start_curve(EARLY_SETTINGS))

    def prepare(self) -> None:
        """Fits what all candidates need and finds the warm start's curve, once per run."""
        components = self._store.fact("components") or {}
        if EARLY in components:
            self._notice("Fitting the other towers of the warm start.")
            self._fit(START, range(self._search.early_towers, self._config.model.towers), onto=EARLY)
        elif START not in components:
            self._notice(f"Fitting the warm start, and {', '.join(self._config.blended)} to blend in.")
            self._fit(START, range(self._config.model.towers), self._config.blended)
        elif TEXT not in components:  # an older release had it for a target alone
            self._keep({TEXT: self._pool.map([("fit", TEXT)])[0]})
        self._equip()
        if self._store.fact("curves") is None:
            self._notice("Finding the warm start's curve.")
            old = self._old_curve()
            self._put("curves", {START: self._start_curve(CURVE_SETTINGS)} | ({"old": old} if old else {}))
        # A fine-tuned candidate is not far from the warm start, so what served the one well serves the other.
        self._teach(self._store.fact("curves")[START])

    def finish(self, retrain: bool) -> Document:
        """Finds the baselines' curves, for which no candidate has waited; looks at the test part, once, for the chosen
        entries and for all of these; writes what is seen.
        """
        if self._store.fact("baselines") is None:
            self._notice("Fitting what is left of the baselines, and finding their curves.")
            self._fit_baselines()
        self._notice("Scoring the front and the baselines on test.")
        with self._store.transaction() as record:
            record.count_test_evaluation()
        entries = self._test_front()
        baselines, curves = self._store.fact("baselines"), self._store.fact("curves")
        self._test([*baselines, *(point for name, points in curves.items() if name != "old" for point in points)])
        self._score_old("test", curves.get("old", []))
        front = self._write(entries, baselines, curves)
        if retrain:  # what goes wrong there does not cost the front
            self._notice("Training what inherited weights from scratch, as a control.")
            self._retrain(entries)
            front = self._write(entries, baselines, curves)
        return front

    def _write(
        self, entries: Sequence[Document], baselines: Sequence[Document], curves: Mapping[str, Sequence[Document]]
    ) -> Document:
        """Writes the report and front.json, whose content it returns."""
        config, store = self._config, self._store
        front = results.document(store.search, config.objectives, entries, baselines, curves)
        moments = results.moments(store, config.objectives, config.constraints, config.search.steps)
        full = [e for e in store.evaluations() if e.steps == config.search.steps]
        write(report(front, full, moments), self._run / "report.html")
        results.save(front, self._run)  # the last: with it the run is whole
        return front

    def _fit(self, name: str, towers: Sequence[int], others: Sequence[str] = (), onto: str | None = None) -> None:
        """Fits some towers of the warm start, to which those of another component belong too, and other components."""
        found = self._pool.map([*(("fit", START, n) for n in towers), *(("fit", other) for other in others)])
        before = [] if onto is None else [checkpoint.read(self._run / "components" / onto)]
        [joined] = self._pool.map([("join", before + found[: len(towers)])])
        self._keep({name: joined, **dict(zip(others, found[len(towers) :], strict=True))}, without=onto)

    def _start_curve(self, settings: int) -> list[Document]:
        """The points that stand for the curve of the warm start that the workers have."""
        calls = self._curve_calls(CURVES[START], {*self._store.fact("components"), START}, settings)
        found = {call: self._together(*call[1:]) for call in calls}
        curve = self._curve(calls, found)
        if not curve:
            self._tell_of_emptiness([values for tried in found.values() for _, values in tried])
        return curve

    def _tell_of_emptiness(self, values: Sequence[Values]) -> None:
        """No setting of the warm start is feasible, and its candidates are not far from it."""
        bounds = [Constraint(o.name, o.direction == "maximise", o.reference) for o in self._config.objectives]
        best = {c: min((v[c.metric] for v in values), key=c.violation) for c in (*bounds, *self._config.constraints)}
        missed = [f"{c} (it has {value:.4g})" for c, value in best.items() if c.violation(value)]
        what = " or ".join(missed) or f"all of {', '.join(map(str, best))} at once"
        self._notice(
            f"No setting of the warm start keeps {what}, so the front may stay empty: loosen the references or "
            "constraints of the config, in a new run folder."
        )

    def _teach(self, curve: Sequence[Document]) -> None:
        self._pool.tell_all("teach", [point["serving"] for point in curve], [point["validation"] for point in curve])

    def _keep(self, fitted: Mapping[str, Files | None], without: str | None = None) -> None:
        """Adds components to those of the run, and removes one; one that the catalogue is too large for is left out."""
        folder = self._run / "components"
        sums = {name: checkpoint.write(folder / name, files) for name, files in fitted.items() if files is not None}
        before = {name: old for name, old in (self._store.fact("components") or {}).items() if name != without}
        self._put("components", before | sums)

    def _equip(self, start: str = START) -> None:
        """Gives the workers all components that there are, one of them as the warm start."""
        folder, components = self._run / "components", self._store.fact("components")
        checkpoint.sweep(folder, components)  # what is in the place of another, and what a crash has left
        self._pool.tell_all("equip", {START if n == start else n: checkpoint.read(folder / n) for n in components})

    def _put(self, fact: str, value: object) -> None:
        with self._store.transaction() as record:
            record.put_fact(fact, value)

    def _fit_baselines(self) -> None:
        components = self._store.fact("components")
        targeted = TARGETED if self._config.data.target is not None else ()
        curve_calls = self._curve_calls((*CURVES["practitioner"], *targeted), {*components, SASREC})
        value_calls = [("baseline", name) for name in BASELINES if "ease" in components or name not in SQUARE]
        calls = [*curve_calls, *value_calls]
        found: dict[Call, Any] = {}
        if SASREC not in components:  # what does not need it does not wait for it
            fit = ("fit", SASREC)
            found = self._found([fit, *(call for call in calls if call[1] != SASREC)])
            self._keep({SASREC: found[fit]})
            self._equip()
        found |= self._found([call for call in calls if call not in found])
        curve = self._curve(curve_calls, found)
        values = [{"name": call[1], "validation": found[call]} for call in value_calls]
        with self._store.transaction() as record:
            record.put_fact("curves", {"practitioner": curve} | self._store.fact("curves"))
            record.put_fact("baselines", values)

    def _found(self, calls: Sequence[Call]) -> dict[Call, Any]:
        """What the workers answer to some calls."""
        return dict(zip(calls, self._pool.map(calls), strict=True))

    def _together(self, model: str, blend: Sequence[str], count: int) -> list[tuple[Genes, Values]]:
        """A curve as one worker finds it, by all of them: each evaluates a share of every round."""
        config = self._config

        def evaluate(settings: Sequence[Genes]) -> list[Values]:
            share = -(-len(settings) // config.workers.count)
            shares = [settings[start : start + share] for start in range(0, len(settings), share)]
            found = self._pool.map([("curve_values", model, blend, mine) for mine in shares])
            return [values for mine in found for values in mine]

        # From each, since all of them are about to need what one needs for it, and would wait for that one meanwhile.
        space = self._pool.map([("curve_space", model, blend)] * config.workers.count)[0]
        return search_settings(
            evaluate,
            space,
            config.objectives,
            constraints=config.constraints,
            count=count,
            seed=config.search.seed,
        )

    def _curve_calls(
        self, models: Sequence[tuple[str, Sequence[str]]], components: Container[str], settings: int = CURVE_SETTINGS
    ) -> list[Call]:
        """What is asked of the workers for a curve: a call for each of its models that is there."""
        blends = [(m, tuple(b for b in blend if b in components)) for m, blend in models if m in components]
        count = settings * self._config.search.serving_settings
        return [("curve", *blend, count) for blend in dict.fromkeys(blends)]

    def _curve(self, calls: Sequence[Call], found: Mapping[Call, Any]) -> list[Document]:
        """The points that stand for a curve, of what was found for its models."""
        return self._shortlist(
            [
                {"name": "+".join((call[1], *call[2])), "serving": dict(setting), "validation": dict(scores)}
                for call in calls
                for setting, scores in found[call]
            ]
        )

    def _old_curve(self) -> list[Document]:
        """The older front's entries that stand for it on validation now, the most accurate first."""
        old = [
            {"name": e["entry"], **{k: e[k] for k in ("candidate", "serving")}} for e in refreshing.entries(self._run)
        ]
        if not old:
            return []
        self._score_old("validation", old)
        best = self._config.objectives[0]
        return sorted(self._shortlist(old), key=lambda p: -best.normalise(p["validation"][best.name]))

    def _shortlist(self, points: Sequence[Document]) -> list[Document]:
        """The points of a curve that stand for it: as many as the front has, chosen in the same way."""
        objectives = self._config.objectives
        kept = [p for p in points if is_feasible(p["validation"], objectives, self._config.constraints)]
        return [kept[i] for i in choose([p["validation"] for p in kept], objectives, results.ENTRIES)]

    def _test_front(self) -> list[Document]:
        chosen, fuses = self._chosen()
        mine: dict[str, list[Evaluation]] = {}
        for evaluation in chosen:
            mine.setdefault(evaluation.candidate, []).append(evaluation)
        tested = self._tested({name: [e.serving for e in several] for name, several in mine.items()})
        candidates = {c.id: c for c in self._store.candidates()}
        seconds: dict[str, float] = defaultdict(float)
        for attempt in self._store.attempts():
            seconds[attempt.candidate] += attempt.seconds or 0.0
        steps = self._search.schedule.lineage_steps
        members = {
            name: {m: {"weight": weight, "lineage_steps": steps(m)} for m, weight in fuses[name].items()}
            for name in mine
        }
        lineage = {name: steps(*(fuses[name] or [name])) for name in mine}
        return [
            results.entry(evaluation, candidates[name], lineage[name], seconds[name], scores, fuses=members[name])
            for name, several in mine.items()
            for evaluation, scores in zip(several, tested[name], strict=True)
        ]

    def _tested(self, settings: Mapping[str, Sequence[Genes]]) -> dict[str, list[Document]]:
        """The scores on test of checkpoints under some settings each. Their item vectors are kept, so that entries can
        be served without the base model, which a machine without a GPU may be too slow for.
        """
        folder, names, digests = self._run / VECTORS, list(settings), dict[str, str]()

        def calls() -> Iterator[Call]:
            for name in names:
                files = checkpoint.read(self._search.checkpoints / name)
                digests[name] = checkpoint.digest(files)
                yield "reported", files, settings[name]

        # Read one by one, and written as they come: with a large catalogue, all of them may not fit into memory.
        tested: dict[str, list[Document]] = {}
        for place, (scores, vectors) in self._pool.each(calls()):
            name = names[place]
            checkpoint.write(folder / name, {**vectors, WHOSE: digests[name].encode()})
            tested[name] = scores
        [features] = self._pool.map([("features",)])
        if features is not None:
            checkpoint.write(folder / BASE, features)
        checkpoint.sweep(folder, {*names, BASE})
        return tested

    def _chosen(self) -> tuple[list[Evaluation], dict[str, Mapping[str, float]]]:
        """The entries that are reported, and what their checkpoints fuse: one that was damaged costs its own alone."""
        front, fuses = self._search.front, dict[str, Mapping[str, float]]()
        while True:
            chosen = results.chosen(front, self._config.objectives)
            try:
                for name in {e.candidate for e in chosen} - fuses.keys():
                    fuses[name] = weights_of(checkpoint.read(self._search.checkpoints / name))
            except DamageError as error:
                self._notice(f"Left out of the front: {error}, delete front.json and resume to have it back.")
                front = [e for e in front if e.candidate != name]
            else:
                return chosen, fuses

    def _score_old(self, part: Literal["validation", "test"], points: Sequence[Document]) -> None:
        """Adds the scores on a part to an older front's entries, which blend in the components of their own search."""
        mine: dict[str, list[Document]] = {}
        for point in points:
            mine.setdefault(point["candidate"], []).append(point)
        folder = self._run / refreshing.FOLDER
        components = {n: checkpoint.read(folder / n) for n in BLENDED if (folder / n).is_dir()}
        method = "test" if part == "test" else "validated"
        calls = [(method, checkpoint.read(folder / n), [p["serving"] for p in several]) for n, several in mine.items()]
        for several, scores in zip(mine.values(), self._pool.map(calls, components), strict=True):
            for point, score in zip(several, scores, strict=True):
                point[part] = score

    def _retrain(self, entries: Sequence[Document]) -> None:
        """Adds to entries whose checkpoint inherited weights what the same genes and steps give from the warm start,
        unless they give nothing.
        """
        mine: dict[str, list[Document]] = {}
        for entry in entries:
            if entry["kind"] == "trained" and entry["lineage_steps"] > entry["steps"]:
                mine.setdefault(entry["candidate"], []).append(entry)
        calls = [
            (
                "retrained",
                self._search.schedule.candidates[n],
                several[0]["lineage_steps"],
                [e["serving"] for e in several],
            )
            for n, several in mine.items()
        ]
        for several, scores in zip(mine.values(), self._pool.map(calls), strict=True):
            if scores is None:
                self._notice(f"{several[0]['candidate']} diverges when it is trained from scratch.")
                continue
            for entry, (validation, tested) in zip(several, scores, strict=True):
                entry["retrained"] = {"validation": validation, "test": tested}

    def _test(self, points: Sequence[Document]) -> None:
        """Adds the scores on test to points of baselines, one call a model."""
        mine: dict[str, list[Document]] = {}
        for point in points:
            mine.setdefault(point["name"].split("+")[0], []).append(point)
        calls = [("test_baseline", name, [p.get("serving", {}) for p in several]) for name, several in mine.items()]
        for several, scores in zip(mine.values(), self._pool.map(calls), strict=True):
            for point, score in zip(several, scores, strict=True):
                point["test"] = score
