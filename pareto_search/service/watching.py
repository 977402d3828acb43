"""Server-sent events: who watches hears of every change."""

from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import anyio
from fastapi import Request

EVERY = 0.5
"""Seconds between two looks on behalf of who watches."""

T = TypeVar("T")


async def changes(request: Request, look: Callable[[], T]) -> AsyncIterator[T]:
    """What is to be seen, at once and whenever it has changed, until nobody listens any more."""
    said = None
    while not await request.is_disconnected():
        now = await anyio.to_thread.run_sync(look)
        if now != said:
            yield now
            said = now
        await anyio.sleep(EVERY)
