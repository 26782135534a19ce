"""The savers that workers run with: ours, the textbook cache, and ours broken on purpose (`mutants`)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from redis.asyncio import Redis
from redis.exceptions import RedisError

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.engine import ended_journals, held_leases, journal_replayer
from langgraph_checkpoint_cached.stores.postgres import pool, time_limit
from langgraph_checkpoint_cached.stores.redis import fences
from tests.chaos import mutants
from tests.support.inspect import inspect

PREFIX = "chaos"
REDIS_TIMEOUT_SECONDS = 0.3
POOL_TIMEOUT_SECONDS = 3.0
PG_SECONDS_MAX = 2.0
POOL_SIZE = 6
ABANDONED_SECONDS = 6.0
"""After which a lease is taken for its holder's last; 10 outside of tests."""
LAG_SECONDS_MAX = 3.0
"""After which the journal of a lease that has ended is removed once more; 60 outside of tests."""
LINGER_SECONDS = 1.0
"""Time for which a lease outlasts its last write, 5 outside of tests: so threads change hands more often."""
NAMES = ("ours", "textbook", *(f"broken-{name}" for name in mutants.MUTANTS))


@dataclass(frozen=True)
class Opened:
    """A saver, and what it uses."""

    saver: Any
    pool: Any
    redis: Any

    def stats(self) -> dict[str, int]:
        return dict(self.saver.stats()) if hasattr(self.saver, "stats") else {}


@asynccontextmanager
async def open_saver(
    name: str,
    postgres_url: str,
    redis_url: str,
    fence_seconds: float,
    mode: str = "write_through",
    redis_durability: str = "as_is",
) -> AsyncIterator[Opened]:
    """The saver of that name. It changes this process: one name for each process."""
    if name == "textbook":
        async with _textbook(postgres_url, redis_url) as opened:
            yield opened
        return
    fences.FENCE_MS = round(fence_seconds * 1000)
    fences.FENCE_MARGIN_SECONDS = fence_seconds / 2
    fences.FENCE_START_SECONDS = fence_seconds * 0.8
    journal_replayer.ABANDONED_SECONDS, journal_replayer.FLUSH_SECONDS_MAX = (
        ABANDONED_SECONDS,
        ABANDONED_SECONDS + 5,
    )
    ended_journals.LAG_SECONDS_MAX = LAG_SECONDS_MAX
    held_leases.LINGER_SECONDS = LINGER_SECONDS
    time_limit.OPERATION_SECONDS_MAX, time_limit.CHECK_SECONDS_MAX = PG_SECONDS_MAX, PG_SECONDS_MAX / 2
    mutants.flush_late()
    if name != "ours":
        mutants.MUTANTS[name.removeprefix("broken-")].apply()
    async with CachedPostgresSaver.from_conn_string(
        postgres_url,
        redis_url,
        prefix=PREFIX,
        mode=mode,  # type: ignore[arg-type]
        redis_durability=redis_durability,  # type: ignore[arg-type]
        redis_timeout=REDIS_TIMEOUT_SECONDS,
        pool_timeout=POOL_TIMEOUT_SECONDS,
        pool_max_size=POOL_SIZE,
    ) as saver:
        yield Opened(saver, inspect(saver).upstream.conn, inspect(saver).redis)


class _Forgiving:
    """A client whose failures are misses, as careful users of the textbook cache write it."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **options: Any) -> Any:
            try:
                return await getattr(self._client, name)(*args, **options)
            except (RedisError, OSError):
                return None

        return call


@asynccontextmanager
async def _textbook(postgres_url: str, redis_url: str) -> AsyncIterator[Opened]:
    from benchmarks.textbook import TextbookSaver

    class Textbook(TextbookSaver):
        async def adelete_thread(self, thread_id: str) -> None:
            await self._upstream.adelete_thread(thread_id)
            for ns in ("", "child"):
                await self._redis.delete(
                    self._key({"configurable": {"thread_id": thread_id, "checkpoint_ns": ns}})
                )

    clients = pool.postgres_pool(
        postgres_url,
        min_size=1,
        max_size=POOL_SIZE,
        timeout_seconds=POOL_TIMEOUT_SECONDS,
        max_idle_seconds=600,
        max_lifetime_seconds=3600,
    )
    client = Redis.from_url(
        redis_url, socket_timeout=REDIS_TIMEOUT_SECONDS, socket_connect_timeout=REDIS_TIMEOUT_SECONDS
    )
    async with pool.opened(clients, client):
        yield Opened(Textbook(_Forgiving(client), AsyncPostgresSaver(clients), PREFIX), clients, client)  # type: ignore[arg-type]
