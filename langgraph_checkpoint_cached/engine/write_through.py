"""Write-through: Postgres first and always, under a fence that keeps Redis from serving anything older."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TypeAlias

from psycopg.errors import LockNotAvailable, QueryCanceled

from langgraph_checkpoint_cached.engine.invalidation import StaleThreadInvalidator
from langgraph_checkpoint_cached.engine.journal_replayer import JournalReplayer
from langgraph_checkpoint_cached.engine.recovery import Recovery
from langgraph_checkpoint_cached.errors import OVERLOADED, OverloadedError
from langgraph_checkpoint_cached.records import Put, PutWrites
from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.stores.postgres.errors import is_statement_error, outcome_unknown
from langgraph_checkpoint_cached.stores.postgres.identity import TooLate
from langgraph_checkpoint_cached.stores.postgres.store import PostgresStore
from langgraph_checkpoint_cached.stores.postgres.time_limit import LATE_SECONDS
from langgraph_checkpoint_cached.stores.redis.entries import DROP, EntryUpdate, RedisEntries, parse_commit
from langgraph_checkpoint_cached.stores.redis.fences import Fence, FenceAck
from langgraph_checkpoint_cached.stores.redis.health import RedisUnavailable
from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks
from langgraph_checkpoint_cached.utils.batch_queue import BatchQueue, answer
from langgraph_checkpoint_cached.utils.room import NoRoom, Room

CONFIRM_ATTEMPTS_MAX = 3
BATCH_ROWS_MAX = 512
BATCH_BYTES_MAX = 8 * 1024 * 1024
BATCHES_AT_ONCE = 2
SHARE_MIN = 32
"""Writes. Fewer cost more than they gain when they are shared out among two transactions."""
LATE_BATCHES_MAX = 4
"""Batches of `LATE_SECONDS` and more, past which the others are written on other connections of the pool."""
WRITES_WAITING_MAX = 10_000
WAITING_BYTES_MAX = 64 * 1024 * 1024
"""Writes and their bytes that wait for Postgres or are under way. Beyond that callers wait, before they encode."""
ROOM_SECONDS_MAX = 60.0
"""Longest wait of a caller for room while Postgres takes nothing."""
START_ATTEMPTS_MAX = 3
TOO_LATE = "not stored: Postgres did not begin a transaction in time, several times. It is too slow for this load"
CANCELED_MAX = 3
"""Writes of one batch that may each run into a statement timeout."""

Operation: TypeAlias = "Put | PutWrites"


@dataclass(eq=False, slots=True)
class _Write:
    """Write that is queued, its fence on the way, and the future of its caller."""

    operation: Operation
    thread_id: str
    done: asyncio.Future[None]
    fence: Fence
    update: EntryUpdate | None
    """Change to the entry, once it is worked out."""
    size_bytes: int
    fence_ack: FenceAck | None = None
    """Redis' confirmation of the fence. Without it, the write marks its thread stale."""
    is_flushed: bool = False
    """True if Postgres holds all writes of the thread that were acknowledged before."""

    @property
    def rows(self) -> int:
        return self.operation.rows


class WriteThrough:
    """Writes through both stores. One for each process and pool; copies of a saver share it.

    All writes of a process go through one queue: while a transaction runs, what arrives waits, and then is the
    next transaction. Many writes are shared out among two, each of its own threads: while Postgres commits one,
    this process is busy with the other. Redis learns of a thread's writes in the order in which Postgres
    committed them; another process' write in between is seen by its fence, and drops the entry.

    A thread whose entry could not be changed for a write is stale: see `StaleThreadInvalidator`.
    """

    def __init__(
        self,
        runtime: Runtime,
        entries: RedisEntries,
        store: PostgresStore,
        replayer: JournalReplayer,
        recovery: Recovery,
    ) -> None:
        self._loop, self._stats, self._boot_clock = runtime.loop, runtime.stats, runtime.boot_clock
        self._entries, self._fences, self._store = entries, entries.fences, store
        self._replayer, self._recovery, self._right = replayer, recovery, recovery.right
        self._invalidator: StaleThreadInvalidator = recovery.invalidator
        self.room = Room(count_max=WRITES_WAITING_MAX, bytes_max=WAITING_BYTES_MAX, seconds_max=ROOM_SECONDS_MAX)
        """Room for writes. A caller without any waits for it before it encodes what it writes."""
        self._queue: BatchQueue[_Write] = BatchQueue(
            self._run_batch,
            rows_max=BATCH_ROWS_MAX,
            bytes_max=BATCH_BYTES_MAX,
            room=self.room,
            at_once=BATCHES_AT_ONCE if store.is_pooled else 1,
            key=attrgetter("thread_id"),
            share_min=SHARE_MIN,
            late_seconds=LATE_SECONDS,
            late_max=LATE_BATCHES_MAX if store.is_pooled else 0,
            before=self._confirm_fence,  # LangGraph stores a checkpoint a moment after the writes before it
        )
        self._tasks = BackgroundTasks()

    def write(self, operation: Operation, update: EntryUpdate | None = None) -> asyncio.Future[None]:
        """Store an operation; done when Postgres has committed it and Redis has confirmed it.

        It is queued when this returns, and a caller that is cancelled does not stop it. What waits at the same
        time shares a transaction, in the order of these calls.

        Args:
            operation: Checkpoint or pending writes.
            update: What it does to the entry, if that is known already.
        """
        done: asyncio.Future[None] = self._loop.create_future()
        self._recovery.is_used = True
        if not self._recovery.is_started:
            self._recovery.start_poll()
        fence = self._fences.take(operation.namespace)
        thread_id = operation.namespace.thread_id
        self._queue.add(_Write(operation, thread_id, done, fence, update, operation.size_bytes))
        self._stats.writes_waiting = len(self._queue.waiting)
        return done

    async def wait_for_room(self) -> None:
        """Wait until few enough writes wait for Postgres. Then `write` before any other `await`.

        Raises:
            OverloadedError: Postgres took none for `ROOM_SECONDS_MAX`. Nothing was written.
        """
        try:
            await self.room.wait()
        except NoRoom as exc:
            raise OverloadedError(f"not stored, {OVERLOADED.format(ROOM_SECONDS_MAX)}") from exc

    async def drain(self) -> None:
        """Wait until nothing is queued or under way."""
        while len(self._tasks) or self._queue.waiting:  # what was flushed is queued again
            await self._tasks.drain()
            await self._queue.drain()
        await self._queue.drain()
        await self._entries.drain()
        self._fences.release_all()
        await self._entries.drain()
        await self._tasks.drain()

    async def _confirm_fence(self, write: _Write) -> None:
        """Wait for the write's fence. Without one its thread is stale, and COMMIT drops the entry."""
        if not write.fence.begin.done():
            self._entry_update(write)  # while something is waited for anyway
        write.fence_ack = ack = await self._fences.confirm(write.fence)
        if ack is None:
            self._recovery.reopen()
        else:
            write.is_flushed = write.fence.is_flushed or (ack.known and not ack.lease)

    def _entry_update(self, write: _Write) -> EntryUpdate:
        """Return what the write does to the entry, worked out once."""
        if write.update is None:
            try:
                write.update = self._entries.entry_update_for(write.operation)
            except ValueError:  # a surrogate in a name, say: Postgres refuses it
                write.update = DROP
        return write.update

    async def _run_batch(self, batch: Sequence[_Write]) -> None:
        """Commit a batch in Postgres, and send its COMMITs to Redis in the same order."""
        self._stats.writes_waiting = len(self._queue.waiting)
        self._stats.group_sizes.record(len(batch))
        is_flushed = True
        for write in batch:
            await self._confirm_fence(write)
            is_flushed = is_flushed and write.is_flushed
        if not is_flushed and not (batch := await self._take_flushed(batch)):
            return
        for write in batch:
            if write.update is None:
                self._loop.call_soon(self._entry_update, write)  # while Postgres commits
        for write, outcome in zip(batch, await self._store_batch(batch), strict=True):
            self._send_commit(write, outcome, alone=len(batch) == 1)

    async def _take_flushed(self, batch: Sequence[_Write]) -> Sequence[_Write]:
        """Return the writes before which Postgres lacks nothing of their thread; the others are queued again
        later.
        """
        unflushed = {write.thread_id for write in batch if not write.is_flushed}
        try:
            rows = await self._store.leases.find(unflushed)
        except Exception as exc:  # noqa: BLE001 - for the callers to handle
            for write in batch:
                self._send_commit(write, exc)
            return ()
        ready = []
        for write in batch:
            position = write.fence_ack.lease if write.fence_ack else None
            if write.is_flushed or self._replayer.is_flushed(position, rows.get(write.thread_id)):
                _mark_flushed(write)
                ready.append(write)
            else:
                self._tasks.start(self._flush_and_queue(write))
        return ready

    async def _flush_and_queue(self, write: _Write) -> None:
        try:
            await self._replayer.flush(write.thread_id)
            _mark_flushed(write)
            self._queue.add(write)
        except Exception as exc:  # noqa: BLE001 - for the caller to handle
            self._send_commit(write, exc)

    async def _store_batch(self, batch: Sequence[_Write]) -> Sequence[bool | Exception]:
        """Return for each write whether it is known what was stored, or the error."""
        for _ in range(START_ATTEMPTS_MAX):
            operations, stale, begun_at = [], set(), math.inf
            for write in batch:
                operations.append(write.operation)
                if write.fence_ack is None:
                    stale.add(write.thread_id)
                else:
                    begun_at = min(begun_at, write.fence.begun_at)
            try:
                return await self._store.store(operations, stale, begun_at + self._fences.start_seconds)
            except TooLate:  # it waited for a connection that long
                for write in batch:
                    await self._confirm_fence(write)
            except Exception as exc:  # noqa: BLE001 - for the callers to handle
                if len(batch) == 1 or not is_statement_error(exc):
                    return [exc] * len(batch)
                break
        else:
            return [OverloadedError(TOO_LATE)] * len(batch)
        # One of them is bad, and it fails alone. Where its time ran out, a few more of that kind mean that
        # Postgres is slow for all; then the others are not tried again, one wait after the other.
        outcomes: list[bool | Exception] = []
        for write in batch:
            slow = [o for o in outcomes if isinstance(o, (QueryCanceled, LockNotAvailable))]
            outcomes += await self._store_batch([write]) if len(slow) < CANCELED_MAX else [slow[-1]]
        return outcomes

    def _send_commit(self, write: _Write, outcome: bool | Exception, *, alone: bool = False) -> None:
        fence = write.fence
        if isinstance(outcome, Exception) and outcome_unknown(outcome):
            self._fences.retire(fence, expires=True)
            answer(write.done, outcome)
            return
        update = self._entry_update(write) if outcome is True else DROP
        retain = self._fences.prepare_commit(fence)
        committing = self._entries.commit(fence, update, retain=retain, now=alone)
        committing.add_done_callback(partial(self._on_committed, write, outcome))

    def _on_committed(
        self, write: _Write, outcome: bool | Exception, committing: asyncio.Future[int | None]
    ) -> None:
        error = committing.exception()
        if error is None:
            result = parse_commit(committing.result())
            self._fences.end_write(write.fence, was_active=result.was_fenced)
            self._stats.entry_updates += result.updated
            if self._right.until > self._boot_clock() or isinstance(outcome, Exception):
                self._finish(write, outcome)
            else:
                self._tasks.start(self._finish_under_right(write, outcome, recorded=write.fence_ack is None))
        elif isinstance(error, RedisUnavailable):
            self._recovery.reopen()
            self._fences.retire(write.fence)
            self._tasks.start(self._invalidate_instead(write, outcome))
        else:
            answer(write.done, error)  # the loop ends, and the fence is left to its deadline

    async def _invalidate_instead(self, write: _Write, outcome: bool | Exception) -> None:
        """Invalidate the thread where COMMIT was not confirmed.

        What is sent again may come after later writes of this process, so it only invalidates; and a whole
        thread, for that takes one key: a Cluster that is moving the thread's slot refuses scripts with more. The
        fence is active until then, and while other writes are under it.
        """
        confirmed = False
        for _ in range(CONFIRM_ATTEMPTS_MAX - 1):
            with contextlib.suppress(RedisUnavailable):
                await self._entries.end_thread(write.thread_id)
                confirmed = True
                break
        if not confirmed:
            recorded = write.fence_ack is None or isinstance(outcome, Exception)
            await self._invalidator.report_unconfirmed(write.thread_id, None, recorded=recorded)
        self._fences.end_write(write.fence)
        if confirmed and not isinstance(outcome, Exception):
            await self._finish_under_right(write, outcome, recorded=write.fence_ack is None)
            return
        self._stats.degraded_writes += not isinstance(outcome, Exception)
        self._finish(write, outcome)

    async def _finish_under_right(self, write: _Write, outcome: bool | Exception, *, recorded: bool) -> None:
        """Finish a write that Redis has confirmed, if that Redis still is the one that all processes use."""
        if not await self._recovery.renew():
            await self._invalidator.report_unconfirmed(write.thread_id, None, recorded=recorded)
            self._stats.degraded_writes += 1
        self._finish(write, outcome)

    def _finish(self, write: _Write, outcome: bool | Exception) -> None:
        if isinstance(outcome, Exception):
            answer(write.done, outcome)
            return
        self._stats.writes += 1
        if not write.done.done():
            write.done.set_result(None)


def _mark_flushed(write: _Write) -> None:
    """Note that Postgres was seen to lack nothing of the thread, after the fence was taken."""
    write.is_flushed = True
    if write.fence_ack is not None:
        write.fence.is_flushed = True
