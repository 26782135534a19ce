"""The pool that `from_conn_string` opens, and what callers see when Postgres fails them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import Checkpoint, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.stores.postgres import pool
from langgraph_checkpoint_cached.stores.redis import fences as fences_module
from tests.support.agreement import fences, fences_left
from tests.support.inspect import FILLED, inspect
from tests.support.proxy import Proxy

pytestmark = pytest.mark.integration

CONFIG: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}


def checkpoint(saver: CachedPostgresSaver, value: Any) -> tuple[Checkpoint, dict[str, Any]]:
    version = saver.get_next_version(None, None)
    made: Any = {**empty_checkpoint(), "v": 4, "id": str(uuid6()), "channel_values": {"value": value}}
    return {**made, "channel_versions": {"value": version}}, {"value": version}


async def put(saver: CachedPostgresSaver, value: Any, config: Any = CONFIG) -> Any:
    made, versions = checkpoint(saver, value)
    return await saver.aput(config, made, {}, versions)


async def value_of(saver: CachedPostgresSaver) -> Any:
    found = await saver.aget_tuple(CONFIG)
    return found and found.checkpoint["channel_values"]["value"]


async def test_prepared_statements_are_used_without_pooler_only(
    migrated_database_url: str, pgbouncer_url: str, redis_url: str, redis_prefix: str
) -> None:
    """https://github.com/langchain-ai/langgraph/issues/6705"""
    for url, threshold in ((migrated_database_url, 0), (pgbouncer_url, None)):
        async with CachedPostgresSaver.from_conn_string(url, redis_url, prefix=redis_prefix) as saver:
            pool: Any = inspect(saver).upstream.conn
            async with pool.connection() as conn:
                assert conn.prepare_threshold == threshold


async def test_many_operations_at_once_work_behind_a_pooler(
    pgbouncer_url: str, redis_url: str, redis_prefix: str
) -> None:
    async with CachedPostgresSaver.from_conn_string(
        pgbouncer_url, redis_url, prefix=redis_prefix, redis_timeout=10
    ) as saver:
        await saver.setup()

        async def turn(thread_id: str) -> Any:
            config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
            for value in range(3):
                stored = await put(saver, [thread_id, value], config)
                await saver.aput_writes(stored, [("value", value), ("__error__", "no")], "task")
            found = await saver.aget_tuple(config)
            assert found is not None
            return found.checkpoint["channel_values"]["value"], len(found.pending_writes or [])

        threads = [f"t{i}" for i in range(40)]
        assert await asyncio.gather(*map(turn, threads)) == [([t, 2], 2) for t in threads]


async def test_operations_on_a_pool_run_side_by_side(
    migrated_database_url: str, redis_url: str, redis_prefix: str
) -> None:
    """https://github.com/langchain-ai/langgraph/issues/7259"""
    async with (
        CachedPostgresSaver.from_conn_string(
            migrated_database_url, redis_url, prefix=redis_prefix, pool_max_size=4
        ) as saver,
        await psycopg.AsyncConnection.connect(migrated_database_url) as blocker,
    ):
        await put(saver, 0)
        await blocker.execute("select from checkpoints where thread_id = 't' for update")
        blocked = asyncio.ensure_future(saver.adelete_thread("t"))
        await until(lambda: waiting_for_a_lock(migrated_database_url))
        other: Any = {"configurable": {"thread_id": "other", "checkpoint_ns": ""}}
        await asyncio.wait_for(put(saver, 1, other), 10)  # the upstream saver's lock would keep it waiting
        assert not blocked.done()
        await blocker.rollback()
        await blocked


async def waiting_for_a_lock(url: str) -> bool:
    async with await psycopg.AsyncConnection.connect(url) as conn:
        found = await conn.execute(
            "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        )
        return bool(await found.fetchall())


async def until(condition: Callable[[], Any]) -> None:
    async def poll() -> None:
        while not await condition():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(poll(), 10)


async def test_connection_dead_while_idle_is_replaced_before_use(
    migrated_database_url: str, redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """https://github.com/langchain-ai/langgraph/issues/5675

    All of them have, as after a restart of Postgres: one that is found dead is enough to replace them. Two are
    found where the saver looks for stale threads in the moment of the write.
    """
    monkeypatch.setattr(pool, "CHECK_AFTER_IDLE_SECONDS", 0.0)
    dead: list[Any] = []
    check = AsyncConnectionPool.check_connection

    async def counted(conn: Any) -> None:
        try:
            await check(conn)
        except psycopg.Error:
            dead.append(conn)
            raise

    monkeypatch.setattr(AsyncConnectionPool, "check_connection", counted)
    async with CachedPostgresSaver.from_conn_string(
        migrated_database_url, redis_url, prefix=redis_prefix, pool_min_size=5
    ) as saver:
        await put(saver, 1)
        async with await psycopg.AsyncConnection.connect(migrated_database_url, autocommit=True) as killer:
            killed = await killer.execute(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
            assert all(done for (done,) in await killed.fetchall())
        await put(saver, 2)
        assert await value_of(saver) == 2
        for i in range(5):
            await put(saver, i)
        assert len(dead) in (1, 2), "of five"


@pytest.mark.slow
@pytest.mark.parametrize("committed", [True, False])
async def test_write_of_unknown_outcome_keeps_its_fence(
    migrated_database_url: str,
    redis_url: str,
    redis_prefix: str,
    redis: Redis,
    proxies: Callable[[str], Proxy],
    monkeypatch: pytest.MonkeyPatch,
    committed: bool,
) -> None:
    proxy = proxies(migrated_database_url)
    async with (
        CachedPostgresSaver.from_conn_string(proxy.url, redis_url, prefix=redis_prefix) as saver,
        CachedPostgresSaver.from_conn_string(migrated_database_url, redis_url, prefix=redis_prefix) as other,
    ):
        first = await put(saver, ["first"])
        await put(saver, ["second"], first)
        assert await fences_left(redis, redis_prefix) == []
        assert await value_of(other) == ["second"]
        hits = other.stats()["hits"]
        if committed:
            proxy.mute()  # Postgres commits, and nobody hears of it
        else:
            proxy.deafen()
        monkeypatch.setattr(fences_module, "FENCE_MS", 2000)
        write = asyncio.ensure_future(put(saver, ["third"], first))
        async with AsyncPostgresSaver.from_conn_string(migrated_database_url) as upstream:

            async def arrived() -> bool:
                found = await upstream.aget_tuple(CONFIG)
                assert found is not None
                return bool(found.checkpoint["channel_values"]["value"] == ["third"])

            if committed:
                await until(arrived)
            else:
                await until(lambda: fences(redis, redis_prefix))
            proxy.cut()
            with pytest.raises(psycopg.OperationalError):
                await write
            expected = ["third"] if committed else ["second"]
            assert len(await fences(redis, redis_prefix)) == 1
            assert await value_of(other) == expected
            assert other.stats()["hits"] == hits
            # Past the deadline, the next reader drops the fence and the entry, and loads.
            await until(lambda: all_served(other, expected, hits))
            assert await fences_left(redis, redis_prefix) == []


async def all_served(saver: CachedPostgresSaver, expected: Any, hits: int) -> bool:
    assert await value_of(saver) == expected
    return saver.stats()["hits"] > hits


async def test_refused_write_raises_as_upstream_and_leaves_no_fence(
    migrated_database_url: str, redis_url: str, redis_prefix: str, redis: Redis
) -> None:
    async with (
        CachedPostgresSaver.from_conn_string(migrated_database_url, redis_url, prefix=redis_prefix) as saver,
        AsyncPostgresSaver.from_conn_string(migrated_database_url) as upstream,
    ):
        stored = await put(saver, 1)
        for bad in (float("nan"), "\0", "\ud800"):
            made, versions = checkpoint(saver, bad)
            with pytest.raises(Exception) as expected:  # noqa: PT011
                await upstream.aput(stored, made, {}, versions)
            with pytest.raises(type(expected.value)):
                await saver.aput(stored, made, {}, versions)
            assert await value_of(saver) == 1
            with pytest.raises(psycopg.DataError):
                await saver.aput_writes(stored, [("value", 1), ("nul\0", 2)], "task")
            found, by_stock = await saver.aget_tuple(CONFIG), await upstream.aget_tuple(CONFIG)
            assert found == by_stock
        assert await fences_left(redis, redis_prefix) == []


async def test_a_load_that_fails_does_not_keep_the_next_reader_waiting(
    migrated_database_url: str, redis_url: str, redis_prefix: str, redis: Redis, proxies: Callable[[str], Proxy]
) -> None:
    proxy = proxies(migrated_database_url)
    async with (
        CachedPostgresSaver.from_conn_string(
            proxy.url, redis_url, prefix=redis_prefix, pool_timeout=0.5, pool_max_size=1
        ) as cut_off,
        CachedPostgresSaver.from_conn_string(migrated_database_url, redis_url, prefix=redis_prefix) as saver,
    ):
        await put(saver, 1)
        await redis.delete(*[key async for key in redis.scan_iter(match=f"{redis_prefix}*")])
        proxy.stop()
        with pytest.raises(psycopg.OperationalError):
            await value_of(cut_off)
        assert await value_of(saver) == 1
        assert await value_of(saver) == 1
        stats = saver.stats()
        assert (stats["waits"], stats["fills"], stats["hits"]) == (0, 1, 1)


async def test_a_reader_does_not_wait_until_redis_has_what_it_loaded(
    migrated_database_url: str, redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, fill = asyncio.Event(), FILLED.get()

    async def late(*args: Any) -> bool:
        await held.wait()
        return await fill(*args)

    monkeypatch.setattr(*FILLED, late)
    async with CachedPostgresSaver.from_conn_string(
        migrated_database_url, redis_url, prefix=redis_prefix
    ) as saver:
        assert await asyncio.wait_for(value_of(saver), 10) is None
        assert saver.stats()["fills"] == 0
        held.set()
        await saver.aclose()
        assert saver.stats()["fills"] == 1, "closing waits for it"


async def test_clients_of_the_caller_are_not_closed(
    migrated_database_url: str, redis_url: str, redis_prefix: str
) -> None:
    """https://github.com/redis-developer/langgraph-redis/issues/93"""
    async with (
        AsyncPostgresSaver.from_conn_string(migrated_database_url) as upstream,
        Redis.from_url(redis_url) as client,
    ):
        saver = CachedPostgresSaver(client, upstream, prefix=redis_prefix)
        await put(saver, 1)
        await saver.aclose()
        assert await client.ping()
        assert (await upstream.aget_tuple(CONFIG)) is not None
        assert await value_of(CachedPostgresSaver(client, upstream, prefix=redis_prefix)) == 1
