"""Ray Serve: recommendations of a run's entries over HTTP.

    POST /recommend   a `Question` as JSON
    GET  /entries     what is served, the canary, and how many questions each entry has answered
    GET  /metrics     for Prometheus
    GET  /healthz     the only one without a token, which says nothing but that it is there

Each replica listens itself, and those of one machine share the port (SO_REUSEPORT): Serve's HTTP proxy would be one
more process on the way to an answer that takes less time than the way, and on two cores it alone stays below 200
requests a second (`benchmarks.serving`). Serve starts the replicas, looks after them and tells them when other entries
are to be served.
"""

import asyncio
import hashlib
import hmac
import logging
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any

import ray
import torch
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import ValidationError
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pareto_search.errors import ClusterError, ConfigError, ParetoSearchError
from pareto_search.publish import local
from pareto_search.question import Canary, Question
from pareto_search.recsys.dataset import Dataset
from pareto_search.workers.answer import Answer, Desk
from pareto_search.workers.cluster import connect

NAME = "pareto-search"
BATCH = 32
"""How many questions are computed together, at most."""
CPUS = 0.5
"""What a replica takes of a cluster."""
BODY = 1_000_000
"""Bytes that a request may have."""


class Counted:
    """What Prometheus reads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        label = ("entry",)
        self.answers = Counter("pareto_search_answers", "Questions answered", label, registry=self.registry)
        self.refusals = Counter("pareto_search_refusals", "Questions refused", ("status",), registry=self.registry)
        self.entries = Gauge("pareto_search_entries", "Entries that are served", registry=self.registry)
        self.seconds = Histogram(
            "pareto_search_answer_seconds",
            "Time to an answer",
            registry=self.registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
        )

    def by_entry(self) -> dict[str, int]:
        """How many questions each entry has answered."""
        samples = [s for metric in self.answers.collect() for s in metric.samples if s.name.endswith("_total")]
        return {s.labels["entry"]: int(s.value) for s in samples}


class Replica:
    """One process that answers; Serve calls `reconfigure` whenever it is to serve other entries."""

    def __init__(self, run: str, data: Dataset, host: str, port: int, base: str | None = None) -> None:
        torch.set_num_threads(1)
        self._run, self._data, self._base = local(run), data, base
        self._desk: Desk | None = None
        self._digest = b""
        self._counted = Counted()
        self._waiting: asyncio.Queue[tuple[Question, asyncio.Future[Answer | ParetoSearchError]]] = asyncio.Queue()
        self._host, self._port = host, port
        self._server: uvicorn.Server | None = None

    async def reconfigure(self, wish: dict[str, Any]) -> None:
        """Serves `entries` and `canary` of the wish to whoever has the token of which `token_sha256` is the hash.

        The new entries are loaded beside the old ones, which answer until then.
        """
        self._digest = bytes.fromhex(wish["token_sha256"])
        canary = Canary(**wish["canary"]) if wish["canary"] else None
        if self._desk is None:
            self._desk = await asyncio.to_thread(Desk, self._run, wish["entries"], self._data, self._base, canary)
            self._listen()
        else:
            await asyncio.to_thread(self._desk.swap, wish["entries"], canary)
        self._counted.entries.set(len(self._desk.names))

    def check_health(self) -> None:
        """Serve replaces a replica for which this raises."""
        if self._server is not None and not self._thread.is_alive():
            raise RuntimeError("the HTTP server has ended")

    def _listen(self) -> None:
        """Starts the HTTP server in a thread with a loop of its own, apart from the calls that Serve makes."""
        line = socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        line.bind((self._host, self._port))
        config = uvicorn.Config(
            self._application, interface="asgi3", ws="none", lifespan="off", log_level=logging.ERROR, access_log=False
        )
        self._server = uvicorn.Server(config)

        async def run() -> None:
            assert self._server is not None
            batches = asyncio.create_task(self._answer_in_batches())
            await self._server.serve([line])
            batches.cancel()

        self._thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
        self._thread.start()

    async def _application(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        response = await self._respond(request)
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        routes: dict[tuple[str, str], Callable[[Request], Awaitable[Response]]] = {
            ("POST", "/recommend"): self._recommend,
            ("GET", "/entries"): self._entries,
            ("GET", "/metrics"): self._metrics,
        }
        way = (request.method, request.url.path)
        if way == ("GET", "/healthz"):
            return JSONResponse({"status": "ok"})
        if not self._is_allowed(request):
            return self._refuse(401, "give the token: Authorization: Bearer TOKEN")
        if way not in routes:
            return self._refuse(404, f"nothing at {request.method} {request.url.path}")
        return await routes[way](request)

    def _is_allowed(self, request: Request) -> bool:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        # Hashes are compared, so that this process does not hold the token, and in constant time.
        return hmac.compare_digest(hashlib.sha256(token.encode()).digest(), self._digest) and scheme.lower() == "bearer"

    async def _recommend(self, request: Request) -> Response:
        began = time.perf_counter()
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > BODY:
                return self._refuse(413, f"the request is longer than {BODY} bytes")
        try:
            question = Question.model_validate_json(bytes(body))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "the request"
            return self._refuse(422, f"{place}: {first['msg'].removeprefix('Value error, ')}")
        assert self._desk is not None
        try:
            answer: Answer | ParetoSearchError = self._desk.known(question) or await self._computed(question)
        except ParetoSearchError as error:
            answer = error
        if isinstance(answer, ParetoSearchError):
            return self._refuse(422, str(answer))
        self._counted.answers.labels(answer.entry).inc()
        self._counted.seconds.observe(time.perf_counter() - began)
        return JSONResponse(asdict(answer))

    async def _computed(self, question: Question) -> Answer | ParetoSearchError:
        future: asyncio.Future[Answer | ParetoSearchError] = asyncio.get_running_loop().create_future()
        await self._waiting.put((question, future))
        return await future

    async def _answer_in_batches(self) -> None:
        """Answers whatever has gathered while the last batch was computed; nobody waits for a batch to fill."""
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < BATCH and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            assert self._desk is not None
            try:
                answers = await asyncio.to_thread(self._desk.answer, [question for question, _ in batch])
            except Exception as error:  # a bug must not end the loop on which all later questions wait
                logging.getLogger(__name__).exception("a batch failed")
                answers = [ParetoSearchError(f"it failed ({type(error).__name__}); see the log")] * len(batch)
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():  # its client may have gone
                    future.set_result(answer)

    async def _entries(self, _: Request) -> Response:
        assert self._desk is not None
        canary = self._desk.canary
        content = {
            "entries": self._desk.names,
            "canary": canary and asdict(canary),
            "answers": self._counted.by_entry(),
        }
        return JSONResponse(content)

    async def _metrics(self, _: Request) -> Response:
        return Response(generate_latest(self._counted.registry), media_type=CONTENT_TYPE_LATEST)

    def _refuse(self, status: int, detail: str) -> Response:
        self._counted.refusals.labels(str(status)).inc()
        return JSONResponse({"detail": detail}, status)


class Proxied(Replica):
    """A replica whose questions come through Serve's own HTTP proxy, which is what KubeRay's RayService looks after."""

    def _listen(self) -> None:
        self._batches = asyncio.get_running_loop().create_task(self._answer_in_batches())

    async def __call__(self, request: Request) -> Response:
        """What the proxy calls."""
        return await self._respond(request)


def application(run: str, names: Sequence[str], data: Dataset, *, token: str) -> Any:
    """Entries of a run as an application for Serve to run behind its proxy; how many replicas is its config's part."""
    wish = {"entries": list(names), "canary": None, "token_sha256": hashlib.sha256(token.encode()).hexdigest()}
    deployment = serve.deployment(Proxied).options(
        name="entries", user_config=wish, max_ongoing_requests=BATCH, ray_actor_options={"num_cpus": CPUS}
    )
    return deployment.bind(run, data, "", 0)


def deploy(
    run: str,
    names: Sequence[str],
    data: Dataset,
    *,
    token: str,
    canary: Canary | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
    address: str | None = None,
    notice: Callable[[str], None] = lambda _: None,
) -> None:
    """Serves entries of a run; where the same run is served already, its replicas change over to these entries.

    Args:
        run: a folder, or the URL of a published run, which each replica fetches.
        canary: an entry on trial beside them.
        address: of a running Ray cluster, whose nodes see the run; None starts a local Ray.
        replicas: processes; those of one machine share the port.
        notice: is told where the cluster has no room for them at the moment.

    Raises:
        ConfigError: something listens at the port already.
        ClusterError: Ray cannot be reached, or the replicas do not start; says why.
    """
    if not ray.is_initialized():  # a second call from the same process changes what the first one serves
        if address is None:
            _want_free(host, port)
        connect(address, cpus=replicas)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    deployment = serve.deployment(Replica).options(
        num_replicas=replicas,
        max_ongoing_requests=8,
        user_config={
            "entries": list(names),
            "canary": canary and asdict(canary),
            "token_sha256": hashlib.sha256(token.encode()).hexdigest(),
        },
        ray_actor_options={"num_cpus": CPUS},
        # Where nothing but user_config differs, Serve reconfigures its replicas in place; it would take code without
        # a version for new code, and replace them.
        version=hashlib.sha256(f"{run} {data.sha256} {host} {port}".encode()).hexdigest(),
        _internal=True,
    )
    wanted, free = replicas * CPUS, ray.available_resources().get("CPU", 0.0)
    if wanted > free and NAME not in serve.status().applications:  # those that change over have theirs
        notice(f"The deployment wants {wanted:g} CPUs, and the cluster has {free:g} free; waiting for them.")
    try:
        serve.start(proxy_location="Disabled")
        serve.run(deployment.bind(run, data, host, port), name=NAME, route_prefix=None)
    except RuntimeError as error:
        raise ClusterError(f"the deployment did not start: {_reason(error)}") from error


def undeploy(address: str) -> None:
    """Ends the deployment on a running Ray cluster.

    Raises:
        ClusterError: Ray cannot be reached, or nothing is deployed there.
    """
    connect(address, cpus=0)
    if NAME not in serve.status().applications:
        raise ClusterError(
            f"nothing is deployed on the cluster at {address}; expected what 'pareto-search deploy' left"
        )
    serve.delete(NAME)


def _want_free(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as line:
        if line.connect_ex((host, port)) == 0:
            raise ConfigError(f"port {port} of {host} is taken; give --port another one")


def _reason(error: BaseException) -> str:
    """The last line of a traceback that Serve quotes, which has what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
