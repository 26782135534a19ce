"""Recovery: the background work that brings Redis back after an outage, and keeps this process up to date."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import weakref

import psycopg
from psycopg_pool import PoolClosed

from langgraph_checkpoint_cached.engine.background import quietly
from langgraph_checkpoint_cached.engine.invalidation import StaleThreadInvalidator
from langgraph_checkpoint_cached.engine.journal_replayer import JournalReplayer
from langgraph_checkpoint_cached.engine.reopener import Reopener
from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.stores.redis.health import RedisHealth, RedisUnavailable
from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks

logger = logging.getLogger("langgraph_checkpoint_cached")

POLL_SECONDS = 1.0
"""Longest time that a write by a process that alone cannot reach Redis is unknown to the others."""
FRESH_SECONDS_MAX = 3.0
"""A process that has not polled for this long, as at its start or after a suspension, polls before it serves."""
POLL_WAIT_SECONDS_MAX = 1.0


class Recovery:
    """Poller of the table of stale threads. Has journals of dead processes replayed, and reopens Redis.

    Polling begins with the first read and goes on while the saver lives.
    """

    def __init__(
        self,
        runtime: Runtime,
        health: RedisHealth,
        reopener: Reopener,
        invalidator: StaleThreadInvalidator,
        replayer: JournalReplayer,
    ) -> None:
        self._loop, self._health, self._reopener = runtime.loop, health, reopener
        self.invalidator, self._replayer = invalidator, replayer
        self._timer: asyncio.TimerHandle | None = None
        self._polling: asyncio.Task[None] | None = None
        self._replaying: asyncio.Task[bool] | None = None
        self._polled_at = -math.inf
        self._tasks = BackgroundTasks()

    @property
    def is_fresh(self) -> bool:
        """Return whether this process has polled a moment ago. If not, `poll` before Redis serves anything."""
        return self._loop.time() - self._polled_at < FRESH_SECONDS_MAX

    async def poll(self) -> None:
        """Poll the table, and from now on once every `POLL_SECONDS`.

        Postgres is not waited for very long: a process that cannot reach it serves what it has.
        """
        polling = self._polling
        if polling is None or polling.done():
            polling = self.start_poll()
        await asyncio.wait({polling}, timeout=POLL_WAIT_SECONDS_MAX)
        self._polled_at = self._loop.time()

    def start_poll(self) -> asyncio.Task[None]:
        """Poll in the background."""
        self._polling = self._tasks.start(self._poll())
        return self._polling

    def reopen(self) -> None:
        """Probe Redis in the background, if it is unusable and the last probe was long enough ago."""
        self._reopener.reopen()

    async def close(self) -> None:
        """Stop polling."""
        await self._tasks.drain()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _poll(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        try:
            if self._health.usable:
                with contextlib.suppress(RedisUnavailable):
                    await self.invalidator.invalidate_recorded()
                    if self._replaying is None or self._replaying.done():
                        self._replaying = self._tasks.start(quietly(self._replayer.recover))
        except psycopg.Error as exc:
            logger.debug("could not read the table of stale threads: %s", exc)
            if isinstance(exc, PoolClosed):
                return  # if the pool is opened again, the next read polls
        self._polled_at = self._loop.time()
        # Keeps neither this object nor the loop alive: a saver may be forgotten without being closed.
        self._timer = self._loop.call_later(POLL_SECONDS, _poll, weakref.ref(self))


def _poll(reference: weakref.ref[Recovery]) -> None:
    recovery = reference()
    if recovery is not None:
        recovery.start_poll()
        recovery.reopen()
