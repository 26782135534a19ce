"""Command `flush`: flushes to Postgres what Redis has acknowledged with `mode="write_behind"`."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field

from langgraph_checkpoint_cached.cli.components import Components
from langgraph_checkpoint_cached.cli.connections import ConnectionOptions
from langgraph_checkpoint_cached.cli.lease_view import count_unflushed
from langgraph_checkpoint_cached.cli.output import Output, Progress
from langgraph_checkpoint_cached.cli.thread_choice import add_thread_choice, chosen_threads
from langgraph_checkpoint_cached.errors import BehindError
from langgraph_checkpoint_cached.records import LeaseRow
from langgraph_checkpoint_cached.stores.postgres.leases import LEASES_AT_ONCE_MAX, pages
from langgraph_checkpoint_cached.stores.redis.health import RedisUnavailable
from langgraph_checkpoint_cached.stores.redis.keys import decode_thread_name, parse_key
from langgraph_checkpoint_cached.utils.concurrency import for_each

NAME = "flush"
HELP = "flush to Postgres what Redis has acknowledged"
DESCRIPTION = """\
Flush threads to Postgres where mode="write_behind" is used: when this returns, Postgres holds all that Redis had
acknowledged before. Use it before a backup, before Redis is stopped, or before you go back to the upstream saver;
for single threads also before you read their rows by SQL. Graphs may go on, and have unflushed writes again right
after.

Exits with 1 if a thread cannot be flushed now, or if writes were lost: Redis had lost them, and the process that
wrote them was gone.
"""
CONCURRENCY = 8
ERRORS_SHOWN_MAX = 100
"""Limit of the errors that are listed; all are counted."""


@dataclass
class FlushResult:
    """Result of a flush.

    Attributes:
        threads: Threads that had a lease, and so perhaps unflushed writes.
        writes: Writes that were flushed.
        unflushed: Threads that cannot be flushed now.
        lost: Leases whose journal Redis had lost.
        errors: Why threads cannot be flushed, by thread.
    """

    threads: int = 0
    writes: int = 0
    unflushed: int = 0
    lost: int = 0
    errors: dict[str, str] = field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_thread_choice(parser, all_help="all threads of the prefix")


async def run(options: argparse.Namespace, out: Output) -> int:
    """Return 1 if a thread cannot be flushed, or something was lost."""
    thread_ids = chosen_threads(options)
    async with Components.open(ConnectionOptions.from_options(options)) as components:
        result = FlushResult()
        with out.progress("flushed", None if thread_ids is None else len(thread_ids)) as progress:
            leases = _find_leases(components, thread_ids)
            await for_each(leases, lambda lease: _flush(components, *lease, result, progress), CONCURRENCY)
        if thread_ids is None:
            await _remove_ended_journals(components)
        result.lost = components.stats.leases_lost
    out.report(asdict(result), _lines(result))
    return 1 if result.unflushed or result.lost else 0


async def _find_leases(
    components: Components, thread_ids: list[str] | None
) -> AsyncIterator[tuple[str, LeaseRow]]:
    if thread_ids is not None:
        for found in (await components.store.leases.find(thread_ids)).items():
            yield found
        return
    async for rows in pages(components.store.leases.after):
        for found in rows.items():
            yield found


async def _flush(
    components: Components, thread_id: str, row: LeaseRow, result: FlushResult, progress: Progress
) -> None:
    unflushed = 0
    with contextlib.suppress(RedisUnavailable):  # the lease's holder may still flush on request
        unflushed = await count_unflushed(components, thread_id, row)
    try:
        await components.saver.aflush(thread_id)
    except BehindError as exc:
        if not components.executor.health.usable:
            raise  # it would be so for every thread
        result.unflushed += 1
        if len(result.errors) < ERRORS_SHOWN_MAX:
            result.errors[thread_id] = str(exc)
        unflushed = 0
    result.threads += 1
    result.writes += unflushed
    progress.add()


async def _remove_ended_journals(components: Components) -> None:
    """Remove journals of leases that have ended: a failover brought them back, and their process may be gone."""
    threads: list[str] = []

    async def remove() -> None:
        await components.ended_journals.remove(threads)
        threads.clear()

    async for key in components.invalidation.keys(":*:journal"):
        found = parse_key(components.options.prefix, key)
        if found and (thread_id := decode_thread_name(found[0])) is not None:
            threads.append(thread_id)
        if len(threads) >= LEASES_AT_ONCE_MAX:
            await remove()
    await remove()


def _lines(result: FlushResult) -> list[str]:
    lines = [f"unflushed: {error}" for error in result.errors.values()]
    if (more := result.unflushed - len(lines)) > 0:
        lines.append(f"... and {more:,} more")
    lines.append(f"{result.writes:,} writes of {result.threads:,} threads flushed")
    if result.lost:
        lines.append(f"{result.lost:,} threads may have lost writes: the log above names them")
    return lines
