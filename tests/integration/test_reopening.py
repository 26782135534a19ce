"""Redis is used again after an outage, whatever a process does: no kind of call may leave it unusable for good."""

from __future__ import annotations

import asyncio

import pytest

from langgraph_checkpoint_cached.stores.redis.health import RedisUnavailable
from tests.support.agreement import eventually, new_checkpoint, on_thread
from tests.support.conversations import Conversation, open_saver
from tests.support.inspect import inspect

pytestmark = pytest.mark.integration

OUTAGE = RedisUnavailable("it was away for a moment")


async def test_process_that_only_lists_reaches_journals_again(
    migrated_database_url: str, redis_url: str, redis_prefix: str
) -> None:
    async with (
        open_saver(migrated_database_url, redis_url, prefix=redis_prefix, mode="write_behind") as writer,
        open_saver(migrated_database_url, redis_url, prefix=redis_prefix) as lister,
    ):
        conversation = Conversation(writer)
        await conversation.turns(2)
        inspect(lister).fail_redis(OUTAGE)
        found = [item async for item in lister.alist(conversation.config)]
        assert len(found) == 2
        assert lister.stats()["redis_usable"] == 1


async def test_process_that_only_deletes_uses_redis_again(
    migrated_database_url: str, redis_url: str, redis_prefix: str
) -> None:
    async with open_saver(migrated_database_url, redis_url, prefix=redis_prefix) as saver:
        inspect(saver).fail_redis(OUTAGE)

        async def back() -> bool:
            await saver.adelete_thread("t")
            return saver.stats()["redis_usable"] == 1

        await eventually(back)


async def test_closed_saver_has_no_probe_under_way(
    migrated_database_url: str, redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that `aclose` waits for may start one: after it the clients may be closed."""
    async with open_saver(migrated_database_url, redis_url, prefix=redis_prefix) as saver:
        inside = inspect(saver)
        probes = []

        async def slow_probe() -> None:
            probes.append(1)
            await asyncio.sleep(0.2)

        monkeypatch.setattr(inside.executor, "probe", slow_probe)
        inside.fail_redis(OUTAGE)
        await asyncio.sleep(0.3)  # a probe is due
        writing = asyncio.ensure_future(saver.aput(on_thread("t", checkpoint_ns=""), new_checkpoint(), {}, {}))
        await asyncio.sleep(0)
        await saver.aclose()
        await writing
        assert probes
        assert not inside.is_probing


async def test_probe_cancelled_before_it_began_is_not_the_last(
    migrated_database_url: str, redis_url: str, redis_prefix: str
) -> None:
    """A task that is cancelled before its first step runs none of its code, so that the probe never ended."""
    async with open_saver(migrated_database_url, redis_url, prefix=redis_prefix) as saver:
        inside = inspect(saver)
        inside.fail_redis(OUTAGE)
        await asyncio.sleep(0.3)  # a probe is due
        others = asyncio.all_tasks()
        inside.reopener.reopen()
        assert inside.is_probing
        for task in asyncio.all_tasks() - others:
            task.cancel()
        conversation = Conversation(saver)

        async def back() -> bool:
            await conversation.turn()
            return saver.stats()["redis_usable"] == 1

        await eventually(back)
