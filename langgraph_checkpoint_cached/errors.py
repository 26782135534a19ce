"""Errors of this package. All derive from `CachedSaverError`.

Errors of Postgres itself are not wrapped: a caller gets those that `AsyncPostgresSaver` would have raised, or
`PostgresTimeoutError` where that would have waited on.
Errors of Redis never reach a caller of a saver.
"""

from __future__ import annotations

import asyncio

import psycopg
from psycopg_pool import PoolClosed


class CachedSaverError(Exception):
    """Base of every error of this package."""


class ArgumentError(CachedSaverError, ValueError):
    """Value that cannot work, of an argument or of a key of a `RunnableConfig`. Nothing was written."""


class ArgumentTypeError(CachedSaverError, TypeError):
    """Wrong type of an argument or of a key of a `RunnableConfig`. Nothing was written."""


class ThreadNotEmptyError(CachedSaverError):
    """Target of a copy that already has other content. Nothing was written."""


class HistoryNeededError(CachedSaverError):
    """Deletion of checkpoints that remaining checkpoints are rebuilt from. Nothing was deleted."""


class OverloadedError(CachedSaverError):
    """Refusal of a call because many others wait for Postgres, which took none for a minute. Nothing was written.

    Until then calls wait for each other, however many a graph makes at once.
    """


OVERLOADED = "too many operations wait for Postgres, which has taken none for {:.0f} seconds: it is down, or hangs"


class PostgresTimeoutError(CachedSaverError, psycopg.OperationalError):
    """Operation that Postgres did not answer in time. Its connection was closed, and others are used.

    Derives from `psycopg.OperationalError`, as the errors of a lost connection do. A write may have been stored or
    not: its thread is read from Postgres until its fence expires, and it is safe to write it again.
    """


class BehindError(CachedSaverError):
    """Latest writes of a thread are in Redis alone and cannot be read from there now. Retry later.

    Only with `mode="write_behind"`: Redis cannot be reached, or has lost data, and the process that wrote them
    does not flush them on request. Nothing was read or written, since that would have used an older state.
    """


class LostHistoryError(CachedSaverError):
    """Checkpoint that continues one which Postgres has lost, in a failover or a restore. Nothing was written.

    Without it the values of all channels that did not change since would be missing for good. Run the graph again.
    """


class UnsupportedServerError(CachedSaverError):
    """Server that is too old, or that may evict what `mode="write_behind"` leaves to it."""


class WrongThreadError(CachedSaverError, asyncio.InvalidStateError):
    """Call on a thread or event loop where it would deadlock or corrupt a connection.

    Derives from `asyncio.InvalidStateError`, which the upstream saver raises in such a case.
    """


class ClosedError(CachedSaverError, PoolClosed):
    """Call on a saver that is closed, or that was closed before the call was done.

    Nothing was written, unless the call was under way: then Postgres may or may not have it. Derives from
    `psycopg_pool.PoolClosed`, which the upstream saver raises over a pool that is closed.
    """


class ForkedError(CachedSaverError):
    """Call in a forked process on a saver that its parent made. Nothing was read or written.

    Connections cannot be shared with a parent: make a saver in each worker process.
    """
