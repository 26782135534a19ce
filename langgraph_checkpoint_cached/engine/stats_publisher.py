"""Publication of a saver's counters in Redis, where `langgraph-cached tail` adds up those of all savers."""

from __future__ import annotations

import asyncio
import json
import weakref

from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.stores.redis.executor import ScriptExecutor
from langgraph_checkpoint_cached.stores.redis.keys import stats_key
from langgraph_checkpoint_cached.stores.redis.scripts import Script
from langgraph_checkpoint_cached.utils.tokens import new_token

INTERVAL_SECONDS = 2.0
EXPIRY_SECONDS = 10
"""Life of the key: a saver that is idle, closed or dead disappears by itself."""
OWN_EFFECTS = frozenset({"redis_errors", "breaker_openings"})
"""Counters that a failed publication changes: they alone do not mean that the saver is in use."""
PUBLISH = Script("return redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])")


class StatsPublisher:
    """Publish one saver's counters while the saver is in use.

    Every `INTERVAL_SECONDS` a timer compares the counters with those of the time before. If any has changed, or
    writes are unflushed, it sets the saver's key; and once more when that is over, with rates of 0. The calls that
    change counters do nothing for it, and the timer keeps neither the saver nor the event loop alive. While Redis
    is not usable nothing is published and nothing is logged.

    The value is JSON: `totals` has each counter and gauge of `saver.stats()`, `per_second` has the rate of each
    counter that changed in the last interval.

    Args:
        runtime: Event loop and counters of the saver.
        executor: Runs the script.
        prefix: Start of the key.
    """

    def __init__(self, runtime: Runtime, executor: ScriptExecutor, prefix: str) -> None:
        self._executor, self._stats, self._loop = executor, runtime.stats, runtime.loop
        self.key = stats_key(prefix, new_token())
        self._counters = tuple(name for name, _ in self._stats.described("counter"))
        self._totals, self._sampled_at = self._stats.totals(), self._loop.time()
        self._was_active = self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._reply: asyncio.Future[object] | None = None

    def start(self) -> None:
        """Start the timer. May be called from any thread; does nothing on a closed event loop."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_schedule, weakref.ref(self))

    def publish(self) -> None:
        """Publish the counters if they have changed since the last call. Returns without waiting for Redis."""
        before, self._totals = self._totals, self._stats.totals()
        now = self._loop.time()
        seconds, self._sampled_at = max(now - self._sampled_at, 0.001), now
        rates = {
            name: round((self._totals[name] - before[name]) / seconds, 1)
            for name in self._counters
            if self._totals[name] != before[name]
        }
        active = bool(rates.keys() - OWN_EFFECTS) or self._totals["unflushed"] > 0
        wanted, self._was_active = active or self._was_active, active
        if wanted and self._executor.health.usable and (self._reply is None or self._reply.done()):
            value = json.dumps({"totals": self._totals, "per_second": rates}, separators=(",", ":"))
            self._reply = self._executor.submit(PUBLISH, [self.key], [value, str(EXPIRY_SECONDS)])
            self._reply.add_done_callback(_ignore_failure)

    async def close(self) -> None:
        """Stop the timer, and wait until no publication is under way."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._reply is not None:
            await asyncio.wait({self._reply})


def _schedule(reference: weakref.ref[StatsPublisher]) -> None:
    publisher = reference()
    if publisher is not None and not publisher._closed:
        publisher._timer = publisher._loop.call_later(INTERVAL_SECONDS, _tick, reference)


def _tick(reference: weakref.ref[StatsPublisher]) -> None:
    publisher = reference()
    if publisher is not None:
        publisher.publish()
        _schedule(reference)


def _ignore_failure(reply: asyncio.Future[object]) -> None:
    if not reply.cancelled():
        reply.exception()  # marks it as seen: the executor has counted and logged it
