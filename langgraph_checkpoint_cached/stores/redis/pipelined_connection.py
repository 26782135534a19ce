"""Dedicated connection to Redis with many exchanges in flight, which halves what an exchange costs."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError

from langgraph_checkpoint_cached.stores.redis.client import CONNECT_TIMEOUTS
from langgraph_checkpoint_cached.stores.redis.redis_internals import (
    idle_sockets,
    missing_in_connection,
    missing_in_pool,
    socket_of,
)
from langgraph_checkpoint_cached.stores.redis.reply_reader import OnReplies, ReplyReader
from langgraph_checkpoint_cached.stores.redis.script_call import Command
from langgraph_checkpoint_cached.stores.redis.server_epoch import ASK_EPOCH, parse_epoch
from langgraph_checkpoint_cached.utils.progress_timer import running_timeout

POOL_MIN = 16
"""Pools smaller than this cannot spare a dedicated connection."""
IDLE_SECONDS = 1.0
"""After this long without use, the loop first checks whether the server has closed the connection."""
CLOSE_CHECK_ITERATIONS = 4
"""Event-loop iterations which that takes, also over TLS."""


class NotSupported(Exception):
    """The client's connections lack what a pipelined one needs; the message names it."""


class PipelinedConnection:
    """One connection of a pool, for any number of exchanges at a time, in order.

    The pool connects it, with all that is configured there, and closes it when the pool is closed. A lost one is
    replaced by the next exchange. All users of a pool with the same time limit share one, so that a saver which is
    forgotten keeps no more.

    Args:
        pool: Pool of the client.
        timeout_seconds: Time without progress, after which the connection is closed; a new one may take
            `CONNECT_TIMEOUTS` times as long.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, pool: ConnectionPool, timeout_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pool, self._timeout_seconds, self._clock = ref(pool), timeout_seconds, clock
        self._connecting = asyncio.Lock()
        self._connection: AbstractConnection | None = None
        self._replies: ReplyReader | None = None
        self._used_at = -math.inf
        self._users: WeakSet[object] = WeakSet()
        self._is_left = False
        self.epoch: str | None = None
        """Server epoch behind the connection, None if the server does not tell it."""

    @classmethod
    def for_pool(cls, pool: ConnectionPool, timeout_seconds: float, user: object) -> PipelinedConnection | None:
        """Return the pool's, until `leave`; None where connections have to be checked before each use, as with
        Sentinels, where there are too few, and for other clients than redis-py.
        """
        if (
            pool.max_connections < POOL_MIN
            or isinstance(pool, SentinelConnectionPool)
            or pool.connection_kwargs.get("health_check_interval")
            or missing_in_pool(pool)
        ):
            return None
        of_pool = _SHARED.setdefault(pool, {})
        shared = of_pool.get(timeout_seconds)
        if shared is None:
            shared = of_pool[timeout_seconds] = cls(pool, timeout_seconds)
        shared._users.add(user)
        shared._is_left = False
        return shared

    async def leave(self, user: object) -> None:
        """Close the connection if nobody else uses it."""
        self._users.discard(user)
        if not self._users:
            self._is_left = True
            await self.close()

    @property
    def is_ready(self) -> bool:
        """Return whether the connection is open and was used a moment ago."""
        replies = self._replies
        return replies is not None and self._clock() - self._used_at <= IDLE_SECONDS and not replies.lost

    def send(self, commands: Sequence[Command], on_replies: OnReplies) -> bool:
        """Send all commands at once; return False if it is not ready. `on_replies` gets what comes."""
        replies = self._replies
        if replies is None or replies.lost or self._clock() - self._used_at > IDLE_SECONDS:
            return False
        self._used_at = self._clock()
        replies.send(commands, on_replies)
        return True

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send all commands, then wait for all replies, each of which may be a `ResponseError`.

        Raises:
            NotSupported: the client's connections lack something. Nothing was sent.
            redis.exceptions.RedisError, OSError: as the client raises them; then any command may have run. The
                connection is closed, as it is when the caller is cancelled.
        """
        return await (await self._ready()).exchange(commands)

    async def connect(self) -> None:
        """Make sure that there is a connection. Raises as `exchange`; nothing was sent."""
        await self._ready()

    async def close(self) -> None:
        """Return the connection to the pool, closed. The next exchange takes another."""
        async with self._connecting:
            await self._return_connection()

    async def _ready(self) -> ReplyReader:
        if self._replies is not None and self._clock() - self._used_at > IDLE_SECONDS:
            for _ in range(CLOSE_CHECK_ITERATIONS):
                await asyncio.sleep(0)
        self._used_at = self._clock()
        if self._replies is not None and not self._replies.lost:
            self._replies.watch()
            return self._replies
        async with self._connecting:
            if self._is_left:
                raise RedisConnectionError("all users of the connection have left")
            if self._replies is None or self._replies.lost:
                await self._return_connection()
                async with running_timeout(CONNECT_TIMEOUTS * self._timeout_seconds):
                    self._replies = await self._connect()
            return self._replies

    async def _connect(self) -> ReplyReader:
        """Take a connection and connect it anew: one that lay idle in a pool may be dead, or have unread data."""
        pool = self._pool()
        if pool is None:
            raise RedisConnectionError("the client is gone")
        idle = idle_sockets(pool)
        connection = self._connection = await pool.get_connection()  # type: ignore[no-untyped-call]
        if idle is None or socket_of(connection) in idle:
            await connection.disconnect(nowait=True)
            await connection.connect()
        if missing := missing_in_connection(connection):
            await self._return_connection()
            raise NotSupported(", ".join(missing))
        reader = ReplyReader(connection, self._timeout_seconds)
        self.epoch = parse_epoch(await reader.exchange(ASK_EPOCH))
        return reader

    async def _return_connection(self) -> None:
        if self._replies is not None:
            self._replies.close(RedisConnectionError("the connection was closed"))
            self._replies = None
        pool = self._pool()
        if self._connection is not None and pool is not None:
            await self._connection.disconnect(nowait=True)
            with contextlib.suppress(KeyError):  # released already, and cancelled after it
                await pool.release(self._connection)
            self._connection = None


_SHARED: WeakKeyDictionary[ConnectionPool, dict[float, PipelinedConnection]] = WeakKeyDictionary()
