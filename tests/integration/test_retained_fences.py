"""Fences that stand for the next write: what its own process, and others, see meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from redis.asyncio import Redis

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.stores.redis import fences
from langgraph_checkpoint_cached.stores.redis.health import RedisUnavailable
from tests.support import agreement
from tests.support.conversations import Conversation, open_saver
from tests.support.inspect import inspect

pytestmark = pytest.mark.integration


@dataclass
class Pods:
    """A saver, which has taken a turn of the conversation and read it, and another one."""

    writer: CachedPostgresSaver
    other: CachedPostgresSaver
    conversation: Conversation
    redis: Redis
    prefix: str

    async def fences(self) -> int:
        """Number of fences in Redis."""
        return len(await agreement.fences(self.redis, self.prefix))


@pytest.fixture(params=["write_through"])
async def pods(
    request: pytest.FixtureRequest, migrated_database_url: str, redis_url: str, redis_prefix: str, redis: Redis
) -> AsyncIterator[Pods]:
    """The writer is in the mode of the parameter."""
    async with (
        open_saver(migrated_database_url, redis_url, prefix=redis_prefix, mode=request.param) as writer,
        open_saver(migrated_database_url, redis_url, prefix=redis_prefix) as other,
    ):
        conversation = Conversation(writer)
        await conversation.turns(1)
        yield Pods(writer, other, conversation, redis, redis_prefix)


@pytest.fixture
def long_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fences outlast the test, unless somebody gives them up."""
    monkeypatch.setattr(fences, "RETAIN_SECONDS", 60.0)


def times_begun(saver: CachedPostgresSaver) -> list[str]:
    """Tokens of the fences that this saver takes from now on."""
    taken: list[str] = []
    private = inspect(saver).begin_fence
    begin = private.get()

    def counting(namespace: Any, token: str) -> Any:
        taken.append(token)
        return begin(namespace, token)

    private.set(counting)
    return taken


async def test_consecutive_writes_share_one_fence(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fences, "RETAIN_SECONDS", 1.0)
    taken = times_begun(pods.writer)
    for _ in range(5):
        await pods.conversation.turn()
    assert len(taken) == 1
    assert await pods.fences() == 1
    while await pods.fences():
        await asyncio.sleep(0.05)
    await pods.conversation.turn()
    assert len(taken) == 2
    await pods.writer.aclose()
    assert await pods.fences() == 0  # closing the saver does not wait for it


async def test_retained_fence_sends_others_to_postgres_until_released(pods: Pods, long_kept: None) -> None:
    await pods.conversation.turn()
    await pods.conversation.check(pods.other)
    assert {name: pods.other.stats()[name] for name in ("bypasses", "hits", "fills")} == {
        "bypasses": 1,
        "hits": 0,
        "fills": 0,
    }
    inspect(pods.writer).fences.release_all()
    await inspect(pods.writer).entries.drain()
    await pods.conversation.check(pods.other)
    assert pods.other.stats()["hits"] == 1


async def test_a_read_of_the_writing_process_is_a_hit_at_once(pods: Pods, long_kept: None) -> None:
    conversation = pods.conversation
    for by_id in (False, True):
        await conversation.turn()
        before = pods.writer.stats()["hits"]
        found = await pods.writer.aget_tuple(conversation.latest if by_id else conversation.config)
        assert found is not None
        assert found.config == conversation.latest
        assert pods.writer.stats()["hits"] == before + 1
        assert await pods.fences() == 0
        await conversation.check(pods.other)
        assert pods.other.stats()["bypasses"] == 0


async def test_two_processes_writing_in_turns_see_each_other(pods: Pods) -> None:
    savers = (pods.writer, pods.other)
    for turn in range(20):
        pods.conversation.saver = savers[turn % 2]
        await pods.conversation.turn()
        await pods.conversation.check(savers[(turn + turn // 2) % 2])
    await pods.conversation.check(*savers)


async def test_deleted_thread_is_gone_while_its_fence_is_active(pods: Pods, long_kept: None) -> None:
    await pods.conversation.turn()
    await pods.other.adelete_thread("t")
    assert await pods.other.aget_tuple(pods.conversation.config) is None
    assert await pods.writer.aget_tuple(pods.conversation.config) is None
    await Conversation(pods.writer).turns(2)


async def test_after_an_outage_a_fence_from_before_it_is_not_used(pods: Pods, long_kept: None) -> None:
    await pods.conversation.turn()
    inspect(pods.writer).fail_redis(RedisUnavailable("a write could not be sent to it"))
    await pods.conversation.turn()  # Redis is not asked
    while not inspect(pods.writer).executor.health.usable:
        await pods.conversation.check()
    taken = times_begun(pods.writer)
    await pods.conversation.turn()
    assert len(taken) == 1
    assert await pods.fences() == 1


@pytest.mark.parametrize("pods", ["write_behind"], indirect=True)
async def test_own_retained_fence_does_not_block_write_behind(pods: Pods) -> None:
    await pods.conversation.turn()
    assert await pods.fences() == 0
    assert pods.writer.stats()["appends"] >= 2
