"""The command `import-redis`: threads of savers that keep them in Redis alone, into Postgres."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from importlib import import_module
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver

from langgraph_checkpoint_cached.cli.connections import Servers
from langgraph_checkpoint_cached.cli.output import Output
from langgraph_checkpoint_cached.errors import ArgumentError
from langgraph_checkpoint_cached.migrate.copy_savers import Copied, copy_all
from langgraph_checkpoint_cached.migrate.sources import KINDS, opened_source

NAME = "import-redis"
HELP = "import threads of a saver that keeps them in Redis alone"
SOURCE_VARIABLE = "SOURCE_REDIS_URL"
DESCRIPTION = """\
Import threads of langgraph-checkpoint-redis ("redis", which wants a server with search and JSON) or of the Valkey
saver of langgraph-checkpoint-aws ("valkey") into Postgres, through that saver and this one: all namespaces,
checkpoints with their parents, pending writes. Stop the graphs that write to them first.

May be stopped at any time and started again: what is there already is compared, not written, and nothing is ever
overwritten. What was written is read again from both, and compared.

Exits with 1 if a checkpoint could not be read, or is in Postgres with other content.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its own arguments."""
    parser.add_argument("thread", nargs="*", metavar="THREAD", help="only these threads")
    parser.add_argument("--from", dest="kind", required=True, choices=tuple(KINDS), help="which saver wrote them")
    parser.add_argument("--source-url", metavar="URL", help=f"the Redis that holds them; or {SOURCE_VARIABLE}")
    parser.add_argument("--dry-run", action="store_true", help="only count, and compare what is there already")
    parser.add_argument(
        "--serde",
        metavar="MODULE:NAME",
        help="the serializer that your graphs use, or a function that makes it (default: the upstream one)",
    )


async def run(options: argparse.Namespace, out: Output) -> int:
    """Returns 1 if something is not in Postgres as it is in the source."""
    url = options.source_url or os.environ.get(SOURCE_VARIABLE)
    if not url:
        raise ArgumentError(f"pass --source-url, or set the environment variable {SOURCE_VARIABLE}")
    serde = named(options.serde) if options.serde else None
    servers = Servers.of(options)
    async with opened_source(options.kind, url, serde) as source, servers.saver(serde=serde) as saver:
        target: BaseCheckpointSaver[Any] = saver
        if not options.dry_run:
            await saver.setup()
        elif not await _has_tables(servers):
            target = InMemorySaver()  # as empty as that database
        with out.progress("threads") as progress:
            copied = await copy_all(
                source,
                target,
                thread_ids=options.thread or None,
                dry_run=options.dry_run,
                progress=progress.at,
            )
    out.report({"dry_run": options.dry_run, **asdict(copied)}, _lines(copied, dry_run=options.dry_run))
    return 0 if copied.is_complete else 1


async def _has_tables(servers: Servers) -> bool:
    async with await servers.postgres() as conn:
        found = await (await conn.execute("select to_regclass('checkpoint_writes') as t")).fetchone()
        return found is not None and found["t"] is not None


def named(path: str) -> Any:
    """The object of a name such as `app.graphs:serde`; if that can be called, what it makes.

    Raises:
        ArgumentError: there is none, or it is no serializer.
    """
    module, _, name = path.partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as exc:
        raise ArgumentError(f"--serde takes MODULE:NAME of something that can be imported, not {path!r}") from exc
    if not hasattr(found, "dumps_typed") or isinstance(found, type):
        try:
            found = found() if callable(found) else None
        except TypeError:  # it wants arguments
            found = None
    if not hasattr(found, "dumps_typed"):
        raise ArgumentError(f"--serde: {path!r} is no serializer")
    return found


def _lines(copied: Copied, *, dry_run: bool) -> list[str]:
    lines = [
        f"thread {one.thread_id!r}, namespace {one.checkpoint_ns!r}, checkpoint {one.checkpoint_id}: {one.what}"
        for one in copied.troubles
    ]
    did = "would be imported" if dry_run else "imported and compared"
    lines.append(
        f"{copied.threads:,} threads, {copied.checkpoints:,} checkpoints, {copied.writes:,} pending writes {did}; "
        f"{copied.there:,} checkpoints were there already"
    )
    if not copied.is_complete:
        lines.append(f"{copied.lost:,} could not be read; {copied.differ:,} are there with other content")
    return lines
