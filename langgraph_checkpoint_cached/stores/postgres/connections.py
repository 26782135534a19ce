"""Connections to Postgres, taken from the upstream saver."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import math
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import cast

import psycopg
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection, AsyncCursor, AsyncRawCursor
from psycopg.errors import ReadOnlySqlTransaction
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from langgraph_checkpoint_cached.errors import ClosedError
from langgraph_checkpoint_cached.stores.postgres import time_limit
from langgraph_checkpoint_cached.stores.postgres.errors import outcome_unknown
from langgraph_checkpoint_cached.stores.postgres.pool import CheckedPool, Pool
from langgraph_checkpoint_cached.stores.postgres.queries import query
from langgraph_checkpoint_cached.stores.postgres.time_limit import TimeLimit
from langgraph_checkpoint_cached.utils.timeout import timeout

CLOSED = "the saver was closed while this waited for Postgres: nothing was read or written"
ONE_SNAPSHOT = query("one_snapshot")
raw_cursor = partial(AsyncRawCursor, row_factory=dict_row)
"""Cursor for one `numbered` statement, which knows the count of rows when a pipeline is over."""
DRAIN_SECONDS_MIN = 1.0
"""Time between two replacements of all connections, should Postgres stay as it is."""


class Connections:
    """Connections of the upstream saver's pool, or its single connection.

    Over a pool, operations run side by side, each on a connection of its own. Over a single connection, or one in
    pipeline mode, they take turns under the upstream saver's lock, which anybody who uses that saver takes too.
    Every operation has a time limit, after which its connection is closed.

    Args:
        upstream: The upstream saver.
    """

    def __init__(self, upstream: AsyncPostgresSaver) -> None:
        self._original = upstream
        self._pool = upstream.conn if isinstance(upstream.conn, AsyncConnectionPool) else None
        self.is_pooled = self._pool is not None
        self.upstream = self.upstream_on(_Lender(self))
        """The upstream saver, each of whose methods takes a connection from here, for a long operation."""
        self._in_use: set[TimeLimit] = self._pool.in_use if isinstance(self._pool, CheckedPool) else set()
        self._drained_at = -math.inf
        self.is_closed = False

    @asynccontextmanager
    async def cursor(
        self, *, pipeline: bool = False, seconds: float | None = None
    ) -> AsyncIterator[AsyncCursor[DictRow]]:
        """Open a cursor as the upstream saver does.

        Args:
            pipeline: Whether the block's statements are sent together, as one transaction.
            seconds: Longest time of the block, by default `OPERATION_SECONDS_MAX`.
        """
        async with self.connection(seconds) as conn, self.upstream_on(conn)._cursor(pipeline=pipeline) as cur:
            yield cur

    @asynccontextmanager
    async def transaction(
        self, *, seconds: float | None = None, one_snapshot: bool = False
    ) -> AsyncIterator[AsyncCursor[DictRow]]:
        """Open a cursor in a transaction, all of which reads one snapshot if that is set."""
        async with self.cursor(seconds=seconds) as cur:
            if one_snapshot and self.upstream.pipe:
                await self.upstream.pipe.sync()  # otherwise the transaction includes what ran since the last one
            async with cur.connection.transaction():
                if one_snapshot:
                    await cur.execute(ONE_SNAPSHOT)
                yield cur

    @asynccontextmanager
    async def together(self, *, statements: int) -> AsyncIterator[AsyncConnection[DictRow]]:
        """Take a connection on which so many statements are one transaction, in a pipeline if they are several."""
        async with self.cursor(pipeline=statements > 1 or bool(self.upstream.pipe)) as cur:
            yield cur.connection

    def upstream_on(self, conn: AsyncConnection[DictRow] | Pool) -> AsyncPostgresSaver:
        """Return the upstream saver on a connection that was taken here, without its lock."""
        unlocked = copy.copy(self._original)
        unlocked.conn = conn
        unlocked.lock = contextlib.nullcontext()  # type: ignore[assignment]
        return unlocked

    def close(self) -> None:
        """End what is under way as if its time were over, and refuse everything else."""
        self.is_closed = True
        for limit in self._in_use:
            limit.expire()

    @asynccontextmanager
    async def connection(self, seconds: float | None) -> AsyncIterator[AsyncConnection[DictRow]]:
        """Take a connection for so long at most, by default for `OPERATION_SECONDS_MAX`."""
        if self.is_closed:
            raise ClosedError(CLOSED)
        pool, limit = self._pool, None
        seconds_max = seconds or time_limit.OPERATION_SECONDS_MAX
        try:
            if pool is None:
                async with self._original.lock:
                    if self.is_closed:
                        raise ClosedError(CLOSED)
                    conn = cast("AsyncConnection[DictRow]", self._original.conn)
                    limit = TimeLimit(conn, seconds_max, self._in_use)
                    try:
                        yield conn
                    finally:
                        limit.stop()
                return
            wait_seconds = pool.timeout if seconds is None else min(pool.timeout, seconds)
            if isinstance(pool, CheckedPool):
                conn = await pool.getconn(wait_seconds)
            else:
                conn = await _take_unchecked(pool, wait_seconds)
            try:
                if self.is_closed:
                    raise ClosedError(CLOSED)
                limit = TimeLimit(conn, seconds_max, self._in_use)
                async with conn:
                    yield conn
            finally:
                if limit is not None:
                    limit.stop()
                await pool.putconn(conn)
        except psycopg.Error as exc:
            error = limit.error() if limit is not None and limit.is_over else exc
            await self._replace_if_gone(error)
            if error is exc:
                raise
            raise error from exc

    @asynccontextmanager
    async def pipeline(self, conn: AsyncConnection[DictRow]) -> AsyncIterator[None]:
        """Send the block's statements together, where that is supported."""
        if self.upstream.supports_pipeline and not self.upstream.pipe:
            async with conn.pipeline():
                yield
        else:
            yield

    async def _replace_if_gone(self, error: psycopg.Error) -> None:
        """Replace all connections of the pool when Postgres turns out to be gone, or a standby now.

        They mostly are in the same state, and each would cost a caller an error.
        """
        now = time.monotonic()
        if (
            self._pool is not None
            and (outcome_unknown(error) or isinstance(error, ReadOnlySqlTransaction))
            and now - self._drained_at > DRAIN_SECONDS_MIN
        ):
            self._drained_at = now
            await self._pool.drain()


class _Lender(Pool):
    """Pool, as far as the upstream saver can see, that lends a connection for a long operation."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections  # and nothing else: it has no connections of its own

    def connection(  # type: ignore[override]
        self, timeout: float | None = None
    ) -> AbstractAsyncContextManager[AsyncConnection[DictRow]]:
        """Take a connection."""
        return self._connections.connection(time_limit.LONG_OPERATION_SECONDS_MAX)


async def _take_unchecked(pool: Pool, wait_seconds: float) -> AsyncConnection[DictRow]:
    """Take a connection from a pool of the caller's, which may check it without a time limit."""
    seconds_max = wait_seconds + time_limit.CHECK_SECONDS_MAX
    try:
        async with timeout(seconds_max):
            return await pool.getconn(wait_seconds)
    except asyncio.TimeoutError as exc:
        raise PoolTimeout(
            f"no connection passed the pool's check within {seconds_max:.3g} seconds: Postgres does not answer"
        ) from exc
