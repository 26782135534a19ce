"""The table of leases: which threads may be ahead of Postgres, and up to where Postgres has followed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import psycopg
from psycopg import AsyncCursor
from psycopg.errors import InsufficientPrivilege, UndefinedTable
from psycopg.rows import DictRow

from langgraph_checkpoint_cached.records import LeaseRow, Put, PutWrites
from langgraph_checkpoint_cached.stores.postgres.stale_threads import Cursors

logger = logging.getLogger("langgraph_checkpoint_cached")

TABLE = "checkpoint_cache_leases"
CREATE = resources.files(__package__).joinpath("sql", "create_leases.sql").read_text(encoding="utf-8")
TAKE = (
    "insert into checkpoint_cache_leases (prefix, thread_id, token)"
    " select %s, * from unnest(%s::text[], %s::text[]) order by 2"
    " on conflict do nothing returning thread_id"
)
FIND = "select thread_id, token, position from checkpoint_cache_leases where prefix = %s and thread_id = any(%s)"
FIND_ALL = (
    "select thread_id, token, position from checkpoint_cache_leases"
    " where prefix = %s and thread_id > %s order by thread_id limit %s"
)
# A clock that was set back must not hide any.
FIND_STILL = (
    "select thread_id, token, position from checkpoint_cache_leases"
    " where prefix = %s and thread_id > %s and moved_at not between now() - %s * interval '1 second' and now()"
    " order by thread_id limit %s"
)
LOCK = FIND + " order by thread_id for update"
MOVE = (
    "update checkpoint_cache_leases l set position = greatest(l.position, moved.position), moved_at = now()"
    " from unnest(%s::text[], %s::bigint[]) moved (thread_id, position)"
    " where l.prefix = %s and l.thread_id = moved.thread_id"
)
END = (
    "delete from checkpoint_cache_leases l using unnest(%s::text[], %s::text[], %s::bigint[])"
    " ended (thread_id, token, position)"
    " where l.prefix = %s and l.thread_id = ended.thread_id and l.token = ended.token"
    " and (ended.position is null or l.position = ended.position)"
)
END_THREADS = "delete from checkpoint_cache_leases where thread_id = any(%s) returning thread_id"
UNUSABLE = (
    "the table {} cannot be used ({}): run `await saver.setup()` once as a role that may create tables, and grant "
    "select, insert, update and delete on it. Nobody may write behind until then"
)
LEASES_AT_ONCE_MAX = 1000
NEW_SECONDS = 3.0
"""How old the table has to be before a lease is taken: others who have missed it look again every second."""


@dataclass(frozen=True)
class Replay:
    """What is to follow in Postgres for one lease.

    `entries` are in order, each with its number in the journal; None is that of one which may or may not have
    got there. With `end` the row goes in the same transaction.
    """

    thread_id: str
    token: str
    entries: Sequence[tuple[int | None, Put | PutWrites]]
    end: bool = False

    def after(self, position: int) -> list[Put | PutWrites]:
        """What is not yet in Postgres."""
        return [operation for number, operation in self.entries if number is None or number > position]

    @property
    def last(self) -> int:
        """The highest number in it, or 0."""
        return max((number for number, _ in self.entries if number is not None), default=0)


class LeaseTable:
    """The rows of one prefix.

    Where there is no such table, as nobody has called `setup()` since this package knows of it, there are no
    leases either: who cannot make a row writes through.

    Args:
        cursor: Opens one, `pipeline=True` for statements that are sent together.
        prefix: What the keys in Redis start with.
        in_pipeline: Whether all there are share one connection in pipeline mode.
    """

    def __init__(self, cursor: Cursors, prefix: str, *, in_pipeline: bool = False) -> None:
        self._cursor, self.prefix, self._in_pipeline = cursor, prefix, in_pipeline
        self.usable = True
        self._taken_from = -math.inf
        self._denied: set[str] = set()

    def was_missing(self) -> None:
        """It has just been made: others may not know of it yet."""
        self.usable, self._taken_from = True, time.monotonic() + NEW_SECONDS

    @property
    def source(self) -> str:
        """What a query joins for the leases of a prefix, its parameter; nothing where there is no such table."""
        if self.usable:
            return "(select * from checkpoint_cache_leases where prefix = %s)"
        return "(select null as thread_id, null as token, null as position where %s::text is null)"

    async def take(self, tokens: Mapping[str, str]) -> set[str]:
        """Makes rows, thread -> token, where there are none. Returns the threads of those that were made."""
        if not self.usable or time.monotonic() < self._taken_from:
            return set()
        async with self._cursor(pipeline=self._in_pipeline) as cur:
            await cur.execute(TAKE, (self.prefix, list(tokens), list(tokens.values())))
            return {row["thread_id"] for row in await cur.fetchall()}

    async def find(self, thread_ids: Collection[str]) -> dict[str, LeaseRow]:
        """The leases of these threads."""
        return await self._select(FIND, (self.prefix, list(thread_ids)))

    async def after(self, thread_id: str) -> dict[str, LeaseRow]:
        """Up to `LEASES_AT_ONCE_MAX` leases, in the order of their threads, those after this one."""
        return await self._select(FIND_ALL, (self.prefix, thread_id, LEASES_AT_ONCE_MAX), again=True)

    async def still(self, thread_id: str, seconds: float) -> dict[str, LeaseRow]:
        """The same, of those that nobody has moved for so long, by Postgres' clock."""
        return await self._select(FIND_STILL, (self.prefix, thread_id, seconds, LEASES_AT_ONCE_MAX), again=True)

    async def _select(self, sql: str, parameters: Sequence[Any], *, again: bool = False) -> dict[str, LeaseRow]:
        if not self.usable and not again:
            return {}
        try:
            async with self._cursor() as cur:
                await cur.execute(sql, parameters)
                rows = _rows(await cur.fetchall())
            if not self.usable:
                self.was_missing()
            return rows
        except psycopg.Error as exc:
            if not self.is_missing_table_error(exc):
                raise
            return {}

    async def lock(self, cur: AsyncCursor[DictRow], thread_ids: Collection[str]) -> dict[str, LeaseRow]:
        """The leases of these threads, which nobody else replays into before the transaction of `cur` is over."""
        await cur.execute(LOCK, (self.prefix, sorted(thread_ids)))
        return _rows(await cur.fetchall())

    async def move(self, cur: AsyncCursor[Any], replays: Sequence[Replay]) -> None:
        """Notes that these have been replayed, or ends their leases, in the transaction of `cur`."""
        moved = {r.thread_id: r.last for r in replays if r.entries and not r.end}
        if moved:
            await cur.execute(MOVE, (list(moved), list(moved.values()), self.prefix))
        if ended := {r.thread_id: (r.token, None) for r in replays if r.end}:
            await self.end_in(cur, ended)

    async def end(self, leases: Mapping[str, tuple[str, int | None]]) -> None:
        """Takes these rows off the table, thread -> token and position; None for whatever position."""
        try:
            async with self._cursor(pipeline=True) as cur:
                await self.end_in(cur, leases)
        except psycopg.Error as exc:
            self.is_missing_table_error(exc)
            raise

    async def end_in(self, cur: AsyncCursor[Any], leases: Mapping[str, tuple[str, int | None]]) -> None:
        """The same, in the transaction of `cur`."""
        tokens, positions = zip(*leases.values(), strict=True)
        await cur.execute(END, (list(leases), list(tokens), list(positions), self.prefix))

    async def end_threads(self, cur: AsyncCursor[DictRow], thread_ids: Collection[str]) -> set[str]:
        """Ends all leases of threads that are deleted, in the transaction of `cur`: the threads that had one."""
        await cur.execute(END_THREADS, (list(thread_ids),))
        return {row["thread_id"] for row in await cur.fetchall()}

    def is_missing_table_error(self, error: Exception) -> bool:
        """Whether a statement failed for want of this table. Then there are no leases, until it is there.

        For want of a right to it there may be some: what says so is only logged.
        """
        if not isinstance(error, (UndefinedTable, InsufficientPrivilege)) or TABLE not in str(error):
            return False
        reply = str(error).splitlines()[0]
        if isinstance(error, InsufficientPrivilege):
            if reply not in self._denied:
                self._denied.add(reply)
                logger.error("%s", UNUSABLE.format(TABLE, reply))
            return False
        if self.usable:
            self.usable = False
            logger.warning("%s", UNUSABLE.format(TABLE, reply))
        return True


async def pages(page: Callable[[str], Awaitable[dict[str, LeaseRow]]]) -> AsyncIterator[dict[str, LeaseRow]]:
    """All pages of leases that there are, `page` being `after` or `still`: asked with the last thread of the one
    before.
    """
    last = ""
    while rows := await page(last):
        yield rows
        last = max(rows)
        if len(rows) < LEASES_AT_ONCE_MAX:
            return


def _rows(rows: Sequence[DictRow]) -> dict[str, LeaseRow]:
    return {row["thread_id"]: LeaseRow(row["token"], row["position"]) for row in rows}
