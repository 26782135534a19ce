"""L2: the upstream saver's tables, through the upstream saver's own SQL, without its lock."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import math
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from importlib import resources
from typing import Any, NamedTuple, TypeVar

import psycopg
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.base import SerializerProtocol
from psycopg import AsyncConnection, AsyncCursor, AsyncRawCursor
from psycopg.adapt import Buffer, Loader
from psycopg.errors import DeadlockDetected, PipelineAborted, ReadOnlySqlTransaction, SerializationFailure
from psycopg.pq import Format
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from langgraph_checkpoint_cached.errors import OVERLOADED, OverloadedError
from langgraph_checkpoint_cached.records import (
    History,
    Latest,
    LeaseRow,
    Namespace,
    Put,
    PutWrites,
    Record,
    Value,
    Write,
)
from langgraph_checkpoint_cached.stats import Stats
from langgraph_checkpoint_cached.stores.postgres.bulk_insert import batches, numbered, one_statement, statements
from langgraph_checkpoint_cached.stores.postgres.delta_history import RawSerializer, raw_histories
from langgraph_checkpoint_cached.stores.postgres.leases import LeaseTable, Replay
from langgraph_checkpoint_cached.stores.postgres.stale_threads import StaleThreadTable
from langgraph_checkpoint_cached.utils.batch_queue import BatchQueue, QueueFull, answer

T = TypeVar("T")

JSONB_OID = 3802
LOADS_OF_A_QUERY_MAX = 32
LOADS_WAITING_MAX = 10_000
QUERIES_AT_ONCE_MAX = 4
"""Of those that load the latest checkpoints, over a pool."""
ONE_NAMESPACE = "(select %s::text, %s::text, 1)"
SOME_NAMESPACES = "unnest(%s::text[], %s::text[]) with ordinality"
ASK_FOR_VALUES = (
    "select from checkpoint_blobs where thread_id = %s and checkpoint_ns = %s"
    " and (channel, version) in (select * from unnest(%s::text[], %s::text[]))"
)
ATTEMPTS_MAX = 3
"""Of a transaction that Postgres ended because of another one."""
RETRY_SECONDS_MAX = 0.02
DRAIN_SECONDS_MIN = 1.0
"""Between two replacements of all connections, should Postgres stay as it is."""
CONNECTION_LOST_STATES = ("08", "57P", "40003")
"""SQLSTATEs of a connection that ended in mid-transaction, which may or may not have committed."""


class _Load(NamedTuple):
    """A namespace whose latest checkpoint is wanted, and who waits for it."""

    namespace: Namespace
    done: asyncio.Future[Latest]
    rows: int = 1
    size_bytes: int = 0


class PostgresStore:
    """Loads and stores rows. Over a pool its operations run side by side, each on a connection of its own.

    Over a single connection, or one in pipeline mode, they take turns under the upstream saver's own lock, which
    anybody who uses that saver directly takes too.
    """

    def __init__(self, upstream: AsyncPostgresSaver, prefix: str, stats: Stats) -> None:
        self.is_pooled = isinstance(upstream.conn, AsyncConnectionPool)
        self._upstream = _without_lock(upstream) if self.is_pooled else upstream
        self.stale_threads = StaleThreadTable(self._cursor, prefix)
        self.leases = LeaseTable(self._cursor, prefix, in_pipeline=bool(self._upstream.pipe))
        self._stats = stats
        self._drained_at = -math.inf
        self._loads: BatchQueue[_Load] = BatchQueue(
            self._load,
            rows_max=LOADS_OF_A_QUERY_MAX,
            bytes_max=0,
            waiting_max=LOADS_WAITING_MAX,
            at_once=QUERIES_AT_ONCE_MAX if self.is_pooled else 1,
        )

    def upstream(self, serde: SerializerProtocol | None = None) -> AsyncPostgresSaver:
        """The upstream saver, decoding with `serde` or its own: for what it already does well."""
        view = copy.copy(self._upstream)
        view.serde = serde or view.serde
        return view

    def latest(self, namespace: Namespace) -> asyncio.Future[Latest]:
        """The namespace's latest checkpoint, and the writes of checkpoints that are not there yet.

        Queued when this returns; whoever waits for it and is cancelled stops nothing. What waits at the same time
        is loaded with one query.

        Raises:
            OverloadedError: too many are waiting already.
        """
        load = _Load(namespace, self._upstream.loop.create_future())
        try:
            self._loads.add(load)
        except QueueFull as exc:
            raise OverloadedError(f"not read, {OVERLOADED.format(LOADS_WAITING_MAX)}") from exc
        return load.done

    async def drain(self) -> None:
        """Waits until no load is queued or under way."""
        await self._loads.drain()

    async def by_id(self, namespace: Namespace, checkpoint_id: str) -> Record | None:
        """One checkpoint, or None if it does not exist."""
        found = await self._select(
            "WHERE thread_id = %s AND checkpoint_ns = %s AND checkpoint_id = %s",
            (namespace.thread_id, namespace.checkpoint_ns, checkpoint_id),
        )
        return found[0] if found else None

    async def histories(
        self, namespace: Namespace, checkpoint_id: str, channels: Sequence[str]
    ) -> Mapping[str, History]:
        """What the `DeltaChannel`s are rebuilt from at a checkpoint, not decoded."""
        names = {"thread_id": namespace.thread_id, "checkpoint_ns": namespace.checkpoint_ns}
        config: RunnableConfig = {"configurable": {**names, "checkpoint_id": checkpoint_id}}
        found = await self.upstream(RawSerializer()).aget_delta_channel_history(config=config, channels=channels)
        return raw_histories(found)

    async def search(
        self,
        config: RunnableConfig | None,
        filter: dict[str, Any] | None,
        before: RunnableConfig | None,
        limit: int | None,
    ) -> list[Record]:
        """What `alist` of the upstream saver finds, newest first. The connection is free again on return."""
        where, args = self._upstream._search_where(config, filter, before)
        where += " ORDER BY checkpoint_id DESC"
        if limit is not None:
            where, args = where + " LIMIT %s", [*args, int(limit)]
        return await self._select(where, args)

    @asynccontextmanager
    async def upstream_in_transaction(
        self, stale_threads: Collection[str], ended: Collection[str]
    ) -> AsyncIterator[AsyncPostgresSaver]:
        """The upstream saver inside a transaction, which also marks threads stale, and ends the leases of
        others: these threads become stale too.
        """
        async with self._cursor() as cur, cur.connection.transaction():
            had_leases: set[str] = set()
            if ended and self.leases.usable:
                async with _unless_missing(self.leases, cur):
                    had_leases = await self.leases.end_threads(cur, ended)
            if (stale_threads := had_leases.union(stale_threads)) and self.stale_threads.usable:
                async with _unless_missing(self.stale_threads, cur):
                    await self.stale_threads.insert(cur, stale_threads)
            inside = _without_lock(self._upstream)
            inside.conn = cur.connection
            yield inside

    async def store(
        self, operations: Sequence[Put | PutWrites], stale_threads: Collection[str] = ()
    ) -> list[bool]:
        """Stores checkpoints and pending writes, in one transaction and in this order, and marks threads stale.

        Returns, for each, whether it is known what was stored. False means that Postgres had a value for one of
        the new channels and versions of a checkpoint, and kept it.
        """
        return await self._with_stale_threads(lambda marked: self._store(operations, marked), stale_threads)

    async def _with_stale_threads(
        self, transaction: Callable[[Collection[str]], Awaitable[T]], stale_threads: Collection[str]
    ) -> T:
        """A transaction that marks threads stale, where there is a table of them."""
        try:
            return await retrying(lambda: transaction(stale_threads if self.stale_threads.usable else ()))
        except psycopg.Error as exc:
            self.leases.is_missing_table_error(exc)
            if not stale_threads or not self.stale_threads.is_missing_table_error(exc):
                raise
        return await retrying(lambda: transaction(()))

    async def _store(self, operations: Sequence[Put | PutWrites], stale_threads: Collection[str]) -> list[bool]:
        sets = batches(self._upstream, operations)
        if stale_threads:
            sets[0].insert(0, self.stale_threads.batch(stale_threads))
        asking = [(i, o) for i, o in enumerate(operations) if isinstance(o, Put) and o.valueless]
        blobs = self._upstream.UPSERT_CHECKPOINT_BLOBS_SQL
        single = one_statement(sets[0], blobs) if len(sets) == 1 and not asking else None
        needed = [single] if single else [one for batch in sets for one in statements(batch)]
        with self._stats.postgres_store.timed():
            async with self._connection(pipeline=not single) as conn:
                sent = [(one, await _execute(conn, one.sql, one.parameters)) for one in needed]
                asked = [(i, await _execute(conn, ASK_FOR_VALUES, _question(put))) for i, put in asking]
        unsure = {i for i, own in asked if own.rowcount > 0}
        for statement, own in sent:
            if statement.batch.sql == blobs and own.rowcount != statement.rows:
                unsure |= statement.batch.of
        return [i not in unsure for i in range(len(operations))]

    async def replay(self, replays: Sequence[Replay], stale_threads: Collection[str] = ()) -> set[str]:
        """Has Postgres follow, for one lease of a thread each, in one transaction; and marks threads stale.

        Returns the threads whose lease still was there. For the others nothing was done: what was acknowledged
        under them has been replayed by somebody else, deleted, or is lost.
        """
        return await self._with_stale_threads(lambda marked: self._replay(replays, marked), stale_threads)

    async def end_unconfirmed(self, leases: Mapping[str, tuple[str, int | None]]) -> None:
        """Ends leases of which Redis may still hold something, thread -> token and position, None for whatever
        position. Their threads become stale threads, so that whoever reaches Redis removes that.
        """
        await self._with_stale_threads(lambda marked: self._end_unconfirmed(leases, marked), leases)

    async def _end_unconfirmed(
        self, leases: Mapping[str, tuple[str, int | None]], stale_threads: Collection[str]
    ) -> None:
        async with self._cursor() as cur, cur.connection.transaction():
            await self.leases.lock(cur, leases)
            if stale_threads:
                await self.stale_threads.insert(cur, stale_threads)
            await self.leases.end_in(cur, leases)

    async def _replay(self, replays: Sequence[Replay], stale_threads: Collection[str]) -> set[str]:
        with self._stats.postgres_replay.timed():
            async with self._cursor() as cur, cur.connection.transaction():
                rows = await self.leases.lock(cur, [replay.thread_id for replay in replays])
                valid = [r for r in replays if r.thread_id in rows and rows[r.thread_id].token == r.token]
                operations = [o for replay in valid for o in replay.after(rows[replay.thread_id].position)]
                async with self._pipeline(cur):
                    if marked := stale_threads and {r.thread_id for r in valid}.intersection(stale_threads):
                        await self.stale_threads.insert(cur, marked)
                    for batch in batches(self._upstream, operations):
                        for one in statements(batch):
                            await _execute(cur.connection, one.sql, one.parameters)
                    await self.leases.move(cur, valid)
        self._stats.replayed += len(operations)
        return {replay.thread_id for replay in valid}

    @asynccontextmanager
    async def _pipeline(self, cur: AsyncCursor[DictRow]) -> AsyncIterator[None]:
        if self._upstream.supports_pipeline and not self._upstream.pipe:
            async with cur.connection.pipeline():
                yield
        else:
            yield

    @asynccontextmanager
    async def _connection(self, *, pipeline: bool) -> AsyncIterator[AsyncConnection[DictRow]]:
        """For a transaction. One statement is that without a pipeline, which would only add to its cost."""
        pool = self._upstream.conn
        if pipeline or not isinstance(pool, AsyncConnectionPool):
            async with self._cursor(pipeline=pipeline or bool(self._upstream.pipe)) as cur:
                yield cur.connection
            return
        try:
            async with pool.connection() as conn:
                yield conn
        except psycopg.Error as exc:
            await self._replace_if_gone(exc)
            raise

    @asynccontextmanager
    async def _cursor(self, *, pipeline: bool = False) -> AsyncIterator[AsyncCursor[DictRow]]:
        """The upstream saver's."""
        try:
            async with self._upstream._cursor(pipeline=pipeline) as cur:
                yield cur
        except psycopg.Error as exc:
            await self._replace_if_gone(exc)
            raise

    async def _replace_if_gone(self, error: psycopg.Error) -> None:
        """When Postgres turns out to be gone, or a standby now, all connections of the pool are replaced: they
        mostly are in the same state, and each would cost somebody an error.
        """
        pool, now = self._upstream.conn, time.monotonic()
        if (
            isinstance(pool, AsyncConnectionPool)
            and (outcome_unknown(error) or isinstance(error, ReadOnlySqlTransaction))
            and now - self._drained_at > DRAIN_SECONDS_MIN
        ):
            self._drained_at = now
            await pool.drain()

    async def _load(self, loads: Sequence[_Load]) -> None:
        wanted = list(dict.fromkeys(load.namespace for load in loads))
        try:
            found = dict(zip(wanted, await self._latest(wanted), strict=True))
        except Exception as exc:
            if len(loads) == 1 or not is_statement_error(exc):
                raise
            for load in loads:
                await self._load_alone(load)
            return
        for load in loads:
            answer(load.done, found[load.namespace])

    async def _load_alone(self, load: _Load) -> None:
        try:
            await self._load([load])
        except Exception as exc:  # noqa: BLE001 - its caller's to handle
            answer(load.done, exc)

    async def _latest(self, namespaces: Sequence[Namespace]) -> list[Latest]:
        try:
            return await self._latest_with(namespaces, self.leases.source)
        except psycopg.Error as exc:
            if not self.leases.is_missing_table_error(exc):
                raise
        return await self._latest_with(namespaces, self.leases.source)

    async def _latest_with(self, namespaces: Sequence[Namespace], leases: str) -> list[Latest]:
        sql = _latest_sql(self._upstream.SELECT_SQL, leases, one=len(namespaces) == 1)
        names: list[Any] = [[n.thread_id for n in namespaces], [n.checkpoint_ns for n in namespaces]]
        found: dict[int, Latest] = {}
        with self._stats.postgres_load.timed():
            async with self._cursor() as cur:
                names = [n[0] for n in names] if len(namespaces) == 1 else names
                await _execute_raw(cur, sql, [*names, self.leases.prefix])
                for row in await cur.fetchall():
                    early = tuple(_early_write(w) for w in row["early_writes"] or ())
                    records = [] if row["checkpoint_id"] is None else await self._records(cur, [row])
                    record = records[0] if records else None
                    lease = LeaseRow(row["lease_token"], row["lease_position"]) if row["lease_token"] else None
                    found[row["position"]] = Latest(record, early, bool(row["thread_is_empty"]), lease)
        return [found[position] for position in range(1, len(namespaces) + 1)]

    async def _select(self, where: str, args: Sequence[Any]) -> list[Record]:
        async with self._cursor() as cur:
            await _execute_raw(cur, self._upstream.SELECT_SQL + where, args)
            return await self._records(cur, await cur.fetchall())

    async def _records(self, cur: AsyncCursor[DictRow], rows: Sequence[DictRow]) -> list[Record]:
        """The rows as records, with the pending sends of those that keep them with their parent."""
        records = [_record(row) for row in rows]
        parents = [r.parent_id for r in records if r.parent_id and r.predates_tasks_channel]
        if not parents:
            return records
        await cur.execute(
            self._upstream.SELECT_PENDING_SENDS_SQL, (records[0].namespace.thread_id, parents), binary=True
        )
        sends: dict[str, tuple[tuple[str, bytes], ...]] = defaultdict(tuple)
        for row in await cur.fetchall():
            sends[row["checkpoint_id"]] = tuple((kind.decode(), blob) for kind, blob in row["sends"])
        return [
            _record(row, sends[record.parent_id]) if record.parent_id and record.predates_tasks_channel else record
            for row, record in zip(rows, records, strict=True)
        ]


def outcome_unknown(error: BaseException) -> bool:
    """Whether nobody can tell what became of the transaction: its connection was lost, or its task was ended.

    Any other error means that the transaction is over, and that reading Postgres tells how.
    """
    if not isinstance(error, Exception):
        return True
    if isinstance(error, (PoolTimeout, PoolClosed, TooManyRequests)):
        return False  # it never had a connection
    if isinstance(error, PipelineAborted):
        return False  # a statement before it failed, and all of them are undone
    if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
        return not error.sqlstate or error.sqlstate.startswith(CONNECTION_LOST_STATES)
    return False


async def retrying(transaction: Callable[[], Awaitable[T]]) -> T:
    """Runs a transaction, and again if Postgres ended it for a deadlock or a serialization failure."""
    for _ in range(ATTEMPTS_MAX - 1):
        try:
            return await transaction()
        except (DeadlockDetected, SerializationFailure):
            await asyncio.sleep(random.uniform(0, RETRY_SECONDS_MAX))  # noqa: S311 - so that they do not meet again
    return await transaction()


def is_statement_error(error: Exception) -> bool:
    """Whether one operation of a group, or its meeting another process' one, may be what failed all of them.

    Else it was the connection, or that there was none, and each would fail alone too.
    """
    if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
        reported = bool(error.sqlstate) or isinstance(error, PipelineAborted)
        return reported and not outcome_unknown(error)
    return True


@asynccontextmanager
async def _unless_missing(table: StaleThreadTable | LeaseTable, cur: AsyncCursor[DictRow]) -> AsyncIterator[None]:
    """A savepoint for what uses one of our tables: want of it undoes that alone."""
    try:
        async with cur.connection.transaction():
            yield
    except psycopg.Error as exc:
        if not table.is_missing_table_error(exc):
            raise


def _without_lock(upstream: AsyncPostgresSaver) -> AsyncPostgresSaver:
    unlocked = copy.copy(upstream)
    unlocked.lock = contextlib.nullcontext()  # type: ignore[assignment]
    return unlocked


class _JsonBytes(Loader):
    """JSONB as its bytes: most rows go to Redis as they are, and are decoded once at most."""

    format = Format.BINARY

    def load(self, data: Buffer) -> bytes:
        return bytes(data[1:])  # the first byte is the version of the binary format


async def _execute(conn: AsyncConnection[DictRow], sql: str, parameters: Sequence[Any]) -> AsyncCursor[DictRow]:
    """Executes a statement with a cursor of its own, which knows the count of rows when a pipeline is over."""
    return await AsyncRawCursor(conn, row_factory=dict_row).execute(numbered(sql), parameters)


def _question(put: Put) -> Sequence[Any]:
    """Parameters of `ASK_FOR_VALUES` for a checkpoint's new versions without a value."""
    names, versions = zip(*put.valueless, strict=True)
    return (put.namespace.thread_id, put.namespace.checkpoint_ns, list(names), list(map(str, versions)))


async def _execute_raw(cur: AsyncCursor[DictRow], sql: str, args: Sequence[Any]) -> None:
    cur.adapters.register_loader(JSONB_OID, _JsonBytes)
    await cur.execute(sql, args, binary=True)


@cache
def _latest_sql(select: str, leases: str, *, one: bool) -> str:
    template = resources.files(__package__).joinpath("sql", "latest.sql").read_text(encoding="utf-8")
    statement = "\n".join(line for line in template.splitlines() if not line.startswith("--"))
    statement = statement.replace("/* the namespaces */", ONE_NAMESPACE if one else SOME_NAMESPACES)
    statement = statement.replace("/* the leases */", leases)
    return statement.replace("/* the upstream saver's SELECT_SQL */", select)


def _record(row: Mapping[str, Any], sends: tuple[tuple[str, bytes], ...] = ()) -> Record:
    checkpoint_id = row["checkpoint_id"]
    return Record(
        namespace=Namespace(row["thread_id"], row["checkpoint_ns"]),
        checkpoint_id=checkpoint_id,
        parent_id=row["parent_checkpoint_id"],
        checkpoint_json=row["checkpoint"],
        metadata_json=row["metadata"],
        values=tuple(
            Value(channel.decode(), kind.decode(), blob) for channel, kind, blob in row["channel_values"] or ()
        ),
        writes=tuple(
            Write(
                checkpoint_id,
                task_id.decode(),
                int(index),
                channel.decode(),
                kind.decode(),
                blob,
                path.decode(),
            )
            for task_id, channel, kind, blob, path, index in row["pending_writes"] or ()
        ),
        sends=sends,
    )


def _early_write(columns: Sequence[bytes]) -> Write:
    checkpoint_id, task_id, channel, kind, blob, path, index = columns
    return Write(
        checkpoint_id.decode(),
        task_id.decode(),
        int(index),
        channel.decode(),
        kind.decode(),
        blob,
        path.decode(),
    )
