"""Scans of a Redis that holds many keys of others: all of one takes long, a step of it does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.stores.redis import scan
from langgraph_checkpoint_cached.stores.redis.health import RedisUnavailable
from tests.support.agreement import Tiers
from tests.support.conversations import Conversation
from tests.support.inspect import inspect

pytestmark = pytest.mark.integration

FOREIGN_KEYS = 6_000
STEP_COUNT = 50
STEP_SECONDS = 0.01
"""Little of the time-out of 0.5 seconds; the steps over the keys of others take 1.2 seconds and more."""


class SlowRedis(Redis):
    """Client of a server that takes its time for each step of a scan."""

    step_seconds = STEP_SECONDS

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        if args[0] == "SCAN":
            await asyncio.sleep(self.step_seconds)
        return await super().execute_command(*args, **options)


@pytest.fixture
async def slow_redis(tiers: Tiers, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SlowRedis]:
    """A client whose scans are slow, of a server that has keys of others."""
    monkeypatch.setattr(scan, "SCAN_COUNT", STEP_COUNT)
    foreign = [f"{tiers.prefix}-others:{number}" for number in range(FOREIGN_KEYS)]
    await tiers.redis.mset(dict.fromkeys(foreign, b""))
    async with SlowRedis.from_url(tiers.redis_url) as client:
        yield client
    await tiers.redis.delete(*foreign)


@pytest.fixture
async def saver(tiers: Tiers, slow_redis: SlowRedis) -> AsyncIterator[CachedPostgresSaver]:
    """A saver with that client."""
    saver = CachedPostgresSaver(slow_redis, tiers.upstream, prefix=tiers.prefix)
    yield saver
    await saver.aclose()


async def test_all_threads_are_invalidated_among_keys_of_others(tiers: Tiers, saver: CachedPostgresSaver) -> None:
    conversation = Conversation(saver)
    await conversation.turn()
    assert await saver.aget_tuple(conversation.config)
    before = saver.stats()["hits"]
    await inspect(saver).invalidation.invalidate_all()
    assert await saver.aget_tuple(conversation.config)
    assert saver.stats()["hits"] == before
    assert saver.stats()["redis_usable"] == 1


async def test_scan_that_times_out_leaves_the_cache_usable(
    saver: CachedPostgresSaver, slow_redis: SlowRedis
) -> None:
    slow_redis.step_seconds = 5.0
    with pytest.raises(RedisUnavailable, match="no answer"):
        await inspect(saver).invalidation.invalidate_all()
    assert saver.stats()["redis_usable"] == 1
