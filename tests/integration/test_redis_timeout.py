"""`redis_timeout` measures Redis: not this process' event loop, the distance of a new connection, or bytes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from langgraph.checkpoint.base import empty_checkpoint

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.demo.embedded import RedisServer
from tests.support.cluster import Cluster
from tests.support.conversations import Conversation, open_saver, until_hit
from tests.support.proxy import Proxy
from tests.support.sentinel import Service

pytestmark = pytest.mark.integration

IDS = [f"t{number}" for number in range(6)]
TIMEOUT_SECONDS = 0.2
BLOCKED_SECONDS = 0.6


async def read_with_blocked_loop(saver: CachedPostgresSaver, rounds: int) -> None:
    """Read all threads again and again, while the loop is blocked at another moment of the reads each time."""
    conversations = [Conversation(saver, thread_id) for thread_id in IDS]
    await asyncio.gather(*(conversation.turns(2) for conversation in conversations))
    for number in range(rounds):
        reading = [asyncio.ensure_future(conversation.check()) for conversation in conversations]
        for _ in range(number):
            await asyncio.sleep(0)
        time.sleep(BLOCKED_SECONDS)
        await asyncio.gather(*reading)


async def assert_well(saver: CachedPostgresSaver) -> None:
    stats = saver.stats()
    assert (stats["breaker_openings"], stats["redis_errors"], stats["degraded_reads"]) == (0, 0, 0)
    assert stats["hits"] >= len(IDS)


async def outlast_blocked_loop(postgres_url: str, redis_url: str, prefix: str) -> None:
    async with open_saver(postgres_url, redis_url, prefix=prefix, redis_timeout=TIMEOUT_SECONDS) as saver:
        await read_with_blocked_loop(saver, 8)
        await assert_well(saver)


@pytest.mark.slow
@pytest.mark.parametrize("query", ["", "?max_connections=8"])
async def test_blocked_loop_is_not_a_late_redis(
    migrated_database_url: str, redis_url: str, prefix: str, query: str
) -> None:
    await outlast_blocked_loop(migrated_database_url, f"{redis_url}{query}", prefix)


@pytest.mark.slow
async def test_blocked_loop_is_not_a_late_cluster(
    migrated_database_url: str, cluster: Cluster, prefix: str
) -> None:
    await outlast_blocked_loop(migrated_database_url, cluster.url, prefix)


@pytest.mark.slow
async def test_blocked_loop_is_no_lack_of_sentinels(
    migrated_database_url: str, service: Service, prefix: str
) -> None:
    await outlast_blocked_loop(migrated_database_url, service.url, prefix)


@pytest.mark.slow
@pytest.mark.parametrize("query", ["", "?max_connections=8"])
async def test_connecting_to_distant_redis_takes_its_time(
    migrated_database_url: str,
    redis_servers: Callable[..., RedisServer],
    proxies: Callable[..., Proxy],
    query: str,
) -> None:
    proxy = proxies(redis_servers().url, delay_seconds=0.05)
    async with open_saver(migrated_database_url, proxy.url + query, redis_timeout=0.15) as saver:
        conversations = [Conversation(saver, thread_id) for thread_id in IDS]
        for _ in range(3):
            await asyncio.gather(*(conversation.turns(1) for conversation in conversations))
        proxy.cut()
        await asyncio.gather(*(conversation.turns(1) for conversation in conversations))
        stats = saver.stats()
        assert (stats["breaker_openings"], stats["degraded_writes"], stats["degraded_reads"]) == (0, 0, 0)
        assert stats["hits"] > len(IDS)


@pytest.mark.slow
async def test_connection_that_never_ends_is_given_up(
    migrated_database_url: str, redis_servers: Callable[..., RedisServer], proxies: Callable[..., Proxy]
) -> None:
    proxy = proxies(redis_servers().url)
    proxy.deafen()
    async with open_saver(migrated_database_url, proxy.url, redis_timeout=TIMEOUT_SECONDS) as saver:
        started = time.monotonic()
        await Conversation(saver).turns(3)
        assert time.monotonic() - started < 2
        assert saver.stats()["breaker_openings"] == 1


@pytest.mark.slow
async def test_redis_that_stops_while_loop_is_busy_is_late(
    migrated_database_url: str, redis_servers: Callable[..., RedisServer], proxies: Callable[..., Proxy]
) -> None:
    """A loop that is always a little late does not keep a dead connection alive."""
    proxy = proxies(redis_servers().url)
    async with open_saver(migrated_database_url, proxy.url, redis_timeout=TIMEOUT_SECONDS) as saver:
        conversation = Conversation(saver)
        async with busy_loop():
            await conversation.turns(2)
            proxy.deafen()
            started = time.monotonic()
            await conversation.turns(1)
            assert time.monotonic() - started < 10
            assert saver.stats()["breaker_openings"] == 1
        proxy.hear()
        await until_hit(conversation)  # a loop as busy as that renews no right to serve in time


@asynccontextmanager
async def busy_loop() -> AsyncIterator[None]:
    """Block the loop for longer than a part of the time limit, again and again."""

    async def block() -> None:
        while True:
            time.sleep(0.07)
            await asyncio.sleep(0)

    blocking: asyncio.Task[Any] = asyncio.ensure_future(block())
    yield
    blocking.cancel()


LARGE_CHARACTERS = 13_000_000
LINK_BYTES_PER_SECOND = 100e6 / 8


async def put_large(saver: CachedPostgresSaver) -> Any:
    """Store a checkpoint with a large text; return the config of its thread."""
    version = saver.get_next_version(None, None)
    checkpoint: Any = {
        **empty_checkpoint(),
        "v": 4,
        "channel_values": {"text": "x" * LARGE_CHARACTERS},
        "channel_versions": {"text": version},
    }
    large: Any = {"configurable": {"thread_id": "large", "checkpoint_ns": ""}}
    await saver.aput(large, checkpoint, {}, {"text": version})
    return large


@pytest.mark.slow
async def test_small_reads_do_not_wait_behind_large_one(
    migrated_database_url: str, redis_servers: Callable[..., RedisServer], proxies: Callable[..., Proxy]
) -> None:
    proxy = proxies(redis_servers().url, bytes_per_second=LINK_BYTES_PER_SECOND)
    async with open_saver(migrated_database_url, proxy.url, redis_timeout=0.5) as saver:
        neighbours = [Conversation(saver, f"small{number}") for number in range(20)]
        await asyncio.gather(*(neighbour.turns(2) for neighbour in neighbours))
        large = await put_large(saver)
        await saver.aget_tuple(large)  # loads it, and waits for no fill
        await neighbours[0].check()
        hits, seconds = saver.stats()["hits"], []

        async def read_while(reading: asyncio.Future[Any], neighbour: Conversation) -> None:
            while not reading.done():
                started = time.monotonic()
                await neighbour.check()
                seconds.append(time.monotonic() - started)
                await asyncio.sleep(0.01)

        for _ in range(3):
            reading = asyncio.ensure_future(saver.aget_tuple(large))
            await asyncio.gather(*(read_while(reading, neighbour) for neighbour in neighbours))
        assert saver.stats()["hits"] == hits + len(seconds) + 3
        p99 = sorted(seconds)[len(seconds) * 99 // 100]
        assert p99 < 0.2, (p99, len(seconds))


@pytest.mark.slow
async def test_large_state_on_slow_link_is_no_outage(
    migrated_database_url: str, redis_servers: Callable[..., RedisServer], proxies: Callable[..., Proxy]
) -> None:
    proxy = proxies(redis_servers().url, bytes_per_second=LINK_BYTES_PER_SECOND)
    async with open_saver(migrated_database_url, proxy.url, redis_timeout=0.5) as saver:
        neighbours = [Conversation(saver, thread_id) for thread_id in IDS]
        await asyncio.gather(*(neighbour.turns(2) for neighbour in neighbours))
        large = await put_large(saver)
        hits = saver.stats()["hits"]
        for _ in range(3):
            reading = asyncio.ensure_future(saver.aget_tuple(large))
            await asyncio.gather(*(neighbour.check() for neighbour in neighbours))
            found = await reading
            assert found is not None
            assert len(found.checkpoint["channel_values"]["text"]) == LARGE_CHARACTERS
        stats = saver.stats()
        assert (stats["breaker_openings"], stats["redis_errors"], stats["degraded_reads"]) == (0, 0, 0)
        assert stats["hits"] >= hits + 3 * len(IDS) + 2
