"""Write-behind: what Redis has acknowledged is read by all at once, reaches Postgres, and is lost only with both
the data of Redis and the process that wrote it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from redis.asyncio import Redis

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.demo.embedded import RedisServer
from langgraph_checkpoint_cached.engine import held_leases, journal_replayer, write_behind
from langgraph_checkpoint_cached.errors import ArgumentError, BehindError, UnsupportedServerError
from langgraph_checkpoint_cached.stores.redis.keys import journal_key
from tests.support.agreement import eventually, new_checkpoint, on_thread
from tests.support.conversations import Conversation, until_hit
from tests.support.inspect import inspect
from tests.support.proxy import Proxy

pytestmark = pytest.mark.integration

TIMEOUT_SECONDS = 2.0
LEASES = "select thread_id, position from checkpoint_cache_leases"


@asynccontextmanager
async def open_saver(postgres_url: str, redis_url: str, **options: Any) -> AsyncIterator[CachedPostgresSaver]:
    settings = {"mode": "write_behind", "redis_timeout": TIMEOUT_SECONDS, "pool_timeout": 2, **options}
    async with CachedPostgresSaver.from_conn_string(postgres_url, redis_url, **settings) as saver:
        yield saver


def rows(postgres_url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(postgres_url, autocommit=True) as conn:
        return conn.execute(query).fetchall()  # type: ignore[arg-type]


def checkpoints(postgres_url: str) -> int:
    return int(rows(postgres_url, "select count(*) from checkpoints")[0][0])


async def stock_latest(postgres_url: str, config: Any) -> CheckpointTuple | None:
    async with AsyncPostgresSaver.from_conn_string(postgres_url) as upstream:
        return await upstream.aget_tuple(config)


async def start_behind(saver: CachedPostgresSaver, thread_id: str = "t") -> Conversation:
    """A conversation whose thread is known to Redis, and on which its process has the lease."""
    conversation = Conversation(saver, thread_id)
    await saver.aget_tuple(conversation.config)
    await conversation.turn()
    assert saver.stats()["appends"] > 0
    await eventually(lambda: _equals(lambda: saver.stats()["unflushed"], 0))
    return conversation


async def _nothing() -> None:
    return None


@pytest.fixture
async def behind(
    migrated_database_url: str, redis_url: str, redis_prefix: str
) -> AsyncIterator[CachedPostgresSaver]:
    async with open_saver(migrated_database_url, redis_url, prefix=redis_prefix) as saver:
        yield saver


@pytest.fixture
async def another(
    migrated_database_url: str, redis_url: str, redis_prefix: str
) -> AsyncIterator[CachedPostgresSaver]:
    """A process that writes through, on the same servers."""
    async with open_saver(migrated_database_url, redis_url, prefix=redis_prefix, mode="write_through") as saver:
        yield saver


async def test_acknowledged_write_is_read_by_all_and_flushed(
    migrated_database_url: str, behind: CachedPostgresSaver, another: CachedPostgresSaver
) -> None:
    conversation = await start_behind(behind)
    with inspect(behind).flushing_paused():
        await conversation.turns(3)
        await conversation.check(behind, another)
        assert behind.stats()["unflushed"] >= 6
        assert checkpoints(migrated_database_url) < 4
    await behind.aflush("t")
    assert checkpoints(migrated_database_url) == 4
    assert behind.stats()["unflushed"] == 0
    assert await stock_latest(migrated_database_url, conversation.config) == await behind.aget_tuple(
        conversation.config
    )
    assert behind.stats()["appends"] == behind.stats()["replayed"] == 8
    assert behind.stats()["writes"] == 0


async def test_writes_during_flush_are_batched(
    behind: CachedPostgresSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One conversation alone, in which a write comes during each transaction, had one transaction for each."""
    conversation = await start_behind(behind)
    replay = inspect(behind).store.replay

    async def slow(*arguments: Any) -> Any:
        await conversation.turn()
        return await replay(*arguments)

    monkeypatch.setattr(held_leases, "GATHER_SECONDS", 0.2)
    monkeypatch.setattr(inspect(behind).store, "replay", slow)
    await conversation.turn()
    await asyncio.sleep(0.5)
    monkeypatch.undo()
    await behind.aflush()
    stats = behind.stats()
    assert stats["appends"] == stats["replayed"]
    assert stats["postgres_replay_count"] <= 5


async def _list(saver: CachedPostgresSaver, conversation: Conversation) -> int:
    return len([found async for found in saver.alist(conversation.config)])


async def _list_all(saver: CachedPostgresSaver, conversation: Conversation) -> int:
    return len([found async for found in saver.alist(None)])


async def _by_id(saver: CachedPostgresSaver, conversation: Conversation) -> int:
    latest = await saver.aget_tuple(conversation.config)
    assert latest is not None
    assert latest.parent_config is not None
    parent = await saver.aget_tuple(latest.parent_config)
    assert parent is not None
    return 1 + len(parent.checkpoint["channel_values"]["messages"])


async def _copy(saver: CachedPostgresSaver, conversation: Conversation) -> int:
    await saver.acopy_thread("t", "copy")
    return len([found async for found in saver.alist(on_thread("copy"))])


async def _after_an_eviction(saver: CachedPostgresSaver, conversation: Conversation) -> int:
    key = f"{inspect(saver).prefix}:{{t}}:ns:"
    assert await inspect(saver).redis.delete(key) == 1
    await conversation.check(saver)
    return conversation.length


@pytest.mark.parametrize("read", [_list, _list_all, _by_id, _copy, _after_an_eviction])
@pytest.mark.parametrize("by", ["the holder", "another process"])
async def test_reads_of_postgres_flush_first(
    behind: CachedPostgresSaver,
    another: CachedPostgresSaver,
    by: str,
    read: Callable[[CachedPostgresSaver, Conversation], Awaitable[int]],
) -> None:
    conversation = await start_behind(behind)
    with inspect(behind).flushing_paused():
        await conversation.turns(3)
        assert behind.stats()["unflushed"] >= 6
        assert await read(behind if by == "the holder" else another, conversation) == 4
    await conversation.turns(2)
    await conversation.check(behind, another)


async def test_write_through_of_another_process_comes_after_journal(
    migrated_database_url: str, behind: CachedPostgresSaver, another: CachedPostgresSaver
) -> None:
    """A special write replaces what is there: the later one has to stay."""
    conversation = await start_behind(behind)
    with inspect(behind).flushing_paused():
        await behind.aput_writes(conversation.latest, [("__resume__", "first")], "task")
        await another.aput_writes(conversation.latest, [("__resume__", "second")], "task")
    await behind.aflush()
    for saver in (behind, another):
        found = await saver.aget_tuple(conversation.config)
        assert found is not None
        assert ("task", "__resume__", "second") in (found.pending_writes or [])
    upstream = await stock_latest(migrated_database_url, conversation.config)
    assert upstream == await behind.aget_tuple(conversation.config)


@pytest.mark.parametrize("how", ["delete", "prune"])
@pytest.mark.parametrize("by", ["the holder", "another process"])
async def test_deleted_thread_does_not_come_back(
    migrated_database_url: str,
    redis_prefix: str,
    behind: CachedPostgresSaver,
    another: CachedPostgresSaver,
    how: str,
    by: str,
) -> None:
    conversation = await start_behind(behind)
    deleter = behind if by == "the holder" else another
    with inspect(behind).flushing_paused():
        await conversation.turns(2)
        if how == "delete":
            await deleter.adelete_thread("t")
        else:
            await deleter.aprune(["t"], strategy="delete")
    await asyncio.sleep(0.1)  # the holder finds that out by itself
    await behind.aflush()
    for saver in (behind, another):
        assert await saver.aget_tuple(conversation.config) is None
    assert checkpoints(migrated_database_url) == 0
    assert rows(migrated_database_url, LEASES) == []
    await eventually(lambda: _is_gone(behind, journal_key(redis_prefix, "t")))
    again = Conversation(behind)
    await again.turns(3)
    await behind.aflush()
    assert checkpoints(migrated_database_url) == 3


async def _is_gone(saver: CachedPostgresSaver, key: str) -> bool:
    return not await inspect(saver).redis.exists(key)


async def test_prune_keeps_latest_acknowledged(
    migrated_database_url: str, behind: CachedPostgresSaver, another: CachedPostgresSaver
) -> None:
    conversation = await start_behind(behind)
    with inspect(behind).flushing_paused():
        await conversation.turns(3)
        await another.aprune(["t"])
    await conversation.check(behind, another)
    assert checkpoints(migrated_database_url) == 1


async def test_idle_leases_end(
    migrated_database_url: str,
    redis_prefix: str,
    behind: CachedPostgresSaver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(held_leases, "LINGER_SECONDS", 0.05)
    conversation = await start_behind(behind)
    await conversation.turns(2)

    async def ended() -> bool:
        return rows(migrated_database_url, LEASES) == [] and behind.stats()["leases_held"] == 0

    await eventually(ended)
    assert not await inspect(behind).redis.exists(journal_key(redis_prefix, "t"))
    for key in await inspect(behind).redis.keys(f"{redis_prefix}*"):
        assert 0 < await inspect(behind).redis.pttl(key) <= 3_600_000, f"{key!r} lives on"
    await conversation.check()


async def test_closed_saver_leaves_no_lease_or_journal(
    migrated_database_url: str, redis_url: str, redis_prefix: str
) -> None:
    async with open_saver(migrated_database_url, redis_url, prefix=redis_prefix) as saver:
        conversations = [await start_behind(saver, f"t{i}") for i in range(5)]
        await asyncio.gather(*(conversation.turns(3) for conversation in conversations))
    assert checkpoints(migrated_database_url) == 20
    assert rows(migrated_database_url, LEASES) == []
    async with Redis.from_url(redis_url) as client:
        assert [key async for key in client.scan_iter(match=f"{redis_prefix}*journal")] == []


async def test_others_replay_journal_of_dead_process(
    migrated_database_url: str,
    redis_url: str,
    redis_prefix: str,
    another: CachedPostgresSaver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal_replayer, "ABANDONED_SECONDS", 0.2)
    async with AsyncExitStack() as stack:
        saver = await stack.enter_async_context(open_saver(migrated_database_url, redis_url, prefix=redis_prefix))
        conversation = await start_behind(saver)
        with inspect(saver).flushing_paused():
            await conversation.turns(3)
            inspect(saver).die()
        found = conversation.length
        assert checkpoints(migrated_database_url) < found
        conversation.saver = another
        await conversation.check()  # a hit, as always

        async def recovered() -> bool:
            assert another.stats()["leases_recovered"] <= 1
            return another.stats()["leases_recovered"] == 1

        await another.aget_tuple(on_thread("x"))  # from now on it looks, once a second
        await eventually(recovered)
        assert checkpoints(migrated_database_url) == found
        assert rows(migrated_database_url, LEASES) == []
        assert another.stats()["leases_lost"] == 0
        await conversation.turns(2)
        assert not await inspect(another).redis.exists(journal_key(redis_prefix, "t"))


async def test_losing_redis_alone_loses_nothing(
    migrated_database_url: str, redis_servers: Callable[..., RedisServer]
) -> None:
    server = redis_servers()
    async with (
        open_saver(migrated_database_url, server.url, redis_timeout=0.2) as saver,
        open_saver(migrated_database_url, server.url, redis_timeout=0.2, mode="write_through") as other,
    ):
        conversation = await start_behind(saver)
        with inspect(saver).flushing_paused():
            await conversation.turns(3)
            server.kill()  # without a snapshot
            await conversation.turns(3)
            await conversation.check(saver, other)
        server.start()
        await until_hit(conversation)
        await conversation.turns(3)
        await conversation.check(saver, other)
        await saver.aflush()
    assert checkpoints(migrated_database_url) == conversation.length


async def test_redis_restarts_empty_between_two_writes(
    migrated_database_url: str, redis_servers: Callable[..., RedisServer]
) -> None:
    server = redis_servers()
    async with open_saver(migrated_database_url, server.url, redis_timeout=0.2) as saver:
        conversation = await start_behind(saver)
        for _ in range(2):
            with inspect(saver).flushing_paused():
                await conversation.turns(3)
                server.kill()
                server.start()
            await conversation.turns(3)
        await saver.aflush()
    assert checkpoints(migrated_database_url) == conversation.length


async def test_losing_process_and_redis_loses_only_unflushed_writes(
    migrated_database_url: str,
    redis_servers: Callable[..., RedisServer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(journal_replayer, "ABANDONED_SECONDS", 0.3)
    server = redis_servers()
    async with AsyncExitStack() as stack:
        saver = await stack.enter_async_context(open_saver(migrated_database_url, server.url))
        other = await stack.enter_async_context(
            open_saver(migrated_database_url, server.url, mode="write_through", redis_timeout=0.2)
        )
        conversation = await start_behind(saver)
        await saver.aflush()
        flushed = await saver.aget_tuple(conversation.config)
        with inspect(saver).flushing_paused():
            await conversation.turns(2)
            inspect(saver).die()
            server.kill()
        server.start()
        assert await other.aget_tuple(conversation.config) == flushed
        await eventually(lambda: _equals(lambda: other.stats()["leases_lost"], 1))
        assert rows(migrated_database_url, LEASES) == []
        assert "'t'" in caplog.text


async def _equals(value: Callable[[], float], expected: float) -> bool:
    return value() == expected


async def test_nothing_older_is_read_while_redis_is_unreachable(
    migrated_database_url: str,
    redis_servers: Callable[..., RedisServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal_replayer, "FLUSH_SECONDS_MAX", 0.3)
    server = redis_servers("--appendonly", "yes", "--appendfsync", "always")
    async with AsyncExitStack() as stack:
        saver = await stack.enter_async_context(open_saver(migrated_database_url, server.url))
        other = await stack.enter_async_context(
            open_saver(migrated_database_url, server.url, mode="write_through", redis_timeout=0.2)
        )
        conversation = await start_behind(saver)
        with inspect(saver).flushing_paused():
            await conversation.turns(2)
            inspect(saver).die()
        server.kill()
        for call in (
            other.aget_tuple(conversation.config),
            other.aget_tuple(conversation.latest),
            other.aput(conversation.latest, new_checkpoint(), {}, {}),
            other.aflush("t"),
            other.aprune(["t"]),
        ):
            with pytest.raises(BehindError, match="'t'"):
                await call
        assert await other.aget_tuple(on_thread("someone else's")) is None
        await other.adelete_thread("x")
        server.start()
        monkeypatch.setattr(journal_replayer, "ABANDONED_SECONDS", 0.3)
        monkeypatch.setattr(journal_replayer, "FLUSH_SECONDS_MAX", 10)
        conversation.saver = other
        await conversation.check()
        await conversation.turns(2)
        assert other.stats()["leases_lost"] <= 1  # nothing was, but it cannot know
        assert checkpoints(migrated_database_url) == conversation.length


async def test_lost_append_reply_is_recovered(
    migrated_database_url: str, redis_url: str, redis_prefix: str, proxies: Callable[[str], Proxy]
) -> None:
    """Redis has appended it, or not: nobody knows. It is acknowledged when Postgres has it."""
    proxy = proxies(redis_url)
    async with (
        open_saver(migrated_database_url, proxy.url, prefix=redis_prefix, redis_timeout=0.3) as saver,
        open_saver(migrated_database_url, redis_url, prefix=redis_prefix, mode="write_through") as other,
    ):
        conversation = await start_behind(saver)
        with inspect(saver).flushing_paused():
            await conversation.turns(2)
            proxy.mute()
            await conversation.turn()
            assert checkpoints(migrated_database_url) == conversation.length
            proxy.cut()
            proxy.hear()
        await until_hit(conversation)
        await conversation.check(saver, other)
        await conversation.turns(2)
        await conversation.check(saver, other)
        await saver.aflush()
    assert checkpoints(migrated_database_url) == conversation.length
    assert rows(migrated_database_url, LEASES) == []


async def test_postgres_is_away_for_a_while(
    migrated_database_url: str, redis_url: str, redis_prefix: str, proxies: Callable[[str], Proxy]
) -> None:
    proxy = proxies(migrated_database_url)
    async with open_saver(proxy.url, redis_url, prefix=redis_prefix) as saver:
        conversations = [await start_behind(saver, f"t{i}") for i in range(4)]
        proxy.stop()
        await asyncio.gather(*(conversation.turns(10) for conversation in conversations))
        assert saver.stats()["unflushed"] >= 80
        proxy.start()

        async def followed() -> bool:
            return saver.stats()["unflushed"] == 0

        await eventually(followed)
        assert checkpoints(migrated_database_url) == 44
        await asyncio.gather(*(conversation.turns(2) for conversation in conversations))
    assert checkpoints(migrated_database_url) == 52


async def test_writes_go_through_at_backlog_limit(
    migrated_database_url: str,
    redis_url: str,
    redis_prefix: str,
    proxies: Callable[[str], Proxy],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(write_behind, "UNFLUSHED_MAX", 10)
    proxy = proxies(migrated_database_url)
    async with open_saver(proxy.url, redis_url, prefix=redis_prefix, pool_timeout=0.5) as saver:
        conversation = await start_behind(saver)
        await saver.aflush()
        proxy.stop()
        for number in range(10):
            await saver.aput_writes(conversation.latest, [("c", number)], f"task {number}")
        with pytest.raises(psycopg.Error):
            await saver.aput_writes(conversation.latest, [("c", 10)], "one more")
        proxy.start()
        await saver.aput_writes(conversation.latest, [("c", "more")], "the last task")
        found = await saver.aget_tuple(conversation.config)
        assert found is not None
        assert {task for task, _, _ in found.pending_writes or []} >= {f"task {i}" for i in range(10)}
        await saver.aflush()
        assert await stock_latest(migrated_database_url, conversation.config) == found


async def test_redis_that_may_evict_journals_is_refused(
    migrated_database_url: str, redis_servers: Callable[..., RedisServer], caplog: pytest.LogCaptureFixture
) -> None:
    server = redis_servers("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    async with open_saver(migrated_database_url, server.url) as saver:
        with pytest.raises(UnsupportedServerError, match=r"allkeys-lru.*noeviction or volatile-lru"):
            await saver.setup()
        conversation = Conversation(saver)
        await conversation.turns(3)
        assert saver.stats()["appends"] == 0
        assert checkpoints(migrated_database_url) == 3
        assert rows(migrated_database_url, LEASES) == []
        assert [r.levelname for r in caplog.records if "allkeys-lru" in r.getMessage()] == ["ERROR"]
    async with open_saver(migrated_database_url, server.url, mode="write_through") as saver:
        await saver.setup()


@pytest.mark.parametrize("policy", ["noeviction", "volatile-lru", "volatile-ttl"])
async def test_durable_redis_is_accepted(
    migrated_database_url: str, redis_servers: Callable[..., RedisServer], policy: str
) -> None:
    server = redis_servers("--maxmemory", "100mb", "--maxmemory-policy", policy)
    async with open_saver(migrated_database_url, server.url) as saver:
        await saver.setup()
        await start_behind(saver)


async def test_full_redis_turns_writes_through(
    migrated_database_url: str, redis_servers: Callable[..., RedisServer]
) -> None:
    server = redis_servers("--maxmemory-policy", "noeviction")
    async with open_saver(migrated_database_url, server.url) as saver:
        conversation = await start_behind(saver)
        appends = saver.stats()["appends"]
        await inspect(saver).redis.config_set("maxmemory", 1)
        await conversation.turns(3)
        assert saver.stats()["appends"] == appends
        assert checkpoints(migrated_database_url) == conversation.length
        await inspect(saver).redis.config_set("maxmemory", 0)
        await conversation.turns(5)
        assert saver.stats()["appends"] > appends


async def test_write_unconfirmed_by_replica_is_flushed_first(
    migrated_database_url: str, redis_servers: Callable[..., RedisServer]
) -> None:
    primary, replica = redis_servers(), redis_servers()
    async with Redis.from_url(replica.url) as client:
        await client.replicaof("127.0.0.1", primary.port)  # type: ignore[attr-defined]
        await eventually(lambda: _is_linked(client))
    options: dict[str, Any] = {"redis_durability": "replica", "redis_timeout": 1}
    async with open_saver(migrated_database_url, primary.url, **options) as saver:
        conversation = await start_behind(saver)
        with inspect(saver).flushing_paused():
            await conversation.turn()
            assert checkpoints(migrated_database_url) == conversation.length - 1
            replica.stop()
            await conversation.turn()
            assert checkpoints(migrated_database_url) == conversation.length
            await conversation.check()


async def _is_linked(client: Redis) -> bool:
    return bool((await client.info("replication")).get("master_link_status") == "up")


async def test_write_unconfirmed_by_disk_is_flushed_first(
    migrated_database_url: str, redis_servers: Callable[..., RedisServer]
) -> None:
    """Redis before 7.2 has no WAITAOF, and one without an append-only file has nothing to wait for."""
    server = redis_servers()
    async with open_saver(migrated_database_url, server.url, redis_durability="disk", redis_timeout=1) as saver:
        conversation = await start_behind(saver)
        with inspect(saver).flushing_paused():
            await conversation.turn()
            assert checkpoints(migrated_database_url) == conversation.length


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["replica", "disk"])
async def test_durability_that_cannot_be_had_is_no_outage(
    migrated_database_url: str,
    redis_servers: Callable[..., RedisServer],
    caplog: pytest.LogCaptureFixture,
    durability: Any,
) -> None:
    """Every write waited for half of `redis_timeout`, one after the other, and the breaker opened."""
    server = redis_servers()
    options: dict[str, Any] = {"redis_durability": durability, "redis_timeout": 0.5}
    async with open_saver(migrated_database_url, server.url, **options) as saver:
        conversations = [Conversation(saver, f"t{number}") for number in range(40)]
        started = time.monotonic()
        await asyncio.gather(*(conversation.turns(5) for conversation in conversations))
        assert time.monotonic() - started < 20
        stats = saver.stats()
        assert (stats["breaker_openings"], stats["redis_errors"], stats["degraded_writes"]) == (0, 0, 0)
        assert stats["appends"] > 0
    assert [r.levelname for r in caplog.records if "is not confirmed" in r.getMessage()] == ["WARNING"]


async def test_unstorable_write_raises_and_is_not_acknowledged(
    migrated_database_url: str, behind: CachedPostgresSaver
) -> None:
    conversation = await start_behind(behind)
    with pytest.raises(psycopg.DataError):
        await behind.aput_writes(conversation.latest, [("channel\0", 1)], "task")
    with pytest.raises(psycopg.Error):
        await behind.aput(conversation.latest, new_checkpoint(), {"x": float("nan")}, {})  # type: ignore[typeddict-unknown-key]
    await conversation.turns(2)
    await behind.aflush()
    assert await stock_latest(migrated_database_url, conversation.config) == await behind.aget_tuple(
        conversation.config
    )


async def test_a_cancelled_caller_stops_no_write(migrated_database_url: str, behind: CachedPostgresSaver) -> None:
    conversation = await start_behind(behind)
    for number in range(20):
        task = asyncio.ensure_future(behind.aput_writes(conversation.latest, [("c", number)], f"task {number}"))
        for _ in range(number % 5):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await conversation.turns(2)
    await behind.aflush()
    assert behind.stats()["unflushed"] == 0
    assert await stock_latest(migrated_database_url, conversation.config) == await behind.aget_tuple(
        conversation.config
    )


async def test_two_write_behind_processes_alternate(
    migrated_database_url: str, redis_url: str, redis_prefix: str, behind: CachedPostgresSaver
) -> None:
    async with open_saver(migrated_database_url, redis_url, prefix=redis_prefix) as other:
        conversation = await start_behind(behind)
        for saver in (other, behind) * 5:
            conversation.saver = saver
            await conversation.turns(2)
            await conversation.check(behind, other)
        await other.aflush()
        assert checkpoints(migrated_database_url) == conversation.length


async def test_unflushed_namespace_is_not_taken_for_empty(
    behind: CachedPostgresSaver, another: CachedPostgresSaver
) -> None:
    """Redis knows which namespaces of a thread nobody has written to: an append counts."""
    root = on_thread("t")
    assert await behind.aget_tuple(root) is None
    inner: Any = on_thread("t", checkpoint_ns="inner")
    assert await behind.aget_tuple(inner) is None
    with inspect(behind).flushing_paused():
        for _ in range(2):
            await behind.aput(inner, new_checkpoint(), {}, {})
        assert behind.stats()["appends"] >= 1
        prefix = inspect(behind).prefix
        await inspect(behind).redis.delete(f"{prefix}:{{t}}:ns:inner")
        for saver in (behind, another):
            assert await saver.aget_tuple(inner) is not None


async def test_unknown_mode_or_durability_is_refused(migrated_database_url: str, redis_url: str) -> None:
    with pytest.raises(ArgumentError, match='"write_through" or "write_behind"'):
        async with open_saver(migrated_database_url, redis_url, mode="write_back"):
            pass
    with pytest.raises(ArgumentError, match='"as_is", "replica" or "disk"'):
        async with open_saver(migrated_database_url, redis_url, redis_durability="both"):
            pass
