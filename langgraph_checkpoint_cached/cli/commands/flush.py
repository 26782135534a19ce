"""The command `flush`: has Postgres follow what Redis has acknowledged, where `mode="write_behind"` is used."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from langgraph_checkpoint_cached.cli.connections import Servers
from langgraph_checkpoint_cached.cli.lease_view import writes_ahead
from langgraph_checkpoint_cached.cli.output import Output, Progress
from langgraph_checkpoint_cached.cli.parts import Components, RedisUnavailable
from langgraph_checkpoint_cached.errors import ArgumentError, BehindError
from langgraph_checkpoint_cached.records import LeaseRow
from langgraph_checkpoint_cached.stores.postgres.leases import LEASES_AT_ONCE_MAX, pages
from langgraph_checkpoint_cached.stores.redis.keys import decode_thread_name, parse_key
from langgraph_checkpoint_cached.utils.concurrency import for_each

NAME = "flush"
HELP = "have Postgres follow what Redis has acknowledged"
DESCRIPTION = """\
Have Postgres follow on threads that somebody writes behind on: what was acknowledged by Redis before is in
Postgres when this returns. Before a backup, before Redis is taken down, or before the upstream saver is put in
again; for single threads also to look at them in Postgres. Graphs may go on, and be ahead again right after.

Exits with 1 if a thread cannot follow now, or if writes were lost: Redis had lost what it alone had, and the
process that wrote it was gone.
"""
AT_ONCE = 8
SHOWN_MAX = 100
"""How many threads that cannot follow are listed; all are counted."""


@dataclass
class FlushResult:
    """What it came to.

    Attributes:
        threads: Those that had a lease, so that Postgres could be behind.
        writes: Of those that Postgres did not have, how many it has now.
        behind: Threads that cannot follow now.
        lost: Leases of which Redis had lost the journal.
    """

    threads: int = 0
    writes: int = 0
    unflushed: int = 0
    lost: int = 0
    errors: dict[str, str] = field(default_factory=dict)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its own arguments."""
    parser.add_argument("thread", nargs="*", metavar="THREAD", help="these threads")
    parser.add_argument("--all", action="store_true", help="all threads of the prefix")


async def run(options: argparse.Namespace, out: Output) -> int:
    """Returns 1 if a thread cannot follow, or something was lost."""
    if bool(options.thread) == options.all:
        raise ArgumentError("name threads, or pass --all")
    async with Components.opened(Servers.of(options)) as parts:
        result = FlushResult()
        with out.progress("result", len(set(options.thread)) or None) as progress:
            leases = _leases(parts, None if options.all else list(dict.fromkeys(options.thread)))
            await for_each(leases, lambda lease: _start_flushing(parts, *lease, result, progress), AT_ONCE)
        if options.all:
            await _remove_leftovers(parts)
        result.lost = parts.saver._stats.leases_lost
    errors = [f"behind: {error}" for error in result.errors.values()]
    if (more := result.unflushed - len(errors)) > 0:
        errors.append(f"... and {more:,} more")
    lines = [*errors, f"{result.writes:,} writes of {result.threads:,} threads followed"]
    if result.lost:
        lines.append(f"{result.lost:,} threads may have lost writes: the log above names them")
    data = {name: getattr(result, name) for name in ("threads", "writes", "unflushed", "lost", "errors")}
    out.report(data, lines)
    return 1 if result.unflushed or result.lost else 0


async def _remove_leftovers(parts: Components) -> None:
    """Journals of leases that have ended: a failover brought them back, and who would look again is gone."""
    threads: list[str] = []

    async def remove() -> None:
        await parts.replayer.remove_ended_journals(threads)
        threads.clear()

    async for key in parts.entries.keys(":*:journal"):
        found = parse_key(parts.servers.prefix, key)
        if found and (thread_id := decode_thread_name(found[0])) is not None:
            threads.append(thread_id)
        if len(threads) >= LEASES_AT_ONCE_MAX:
            await remove()
    await remove()


async def _leases(parts: Components, thread_ids: list[str] | None) -> AsyncIterator[tuple[str, LeaseRow]]:
    if thread_ids is not None:
        for found in (await parts.postgres.leases.find(thread_ids)).items():
            yield found
        return
    async for rows in pages(parts.postgres.leases.after):
        for found in rows.items():
            yield found


async def _start_flushing(
    parts: Components, thread_id: str, row: LeaseRow, result: FlushResult, progress: Progress
) -> None:
    ahead = 0
    with contextlib.suppress(RedisUnavailable):  # whoever wrote it may come forward all the same
        ahead = await writes_ahead(parts, thread_id, row)
    try:
        await parts.saver.aflush(thread_id)
    except BehindError as exc:
        if not parts.executor.is_usable:
            raise  # it would be so for every thread
        result.unflushed += 1
        if len(result.errors) < SHOWN_MAX:
            result.errors[thread_id] = str(exc)
        ahead = 0
    result.threads += 1
    result.writes += ahead
    progress.add()
