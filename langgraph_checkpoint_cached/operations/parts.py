"""What a saver is made of, for commands that look below its face."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from psycopg.rows import DictRow

from langgraph_checkpoint_cached.operations.servers import Servers
from langgraph_checkpoint_cached.saver import CachedPostgresSaver
from langgraph_checkpoint_cached.stores.clients import AnyRedis
from langgraph_checkpoint_cached.stores.entries import RedisEntries, RedisUnavailable
from langgraph_checkpoint_cached.stores.guard import Guard
from langgraph_checkpoint_cached.stores.postgres import PostgresStore
from langgraph_checkpoint_cached.stores.scripts import Script
from langgraph_checkpoint_cached.tiers.checker import Checker
from langgraph_checkpoint_cached.tiers.reader import Reader
from langgraph_checkpoint_cached.tiers.recovery import Recovery
from langgraph_checkpoint_cached.tiers.settler import Settler

T = TypeVar("T")


@dataclass(frozen=True)
class Parts:
    """A saver and its parts."""

    servers: Servers
    saver: CachedPostgresSaver
    client: AnyRedis
    guard: Guard
    postgres: PostgresStore
    recovery: Recovery
    settler: Settler
    reader: Reader
    entries: RedisEntries
    checker: Checker

    @classmethod
    @asynccontextmanager
    async def opened(cls, servers: Servers, *, refresh_on_read: bool = False) -> AsyncIterator[Parts]:
        """Those of a saver that lives for the block. As `Servers.saver`."""
        async with servers.saver(refresh_on_read=refresh_on_read) as saver:
            reader = saver._reader
            yield cls(
                servers,
                saver,
                saver._redis,
                saver._guard,
                saver._postgres,
                saver._recovery,
                saver._settler,
                reader,
                reader._entries,
                reader._checker,
            )

    async def query(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[DictRow]:
        """The rows of a query in Postgres. Raises psycopg's errors."""
        async with self.postgres.stock()._cursor() as cur:
            await cur.execute(sql, parameters)
            return await cur.fetchall()

    async def on_redis(self, script: Script, keys: Sequence[str]) -> Any:
        """What a script answers. Raises `RedisUnavailable`."""
        return await self.guard.submit(script, keys, [])


async def for_each(items: AsyncIterator[T], work: Callable[[T], Awaitable[object]], at_once: int) -> None:
    """Does the work for each item, so many at once. The first error ends all of it."""
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


async def each_of(items: Sequence[T]) -> AsyncIterator[T]:
    """The items, one after the other."""
    for item in items:
        yield item


async def _some_done(running: set[asyncio.Future[Any]]) -> set[asyncio.Future[Any]]:
    done, rest = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return rest


__all__ = ["Parts", "RedisUnavailable", "each_of", "for_each"]
