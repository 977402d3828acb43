import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import ray
from running import Finished, eventually, pareto_search, started, title

from benchmarks import kills, small
from pareto_search import load_front
from pareto_search.errors import ClusterError
from pareto_search.store import Store
from pareto_search.workers.cluster import connect


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Node:
    """A Ray node on this machine."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process

    def family(self) -> list[psutil.Process]:
        """Its own processes, and those of its workers."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def workers(self) -> set[int]:
        """The ids of the processes on it that are actors."""
        return {p.pid for p in self.family() if title(p).startswith("ray::Worker")}

    def is_at_work(self) -> bool:
        """Whether a worker on it is in the middle of a candidate."""
        return any(title(p) == "ray::Worker.run" for p in self.family())

    def kill(self) -> None:
        """Ends it as a power cut does."""
        for process in (psutil.Process(self.process.pid), *self.family()):
            process.kill()
        self.process.wait()


@contextmanager
def node(folder: str, *options: str) -> Iterator[Node]:
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", "--num-gpus=0"]
    # Else a token in the home folder decides, for one of them; and as docs/cluster.md says, for those from outside.
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "GRPC_ENABLE_FORK_SUPPORT": "0"}
    # Both nodes would give their workers the same ports, unless the system chooses them.
    command += ["--min-worker-port=0", "--max-worker-port=0"]
    command += ["--disable-usage-stats", f"--dashboard-agent-listen-port={free_port()}", *options]
    with Path(folder, "output").open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        yield Node(process)
    finally:
        if process.poll() is None:
            family = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for left in psutil.wait_procs(family, timeout=5)[1]:
                left.kill()


@dataclass(frozen=True)
class Cluster:
    """A head node with one CPU, and where it is reached: by its own machine, and from outside."""

    head: Node
    address: str
    outside: str


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = tempfile.mkdtemp(prefix="ps-ray-")  # Ray's sockets want a short path
    address = f"127.0.0.1:{(port := free_port())}"
    options = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}"]
    try:
        client = free_port()
        with node(folder, *options, f"--ray-client-server-port={client}") as head:
            eventually(lambda: answers(port) and answers(client))
            yield Cluster(head, address, f"ray://127.0.0.1:{client}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def second(cluster: Cluster, tmp_path: Path) -> Iterator[Node]:
    """Another node, with one CPU too."""
    with node(str(tmp_path), f"--address={cluster.address}") as second:
        eventually(lambda: "Ray runtime started" in (tmp_path / "output").read_text())
        yield second


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_search_uses_the_workers_of_all_nodes_and_leaves_the_cluster_as_it_was(
    undisturbed: Finished, tmp_path: Path, cluster: Cluster, second: Node
) -> None:
    first, run = cluster.head, tmp_path / "run"
    with started("run", undisturbed.config, "--out", run, "--address", cluster.address) as driver:
        seen = eventually(lambda: (first.workers() and second.workers()) or driver.process.poll() is not None)
        ended = driver.end()
    assert ended.code == 0, ended.err
    assert seen is not True, "it ended without workers on both nodes"
    assert kills.essence(run) == kills.essence(undisturbed.run)
    eventually(lambda: not first.workers() | second.workers())
    assert first.process.poll() is None
    assert second.process.poll() is None


def test_a_node_killed_in_the_middle_of_a_candidate_costs_one_retry_on_another(
    undisturbed: Finished, tmp_path: Path, cluster: Cluster, second: Node
) -> None:
    run = tmp_path / "run"
    with started("run", undisturbed.config, "--out", run, "--address", cluster.address) as driver:
        eventually(lambda: second.is_at_work() or driver.process.poll() is not None)
        second.kill()
        ended = driver.end()
    assert ended.code == 0, ended.err
    assert kills.essence(run) == kills.essence(undisturbed.run)
    store = Store.open(run / "search.db")
    attempts, candidates = store.attempts(), store.candidates()
    store.close()
    assert Counter(a.state for a in attempts) == {"finished": len(candidates), "lost": 1}
    (lost,) = [a for a in attempts if a.state == "lost"]
    assert (lost.number, lost.worker_died) == (1, True)
    assert cluster.head.process.poll() is None


def test_more_gpus_than_the_cluster_has_are_refused_from_outside_too(
    undisturbed: Finished, tmp_path: Path, cluster: Cluster
) -> None:
    config = small.write_config(undisturbed.config.with_name("gpus.yaml"), workers={"gpus": 1})
    ended = pareto_search("run", config, "--out", tmp_path / "run", "--address", cluster.outside)
    assert "2 workers with 1 CPUs and 1 GPUs each were asked for, but the cluster has room for 0" in ended.complaint


FORKED = ("Starting Ray client server failed.", "head with GRPC_ENABLE_FORK_SUPPORT=0")


def test_a_cluster_of_other_versions_is_told_with_both(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise RuntimeError(
            "Version mismatch: The cluster was started with:\n    Ray: 2.50.0\n    Python: 3.12.1\n"
            "This process on 10.0.0.2 was started with:\n    Ray: 2.60.0\n    Python: 3.11.9\n"
        )

    monkeypatch.setattr(ray, "init", init)
    told = (
        "has other versions: .*Ray: 2.50.0 Python: 3.12.1 This .*Ray: 2.60.0 Python: 3.11.9; install the cluster's here"
    )
    with pytest.raises(ClusterError, match=told):
        connect(cluster.outside, cpus=1)


@pytest.mark.parametrize(
    ("failures", "saying", "calls"),
    [(2, FORKED, 3), (3, FORKED, 3), (1, ("No room.", "start one with `ray start --head`"), 1)],
)
def test_what_a_cluster_starts_for_somebody_from_outside_may_die_twice(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, failures: int, saying: tuple[str, str], calls: int
) -> None:
    asked = []

    def init(**settings: object) -> None:
        asked.append(settings["address"])
        if len(asked) <= failures:
            raise ConnectionAbortedError(f"Initialization failure from server:\n{saying[0]}")

    monkeypatch.setattr(ray, "init", init)
    with nullcontext() if failures < calls else pytest.raises(ClusterError, match=f"{saying[0]}.*{saying[1]}"):
        connect(cluster.outside, cpus=1)
    assert asked == [cluster.outside] * calls


def test_a_deployment_on_a_cluster_stays_until_it_is_taken_away(
    cluster: Cluster, undisturbed: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARETO_SEARCH_TOKEN", "a token for swaps")
    name, port = load_front(undisturbed.run)["front"][0]["entry"], free_port()
    at = ("--address", cluster.address)
    nothing = f"nothing is deployed on the cluster at {cluster.address}; "
    assert pareto_search("undeploy", *at).complaint.startswith(nothing)
    ended = pareto_search("deploy", undisturbed.run, name, *at, "--port", str(port))
    assert ended.code == 0, ended.err
    assert answers(port)
    assert pareto_search("undeploy", *at).code == 0
    assert not answers(port)
    assert pareto_search("undeploy", *at).complaint.startswith(nothing)


@contextmanager
def silence() -> Iterator[int]:
    """The port of a server that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield int(server.getsockname()[1])


def test_an_address_that_never_answers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pareto_search.workers.cluster.PATIENCE", 0.2)
    with silence() as port, pytest.raises(ClusterError, match=f"127.0.0.1:{port}.*ray start --head"):
        connect(f"127.0.0.1:{port}", 1)


def test_an_address_where_nobody_listens_is_refused_in_one_line(undisturbed: Finished, tmp_path: Path) -> None:
    at = f"127.0.0.1:{free_port()}"
    said = pareto_search("run", undisturbed.config, "--out", tmp_path / "run", "--address", at).complaint
    assert at in said
    assert "ray start --head" in said
