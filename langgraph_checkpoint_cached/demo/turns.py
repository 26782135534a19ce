"""Turns of a conversation, with the time they take and the reads that each server serves."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AnyMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.types import Command

from langgraph_checkpoint_cached.demo.graph import Graph
from langgraph_checkpoint_cached.saver import CachedPostgresSaver

TTL_SECONDS = 3600
REDIS_TIMEOUT_SECONDS = 2.0  # long: on a busy machine, a slow Redis must not count as unusable


class TimedSaver(CachedPostgresSaver):
    """`CachedPostgresSaver` that adds up the time of its reads."""

    reading_seconds = 0.0

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Read a checkpoint, and count the time."""
        started = time.perf_counter()
        try:
            return await super().aget_tuple(config)
        finally:
            self.reading_seconds += time.perf_counter() - started


@asynccontextmanager
async def open_saver(postgres_uri: str, redis_url: str, prefix: str) -> AsyncIterator[TimedSaver]:
    """Open a saver for the block."""
    async with TimedSaver.from_conn_string(
        postgres_uri, redis_url, prefix=prefix, ttl=TTL_SECONDS, redis_timeout=REDIS_TIMEOUT_SECONDS
    ) as saver:
        yield saver


@dataclass(frozen=True)
class Turn:
    """Result of one call of the graph."""

    tools: list[str]  # those that answered
    question: str | None
    reply: str
    milliseconds: float
    reading_milliseconds: float
    from_redis: int
    from_postgres: int


def thread_config(thread_id: str) -> RunnableConfig:
    """Return the config that names a thread to a graph and to a saver."""
    return {"configurable": {"thread_id": thread_id}}


async def play_turn(
    graph: Graph, saver: TimedSaver, thread_id: str, message: str | None = None, *, approval: str | None = None
) -> Turn:
    """Call the graph with what the customer says, with an approval, or nothing to resume a run."""
    given: Any = None
    if message is not None:
        given = {"messages": [HumanMessage(message)]}
    elif approval is not None:
        given = Command(resume=approval)
    before, reading_before, started = count_reads(saver), saver.reading_seconds, time.perf_counter()
    updates = [update async for update in graph.astream(given, thread_config(thread_id), stream_mode="updates")]
    seconds, after = time.perf_counter() - started, count_reads(saver)
    questions = [asked.value for update in updates for asked in update.get("__interrupt__", ())]
    messages = [message for update in updates for message in _new_messages(update)]
    return Turn(
        tools=[str(message.name) for message in messages if isinstance(message, ToolMessage)],
        question=questions[0] if questions else None,
        reply=messages[-1].text if messages else "",
        milliseconds=1000 * seconds,
        reading_milliseconds=1000 * (saver.reading_seconds - reading_before),
        from_redis=after[0] - before[0],
        from_postgres=after[1] - before[1],
    )


def count_reads(saver: CachedPostgresSaver) -> tuple[int, int]:
    """Return how many reads Redis has served so far, and how many Postgres."""
    stats = saver.stats()
    return int(stats["hits"]), int(stats["loads"] + stats["bypasses"] + stats["degraded_reads"])


def _new_messages(update: dict[str, Any]) -> list[AnyMessage]:
    """Return the messages of an update that are new in this call of the graph, not from before a resume."""
    if update.get("__metadata__", {}).get("cached"):
        return []
    return [message for node, reply in update.items() if node != "__interrupt__" for message in reply["messages"]]
