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

from langgraph_checkpoint_cached.engine.hit_auditor import Checker
from langgraph_checkpoint_cached.engine.invalidation import Recovery
from langgraph_checkpoint_cached.engine.journal_replayer import Settler
from langgraph_checkpoint_cached.records import Latest, Namespace, Record
from langgraph_checkpoint_cached.stats import Histogram, Stats
from langgraph_checkpoint_cached.stores.postgres.store import PostgresStore
from langgraph_checkpoint_cached.stores.redis.entries import (
    Hit,
    Load,
    Miss,
    ReadAnswer,
    RedisEntries,
    RedisUnavailable,
    Told,
)
from langgraph_checkpoint_cached.stores.redis.entry_format import DamagedEntry
from langgraph_checkpoint_cached.utils.background_tasks import Tasks
from langgraph_checkpoint_cached.utils.tokens import new_token

logger = logging.getLogger("langgraph_checkpoint_cached")

WAIT_SECONDS_MAX = 2.0
"""How long a reader waits for another one's load before it reads Postgres itself."""
POLL_SECONDS_MIN = 0.002
POLL_SECONDS_MAX = 0.05
COMPLAINT_EVERY_SECONDS = 60.0

Found: TypeAlias = "tuple[Record | None, Histogram]"
"""What a read found, and where the time it took is to be recorded."""


class Reader:
    """Reads of checkpoints through both tiers.

    The interleaving that must not happen, and what prevents it:

    1. a reader misses and takes the ticket;
    2. it loads checkpoint 1 from Postgres;
    3. a writer begins, commits checkpoint 2 to Postgres, and has that confirmed by Redis;
    4. the reader fills checkpoint 1, and every later read is stale.

    BEGIN in step 3 voided the ticket, so the FILL in step 4 is refused. (Leases: Nishtala et al., *Scaling
    Memcache at Facebook*, NSDI 2013.) The ticket is also what makes many readers of a cold thread load it once.
    """

    def __init__(
        self,
        entries: RedisEntries,
        postgres: PostgresStore,
        recovery: Recovery,
        settler: Settler,
        stats: Stats,
        check_hits: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._entries, self._postgres, self._recovery = entries, postgres, recovery
        self._settler, self._stats, self._clock = settler, stats, clock
        self._check_hits = check_hits
        self._checker = Checker(entries, postgres, recovery, settler, stats, check_hits)
        self._tasks = Tasks()
        self._complain_at = -math.inf

    async def latest(self, namespace: Namespace) -> Found:
        """The namespace's latest checkpoint, or None if it has none."""
        if not self._recovery.has_looked:
            await self._recovery.look()
        stats = self._stats
        try:
            answer = await self._wait_for_turn(namespace, ticket := new_token())
            if isinstance(answer, Hit):
                entry = await self._entry(namespace, answer)
                if entry is not None:
                    return entry.record, stats.get_hit
            elif isinstance(answer, Miss) and answer.why == "empty":
                return self._empty(namespace)
            elif isinstance(answer, Load):
                return await self._tasks.finish(self._load(namespace, ticket, answer)), stats.get_load
            stats.bypasses += 1
            times = stats.get_bypass
            told = answer.lease if isinstance(answer, Miss) else None
        except RedisUnavailable:
            stats.degraded_reads += 1
            times, told = stats.get_degraded, None
        return (await self._complete(namespace, told)).record, times

    async def by_id(self, namespace: Namespace, checkpoint_id: str) -> Found:
        """One checkpoint, or None if it does not exist. Served by the entry when that is the one."""
        if not self._recovery.has_looked:
            await self._recovery.look()
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
        await self._settler.settle_all([namespace.thread_id])
        return await self._postgres.by_id(namespace, checkpoint_id)

    async def _complete(self, namespace: Namespace, told: Told | None) -> Latest:
        """What was acknowledged of the namespace before, out of Postgres, which may have to follow first."""
        latest = await self._postgres.latest(namespace)
        while not self._settler.is_complete(told, latest.lease):
            told = await self._tasks.finish(self._settler.settle(namespace.thread_id))
            latest = await self._postgres.latest(namespace)
        return latest

    async def drain(self) -> None:
        """Waits until nothing is under way."""
        await self._checker.drain()
        await self._tasks.drain()
        await self._postgres.drain()

    async def _wait_for_turn(self, namespace: Namespace, ticket: str) -> ReadAnswer:
        """Asks for the entry until it is there, the ticket is ours, or it is time to go to Postgres."""
        deadline = self._clock() + WAIT_SECONDS_MAX
        pause = POLL_SECONDS_MIN
        answer = await self._entries.read(namespace, ticket)
        if isinstance(answer, Miss) and answer.why == "wait":
            self._stats.waits += 1
        while isinstance(answer, Miss) and answer.why == "wait" and self._clock() < deadline:
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - spreads the waiters
            pause = min(2 * pause, POLL_SECONDS_MAX)
            answer = await self._entries.read(namespace, ticket)
        return answer

    async def _entry(self, namespace: Namespace, hit: Hit) -> Latest | None:
        """The entry that was hit, or None when it has to be asked of Postgres."""
        try:
            entry = self._entries.decode(namespace, hit)
        except DamagedEntry as exc:
            self._stats.damaged += 1
            self._complain(exc)
            await self._entries.discard(namespace)
            return None
        if entry is not None:
            self._stats.hits += 1
            if self._check_hits:
                self._checker.sample(namespace, hit, entry.record)
        return entry

    def _empty(self, namespace: Namespace) -> Found:
        self._stats.hits += 1
        if self._check_hits:
            self._checker.sample(namespace, None, None)
        return None, self._stats.get_hit

    def _complain(self, damage: DamagedEntry) -> None:
        """Logs it, but not over and over: others may write what this process does not take, for hours."""
        if self._clock() >= self._complain_at:
            self._complain_at = self._clock() + COMPLAINT_EVERY_SECONDS
            logger.warning("dropped what Redis held (more of the kind is only counted for a while): %s", damage)

    async def _load(self, namespace: Namespace, ticket: str, load: Load) -> Record | None:
        self._stats.loads += 1
        try:
            latest = await self._complete(namespace, load.lease)
        except BaseException:
            with contextlib.suppress(RedisUnavailable):
                await self._entries.give_back(namespace, ticket)  # so that others need not wait it out
            raise
        # Whoever asked does not wait for it. What this process asks of Redis later comes after it.
        filling = self._tasks.start(self._entries.fill(namespace, ticket, load, latest))
        filling.add_done_callback(self._filled)
        return latest.record

    def _filled(self, filling: asyncio.Task[bool]) -> None:
        if not filling.cancelled() and filling.exception() is None:  # else the ticket runs out
            self._stats.fills += filling.result()
            self._stats.fills_refused += not filling.result()
