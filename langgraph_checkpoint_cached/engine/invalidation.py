"""Recovery: what Redis holds of threads is invalidated if it was not told of a write to them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import weakref

import psycopg
from psycopg_pool import PoolClosed

from langgraph_checkpoint_cached.engine.journal_replayer import JournalReplayer, quietly
from langgraph_checkpoint_cached.stats import Stats
from langgraph_checkpoint_cached.stores.postgres.stale_threads import STALE_THREADS_AT_ONCE_MAX, StaleThreadTable
from langgraph_checkpoint_cached.stores.redis.entries import RedisEntries, RedisUnavailable
from langgraph_checkpoint_cached.stores.redis.executor import ScriptExecutor
from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks

logger = logging.getLogger("langgraph_checkpoint_cached")

POLL_SECONDS = 1.0
"""How long a write by a process that alone cannot reach Redis may be unknown to the others."""
FRESH_SECONDS_MAX = 3.0
"""A process that has not looked for so long, as it has just started or stood still, looks before it serves."""
POLL_WAIT_SECONDS_MAX = 1.0
STALE_THREADS_MAX = 100_000
TOKENS_MAX = 100
"""Of one stale thread. A fence whose token is forgotten ends at its deadline."""


class StaleThreadInvalidator:
    """The stale threads: those of this process, which it remembers, and those of all, in the table.

    A write whose fence Redis did not confirm marks its thread stale in its own transaction. Every process
    invalidates the stale threads in Redis before it uses Redis again, and while it uses it once every
    `POLL_SECONDS`. A row is taken off the table only after that, and only if it is still the one that was seen: a
    load that began before the write was committed is of the generation before, so it cannot become the entry.

    What this process could not tell Redis itself it also remembers: it serves nothing from Redis before that is
    invalidated, be the table missing or Postgres slow, and it knows which fences to remove.
    """

    def __init__(
        self,
        entries: RedisEntries,
        executor: ScriptExecutor,
        table: StaleThreadTable,
        replayer: JournalReplayer,
        stats: Stats,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._entries, self._executor, self._table, self._stats, self._loop = entries, executor, table, stats, loop
        self._replayer = replayer
        self._own: dict[str, list[str]] = {}  # thread -> tokens of the writes that Redis was not told of
        self._too_many = False
        self._timer: asyncio.TimerHandle | None = None
        self._polling: asyncio.Task[None] | None = None
        self._recovering: asyncio.Task[bool] | None = None
        self._polled_at = -math.inf
        self._tasks = BackgroundTasks()
        executor.before_reopening = self.invalidate_stale
        stats.unreported_stale_threads.read = lambda: len(self._own)

    async def report_unconfirmed(self, thread_id: str, token: str | None, *, recorded: bool) -> None:
        """Redis was not told of a write to this thread. Nothing is served from it to this process before it was.

        Args:
            thread_id: The thread.
            token: Of a fence that may stand and that nobody needs any more.
            recorded: Whether the write's transaction marked the thread stale. If not, this does.
        """
        self.note(thread_id, token)
        if not recorded:
            try:
                await self._table.add([thread_id])
            except psycopg.Error as exc:
                logger.warning("a write that Redis was not told of is not known to other processes: %s", exc)

    def note(self, thread_id: str, token: str | None) -> None:
        """Notes that this thread is to be invalidated, and this fence to be removed, before anything is served."""
        if thread_id in self._own or len(self._own) < STALE_THREADS_MAX:
            self._own.setdefault(thread_id, []).extend([token] if token else [])
            # The oldest may have a fence, taken when Redis went; after that nobody took any.
            del self._own[thread_id][TOKENS_MAX // 2 : -TOKENS_MAX // 2]
        else:
            self._too_many = True
        self._executor.suspend()

    async def invalidate_stale(self) -> None:
        """Invalidates what Redis may hold of stale threads. Raises `RedisUnavailable` if that cannot be done."""
        try:
            await self.invalidate_recorded()
        except psycopg.Error as exc:
            raise RedisUnavailable(f"nobody can tell what is stale there: {type(exc).__name__}") from exc
        if self._too_many:
            await self._entries.invalidate_all()
            self._too_many = False
        while self._own:  # last, and with no wait after it: none of this process is missed
            some = {
                thread_id: list(self._own[thread_id]) for thread_id in [*self._own][:STALE_THREADS_AT_ONCE_MAX]
            }
            await self._entries.invalidate_threads(some)
            for thread_id, tokens in some.items():
                if self._own.get(thread_id) == tokens:  # not one more meanwhile
                    del self._own[thread_id]

    @property
    def is_fresh(self) -> bool:
        """Whether the table was looked at a moment ago. If not, `look` before anything is served from Redis."""
        return self._loop.time() - self._polled_at < FRESH_SECONDS_MAX

    async def look(self) -> None:
        """Looks at the table, and from now on once every `POLL_SECONDS`.

        Postgres is not waited for very long: a process that cannot reach it serves what it has.
        """
        looking = self._polling
        if looking is None or looking.done():
            looking = self.start_poll()
        await asyncio.wait({looking}, timeout=POLL_WAIT_SECONDS_MAX)
        self._polled_at = self._loop.time()

    def start_poll(self) -> asyncio.Task[None]:
        """What `look` does, without waiting for it."""
        self._polling = self._tasks.start(self._poll())
        return self._polling

    async def close(self) -> None:
        """Looks for stale threads no more."""
        await self._tasks.drain()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _poll(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        try:
            if self._executor.is_usable:
                with contextlib.suppress(RedisUnavailable):
                    await self.invalidate_recorded()
                    if self._recovering is None or self._recovering.done():
                        self._recovering = self._tasks.start(quietly(self._replayer.recover))
        except psycopg.Error as exc:
            logger.debug("could not look for stale threads: %s", exc)
            if isinstance(exc, PoolClosed):
                return  # if the pool is opened again, the next read sees to it
        self._polled_at = self._loop.time()
        # Does not keep this alive, nor the loop: a saver may be forgotten without being closed.
        self._timer = self._loop.call_later(POLL_SECONDS, _poll, weakref.ref(self))

    async def invalidate_recorded(self) -> None:
        """Invalidates what the table says now. After that, no entry is older than what Postgres held before.

        Raises `RedisUnavailable` if that cannot be done, and psycopg's errors.
        """
        last: str | None = None
        while seen := await self._table.after(last):
            await self._entries.invalidate_threads({s.thread_id: self._own.get(s.thread_id, ()) for s in seen})
            await self._replayer.remove_ended_journals([s.thread_id for s in seen])
            await self._table.remove(seen)
            self._stats.stale_threads += len(seen)
            last = seen[-1].thread_id


def _poll(reference: weakref.ref[StaleThreadInvalidator]) -> None:
    recovery = reference()
    if recovery is not None:
        recovery.start_poll()
