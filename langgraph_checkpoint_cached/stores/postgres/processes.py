"""Table of processes: who may serve from Redis, and which server epoch of it is registered."""

from __future__ import annotations

import logging
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, NamedTuple

import psycopg
from psycopg.errors import InsufficientPrivilege, UndefinedTable

from langgraph_checkpoint_cached.stores.postgres.control_connection import ControlConnection
from langgraph_checkpoint_cached.stores.postgres.own_table import Cursors, OwnTable
from langgraph_checkpoint_cached.stores.postgres.queries import query
from langgraph_checkpoint_cached.stores.postgres.stale_threads import STALE_THREADS_AT_ONCE_MAX, StaleThread
from langgraph_checkpoint_cached.stores.postgres.stale_threads import TABLE as STALE_THREADS
from langgraph_checkpoint_cached.utils.tokens import new_token

TABLE = "checkpoint_cache_processes"
BEAT = query("beat")
ANSWER = query("answer")
ASK = query("ask")
FIND_ANSWERS = query("find_answers")
FIND_EPOCH = query("find_epoch")
REGISTER_EPOCH = query("register_epoch")
LEAVE = query("leave")
CHANNEL = "checkpoint_cache"


class Beat(NamedTuple):
    """Reply to a heartbeat: what Postgres held in one snapshot."""

    registered: str | None
    """Server epoch that is registered."""
    term: int
    """Number of its registration."""
    announced: bool
    """True if others could see in that snapshot that this process serves, for long enough."""
    may_skip: bool
    """True if others could see there that this process lacks Redis, and none of them served."""
    asked: int
    """Number of times that processes had been asked to look for stale threads."""
    stale: list[StaleThread]
    """The first `STALE_THREADS_AT_ONCE_MAX` stale threads, in the order of their ids."""


class EpochStatus(NamedTuple):
    """Server epoch that is registered, and what is known of another."""

    registered: str | None
    term: int
    """Number of its registration."""
    was_registered: bool
    """True if the epoch that was asked for had been registered before."""
    is_another_used: bool
    """True if another process may be serving from another epoch than that."""


class ProcessTable(OwnTable):
    """The processes of one prefix, one of which is this.

    Without the table, or a right to it, a look at the stale threads counts for some seconds, and nobody waits for
    others: what a process writes while it alone lacks Redis others may not see for a second, or longer if they are
    late; and of several Redis servers each process takes its own for the right one.

    Args:
        control: Connection for all statements.
        cursor: Opens a cursor of the upstream saver.
        prefix: What the keys in Redis start with.
    """

    name = TABLE
    consequence = "a process that stands still, or that another Redis answers, may serve an older state"
    missing_log_level = logging.ERROR
    denied_is_missing = True

    def __init__(self, control: ControlConnection, cursor: Cursors, prefix: str) -> None:
        super().__init__(cursor, prefix)
        self._control, self._owner = control, new_token()
        self._beats = 0
        self._channel = f"{CHANNEL}_{blake2b(prefix.encode(), digest_size=8).hexdigest()}"

    async def beat(self, epoch: str, *, serves: bool, lacks_redis: bool = False) -> Beat | None:
        """Renew the row of this process; None if the table is missing, or that of stale threads."""
        self._beats += 1
        rows = await self._execute(
            BEAT,
            epoch=epoch,
            serves=serves,
            lacks_redis=lacks_redis,
            beat=self._beats,
            limit=STALE_THREADS_AT_ONCE_MAX,
        )
        if rows is None:
            return None
        self.usable = True
        [row] = rows
        stale = list(map(StaleThread, row["threads"], row["marks"]))
        may_skip = row["had_said"] and not row["others_serve"]
        return Beat(row["registered"], row["term"] or 0, row["announced"], may_skip, row["asked"] or 0, stale)

    async def answer(self, asked: int) -> None:
        """Note that this process has invalidated what was stale when so many questions had been asked."""
        await self._execute(ANSWER, asked=asked)

    async def ask(self) -> int | None:
        """Ask all processes to look for stale threads. Return the question's number, None if nobody serves."""
        rows = await self._execute(ASK, channel=self._channel)
        return rows[0]["asked"] if rows else None

    async def find_answers(self) -> tuple[int, bool]:
        """Return the number of the last question that was answered, and whether anybody serves."""
        rows = await self._execute(FIND_ANSWERS)
        return (rows[0]["answered"], rows[0]["is_any_serving"]) if rows else (0, False)

    async def find_epoch(self, epoch: str) -> EpochStatus | None:
        """Return what is registered, and what is known of this server epoch; None if the table is missing."""
        rows = await self._execute(FIND_EPOCH, epoch=epoch)
        if rows is None:
            return None
        return EpochStatus(**rows[0]) if rows else EpochStatus(None, 0, False, False)

    async def register(self, epoch: str, seen: str | None) -> bool:
        """Register a server epoch, if `seen` is what is registered. Return whether there is a table for it."""
        return await self._execute(REGISTER_EPOCH, epoch=epoch, seen=seen) is not None

    async def listen(self, on_notified: Callable[[], None]) -> None:
        """Have a function called when somebody asks."""
        await self._control.listen(self._channel, on_notified)

    async def leave(self) -> None:
        """Delete the row of this process, and close the connection."""
        try:
            if self._beats:
                await self._execute(LEAVE)
        finally:
            await self._control.close()

    async def _execute(self, sql: str, **parameters: Any) -> Any:
        """Return the rows of a statement; None if the table is missing. Raises psycopg's errors."""
        try:
            rows = await self._control.execute(sql, {"prefix": self.prefix, "owner": self._owner, **parameters})
        except psycopg.Error as exc:
            if not (self.is_missing_table_error(exc) or _is_of_stale_threads(exc)):
                raise
            return None
        return rows


def _is_of_stale_threads(error: psycopg.Error) -> bool:
    """Return whether the table of stale threads is missing, or a right to it. That class logs it."""
    return isinstance(error, (UndefinedTable, InsufficientPrivilege)) and STALE_THREADS in str(error)
