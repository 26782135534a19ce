"""Connections to Postgres that stay open and do not answer: nothing waits for one longer than its limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from redis.asyncio import Redis

from langgraph_checkpoint_cached import CachedPostgresSaver, PostgresTimeoutError
from langgraph_checkpoint_cached.engine import engine, write_through
from langgraph_checkpoint_cached.stores.postgres import pool, time_limit
from tests.support.agreement import eventually, fences_left, new_checkpoint, on_thread
from tests.support.inspect import inspect
from tests.support.proxy import Proxy

pytestmark = pytest.mark.integration

LIMIT_SECONDS = 1.0
HANG_SECONDS = 25.0
"""Time after which a test says that something hangs."""
CANCEL_SECONDS = 10.0
"""Longest time that psycopg takes to close a silent connection when the check of a caller's pool is cancelled."""
PLACES = ("from_conn_string", "pool", "connection")


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPERATION_SECONDS_MAX", "LONG_OPERATION_SECONDS_MAX", "BACKGROUND_SECONDS_MAX"):
        monkeypatch.setattr(time_limit, name, LIMIT_SECONDS)
    monkeypatch.setattr(time_limit, "CHECK_SECONDS_MAX", LIMIT_SECONDS)


@asynccontextmanager
async def open_saver(
    place: str, url: str, redis_url: str, redis: Redis, prefix: str, **options: Any
) -> AsyncIterator[CachedPostgresSaver]:
    """A saver over a pool of its own, over the caller's pool, or over a single connection."""
    async with AsyncExitStack() as stack:
        if place == "from_conn_string":
            saver = await stack.enter_async_context(
                CachedPostgresSaver.from_conn_string(
                    url, redis_url, prefix=prefix, redis_timeout=10, **{"pool_timeout": 3, **options}
                )
            )
        else:
            settings: dict[str, Any] = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
            conn: Any
            if place == "pool":
                conn = AsyncConnectionPool(url, kwargs=settings, open=False, min_size=1, max_size=4, timeout=2)
            else:
                conn = await psycopg.AsyncConnection.connect(url, **settings)
            upstream = AsyncPostgresSaver(await stack.enter_async_context(conn))
            saver = CachedPostgresSaver(redis, upstream, prefix=prefix, redis_timeout=10)
            stack.push_async_callback(saver.aclose)
        yield saver


async def put(saver: CachedPostgresSaver, thread_id: str = "t") -> Any:
    return await saver.aput(on_thread(thread_id, checkpoint_ns=""), new_checkpoint(), {}, {})


async def timed(work: Any) -> tuple[float, Any]:
    """Return how long the work takes, and its result or error."""
    started = time.monotonic()
    [result] = await asyncio.wait_for(asyncio.gather(work, return_exceptions=True), HANG_SECONDS)
    return time.monotonic() - started, result


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("silence", ["deafen", "mute"])
async def test_silent_connection_fails_write_in_time(
    place: str,
    silence: str,
    migrated_database_url: str,
    redis_url: str,
    redis: Redis,
    redis_prefix: str,
    proxies: Callable[[str], Proxy],
) -> None:
    proxy = proxies(migrated_database_url)
    async with open_saver(place, proxy.url, redis_url, redis, redis_prefix) as saver:
        await put(saver)
        await inspect(saver).polled()
        getattr(proxy, silence)()
        took, error = await timed(put(saver, "silent"))
        assert isinstance(error, PostgresTimeoutError), error
        assert "may have been stored" in str(error)
        assert took < 2 * LIMIT_SECONDS
        assert len(await fences_left(redis, redis_prefix)) == 1, "nobody knows what was stored"
        proxy.hear()
        if place != "connection":
            await asyncio.wait_for(put(saver, "again"), HANG_SECONDS)


@pytest.mark.slow
async def test_callers_check_of_a_silent_connection_ends_in_time(
    migrated_database_url: str, redis_url: str, redis: Redis, redis_prefix: str, proxies: Callable[[str], Proxy]
) -> None:
    """The check of a caller's pool has no limit of its own, and psycopg takes some time to be rid of it."""
    proxy = proxies(migrated_database_url)
    settings: dict[str, Any] = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    check = AsyncConnectionPool.check_connection
    async with AsyncConnectionPool(proxy.url, kwargs=settings, open=False, check=check, timeout=2) as pool:
        saver = CachedPostgresSaver(redis, AsyncPostgresSaver(pool), prefix=redis_prefix, redis_timeout=10)
        await put(saver)
        proxy.deafen()
        took, error = await timed(put(saver, "silent"))
        assert isinstance(error, PoolTimeout), error
        assert took < 2 + LIMIT_SECONDS + CANCEL_SECONDS + 1
        assert await fences_left(redis, redis_prefix) == [], "nothing was sent"
        proxy.hear()
        await asyncio.wait_for(put(saver, "again"), HANG_SECONDS)
        await saver.aclose()


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
async def test_silent_connection_fails_reads_in_time(
    place: str,
    migrated_database_url: str,
    redis_url: str,
    redis: Redis,
    redis_prefix: str,
    proxies: Callable[[str], Proxy],
) -> None:
    proxy = proxies(migrated_database_url)
    async with open_saver(place, proxy.url, redis_url, redis, redis_prefix) as saver:
        stored = await put(saver)

        async def listed() -> Any:
            return [found async for found in saver.alist(stored)]

        reads: list[Callable[[], Any]] = [
            lambda: saver.aget_tuple(on_thread("unknown")),
            lambda: saver.aget_tuple(on_thread("t", checkpoint_id="1")),
            lambda: saver.aget_delta_channel_history(config=stored, channels=["messages"]),
            listed,
            lambda: saver.adelete_thread("t"),
        ]
        for read in reads:
            proxy.deafen()
            took, error = await timed(read())
            proxy.hear()
            assert isinstance(error, psycopg.OperationalError), error
            assert took < 6 * LIMIT_SECONDS
            if place != "connection":
                await asyncio.wait_for(put(saver), HANG_SECONDS)


async def test_idle_connection_that_went_silent_is_replaced(
    migrated_database_url: str,
    redis_url: str,
    redis: Redis,
    redis_prefix: str,
    proxies: Callable[[str], Proxy],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool, "CHECK_AFTER_IDLE_SECONDS", 0.0)
    proxy = proxies(migrated_database_url)
    async with open_saver("from_conn_string", proxy.url, redis_url, redis, redis_prefix, pool_min_size=4) as saver:
        await asyncio.gather(*(put(saver, f"t{i}") for i in range(4)))
        proxy.lose()
        took, result = await timed(put(saver, "after"))
        assert not isinstance(result, BaseException), result
        assert took < 3 * LIMIT_SECONDS, "one check finds it, and all are replaced"


@pytest.mark.slow
async def test_recent_connections_are_checked_while_one_is_late(
    migrated_database_url: str,
    redis_url: str,
    redis: Redis,
    redis_prefix: str,
    proxies: Callable[[str], Proxy],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All went silent in mid-traffic: only the writes under way are lost, those after them find it in a moment."""
    monkeypatch.setattr(time_limit, "OPERATION_SECONDS_MAX", 6.0)
    monkeypatch.setattr(time_limit, "CHECK_SECONDS_MAX", 0.5)
    proxy = proxies(migrated_database_url)
    async with open_saver("from_conn_string", proxy.url, redis_url, redis, redis_prefix, pool_min_size=4) as saver:
        await asyncio.gather(*(put(saver, f"t{i}") for i in range(4)))
        proxy.lose()
        lost = asyncio.ensure_future(timed(put(saver, "lost")))
        await asyncio.sleep(0.2)
        took, result = await timed(put(saver, "next"))
        assert not isinstance(result, BaseException), result
        assert took < 4.0
        took, error = await lost
        assert isinstance(error, PostgresTimeoutError)
        assert took < 7.0


@pytest.mark.parametrize("place", ["from_conn_string", "pool"])
async def test_other_threads_are_written_past_a_late_batch(
    place: str,
    migrated_database_url: str,
    redis_url: str,
    redis: Redis,
    redis_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time_limit, "OPERATION_SECONDS_MAX", 6.0)
    async with (
        open_saver(place, migrated_database_url, redis_url, redis, redis_prefix) as saver,
        await psycopg.AsyncConnection.connect(migrated_database_url) as blocker,
    ):
        config = await put(saver, "locked")
        await saver.aput_writes(config, [("__error__", 0)], "task")
        await blocker.execute("select from checkpoint_writes for update")
        late = asyncio.ensure_future(timed(saver.aput_writes(config, [("__error__", 1)], "task")))
        await asyncio.sleep(0.1)
        others = await asyncio.gather(*(timed(put(saver, f"t{i}")) for i in range(10)))
        assert [result for _, result in others if isinstance(result, BaseException)] == []
        assert max(took for took, _ in others) < write_through.LATE_SECONDS + 1.0
        assert not late.done()
        took, _ = await timed(put(saver, "next"))
        assert took < write_through.LATE_SECONDS + 1.0
        await blocker.rollback()
        assert (await late)[1] is None, "the lock is gone, and it is stored"


@pytest.mark.slow
@pytest.mark.parametrize("idle", [False, True], ids=["statement", "check"])
async def test_blocked_loop_is_no_silent_connection(
    migrated_database_url: str,
    redis_url: str,
    redis: Redis,
    redis_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    idle: bool,
) -> None:
    """Postgres has answered long ago, and the answer is read when the time is over."""
    monkeypatch.setattr(pool, "CHECK_AFTER_IDLE_SECONDS", 0.0 if idle else 100.0)
    monkeypatch.setattr(time_limit, "CHECK_SECONDS_MAX", 0.3 if idle else 100.0)
    monkeypatch.setattr(time_limit, "OPERATION_SECONDS_MAX", 100.0 if idle else 0.3)
    options = {"pool_max_size": 1, "pool_timeout": 30}
    async with open_saver(
        "from_conn_string", migrated_database_url, redis_url, redis, redis_prefix, **options
    ) as saver:
        await put(saver)
        upstream_pool = inspect(saver).upstream.conn
        for _ in range(2):
            writing = asyncio.ensure_future(put(saver))
            for _ in range(12):
                await asyncio.sleep(0)
                time.sleep(0.4)
            await writing
        assert upstream_pool.get_stats().get("connections_lost", 0) == 0
        assert upstream_pool.get_stats()["connections_num"] == 1


async def test_statement_of_a_closed_connection_is_ended(
    migrated_database_url: str, redis_url: str, redis: Redis, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a connection would be left waiting at each attempt, for as long as the lock is held."""
    monkeypatch.setattr(pool, "CLIENT_CHECK_SECONDS", 0.2)
    async with (
        open_saver("from_conn_string", migrated_database_url, redis_url, redis, redis_prefix) as saver,
        await psycopg.AsyncConnection.connect(migrated_database_url, autocommit=True) as observer,
        await psycopg.AsyncConnection.connect(migrated_database_url) as blocker,
    ):
        if observer.info.server_version < 140_000:
            pytest.skip("PostgreSQL 14 or later is needed")
        await put(saver)
        await blocker.execute("lock table checkpoints")
        assert isinstance((await timed(put(saver)))[1], PostgresTimeoutError)

        async def nobody_waits() -> bool:
            return (await observer.execute("select from pg_locks where not granted")).rowcount == 0

        await eventually(nobody_waits)


@pytest.mark.slow
async def test_aclose_ends_though_postgres_is_silent(
    migrated_database_url: str,
    redis_url: str,
    redis: Redis,
    redis_prefix: str,
    proxies: Callable[[str], Proxy],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Far more waits than its time allows."""
    monkeypatch.setattr(engine, "CLOSE_SECONDS_MAX", 3.0)
    monkeypatch.setattr(time_limit, "OPERATION_SECONDS_MAX", 60.0)
    proxy = proxies(migrated_database_url)
    async with open_saver("from_conn_string", proxy.url, redis_url, redis, redis_prefix) as saver:
        await put(saver)
        monkeypatch.setattr(*inspect(saver).batch_rows_max, 1)
        proxy.deafen()
        writes = [asyncio.ensure_future(put(saver, f"t{i}")) for i in range(50)]
        read = asyncio.ensure_future(saver.aget_tuple(on_thread("unknown")))
        await asyncio.sleep(0.1)
        took, result = await timed(saver.aclose())
        assert result is None
        assert took < 5.0
        outcomes = await asyncio.wait_for(asyncio.gather(*writes, read, return_exceptions=True), HANG_SECONDS)
        assert all(isinstance(o, psycopg.OperationalError) for o in outcomes), outcomes
