"""Links to one Redis server that carry one exchange at a time over a connection of the client's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import ResponseError

from langgraph_checkpoint_cached.stores.redis.redis_internals import exchange
from langgraph_checkpoint_cached.stores.redis.script_call import Command
from langgraph_checkpoint_cached.stores.redis.scripts import UNDECODED
from langgraph_checkpoint_cached.stores.redis.sentinel_quorum import SentinelQuorum


class Link(Protocol):
    """Exchange of commands for replies, each of which may be a `ResponseError`."""

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send all commands, then wait for all replies. Raises as the client does."""


class PooledLink:
    """Link over a connection of the pool for each exchange; with Sentinels, only where most of them agree."""

    def __init__(self, pool: ConnectionPool, quorum: SentinelQuorum | None) -> None:
        self._pool, self._quorum = pool, quorum

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        if self._quorum is not None:
            await self._quorum.find()
        connection: AbstractConnection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            if self._quorum is not None:
                await self._quorum.check(connection)
            return await exchange(connection, commands)
        finally:
            await self._pool.release(connection)


class ClientLink:
    """Link through the client's public methods only: for fake clients, other versions and single connections.

    The client may be set to repeat commands whose connection was lost: then a script may run twice.
    """

    def __init__(self, client: Redis, quorum: SentinelQuorum | None = None) -> None:
        self._client, self._quorum = client, quorum

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        if self._client.single_connection_client:  # its pipeline would take another connection
            return [await self._execute(command) for command in commands]
        if self._quorum is not None:
            await self._quorum.find()
        async with self._client.pipeline(transaction=False) as pipeline:
            if self._quorum is not None:
                pipeline.connection = await self._client.connection_pool.get_connection()  # type: ignore[no-untyped-call]
                await self._quorum.check(pipeline.connection)
            for command in commands:
                pipeline.execute_command(*command, **UNDECODED)
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
        for reply in replies:
            if isinstance(reply, Exception) and not isinstance(reply, ResponseError):
                raise reply
        return replies

    async def _execute(self, command: Command) -> Any:
        try:
            return await self._client.execute_command(*command, **UNDECODED)  # type: ignore[no-untyped-call]
        except ResponseError as exc:
            return exc
