"""Opening of a saver with a pool and a Redis client of its own, and closing of all three."""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Generic, TypeVar

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

from langgraph_checkpoint_cached.arguments import ConnectionSettings
from langgraph_checkpoint_cached.engine.engine import Engine
from langgraph_checkpoint_cached.event_loop import LoopAccess
from langgraph_checkpoint_cached.stores.postgres.pool import opened, postgres_pool
from langgraph_checkpoint_cached.stores.redis.url import redis_client
from langgraph_checkpoint_cached.thread_operations import ThreadOperationsMixin

S = TypeVar("S", bound=ThreadOperationsMixin)


class Opening(AbstractAsyncContextManager[S], Generic[S]):
    """Context manager for a saver, which is closed when the block is left.

    It is also closed when nothing refers to it any more, and when its event loop ends, as that of `asyncio.run`
    does: that cancels all tasks, the one that waits here to close the saver too, and waits for them. A forked
    child that leaves the block closes nothing.

    Args:
        make: Class of the saver.
        settings: What to connect to. The clients are made at once, and connect when the block is entered.
    """

    def __init__(self, make: Callable[..., S], settings: ConnectionSettings) -> None:
        self._make, self._options = make, settings.saver_options
        self._pool = postgres_pool(
            settings.postgres_uri,
            min_size=settings.pool_min_size,
            max_size=settings.pool_max_size,
            timeout_seconds=settings.pool_timeout_seconds,
            max_idle_seconds=settings.pool_max_idle_seconds,
            max_lifetime_seconds=settings.pool_max_lifetime_seconds,
        )
        self._client = redis_client(
            settings.redis_url,
            max_connections=settings.redis_max_connections,
            timeout_seconds=settings.redis_timeout_seconds,
        )
        self._process: int
        self._leave: asyncio.Event
        self._closing: asyncio.Task[None]

    async def __aenter__(self) -> S:
        clients = opened(self._pool, self._client)
        await clients.__aenter__()
        try:
            upstream = AsyncPostgresSaver(self._pool, serde=self._options.get("serde"))
            saver = self._make(self._client, upstream, **self._options)
        except BaseException:
            await clients.__aexit__(None, None, None)
            raise
        access, self._leave, self._process = saver._access, asyncio.Event(), os.getpid()
        self._closing = asyncio.ensure_future(
            _close_after(self._leave, weakref.ref(access), saver._engine, clients)
        )
        weakref.finalize(access, _set_later, asyncio.get_running_loop(), self._leave).atexit = False
        return saver

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if os.getpid() == self._process:
            self._leave.set()
            await self._closing


async def _close_after(
    leave: asyncio.Event,
    access: weakref.ref[LoopAccess],
    engine: Engine,
    clients: AbstractAsyncContextManager[None],
) -> None:
    """Close all that a saver has open, without a reference to it, after the event or when cancelled.

    A forked child closes nothing.
    """
    process = os.getpid()
    try:
        await leave.wait()
    finally:
        if os.getpid() == process:
            if (of_saver := access()) is not None:
                of_saver.close()
            try:
                await engine.close()
            finally:
                await clients.__aexit__(None, None, None)


def _set_later(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(event.set)
