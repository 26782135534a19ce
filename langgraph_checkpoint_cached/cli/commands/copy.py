"""The command `copy`: a thread under another name."""

from __future__ import annotations

import argparse

from langgraph_checkpoint_cached.cli.connections import Servers
from langgraph_checkpoint_cached.cli.output import Output

NAME = "copy"
HELP = "copy a thread"
DESCRIPTION = """\
Copy a thread, as the saver's acopy_thread does: all namespaces and checkpoints, with their values and pending
writes, in one transaction. May be repeated: a copy that is there already is left as it is.

Exits with 1 if the target has something else, unless told to overwrite it. A source without anything leaves
nothing.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its own arguments."""
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("target", metavar="TARGET")
    parser.add_argument("--overwrite", action="store_true", help="delete what else the target has")


async def run(options: argparse.Namespace, out: Output) -> int:
    """Returns 0 when the copy is there."""
    async with Servers.of(options).saver() as saver:
        await saver.acopy_thread(options.source, options.target, overwrite=options.overwrite)
    says = f"thread {options.source!r} copied to {options.target!r}"
    out.report({"source": options.source, "target": options.target}, [says])
    return 0
