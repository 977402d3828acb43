"""A worker: a resident base model that fits components, and trains and scores one candidate after another."""

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

import numpy as np
import torch

from pareto_search import __version__
from pareto_search.archive import worthy
from pareto_search.candidate import Attempt, Candidate, Evaluation, Genes
from pareto_search.errors import DivergedError
from pareto_search.executor import Files, Result
from pareto_search.fusion import fused
from pareto_search.objective import Values
from pareto_search.recsys import baselines
from pareto_search.recsys.baselines import ItemSimilarity, Scorer
from pareto_search.recsys.dataset import LARGEST_SQUARE
from pareto_search.recsys.inner_search import search_settings
from pareto_search.recsys.metrics import PerUser
from pareto_search.recsys.ranking import Ranking
from pareto_search.recsys.rerank import Reranker
from pareto_search.recsys.split import SAME_MOMENT, Part
from pareto_search.recsys.statistics import ItemStatistics, category_features
from pareto_search.space import TEXT, SearchSpace
from pareto_search.workers.base import locate
from pareto_search.workers.distillation import Teacher
from pareto_search.workers.encoder import Encoder, precision
from pareto_search.workers.evaluate import (
    Scores,
    blended,
    component,
    feature_files,
    score,
    scorer,
    similarity_files,
    text_files,
    training_of,
    vector_files,
)
from pareto_search.workers.lora import LoraShape, fresh
from pareto_search.workers.losses import ItemTensors
from pareto_search.workers.merge import merge
from pareto_search.workers.pack import Pack
from pareto_search.workers.patience import patiently
from pareto_search.workers.prefix_cache import shared_prefixes
from pareto_search.workers.recommender import Recommender, Shape, TowerScorer, joined
from pareto_search.workers.reranker import DeviceReranker
from pareto_search.workers.task import Task
from pareto_search.workers.train import OPTIMISER, FineTuning, fine_tune, train_tower
from pareto_search.workers.workload import TowerKind, Workload

DRAWS = 8
"""How many members a fusion draws, the same ones perhaps several times."""
SASREC_EPOCHS = 18
WARM_START_EPOCHS = 12
LEAST_STEPS = 40
"""Of either, where so little data is there that an epoch is a batch or two."""
DROPOUT, TIED_DROPOUT = 0.3, 0.1
"""Of the towers; less is best where much of the data is tied, because each epoch orders ties anew: noise of its own."""
TIED = 0.2
"""The share of interactions at the same moment as the one before them from which on much is tied."""


class Course(TypedDict):
    """How a fine-tuning goes: see `fine_tune`."""

    steps: int
    seed: int
    source: Files | None


Components = Mapping[str, Files]
"""Name -> files of what workers share: `warm-start`, what is blended in, and in the end SASRec, to compare with."""


class Worker:
    """One process's share of the work. Its methods are called one at a time.

    Args:
        cpus: threads of the numerical libraries.
        device: where the base model lives.
        scratch: the `scratch.name` under which workers on one machine share what they need alike; None for none of it.
    """

    def __init__(self, load: Workload, cpus: float = 1.0, device: str = "cpu", scratch: str | None = None) -> None:
        torch.set_num_threads(max(1, int(cpus)))
        self.load, self.device = load, device
        self.base = locate(load.base, load.revision)
        self.encoder = Encoder(
            self.base,
            load.texts,
            max_tokens=load.max_item_tokens,
            layers=load.layers,
            dtype=precision(load.dtype, device),
            nf4=load.dtype == "nf4",
            device=device,
            # A GPU needs its own copy in any case.
            cache=None if scratch is None or device != "cpu" else shared_prefixes(scratch),
        )
        features = self.encoder.frozen.numpy() if load.categories is None else category_features(load.categories)
        self.items = ItemStatistics.of(load.split.train, load.split.n_items, features, load.split.offered)
        self._reranker = Reranker(self.items) if device == "cpu" else DeviceReranker(self.items, device)
        self.known: Sequence[Genes] = ()
        self.covered: Sequence[Values] = ()
        self.components: dict[str, Scorer] = {}
        self._latest: tuple[str, Sequence[str], Ranking] | None = None
        self._start_per_user: dict[str, PerUser] | None = None
        self._lock = threading.Lock()

    def identity(self, *_: object) -> str:
        """The release, and the base model's bytes, precision and pooling, which all workers of a search must share.

        Args:
            _: results of earlier calls, which whoever asks wants to have ended.
        """
        return f"{__version__} {self.base.sha256} {self.encoder.kept} {self.encoder.pooling}"

    def precision(self) -> str:
        """What the base model is kept in, whatever the config leaves open."""
        return self.encoder.kept

    def fit(self, name: str, number: int | None = None) -> dict[str, bytes] | None:
        """The files of a component, trained here; None where the catalogue is too large for it.

        Args:
            number: which of the warm start's towers, to be `joined` with those that others train; None for all.
        """
        split, seed = self.load.split, self.load.seed
        if name == "warm-start" and number is None:
            towers = [self.fit(name, tower) for tower in range(self.load.towers)]
            return joined([files for files in towers if files])
        if name == "ease":
            if split.n_items > LARGEST_SQUARE:
                return None
            return similarity_files(baselines.ease(split.train, split.n_items).weights)
        if name == TEXT:
            return text_files(baselines.whitened(self.encoder.frozen.numpy(), split.offered))
        text = None if name == "sasrec" else self.encoder.frozen.to(self.device)
        epochs = SASREC_EPOCHS if name == "sasrec" else WARM_START_EPOCHS
        # SASRec is the attention tower on IDs alone, whatever tower the candidates have.
        tower: TowerKind = "attention" if name == "sasrec" else self.load.tower
        width = 0 if text is None else self.encoder.width
        gaps = tower == "attention" and bool(width) and self.load.time_gaps and split.train.gaps is not None
        tied = gaps and np.mean(split.train.gaps == SAME_MOMENT) >= TIED
        shape = Shape(
            split.n_items,
            self.load.width,
            self.load.history,
            tower,
            width,
            item_embeddings=True,
            gaps=gaps,
            dropout=TIED_DROPOUT if tied else DROPOUT,
            groups=tuple(map(len, split.groups.values())) if tower == "attention" and width else (),
        )
        model = train_tower(
            shape,
            text,
            split.train,
            epochs=epochs,
            least=LEAST_STEPS,
            seed=_seed(seed, f"tower {number}") if number else seed,
            dtype=self.encoder.dtype,
            device=self.device,
            offered=split.offered,
        )
        return model.files(self._notes({"component": name}))

    def join(self, towers: Sequence[Files]) -> dict[str, bytes]:
        """The warm start with these towers, which were fitted one by one."""
        return joined(towers)

    def equip(self, components: Components) -> None:
        """Takes the components that were fitted, here or elsewhere."""
        self._latest = None
        self.components = {n: component(f, self.device) for n, f in components.items() if n != "warm-start"}
        if "warm-start" in components:
            start = Recommender.loaded(components["warm-start"]).to(self.device)
            items = ItemTensors(self.items, self.device)
            parts, objectives = self.load.split, self.load.objectives
            ease = self.components.get("ease")
            teacher = Teacher(ease, self.items, parts.validation) if isinstance(ease, ItemSimilarity) else None
            self._task = Task(self.encoder, start, parts.train, items, objectives, parts.offered, teacher)
            self._warm = TowerScorer.of(start, self.encoder.frozen.to(self.device))  # shares its parameters
            self._start_per_user = None

    def teach(self, known: Sequence[Genes], covered: Sequence[Values] = ()) -> None:
        """Takes the settings from which each candidate's inner search starts, those of the curve that was found.

        Args:
            covered: what the warm start has with each of them: its own evaluations, to which those of others are to
                add.
        """
        self.known, self.covered, self._latest = known, covered, None

    def curve(self, name: str, blend: Sequence[str], count: int) -> list[tuple[Genes, Values]]:
        """A baseline's curve on validation: the inner search over re-ranking and the named blends."""
        return self._inner_search(self._of_baseline(name, blend), count, self.load.seed)

    def curve_space(self, name: str, blend: Sequence[str]) -> SearchSpace:
        """The serving genes of such a curve, where the workers find it together."""
        return self._of_curve(name, blend).fitted(self.load.space)

    def curve_values(self, name: str, blend: Sequence[str], settings: Sequence[Genes]) -> list[dict[str, float]]:
        """The values of some of its settings."""
        return self._of_curve(name, blend).values(settings, self.load.metrics)

    def _of_curve(self, name: str, blend: Sequence[str]) -> Ranking:
        """The latest one is kept, because it is asked for time after time."""
        if self._latest is None or self._latest[:2] != (name, blend):
            self._latest = name, blend, self._of_baseline(name, blend)
        return self._latest[2]

    def _of_baseline(self, name: str, blend: Sequence[str]) -> Ranking:
        return self._ranking(self.load.split.validation, self._baseline(name), blend)

    def baseline(self, name: str) -> Values:
        """A baseline's values on validation."""
        return self._of_baseline(name, ()).values([{}], self.load.metrics)[0]

    def test_baseline(self, name: str, settings: Sequence[Genes]) -> list[Scores]:
        """A baseline's scores on test under some settings."""
        return self._on_test({"model": self._baseline(name), **blended(settings, self.components)}, settings)

    def test(self, files: Files, settings: Sequence[Genes], components: Components | None = None) -> list[Scores]:
        """A checkpoint's scores on test under some settings, from its files alone.

        Args:
            components: what the settings blend in, where it is another search's.
        """
        return self._on_test(self._scorers(files, settings, components), settings)

    def reported(self, files: Files, settings: Sequence[Genes]) -> tuple[list[Scores], dict[str, bytes]]:
        """A checkpoint's scores on test under some settings, and the files of the item vectors that they come from."""
        scorers = self._scorers(files, settings)
        return self._on_test(scorers, settings), vector_files(scorers["model"])

    def features(self) -> dict[str, bytes] | None:
        """The file of the base model's vectors, if distances between items are measured by them."""
        return feature_files(self.encoder.frozen.numpy()) if self.load.categories is None else None

    def validated(self, files: Files, settings: Sequence[Genes], components: Components) -> Sequence[Values]:
        """Another search's checkpoint on validation; see `test`."""
        return self._on_validation(self._scorers(files, settings, components), settings)

    def run(self, attempt: Attempt, sources: Sequence[Files] = ()) -> Result:
        """Trains a candidate to a rung, or merges or fuses its parents, and evaluates what comes out.

        Below the full rung the checkpoint alone is scored; at the full one the inner search follows, but for the warm
        start, whose curve all workers have found.

        Args:
            sources: as for `Executor.submit`.

        Raises:
            DivergedError: the loss is not finite.
        """
        began = time.perf_counter()
        candidate = attempt.candidate
        files = self._trained(attempt, sources) if candidate.kind == "trained" else self._made(candidate, sources)
        # Scored from the files, as whoever reloads the checkpoint will; the warm start's curve alone was before.
        evaluations = self._evaluated(attempt, scorer(files, self.encoder))
        return Result(evaluations, files, time.perf_counter() - began)

    def retrained(
        self, candidate: Candidate, steps: int, settings: Sequence[Genes]
    ) -> list[tuple[Values, Scores]] | None:
        """A control: the candidate trained from the warm start for so many steps, or as far as patience lasts, on
        validation and test; None where that diverges.
        """
        with fine_tune(self._task, candidate.genes, steps=steps, seed=_seed(self.load.seed, candidate.id)) as tuning:
            try:
                for stop in self._stops(tuning, [steps]):
                    tuning.advance(stop)
            except DivergedError:
                return None
            notes = self._notes({"training": {candidate.id: tuning.operations}})
            files = tuning.adapter.files(self.load.base, self.load.revision) | tuning.model.files(notes)
        scorers = self._scorers(files, settings)
        return list(zip(self._on_validation(scorers, settings), self._on_test(scorers, settings), strict=True))

    def _on_test(self, scorers: Mapping[str, Scorer], settings: Sequence[Genes]) -> list[Scores]:
        return score(self.load.split.test, self.items, scorers, settings, self.load.metrics)

    def _on_validation(self, scorers: Mapping[str, Scorer], settings: Sequence[Genes]) -> Sequence[Values]:
        ranking = Ranking(self.load.split.validation, self.items, scorers, self._reranker)
        return ranking.values(settings, self.load.metrics)

    def _scorers(
        self, files: Files, settings: Sequence[Genes], components: Components | None = None
    ) -> dict[str, Scorer]:
        """A checkpoint's, and those of the components that any of the settings gives a weight."""
        if components is None:
            return {"model": scorer(files, self.encoder), **blended(settings, self.components)}
        named = {n: component(c, self.device) for n, c in blended(settings, components).items()}
        return {"model": scorer(files, self.encoder), **named}

    def _trained(self, attempt: Attempt, sources: Sequence[Files]) -> dict[str, bytes]:
        """The checkpoint at the attempt's rung; a state, unless that is the full one."""
        with fine_tune(self._task, attempt.candidate.genes, **self._course(attempt, sources)) as tuning:
            for stop in self._stops(tuning, self._rungs(attempt)):
                tuning.advance(stop)
            return self._state(attempt, tuning, sources)

    def _course(self, attempt: Attempt, sources: Sequence[Files]) -> Course:
        """How an attempt's fine-tuning goes."""
        seed = _seed(self.load.seed, attempt.candidate.id)
        return {"steps": self.load.rungs[-1], "seed": seed, "source": next(iter(sources), None)}

    def _rungs(self, attempt: Attempt) -> list[int]:
        """Where a fine-tuning pauses, the attempt's own rung last: the full one unless it says otherwise."""
        return [rung for rung in self.load.rungs if rung <= (attempt.steps or self.load.rungs[-1])]

    def _stops(self, tuning: FineTuning, rungs: Sequence[int]) -> Iterator[int]:
        """To which step a fine-tuning is to be advanced, time after time."""
        if self.load.patience is None:
            return (rung for rung in rungs if rung > tuning.done)
        validation = self.load.split.validation
        return patiently(tuning, rungs[-1], self.load.patience, lambda model: self._ranking(validation, model, ()))

    def _state(self, attempt: Attempt, tuning: FineTuning, sources: Sequence[Files]) -> dict[str, bytes]:
        """The files of a fine-tuning as it is now."""
        load, candidate = self.load, attempt.candidate
        training = _inherited(candidate, sources) | {candidate.id: tuning.operations}
        own = {"candidate": candidate.id, "genes": dict(candidate.genes), "steps": tuning.done, "training": training}
        notes = self._notes(own)
        files = tuning.adapter.files(load.base, load.revision) | tuning.model.files(notes)
        return files if self._rungs(attempt)[-1] == load.rungs[-1] else files | tuning.state()

    def _evaluated(self, attempt: Attempt, model: Scorer) -> tuple[Evaluation, ...]:
        """The model's evaluations on validation."""
        candidate, full = attempt.candidate, self.load.rungs[-1]
        steps = attempt.steps or full
        below = steps < full
        ranking = self._ranking(self.load.split.validation, model, self._blended)
        margins = {} if below or candidate.is_warm_start else self._margins(ranking)
        if below:
            found = self._alone(model)
        elif candidate.is_warm_start and self.covered:
            found = self._alone(model) + self._of_known(ranking)
        else:
            found = self._settings(candidate, ranking, margins)
        return tuple(
            Evaluation(candidate.id, attempt.number, steps, number, setting, values, margins)
            for number, (setting, values) in enumerate(found)
        )

    def _alone(self, model: Scorer) -> list[tuple[Genes, Values]]:
        """A model without re-ranking and without what is blended in."""
        ranking = self._ranking(self.load.split.validation, model, ())
        return [({}, ranking.values([{}], self.load.metrics)[0])]

    def _of_known(self, ranking: Ranking) -> list[tuple[Genes, Values]]:
        """The warm start's curve, with the costs of its checkpoint, which has an adapter."""
        curve = zip(self.known, self.covered, strict=True)
        return [
            (setting, {**values, **ranking.costs(setting, self.load.metrics)}) for setting, values in curve if setting
        ]

    def _margins(self, ranking: Ranking) -> dict[str, float]:
        """For each objective, the standard error over users of the model's difference from the warm start."""
        with self._lock:  # several of a pack may come at once
            if self._start_per_user is None:  # not in `equip`, for which the warm start's curve would wait
                self._start_per_user = self._per_user(self._ranking(self.load.split.validation, self._warm, ()))
        mine, theirs = self._per_user(ranking), self._start_per_user
        return {name: float((mine[name] - theirs[name]).std() / len(mine[name]) ** 0.5) for name in mine}

    def _per_user(self, ranking: Ranking) -> dict[str, PerUser]:
        """The objectives of a model alone, user by user."""
        return ranking.tallies([{}], [o.name for o in self.load.objectives])[0].per_user()

    def _made(self, candidate: Candidate, sources: Sequence[Files]) -> dict[str, bytes]:
        """What takes no training: the parents fused or merged, or the warm start with an adapter that is zero."""
        if candidate.kind == "fused":
            return self._fused(candidate, sources)
        if candidate.is_warm_start:
            shape, generator = LoraShape(1, 1.0, 0.0, "query_value", 1), torch.Generator(self.device).manual_seed(0)
            files = fresh(self.encoder, shape, generator=generator).files(self.load.base, self.load.revision)
            return files | self._task.start.files(self._notes({"candidate": candidate.id}))
        share = float(candidate.genes["share"])
        own = {"candidate": candidate.id, "genes": dict(candidate.genes), "merges": candidate.parents}
        notes = self._notes({**own, "training": _inherited(candidate, sources)})
        return merge(sources, (share, 1.0 - share), self.load.rank, notes, self.encoder)

    def _fused(self, candidate: Candidate, sources: Sequence[Files]) -> dict[str, bytes]:
        """Those of the parents side by side whose average foretells validation best."""
        pool = dict(zip(candidate.parents, sources, strict=True))
        scorers = {name: scorer(files, self.encoder) for name, files in pool.items()}
        weights = Ranking(self.load.split.validation, self.items, scorers).selected(DRAWS)
        return fused(pool, weights, self._notes({"candidate": candidate.id}))

    def _settings(self, candidate: Candidate, ranking: Ranking, margins: Values) -> list[tuple[Genes, Values]]:
        """Serving settings with their values on validation, the model alone first.

        What they are to beat is the warm start's curve by more than chance, as `archive.worth` has it.
        """
        load = self.load
        seed = _seed(load.seed, candidate.id)
        to_beat = [worthy(values, margins, load.objectives) for values in self.covered]
        return self._inner_search(ranking, load.serving_settings, seed, self.known, to_beat)

    @property
    def _blended(self) -> tuple[str, ...]:
        """The components that entries blend in: those that are there and have a gene."""
        return tuple(name for name in self.components if name in self.load.space.roles)

    def _inner_search(
        self,
        ranking: Ranking,
        count: int,
        seed: int,
        known: Sequence[Genes] = (),
        beside: Sequence[Values] = (),
    ) -> list[tuple[Genes, Values]]:
        """So many settings beside the model alone, which comes first."""
        return search_settings(
            lambda settings: ranking.values(settings, self.load.metrics),
            ranking.fitted(self.load.space),
            self.load.objectives,
            constraints=self.load.constraints,
            count=count,
            seed=seed,
            known=known,
            beside=beside,
        )

    def _ranking(self, part: Part, model: Scorer, blend: Sequence[str]) -> Ranking:
        return Ranking(part, self.items, {"model": model} | {n: self.components[n] for n in blend}, self._reranker)

    def _baseline(self, name: str) -> Scorer:
        train, n_items = self.load.split.train, self.load.split.n_items
        if name in self.components:
            return self.components[name]
        if name == "popularity":
            return baselines.Popularity(self.items.users)
        if name == "item-knn":
            return baselines.item_knn(train, n_items)
        if name == "frozen-encoder":
            return baselines.DecayedMean(self.encoder.frozen.numpy())
        assert name == "warm-start", name
        return self._warm

    def _notes(self, more: Mapping[str, object]) -> dict[str, object]:
        return {
            "base": {"id": self.base.id, "revision": self.load.revision, "sha256": self.base.sha256},
            "dtype": self.encoder.kept,
            "max_item_tokens": self.load.max_item_tokens,
            "layers": self.encoder.layers,
            "pooling": self.encoder.pooling,
            **self.load.notes,
            **more,
        }


class PackWorker(Worker):
    """A worker that trains several candidates side by side, in a pack.

    All of it runs in one thread, an event loop's, where candidates take turns at their encoder steps; only re-ranking,
    which needs no encoder, goes to threads of its own, so that the others train on.
    """

    def __init__(self, load: Workload, cpus: float = 1.0, device: str = "cpu", scratch: str | None = None) -> None:
        super().__init__(load, cpus, device, scratch)
        self._pack = Pack(self.encoder)

    async def run_beside(self, attempt: Attempt, sources: Sequence[Files] = ()) -> Result:
        """Does what `run` does, beside other calls of this; its seconds are those that it shared with them too."""
        began = time.perf_counter()
        candidate = attempt.candidate
        if candidate.kind != "trained":
            files = self._made(candidate, sources)
        else:
            tuning = FineTuning(self._task, candidate.genes, **self._course(attempt, sources))
            for stop in self._stops(tuning, self._rungs(attempt)):
                await self._pack.advance(tuning, stop)
            files = self._state(attempt, tuning, sources)
        evaluations = await asyncio.to_thread(self._evaluated, attempt, scorer(files, self.encoder))
        return Result(evaluations, files, time.perf_counter() - began)


def _inherited(candidate: Candidate, sources: Sequence[Files]) -> dict[str, float]:
    """What was trained to make the sources of a candidate; see `Scorer.training`. What an older search trained is named
    as it is here: `old/c0007`.
    """
    found: dict[str, float] = {}
    for files in sources:
        folder = ""
        if OPTIMISER not in files:  # a state is the candidate's own
            own = json.loads(files["recommender.json"])["candidate"]
            name = next((parent for parent in candidate.parents if parent.rpartition("/")[2] == own), own)
            folder = name.removesuffix(own)
        found |= {folder + trained: operations for trained, operations in training_of(files).items()}
    return found


def _seed(seed: int, candidate: str) -> int:
    """A candidate's own seed, the same on whichever worker and attempt it runs."""
    return int.from_bytes(hashlib.sha256(f"{seed} {candidate}".encode()).digest()[:4], "big")
