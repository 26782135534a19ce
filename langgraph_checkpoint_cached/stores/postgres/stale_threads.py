"""The table of stale threads: threads whose entries in Redis may be stale, for whoever can reach Redis to
invalidate.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from importlib import resources
from typing import Any, NamedTuple, TypeAlias

import psycopg
from psycopg import AsyncCursor
from psycopg.errors import InsufficientPrivilege, UndefinedTable
from psycopg.rows import DictRow

from langgraph_checkpoint_cached.stores.postgres.bulk_insert import Batch, statements
from langgraph_checkpoint_cached.utils.tokens import new_token

logger = logging.getLogger("langgraph_checkpoint_cached")

TABLE = "checkpoint_cache_stale_threads"
CREATE = resources.files(__package__).joinpath("sql", "create_suspects.sql").read_text(encoding="utf-8")
INSERT = (
    "insert into checkpoint_cache_stale_threads (prefix, thread_id, mark) VALUES (%s, %s, %s)"
    " on conflict (prefix, thread_id) do update set mark = excluded.mark"
)
SELECT = (
    "select thread_id, mark from checkpoint_cache_stale_threads"
    " where prefix = %s and (%s::text is null or thread_id > %s) order by thread_id limit %s"
)
DELETE = (
    "delete from checkpoint_cache_stale_threads s using unnest(%s::text[], %s::text[]) seen (thread_id, mark)"
    " where s.prefix = %s and s.thread_id = seen.thread_id and s.mark = seen.mark"
)
STALE_THREADS_AT_ONCE_MAX = 1000
Cursors: TypeAlias = "Callable[..., AbstractAsyncContextManager[AsyncCursor[DictRow]]]"


class StaleThread(NamedTuple):
    """A row of the table, as it was seen."""

    thread_id: str
    mark: str


class StaleThreadTable:
    """The rows of one prefix.

    Where there is no such table, or no right to it, an error is logged once and nothing is recorded: a process
    that alone loses Redis, and is gone before it has it back, then leaves others an entry that is stale.

    Args:
        cursor: Opens one, `pipeline=True` for statements that are sent together.
        prefix: What the keys in Redis start with.
    """

    def __init__(self, cursor: Cursors, prefix: str) -> None:
        self._cursor, self._prefix = cursor, prefix
        self.usable = True
        self._may_write = True

    def batch(self, thread_ids: Collection[str]) -> Batch:
        """Rows that mark threads stale. To be stored first: all take the locks on these first, in one order."""
        mark = new_token()
        return Batch(INSERT, [(self._prefix, thread_id, mark) for thread_id in sorted(thread_ids)])

    async def insert(self, cur: AsyncCursor[Any], thread_ids: Collection[str]) -> None:
        """Makes threads stale threads, in the transaction that `cur` is in."""
        for statement in statements([self.batch(thread_ids)]):
            await cur.execute(statement.sql, statement.parameters)

    async def add(self, thread_ids: Collection[str]) -> None:
        """Makes threads stale threads, in a transaction of its own."""
        if not self.usable:
            return
        try:
            async with self._cursor(pipeline=True) as cur:
                await self.insert(cur, thread_ids)
        except psycopg.Error as exc:
            if not self.is_missing_table_error(exc):
                raise

    async def after(self, thread_id: str | None) -> list[StaleThread]:
        """Up to `STALE_THREADS_AT_ONCE_MAX` stale threads, in the order of their threads, those after this one."""
        try:
            async with self._cursor() as cur:
                await cur.execute(SELECT, (self._prefix, thread_id, thread_id, STALE_THREADS_AT_ONCE_MAX))
                rows: list[DictRow] = await cur.fetchall()
        except psycopg.Error as exc:
            if not self.is_missing_table_error(exc, reading=True):
                raise
            return []
        self.usable = self._may_write
        return [StaleThread(row["thread_id"], row["mark"]) for row in rows]

    async def remove(self, seen: Sequence[StaleThread]) -> None:
        """Takes those off the table that nobody has made stale threads again since they were seen."""
        threads, marks = [s.thread_id for s in seen], [s.mark for s in seen]
        try:
            async with self._cursor(pipeline=True) as cur:
                await cur.execute(DELETE, (threads, marks, self._prefix))
        except psycopg.Error as exc:
            if not self.is_missing_table_error(exc):
                raise

    def is_missing_table_error(self, error: Exception, *, reading: bool = False) -> bool:
        """Whether a statement failed for want of this table, or of the right to it.

        Then it is not used until it can be read again; for want of a right to write, never again.
        """
        if not isinstance(error, (UndefinedTable, InsufficientPrivilege)) or TABLE not in str(error):
            return False
        if isinstance(error, InsufficientPrivilege) and not reading:
            self._may_write = False
        if self.usable:
            self.usable = False
            logger.error(
                "the table %s cannot be used (%s): run `await saver.setup()` once as a role that may create "
                "tables, and grant select, insert, update and delete on it. Until then, what a process writes "
                "while it cannot reach Redis is not known to the others",
                TABLE,
                str(error).splitlines()[0],
            )
        return True
