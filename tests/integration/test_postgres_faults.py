"""Faults of Postgres: callers see what the upstream saver would raise, or nothing where trying again is
safe; what was acknowledged is there, and no fence is left of what was not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from psycopg.errors import DeadlockDetected, QueryCanceled, ReadOnlySqlTransaction, SerializationFailure
from psycopg_pool import PoolTimeout
from redis.asyncio import Redis

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.engine.write_through import CANCELED_MAX
from langgraph_checkpoint_cached.stores.postgres import pool
from langgraph_checkpoint_cached.stores.postgres.errors import ATTEMPTS_MAX
from tests.support.agreement import eventually, fences_left, new_checkpoint, on_thread
from tests.support.inspect import inspect
from tests.support.proxy import Proxy

pytestmark = pytest.mark.integration

REFUSE = """
    create sequence refusals;
    create function refuse() returns trigger language plpgsql as $$ begin
        if nextval('refusals') <= {times} then raise exception 'not now' using errcode = '{state}'; end if;
        return coalesce(new, old);
    end $$;
    create trigger refuse before insert or delete on checkpoints for each row execute function refuse();
"""


class Place:
    """A saver on a database of its own, and what is in its two tiers."""

    def __init__(self, saver: CachedPostgresSaver, url: str, redis: Redis, prefix: str) -> None:
        self.saver, self.url, self.redis, self.prefix = saver, url, redis, prefix

    async def put(self, thread_id: str = "t") -> Any:
        return await self.saver.aput(on_thread(thread_id, checkpoint_ns=""), new_checkpoint(), {}, {})

    async def run(self, statement: str) -> list[Any]:
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as conn:
            cursor = await conn.execute(statement)  # type: ignore[arg-type]
            return await cursor.fetchall() if cursor.description else []

    async def threads(self) -> list[str]:
        return [thread for (thread,) in await self.run("select distinct thread_id from checkpoints order by 1")]

    async def fences_left(self) -> list[bytes]:
        return await fences_left(self.redis, self.prefix)


@pytest.fixture
async def place(
    migrated_database_url: str, redis_url: str, redis_prefix: str, redis: Redis
) -> AsyncIterator[Place]:
    async with open_place(migrated_database_url, redis_url, redis_prefix, redis) as place:
        yield place


@asynccontextmanager
async def open_place(
    url: str, redis_url: str, prefix: str, redis: Redis, settings: str = "", **options: Any
) -> AsyncIterator[Place]:
    """With settings such as `statement_timeout=100` for the saver's connections alone."""
    own = f"{url}?options=-c%20{settings.replace('=', '%3D')}" if settings else url
    async with CachedPostgresSaver.from_conn_string(
        own, redis_url, prefix=prefix, redis_timeout=10, **options
    ) as saver:
        yield Place(saver, url, redis, prefix)


@pytest.mark.parametrize(("state", "error"), [("40P01", DeadlockDetected), ("40001", SerializationFailure)])
@pytest.mark.parametrize("operation", ["put", "delete"])
async def test_write_aborted_by_postgres_is_retried(
    place: Place, state: str, error: type[Exception], operation: str
) -> None:
    if operation == "delete":
        await place.put()
    await place.run(REFUSE.format(times=2 * ATTEMPTS_MAX - 1, state=state))

    async def operate() -> None:
        await (place.put() if operation == "put" else place.saver.adelete_thread("t"))

    with pytest.raises(error):
        await operate()
    assert await place.run("select last_value from refusals") == [(ATTEMPTS_MAX,)]
    assert await place.fences_left() == []
    await operate()
    assert await place.threads() == (["t"] if operation == "put" else [])


async def test_deadlock_between_processes_is_retried(
    place: Place, migrated_database_url: str, redis_url: str, redis_prefix: str, redis: Redis
) -> None:
    """Two groups that write two rows in opposite orders, over and over."""
    async with open_place(migrated_database_url, redis_url, redis_prefix, redis) as other:
        a, b = await place.put("a"), await place.put("b")

        async def write(where: Place, *configs: Any) -> None:
            for i in range(30):
                await asyncio.gather(
                    *(where.saver.aput_writes(c, [("__error__", i)], "task") for c in configs)  # replaces a row
                )

        await asyncio.gather(write(place, a, b), write(other, b, a))
        assert await place.fences_left() == []


async def test_a_write_that_waits_for_a_lock_too_long_fails_alone(
    migrated_database_url: str, redis_url: str, redis_prefix: str, redis: Redis
) -> None:
    async with (
        open_place(migrated_database_url, redis_url, redis_prefix, redis, "statement_timeout=150") as place,
        await psycopg.AsyncConnection.connect(migrated_database_url) as blocker,
    ):
        config = await place.put("locked")
        await place.saver.aput_writes(config, [("__error__", 0)], "task")
        await blocker.execute("select from checkpoint_writes for update")
        outcomes = await asyncio.gather(
            place.saver.aput_writes(config, [("__error__", 1)], "task"),
            *map(place.put, "abcdef"),
            return_exceptions=True,
        )
        assert [type(o) for o in outcomes] == [QueryCanceled, *[dict] * 6]
        assert await place.threads() == [*"abcdef", "locked"]
        assert await place.fences_left() == []


async def test_slow_postgres_delays_writes_together_not_in_turn(
    migrated_database_url: str, redis_url: str, redis_prefix: str, redis: Redis
) -> None:
    async with open_place(migrated_database_url, redis_url, redis_prefix, redis, "statement_timeout=50") as place:
        await place.run(
            "create sequence tries;"
            "create function dawdle() returns trigger language plpgsql as $$ begin"
            " perform nextval('tries'), pg_sleep(10); return new; end $$;"
            "create trigger dawdle before insert on checkpoints for each row execute function dawdle()"
        )
        outcomes = await asyncio.gather(*(place.put(f"t{i}") for i in range(20)), return_exceptions=True)
        assert {type(o) for o in outcomes} == {QueryCanceled}
        ((tries,),) = await place.run("select last_value from tries")
        assert tries <= 2 * (CANCELED_MAX + 1), "the first write alone, the group, and a few of it"
        assert await place.fences_left() == []
        await place.run("drop trigger dawdle on checkpoints")
        await place.put()
        assert await place.threads() == ["t"]


async def test_connections_to_what_is_a_standby_now_are_replaced(
    migrated_database_url: str, redis_url: str, redis_prefix: str, redis: Redis
) -> None:
    name = migrated_database_url.rpartition("/")[2]
    async with await psycopg.AsyncConnection.connect(migrated_database_url, autocommit=True) as admin:
        await admin.execute(f'alter database "{name}" set default_transaction_read_only = on')
        async with open_place(migrated_database_url, redis_url, redis_prefix, redis, pool_min_size=3) as place:
            await admin.execute(f'alter database "{name}" set default_transaction_read_only = off')
            with pytest.raises(ReadOnlySqlTransaction):
                await place.put()
            assert await place.fences_left() == []
            for i in range(6):
                await place.put(f"t{i}")
            assert await place.threads() == [f"t{i}" for i in range(6)]


@pytest.mark.slow
async def test_after_a_long_outage_postgres_is_back_soon(
    migrated_database_url: str,
    redis_url: str,
    redis_prefix: str,
    redis: Redis,
    proxies: Callable[[str], Proxy],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pool doubled its pauses, so that an outage lasted twice as long for the saver."""
    monkeypatch.setattr(pool, "RECONNECT_SECONDS", 0.5)
    proxy = proxies(migrated_database_url)
    async with open_place(
        proxy.url, redis_url, redis_prefix, redis, pool_min_size=2, pool_max_size=2, pool_timeout=2
    ) as place:
        proxy.stop()
        with pytest.raises(psycopg.OperationalError):
            await place.put("lost")
        await asyncio.sleep(4)  # the next attempts would be after 7 and 15 seconds
        proxy.start()
        await place.put()
        assert await place.threads() == ["t"]


async def test_exhausted_pool_raises_pool_error(
    migrated_database_url: str, redis_url: str, redis_prefix: str, redis: Redis
) -> None:
    async with open_place(
        migrated_database_url, redis_url, redis_prefix, redis, pool_max_size=1, pool_timeout=0.2
    ) as place:
        pool: Any = inspect(place.saver).upstream.conn
        async with pool.connection():
            with pytest.raises(PoolTimeout):
                await place.put()
            with pytest.raises(PoolTimeout):
                await place.saver.adelete_thread("t")
            with pytest.raises(PoolTimeout):
                await place.saver.aget_tuple(on_thread("t"))
            assert await place.fences_left() == []
        await place.put()
        assert await place.threads() == ["t"]
        assert pool.get_stats()["requests_waiting"] == 0


async def test_killed_connections_lose_no_acknowledged_write(place: Place) -> None:
    acknowledged: list[str] = []
    errors: list[BaseException] = []

    async def write(worker: int) -> None:
        for i in range(60):
            thread_id = f"w{worker:02}-{i:02}"
            try:
                await place.put(thread_id)
            except psycopg.OperationalError as exc:
                errors.append(exc)
            else:
                acknowledged.append(thread_id)

    async def kill() -> None:
        for _ in range(20):
            await place.run(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
            await asyncio.sleep(0.02)

    await asyncio.gather(kill(), *map(write, range(8)))
    assert errors, "nothing was killed in mid-transaction"
    assert acknowledged
    assert set(acknowledged) <= set(await place.threads())

    async def works_again() -> bool:
        try:
            await place.put("last")
        except psycopg.OperationalError:
            return False
        return True

    await eventually(works_again)
    pool: Any = inspect(place.saver).upstream.conn

    async def all_are_given_back() -> bool:
        stats = pool.get_stats()
        return bool(stats["pool_available"] == stats["pool_size"])

    await eventually(all_are_given_back)
