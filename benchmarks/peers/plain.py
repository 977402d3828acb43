"""The trainer of the tier `default`: transformers and PEFT as their documentation shows them.

Each trial loads the base model, in float32, puts adapters into all of its blocks, and encodes the whole catalogue in
every step, in padded batches. Serving genes are parameters like all others, so a trial is one entry: that a checkpoint
can serve many is what one sees later. Warm start, steps, tower batches, loss and optimisers are our own training's. The
gene `layers` has no effect here.
"""

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from benchmarks.peers.peer import PeerSearch, Report
from pareto_search.candidate import Evaluation, Genes
from pareto_search.errors import ConfigError, DivergedError
from pareto_search.executor import Result
from pareto_search.recsys.baselines import Scorer
from pareto_search.recsys.ranking import Ranking
from pareto_search.recsys.statistics import ItemStatistics, category_features
from pareto_search.workers.base import locate
from pareto_search.workers.batches import Batches
from pareto_search.workers.candidate_loss import BATCH, ID_DROPOUT, LISTS
from pareto_search.workers.evaluate import similarity
from pareto_search.workers.lora import is_target
from pareto_search.workers.losses import Histories, ItemTensors, Scalarisation, Scalariser, list_values
from pareto_search.workers.recommender import Recommender, TowerScorer
from pareto_search.workers.train import TOWER_BATCHES
from pareto_search.workers.worker import Worker
from pareto_search.workers.workload import Workload

TEXTS = 64
"""Texts in a batch of the encoder."""


class PlainTrainer:
    """Trains one trial after another, each from the base model's files."""

    def __init__(self, search: PeerSearch) -> None:
        cpus, load = search.config.workers.cpus, search.workload
        if load.categories is None:
            raise ConfigError(
                "the default tier takes its distances from categories; give data that has some, or --tier tuned"
            )
        search.prepare(Worker(load, cpus))
        torch.set_num_threads(max(1, int(cpus)))
        self._load, self._rungs = load, search.config.search.rungs
        parts = load.split
        self._items = ItemStatistics.of(parts.train, parts.n_items, category_features(load.categories), parts.offered)
        files = search.components()
        self._start = Recommender.loaded(files["warm-start"])
        self._components: dict[str, Scorer] = {"sasrec": TowerScorer.of(Recommender.loaded(files["sasrec"]), None)}
        if "ease" in files:
            self._components["ease"] = similarity(files["ease"])

    def run(self, name: str, genes: Genes, report: Report) -> Result:
        """Trains and evaluates a candidate, whose name is a hexadecimal number.

        Raises:
            DivergedError: the loss is not finite.
        """
        began, load = time.perf_counter(), self._load
        seed = int(name, 16) % 2**32
        torch.manual_seed(seed)
        encoder, model = _PlainEncoder(load, genes), _started(self._start, genes)
        loss = _Loss(load, ItemTensors(self._items, "cpu"), model, genes, seed)
        serving = {gene: genes[gene] for gene in load.space.roles}
        for steps in _train(encoder, model, loss, genes, self._rungs[-1]):
            if steps in self._rungs:
                scorers = {"model": _scorer(encoder, model), **self._components}
                values = Ranking(load.split.validation, self._items, scorers).values([serving], load.metrics)[0]
            if steps in self._rungs[:-1]:
                report(steps, values)
        evaluations = (Evaluation(name, 1, self._rungs[-1], 0, serving, values),)
        files = encoder.files() | model.files({"candidate": name, "genes": dict(genes)})
        return Result(evaluations, files, time.perf_counter() - began)


class _PlainEncoder:
    """A base model with a fresh adapter, over the catalogue's texts."""

    def __init__(self, load: Workload, genes: Genes) -> None:
        folder = locate(load.base, load.revision).folder
        base = AutoModel.from_pretrained(folder, dtype=torch.float32)
        self._targets = _targets(base, str(genes["targets"]))
        config = LoraConfig(
            r=int(genes["rank"]),
            lora_alpha=float(genes["alpha"]),
            lora_dropout=float(genes["dropout"]),
            target_modules=self._targets,
            task_type="FEATURE_EXTRACTION",
        )
        self.model = get_peft_model(base, config)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        texts = [list(load.texts[i : i + TEXTS]) for i in range(0, len(load.texts), TEXTS)]
        cut = {"padding": True, "truncation": True, "max_length": load.max_item_tokens, "return_tensors": "pt"}
        self._batches = [tokenizer(some, **cut) for some in texts]

    def train(self, on: bool) -> None:
        """The adapter's dropout; that of the base model stays off, as in our own training."""
        self.model.eval()
        for name, module in self.model.named_modules():
            if "lora_dropout" in name:
                module.train(on)

    @torch.no_grad()
    def catalogue(self) -> Tensor:
        """Pooled vectors `(n_items, t)` of all items."""
        return torch.cat([self._pooled(batch) for batch in self._batches])

    def backward(self, gradient: Tensor) -> Tensor:
        """Encodes all items, back-propagates their gradient `(n_items, t)`, and returns their vectors.

        Batch by batch: the activations of the whole catalogue would not fit into memory.
        """
        vectors = []
        for batch, mine in zip(self._batches, torch.split(gradient, TEXTS), strict=True):
            pooled = self._pooled(batch)
            pooled.backward(mine)  # type: ignore[no-untyped-call]
            vectors.append(pooled.detach())
        return torch.cat(vectors)

    def files(self) -> dict[str, bytes]:
        """The adapter as PEFT saves it, but with its targets' full names, which PEFT shortens."""
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            weights = Path(folder, "adapter_model.safetensors").read_bytes()
            config = json.loads(Path(folder, "adapter_config.json").read_text(encoding="utf-8"))
        text = json.dumps({**config, "target_modules": self._targets})
        return {"adapter_config.json": text.encode(), "adapter_model.safetensors": weights}

    def _pooled(self, batch: Any) -> Tensor:
        hidden = self.model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def _targets(base: Any, wish: str) -> list[str]:
    """The full names of the blocks' linear maps that the gene `targets` means."""
    linears = [name for name, module in base.named_modules() if isinstance(module, nn.Linear)]
    return [name for name in linears if any(part.isdigit() for part in name.split(".")) and is_target(name, wish)]


def _started(start: Recommender, genes: Genes) -> Recommender:
    """The warm start as the genes ask for it."""
    model = Recommender(replace(start.shape, item_embeddings=bool(genes["id_embeddings"])))
    model.load_state_dict({k: v for k, v in start.state_dict().items() if k in model.state_dict()})
    for tower in model.towers:
        tower.temperature.fill_(float(genes["temperature"]))
    return model


class _Loss:
    """Our scalarised loss, in plain torch."""

    def __init__(self, load: Workload, items: ItemTensors, model: Recommender, genes: Genes, seed: int) -> None:
        self._items, self._objectives = items, load.objectives
        weights = {n.removeprefix("weight."): float(w) for n, w in genes.items() if n.startswith("weight.")}
        self._scalarise = Scalariser(cast(Scalarisation, genes["scalarisation"]), weights, load.objectives)
        shape = model.shape
        train, offered = load.split.train, load.split.offered
        self._batches = Batches(train, shape.history, BATCH, seed, ties=shape.gaps, offered=offered)
        met = torch.from_numpy(np.bincount(train.items, minlength=shape.n_items) > 0)
        self._barred = torch.zeros(shape.n_items).masked_fill_(~met, -torch.inf)
        self._stream, self._rng = iter(self._batches), np.random.default_rng(seed)
        self._turns = cycle(model.towers)

    def __call__(self, text: Tensor) -> Tensor:
        """The loss of the next batch, given the items' text vectors `(n_items, t)`."""
        batch, tower = next(self._stream), next(self._turns)
        vectors = tower.item_vectors(text, ID_DROPOUT)
        states = tower.states(batch.items, batch.lengths, vectors, batch.gaps, batch.groups)
        known = batch.targets >= 0
        logits = states[known] / tower.temperature @ vectors.T + tower.item_bias + self._barred
        accuracy = nn.functional.cross_entropy(logits, batch.targets[known])
        rows, places = np.nonzero(known.numpy())
        some = self._rng.choice(len(rows), min(LISTS, len(rows)), replace=False)
        owner, item = self._batches.seen(batch, rows[some], places[some])
        lists = logits[torch.from_numpy(some)].index_put((owner, item), logits.new_tensor(-torch.inf))
        histories = Histories(owner, item, len(some), self._items.features)
        return self._scalarise(accuracy, list_values(lists, self._items, histories, self._objectives))


def _train(encoder: _PlainEncoder, model: Recommender, loss: _Loss, genes: Genes, steps: int) -> Iterator[int]:
    """Trains both; yields the number of steps done after each."""
    decay = float(genes["weight_decay"])
    adapter_weights = [p for p in encoder.model.parameters() if p.requires_grad]
    tower_weights = list(model.parameters())
    adapter_step = _stepper(adapter_weights, float(genes["adapter_lr"]), decay, steps)
    tower_step = _stepper(tower_weights, float(genes["tower_lr"]), decay, steps * TOWER_BATCHES)
    text = encoder.catalogue()
    for step in range(1, steps + 1):
        encoder.train(True)
        model.train()
        text.requires_grad_()
        for _ in range(TOWER_BATCHES):
            value = loss(text)
            if not math.isfinite(float(value.detach())):
                raise DivergedError(f"the loss is not finite at step {step} of {steps}")
            value.backward()  # type: ignore[no-untyped-call]
            tower_step()
        assert text.grad is not None
        text = encoder.backward(text.grad)
        adapter_step()
        encoder.train(False)
        model.eval()
        yield step
    if not all(bool(p.isfinite().all()) for p in (*adapter_weights, *tower_weights)):
        raise DivergedError("the weights are not finite after the last step")


def _stepper(parameters: Sequence[nn.Parameter], lr: float, decay: float, steps: int) -> Callable[[], None]:
    """Our optimiser: AdamW, clipped, with a rate that rises over a tenth of the steps and then falls to zero."""
    adamw = torch.optim.AdamW(parameters, lr=lr, weight_decay=decay)
    rise = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adamw, lambda s: min((s + 1) / rise, (steps - s) / max(1, steps - rise), 1.0)
    )

    def step() -> None:
        nn.utils.clip_grad_norm_(parameters, 1.0)
        adamw.step()
        schedule.step()
        adamw.zero_grad()

    return step


def _scorer(encoder: _PlainEncoder, model: Recommender) -> TowerScorer:
    return TowerScorer.of(model, encoder.catalogue())
