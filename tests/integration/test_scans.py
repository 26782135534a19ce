"""Scans of a Redis that holds many keys of others: all of one takes long, a step of it does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.stores.redis import scan
from langgraph_checkpoint_cached.stores.redis.health import RedisUnavailable
from tests.support.agreement import PATIENT_SECONDS, Tiers, on_thread
from tests.support.conversations import Conversation, open_saver
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


@pytest.mark.parametrize(
    "odd", ["\\", "\\*", "a\\b", "*", "?", "[ab]", "[^a]", "[a-z]", "a-b", "]", "^", " ", "ü", "'", '"', "%"]
)
async def test_scan_finds_keys_of_an_odd_prefix_alone(
    tiers: Tiers, odd: str, ask_cli: Callable[..., Awaitable[tuple[int, Any]]], migrated_database_url: str
) -> None:
    prefix = f"{tiers.prefix}{odd}"
    others = f"{tiers.prefix}a"  # which some of these match as a glob
    async with (
        open_saver(migrated_database_url, tiers.redis_url, prefix=prefix, redis_timeout=PATIENT_SECONDS) as saver,
        open_saver(migrated_database_url, tiers.redis_url, prefix=others, redis_timeout=PATIENT_SECONDS) as other,
    ):
        for each in (saver, other):
            await each.aput_writes(on_thread("t", checkpoint_ns="", checkpoint_id="1"), [("a", 1)], "task")
            assert await each.aget_tuple(on_thread("t")) is None
        found = {key async for key in inspect(saver).invalidation.keys(":*")}
        assert {f"{prefix}:{{t}}:thread", f"{prefix}:{{t}}:ns:"} <= found
        assert all(key.startswith(f"{prefix}:") for key in found)
        servers = ["--postgres-uri", migrated_database_url, "--redis-url", tiers.redis_url, "--prefix", prefix]
        assert await ask_cli("invalidate", "--all", servers=servers) == (0, {"invalidated": 1})
