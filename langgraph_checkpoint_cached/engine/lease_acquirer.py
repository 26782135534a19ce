"""How a process gets leases: a row in Postgres, and then the same token in Redis."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection

import psycopg

from langgraph_checkpoint_cached.engine.leases import Lease
from langgraph_checkpoint_cached.stores.postgres.store import PostgresStore
from langgraph_checkpoint_cached.stores.redis.entries import RedisUnavailable
from langgraph_checkpoint_cached.stores.redis.journal import Journal
from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks

logger = logging.getLogger("langgraph_checkpoint_cached")

OPEN_SECONDS_MAX = 2.0
"""How long a write waits for a lease before it is written through."""
LEASE_RETRY_SECONDS = 1.0
"""After a lease was not to be had, its thread is written through for so long."""
REFUSED_MAX = 20_000
LOGGED_MAX = 100
EVICTS = (
    'mode="write_behind": this Redis has maxmemory-policy {}, by which it may evict what it alone holds. Set it '
    "to noeviction or volatile-lru. Until then everything is written through"
)


class LeaseAcquirer:
    """Opens leases, one attempt at a time for each thread.

    Args:
        journal: Where Redis learns of the lease.
        postgres: Where its row is made.
        opened: Is told of each; whether it is wanted still.
        clock: Seconds, never going back.
    """

    def __init__(
        self,
        journal: Journal,
        postgres: PostgresStore,
        opened: Callable[[Lease], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal, self._postgres, self._opened, self._clock = journal, postgres, opened, clock
        self._opening: dict[str, asyncio.Task[Lease | None]] = {}
        self._refused: dict[str, float] = {}
        self._logged: set[str] = set()
        self._tasks = BackgroundTasks()

    async def open(self, thread_id: str) -> Lease | None:
        """A lease on the thread; None if it is not to be had in a moment."""
        opening = self._opening.get(thread_id)
        if opening is None:
            if self._clock() < self._refused.get(thread_id, 0):
                return None
            opening = self._opening[thread_id] = self._tasks.start(self._open(thread_id))
        done, _ = await asyncio.wait({opening}, timeout=OPEN_SECONDS_MAX)
        return opening.result() if done else None

    async def wait(self, thread_ids: Collection[str] | None = None) -> None:
        """Waits until no lease is being opened; on these threads."""
        opening = self._opening.values() if thread_ids is None else map(self._opening.get, thread_ids)
        if under_way := {task for task in opening if task is not None}:
            await asyncio.wait(under_way)

    async def drain(self, seconds: float) -> None:
        """Waits until nothing is under way, for no longer than that."""
        await self._tasks.drain(seconds)

    def log_once(self, text: str) -> None:
        """Logs it, once."""
        if text not in self._logged and len(self._logged) < LOGGED_MAX:
            self._logged.add(text)
            logger.error("%s", text)

    async def _open(self, thread_id: str) -> Lease | None:
        """Postgres first: from then on everybody who looks there waits. Then Redis, unless it was invalidated
        meanwhile.
        """
        try:
            if not self._postgres.leases.usable:
                return None
            token, generation = await self._journal.prepare(thread_id)
            if not await self._postgres.leases.take({thread_id: token}):
                self._refuse(thread_id)
                return None
            reply = ""
            with contextlib.suppress(RedisUnavailable):
                reply = await self._journal.open(thread_id, token, generation)
            if reply == "open" and self._opened(lease := Lease(thread_id, token, appended_at=self._clock())):
                return lease
            self._refuse(thread_id)
            if reply.startswith("evicts"):
                self.log_once(EVICTS.format(reply.partition(" ")[2]))
                await self._postgres.leases.end({thread_id: (token, None)})
            else:
                await self._end(thread_id, token)
        except RedisUnavailable:
            pass
        except psycopg.Error as exc:
            self._refuse(thread_id)
            if not self._postgres.leases.is_missing_table_error(exc):
                logger.debug("no lease on thread %r: %s", thread_id, exc)
        finally:
            del self._opening[thread_id]
        return None

    async def _end(self, thread_id: str, token: str) -> None:
        """While its row was there, nobody could tell that an empty journal was of the lease before."""
        closed = False
        with contextlib.suppress(RedisUnavailable):
            closed = await self._journal.close(thread_id, token, 0)
        end = self._postgres.leases.end if closed else self._postgres.end_unconfirmed
        await end({thread_id: (token, None)})

    def _refuse(self, thread_id: str) -> None:
        if len(self._refused) >= REFUSED_MAX:
            self._refused.clear()
        self._refused[thread_id] = self._clock() + LEASE_RETRY_SECONDS
