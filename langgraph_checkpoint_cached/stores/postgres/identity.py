"""Identity of Postgres, asked for and compared: its history may lose commits, and its commits may come late."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TypeAlias

import psycopg
from psycopg.errors import FeatureNotSupported, InsufficientPrivilege, InvalidTextRepresentation, UndefinedFunction
from psycopg.rows import DictRow

from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.stores.postgres.connections import Connections
from langgraph_checkpoint_cached.stores.postgres.control_connection import ControlConnection
from langgraph_checkpoint_cached.stores.postgres.queries import query

logger = logging.getLogger("langgraph_checkpoint_cached")

LOCK_CLASS = 721_194_531
"""First key of the advisory locks, shared ones, that transactions of this package hold. Applications must not use
it. The second key is the process."""
FACTS = {
    "system": "(select system_identifier::text from pg_control_system())",
    "timeline": "case when not pg_is_in_recovery() then left(pg_walfile_name(pg_current_wal_lsn()), 8) end",
    "database": "(select oid::text from pg_database where datname = current_database())",
    "started_at": "pg_postmaster_start_time()",
    "reset_at": "pg_stat_get_bgwriter_stat_reset_time()",
}
"""Expressions that identify a Postgres. A recovery from a crash, which may lose commits, resets statistics."""
COMPARED = ("started_at", "reset_at")
"""Facts that every transaction and load compares: they take a microsecond."""
STATISTICS_IN_MEMORY_VERSION = 150_000
"""Before it, whoever asks for statistics may wait for a file of them."""
UTC = "to_char({} at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US+00')"
NOT_THERE = (UndefinedFunction, InsufficientPrivilege, FeatureNotSupported)

IDENTITY = query("identity")
GUARD = query("guard")
GUARD_CONDITION = query("guard_condition")
IS_SETTLED = query("is_settled")


Run: TypeAlias = "Callable[[str], Awaitable[list[DictRow]]]"


class TooLate(Exception):
    """A transaction began too late: its fences may be past their deadline. Nothing was stored."""


class AnotherIdentity(psycopg.OperationalError):
    """A transaction met another identity of Postgres than the process knows. Nothing was stored."""

    def __init__(self) -> None:
        super().__init__("nothing was stored: Postgres is another one than a moment ago. Try again")


class IdentityReader:
    """Asks Postgres for its identity, and makes the conditions that compare it.

    Args:
        runtime: Clock, this process' name, and the identity that it knows.
        connections: Connections to Postgres.
        control: Connection of heartbeats.
    """

    def __init__(self, runtime: Runtime, connections: Connections, control: ControlConnection) -> None:
        self._clock, self._connections, self.identity = runtime.clock, connections, runtime.database
        self._control = control
        self._stats, self._number = runtime.stats, lock_number(runtime.owner)
        self._facts = tuple(FACTS)
        self.ahead_seconds = 0.0
        """Time by which Postgres' clock is ahead of ours."""
        self.stamps: list[str] = []
        """Parameters of `differs`."""
        self.differs = "false"
        """Condition: this Postgres is not the one that this process knows."""
        self.condition = "%s::float8 is not null"
        """Guard of a transaction. Its parameters are the time in Postgres by which it must begin, and `stamps`."""
        self.is_asked = False

    async def ask(self) -> None:
        """Ask for the identity, and note it unless a standby answers. Raises psycopg's errors."""
        await self._ask(self._run)

    async def ask_beside(self) -> None:
        """Ask over the connection of heartbeats: the application may use all others for long."""
        await self._ask(self._run_beside)

    async def _ask(self, run: Run) -> None:
        try:
            row = await _select(run, self._facts)
        except NOT_THERE:
            self._facts = tuple([name for name in FACTS if await _is_there(run, name)])
            row = await _select(run, self._facts)
        if row["is_standby"]:
            return
        self.ahead_seconds = row["seconds"] - self._clock()
        compared = [name for name in COMPARED if row.get(name)]
        if row["version"] < STATISTICS_IN_MEMORY_VERSION:
            compared = compared[:1]
        self.stamps = [row[name] for name in compared]
        self.differs = " or ".join(f"{FACTS[name]} is distinct from %s" for name in compared) or "false"
        self.is_asked = True
        self.condition = GUARD_CONDITION.format(key=LOCK_CLASS, number=self._number, differs=self.differs)
        if self.identity.learn(tuple(row.get(name) for name in FACTS)):
            self._stats.postgres_changes += 1
            logger.warning(
                "Postgres is another one, was restored or has restarted: what Redis held until now is not served"
            )

    async def is_settled(self, owners: Collection[str]) -> bool:
        """Return whether Postgres is seen to have no transaction left of these processes. Load after that."""
        sql = IS_SETTLED.format(key=LOCK_CLASS, differs=self.differs)
        async with self._connections.cursor() as cur:
            await cur.execute(sql, [*self.stamps, [str(lock_number(owner)) for owner in owners]])
            row = await cur.fetchone()
        return bool(row and row["is_settled"])

    async def _run(self, sql: str) -> list[DictRow]:
        in_pipeline = bool(self._connections.upstream.pipe)  # which an error aborts until it is synchronized
        async with self._connections.cursor(pipeline=in_pipeline) as cur:
            await cur.execute(sql)
            return await cur.fetchall()

    async def _run_beside(self, sql: str) -> list[DictRow]:
        return await self._control.execute(sql, {})


async def _is_there(run: Run, name: str) -> bool:
    try:
        await _select(run, (name,))
    except NOT_THERE as exc:
        logger.info("Postgres does not tell its %s, so its identity goes without: %s", name, exc)
        return False
    return True


async def _select(run: Run, names: Sequence[str]) -> DictRow:
    columns = [f"{UTC.format(FACTS[name]) if name in COMPARED else FACTS[name]} as {name}" for name in names]
    [row] = await run(IDENTITY.format(facts=", ".join(columns)))
    return row


def lock_number(owner: str) -> int:
    """Return the second key of a process' advisory lock. Should two share one, each is taken for the other too."""
    return int.from_bytes(hashlib.sha256(owner.encode()).digest()[:4], "big") & 0x7FFF_FFFF


def guard_failure(error: psycopg.Error) -> TooLate | AnotherIdentity | None:
    """Return what an error means if the guard of a transaction raised it."""
    if isinstance(error, InvalidTextRepresentation):
        if "checkpoint_cache: too late" in str(error):
            return TooLate()
        if "checkpoint_cache: another identity" in str(error):
            return AnotherIdentity()
    return None
