"""A service as its users have it: a process of its own, reached over HTTP."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from running import PATIENCE, alive, environment, eventually

from benchmarks import small

TOKEN = "a-token-that-only-tests-know"
ENDED = ("finished", "failed", "paused", "cancelled")


@dataclass
class Service:
    """A `pareto-search serve` under way."""

    process: "subprocess.Popen[str]"
    address: str
    root: Path

    def client(self, token: str | None = TOKEN) -> httpx.Client:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.address, headers=headers, timeout=PATIENCE)

    def kill(self) -> None:
        """Ends it as a power cut would; its searches know nothing of it."""
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


@contextmanager
def serving(root: Path, *options: str | Path, token: str | None = TOKEN) -> Iterator[Service]:
    """A service under way; what is left of it, of its searches and of its deployments is killed afterwards."""
    command = [sys.executable, "-c", "from pareto_search.cli import main; main()", "serve", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--root", str(root), *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment("PARETO_SEARCH_TOKEN") | ({"PARETO_SEARCH_TOKEN": token} if token else {}),
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.search(r"http://\S+", said)
        assert found, said + process.communicate()[1]
        yield Service(process, found[0], root)
    finally:
        process.kill()
        process.communicate()
        for runner in [*runners(root), *deployers(root)]:
            for child in [*runner.children(recursive=True), runner]:
                with suppress(psutil.NoSuchProcess):
                    child.kill()


def runners(root: Path) -> list[psutil.Process]:
    """The processes of searches under a root."""
    return _processes("pareto_search.service.runner", root)


def deployers(root: Path) -> list[psutil.Process]:
    """The processes of deployments under a root."""
    return _processes("pareto_search.service.deployer", root)


def _processes(module: str, root: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = " ".join(process.cmdline())
            if module in command and str(root) in command and alive(process):
                found.append(process)
    return found


def material(folder: Path) -> tuple[list[str | Path], dict[str, Any]]:
    """The small data and base model as options of a service, and the small config with their names and one worker."""
    config = yaml.safe_load(small.make(folder, workers={"count": 1}).read_text())
    options: list[str | Path] = ["--data", f"small={folder / 'search.yaml'}", "--base", f"tiny={folder / 'base'}"]
    return options, {**config, "data": {"source": "small"}, "model": {**config["model"], "base": "tiny"}}


def ended(client: httpx.Client, search: str) -> dict[str, Any]:
    """The search once it has come to rest, as the service's events tell it."""
    last: dict[str, Any] = {}
    with client.stream("GET", f"/v1/searches/{search}/events") as events:
        assert events.headers["content-type"].startswith("text/event-stream")
        for line in events.iter_lines():
            if line.startswith("data:"):
                last = json.loads(line.removeprefix("data:"))
    assert last["state"] in ENDED, last
    return last


def finished(client: httpx.Client, search: str) -> dict[str, Any]:
    """The search once it has come to rest, which it does by reaching its end; what kept it from it, otherwise."""
    found = ended(client, search)
    assert found["state"] == "finished", found
    return found


def begun(client: httpx.Client, search: str) -> dict[str, Any]:
    """The search once a candidate has finished."""

    def look() -> dict[str, Any] | None:
        found: dict[str, Any] = client.get(f"/v1/searches/{search}").json()
        assert found["state"] not in ENDED, found
        return found if found["progress"] else None

    return eventually(look)


@contextmanager
def saying(told: bytes) -> Iterator[str]:
    """The address of somebody who says this to whoever asks first."""

    def answer() -> None:
        line, _ = listener.accept()
        with line:
            line.sendall(told)
            line.shutdown(socket.SHUT_WR)
            while line.recv(1 << 16):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(PATIENCE)
