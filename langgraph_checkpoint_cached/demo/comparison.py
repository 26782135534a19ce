"""Comparison of the cached saver with the upstream one: answers and times."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence

from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple

from langgraph_checkpoint_cached.demo.graph import build_graph
from langgraph_checkpoint_cached.demo.screen import milliseconds
from langgraph_checkpoint_cached.demo.stage import Stage
from langgraph_checkpoint_cached.demo.turns import count_reads, thread_config

Saver = BaseCheckpointSaver[str]
Action = Callable[[], Awaitable[object]]

NAMESPACES = ("", "shipping")
READ_ROUNDS = 100
TURN_ROUNDS = 15
WARM_UP_ROUNDS = 2


async def compare_answers(stage: Stage) -> None:
    """Compare the latest checkpoints and the history of every thread, as both savers return them."""
    threads = [thread_config(thread_id) for thread_id in stage.threads.values()]
    namespaces: list[RunnableConfig] = [
        {"configurable": {**config["configurable"], "checkpoint_ns": namespace}}
        for config in threads
        for namespace in NAMESPACES
    ]
    await _latest(stage.saver, namespaces)  # so that all of them are in Redis
    hits = count_reads(stage.saver)[0]
    cached = await _latest(stage.saver, namespaces)
    hits = count_reads(stage.saver)[0] - hits
    stage.screen.require(hits == len(namespaces), "every namespace is served from Redis")
    stage.screen.check(
        cached == await _latest(stage.upstream, namespaces),
        f"the latest state of {len(threads)} conversations, from Redis: equal to what the upstream saver returns",
    )
    history = await _history(stage.saver, threads)
    stage.screen.check(
        len(history) > len(namespaces) and history == await _history(stage.upstream, threads),
        f"their whole history, {len(history)} checkpoints: equal too",
    )


async def compare_times(stage: Stage) -> None:
    """Compare reads of conversations, and whole turns, through both savers in alternation."""
    threads = [thread_config(thread_id) for thread_id in stage.threads.values()]
    rows = {
        "read one conversation": await _medians(READ_ROUNDS, *_readers(stage, threads[:1])),
        f"read {len(threads)} conversations at once": await _medians(READ_ROUNDS, *_readers(stage, threads)),
        "a whole turn: a read, then writes": await _medians(TURN_ROUNDS, *_talkers(stage)),
    }
    stage.screen.comparison(
        ["median time to", "CachedPostgresSaver", "AsyncPostgresSaver"],
        [(name, milliseconds(cached), milliseconds(upstream)) for name, (cached, upstream) in rows.items()],
    )
    stage.screen.say(
        f"{READ_ROUNDS} reads and {TURN_ROUNDS} turns each, in alternation, on this machine: not a benchmark."
    )


async def _latest(saver: Saver, configs: Sequence[RunnableConfig]) -> list[CheckpointTuple | None]:
    return [await saver.aget_tuple(config) for config in configs]


async def _history(saver: Saver, threads: Sequence[RunnableConfig]) -> list[CheckpointTuple]:
    return [found for config in threads async for found in saver.alist(config)]


def _readers(stage: Stage, configs: Sequence[RunnableConfig]) -> list[Action]:
    """Return actions that read these threads at once, through either saver."""

    def reader(saver: Saver) -> Action:
        return lambda: asyncio.gather(*(saver.aget_tuple(config) for config in configs))

    return [reader(stage.saver), reader(stage.upstream)]


def _talkers(stage: Stage) -> list[Action]:
    """Return actions that play a turn in a thread of their own, through either saver."""

    def talker(saver: Saver, thread_id: str) -> Action:
        graph = build_graph(stage.book, saver)
        message = {"messages": [HumanMessage("Is A-1001 under warranty?")]}
        return lambda: graph.ainvoke(message, thread_config(thread_id))

    return [
        talker(stage.saver, stage.thread_id("Fay")),
        talker(stage.upstream, stage.thread_id("Gus")),
    ]


async def _medians(rounds: int, one: Action, other: Action) -> tuple[float, float]:
    """Return the median milliseconds of both, which run in alternation, each first as often as second."""
    times: dict[Action, list[float]] = {one: [], other: []}
    for number in range(-WARM_UP_ROUNDS, rounds):
        for action in (one, other) if number % 2 else (other, one):
            started = time.perf_counter()
            await action()
            if number >= 0:
                times[action].append(1000 * (time.perf_counter() - started))
    return statistics.median(times[one]), statistics.median(times[other])
