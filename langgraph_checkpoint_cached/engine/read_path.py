"""Reads: the entry if it may be served, else Postgres, and back into the entry if that is allowed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Callable
from typing import TypeAlias

from langgraph_checkpoint_cached.engine.hit_auditor import HitAuditor
from langgraph_checkpoint_cached.engine.invalidation import StaleThreadInvalidator
from langgraph_checkpoint_cached.engine.journal_replayer import JournalReplayer
from langgraph_checkpoint_cached.records import Latest, Namespace, Record
from langgraph_checkpoint_cached.stats import Histogram, Stats
from langgraph_checkpoint_cached.stores.postgres.store import PostgresStore
from langgraph_checkpoint_cached.stores.redis.entries import (
    Hit,
    LeasePosition,
    Load,
    Miss,
    ReadAnswer,
    RedisEntries,
    RedisUnavailable,
)
from langgraph_checkpoint_cached.stores.redis.entry_format import DamagedEntry
from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks
from langgraph_checkpoint_cached.utils.tokens import new_token

logger = logging.getLogger("langgraph_checkpoint_cached")

WAIT_SECONDS_MAX = 2.0
"""How long a reader waits for another one's load before it reads Postgres itself."""
POLL_SECONDS_MIN = 0.002
POLL_SECONDS_MAX = 0.05
LOG_EVERY_SECONDS = 60.0

Found: TypeAlias = "tuple[Record | None, Histogram]"
"""What a read found, and where the time it took is to be recorded."""


class ReadPath:
    """Reads of checkpoints through both tiers.

    The interleaving that must not happen, and what prevents it:

    1. a reader misses and takes the fill lease;
    2. it loads checkpoint 1 from Postgres;
    3. a writer begins, commits checkpoint 2 to Postgres, and has that confirmed by Redis;
    4. the reader fills checkpoint 1, and every later read is stale.

    BEGIN in step 3 invalidated the fill lease, so the FILL in step 4 is refused. (Leases: Nishtala et al.,
    *Scaling Memcache at Facebook*, NSDI 2013.) The fill lease is also what makes many readers of a cold thread
    load it once.
    """

    def __init__(
        self,
        entries: RedisEntries,
        postgres: PostgresStore,
        recovery: StaleThreadInvalidator,
        replayer: JournalReplayer,
        stats: Stats,
        check_hits: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._entries, self._postgres, self._invalidator = entries, postgres, recovery
        self._replayer, self._stats, self._clock = replayer, stats, clock
        self._check_hits = check_hits
        self._auditor = HitAuditor(entries, postgres, recovery, replayer, stats, check_hits)
        self._tasks = BackgroundTasks()
        self._log_again_at = -math.inf

    async def latest(self, namespace: Namespace) -> Found:
        """The namespace's latest checkpoint, or None if it has none."""
        if not self._invalidator.is_fresh:
            await self._invalidator.look()
        stats = self._stats
        try:
            answer = await self._wait_for_turn(namespace, fill_token := new_token())
            if isinstance(answer, Hit):
                entry = await self._entry(namespace, answer)
                if entry is not None:
                    return entry.record, stats.get_hit
            elif isinstance(answer, Miss) and answer.why == "empty":
                return self._empty(namespace)
            elif isinstance(answer, Load):
                return await self._tasks.finish(self._load(namespace, fill_token, answer)), stats.get_load
            stats.bypasses += 1
            times = stats.get_bypass
            ack = answer.lease if isinstance(answer, Miss) else None
        except RedisUnavailable:
            stats.degraded_reads += 1
            times, ack = stats.get_degraded, None
        return (await self._flushed(namespace, ack)).record, times

    async def by_id(self, namespace: Namespace, checkpoint_id: str) -> Found:
        """One checkpoint, or None if it does not exist. Served by the entry when that is the one."""
        if not self._invalidator.is_fresh:
            await self._invalidator.look()
        stats = self._stats
        try:
            answer = await self._entries.read(namespace, new_token(), checkpoint_id)
            if isinstance(answer, Miss) and answer.why == "empty":
                return self._empty(namespace)
            if isinstance(answer, Hit):
                entry = await self._entry(namespace, answer)
                if entry is not None:
                    return entry.record, stats.get_hit
            stats.bypasses += 1
            times = stats.get_bypass
        except RedisUnavailable:
            stats.degraded_reads += 1
            times = stats.get_degraded
        return await self._tasks.finish(self._complete_by_id(namespace, checkpoint_id)), times

    async def _complete_by_id(self, namespace: Namespace, checkpoint_id: str) -> Record | None:
        await self._replayer.flush_threads([namespace.thread_id])
        return await self._postgres.by_id(namespace, checkpoint_id)

    async def _flushed(self, namespace: Namespace, ack: LeasePosition | None) -> Latest:
        """What was acknowledged of the namespace before, out of Postgres, which may have to follow first."""
        latest = await self._postgres.latest(namespace)
        while not self._replayer.is_flushed(ack, latest.lease):
            ack = await self._tasks.finish(self._replayer.settle(namespace.thread_id))
            latest = await self._postgres.latest(namespace)
        return latest

    async def drain(self) -> None:
        """Waits until nothing is under way."""
        await self._auditor.drain()
        await self._tasks.drain()
        await self._postgres.drain()

    async def _wait_for_turn(self, namespace: Namespace, fill_token: str) -> ReadAnswer:
        """Asks for the entry until it is there, the fill lease is ours, or it is time to go to Postgres."""
        deadline = self._clock() + WAIT_SECONDS_MAX
        pause = POLL_SECONDS_MIN
        answer = await self._entries.read(namespace, fill_token)
        if isinstance(answer, Miss) and answer.why == "wait":
            self._stats.waits += 1
        while isinstance(answer, Miss) and answer.why == "wait" and self._clock() < deadline:
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - spreads the waiters
            pause = min(2 * pause, POLL_SECONDS_MAX)
            answer = await self._entries.read(namespace, fill_token)
        return answer

    async def _entry(self, namespace: Namespace, hit: Hit) -> Latest | None:
        """The entry that was hit, or None when it has to be asked of Postgres."""
        try:
            entry = self._entries.decode(namespace, hit)
        except DamagedEntry as exc:
            self._stats.damaged += 1
            self._log_once(exc)
            await self._entries.discard(namespace)
            return None
        if entry is not None:
            self._stats.hits += 1
            if self._check_hits:
                self._auditor.sample(namespace, hit, entry.record)
        return entry

    def _empty(self, namespace: Namespace) -> Found:
        self._stats.hits += 1
        if self._check_hits:
            self._auditor.sample(namespace, None, None)
        return None, self._stats.get_hit

    def _log_once(self, damage: DamagedEntry) -> None:
        """Logs it, but not over and over: others may write what this process does not take, for hours."""
        if self._clock() >= self._log_again_at:
            self._log_again_at = self._clock() + LOG_EVERY_SECONDS
            logger.warning("dropped what Redis held (more of the kind is only counted for a while): %s", damage)

    async def _load(self, namespace: Namespace, fill_token: str, load: Load) -> Record | None:
        self._stats.loads += 1
        try:
            latest = await self._flushed(namespace, load.lease)
        except BaseException:
            with contextlib.suppress(RedisUnavailable):
                await self._entries.release_fill_lease(
                    namespace, fill_token
                )  # so that others need not wait it out
            raise
        # Whoever asked does not wait for it. What this process asks of Redis later comes after it.
        filling = self._tasks.start(self._entries.fill(namespace, fill_token, load, latest))
        filling.add_done_callback(self._filled)
        return latest.record

    def _filled(self, filling: asyncio.Task[bool]) -> None:
        if not filling.cancelled() and filling.exception() is None:  # else the fill lease runs out
            self._stats.fills += filling.result()
            self._stats.fills_refused += not filling.result()
