"""A Redis that somebody empties has lost its journals too, though it is the same server still."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from langgraph_checkpoint_cached import CachedPostgresSaver
from tests.support.conversations import Conversation
from tests.support.inspect import inspect

pytestmark = pytest.mark.integration


async def _nothing() -> None:
    return None


@pytest.mark.slow
async def test_writes_acknowledged_by_emptied_redis_are_read_by_all(
    migrated_database_url: str, redis_url: str, redis_prefix: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the chaos harness: its journal was taken for one of which Postgres has everything."""
    options: dict[str, Any] = {"prefix": redis_prefix, "mode": "write_behind", "redis_timeout": 2}
    async with (
        CachedPostgresSaver.from_conn_string(migrated_database_url, redis_url, **options) as behind,
        CachedPostgresSaver.from_conn_string(migrated_database_url, redis_url, prefix=redis_prefix) as another,
    ):
        conversation = Conversation(behind, "t")
        await behind.aget_tuple(conversation.config)
        await conversation.turn()
        await behind.aflush("t")
        with monkeypatch.context() as patch:
            patch.setattr(*inspect(behind).flush_all, _nothing)
            await conversation.turns(2)
            assert behind.stats()["unflushed"]
            async for key in redis.scan_iter(match=f"{redis_prefix}*"):
                await redis.delete(key)
        await conversation.check(another)
        await conversation.check(behind)
