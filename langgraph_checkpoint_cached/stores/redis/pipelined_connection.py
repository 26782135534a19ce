"""Dedicated connection to Redis with many exchanges in flight, read without the client's streams.

Both halve what an exchange costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet, ref

import hiredis
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ResponseError

from langgraph_checkpoint_cached.stores.redis.redis_internals import (
    may_be_idle,
    missing_in_connection,
    missing_in_pool,
    streams,
)
from langgraph_checkpoint_cached.stores.redis.script_call import Command, was_demoted
from langgraph_checkpoint_cached.utils.batch_queue import answer

POOL_MIN = 16
"""Pools smaller than this cannot spare a dedicated connection."""
IDLE_SECONDS = 1.0
"""After this long without use, the loop first checks whether the server has closed the connection."""
CLOSE_CHECK_ITERATIONS = 4
"""Event-loop iterations which that takes, also over TLS."""
_MORE = object()

OnReplies = Callable[["list[Any] | Exception"], None]
"""Called with the replies to all commands, each of which may be a `ResponseError`; or with the error."""


class NotSupported(Exception):
    """The client's connections lack what a pipelined one needs; the message names it."""


class PipelinedConnection:
    """One connection of a pool, for any number of exchanges at a time, in order.

    The pool connects it, with all that is configured there, and closes it when the pool is closed. A lost one is
    replaced by the next exchange. All users of a pool share one, so that a saver which is forgotten keeps no more.
    """

    def __init__(self, pool: ConnectionPool, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool, self._clock = ref(pool), clock
        self._connecting = asyncio.Lock()
        self._connection: AbstractConnection | None = None
        self._replies: _ReplyReader | None = None
        self._used_at = -math.inf
        self._users: WeakSet[object] = WeakSet()
        self._is_left = False

    @classmethod
    def for_pool(cls, pool: ConnectionPool, user: object) -> PipelinedConnection | None:
        """Return the pool's, until `leave`; None where connections have to be checked before each use, as with
        Sentinels and with credentials that are renewed, where there are too few, and for other clients than
        redis-py.
        """
        if (
            pool.max_connections < POOL_MIN
            or isinstance(pool, SentinelConnectionPool)
            or pool.connection_kwargs.get("credential_provider") is not None
            or pool.connection_kwargs.get("health_check_interval")
            or missing_in_pool(pool)
        ):
            return None
        shared = _SHARED.get(pool)
        if shared is None:
            shared = _SHARED[pool] = cls(pool)
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

    def send(self, commands: Sequence[Command], on_replies: OnReplies) -> Callable[[Exception], None] | None:
        """Send all commands at once; None if it is not ready. `on_replies` gets all replies, or the error.

        Returns what closes the connection: all who wait get the error that it is called with.
        """
        replies = self._replies
        if replies is None or replies.lost or self._clock() - self._used_at > IDLE_SECONDS:
            return None
        self._used_at = self._clock()
        replies.send(commands, on_replies)
        return replies.close

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send all commands, then wait for all replies, each of which may be a `ResponseError`.

        Raises:
            NotSupported: the client's connections lack something. Nothing was sent.
            redis.exceptions.RedisError, OSError: as the client raises them; then any command may have run. The
                connection is closed, as it is when the caller is cancelled.
        """
        replies = await self._ready()
        done: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        replies.send(commands, partial(answer, done))
        try:
            return await done
        except BaseException:
            replies.close(RedisConnectionError("the connection was closed"))
            raise

    async def close(self) -> None:
        """Return the connection to the pool, closed. The next exchange takes another."""
        async with self._connecting:
            await self._return_connection()

    async def _ready(self) -> _ReplyReader:
        if self._replies is not None and self._clock() - self._used_at > IDLE_SECONDS:
            for _ in range(CLOSE_CHECK_ITERATIONS):
                await asyncio.sleep(0)
        self._used_at = self._clock()
        if self._replies is not None and not self._replies.lost:
            return self._replies
        async with self._connecting:
            if self._is_left:
                raise RedisConnectionError("all users of the connection have left")
            if self._replies is None or self._replies.lost:
                await self._return_connection()
                self._replies = await self._connect()
            return self._replies

    async def _connect(self) -> _ReplyReader:
        """Take a connection and connect it anew: one that lay idle in a pool may be dead, or have unread data."""
        pool = self._pool()
        if pool is None:
            raise RedisConnectionError("the client is gone")
        was_idle = may_be_idle(pool)
        connection = self._connection = await pool.get_connection()  # type: ignore[no-untyped-call]
        if was_idle:
            await connection.disconnect(nowait=True)
            await connection.connect()
        if missing := missing_in_connection(connection):
            await self._return_connection()
            raise NotSupported(", ".join(missing))
        return _ReplyReader(connection)

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


_SHARED: WeakKeyDictionary[ConnectionPool, PipelinedConnection] = WeakKeyDictionary()


class _Pending(NamedTuple):
    """Exchange whose replies are still coming."""

    expected: int
    on_replies: OnReplies
    replies: list[Any]


class _ReplyReader(asyncio.Protocol):
    """Protocol that reads replies as they arrive, in place of the client's streams. These hear of all but data.

    Pushes come from a server that will move, for nobody here has subscribed to anything. They are no replies, and
    the connection is left once nobody waits.
    """

    def __init__(self, connection: AbstractConnection) -> None:
        self._transport, self._streams, parse_error, self._should_reconnect = streams(connection)
        self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=parse_error, notEnoughData=_MORE)
        self._waiting: deque[_Pending] = deque()
        self._lost = self._pushed = self._has_error = False
        self._transport.set_protocol(self)

    @property
    def lost(self) -> bool:
        """Return whether nothing may be sent any more."""
        if self._lost or self._transport.is_closing():
            return True
        return not self._waiting and (self._pushed or self._should_reconnect())

    def send(self, commands: Sequence[Command], on_replies: OnReplies) -> None:
        """Send all commands."""
        self._transport.write(b"".join(map(hiredis.pack_command, commands)))
        self._waiting.append(_Pending(len(commands), on_replies, []))

    def close(self, error: Exception) -> None:
        """Close the connection. All who wait get this error."""
        self._transport.abort()
        self._lose(error)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not _MORE:
                if isinstance(reply, hiredis.PushNotification):
                    self._pushed = True
                    continue
                pending = self._waiting[0]
                if isinstance(reply, Exception):
                    if not isinstance(reply, ResponseError):
                        raise reply  # as the client does with a server that is loading, or has too many clients
                    self._has_error = True
                pending.replies.append(reply)
                if len(pending.replies) == pending.expected:
                    self._waiting.popleft()
                    pending.on_replies(pending.replies)
                    if self._has_error:
                        self._has_error = False
                        if was_demoted(pending.replies):
                            self.close(RedisConnectionError("this server is no primary any more"))
        except Exception as exc:  # noqa: BLE001 - for all who wait to handle
            self.close(exc)

    def _lose(self, error: Exception) -> None:
        self._lost = True
        while self._waiting:
            self._waiting.popleft().on_replies(error)

    def eof_received(self) -> None:
        self._lost = True
        self._streams.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._streams.connection_lost(exc)
        self._lose(RedisConnectionError("Redis closed the connection"))

    def pause_writing(self) -> None:
        self._streams.pause_writing()

    def resume_writing(self) -> None:
        self._streams.resume_writing()
