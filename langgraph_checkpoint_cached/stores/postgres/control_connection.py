"""Connection to Postgres of this package's own, beside those that the application uses."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import psycopg
from psycopg import AsyncConnection, AsyncCursor, Notify
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolClosed

from langgraph_checkpoint_cached.stores.postgres.own_table import SET_LOCK_TIMEOUT, Cursors
from langgraph_checkpoint_cached.stores.postgres.pool import BACKEND_PID
from langgraph_checkpoint_cached.stores.postgres.queries import query
from langgraph_checkpoint_cached.stores.postgres.time_limit import shut_down
from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks
from langgraph_checkpoint_cached.utils.forks import cut_off, notify_in_children
from langgraph_checkpoint_cached.utils.timeout import timeout

LOCK_SECONDS_MAX = 0.5
"""Longest wait of a statement for a lock. Postgres must end it: it does not notice that nobody waits any more."""
SET_SESSION_LOCK_TIMEOUT = query("set_session_lock_timeout")
CONNECT_SECONDS_MAX = 0.5
RECONNECT_SECONDS = 10.0
"""Time between two attempts to connect while that fails."""
FALLBACK_SECONDS_MAX = 5.0
"""Longest time of a statement on a connection of the upstream saver, which nobody waits for any more."""
STATEMENT_SECONDS_MAX = 1.0
"""Longest wait for one statement. After it the connection is replaced."""


logger = logging.getLogger("langgraph_checkpoint_cached")

Source: TypeAlias = "AsyncConnectionPool[AsyncConnection[DictRow]] | AsyncConnection[DictRow]"


class ControlConnection:
    """Connection for short statements that must not wait for the application's use of its pool.

    It is made from the settings of the upstream saver's, at the first statement. While that cannot be done, as
    where Postgres has no more connections to give, statements take one of the upstream saver's. They run one after
    the other, and each is waited for `STATEMENT_SECONDS_MAX`.

    Args:
        source: Pool or connection of the upstream saver.
        cursor: Opens a cursor on one of those.
        loop: Event loop.
    """

    def __init__(self, source: Source, cursor: Cursors, loop: asyncio.AbstractEventLoop) -> None:
        self._source, self._cursor, self._loop = source, cursor, loop
        self._connect_at = -math.inf
        self._held: _Held | None = None
        self._turn, self._tasks = asyncio.Lock(), BackgroundTasks()
        self._running: asyncio.Task[list[DictRow]] | None = None
        notify_in_children(self)

    def after_fork(self) -> None:
        """Keep a child from using its parent's connection."""
        if self._held is not None and not self._held.conn.closed:
            cut_off([self._held.conn.fileno()])

    async def execute(self, sql: str, parameters: Mapping[str, Any]) -> list[DictRow]:
        """Return the rows of a statement, if it has any. It is a transaction.

        Raises:
            psycopg.Error: Postgres cannot be reached, refused the statement, or took too long.
        """
        async with self._turn:
            if self._running is not None and not self._running.done():
                raise psycopg.OperationalError("an earlier statement has not ended yet")
            running = self._running = self._tasks.start(self._execute(sql, parameters))
            try:
                await asyncio.wait({running}, timeout=STATEMENT_SECONDS_MAX)
            finally:
                if not running.done() and self._held is not None:
                    shut_down(self._held.conn)  # its reply must not meet another statement
            if not running.done():
                raise psycopg.OperationalError(f"no answer in {STATEMENT_SECONDS_MAX:g} seconds")
            return running.result()

    async def listen(self, channel: str, on_notified: Callable[[], None]) -> None:
        """Have a function called when somebody notifies a channel, until the connection is lost.

        Nothing is done where a pooler is in between, or somebody listens.
        """
        held = self._held
        if held is not None and held.on_notified is None and held.is_direct:
            held.listen(on_notified)
            await self.execute(f'listen "{channel}"', {})

    async def close(self) -> None:
        """Close the connection; the next statement opens another."""
        async with self._turn:
            if self._running is not None and not self._running.done():
                self._tasks.cancel(self._running)
                await asyncio.wait({self._running}, timeout=STATEMENT_SECONDS_MAX)
            self._drop()

    async def _execute(self, sql: str, parameters: Mapping[str, Any]) -> list[DictRow]:
        if self._source.closed:
            self._drop()
            raise PoolClosed("the pool, or the connection, is closed")
        if self._held is not None and self._held.conn.closed:
            self._drop()
        held = self._held = self._held or await self._try_to_connect()
        if held is None:
            async with self._cursor(pipeline=True, seconds=FALLBACK_SECONDS_MAX) as cur:
                await cur.connection.execute(SET_LOCK_TIMEOUT, {"ms": 1000 * LOCK_SECONDS_MAX})
                return await _rows(cur, sql, parameters)
        held.stop_reading()
        try:
            async with held.conn.cursor(row_factory=dict_row) as cur:
                if held.is_direct:
                    return await _rows(cur, sql, parameters)
                async with held.conn.transaction():
                    await cur.execute(SET_LOCK_TIMEOUT, {"ms": 1000 * LOCK_SECONDS_MAX})
                    return await _rows(cur, sql, parameters)
        finally:
            held.start_reading()

    async def _try_to_connect(self) -> _Held | None:
        """Connect, unless that has failed a moment ago."""
        if self._loop.time() < self._connect_at:
            return None
        try:
            async with timeout(CONNECT_SECONDS_MAX):
                return await self._connect()
        except (psycopg.Error, asyncio.TimeoutError) as exc:
            self._connect_at = self._loop.time() + RECONNECT_SECONDS
            logger.debug("no connection of its own for heartbeats: %s", exc)
            return None

    async def _connect(self) -> _Held:
        """Return a connection with the settings of the pool, or of the single connection."""
        settings: dict[str, Any] = {"autocommit": True, "prepare_threshold": None, "row_factory": dict_row}
        source, configure = self._source, None
        if isinstance(source, AsyncConnectionPool):
            settings = {**(await _resolve(source.kwargs) or {}), **settings}
            conninfo = await _resolve(source.conninfo) or ""
            conn = await source.connection_class.connect(conninfo, **settings)
            configure = getattr(source, "_configure", None)  # it may set a schema, or a role
        else:
            conn = await AsyncConnection.connect(
                source.info.dsn, password=source.info.password or None, **settings
            )
        try:
            if configure is not None:
                await configure(conn)
            row: Any = await (await conn.execute(BACKEND_PID)).fetchone()
            held = _Held(conn, self._loop, is_direct=row["pid"] == conn.info.backend_pid)
            if held.is_direct:
                await conn.execute(SET_SESSION_LOCK_TIMEOUT, {"ms": 1000 * LOCK_SECONDS_MAX})
        except BaseException:
            conn.pgconn.finish()
            raise
        weakref.finalize(self, held.close)
        return held

    def _drop(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None


@dataclass(eq=False)
class _Held:
    """Open connection. While no statement runs, the event loop watches it: what comes then is a notification."""

    conn: AsyncConnection[Any]
    loop: asyncio.AbstractEventLoop
    is_direct: bool
    """False if a pooler may run each transaction on another connection of the server."""
    on_notified: Callable[[], None] | None = None
    is_readable: bool = False
    """True if a notification is known of that the next statement takes off the connection."""

    def listen(self, on_notified: Callable[[], None]) -> None:
        self.on_notified = on_notified
        self.conn.add_notify_handler(self._on_notification)

    def start_reading(self) -> None:
        if self.on_notified is not None and not self.conn.closed:
            self.loop.add_reader(self.conn.fileno(), self._on_readable)

    def stop_reading(self) -> None:
        if self.on_notified is not None and not self.conn.closed and not self.loop.is_closed():
            self.loop.remove_reader(self.conn.fileno())

    def _on_readable(self) -> None:
        self.stop_reading()
        self.is_readable = True
        if self.on_notified is not None:
            self.on_notified()

    def _on_notification(self, notification: Notify) -> None:
        was_known, self.is_readable = self.is_readable, False
        if not was_known and self.on_notified is not None:  # it came while a statement was under way
            self.on_notified()

    def close(self) -> None:
        self.stop_reading()
        self.conn.pgconn.finish()


async def _rows(cur: AsyncCursor[DictRow], sql: str, parameters: Mapping[str, Any]) -> list[DictRow]:
    """Return the rows of a statement, none if it has no result. In pipeline mode only fetching tells."""
    await cur.execute(sql, parameters)
    try:
        return await cur.fetchall()
    except psycopg.ProgrammingError as exc:
        if exc.sqlstate:  # Postgres' own
            raise
        return []


async def _resolve(value: Any) -> Any:
    """Return an argument of a pool, which may be a function, or a coroutine function."""
    if callable(value):
        value = value()
    return await value if inspect.isawaitable(value) else value
