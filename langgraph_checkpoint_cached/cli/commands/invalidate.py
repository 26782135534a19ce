"""Command `invalidate`: invalidates threads' entries in Redis, safely beside running savers."""

from __future__ import annotations

import argparse

from langgraph_checkpoint_cached.cli.components import Components
from langgraph_checkpoint_cached.cli.connections import ConnectionOptions
from langgraph_checkpoint_cached.cli.output import Output
from langgraph_checkpoint_cached.cli.thread_choice import add_thread_choice, chosen_threads
from langgraph_checkpoint_cached.errors import BehindError
from langgraph_checkpoint_cached.stores.redis.health import RedisUnavailable

NAME = "invalidate"
HELP = "invalidate threads' entries in Redis"
DESCRIPTION = """\
Invalidate threads' entries in Redis, after their rows were changed without this package: SQL by hand, a
restored backup, a process with the upstream saver. The next read of each thread comes from Postgres. Reads that
are in progress cannot bring back what they loaded before, as they could after a DEL by hand. Nothing is lost:
unflushed writes are flushed to Postgres first.

Without Redis, named threads become stale threads in Postgres, and savers that can reach Redis invalidate them
within a second.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_thread_choice(parser, all_help="all threads of the prefix, found by a scan")


async def run(options: argparse.Namespace, out: Output) -> int:
    """Return 0; or 1 if Redis cannot be reached and the threads were marked stale instead."""
    threads = chosen_threads(options)
    async with Components.open(ConnectionOptions.from_options(options)) as components:
        if threads is None:
            invalidated = await _invalidate_all(components, out)
            out.report({"invalidated": invalidated}, [f"{invalidated:,} threads invalidated"])
            return 0
        try:
            await _flush(components, threads)
            await components.invalidation.invalidate_threads(dict.fromkeys(threads, ()))
        except RedisUnavailable as exc:
            await components.store.stale_threads.add(threads)
            if not components.store.stale_threads.usable:
                raise
            line = (
                f"Redis cannot be used ({exc}): {len(threads):,} threads marked stale for savers that can reach it"
            )
            out.report({"invalidated": 0, "stale_threads": len(threads)}, [line])
            return 1
    out.report({"invalidated": len(threads)}, [f"{len(threads):,} threads invalidated"])
    return 0


async def _invalidate_all(components: Components, out: Output) -> int:
    invalidated = 0
    with out.progress("invalidated") as progress:

        def count(threads: int) -> None:
            nonlocal invalidated
            invalidated += threads
            progress.add(threads)

        await components.replayer.flush_threads(None)
        await components.invalidator.invalidate_recorded()
        await components.invalidation.invalidate_all(count)
    return invalidated


async def _flush(components: Components, thread_ids: list[str]) -> None:
    """Flush the threads. Raises `BehindError`, unless Redis cannot be reached: nothing is invalidated then."""
    try:
        await components.replayer.flush_threads(thread_ids)
    except BehindError:
        if components.executor.health.usable:
            raise
