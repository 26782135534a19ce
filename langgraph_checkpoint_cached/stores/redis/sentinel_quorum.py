"""Quorum of the Sentinels on who the primary is, and the check that a connection leads there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.utils import str_if_bytes

from langgraph_checkpoint_cached.stores.redis.client import CONNECT_TIMEOUTS
from langgraph_checkpoint_cached.stores.redis.redis_internals import (
    connected_to,
    forced_primary_host,
    sentinels,
)
from langgraph_checkpoint_cached.utils.progress_timer import SLICES, running_timeout

AGREEMENT_SECONDS = 0.05
"""Time for which their agreement is relied on."""
SILENT_SECONDS = 2.0
"""Time for which a Sentinel that did not answer is not asked."""


class NoQuorum(RedisError):
    """Most Sentinels cannot be reached, or they name different primaries."""


class SentinelQuorum:
    """Primary that the Sentinels of a pool agree on, asked for again and again.

    A pool by itself asks one of them, and only for a new connection. But after a failover the old primary takes
    writes for another ten seconds, if it lives, until the Sentinels make it a replica. A process whose connections
    lead there would go on, while others, newly connected to the new one, do not hear of what it writes. So all of
    them are asked, as the one that leads the failover knows first: while they disagree, there is no primary.

    Args:
        pool: Connections to the primary.
        timeout_seconds: Time for their answers; the first time it is `CONNECT_TIMEOUTS` times as long.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, pool: SentinelConnectionPool, timeout_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pool, self._timeout_seconds, self._clock = pool, timeout_seconds, clock
        self._agreed_at = float("-inf")
        self._address: tuple[str, int] | None = None
        self._silent: dict[Redis, float] = {}

    async def find(self) -> None:
        """Make sure that they agree, else raise `NoQuorum`. Close idle connections to a former primary."""
        asked_at = self._clock()
        if asked_at - self._agreed_at < AGREEMENT_SECONDS:
            return
        known = sentinels(self._pool)
        asked = [each for each in known if asked_at - self._silent.get(each, float("-inf")) > SILENT_SECONDS]
        timeouts = 1 if self._address else CONNECT_TIMEOUTS
        async with running_timeout(timeouts * self._timeout_seconds):
            answers = await asyncio.gather(*map(self._ask, asked))
        named = {answer for answer in answers if answer is not None}
        if 2 * (len(answers) - answers.count(None)) <= len(known):
            raise NoQuorum("most Sentinels do not answer")
        if len(named) != 1:
            raise NoQuorum("the Sentinels name different primaries")
        host, port = named.pop()
        address = forced_primary_host(self._pool) or host, port
        if address != self._address:
            self._address = address
            await self._pool.disconnect(inuse_connections=False)
        self._agreed_at = asked_at

    async def check(self, connection: AbstractConnection) -> None:
        """Close a connection that leads elsewhere, and raise `NoQuorum`."""
        if connected_to(connection) != self._address:
            await connection.disconnect(nowait=True)
            raise NoQuorum("connected to another server than the Sentinels agree on")

    async def _ask(self, sentinel: Redis, *, again: bool = True) -> tuple[str, int] | None:
        asked_at = self._clock()
        try:
            found: Any = await sentinel.sentinel_get_master_addr_by_name(self._pool.service_name)
        except (RedisError, OSError) as exc:
            if again and isinstance(exc, RedisTimeoutError) and self._was_blocked(sentinel, asked_at):
                return await self._ask(sentinel, again=False)
            self._silent[sentinel] = asked_at
            return None
        except asyncio.CancelledError:  # it is waited for no longer
            self._silent[sentinel] = asked_at
            raise
        return None if found is None else (str_if_bytes(found[0]), int(found[1]))

    def _was_blocked(self, sentinel: Redis, asked_at: float) -> bool:
        """Return whether the time limit of the Sentinel's client ran out while the event loop was blocked."""
        limit = sentinel.connection_pool.connection_kwargs.get("socket_timeout") or 0.0
        return self._clock() - asked_at > limit + self._timeout_seconds / SLICES
