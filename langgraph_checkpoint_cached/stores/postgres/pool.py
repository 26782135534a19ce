"""Connection pool for Postgres, made from a connection string."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from langgraph_checkpoint_cached.stores.postgres.queries import query

BACKEND_PID = query("backend_pid")
Pool = AsyncConnectionPool[AsyncConnection[DictRow]]

CHECK_AFTER_IDLE_SECONDS = 5.0
"""A connection that was checked or used less than this ago is handed out without a check."""
RECONNECT_SECONDS = 5.0
"""Time after which a pool that has lost Postgres starts over: until then the pauses between attempts double."""
NUDGE_SECONDS = 0.01


class Closable(Protocol):
    """Client with an asynchronous `aclose`."""

    async def aclose(self) -> None:
        """Close the client's connections."""


def postgres_pool(
    uri: str,
    *,
    min_size: int,
    max_size: int,
    timeout_seconds: float,
    max_idle_seconds: float,
    max_lifetime_seconds: float,
) -> Pool:
    """Return a pool, not yet open, whose connections are set up as the upstream saver needs them.

    Args:
        uri: From `check_postgres_uri`: errors of the pool repeat parts of others, passwords too.
    """
    care = _PoolCallbacks()
    care.pool = AsyncConnectionPool(
        uri,
        open=False,
        min_size=min_size,
        max_size=max_size,
        timeout=timeout_seconds,
        max_idle=max_idle_seconds,
        max_lifetime=max_lifetime_seconds,
        configure=care.configure,
        check=care.check,
        reconnect_timeout=RECONNECT_SECONDS,
        reconnect_failed=care.reconnect,
        kwargs={"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row},
    )
    return care.pool


@asynccontextmanager
async def opened(pool: Pool, client: Closable) -> AsyncIterator[None]:
    """Open the pool for the block, and close both after it. The client connects when it is first used."""
    try:
        await pool.open(wait=True, timeout=pool.timeout)
        yield
    finally:
        try:
            await client.aclose()
        finally:
            await pool.close()


async def _prepare_unless_pooled(conn: AsyncConnection[Any]) -> None:
    """Turn prepared statements off where a pooler may run each transaction on another server connection.

    A pooler answers the connection itself, with a process id that is not the server's.
    """
    row = await (await conn.execute(BACKEND_PID, prepare=False)).fetchone()
    if row["pid"] != conn.info.backend_pid:  # type: ignore[index]
        conn.prepare_threshold = None


class _PoolCallbacks:
    """Callbacks of the pool for new connections, and for connections before they are used.

    A connection that was used a moment ago is not checked: on a busy pool that would be a round trip for each
    operation. When one is found dead, all are replaced: they mostly die together, and the pool pauses longer after
    each dead one that it finds.

    The pauses between attempts to connect do not grow beyond `RECONNECT_SECONDS` either: otherwise an outage would
    last twice as long for the pool as it does for Postgres.
    """

    pool: Pool

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[AsyncConnection[Any], float] = WeakKeyDictionary()

    async def configure(self, conn: AsyncConnection[Any]) -> None:
        await _prepare_unless_pooled(conn)
        self._seen[conn] = time.monotonic()

    async def check(self, conn: AsyncConnection[Any]) -> None:
        now = time.monotonic()
        if now - self._seen.get(conn, 0.0) > CHECK_AFTER_IDLE_SECONDS:
            try:
                await AsyncConnectionPool.check_connection(conn)
            except psycopg.Error:
                await self.pool.drain()
                raise
        self._seen[conn] = now

    async def reconnect(self, pool: Pool) -> None:
        """Ask for a connection after the pool has stopped trying to connect, so that it tries again."""
        with contextlib.suppress(psycopg.Error):  # as a rule there is none in so short a time
            async with pool.connection(NUDGE_SECONDS):
                pass
