"""Deleted means gone: no text of what was deleted stays in Redis, wherever it stood, and was Redis away or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from redis.asyncio import Redis

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.stores.redis.health import RedisUnavailable
from tests.support import conversations
from tests.support.agreement import PATIENT_SECONDS, eventually, new_checkpoint, on_thread
from tests.support.cluster import Cluster
from tests.support.inspect import inspect
from tests.support.proxy import Proxy

pytestmark = pytest.mark.integration

SECRET = "what nobody is to read again"
NAMESPACES = ("", "sub:1", "sub:1|inner", "ü", "long" * 100)
open_saver = partial(conversations.open_saver, redis_timeout=PATIENT_SECONDS)
MODES = ("write_through", "write_behind")
Delete = Callable[[CachedPostgresSaver], Awaitable[Any]]


async def delete_runs(saver: CachedPostgresSaver) -> None:
    await saver.adelete_for_runs(["run"])


async def delete_idle(saver: CachedPostgresSaver) -> None:
    await saver.aflush()  # what Postgres does not have yet is not idle
    await asyncio.sleep(0.02)
    await saver.adelete_idle_threads(0.01)


DELETES: dict[str, Delete] = {
    "adelete_thread": lambda saver: saver.adelete_thread("t"),
    "aprune delete": lambda saver: saver.aprune(["t"], strategy="delete"),
    "aprune keep_latest": lambda saver: saver.aprune(["t"]),
    "adelete_for_runs": delete_runs,
    "adelete_idle_threads": delete_idle,
    "acopy_thread": lambda saver: saver.acopy_thread("source", "t", overwrite=True),
}


async def texts(redis: Any, prefix: str) -> list[bytes]:
    """All that stands in Redis under a prefix, by key and by type."""
    found = []
    async for key in redis.scan_iter(match=f"{prefix}:*"):
        kind = await redis.type(key)
        if kind == b"hash":
            found += [part for pair in (await redis.hgetall(key)).items() for part in pair]
        elif kind == b"stream":
            found += [part for _, fields in await redis.xrange(key) for part in fields.values()]
        elif kind == b"string":
            found.append(await redis.get(key))
        else:
            found += await (redis.smembers(key) if kind == b"set" else redis.zrange(key, 0, -1))
    return found


async def holds_secret(redis: Any, prefix: str) -> bool:
    return any(SECRET.encode() in text for text in await texts(redis, prefix))


async def fill(saver: CachedPostgresSaver, reader: CachedPostgresSaver) -> None:
    """Write a thread with subgraphs, so that each of its namespaces has an entry with the secret."""
    for namespace in NAMESPACES:
        config: Any = on_thread("t", checkpoint_ns=namespace)
        assert await saver.aget_tuple(config) is None
        for turn in range(2):
            version = saver.get_next_version(None, None)
            checkpoint = new_checkpoint(channel_values={"a": [SECRET]}, channel_versions={"a": version})
            config = await saver.aput(config, checkpoint, {"run_id": "run"}, {"a": version})  # type: ignore[typeddict-unknown-key]
            await saver.aput_writes(config, [("a", [SECRET, turn])], "task")
        assert await reader.aget_tuple(on_thread("t", checkpoint_ns=namespace)) is not None
    await saver.aput(on_thread("source", checkpoint_ns=""), new_checkpoint(), {}, {})


@pytest.fixture
async def savers(
    migrated_database_url: str, redis_url: str, redis_prefix: str, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[CachedPostgresSaver, CachedPostgresSaver]]:
    """One that writes, and that of another process."""
    async with (
        open_saver(migrated_database_url, redis_url, prefix=redis_prefix, mode=request.param) as one,
        open_saver(migrated_database_url, redis_url, prefix=redis_prefix) as other,
    ):
        await one.setup()
        yield one, other


@pytest.mark.parametrize("delete", DELETES)
@pytest.mark.parametrize("savers", MODES, indirect=True)
async def test_no_text_of_deleted_thread_stays(
    savers: tuple[CachedPostgresSaver, CachedPostgresSaver], redis: Redis, redis_prefix: str, delete: str
) -> None:
    await fill(*savers)
    assert await holds_secret(redis, redis_prefix)
    await DELETES[delete](savers[1])
    assert not await holds_secret(redis, redis_prefix)
    if delete != "aprune keep_latest":
        found = await savers[0].aget_tuple(on_thread("t", checkpoint_ns="sub:1"))
        assert found is None


@pytest.mark.parametrize("savers", ["write_behind"], indirect=True)
async def test_no_text_of_unflushed_thread_stays(
    savers: tuple[CachedPostgresSaver, CachedPostgresSaver], redis: Redis, redis_prefix: str
) -> None:
    """Namespaces and a journal of which Postgres knows nothing."""
    with inspect(savers[0]).flushing_paused():
        await savers[0].aput(on_thread("t", checkpoint_ns=""), new_checkpoint(), {}, {})
        inner: Any = on_thread("t", checkpoint_ns="sub:2")
        await savers[0].aget_tuple(inner)
        for _ in range(3):
            version = savers[0].get_next_version(None, None)
            checkpoint = new_checkpoint(channel_values={"a": [SECRET]}, channel_versions={"a": version})
            inner = await savers[0].aput(inner, checkpoint, {}, {"a": version})
        assert savers[0].stats()["appends"] >= 1
        await savers[0].adelete_thread("t")
        assert not await holds_secret(redis, redis_prefix)


@pytest.mark.parametrize("savers", MODES, indirect=True)
@pytest.mark.parametrize("command", ["prune t --strategy delete", "retention --idle-for 0.01s"])
async def test_commands_leave_no_text(
    savers: tuple[CachedPostgresSaver, CachedPostgresSaver],
    redis: Redis,
    redis_prefix: str,
    ask_cli: Callable[..., Awaitable[tuple[int, Any]]],
    command: str,
) -> None:
    await fill(*savers)
    await savers[0].aflush()
    code, _ = await ask_cli(*command.split())
    assert code == 0
    assert not await holds_secret(redis, redis_prefix)


@pytest.mark.parametrize("delete", ["adelete_thread", "aprune keep_latest", "adelete_for_runs"])
@pytest.mark.parametrize("mode", MODES)
async def test_text_goes_when_redis_is_back(
    migrated_database_url: str,
    redis_url: str,
    redis_prefix: str,
    redis: Redis,
    proxies: Callable[[str], Proxy],
    mode: str,
    delete: str,
) -> None:
    """The one that deletes cannot reach Redis: another one, or itself later, removes what stands there."""
    proxy = proxies(redis_url)
    async with (
        open_saver(migrated_database_url, proxy.url, prefix=redis_prefix, mode=mode, redis_timeout=0.2) as alone,
        open_saver(migrated_database_url, redis_url, prefix=redis_prefix) as other,
    ):
        await alone.setup()
        await fill(alone, other)
        await alone.aflush()
        proxy.stop()
        await DELETES[delete](alone)

        async def is_gone() -> bool:
            return not await holds_secret(redis, redis_prefix)

        await eventually(is_gone)


@pytest.mark.parametrize("savers", MODES, indirect=True)
async def test_text_is_gone_before_postgres_deletes(
    savers: tuple[CachedPostgresSaver, CachedPostgresSaver],
    redis: Redis,
    redis_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that dies once Postgres has deleted leaves nothing behind, though nobody knows of its delete."""

    async def die(*arguments: Any) -> None:
        raise RedisUnavailable("the process is gone")

    await fill(*savers)
    deleting = inspect(savers[1]).entries
    monkeypatch.setattr(deleting, "end_thread", die)
    await savers[1].aprune(["t"])
    assert not await holds_secret(redis, redis_prefix)


async def test_no_text_stays_in_a_cluster(migrated_database_url: str, cluster: Cluster, prefix: str) -> None:
    async with (
        open_saver(migrated_database_url, cluster.url, prefix=prefix, mode="write_behind") as one,
        open_saver(migrated_database_url, cluster.url, prefix=prefix) as other,
    ):
        await one.setup()
        await fill(one, other)
        client = inspect(other).redis
        assert await holds_secret(client, prefix)
        await other.adelete_thread("t")
        assert not await holds_secret(client, prefix)
