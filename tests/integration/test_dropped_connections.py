"""Connections to Redis that are dropped while Redis is well: no outage, and nothing stale."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.demo.embedded import RedisServer
from tests.support.cluster import Cluster
from tests.support.conversations import Conversation, open_saver, until_hit
from tests.support.load import playing
from tests.support.sentinel import Service

pytestmark = pytest.mark.integration

IDS = [f"t{number}" for number in range(12)]
STORM_SECONDS = 3.0
KILLS_EVERY_SECONDS = 0.05
KILLED_MIN = 30


async def kill_for(seconds: float, clients: list[Any]) -> int:
    """Kill all connections of ordinary clients again and again; return how many were killed."""
    loop = asyncio.get_running_loop()
    until, killed = loop.time() + seconds, 0
    while loop.time() < until:
        for client in clients:
            killed += await asyncio.to_thread(kill, client)
        await asyncio.sleep(KILLS_EVERY_SECONDS)
    return killed


def kill(client: Any) -> int:
    return int(client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))


def assert_no_outage(savers: list[CachedPostgresSaver]) -> None:
    for saver in savers:
        stats = saver.stats()
        names = ("breaker_openings", "degraded_writes", "degraded_reads")
        assert {name: stats[name] for name in names} == dict.fromkeys(names, 0)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["write_through", "write_behind"])
@pytest.mark.parametrize("query", ["", "?protocol=2", "?max_connections=8", "?max_connections=8&protocol=2"])
async def test_kill_storm_is_no_outage(
    migrated_database_url: str, redis_servers: Callable[..., RedisServer], prefix: str, query: str, mode: Any
) -> None:
    server = redis_servers()
    with redis.Redis.from_url(server.url) as admin:
        async with playing(migrated_database_url, server.url + query, prefix, IDS, mode=mode) as (players, report):
            killed = await kill_for(STORM_SECONDS, [admin])
    assert killed >= KILLED_MIN
    assert (report.errors, report.violations) == ([], [])
    assert_no_outage([player.saver for player in players])
    assert report.stats["hits"] > report.reads / 4


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["write_through", "write_behind"])
async def test_kill_storm_in_cluster_is_no_outage(
    migrated_database_url: str, cluster: Cluster, prefix: str, mode: Any
) -> None:
    async with playing(migrated_database_url, cluster.url, prefix, IDS, mode=mode) as (players, report):
        killed = await kill_for(STORM_SECONDS, [cluster.clients[node] for node in cluster.primaries])
    assert killed >= KILLED_MIN
    assert (report.errors, report.violations) == ([], [])
    assert_no_outage([player.saver for player in players])


@pytest.mark.slow
async def test_kill_storm_behind_sentinels_is_no_outage(
    migrated_database_url: str, service: Service, prefix: str
) -> None:
    async with playing(migrated_database_url, service.url, prefix, IDS) as (players, report):
        killed = await kill_for(STORM_SECONDS, [service.clients[service.primary]])
    assert killed >= KILLED_MIN
    assert (report.errors, report.violations) == ([], [])
    assert_no_outage([player.saver for player in players])


@asynccontextmanager
async def saver_over(url: str, database_url: str, **options: Any) -> AsyncIterator[CachedPostgresSaver]:
    """Open a saver over a client that the application made."""
    async with (
        Redis.from_url(url, retry=Retry(NoBackoff(), 0), **options) as client,
        AsyncPostgresSaver.from_conn_string(database_url) as upstream,
    ):
        saver = CachedPostgresSaver(client, upstream)
        yield saver
        await saver.aclose()


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("options", [{}, {"max_connections": 8}, {"health_check_interval": 30}], ids=str)
async def test_connections_closed_while_idle_are_replaced(
    migrated_database_url: str, redis_servers: Callable[..., RedisServer], options: dict[str, Any], protocol: int
) -> None:
    server = redis_servers()
    with redis.Redis.from_url(server.url) as admin:
        async with saver_over(server.url, migrated_database_url, protocol=protocol, **options) as saver:
            conversations = [Conversation(saver, thread_id) for thread_id in IDS[:6]]
            await asyncio.gather(*(conversation.turns(2) for conversation in conversations))
            for pause in (0.05, 0.0, 1.2):  # seconds: noticed; not noticed yet; long idle
                kill(admin)
                await asyncio.sleep(pause)
                await asyncio.gather(*(conversation.turns(1) for conversation in conversations))
            assert_no_outage([saver])


@pytest.mark.slow
async def test_server_that_restarts_at_once_is_an_outage(
    migrated_database_url: str, redis_servers: Callable[..., RedisServer]
) -> None:
    """Other processes may have met it while it was away, and have written to Postgres alone."""
    server = redis_servers()
    for query in ("", "?max_connections=8"):
        async with open_saver(migrated_database_url, server.url + query, prefix=f"p{query}") as saver:
            conversation = Conversation(saver, f"t{query}")
            await conversation.turns(2)
            server.kill()
            server.start()  # the loop stands still meanwhile
            await conversation.turns(1)
            assert saver.stats()["breaker_openings"] == 1
            await until_hit(conversation)
