"""Links to one Redis server that carry one exchange at a time over a connection of the client's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import ResponseError

from langgraph_checkpoint_cached.stores.redis.client import CONNECT_TIMEOUTS
from langgraph_checkpoint_cached.stores.redis.redis_internals import is_closed, node_connection, socket_of
from langgraph_checkpoint_cached.stores.redis.reply_reader import exchange
from langgraph_checkpoint_cached.stores.redis.script_call import Command
from langgraph_checkpoint_cached.stores.redis.scripts import UNDECODED
from langgraph_checkpoint_cached.stores.redis.sentinel_quorum import SentinelQuorum
from langgraph_checkpoint_cached.stores.redis.server_epoch import ASK_EPOCH, EpochCheck, parse_epoch
from langgraph_checkpoint_cached.utils.progress_timer import running_timeout


class Link(Protocol):
    """Exchange of commands for replies, each of which may be a `ResponseError`."""

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send all commands, then wait for all replies. Raises as the client does, and `TimeoutError`."""


class _Connections:
    """Connections of the client to one server, each checked before it is used.

    Args:
        timeout_seconds: Time without progress in an exchange; a new connection may take `CONNECT_TIMEOUTS` times
            as long.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._epoch = EpochCheck()
        self._sockets: WeakKeyDictionary[AbstractConnection, object] = WeakKeyDictionary()  # that were checked

    def connecting(self) -> running_timeout:
        """Return the time limit of a new connection."""
        return running_timeout(CONNECT_TIMEOUTS * self._timeout_seconds)

    async def exchange(self, connection: AbstractConnection, commands: Sequence[Command]) -> list[Any]:
        """Exchange commands over a connection that may be new, closed by the server while it was idle, or not
        connected yet.
        """
        if is_closed(connection):
            await connection.disconnect(nowait=True)
        if not connection.is_connected:
            async with self.connecting():
                await connection.connect()  # type: ignore[no-untyped-call]
        if self._sockets.get(connection) is not (socket := socket_of(connection)):
            self._epoch.note(parse_epoch(await exchange(connection, ASK_EPOCH, self._timeout_seconds)))
            self._sockets[connection] = socket
        return await exchange(connection, commands, self._timeout_seconds)


class PooledLink:
    """Link over a connection of the pool for each exchange; with Sentinels, only where most of them agree."""

    def __init__(self, pool: ConnectionPool, quorum: SentinelQuorum | None, timeout_seconds: float) -> None:
        self._pool, self._quorum = pool, quorum
        self._connections = _Connections(timeout_seconds)

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        if self._quorum is not None:
            await self._quorum.find()
        async with self._connections.connecting():
            connection: AbstractConnection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            if self._quorum is not None:
                await self._quorum.check(connection)
            return await self._connections.exchange(connection, commands)
        finally:
            await self._pool.release(connection)


class NodeLink:
    """Link to one node of a Cluster."""

    def __init__(self, timeout_seconds: float) -> None:
        self._connections = _Connections(timeout_seconds)

    async def exchange(self, node: ClusterNode, commands: Sequence[Command]) -> list[Any]:
        """Send all commands, then wait for all replies. Raises as `Link.exchange`."""
        with node_connection(node) as connection:
            return await self._connections.exchange(connection, commands)


class ClientLink:
    """Link through the client's public methods only: for fake clients, other versions and single connections.

    The client may be set to repeat commands whose connection was lost: then a script may run twice.
    """

    def __init__(self, client: Redis, quorum: SentinelQuorum | None, timeout_seconds: float) -> None:
        self._client, self._quorum, self._timeout_seconds = client, quorum, timeout_seconds
        self._is_connected = False

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        if self._quorum is not None:
            await self._quorum.find()
        timeouts = 1 if self._is_connected else 1 + CONNECT_TIMEOUTS
        self._is_connected = False
        async with running_timeout(timeouts * self._timeout_seconds):
            replies = await self._exchange(commands)
        self._is_connected = True
        for reply in replies:
            if isinstance(reply, Exception) and not isinstance(reply, ResponseError):
                raise reply
        return replies

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        if self._client.single_connection_client:  # its pipeline would take another connection
            return [await self._execute(command) for command in commands]
        async with self._client.pipeline(transaction=False) as pipeline:
            if self._quorum is not None:
                pipeline.connection = await self._client.connection_pool.get_connection()  # type: ignore[no-untyped-call]
                await self._quorum.check(pipeline.connection)
            for command in commands:
                pipeline.execute_command(*command, **UNDECODED)
            return await pipeline.execute(raise_on_error=False)

    async def _execute(self, command: Command) -> Any:
        try:
            return await self._client.execute_command(*command, **UNDECODED)  # type: ignore[no-untyped-call]
        except ResponseError as exc:
            return exc
