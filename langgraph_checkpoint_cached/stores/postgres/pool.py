"""Connection pool for Postgres, made from a connection string."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import InvalidParameterValue
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from langgraph_checkpoint_cached.stores.postgres import time_limit
from langgraph_checkpoint_cached.stores.postgres.queries import query
from langgraph_checkpoint_cached.stores.postgres.time_limit import LATE_SECONDS, TimeLimit
from langgraph_checkpoint_cached.utils.forks import cut_off, notify_in_children

BACKEND_PID = query("backend_pid")
CHECK_CLIENT = query("check_client")
Pool = AsyncConnectionPool[AsyncConnection[DictRow]]

CHECK_AFTER_IDLE_SECONDS = 5.0
"""A connection that was checked or used less than this ago is handed out without a check."""
RECONNECT_SECONDS = 5.0
"""Time after which a pool that has lost Postgres starts over: until then the pauses between attempts double."""
NUDGE_SECONDS = 0.01
CLIENT_CHECK_SECONDS = 10.0
"""Time after which Postgres notices in the middle of a statement that its connection was closed."""
RETRY_SECONDS_MIN, RETRY_SECONDS_MAX = 0.1, 2.0
"""Pauses between attempts to reach Postgres at the start."""
PASSING = (
    "Connection refused",
    "No such file or directory\n\tIs the server running",
    "timeout expired",
    "could not translate host name",
    "failed to resolve host",
    "Name or service not known",
    "Network is unreachable",
    "No route to host",
    "Connection reset by peer",
    "server closed the connection unexpectedly",
    "the database system is",  # starting up, shutting down, not yet accepting connections
    "too many clients",
    "too many connections",
    "remaining connection slots",
    "no more connections allowed",  # PgBouncer
    "server_login_retry",  # PgBouncer
)
"""Texts of libpq's, Postgres' and PgBouncer's errors that may pass. libpq tells nothing else about them."""
LIVELINESS: Mapping[str, int] = {
    "connect_timeout": 10,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,  # milliseconds
}
"""Parameters by which libpq notices within 30 seconds that a peer is gone, idle or not, and drops one that never
answers. Without them that takes 2 hours, 15 minutes and 2 minutes."""


class Closable(Protocol):
    """Client with an asynchronous `aclose`."""

    async def aclose(self) -> None:
        """Close the client's connections."""


class CheckedPool(Pool):
    """Pool that sees to its connections by itself, so that taking one of it ends in time.

    Args:
        uri: Connection string.
        settings: Those of `AsyncConnectionPool`.
    """

    def __init__(self, uri: str, **settings: Any) -> None:
        care = _PoolCallbacks()
        super().__init__(
            uri,
            open=False,
            configure=care.configure,
            check=care.check,
            reconnect_timeout=RECONNECT_SECONDS,
            reconnect_failed=care.reconnect,
            **settings,
        )
        care.pool = self
        self.uri, self.settings = uri, settings["kwargs"]
        self.in_use: set[TimeLimit] = set()
        """Operations that are under way on its connections."""


def postgres_pool(
    uri: str,
    *,
    min_size: int,
    max_size: int,
    timeout_seconds: float,
    max_idle_seconds: float,
    max_lifetime_seconds: float,
) -> CheckedPool:
    """Return a pool, not yet open, whose connections are set up as the upstream saver needs them.

    Args:
        uri: From `check_postgres_uri`: errors of the pool repeat parts of others, passwords too. What it says of
            keepalives and timeouts goes before `LIVELINESS`.
    """
    given = conninfo_to_dict(uri)
    return CheckedPool(
        uri,
        min_size=min_size,
        max_size=max_size,
        timeout=timeout_seconds,
        max_idle=max_idle_seconds,
        max_lifetime=max_lifetime_seconds,
        kwargs={
            **{name: value for name, value in LIVELINESS.items() if name not in given},
            "autocommit": True,
            "prepare_threshold": 0,
            "row_factory": dict_row,
        },
    )


@asynccontextmanager
async def opened(pool: CheckedPool, client: Closable) -> AsyncIterator[None]:
    """Open the pool for the block, and close both after it. The client connects when it is first used."""
    try:
        await _reach(pool)
        await pool.open(wait=True, timeout=pool.timeout)
        yield
    finally:
        try:
            await client.aclose()
        finally:
            await pool.close()


async def _reach(pool: CheckedPool) -> None:
    """Connect once, for an error that says why it cannot be done. The pool only logs it, and tries on.

    Raises:
        psycopg.OperationalError: Postgres refused the connection, or its parameters cannot work.
        psycopg_pool.PoolTimeout: it cannot be reached; the message has the last reason.
    """
    deadline, pause = time.monotonic() + pool.timeout, RETRY_SECONDS_MIN
    last: BaseException | None = None
    while (seconds := deadline - time.monotonic()) > 0:
        try:
            connecting = AsyncConnection.connect(pool.uri, **pool.settings)
            await (await asyncio.wait_for(connecting, seconds)).close()
            return
        except asyncio.TimeoutError:
            break
        except psycopg.OperationalError as exc:
            if not may_pass(exc):
                raise
            last = exc
        await asyncio.sleep(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(2 * pause, RETRY_SECONDS_MAX)
    why = "it does not answer" if last is None else str(last).strip()
    raise PoolTimeout(f"no connection to Postgres within {pool.timeout:g} seconds: {why}") from last


def may_pass(error: psycopg.OperationalError) -> bool:
    """Return whether a connection may be had later: the server starts, is full, or cannot be reached."""
    return isinstance(error, psycopg.errors.ConnectionTimeout) or any(text in str(error) for text in PASSING)


@contextlib.contextmanager
def time_limited_check(conn: AsyncConnection[Any]) -> Iterator[None]:
    """Give the block, which checks a connection, `CHECK_SECONDS_MAX`."""
    limit = TimeLimit(conn, time_limit.CHECK_SECONDS_MAX, set())
    try:
        yield
    finally:
        limit.stop()


async def _set_up(conn: AsyncConnection[Any]) -> None:
    """Turn prepared statements off where a pooler may run each transaction on another server connection.

    A pooler answers the connection itself, with a process id that is not the server's. Without one, have Postgres
    end what waits for a lock, say, when this connection is closed.
    """
    with time_limited_check(conn):
        row = await (await conn.execute(BACKEND_PID, prepare=False)).fetchone()
        if row["pid"] != conn.info.backend_pid:  # type: ignore[index]
            conn.prepare_threshold = None
            return
        with contextlib.suppress(InvalidParameterValue):  # its operating system cannot tell
            await conn.execute(CHECK_CLIENT, {"ms": 1000 * CLIENT_CHECK_SECONDS}, prepare=False)


class _PoolCallbacks:
    """Callbacks of the pool for new connections, and for connections before they are used.

    A connection that was used a moment ago is not checked: on a busy pool that would be a round trip for each
    operation. While an operation is late all are checked, since connections mostly go silent together. When one is
    found dead, all are replaced: they mostly die together, and the pool pauses longer after each dead one that it
    finds.

    The pauses between attempts to connect do not grow beyond `RECONNECT_SECONDS` either: otherwise an outage would
    last twice as long for the pool as it does for Postgres.
    """

    pool: CheckedPool

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[AsyncConnection[Any], float] = WeakKeyDictionary()
        notify_in_children(self)

    def after_fork(self) -> None:
        """Keep a child from rolling back what its parent has under way."""
        for conn in self._seen:
            with contextlib.suppress(psycopg.Error):  # it is closed
                cut_off([conn.fileno()])

    async def configure(self, conn: AsyncConnection[Any]) -> None:
        self._seen[conn] = time.monotonic()
        await _set_up(conn)

    async def check(self, conn: AsyncConnection[Any]) -> None:
        now = time.monotonic()
        must_check = now - self._seen.get(conn, 0.0) > CHECK_AFTER_IDLE_SECONDS
        for limit in self.pool.in_use:
            must_check |= now - limit.started > LATE_SECONDS  # its connection may have gone silent
        if must_check:
            try:
                with time_limited_check(conn):
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
