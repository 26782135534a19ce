"""L2: the upstream saver's tables, through the upstream saver's own SQL, without its lock."""

from __future__ import annotations

import asyncio
import copy
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import psycopg
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.base import SerializerProtocol
from psycopg import AsyncCursor
from psycopg.errors import DeadlockDetected, SerializationFailure
from psycopg.rows import DictRow

from langgraph_checkpoint_cached.records import History, Latest, LeaseRow, Namespace, Put, PutWrites, Record
from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.stores.postgres import time_limit
from langgraph_checkpoint_cached.stores.postgres.bulk_insert import (
    Guard,
    numbered,
    one_statement,
    row_batches,
    statements,
)
from langgraph_checkpoint_cached.stores.postgres.connections import Connections, raw_cursor
from langgraph_checkpoint_cached.stores.postgres.control_connection import ControlConnection
from langgraph_checkpoint_cached.stores.postgres.delta_history import RawSerializer, raw_histories
from langgraph_checkpoint_cached.stores.postgres.errors import ATTEMPTS_MAX, RETRY_SECONDS_MAX
from langgraph_checkpoint_cached.stores.postgres.identity import (
    GUARD,
    AnotherIdentity,
    IdentityReader,
    guard_failure,
)
from langgraph_checkpoint_cached.stores.postgres.known_parents import KnownParents
from langgraph_checkpoint_cached.stores.postgres.latest_loader import LatestLoader
from langgraph_checkpoint_cached.stores.postgres.leases import LeaseTable, Replay
from langgraph_checkpoint_cached.stores.postgres.processes import ProcessTable
from langgraph_checkpoint_cached.stores.postgres.queries import query
from langgraph_checkpoint_cached.stores.postgres.rows import select, to_records
from langgraph_checkpoint_cached.stores.postgres.stale_threads import StaleThreadTable

T = TypeVar("T")
Work = TypeVar("Work")

FIND_VALUES = query("find_values")
MAY_FILL = query("may_fill")
LOST_JOURNAL = (
    "thread %r: Postgres has lost its last checkpoints, in a failover or a restore. What was written behind after "
    "them cannot be stored, and is lost too: runs go on from the last checkpoint that is left"
)

logger = logging.getLogger("langgraph_checkpoint_cached")


class PostgresStore:
    """Store of checkpoints in Postgres. Over a pool its operations run side by side, else one by one."""

    def __init__(self, upstream: AsyncPostgresSaver, prefix: str, runtime: Runtime) -> None:
        self._connections = connections = Connections(upstream)
        self.is_pooled, self._upstream = connections.is_pooled, connections.upstream
        self.control = ControlConnection(upstream.conn, connections.cursor, upstream.loop)
        self.identity = IdentityReader(runtime, connections, self.control)
        self._parents = KnownParents(runtime.database, connections)
        self.stale_threads = StaleThreadTable(connections.cursor, self.control, prefix)
        self.processes = ProcessTable(self.control, connections.cursor, prefix)
        self.leases = LeaseTable(connections.cursor, prefix, in_pipeline=bool(upstream.pipe))
        self._stats = runtime.stats
        self._loader = LatestLoader(connections, self.leases, self.identity, self._stats)

    def upstream(self, serde: SerializerProtocol | None = None) -> AsyncPostgresSaver:
        """Return the upstream saver, decoding with `serde` or its own: for what it already does well."""
        view = copy.copy(self._upstream)
        view.serde = serde or view.serde
        return view

    def latest(self, namespace: Namespace) -> asyncio.Future[Latest]:
        """Load the namespace's latest checkpoint, and the writes of checkpoints that are not there yet.

        The load is queued when this returns, and goes on if its caller is cancelled. Loads that wait at the same
        time share a query. Without room for it, `wait_for_room` first.
        """
        return self._loader.load(namespace)

    @property
    def has_room(self) -> bool:
        """Return whether there is room for a load."""
        return self._loader.has_room

    async def wait_for_room(self) -> None:
        """Wait until few enough loads wait for Postgres.

        Raises:
            OverloadedError: Postgres answered none for a minute.
        """
        await self._loader.wait_for_room()

    @property
    def is_closed(self) -> bool:
        """Return whether `close` was called."""
        return self._connections.is_closed

    def close(self) -> None:
        """End what is under way, and refuse everything else."""
        self._connections.close()

    async def drain(self) -> None:
        """Wait until no load is queued or under way."""
        await self._loader.drain()

    async def by_id(self, namespace: Namespace, checkpoint_id: str) -> Record | None:
        """Load one checkpoint, or None if it does not exist."""
        found = await self._select(
            "WHERE thread_id = %s AND checkpoint_ns = %s AND checkpoint_id = %s",
            (namespace.thread_id, namespace.checkpoint_ns, checkpoint_id),
        )
        return found[0] if found else None

    async def histories(
        self, namespace: Namespace, checkpoint_id: str, channels: Sequence[str]
    ) -> tuple[Mapping[str, History], bool]:
        """Load what the `DeltaChannel`s are rebuilt from at a checkpoint, not decoded.

        Return also whether it may be stored in Redis: see `Latest.may_fill`.
        """
        names = {"thread_id": namespace.thread_id, "checkpoint_ns": namespace.checkpoint_ns}
        config: RunnableConfig = {"configurable": {**names, "checkpoint_id": checkpoint_id}}
        async with self._connections.cursor(seconds=time_limit.LONG_OPERATION_SECONDS_MAX) as cur:
            await cur.execute(MAY_FILL.format(differs=self.identity.differs), self.identity.stamps)
            [row] = await cur.fetchall()
            upstream = self._connections.upstream_on(cur.connection)
            upstream.serde = RawSerializer()
            found = await upstream.aget_delta_channel_history(config=config, channels=channels)
        return raw_histories(found), row["may_fill"]

    async def search(
        self,
        config: RunnableConfig | None,
        filter: dict[str, Any] | None,
        before: RunnableConfig | None,
        limit: int | None,
    ) -> list[Record]:
        """Load what `alist` of the upstream saver finds, newest first. The connection is free again on return."""
        where, args = self._upstream._search_where(config, filter, before)
        where += " ORDER BY checkpoint_id DESC"
        if limit is not None:
            where, args = where + " LIMIT %s", [*args, int(limit)]
        return await self._select(where, args)

    async def _select(self, where: str, args: Sequence[Any]) -> list[Record]:
        async with self._connections.cursor() as cur:
            rows = await select(cur, self._upstream.SELECT_SQL + where, args)
            return await to_records(cur, self._upstream, rows)

    @asynccontextmanager
    async def upstream_in_transaction(
        self,
        deadline: float,
        stale_threads: Collection[str],
        ended: Collection[str],
        *,
        one_snapshot: bool = False,
    ) -> AsyncIterator[AsyncPostgresSaver]:
        """Open a transaction and yield the upstream saver inside it.

        Args:
            deadline: Time by which it must have begun.
            stale_threads: Threads that the transaction marks stale.
            ended: Threads whose leases it ends. Those that had one become stale too.
            one_snapshot: Whether all of it reads one snapshot.

        Raises:
            TooLate, AnotherIdentity: nothing was done. In the second case the new one is known now.
        """
        if not self.identity.is_asked:
            await self.identity.ask()
        transaction = self._connections.transaction(
            seconds=time_limit.LONG_OPERATION_SECONDS_MAX, one_snapshot=one_snapshot
        )
        async with transaction as cur:
            await self._guard(cur, deadline)
            had_leases: set[str] = set()
            if ended and self.leases.usable:
                async with self.leases.savepoint(cur):
                    had_leases = await self.leases.end_threads(cur, ended)
            await self.mark_stale(cur, had_leases.union(stale_threads))
            yield self._connections.upstream_on(cur.connection)

    async def mark_stale(self, cur: AsyncCursor[Any], thread_ids: Collection[str]) -> None:
        """Mark threads stale in the transaction of `cur`, unless their table is missing."""
        if thread_ids and self.stale_threads.usable:
            async with self.stale_threads.savepoint(cur):
                await self.stale_threads.insert(cur, thread_ids)

    async def store(
        self,
        operations: Sequence[Put | PutWrites],
        stale_threads: Collection[str] = (),
        deadline: float = math.inf,
    ) -> list[bool]:
        """Store checkpoints and pending writes, in one transaction and in this order, and mark threads stale.

        Return, for each, whether it is known what was stored. False means that Postgres had a value for one of
        the new channels and versions of a checkpoint, and kept it.

        Raises:
            TooLate: the transaction did not begin by the deadline, on this process' clock. Nothing was stored.
            LostHistoryError: a checkpoint builds on one that Postgres has lost. Nothing was stored.
        """
        if not self.identity.is_asked:
            await self.identity.ask()
        return await self._attempt(partial(self._store, deadline=deadline), operations, stale_threads)

    async def replay(self, replays: Sequence[Replay], stale_threads: Collection[str] = ()) -> set[str]:
        """Replay journal entries, of one lease for each thread, in one transaction, and mark threads stale.

        Return the threads whose lease still was there. For the others nothing was done: somebody else has
        replayed what was acknowledged under them, or it was deleted, or it is lost. Lost is what builds on a
        checkpoint that Postgres has lost: its lease ends.
        """
        if not self.identity.is_asked:
            await self.identity.ask()
        return await self._attempt(self._replay, replays, stale_threads)

    async def end_unconfirmed(self, leases: Mapping[str, tuple[str, int | None]]) -> set[str]:
        """End leases of which Redis may still hold something, thread -> token and position; None for any position.

        Their threads become stale, so that a process that reaches Redis invalidates them. Return the threads whose
        lease ended here: another process may have ended or moved it before.
        """
        return await self._attempt(self._end_unconfirmed, leases, leases)

    async def _attempt(
        self,
        transaction: Callable[[Work, Collection[str]], Awaitable[T]],
        work: Work,
        stale_threads: Collection[str],
    ) -> T:
        """Run a transaction that marks threads stale.

        Run it again if Postgres ended it because of another one, or without these threads if their table is
        missing.
        """
        marked = stale_threads if self.stale_threads.usable else ()
        attempts = 0
        while True:
            try:
                return await transaction(work, marked)
            except psycopg.Error as exc:
                attempts += 1
                if isinstance(exc, (DeadlockDetected, SerializationFailure)) and attempts < ATTEMPTS_MAX:
                    await asyncio.sleep(random.uniform(0, RETRY_SECONDS_MAX))  # noqa: S311 - so that they part
                    continue
                failure = guard_failure(exc)
                if isinstance(failure, AnotherIdentity) and attempts < ATTEMPTS_MAX:
                    await self.identity.ask()
                    continue
                if failure is not None:
                    await self.identity.ask_beside()  # too late it may be by another clock than was known
                    raise failure from exc
                self.leases.is_missing_table_error(exc)
                if not marked or not self.stale_threads.is_missing_table_error(exc):
                    raise
                marked, attempts = (), 0

    async def _store(
        self, operations: Sequence[Put | PutWrites], stale_threads: Collection[str], *, deadline: float
    ) -> list[bool]:
        changes = self.identity.identity.changes
        if changes:
            await self._parents.check(operations)
        identity = self.identity
        guard = Guard(identity.condition, [deadline + identity.ahead_seconds, *identity.stamps])
        sets = row_batches(self._upstream, operations)
        if stale_threads:
            stale = self.stale_threads.rows(stale_threads)
            sets[0] = {stale.sql: stale, **sets[0]}
        doubtful = []
        for position, operation in enumerate(operations):
            if isinstance(operation, Put) and operation.valueless:
                doubtful.append((position, operation))
        blobs = self._upstream.UPSERT_CHECKPOINT_BLOBS_SQL
        single = one_statement(sets[0], blobs, guard) if len(sets) == 1 and not doubtful else None
        needed = [single] if single else [s for batches in sets for s in statements(batches.values())]
        inserted, existing = [], []
        started = time.perf_counter()
        try:
            count = len(needed) + len(doubtful) + (single is None)
            alone = count == 1 and self.is_pooled  # a transaction without a pipeline, which costs less
            connections = self._connections
            async with connections.connection(None) if alone else connections.together(statements=count) as conn:
                if single is None:
                    await raw_cursor(conn).execute(numbered(GUARD.format(guard=guard.condition)), guard.parameters)
                for statement in needed:
                    cur = await raw_cursor(conn).execute(numbered(statement.sql), statement.parameters)
                    inserted.append((statement, cur))
                for position, put in doubtful:
                    cur = await raw_cursor(conn).execute(numbered(FIND_VALUES), _valueless(put))
                    existing.append((position, cur))
        finally:
            self._stats.postgres_store.record(time.perf_counter() - started)
        known = [True] * len(operations)
        for position, cur in existing:
            known[position] = cur.rowcount == 0
        for statement, cur in inserted:
            rows = (await cur.fetchall())[0]["inserted"] if single else cur.rowcount
            if statement.batch.sql == blobs and rows != statement.rows:
                for position in statement.batch.positions:
                    known[position] = False
        if changes:
            self._parents.note(operations, changes)
        return known

    async def _guard(self, cur: AsyncCursor[DictRow], deadline: float) -> None:
        identity = self.identity
        parameters = [deadline + identity.ahead_seconds, *identity.stamps]
        try:
            await cur.execute(GUARD.format(guard=identity.condition), parameters)
            await cur.fetchall()  # in pipeline mode another statement would get its error
        except psycopg.Error as exc:
            failure = guard_failure(exc)
            if failure is None:
                raise
            raise failure from exc

    async def _replay(self, replays: Sequence[Replay], stale_threads: Collection[str]) -> set[str]:
        changes = self.identity.identity.changes
        guard, parameters = GUARD.format(guard=self.identity.condition), [math.inf, *self.identity.stamps]
        again = [r for r in replays if r.changes not in (None, changes)]  # Postgres may have lost their rows
        if self.stale_threads.usable:  # what others may have stored in Redis meanwhile lacks these writes
            stale_threads = {*stale_threads, *(r.thread_id for r in again)}
        with self._stats.postgres_replay.timed():
            async with self._connections.transaction() as cur:
                await cur.execute(guard, parameters)
                if again:
                    await self.leases.take_again(cur, again)
                rows = await self.leases.lock(cur, [replay.thread_id for replay in replays])
                valid = [r for r in replays if r.thread_id in rows and rows[r.thread_id].token == r.token]
                lost = await self._end_lost(cur, valid, rows, changes)
                valid = [replay for replay in valid if replay.thread_id not in lost]
                operations = [o for replay in valid for o in replay.after(rows[replay.thread_id].position)]
                async with self._connections.pipeline(cur.connection):
                    if marked := {r.thread_id for r in valid}.intersection(stale_threads):
                        await self.stale_threads.insert(cur, marked)
                    for batches in row_batches(self._upstream, operations):
                        for one in statements(batches.values()):
                            await raw_cursor(cur.connection).execute(numbered(one.sql), one.parameters)
                    await self.leases.move(cur, valid)
        self._stats.replayed += len(operations)
        self._stats.leases_lost += len(lost)
        for thread_id in lost:
            logger.error(LOST_JOURNAL, thread_id)
        return {replay.thread_id for replay in valid}

    async def _end_lost(
        self, cur: AsyncCursor[DictRow], replays: Sequence[Replay], rows: Mapping[str, LeaseRow], changes: int
    ) -> set[str]:
        """End the leases of which Postgres has lost what was replayed before; return their threads."""
        doubtful = [r for r in replays if changes or r.changes is None]
        operations = [o for replay in doubtful for o in replay.after(rows[replay.thread_id].position)]
        lost = await self._parents.find_lost(cur, operations)
        if lost:
            await self.mark_stale(cur, lost)
            await self.leases.end_in(cur, {thread_id: (rows[thread_id].token, None) for thread_id in lost})
        return lost

    async def _end_unconfirmed(
        self, leases: Mapping[str, tuple[str, int | None]], stale_threads: Collection[str]
    ) -> set[str]:
        async with self._connections.transaction() as cur:
            found = await self.leases.lock(cur, leases)
            if stale_threads:
                await self.stale_threads.insert(cur, stale_threads)
            await self.leases.end_in(cur, leases)
        return {
            thread_id
            for thread_id, row in found.items()
            if leases[thread_id] in ((row.token, row.position), (row.token, None))
        }


def _valueless(put: Put) -> Sequence[Any]:
    """Return the parameters of `find_values` for a checkpoint's new versions without a value."""
    channels, versions = zip(*put.valueless, strict=True)
    return (put.namespace.thread_id, put.namespace.checkpoint_ns, list(channels), list(map(str, versions)))
