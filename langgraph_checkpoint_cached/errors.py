"""What this package raises. Everything derives from `CachedSaverError`.

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


class OverloadedError(CachedSaverError):
    """Too many operations wait for Postgres to take one more. Nothing was written; the call may be repeated."""


OVERLOADED = "{} operations are waiting for Postgres already: it is too slow for this load, or down"


class UnsupportedServerError(CachedSaverError):
    """A server is too old for what this package needs of it."""


class WrongThreadError(CachedSaverError, asyncio.InvalidStateError):
    """A method was called on a thread or event loop where it would deadlock or corrupt a connection.

    The stock saver raises `asyncio.InvalidStateError` there, and so this is one.
    """
