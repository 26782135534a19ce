"""Histories of `DeltaChannel`s: out of the entry if they may be served, else from Postgres, and into the entry."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from langgraph_checkpoint_cached.engine.invalidation import Recovery
from langgraph_checkpoint_cached.engine.journal_replayer import Settler
from langgraph_checkpoint_cached.records import History, Namespace
from langgraph_checkpoint_cached.stats import Stats
from langgraph_checkpoint_cached.stores.postgres.store import PostgresStore
from langgraph_checkpoint_cached.stores.redis.delta_history_format import LENGTH_MAX, Histories, stored_in
from langgraph_checkpoint_cached.stores.redis.entries import Hit, RedisEntries, RedisUnavailable
from langgraph_checkpoint_cached.stores.redis.entry_format import DamagedEntry
from langgraph_checkpoint_cached.utils.background_tasks import Tasks
from langgraph_checkpoint_cached.utils.tokens import new_token


class HistoryReader:
    """Reads what `DeltaChannel`s are rebuilt from, through both tiers.

    The history at a checkpoint changes when its ancestors do, and by writes to them that come late. So it is part
    of the entry, under the same fences and generation, with a ticket of its own: BEGIN of any write to the
    namespace voids it, and with that what was loaded before. A write to an ancestor drops the history; a child of
    the entry's checkpoint takes it along, with the writes that led there.
    """

    def __init__(
        self,
        entries: RedisEntries,
        postgres: PostgresStore,
        recovery: Recovery,
        settler: Settler,
        stats: Stats,
    ) -> None:
        self._entries, self._postgres, self._recovery = entries, postgres, recovery
        self._settler, self._stats = settler, stats
        self._tasks = Tasks()

    async def get(
        self, namespace: Namespace, checkpoint_id: str, channels: Sequence[str]
    ) -> Mapping[str, History]:
        """The histories of these channels at a checkpoint. Served by the entry when that is the one."""
        if not self._recovery.has_looked:
            await self._recovery.look()
        may_fill = False
        try:
            answer = await self._entries.read(namespace, new_token(), checkpoint_id)
            if isinstance(answer, Hit):
                may_fill = True
                found = self._entries.histories(namespace, checkpoint_id, answer.fields)
                if found and found.by_channel.keys() >= set(channels):
                    self._stats.history_hits += 1
                    if found.length > LENGTH_MAX:
                        self._tasks.start(self._shorten(namespace, checkpoint_id))
                    return found.by_channel
        except DamagedEntry:
            self._stats.damaged += 1
            await self._discard(namespace)
        except RedisUnavailable:
            pass
        self._stats.history_loads += 1
        return await self._tasks.finish(self._load(namespace, checkpoint_id, channels, may_fill=may_fill))

    async def drain(self) -> None:
        """Waits until nothing is under way."""
        await self._tasks.drain()

    async def _load(
        self, namespace: Namespace, checkpoint_id: str, channels: Sequence[str], *, may_fill: bool
    ) -> Mapping[str, History]:
        ticket, held = new_token(), None
        if may_fill:
            try:
                held = await self._entries.history_ticket(namespace, ticket, checkpoint_id)
            except RedisUnavailable:
                held = None
        await self._settler.settle_all([namespace.thread_id])
        loaded = await self._postgres.histories(namespace, checkpoint_id, channels)
        if held is not None:
            generation, fields = held
            try:
                entry = self._entries.decode(namespace, Hit(fields))
                # Where one has a value itself, its child is rebuilt from that, and not from this history.
                if entry and entry.record and not stored_in(entry.record, channels):
                    await self._entries.fill_history(namespace, ticket, generation, checkpoint_id, loaded)
            except (RedisUnavailable, DamagedEntry):
                pass  # loaded all the same
        return loaded

    async def _shorten(self, namespace: Namespace, checkpoint_id: str) -> None:
        """Puts what has been added to a history into it."""
        ticket = new_token()
        try:
            held = await self._entries.history_ticket(namespace, ticket, checkpoint_id)
            if held is None:
                return
            generation, fields = held
            found: Histories | None = self._entries.histories(namespace, checkpoint_id, fields)
            if found is not None:
                await self._entries.fill_history(namespace, ticket, generation, checkpoint_id, found.by_channel)
        except (RedisUnavailable, DamagedEntry):
            pass  # the next read sees to it

    async def _discard(self, namespace: Namespace) -> None:
        with contextlib.suppress(RedisUnavailable):
            await self._entries.discard(namespace)
