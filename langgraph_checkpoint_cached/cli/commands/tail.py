"""Command `tail`: shows what all savers do, a line every second."""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import asdict

from langgraph_checkpoint_cached.cli.connections import ConnectionOptions
from langgraph_checkpoint_cached.cli.output import Output, size
from langgraph_checkpoint_cached.cli.sampler import Sample, Sampler
from langgraph_checkpoint_cached.errors import ArgumentError

NAME = "tail"
HELP = "show what all savers do, a line every second"
DESCRIPTION = """\
Show what all savers on these servers do, a line every second: reads served from Redis and from Postgres, writes
acknowledged, rows and transactions in Postgres, stale threads, and leases (threads that may have unflushed
writes). Until Ctrl-C, or for --seconds.

Savers publish their counters in Redis every two seconds while they are used; "savers" is how many do. Postgres
counts rows and transactions itself, up to a second late, for the whole database. Redis counts keys, memory and
evictions, for the whole server. Unknown numbers are shown as "-".
"""
HEADER_EVERY_LINES = 20
EVERY_SECONDS_MIN, EVERY_SECONDS_MAX = 0.1, 3600.0
COLUMNS = (
    ("time", 8),
    ("hits/s", 8),
    ("misses/s", 8),
    ("hit %", 5),
    ("writes/s", 8),
    ("unflushed", 9),
    ("savers", 6),
    ("rows/s", 8),
    ("tx/s", 7),
    ("rows/tx", 7),
    ("active", 6),
    ("locked", 6),
    ("stale", 7),
    ("leases", 7),
    ("keys", 9),
    ("memory", 9),
    ("evicted/s", 9),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--seconds", metavar="N", type=float, help="stop after N seconds")
    parser.add_argument(
        "--every", metavar="SECONDS", type=float, default=1.0, help="time between two lines (default: 1)"
    )


async def run(options: argparse.Namespace, out: Output) -> int:
    """Return 1 if a server did not answer for the last line."""
    if not EVERY_SECONDS_MIN <= options.every <= EVERY_SECONDS_MAX:
        raise ArgumentError(f"--every takes {EVERY_SECONDS_MIN} to {EVERY_SECONDS_MAX} seconds")
    if options.seconds is not None and not options.seconds > 0:
        raise ArgumentError("--seconds takes a number above 0")
    started, number = time.monotonic(), 0
    async with Sampler(ConnectionOptions.from_options(options)) as sampler:
        await sampler.sample()
        while True:
            number += 1
            await asyncio.sleep(max(0.0, started + number * options.every - time.monotonic()))
            sample = await sampler.sample()
            header = [_header()] if (number - 1) % HEADER_EVERY_LINES == 0 else []
            out.report(asdict(sample), [*header, _line(sample)])
            if options.seconds is not None and time.monotonic() - started >= options.seconds - options.every / 2:
                return 1 if sample.redis_error or sample.postgres_error else 0


def _header() -> str:
    return " ".join(name.rjust(width) for name, width in COLUMNS)


def _line(sample: Sample) -> str:
    hits, misses = sample.hits_per_second, sample.misses_per_second
    share = None if not hits and not misses else 100 * (hits or 0) / ((hits or 0) + (misses or 0))
    rows, transactions = sample.rows_per_second, sample.transactions_per_second
    rows_each = None if rows is None or not transactions else f"{rows / transactions:.1f}"
    values: list[object] = [
        sample.time[11:19],
        *map(_number, (hits, misses, share, sample.writes_per_second, sample.unflushed)),
        sample.savers,
        *map(_number, (rows, transactions)),
        rows_each,
        sample.active,
        sample.locked,
        sample.stale_threads,
        sample.leases,
        sample.keys,
        size(sample.memory_bytes),
        _number(sample.evicted_per_second),
    ]
    cells = ("-" if value is None else str(value) for value in values)
    line = " ".join(cell.rjust(width) for cell, (_, width) in zip(cells, COLUMNS, strict=True))
    errors = [("Redis", sample.redis_error), ("Postgres", sample.postgres_error)]
    return line + "".join(f"  {name}: {error}" for name, error in errors if error)


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}"
