"""What stands between the saver and a Redis that is down, slow, full or read-only."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from redis.exceptions import RedisError, ResponseError

from langgraph_checkpoint_cached.stats import Stats
from langgraph_checkpoint_cached.stores.clients import AnyRedis
from langgraph_checkpoint_cached.stores.scripts import Script
from langgraph_checkpoint_cached.utilities.breaker import Breaker
from langgraph_checkpoint_cached.utilities.tasks import Tasks

logger = logging.getLogger("langgraph_checkpoint_cached")

PROBE_LIFE_MS = 1000
FULL = "command not allowed when used memory > 'maxmemory'"
SCAN_COUNT = 1000


class RedisUnavailable(Exception):
    """Redis did not do it: nothing may be assumed of what it holds. Never leaves this package."""


class RedisFull(RedisUnavailable):
    """Redis answered that it has no memory for this. Everything that must succeed there still does."""


class Guard:
    """Runs scripts for a bounded time, and not at all while Redis is known to be unusable.

    After a failure every call fails at once until a probe, in the background, has found that Redis takes writes
    again and `before_reopening` has done its work. One line is logged per change of state.

    Args:
        client: The client; never closed here.
        prefix: Of the key that a probe writes.
        timeout_seconds: For one call, waiting for a connection included.
        stats: Where failures are counted.
    """

    def __init__(self, client: AnyRedis, prefix: str, timeout_seconds: float, stats: Stats) -> None:
        self._client, self._timeout_seconds, self._stats = client, timeout_seconds, stats
        self.probe_key = f"{prefix}:probe"
        self._breaker = Breaker()
        self._full = False
        self._tasks = Tasks()
        self.before_reopening: Callable[[], Awaitable[None]] | None = None

    async def run(self, script: Script, keys: list[str], arguments: list[Any]) -> Any:
        """The script's answer.

        Raises:
            RedisUnavailable: it did not answer in time, or with an error, or was not asked.
        """
        if not self._breaker.closed:
            if self._breaker.take_probe():
                self._tasks.start(self._probe())
            raise RedisUnavailable("not asked: Redis was found unusable a moment ago")
        try:
            return await self.force(script, keys, arguments)
        except RedisFull:
            if not self._full:
                self._full = True
                logger.warning("Redis is full: nothing new is cached until it has memory again")
            raise
        except RedisUnavailable as exc:
            if self._breaker.fail():
                logger.warning("Redis is unusable, going on with Postgres alone: %s", exc)
            raise

    async def force(self, script: Script, keys: list[str], arguments: list[Any]) -> Any:
        """The script's answer, asked for whatever the state. Raises `RedisUnavailable` too."""
        return await self._attempt(script.run(self._client, keys, arguments))

    async def keys(self, pattern: str) -> AsyncIterator[str]:
        """Keys that match a glob, found by scanning every node. Raises `RedisUnavailable` too."""
        found = self._client.scan_iter(match=pattern, count=SCAN_COUNT)
        while True:
            try:
                key = await self._attempt(anext(found))
            except StopAsyncIteration:
                return
            yield key.decode() if isinstance(key, bytes) else key

    def has_room(self) -> None:
        """To be told when Redis has stored something that takes memory."""
        if self._full:
            self._full = False
            logger.warning("Redis has memory again")

    async def _attempt(self, call: Awaitable[Any]) -> Any:
        # When a call is cut short, redis-py closes its connection: no reply is left there for the next one.
        try:
            return await asyncio.wait_for(call, self._timeout_seconds)
        except ResponseError as exc:
            self._stats.redis_errors += 1
            full = FULL in str(exc)  # Redis 6.2 gives a script's error no class of its own
            raise (RedisFull if full else RedisUnavailable)(f"it answered: {exc}") from exc
        except asyncio.TimeoutError as exc:
            self._stats.redis_errors += 1
            raise RedisUnavailable(f"no answer in {self._timeout_seconds} seconds") from exc
        except (RedisError, OSError) as exc:
            self._stats.redis_errors += 1
            raise RedisUnavailable(f"{type(exc).__name__}: {exc}") from exc

    async def aclose(self) -> None:
        """Waits for a probe that is under way."""
        await self._tasks.drain()

    async def _probe(self) -> None:
        succeeded = False
        try:
            # A plain write that needs memory, so that a replica or a loading server does not pass. A full one
            # does: it takes what frees memory, and that is enough to be coherent.
            with contextlib.suppress(RedisFull):
                await self._attempt(self._client.set(self.probe_key, b"1", px=PROBE_LIFE_MS))
            if self.before_reopening is not None:
                await self.before_reopening()
            succeeded = True
        except RedisUnavailable:
            pass
        finally:
            self._breaker.end_probe(succeeded=succeeded)
        if succeeded:
            logger.warning("Redis is usable again")
