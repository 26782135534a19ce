"""Several processes, of which some do not see the same Redis as others, or do not hear from Postgres: none serves
what another has overwritten."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.demo.embedded import RedisServer
from langgraph_checkpoint_cached.engine.serving_right import RIGHT_SECONDS
from langgraph_checkpoint_cached.stores.postgres.stale_threads import TABLE
from tests.conftest import started
from tests.support.agreement import eventually
from tests.support.conversations import Conversation, open_saver, until_hit
from tests.support.inspect import inspect
from tests.support.proxy import Proxy

pytestmark = pytest.mark.integration

ROUNDS = 10


@pytest.fixture(scope="module")
def two_servers() -> Iterator[tuple[RedisServer, RedisServer]]:
    with started(RedisServer()) as one, started(RedisServer()) as other:
        yield one, other


@pytest.fixture
def addresses(two_servers: tuple[RedisServer, RedisServer]) -> Iterator[tuple[Proxy, Proxy]]:
    """Address of Redis as each of two processes sees it."""
    with Proxy(two_servers[0].url) as one, Proxy(two_servers[0].url) as other:
        yield one, other


@asynccontextmanager
async def two_savers(
    postgres_url: str, addresses: tuple[Proxy, Proxy], prefix: str
) -> AsyncIterator[tuple[Conversation, CachedPostgresSaver]]:
    """A conversation on the first saver, and the second, which is served its entry."""
    async with (
        open_saver(postgres_url, addresses[0].url, prefix=prefix) as writer,
        open_saver(postgres_url, addresses[1].url, prefix=prefix, redis_timeout=5) as reader,
    ):
        conversation = Conversation(writer)
        await conversation.turn()
        await until_hits(reader, conversation)
        yield conversation, reader


async def until_hits(reader: CachedPostgresSaver, conversation: Conversation) -> None:
    async def hit() -> bool:
        hits = reader.stats()["hits"]
        await conversation.check(reader)
        return reader.stats()["hits"] > hits

    await eventually(hit)


# -- a process that alone lacks Redis --------------------------------------------------------------------------


async def write_and_read(conversation: Conversation, reader: CachedPostgresSaver) -> None:
    """Read after every write, and be served from Redis for most of it."""
    for _ in range(ROUNDS):
        await conversation.turn()
        await conversation.check(reader)
        await conversation.check(reader)
    assert reader.stats()["hits"] > ROUNDS


async def test_no_read_after_write_without_redis_is_stale(
    migrated_database_url: str, addresses: tuple[Proxy, Proxy], prefix: str
) -> None:
    async with two_savers(migrated_database_url, addresses, prefix) as (conversation, reader):
        addresses[0].stop()
        await write_and_read(conversation, reader)


async def test_no_process_serves_is_no_wait(
    migrated_database_url: str, addresses: tuple[Proxy, Proxy], prefix: str
) -> None:
    async with two_savers(migrated_database_url, addresses, prefix) as (conversation, reader):
        for address in addresses:
            address.stop()
        await conversation.turn()
        await conversation.check(reader)
        started_at = time.monotonic()
        for _ in range(ROUNDS):
            await conversation.turn()
        assert time.monotonic() - started_at < RIGHT_SECONDS


@pytest.mark.slow
async def test_busy_pool_delays_no_heartbeat(
    migrated_database_url: str, addresses: tuple[Proxy, Proxy], prefix: str
) -> None:
    kwargs = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    async with AsyncExitStack() as stack:
        conversation, _ = await stack.enter_async_context(two_savers(migrated_database_url, addresses, prefix))
        pool: Any = await stack.enter_async_context(
            AsyncConnectionPool(migrated_database_url, min_size=1, max_size=1, kwargs=kwargs, open=False)
        )
        client = Redis.from_url(addresses[1].url)
        stack.push_async_callback(client.aclose)
        shared = CachedPostgresSaver(client, AsyncPostgresSaver(pool), prefix=prefix)
        stack.push_async_callback(shared.aclose)
        await until_hits(shared, conversation)
        async with pool.connection():
            addresses[0].stop()
            await asyncio.sleep(2 * RIGHT_SECONDS)
            hits = shared.stats()["hits"]
            await conversation.check(shared)
            assert shared.stats()["hits"] == hits + 1
            await conversation.turn()
            reading = asyncio.create_task(conversation.check(shared))
            await asyncio.wait({reading}, timeout=1)
            assert not reading.done() or reading.exception() is None  # it may wait for the pool
        await reading


async def test_locked_stale_thread_stops_no_poll(
    migrated_database_url: str, addresses: tuple[Proxy, Proxy], prefix: str
) -> None:
    async with two_savers(migrated_database_url, addresses, prefix) as (conversation, reader):
        with psycopg.connect(migrated_database_url) as conn:
            conn.execute(f"insert into {TABLE} (prefix, thread_id, mark) values (%s, 'locked', 'm')", (prefix,))
            conn.commit()
            conn.execute(f"select from {TABLE} where thread_id = 'locked' for update")
            addresses[0].stop()
            await write_and_read(conversation, reader)
            conn.rollback()


async def test_process_without_postgres_serves_nothing_stale(
    migrated_database_url: str,
    addresses: tuple[Proxy, Proxy],
    prefix: str,
    proxies: Callable[[str], Proxy],
) -> None:
    postgres = proxies(migrated_database_url)
    async with (
        two_savers(migrated_database_url, addresses, prefix) as (conversation, _),
        open_saver(postgres.url, addresses[1].url, prefix=prefix) as deaf,
    ):
        await until_hits(deaf, conversation)
        postgres.deafen()
        addresses[0].stop()
        await conversation.turn()
        reading = asyncio.create_task(conversation.check(deaf))
        await asyncio.wait({reading}, timeout=1.5)
        assert not reading.done(), reading.exception()
        postgres.hear()
        await reading


async def test_suspended_process_is_waited_for_a_second(
    migrated_database_url: str, addresses: tuple[Proxy, Proxy], prefix: str
) -> None:
    async with two_savers(migrated_database_url, addresses, prefix) as (conversation, reader):
        await conversation.saver.aget_tuple(conversation.config)
        inspect(reader).suspend()
        addresses[0].stop()
        started_at = time.monotonic()
        await conversation.saver.aput_writes(conversation.latest, [("messages", conversation.length)], "other")
        assert time.monotonic() - started_at < RIGHT_SECONDS + 1


async def test_connection_limit_leaves_cache_and_speed(
    migrated_database_url: str, addresses: tuple[Proxy, Proxy], prefix: str
) -> None:
    """Postgres has no connection left for heartbeats, so they take one of the pool's."""
    with psycopg.connect(migrated_database_url, autocommit=True) as conn:
        conn.execute("create role limited_to_one login password 'x' connection limit 1")
        try:
            conn.execute("grant all on all tables in schema public to limited_to_one")
            url = urlsplit(migrated_database_url)
            url = url._replace(netloc=f"limited_to_one:x@{url.hostname}:{url.port}")
            async with open_saver(url.geturl(), addresses[0].url, prefix=prefix, pool_max_size=1) as saver:
                conversation = Conversation(saver)
                await conversation.turn()
                await until_hit(conversation)
                started_at = time.monotonic()
                for _ in range(ROUNDS):
                    await conversation.turn()
                assert time.monotonic() - started_at < RIGHT_SECONDS
                assert saver.stats()["degraded_writes"] == 0
        finally:
            conn.execute("drop owned by limited_to_one")
            conn.execute("drop role limited_to_one")


# -- another Redis behind the address --------------------------------------------------------------------------


async def test_silent_change_of_server_is_an_outage(
    migrated_database_url: str,
    two_servers: tuple[RedisServer, RedisServer],
    addresses: tuple[Proxy, Proxy],
    prefix: str,
) -> None:
    async with two_savers(migrated_database_url, addresses, prefix) as (conversation, reader):
        addresses[1].lead_to(two_servers[1].url)
        addresses[1].cut()
        await eventually(lambda: is_disconnected(addresses[1]))
        await conversation.check(reader)
        await eventually(lambda: has_opened(reader))
        assert reader.stats()["damaged"] == 0


async def is_disconnected(address: Proxy) -> bool:
    return address.open == 0


async def has_opened(saver: CachedPostgresSaver) -> bool:
    return saver.stats()["breaker_openings"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("first", ["reader", "writer"])
async def test_failover_behind_one_address_hides_no_write(
    migrated_database_url: str,
    two_servers: tuple[RedisServer, RedisServer],
    addresses: tuple[Proxy, Proxy],
    prefix: str,
    first: str,
) -> None:
    """One process is led to the new primary, and the other stays with the former one, which lives on."""
    new = two_servers[1].url
    async with two_savers(migrated_database_url, addresses, prefix) as (conversation, reader):
        early, late = addresses if first == "writer" else reversed(addresses)
        early.lead_to(new)
        early.cut()
        deadline = time.monotonic() + 8
        while time.monotonic() < deadline:  # the early one registers the new one, and serves from it
            await conversation.turn()
            await conversation.check(reader)
            await conversation.check()
            await asyncio.sleep(0.02)
        late.lead_to(new)
        late.cut()
        for _ in range(ROUNDS):
            await conversation.turn()
            await conversation.check(reader)
            await conversation.check()
        await until_hit(conversation)
        await until_hits(reader, conversation)


@pytest.mark.slow
async def test_return_to_former_server_finds_it_empty(
    migrated_database_url: str,
    two_servers: tuple[RedisServer, RedisServer],
    addresses: tuple[Proxy, Proxy],
    prefix: str,
) -> None:
    async with two_savers(migrated_database_url, addresses, prefix) as (conversation, reader):
        for server in reversed(two_servers):
            for address in addresses:
                address.lead_to(server.url)
                address.cut()
            await conversation.turn()
            await conversation.check(reader)
            await until_hit(conversation)
            await conversation.turn()
            await until_hits(reader, conversation)


@pytest.mark.slow
async def test_second_redis_under_one_prefix_is_refused(
    migrated_database_url: str,
    two_servers: tuple[RedisServer, RedisServer],
    addresses: tuple[Proxy, Proxy],
    prefix: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with (
        two_savers(migrated_database_url, addresses, prefix) as (conversation, reader),
        open_saver(migrated_database_url, two_servers[1].url, prefix=prefix) as wrong,
    ):
        for _ in range(ROUNDS):
            await conversation.turn()
            await conversation.check(reader, wrong)
            await conversation.check(reader, wrong)
            await asyncio.sleep(0.3)
        assert "is one prefix used on two servers?" in caplog.text
