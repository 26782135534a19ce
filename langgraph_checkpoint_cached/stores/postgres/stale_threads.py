"""The table of stale threads, whose entries in Redis any process that reaches Redis is to invalidate."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg import AsyncCursor
from psycopg.errors import InsufficientPrivilege

from langgraph_checkpoint_cached.stores.postgres.bulk_insert import RowBatch, statements
from langgraph_checkpoint_cached.stores.postgres.control_connection import ControlConnection
from langgraph_checkpoint_cached.stores.postgres.own_table import Cursors, OwnTable
from langgraph_checkpoint_cached.stores.postgres.queries import query
from langgraph_checkpoint_cached.utils.tokens import new_token

TABLE = "checkpoint_cache_stale_threads"
INSERT = query("insert_stale_thread")
PAGE = query("page_of_stale_threads")
DELETE = query("delete_stale_threads")
STALE_THREADS_AT_ONCE_MAX = 1000


class StaleThread(NamedTuple):
    """A row of the table, as it was seen."""

    thread_id: str
    mark: str


class StaleThreadTable(OwnTable):
    """The stale threads of one prefix. Reads and deletes do not wait for the application's use of the pool.

    Without the table, or a right to it, an error is logged once and nothing is recorded: a process that alone
    loses Redis, and ends before it reaches it again, then leaves a stale entry to the others.
    """

    name = TABLE
    consequence = "what a process writes while it cannot reach Redis is not known to the others"
    missing_log_level = logging.ERROR
    denied_is_missing = True

    def __init__(self, cursor: Cursors, control: ControlConnection, prefix: str) -> None:
        super().__init__(cursor, prefix)
        self._control = control
        self._may_write = True

    def is_missing_table_error(self, error: Exception, *, reading: bool = False) -> bool:
        """Tell whether a statement failed because the table, or a right to it, is missing.

        Then it is not used until it can be read again; without the right to write, it is never used again.
        """
        is_missing = super().is_missing_table_error(error)
        if is_missing and isinstance(error, InsufficientPrivilege) and not reading:
            self._may_write = False
        return is_missing

    def rows(self, thread_ids: Collection[str]) -> RowBatch:
        """Return rows that mark threads stale. Store them first: so all take these locks first, in one order."""
        mark, batch = new_token(), RowBatch(INSERT)
        for thread_id in sorted(thread_ids):
            batch.add((self.prefix, thread_id, mark))
        return batch

    async def insert(self, cur: AsyncCursor[Any], thread_ids: Collection[str]) -> None:
        """Mark threads stale, in the transaction of `cur`."""
        for statement in statements([self.rows(thread_ids)]):
            await cur.execute(statement.sql, statement.parameters)

    async def add(self, thread_ids: Collection[str]) -> None:
        """Mark threads stale, in a transaction of their own."""
        if not self.usable:
            return
        try:
            async with self._cursor(pipeline=True) as cur:
                await self.insert(cur, thread_ids)
        except psycopg.Error as exc:
            if not self.is_missing_table_error(exc):
                raise

    async def after(self, thread_id: str | None) -> list[StaleThread]:
        """Return up to `STALE_THREADS_AT_ONCE_MAX` stale threads, in the order of their ids, after this one."""
        parameters = {"prefix": self.prefix, "after": thread_id, "limit": STALE_THREADS_AT_ONCE_MAX}
        try:
            rows = await self._control.execute(PAGE, parameters)
        except psycopg.Error as exc:
            if not self.is_missing_table_error(exc, reading=True):
                raise
            return []
        self.note_read()
        return [StaleThread(row["thread_id"], row["mark"]) for row in rows]

    def note_read(self) -> None:
        """Note that the table is there, and could be read."""
        self.usable = self._may_write

    async def remove(self, seen: Sequence[StaleThread]) -> None:
        """Delete the rows that nobody has renewed since they were seen, or is about to."""
        threads, marks = [s.thread_id for s in seen], [s.mark for s in seen]
        try:
            await self._control.execute(DELETE, {"prefix": self.prefix, "threads": threads, "marks": marks})
        except psycopg.Error as exc:
            if not self.is_missing_table_error(exc):
                raise
