"""A worker where Ray puts it: torch and transformers are imported there, and not by the driver."""

from inspect import isawaitable
from typing import Any

from pareto_search.workers.workload import Workload


class WorkerActor:
    """Passes calls on to its worker, one at a time."""

    def __init__(self, load: Workload, cpus: float, device: str, scratch: str) -> None:
        from pareto_search.workers.worker import Worker

        self._worker = Worker(load, cpus, device, scratch)

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._worker, method)(*arguments)


class PackWorkerActor:
    """Passes calls on to its worker, several at a time where they wait for each other."""

    def __init__(self, load: Workload, cpus: float, device: str, scratch: str) -> None:
        from pareto_search.workers.worker import PackWorker

        self._worker = PackWorker(load, cpus, device, scratch)

    async def call(self, method: str, *arguments: Any) -> Any:
        answer = getattr(self._worker, method)(*arguments)
        return await answer if isawaitable(answer) else answer
