"""Workers on Ray: local processes, or actors on a cluster. The one executor beside those of tests."""

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from pareto_search import __version__
from pareto_search.candidate import Attempt
from pareto_search.errors import ClusterError, ParetoSearchError, SearchError
from pareto_search.executor import Files, Outcome
from pareto_search.workers import scratch
from pareto_search.workers.actor import PackWorkerActor, WorkerActor
from pareto_search.workers.base import locate
from pareto_search.workers.cluster import JOINING, PATIENCE, connect, in_one_line, want_room
from pareto_search.workers.workload import Workload

START, PER_TEXT, PER_GIGABYTE = 300.0, 0.05, 60.0
"""Seconds within which workers must have started. A base model may have to be fetched, and reads every text once; for a
text those of a base model of 100 MB.
"""
SILENCE = 600.0
"""Seconds without a reply after which somebody who waits for one is told what is under way."""
SPARE = 3
"""How many workers may die or fail at their start until one has started again, for each that was asked for."""


QUICK = 1.0
"""While attempts take fewer seconds than this on average, each worker has a second one waiting: the way to the driver
and back would be a noticeable part of its time."""
RECENT = 0.2
"""The weight of the latest attempt in that average."""


@dataclass
class _Job:
    attempt: Attempt
    sources: Sequence[Files]
    began: float = 0.0  # when its worker took it up


class RayPool:
    """Actors with a resident base model; one that dies or hangs is replaced.

    Args:
        load: shared with all workers through Ray's object store.
        pack: how many attempts a worker runs side by side.
        timeout: seconds after which a running attempt counts as hung.
        address: of a running cluster, or None for a Ray of our own.
        notice: takes one line of text.

    Raises:
        ClusterError: nobody answers at the address, or the cluster lacks the CPUs or GPUs asked for.
    """

    def __init__(
        self,
        load: Workload,
        *,
        count: int,
        cpus: float = 1.0,
        gpus: float = 0.0,
        pack: int = 1,
        timeout: float = 600.0,
        address: str | None = None,
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._notice = notice
        self._timeout, self._cpus, self._gpus, self._pack = timeout, cpus, gpus, pack
        self._handles: dict[int, Any] = {}  # every worker, by number
        self._actors: dict[int, Any] = {}  # those that have started
        self._starting: dict[Any, tuple[int, float]] = {}
        self._jobs: dict[Any, _Job] = {}
        self._queues: dict[int, deque[Any]] = {}  # each worker's jobs; as many as are in a pack are under way
        self._homeless: deque[_Job] = deque()  # whose worker was taken away before it began with them
        self._average = math.inf
        self._setup: dict[str, Any] = {}
        self._spawned = 0
        self._spare = self._most_spare = SPARE * count
        self._identity: str | None = None
        size = sum(path.stat().st_size for path in locate(load.base, load.revision).weights)
        self._start = START + PER_GIGABYTE * size / 1e9 + PER_TEXT * len(load.texts) * max(1.0, size / 1e8)
        self._why = ""  # of the latest worker that could not start
        self._scratch = scratch.name()
        connect(address, count * cpus)
        try:
            want_room(count, cpus, gpus, patience=0.0 if address is None else JOINING)
            self._load = ray.put(load)
            for _ in range(count):
                self._spawn()
            self._await_all()
        except BaseException:
            self._leave()
            raise

    def __enter__(self) -> "RayPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers, and Ray where it is ours."""
        for actor in self._handles.values():
            ray.kill(actor)
        self._leave()

    def _leave(self) -> None:
        ray.shutdown()
        scratch.discard(self._scratch)

    @property
    def free(self) -> int:
        return sum(max(0, self._places - len(queue)) for queue in self._queues.values() if not self._is_alone(queue))

    @property
    def idle(self) -> int:
        return sum(not queue for queue in self._queues.values())

    @property
    def busy(self) -> int:
        return len(self._jobs) + len(self._homeless)

    @property
    def unused_gpus(self) -> float:
        """How many GPUs the cluster has beside workers that ask for none."""
        return 0.0 if self._gpus else float(ray.cluster_resources().get("GPU", 0.0))

    def submit(self, attempt: Attempt, sources: Sequence[Files] = ()) -> str:
        return f"w{self._place(_Job(attempt, sources))}"

    def wait(self) -> list[Outcome]:
        deadlines = [self._jobs[r].began + self._timeout for n in self._queues for r in self._under_way(n)]
        if done := self._await(list(self._jobs), min(deadlines, default=math.inf)):
            ready = [r for queue in self._queues.values() for r in queue if r in done]
            replies = {r: _reply(r) for r in ready}
            ready.sort(key=lambda r: isinstance(replies[r], RayError))  # of a pack, what has ended well is not lost
            return [outcome for r in ready if r in self._jobs for outcome in self._outcomes(r, replies[r])]
        over = time.monotonic() - self._timeout
        hung = [n for n in self._queues if any(self._jobs[r].began <= over for r in self._under_way(n))]
        error = f"still running after {self._timeout:g} s; raise search.candidate_timeout, or lower search.steps"
        return [outcome for n in hung for outcome in self._failed(n, error)]

    def tell_all(self, method: str, *arguments: object) -> None:
        """Calls a method on every worker, and on each that replaces one later."""
        shared = [ray.put(a) for a in arguments]
        self._setup[method] = shared
        starting = list(self._starting.values())
        self._starting.clear()
        for number, _ in starting:  # they know what was true before, and for some there may be no room: begun again
            ray.kill(self._handles.pop(number))
            self._spawn()
        told = {number: _call(actor, method, *shared) for number, actor in self._actors.items()}
        for number, reference in told.items():
            reply = _reply(reference)
            if _is_loss(reply):
                self._replace(number)  # by one that is told as it starts
            else:
                _checked(reply)

    def map(self, calls: Sequence[tuple[Any, ...]], *shared: object) -> list[Any]:
        """Spreads calls over the workers and returns their results in order; see `each`."""
        results: list[Any] = [None] * len(calls)
        for place, result in self.each(calls, *shared):
            results[place] = result
        return results

    def each(self, calls: Iterable[tuple[Any, ...]], *shared: object) -> Iterator[tuple[int, Any]]:
        """Spreads calls over the workers and yields the place of each and its result, as they come. What is lost with
        its worker is called once more.

        Args:
            calls: each a method's name and its arguments; taken as workers come free, but for one ahead.
            shared: further arguments, the same in all calls, which are sent once.
        """
        same = [ray.put(s) for s in shared]
        rest = enumerate(calls)
        waiting = list(islice(rest, 1))
        running: dict[Any, tuple[int, tuple[Any, ...], int]] = {}
        again: set[int] = set()
        found: list[tuple[int, Any]] = []
        silence = time.monotonic() + SILENCE
        while waiting or running:
            idle = self._actors.keys() - {n for *_, n in running.values()}  # also those that have just started
            for number in sorted(idle):
                if waiting:
                    place, call = waiting.pop()
                    running[_call(self._actors[number], *call, *same)] = place, call, number
                    waiting += [] if waiting else islice(rest, 1)
            if found:
                yield from found  # while their workers are about the next
                found, silence = [], time.monotonic() + SILENCE
            replied = self._await(list(running), silence)
            if not replied and time.monotonic() < silence:
                continue  # a worker has started, or has not
            if not replied:
                under_way = ", ".join(f"{method} by w{number}" for _, (method, *_), number in running.values())
                what = under_way or "workers start"
                self._notice(f"Nothing has ended for {SILENCE / 60:g} minutes; under way: {what}.")
            silence = time.monotonic() + SILENCE
            for reference in replied:
                place, call, number = running.pop(reference)
                reply = _reply(reference)
                if _is_loss(reply) and place not in again:
                    again.add(place)
                    waiting.append((place, call))
                    self._replace(number)
                    self._replace_dead({n for *_, n in running.values()})
                else:
                    found.append((place, _checked(reply)))
        yield from found

    def _await(self, references: list[Any], deadline: float = math.inf) -> list[Any]:
        """Waits until some of these are there, or a worker has started, or one takes too long for it.

        Returns:
            Those that are there; none, too, at the deadline.

        Raises:
            ClusterError: there is nothing to wait for, or a new worker is not as the others are.
        """
        if not references and not self._starting:
            raise ClusterError(
                f"no worker is left and none could be started{self._why}; see to the cluster and resume the search"
            )
        until = min([deadline, *(began + self._start for _, began in self._starting.values())])
        patience = None if until == math.inf else max(0.0, until - time.monotonic())
        done, rest = ray.wait([*references, *self._starting], num_returns=1, timeout=patience)
        if done and rest:
            done += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        for reference in [r for r in done if r in self._starting]:
            try:
                self._admit(reference)
            except RayError as error:
                self._why = f" ({in_one_line(error)})"
                self._notice(f"A worker could not be started again{self._why}; {self._spare} tries are left.")
                if self._spare:  # its node may have come back too early
                    self._spare -= 1
                    self._spawn()
        now = time.monotonic()
        for reference in [r for r, (_, began) in self._starting.items() if now - began >= self._start]:
            ray.kill(self._handles.pop(self._starting.pop(reference)[0]))
            self._why = f" within {self._start:g} s"
            if self._actors:  # its node may come back, and who waits for nobody else is told
                self._spawn()
        return [r for r in done if r in references]

    def _spawn(self) -> None:
        """Starts one more worker, which counts as free once it has its base model and components."""
        device = "cuda" if self._gpus else "cpu"
        options = {"num_cpus": self._cpus, "num_gpus": self._gpus, "max_restarts": 0}
        if self._pack == 1:
            remote = ray.remote(**options)(WorkerActor)
        else:
            remote = ray.remote(**options, max_concurrency=self._pack)(PackWorkerActor)
        actor = remote.remote(self._load, self._cpus, device, self._scratch)
        # Of an actor that does several things at once, Ray does not keep the order of the calls.
        before = [_call(actor, method, *shared) for method, shared in self._setup.items()]
        self._spawned += 1
        self._handles[self._spawned] = actor
        self._starting[_call(actor, "identity", *before)] = self._spawned, time.monotonic()

    def _await_all(self) -> None:
        """Waits for the first workers, which must all be there."""
        until = time.monotonic() + self._start
        while self._starting:
            done, _ = ray.wait(list(self._starting), num_returns=1, timeout=max(0.0, until - time.monotonic()))
            if not done:
                raise ClusterError(
                    f"not all workers have started within {self._start:g} s; the cluster may be in others' use: ask "
                    "for fewer workers, or wait"
                )
            try:
                self._admit(done[0])
            except RayError as error:
                _checked(error)

    def _admit(self, reference: Any) -> None:
        """A worker has started and says what it is; one that died without a word is begun again.

        Raises:
            ClusterError: it is not as the others are.
            RayError: it could not start.
        """
        number, _ = self._starting.pop(reference)
        try:
            identity: str = ray.get(reference)
        except RayError as error:
            ray.kill(self._handles.pop(number))
            # That a node goes, or a process is killed, says nothing about the next one.
            if isinstance(error, RayActorError) and not error.actor_init_failed and self._spare:
                self._spare -= 1
                self._spawn()
                return
            raise
        release = identity.partition(" ")[0]
        if release != __version__:
            raise ClusterError(
                f"a worker has pareto-search {release}, and this command {__version__}; install one release on every "
                "node and here"
            )
        self._identity = self._identity or identity
        if identity != self._identity:
            raise ClusterError(
                f"the workers differ in base model or precision: {self._identity} and {identity}; install the same "
                "base model on every node, and set model.dtype"
            )
        self._actors[number] = self._handles[number]
        self._queues[number] = deque()
        self._spare = self._most_spare
        self._house()

    @property
    def _places(self) -> int:
        """How many attempts each worker may have."""
        if self._pack > 1:
            return self._pack  # none has to wait there: while one's reply is on its way, the others train on
        return 2 if self._average < QUICK else 1

    def _place(self, job: _Job) -> int:
        """Puts a job into the shortest queue."""
        open_to_it = [n for n, queue in self._queues.items() if not self._is_alone(queue)]
        number = min(open_to_it, key=lambda n: (len(self._queues[n]), n))
        method = "run" if self._pack == 1 else "run_beside"
        reference = _call(self._actors[number], method, job.attempt, job.sources)
        self._jobs[reference] = job
        self._queues[number].append(reference)
        if reference in self._under_way(number):
            job.began = time.monotonic()
        return number

    def _house(self) -> None:
        """Gives jobs that lost their worker before it began with them to others, where they may be beside something."""
        while self._homeless and not all(map(self._is_alone, self._queues.values())):
            self._place(self._homeless.popleft())

    def _is_alone(self, queue: deque[Any]) -> bool:
        """Whether nothing may run beside what is in the queue."""
        return any(self._jobs[reference].attempt.alone for reference in queue)

    def _under_way(self, number: int) -> list[Any]:
        """What a worker is busy with, of all that waits for it."""
        return list(islice(self._queues[number], self._pack))

    def _take(self, number: int, reference: Any) -> _Job:
        """A job that a worker was busy with; the next one begins."""
        before = self._under_way(number)
        self._queues[number].remove(reference)
        for begun in self._under_way(number):
            if begun not in before:
                self._jobs[begun].began = time.monotonic()
        job = self._jobs.pop(reference)
        self._house()
        return job

    def _replace(self, number: int) -> None:
        """Ends a worker and starts another; what waited for it is not to blame, and waits elsewhere."""
        self._actors.pop(number)
        ray.kill(self._handles.pop(number))
        for reference in self._queues.pop(number):
            self._homeless.append(self._jobs.pop(reference))
        self._spawn()
        self._house()

    def _replace_dead(self, busy: Collection[int]) -> None:
        """Replaces those of the other workers that have died too, as all on one node do."""
        pings = {_call(actor, "identity"): number for number, actor in self._actors.items() if number not in busy}
        if pings:
            for reference in ray.wait(list(pings), num_returns=len(pings), timeout=PATIENCE)[0]:
                if _is_loss(_reply(reference)):
                    self._replace(pings[reference])

    def _outcomes(self, reference: Any, reply: Any) -> list[Outcome]:
        number = next(n for n, queue in self._queues.items() if reference in queue)
        if _is_loss(reply):
            found = self._failed(number, f"the worker died: {in_one_line(reply)}", lost=True)
            self._replace_dead({n for n, queue in self._queues.items() if queue})
            return found
        if isinstance(reply, RayTaskError):
            # After a fault on a GPU, the process can do nothing more with it; in a pack, it may be another's fault.
            if (self._gpus or self._pack > 1) and not isinstance(reply.cause, ParetoSearchError):
                return self._failed(number, in_one_line(reply))
            job = self._take(number, reference)
            return [Outcome(job.attempt, error=in_one_line(reply), seconds=time.monotonic() - job.began)]
        job, result = self._take(number, reference), reply
        if not job.attempt.candidate.is_warm_start:
            known = self._average if math.isfinite(self._average) else result.seconds
            self._average = (1 - RECENT) * known + RECENT * result.seconds
        return [Outcome(job.attempt, result, seconds=time.monotonic() - job.began)]

    def _failed(self, number: int, error: str, lost: bool = False) -> list[Outcome]:
        """Ends a worker, and what was under way there; whichever of its references told first.

        Of several, each may be to blame: all are lost, and tried again alone.
        """
        jobs = [self._jobs.pop(r) for r in self._under_way(number)]
        for _ in jobs:
            self._queues[number].popleft()
        self._replace(number)
        lost = lost or len(jobs) > 1
        now = time.monotonic()
        return [Outcome(job.attempt, error=error, lost=lost, seconds=now - job.began) for job in jobs]


def _reply(reference: Any) -> Any:
    """What a call has brought, an error too, which is not raised."""
    try:
        return ray.get(reference)
    except RayError as error:
        return error


def _is_loss(reply: Any) -> bool:
    """Whether a call was lost with its worker or node."""
    return isinstance(reply, RayError) and not isinstance(reply, RayTaskError)


def _checked(reply: Any) -> Any:
    """What a call has brought, unless it is an error, which is raised in a user's words."""
    if isinstance(reply, RayTaskError):
        if isinstance(reply.cause, ParetoSearchError):
            raise reply.cause from None
        raise SearchError(f"a worker failed: {in_one_line(reply)}") from reply
    if isinstance(reply, RayError):
        raise SearchError(f"a worker could not start or died: {in_one_line(reply)}") from reply
    return reply


def _call(actor: Any, method: str, *arguments: object) -> Any:
    """A reference to what a worker will answer; Ray and the list of processes call the task by the method's name."""
    return actor.call.options(name=f"Worker.{method}").remote(method, *arguments)
