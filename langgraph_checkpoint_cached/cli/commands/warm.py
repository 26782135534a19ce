"""The command `warm`: loads threads into Redis before somebody waits for them."""

from __future__ import annotations

import argparse
from collections import Counter

from langgraph_checkpoint_cached.cli.connections import Servers
from langgraph_checkpoint_cached.cli.output import Output
from langgraph_checkpoint_cached.cli.parts import Components, RedisUnavailable
from langgraph_checkpoint_cached.errors import ArgumentError
from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.ttl import CHECKPOINT
from langgraph_checkpoint_cached.utils.concurrency import for_each, iterate

NAME = "warm"
HELP = "load threads into Redis"
DESCRIPTION = """\
Load the latest checkpoint of threads into Redis, as a first read would: after an outage of Redis or a move to
another one, so that Postgres is not asked for all of them at once when their users come back. Namespaces of
subgraphs are loaded when they are read.

Exits with 1 if a thread has no checkpoint, or could not be loaded into Redis.
"""
AT_ONCE = 32
NEWEST_MAX = 1_000_000
NEWEST_SQL = (
    "select thread_id from checkpoints where checkpoint_ns = '' group by thread_id"
    " order by max(checkpoint_id) desc limit %s"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its own arguments."""
    parser.add_argument("thread", nargs="*", metavar="THREAD", help="these threads")
    parser.add_argument("--newest", metavar="N", type=int, help="the N threads with the newest checkpoints")
    parser.add_argument(
        "--ttl",
        metavar="SECONDS",
        type=float,
        default=CHECKPOINT.seconds,
        help="how long they live in Redis, as the savers' ttl (default: 3600)",
    )


async def run(options: argparse.Namespace, out: Output) -> int:
    """Returns 1 if something could not be loaded."""
    if bool(options.thread) == (options.newest is not None):
        raise ArgumentError("name threads, or pass --newest N")
    if options.newest is not None and not 0 < options.newest <= NEWEST_MAX:
        raise ArgumentError(f"--newest takes a number from 1 to {NEWEST_MAX}")
    counts: Counter[str] = Counter(loaded=0, warm=0, missing=0, passed=0)
    missing: list[str] = []
    async with Components.opened(Servers.of(options), refresh_on_read=True) as parts:
        if options.newest is not None:
            await parts.replayer.flush_threads(None)  # which are the newest is what Postgres says
        threads = options.thread or [row["thread_id"] for row in await parts.query(NEWEST_SQL, (options.newest,))]
        stats = parts.saver._stats
        with out.progress("loaded", len(threads)) as progress:

            async def load(thread_id: str) -> None:
                record, times = await parts.reader.latest(Namespace(thread_id))
                if times is stats.get_degraded:
                    raise RedisUnavailable("it cannot be used, so nothing can be loaded into it")
                if record is None:
                    counts["missing"] += 1
                    missing.append(thread_id)
                else:
                    kind = {id(stats.get_hit): "warm", id(stats.get_load): "loaded"}.get(id(times), "passed")
                    counts[kind] += 1
                progress.add()

            await for_each(iterate(threads), load, AT_ONCE)
        counts["refused"] = stats.fills_refused
        counts["loaded"] -= stats.fills_refused
    names = {
        "loaded": "loaded",
        "warm": "were there already",
        "passed": "not loaded, a write was under way",
        "refused": "not loaded, a write was under way or Redis is full",
        "missing": "have no checkpoint",
    }
    lines = [f"{counts[name]:,} {says}" for name, says in names.items() if counts[name]] or [
        "there are no threads"
    ]
    out.report({"counts": dict(counts), "missing": missing}, lines)
    return 1 if counts["missing"] or counts["refused"] else 0
