"""Creation and migration of the upstream saver's tables and this package's own."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import psycopg
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from langgraph_checkpoint_cached.stores.postgres.leases import TABLE as LEASES
from langgraph_checkpoint_cached.stores.postgres.pool import BACKEND_PID
from langgraph_checkpoint_cached.stores.postgres.processes import TABLE as PROCESSES
from langgraph_checkpoint_cached.stores.postgres.queries import query
from langgraph_checkpoint_cached.stores.postgres.server_check import check_postgres
from langgraph_checkpoint_cached.stores.postgres.stale_threads import TABLE as STALE_THREADS

logger = logging.getLogger("langgraph_checkpoint_cached")

MIGRATION_LOCK = 7_211_945_316_402_881_113
"""Key of the advisory lock under which tables are migrated; drawn at random, once."""
LOCK_POLL_SECONDS = 0.1
SECOND_CONNECTION_SECONDS_MAX = 5.0
"""Longest wait for a second connection behind a pooler, to which it may allow one alone."""

OWN_TABLES = (STALE_THREADS, LEASES, PROCESSES)
CREATE_OWN_TABLES = (query("create_stale_threads"), query("create_leases"), query("create_processes"))
ARE_TABLES_THERE = query("are_tables_there")
UPSTREAM_VERSION = query("upstream_version")
TRY_TRANSACTION_LOCK = query("try_transaction_lock").format(key=MIGRATION_LOCK)
TRY_SESSION_LOCK = query("try_session_lock").format(key=MIGRATION_LOCK)
RELEASE_SESSION_LOCK = query("release_session_lock").format(key=MIGRATION_LOCK)


async def migrate(upstream: AsyncPostgresSaver, abandoned: asyncio.Event) -> bool:
    """Create what is missing of the upstream saver's tables and of ours, in one process at a time.

    Return whether anything was missing. One connection is enough, except behind a pooler in transaction mode.

    Run it to its end, never cancel it: an index whose statement is cancelled half-way stays, invalid, and is taken
    for done the next time; and psycopg closes a single connection that is cancelled twice. Once `abandoned` is
    set, it does not wait for another process.

    Raises:
        UnsupportedServerError: the tables would be of no use with this server, pooler or connection.
    """
    async with _on_one_connection(upstream) as single:
        async with single._cursor() as cur:
            await check_postgres(cur.connection, in_pipeline=bool(single.pipe))
        if await _is_migrated(single):
            return False
        async with _lock_holder(upstream, single) as holder:
            while not await _is_migrated(single):
                async with _locked(single, holder) as is_locked:
                    if is_locked and not await _is_migrated(single):
                        await _create_tables(single)
                        return True
                if abandoned.is_set():
                    raise asyncio.CancelledError
                await asyncio.sleep(LOCK_POLL_SECONDS)
    return True


@asynccontextmanager
async def _on_one_connection(upstream: AsyncPostgresSaver) -> AsyncIterator[AsyncPostgresSaver]:
    """Yield the upstream saver on one connection of its pool, or on the only one that it has."""
    if isinstance(upstream.conn, AsyncConnectionPool):
        async with upstream.conn.connection() as conn:
            single = copy.copy(upstream)
            single.conn = conn
            yield single
    else:
        yield upstream


async def _create_tables(upstream: AsyncPostgresSaver) -> None:
    await upstream.setup()
    async with upstream._cursor(pipeline=True) as cur:  # else one in pipeline mode would not commit it
        for statement in CREATE_OWN_TABLES:
            await cur.execute(statement)


async def _is_migrated(upstream: AsyncPostgresSaver) -> bool:
    async with upstream._cursor() as cur:
        await cur.execute(ARE_TABLES_THERE, {"tables": ["checkpoint_migrations", *OWN_TABLES]})
        if not all(row["is_there"] for row in await cur.fetchall()):
            return False
        await cur.execute(UPSTREAM_VERSION)
        row = await cur.fetchone()
        return row is not None and row["v"] is not None and row["v"] >= len(upstream.MIGRATIONS) - 1


@asynccontextmanager
async def _lock_holder(
    upstream: AsyncPostgresSaver, single: AsyncPostgresSaver
) -> AsyncIterator[AsyncConnection[Any] | None]:
    """Yield a second connection whose transaction is to hold the lock, None where the session of the first may.

    Behind PgBouncer in transaction mode a session's lock may never be released. In session mode there may be no
    second connection to be had, but none is needed.
    """
    if not isinstance(upstream.conn, AsyncConnectionPool) or await _is_direct(single):
        yield None
        return
    async with AsyncExitStack() as stack:
        try:
            holder = await stack.enter_async_context(_second_connection(upstream.conn))
        except psycopg.OperationalError as exc:
            logger.info("setup() takes the pooler to be in session mode, for lack of a second connection: %s", exc)
            holder = None
        yield holder


async def _is_direct(upstream: AsyncPostgresSaver) -> bool:
    async with upstream._cursor() as cur:
        await cur.execute(BACKEND_PID, prepare=False)
        row = await cur.fetchone()
        return row is not None and row["pid"] == cur.connection.info.backend_pid


@asynccontextmanager
async def _second_connection(pool: AsyncConnectionPool[Any]) -> AsyncIterator[AsyncConnection[Any]]:
    """Open a connection beside the one that migrates, even if the pool has only one."""
    async with AsyncExitStack() as stack:
        if pool.max_size == 1:
            like_it = AsyncConnectionPool(pool.conninfo, kwargs=pool.kwargs, min_size=1, max_size=1, open=False)
            pool = await stack.enter_async_context(like_it)
        yield await stack.enter_async_context(pool.connection(SECOND_CONNECTION_SECONDS_MAX))


@asynccontextmanager
async def _locked(upstream: AsyncPostgresSaver, holder: AsyncConnection[Any] | None) -> AsyncIterator[bool]:
    """Try to hold the advisory lock for the block, and yield whether it is held.

    It is polled for, not waited for: a statement that waits has a snapshot, and the migrations' CREATE INDEX
    CONCURRENTLY waits for every older snapshot, so the two would wait for each other.
    """
    if holder is not None:
        async with holder.transaction():
            yield await _try_lock(holder.cursor(), TRY_TRANSACTION_LOCK)
        return
    async with upstream._cursor() as cur:
        is_locked = await _try_lock(cur, TRY_SESSION_LOCK)
    try:
        yield is_locked
    finally:
        if is_locked:
            async with upstream._cursor(pipeline=True) as cur:
                await cur.execute(RELEASE_SESSION_LOCK)


async def _try_lock(cur: psycopg.AsyncCursor[Any], sql: str) -> bool:
    await cur.execute(sql, prepare=False)
    row = await cur.fetchone()
    return bool(row["locked"] if isinstance(row, dict) else row[0])  # type: ignore[index]
