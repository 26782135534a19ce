"""A conversation that knows what its next read must be, on a saver of a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from langgraph.checkpoint.base import Checkpoint, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6

from langgraph_checkpoint_cached import CachedPostgresSaver

TIMEOUT_SECONDS = 0.2
COMES_BACK_WITHIN_SECONDS = 20


class Conversation:
    """One thread, growing by a message a turn, and what its next read must be."""

    def __init__(self, saver: CachedPostgresSaver, thread_id: str = "t") -> None:
        self.saver, self.length, self.version = saver, 0, None
        self.config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
        self.latest: Any = self.config

    async def turn(self) -> None:
        self.length += 1
        self.version = self.saver.get_next_version(self.version, None)
        checkpoint: Checkpoint = {
            **empty_checkpoint(),
            "v": 4,
            "id": str(uuid6()),
            "channel_values": {"messages": ["x" * 100] * self.length},
            "channel_versions": {"messages": self.version},
        }
        self.latest = await self.saver.aput(self.latest, checkpoint, {}, {"messages": self.version})
        await self.saver.aput_writes(self.latest, [("messages", self.length)], "task")

    async def check(self, *readers: CachedPostgresSaver) -> None:
        for reader in readers or (self.saver,):
            found = await reader.aget_tuple(self.config)
            assert found is not None
            assert len(found.checkpoint["channel_values"]["messages"]) == self.length
            assert found.pending_writes == [("task", "messages", self.length)]
            assert found.config == self.latest

    async def turns(self, count: int) -> None:
        for _ in range(count):
            await self.turn()
            await self.check()


@asynccontextmanager
async def open_saver(postgres_url: str, redis_url: str, **options: Any) -> AsyncIterator[CachedPostgresSaver]:
    async with CachedPostgresSaver.from_conn_string(
        postgres_url, redis_url, **{"redis_timeout": TIMEOUT_SECONDS, **options}
    ) as saver:
        yield saver


async def until_hit(conversation: Conversation) -> None:
    """Reads on until Redis serves it."""
    saver = conversation.saver

    async def read() -> None:
        hits = saver.stats()["hits"]
        while saver.stats()["hits"] == hits:
            await conversation.check()
            await asyncio.sleep(0.01)

    await asyncio.wait_for(read(), COMES_BACK_WITHIN_SECONDS)
