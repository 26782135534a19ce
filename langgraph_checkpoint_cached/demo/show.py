"""Run of the demo: start servers, play the scenes, stop servers, however it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from langgraph_checkpoint_cached.demo import scenes
from langgraph_checkpoint_cached.demo.screen import Screen
from langgraph_checkpoint_cached.demo.stage import DemoServers, open_stage, start_servers

EXPLANATION = """\
A support desk on LangGraph: an agent with tools, an approval, a shipping specialist as a subgraph.
Its model is scripted and replies at once: all time is spent in the graph and its checkpoints.
turn: one call of the graph.  reading: the part of it spent reading checkpoints.
Redis, Postgres: number of reads that each of them served."""

NO_TRACING = {"LANGSMITH_TRACING": "false", "LANGCHAIN_TRACING_V2": "false"}


def run(postgres_uri: str | None, redis_url: str | None) -> None:
    """Play the demo on the terminal, on embedded servers or on those that are given.

    Raises:
        CheckFailed: a claim is not true.
        CachedSaverError, psycopg.Error, redis.RedisError: a server cannot be used; the message says why.
    """
    started = time.perf_counter()
    os.environ.update(NO_TRACING)  # for the workers too: the demo sends no traces to anyone's account
    screen = Screen()
    with _as_ctrl_c(signal.SIGTERM, signal.SIGHUP), screen.showing_log(), ExitStack() as stack:
        screen.title("langgraph-cached demo", EXPLANATION)
        with screen.waiting("starting servers"):
            servers = stack.enter_context(start_servers(postgres_uri, redis_url))
        asyncio.run(_play(screen, servers))
        screen.end(f"in {time.perf_counter() - started:.1f} seconds from start to end")


async def _play(screen: Screen, servers: DemoServers) -> None:
    async with open_stage(screen, servers) as stage:
        await scenes.play(stage)


@contextmanager
def _as_ctrl_c(*signals: signal.Signals) -> Iterator[None]:
    """Treat these signals like Ctrl-C in the block, so that everything is cleaned up."""
    before = {number: signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT)) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
