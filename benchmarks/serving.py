"""Recommendations over HTTP beside a bare server that does one dot product a request, in the same run.

    python -m benchmarks.serving RUN [--seconds 5] [--json FILE]

Measured are one client and 32 of them on keep-alive connections, known users: when they ask for the first time, which
is computed (half of them ask through the one client, the others through the 32), and from then on, which comes from
memory; at least 1,000 requests while the deployment changes over to other entries; and, for comparison, a deployment
that does nothing behind Serve's own HTTP proxy. The load comes from this process: it takes its share of the cores in
each case.
"""

import argparse
import asyncio
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from pareto_search import launch
from pareto_search.recsys.dataset import load
from pareto_search.results import load_front

CLIENTS = 32
SWAP = 1_000
TOKEN = "benchmark"
BARE = """
import sys
import numpy as np, uvicorn
from fastapi import FastAPI
rng = np.random.default_rng(0)
users, items = rng.normal(size=(943, 128)).astype("f4"), rng.normal(size=(1682, 128)).astype("f4")
app = FastAPI()
@app.post("/recommend")
async def recommend(question: dict) -> dict:
    scores = items @ users[int(question["user"]) % 943]
    best = np.argpartition(-scores, 10)[:10]
    best = best[np.argsort(-scores[best])]
    return {"items": [{"item": int(i), "score": float(scores[i])} for i in best]}
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", access_log=False)
"""


class Client:
    """One keep-alive connection; little more than the bytes, so that the load costs little."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> "Client":
        self._in, self._out = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._out.close()

    async def ask(self, question: dict[str, Any]) -> int:
        """The status of one request; 0 where the connection broke."""
        body = json.dumps(question)
        headers = ("Host: x", f"Authorization: Bearer {TOKEN}", f"Content-Length: {len(body)}")
        head = "\r\n".join(("POST /recommend HTTP/1.1", *headers, "Content-Type: application/json"))
        try:
            self._out.write(f"{head}\r\n\r\n{body}".encode())
            answer = await self._in.readuntil(b"\r\n\r\n")
            length = int(answer.lower().partition(b"content-length:")[2].partition(b"\r")[0])
            await self._in.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            return 0
        return int(answer.split(b" ", 2)[1])


async def drive(port: int, users: list[str], clients: int, until: Callable[[int], bool]) -> tuple[list[float], int]:
    """Keeps clients busy; returns the seconds of each request and how many failed.

    Args:
        until: from the number of requests begun to whether that is enough.
    """
    times: list[float] = []
    failed = begun = 0

    async def one() -> None:
        nonlocal failed, begun
        async with Client(port) as client:
            while not until(begun):
                begun += 1
                began = time.perf_counter()
                failed += await client.ask({"user": users[begun % len(users)], "k": 10}) != 200
                times.append(time.perf_counter() - began)

    await asyncio.gather(*(one() for _ in range(clients)))
    return times, failed


def measure(port: int, users: list[str], seconds: float) -> dict[str, float]:
    """Latency and throughput with one client and with many, in milliseconds and requests a second: of the first request
    of each user, none of whom has asked before, and of later ones.
    """
    figures: dict[str, float] = {}
    for name, clients, new in (("one_first", 1, users[::2]), ("many_first", CLIENTS, users[1::2])):
        figures |= asked(name, port, new, clients, once(new))
    for name, clients in (("one", 1), ("many", CLIENTS)):
        figures |= asked(name, port, users, clients, after(seconds))
    return figures


def asked(name: str, port: int, users: list[str], clients: int, until: Callable[[int], bool]) -> dict[str, float]:
    """What `drive` finds, under this name."""
    began = time.perf_counter()
    times, failed = asyncio.run(drive(port, users, clients, until))
    took = time.perf_counter() - began
    return {
        f"{name}_p50_ms": 1000 * float(np.median(times)),
        f"{name}_p99_ms": 1000 * float(np.quantile(times, 0.99)),
        f"{name}_per_second": len(times) / took,
        f"{name}_failed": failed,
    }


def once(users: list[str]) -> Callable[[int], bool]:
    """Whether each of them has asked."""
    return lambda begun: begun >= len(users)


def after(seconds: float) -> Callable[[int], bool]:
    """Whether so much time has passed from now on, however many requests were begun."""
    end = time.perf_counter() + seconds
    return lambda _: time.perf_counter() > end


def swap(port: int, users: list[str], change: Callable[[], None]) -> dict[str, float]:
    """At least `SWAP` requests, for as long as a change of the entries takes."""
    thread = threading.Thread(target=change)
    began = time.perf_counter()
    thread.start()
    times, failed = asyncio.run(drive(port, users, 8, lambda begun: begun >= SWAP and not thread.is_alive()))
    thread.join()
    took, p99 = time.perf_counter() - began, 1000 * float(np.quantile(times, 0.99))
    return {"requests": len(times), "failed": failed, "seconds": took, "p99_ms": p99}


def proxied(port: int, users: list[str], seconds: float) -> dict[str, float]:
    """What Serve's HTTP proxy gives of a deployment that does nothing."""

    class Nothing:
        async def __call__(self, request: Request) -> Response:
            await request.body()
            return Response("{}")

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        options: dict[str, Any] = {"max_ongoing_requests": 2 * CLIENTS, "ray_actor_options": {"num_cpus": 0.5}}
        serve.run(serve.deployment(Nothing).options(**options).bind(), route_prefix="/recommend")
        return measure(port, users, seconds)
    finally:
        ray.shutdown()


def free_port() -> int:
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        return int(line.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    users = list(load(**launch.load_config(options.run).data.arguments()).user_ids)
    names = [entry["entry"] for entry in load_front(options.run)["front"]]
    bare, port = free_port(), free_port()
    server = subprocess.Popen([sys.executable, "-c", BARE, str(bare)])
    try:
        _await(bare)
        found: dict[str, Any] = {"proxy": proxied(free_port(), users, options.seconds)}
        launch.deploy(options.run, names[:2], token=TOKEN, port=port)
        found |= {
            "bare": measure(bare, users, options.seconds),
            "deployment": measure(port, users, options.seconds),
            "swap": swap(port, users, lambda: launch.deploy(options.run, names[1:4], token=TOKEN, port=port)),
        }
    finally:
        server.terminate()
    found["ratios"] = {name: found["deployment"][name] / value for name, value in found["bare"].items() if value}
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


def _await(port: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with socket.socket() as line:
            if line.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit("the bare server did not start")


if __name__ == "__main__":
    main()
