"""Samples of what both servers and all savers do, for `tail`."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import DictRow
from redis.exceptions import RedisClusterException, RedisError

from langgraph_checkpoint_cached.cli.connections import ConnectionOptions
from langgraph_checkpoint_cached.cli.nodes import list_nodes
from langgraph_checkpoint_cached.cli.saver_counters import SaverCountersReader
from langgraph_checkpoint_cached.cli.server_counters import POSTGRES_SQL, RedisCounters
from langgraph_checkpoint_cached.stores.postgres.leases import TABLE as LEASES
from langgraph_checkpoint_cached.stores.postgres.stale_threads import TABLE as STALE_THREADS
from langgraph_checkpoint_cached.stores.redis.client import AnyRedis, reason

TABLE_SIZES = (
    (
        "stale_threads",
        STALE_THREADS,
        "select count(*) as many from checkpoint_cache_stale_threads where prefix = %s",
    ),
    ("leases", LEASES, "select count(*) as many from checkpoint_cache_leases where prefix = %s"),
)
RATES = (
    ("rows_per_second", "rows"),
    ("deleted_per_second", "deleted"),
    ("transactions_per_second", "transactions"),
)
SERVER_ERRORS = (psycopg.Error, RedisError, RedisClusterException, OSError, asyncio.TimeoutError)


@dataclass(frozen=True)
class Sample:
    """Numbers of one line. None if a server did not answer or has just begun to count, or no saver publishes."""

    time: str
    savers: int | None = None
    """Number of savers that publish their counters."""
    hits_per_second: float | None = None
    misses_per_second: float | None = None
    writes_per_second: float | None = None
    unflushed: int | None = None
    unflushed_bytes: int | None = None
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


class Sampler:
    """Ask both servers repeatedly, and compute what has changed in between."""

    def __init__(self, options: ConnectionOptions) -> None:
        self._options = options
        self._stack = AsyncExitStack()
        self._client: AnyRedis | None = None
        self._savers: SaverCountersReader | None = None
        self._conn: AsyncConnection[DictRow] | None = None
        self._redis: tuple[float, RedisCounters] | None = None
        self._postgres: tuple[float, DictRow] | None = None

    async def __aenter__(self) -> Sampler:
        self._client = self._options.make_redis_client()
        self._stack.push_async_callback(self._client.aclose)
        self._savers = SaverCountersReader(self._client, self._options.prefix)
        self._stack.push_async_callback(self._savers.close)
        self._stack.push_async_callback(self._disconnect)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def sample(self) -> Sample:
        """Return what happened since the last sample. A server that does not answer is an error in the sample."""
        timeout = self._options.timeout_seconds
        answers = await asyncio.gather(
            asyncio.wait_for(self._sample_redis(), timeout),
            asyncio.wait_for(self._sample_postgres(), 2 * timeout),
            return_exceptions=True,
        )
        numbers: dict[str, Any] = {"time": datetime.now(timezone.utc).isoformat(timespec="seconds")}
        for name, answer in zip(("redis", "postgres"), answers, strict=True):
            if isinstance(answer, SERVER_ERRORS):
                numbers[f"{name}_error"] = (reason(answer).strip() or type(answer).__name__).splitlines()[0]
                await self._forget(name)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                numbers |= answer
        return Sample(**numbers)

    async def _sample_redis(self) -> dict[str, Any]:
        if self._client is None or self._savers is None:
            raise RuntimeError("use it in an `async with` block")
        counters = await RedisCounters.read(await list_nodes(self._client, self._options.prefix))
        at = time.monotonic()
        numbers: dict[str, Any] = {"keys": counters.keys, "memory_bytes": counters.memory_bytes}
        if self._redis is not None:
            before_at, before = self._redis
            if counters.evicted >= before.evicted:  # not after a restart
                numbers["evicted_per_second"] = _rate(counters.evicted - before.evicted, at - before_at)
        self._redis = at, counters
        savers = await self._savers.read()
        numbers["savers"] = savers.savers
        if savers.savers:
            numbers |= {
                "hits_per_second": round(savers.hits_per_second, 1),
                "misses_per_second": round(savers.misses_per_second, 1),
                "writes_per_second": round(savers.writes_per_second, 1),
                "unflushed": savers.totals["unflushed"],
                "unflushed_bytes": savers.totals["unflushed_bytes"],
            }
        return numbers

    async def _sample_postgres(self) -> dict[str, Any]:
        if self._conn is None:
            self._conn = await self._options.connect_postgres()
        row = await _row(self._conn, POSTGRES_SQL)
        at = time.monotonic()
        numbers: dict[str, Any] = {"active": row["active"], "locked": row["locked"]}
        for name, table, sql in TABLE_SIZES:
            numbers[name] = await self._count(self._conn, table, sql)
        if self._postgres is not None:
            before_at, before = self._postgres
            for name, column in RATES:
                if row[column] is not None and before[column] is not None and row[column] >= before[column]:
                    numbers[name] = _rate(row[column] - before[column], at - before_at)
        self._postgres = at, row
        return numbers

    async def _count(self, conn: AsyncConnection[DictRow], table: str, sql: str) -> int | None:
        if (await _row(conn, "select to_regclass(%s) as t", table))["t"] is None:
            return None
        return int((await _row(conn, sql, self._options.prefix))["many"])

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
