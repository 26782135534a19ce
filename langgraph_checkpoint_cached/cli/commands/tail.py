"""The command `tail`: what happens now, a line every second."""

from __future__ import annotations

import argparse
import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import DictRow
from redis.exceptions import RedisClusterException, RedisError

from langgraph_checkpoint_cached.cli.connections import Servers
from langgraph_checkpoint_cached.cli.counters import POSTGRES_SQL, RedisCounts, reads_between
from langgraph_checkpoint_cached.cli.nodes import nodes_of
from langgraph_checkpoint_cached.cli.output import Output, size
from langgraph_checkpoint_cached.errors import ArgumentError
from langgraph_checkpoint_cached.stores.postgres.leases import TABLE as LEASES
from langgraph_checkpoint_cached.stores.postgres.stale_threads import TABLE as STALE_THREADS
from langgraph_checkpoint_cached.stores.redis.client import AnyRedis, reason

NAME = "tail"
HELP = "what happens now, a line every second"
DESCRIPTION = """\
Show what all savers on these servers do, a line every second: reads served from Redis and not, rows written,
and how many share a transaction, stale threads, and leases: threads that somebody may be ahead of Postgres on.
Until Ctrl-C, or for --seconds.

Both servers count this by themselves; it costs each one question a second. What is told of reads comes from
the commands that Redis has run: about right, where nobody else uses that Redis. Postgres counts up to a
second late, and for the whole database. Each process' own numbers are in its saver.stats().
"""
HEADER_EVERY_LINES = 20
COUNTS = (
    (
        "stale_threads",
        STALE_THREADS,
        "select count(*) as many from checkpoint_cache_stale_threads where prefix = %s",
    ),
    ("leases", LEASES, "select count(*) as many from checkpoint_cache_leases where prefix = %s"),
)
EVERY_SECONDS_MIN, EVERY_SECONDS_MAX = 0.1, 3600.0
COLUMNS = (
    ("time", 8),
    ("hits/s", 8),
    ("misses/s", 9),
    ("hit %", 6),
    ("rows/s", 8),
    ("tx/s", 7),
    ("rows/tx", 8),
    ("active", 7),
    ("locked", 7),
    ("stale_threads", 9),
    ("leases", 7),
    ("keys", 10),
    ("memory", 10),
    ("evicted/s", 10),
)


@dataclass(frozen=True)
class Moment:
    """The numbers of one line. None where a server did not answer, or has just begun to count."""

    time: str
    hits_per_second: float | None = None
    misses_per_second: float | None = None
    evicted_per_second: float | None = None
    keys: int | None = None
    memory_bytes: int | None = None
    rows_per_second: float | None = None
    deleted_per_second: float | None = None
    transactions_per_second: float | None = None
    active: int | None = None
    locked: int | None = None
    stale_threads: int | None = None
    leases: int | None = None
    redis_error: str | None = None
    postgres_error: str | None = None


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its own arguments."""
    parser.add_argument("--seconds", metavar="N", type=float, help="stop after so many")
    parser.add_argument(
        "--every", metavar="SECONDS", type=float, default=1.0, help="between two lines (default: 1)"
    )


async def run(options: argparse.Namespace, out: Output) -> int:
    """Returns 1 if a server did not answer the last time."""
    if not EVERY_SECONDS_MIN <= options.every <= EVERY_SECONDS_MAX:
        raise ArgumentError(f"--every takes {EVERY_SECONDS_MIN} to {EVERY_SECONDS_MAX} seconds")
    if options.seconds is not None and not options.seconds > 0:
        raise ArgumentError("--seconds takes a number above 0")
    servers = Servers.of(options)
    started, number = time.monotonic(), 0
    async with Watch(servers) as watch:
        await watch.look()
        while True:
            number += 1
            await asyncio.sleep(max(0.0, started + number * options.every - time.monotonic()))
            moment = await watch.look()
            header = [_header()] if (number - 1) % HEADER_EVERY_LINES == 0 else []
            out.report(asdict(moment), [*header, _line(moment)])
            if options.seconds is not None and time.monotonic() - started >= options.seconds - options.every / 2:
                return 1 if moment.redis_error or moment.postgres_error else 0


class Watch:
    """Looks at both servers again and again, and at what has changed."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._stack = AsyncExitStack()
        self._client: AnyRedis | None = None
        self._conn: AsyncConnection[DictRow] | None = None
        self._redis: tuple[float, RedisCounts, int] | None = None
        self._postgres: tuple[float, DictRow] | None = None

    async def __aenter__(self) -> Watch:
        self._client = self._servers.redis()
        self._stack.push_async_callback(self._client.aclose)
        self._stack.push_async_callback(self._disconnect)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def look(self) -> Moment:
        """What happened since the last look. Never raises for a server that does not answer."""
        patience = self._servers.timeout_seconds
        answers = await asyncio.gather(
            asyncio.wait_for(self._look_at_redis(), patience),
            asyncio.wait_for(self._look_at_postgres(), 2 * patience),
            return_exceptions=True,
        )
        numbers: dict[str, Any] = {"time": datetime.now(timezone.utc).isoformat(timespec="seconds")}
        expected = (psycopg.Error, RedisError, RedisClusterException, OSError, asyncio.TimeoutError)
        for name, answer in zip(("redis", "postgres"), answers, strict=True):
            if isinstance(answer, expected):
                numbers[f"{name}_error"] = (reason(answer).strip() or type(answer).__name__).splitlines()[0]
                await self._forget(name)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                numbers |= answer
        return Moment(**numbers)

    async def _look_at_redis(self) -> dict[str, Any]:
        assert self._client is not None  # noqa: S101 - inside the context
        nodes = await nodes_of(self._client, self._servers.prefix)
        counts, at = await RedisCounts.read(nodes), time.monotonic()
        numbers: dict[str, Any] = {"keys": counts.keys, "memory_bytes": counts.memory_bytes}
        if self._redis is not None:
            before_at, before, scripts = self._redis
            reads = reads_between(before, counts, scripts)
            if reads is not None:
                numbers["hits_per_second"] = _rate(reads.hits, at - before_at)
                numbers["misses_per_second"] = _rate(reads.misses, at - before_at)
                numbers["evicted_per_second"] = _rate(counts.evicted - before.evicted, at - before_at)
        self._redis = at, counts, len(nodes)
        return numbers

    async def _look_at_postgres(self) -> dict[str, Any]:
        if self._conn is None:
            self._conn = await self._servers.postgres()
        row = await _row(self._conn, POSTGRES_SQL)
        at = time.monotonic()
        numbers: dict[str, Any] = {"active": row["active"], "locked": row["locked"]}
        for name, table, sql in COUNTS:
            numbers[name] = await self._count(self._conn, table, sql)
        if self._postgres is not None:
            before_at, before = self._postgres
            for name, column in (
                ("rows_per_second", "rows"),
                ("deleted_per_second", "deleted"),
                ("transactions_per_second", "transactions"),
            ):
                if row[column] is not None and before[column] is not None and row[column] >= before[column]:
                    numbers[name] = _rate(row[column] - before[column], at - before_at)
        self._postgres = at, row
        return numbers

    async def _count(self, conn: AsyncConnection[DictRow], table: str, sql: str) -> int | None:
        if (await _row(conn, "select to_regclass(%s) as t", table))["t"] is None:
            return None
        return int((await _row(conn, sql, self._servers.prefix))["many"])

    async def _forget(self, name: str) -> None:
        if name == "redis":
            self._redis = None
        else:
            self._postgres = None
            await self._disconnect()

    async def _disconnect(self) -> None:
        if self._conn is not None:
            await self._conn.close()
            self._conn = None


async def _row(conn: AsyncConnection[DictRow], sql: str, *parameters: Any) -> DictRow:
    row = await (await conn.execute(sql, parameters)).fetchone()
    return row or {}


def _rate(count: int, seconds: float) -> float:
    return round(max(0, count) / seconds, 1)


def _header() -> str:
    return " ".join(name.rjust(width) for name, width in COLUMNS)


def _line(moment: Moment) -> str:
    hits, misses = moment.hits_per_second, moment.misses_per_second
    share = None if not hits and not misses else 100 * (hits or 0) / ((hits or 0) + (misses or 0))
    rows, transactions = moment.rows_per_second, moment.transactions_per_second
    together = rows / transactions if rows is not None and transactions else None
    values: list[object] = [moment.time[11:19], *map(_number, (hits, misses, share, rows, transactions))]
    values += ["-" if together is None else f"{together:.1f}", moment.active, moment.locked, moment.stale_threads]
    values += [moment.leases, moment.keys, size(moment.memory_bytes), _number(moment.evicted_per_second)]
    cells = ("-" if value is None else str(value) for value in values)
    line = " ".join(cell.rjust(width) for cell, (_, width) in zip(cells, COLUMNS, strict=True))
    errors = [("Redis", moment.redis_error), ("Postgres", moment.postgres_error)]
    return line + "".join(f"  {name}: {error}" for name, error in errors if error)


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}"
