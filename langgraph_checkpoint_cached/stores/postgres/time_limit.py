"""Time limits of operations on connections, which may be open and never answer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import Any

import psycopg
from psycopg import AsyncConnection

from langgraph_checkpoint_cached.errors import PostgresTimeoutError

OPERATION_SECONDS_MAX = 30.0
"""Longest time of an operation on its connection: a batch of writes, a load, a read of one checkpoint."""
LONG_OPERATION_SECONDS_MAX = 600.0
"""The same for lists, histories and changes of whole threads: any number of rows may be read or deleted."""
BACKGROUND_SECONDS_MAX = 5.0
"""The same for what is done again anyway, and its wait for a connection."""
CHECK_SECONDS_MAX = 5.0
"""The same for the check of a connection, and the first statement on a new one."""
LATE_SECONDS = 1.0
"""Time after which an operation is late: no other waits for it, and other connections are checked before use."""

LAG_SECONDS_MAX = 0.1
"""Lag of the event loop behind its timers that is not added to the time of an operation."""


class TimeLimit:
    """Time limit of an operation on a connection.

    When the time is over the connection's socket is shut down, so psycopg raises what it raises for a lost
    connection: a pool replaces it, and nobody uses it again. No task is cancelled, and nothing is sent, since a
    server that hangs would not answer that either; and a COMMIT that waits for a standby must not be canceled,
    for Postgres would report it as done. Time in which this process was blocked or suspended does not count.

    It begins when it is made.

    Args:
        conn: Connection of the operation.
        seconds: Longest time.
        in_use: Holds it while the operation runs.
    """

    __slots__ = ("_conn", "_in_use", "_timer", "is_over", "started")

    def __init__(self, conn: AsyncConnection[Any], seconds: float, in_use: set[TimeLimit]) -> None:
        self._conn: AsyncConnection[Any] | None = conn
        self._in_use, self.started, self.is_over = in_use, time.monotonic(), False
        in_use.add(self)
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        self._timer = loop.call_at(due, self._on_time, due)

    def stop(self) -> None:
        """End the operation. If its time was over, close the connection, lest it is used again."""
        self._in_use.discard(self)
        self._timer.cancel()
        if self.is_over and self._conn is not None:
            self._conn.pgconn.finish()
        self._conn = None

    def _on_time(self, due: float) -> None:
        """End the time, unless the event loop was blocked: then there may be an answer that nobody has read."""
        loop = asyncio.get_running_loop()
        lag = loop.time() - due
        if lag > LAG_SECONDS_MAX:
            due = loop.time() + lag
            self._timer = loop.call_at(due, self._on_time, due)
        else:
            self.expire()

    def expire(self) -> None:
        """End the time now."""
        if self._conn is not None:
            self.is_over = True
            shut_down(self._conn)

    def error(self) -> PostgresTimeoutError:
        """Return the error for the operation's caller."""
        return PostgresTimeoutError(
            f"Postgres did not answer within {time.monotonic() - self.started:.3g} seconds, so the connection was "
            "closed: the server hangs, a statement waits for a lock, or the network drops packets. A write may "
            "have been stored; it is safe to write it again"
        )


def shut_down(conn: AsyncConnection[Any]) -> None:
    """End the statement under way on a connection with an error, whatever the network does."""
    try:
        number = conn.fileno()
    except psycopg.Error:
        return  # it is closed
    with contextlib.suppress(OSError), socket.fromfd(number, socket.AF_INET, socket.SOCK_STREAM) as end:
        end.shutdown(socket.SHUT_RDWR)
