"""Command `prune`: removes old checkpoints of threads, or the threads."""

from __future__ import annotations

import argparse

from langgraph.checkpoint.postgres.base import PRUNE_STRATEGIES

from langgraph_checkpoint_cached.cli.connections import ConnectionOptions
from langgraph_checkpoint_cached.cli.output import Output

NAME = "prune"
HELP = "remove old checkpoints of threads, or whole threads"
DESCRIPTION = """\
Prune threads, as the saver's aprune does: "keep_latest" keeps the latest checkpoint of each namespace, "delete"
keeps nothing. This cannot be undone. Graphs may go on.
"""
BATCH_SIZE = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("thread", nargs="+", metavar="THREAD")
    parser.add_argument("--strategy", required=True, choices=PRUNE_STRATEGIES)


async def run(options: argparse.Namespace, out: Output) -> int:
    """Return 0 when all threads are pruned."""
    threads = list(dict.fromkeys(options.thread))
    async with ConnectionOptions.from_options(options).open_saver() as saver:
        with out.progress("pruned", len(threads)) as progress:
            for start in range(0, len(threads), BATCH_SIZE):
                batch = threads[start : start + BATCH_SIZE]
                await saver.aprune(batch, strategy=options.strategy)
                progress.add(len(batch))
    out.report({"pruned": len(threads)}, [f"{len(threads):,} threads pruned"])
    return 0
