"""Creation and migration of the upstream saver's tables and this package's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import psycopg
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from langgraph_checkpoint_cached.errors import UnsupportedServerError
from langgraph_checkpoint_cached.stores.postgres.leases import TABLE as LEASES
from langgraph_checkpoint_cached.stores.postgres.queries import query
from langgraph_checkpoint_cached.stores.postgres.stale_threads import TABLE as STALE_THREADS

POSTGRES_VERSION_MIN = 120_000
MIGRATION_LOCK = 7_211_945_316_402_881_113
"""Key of the advisory lock under which tables are migrated; drawn at random, once."""
LOCK_POLL_SECONDS = 0.1

CREATE_OWN_TABLES = (query("create_stale_threads"), query("create_leases"))
ARE_TABLES_THERE = query("are_tables_there")
UPSTREAM_VERSION = query("upstream_version")
TRY_TRANSACTION_LOCK = query("try_transaction_lock").format(key=MIGRATION_LOCK)
TRY_SESSION_LOCK = query("try_session_lock").format(key=MIGRATION_LOCK)
RELEASE_SESSION_LOCK = query("release_session_lock").format(key=MIGRATION_LOCK)


async def migrate(upstream: AsyncPostgresSaver, abandoned: asyncio.Event) -> bool:
    """Create what is missing of the upstream saver's tables and of ours, in one process at a time.

    Return whether anything was missing.

    Run it to its end, never cancel it: an index whose statement is cancelled half-way stays, invalid, and is taken
    for done the next time; and psycopg closes a single connection that is cancelled twice. Once `abandoned` is
    set, it does not wait for another process.

    Raises:
        UnsupportedServerError: Postgres is too old.
    """
    if await _is_migrated(upstream):
        return False
    async with _one_at_a_time(upstream, abandoned):
        if not await _is_migrated(upstream):
            await upstream.setup()
            async with upstream._cursor(pipeline=True) as cur:  # else one in pipeline mode would not commit it
                for statement in CREATE_OWN_TABLES:
                    await cur.execute(statement)
    return True


async def _is_migrated(upstream: AsyncPostgresSaver) -> bool:
    async with upstream._cursor() as cur:
        if (version := cur.connection.info.server_version) < POSTGRES_VERSION_MIN:
            raise UnsupportedServerError(
                f"PostgreSQL {version // 10_000} is too old: {POSTGRES_VERSION_MIN // 10_000} or later is needed"
            )
        await cur.execute(ARE_TABLES_THERE, {"tables": ["checkpoint_migrations", STALE_THREADS, LEASES]})
        if not all(row["is_there"] for row in await cur.fetchall()):
            return False
        await cur.execute(UPSTREAM_VERSION)
        row = await cur.fetchone()
        return row is not None and row["v"] is not None and row["v"] >= len(upstream.MIGRATIONS) - 1


@asynccontextmanager
async def _one_at_a_time(upstream: AsyncPostgresSaver, abandoned: asyncio.Event) -> AsyncIterator[None]:
    """Hold the advisory lock for the block.

    It is polled for, not waited for: a statement that waits has a snapshot, and the migrations' CREATE INDEX
    CONCURRENTLY waits for every older snapshot, so the two would wait for each other. Over a pool, a transaction
    of another connection holds the lock: behind PgBouncer a session's lock may never be released.
    """
    if isinstance(upstream.conn, AsyncConnectionPool):
        async with _second_connection(upstream.conn) as conn:
            while True:
                async with conn.transaction():
                    if await _try_lock(conn.cursor(), TRY_TRANSACTION_LOCK):
                        yield
                        return
                await _pause(abandoned)
    while True:
        async with upstream._cursor() as cur:
            if await _try_lock(cur, TRY_SESSION_LOCK):
                break
        await _pause(abandoned)
    try:
        yield
    finally:
        async with upstream._cursor(pipeline=True) as cur:
            await cur.execute(RELEASE_SESSION_LOCK)


async def _pause(abandoned: asyncio.Event) -> None:
    if abandoned.is_set():
        raise asyncio.CancelledError
    await asyncio.sleep(LOCK_POLL_SECONDS)


@asynccontextmanager
async def _second_connection(pool: AsyncConnectionPool[Any]) -> AsyncIterator[AsyncConnection[Any]]:
    """Open a connection beside the one that migrates, even if the pool has only one."""
    async with AsyncExitStack() as stack:
        if pool.max_size == 1:
            like_it = AsyncConnectionPool(pool.conninfo, kwargs=pool.kwargs, min_size=1, max_size=1, open=False)
            pool = await stack.enter_async_context(like_it)
        yield await stack.enter_async_context(pool.connection())


async def _try_lock(cur: psycopg.AsyncCursor[Any], sql: str) -> bool:
    await cur.execute(sql, prepare=False)
    row = await cur.fetchone()
    return bool(row["locked"] if isinstance(row, dict) else row[0])  # type: ignore[index]
