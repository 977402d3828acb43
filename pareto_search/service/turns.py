"""What few may ask for at a time, because each takes much memory, or may take for ever."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pareto_search.service.record import ConflictError


class Turns:
    """A queue that few stand in: whoever waits holds one of the service's threads.

    Args:
        most: how many may be in it.
        at_once: how many of them have their turn at the same time.
    """

    def __init__(self, most: int = 8, at_once: int = 1) -> None:
        self._room, self._turn = threading.BoundedSemaphore(most), threading.Semaphore(at_once)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """A turn for the length of the block.

        Raises:
            ConflictError: too many wait already.
        """
        if not self._room.acquire(blocking=False):
            raise ConflictError("too many wait for this already; ask again in a moment")
        try:
            with self._turn:
                yield
        finally:
            self._room.release()
