"""Optuna alone: a process for each worker, which share a study through its journal."""

import multiprocessing
from pathlib import Path

import optuna
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from benchmarks.peers.distributions import distributions
from benchmarks.peers.peer import PeerSearch
from pareto_search.errors import ParetoSearchError


def search(peer: PeerSearch) -> None:
    """Goes on until it is ended."""
    directions = [o.direction.replace("ise", "ize") for o in peer.config.objectives]
    optuna.create_study(storage=_storage(peer.folder), study_name="peer", directions=directions)
    processes = [
        multiprocessing.get_context("spawn").Process(target=_work, args=(peer.folder, number))
        for number in range(peer.config.workers.count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def _work(folder: Path, number: int) -> None:
    from benchmarks.peers.trainers import run_trial  # torch is for those who train

    peer = PeerSearch.open(folder)
    sampler = TPESampler(seed=1000 * peer.config.search.seed + number, n_startup_trials=peer.random_trials)
    study = optuna.load_study(study_name="peer", storage=_storage(folder), sampler=sampler)
    genes = distributions(peer.space)
    while True:
        trial = study.ask(genes)
        try:
            values = run_trial(folder, trial.params)
        except ParetoSearchError:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, [values[o.name] for o in peer.config.objectives])


def _storage(folder: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(folder / "journal.log")))
