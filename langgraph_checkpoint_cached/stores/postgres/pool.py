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

Pool = AsyncConnectionPool[AsyncConnection[DictRow]]

CHECK_AFTER_IDLE_SECONDS = 5.0
"""A connection that was checked or used less than this ago is handed out as it is."""
RECONNECT_SECONDS = 5.0
"""After which a pool that has lost Postgres begins anew to try: within it the pauses between attempts double."""
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
    """Opens the pool for the block, and closes both after it. Redis is connected to when it is first used."""
    try:
        await pool.open(wait=True, timeout=pool.timeout)
        yield
    finally:
        try:
            await client.aclose()
        finally:
            await pool.close()


async def _prepare_unless_pooled(conn: AsyncConnection[Any]) -> None:
    """Turns prepared statements off where a pooler may run each transaction on another server connection.

    A pooler answers the connection itself, with a process id that is not the server's.
    """
    row = await (await conn.execute("select pg_backend_pid() as pid", prepare=False)).fetchone()
    if row["pid"] != conn.info.backend_pid:  # type: ignore[index]
        conn.prepare_threshold = None


class _PoolCallbacks:
    """What the pool's connections need when they are new, and before they are used.

    The check is left out for those that were used a moment ago: on a busy pool it would be a round trip for each
    operation. Where one is found dead, all are replaced, for they mostly die together, and the pool pauses for
    longer and longer after each one that it finds.

    Nor does the pool pause for longer and longer between attempts to connect: it would come back after an outage
    when that time has passed once more.
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
        """The pool has given up: asking for a connection has it try again."""
        with contextlib.suppress(psycopg.Error):  # as a rule there is none in so short a time
            async with pool.connection(NUDGE_SECONDS):
                pass
