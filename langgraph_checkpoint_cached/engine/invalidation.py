"""Recovery: what Redis holds of threads is voided if it was not told of a write to them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import weakref

import psycopg
from psycopg_pool import PoolClosed

from langgraph_checkpoint_cached.engine.journal_replayer import Settler, quietly
from langgraph_checkpoint_cached.stats import Stats
from langgraph_checkpoint_cached.stores.postgres.stale_threads import SUSPECTS_AT_ONCE_MAX, SuspectTable
from langgraph_checkpoint_cached.stores.redis.entries import RedisEntries, RedisUnavailable
from langgraph_checkpoint_cached.stores.redis.executor import Guard
from langgraph_checkpoint_cached.utils.background_tasks import Tasks

logger = logging.getLogger("langgraph_checkpoint_cached")

POLL_SECONDS = 1.0
"""How long a write by a process that alone cannot reach Redis may be unknown to the others."""
LOOKED_SECONDS_MAX = 3.0
"""A process that has not looked for so long, as it has just started or stood still, looks before it serves."""
LOOK_SECONDS_MAX = 1.0
SUSPECTS_MAX = 100_000
TOKENS_MAX = 100
"""Of one suspect thread. A fence whose token is forgotten ends at its deadline."""


class Recovery:
    """The suspects: those of this process, which it remembers, and those of all, in the table.

    A write whose fence Redis did not confirm makes its thread a suspect in its own transaction. Every process
    voids the suspects in Redis before it uses Redis again, and while it uses it once every `POLL_SECONDS`. A row
    is taken off the table only after that, and only if it is still the one that was seen: a load that began before
    the write was committed is of the generation before, so it cannot become the entry.

    What this process could not tell Redis itself it also remembers: it serves nothing from Redis before that is
    voided, be the table missing or Postgres slow, and it knows which fences to remove.
    """

    def __init__(
        self,
        entries: RedisEntries,
        guard: Guard,
        table: SuspectTable,
        settler: Settler,
        stats: Stats,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._entries, self._guard, self._table, self._stats, self._loop = entries, guard, table, stats, loop
        self._settler = settler
        self._own: dict[str, list[str]] = {}  # thread -> tokens of the writes that Redis was not told of
        self._too_many = False
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._recovering: asyncio.Task[bool] | None = None
        self._looked_at = -math.inf
        self._tasks = Tasks()
        guard.before_reopening = self.void_suspects
        stats.suspects_own.read = lambda: len(self._own)

    async def remember(self, thread_id: str, token: str | None, *, recorded: bool) -> None:
        """Redis was not told of a write to this thread. Nothing is served from it to this process before it was.

        Args:
            thread_id: The thread.
            token: Of a fence that may stand and that nobody needs any more.
            recorded: Whether the write's transaction made the thread a suspect. If not, this does.
        """
        self.note(thread_id, token)
        if not recorded:
            try:
                await self._table.add([thread_id])
            except psycopg.Error as exc:
                logger.warning("a write that Redis was not told of is not known to other processes: %s", exc)

    def note(self, thread_id: str, token: str | None) -> None:
        """Notes that this thread is to be voided, and this fence to be removed, before anything is served."""
        if thread_id in self._own or len(self._own) < SUSPECTS_MAX:
            self._own.setdefault(thread_id, []).extend([token] if token else [])
            # The oldest may have a fence, taken when Redis went; after that nobody took any.
            del self._own[thread_id][TOKENS_MAX // 2 : -TOKENS_MAX // 2]
        else:
            self._too_many = True
        self._guard.distrust()

    async def void_suspects(self) -> None:
        """Voids what Redis may hold of suspects. Raises `RedisUnavailable` if that cannot be done."""
        try:
            await self.void_table()
        except psycopg.Error as exc:
            raise RedisUnavailable(f"nobody can tell what is stale there: {type(exc).__name__}") from exc
        if self._too_many:
            await self._entries.void_all()
            self._too_many = False
        while self._own:  # last, and with no wait after it: none of this process is missed
            some = {thread_id: list(self._own[thread_id]) for thread_id in [*self._own][:SUSPECTS_AT_ONCE_MAX]}
            await self._entries.void_threads(some)
            for thread_id, tokens in some.items():
                if self._own.get(thread_id) == tokens:  # not one more meanwhile
                    del self._own[thread_id]

    @property
    def has_looked(self) -> bool:
        """Whether the table was looked at a moment ago. If not, `look` before anything is served from Redis."""
        return self._loop.time() - self._looked_at < LOOKED_SECONDS_MAX

    async def look(self) -> None:
        """Looks at the table, and from now on once every `POLL_SECONDS`.

        Postgres is not waited for very long: a process that cannot reach it serves what it has.
        """
        looking = self._looking
        if looking is None or looking.done():
            looking = self.start_poll()
        await asyncio.wait({looking}, timeout=LOOK_SECONDS_MAX)
        self._looked_at = self._loop.time()

    def start_poll(self) -> asyncio.Task[None]:
        """What `look` does, without waiting for it."""
        self._looking = self._tasks.start(self._poll())
        return self._looking

    async def close(self) -> None:
        """Looks for suspects no more."""
        await self._tasks.drain()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _poll(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        try:
            if self._guard.is_usable:
                with contextlib.suppress(RedisUnavailable):
                    await self.void_table()
                    if self._recovering is None or self._recovering.done():
                        self._recovering = self._tasks.start(quietly(self._settler.recover))
        except psycopg.Error as exc:
            logger.debug("could not look for suspects: %s", exc)
            if isinstance(exc, PoolClosed):
                return  # if the pool is opened again, the next read sees to it
        self._looked_at = self._loop.time()
        # Does not keep this alive, nor the loop: a saver may be forgotten without being closed.
        self._timer = self._loop.call_later(POLL_SECONDS, _poll, weakref.ref(self))

    async def void_table(self) -> None:
        """Voids what the table says now. After that, no entry is older than what Postgres held before.

        Raises `RedisUnavailable` if that cannot be done, and psycopg's errors.
        """
        last: str | None = None
        while seen := await self._table.after(last):
            await self._entries.void_threads({s.thread_id: self._own.get(s.thread_id, ()) for s in seen})
            await self._settler.tidy([s.thread_id for s in seen])
            await self._table.remove(seen)
            self._stats.suspects += len(seen)
            last = seen[-1].thread_id


def _poll(reference: weakref.ref[Recovery]) -> None:
    recovery = reference()
    if recovery is not None:
        recovery.start_poll()
