"""Connections to Postgres, taken from the upstream saver."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection, AsyncCursor, AsyncRawCursor
from psycopg.errors import ReadOnlySqlTransaction
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from langgraph_checkpoint_cached.stores.postgres.bulk_insert import numbered
from langgraph_checkpoint_cached.stores.postgres.errors import outcome_unknown

DRAIN_SECONDS_MIN = 1.0
"""Time between two replacements of all connections, should Postgres stay as it is."""


class Connections:
    """Connections of the upstream saver's pool, or its single connection.

    Over a pool, operations run side by side, each on a connection of its own. Over a single connection, or one in
    pipeline mode, they take turns under the upstream saver's lock, which anybody who uses that saver takes too.
    """

    def __init__(self, upstream: AsyncPostgresSaver) -> None:
        self.is_pooled = isinstance(upstream.conn, AsyncConnectionPool)
        self.upstream = without_lock(upstream) if self.is_pooled else upstream
        self._drained_at = -math.inf

    @asynccontextmanager
    async def cursor(self, *, pipeline: bool = False) -> AsyncIterator[AsyncCursor[DictRow]]:
        """Open a cursor of the upstream saver."""
        try:
            async with self.upstream._cursor(pipeline=pipeline) as cur:
                yield cur
        except psycopg.Error as exc:
            await self._replace_if_gone(exc)
            raise

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncCursor[DictRow]]:
        """Open a cursor in a transaction."""
        async with self.cursor() as cur, cur.connection.transaction():
            yield cur

    @asynccontextmanager
    async def implicit_transaction(self, *, statements: int) -> AsyncIterator[AsyncConnection[DictRow]]:
        """Take a connection on which so many statements are one transaction.

        A pipeline makes one of several statements. A single one is a transaction without, and costs less then.
        """
        pool = self.upstream.conn
        if statements > 1 or not isinstance(pool, AsyncConnectionPool):
            async with self.cursor(pipeline=statements > 1 or bool(self.upstream.pipe)) as cur:
                yield cur.connection
            return
        try:
            async with pool.connection() as conn:
                yield conn
        except psycopg.Error as exc:
            await self._replace_if_gone(exc)
            raise

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
        pool, now = self.upstream.conn, time.monotonic()
        if (
            isinstance(pool, AsyncConnectionPool)
            and (outcome_unknown(error) or isinstance(error, ReadOnlySqlTransaction))
            and now - self._drained_at > DRAIN_SECONDS_MIN
        ):
            self._drained_at = now
            await pool.drain()


def without_lock(upstream: AsyncPostgresSaver) -> AsyncPostgresSaver:
    """Copy the upstream saver without its lock, for use where no two operations share a connection."""
    unlocked = copy.copy(upstream)
    unlocked.lock = contextlib.nullcontext()  # type: ignore[assignment]
    return unlocked


async def execute(conn: AsyncConnection[DictRow], sql: str, parameters: Sequence[Any]) -> AsyncCursor[DictRow]:
    """Execute a statement on a cursor of its own, which knows the count of rows when a pipeline is over."""
    return await AsyncRawCursor(conn, row_factory=dict_row).execute(numbered(sql), parameters)
