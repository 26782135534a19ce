"""Contract of a store of `CacheAside`, for the one in memory and for real ones."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any, Protocol

import pytest
from redis import Redis as Sync
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import RedisError

from langgraph_checkpoint_cached.caches.cache_aside import MISS, CacheStore
from langgraph_checkpoint_cached.caches.key_value_store import KeyValueStore
from langgraph_checkpoint_cached.caches.stampede_lock import StoreUnavailable
from langgraph_checkpoint_cached.demo.embedded import EmbeddedServerError, RedisServer
from langgraph_checkpoint_cached.errors import ArgumentError
from tests.support.memory_store import MemoryStore, VirtualTime

TTL_MS = 60_000
PAYLOADS = [b"", b"\x00", b"\xff\xfe not UTF-8", b"text", bytes(range(256)) * 1000]

StartServer = Callable[..., RedisServer]


class Inspector(Protocol):
    """Looks at a store from the side."""

    store: CacheStore

    async def lives_ms(self, key: str) -> int: ...

    async def lock_lives_ms(self, key: str) -> int: ...

    async def lapse_lock(self, key: str) -> None: ...


class MemoryInspector:
    def __init__(self) -> None:
        self.store = MemoryStore(VirtualTime().clock)

    async def lives_ms(self, key: str) -> int:
        return self.store.lives_ms(key)

    async def lock_lives_ms(self, key: str) -> int:
        return self.store.lock_lives_ms(key)

    async def lapse_lock(self, key: str) -> None:
        self.store.lapse_lock(key)


class RedisInspector:
    def __init__(self, client: Redis | RedisCluster, prefix: str) -> None:
        self.store = KeyValueStore(client, prefix, timeout_seconds=10)
        self._client = client
        self._prefix = prefix

    async def lives_ms(self, key: str) -> int:
        return int(await self._client.pttl(f"{self._prefix}:{{{key}}}"))

    async def lock_lives_ms(self, key: str) -> int:
        return int(await self._client.pttl(f"{self._prefix}:{{{key}}}:lock"))

    async def lapse_lock(self, key: str) -> None:
        assert await self._client.pexpire(f"{self._prefix}:{{{key}}}:lock", 0)


@pytest.fixture(
    params=[
        "memory",
        pytest.param("redis", marks=pytest.mark.integration),
        pytest.param("redis, decoding", marks=pytest.mark.integration),
        pytest.param("cluster", marks=pytest.mark.integration),
    ]
)
async def side(request: pytest.FixtureRequest) -> AsyncIterator[Inspector]:
    if request.param == "memory":
        yield MemoryInspector()
    elif request.param == "cluster":
        async with RedisCluster.from_url(request.getfixturevalue("cluster_url")) as cluster:
            yield RedisInspector(cluster, f"test-{uuid.uuid4().hex}")
    else:
        url, prefix = request.getfixturevalue("redis_url"), request.getfixturevalue("redis_prefix")
        async with Redis.from_url(url, decode_responses=request.param == "redis, decoding") as client:
            yield RedisInspector(client, prefix)


@pytest.fixture
def store(side: Inspector) -> CacheStore:
    return side.store


@pytest.fixture(scope="module")
def cluster_url() -> Iterator[str]:
    """A Cluster of one node with all the slots."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(RedisServer("--cluster-enabled", "yes"))
        except EmbeddedServerError as exc:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(str(exc))
        with Sync.from_url(server.url) as client:
            client.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
            while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
                time.sleep(0.01)
        yield server.url


# Locks


async def test_a_free_lock_is_acquired_and_another_owners_is_not(store: CacheStore) -> None:
    assert await store.acquire("key", "a", TTL_MS) is True
    assert await store.acquire("key", "b", TTL_MS) is False


async def test_of_many_that_acquire_at_once_one_does(store: CacheStore) -> None:
    acquired = await asyncio.gather(*(store.acquire("key", str(n), TTL_MS) for n in range(30)))
    assert acquired.count(True) == 1


async def test_acquiring_twice_is_acquiring_once(store: CacheStore, side: Inspector) -> None:
    assert await store.acquire("key", "a", TTL_MS) is True
    assert await store.acquire("key", "a", 2 * TTL_MS) is True
    assert 0 < await side.lock_lives_ms("key") <= TTL_MS


async def test_a_lock_expires(store: CacheStore, side: Inspector) -> None:
    await store.acquire("key", "a", TTL_MS)
    assert 0 < await side.lock_lives_ms("key") <= TTL_MS
    await side.lapse_lock("key")
    assert await store.acquire("key", "b", TTL_MS) is True


async def test_a_released_lock_is_free(store: CacheStore) -> None:
    await store.acquire("key", "a", TTL_MS)
    assert await store.release("key", "a") is True
    assert await store.release("key", "a") is False
    assert await store.acquire("key", "b", TTL_MS) is True


async def test_a_release_does_not_free_another_owners_lock(store: CacheStore, side: Inspector) -> None:
    """Bug: deleting a lock that ran out and is another's now."""
    await store.acquire("key", "a", TTL_MS)
    await side.lapse_lock("key")
    await store.acquire("key", "b", TTL_MS)
    assert await store.release("key", "a") is False
    assert await store.acquire("key", "c", TTL_MS) is False


# Payloads


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: repr(payload[:20]))
async def test_a_payload_comes_back_as_it_went(store: CacheStore, payload: bytes) -> None:
    await store.acquire("key", "a", TTL_MS)
    assert await store.fill("key", "a", payload, TTL_MS) is True
    assert await store.read("key", None) == payload
    assert await store.read("key", TTL_MS) == payload


async def test_nothing_is_a_miss(store: CacheStore) -> None:
    assert await store.read("key", None) is MISS
    assert await store.read("key", TTL_MS) is MISS


async def test_a_payload_expires_later_with_a_read_that_says_so_only(store: CacheStore, side: Inspector) -> None:
    await store.acquire("key", "a", TTL_MS)
    await store.fill("key", "a", b"payload", TTL_MS)
    assert 0 < await side.lives_ms("key") <= TTL_MS
    await store.read("key", None)
    assert 0 < await side.lives_ms("key") <= TTL_MS
    await store.read("key", 3 * TTL_MS)
    assert 2 * TTL_MS < await side.lives_ms("key") <= 3 * TTL_MS


async def test_a_fill_replaces_and_keeps_the_lock(store: CacheStore) -> None:
    await store.acquire("key", "a", TTL_MS)
    await store.fill("key", "a", b"old", TTL_MS)
    assert await store.fill("key", "a", b"new", TTL_MS) is True
    assert await store.read("key", None) == b"new"
    assert await store.acquire("key", "b", TTL_MS) is False


async def test_a_fill_without_the_lock_stores_nothing(store: CacheStore, side: Inspector) -> None:
    """Bug: writing a stale value over a fresh one."""
    assert await store.fill("key", "a", b"never locked", TTL_MS) is False
    await store.acquire("key", "a", TTL_MS)
    await side.lapse_lock("key")
    assert await store.fill("key", "a", b"lock ran out", TTL_MS) is False
    await store.acquire("key", "b", TTL_MS)
    assert await store.fill("key", "a", b"lock is another's", TTL_MS) is False
    assert await store.read("key", None) is MISS


async def test_discard_removes_payload_and_invalidates_lock(store: CacheStore) -> None:
    await store.acquire("key", "a", TTL_MS)
    await store.fill("key", "a", b"payload", TTL_MS)
    await store.discard("key")
    assert await store.read("key", None) is MISS
    assert await store.fill("key", "a", b"stale", TTL_MS) is False
    assert await store.acquire("key", "b", TTL_MS) is True


async def test_a_discard_of_nothing_is_nothing(store: CacheStore) -> None:
    await store.discard("key")


async def test_keys_are_independent(store: CacheStore) -> None:
    for key in ("a", "b"):
        assert await store.acquire(key, f"token of {key}", TTL_MS) is True
        assert await store.fill(key, f"token of {key}", key.encode(), TTL_MS) is True
    await store.discard("a")
    assert await store.read("a", None) is MISS
    assert await store.read("b", None) == b"b"
    assert await store.fill("b", "token of a", b"", TTL_MS) is False


# Redis


@pytest.mark.integration
async def test_a_key_is_in_one_slot(redis: Redis, redis_prefix: str) -> None:
    store = KeyValueStore(redis, redis_prefix)
    keys = ["a", ":", "with space", "ünïcode", "x" * 500]
    for key in keys:
        await store.acquire(key, "a", TTL_MS)
        await store.fill(key, "a", b"", TTL_MS)
    names = [name async for name in redis.scan_iter(match=f"{redis_prefix}*", count=1000)]
    assert len(names) == 2 * len(keys)
    assert {key_slot(name) for name in names} == {key_slot(key.encode()) for key in keys}


@pytest.mark.parametrize("key", ["", "{", "}", "a{b}c"])
async def test_a_key_that_would_break_the_hash_tag_is_refused(key: str) -> None:
    store = KeyValueStore(Redis(), "prefix")
    with pytest.raises(ArgumentError, match="key must not be empty nor contain"):
        await store.read(key, None)


@pytest.mark.integration
async def test_a_server_that_lost_the_scripts_gets_them_again(redis_servers: StartServer) -> None:
    async with Redis.from_url(redis_servers().url) as client:
        store = KeyValueStore(client, "prefix", timeout_seconds=10)
        for _ in range(2):
            await client.script_flush()
            assert await store.acquire("key", "a", TTL_MS) is True
            assert await store.acquire("key", "b", TTL_MS) is False
        commands = await client.info("commandstats")
        assert commands["cmdstat_eval"]["calls"] == 2
        assert commands["cmdstat_evalsha"]["calls"] == 4


def calls_of(store: KeyValueStore) -> list[Callable[[], Any]]:
    return [
        lambda: store.acquire("key", "a", TTL_MS),
        lambda: store.release("key", "a"),
        lambda: store.read("key", None),
        lambda: store.read("key", TTL_MS),
        lambda: store.fill("key", "a", b"", TTL_MS),
        lambda: store.discard("key"),
    ]


@pytest.mark.integration
async def test_lost_server_is_unavailable_and_logged_once_each_way(
    redis_servers: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = redis_servers()
    async with Redis.from_url(server.url, retry=Retry(NoBackoff(), 0)) as client:
        store = KeyValueStore(client, "prefix", timeout_seconds=10)
        await store.read("key", None)
        for _ in range(2):
            server.kill()
            for call in calls_of(store):
                with pytest.raises(StoreUnavailable, match="'prefix'") as raised:
                    await call()
                assert isinstance(raised.value.__cause__, RedisError)
            server.start()
            for call in calls_of(store):
                await call()
    logged = [(record.levelno, record.message.split(":")[0]) for record in caplog.records]
    assert (
        logged
        == [
            (logging.WARNING, "Redis is unavailable, going on without it"),
            (logging.WARNING, "Redis is available again"),
        ]
        * 2
    )


@pytest.mark.integration
async def test_a_cluster_that_is_gone_is_unavailable(redis_servers: StartServer) -> None:
    server = redis_servers()
    server.stop()
    cluster = RedisCluster.from_url(server.url)
    store = KeyValueStore(cluster, "prefix", timeout_seconds=10)
    for call in calls_of(store):
        with pytest.raises(StoreUnavailable):
            await call()
    await cluster.aclose()


@pytest.mark.integration
async def test_an_error_that_redis_answers_is_unavailable_too(redis: Redis, redis_prefix: str) -> None:
    await redis.lpush(f"{redis_prefix}:{{key}}", "a list")
    with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
        await KeyValueStore(redis, redis_prefix).read("key", None)


@pytest.mark.integration
async def test_late_reply_of_deaf_server_is_dropped(
    redis_servers: StartServer,
) -> None:
    server = redis_servers()
    async with Redis.from_url(server.url, max_connections=1) as client:
        patient = KeyValueStore(client, "prefix", timeout_seconds=10)
        for key in ("a", "b"):
            await patient.acquire(key, "token", TTL_MS)
            await patient.fill(key, "token", key.encode(), TTL_MS)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        try:
            for call in calls_of(KeyValueStore(client, "prefix", timeout_seconds=0.02)):
                began = time.monotonic()
                with pytest.raises(StoreUnavailable, match="TimeoutError"):
                    await call()
                assert time.monotonic() - began < 5
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert [await patient.read(key, None) for key in "abab"] == [b"a", b"b", b"a", b"b"]


@pytest.mark.integration
async def test_the_callers_client_stays_open(redis: Redis, redis_prefix: str) -> None:
    store = KeyValueStore(redis, redis_prefix)
    await store.read("key", None)
    del store
    assert await redis.ping()
