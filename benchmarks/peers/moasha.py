"""Syne Tune's MOASHA: random proposals, most of which are stopped at a rung; each trial is a process of its own."""

import os
import sys
from typing import Any

import numpy as np
from syne_tune import Tuner
from syne_tune.backend import LocalBackend
from syne_tune.config_space import choice, loguniform, randint, uniform
from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA

from benchmarks.peers import moasha_trial
from benchmarks.peers.peer import PeerSearch
from pareto_search.space import Gene


def search(peer: PeerSearch) -> None:
    """Goes on until it is ended."""
    np.random.seed(peer.config.search.seed)  # noqa: NPY002  # MOASHA draws from there, whatever its own seed
    os.environ["SYNETUNE_FOLDER"] = str(peer.folder / "syne-tune")
    rungs = peer.config.search.rungs
    space = {gene.name: _domain(gene) for gene in peer.space.genes} | {moasha_trial.FOLDER: str(peer.folder)}
    scheduler = MOASHA(
        space,
        metrics=[o.name for o in peer.config.objectives],
        time_attr=moasha_trial.STEPS,
        grace_period=rungs[0],
        max_t=rungs[-1],
    )
    Tuner(
        # No GPUs are wanted, and where it looks for some it leaves a file behind.
        trial_backend=LocalBackend(entry_point=moasha_trial.__file__, pass_args_as_json=True, rotate_gpus=False),
        scheduler=scheduler,
        stop_criterion=lambda _: False,
        n_workers=peer.config.workers.count,
        sleep_time=0.1,
        max_failures=sys.maxsize,
        save_tuner=False,
    ).run()


def _domain(gene: Gene) -> Any:
    if gene.kind == "real":
        return (loguniform if gene.log else uniform)(gene.low, gene.high)
    if gene.kind == "integer":
        return randint(int(gene.low), int(gene.high))
    return choice(list(gene.choices) if gene.kind == "choice" else [False, True])
