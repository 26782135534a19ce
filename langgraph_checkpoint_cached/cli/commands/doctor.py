"""Command `doctor`: checks both servers, and advises."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

import psycopg
from redis.exceptions import RedisClusterException, RedisError

from langgraph_checkpoint_cached.cli.checks import write_behind
from langgraph_checkpoint_cached.cli.checks.findings import Check, Finding, PostgresTarget, RedisTarget
from langgraph_checkpoint_cached.cli.checks.postgres import POSTGRES_CHECKS
from langgraph_checkpoint_cached.cli.checks.redis import REDIS_CHECKS
from langgraph_checkpoint_cached.cli.connections import ConnectionOptions
from langgraph_checkpoint_cached.cli.nodes import Node, list_nodes
from langgraph_checkpoint_cached.cli.output import Output, table
from langgraph_checkpoint_cached.stores.redis.client import AnyRedis, reason

NAME = "doctor"
HELP = "check both servers, and advise what to do"
DESCRIPTION = """\
Check Postgres and Redis as a saver would use them: whether they can be reached, versions, rights, memory policy,
pooler, tables and indexes, stale threads, leases, clocks and round trips. Nothing is changed, and no more rights
than a saver's are needed.

Where a lease exists, a process writes behind, and Redis is checked for that too.

Exits with 1 if there is a problem. Warnings are no problems.
"""
PACKAGES = (
    "langgraph-checkpoint-cached",
    "langgraph-checkpoint",
    "langgraph-checkpoint-postgres",
    "redis",
    "psycopg",
)
ROUND_TRIPS = 20
CHECK_SECONDS_MAX = 30.0
SKEW_SECONDS_MAX = 1.0
SLOW_REDIS_SECONDS, SLOW_POSTGRES_SECONDS = 0.005, 0.02
UNREACHABLE = (psycopg.Error, RedisError, RedisClusterException, OSError, asyncio.TimeoutError)
P = TypeVar("P")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--write-behind",
        action="store_true",
        help='check Redis for mode="write_behind" even if no process writes behind now',
    )


async def run(options: argparse.Namespace, out: Output) -> int:
    """Return 1 if there is a problem."""
    findings = await examine(ConnectionOptions.from_options(options), writes_behind=options.write_behind)
    counts = {level: sum(f.level == level for f in findings) for level in ("ok", "warning", "problem", "unknown")}
    lines = []
    for finding in findings:
        lines += [(finding.level.upper() if finding.level != "ok" else "ok", finding.check, finding.message)]
        lines += [("", "", f"-> {finding.advice}")] if finding.advice else []
    summary = ", ".join(f"{count} {level}" for level, count in counts.items() if count)
    out.report({"findings": [asdict(f) for f in findings], "counts": counts}, [*table(lines), "", summary])
    return 1 if counts["problem"] else 0


async def examine(options: ConnectionOptions, *, writes_behind: bool = False) -> list[Finding]:
    """Return the findings of all checks; of those for write-behind if `writes_behind` or there are leases."""
    findings = [_packages()]
    async with AsyncExitStack() as stack:
        try:
            conn = await stack.enter_async_context(await options.connect_postgres())
        except psycopg.Error as exc:
            findings.append(_unreachable("postgres", exc, "graphs fail until it is back"))
        else:
            writes_behind |= await _has_leases(PostgresTarget(options, conn))
            postgres = PostgresTarget(options, conn, writes_behind)
            findings += await _check_all((*POSTGRES_CHECKS, write_behind.leases, postgres_clock), postgres)
        client = options.make_redis_client()
        stack.push_async_callback(client.aclose)
        try:
            nodes = await asyncio.wait_for(_reach_nodes(client, options.prefix), options.timeout_seconds)
        except UNREACHABLE as exc:
            findings.append(_unreachable("redis", exc, "graphs go on with Postgres alone"))
        else:
            redis = RedisTarget(options, nodes, writes_behind)
            findings += await _check_all((*REDIS_CHECKS, write_behind.durability, redis_clocks), redis)
    return findings


def _unreachable(server: str, error: BaseException, effect: str) -> Finding:
    advice = f"{effect}; check the address, the server, firewalls and the password"
    return Finding(server, "problem", f"cannot be reached: {_first_line(error)}", advice)


async def _has_leases(target: PostgresTarget) -> bool:
    try:
        return await write_behind.count_leases(target) > 0
    except psycopg.Error:
        return False  # its right is missing, which `rights` reports


async def postgres_clock(target: PostgresTarget) -> list[Finding]:
    """Check Postgres' clock, and how long a query takes."""
    samples: list[tuple[float, float]] = []
    for _ in range(ROUND_TRIPS):
        before, started = time.time(), time.perf_counter()
        row = await target.row("select extract(epoch from clock_timestamp())::float8 as now")
        took = time.perf_counter() - started
        samples.append((row["now"] - (before + took / 2), took))
    return [_round_trip("postgres", samples), _clock("postgres", samples)]


async def redis_clocks(target: RedisTarget) -> list[Finding]:
    """Check the clock of every Redis server, and how long a script takes."""
    findings = []
    for node in target.nodes:
        samples = [await node.clock() for _ in range(ROUND_TRIPS)]
        name = f"redis {node.name}".strip()
        findings += [_round_trip(name, samples), _clock(name, samples)]
    return findings


async def _reach_nodes(client: AnyRedis, prefix: str) -> list[Node]:
    nodes = await list_nodes(client, prefix)
    for node in nodes:
        await node.clock()
    return nodes


def _round_trip(server: str, samples: Sequence[tuple[float, float]]) -> Finding:
    times = sorted(took for _, took in samples)
    median = statistics.median(times)
    message = f"{server}: {1000 * median:.2f} ms, at most {1000 * times[-1]:.2f} ms of {len(times)}"
    slow = median > (SLOW_REDIS_SECONDS if server.startswith("redis") else SLOW_POSTGRES_SECONDS)
    advice = "every step of a graph waits for it: run it in the same zone, and check whether it is busy"
    return Finding("round trip", "warning", message, advice) if slow else Finding("round trip", "ok", message)


def _clock(server: str, samples: Sequence[tuple[float, float]]) -> Finding:
    skew = min(samples, key=lambda sample: sample[1])[0]  # that of the fastest reply is the most exact
    message = f"{server}: {skew:+.3f} s from this machine's"
    if abs(skew) <= SKEW_SECONDS_MAX:
        return Finding("clock", "ok", message)
    advice = (
        "set clocks by NTP: ids of checkpoints are made from their process' clock, and the highest id of a thread "
        "is its latest checkpoint"
    )
    return Finding("clock", "warning", message, advice)


async def _check_all(checks: Sequence[Check[P]], target: P) -> list[Finding]:
    return [finding for check in checks for finding in await _check(check, target)]


async def _check(check: Check[P], target: P) -> list[Finding]:
    try:
        return await asyncio.wait_for(check(target), CHECK_SECONDS_MAX)
    except UNREACHABLE as exc:
        name = check.__name__.replace("_", " ")
        return [Finding(name, "unknown", f"could not be checked: {_first_line(exc)}", "see the findings above")]


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's message; its type if it has none."""
    return (reason(error).strip() or type(error).__name__).splitlines()[0]


def _packages() -> Finding:
    found = [f"Python {'.'.join(map(str, sys.version_info[:3]))}"]
    for name in (*PACKAGES, "langgraph"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return Finding("packages", "ok", ", ".join(found))
