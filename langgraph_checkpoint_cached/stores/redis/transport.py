"""Transport of script calls to Redis: what the executor needs of one, and the one for a single server."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import NoScriptError, ResponseError

from langgraph_checkpoint_cached.stores.redis.client import AnyRedis
from langgraph_checkpoint_cached.stores.redis.cluster_transport import ClusterClientTransport, ClusterTransport
from langgraph_checkpoint_cached.stores.redis.links import ClientLink, Link, PooledLink
from langgraph_checkpoint_cached.stores.redis.pipelined_connection import NotSupported, PipelinedConnection
from langgraph_checkpoint_cached.stores.redis.redis_internals import missing_in_cluster, missing_in_pool
from langgraph_checkpoint_cached.stores.redis.reply_reader import OnReplies
from langgraph_checkpoint_cached.stores.redis.script_call import (
    Confirmation,
    ScriptCall,
    Unconfirmed,
    eval_whole,
    evalsha,
)
from langgraph_checkpoint_cached.stores.redis.scripts import EPOCH, Script
from langgraph_checkpoint_cached.stores.redis.sentinel_quorum import SentinelQuorum
from langgraph_checkpoint_cached.stores.redis.server_epoch import EpochCheck

logger = logging.getLogger("langgraph_checkpoint_cached")

FALLBACK = "this Redis client lacks %s: calls go through its public methods, which takes longer"


class Transport(Protocol):
    """Way to Redis for script calls. Replies are bytes, numbers, lists, or a `ResponseError` of one call; or a
    `redis.exceptions.ConnectionError` where the connection was lost, so that the call may or may not have run.

    Errors of the whole exchange are raised as the client raises them: `redis.exceptions.RedisError`,
    `RedisClusterException`, `OSError`; and `TimeoutError` where nothing came for too long. Then any of the calls
    may have run.
    """

    def can_send(self, calls: Iterable[ScriptCall]) -> bool:
        """Return whether `send` could send these calls now."""

    def send(self, calls: Sequence[ScriptCall], on_replies: OnReplies) -> bool:
        """Send calls at once; return False if that is not possible now. `on_replies` gets what comes.

        Calls whose script Redis lacks get a `NoScriptError`.
        """

    async def run(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """Run calls, those of one thread in the order given. A call that is `aside` comes alone."""

    async def retry_after_noscript(
        self, calls: Sequence[ScriptCall], replies: list[Any], *, overtaken: bool = False
    ) -> None:
        """Run calls again whose script Redis lacked, unless a later one of the thread has run; set their replies.

        Args:
            calls: All calls of the exchange.
            replies: Their replies.
            overtaken: Whether later calls of the same threads may have been sent already.
        """

    async def probe(self, key: str, ttl_ms: int) -> None:
        """Store a value on every primary. Raises `ResponseError` too."""

    async def epochs(self, key: str) -> list[bytes]:
        """Return the server epoch of every primary. Raises `ResponseError` too."""

    async def reconnect(self) -> None:
        """Close the connections that nobody uses now: the address may lead elsewhere."""

    async def close(self) -> None:
        """Leave the client as it was: no connection of it is held any more."""


def transport_for(client: AnyRedis, timeout_seconds: float, confirmation: Confirmation | None = None) -> Transport:
    """Return the fastest transport that a client allows.

    Args:
        client: Redis client of the caller.
        timeout_seconds: Time without progress in an exchange; a new connection may take `CONNECT_TIMEOUTS` times
            as long.
        confirmation: How durable calls are confirmed.
    """
    if isinstance(client, RedisCluster):
        if missing := missing_in_cluster(client):
            logger.warning(FALLBACK, ", ".join(missing))
            return ClusterClientTransport(client, timeout_seconds, confirmation)
        return ClusterTransport(client, timeout_seconds, confirmation)
    return ServerTransport(client, timeout_seconds, confirmation)


class ServerTransport:
    """Transport to one server, or to the primary of a Sentinel service.

    A script that the server is not known to have is sent whole. Asking first whether it has it would not do: a
    call that is refused for that while a later one of its thread runs cannot be repeated.
    """

    def __init__(self, client: Redis, timeout_seconds: float, confirmation: Confirmation | None = None) -> None:
        self._client, self._timeout_seconds, self._confirmation = client, timeout_seconds, confirmation
        self._epoch = EpochCheck()
        self._known: set[Script] = set()
        self._pipelined: PipelinedConnection | None = None
        self._link: Link
        pool = client.connection_pool
        self._quorum = SentinelQuorum(pool, timeout_seconds) if isinstance(pool, SentinelConnectionPool) else None
        if client.single_connection_client:
            self._link = ClientLink(client, None, timeout_seconds)
        elif missing := missing_in_pool(pool):
            self._fall_back(missing)
        else:
            self._link = PooledLink(pool, self._quorum, timeout_seconds)
            self._pipelined = PipelinedConnection.for_pool(pool, timeout_seconds, self)

    def can_send(self, calls: Iterable[ScriptCall]) -> bool:
        pipelined = self._pipelined
        if pipelined is None or pipelined.epoch != self._epoch.seen or not pipelined.is_ready:
            return False
        for call in calls:  # noqa: SIM110 - a generator would cost every call a frame
            if call.script not in self._known:
                return False
        return True

    def send(self, calls: Sequence[ScriptCall], on_replies: OnReplies) -> bool:
        pipelined, known = self._pipelined, self._known
        if pipelined is None or pipelined.epoch != self._epoch.seen:
            return False
        commands = []
        for call in calls:
            if call.script not in known:
                return False
            commands.append(("EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.arguments))
        confirmation = self._confirmation
        if confirmation is None:
            return pipelined.send(commands, on_replies)

        def on_confirmed(replies: list[Any] | Exception) -> None:
            on_replies(confirmation.apply(calls, replies) if isinstance(replies, list) else replies)

        return pipelined.send([*commands, *confirmation.commands_for(calls)], on_confirmed)

    async def run(self, calls: Sequence[ScriptCall]) -> list[Any]:
        commands = [evalsha(call) if call.script in self._known else eval_whole(call) for call in calls]
        confirmation = self._confirmation
        if calls[0].aside and self._has_spare_connection():
            replies = await self._link.exchange(commands)
        elif confirmation is None:
            replies = await self._exchange(commands)
        else:
            confirming = confirmation.commands_for(calls)
            replies = confirmation.apply(calls, await self._exchange([*commands, *confirming]))
        if any(isinstance(reply, NoScriptError) for reply in replies):
            await self.retry_after_noscript(calls, replies)
        else:
            self._known.update(call.script for call in calls)
        return replies

    async def retry_after_noscript(
        self, calls: Sequence[ScriptCall], replies: list[Any], *, overtaken: bool = False
    ) -> None:
        self._known.clear()
        threads = Counter(call.keys[0] for call in calls)
        for i, call in enumerate(calls):
            too_late = call.in_order and (overtaken or threads[call.keys[0]] > 1)
            if isinstance(replies[i], NoScriptError) and not too_late:
                [reply] = await self._exchange([eval_whole(call)])
                must_confirm = call.durable and self._confirmation and not isinstance(reply, ResponseError)
                replies[i] = Unconfirmed(reply) if must_confirm else reply

    async def probe(self, key: str, ttl_ms: int) -> None:
        [reply] = await self._exchange([("SET", key, b"1", "PX", ttl_ms)])
        if isinstance(reply, ResponseError):
            raise reply

    async def epochs(self, key: str) -> list[bytes]:
        [reply] = await self._exchange([("EVAL", EPOCH.text, 1, key)])
        if isinstance(reply, ResponseError):
            raise reply
        return [reply]

    async def reconnect(self) -> None:
        if self._pipelined is not None:
            await self._pipelined.close()
        if not self._client.single_connection_client:
            await self._client.connection_pool.disconnect(inuse_connections=False)

    async def close(self) -> None:
        if (pipelined := self._pipelined) is not None:
            self._pipelined = None
            await pipelined.leave(self)

    async def _exchange(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        if self._pipelined is not None:
            try:
                await self._pipelined.connect()
                self._epoch.note(self._pipelined.epoch)
                return await self._pipelined.exchange(commands)
            except NotSupported as exc:
                if self._pipelined is not None:  # the first of the exchanges that find out at the same time
                    self._pipelined = None
                    self._fall_back([str(exc)])
        return await self._link.exchange(commands)

    def _has_spare_connection(self) -> bool:
        pool = self._client.connection_pool
        return self._pipelined is not None and pool.can_get_connection()

    def _fall_back(self, missing: Sequence[str]) -> None:
        logger.warning(FALLBACK, ", ".join(missing))
        self._link = ClientLink(self._client, self._quorum, self._timeout_seconds)
