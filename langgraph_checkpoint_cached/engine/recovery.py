"""Recovery: the background work that brings Redis back after an outage, and keeps this process up to date."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import weakref
from functools import partial

import psycopg
from psycopg_pool import PoolClosed

from langgraph_checkpoint_cached.engine.background import quietly
from langgraph_checkpoint_cached.engine.heartbeat import Heartbeat
from langgraph_checkpoint_cached.engine.journal_replayer import JournalReplayer
from langgraph_checkpoint_cached.engine.reopener import Reopener
from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.stores.redis.health import AnotherServer, RedisHealth, RedisUnavailable
from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks

logger = logging.getLogger("langgraph_checkpoint_cached")

HEARTBEAT_SECONDS = 0.4
"""Time between two heartbeats: one may fail, and the right to serve goes on."""
POLL_SECONDS = 1.0
"""Time between two polls of the table of stale threads by a process that is not used, and between other work."""
UNUSED_SECONDS = 10.0
"""After so long without a call a process has no right to serve, and nobody waits for it."""
POLL_WAIT_SECONDS_MAX = 1.0


class Recovery:
    """Sender of heartbeats. Has journals of dead processes replayed, and reopens Redis.

    Heartbeats begin with the first call and go on while the saver is used; polls of the stale threads go on while
    it lives.
    """

    def __init__(
        self,
        runtime: Runtime,
        health: RedisHealth,
        heartbeat: Heartbeat,
        reopener: Reopener,
        replayer: JournalReplayer,
    ) -> None:
        self._loop, self._health, self._reopener = runtime.loop, health, reopener
        self._clock = runtime.boot_clock
        self._heartbeat, self.right, self._replayer = heartbeat, heartbeat.right, replayer
        self.invalidator = heartbeat.invalidator
        self._timer: asyncio.TimerHandle | None = None
        self._polling: asyncio.Task[None] | None = None
        self._replaying: asyncio.Task[bool] | None = None
        self._replayed_at = self._used_at = -math.inf
        self.is_used = False
        """True if there was a call since the last heartbeat."""
        self.is_started = False
        """True if heartbeats have begun."""
        self._again = self._closed = self._is_late = self._is_alone = False
        self._tasks = BackgroundTasks()

    @property
    def is_redis_usable(self) -> bool:
        """Return whether calls to Redis are let through."""
        return self._health.usable

    def may_serve(self, thread_id: str) -> bool:
        """Return whether this process may serve a thread from Redis now; if not, `renew` first.

        What it writes behind is its own: no other process stores anything there before it has ended the lease.
        """
        self.is_used = True
        return self.right.until > self._clock() or self._replayer.is_held(thread_id)

    async def renew(self) -> bool:
        """Send a heartbeat, unless one is under way. Return whether the right is valid after it.

        Postgres is not waited for very long.
        """
        self.is_used = True
        polling = self._polling
        if polling is None or polling.done():
            polling = self.start_poll()
        await asyncio.wait({polling}, timeout=POLL_WAIT_SECONDS_MAX)
        return self.right.is_valid

    def start_poll(self) -> asyncio.Task[None]:
        """Send a heartbeat in the background."""
        self.is_started = True
        self._polling = self._tasks.start(self._poll())
        return self._polling

    def reopen(self) -> None:
        """Probe Redis in the background, if it is unusable and the last probe was long enough ago."""
        self._reopener.reopen()
        if self._heartbeat.is_announced and not self._health.usable:
            self.poll_soon()  # others need not wait for this process

    def poll_soon(self) -> None:
        """Send a heartbeat, at once or after the one that is under way."""
        if self._polling is not None and not self._polling.done():
            self._again = True
        elif not self._closed:
            self.start_poll()

    async def close(self) -> None:
        """Stop sending heartbeats, but for those that a call needs."""
        self._closed = True
        await self._tasks.drain()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def leave(self) -> None:
        """End the right, once nothing is under way any more."""
        await self._tasks.drain()
        await self._tasks.finish(quietly(self._heartbeat.leave))

    async def _poll(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._again = False
        try:
            await self._renew()
            self._note_answer(None)
        except AnotherServer as exc:
            self._health.fail(exc)
        except RedisUnavailable as exc:
            logger.debug("no heartbeat: %s", exc)
        except psycopg.Error as exc:
            if isinstance(exc, PoolClosed):
                self._timer, self.is_started = None, False
                return  # if the pool is opened again, the next call begins anew
            self._note_answer(exc)
        if self._closed:
            return
        # Keeps neither this object nor the loop alive: a saver may be forgotten without being closed.
        is_often = self.right.is_valid or self._is_alone
        seconds = 0.0 if self._again else HEARTBEAT_SECONDS if is_often else POLL_SECONDS
        self._timer = self._loop.call_later(seconds, _poll, weakref.ref(self))

    async def _renew(self) -> None:
        now = self._loop.time()
        if self.is_used:
            self.is_used, self._used_at = False, now
        is_used = now - self._used_at < UNUSED_SECONDS
        self._is_alone = is_used and not self._health.usable
        if not (self._health.usable and is_used):
            await self._heartbeat.withdraw(lacks_redis=self._is_alone)
        if not self._health.usable:
            return
        if is_used:
            await self._heartbeat.beat()
            await self._heartbeat.listen(partial(_poll_soon, weakref.ref(self)))
        due = now - self._replayed_at > POLL_SECONDS
        if due and not is_used:
            with contextlib.suppress(RedisUnavailable):
                await self.invalidator.invalidate_recorded()
        if due and (self._replaying is None or self._replaying.done()):
            self._replayed_at = now
            self._replaying = self._tasks.start(quietly(self._replayer.recover))

    def _note_answer(self, error: psycopg.Error | None) -> None:
        """Log once when Postgres stops to answer heartbeats, and when it does again."""
        if (error is not None) == self._is_late or (error is not None and self.right.is_valid):
            return
        self._is_late = error is not None
        if error is not None:
            logger.warning("nothing is served from Redis until Postgres answers heartbeats again: %s", error)
        else:
            logger.warning("Postgres answers heartbeats again")


def _poll(reference: weakref.ref[Recovery]) -> None:
    recovery = reference()
    if recovery is not None:
        recovery.start_poll()
        recovery.reopen()


def _poll_soon(reference: weakref.ref[Recovery]) -> None:
    recovery = reference()
    if recovery is not None:
        recovery.poll_soon()
