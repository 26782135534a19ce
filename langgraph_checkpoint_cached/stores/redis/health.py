"""Health of Redis as this process sees it: whether calls are let through, and whether reads may be served."""

from __future__ import annotations

import logging

from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.utils.circuit_breaker import CircuitBreaker

logger = logging.getLogger("langgraph_checkpoint_cached")

PROBE_SECONDS_MAX = 1.0
REOPEN_DELAY_SECONDS = 3.0
"""After an outage nothing is served for this long: longer than another process takes, with `PROBE_SECONDS_MAX`, to
find that it is over, and to invalidate what it wrote to Postgres alone meanwhile."""


class RedisUnavailable(Exception):
    """Redis did not do it: nothing may be assumed of what it holds. Never leaves this package."""


class ConnectionDropped(RedisUnavailable):
    """The connection was lost, and nobody knows whether Redis has done it. Redis may be well."""


class NotDone(RedisUnavailable):
    """Redis certainly has not done it."""


class AnotherServer(NotDone):
    """Redis is not the server that all processes of this prefix are to use, or that this one has used so far."""


class RedisFull(NotDone):
    """Redis has no memory for this. Everything that must succeed there still does."""


class RedisHealth:
    """Circuit breaker in front of Redis. One line is logged per change of state.

    Attributes:
        usable: Whether calls are let through.
        openings: How often the breaker has opened: who remembers the number can tell that Redis may have lost
            data.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._loop, self._stats = runtime.loop, runtime.stats
        self._breaker = CircuitBreaker(retry_seconds_max=PROBE_SECONDS_MAX)
        self._serving_from = self._loop.time()
        self.usable, self.openings = True, 0
        self._stats.redis_usable = 1

    @property
    def serving(self) -> bool:
        """Return whether Redis may be read from: other processes too have had the time to return to it."""
        return self._loop.time() >= self._serving_from

    def fail(self, error: RedisUnavailable) -> None:
        """Open the breaker: no call is let through until a probe succeeds."""
        if self._breaker.fail():
            self.usable = False
            self.openings += 1
            self._stats.redis_usable = 0
            self._stats.breaker_openings += 1
            logger.warning("Redis is unusable, going on with Postgres alone: %s", error)

    def take_probe(self) -> bool:
        """Return whether the caller is to probe now, and then to call `end_probe`."""
        return self._breaker.take_probe()

    def end_probe(self, *, succeeded: bool) -> None:
        """End a probe. After one that succeeded, calls are let through."""
        self._breaker.end_probe(succeeded=succeeded)
        if succeeded:
            self.usable = True
            self._stats.redis_usable = 1
            self._serving_from = self._loop.time() + REOPEN_DELAY_SECONDS
            logger.warning("Redis is usable again")
