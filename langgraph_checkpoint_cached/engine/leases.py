"""Leases, each the right to write behind on a thread, in memory; and how a process acquires them."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import psycopg

from langgraph_checkpoint_cached.records import Namespace, Put, PutWrites
from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.stores.postgres.store import PostgresStore
from langgraph_checkpoint_cached.stores.redis.health import RedisUnavailable
from langgraph_checkpoint_cached.stores.redis.journal import Journal

logger = logging.getLogger("langgraph_checkpoint_cached")

NAMESPACES_MAX = 1000
"""Namespaces of one lease. Each is a key for the script that closes it."""
LEASE_RETRY_SECONDS = 1.0
"""Time that a thread is written through after no lease could be taken for it."""
REFUSED_MAX = 20_000
EVICTS = (
    'mode="write_behind": this Redis has maxmemory-policy {}, by which it may evict what it alone holds. Set it '
    "to noeviction or volatile-lru. Until then everything is written through"
)


@dataclass(eq=False)
class PendingWrite:
    """Write that was sent to Redis. It gets its number in the journal with the reply; None: nobody knows yet."""

    operation: Put | PutWrites
    number: int | None = None


@dataclass(eq=False)
class Lease:
    """Right to write behind on a thread, and what was sent to be appended, in order, until Postgres has it.

    Appends are sent in order, so what is pending before the first one without a number is known to be all there
    is up to there: only so far may it be replayed.
    """

    thread_id: str
    token: str
    usable: bool = True
    """True while more may be appended."""
    appending: int = 0
    """Number of appends without a reply."""
    appended_at: float = 0.0
    changes: int = 0
    """Number of changes of Postgres' identity when its row was known to be there."""
    flushed: int = 0
    """Number in the journal up to which Postgres has it."""
    pending: deque[PendingWrite] = field(default_factory=deque)
    namespaces: set[Namespace] = field(default_factory=set)

    def is_over(self, idle_since: float) -> bool:
        """Return whether it is to be ended: not usable, idle since then, or over very many namespaces."""
        return not self.usable or self.appended_at < idle_since or len(self.namespaces) >= NAMESPACES_MAX

    def forget(self, write: PendingWrite) -> bool:
        """Take a write off that was not appended or is in Postgres; return whether it was still pending."""
        if self.pending and self.pending[0] is write:
            self.pending.popleft()
            return True
        try:
            self.pending.remove(write)
        except ValueError:
            return False
        return True

    def ready(self) -> Iterator[PendingWrite]:
        """Yield what may be replayed."""
        for write in self.pending:
            if write.number is None:
                return
            yield write


class LeaseAcquirer:
    """Acquisition of leases: a row in Postgres, then the same token in Redis.

    Args:
        runtime: Clock.
        journal: Redis, which learns of the lease.
        store: Postgres, where its row is made.
    """

    def __init__(self, runtime: Runtime, journal: Journal, store: PostgresStore) -> None:
        self._clock, self._journal, self._store = runtime.clock, journal, store
        self._refused: dict[str, float] = {}
        self._logged: set[str] = set()

    def may_acquire(self, thread_id: str) -> bool:
        """Return whether an attempt is worthwhile: none was refused a moment ago."""
        return self._clock() >= self._refused.get(thread_id, 0)

    async def acquire(self, thread_id: str) -> Lease | None:
        """Return a lease on the thread; None if none can be acquired.

        The row comes first: from then on everybody who looks there waits. Then it is opened in Redis, unless the
        thread was invalidated meanwhile.
        """
        try:
            if not self._store.leases.usable:
                return None
            changes = self._store.identity.identity.changes
            token, generation = await self._journal.prepare(thread_id)
            if not await self._store.leases.take({thread_id: token}):
                self._refuse(thread_id)
                return None
            reply = ""
            with contextlib.suppress(RedisUnavailable):
                reply = await self._journal.open(thread_id, token, generation)
            lease = Lease(thread_id, token, appended_at=self._clock(), changes=changes)
            if reply == "open":
                return lease
            if reply.startswith("evicts"):
                self._refuse(thread_id)
                self._log_once(EVICTS.format(reply.partition(" ")[2]))
                await self._store.leases.end({thread_id: (token, None)})
            else:
                await self.release(lease)
        except RedisUnavailable:
            pass
        except psycopg.Error as exc:
            self._refuse(thread_id)
            if not self._store.leases.is_missing_table_error(exc):
                logger.debug("no lease on thread %r: %s", thread_id, exc)
        return None

    async def release(self, lease: Lease) -> None:
        """End a lease that nothing was appended under. Raises psycopg's errors.

        While its row existed, nobody could tell whose an empty journal was.
        """
        self._refuse(lease.thread_id)
        closed = False
        with contextlib.suppress(RedisUnavailable):
            closed = await self._journal.close(lease.thread_id, lease.token, 0)
        end = self._store.leases.end if closed else self._store.end_unconfirmed
        await end({lease.thread_id: (lease.token, None)})

    def _refuse(self, thread_id: str) -> None:
        if len(self._refused) >= REFUSED_MAX:
            self._refused.clear()
        self._refused[thread_id] = self._clock() + LEASE_RETRY_SECONDS

    def _log_once(self, text: str) -> None:
        if text not in self._logged:
            self._logged.add(text)
            logger.error("%s", text)
