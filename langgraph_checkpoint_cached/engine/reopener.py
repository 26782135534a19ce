"""Reopening of Redis after an outage: a probe, then invalidation of what is stale, then calls are let through."""

from __future__ import annotations

import asyncio
import contextlib

import psycopg

from langgraph_checkpoint_cached.engine.invalidation import StaleThreadInvalidator
from langgraph_checkpoint_cached.engine.serving_right import ServingRight
from langgraph_checkpoint_cached.stores.redis.executor import ScriptExecutor
from langgraph_checkpoint_cached.stores.redis.fences import Fences
from langgraph_checkpoint_cached.stores.redis.health import RedisFull, RedisUnavailable
from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks


class Reopener:
    """Brings Redis back. Called by whoever finds it unusable: without that it would stay so for good."""

    def __init__(
        self,
        executor: ScriptExecutor,
        fences: Fences,
        invalidator: StaleThreadInvalidator,
        right: ServingRight,
    ) -> None:
        self._executor, self._health = executor, executor.health
        self._fences, self._invalidator, self._right = fences, invalidator, right
        self._tasks = BackgroundTasks()

    def reopen(self) -> None:
        """Probe Redis in the background, if it is unusable and the last probe was long enough ago."""
        if self._health.take_probe():
            self._tasks.start(self._reopen()).add_done_callback(self._on_ended)

    async def drain(self) -> None:
        """Wait until no probe is under way."""
        await self._tasks.drain()

    async def _reopen(self) -> None:
        """Register where the address leads now, invalidate stale threads there, then let calls through again."""
        succeeded = False
        try:
            # A write that needs memory, so that a replica or a loading server does not pass. A full one does: it
            # takes what frees memory, and that is enough to be coherent.
            await self._executor.reconnect()
            with contextlib.suppress(RedisFull):
                await self._executor.probe()
            await self._right.register()
            while True:
                for thread_id, token in self._fences.take_abandoned():
                    self._invalidator.note_unconfirmed(thread_id, token)
                await self._invalidator.invalidate_stale()
                if not self._fences.has_abandoned:  # no wait from here until calls are let through
                    break
            succeeded = True
        except (RedisUnavailable, psycopg.Error):
            pass
        finally:
            self._health.end_probe(succeeded=succeeded)

    def _on_ended(self, probe: asyncio.Task[None]) -> None:
        if probe.cancelled():  # perhaps before its first step, so that none of its code has run
            self._health.end_probe(succeeded=False)
