"""Fences that stand for the next write: what its own process, and others, see meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import agreement
import pytest
from conversations import Conversation, open_saver
from redis.asyncio import Redis

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.stores import fences

pytestmark = pytest.mark.integration


@asynccontextmanager
async def two_savers(
    database_url: str, redis_url: str, prefix: str, mode: Any = "write_through"
) -> AsyncIterator[tuple[CachedPostgresSaver, CachedPostgresSaver]]:
    async with (
        open_saver(database_url, redis_url, prefix=prefix, mode=mode) as writer,
        open_saver(database_url, redis_url, prefix=prefix) as other,
    ):
        yield writer, other


def times_begun(saver: CachedPostgresSaver) -> list[str]:
    """Tokens of the fences that this saver takes from now on."""
    taken: list[str] = []
    entries = saver._writer._entries
    begin = entries.begin

    def counting(namespace: Any, token: str) -> Any:
        taken.append(token)
        return begin(namespace, token)

    entries.begin = counting  # type: ignore[method-assign]
    return taken


async def standing(redis_url: str, prefix: str) -> int:
    """How many fences stand in Redis."""
    async with Redis.from_url(redis_url) as redis:
        return len(await agreement.fences(redis, prefix))


async def test_writes_in_a_row_take_one_fence_which_is_released_after_them(
    migrated_database_url: str, redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fences, "KEPT_SECONDS", 1.0)
    async with two_savers(migrated_database_url, redis_url, redis_prefix) as (writer, _):
        conversation = Conversation(writer)
        await conversation.turns(1)
        taken = times_begun(writer)
        for _ in range(5):
            await conversation.turn()
        assert len(taken) == 1
        assert await standing(redis_url, redis_prefix) == 1
        while await standing(redis_url, redis_prefix):
            await asyncio.sleep(0.05)
        await conversation.turn()
        assert len(taken) == 2
    assert await standing(redis_url, redis_prefix) == 0  # closing the saver does not wait for it


async def test_meanwhile_others_read_postgres_and_after_it_the_entry_is_there(
    migrated_database_url: str, redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fences, "KEPT_SECONDS", 60.0)
    async with two_savers(migrated_database_url, redis_url, redis_prefix) as (writer, other):
        conversation = Conversation(writer)
        await conversation.turns(1)
        await conversation.turn()
        await conversation.check(other)
        assert {name: other.stats()[name] for name in ("bypasses", "hits", "fills")} == {
            "bypasses": 1,
            "hits": 0,
            "fills": 0,
        }
        writer._writer._fences.release_all()
        await writer._writer._entries.drain()
        await conversation.check(other)
        assert other.stats()["hits"] == 1


async def test_a_read_of_the_writing_process_is_a_hit_at_once(
    migrated_database_url: str, redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fences, "KEPT_SECONDS", 60.0)
    async with two_savers(migrated_database_url, redis_url, redis_prefix) as (writer, other):
        conversation = Conversation(writer)
        await conversation.turns(1)
        for by_id in (False, True):
            await conversation.turn()
            before = writer.stats()["hits"]
            found = await writer.aget_tuple(conversation.latest if by_id else conversation.config)
            assert found is not None
            assert found.config == conversation.latest
            assert writer.stats()["hits"] == before + 1
            assert await standing(redis_url, redis_prefix) == 0
            await conversation.check(other)
            assert other.stats()["bypasses"] == 0


async def test_two_processes_that_write_in_turns_see_each_others_writes(
    migrated_database_url: str, redis_url: str, redis_prefix: str
) -> None:
    async with two_savers(migrated_database_url, redis_url, redis_prefix) as savers:
        conversation = Conversation(savers[0])
        for turn in range(20):
            conversation.saver = savers[turn % 2]
            await conversation.turn()
            await conversation.check(savers[(turn + turn // 2) % 2])
        await conversation.check(*savers)


async def test_a_deleted_thread_is_gone_while_a_fence_of_it_stands(
    migrated_database_url: str, redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fences, "KEPT_SECONDS", 60.0)
    async with two_savers(migrated_database_url, redis_url, redis_prefix) as (writer, other):
        conversation = Conversation(writer)
        await conversation.turns(1)
        await conversation.turn()
        await other.adelete_thread("t")
        assert await other.aget_tuple(conversation.config) is None
        assert await writer.aget_tuple(conversation.config) is None
        await Conversation(writer).turns(2)


async def test_after_an_outage_a_fence_from_before_it_is_not_used(
    migrated_database_url: str, redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fences, "KEPT_SECONDS", 60.0)
    async with two_savers(migrated_database_url, redis_url, redis_prefix) as (writer, _):
        conversation = Conversation(writer)
        await conversation.turns(1)
        await conversation.turn()
        writer._guard.distrust()
        await conversation.turn()  # Redis is not asked
        while not writer._guard.is_usable:
            await conversation.check()
        taken = times_begun(writer)
        await conversation.turn()
        assert len(taken) == 1
        assert await standing(redis_url, redis_prefix) == 1


async def test_what_is_written_behind_is_not_kept_off_by_a_fence_of_its_own_process(
    migrated_database_url: str, redis_url: str, redis_prefix: str
) -> None:
    async with two_savers(migrated_database_url, redis_url, redis_prefix, "write_behind") as (writer, _):
        conversation = Conversation(writer)
        await conversation.turns(1)
        await conversation.turn()
        assert await standing(redis_url, redis_prefix) == 0
        assert writer.stats()["appends"] >= 2
