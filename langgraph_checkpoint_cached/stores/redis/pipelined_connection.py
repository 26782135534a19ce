"""A connection to Redis that is kept, and read without the client's streams: half of what an exchange costs."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary, WeakSet, ref

import hiredis
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ResponseError

from langgraph_checkpoint_cached.stores.redis.script_call import Command, was_demoted
from langgraph_checkpoint_cached.utils.batch_queue import answer

POOL_MIN = 16
"""A smaller pool is not to lack one for good."""
IDLE_SECONDS = 1.0
"""After which the loop first looks whether the server has closed it."""
LOOKS = 4
"""How many event-loop iterations that takes: over TLS as many."""
_MORE = object()

ReplyCallback = Callable[["list[Any] | Exception"], None]
"""Is called with the answers to all commands, each of which may be a `ResponseError`; or with the error."""


class PipelinedConnection:
    """One connection out of a pool, for any number of exchanges at a time, in order.

    The pool connects it, with all that is configured there, and closes it when the pool is closed. A lost one is
    replaced by the next exchange. All who use a pool share one, so that a saver which is forgotten keeps no more.
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
    def of(cls, pool: ConnectionPool, user: object) -> PipelinedConnection | None:
        """That of this pool, until `leave`. None where each has to be looked at before its use: for what Sentinels
        say, and with credentials that are renewed; and where there are too few.
        """
        if (
            pool.max_connections < POOL_MIN
            or isinstance(pool, SentinelConnectionPool)
            or pool.connection_kwargs.get("credential_provider") is not None
            or pool.connection_kwargs.get("health_check_interval")
        ):
            return None
        held = _HELD.get(pool)
        if held is None:
            held = _HELD[pool] = cls(pool)
        held._users.add(user)
        held._is_left = False
        return held

    async def leave(self, user: object) -> None:
        """Closes it if nobody else uses it."""
        self._users.discard(user)
        if not self._users:
            self._is_left = True
            await self.close()

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Sends all, then waits for all answers, each of which may be a `ResponseError`.

        Raises:
            redis.exceptions.RedisError, OSError: as the client raises them; then any may have been done. The
                connection is closed, as it is when the caller is cancelled.
        """
        replies = await self._ready()
        done: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        replies.exchange(commands, partial(answer, done))
        try:
            return await done
        except BaseException:
            replies.close(RedisConnectionError("the connection was closed"))
            raise

    @property
    def is_ready(self) -> bool:
        """Whether it is connected, and was used a moment ago."""
        return (
            self._replies is not None and not self._replies.lost and self._clock() - self._used_at <= IDLE_SECONDS
        )

    def send(self, commands: Sequence[Command], reply: ReplyCallback) -> Callable[[Exception], None]:
        """Sends all at once, if it is ready. `reply` is called with all answers, or the error.

        Returns what closes the connection: all who wait get the error that it is called with.
        """
        if self._replies is None:
            raise ValueError("not ready")
        self._used_at = self._clock()
        self._replies.exchange(commands, reply)
        return self._replies.close

    async def close(self) -> None:
        """Gives the connection back to the pool, closed. The next exchange takes another."""
        async with self._connecting:
            await self._return_connection()

    async def _ready(self) -> _ReplyReader:
        if self._replies is not None and self._clock() - self._used_at > IDLE_SECONDS:
            for _ in range(LOOKS):
                await asyncio.sleep(0)
        self._used_at = self._clock()
        replies = self._replies
        if replies is not None and not replies.lost:
            return replies
        async with self._connecting:
            if self._is_left:
                raise RedisConnectionError("whoever used it has left")
            if self._replies is None or self._replies.lost:
                await self._return_connection()
                await self._take()
            return cast("_ReplyReader", self._replies)

    async def _take(self) -> None:
        """Connects one anew: what lies idle in a pool may be dead, or have something to say."""
        pool = self._pool()
        if pool is None:
            raise RedisConnectionError("the client is gone")
        was_idle = bool(getattr(pool, "_available_connections", True))
        self._connection = await pool.get_connection()  # type: ignore[no-untyped-call]
        if was_idle:
            await self._connection.disconnect(nowait=True)
            await self._connection.connect()
        self._replies = _ReplyReader(self._connection)

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


_HELD: WeakKeyDictionary[ConnectionPool, PipelinedConnection] = WeakKeyDictionary()


class _PendingReply(NamedTuple):
    commands: int
    answers: list[Any]
    reply: ReplyCallback


class _ReplyReader(asyncio.Protocol):
    """Reads replies as they arrive, in place of the client's streams. These hear of everything but data.

    Pushes are of a server that will move, for nobody here has subscribed to anything. They are no answers, and
    the connection is left once nobody waits.
    """

    def __init__(self, connection: Any) -> None:
        self._transport: asyncio.Transport = connection._writer.transport
        self._streams: Any = self._transport.get_protocol()
        parse_error: Callable[[str], Exception] = connection._parser.parse_error
        self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=parse_error, notEnoughData=_MORE)
        self._is_to_be_left: Callable[[], bool] = getattr(connection, "should_reconnect", lambda: False)
        self._waiting: deque[_PendingReply] = deque()
        self._lost = self._pushed = False
        self._transport.set_protocol(self)

    @property
    def lost(self) -> bool:
        """Whether nothing is to be sent any more."""
        if self._lost or self._transport.is_closing():
            return True
        return not self._waiting and (self._pushed or self._is_to_be_left())

    def exchange(self, commands: Sequence[Command], reply: ReplyCallback) -> None:
        """Sends all."""
        self._transport.write(b"".join(map(hiredis.pack_command, commands)))
        self._waiting.append(_PendingReply(len(commands), [], reply))

    def close(self, error: Exception) -> None:
        """Nothing more is read, nor sent. All who wait get this error."""
        self._transport.abort()
        self._lose(error)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not _MORE:
                if isinstance(reply, hiredis.PushNotification):
                    self._pushed = True
                else:
                    self._answered(reply)
        except Exception as exc:  # noqa: BLE001 - it is for all who wait to handle
            self.close(exc)

    def _answered(self, reply: Any) -> None:
        if isinstance(reply, Exception) and not isinstance(reply, ResponseError):
            raise reply  # as the client does with a server that is loading, or has too many clients
        exchange = self._waiting[0]
        exchange.answers.append(reply)
        if len(exchange.answers) == exchange.commands:
            self._waiting.popleft()
            exchange.reply(exchange.answers)
            if was_demoted(exchange.answers):
                self.close(RedisConnectionError("this server is no primary any more"))

    def _lose(self, error: Exception) -> None:
        self._lost = True
        while self._waiting:
            self._waiting.popleft().reply(error)

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
