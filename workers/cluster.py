"""A Ray cluster that runs already, or a Ray of our own: reached, and asked whether it has room."""

import logging
import math
import os
import re
import socket
import time

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from pareto_search.errors import ClusterError, ParetoSearchError

PATIENCE = 10.0
"""Seconds to wait for a cluster's port to answer."""
_SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""The frame with which both sides of an HTTP/2 connection begin: length, type (the fourth byte), flags, stream."""
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS
TRIES = 3
"""How often somebody from outside a cluster asks it for a server of their own."""
FORKED = "Starting Ray client server failed"
"""What is said of a server that died as it was forked (github.com/ray-project/ray/issues/63202)."""
MISMATCH = "Version mismatch"
"""What Ray says, in six lines, where its or Python's version is another one there."""
JOINING = 15.0
"""Seconds for the nodes of a cluster to be all there."""


def connect(address: str | None, cpus: float) -> None:
    """Connects this process to a running Ray cluster, or starts a local Ray with at least so many CPUs.

    Raises:
        ClusterError: no Ray answers at the address, or none can be started.
    """
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a warning about GPUs
        try:
            ray.init(address="local", num_cpus=max(math.ceil(cpus), os.cpu_count() or 1), **quiet)
        except Exception as error:  # which is the type that Ray raises where a node takes too long to start
            raise ClusterError(
                f"a local Ray did not start: {in_one_line(error)}; is the machine overloaded?"
            ) from error
        return
    if address != "auto":
        _knock(address)
    for attempt in range(1, TRIES + 1):
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            return
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            forked = FORKED in str(error)
            if forked and attempt < TRIES:
                continue
            remedy = "start its head with GRPC_ENABLE_FORK_SUPPORT=0" if forked else "start one with `ray start --head`"
            if MISMATCH in str(error):
                raise ClusterError(
                    f"the Ray cluster at '{address}' has other versions: {' '.join(str(error).split())}; install the "
                    "cluster's here"
                ) from error
            raise ClusterError(f"no Ray cluster at '{address}': {in_one_line(error)}; {remedy}") from error


def _knock(address: str) -> None:
    """Finds out quickly that nobody answers; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"'{address}' is no Ray address; expected HOST:PORT, ray://HOST:PORT or auto")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE) as line:
            line.sendall(_GREETING)
            answer = line.recv(len(_SETTINGS))
    except OSError as error:
        raise ClusterError(
            f"nobody answers at Ray address '{address}' ({error.strerror or error}); check it, or start a cluster with "
            "`ray start --head`"
        ) from None
    if answer[3:4] != _SETTINGS[3:4] and os.environ.get("RAY_USE_TLS", "0") != "1":
        raise ClusterError(
            f"what answers at '{address}' is no Ray; check it, or start a cluster with `ray start --head`"
        )


def want_room(count: int, cpus: float, gpus: float, patience: float) -> None:
    """Refuses what the nodes can never give; Ray would wait for it without end.

    Args:
        patience: seconds for nodes that are still joining.
    """
    needs = {name: each for name, each in (("CPU", cpus), ("GPU", gpus)) if each}
    until = time.monotonic() + patience
    while True:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        places = sum(min(int(node.get(name, 0.0) / each + 1e-9) for name, each in needs.items()) for node in nodes)
        if places >= count:
            return
        if time.monotonic() >= until:
            break
        time.sleep(0.5)
    wish = " and ".join(f"{each:g} {name}s" for name, each in needs.items())
    have = "; ".join(", ".join(f"{node.get(n, 0.0):g} {n}s" for n in ("CPU", "GPU")) for node in nodes)
    raise ClusterError(
        f"{count} workers with {wish} each were asked for, but the cluster has room for {places} (nodes: {have}); "
        "lower workers.count, workers.cpus or workers.gpus, add nodes, or give --address for another cluster"
    )


def in_one_line(error: BaseException) -> str:
    """An error in one line, with its type where the message alone says little."""
    if isinstance(error, RayTaskError):
        error = error.cause or error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    text = lines[0] if not lines[0].endswith(":") else f"{lines[0]} {lines[-1]}"  # a traceback follows
    if isinstance(error, RayActorError):
        # Of an actor that could not start, Ray quotes the traceback, and what went wrong is its last line. Of one that
        # died, Ray lists ids ("pid: 7") before it says why.
        why = [line for line in lines[1:] if not re.match(r"[a-z_]+: ", line)]
        text = lines[-1] if error.actor_init_failed or not why else " ".join(why)
    return text if isinstance(error, ParetoSearchError) else f"{type(error).__name__}: {text}"[:300]
