"""Command `copy`: copies a thread."""

from __future__ import annotations

import argparse

from langgraph_checkpoint_cached.cli.connections import ConnectionOptions
from langgraph_checkpoint_cached.cli.output import Output

NAME = "copy"
HELP = "copy a thread"
DESCRIPTION = """\
Copy a thread, as the saver's acopy_thread does: all namespaces and checkpoints, with their values and pending
writes, in one transaction. It may be repeated: a target that is a copy already stays as it is. If the source
is empty, nothing is stored.

Exits with 1 if the target holds anything else, unless --overwrite is given.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("target", metavar="TARGET")
    parser.add_argument("--overwrite", action="store_true", help="delete anything else that the target holds")


async def run(options: argparse.Namespace, out: Output) -> int:
    """Return 0 when the target is a copy."""
    async with ConnectionOptions.from_options(options).open_saver() as saver:
        await saver.acopy_thread(options.source, options.target, overwrite=options.overwrite)
    line = f"thread {options.source!r} copied to {options.target!r}"
    out.report({"source": options.source, "target": options.target}, [line])
    return 0
