"""Meaning of Postgres' errors for the transactions that they end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import psycopg
from psycopg.errors import DeadlockDetected, PipelineAborted, SerializationFailure
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

T = TypeVar("T")

ATTEMPTS_MAX = 3
"""Attempts at a transaction that Postgres ends because of another one."""
RETRY_SECONDS_MAX = 0.02
CONNECTION_LOST_STATES = ("08", "57P", "40003")
"""SQLSTATEs of a connection that ended in mid-transaction, which may or may not have committed."""


def outcome_unknown(error: BaseException) -> bool:
    """Tell whether a transaction may have been committed: its connection was lost, or its task was ended.

    Any other error means that the transaction is over, and that reading Postgres tells how.
    """
    if not isinstance(error, Exception):
        return True
    if isinstance(error, (PoolTimeout, PoolClosed, TooManyRequests)):
        return False  # it never had a connection
    if isinstance(error, PipelineAborted):
        return False  # a statement before it failed, and all of them are undone
    if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
        return not error.sqlstate or error.sqlstate.startswith(CONNECTION_LOST_STATES)
    return False


def is_statement_error(error: Exception) -> bool:
    """Tell whether one operation of a group, or its conflict with another process' one, may have failed them all.

    Otherwise the connection failed, or there was none, and each operation would fail alone too.
    """
    if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
        reported = bool(error.sqlstate) or isinstance(error, PipelineAborted)
        return reported and not outcome_unknown(error)
    return True


async def retrying(transaction: Callable[[], Awaitable[T]]) -> T:
    """Run a transaction, and again if Postgres ended it for a deadlock or a serialization failure."""
    for _ in range(ATTEMPTS_MAX - 1):
        try:
            return await transaction()
        except (DeadlockDetected, SerializationFailure):
            await asyncio.sleep(random.uniform(0, RETRY_SECONDS_MAX))  # noqa: S311 - so that they do not meet again
    return await transaction()
