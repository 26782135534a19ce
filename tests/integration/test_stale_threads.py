"""Writes of a process that alone cannot reach Redis: the others learn of them through Postgres, whatever becomes
of that process."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from redis.asyncio import Redis

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.stores.postgres import own_table, thread_maintenance
from langgraph_checkpoint_cached.stores.postgres.stale_threads import (
    STALE_THREADS_AT_ONCE_MAX,
    TABLE,
    StaleThread,
    StaleThreadTable,
)
from langgraph_checkpoint_cached.stores.postgres.store import PostgresStore
from tests.support.agreement import eventually, new_checkpoint, on_thread
from tests.support.conversations import Conversation, open_saver
from tests.support.inspect import inspect
from tests.support.proxy import Proxy

pytestmark = pytest.mark.integration


class Alone:
    """Two processes on one thread; the first loses Redis, the other one keeps it, and an entry of the thread."""

    def __init__(self, url: str, proxy: Proxy, writer: CachedPostgresSaver, reader: CachedPostgresSaver) -> None:
        self.url, self.proxy, self.writer, self.reader = url, proxy, writer, reader
        self.conversation = Conversation(writer)

    def rows(self, statement: str = f"select thread_id from {TABLE}") -> list[Any]:
        with psycopg.connect(self.url, autocommit=True) as conn:
            cursor = conn.execute(statement)  # type: ignore[arg-type]
            return [value for (value,) in cursor.fetchall()] if cursor.description else []

    async def reader_is_told(self) -> None:
        """The other process reads what was written, and no stale thread is left."""

        async def ack() -> bool:
            found = await self.reader.aget_tuple(self.conversation.config)
            return (found and found.config) == self.conversation.latest and not self.rows()

        await eventually(ack)
        await self.conversation.check(self.reader)


@pytest.fixture
async def alone(
    migrated_database_url: str, redis_url: str, redis_prefix: str, proxies: Callable[[str], Proxy]
) -> AsyncIterator[Alone]:
    proxy = proxies(redis_url)
    async with (
        open_saver(migrated_database_url, proxy.url, prefix=redis_prefix) as writer,
        open_saver(migrated_database_url, redis_url, prefix=redis_prefix, redis_timeout=10) as reader,
    ):
        alone = Alone(migrated_database_url, proxy, writer, reader)
        await alone.conversation.turns(2)
        await alone.conversation.check(reader)
        hits = reader.stats()["hits"]
        await alone.conversation.check(reader)
        assert reader.stats()["hits"] == hits + 1, "there is no entry that could be stale"
        yield alone


@pytest.mark.parametrize("fault", ["stop", "deafen"])
async def test_others_learn_of_writes_without_redis(alone: Alone, fault: str) -> None:
    getattr(alone.proxy, fault)()
    await alone.conversation.turns(3)
    assert alone.writer.stats()["degraded_writes"] == 6
    await alone.reader_is_told()
    assert alone.reader.stats()["stale_threads"] >= 1


async def test_others_learn_of_writes_of_dead_writer(alone: Alone, migrated_database_url: str) -> None:
    alone.proxy.stop()
    await alone.conversation.turn()
    inspect(alone.writer).forget_stale_threads()  # what it remembered is gone with it
    await alone.reader_is_told()


async def test_new_process_polls_before_first_read(
    alone: Alone, migrated_database_url: str, redis_url: str, redis_prefix: str
) -> None:
    await alone.reader.aclose()  # who would invalidate it
    alone.proxy.stop()
    await alone.conversation.turn()
    async with open_saver(migrated_database_url, redis_url, prefix=redis_prefix) as new:
        await alone.conversation.check(new)
    assert alone.rows() == []


async def test_suspended_process_polls_before_next_read(alone: Alone) -> None:
    inspect(alone.reader).stop_polling()
    alone.proxy.stop()
    await alone.conversation.turn()
    inspect(alone.reader).end_right()
    await alone.conversation.check(alone.reader)
    assert alone.rows() == []


async def test_others_learn_of_delete_without_redis(alone: Alone) -> None:
    alone.proxy.stop()
    await alone.writer.adelete_thread("t")

    async def gone() -> bool:
        return await alone.reader.aget_tuple(alone.conversation.config) is None and not alone.rows()

    await eventually(gone)


@pytest.mark.parametrize("strategy", ["keep_latest", "delete"])
async def test_others_learn_of_prune_without_redis(alone: Alone, strategy: str) -> None:
    alone.proxy.stop()
    await alone.writer.aprune(["t"], strategy=strategy)
    expected = await alone.writer.aget_tuple(alone.conversation.config)
    assert (expected is None) == (strategy == "delete")

    async def ack() -> bool:
        return await alone.reader.aget_tuple(alone.conversation.config) == expected and not alone.rows()

    await eventually(ack)


async def test_unanswered_commit_marks_thread_stale(alone: Alone) -> None:
    entries = inspect(alone.writer).entries
    commit = entries.commit

    def cut_off(*args: Any, **kwargs: Any) -> Any:
        alone.proxy.stop()
        return commit(*args, **kwargs)

    entries.commit = cut_off  # type: ignore[method-assign]
    await alone.conversation.turn()
    await alone.reader_is_told()


async def test_failed_write_marks_no_thread_stale(alone: Alone) -> None:
    alone.rows("alter table checkpoints add check (false) not valid")
    alone.proxy.stop()
    with pytest.raises(psycopg.errors.CheckViolation):
        await alone.conversation.turn()
    with pytest.raises(psycopg.errors.CheckViolation):
        await alone.writer.aput(on_thread("u", checkpoint_ns=""), new_checkpoint(), {}, {})
    assert alone.rows() == []


async def test_bad_write_leaves_others_of_its_batch_stale(alone: Alone) -> None:
    alone.rows("alter table checkpoints add check (thread_id <> 'bad') not valid")
    alone.proxy.stop()
    writes = [
        alone.writer.aput(on_thread(thread_id, checkpoint_ns=""), new_checkpoint(), {}, {})
        for thread_id in ("u", "bad", "v")
    ]
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert [isinstance(outcome, psycopg.errors.CheckViolation) for outcome in outcomes] == [False, True, False]
    assert "bad" not in alone.rows()


async def test_many_stale_threads_are_read_in_pages(alone: Alone, redis_prefix: str) -> None:
    count = 2 * STALE_THREADS_AT_ONCE_MAX + 1
    with psycopg.connect(alone.url, autocommit=True) as conn:
        conn.execute(
            f"insert into {TABLE} select %s, 'thread ' || i, 'mark' from generate_series(1, %s) i",
            (redis_prefix, count),
        )
    await eventually(lambda: none_left(alone))
    assert alone.reader.stats()["stale_threads"] + alone.writer.stats()["stale_threads"] >= count


async def none_left(alone: Alone) -> bool:
    return not alone.rows()


async def test_stale_threads_of_another_prefix_stay(alone: Alone) -> None:
    alone.rows(f"insert into {TABLE} values ('other', 't', 'mark')")
    alone.proxy.stop()
    await alone.conversation.turn()

    async def only_the_other() -> bool:
        return alone.rows(f"select prefix from {TABLE}") == ["other"]

    await eventually(only_the_other)


@asynccontextmanager
async def table_of(url: str) -> AsyncIterator[StaleThreadTable]:
    async with AsyncPostgresSaver.from_conn_string(url) as upstream:
        yield PostgresStore(upstream, "p", Runtime(asyncio.get_running_loop())).stale_threads


async def test_locked_row_of_one_stale_thread_stops_no_other(alone: Alone, redis_prefix: str) -> None:
    alone.rows(f"insert into {TABLE} (prefix, thread_id, mark) values ('{redis_prefix}', '!', 'mark')")
    async with await psycopg.AsyncConnection.connect(alone.url) as blocker:
        await blocker.execute(f"select from {TABLE} for update")
        alone.proxy.stop()
        await alone.conversation.turn()

        async def reader_follows() -> bool:
            found = await alone.reader.aget_tuple(alone.conversation.config)
            return (found and found.config) == alone.conversation.latest and alone.rows() == ["!"]

        await eventually(reader_follows)
    await alone.reader_is_told()


@pytest.mark.slow
async def test_locked_table_of_stale_threads_ends_each_poll(alone: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_table, "LOCK_SECONDS_MAX", 0.1)
    async with await psycopg.AsyncConnection.connect(alone.url) as blocker:
        await blocker.execute(f"lock table {TABLE}")
        for _ in range(2):
            polling = inspect(alone.reader).recovery.start_poll()
            await asyncio.wait_for(polling, 5)
        waiting = await blocker.execute(
            "select from pg_locks where relation = %s::regclass and not granted", [TABLE]
        )
        assert waiting.rowcount == 0, "a statement goes on to wait for the lock"
    alone.proxy.stop()
    await alone.conversation.turn()
    await alone.reader_is_told()


async def test_renewed_stale_thread_stays(migrated_database_url: str) -> None:
    async with table_of(migrated_database_url) as table:
        await table.add(["a", "b"])
        seen = await table.after(None)
        await table.add(["b"])
        await table.remove(seen)
        (left,) = await table.after(None)
        assert left.thread_id == "b"
        assert left not in seen
        assert await table.after("b") == []
        await table.remove([left, StaleThread("none", "such")])
        assert await table.after(None) == []


@pytest.mark.parametrize("lost", ["dropped", "revoked"])
async def test_writes_without_the_table_succeed_and_log_one_error(
    alone: Alone, lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = alone.url
    for other in (alone.writer, alone.reader):
        inspect(other).suspend()  # they would log it too
    if lost == "dropped":
        alone.rows(f"drop table {TABLE}")
    else:
        alone.rows("create role limited")
        alone.rows("grant all on all tables in schema public to limited")
        alone.rows(f"revoke all on {TABLE} from limited")
        url += "?options=-c%20role%3Dlimited"
    try:
        async with open_saver(url, alone.proxy.url, prefix="other") as saver:
            conversation = Conversation(saver, "u")
            await conversation.turns(1)
            alone.proxy.stop()
            with caplog.at_level(logging.ERROR, "langgraph_checkpoint_cached"):
                await conversation.turns(3)
                await saver.adelete_thread("u")
                assert await saver.aget_tuple(conversation.config) is None
            messages = [r.getMessage() for r in caplog.records if TABLE in r.getMessage()]
            assert len(messages) == 1
            assert "run `await saver.setup()`" in messages[0]
    finally:
        if lost == "revoked":
            alone.rows("drop owned by limited")
            alone.rows("drop role limited")


async def test_setup_adds_table_to_upstream_tables(alone: Alone, redis: Redis) -> None:
    alone.rows(f"drop table {TABLE}")
    await alone.reader.setup()
    assert alone.rows() == []
    alone.proxy.stop()
    await alone.conversation.turn()
    await alone.reader_is_told()


async def test_collected_saver_stops_polling(alone: Alone) -> None:
    saver = CachedPostgresSaver(inspect(alone.reader).redis, inspect(alone.reader).upstream)
    await saver.aget_tuple(alone.conversation.config)
    recovery = weakref.ref(inspect(saver).invalidator)
    del saver

    async def gone() -> bool:
        gc.collect()
        return recovery() is None

    await eventually(gone)  # once the entry is filled


async def test_prune_without_redis_leaves_nothing_stale(alone: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process invalidates the thread, and stores it anew, before the prune is committed."""
    first = alone.conversation.latest
    await alone.conversation.turns(1)
    root: Any = first["configurable"]["checkpoint_id"]
    call = on_thread("t", checkpoint_ns="call:1")
    metadata: Any = {"parents": {"": root}}
    await alone.reader.aput(call, new_checkpoint(), metadata, {})
    assert (await alone.reader.aget_tuple(call)) is not None

    async def read() -> None:
        for config in (alone.conversation.config, call):
            for _ in range(2):
                assert await alone.reader.aget_tuple(config) is not None

    async def prune_late(prune: Any, *arguments: Any) -> Any:
        async def nothing_is_stale() -> bool:
            return not alone.rows()

        await eventually(nothing_is_stale)
        await read()
        return await prune(*arguments)

    for owner, name in ((AsyncPostgresSaver, "aprune"), (thread_maintenance, "keep_latest")):
        monkeypatch.setattr(owner, name, partial(prune_late, getattr(owner, name)))
    monkeypatch.setattr(AsyncPostgresSaver, "aprune", lambda *a, late=AsyncPostgresSaver.aprune: late(*a))
    alone.proxy.stop()
    await alone.writer.aprune(["t"])

    async def sees_prune() -> bool:
        latest, inner = [await alone.reader.aget_tuple(c) for c in (alone.conversation.config, call)]
        return inner is None and latest is not None and latest.parent_config is None

    await eventually(sees_prune)
