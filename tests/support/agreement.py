"""Both savers over the same servers, and the proof that whatever they are asked they say the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, Checkpoint, empty_checkpoint
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.types import StateSnapshot
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.stores.redis.fences import RETAIN_SECONDS

PATIENT_SECONDS = 10
"""For a call to Redis, where a test is about answers and not about time."""
CACHED, UPSTREAM = "cached", "upstream"
"""Start of the thread ids that each saver writes."""

T = TypeVar("T")
Saver = BaseCheckpointSaver[str]
Scenario = Callable[[Saver, str], Awaitable[Any]]
"""Runs graphs with a saver, on threads whose ids start with the given text. Returns what it saw."""


async def fences(redis: Redis, prefix: str) -> list[bytes]:
    """Those in Redis."""
    threads = [key async for key in redis.scan_iter(match=f"{prefix}*:thread", count=1000)]
    return [field for key in threads for field in await redis.hkeys(key) if field.startswith(b"f:")]


async def fences_left(redis: Redis, prefix: str) -> list[bytes]:
    """Those that stand for longer than one is kept for the next write."""
    for _ in range(40):
        if not (found := await fences(redis, prefix)):
            break
        await asyncio.sleep(RETAIN_SECONDS / 10)
    return found


@dataclass(frozen=True)
class Tiers:
    """The servers, and a saver of each kind over them."""

    postgres_url: str
    redis_url: str
    prefix: str
    redis: Redis
    pool: AsyncConnectionPool[Any]
    upstream: AsyncPostgresSaver
    saver: CachedPostgresSaver

    def another_saver(self) -> CachedPostgresSaver:
        """One more over the same servers, as another process would have it."""
        return new_saver(self.redis, self.upstream, self.prefix)

    async def run_with_both(self, scenario: Scenario, *, same_rows: bool = True) -> Any:
        """Returns what the scenario sees with our saver, having seen that it is the same with the upstream saver.

        Args:
            scenario: What to run.
            same_rows: Whether it leaves a definite number of rows.
        """
        seen = await scenario(self.saver, CACHED)
        assert seen == await scenario(self.upstream, UPSTREAM)
        await self.assert_agree()
        if same_rows:
            assert await self._row_counts(CACHED) == await self._row_counts(UPSTREAM)
        return seen

    async def assert_agree(self) -> None:
        """For every namespace that our saver wrote: a first, a warm and another process' read, and the upstream
        saver's, are the same, as are all its older checkpoints. No fence is left, and no key without expiry.
        """
        namespaces = await self._namespaces()
        assert namespaces, "nothing was written"
        assert await self.fences_left() == []
        for thread_id, checkpoint_ns in namespaces:
            await self._assert_agree(thread_id, checkpoint_ns)
        keys = await self.keys()
        assert len(keys) >= 2, "nothing is cached"
        for key in keys:
            assert await self.redis.pttl(key) > 0, f"{key!r} has no expiry"

    async def assert_reads_agree(self, config: RunnableConfig) -> None:
        """Reads ours between two reads of the upstream saver, until nothing was written between those."""
        while True:
            before = await self.upstream.aget_tuple(config)
            ours = await self.saver.aget_tuple(config)
            if before == await self.upstream.aget_tuple(config):
                assert ours == before
                return

    async def keys(self) -> list[bytes]:
        """All of threads in Redis; savers publish their counters there too."""
        found = self.redis.scan_iter(match=f"{self.prefix}*", count=1000)
        return [key async for key in found if not key.startswith(f"{self.prefix}:stats:".encode())]

    async def fences(self) -> list[bytes]:
        """Those of all threads."""
        return await fences(self.redis, self.prefix)

    async def fences_left(self) -> list[bytes]:
        """Those of all threads that no process keeps for its next write."""
        return await fences_left(self.redis, self.prefix)

    async def _assert_agree(self, thread_id: str, checkpoint_ns: str) -> None:
        latest: RunnableConfig = {"configurable": {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns}}
        expected = await self.upstream.aget_tuple(latest)
        assert await self.saver.aget_tuple(latest) == expected
        for saver in (self.saver, self.another_saver()):
            hits = saver.stats()["hits"]
            assert await saver.aget_tuple(latest) == expected
            assert saver.stats()["hits"] == hits + 1, f"{latest} is not served from Redis: {saver.stats()}"
        history = [found async for found in self.upstream.alist(latest)]
        assert history[0] == expected
        assert [found async for found in self.saver.alist(latest)] == history
        for found in history:
            assert await self.saver.aget_tuple(found.config) == found

    async def _namespaces(self) -> list[tuple[str, str]]:
        async with self.pool.connection() as conn:
            rows = await conn.execute(
                "select distinct thread_id, checkpoint_ns from checkpoints where starts_with(thread_id, %s)",
                (CACHED,),
            )
            return [(row["thread_id"], row["checkpoint_ns"]) for row in await rows.fetchall()]

    async def _row_counts(self, prefix: str) -> dict[str, int]:
        counts = {}
        async with self.pool.connection() as conn:
            for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes"):
                rows = await conn.execute(
                    f"select count(*) as rows from {table} where starts_with(thread_id, %s)",  # type: ignore[arg-type]
                    (prefix,),
                )
                counts[table] = (await rows.fetchall())[0]["rows"]
        return counts


@asynccontextmanager
async def open_tiers(
    postgres_url: str,
    redis_url: str,
    prefix: str,
    *,
    serde: SerializerProtocol | None = None,
    connections: int = 4,
) -> AsyncIterator[Tiers]:
    """Both savers, over one pool and with one serializer."""
    options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    async with (
        Redis.from_url(redis_url) as redis,
        AsyncConnectionPool(postgres_url, open=False, min_size=1, max_size=connections, kwargs=options) as pool,
    ):
        upstream = AsyncPostgresSaver(pool, serde=serde)
        saver = new_saver(redis, upstream, prefix)
        yield Tiers(postgres_url, redis_url, prefix, redis, pool, upstream, saver)
        await saver.aclose()


def new_saver(redis: Redis, upstream: AsyncPostgresSaver, prefix: str) -> CachedPostgresSaver:
    return CachedPostgresSaver(redis, upstream, prefix=prefix, redis_timeout=PATIENT_SECONDS)


def outline(snapshot: StateSnapshot | None) -> Any:
    """Describe a state, without what differs from run to run: ids and times."""
    if snapshot is None:
        return None
    metadata = snapshot.metadata or {}
    return {
        "values": snapshot.values,
        "next": snapshot.next,
        "source": metadata.get("source"),
        "step": metadata.get("step"),
        "has parent": snapshot.parent_config is not None,
        "interrupts": [interrupt.value for interrupt in snapshot.interrupts],
        "tasks": [
            (
                task.name,
                repr(task.error),
                [interrupt.value for interrupt in task.interrupts],
                task.result,
                outline(task.state) if isinstance(task.state, StateSnapshot) else task.state is not None,
            )
            for task in snapshot.tasks
        ],
    }


async def outlines(graph: Any, config: RunnableConfig) -> list[Any]:
    """The history of a thread, newest first."""
    return [outline(snapshot) async for snapshot in graph.aget_state_history(config)]


async def eventually(holds: Callable[[], Awaitable[T]]) -> T:
    """Return what `holds` returns once that is true. For events that cannot be waited for."""

    async def poll() -> T:
        while not (found := await holds()):
            await asyncio.sleep(0.005)
        return found

    return await asyncio.wait_for(poll(), PATIENT_SECONDS)


def new_checkpoint(**parts: Any) -> Checkpoint:
    """An empty one, in the format that LangGraph writes today."""
    return {**empty_checkpoint(), "v": 4, **parts}  # type: ignore[typeddict-item]


def on_thread(thread_id: str, **configurable: Any) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id, **configurable}}
