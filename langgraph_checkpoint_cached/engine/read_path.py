"""Reads: the entry if it may be served, else Postgres, and back into the entry if that is allowed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from typing import NamedTuple

from langgraph_checkpoint_cached.engine.flushed_store import FlushedStore
from langgraph_checkpoint_cached.engine.hit_auditor import HitAuditor
from langgraph_checkpoint_cached.engine.recovery import Recovery
from langgraph_checkpoint_cached.records import Namespace, Record
from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.stats import ReadOutcome
from langgraph_checkpoint_cached.stores.redis.entries import (
    EntryMiss,
    FillLease,
    Hit,
    MissReason,
    ReadReply,
    RedisEntries,
)
from langgraph_checkpoint_cached.stores.redis.entry_format import DamagedEntry, damaged
from langgraph_checkpoint_cached.stores.redis.health import RedisUnavailable
from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks
from langgraph_checkpoint_cached.utils.tokens import new_token

logger = logging.getLogger("langgraph_checkpoint_cached")

WAIT_SECONDS_MAX = 2.0
"""Longest wait of a reader for another one's load, before it reads Postgres itself."""
POLL_SECONDS_MIN = 0.002
POLL_SECONDS_MAX = 0.05
LOG_EVERY_SECONDS = 60.0


class ReadResult(NamedTuple):
    """Checkpoint that a read found, None if there is none, and how the read ended."""

    record: Record | None
    outcome: ReadOutcome


class ReadPath:
    """Reads of checkpoints through both stores.

    The interleaving that must not happen, and what prevents it:

    1. a reader misses and takes the fill lease;
    2. it loads checkpoint 1 from Postgres;
    3. a writer begins, commits checkpoint 2 to Postgres, and has that confirmed by Redis;
    4. the reader fills checkpoint 1, and every later read is stale.

    BEGIN in step 3 invalidated the fill lease, so the FILL in step 4 is refused. (Leases: Nishtala et al.,
    *Scaling Memcache at Facebook*, NSDI 2013.) The fill lease is also what makes many readers of a cold thread
    load it once.

    Args:
        runtime: Clock and counters.
        entries: Entries in Redis.
        store: Postgres.
        recovery: Polled before the first read, and started when Redis cannot be used.
        auditor: Compares some hits with Postgres, if it is given.
    """

    def __init__(
        self,
        runtime: Runtime,
        entries: RedisEntries,
        store: FlushedStore,
        recovery: Recovery,
        auditor: HitAuditor | None = None,
    ) -> None:
        self._stats, self._clock = runtime.stats, runtime.clock
        self._entries, self._store, self._recovery, self._auditor = entries, store, recovery, auditor
        self._tasks = BackgroundTasks()
        self._log_again_at = -math.inf

    async def latest(self, namespace: Namespace) -> ReadResult:
        """Return the namespace's latest checkpoint."""
        if not self._recovery.may_serve(namespace.thread_id) and not await self._recovery.renew():
            return ReadResult((await self._store.latest(namespace, None)).record, self._without_redis())
        try:
            reply = await self._entries.read(namespace, fill_token := new_token())
            if isinstance(reply, EntryMiss) and reply.reason is MissReason.WAIT:
                reply = await self._wait_for_load(namespace, fill_token, reply)
            if isinstance(reply, FillLease):
                record = await self._tasks.finish(self._load(namespace, fill_token, reply))
                return ReadResult(record, ReadOutcome.LOAD)
            hit = await self._hit(namespace, reply)
            if hit is not None:
                return hit
            position = reply.lease if isinstance(reply, EntryMiss) else None
        except RedisUnavailable:
            self._recovery.reopen()
            self._stats.degraded_reads += 1
            return ReadResult((await self._store.latest(namespace, None)).record, ReadOutcome.DEGRADED)
        self._stats.bypasses += 1
        return ReadResult((await self._store.latest(namespace, position)).record, ReadOutcome.BYPASS)

    async def by_id(self, namespace: Namespace, checkpoint_id: str) -> ReadResult:
        """Return one checkpoint. Served by the entry when that is the one."""
        if not self._recovery.may_serve(namespace.thread_id) and not await self._recovery.renew():
            outcome = self._without_redis()
            return ReadResult(await self._tasks.finish(self._store.by_id(namespace, checkpoint_id)), outcome)
        try:
            hit = await self._hit(namespace, await self._entries.read(namespace, new_token(), checkpoint_id))
            if hit is not None:
                return hit
            self._stats.bypasses += 1
            outcome = ReadOutcome.BYPASS
        except RedisUnavailable:
            self._recovery.reopen()
            self._stats.degraded_reads += 1
            outcome = ReadOutcome.DEGRADED
        return ReadResult(await self._tasks.finish(self._store.by_id(namespace, checkpoint_id)), outcome)

    async def reread(
        self, namespace: Namespace, checkpoint_id: str | None, served: Record, error: Exception
    ) -> ReadResult:
        """Return what Postgres holds in place of a hit whose values could not be decoded, and drop the entry.

        Raises `error` if Postgres holds the very same.
        """
        if checkpoint_id is None:
            stored = (await self._store.latest(namespace, None)).record
        else:
            stored = await self._tasks.finish(self._store.by_id(namespace, checkpoint_id))
        if stored == served:
            raise error
        with contextlib.suppress(RedisUnavailable):
            await self._discard(namespace, damaged(namespace, error))
        self._stats.bypasses += 1
        return ReadResult(stored, ReadOutcome.BYPASS)

    def _without_redis(self) -> ReadOutcome:
        """Count a read for which this process has no right to serve from Redis."""
        if self._recovery.is_redis_usable:
            self._stats.bypasses += 1
            return ReadOutcome.BYPASS
        self._recovery.reopen()
        self._stats.degraded_reads += 1
        return ReadOutcome.DEGRADED

    async def drain(self) -> None:
        """Wait until nothing is under way."""
        if self._auditor is not None:
            await self._auditor.drain()
        await self._tasks.drain()
        await self._store.drain()

    async def _wait_for_load(self, namespace: Namespace, fill_token: str, reply: ReadReply) -> ReadReply:
        """Read again until the entry is there, the fill lease is ours, or it is time to go to Postgres."""
        deadline = self._clock() + WAIT_SECONDS_MAX
        pause = POLL_SECONDS_MIN
        self._stats.waits += 1
        while isinstance(reply, EntryMiss) and reply.reason is MissReason.WAIT and self._clock() < deadline:
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - spreads the waiters
            pause = min(2 * pause, POLL_SECONDS_MAX)
            reply = await self._entries.read(namespace, fill_token)
        return reply

    async def _hit(self, namespace: Namespace, reply: ReadReply) -> ReadResult | None:
        """Return what is served from Redis, None when Postgres has to be asked."""
        record = None
        if not self._recovery.may_serve(namespace.thread_id):
            return None  # the right has run out while Redis was asked
        if isinstance(reply, Hit):
            try:
                entry = self._entries.decode(namespace, reply)
            except DamagedEntry as exc:
                await self._discard(namespace, exc)
                return None
            if entry is None:
                return None
            record = entry.record
        elif not isinstance(reply, EntryMiss) or reply.reason is not MissReason.EMPTY:
            return None
        self._stats.hits += 1
        if self._auditor is not None:
            self._auditor.sample(namespace, reply if isinstance(reply, Hit) else None, record)
        return ReadResult(record, ReadOutcome.HIT)

    async def _discard(self, namespace: Namespace, damage: DamagedEntry) -> None:
        self._stats.damaged += 1
        if self._clock() >= self._log_again_at:  # others may write what this process does not accept, for hours
            self._log_again_at = self._clock() + LOG_EVERY_SECONDS
            logger.warning("dropped what Redis held (more of the kind is only counted for a while): %s", damage)
        await self._entries.discard(namespace)

    async def _load(self, namespace: Namespace, fill_token: str, fill_lease: FillLease) -> Record | None:
        self._stats.loads += 1
        try:
            is_settled = not fill_lease.overdue or await self._store.is_settled(fill_lease.overdue.values())
            latest = await self._store.latest(namespace, fill_lease.lease)
        except BaseException:
            with contextlib.suppress(RedisUnavailable):
                await self._entries.release_fill_lease(namespace, fill_token)  # others need not wait for its end
            raise
        if not is_settled or not latest.may_fill:
            with contextlib.suppress(RedisUnavailable):
                await self._entries.release_fill_lease(namespace, fill_token)
            return latest.record
        # The reader does not wait for it. What this process asks of Redis later comes after it.
        filling = self._tasks.start(self._entries.fill(namespace, fill_token, fill_lease, latest))
        filling.add_done_callback(self._on_filled)
        return latest.record

    def _on_filled(self, filling: asyncio.Task[bool]) -> None:
        if not filling.cancelled() and filling.exception() is None:  # else the fill lease runs out
            self._stats.fills += filling.result()
            self._stats.fills_refused += not filling.result()
