"""Command `warm`: loads threads into Redis before they are read."""

from __future__ import annotations

import argparse
from collections import Counter

from langgraph_checkpoint_cached.cli.components import Components
from langgraph_checkpoint_cached.cli.connections import ConnectionOptions
from langgraph_checkpoint_cached.cli.output import Output
from langgraph_checkpoint_cached.errors import ArgumentError
from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.stats import ReadOutcome
from langgraph_checkpoint_cached.stores.redis.health import RedisUnavailable
from langgraph_checkpoint_cached.ttl import CHECKPOINT
from langgraph_checkpoint_cached.utils.concurrency import for_each, iterate

NAME = "warm"
HELP = "load threads into Redis"
DESCRIPTION = """\
Load the latest checkpoint of threads into Redis, as a first read would: after an outage of Redis or a move to
another one, so that Postgres is not read for all of them at once when their users return. Namespaces of subgraphs
are loaded when they are read.

Exits with 1 if a thread has no checkpoint, or could not be loaded into Redis.
"""
CONCURRENCY = 32
NEWEST_MAX = 1_000_000
NEWEST_SQL = (
    "select thread_id from checkpoints where checkpoint_ns = '' group by thread_id"
    " order by max(checkpoint_id) desc limit %s"
)
LINES = {
    "loaded": "loaded",
    "warm": "were in Redis already",
    "bypassed": "not loaded: a write was in flight",
    "refused": "not loaded: a write was in flight, or Redis is full",
    "missing": "have no checkpoint",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("thread", nargs="*", metavar="THREAD", help="these threads")
    parser.add_argument("--newest", metavar="N", type=int, help="the N threads with the newest checkpoints")
    parser.add_argument(
        "--ttl",
        metavar="SECONDS",
        type=float,
        default=CHECKPOINT.seconds,
        help="life of the entries in Redis, as the savers' ttl (default: 3600)",
    )


async def run(options: argparse.Namespace, out: Output) -> int:
    """Return 1 if something could not be loaded."""
    if bool(options.thread) == (options.newest is not None):
        raise ArgumentError("name threads, or pass --newest N")
    if options.newest is not None and not 0 < options.newest <= NEWEST_MAX:
        raise ArgumentError(f"--newest takes a number from 1 to {NEWEST_MAX}")
    async with Components.open(ConnectionOptions.from_options(options), refresh_on_read=True) as components:
        threads = options.thread or await _find_newest(components, options.newest)
        with out.progress("loaded", len(threads)) as progress:
            warming = Warming(components)

            async def load(thread_id: str) -> None:
                await warming.load(thread_id)
                progress.add()

            await for_each(iterate(threads), load, CONCURRENCY)
    counts = warming.final_counts()
    lines = [f"{counts[name]:,} {text}" for name, text in LINES.items() if counts[name]] or [
        "there are no threads"
    ]
    out.report({"counts": counts, "missing": warming.missing}, lines)
    return 1 if counts["missing"] or counts["refused"] else 0


async def _find_newest(components: Components, count: int) -> list[str]:
    await components.replayer.flush_threads(None)  # the newest threads are those in Postgres
    return [row["thread_id"] for row in await components.query(NEWEST_SQL, (count,))]


class Warming:
    """Load threads into Redis, and count what comes of it."""

    def __init__(self, components: Components) -> None:
        self._components = components
        self._counts: Counter[str] = Counter(dict.fromkeys(LINES, 0))
        self.missing: list[str] = []

    async def load(self, thread_id: str) -> None:
        """Load the thread's root namespace. Raises `RedisUnavailable`."""
        record, outcome = await self._components.read_path.latest(Namespace(thread_id))
        if outcome is ReadOutcome.DEGRADED:
            raise RedisUnavailable("it cannot be used, so nothing can be loaded into it")
        if record is None:
            self.missing.append(thread_id)
            self._counts["missing"] += 1
        elif outcome is ReadOutcome.HIT:
            self._counts["warm"] += 1
        else:
            self._counts["loaded" if outcome is ReadOutcome.LOAD else "bypassed"] += 1

    def final_counts(self) -> dict[str, int]:
        """Return the counts. Only when the saver is closed are all fills done or refused."""
        refused = self._components.stats.fills_refused
        return {**self._counts, "refused": refused, "loaded": self._counts["loaded"] - refused}
