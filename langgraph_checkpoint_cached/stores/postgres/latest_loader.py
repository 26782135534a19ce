"""Loads of latest checkpoints: those that wait at the same time share a query."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import psycopg

from langgraph_checkpoint_cached.errors import OVERLOADED, OverloadedError
from langgraph_checkpoint_cached.records import Latest, LeaseRow, Namespace
from langgraph_checkpoint_cached.stats import Stats
from langgraph_checkpoint_cached.stores.postgres.connections import Connections
from langgraph_checkpoint_cached.stores.postgres.errors import is_statement_error
from langgraph_checkpoint_cached.stores.postgres.identity import IdentityReader
from langgraph_checkpoint_cached.stores.postgres.leases import LeaseTable
from langgraph_checkpoint_cached.stores.postgres.queries import query
from langgraph_checkpoint_cached.stores.postgres.rows import decode_write, select, to_records
from langgraph_checkpoint_cached.stores.postgres.time_limit import LATE_SECONDS
from langgraph_checkpoint_cached.utils.batch_queue import BatchQueue, answer
from langgraph_checkpoint_cached.utils.room import NoRoom, Room

LATEST = query("latest")
ONE_NAMESPACE = query("one_namespace")
MANY_NAMESPACES = query("many_namespaces")
LEASES_OF_PREFIX = query("leases_of_prefix")
NO_LEASES = query("no_leases")
LOADS_OF_A_QUERY_MAX = 32
LOADS_WAITING_MAX = 10_000
ROOM_SECONDS_MAX = 60.0
"""Longest wait of a caller while Postgres answers nothing."""
QUERIES_AT_ONCE_MAX = 4
"""Queries at once over a pool."""
LATE_QUERIES_MAX = 4
"""Queries of `LATE_SECONDS` and more, past which the others run."""


class _Load(NamedTuple):
    """A namespace whose latest checkpoint is wanted, and the future of whoever waits for it."""

    namespace: Namespace
    done: asyncio.Future[Latest]
    rows: int = 1
    size_bytes: int = 0


class LatestLoader:
    """Loader of the latest checkpoints of namespaces, with the leases of their threads."""

    def __init__(
        self, connections: Connections, leases: LeaseTable, identity: IdentityReader, stats: Stats
    ) -> None:
        self._connections, self._leases, self._stats = connections, leases, stats
        self._identity = identity
        self._queue: BatchQueue[_Load] = BatchQueue(
            self._load,
            rows_max=LOADS_OF_A_QUERY_MAX,
            bytes_max=0,
            room=Room(count_max=LOADS_WAITING_MAX, bytes_max=1, seconds_max=ROOM_SECONDS_MAX),
            at_once=QUERIES_AT_ONCE_MAX if connections.is_pooled else 1,
            late_seconds=LATE_SECONDS,
            late_max=LATE_QUERIES_MAX if connections.is_pooled else 0,
        )

    def load(self, namespace: Namespace) -> asyncio.Future[Latest]:
        """Queue a load; see `PostgresStore.latest`."""
        load = _Load(namespace, self._connections.upstream.loop.create_future())
        self._queue.add(load)
        return load.done

    @property
    def has_room(self) -> bool:
        """Return whether there is room for a load."""
        return self._queue.room.is_free

    async def wait_for_room(self) -> None:
        """Wait for room; see `PostgresStore.wait_for_room`."""
        try:
            await self._queue.room.wait()
        except NoRoom as exc:
            raise OverloadedError(f"not read, {OVERLOADED.format(ROOM_SECONDS_MAX)}") from exc

    async def drain(self) -> None:
        """Wait until no load is queued or under way."""
        await self._queue.drain()

    async def _load(self, loads: Sequence[_Load]) -> None:
        namespaces = list(dict.fromkeys(load.namespace for load in loads))
        try:
            found = dict(zip(namespaces, await self._select(namespaces), strict=True))
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

    async def _select(self, namespaces: Sequence[Namespace]) -> list[Latest]:
        """Load the latest checkpoints, in the order of the namespaces."""
        if not self._identity.is_asked:
            await self._identity.ask()
        try:
            return await self._query(namespaces)
        except psycopg.Error as exc:
            if not self._leases.is_missing_table_error(exc):
                raise
        return await self._query(namespaces)  # this time without the table of leases

    async def _query(self, namespaces: Sequence[Namespace]) -> list[Latest]:
        names: list[Any]
        if len(namespaces) == 1:
            wanted, names = ONE_NAMESPACE, [*namespaces[0]]
        else:
            wanted = MANY_NAMESPACES
            names = [[n.thread_id for n in namespaces], [n.checkpoint_ns for n in namespaces]]
        upstream = self._connections.upstream
        leases = LEASES_OF_PREFIX if self._leases.usable else NO_LEASES
        found: dict[int, Latest] = {}
        differs, stamps = self._identity.differs, self._identity.stamps
        has_moved = False
        with self._stats.postgres_load.timed():
            async with self._connections.cursor() as cur:
                sql = _latest_sql(upstream.SELECT_SQL, wanted, leases, differs)
                for row in await select(cur, sql, [*stamps, *names, self._leases.prefix]):
                    early = tuple([decode_write(w[0].decode(), w[1:]) for w in row["early_writes"] or ()])
                    records = [] if row["checkpoint_id"] is None else await to_records(cur, upstream, [row])
                    lease = LeaseRow(row["lease_token"], row["lease_position"]) if row["lease_token"] else None
                    may_fill = not row["is_standby"] and not row["differs"]
                    has_moved |= bool(row["differs"]) and not row["is_standby"]
                    latest = Latest(
                        records[0] if records else None, early, bool(row["thread_is_empty"]), lease, may_fill
                    )
                    found[row["position"]] = latest
        if has_moved:
            await self._identity.ask()
        return [found[position] for position in range(1, len(namespaces) + 1)]


@cache
def _latest_sql(select: str, namespaces: str, leases: str, differs: str) -> str:
    return LATEST.format(select=select, namespaces=namespaces, leases=leases, differs=differs)
