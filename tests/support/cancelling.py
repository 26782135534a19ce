"""Cancelling a call at a moment, and what may be left after that: nothing."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.demo.embedded import free_port
from langgraph_checkpoint_cached.stores.redis.keys import thread_key
from langgraph_checkpoint_cached.stores.redis.reply_reader import ReplyReader
from tests.support.agreement import PATIENT_SECONDS, new_checkpoint, new_saver, on_thread
from tests.support.inspect import (
    connections_in_use,
    free_connections,
    idle_postgres_connections,
    inspect,
)

KINDS = ("pool", "single", "pipeline")
TICKS = 2
"""Turns of the loop after each event, in each of which there is a cancellation."""
TICKS_TO_GO = 10
"""In which a cancelled caller must be gone, whatever goes on for it."""
ENDED_IN_A_ROW = 3
FIRST, SECOND, THIRD = (
    new_checkpoint(channel_values={"x": f"value {n}"}, channel_versions={"x": f"{n:032}.0"}) for n in range(1, 4)
)
OPTIONS: dict[str, Any] = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}

Saver: TypeAlias = "CachedPostgresSaver | AsyncPostgresSaver"


def at(thread: str, checkpoint: Any) -> Any:
    return on_thread(thread, checkpoint_ns="", checkpoint_id=checkpoint["id"])


async def put(saver: Saver, thread: str, checkpoint: Any = THIRD, parent: Any = SECOND) -> None:
    metadata: Any = {"source": "loop", "step": 1, "parents": {}, "run_id": "a run"}
    await saver.aput(at(thread, parent), checkpoint, metadata, checkpoint["channel_versions"])


# -- when --------------------------------------------------------------------------------------------------------


class Events:
    """Does something at the n-th time that something goes to a server, or has come from one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._left = 0
        self._fire: Callable[[], object] | None = None
        for owner, name in (
            (AbstractConnection, "send_packed_command"),
            (AbstractConnection, "read_response"),
            (AsyncConnection, "wait"),
        ):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))
        for name in ("send", "data_received"):
            monkeypatch.setattr(ReplyReader, name, self._counted_at_once(getattr(ReplyReader, name)))

    def at(self, event: int, fire: Callable[[], object] | None) -> None:
        self._left, self._fire = event + 1, fire
        self._happened()  # event 0 is now

    def _happened(self) -> None:
        self._left -= 1
        if self._left == 0 and self._fire is not None:
            self._fire()

    def _counted(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def counted(*args: Any, **kwargs: Any) -> Any:
            self._happened()
            answer = await method(*args, **kwargs)
            self._happened()
            return answer

        return counted

    def _counted_at_once(self, method: Callable[..., None]) -> Callable[..., None]:
        def counted(*args: Any) -> None:
            self._happened()
            method(*args)
            self._happened()

        return counted


async def was_cancelled(call: Awaitable[Any], events: Events, moment: int) -> bool:
    """Cancels the call some event-loop iterations after an event, every other time more than once. Whether that
    was before it ended. Its caller is gone at once.
    """
    event, ticks = divmod(moment, TICKS)
    loop = asyncio.get_running_loop()
    task, fired = asyncio.ensure_future(call), loop.create_future()
    more_than_once = (event + ticks) % 2 == 1

    def fire(ticks: int = ticks) -> None:
        if ticks:
            loop.call_soon(fire, ticks - 1)
            return
        for _ in range(1 + more_than_once):
            task.cancel()
        fired.set_result(None)

    events.at(event, fire)
    await asyncio.wait((task, fired), timeout=PATIENT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    events.at(0, None)
    for _ in range(TICKS_TO_GO):
        if not task.done():
            if more_than_once:
                task.cancel()
            await asyncio.sleep(0)
    assert task.done(), "the caller is kept"
    if not task.cancelled():
        task.result()  # an error is the test's
    return task.cancelled()


async def moments(run: Callable[[int], Awaitable[bool]], *, stride: int = 1) -> None:
    """Runs something that is cancelled, at each moment until it ended before that, which it does several times.

    With a stride, at the first moment and at some by chance, so far from each other.
    """
    ended = moment = 0
    while ended < ENDED_IN_A_ROW:
        ended = 0 if await run(moment) else ended + 1
        moment += stride if moment else random.randint(1, stride)
    assert moment > stride * (ENDED_IN_A_ROW + 1) + TICKS, "it was hardly ever cancelled"


# -- what is left ------------------------------------------------------------------------------------------------


def working() -> list[asyncio.Task[Any]]:
    """Tasks of ours and of the Redis client."""
    codes = {task: getattr(task.get_coro(), "cr_code", None) for task in asyncio.all_tasks()}
    return [task for task, code in codes.items() if code and re.search("/(langgraph|redis)", code.co_filename)]


@dataclass
class World:
    """The servers; what the savers under test are over; and what sees what they did."""

    kind: str
    redis_is_gone: bool
    prefix: str
    redis: Redis
    """Always there: another process'."""
    watch: AsyncPostgresSaver
    """Over a connection of its own."""
    client: Redis
    upstream: AsyncPostgresSaver

    async def prepare(self, thread: str, *, warm: bool = True) -> None:
        await put(self.watch, thread, FIRST, FIRST)
        await put(self.watch, thread, SECOND, FIRST)
        await self.watch.aput_writes(at(thread, SECOND), [("x", "w")], "task 1")
        if warm:
            another = self.another_saver()
            await another.aget_tuple(on_thread(thread))
            await (
                another.aclose()
            )  # or it is seen when it looks for stale threads, every second until it is collected

    def saver(self) -> CachedPostgresSaver:
        return new_saver(self.client, self.upstream, self.prefix)

    def another_saver(self) -> CachedPostgresSaver:
        return new_saver(self.redis, self.watch, self.prefix)

    async def stored(self, thread: str) -> list[Any]:
        """All of a thread that is in Postgres, but its name."""
        return [
            (found.checkpoint, found.metadata, found.pending_writes, bool(found.parent_config))
            async for found in self.watch.alist(on_thread(thread))
        ]

    async def assert_nothing_is_left(self) -> None:
        """After `aclose`: no task, no connection in use or in the middle of something."""
        assert not working(), f"still running: {working()}"
        pool = self.upstream.conn
        conns = [pool]
        if isinstance(pool, AsyncConnectionPool):
            stats = pool.get_stats()
            assert stats["pool_available"] == stats["pool_size"], stats
            assert not stats.get("requests_waiting"), stats
            conns = idle_postgres_connections(pool)
        for conn in conns:
            assert conn.info.transaction_status == TransactionStatus.IDLE
            expected = PipelineStatus.ON if self.kind == "pipeline" else PipelineStatus.OFF
            assert conn.pgconn.pipeline_status == expected
        assert not self.upstream.lock.locked()
        assert not connections_in_use(self.client)
        for free in free_connections(self.client):
            assert not (free.is_connected and await free.can_read()), "a reply is left for the next caller"

    async def assert_agree(self, thread: str) -> None:
        """Another process, of which Redis is there, can tell at once what is the latest."""
        another = self.another_saver()
        if self.redis_is_gone:
            await inspect(another).invalidator.invalidate_stale()  # as it does once a second
        expected = await asyncio.wait_for(self.watch.aget_tuple(on_thread(thread)), PATIENT_SECONDS)
        assert await asyncio.wait_for(another.aget_tuple(on_thread(thread)), PATIENT_SECONDS) == expected
        stats = another.stats()
        assert not stats["waits"], "a fill lease is left"
        assert not stats["bypasses"], "a fence is left"
        await another.aclose()
        fields = await self.redis.hkeys(thread_key(self.prefix, thread))
        assert not [field for field in fields if field.startswith(b"f:")]


async def connect(kind: str, url: str) -> Any:
    if kind == "pool":
        return AsyncConnectionPool(url, open=False, min_size=2, max_size=2, kwargs=OPTIONS)
    return await AsyncConnection.connect(url, **OPTIONS)


@asynccontextmanager
async def open_upstream(kind: str, url: str) -> AsyncIterator[AsyncPostgresSaver]:
    async with await connect(kind, url) as conn, conn.pipeline() if kind == "pipeline" else nullcontext() as pipe:
        if kind == "pool":
            await conn.wait()
        yield AsyncPostgresSaver(conn, pipe)


def client_of(redis_url: str, *, gone: bool = False) -> Redis:
    return Redis.from_url(f"redis://localhost:{free_port()}" if gone else redis_url, retry=Retry(NoBackoff(), 0))


@asynccontextmanager
async def open_world(kind: str, url: str, redis_url: str, prefix: str, *, gone: bool) -> AsyncIterator[World]:
    async with (
        Redis.from_url(redis_url) as redis,
        open_upstream("single", url) as watch,
        client_of(redis_url, gone=gone) as client,
        open_upstream(kind, url) as upstream,
    ):
        yield World(kind, gone, prefix, redis, watch, client, upstream)
