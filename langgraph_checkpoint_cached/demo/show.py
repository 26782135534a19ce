"""The demo from the first line to the last: servers up, scenes, servers down, however it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from langgraph_checkpoint_cached.demo import scenes
from langgraph_checkpoint_cached.demo.screen import Screen
from langgraph_checkpoint_cached.demo.stage import Servers, open_stage, started_servers

WHAT_IT_IS = """\
A support desk on LangGraph: an agent with tools, an approval, a shipping specialist as a subgraph.
Its model is scripted and answers at once: the times are those of the graph and its checkpoints.
turn: one call of the graph.  reading: the part of it spent reading checkpoints.
Redis, Postgres: how many of its reads each of them served."""

NO_TRACING = {"LANGSMITH_TRACING": "false", "LANGCHAIN_TRACING_V2": "false"}


def run(postgres_uri: str | None, redis_url: str | None) -> None:
    """Plays the demo on the terminal, on embedded servers or on those that are given.

    Raises:
        CheckFailed: something was not as it should be.
        CachedSaverError, psycopg.Error, redis.RedisError: a server cannot be used; the message says why.
    """
    started = time.perf_counter()
    os.environ.update(NO_TRACING)  # for the workers too: nothing here is worth a trace in anybody's account
    screen = Screen()
    with _ended_like_by_ctrl_c(signal.SIGTERM, signal.SIGHUP), screen.shows_log(), ExitStack() as stack:
        screen.title("langgraph-cached demo", WHAT_IT_IS)
        with screen.waiting("starting servers"):
            servers = stack.enter_context(started_servers(postgres_uri, redis_url))
        asyncio.run(_play(screen, servers))
        screen.curtain(f"in {time.perf_counter() - started:.1f} seconds from start to end")


async def _play(screen: Screen, servers: Servers) -> None:
    async with open_stage(screen, servers) as stage:
        await scenes.play(stage)


@contextmanager
def _ended_like_by_ctrl_c(*signals: signal.Signals) -> Iterator[None]:
    """Makes these signals end the block as a Ctrl-C does, so that everything is cleaned up."""
    before = {number: signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT)) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
