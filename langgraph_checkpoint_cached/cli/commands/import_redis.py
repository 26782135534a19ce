"""Command `import-redis`: imports threads of savers that keep them in Redis alone."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from importlib import import_module
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver

from langgraph_checkpoint_cached.cli.connections import ConnectionOptions
from langgraph_checkpoint_cached.cli.output import Output
from langgraph_checkpoint_cached.errors import ArgumentError
from langgraph_checkpoint_cached.migrate.copy_savers import CopyResult, copy_all
from langgraph_checkpoint_cached.migrate.sources import KINDS, open_source

NAME = "import-redis"
HELP = "import threads of a saver that keeps them in Redis alone"
SOURCE_VARIABLE = "SOURCE_REDIS_URL"
DESCRIPTION = """\
Import threads of langgraph-checkpoint-redis ("redis", which needs a server with search and JSON) or of the Valkey
saver of langgraph-checkpoint-aws ("valkey") into Postgres, through that saver and this one: all namespaces,
checkpoints with their parents, pending writes. First stop the graphs that write to them.

It may be stopped at any time and started again: checkpoints that Postgres has already are compared, not written,
and nothing is ever overwritten. After each thread, what was written is read from both and compared.

Exits with 1 if a checkpoint could not be read, or is in Postgres with other content.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("thread", nargs="*", metavar="THREAD", help="only these threads")
    parser.add_argument(
        "--from", dest="kind", required=True, choices=tuple(KINDS), help="the saver that wrote them"
    )
    parser.add_argument("--source-url", metavar="URL", help=f"the Redis to import from; or {SOURCE_VARIABLE}")
    parser.add_argument("--dry-run", action="store_true", help="only count, and compare what Postgres has already")
    parser.add_argument(
        "--serde",
        metavar="MODULE:NAME",
        help="the serializer that your graphs use, or a function that returns it (default: the upstream saver's)",
    )


async def run(options: argparse.Namespace, out: Output) -> int:
    """Return 1 if something is not in Postgres as it is in the source."""
    url = options.source_url or os.environ.get(SOURCE_VARIABLE)
    if not url:
        raise ArgumentError(f"pass --source-url, or set the environment variable {SOURCE_VARIABLE}")
    serde = load_serde(options.serde) if options.serde else None
    connection = ConnectionOptions.from_options(options)
    async with open_source(options.kind, url, serde) as source, connection.open_saver(serde=serde) as saver:
        target: BaseCheckpointSaver[Any] = saver
        if not options.dry_run:
            await saver.setup()
        elif not await _has_tables(connection):
            target = InMemorySaver()  # as empty as that database
        with out.progress("threads") as progress:
            result = await copy_all(
                source,
                target,
                thread_ids=options.thread or None,
                dry_run=options.dry_run,
                progress=progress.set,
            )
    out.report({"dry_run": options.dry_run, **asdict(result)}, _lines(result, dry_run=options.dry_run))
    return 0 if result.is_complete else 1


async def _has_tables(connection: ConnectionOptions) -> bool:
    async with await connection.connect_postgres() as conn:
        found = await (await conn.execute("select to_regclass('checkpoint_writes') as t")).fetchone()
        return found is not None and found["t"] is not None


def load_serde(path: str) -> Any:
    """Return the serializer that a name such as `app.graphs:serde` stands for, or that its function returns.

    Raises:
        ArgumentError: it cannot be imported, or is no serializer.
    """
    module, _, name = path.partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as exc:
        raise ArgumentError(f"--serde takes MODULE:NAME of something that can be imported, not {path!r}") from exc
    if not hasattr(found, "dumps_typed") or isinstance(found, type):
        try:
            found = found() if callable(found) else None
        except TypeError:  # it takes arguments
            found = None
    if not hasattr(found, "dumps_typed"):
        raise ArgumentError(f"--serde: {path!r} is no serializer")
    return found


def _lines(result: CopyResult, *, dry_run: bool) -> list[str]:
    lines = [
        f"thread {one.thread_id!r}, namespace {one.checkpoint_ns!r}, checkpoint {one.checkpoint_id}: {one.problem}"
        for one in result.problems
    ]
    done = "would be imported" if dry_run else "imported and compared"
    lines.append(
        f"{result.threads:,} threads, {result.checkpoints:,} checkpoints, {result.writes:,} pending writes "
        f"{done}; {result.present:,} checkpoints were there already"
    )
    if not result.is_complete:
        lines.append(f"{result.lost:,} could not be read; {result.differ:,} are there with other content")
    return lines
