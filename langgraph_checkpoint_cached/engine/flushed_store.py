"""Postgres, read after everything that was acknowledged has been flushed to it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig

from langgraph_checkpoint_cached.engine.journal_replayer import JournalReplayer
from langgraph_checkpoint_cached.records import History, Latest, Namespace, Record
from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.stores.postgres.store import PostgresStore
from langgraph_checkpoint_cached.stores.redis.positions import LeasePosition
from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks

SETTLE_RETRY_SECONDS = 0.5
"""Time after which Postgres is asked again whether a process' transactions are over."""
UNSETTLED_MAX = 1_000


class FlushedStore:
    """Reads of Postgres that see every acknowledged write. They raise `BehindError`, and psycopg's errors."""

    def __init__(self, runtime: Runtime, store: PostgresStore, replayer: JournalReplayer) -> None:
        self._clock, self._store, self._replayer = runtime.clock, store, replayer
        self._unsettled: dict[str, float] = {}
        self._tasks = BackgroundTasks()

    async def latest(self, namespace: Namespace, position: LeasePosition | None) -> Latest:
        """Return the namespace's latest checkpoint.

        Args:
            namespace: Namespace to read.
            position: Position of the thread's lease in an earlier reply of Redis, None if there was none.
        """
        if not self._store.has_room:
            await self._store.wait_for_room()
        latest = await self._store.latest(namespace)
        while not self._replayer.is_flushed(position, latest.lease):
            position = await self._tasks.finish(self._replayer.flush(namespace.thread_id))
            latest = await self._store.latest(namespace)
        return latest

    async def is_settled(self, owners: Collection[str]) -> bool:
        """Return whether no transaction is left of these processes; remembered for a moment if there is."""
        now = self._clock()
        if any(self._unsettled.get(owner, -math.inf) > now for owner in owners):
            return False
        is_settled = await self._store.identity.is_settled(owners)
        if not is_settled:
            if len(self._unsettled) > UNSETTLED_MAX:
                self._unsettled.clear()
            self._unsettled.update(dict.fromkeys(owners, now + SETTLE_RETRY_SECONDS))
        return is_settled

    async def by_id(self, namespace: Namespace, checkpoint_id: str) -> Record | None:
        """Return a checkpoint, None if it does not exist."""
        await self._replayer.flush_threads([namespace.thread_id])
        return await self._store.by_id(namespace, checkpoint_id)

    async def histories(
        self, namespace: Namespace, checkpoint_id: str, channels: Sequence[str]
    ) -> tuple[Mapping[str, History], bool]:
        """Return what `DeltaChannel`s are rebuilt from at a checkpoint, and whether it may be stored in Redis."""
        await self._replayer.flush_threads([namespace.thread_id])
        return await self._store.histories(namespace, checkpoint_id, channels)

    async def search(
        self,
        thread_ids: Collection[str] | None,
        config: RunnableConfig | None,
        filter: dict[str, Any] | None,
        before: RunnableConfig | None,
        limit: int | None,
    ) -> Sequence[Record]:
        """Return what the upstream saver's `alist` finds, newest first, in these threads; None for all."""
        await self._replayer.flush_threads(thread_ids)
        return await self._store.search(config, filter, before, limit)

    async def drain(self) -> None:
        """Wait until nothing is under way."""
        await self._tasks.drain()
        await self._store.drain()
