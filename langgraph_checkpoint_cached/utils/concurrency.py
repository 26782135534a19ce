"""Concurrent work over many items, bounded in how much runs at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


async def for_each(items: AsyncIterator[T], work: Callable[[T], Awaitable[object]], at_once: int) -> None:
    """Do the work for each item, so many at once. The first error ends all of it."""
    running: set[asyncio.Future[Any]] = set()
    try:
        async for item in items:
            while len(running) >= at_once:
                running = await _some_done(running)
            running.add(asyncio.ensure_future(work(item)))
        while running:
            running = await _some_done(running)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def iterate(items: Sequence[T]) -> AsyncIterator[T]:
    """The items, one after the other."""
    for item in items:
        yield item


async def _some_done(running: set[asyncio.Future[Any]]) -> set[asyncio.Future[Any]]:
    done, rest = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return rest
