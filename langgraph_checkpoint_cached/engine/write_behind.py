"""Write-behind: a write is acknowledged when Redis has it, in the entry and in the journal; Postgres follows."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Any

import psycopg

from langgraph_checkpoint_cached.engine.invalidation import StaleThreadInvalidator
from langgraph_checkpoint_cached.engine.journal_replayer import EVERYTHING, JournalReplayer, quietly
from langgraph_checkpoint_cached.engine.lease_acquirer import LeaseAcquirer
from langgraph_checkpoint_cached.engine.leases import Lease, PendingWrite
from langgraph_checkpoint_cached.engine.write_through import WriteThrough
from langgraph_checkpoint_cached.errors import OverloadedError
from langgraph_checkpoint_cached.records import Put, PutWrites
from langgraph_checkpoint_cached.stats import Stats
from langgraph_checkpoint_cached.stores.postgres.errors import is_statement_error
from langgraph_checkpoint_cached.stores.postgres.leases import Replay
from langgraph_checkpoint_cached.stores.postgres.store import PostgresStore
from langgraph_checkpoint_cached.stores.postgres.validation import is_storable
from langgraph_checkpoint_cached.stores.redis.entries import DROP, EntryUpdate, RedisEntries, RedisUnavailable
from langgraph_checkpoint_cached.stores.redis.executor import NotDone
from langgraph_checkpoint_cached.stores.redis.journal import Journal
from langgraph_checkpoint_cached.stores.redis.script_call import Unconfirmed
from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks
from langgraph_checkpoint_cached.utils.batch_queue import answer

logger = logging.getLogger("langgraph_checkpoint_cached")

LINGER_SECONDS = 5.0
"""How long a lease outlasts its last write."""
GATHER_SECONDS = 0.05
"""How long what is appended is gathered, so that Postgres follows in few transactions."""
RETRY_SECONDS = 0.25
UNFLUSHED_MAX = 100_000
"""Writes of one process that Postgres does not have yet. At this, or the next bound, it writes through."""
UNFLUSHED_BYTES_MAX = 256 * 1024 * 1024
TRANSACTIONS_OF_A_ROUND_MAX = 20
"""After which idle leases are looked for."""
REPLAY_WRITES_MAX = 256
REPLAY_BYTES_MAX = 8 * 1024 * 1024
LEASES_HELD_MAX = 20_000
CLOSE_SECONDS_MAX = 10.0
ENDED_AT_ONCE_MAX = 500
REVOKED_AT_ONCE_MAX = 100
CLOSE_POLL_SECONDS = 0.01


class WriteBehindQueue:
    """Holds leases: this process' right to be ahead of Postgres, thread by thread. See `tests/models`.

    It keeps what it has appended to a journal until Postgres has it. So the journal is only read when this
    process is gone, and what was acknowledged is lost only if both are. When Redis fails, or does not say
    whether it has appended something, the lease is *given up*: all that was kept is stored in the transaction
    that ends it.
    """

    def __init__(
        self,
        entries: RedisEntries,
        journal: Journal,
        postgres: PostgresStore,
        writer: WriteThrough,
        replayer: JournalReplayer,
        recovery: StaleThreadInvalidator,
        stats: Stats,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._entries, self._journal, self._postgres, self._writer = entries, journal, postgres, writer
        self._replayer, self._invalidator, self._stats = replayer, recovery, stats
        self._loop, self._clock = loop, clock
        self._opener = LeaseAcquirer(journal, postgres, self._opened, clock)
        self._leases: dict[str, Lease] = {}
        self._dirty: dict[Lease, None] = {}  # those with something to replay, in turn
        self._unflushed = self._unflushed_bytes = 0
        self._tasks = BackgroundTasks()
        self._flusher: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._closing = False
        replayer.ask_holder = self.flush_on_request
        stats.unflushed.read = lambda: self._unflushed
        stats.unflushed_bytes.read = lambda: self._unflushed_bytes
        stats.leases_held.read = lambda: len(self._leases)

    # -- appends ---------------------------------------------------------------------------------------------

    def write(self, operation: Put | PutWrites) -> asyncio.Future[None]:
        """Stores it in Redis, with Postgres to follow; through both tiers where that cannot be.

        Queued when this returns; whoever waits for it and is cancelled does not stop it. Raises as
        `WriteThrough.write`.
        """
        entry_update = self._entries.entry_update_for(operation)
        if (
            entry_update is DROP
            or self._unflushed >= UNFLUSHED_MAX
            or self._unflushed_bytes >= UNFLUSHED_BYTES_MAX
            or not is_storable(operation)
        ):
            return self._writer.write(operation)
        done: asyncio.Future[None] = self._loop.create_future()
        lease = self._leases.get(operation.namespace.thread_id)
        if lease is None:
            self._tasks.start(self._write_with_a_lease(operation, entry_update, done))
        else:
            self._append(lease, operation, entry_update, done)
        return done

    async def _write_with_a_lease(
        self, operation: Put | PutWrites, entry_update: EntryUpdate, done: asyncio.Future[None]
    ) -> None:
        try:
            lease = await self._lease(operation.namespace.thread_id)
        except BaseException as exc:
            answer(done, exc)
            raise
        if lease is None:
            self._write_through(operation, done)
        else:
            self._append(lease, operation, entry_update, done)

    def _append(
        self, lease: Lease, operation: Put | PutWrites, entry_update: EntryUpdate, done: asyncio.Future[None]
    ) -> None:
        if not lease.usable:
            self._write_through(operation, done)
            return
        kept = PendingWrite(operation)
        self._keep(lease, kept)
        appended = self._journal.append(operation.namespace, lease.token, entry_update)
        appended.add_done_callback(partial(self._appended, lease, kept, done))

    def _appended(
        self, lease: Lease, kept: PendingWrite, done: asyncio.Future[None], appended: asyncio.Future[Any]
    ) -> None:
        lease.appending -= 1
        error = appended.exception()
        if error is not None and not isinstance(error, NotDone):
            lease.usable = False
            self._tasks.start(self._resolve(lease, kept, done))  # nobody knows whether it was appended
            return
        reply = None if error else appended.result()
        unconfirmed = isinstance(reply, Unconfirmed)
        if isinstance(reply, Unconfirmed):
            reply = reply.answer
        if not isinstance(reply, int):
            self._forget(lease, kept)
            lease.usable &= reply is None or not reply.startswith(b"closed")
            self._write_through(kept.operation, done)
            return
        kept.number = reply
        self._stats.appends += 1
        self._dirty[lease] = None
        self._wake.set()
        if unconfirmed:
            self._tasks.start(_answered_by(self.flush_on_request(lease.thread_id), done))
        else:
            answer(done, None)

    async def _resolve(self, lease: Lease, kept: PendingWrite, done: asyncio.Future[None]) -> None:
        try:
            if lease.thread_id in await self._revoke([lease]):
                answer(done, None)
                return
        except BaseException as exc:
            answer(done, exc)
            if not isinstance(exc, Exception):
                raise
            return
        self._write_through(kept.operation, done)

    def _write_through(self, operation: Put | PutWrites, done: asyncio.Future[None]) -> None:
        try:
            written = self._writer.write(operation)
        except OverloadedError as exc:
            answer(done, exc)
            return
        written.add_done_callback(lambda written: answer(done, written.exception()))

    def _keep(self, lease: Lease, kept: PendingWrite) -> None:
        lease.appending += 1
        lease.appended_at = self._clock()
        lease.kept.append(kept)
        lease.namespaces.add(kept.operation.namespace)
        self._unflushed += 1
        self._unflushed_bytes += kept.operation.size_bytes

    def _forget(self, lease: Lease, kept: PendingWrite) -> None:
        if lease.forget(kept):
            self._unflushed -= 1
            self._unflushed_bytes -= kept.operation.size_bytes

    async def _lease(self, thread_id: str) -> Lease | None:
        if self._closing or len(self._leases) >= LEASES_HELD_MAX:
            return None
        return await self._opener.open(thread_id)

    def _opened(self, lease: Lease) -> bool:
        """Whether it is wanted still."""
        if self._closing:
            return False
        self._stats.leases += 1
        self._leases[lease.thread_id] = lease
        self._start_flushing()
        return True

    # -- Postgres follows ------------------------------------------------------------------------------------

    def _start_flushing(self) -> None:
        if not self._closing and (self._flusher is None or self._flusher.done()):
            self._flusher = self._tasks.start(self._flush_while_held())

    async def _flush_while_held(self) -> None:
        while self._leases and not self._closing:
            self._wake.clear()
            follows = False
            try:
                follows = await quietly(self._flush_all)
                await quietly(self._end_idle)
            except Exception:  # whatever it is, other threads are not to wait for it
                logger.exception("Postgres could not follow, and will be asked again")
            if follows and not self._dirty:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), LINGER_SECONDS / 2)
            await asyncio.sleep(GATHER_SECONDS if follows else RETRY_SECONDS)

    async def _flush_all(self) -> None:
        """A transaction, or some if these are full; what comes meanwhile is gathered. Raises psycopg's errors."""
        for _ in range(TRANSACTIONS_OF_A_ROUND_MAX):
            if due := self._due(list(self._dirty)):
                await self._flush(due)
            if sum(len(kept) for _, kept in due) < REPLAY_WRITES_MAX // 2:
                return

    def _due(self, leases: Collection[Lease]) -> list[tuple[Lease, list[PendingWrite]]]:
        """What one transaction is to replay: the threads in turn, each up to where its journal is known."""
        found: list[tuple[Lease, list[PendingWrite]]] = []
        writes = size_bytes = 0
        for lease in leases:
            self._dirty.pop(lease, None)
            due: list[PendingWrite] = []
            for kept in lease.ready():
                if writes >= REPLAY_WRITES_MAX or size_bytes >= REPLAY_BYTES_MAX:
                    self._dirty[lease] = None
                    break
                due.append(kept)
                writes, size_bytes = writes + 1, size_bytes + kept.operation.size_bytes
            if due:
                found.append((lease, due))
            if writes >= REPLAY_WRITES_MAX or size_bytes >= REPLAY_BYTES_MAX:
                break
        return found

    async def _flush(self, due: Sequence[tuple[Lease, list[PendingWrite]]]) -> None:
        """Raises psycopg's errors."""
        replays = [_replay(lease, kept) for lease, kept in due]
        try:
            still = await self._postgres.replay(replays)
        except psycopg.Error as exc:
            self._dirty |= dict.fromkeys(lease for lease, _ in due)
            if not is_statement_error(exc):
                raise
            if len(due) == 1:
                self._opener.log_once(STUCK.format(due[0][0].thread_id, exc))
                raise
            await self._flush_alone(due)
            return
        for lease, kept in due:
            for each in kept:
                self._forget(lease, each)
            if lease.thread_id in still:
                lease.flushed = max(lease.flushed, kept[-1].number or 0)
                self._journal.trim(lease.thread_id, lease.token, lease.flushed)
            else:
                logger.info(
                    "thread %r: its lease was ended by another process, which has replayed what was to follow, "
                    "or deleted the thread (%d writes)",
                    lease.thread_id,
                    len(lease.kept),
                )
                self._drop(lease)

    async def _flush_alone(self, due: Sequence[tuple[Lease, list[PendingWrite]]]) -> None:
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
        """The lease is over: ended by another process that has replayed it, or by a delete, or lost."""
        lease.usable = False
        self._replayer.schedule_cleanup(lease.thread_id, lease.token)
        self._dirty.pop(lease, None)
        for kept in list(lease.kept):
            self._forget(lease, kept)
        if self._leases.get(lease.thread_id) is lease:
            del self._leases[lease.thread_id]

    async def _end_idle(self) -> None:
        """Raises psycopg's errors."""
        now = self._clock()
        over = [
            lease for lease in self._leases.values() if not lease.appending and lease.is_over(now - LINGER_SECONDS)
        ]
        for start in range(0, len(over), ENDED_AT_ONCE_MAX):
            some = over[start : start + ENDED_AT_ONCE_MAX]
            await self._end([lease for lease in some if not lease.kept])
            for lease in some:
                if lease.kept and not lease.usable:
                    await quietly(partial(self._revoke, [lease]))

    async def _end(self, leases: Sequence[Lease]) -> None:
        """Ends leases with nothing to replay, in Redis and then in Postgres. Raises psycopg's errors."""
        if not leases:
            return
        for lease in leases:
            lease.usable = False
        closed = await asyncio.gather(
            *(self._journal.close(x.thread_id, x.token, x.flushed, x.namespaces) for x in leases),
            return_exceptions=True,  # what is left there nobody takes for a lease without its row
        )
        reply = [(lease, answer is True) for lease, answer in zip(leases, closed, strict=True)]
        for end, sure in ((self._postgres.leases.end, True), (self._postgres.end_unconfirmed, False)):
            if ended := [lease for lease, is_closed in reply if is_closed is sure]:
                await end({lease.thread_id: (lease.token, None) for lease in ended})
                for lease in ended:
                    self._drop(lease)

    # -- when it matters -------------------------------------------------------------------------------------

    async def flush_on_request(self, thread_id: str, *, lost: bool = False) -> None:
        """Has Postgres follow on a thread. Ends the lease if Redis has lost it, or cannot be asked.

        Raises psycopg's errors.
        """
        await self._opener.wait([thread_id])
        lease = self._leases.get(thread_id)
        if lease is None:
            return
        lease.usable &= not lost
        upto = max((kept.number for kept in lease.ready() if kept.number), default=0)
        while lease.flushed < upto and (due := self._due([lease])):
            await self._flush(due)
        if not lease.usable and (lease.kept or not lease.appending):
            await (self._revoke([lease]) if lease.kept else self._end([lease]))

    def revoke_all(self) -> None:
        """Redis has failed: nobody else can have Postgres follow now."""
        if self._leases:
            self._tasks.start(self._revoke_in_turn(list(self._leases.values())))

    async def _revoke_in_turn(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            lease.usable = False
        for start in range(0, len(leases), REVOKED_AT_ONCE_MAX):
            await self._revoke(leases[start : start + REVOKED_AT_ONCE_MAX])

    async def _revoke(self, leases: Sequence[Lease]) -> set[str]:
        """Ends leases and stores all that was kept, in one transaction. Returns the threads for which that was
        done.

        Raises psycopg's errors: then it will be tried again, by whoever comes next.
        """
        for lease in leases:
            lease.usable = False
        while any(lease.appending for lease in leases):  # noqa: ASYNC110 - they end within `redis_timeout`
            await asyncio.sleep(RETRY_SECONDS / 10)
        leases = [lease for lease in leases if self._leases.get(lease.thread_id) is lease]
        threads = [lease.thread_id for lease in leases]
        if not leases:
            return set()
        still = await self._postgres.replay([_replay(x, list(x.kept), end=True) for x in leases], threads)
        for lease in leases:
            self._drop(lease)
        for lease in leases:
            await self._invalidate(lease, recorded=lease.thread_id in still)
        return still

    async def _invalidate(self, lease: Lease, *, recorded: bool) -> None:
        """What Redis holds of the thread may not be what Postgres does now."""
        try:
            await self._entries.end_thread(lease.thread_id, lease.token)
            await self._journal.close(lease.thread_id, lease.token, EVERYTHING)
        except RedisUnavailable:
            await self._invalidator.report_unconfirmed(lease.thread_id, lease.token, recorded=recorded)

    async def flush(self, thread_ids: Collection[str] | None = None) -> None:
        """Returns when Postgres has all that this process appended before; of these threads, or of all.

        Raises psycopg's errors.
        """
        failed: psycopg.Error | None = None
        for thread_id in list(self._leases) if thread_ids is None else thread_ids:
            try:
                await self.flush_on_request(thread_id)
            except psycopg.Error as exc:
                failed = exc
        if failed is not None:
            raise failed

    async def close(self) -> None:
        """Ends all leases, with Postgres up to date. What it does not take in time, others replay."""
        self._closing = True
        self._wake.set()
        closing = self._tasks.start(self._close())
        _, late = await asyncio.wait({closing}, timeout=CLOSE_SECONDS_MAX)
        if late or closing.exception() is not None:
            logger.warning(
                "closed with %d writes in Redis alone, for other processes to replay: %s",
                self._unflushed,
                "Postgres is too slow, or down" if late else closing.exception(),
            )
        closing.cancel()
        if self._flusher is not None:
            self._flusher.cancel()
        await self._opener.drain(CLOSE_SECONDS_MAX)
        await self._tasks.drain(CLOSE_SECONDS_MAX)

    async def _close(self) -> None:
        await self._opener.wait()
        while self._leases:
            for lease in self._leases.values():
                lease.usable = False
            await self._flush_all()
            await self._end_idle()
            if self._leases:  # something is on its way
                await asyncio.sleep(CLOSE_POLL_SECONDS)


async def _answered_by(work: Awaitable[None], done: asyncio.Future[None]) -> None:
    try:
        await work
    except Exception as exc:  # noqa: BLE001 - its caller's to handle
        answer(done, exc)
    else:
        answer(done, None)


STUCK = 'mode="write_behind": thread {!r}: Postgres does not take what Redis took, and will be asked again: {}'


def _replay(lease: Lease, kept: Sequence[PendingWrite], *, end: bool = False) -> Replay:
    return Replay(lease.thread_id, lease.token, [(each.number, each.operation) for each in kept], end)
