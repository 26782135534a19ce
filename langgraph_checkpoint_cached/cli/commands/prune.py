"""The command `prune`: removes what threads no longer need."""

from __future__ import annotations

import argparse

from langgraph.checkpoint.postgres.base import PRUNE_STRATEGIES

from langgraph_checkpoint_cached.cli.connections import Servers
from langgraph_checkpoint_cached.cli.output import Output

NAME = "prune"
HELP = "remove old checkpoints of threads, or all of them"
DESCRIPTION = """\
Prune threads, as the saver's aprune does: "keep_latest" leaves the latest checkpoint of each namespace,
"delete" leaves nothing. There is no way back. Graphs may go on.
"""
AT_ONCE = 16


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its own arguments."""
    parser.add_argument("thread", nargs="+", metavar="THREAD")
    parser.add_argument("--strategy", required=True, choices=PRUNE_STRATEGIES)


async def run(options: argparse.Namespace, out: Output) -> int:
    """Returns 0 when all is done."""
    threads = list(dict.fromkeys(options.thread))
    async with Servers.of(options).saver() as saver:
        with out.progress("pruned", len(threads)) as progress:
            for start in range(0, len(threads), AT_ONCE):
                batch = threads[start : start + AT_ONCE]
                await saver.aprune(batch, strategy=options.strategy)
                progress.add(len(batch))
    out.report({"pruned": len(threads)}, [f"{len(threads):,} threads pruned"])
    return 0
