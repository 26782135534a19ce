"""Invalidation of stale threads: entries in Redis that may lack a write which only Postgres has."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence

import psycopg

from langgraph_checkpoint_cached.engine.ended_journals import EndedJournals
from langgraph_checkpoint_cached.engine.serving_barrier import ServingBarrier
from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.stores.postgres.stale_threads import (
    STALE_THREADS_AT_ONCE_MAX,
    StaleThread,
    StaleThreadTable,
)
from langgraph_checkpoint_cached.stores.redis.health import RedisUnavailable
from langgraph_checkpoint_cached.stores.redis.invalidation import ThreadInvalidation

logger = logging.getLogger("langgraph_checkpoint_cached")

STALE_THREADS_MAX = 100_000
TOKENS_MAX = 100
"""Tokens of one stale thread. A fence whose token is forgotten ends at its deadline."""


class StaleThreadInvalidator:
    """Stale threads: those that this process remembers, and those of all processes, in the table.

    A write whose fence Redis did not confirm marks its thread stale in its own transaction. Every process
    invalidates the stale threads in Redis before it uses Redis again, and with every heartbeat.
    A row is deleted only after that, and only if it is still the one that was seen: a load that began before the
    write was committed belongs to the generation before, so it cannot become the entry.

    A process also remembers which writes it could not tell Redis of: it serves nothing from Redis before those
    threads are invalidated, be the table missing or Postgres slow, and it knows which fences to remove.
    """

    def __init__(
        self,
        runtime: Runtime,
        invalidation: ThreadInvalidation,
        table: StaleThreadTable,
        barrier: ServingBarrier,
        ended_journals: EndedJournals,
    ) -> None:
        self._stats, self._health, self._invalidation = runtime.stats, invalidation.health, invalidation
        self._table, self._barrier, self._ended_journals = table, barrier, ended_journals
        self._own: dict[
            str, list[str]
        ] = {}  # thread -> tokens of the fences of writes that Redis does not know of
        self._too_many = False

    async def invalidate(self, thread_id: str, token: str, *, recorded: bool) -> bool:
        """Invalidate a thread in Redis, and remove this fence; else report the thread. Return whether it was
        done.
        """
        if self._health.usable:
            with contextlib.suppress(RedisUnavailable):
                await self._invalidation.invalidate_threads({thread_id: [token]})
                return True
        await self.report_unconfirmed(thread_id, token, recorded=recorded)
        return False

    async def report_unconfirmed(self, thread_id: str, token: str | None, *, recorded: bool) -> None:
        """Take note of a write that Redis did not confirm: this process serves nothing before its thread is
        invalid. Return when no other process serves what the write has replaced.

        Args:
            thread_id: Thread of the write.
            token: Token of a fence that may be active and that nobody needs any more.
            recorded: Whether the write's transaction marked the thread stale. If not, this does.
        """
        self.note_unconfirmed(thread_id, token)
        if not recorded:
            try:
                await self._table.add([thread_id])
            except psycopg.Error as exc:
                logger.warning("a write that did not reach Redis is not known to other processes: %s", exc)
        await self._barrier.wait()

    def note_unconfirmed(self, thread_id: str, token: str | None) -> None:
        """Note that this thread is to be invalidated, and this fence to be removed, before anything is served."""
        if thread_id in self._own or len(self._own) < STALE_THREADS_MAX:
            tokens = self._own.setdefault(thread_id, [])
            tokens.extend([token] if token else [])
            # The oldest may have a fence, taken when Redis went; after that nobody took any.
            del tokens[TOKENS_MAX // 2 : -TOKENS_MAX // 2]
        else:
            self._too_many = True
        self._stats.unreported_stale_threads = len(self._own)
        self._health.fail(RedisUnavailable("a write could not be sent to it"))

    async def invalidate_stale(self) -> None:
        """Invalidate all stale threads in Redis. Raises `RedisUnavailable` if that cannot be done."""
        try:
            await self.invalidate_recorded()
        except psycopg.Error as exc:
            raise RedisUnavailable(f"nobody can tell what is stale there: {type(exc).__name__}") from exc
        if self._too_many:
            await self._invalidation.invalidate_all()
            self._too_many = False
        while self._own:  # last, and with no wait after it: none of this process is missed
            some = {
                thread_id: list(self._own[thread_id]) for thread_id in [*self._own][:STALE_THREADS_AT_ONCE_MAX]
            }
            await self._invalidation.invalidate_threads(some)
            for thread_id, tokens in some.items():
                if self._own.get(thread_id) == tokens:  # not one more meanwhile
                    del self._own[thread_id]
            self._stats.unreported_stale_threads = len(self._own)

    async def invalidate_recorded(self) -> None:
        """Invalidate the threads that the table names now: after that, no entry is older than what Postgres held.

        Raises `RedisUnavailable` if that cannot be done, and psycopg's errors.
        """
        await self.remove_seen(await self.invalidate_seen(await self._table.after(None)))

    def note_table_read(self) -> None:
        """Note that the table is there: what Redis does not confirm can be recorded."""
        self._table.note_read()

    async def invalidate_seen(self, page: Sequence[StaleThread]) -> Sequence[StaleThread]:
        """Invalidate the threads of the table's first page, and of those that follow it. Return all of them.

        Raises as `invalidate_recorded`.
        """
        seen: list[StaleThread] = []
        while page:
            await self._invalidation.invalidate_threads(
                {s.thread_id: self._own.get(s.thread_id, ()) for s in page}
            )
            seen += page
            page = await self._table.after(page[-1].thread_id) if len(page) == STALE_THREADS_AT_ONCE_MAX else ()
        return seen

    async def remove_seen(self, seen: Sequence[StaleThread]) -> None:
        """Remove invalidated threads from the table, unless they have become stale again. Raises as above."""
        for start in range(0, len(seen), STALE_THREADS_AT_ONCE_MAX):
            some = seen[start : start + STALE_THREADS_AT_ONCE_MAX]
            await self._ended_journals.remove([s.thread_id for s in some])
            await self._table.remove(some)
            self._stats.stale_threads += len(some)
