"""Replay of journals: what Redis has acknowledged is flushed to Postgres, by whoever needs it there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Collection
from typing import NamedTuple

import psycopg

from langgraph_checkpoint_cached.engine.held_leases import HeldLeases
from langgraph_checkpoint_cached.engine.reopener import Reopener
from langgraph_checkpoint_cached.errors import BehindError
from langgraph_checkpoint_cached.records import LeaseRow
from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.stores.postgres.errors import is_statement_error
from langgraph_checkpoint_cached.stores.postgres.leases import Replay, pages
from langgraph_checkpoint_cached.stores.postgres.store import PostgresStore
from langgraph_checkpoint_cached.stores.redis.entry_format import DamagedEntry
from langgraph_checkpoint_cached.stores.redis.health import RedisUnavailable
from langgraph_checkpoint_cached.stores.redis.journal import JOURNAL_END, Journal
from langgraph_checkpoint_cached.stores.redis.positions import LeasePosition

logger = logging.getLogger("langgraph_checkpoint_cached")

ABANDONED_SECONDS = 10.0
"""When a lease has not moved for this long, as far as this process has seen, its holder is presumed dead."""
POLL_GAP_SECONDS_MAX = 3.0
"""A process that has not reached Postgres for this long starts to observe anew: holders may not have reached
it.
"""
FLUSH_SECONDS_MAX = ABANDONED_SECONDS + 5
LOG_EVERY_SECONDS = 60.0
PAUSE_SECONDS_MIN = 0.01
PAUSE_SECONDS_MAX = 0.25
FLUSHED_AT_ONCE_MAX = 8


class _Observation(NamedTuple):
    row: LeaseRow
    since: float


class JournalReplayer:
    """Flusher of threads to Postgres. Every process has one, whatever its mode: others may write behind.

    A row in the table of leases says that Postgres may lack writes of a thread. If Redis knows that lease, its
    journal is complete: whoever replays it to its end has flushed the thread. If Redis does not, as it has lost
    data or cannot be reached, only the holder knows what there was: within a second or so it notices, replays
    what it remembers and ends the lease. A holder that does not is presumed dead after `ABANDONED_SECONDS`, and
    what was in Redis alone is lost.
    """

    def __init__(
        self,
        runtime: Runtime,
        journal: Journal,
        store: PostgresStore,
        held: HeldLeases,
        reopener: Reopener,
    ) -> None:
        self._clock, self._stats, self._journal, self._store = runtime.clock, runtime.stats, journal, store
        self._held, self._ended_journals, self._reopener = held, held.ended_journals, reopener
        self._seen: dict[str, _Observation] = {}
        self._polled_at = self._log_again_at = -math.inf

    @staticmethod
    def is_flushed(position: LeasePosition | None, row: LeaseRow | None) -> bool:
        """Return whether what was read from Postgres together with `row` is complete.

        Args:
            position: Position of the lease in an earlier reply of Redis; None if there was none.
            row: Row of the thread's lease, None if it has none.
        """
        return row is None or (
            position is not None and position.token == row.token and position.last <= row.position
        )

    def is_held(self, thread_id: str) -> bool:
        """Return whether this process has a lease on a thread: all of it that is new goes through this process."""
        lease = self._held.leases.get(thread_id)
        return lease is not None and lease.usable

    async def flush_threads(self, thread_ids: Collection[str] | None) -> None:
        """Return when Postgres holds all that was acknowledged of these threads; None for all there are.

        Raises `BehindError`, and psycopg's errors.
        """
        if thread_ids is not None:
            if thread_ids:
                await self._flush_some(await self._store.leases.find(thread_ids))
            return
        async for found in pages(self._store.leases.after):
            await self._flush_some(found)

    async def _flush_some(self, thread_ids: Collection[str]) -> None:
        names = list(thread_ids)
        for start in range(0, len(names), FLUSHED_AT_ONCE_MAX):
            await asyncio.gather(*map(self.flush, names[start : start + FLUSHED_AT_ONCE_MAX]))

    async def flush(self, thread_id: str) -> LeasePosition | None:
        """Return when Postgres holds all that was acknowledged of this thread: up to which position, None for all.

        Raises `BehindError`, and psycopg's errors.
        """
        self._stats.flush_waits += 1
        deadline, pause, lost = self._clock() + FLUSH_SECONDS_MAX, PAUSE_SECONDS_MIN, False
        while True:
            await self._held.flush_on_request(thread_id, lost=lost)
            lost = True
            row = (await self._store.leases.find([thread_id])).get(thread_id)
            self._note_poll()
            if row is None:
                return None
            try:
                flushed = await self._replay(thread_id, row)
                if flushed is not None:
                    return flushed
                if await self._end_lost(thread_id, row):
                    continue
            except RedisUnavailable:
                self._reopener.reopen()
            if self._clock() > deadline:
                raise BehindError(
                    f"the latest writes of thread {thread_id!r} are not in Postgres, and Redis cannot be asked "
                    "for them now. Try again when Redis is there; what is in Postgres is older"
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, PAUSE_SECONDS_MAX)

    async def recover(self) -> None:
        """End the leases that nobody has moved for `ABANDONED_SECONDS`. To be called again and again.

        Raises `RedisUnavailable`, and psycopg's errors.
        """
        seen = set[str]()
        async for rows in pages(lambda last: self._store.leases.idle_after(last, ABANDONED_SECONDS / 2)):
            self._note_poll()
            for thread_id, row in rows.items():
                seen.add(thread_id)
                if self._is_abandoned(thread_id, row):
                    await self._try_to_recover(thread_id, row)
        for gone in self._seen.keys() - seen:
            del self._seen[gone]
        await self._ended_journals.remove_due()

    async def _try_to_recover(self, thread_id: str, row: LeaseRow) -> None:
        """Recover a thread; log, but go on with the others, if this one cannot be recovered."""
        try:
            await self._recover(thread_id, row)
        except RedisUnavailable:
            raise
        except (BehindError, psycopg.Error) as exc:
            if isinstance(exc, psycopg.Error) and not is_statement_error(exc):
                raise
            if self._clock() >= self._log_again_at:
                self._log_again_at = self._clock() + LOG_EVERY_SECONDS
                logger.error("a lease cannot be recovered, and will be tried again: %s", exc)

    async def _recover(self, thread_id: str, row: LeaseRow) -> None:
        await self._held.flush_on_request(thread_id)  # this process may hold it
        flushed = await self._replay(thread_id, row)
        self._note_poll()
        if flushed is None:
            await self._end_lost(thread_id, row)
        elif await self._journal.close(thread_id, row.token, flushed.last, sure=True):
            await self._store.leases.end({thread_id: (row.token, flushed.last)})
            self._ended_journals.schedule(thread_id, row.token)
            self._stats.leases_recovered += 1

    async def _replay(self, thread_id: str, row: LeaseRow) -> LeasePosition | None:
        """Replay the journal; return up to which position, None if Redis does not know this lease: there may have
        been more.
        """
        position, target = row.position, None
        while True:
            try:
                page = await self._journal.page(thread_id, row.token, position)
            except DamagedEntry as exc:
                raise BehindError(f"the journal of thread {thread_id!r} cannot be read: {exc}") from exc
            target = page.last if target is None else target  # what comes later need not be waited for
            if page.entries:
                replay = Replay(thread_id, row.token, page.entries)
                if not await self._store.replay([replay]):
                    return LeasePosition(
                        row.token, page.last
                    )  # the lease has ended: all is in Postgres, or deleted
                position = replay.last
                self._journal.trim(thread_id, row.token, position)
            if page.last >= 0 and target >= 0 and position >= target:
                return LeasePosition(row.token, position)
            if not page.entries:
                return None

    async def _end_lost(self, thread_id: str, row: LeaseRow) -> bool:
        """End a lease that Redis does not know, once its holder has had the time to flush.

        Return whether its row is to be read again.
        """
        if not self._is_abandoned(thread_id, row):
            return False
        row = (await self._store.leases.find([thread_id])).get(thread_id) or row
        if not await self._store.end_unconfirmed({thread_id: (row.token, row.position)}):
            return True  # another call or process has ended it, or its holder has moved it
        with contextlib.suppress(RedisUnavailable):  # not before: readers take a closed lease for complete
            await self._journal.close(thread_id, row.token, JOURNAL_END)
        self._ended_journals.schedule(thread_id, row.token)
        self._stats.leases_recovered += 1
        self._stats.leases_lost += 1
        logger.error(
            "thread %r: Redis has lost the journal of a process that is gone too. What it acknowledged after the "
            "journal's entry %d, if anything, is lost",
            thread_id,
            row.position,
        )
        return True

    def _note_poll(self) -> None:
        """Note that Postgres has answered. After a time in which it did not, leases are observed anew."""
        now = self._clock()
        if now - self._polled_at > POLL_GAP_SECONDS_MAX:
            self._seen.clear()
        self._polled_at = now

    def _is_abandoned(self, thread_id: str, row: LeaseRow) -> bool:
        seen = self._seen.get(thread_id)
        if seen is None or seen.row != row:
            self._seen[thread_id] = _Observation(row, self._clock())
            return False
        return self._clock() - seen.since > ABANDONED_SECONDS
