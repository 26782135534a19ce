"""All that reaches into redis-py's private attributes, and what stands in for it where they are missing.

redis-py offers no pipelined connection, no answer as bytes whatever the client's setting, and no way to ask all
Sentinels. The functions here check first whether a client has what they need; `missing` says what it lacks, and
then the client's own pipeline is used instead (`ClientLink`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from hiredis import pack_command
from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import ResponseError

from langgraph_checkpoint_cached.stores.redis.script_call import Command, was_demoted


class Streams(NamedTuple):
    """Transport and protocol below a connection of the client."""

    transport: asyncio.Transport
    protocol: Any
    """The client's stream protocol, which still hears of everything but data."""
    parse_error: Callable[[str], Exception]
    should_reconnect: Callable[[], bool]


def missing_in_connection(connection: Any) -> list[str]:
    """Return what a connected connection lacks of what `streams` and `exchange` need."""
    found = [
        name for name in ("send_packed_command", "read_response", "disconnect") if not hasattr(connection, name)
    ]
    transport = getattr(getattr(connection, "_writer", None), "transport", None)
    if not isinstance(transport, asyncio.Transport):
        found.append("_writer.transport")
    if not callable(getattr(getattr(connection, "_parser", None), "parse_error", None)):
        found.append("_parser.parse_error")
    return found


def streams(connection: Any) -> Streams:
    """Return the streams of a connection, which must lack nothing."""
    transport = connection._writer.transport
    never: Callable[[], bool] = lambda: False  # noqa: E731
    should_reconnect = getattr(connection, "should_reconnect", never)  # since redis-py 7
    if getattr(connection, "credential_provider", None) is not None:
        must_move, used = should_reconnect, _new_credentials(connection)
        should_reconnect = lambda: must_move() or _new_credentials(connection) is not used  # noqa: E731
    return Streams(transport, transport.get_protocol(), connection._parser.parse_error, should_reconnect)


def _new_credentials(connection: Any) -> object:
    """Return the credentials that the pool has told a connection to authenticate with, once it is released."""
    return getattr(connection, "_re_auth_token", None)


def missing_in_pool(pool: ConnectionPool) -> list[str]:
    """Return what connections of a pool lack, as far as is known before there is one.

    A method that redis-py does not define may do anything: that of a fake connection reaches no server.
    """
    return [
        name
        for name in ("send_packed_command", "read_response")
        if not _is_of_redis_py(getattr(pool.connection_class, name, None))
    ]


def _is_of_redis_py(method: Any) -> bool:
    return str(getattr(method, "__module__", "")).startswith("redis.")


def idle_sockets(pool: ConnectionPool) -> list[object] | None:
    """Return `socket_of` each connection that lies idle in a pool; None if that is not known."""
    idle = getattr(pool, "_available_connections", None)
    return None if idle is None else [socket_of(connection) for connection in idle if connection.is_connected]


def descriptors(client: Redis | RedisCluster) -> list[int]:
    """Return the descriptors of the sockets that a client has open."""
    connections: list[Any] = []
    if isinstance(client, RedisCluster):
        for node in client.get_nodes():
            connections += getattr(node, "_connections", ())
    else:
        pool = client.connection_pool
        connections += [*getattr(pool, "_available_connections", ()), *getattr(pool, "_in_use_connections", ())]
        if isinstance(pool, SentinelConnectionPool):
            return [*_descriptors(connections), *(found for one in sentinels(pool) for found in descriptors(one))]
    return _descriptors(connections)


def _descriptors(connections: Sequence[Any]) -> list[int]:
    writers = (getattr(connection, "_writer", None) for connection in connections)
    sockets = (writer.get_extra_info("socket") for writer in writers if writer is not None)
    return [sock.fileno() for sock in sockets if sock is not None]


async def exchange_by_client(connection: AbstractConnection, commands: Sequence[Command]) -> list[Any]:
    """Send all commands, then read all replies, through the client's streams.

    Returns a reply for each, or a `ResponseError`. If anything else goes wrong the connection is closed.
    """
    try:
        await connection.send_packed_command(b"".join(map(pack_command, commands)))
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(await connection.read_response(disable_decoding=True, timeout=math.inf))
            except ResponseError as exc:
                replies.append(exc)
        if was_demoted(replies):
            await connection.disconnect(nowait=True)
        return replies
    except BaseException:
        await connection.disconnect(nowait=True)  # no reply is left on it for the next caller
        raise


def missing_in_cluster(client: RedisCluster) -> list[str]:
    """Return what a Cluster client lacks of what the functions below need."""
    found = [] if hasattr(client, "_initialize") else ["_initialize"]
    for names in (("acquire_connection",), ("release", "_free")):
        if not any(hasattr(ClusterNode, name) for name in names):
            found.append(f"ClusterNode.{names[0]}")
    return found


def refresh_slots(client: RedisCluster) -> None:
    """Have the client ask anew who has which slots, as it does itself when a connection fails."""
    client._initialize = True


@contextmanager
def node_connection(node: ClusterNode) -> Iterator[Any]:
    """Take a connection of a node for the block. It may not be connected."""
    connection = node.acquire_connection()
    try:
        yield connection
    finally:
        if hasattr(node, "release"):
            node.release(connection)
        else:  # redis-py before 7
            node._free.append(connection)


def is_closed(connection: Any) -> bool:
    """Return whether a connected connection is known to have been closed by the server, while it was idle.

    A pool of redis-py that takes maintenance notifications, as it does with RESP3, returns such a connection.
    """
    reader, writer = getattr(connection, "_reader", None), getattr(connection, "_writer", None)
    return (reader is not None and reader.at_eof()) or (writer is not None and writer.transport.is_closing())


def socket_of(connection: Any) -> object:
    """Return what is another object after each time that a connection was connected."""
    return connection._writer


def sentinels(pool: SentinelConnectionPool) -> list[Redis]:
    """Return clients of all Sentinels that a pool knows."""
    manager: Any = pool.sentinel_manager
    return list(manager.sentinels)


def forced_primary_host(pool: SentinelConnectionPool) -> str | None:
    """Return the address that replaces the one that Sentinels say, if one was configured."""
    manager: Any = pool.sentinel_manager
    return getattr(manager, "_force_master_ip", None)


def connected_to(connection: Any) -> tuple[str, int]:
    """Return host and port that a connection leads to."""
    return connection.host, int(connection.port)
