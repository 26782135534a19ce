"""Interleavings of leases that went wrong once: each lost, hid or blocked what was acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import psycopg
import pytest
from redis.asyncio import Redis

from langgraph_checkpoint_cached import CachedPostgresSaver, ClosedError
from langgraph_checkpoint_cached.engine import ended_journals, held_leases
from langgraph_checkpoint_cached.stores.postgres import leases
from langgraph_checkpoint_cached.stores.redis.health import RedisUnavailable
from langgraph_checkpoint_cached.stores.redis.keys import journal_key
from tests.support import conversations
from tests.support.agreement import eventually
from tests.support.conversations import Conversation
from tests.support.inspect import inspect

pytestmark = pytest.mark.integration


def open_saver(
    postgres_url: str, redis_url: str, prefix: str, mode: str = "write_behind"
) -> AbstractAsyncContextManager[CachedPostgresSaver]:
    return conversations.open_saver(postgres_url, redis_url, prefix=prefix, mode=mode, redis_timeout=2)


async def listed(saver: CachedPostgresSaver, conversation: Conversation) -> int:
    return len([found async for found in saver.alist(conversation.config)])


async def begun(saver: CachedPostgresSaver, thread_id: str = "t") -> Conversation:
    conversation = Conversation(saver, thread_id)
    assert await saver.aget_tuple(conversation.config) is None
    await conversation.turn()
    return conversation


async def _fails(*_: object, **__: object) -> Any:
    raise RedisUnavailable("it is away for a moment")


async def _is_slow(*_: object, **__: object) -> Any:
    raise psycopg.OperationalError("Postgres is slow")


async def test_delete_not_confirmed_to_redis_ends_lease(
    migrated_database_url: str, redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row had gone with the delete, and the holder appended on and on to a lease that was none."""
    where = (migrated_database_url, redis_url, redis_prefix)
    async with open_saver(*where) as writer, open_saver(*where, mode="write_through") as deleter:
        conversation = await begun(writer)
        await writer.aflush()
        with monkeypatch.context() as patch:
            patch.setattr(inspect(deleter).entries, "end_thread", _fails)
            await deleter.adelete_thread("t")

        async def back() -> bool:
            await deleter.aget_tuple(conversation.config)
            return bool(deleter.stats()["redis_usable"])

        await eventually(back)
        again = Conversation(writer)
        await again.turns(2)
        assert await listed(deleter, again) == 2
        await again.check(writer, deleter)


async def test_late_append_of_revoked_lease_changes_nothing(
    migrated_database_url: str, redis_url: str, redis_prefix: str
) -> None:
    """The append put an older write back over a newer one: its holder was cut off, and it was late."""
    where = (migrated_database_url, redis_url, redis_prefix)
    async with open_saver(*where) as writer, open_saver(*where, mode="write_through") as other:
        conversation = await begun(writer)
        await writer.aflush()
        await other.aget_tuple(conversation.config)  # from now on it looks for stale threads
        on_the_way: list[Any] = []
        submit = inspect(writer).executor.submit

        def cut(script: Any, keys: Any, arguments: Any, **options: Any) -> asyncio.Future[Any]:
            if options.get("durable"):
                on_the_way.append((script, keys, arguments))
            failed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            failed.set_exception(RedisUnavailable("it is cut off"))
            failed.exception()
            return failed

        run_all = inspect(writer).executor.run_all
        inspect(writer).executor.submit = cut  # type: ignore[method-assign]
        inspect(writer).executor.run_all = _fails  # type: ignore[method-assign]
        await writer.aput_writes(conversation.latest, [("__interrupt__", "older")], "task 2")
        await eventually(lambda: _voided(other))
        await other.aget_tuple(conversation.config)
        await other.aput_writes(conversation.latest, [("__interrupt__", "newer")], "task 2")
        await inspect(other).executor.submit(*on_the_way[0], in_order=True)  # it arrives
        inspect(writer).executor.submit = submit  # type: ignore[method-assign]
        inspect(writer).executor.run_all = run_all  # type: ignore[method-assign]
        found = await other.aget_tuple(conversation.config)
        assert found is not None
        assert ("task 2", "__interrupt__", "newer") in (found.pending_writes or [])


async def _voided(saver: CachedPostgresSaver) -> bool:
    return saver.stats()["stale_threads"] > 0


async def test_late_open_keeps_journal_of_next_lease(
    migrated_database_url: str, redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = (migrated_database_url, redis_url, redis_prefix)
    async with (
        open_saver(*where) as late,
        open_saver(*where) as writer,
        open_saver(*where, mode="write_through") as reader,
    ):
        conversation = Conversation(writer)
        on_the_way: list[Any] = []
        opened = inspect(late).journal.open

        async def without_answer(*arguments: Any) -> str:
            on_the_way.append(arguments)
            raise RedisUnavailable("no answer")

        monkeypatch.setattr(inspect(late).journal, "open", without_answer)
        assert await inspect(late).take_lease("t") is None
        await writer.aget_tuple(conversation.config)
        with monkeypatch.context() as patch:
            patch.setattr(inspect(writer).store, "replay", _is_slow)
            await conversation.turn()
            await conversation.turn()
            assert writer.stats()["appends"] == 4
            assert await opened(*on_the_way[0]) == "invalidated"
        assert await listed(reader, conversation) == 2


async def test_a_table_that_is_made_later_is_known_before_it_is_used(
    migrated_database_url: str, redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a rolling deployment: who was there first read on as if there were no leases."""
    monkeypatch.setattr(leases, "NEW_SECONDS", 2.0)
    where = (migrated_database_url, redis_url, redis_prefix)
    with psycopg.connect(migrated_database_url, autocommit=True) as connection:
        connection.execute("drop table checkpoint_cache_leases")
    async with open_saver(*where, mode="write_through") as first:
        await first.aget_tuple({"configurable": {"thread_id": "other", "checkpoint_ns": ""}})
        assert not inspect(first).store.leases.usable
        async with open_saver(*where) as writer:
            await writer.setup()
            conversation = await begun(writer)
            assert writer.stats()["appends"] == 0  # not yet
            await eventually(lambda: _appends(conversation))
            assert inspect(first).store.leases.usable
            with monkeypatch.context() as patch:
                patch.setattr(*inspect(writer).flush_all, _nothing)
                await conversation.turn()
                await conversation.check(first)
                monkeypatch.undo()
            assert await listed(first, conversation) == conversation.length


async def _nothing() -> None:
    return None


async def _appends(conversation: Conversation) -> bool:
    await asyncio.sleep(0.2)
    await conversation.turn()
    return conversation.saver.stats()["appends"] > 0


async def test_leases_end_while_others_are_busy(
    migrated_database_url: str, redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_leases, "LINGER_SECONDS", 0.3)
    async with open_saver(migrated_database_url, redis_url, redis_prefix) as saver:
        for number in range(10):
            await begun(saver, f"idle {number}")
        busy = [await begun(saver, f"busy {number}") for number in range(8)]
        stop = asyncio.Event()

        async def go_on(conversation: Conversation) -> None:
            while not stop.is_set():
                await conversation.turn()

        running = [asyncio.ensure_future(go_on(conversation)) for conversation in busy]

        async def ended() -> bool:
            return saver.stats()["leases_held"] <= len(busy)

        await eventually(ended)
        stop.set()
        await asyncio.gather(*running)


async def test_a_clock_that_is_set_back_hides_no_lease(
    migrated_database_url: str, redis_url: str, redis_prefix: str
) -> None:
    async with open_saver(migrated_database_url, redis_url, redis_prefix) as saver:
        await begun(saver)
        await saver.aflush()  # else a flush may move the row on a moment later
        with psycopg.connect(migrated_database_url, autocommit=True) as connection:
            connection.execute("update checkpoint_cache_leases set moved_at = now() + interval '1 hour'")
        table = inspect(saver).store.leases
        assert list(await table.after("")) == list(await table.idle_after("", 5.0)) == ["t"]
        await saver.aflush()
        assert saver.stats()["unflushed"] == 0


def have_leases_wait(
    monkeypatch: pytest.MonkeyPatch, saver: CachedPostgresSaver, wait: Callable[[], Awaitable[object]]
) -> None:
    """Before their row is made."""
    take = inspect(saver).store.leases.take

    async def late(tokens: Any) -> set[str]:
        await wait()
        return await take(tokens)

    monkeypatch.setattr(inspect(saver).store.leases, "take", late)


async def test_a_write_does_not_wait_for_a_lease_for_long(
    migrated_database_url: str, redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write waited for a connection of the pool, and then, written through, for another one as long."""
    monkeypatch.setattr(held_leases, "ACQUIRE_SECONDS_MAX", 0.05)
    async with open_saver(migrated_database_url, redis_url, redis_prefix) as saver:
        conversation = Conversation(saver)
        await saver.aget_tuple(conversation.config)
        free = asyncio.Event()
        have_leases_wait(monkeypatch, saver, free.wait)
        await conversation.turns(2)
        assert saver.stats()["appends"] == 0
        free.set()
        await eventually(lambda: _appends(conversation))
        await saver.aflush()
        assert await listed(saver, conversation) == conversation.length


@pytest.mark.slow
async def test_a_journal_that_a_failover_brings_back_is_removed_again(
    migrated_database_url: str, redis_url: str, redis_prefix: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replica had not heard of its end. Journals do not expire, so it stayed for good."""
    monkeypatch.setattr(held_leases, "LINGER_SECONDS", 0.2)
    monkeypatch.setattr(ended_journals, "LAG_SECONDS_MAX", 1.0)
    journal = journal_key(redis_prefix, "t")

    async with open_saver(migrated_database_url, redis_url, redis_prefix) as saver:
        conversation = await begun(saver)
        await conversation.turn()
        held = await redis.dump(journal)
        assert held is not None
        await eventually(lambda: _is_gone(redis, journal))
        await redis.restore(journal, 0, held)
        await eventually(lambda: _is_gone(redis, journal))
        await conversation.check(saver)


async def test_journal_not_closed_in_redis_is_removed_by_others(
    migrated_database_url: str, redis_url: str, redis_prefix: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis and its process went together, when the row had gone. It stayed for good."""
    monkeypatch.setattr(held_leases, "LINGER_SECONDS", 0.2)
    where = (migrated_database_url, redis_url, redis_prefix)
    async with open_saver(*where, mode="write_through") as other:
        async with open_saver(*where) as writer:
            conversation = await begun(writer)
            monkeypatch.setattr(inspect(writer).journal, "close", _fails)
            monkeypatch.setattr(inspect(writer).ended_journals, "remove", _fails)
            await eventually(lambda: _has_no_lease(writer))
        assert await redis.exists(journal_key(redis_prefix, "t"))
        await other.aget_tuple(conversation.config)  # from now on it looks for stale threads
        await eventually(lambda: _is_gone(redis, journal_key(redis_prefix, "t")))


async def test_journal_is_removed_after_deleter_died(
    migrated_database_url: str, redis_url: str, redis_prefix: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deleter had deleted the row of the lease too. Its holder was gone before."""
    where = (migrated_database_url, redis_url, redis_prefix)
    async with open_saver(*where, mode="write_through") as other:
        async with open_saver(*where) as writer, open_saver(*where, mode="write_through") as deleter:
            conversation = await begun(writer)
            monkeypatch.setattr(*inspect(writer).flush_all, _nothing)
            monkeypatch.setattr(*inspect(writer).end_idle_leases, _nothing)
            monkeypatch.setattr(inspect(writer).held, "close", _nothing)
            monkeypatch.setattr(inspect(writer).ended_journals, "remove", _fails)
            monkeypatch.setattr(inspect(deleter).ended_journals, "remove", _fails)
            monkeypatch.setattr(*inspect(deleter).end_thread, _nothing_of_it)
            monkeypatch.setattr(inspect(deleter).journal, "close", _fails)
            await deleter.adelete_thread("t")
        assert await redis.exists(journal_key(redis_prefix, "t"))
        await other.aget_tuple(conversation.config)
        await eventually(lambda: _is_gone(redis, journal_key(redis_prefix, "t")))


async def test_empty_journal_is_removed_if_next_lease_fails(
    migrated_database_url: str, redis_url: str, redis_prefix: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the row of the next lease was there, the journal's owner was unknown. Then it stayed for good."""
    journal = journal_key(redis_prefix, "t")
    where = (migrated_database_url, redis_url, redis_prefix)
    async with open_saver(*where) as writer, open_saver(*where, mode="write_through") as other:
        await redis.xadd(journal, {"t": "before.1"})
        await redis.xtrim(journal, maxlen=0)
        conversation = Conversation(writer)
        await writer.aget_tuple(conversation.config)

        async def invalidate() -> None:
            await inspect(other).invalidation.invalidate_threads({"t": ()})

        have_leases_wait(monkeypatch, writer, invalidate)
        await conversation.turn()
        assert writer.stats()["appends"] == 0
        await eventually(lambda: _is_gone(redis, journal))


async def _nothing_of_it(*_: object, **__: object) -> None:
    return None


async def _has_no_lease(saver: CachedPostgresSaver) -> bool:
    return not saver.stats()["leases_held"]


async def _is_gone(redis: Redis, key: str) -> bool:
    return not await redis.exists(key)


async def test_close_does_not_wait_for_late_writes(
    migrated_database_url: str, redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease that was opened while all were ended had a follower that nobody stopped."""
    monkeypatch.setattr(held_leases, "CLOSE_SECONDS_MAX", 1.0)
    async with open_saver(migrated_database_url, redis_url, redis_prefix) as saver:
        conversation = Conversation(saver)
        await saver.aget_tuple(conversation.config)
        have_leases_wait(monkeypatch, saver, lambda: asyncio.sleep(0.1))
        writing = asyncio.ensure_future(conversation.turn())
        await asyncio.sleep(0.02)
        await asyncio.wait_for(saver.aclose(), 10)
        with pytest.raises(ClosedError, match="aput_writes"):  # the checkpoint before it is stored
            await asyncio.wait_for(writing, 10)
    with psycopg.connect(migrated_database_url) as connection:
        assert connection.execute("select * from checkpoint_cache_leases").fetchall() == []
        assert connection.execute("select count(*) from checkpoints").fetchone() == (1,)


async def test_close_waits_not_for_good_for_a_hung_postgres(
    migrated_database_url: str, redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write whose append nobody confirmed goes to Postgres, which may never answer."""
    monkeypatch.setattr(held_leases, "CLOSE_SECONDS_MAX", 0.5)
    answers = asyncio.Event()
    async with open_saver(migrated_database_url, redis_url, redis_prefix) as saver:
        conversation = await begun(saver)
        await saver.aflush()

        def lost(*_: object) -> asyncio.Future[Any]:
            appending: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            appending.set_exception(RedisUnavailable("no answer"))
            return appending

        replay = inspect(saver).store.replay

        async def late_replay(*arguments: Any) -> Any:
            await answers.wait()
            return await replay(*arguments)

        monkeypatch.setattr(inspect(saver).journal, "append", lost)
        monkeypatch.setattr(inspect(saver).store, "replay", late_replay)
        writing = asyncio.ensure_future(conversation.turn())
        await asyncio.sleep(0.1)
        try:
            await asyncio.wait_for(saver.aclose(), 10)
        finally:
            answers.set()
        with pytest.raises(ClosedError, match="aput_writes"):  # the checkpoint before it is stored
            await asyncio.wait_for(writing, 10)


@pytest.mark.parametrize("mode", ["write_through", "write_behind"])
async def test_a_name_that_is_no_text_fails_alone(
    migrated_database_url: str, redis_url: str, redis_prefix: str, mode: str
) -> None:
    """Such a name failed all writes that waited at the same time, and those of the next second."""
    async with open_saver(migrated_database_url, redis_url, redis_prefix, mode) as saver:
        bad, good = await begun(saver, "bad"), await begun(saver, "good")
        outcomes = await asyncio.gather(
            saver.aput_writes(bad.latest, [("m", 1)], "task", "\ud800"), good.turn(), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [UnicodeEncodeError, type(None)]
        await good.turns(2)
