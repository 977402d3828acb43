"""Deployments as processes: each serves entries on this machine's loopback until it is deleted.

A deployment keeps the entries that it has ever served with all that they need, so that their search may go on or be
deleted. A process that is gone, with the machine perhaps, is started again at the same port, unless it has said what is
wrong.
"""

import json
import secrets
import shutil
import socket
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pareto_search import checkpoint, results
from pareto_search.entry import BASE, VECTORS, with_vectors
from pareto_search.errors import ConfigError
from pareto_search.question import Canary, Question
from pareto_search.results import Document, write_whole
from pareto_search.service.deployer import HOST, RUN, WISH, ask
from pareto_search.service.jobs import Jobs
from pareto_search.service.making import made, sweep
from pareto_search.service.processes import TRASH, Processes, forget_status, kept, minded, status_of
from pareto_search.service.record import ConflictError, Deployment, Record
from pareto_search.service.turns import Turns

State = Literal["starting", "serving", "changing", "silent", "failed", "deleting"]
"""`changing` while the old entries still answer; `silent` where it should answer and does not."""

MOST = 8
"""How many deployments there may be: each has a model in memory."""
TRIES = 3
"""How often a process may end without a word before it has served."""
ASKED = 8
"""How many questions to a deployment may be under way: one that is silent holds a thread for each."""


class Fleet:
    """The deployments of a service.

    Args:
        root: the service's folder.
        jobs: the searches whose entries are deployed.
    """

    def __init__(self, root: Path, record: Record, jobs: Jobs) -> None:
        self._folder, self._record, self._jobs = root, record, jobs
        self._processes = Processes("pareto_search.service.deployer")
        self._in_vain: Counter[str] = Counter()  # how often each has ended without a word, since it last served
        self._asked = defaultdict[str, Turns](partial(Turns, ASKED, at_once=ASKED))
        self._lock = threading.Lock()

    def kept(self) -> AbstractContextManager[None]:
        """Looks after the processes for the length of a block; raises as `processes.kept`."""
        sweep(self._folder / "deployments", {d.id for d in self._record.deployments()})
        return kept(self._folder, "deployments", self.look)

    def deploy(
        self, search: str, entries: Sequence[str], key: str | None = None, body_sha256: str = ""
    ) -> tuple[Deployment, bool]:
        """Deploys entries of a search that has ended, the one first that answers who names none.

        Args:
            key, body_sha256: an idempotency key, and the hash of what is asked under it.

        Returns:
            The deployment, and whether it is new: under a key that was used there is one already.

        Raises:
            MissingError: there is no such search.
            RunError: its front has no such entry.
            ConflictError: it has not ended, there are too many deployments, or the key was used for another one.
        """
        with self._lock:
            held = self._record.deployments()
            for known in held:
                if key is not None and known.key == key:
                    if known.body_sha256 != body_sha256:
                        raise ConflictError("this Idempotency-Key was used for another deployment; choose a new key")
                    return known, False
            job = self._record.search(search)
            if len(held) >= MOST:
                raise ConflictError(f"there are {MOST} deployments, each with a model in memory; delete one first")
            new = Deployment(
                id=f"{job.name[:52].rstrip('-')}-{secrets.token_hex(4)}",
                search=search,
                data=job.data,
                entries=list(dict.fromkeys(entries)),
                port=_free_port({d.port for d in held}),
                token=secrets.token_urlsafe(32),
                key=key,
                body_sha256=body_sha256,
            )
            with made(self._folder_of(new)):
                self._keep(new, entries)
                self._record.add_deployment(new)
        self.look()
        return self._record.deployment(new.id), True

    def try_out(self, name: str, canary: Canary) -> Deployment:
        """Lets another entry of the search answer a share of the users.

        Raises:
            MissingError: there is no such deployment, or its search has been deleted and the entry was never served.
            RunError: the front has no such entry.
            ConflictError: the search goes on, and the entry was never served.
            ConfigError: it is the one that answers already.
        """
        with self._lock:
            held = self._record.deployment(name)
            if canary.entry == held.entries[0]:
                raise ConfigError(f"'{canary.entry}' answers already; expected another entry of the front as canary")
            self._keep(held, [canary.entry])
            return self._changed(held, canary=asdict(canary))

    def promote(self, name: str) -> Deployment:
        """Lets the canary answer everybody.

        Raises:
            MissingError: there is no such deployment.
            ConflictError: it has no canary.
        """
        with self._lock:
            held = self._record.deployment(name)
            if held.canary is None:
                raise ConflictError(f"deployment '{name}' has no canary; give it one first")
            first = held.canary["entry"]
            entries = [first, *(e for e in held.entries if e != first)]
            return self._changed(held, entries=entries, canary=None, earlier=[*held.earlier, held.entries])

    def roll_back(self, name: str) -> Deployment:
        """Takes back the canary, or else the latest promotion.

        Raises:
            MissingError: there is no such deployment.
            ConflictError: there is neither.
        """
        with self._lock:
            held = self._record.deployment(name)
            if held.canary is not None:
                return self._changed(held, canary=None)
            if not held.earlier:
                raise ConflictError(f"deployment '{name}' serves what it began with; there is nothing to roll back")
            return self._changed(held, entries=held.earlier[-1], earlier=held.earlier[:-1])

    def restart(self, name: str) -> Deployment:
        """Begins anew what has failed, or a change that could not be made.

        Raises:
            MissingError: there is no such deployment.
            ConflictError: nothing has failed.
        """
        with self._lock:
            held = self._record.deployment(name)
            if self.error(held) is None:
                state = self.state(held)
                raise ConflictError(f"deployment '{name}' is {state}; what has an error can be restarted")
            return self._changed(held)

    def delete(self, name: str) -> Deployment:
        """Stops it and removes its files, which takes seconds.

        Raises:
            MissingError: there is no such deployment.
        """
        with self._lock:
            held = self._record.deployment(name)
            self._record.change_deployment(name, wish="delete")
        self.look()
        return replace(held, wish="delete")

    def recommend(self, name: str, question: Question) -> dict[str, Any]:
        """What a deployment answers.

        Raises:
            MissingError: there is no such deployment.
            ConflictError: it does not answer yet, or no longer, or too many wait for its answers.
            ConfigError: the question does not fit.
            UnansweredError: it should answer, and does not.
        """
        held = self._record.deployment(name)
        state, error = self.state(held), held.error
        if state in ("starting", "failed", "deleting"):
            raise ConflictError(f"deployment '{name}' is {state}{f': {error}' if error else '; ask it when it serves'}")
        body = question.model_dump_json(exclude_none=True).encode()
        with self._asked[name].taken():
            return ask(held.port, held.token, "/recommend", body)

    def state(self, deployment: Deployment) -> State:
        """How things stand."""
        if deployment.wish == "delete":
            return "deleting"
        if deployment.error is not None:
            return "failed"
        status = status_of(self._folder_of(deployment))
        if not (served := status.get("served")):
            return "starting"
        if not status["healthy"]:
            return "silent"
        return "serving" if (served["entries"], served["canary"]) == _wished(deployment) else "changing"

    def error(self, deployment: Deployment) -> str | None:
        """Why it has failed, or goes on with what it serves instead of a change."""
        return deployment.error or status_of(self._folder_of(deployment)).get("refused")

    def answers(self, deployment: Deployment) -> dict[str, int]:
        """How many questions each entry has answered since the process began."""
        served = status_of(self._folder_of(deployment)).get("served") or {}
        return dict(served.get("answers", {}))

    def front(self, deployment: Deployment) -> Document:
        """The front of its search, as far as it was ever served."""
        return results.load_front(self._folder_of(deployment) / RUN)

    def look(self) -> None:
        """Takes notice of what has ended, and starts what is to serve."""
        with self._lock:
            for deployment in self._record.deployments():
                with minded(f"deployment {deployment.id}"):
                    self._look_at(deployment)

    def _look_at(self, deployment: Deployment) -> None:
        folder = self._folder_of(deployment)
        if self._processes.is_running(folder):
            if deployment.wish == "delete":
                self._processes.stop(folder)
            elif (folder / WISH).read_text(encoding="utf-8") != _wish(deployment):
                self._tell(deployment)  # the service was killed after it had noted a change, or the disk was full
        elif deployment.wish == "delete":
            self._remove(deployment)
        elif deployment.error is None:
            self._revive(deployment)

    def _revive(self, deployment: Deployment) -> None:
        """Starts a process that is not there. What has ended with an error would only do so again, and so, in the end,
        would what ends without one before it has served: there may be no memory for it.
        """
        folder = self._folder_of(deployment)
        status = status_of(folder)
        self._in_vain[deployment.id] = self._in_vain[deployment.id] + 1 if status and not status["served"] else 0
        if status and (status["error"] or self._in_vain[deployment.id] >= TRIES):
            error = status["error"] or "its process was ended from outside, or had no memory left"
            back = "roll back, or " if deployment.canary or deployment.earlier else ""
            self._record.change_deployment(deployment.id, error=f"{error}; {back}mend that and restart it")
        else:
            self._processes.start(folder, lambda: self._tell(deployment))

    def _remove(self, deployment: Deployment) -> None:
        trash = self._folder / TRASH / deployment.id
        self._folder_of(deployment).rename(trash)
        self._record.remove_deployment(deployment.id)
        shutil.rmtree(trash, ignore_errors=True)

    def _changed(self, deployment: Deployment, **values: Any) -> Deployment:
        """Notes a change, and tells the process, which sees to it that no request is dropped."""
        if deployment.wish == "delete":
            raise ConflictError(f"deployment '{deployment.id}' is being deleted")
        self._record.change_deployment(deployment.id, **values, error=None)
        changed = self._record.deployment(deployment.id)
        self._tell(changed)
        if deployment.error is not None:  # which is over: what is asked for now is started
            forget_status(self._folder_of(deployment))
        return changed

    def _tell(self, deployment: Deployment) -> None:
        write_whole(self._folder_of(deployment) / WISH, _wish(deployment))

    def _keep(self, deployment: Deployment, names: Sequence[str]) -> None:
        """Copies entries of the search's front with all that they need, unless they are there."""
        own = self._folder_of(deployment) / RUN
        held = self.front(deployment)["front"] if own.is_dir() else []
        new = [name for name in dict.fromkeys(names) if name not in {e["entry"] for e in held}]
        if not new:
            return
        run = self._jobs.finished(deployment.search)
        front = results.load_front(run)
        entries = [results.find_entry(front, name) for name in new]
        for candidate in {e["candidate"] for e in entries}:
            with_vectors(run, candidate)  # a damaged one would take down what serves now
        wanted = {run / e["checkpoint"] for e in entries}
        wanted |= {folder for e in entries for n in (e["candidate"], BASE) if (folder := run / VECTORS / n).is_dir()}
        if not held:  # all entries of a run share them
            wanted |= set((run / "components").glob("[!.]*"))
        for folder in wanted:
            place = own / folder.relative_to(run)
            if not place.is_dir():  # what is there serves
                checkpoint.write(place, checkpoint.read(folder))
        shutil.copy2(run / "search.yaml", own)
        results.save({**front, "front": [*held, *entries]}, own)

    def _folder_of(self, deployment: Deployment) -> Path:
        return self._folder / "deployments" / deployment.id


def _wish(deployment: Deployment) -> str:
    """What its process is told."""
    return json.dumps({key: getattr(deployment, key) for key in ("entries", "canary", "port", "token")})


def _wished(deployment: Deployment) -> tuple[list[str], Any]:
    canary = deployment.canary
    return list(dict.fromkeys([*deployment.entries, *([canary["entry"]] if canary else [])])), canary


def _free_port(taken: set[int]) -> int:
    """A port of the loopback that nobody listens at, nor a deployment that is about to."""
    while True:
        with socket.socket() as line:
            line.bind((HOST, 0))
            port = int(line.getsockname()[1])
        if port not in taken:
            return port
