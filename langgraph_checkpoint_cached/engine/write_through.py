"""Writes: Postgres first and always, under a fence that keeps Redis from serving anything older."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, TypeVar

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.errors import LockNotAvailable, QueryCanceled

from langgraph_checkpoint_cached.engine.invalidation import StaleThreadInvalidator
from langgraph_checkpoint_cached.engine.journal_replayer import JournalReplayer
from langgraph_checkpoint_cached.errors import OVERLOADED, OverloadedError
from langgraph_checkpoint_cached.records import Put, PutWrites
from langgraph_checkpoint_cached.stats import Stats
from langgraph_checkpoint_cached.stores.postgres.errors import is_statement_error, outcome_unknown, retrying
from langgraph_checkpoint_cached.stores.postgres.store import PostgresStore
from langgraph_checkpoint_cached.stores.redis.entries import (
    DROP,
    EntryUpdate,
    FenceAck,
    LeasePosition,
    RedisEntries,
    RedisUnavailable,
)
from langgraph_checkpoint_cached.stores.redis.fences import Fence, Fences
from langgraph_checkpoint_cached.stores.redis.journal import Journal
from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks
from langgraph_checkpoint_cached.utils.batch_queue import BatchQueue, QueueFull, answer
from langgraph_checkpoint_cached.utils.tokens import new_token

CONFIRM_ATTEMPTS_MAX = 3
BATCH_ROWS_MAX = 512
BATCH_BYTES_MAX = 8 * 1024 * 1024
BATCHES_AT_ONCE = 2
SHARE_MIN = 32
"""Writes. Fewer cost more than they gain when they are shared out among two transactions."""
WRITES_WAITING_MAX = 10_000
CANCELED_MAX = 3
"""Writes of one group that may each run into a statement timeout."""
THREADS_AT_ONCE_MAX = 16

T = TypeVar("T")
Operation: TypeAlias = "Put | PutWrites"


@dataclass(eq=False)
class _Write:
    """A write that is queued, its fence on the way, and who waits for it."""

    operation: Operation
    done: asyncio.Future[None]
    fence: Fence
    begun: FenceAck | None = None
    """What Redis said of the fence. If it did not confirm it, the write marks its thread stale."""
    flush_waits: bool = False
    """Without a fence: whether Postgres held all that was acknowledged of the thread a moment ago."""
    entry_update: EntryUpdate | None = None
    """What it does to the entry, once that is worked out."""

    @property
    def fenced(self) -> bool:
        """Whether Redis has confirmed the fence."""
        return self.begun is not None

    @property
    def is_flushed(self) -> bool:
        """Whether nothing of the thread that was acknowledged before is missing in Postgres."""
        if self.begun is None:
            return self.flush_waits
        return self.fence.is_flushed or (self.begun.known and not self.begun.lease)

    def mark_flushed(self) -> None:
        """Postgres was seen to hold all of it, after the fence was taken."""
        if self.begun is None:
            self.flush_waits = True
        else:
            self.fence.is_flushed = True

    @property
    def rows(self) -> int:
        return self.operation.rows

    @property
    def size_bytes(self) -> int:
        return self.operation.size_bytes


class WriteThrough:
    """Writes through both tiers. One writer per process and pool; copies of a saver share it.

    All writes of a process go through one queue: while a transaction is under way, what arrives waits, and then
    is the next transaction. Many writes are shared out among two, each of its own threads: while Postgres commits
    one, this process is busy with the other. Redis is told of a thread's writes in the order in which Postgres
    committed them; another process' write in between is seen by its fence, and drops the entry.

    A thread whose entry could not be told of a write is stale: see `StaleThreadInvalidator`.
    """

    def __init__(
        self,
        entries: RedisEntries,
        fences: Fences,
        postgres: PostgresStore,
        journal: Journal,
        replayer: JournalReplayer,
        recovery: StaleThreadInvalidator,
        stats: Stats,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._entries, self._fences, self._postgres, self._invalidator = entries, fences, postgres, recovery
        self._journal, self._replayer = journal, replayer
        self._stats, self._loop = stats, loop
        self._queue: BatchQueue[_Write] = BatchQueue(
            self._store,
            rows_max=BATCH_ROWS_MAX,
            bytes_max=BATCH_BYTES_MAX,
            waiting_max=WRITES_WAITING_MAX,
            at_once=BATCHES_AT_ONCE if postgres.is_pooled else 1,
            key=_thread_id,
            share_min=SHARE_MIN,
            before=self._gather,
        )
        stats.writes_waiting.read = lambda: self._queue.waiting
        self._tasks = BackgroundTasks()

    def write(self, operation: Operation) -> asyncio.Future[None]:
        """Stores a checkpoint or pending writes; done when Postgres has committed it and Redis knows of it.

        It is queued when this returns, and whoever waits for it and is cancelled does not stop it. What waits at
        the same time shares a transaction, in the order of these calls.

        Raises:
            OverloadedError: too many are waiting already. Nothing was written.
        """
        done: asyncio.Future[None] = self._loop.create_future()
        fence = self._fences.take(operation.namespace)
        try:
            self._queue.add(_Write(operation, done, fence))
        except QueueFull as exc:
            self._fences.withdraw(fence)
            raise _too_many() from exc
        return done

    async def settle(self, thread_ids: Collection[str] | None) -> None:
        """Returns when Postgres holds all that was acknowledged of these threads before; None for all."""
        await self._replayer.flush_threads(thread_ids)

    async def drain(self) -> None:
        """Waits until nothing is queued or under way."""
        while len(self._tasks) or self._queue.waiting:  # what was settled is queued again
            await self._tasks.drain()
            await self._queue.drain()
        await self._queue.drain()
        await self._entries.drain()
        self._fences.release_all()
        await self._entries.drain()
        await self._tasks.drain()

    async def change_threads(
        self,
        thread_ids: Sequence[str],
        change: Callable[[AsyncPostgresSaver], Awaitable[T]],
        *,
        in_transaction: bool = True,
        deletes: bool = False,
    ) -> T:
        """Runs a change of whole threads; nothing of them is served from Redis, nor stored there, meanwhile.

        Unless it deletes them, Postgres holds all that was acknowledged of them first. Without Redis even then:
        else whoever writes behind on them would go on, and not know that it has no lease any more.

        Args:
            thread_ids: Those threads.
            change: Does it, on the upstream saver that it is given.
            in_transaction: Whether that may be inside a transaction. If not, it must leave every latest checkpoint
                as it is.
            deletes: Whether it deletes all there is of them, so that their leases go too.
        """
        token = new_token()
        leases: dict[str, LeasePosition] = {}

        async def begin(thread_id: str) -> None:
            if lease := await self._entries.begin_thread(thread_id, token):
                leases[thread_id] = lease

        async def end(thread_id: str) -> None:
            await self._end_thread(thread_id, token, recorded=thread_id in unfenced)
            if deletes and (lease := leases.get(thread_id)):
                with contextlib.suppress(RedisUnavailable):
                    await self._journal.close(thread_id, lease.token, lease.last)

        unfenced = await self._on_threads(thread_ids, begin)
        try:
            await self._replayer.flush_threads(unfenced if deletes else thread_ids)
            ended = thread_ids if deletes else ()
            return await retrying(lambda: self._change(change, unfenced, ended, in_transaction=in_transaction))
        except BaseException as exc:
            if outcome_unknown(exc):
                thread_ids = []  # their fences stay to the deadline
            raise
        finally:
            await self._on_threads(thread_ids, end)

    async def _change(
        self,
        change: Callable[[AsyncPostgresSaver], Awaitable[T]],
        unfenced: Collection[str],
        ended: Collection[str],
        *,
        in_transaction: bool,
    ) -> T:
        if ended or (unfenced and in_transaction):
            async with self._postgres.upstream_in_transaction(unfenced, ended) as upstream:
                return await change(upstream)
        if unfenced:
            await self._postgres.stale_threads.add(unfenced)
        return await change(self._postgres.upstream())

    async def _gather(self, write: _Write) -> None:
        """Gives what comes beside the write the time to come: until its fence stands, or for a event-loop
        iteration. LangGraph stores a checkpoint a moment after the writes before it.
        """
        await asyncio.sleep(0)
        await self._await_fence(write)

    async def _await_fence(self, write: _Write) -> None:
        """Waits for the write's fence. Without one its thread is stale, and COMMIT drops the entry."""
        if not write.fence.begin.done():
            self._entry_update(write)
        write.begun = await self._fences.begun(write.fence)

    def _entry_update(self, write: _Write) -> EntryUpdate:
        """What the write does to the entry, worked out once: best while something is waited for."""
        if write.entry_update is None:
            try:
                write.entry_update = self._entries.entry_update_for(write.operation)
            except ValueError:  # a surrogate in a name, say: Postgres will tell its caller
                write.entry_update = DROP
        return write.entry_update

    async def _flushed(self, group: Sequence[_Write]) -> Sequence[_Write]:
        """Those before which nothing of their thread is missing in Postgres; the others come back when that is
        so.
        """
        doubtful = {_thread_id(write) for write in group if not write.is_flushed}
        if not doubtful:
            return group
        try:
            rows = await self._postgres.leases.find(doubtful)
        except Exception as exc:  # noqa: BLE001 - the callers' to handle
            for write in group:
                self._send_commit(write, exc)
            return ()
        ready = []
        for write in group:
            row = rows.get(_thread_id(write))
            if write.is_flushed or self._replayer.is_flushed(write.begun.lease if write.begun else None, row):
                write.mark_flushed()
                ready.append(write)
            else:
                self._tasks.start(self._settle(write))
        return ready

    async def _settle(self, write: _Write) -> None:
        try:
            await self._replayer.settle(_thread_id(write))
            write.mark_flushed()
            self._queue.add(write)
        except QueueFull:
            self._send_commit(write, _too_many())
        except Exception as exc:  # noqa: BLE001 - its caller's to handle
            self._send_commit(write, exc)

    async def _store(self, group: Sequence[_Write]) -> None:
        """Commits a group in Postgres, and queues what Redis is to be told of it in the same order."""
        self._stats.group_sizes.record(len(group))
        for write in group:
            await self._await_fence(write)
        group = await self._flushed(group)
        if not group:
            return
        for write in group:
            self._loop.call_soon(self._entry_update, write)
        for write, outcome in zip(group, await self._outcomes(group), strict=True):
            self._send_commit(write, outcome, alone=len(group) == 1)

    async def _outcomes(self, group: Sequence[_Write]) -> Sequence[bool | Exception]:
        """For each, whether it is known what was stored, or the error."""
        stale_threads = {_thread_id(write) for write in group if not write.fenced}
        try:
            return await self._postgres.store([write.operation for write in group], stale_threads)
        except Exception as exc:  # noqa: BLE001 - the callers' to handle
            if len(group) == 1 or not is_statement_error(exc):
                return [exc] * len(group)
        # One of them is bad, and it fails alone. Where it was its time that ran out, a few more of that kind mean
        # that Postgres is slow for all; then the rest is not tried again, one wait after the other.
        outcomes: list[bool | Exception] = []
        for write in group:
            slow = [o for o in outcomes if isinstance(o, (QueryCanceled, LockNotAvailable))]
            outcomes += await self._outcomes([write]) if len(slow) < CANCELED_MAX else [slow[-1]]
        return outcomes

    def _send_commit(self, write: _Write, outcome: bool | Exception, *, alone: bool = False) -> None:
        fence = write.fence
        if isinstance(outcome, Exception) and outcome_unknown(outcome):
            self._fences.forget(fence, stays=True)
            answer(write.done, outcome)
            return
        entry_update = self._entry_update(write) if outcome is True else DROP
        retain = self._fences.ends(fence)
        ack = self._entries.commit(fence.namespace, fence.token, entry_update, retain=retain, now=alone)
        ack.add_done_callback(partial(self._acknowledged, write, outcome))

    def _acknowledged(self, write: _Write, outcome: bool | Exception, ack: asyncio.Future[int | None]) -> None:
        error = ack.exception()
        if error is None:
            reply = ack.result()
            self._fences.ended(write.fence, stood=reply is not None)
            self._stats.fences_expired += max(0, -(reply or 0))
            self._end(write, outcome, reply or 0)
        elif isinstance(error, RedisUnavailable):
            self._fences.forget(write.fence)
            self._tasks.start(self._invalidate_instead(write, outcome))
        else:
            answer(write.done, error)  # the loop ends, and the fence stays to its deadline

    async def _invalidate_instead(self, write: _Write, outcome: bool | Exception) -> None:
        # What is sent again may come after later writes of this process, so it only invalidates, and a thread,
        # for that takes one key: a Cluster that is moving the thread's slot refuses what takes more.
        # The fence stands until then, and while other writes are under it.
        thread_id = _thread_id(write)

        async def void() -> int:
            await self._entries.end_thread(thread_id)
            return 0

        recorded = not write.fenced or isinstance(outcome, Exception)
        ack = await self._until_confirmed(thread_id, None, void, CONFIRM_ATTEMPTS_MAX - 1, recorded=recorded)
        self._fences.ended(write.fence)
        self._end(write, outcome, ack)

    def _end(self, write: _Write, outcome: bool | Exception, advanced: int | None) -> None:
        if isinstance(outcome, Exception):
            answer(write.done, outcome)
            return
        self._stats.writes += 1
        self._stats.entry_updates += advanced == 1
        self._stats.degraded_writes += advanced is None
        answer(write.done, None)

    async def _until_confirmed(
        self,
        thread_id: str,
        token: str | None,
        step: Callable[[], Awaitable[T]],
        attempts: int,
        *,
        recorded: bool,
    ) -> T | None:
        """Repeats an idempotent step until Redis confirms it. None if it does not: the thread is stale."""
        for _ in range(attempts):
            with contextlib.suppress(RedisUnavailable):
                return await step()
        await self._invalidator.report_unconfirmed(thread_id, token, recorded=recorded)
        return None

    async def _end_thread(self, thread_id: str, token: str, *, recorded: bool) -> None:
        await self._until_confirmed(
            thread_id,
            token,
            lambda: self._entries.end_thread(thread_id, token),
            CONFIRM_ATTEMPTS_MAX,
            recorded=recorded,
        )

    async def _on_threads(
        self, thread_ids: Sequence[str], step: Callable[[str], Awaitable[None]]
    ) -> Collection[str]:
        """Takes the step for every thread, a few at a time. Returns those for which Redis did not."""
        refused: set[str] = set()
        for start in range(0, len(thread_ids), THREADS_AT_ONCE_MAX):
            batch = thread_ids[start : start + THREADS_AT_ONCE_MAX]
            answers = await asyncio.gather(*(step(thread_id) for thread_id in batch), return_exceptions=True)
            for thread_id, error in zip(batch, answers, strict=True):
                if isinstance(error, RedisUnavailable):
                    refused.add(thread_id)
                elif isinstance(error, BaseException):
                    raise error
        return refused


def _thread_id(write: _Write) -> str:
    return write.operation.namespace.thread_id


def _too_many() -> OverloadedError:
    return OverloadedError(f"not stored, {OVERLOADED.format(WRITES_WAITING_MAX)}")
