"""Histories of `DeltaChannel`s: from the entry if they may be served, else from Postgres, and into the entry."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from langgraph_checkpoint_cached.engine.flushed_store import FlushedStore
from langgraph_checkpoint_cached.engine.recovery import Recovery
from langgraph_checkpoint_cached.records import History, Namespace
from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.stores.redis.delta_history_format import LENGTH_MAX, EntryHistories, is_stored_in
from langgraph_checkpoint_cached.stores.redis.entries import Hit, RedisEntries
from langgraph_checkpoint_cached.stores.redis.entry_format import DamagedEntry
from langgraph_checkpoint_cached.stores.redis.health import RedisUnavailable
from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks
from langgraph_checkpoint_cached.utils.tokens import new_token


class DeltaHistoryReader:
    """Reader of the histories that `DeltaChannel`s are rebuilt from, through both tiers.

    The history at a checkpoint changes when its ancestors do, and by writes to them that come late. So it is part
    of the entry, under the same fences and generation, with a fill lease of its own: BEGIN of any write to the
    namespace invalidates it, and with that what was loaded before. A write to an ancestor drops the history; a
    child of the entry's checkpoint takes it along, with the writes that led there.
    """

    def __init__(self, runtime: Runtime, entries: RedisEntries, store: FlushedStore, recovery: Recovery) -> None:
        self._stats, self._entries, self._store, self._recovery = runtime.stats, entries, store, recovery
        self._tasks = BackgroundTasks()

    async def get(
        self, namespace: Namespace, checkpoint_id: str, channels: Sequence[str]
    ) -> Mapping[str, History]:
        """Return the histories of these channels at a checkpoint. Served by the entry when that is the one."""
        may_serve = self._recovery.may_serve(namespace.thread_id) or await self._recovery.renew()
        may_fill = False
        try:
            reply = await self._entries.read(namespace, new_token(), checkpoint_id) if may_serve else None
            if isinstance(reply, Hit) and self._recovery.may_serve(namespace.thread_id):
                may_fill = True
                found = self._entries.histories(namespace, checkpoint_id, reply.fields)
                if found and found.by_channel.keys() >= set(channels):
                    self._stats.history_hits += 1
                    if found.length > LENGTH_MAX:
                        self._tasks.start(self._shorten(namespace, checkpoint_id))
                    return found.by_channel
        except DamagedEntry:
            self._stats.damaged += 1
            await self._discard(namespace)
        except RedisUnavailable:
            self._recovery.reopen()
        self._stats.history_loads += 1
        return await self._tasks.finish(self._load(namespace, checkpoint_id, channels, may_fill=may_fill))

    async def reread(
        self, namespace: Namespace, checkpoint_id: str, channels: Sequence[str]
    ) -> Mapping[str, History]:
        """Return what Postgres holds in place of histories whose values could not be decoded; drop the entry."""
        self._stats.damaged += 1
        await self._discard(namespace)
        self._stats.history_loads += 1
        loaded, _ = await self._tasks.finish(self._store.histories(namespace, checkpoint_id, channels))
        return loaded

    async def drain(self) -> None:
        """Wait until nothing is under way."""
        await self._tasks.drain()

    async def _load(
        self, namespace: Namespace, checkpoint_id: str, channels: Sequence[str], *, may_fill: bool
    ) -> Mapping[str, History]:
        fill_token, held = new_token(), None
        if may_fill:
            try:
                held = await self._entries.history_fill_lease(namespace, fill_token, checkpoint_id)
            except RedisUnavailable:
                held = None
        loaded, may_be_stored = await self._store.histories(namespace, checkpoint_id, channels)
        if held is not None and may_be_stored:
            generation, fields = held
            try:
                entry = self._entries.decode(namespace, Hit(fields))
                # Where one has a value itself, its child is rebuilt from that, and not from this history.
                if entry and entry.record and not is_stored_in(entry.record, channels):
                    await self._entries.fill_history(namespace, fill_token, generation, checkpoint_id, loaded)
            except (RedisUnavailable, DamagedEntry):
                pass  # the history is loaded from Postgres
        return loaded

    async def _shorten(self, namespace: Namespace, checkpoint_id: str) -> None:
        """Put what has been added to a history into it."""
        fill_token = new_token()
        try:
            held = await self._entries.history_fill_lease(namespace, fill_token, checkpoint_id)
            if held is None:
                return
            generation, fields = held
            found: EntryHistories | None = self._entries.histories(namespace, checkpoint_id, fields)
            if found is not None:
                await self._entries.fill_history(
                    namespace, fill_token, generation, checkpoint_id, found.by_channel
                )
        except (RedisUnavailable, DamagedEntry):
            pass  # the next read does it

    async def _discard(self, namespace: Namespace) -> None:
        with contextlib.suppress(RedisUnavailable):
            await self._entries.discard(namespace)
