"""Write-behind: a write is acknowledged when Redis has it, in the entry and in the journal; it is flushed
later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import partial
from typing import Any

from langgraph_checkpoint_cached.engine import held_leases
from langgraph_checkpoint_cached.engine.held_leases import HeldLeases
from langgraph_checkpoint_cached.engine.leases import Lease, PendingWrite
from langgraph_checkpoint_cached.engine.write_through import Operation, WriteThrough
from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.stores.postgres.validation import is_storable
from langgraph_checkpoint_cached.stores.redis.entries import DROP, EntryUpdate, RedisEntries
from langgraph_checkpoint_cached.stores.redis.health import NotDone
from langgraph_checkpoint_cached.stores.redis.journal import Journal, Refusal, parse_append
from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks
from langgraph_checkpoint_cached.utils.batch_queue import answer

UNFLUSHED_MAX = 100_000
"""Writes of one process that Postgres does not have yet. At this, or the next bound, it writes through."""
UNFLUSHED_BYTES_MAX = 256 * 1024 * 1024


class WriteBehindQueue:
    """Writes to Redis under a lease of the thread, through both stores where that cannot be.

    Args:
        runtime: Event loop and counters.
        entries: Entries in Redis.
        journal: Journals in Redis.
        held: Leases of this process.
        write_through: Takes what cannot be appended.
    """

    def __init__(
        self,
        runtime: Runtime,
        entries: RedisEntries,
        journal: Journal,
        held: HeldLeases,
        write_through: WriteThrough,
    ) -> None:
        self._loop, self._stats = runtime.loop, runtime.stats
        self._entries, self._journal, self._held, self._through = entries, journal, held, write_through
        self._tasks = BackgroundTasks()

    def write(self, operation: Operation) -> asyncio.Future[None]:
        """Store an operation in Redis, to be flushed to Postgres later.

        Queued when this returns; a caller that is cancelled does not stop it.
        """
        update = self._entries.entry_update_for(operation)
        if (
            update is DROP
            or self._stats.unflushed >= UNFLUSHED_MAX
            or self._stats.unflushed_bytes >= UNFLUSHED_BYTES_MAX
            or not is_storable(operation)
        ):
            return self._through.write(operation, update)
        done: asyncio.Future[None] = self._loop.create_future()
        lease = self._held.leases.get(operation.namespace.thread_id)
        if lease is None:
            self._tasks.start(self._write_with_new_lease(operation, update, done))
        else:
            self._append(lease, operation, update, done)
        return done

    async def close(self) -> None:
        """End all leases, then wait until no write is under way here; not for good, if Postgres hangs."""
        await self._held.close()
        await self._tasks.drain(held_leases.CLOSE_SECONDS_MAX)

    async def _write_with_new_lease(
        self, operation: Operation, update: EntryUpdate, done: asyncio.Future[None]
    ) -> None:
        try:
            lease = await self._held.acquire(operation.namespace.thread_id)
        except BaseException as exc:
            answer(done, exc)
            raise
        if lease is None:
            self._write_through(operation, update, done)
        else:
            self._append(lease, operation, update, done)

    def _append(self, lease: Lease, operation: Operation, update: EntryUpdate, done: asyncio.Future[None]) -> None:
        if not lease.usable:
            self._write_through(operation, update, done)
            return
        write = PendingWrite(operation)
        self._held.start_append(lease, write)
        appending = self._journal.append(operation.namespace, lease.token, update)
        appending.add_done_callback(partial(self._on_appended, lease, write, update, done))

    def _on_appended(
        self,
        lease: Lease,
        write: PendingWrite,
        update: EntryUpdate,
        done: asyncio.Future[None],
        appending: asyncio.Future[Any],
    ) -> None:
        error = appending.exception()
        if error is not None:
            if isinstance(error, NotDone):
                self._held.undo_append(lease, write, is_closed=False)
                self._write_through(write.operation, update, done)
            else:  # nobody knows whether it was appended
                self._held.lose_append(lease)
                self._tasks.start(self._resolve(lease, write, update, done))
            return
        result = parse_append(appending.result())
        if result.number is None:
            self._held.undo_append(lease, write, is_closed=result.refusal is Refusal.CLOSED)
            self._write_through(write.operation, update, done)
            return
        self._held.end_append(lease, write, result.number)
        if result.confirmed:
            if not done.done():
                done.set_result(None)
        else:
            self._tasks.start(_answered_by(self._held.flush_on_request(lease.thread_id), done))

    async def _resolve(
        self, lease: Lease, write: PendingWrite, update: EntryUpdate, done: asyncio.Future[None]
    ) -> None:
        try:
            if lease.thread_id in await self._held.revoke([lease]):
                answer(done, None)
                return
        except BaseException as exc:
            answer(done, exc)
            if not isinstance(exc, Exception):
                raise
            return
        self._write_through(write.operation, update, done)

    def _write_through(self, operation: Operation, update: EntryUpdate, done: asyncio.Future[None]) -> None:
        written = self._through.write(operation, update)
        written.add_done_callback(lambda written: answer(done, written.exception()))


async def _answered_by(work: Awaitable[None], done: asyncio.Future[None]) -> None:
    try:
        await work
    except Exception as exc:  # noqa: BLE001 - for the caller to handle
        answer(done, exc)
    else:
        answer(done, None)
