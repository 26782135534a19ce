"""What this package raises of its own. Everything derives from `CachedSaverError`.

Errors of Postgres itself are not wrapped: a caller sees what `AsyncPostgresSaver` would have raised.
Errors of Redis never reach a caller of a saver.
"""

from __future__ import annotations

import asyncio


class CachedSaverError(Exception):
    """Base of every error of this package."""


class ArgumentError(CachedSaverError, ValueError):
    """An argument, or a key of a `RunnableConfig`, has a value that cannot work. Nothing was written."""


class ArgumentTypeError(CachedSaverError, TypeError):
    """An argument, or a key of a `RunnableConfig`, has the wrong type. Nothing was written."""


class ThreadNotEmptyError(CachedSaverError):
    """A thread was to be copied onto one that has something of its own. Nothing was written."""


class HistoryNeededError(CachedSaverError):
    """Checkpoints were to be deleted that others, which would stay, are rebuilt from. Nothing was deleted."""


class OverloadedError(CachedSaverError):
    """Too many operations wait for Postgres to take one more. Nothing was written; the call may be repeated."""


OVERLOADED = "{} operations are waiting for Postgres already: it is too slow for this load, or down"


class BehindError(CachedSaverError):
    """The latest writes of a thread are in Redis alone, and cannot be had from there now. The call may be
    repeated.

    Only where `mode="write_behind"` is used: Redis cannot be reached, or has lost data, and the process that wrote
    them does not come forward. Nothing was read or written, since it would have been on an older state.
    """


class UnsupportedServerError(CachedSaverError):
    """A server is too old, or may evict what `mode="write_behind"` leaves to it."""


class WrongThreadError(CachedSaverError, asyncio.InvalidStateError):
    """A method was called on a thread or event loop where it would deadlock or corrupt a connection.

    The upstream saver raises `asyncio.InvalidStateError` there, and so this is one.
    """
