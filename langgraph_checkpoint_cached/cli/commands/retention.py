"""The command `retention`: deletes threads that nobody has used for long."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict

from langgraph_checkpoint_cached.cli.connections import Servers
from langgraph_checkpoint_cached.cli.output import Output
from langgraph_checkpoint_cached.errors import ArgumentError
from langgraph_checkpoint_cached.retention import IdleThreads

NAME = "retention"
HELP = "delete threads that nobody has used for long"
DESCRIPTION = """\
Delete the threads in which nothing was stored for so long, as the saver's adelete_idle_threads does, in small
batches. There is no way back: begin with --dry-run. May be stopped at any time, and started again. Graphs may go
on; a thread that is written to meanwhile is kept.
"""
UNITS = {"s": 1, "min": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its own arguments."""
    parser.add_argument("--idle-for", metavar="TIME", required=True, help="such as 30d; units: s, min, h, d, w")
    parser.add_argument("--dry-run", action="store_true", help="only count them")
    parser.add_argument("--limit", metavar="N", type=int, help="the most threads to delete")
    parser.add_argument(
        "--pause", metavar="SECONDS", type=float, default=0.0, help="between two batches, so that others get on"
    )


async def run(options: argparse.Namespace, out: Output) -> int:
    """Returns 0 when none is left, or `--limit` are gone."""
    idle_seconds = seconds_in(options.idle_for)
    async with Servers.of(options).saver() as saver:
        with out.progress("would delete" if options.dry_run else "deleted") as progress:

            def so_far(done: IdleThreads) -> None:
                progress.at(done.threads)

            done = await saver.adelete_idle_threads(
                idle_seconds, limit=options.limit, pause=options.pause, dry_run=options.dry_run, progress=so_far
            )
    did = "would be deleted" if options.dry_run else "deleted"
    lines = [
        f"{done.threads:,} of {done.looked_at:,} threads {did}: {done.checkpoints:,} checkpoints, {done.blobs:,} "
        f"blobs, {done.writes:,} writes"
    ]
    if done.kept:
        lines.append(f"{done.kept:,} were written to meanwhile, and kept")
    if done.undated:
        lines.append(f"{done.undated:,} kept, for the ids of their checkpoints do not tell their age")
    out.report({"dry_run": options.dry_run, **asdict(done)}, lines)
    return 0


def seconds_in(text: str) -> float:
    """Seconds of a time such as `30d` or `12h`. Raises `ArgumentError` if it is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|h|d|w)", text)
    if found is None:
        raise ArgumentError(f"--idle-for takes a time such as 30d, with one of {', '.join(UNITS)}, not {text!r}")
    return float(found[1]) * UNITS[found[2]]
