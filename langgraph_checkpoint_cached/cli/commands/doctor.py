"""The command `doctor`: looks at both servers, and says what to do."""

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
from langgraph_checkpoint_cached.cli.connections import Servers
from langgraph_checkpoint_cached.cli.nodes import Node, nodes_of
from langgraph_checkpoint_cached.cli.output import Output, table
from langgraph_checkpoint_cached.stores.redis.client import AnyRedis, reason

NAME = "doctor"
HELP = "look at both servers, and say what to do"
DESCRIPTION = """\
Look at Postgres and Redis as a saver would use them: whether they can be reached, versions, rights, memory
policy, pooler, tables and indexes, stale threads, leases, clocks and round trips. Changes nothing. Needs no more
rights than a saver.

Where a lease exists somebody writes behind, and Redis is looked at for that, too.

Exits with 1 if there is a problem. Warnings are none.
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


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its own arguments."""
    parser.add_argument(
        "--write-behind",
        action="store_true",
        help='look at Redis for mode="write_behind" also where nobody writes behind now',
    )


async def run(options: argparse.Namespace, out: Output) -> int:
    """Returns 1 if there is a problem."""
    findings = await examine(Servers.of(options), writes_behind=options.write_behind)
    counts = {level: sum(f.level == level for f in findings) for level in ("ok", "warning", "problem", "unknown")}
    lines = []
    for finding in findings:
        lines += [(finding.level.upper() if finding.level != "ok" else "ok", finding.check, finding.says)]
        lines += [("", "", f"-> {finding.advice}")] if finding.advice else []
    summary = ", ".join(f"{count} {level}" for level, count in counts.items() if count)
    out.report({"findings": [asdict(f) for f in findings], "counts": counts}, [*table(lines), "", summary])
    return 1 if counts["problem"] else 0


async def examine(servers: Servers, *, writes_behind: bool = False) -> list[Finding]:
    """All findings, of all checks that could be made; for `writes_behind` also if there are leases."""
    findings = [_packages()]
    async with AsyncExitStack() as stack:
        try:
            conn = await stack.enter_async_context(await servers.postgres())
        except psycopg.Error as exc:
            advice = "look at the address, the server, firewalls and the password; graphs fail until it is back"
            findings.append(Finding("postgres", "problem", f"cannot be reached: {_line(exc)}", advice))
        else:
            writes_behind |= await _has_leases(PostgresTarget(servers, conn))
            postgres = PostgresTarget(servers, conn, writes_behind)
            findings += await _all((*POSTGRES_CHECKS, write_behind.leases, postgres_clock), postgres)
        client = servers.redis()
        stack.push_async_callback(client.aclose)
        try:
            nodes = await asyncio.wait_for(_reached(client, servers.prefix), servers.timeout_seconds)
        except UNREACHABLE as exc:
            advice = (
                "graphs go on with Postgres alone; look at the address, the server, firewalls and the password"
            )
            findings.append(Finding("redis", "problem", f"cannot be reached: {_line(exc)}", advice))
        else:
            redis = RedisTarget(servers, nodes, writes_behind)
            findings += await _all((*REDIS_CHECKS, write_behind.durability, redis_clocks), redis)
    return findings


async def _has_leases(patient: PostgresTarget) -> bool:
    try:
        return await write_behind.count_leases(patient) > 0
    except psycopg.Error:
        return False  # its right is missing, which `rights` says


async def postgres_clock(patient: PostgresTarget) -> list[Finding]:
    """How far its clock is from ours, and how long a query takes."""
    asked: list[tuple[float, float]] = []
    for _ in range(ROUND_TRIPS):
        before, started = time.time(), time.perf_counter()
        row = await patient.row("select extract(epoch from clock_timestamp())::float8 as now")
        took = time.perf_counter() - started
        asked.append((row["now"] - (before + took / 2), took))
    return [_round_trip("postgres", asked), _clock("postgres", asked)]


async def redis_clocks(patient: RedisTarget) -> list[Finding]:
    """The same of every server."""
    found = []
    for node in patient.nodes:
        asked = [await node.clock() for _ in range(ROUND_TRIPS)]
        name = f"redis {node.name}".strip()
        found += [_round_trip(name, asked), _clock(name, asked)]
    return found


async def _reached(client: AnyRedis, prefix: str) -> list[Node]:
    nodes = await nodes_of(client, prefix)
    for node in nodes:
        await node.clock()
    return nodes


def _round_trip(server: str, asked: Sequence[tuple[float, float]]) -> Finding:
    times = sorted(took for _, took in asked)
    median = statistics.median(times)
    says = f"{server}: {1000 * median:.2f} ms, at most {1000 * times[-1]:.2f} ms of {len(times)}"
    slow = median > (SLOW_REDIS_SECONDS if server.startswith("redis") else SLOW_POSTGRES_SECONDS)
    advice = "every step of a graph waits for it: run it in the same zone, and look whether it is busy"
    return Finding("round trip", "warning", says, advice) if slow else Finding("round trip", "ok", says)


def _clock(server: str, asked: Sequence[tuple[float, float]]) -> Finding:
    skew = min(asked, key=lambda one: one[1])[0]  # that of the fastest answer is the most exact
    says = f"{server}: {skew:+.3f} s from this machine's"
    if abs(skew) <= SKEW_SECONDS_MAX:
        return Finding("clock", "ok", says)
    advice = (
        "set clocks by NTP: ids of checkpoints are made of their process' clock, and the latest of a thread is "
        "the one with the highest"
    )
    return Finding("clock", "warning", says, advice)


async def _all(checks: Sequence[Check[P]], patient: P) -> list[Finding]:
    return [finding for check in checks for finding in await _one(check, patient)]


async def _one(check: Check[P], patient: P) -> list[Finding]:
    try:
        return await asyncio.wait_for(check(patient), CHECK_SECONDS_MAX)
    except UNREACHABLE as exc:
        name = check.__name__.replace("_", " ")
        return [Finding(name, "unknown", f"could not be looked at: {_line(exc)}", "see the findings above")]


def _line(error: BaseException) -> str:
    """Its first line, or its kind where it says nothing."""
    return (reason(error).strip() or type(error).__name__).splitlines()[0]


def _packages() -> Finding:
    found = [f"Python {'.'.join(map(str, sys.version_info[:3]))}"]
    for name in (*PACKAGES, "langgraph"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return Finding("packages", "ok", ", ".join(found))
