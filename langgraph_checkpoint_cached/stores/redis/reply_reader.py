"""Exchange of commands for replies over a connection of the client, read without the client's streams.

That halves what an exchange costs, and it tells how far a reply has come.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ResponseError

from langgraph_checkpoint_cached.stores.redis.redis_internals import (
    exchange_by_client,
    missing_in_connection,
    streams,
)
from langgraph_checkpoint_cached.stores.redis.script_call import Command, was_demoted
from langgraph_checkpoint_cached.utils.batch_queue import answer
from langgraph_checkpoint_cached.utils.progress_timer import ProgressTimer, running_timeout

LARGE_BYTES = 64 * 1024
"""Commands that are larger take time to send, which is not the server's."""
BYTES_PER_SECOND_MIN = 4 * 1024 * 1024
"""Rate at which large commands are expected to be sent at least: a call may take so much longer."""
_MORE = object()

OnReplies = Callable[["list[Any] | Exception"], None]
"""Called with the replies to all commands, each of which may be a `ResponseError`; or with the error."""


class _Pending(NamedTuple):
    """Exchange whose replies are still coming."""

    expected: int
    on_replies: OnReplies
    replies: list[Any]


class ReplyReader(asyncio.Protocol):
    """Protocol that reads replies as they arrive, in place of the client's streams. These hear of all but data.

    When nothing comes or goes for too long while something is waited for, the connection is closed.

    Pushes come from a server that will move, for nobody here has subscribed to anything. They are no replies, and
    the connection is left once nobody waits.

    Args:
        connection: Connected connection of the client, which lacks nothing (`missing_in_connection`).
        timeout_seconds: Time without progress, while the event loop runs.
    """

    def __init__(self, connection: AbstractConnection, timeout_seconds: float) -> None:
        self._transport, self._streams, parse_error, self._should_reconnect = streams(connection)
        self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=parse_error, notEnoughData=_MORE)
        self._waiting: deque[_Pending] = deque()
        self._lost = self._pushed = self._has_error = False
        self._received = 0  # pieces of replies
        self._sending_until = 0.0
        self._timer = ProgressTimer(timeout_seconds, self._progress, self._on_stalled)
        self._transport.set_protocol(self)
        self._timer.start()

    @property
    def lost(self) -> bool:
        """Return whether nothing may be sent any more."""
        if self._lost or self._transport.is_closing():
            return True
        return not self._waiting and (self._pushed or self._should_reconnect())

    def send(self, commands: Sequence[Command], on_replies: OnReplies) -> None:
        """Send all commands."""
        packed = b"".join(map(hiredis.pack_command, commands))
        self._transport.write(packed)
        self._waiting.append(_Pending(len(commands), on_replies, []))
        if len(packed) > LARGE_BYTES:
            now = time.monotonic()
            self._sending_until = max(now, self._sending_until) + len(packed) / BYTES_PER_SECOND_MIN

    def watch(self) -> None:
        """Go on to measure progress. To be called when nothing was sent for a second."""
        if not self._timer.is_running:
            self._timer.start()

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send all commands, then wait for all replies. The connection is closed if that fails or is cancelled."""
        done: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self.send(commands, partial(answer, done))
        try:
            return await done
        except BaseException:
            self.close(RedisConnectionError("the connection was closed"))
            raise

    def close(self, error: Exception) -> None:
        """Close the connection. All who wait get this error."""
        self._transport.abort()
        self._lose(error)

    def leave(self) -> bool:
        """Let the client read again. Return whether it may use the connection further."""
        lost = self.lost
        self._timer.stop()
        self._transport.set_protocol(self._streams)
        return not lost

    def data_received(self, data: bytes) -> None:
        self._received += 1
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

    def _progress(self) -> tuple[object, object]:
        waiting, now = self._waiting, time.monotonic()
        sending = now if now < self._sending_until else 0.0  # nobody tells how much the system has sent
        seen = (self._received, self._transport.get_write_buffer_size(), sending)
        return (waiting[0] if waiting else None), seen

    def _on_stalled(self) -> None:
        self.close(asyncio.TimeoutError())

    def _lose(self, error: Exception) -> None:
        self._lost = True
        self._timer.stop()
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


async def exchange(
    connection: AbstractConnection, commands: Sequence[Command], timeout_seconds: float
) -> list[Any]:
    """Send all commands over a connected connection, then wait for all replies, without progress no longer than
    this.

    Return a reply for each, or a `ResponseError`. If anything else goes wrong the connection is closed.
    """
    if missing_in_connection(connection):
        async with running_timeout(timeout_seconds):
            return await exchange_by_client(connection, commands)
    reader = ReplyReader(connection, timeout_seconds)
    may_stay = False
    try:
        replies = await reader.exchange(commands)
        may_stay = True
        return replies
    finally:
        if not (reader.leave() and may_stay):
            await connection.disconnect(nowait=True)
