"""Table of call paths: how many of the package's functions one warm call enters, and in how many files."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.report import table
from langgraph_checkpoint_cached.demo.embedded import PostgresServer, RedisServer

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_SECONDS = 120.0

NOTES = """\
One warm call, embedded servers, nothing else under way. Counted from the call until it returns, whichever task
runs them: entries of functions of the package, among them lambdas, comprehensions and resumptions of coroutines.
Functions are told apart by file and qualified name. A switch is an entry in another file than the entry before it.
With write-behind the flush to Postgres comes later and is not counted."""


@dataclass(frozen=True)
class TracedCall:
    """A call whose path is counted."""

    title: str
    mode: str
    call: str
    functions_max: int


PATHS = (
    TracedCall("`aput`, write-through", "write_through", "aput", 75),
    TracedCall("`aput`, write-behind, lease held", "write_behind", "aput", 50),
    TracedCall("`aput_writes`, write-through", "write_through", "aput_writes", 65),
    TracedCall("`aput_writes`, write-behind, lease held", "write_behind", "aput_writes", 45),
    TracedCall("`aget_tuple`, hit", "write_through", "aget_tuple, hit", 45),
)


@dataclass(frozen=True)
class Figures:
    """Size of a path."""

    functions: int
    files: int
    switches: int


def figures(entries: Sequence[tuple[str, str]]) -> Figures:
    """Count distinct functions, files, and entries that are in another file than the entry before."""
    files = [file for file, _ in entries]
    switches = sum(one != other for one, other in pairwise(files))
    return Figures(len(set(entries)), len(set(files)), switches)


def trace(checkout: Path) -> dict[str, dict[str, list[tuple[str, str]]]]:
    """Trace the package of a checkout in a process of its own.

    Return the entered functions of each mode and call, as file and name.

    Raises:
        RuntimeError: the process failed; the message ends with its error.
    """
    with PostgresServer({}) as postgres, RedisServer() as redis:
        place = json.dumps({"postgres_uri": postgres.url, "redis_url": redis.url})
        command = [sys.executable, "-m", "benchmarks.path_tracer", str(checkout), place]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
    if done.returncode:
        raise RuntimeError(f"tracing {checkout} failed:\n{done.stderr}")
    traced = json.loads(done.stdout)
    return {
        mode: {call: [(file, name) for file, name in entries] for call, entries in calls.items()}
        for mode, calls in traced.items()
    }


def paths_table(traced: dict[str, dict[str, list[tuple[str, str]]]]) -> str:
    """Return the table as Markdown, with the wanted number of functions beside the counted one."""
    rows = []
    for path in PATHS:
        counted = figures(traced[path.mode][path.call])
        rows.append(
            [
                path.title,
                str(counted.functions),
                f"<= {path.functions_max}",
                str(counted.files),
                str(counted.switches),
            ]
        )
    return table(["call", "distinct functions", "wanted", "files", "file switches"], rows)


def listing(entries: Sequence[tuple[str, str]]) -> str:
    """Return the functions in the order in which they are entered, each file named where a switch leads to it."""
    lines, last = [], ""
    for file, name in entries:
        lines.append(f"  {file if file != last else '':<44} {name}")
        last = file
    return "\n".join(lines)


def run(options: argparse.Namespace) -> int:
    """Print the table; with `--list` the functions of each call first. Return the exit code."""
    traced = trace((options.of or ROOT).resolve())
    if options.list:
        for path in PATHS:
            print(f"{path.title}\n{listing(traced[path.mode][path.call])}\n")
    print(f"{paths_table(traced)}\n\n{NOTES}")
    return 0
