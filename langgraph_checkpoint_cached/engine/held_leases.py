"""Leases that this process holds, and the flushing to Postgres of what it has appended under them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Sequence
from functools import partial

import psycopg

from langgraph_checkpoint_cached.engine.background import quietly
from langgraph_checkpoint_cached.engine.ended_journals import EndedJournals
from langgraph_checkpoint_cached.engine.invalidation import StaleThreadInvalidator
from langgraph_checkpoint_cached.engine.leases import Lease, LeaseAcquirer, PendingWrite
from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.stores.postgres.errors import is_statement_error
from langgraph_checkpoint_cached.stores.postgres.leases import Replay
from langgraph_checkpoint_cached.stores.postgres.store import PostgresStore
from langgraph_checkpoint_cached.stores.redis.health import RedisUnavailable
from langgraph_checkpoint_cached.stores.redis.journal import JOURNAL_END, Journal
from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks

logger = logging.getLogger("langgraph_checkpoint_cached")

ACQUIRE_SECONDS_MAX = 2.0
"""Longest wait of a write for a lease, before it is written through."""
LINGER_SECONDS = 5.0
"""Time that a lease outlasts its last write."""
GATHER_SECONDS = 0.05
"""Time in which appends are gathered, so that they are flushed in few transactions."""
RETRY_SECONDS = 0.25
"""Pause after a failure; an idle flusher checks this often whether Redis has become unusable."""
TRANSACTIONS_PER_ROUND_MAX = 20
"""Number of transactions between two searches for idle leases."""
REPLAY_WRITES_MAX = 256
REPLAY_BYTES_MAX = 8 * 1024 * 1024
LEASES_HELD_MAX = 20_000
CLOSE_SECONDS_MAX = 10.0
ENDED_AT_ONCE_MAX = 500
REVOKED_AT_ONCE_MAX = 100
CLOSE_POLL_SECONDS = 0.01
LOGGED_MAX = 100
STUCK = 'mode="write_behind": thread {!r}: Postgres rejects a write that Redis took, and is asked again: {}'


class HeldLeases:
    """Leases of this process, thread by thread: its right to have unflushed writes. See
    `tests/models/lease_model.py`.

    What was appended to a journal is remembered until Postgres has it. So a journal is only read when its process
    is gone, and what was acknowledged is lost only if both are. When Redis fails, or does not say whether it has
    appended something, the lease is *revoked*: all that is pending is stored in the transaction that ends it.
    """

    def __init__(
        self,
        runtime: Runtime,
        journal: Journal,
        store: PostgresStore,
        invalidator: StaleThreadInvalidator,
        ended_journals: EndedJournals,
    ) -> None:
        self._stats, self._clock, self._journal, self._store = runtime.stats, runtime.clock, journal, store
        self._invalidator, self.ended_journals = invalidator, ended_journals
        self._health, self._openings = journal.health, journal.health.openings
        self._acquirer = LeaseAcquirer(runtime, journal, store)
        self._acquiring: dict[str, asyncio.Task[Lease | None]] = {}
        self.leases: dict[str, Lease] = {}
        """Leases by thread."""
        self._dirty: dict[Lease, None] = {}  # those with something to replay, in turn
        self._logged: set[str] = set()
        self._tasks = BackgroundTasks()
        self._flusher: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._closing = False

    # -- appends ---------------------------------------------------------------------------------------------

    async def acquire(self, thread_id: str) -> Lease | None:
        """Return a new lease on a thread; None if none can be acquired soon."""
        acquiring = self._acquiring.get(thread_id)
        if acquiring is None:
            if self._closing or len(self.leases) >= LEASES_HELD_MAX or not self._acquirer.may_acquire(thread_id):
                return None
            acquiring = self._acquiring[thread_id] = self._tasks.start(self._acquire(thread_id))
        done, _ = await asyncio.wait({acquiring}, timeout=ACQUIRE_SECONDS_MAX)
        return acquiring.result() if done else None

    def start_append(self, lease: Lease, write: PendingWrite) -> None:
        """Remember a write that is sent to be appended next."""
        lease.appending += 1
        lease.appended_at = self._clock()
        lease.pending.append(write)
        lease.namespaces.add(write.operation.namespace)
        self._stats.unflushed += 1
        self._stats.unflushed_bytes += write.operation.size_bytes

    def end_append(self, lease: Lease, write: PendingWrite, number: int) -> None:
        """Note that a write was appended, under this number."""
        lease.appending -= 1
        write.number = number
        self._stats.appends += 1
        self._dirty[lease] = None
        self._wake.set()

    def undo_append(self, lease: Lease, write: PendingWrite, *, is_closed: bool) -> None:
        """Note that a write was not appended; with `is_closed` because the lease is over."""
        lease.appending -= 1
        lease.usable &= not is_closed
        self._forget(lease, write)

    def lose_append(self, lease: Lease) -> None:
        """Note that nobody knows whether a write was appended: the lease is to be revoked."""
        lease.appending -= 1
        lease.usable = False

    def _forget(self, lease: Lease, write: PendingWrite) -> None:
        if lease.forget(write):
            self._stats.unflushed -= 1
            self._stats.unflushed_bytes -= write.operation.size_bytes

    async def _acquire(self, thread_id: str) -> Lease | None:
        try:
            lease = await self._acquirer.acquire(thread_id)
            if lease is None:
                return None
            if self._closing:
                await quietly(partial(self._acquirer.release, lease))
                return None
            self._stats.leases += 1
            self.leases[thread_id] = lease
            self._stats.leases_held = len(self.leases)
            if self._flusher is None or self._flusher.done():
                self._openings = self._health.openings
                self._flusher = self._tasks.start(self._flush_while_held())
            return lease
        finally:
            del self._acquiring[thread_id]

    async def _wait_until_acquired(self, thread_id: str | None = None) -> None:
        """Wait until no lease is being acquired on this thread, or on any."""
        acquiring = list(self._acquiring.values()) if thread_id is None else [self._acquiring.get(thread_id)]
        if running := {task for task in acquiring if task is not None}:
            await asyncio.wait(running)

    # -- flushing --------------------------------------------------------------------------------------------

    async def _flush_while_held(self) -> None:
        while self.leases and not self._closing:
            self._wake.clear()
            if self._openings != self._health.openings:  # nobody else can flush what Redis has now
                self._openings = self._health.openings
                self._tasks.start(self._revoke_in_turn(list(self.leases.values())))
            succeeded = False
            try:
                succeeded = await quietly(self._flush_all)
                await quietly(self._end_idle)
            except Exception:  # whatever it is, other threads are not to wait for it
                logger.exception("pending writes could not be flushed to Postgres, and will be tried again")
            if succeeded and not self._dirty:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), RETRY_SECONDS)
            await asyncio.sleep(GATHER_SECONDS if succeeded else RETRY_SECONDS)

    async def _flush_all(self) -> None:
        """Flush in one transaction, or in several if these are full. Raises psycopg's errors."""
        for _ in range(TRANSACTIONS_PER_ROUND_MAX):
            if due := self._take_due(list(self._dirty)):
                await self._flush(due)
            if sum(len(writes) for _, writes in due) < REPLAY_WRITES_MAX // 2:
                return

    def _take_due(self, leases: Collection[Lease]) -> list[tuple[Lease, list[PendingWrite]]]:
        """Return what one transaction is to replay: the threads in turn, each up to where its journal is known."""
        found: list[tuple[Lease, list[PendingWrite]]] = []
        count = size_bytes = 0
        for lease in leases:
            self._dirty.pop(lease, None)
            due: list[PendingWrite] = []
            for write in lease.ready():
                if count >= REPLAY_WRITES_MAX or size_bytes >= REPLAY_BYTES_MAX:
                    self._dirty[lease] = None
                    break
                due.append(write)
                count, size_bytes = count + 1, size_bytes + write.operation.size_bytes
            if due:
                found.append((lease, due))
            if count >= REPLAY_WRITES_MAX or size_bytes >= REPLAY_BYTES_MAX:
                break
        return found

    async def _flush(self, due: Sequence[tuple[Lease, list[PendingWrite]]]) -> None:
        """Replay in one transaction. Raises psycopg's errors."""
        changes = self._store.identity.identity.changes
        try:
            valid = await self._store.replay([_replay(lease, writes) for lease, writes in due])
        except psycopg.Error as exc:
            self._dirty |= dict.fromkeys(lease for lease, _ in due)
            if not is_statement_error(exc):
                raise
            if len(due) == 1:
                self._log_once(STUCK.format(due[0][0].thread_id, exc))
                raise
            await self._flush_alone(due)
            return
        for lease, writes in due:
            for write in writes:
                self._forget(lease, write)
            if lease.thread_id in valid:
                lease.changes = changes
                lease.flushed = max(lease.flushed, writes[-1].number or 0)
                self._journal.trim(lease.thread_id, lease.token, lease.flushed)
            else:
                logger.info(
                    "thread %r: its lease was ended by another process, which has replayed the journal or deleted "
                    "the thread (%d writes)",
                    lease.thread_id,
                    len(lease.pending),
                )
                self._drop(lease)

    async def _flush_alone(self, due: Sequence[tuple[Lease, list[PendingWrite]]]) -> None:
        """Replay each lease in a transaction of its own, as one of them fails. Raises the last of their errors."""
        failed: psycopg.Error | None = None
        for one in due:
            self._dirty.pop(one[0], None)
            try:
                await self._flush([one])
            except psycopg.Error as exc:
                one[0].usable = False  # its next caller gets this error from Postgres
                failed = exc
                if not is_statement_error(exc):
                    break
        if failed is not None:
            raise failed

    def _drop(self, lease: Lease) -> None:
        """Forget a lease that has ended: by another process that has replayed it, by a delete, or lost."""
        lease.usable = False
        self.ended_journals.schedule(lease.thread_id, lease.token)
        self._dirty.pop(lease, None)
        for write in list(lease.pending):
            self._forget(lease, write)
        if self.leases.get(lease.thread_id) is lease:
            del self.leases[lease.thread_id]
        self._stats.leases_held = len(self.leases)

    async def _end_idle(self) -> None:
        """End leases that are over. Raises psycopg's errors."""
        since = self._clock() - LINGER_SECONDS
        over = [lease for lease in self.leases.values() if not lease.appending and lease.is_over(since)]
        for start in range(0, len(over), ENDED_AT_ONCE_MAX):
            some = over[start : start + ENDED_AT_ONCE_MAX]
            await self._end([lease for lease in some if not lease.pending])
            for lease in some:
                if lease.pending and not lease.usable:
                    await quietly(partial(self.revoke, [lease]))

    async def _end(self, leases: Sequence[Lease]) -> None:
        """End leases with nothing to replay, in Redis and then in Postgres. Raises psycopg's errors."""
        if not leases:
            return
        for lease in leases:
            lease.usable = False
        results = await asyncio.gather(
            *(self._journal.close(x.thread_id, x.token, x.flushed, x.namespaces) for x in leases),
            return_exceptions=True,  # what is left there is no lease without its row
        )
        closed = [(lease, result is True) for lease, result in zip(leases, results, strict=True)]
        for end, confirmed in ((self._store.leases.end, True), (self._store.end_unconfirmed, False)):
            if ended := [lease for lease, is_closed in closed if is_closed is confirmed]:
                await end({lease.thread_id: (lease.token, None) for lease in ended})
                for lease in ended:
                    self._drop(lease)

    # -- on request ------------------------------------------------------------------------------------------

    async def flush_on_request(self, thread_id: str, *, lost: bool = False) -> None:
        """Flush a thread, if this process holds its lease.

        Args:
            thread_id: Thread to flush.
            lost: Whether Redis has lost the lease, or cannot be asked: then it is ended.

        Raises:
            psycopg.Error: Postgres does not take it now.
        """
        await self._wait_until_acquired(thread_id)
        lease = self.leases.get(thread_id)
        if lease is None:
            return
        lease.usable &= not lost
        upto = max((write.number for write in lease.ready() if write.number), default=0)
        while lease.flushed < upto and (due := self._take_due([lease])):
            await self._flush(due)
        if not lease.usable and (lease.pending or not lease.appending):
            await (self.revoke([lease]) if lease.pending else self._end([lease]))

    async def revoke(self, leases: Sequence[Lease]) -> set[str]:
        """End leases and store all that is pending, in one transaction. Return the threads for which that was
        done.

        Raises psycopg's errors: then whoever comes next tries it again.
        """
        for lease in leases:
            lease.usable = False
        while any(lease.appending for lease in leases):  # noqa: ASYNC110 - they end within `redis_timeout`
            await asyncio.sleep(RETRY_SECONDS / 10)
        leases = [lease for lease in leases if self.leases.get(lease.thread_id) is lease]
        if not leases:
            return set()
        replays = [_replay(lease, list(lease.pending), end=True) for lease in leases]
        valid = await self._store.replay(replays, [lease.thread_id for lease in leases])
        for lease in leases:
            self._drop(lease)
        for lease in leases:
            await self._invalidate(lease, recorded=lease.thread_id in valid)
        return valid

    async def _revoke_in_turn(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            lease.usable = False
        for start in range(0, len(leases), REVOKED_AT_ONCE_MAX):
            await self.revoke(leases[start : start + REVOKED_AT_ONCE_MAX])

    async def _invalidate(self, lease: Lease, *, recorded: bool) -> None:
        """Invalidate in Redis a thread of which Postgres may hold more now."""
        if await self._invalidator.invalidate(lease.thread_id, lease.token, recorded=recorded):
            try:
                await self._journal.close(lease.thread_id, lease.token, JOURNAL_END)
            except RedisUnavailable:
                # Else only this thread's slot is on its way to another node. The lease is over, and
                # `ended_journals` removes what is left.
                if not self._health.usable:
                    await self._invalidator.report_unconfirmed(lease.thread_id, lease.token, recorded=recorded)

    async def close(self) -> None:
        """End all leases, with Postgres up to date. Other processes replay what it does not take in time."""
        self._closing = True
        self._wake.set()
        closing = self._tasks.start(self._close())
        _, late = await asyncio.wait({closing}, timeout=CLOSE_SECONDS_MAX)
        if late or closing.exception() is not None:
            logger.warning(
                "closed with %d writes in Redis alone, for other processes to replay: %s",
                self._stats.unflushed,
                "Postgres is too slow, or down" if late else closing.exception(),
            )
        self._tasks.cancel(closing)
        if self._flusher is not None:
            self._tasks.cancel(self._flusher)
        await self._tasks.drain(CLOSE_SECONDS_MAX)

    async def _close(self) -> None:
        await self._wait_until_acquired()
        while self.leases:
            for lease in self.leases.values():
                lease.usable = False
            await self._flush_all()
            await self._end_idle()
            if self.leases:  # an append has no reply yet
                await asyncio.sleep(CLOSE_POLL_SECONDS)

    def _log_once(self, text: str) -> None:
        if text not in self._logged and len(self._logged) < LOGGED_MAX:
            self._logged.add(text)
            logger.error("%s", text)


def _replay(lease: Lease, writes: Sequence[PendingWrite], *, end: bool = False) -> Replay:
    entries = [(write.number, write.operation) for write in writes]
    return Replay(lease.thread_id, lease.token, entries, end, lease.changes)
