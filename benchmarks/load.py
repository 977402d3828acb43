"""A service under load: many clients submit searches and read a front of 10,000 evaluations that goes on growing.

Each client reads the front about once a second, and at every fifth turn submits a search under an idempotency key of
its own, half of them twice. The searches wait in the queue: what is measured is the service and not the searching.
Goals: nothing lost (each key has one search, which is listed once), no answer 5xx, fronts read with p99 below 250 ms.
"""

import argparse
import http.client
import json
import multiprocessing
import os
import random
import secrets
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from pareto_search.candidate import Attempt, Candidate, Evaluation, Leg, candidate_id
from pareto_search.config import SearchConfig
from pareto_search.service.record import Job, Record
from pareto_search.store import SearchRecord, Store

SOURCE = "movielens-100k"
EVALUATIONS, SETTINGS = 10_000, 20
"""Of the archive, and of each of its candidates."""
GROWS = 10.0
"""Seconds between two candidates that are recorded meanwhile."""
TURN = 1.0
"""Seconds between two reads of a client."""
SUBMITS = 5
"""A client submits at each of so many turns."""
GOAL = 250.0
"""Milliseconds."""


@dataclass
class Told:
    """What the clients were told."""

    statuses: Counter[int] = field(default_factory=Counter)
    reads: list[float] = field(default_factory=list)
    writes: list[float] = field(default_factory=list)
    accepted: dict[str, set[str]] = field(default_factory=dict)
    broken: int = 0


class Client:
    """One connection with the token."""

    def __init__(self, port: int, token: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, bytes, float]:
        """Status, body and milliseconds."""
        began = time.perf_counter()
        content = None if body is None else json.dumps(body)
        self._connection.request(method, path, content, self._headers | headers)
        answer = self._connection.getresponse()
        found = answer.read()
        return answer.status, found, 1000 * (time.perf_counter() - began)


class Archive:
    """A search that nobody runs, recorded as a driver would."""

    def __init__(self, root: Path, url: str | None = None, evaluations: int = EVALUATIONS) -> None:
        self.id = f"archive-{secrets.token_hex(4)}"
        submitted = {"name": "archive", "data": {"source": SOURCE}}
        self._config = SearchConfig.parse(submitted | {"name": self.id, "store": url})
        self._rng, self._made = random.Random(0), 0
        run = root / "searches" / self.id / "run"
        run.mkdir(parents=True)
        (run / "search.yaml").write_text(self._config.to_yaml())
        about = SearchRecord(self.id, self._config.identity(), "", 0, "", "", "", "", lanes=1)
        self._store = Store.create(url or run / "search.db", about)
        for _ in range(evaluations // SETTINGS):
            self.grow()
        record = Record(url or root / "service.db")
        record.add_search(Job(self.id, "archive", SOURCE, "minilm", submitted, state="paused"))
        record.close()

    def grow(self) -> None:
        """One candidate more; about a quarter of all evaluations are on the front."""
        candidate, steps = Candidate(candidate_id(self._made), {"rank": 8}), self._config.search.steps
        self._made += 1
        attempt = Attempt(candidate)
        scored = [Evaluation(candidate.id, 1, steps, n, self._serving(), self._values()) for n in range(SETTINGS)]
        with self._store.transaction() as record:
            record.decided("ask", candidate, steps)
            record.started(attempt, "w")
        with self._store.transaction() as record:
            record.finished(attempt, scored, 1.0)
            record.heard(Leg(candidate.id, steps))

    def _serving(self) -> Mapping[str, float]:
        return {name: self._rng.random() for name in ("diversity", "novelty", "ease")}

    def _values(self) -> Mapping[str, float]:
        objectives = self._config.objectives
        raw = [abs(self._rng.gauss(0, 1)) + 0.01 for _ in objectives]
        share = self._rng.uniform(0.8, 1.0) / float(np.linalg.norm(raw))
        values = {
            o.name: o.reference + x * share * (o.ideal - o.reference) for o, x in zip(objectives, raw, strict=True)
        }
        return values | {constraint.metric: constraint.bound for constraint in self._config.constraints}


def listen(root: Path, port: int, url: str | None) -> None:
    """The service, in a process of its own; it runs no search."""
    from pareto_search.service.serve import Settings, serve

    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        serve(Settings("127.0.0.1", port, root, store=url, searches=0))


@contextmanager
def service(root: Path, url: str | None = None) -> Iterator[tuple[int, str]]:
    """A service on a root that is there: its port and token."""
    token = secrets.token_urlsafe(32)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    process = multiprocessing.get_context("spawn").Process(target=listen, args=(root, port, url))
    with patch.dict(os.environ, PARETO_SEARCH_TOKEN=token):
        process.start()
    try:
        until = time.monotonic() + 120
        while socket.socket().connect_ex(("127.0.0.1", port)):
            if not process.is_alive() or time.monotonic() > until:
                sys.exit("the service did not start")
            time.sleep(0.1)
        yield port, token
    finally:
        process.terminate()
        process.join()


def visit(number: int, client: Client, front: str, told: Told, until: float) -> None:
    """One client, for the length of the measurement."""
    rng = random.Random(number)
    time.sleep(rng.random() * TURN)
    turn = rng.randrange(SUBMITS)
    while (began := time.perf_counter()) < until:
        try:
            status, _, took = client.ask("GET", front)
            told.statuses[status] += 1
            told.reads.append(took)
            if turn % SUBMITS == 0:
                submit(f"{number}-{turn}", client, told, twice=rng.random() < 0.5)
        except (OSError, http.client.HTTPException):
            told.broken += 1
        turn += 1
        time.sleep(max(0.0, TURN - (time.perf_counter() - began)))


def submit(key: str, client: Client, told: Told, *, twice: bool) -> None:
    config = {"name": f"load-{key}", "data": {"source": SOURCE}}
    for _ in range(1 + twice):
        status, body, took = client.ask("POST", "/v1/searches", config, **{"Idempotency-Key": key})
        told.statuses[status] += 1
        told.writes.append(took)
        if status in (200, 201):
            told.accepted.setdefault(key, set()).add(json.loads(body)["id"])


def measured(clients: int, seconds: float, url: str | None) -> dict[str, Any]:
    """Everything that is printed."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "root")
        archive = Archive(root, url)
        with service(root, url) as (port, token):
            operator = Client(port, token)
            before = listed(operator)
            front = f"/v1/searches/{archive.id}/front"
            first = operator.ask("GET", front)
            told = [Told() for _ in range(clients)]
            until = time.perf_counter() + seconds
            threads = [
                threading.Thread(target=visit, args=(n, Client(port, token), front, told[n], until))
                for n in range(clients)
            ]
            for thread in threads:
                thread.start()
            grown = 0
            while time.perf_counter() < until - GROWS:
                time.sleep(GROWS)
                archive.grow()
                grown += SETTINGS
            for thread in threads:
                thread.join()
            after = Counter(listed(Client(port, token)))  # the other connection has been idle for too long
    accepted = {key: ids for one in told for key, ids in one.accepted.items()}
    ids = [found for several in accepted.values() for found in several]
    statuses = sum((one.statuses for one in told), Counter[int]())
    new = after - Counter(before)
    return {
        "clients": clients,
        "seconds": seconds,
        "database": "postgresql" if url else "sqlite",
        "evaluations": EVALUATIONS + grown,
        "entries_bytes": len(first[1]),
        "submissions": sum(len(one.writes) for one in told),
        "keys": len(accepted),
        "lost": sum(new[name] != 1 for name in ids),
        "twice": sum(len(several) > 1 for several in accepted.values()) + sum(new.values()) - len(ids),
        "server_errors": sum(count for status, count in statuses.items() if status >= 500),
        "refused": sum(count for status, count in statuses.items() if 400 <= status < 500),
        "broken": sum(one.broken for one in told),
        "front_first_ms": first[2],
        "front_ms": percentiles([took for one in told for took in one.reads]),
        "submit_ms": percentiles([took for one in told for took in one.writes]),
    }


def listed(operator: Client) -> list[str]:
    """The ids of all searches, page by page."""
    found: list[str] = []
    while page := json.loads(operator.ask("GET", f"/v1/searches?offset={len(found)}&limit=1000")[1])["searches"]:
        found += [search["id"] for search in page]
    return found


def percentiles(took: list[float]) -> dict[str, float]:
    return {"count": len(took)} | {f"p{q}": round(float(np.percentile(took, q)), 1) for q in (50, 99, 100)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--store", metavar="URL", help="A PostgreSQL database that nothing else uses; else SQLite.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    found = measured(options.clients, options.seconds, options.store)
    for name, value in found.items():
        print(f"{name:16}{value}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    good = not (found["lost"] or found["twice"] or found["server_errors"] or found["broken"])
    if found["front_ms"]["p99"] > GOAL:
        print(f"p99 of reading the front is above {GOAL:g} ms")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
