"""Ray Tune with OptunaSearch: trials in actors that are used again, proposals by MO-TPE or NSGA-II."""

import logging
from pathlib import Path
from typing import Any

import ray
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from benchmarks.peers.distributions import distributions
from benchmarks.peers.peer import PeerSearch


class Trial(tune.Trainable):  # type: ignore[misc]
    """One step is the whole trial."""

    def step(self) -> dict[str, Any]:
        from benchmarks.peers.trainers import run_trial  # torch is for those who train

        varied = dict(self.config)
        return {**run_trial(Path(varied.pop("folder")), varied), "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The actor keeps its trainer for the next trial."""
        return True


def search(peer: PeerSearch) -> None:
    """Goes on until it is ended."""
    config = peer.config
    ray.init(
        address="local",
        num_cpus=round(config.workers.count * config.workers.cpus),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    proposals = OptunaSearch(
        space=distributions(peer.space),
        metric=[o.name for o in config.objectives],
        mode=["max" if o.direction == "maximise" else "min" for o in config.objectives],
        sampler=_sampler(peer),
    )
    tune.Tuner(
        tune.with_resources(Trial, {"cpu": config.workers.cpus}),
        param_space={"folder": str(peer.folder)},
        tune_config=tune.TuneConfig(
            search_alg=proposals, num_samples=-1, max_concurrent_trials=config.workers.count, reuse_actors=True
        ),
        run_config=tune.RunConfig(
            storage_path=str(peer.folder),
            name="ray",
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # the trial records its own
        ),
    ).fit()


def _sampler(peer: PeerSearch) -> BaseSampler:
    """Optuna's own, with our population: its 50 would all be random in a search as short as this."""
    budget = peer.config.search
    if peer.peer == "ray-optuna-nsga2":
        return NSGAIISampler(population_size=budget.population, seed=budget.seed)
    return TPESampler(seed=budget.seed, n_startup_trials=peer.random_trials)
