"""The command `invalidate`: invalidates what Redis holds of threads, in step with the savers that use it."""

from __future__ import annotations

import argparse

from langgraph_checkpoint_cached.cli.connections import Servers
from langgraph_checkpoint_cached.cli.output import Output
from langgraph_checkpoint_cached.cli.parts import Components, RedisUnavailable
from langgraph_checkpoint_cached.errors import ArgumentError, BehindError

NAME = "invalidate"
HELP = "invalidate what Redis holds of threads"
DESCRIPTION = """\
Invalidate what Redis holds of threads, after somebody wrote to their rows past this package: SQL by hand, a
restored backup, a process with the upstream saver. The next read of each comes from Postgres. Reads that are
under way cannot bring back what they loaded before, as they could after a DEL by hand. Nothing is lost but
time: where somebody writes behind, Postgres follows first.

Without Redis, named threads become stale threads in Postgres, and the savers that reach Redis invalidate them
within a second.
"""
AT_ONCE = 256


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its own arguments."""
    parser.add_argument("thread", nargs="*", metavar="THREAD", help="these threads")
    parser.add_argument("--all", action="store_true", help="all threads of the prefix, by a scan")


async def run(options: argparse.Namespace, out: Output) -> int:
    """Returns 0, or 1 if Redis cannot be reached and savers are left to do it."""
    if bool(options.thread) == options.all:
        raise ArgumentError("name threads, or pass --all")
    async with Components.opened(Servers.of(options)) as parts:
        if options.all:
            invalidated = 0
            with out.progress("invalidated") as progress:

                def more(count: int) -> None:
                    nonlocal invalidated
                    invalidated += count
                    progress.add(count)

                await parts.replayer.flush_threads(None)
                await parts.recovery.invalidate_recorded()
                await parts.entries.invalidate_all(more)
            out.report({"invalidated": invalidated}, [f"{invalidated:,} threads invalidated"])
            return 0
        threads = list(dict.fromkeys(options.thread))
        try:
            await _settle(parts, threads)
            for start in range(0, len(threads), AT_ONCE):
                await parts.entries.invalidate_threads(dict.fromkeys(threads[start : start + AT_ONCE], ()))
        except RedisUnavailable as exc:
            await parts.postgres.stale_threads.add(threads)
            if not parts.postgres.stale_threads.usable:
                raise
            says = f"Redis cannot be used ({exc}): savers that reach it invalidate the {len(threads):,} threads"
            out.report({"invalidated": 0, "stale_threads": len(threads)}, [says])
            return 1
    out.report({"invalidated": len(threads)}, [f"{len(threads):,} threads invalidated"])
    return 0


async def _settle(parts: Components, thread_ids: list[str]) -> None:
    """Has Postgres follow. Raises `BehindError`, unless Redis cannot be reached: then nothing is invalidated
    yet.
    """
    try:
        await parts.replayer.flush_threads(thread_ids)
    except BehindError:
        if parts.executor.is_usable:
            raise
