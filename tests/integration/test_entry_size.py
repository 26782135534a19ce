"""Size of an entry: what grows too large, at once or write by write, is not cached, and nobody else notices."""

from __future__ import annotations

import os
from typing import Any

import pytest
import redis
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.stores.redis.entry_format import ENTRY_BYTES_MAX
from langgraph_checkpoint_cached.stores.redis.keys import namespace_key
from tests.support.conversations import Conversation, open_saver

pytestmark = pytest.mark.integration

MEGABYTE = 1024 * 1024
TURNS = ENTRY_BYTES_MAX // MEGABYTE + 3


class Hoarder:
    """Thread with a new channel of a megabyte in every checkpoint."""

    def __init__(self, saver: CachedPostgresSaver) -> None:
        self.saver = saver
        self.values: dict[str, Any] = {}
        self.versions: dict[str, Any] = {}
        self.config: Any = {"configurable": {"thread_id": "hoarder", "checkpoint_ns": ""}}
        self.latest = self.config

    async def turn(self, values: dict[str, Any]) -> None:
        """Store a checkpoint with these values besides those that it kept."""
        version = self.saver.get_next_version(max(self.versions.values(), default=None), None)
        self.values |= values
        self.versions |= dict.fromkeys(values, version)
        checkpoint: Any = {
            **empty_checkpoint(),
            "v": 4,
            "id": str(uuid6()),
            "channel_values": dict(self.values),
            "channel_versions": dict(self.versions),
        }
        self.latest = await self.saver.aput(self.latest, checkpoint, {}, dict.fromkeys(values, version))

    async def check(self) -> None:
        found = await self.saver.aget_tuple(self.config)
        assert found is not None
        assert found.config == self.latest
        assert found.checkpoint["channel_values"] == self.values


def large_value() -> list[bytes]:
    """Return a value that stands beside the checkpoint, not in it."""
    return [os.urandom(MEGABYTE)]


def entry_bytes(url: str, prefix: str) -> int:
    with redis.Redis.from_url(url) as client:
        fields: Any = client.hgetall(namespace_key(prefix, Namespace("hoarder", "")))
    return sum(len(field) + len(value) for field, value in fields.items())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["write_through", "write_behind"])
async def test_entry_that_grows_write_by_write_is_bounded(
    migrated_database_url: str, redis_url: str, prefix: str, mode: str
) -> None:
    async with open_saver(migrated_database_url, redis_url, prefix=prefix, mode=mode, redis_timeout=2) as saver:
        hoarder, neighbour = Hoarder(saver), Conversation(saver, "neighbour")
        await neighbour.turns(2)
        for number in range(TURNS):
            await hoarder.turn({f"document {number}": large_value()})
            await hoarder.check()
            assert entry_bytes(redis_url, prefix) <= ENTRY_BYTES_MAX
        before = saver.stats()
        assert before["loads_too_large"] >= 1
        for _ in range(3):
            await hoarder.check()
        await neighbour.check()
        after = saver.stats()
        assert (after["loads"], after["hits"]) == (before["loads"], before["hits"] + 1)
        assert after["breaker_openings"] == 0

        hoarder.values, hoarder.versions = {}, {}
        await hoarder.turn({"summary": "short"})
        await hoarder.check()
        hits = saver.stats()["hits"]
        await hoarder.check()
        assert saver.stats()["hits"] == hits + 1


async def test_size_of_entry_follows_what_is_replaced(
    migrated_database_url: str, redis_url: str, prefix: str
) -> None:
    async with open_saver(migrated_database_url, redis_url, prefix=prefix, redis_timeout=2) as saver:
        hoarder = Hoarder(saver)
        for _ in range(TURNS):
            await hoarder.turn({"document": large_value()})
            await hoarder.check()
        stats = saver.stats()
        assert (stats["loads_too_large"], stats["hits"]) == (0, TURNS - 1)
