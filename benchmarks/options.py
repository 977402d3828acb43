"""What each option of the model is worth on MovieLens-100K, and what it costs: one change at a time, before any search.

    python -m benchmarks.options [--seeds 5] [--only NAME ...] [--tables FOLDER] [--out FOLDER] [--json FILE]

What is in `--out` already is not measured again, so that hours of it may be made in pieces; other code wants another
folder.

A folder of tables in place of MovieLens is as for `benchmarks.domains`, whose data has titles and no ratings.

The default is the warm start as a search makes it, alone: four towers, time gaps, nothing blended. An option changes
one part of it; the weights of what it blends in are fitted to validation. Shown is NDCG@10 on test, its ratio to the
default's with the 95 % interval of a paired bootstrap over the users and the tie seeds, and the seconds that fitting
took. What a search can do without is measured by `benchmarks.ablations`, what domains give by `benchmarks.domains`.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cold import LEAST
from benchmarks.domains import COLUMNS, OBJECTIVES, PerUser, ratio
from benchmarks.limit import GENES
from pareto_search.config import SearchConfig
from pareto_search.launch import workload
from pareto_search.recsys.baselines import ItemSimilarity, Scorer
from pareto_search.recsys.dataset import MOVIELENS, Dataset, load
from pareto_search.recsys.ranking import Ranking
from pareto_search.recsys.split import split
from pareto_search.results import write_whole
from pareto_search.space import FITTED
from pareto_search.workers.distillation import Teacher
from pareto_search.workers.evaluate import component, scorer
from pareto_search.workers.losses import ItemTensors
from pareto_search.workers.patience import patiently
from pareto_search.workers.recommender import Recommender
from pareto_search.workers.task import Task
from pareto_search.workers.train import fine_tune
from pareto_search.workers.worker import Worker

METRIC = "ndcg@10"
DEFAULT = "default"
STEPS = 20


@dataclass(frozen=True)
class Option:
    """A change of the default.

    Attributes:
        model: keys of the config's section `model`.
        blend: components whose weights are fitted to validation.
        genes: of a fine-tuning of `STEPS` steps; without any there is none.
        patience: after how many looks without a gain it ends.
    """

    model: Mapping[str, Any] = field(default_factory=dict)
    blend: tuple[str, ...] = ()
    genes: Mapping[str, Any] = field(default_factory=dict)
    patience: int | None = None


OPTIONS: Mapping[str, Option] = {
    DEFAULT: Option(),
    "one tower": Option({"towers": 1}),
    "two towers": Option({"towers": 2}),
    "eight towers": Option({"towers": 8}),
    "without time gaps": Option({"time_gaps": False}),
    "gender and occupation": Option({"groups": ["gender", "occupation"]}),
    "decayed mean": Option({"tower": "decayed_mean"}),
    "width 64": Option({"width": 64}),
    "history 20": Option({"history": 20}),
    "base model in 4 bits": Option({"dtype": "nf4"}),
    "EASE blended in": Option(blend=("ease",)),
    "SASRec blended in": Option(blend=("sasrec",)),
    "text blended in": Option(blend=("text",)),
    "all three": Option(blend=("ease", "sasrec", "text")),
    "fine-tuned": Option(genes={"adapter_lr": 3e-3}),
    "fine-tuned, a tenth of the rate": Option(genes={"adapter_lr": 3e-4}),
    "fine-tuned with DoRA": Option(genes={"adapter_lr": 3e-3, "adapter": "dora"}),
    "fine-tuned, whole maps": Option(genes={"adapter_lr": 3e-3, "adapter": "full"}),
    "fine-tuned, stopped early": Option(genes={"adapter_lr": 3e-3}, patience=2),
    "fine-tuned, encoder frozen": Option(genes={"adapter_lr": 0.0}),
    "fine-tuned, taught by EASE": Option(genes={"adapter_lr": 3e-4, "distillation": 0.3}),
    "fine-tuned, EASE blended in": Option(blend=("ease",), genes={"adapter_lr": 3e-4}),
    "fine-tuned, taught and EASE blended in": Option(blend=("ease",), genes={"adapter_lr": 3e-4, "distillation": 0.3}),
    "fine-tuned, no ID embeddings": Option(genes={"adapter_lr": 3e-3, "id_embeddings": False}),
}


def source(tables: Path | None) -> dict[str, Any]:
    """The config's sections that say what is learned from, and what is wanted of it."""
    if tables is None:
        return {"data": {"source": MOVIELENS}}
    files = {name: str(tables / f"{name}.csv") for name in ("interactions", "items")}
    columns = {name: column for name, column in COLUMNS.items() if name != "domain"}
    return {"data": {**files, "columns": columns}, "objectives": OBJECTIVES}


class Seed:
    """One tie seed's data, and what has been fitted to it so far.

    Args:
        content: of the config, as `source` gives it.
    """

    def __init__(self, data: Dataset, content: Mapping[str, Any], seed: int) -> None:
        self._data, self._seed = data, seed
        self._content = {"name": "options", **content, "data": {**content["data"], "tie_seed": seed}}
        self._fitted: dict[str, tuple[Worker, dict[str, bytes], float]] = {}
        self._components: dict[str, tuple[Scorer, float]] = {}
        self._tunings: dict[str, tuple[Scorer, float]] = {}

    def measure(self, option: Option) -> tuple[PerUser, float]:
        """Every user's accuracy on test, and the seconds that fitting took."""
        worker, start, seconds = self._fit(option.model)
        model = scorer(start, worker.encoder)
        if option.genes:
            model, more = self._tuned(worker, start, option)
            seconds += more
        scorers = {"model": model}
        for name in option.blend:
            scorers[name], more = self._component(worker, name)
            seconds += more
        setting = self._best(worker, scorers) if option.blend else {}
        [tally] = Ranking(worker.load.split.test, worker.items, scorers).tallies([setting], [METRIC])
        return tally.per_user()[METRIC], seconds

    def _fit(self, model: Mapping[str, Any]) -> tuple[Worker, dict[str, bytes], float]:
        """The warm start of a model."""
        key = json.dumps(model, sort_keys=True)
        if key not in self._fitted:
            space = {"sasrec": FITTED}  # so that it can be blended in
            content = {**self._content, "model": dict(model), "space": space, "search": {"seed": self._seed}}
            config = SearchConfig.parse(content)
            worker = Worker(workload(config, self._data, split(self._data, **config.splitting())))
            began = time.perf_counter()
            files = worker.fit("warm-start")
            assert files is not None
            self._fitted[key] = worker, files, time.perf_counter() - began
        return self._fitted[key]

    def _component(self, worker: Worker, name: str) -> tuple[Scorer, float]:
        """It, and the seconds that fitting took."""
        if name not in self._components:
            began = time.perf_counter()
            files = worker.fit(name)
            assert files is not None
            self._components[name] = component(files), time.perf_counter() - began
        return self._components[name]

    def _tuned(self, worker: Worker, files: Mapping[str, bytes], option: Option) -> tuple[Scorer, float]:
        """What fine-tuning makes of a warm start, and the seconds that it took with what it needs."""
        key = json.dumps([dict(option.model), dict(option.genes), option.patience])
        if key not in self._tunings:
            teacher, seconds = None, 0.0
            if option.genes.get("distillation"):
                ease, seconds = self._component(worker, "ease")
                assert isinstance(ease, ItemSimilarity)
                teacher = Teacher(ease, worker.items, worker.load.split.validation)
            began = time.perf_counter()
            model = self._fine_tuned(worker, files, option, teacher)
            self._tunings[key] = model, seconds + time.perf_counter() - began
        return self._tunings[key]

    def _fine_tuned(
        self, worker: Worker, files: Mapping[str, bytes], option: Option, teacher: Teacher | None
    ) -> Scorer:
        load = worker.load
        items = ItemTensors(worker.items, "cpu")
        start = Recommender.loaded(files)
        task = Task(worker.encoder, start, load.split.train, items, load.objectives, teacher=teacher)
        weights = {f"weight.{o.name}": LEAST for o in load.objectives}
        genes = {**GENES, **weights, "layers": 2, **option.genes}

        def validating(model: Scorer) -> Ranking:
            return Ranking(load.split.validation, worker.items, {"model": model})

        with fine_tune(task, genes, steps=STEPS, seed=self._seed) as tuning:
            stops = [STEPS] if option.patience is None else patiently(tuning, STEPS, option.patience, validating)
            for stop in stops:
                tuning.advance(stop)
            tuned = tuning.adapter.files(load.base, None) | tuning.model.files({})
        return scorer(tuned, worker.encoder)

    def _best(self, worker: Worker, scorers: Mapping[str, Scorer]) -> Mapping[str, Any]:
        """The weights of the components with which validation is likeliest."""
        ranking = Ranking(worker.load.split.validation, worker.items, scorers)
        return ranking.fitted(worker.load.space).fixed


class Kept:
    """What has been measured on a tie seed, in a file.

    Args:
        folder: for any data; None keeps nothing.
    """

    def __init__(self, folder: Path | None, data: Dataset, seed: int) -> None:
        self._path = None if folder is None else folder / f"{data.sha256[:12]}-{seed}.json"
        self._found: dict[str, Any] = {}
        if self._path is not None and self._path.is_file():
            self._found = json.loads(self._path.read_text(encoding="utf-8"))

    def get(self, option: Option, measure: Callable[[Option], tuple[PerUser, float]]) -> tuple[PerUser, float]:
        """Every user's accuracy and the seconds of an option, measured if it is not there yet."""
        key = json.dumps(asdict(option), sort_keys=True)  # and not its name, behind which it may change
        if key not in self._found:
            users, seconds = measure(option)
            self._found[key] = {"users": users.tolist(), "seconds": seconds}
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(self._path, json.dumps(self._found))
        return np.array(self._found[key]["users"]), self._found[key]["seconds"]


def main() -> None:
    """Prints a line for each option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=[name for name in OPTIONS if name != DEFAULT], metavar="NAME")
    parser.add_argument("--tables", type=Path, help="a folder with interactions.csv and items.csv")
    parser.add_argument("--out", type=Path, help="a folder to keep what is measured in")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = [DEFAULT, *(name for name in OPTIONS if name in (options.only or OPTIONS) and name != DEFAULT)]
    content = source(options.tables)
    data = load(**SearchConfig.parse({"name": "options", **content}).data.arguments())
    names = [name for name in names if set(OPTIONS[name].model.get("groups", ())) <= data.groups.keys()]
    measured: dict[str, list[tuple[PerUser, float]]] = {name: [] for name in names}
    for number in range(options.seeds):
        seed, kept = Seed(data, content, number), Kept(options.out, data, number)
        for name in names:
            measured[name].append(kept.get(OPTIONS[name], seed.measure))
            print(f"tie seed {number}, {name}: {measured[name][-1][0].mean():.4f}", flush=True)
    pooled = {name: np.stack([users for users, _ in found]) for name, found in measured.items()}
    shown: dict[str, tuple[float, ...]] = {}
    print(f"{'option':<40}{METRIC}  {'ratio':<26}seconds")
    for name, users in pooled.items():
        seconds = float(np.mean([cost for _, cost in measured[name]]))
        times, low, high = ratio(users, pooled[DEFAULT])
        shown[name] = (float(users.mean()), times, low, high, seconds)
        print(f"{name:<40}{users.mean():.4f}   {f'{times:.3f} [{low:.3f}, {high:.3f}]':<26}{seconds:.0f}")
    if options.json:
        options.json.write_text(json.dumps(shown, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
