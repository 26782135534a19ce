"""Command `retention`: deletes threads that have been idle for long."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict

from langgraph_checkpoint_cached.cli.connections import ConnectionOptions
from langgraph_checkpoint_cached.cli.output import Output
from langgraph_checkpoint_cached.errors import ArgumentError
from langgraph_checkpoint_cached.retention import IdleThreads

NAME = "retention"
HELP = "delete threads that have been idle for long"
DESCRIPTION = """\
Delete the threads in which nothing was stored for the given time, as the saver's adelete_idle_threads does, in
small batches. This cannot be undone: begin with --dry-run. It may be stopped at any time and started again. Graphs
may go on: a thread that is written to in the meantime is kept.
"""
UNITS = {"s": 1, "min": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--idle-for", metavar="TIME", required=True, help="such as 30d; units: s, min, h, d, w")
    parser.add_argument("--dry-run", action="store_true", help="only count them")
    parser.add_argument("--limit", metavar="N", type=int, help="delete at most N threads")
    parser.add_argument(
        "--pause", metavar="SECONDS", type=float, default=0.0, help="pause between two batches (default: 0)"
    )


async def run(options: argparse.Namespace, out: Output) -> int:
    """Return 0 when no idle thread is left, or `--limit` are deleted."""
    idle_seconds = parse_duration(options.idle_for)
    async with ConnectionOptions.from_options(options).open_saver() as saver:
        with out.progress("would delete" if options.dry_run else "deleted") as progress:

            def show(result: IdleThreads) -> None:
                progress.set(result.threads)

            result = await saver.adelete_idle_threads(
                idle_seconds, limit=options.limit, pause=options.pause, dry_run=options.dry_run, progress=show
            )
    done = "would be deleted" if options.dry_run else "deleted"
    lines = [
        f"{result.threads:,} of {result.looked_at:,} threads {done}: {result.checkpoints:,} checkpoints, "
        f"{result.blobs:,} blobs, {result.writes:,} writes"
    ]
    if result.kept:
        lines.append(f"{result.kept:,} kept: they were written to in the meantime")
    if result.undated:
        lines.append(f"{result.undated:,} kept: the ids of their checkpoints hold no time")
    out.report({"dry_run": options.dry_run, **asdict(result)}, lines)
    return 0


def parse_duration(text: str) -> float:
    """Return the seconds of a time such as `30d` or `12h`. Raises `ArgumentError` if it is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|h|d|w)", text)
    if found is None:
        raise ArgumentError(f"--idle-for takes a time such as 30d, with one of {', '.join(UNITS)}, not {text!r}")
    return float(found[1]) * UNITS[found[2]]
