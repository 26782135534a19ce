"""A table of this package's own, beside those of the upstream saver."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import ClassVar, TypeAlias

import psycopg
from psycopg import AsyncCursor
from psycopg.errors import InsufficientPrivilege, UndefinedTable
from psycopg.rows import DictRow

from langgraph_checkpoint_cached.stores.postgres import time_limit
from langgraph_checkpoint_cached.stores.postgres.queries import query

SET_LOCK_TIMEOUT = query("set_lock_timeout")
LOCK_SECONDS_MAX = 1.0
"""Longest wait of a background statement for a lock. Postgres must end it: nobody else waits for it any more."""

logger = logging.getLogger("langgraph_checkpoint_cached")

Cursors: TypeAlias = "Callable[..., AbstractAsyncContextManager[AsyncCursor[DictRow]]]"


class OwnTable:
    """The rows of one prefix in a table that is missing until somebody calls `setup()`.

    Args:
        cursor: Opens a cursor; with `pipeline=True` one for statements that are sent together, and `seconds` for
            so long at most.
        prefix: What the keys in Redis start with.
    """

    name: ClassVar[str]
    consequence: ClassVar[str]
    """Effect of a missing table, for the log."""
    missing_log_level: ClassVar[int]
    denied_is_missing: ClassVar[bool]
    """True if a table that this role has no right to counts as missing."""

    def __init__(self, cursor: Cursors, prefix: str) -> None:
        self._cursor, self.prefix = cursor, prefix
        self.usable = True
        self._denials: set[str] = set()

    def is_missing_table_error(self, error: Exception) -> bool:
        """Tell whether a statement failed because the table is missing. Then it is not used until it is there.

        Where a right to it is missing, the table may have rows: unless `denied_is_missing`, that is only logged.
        """
        if not isinstance(error, (UndefinedTable, InsufficientPrivilege)) or self.name not in str(error):
            return False
        reply = str(error).splitlines()[0]
        if isinstance(error, InsufficientPrivilege) and not self.denied_is_missing:
            if reply not in self._denials:
                self._denials.add(reply)
                self._log(logging.ERROR, reply)
            return False
        if self.usable:
            self.usable = False
            self._log(self.missing_log_level, reply)
        return True

    @asynccontextmanager
    async def savepoint(self, cur: AsyncCursor[DictRow]) -> AsyncIterator[None]:
        """Undo what the block does, and nothing else, if the table turns out to be missing."""
        try:
            async with cur.connection.transaction():
                yield
        except psycopg.Error as exc:
            if not self.is_missing_table_error(exc):
                raise

    @asynccontextmanager
    async def _background(self) -> AsyncIterator[AsyncCursor[DictRow]]:
        """Open a cursor for a statement that is tried again anyway, so waits for nothing long."""
        async with self._cursor(pipeline=True, seconds=time_limit.BACKGROUND_SECONDS_MAX) as cur:
            await cur.connection.execute(SET_LOCK_TIMEOUT, {"ms": 1000 * LOCK_SECONDS_MAX})
            yield cur

    def _log(self, level: int, reply: str) -> None:
        logger.log(
            level,
            "the table %s cannot be used (%s): run `await saver.setup()` once as a role that may create tables, "
            "and grant select, insert, update and delete on it. Until then, %s",
            self.name,
            reply,
            self.consequence,
        )
