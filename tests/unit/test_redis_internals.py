"""Classes of redis-py: none of them may fall back to the client's pipeline."""

from __future__ import annotations

import pytest
from redis.asyncio import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection

from langgraph_checkpoint_cached.stores.redis.redis_internals import missing_in_pool


@pytest.mark.parametrize(
    "connection_class",
    [
        Connection,
        SSLConnection,
        UnixDomainSocketConnection,
        SentinelManagedConnection,
        SentinelManagedSSLConnection,
    ],
)
def test_connections_of_redis_py_lack_nothing(connection_class: type[Connection]) -> None:
    assert missing_in_pool(ConnectionPool(connection_class=connection_class)) == []
