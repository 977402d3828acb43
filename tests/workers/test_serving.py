"""A real deployment on a local Ray Serve, asked over HTTP as a client would."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from http.client import HTTPException
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from running import Call, Finished, call, environment, eventually, interruptible, undisturbed

from pareto_search import load_front
from pareto_search.publish import pinned, publish
from pareto_search.question import Canary
from pareto_search.recsys.dataset import Dataset

__all__ = ["call", "undisturbed"]

RERANKED, ALONE = "c0000-s02", "c0000-s00"
TOKEN = "a token of our own"
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Deployment:
    port: int
    order: Connection

    def swap(self, *names: str, canary: Canary | None = None) -> None:
        self.order.send((names, canary))
        assert self.order.recv() == names

        def is_done() -> bool:
            served = self.served()
            return served["entries"][0] == names[0] and served["canary"] == (canary and asdict(canary))

        eventually(is_done)  # it has been asked for, and until then the old ones answer

    def served(self) -> dict[str, Any]:
        status, text = self.send("/entries")
        assert status == 200
        return json.loads(text)

    def send(self, path: str, body: bytes | None = None, token: str = f"Bearer {TOKEN}") -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, {"Authorization": token})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def ask(self, **question: Any) -> tuple[int, dict[str, Any]]:
        status, text = self.send("/recommend", json.dumps(question).encode())
        return status, json.loads(text)

    def listeners(self) -> set[tuple[str, int | None]]:
        """The addresses at which processes listen, and their ids."""
        connections = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        return {(c.laddr.ip, c.pid) for c in connections if c.laddr.port == self.port}


def host(order: Connection, run: str, data: Dataset, port: int) -> None:
    """Deploys what it is told to, until the line is cut."""
    from pareto_search.workers.serving import deploy

    with suppress(EOFError):
        while True:
            names, canary = order.recv()
            deploy(run, names, data, token=TOKEN, canary=canary, port=port)
            order.send(names)


@pytest.fixture(scope="module")
def deployment(toy_run: Path, toy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("published")
    shutil.copytree(toy_run, folder / "run")
    (folder / "run" / "search.yaml").write_text("name: toy")
    publish(folder / "run", f"file://{folder}/far")
    place = pinned(f"file://{folder}/far")  # from where each replica fetches it
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        port = line.getsockname()[1]
    # In a process of its own: what other tests' Ray has left in this one's environment does not go with its tokens.
    processes = multiprocessing.get_context("spawn")
    ours, theirs = processes.Pipe()
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - environment().keys():
            patch.delenv(name)
        patch.setenv("PARETO_SEARCH_CACHE", str(folder / "cache"))
        process = processes.Process(target=host, args=(theirs, place, toy, port))
        process.start()
    theirs.close()
    deployment = Deployment(port, ours)
    deployment.swap(RERANKED)
    yield deployment
    ours.close()
    process.join()


def test_a_user_and_a_history_get_items_with_titles_and_scores(deployment: Deployment) -> None:
    status, answer = deployment.ask(user="3", k=4)
    assert status == 200
    assert answer["entry"] == RERANKED
    assert [sorted(item) for item in answer["items"]] == [["item", "score", "title"]] * 4
    assert deployment.ask(user="3", k=4) == (200, answer)  # from memory
    assert deployment.ask(history=["1", "2"], k=4, explain=True)[1]["items"][0]["because"] is not None


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        (b'{"user": "99"}', 422, "user '99' is not in the data; expected one such as '0', or give a history"),
        (b'{"user": "1", "k": 0}', 422, "k: Input should be greater than or equal to 1"),
        (b"{}", 422, "the request: give either user or history"),
        (b"[", 422, "the request: Invalid JSON"),
        (b" " * 1_000_001, 413, "the request is longer than 1000000 bytes"),
    ],
    ids=["a user unknown", "no items", "nobody", "no JSON", "too long"],
)
def test_a_bad_request_gets_one_line(deployment: Deployment, body: bytes, status: int, detail: str) -> None:
    got, text = deployment.send("/recommend", body)
    assert (got, json.loads(text)["detail"][: len(detail)]) == (status, detail)


@pytest.mark.parametrize("token", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN])
@pytest.mark.parametrize("path", ["/recommend", "/entries", "/metrics", "/nothing"])
def test_without_the_token_nothing_is_said(deployment: Deployment, path: str, token: str) -> None:
    status, text = deployment.send(path, b"{}" if path == "/recommend" else None, token)
    assert (status, json.loads(text)) == (401, {"detail": "give the token: Authorization: Bearer TOKEN"})


def test_health_needs_no_token_and_other_places_are_not_there(deployment: Deployment) -> None:
    assert deployment.send("/healthz", token="") == (200, '{"status":"ok"}')
    assert deployment.send("/nothing")[0] == 404
    assert deployment.send("/recommend")[0] == 404  # a GET


def test_prometheus_reads_the_metrics(deployment: Deployment) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    def answered() -> Counter[str]:
        families = {f.name: f for f in text_string_to_metric_families(deployment.send("/metrics")[1])}
        assert "pareto_search_answer_seconds" in families
        samples = families["pareto_search_answers"].samples
        return Counter({s.labels["entry"]: int(s.value) for s in samples if s.name.endswith("_total")})

    before = answered()
    entry = deployment.ask(user="1", k=3)[1]["entry"]
    assert answered() - before == {entry: 1}


def test_it_listens_on_loopback_only(deployment: Deployment) -> None:
    assert {ip for ip, _ in deployment.listeners()} == {"127.0.0.1"}


def test_a_swap_drops_no_request_and_keeps_the_process(deployment: Deployment) -> None:
    seen: list[tuple[int, str]] = []
    stop, before = threading.Event(), deployment.listeners()

    def client(user: str) -> None:
        while not stop.is_set():
            try:
                status, answer = deployment.ask(user=user, k=3)
            except (OSError, HTTPException) as error:  # refused, reset or cut off
                seen.append((0, repr(error)))
            else:
                seen.append((status, str(answer)))

    clients = [threading.Thread(target=client, args=(str(u),)) for u in range(4)]
    for thread in clients:
        thread.start()
    try:
        deployment.swap(ALONE, RERANKED)
        deployment.ask(user="9", k=3)
    finally:
        stop.set()
        for thread in clients:
            thread.join()
    assert deployment.served()["entries"] == [ALONE, RERANKED]
    assert seen
    assert not [answer for answer in seen if answer[0] != 200]
    assert deployment.ask(user="0", k=3)[1]["entry"] == ALONE
    assert deployment.ask(user="0", k=3, prefer={"ild@5": 1.0})[1]["entry"] == RERANKED
    assert deployment.listeners() == before


def test_a_canary_answers_its_share_of_the_users_and_is_counted(deployment: Deployment) -> None:
    deployment.swap(RERANKED, canary=Canary(ALONE, 0.5))
    before = deployment.served()["answers"]
    answered = {str(user): deployment.ask(user=str(user), k=3)[1]["entry"] for user in range(30)}
    after = deployment.served()["answers"]
    for name in (RERANKED, ALONE):
        count = sum(entry == name for entry in answered.values())
        assert 5 < count < 25
        assert after[name] - before.get(name, 0) == count
    assert {user: deployment.ask(user=user, k=3)[1]["entry"] for user in answered} == answered
    deployment.swap(RERANKED)
    assert {deployment.ask(user=user, k=3)[1]["entry"] for user in answered} == {RERANKED}


def test_an_unknown_entry_and_a_token_that_is_missing_get_one_line(
    call: Call, toy_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PARETO_SEARCH_TOKEN", raising=False)
    assert "entry 'c0000-s03' is not on the front" in call("deploy", toy_run, "c0000-s03").complaint
    assert call("deploy", toy_run, ALONE, "--host", "0.0.0.0").complaint == (
        "--host 0.0.0.0 can be reached by others; set PARETO_SEARCH_TOKEN to a token of your choice"
    )
    said = call("deploy", toy_run, ALONE, "--address", "127.0.0.1:6379").complaint
    assert "set PARETO_SEARCH_TOKEN, and keep it for swaps" in said


def test_serves_own_config_runs_entries_behind_its_proxy(undisturbed: Finished, tmp_path: Path) -> None:
    [manifest] = yaml.safe_load_all((ROOT / "deploy" / "rayservice.yaml").read_text())
    config = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    front = load_front(undisturbed.run)
    names = [entry["entry"] for entry in front["front"][:2]]
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        port = line.getsockname()[1]
    config["http_options"] = {"host": "127.0.0.1", "port": port}
    config["applications"][0]["args"] = {"run": str(undisturbed.run), "entries": names}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "ray.serve.scripts", "run", str(tmp_path / "serve.yaml")]
    tokens = {"PARETO_SEARCH_TOKEN": TOKEN, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "another token"}
    with interruptible(), (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment() | tokens)
        try:
            deployed = Deployment(port, multiprocessing.Pipe()[0])
            eventually(lambda: process.poll() is not None or is_there(deployed))
            assert deployed.ask(user="u1", k=3)[1]["entry"] == names[0]
            assert deployed.ask(user="u1", k=3, entry=names[1])[1]["entry"] == names[1]
            assert deployed.send("/entries", token="Bearer wrong")[0] == 401
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()


def is_there(deployed: Deployment) -> bool:
    try:
        return deployed.send("/healthz", token="")[0] == 200
    except OSError:
        return False
