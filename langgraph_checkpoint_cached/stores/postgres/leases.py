"""Table of leases: threads that may have unflushed writes, and how far their journals have been replayed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import AsyncCursor
from psycopg.rows import DictRow

from langgraph_checkpoint_cached.records import LeaseRow, Put, PutWrites
from langgraph_checkpoint_cached.stores.postgres.own_table import Cursors, OwnTable
from langgraph_checkpoint_cached.stores.postgres.queries import query

TABLE = "checkpoint_cache_leases"
TAKE = query("take_leases")
FIND = query("find_leases")
PAGE = query("page_of_leases")
PAGE_OF_IDLE = query("page_of_idle_leases")
LOCK = query("lock_leases")
MOVE = query("move_leases")
END = query("end_leases")
END_THREADS = query("end_leases_of_threads")
LEASES_AT_ONCE_MAX = 1000
NEW_SECONDS = 3.0
"""Age of the table before a lease is taken: processes that have missed it check for it every second."""


@dataclass(frozen=True)
class Replay:
    """Journal entries of one lease that are to be replayed into Postgres.

    `entries` are in order, each with its number in the journal; None is the number of one which may or may not
    have got there. With `end` the lease's row is deleted in the same transaction.
    `changes` is how often the identity of Postgres had changed when the holder knew that the row is there; None
    for the journal of another process.
    """

    thread_id: str
    token: str
    entries: Sequence[tuple[int | None, Put | PutWrites]]
    end: bool = False
    changes: int | None = None

    def after(self, position: int) -> list[Put | PutWrites]:
        """Return the operations that Postgres does not hold if it has replayed up to `position`."""
        return [operation for number, operation in self.entries if number is None or number > position]

    @property
    def last(self) -> int:
        """Highest number among the entries, or 0."""
        return max((number for number, _ in self.entries if number is not None), default=0)


class LeaseTable(OwnTable):
    """The leases of one prefix.

    Without the table there are no leases: a process that cannot insert a row writes through.

    Args:
        cursor: Opens a cursor; with `pipeline=True` one for statements that are sent together.
        prefix: What the keys in Redis start with.
        in_pipeline: Whether all cursors share one connection in pipeline mode.
    """

    name = TABLE
    consequence = "nobody may write behind"
    missing_log_level = logging.WARNING
    denied_is_missing = False

    def __init__(self, cursor: Cursors, prefix: str, *, in_pipeline: bool = False) -> None:
        super().__init__(cursor, prefix)
        self._in_pipeline = in_pipeline
        self._taken_from = -math.inf

    def was_missing(self) -> None:
        """Note that the table has just been created: other processes may not know of it yet."""
        self.usable, self._taken_from = True, time.monotonic() + NEW_SECONDS

    async def take(self, tokens: Mapping[str, str]) -> set[str]:
        """Insert leases, thread -> token, of threads that have none. Return the threads that it was done for."""
        if not self.usable or time.monotonic() < self._taken_from:
            return set()
        async with self._cursor(pipeline=self._in_pipeline) as cur:
            parameters = {"prefix": self.prefix, "threads": list(tokens), "tokens": list(tokens.values())}
            await cur.execute(TAKE, parameters)
            return {row["thread_id"] for row in await cur.fetchall()}

    async def take_again(self, cur: AsyncCursor[Any], replays: Sequence[Replay]) -> None:
        """Insert the leases that Postgres may have lost, in the transaction of `cur`."""
        parameters = {"threads": [r.thread_id for r in replays], "tokens": [r.token for r in replays]}
        await cur.execute(TAKE, {"prefix": self.prefix, **parameters})

    async def find(self, thread_ids: Collection[str]) -> dict[str, LeaseRow]:
        """Return the leases of these threads."""
        return await self._select(FIND, threads=list(thread_ids)) if self.usable else {}

    async def after(self, thread_id: str) -> dict[str, LeaseRow]:
        """Return up to `LEASES_AT_ONCE_MAX` leases, in the order of their threads, after this thread."""
        return await self._select(PAGE, after=thread_id, limit=LEASES_AT_ONCE_MAX)

    async def idle_after(self, thread_id: str, seconds: float) -> dict[str, LeaseRow]:
        """Return the next leases that nobody has moved for so long, by Postgres' clock."""
        return await self._select(PAGE_OF_IDLE, after=thread_id, seconds=seconds, limit=LEASES_AT_ONCE_MAX)

    async def _select(self, sql: str, **parameters: Any) -> dict[str, LeaseRow]:
        try:
            async with self._cursor() as cur:
                await cur.execute(sql, {"prefix": self.prefix, **parameters})
                rows = _by_thread(await cur.fetchall())
        except psycopg.Error as exc:
            if not self.is_missing_table_error(exc):
                raise
            return {}
        if not self.usable:
            self.was_missing()
        return rows

    async def lock(self, cur: AsyncCursor[DictRow], thread_ids: Collection[str]) -> dict[str, LeaseRow]:
        """Return the leases of these threads, locked against other replays until the transaction of `cur` ends."""
        await cur.execute(LOCK, {"prefix": self.prefix, "threads": sorted(thread_ids)})
        return _by_thread(await cur.fetchall())

    async def move(self, cur: AsyncCursor[Any], replays: Sequence[Replay]) -> None:
        """Record that these have been replayed, or end their leases, in the transaction of `cur`."""
        if moved := {r.thread_id: r.last for r in replays if r.entries and not r.end}:
            parameters = {"prefix": self.prefix, "threads": list(moved), "positions": list(moved.values())}
            await cur.execute(MOVE, parameters)
        if ended := {r.thread_id: (r.token, None) for r in replays if r.end}:
            await self.end_in(cur, ended)

    async def end(self, leases: Mapping[str, tuple[str, int | None]]) -> None:
        """Delete leases, thread -> token and position; None for any position."""
        try:
            async with self._cursor(pipeline=True) as cur:
                await self.end_in(cur, leases)
        except psycopg.Error as exc:
            self.is_missing_table_error(exc)
            raise

    async def end_in(self, cur: AsyncCursor[Any], leases: Mapping[str, tuple[str, int | None]]) -> None:
        """Delete leases as `end` does, in the transaction of `cur`."""
        tokens, positions = zip(*leases.values(), strict=True)
        parameters = {"threads": list(leases), "tokens": list(tokens), "positions": list(positions)}
        await cur.execute(END, {"prefix": self.prefix, **parameters})

    async def end_threads(self, cur: AsyncCursor[DictRow], thread_ids: Collection[str]) -> set[str]:
        """End the leases of threads that are deleted, in the transaction of `cur`. Return those that had one."""
        await cur.execute(END_THREADS, {"threads": list(thread_ids)})
        return {row["thread_id"] for row in await cur.fetchall()}


async def pages(page: Callable[[str], Awaitable[dict[str, LeaseRow]]]) -> AsyncIterator[dict[str, LeaseRow]]:
    """Iterate over all pages of leases. `page` gets the last thread of the page before, as `LeaseTable.after`."""
    last = ""
    while rows := await page(last):
        yield rows
        last = max(rows)
        if len(rows) < LEASES_AT_ONCE_MAX:
            return


def _by_thread(rows: Sequence[DictRow]) -> dict[str, LeaseRow]:
    return {row["thread_id"]: LeaseRow(row["token"], row["position"]) for row in rows}
