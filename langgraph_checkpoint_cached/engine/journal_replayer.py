"""Settling: what a lease's journal holds is replayed into Postgres, by whoever needs it there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from typing import NamedTuple

import psycopg

from langgraph_checkpoint_cached.errors import BehindError
from langgraph_checkpoint_cached.records import LeaseRow
from langgraph_checkpoint_cached.stats import Stats
from langgraph_checkpoint_cached.stores.postgres.errors import is_statement_error
from langgraph_checkpoint_cached.stores.postgres.leases import Replay, pages
from langgraph_checkpoint_cached.stores.postgres.store import PostgresStore
from langgraph_checkpoint_cached.stores.redis.entries import LeasePosition, RedisUnavailable
from langgraph_checkpoint_cached.stores.redis.entry_format import DamagedEntry
from langgraph_checkpoint_cached.stores.redis.journal import Journal

logger = logging.getLogger("langgraph_checkpoint_cached")

ABANDONED_SECONDS = 10.0
"""A lease that has not moved for so long, in this process' sight, is taken for its holder's last."""
POLL_GAP_SECONDS_MAX = 3.0
"""A process that has not reached Postgres for so long has lost sight: holders may not have reached it either."""
FLUSH_SECONDS_MAX = ABANDONED_SECONDS + 5
LAG_SECONDS_MAX = 60.0
ENDED_MAX = 100_000
LOG_EVERY_SECONDS = 60.0
PAUSE_SECONDS_MIN = 0.01
PAUSE_SECONDS_MAX = 0.25
FLUSHED_AT_ONCE_MAX = 8
EVERYTHING = 2**53
"""Higher than any number in a journal."""


class _Observation(NamedTuple):
    row: LeaseRow
    since: float


class JournalReplayer:
    """Has Postgres follow. Every process has one, whatever its mode: another may write behind on the same threads.

    A row in the table of leases says that Postgres may be behind on a thread. If Redis knows that lease, its
    journal is all there is: whoever replays it to its end has settled the thread. If Redis does not, as it has
    lost data or cannot be reached, only the holder knows what there was: it comes forward by itself, within a
    second or so, replays what it kept and ends the lease. A holder that does not is taken for dead after
    `ABANDONED_SECONDS`, and what was in Redis alone is lost.

    Args:
        ask_holder: Has the holder in this process, if it is that, replay what it has kept of a thread.
    """

    def __init__(
        self,
        journal: Journal,
        postgres: PostgresStore,
        stats: Stats,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal, self._postgres, self._stats, self._clock = journal, postgres, stats, clock
        self._seen: dict[str, _Observation] = {}
        self._ended: deque[tuple[float, str, str]] = deque(maxlen=ENDED_MAX)
        self._polled_at = self._log_again_at = -math.inf
        self.ask_holder: Callable[..., Awaitable[None]] | None = None

    @staticmethod
    def is_flushed(ack: LeasePosition | None, row: LeaseRow | None) -> bool:
        """Whether what was read from Postgres together with `row` is all there is; `ack` was said by Redis
        before.
        """
        return row is None or (ack is not None and ack.token == row.token and ack.last <= row.position)

    async def flush_threads(self, thread_ids: Collection[str] | None) -> None:
        """Returns when Postgres holds all that was acknowledged of these threads; None for all there are.

        Raises `BehindError`, and psycopg's errors.
        """
        if thread_ids is not None:
            if not thread_ids:
                return
            found = await self._postgres.leases.find(thread_ids)
            await self._flush_some(found)
            return
        async for found in pages(self._postgres.leases.after):
            await self._flush_some(found)

    async def _flush_some(self, thread_ids: Collection[str]) -> None:
        names = list(thread_ids)
        for start in range(0, len(names), FLUSHED_AT_ONCE_MAX):
            await asyncio.gather(*map(self.settle, names[start : start + FLUSHED_AT_ONCE_MAX]))

    async def settle(self, thread_id: str) -> LeasePosition | None:
        """Returns when Postgres holds all that was acknowledged of this thread before: the lease up to where.

        Raises `BehindError`, and psycopg's errors.
        """
        self._stats.flush_waits += 1
        deadline, pause, lost = self._clock() + FLUSH_SECONDS_MAX, PAUSE_SECONDS_MIN, False
        while True:
            if self.ask_holder is not None:
                await self.ask_holder(thread_id, lost=lost)
            lost = True
            row = (await self._postgres.leases.find([thread_id])).get(thread_id)
            self._note_poll()
            if row is None:
                return None
            with contextlib.suppress(RedisUnavailable):
                flush_waits = await self._replay(thread_id, row)
                if flush_waits is not None:
                    return flush_waits
                if await self._end_lost(thread_id, row):
                    continue
            if self._clock() > deadline:
                raise BehindError(
                    f"the latest writes of thread {thread_id!r} are not in Postgres, and Redis cannot be asked "
                    "for them now. Try again when Redis is there; what is in Postgres is older"
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, PAUSE_SECONDS_MAX)

    async def remove_ended_journals(self, thread_ids: Collection[str]) -> None:
        """Removes journals of leases that have ended, by a process that may be gone before it could tell Redis.

        The lease of what is in a journal had its row before: if there is another one now, or none, it has ended.
        Raises `RedisUnavailable`, and psycopg's errors.
        """
        tokens = await self._journal.newest(list(thread_ids))
        rows = await self._postgres.leases.find(thread_ids)
        ended = {t: token for t, token in tokens.items() if t not in rows or token not in ("", rows[t].token)}
        await self._journal.remove_ended_journals(ended)

    def schedule_cleanup(self, thread_id: str, token: str) -> None:
        """This lease has ended. A failover to a replica that lags may bring its journal back, for good, as it does
        not expire: it is removed once more, `LAG_SECONDS_MAX` later.
        """
        self._ended.append((self._clock() + LAG_SECONDS_MAX, thread_id, token))

    async def recover(self) -> None:
        """Ends the leases that nobody has moved for `ABANDONED_SECONDS`, and looks again at what had ended. To be
        called again and again.

        Raises `RedisUnavailable`, and psycopg's errors.
        """
        seen = set[str]()
        async for rows in pages(lambda last: self._postgres.leases.idle_after(last, ABANDONED_SECONDS / 2)):
            self._note_poll()
            for thread_id, row in rows.items():
                seen.add(thread_id)
                if self._is_abandoned(thread_id, row):
                    await self._try_to_recover(thread_id, row)
        for gone in self._seen.keys() - seen:
            del self._seen[gone]
        await self._clean_up_ended()

    async def _clean_up_ended(self) -> None:
        due = []
        while self._ended and self._ended[0][0] <= self._clock():
            due.append(self._ended.popleft())
        try:
            await self._journal.remove_ended_journals({thread_id: token for _, thread_id, token in due})
        except RedisUnavailable:
            self._ended.extendleft(reversed(due))
            raise

    async def _try_to_recover(self, thread_id: str, row: LeaseRow) -> None:
        """One thread that cannot be recovered does not keep the others from it."""
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
        if self.ask_holder is not None:
            await self.ask_holder(thread_id)  # it may be this process
        flush_waits = await self._replay(thread_id, row)
        self._note_poll()
        if flush_waits is None:
            await self._end_lost(thread_id, row)
        elif await self._journal.close(thread_id, row.token, flush_waits.last, sure=True):
            await self._postgres.leases.end({thread_id: (row.token, flush_waits.last)})
            self.schedule_cleanup(thread_id, row.token)
            self._stats.leases_recovered += 1

    async def _replay(self, thread_id: str, row: LeaseRow) -> LeasePosition | None:
        """Replays what the journal holds. None if Redis does not know this lease, so that there may have been
        more.
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
                if not await self._postgres.replay([replay]):
                    return LeasePosition(
                        row.token, page.last
                    )  # the lease is over: all of it is in Postgres, or deleted
                position = replay.last
                self._journal.trim(thread_id, row.token, position)
            if page.last >= 0 and target >= 0 and position >= target:
                return LeasePosition(row.token, position)
            if not page.entries:
                return None

    async def _end_lost(self, thread_id: str, row: LeaseRow) -> bool:
        """Ends a lease that Redis does not know, when its holder has had the time to come forward."""
        if not self._is_abandoned(thread_id, row):
            return False
        row = (await self._postgres.leases.find([thread_id])).get(thread_id) or row
        await self._postgres.end_unconfirmed({thread_id: (row.token, row.position)})
        with contextlib.suppress(RedisUnavailable):  # not before: readers take a closed lease for complete
            await self._journal.close(thread_id, row.token, EVERYTHING)
        self.schedule_cleanup(thread_id, row.token)
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
        """Postgres has answered. After a time in which it did not, leases are seen as if for the first time."""
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


async def quietly(work: Callable[[], Awaitable[object]]) -> bool:
    """Does what a background loop will do again. Whether it was done."""
    try:
        await work()
        return True
    except RedisUnavailable:
        pass
    except psycopg.Error as exc:
        logger.debug("Postgres cannot follow now: %s", exc)
    return False
