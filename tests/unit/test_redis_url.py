"""Every form of a Redis URL gets the client that it names; a bad one gets an error that says what to write."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import SSLConnection
from redis.asyncio.sentinel import SentinelConnectionPool, SentinelManagedSSLConnection

from langgraph_checkpoint_cached.errors import ArgumentError
from langgraph_checkpoint_cached.stores.redis.url import redis_client


def client_of(url: str) -> Any:
    return redis_client(url, max_connections=7, timeout_seconds=0.5)


def nodes_of(client: RedisCluster) -> list[tuple[str, int]]:
    return [(node.host, node.port) for node in client.nodes_manager.startup_nodes.values()]


def sentinels_of(client: Redis) -> list[tuple[str, int]]:
    kwargs = [each.connection_pool.connection_kwargs for each in client.connection_pool.sentinel_manager.sentinels]
    return [(k["host"], k["port"]) for k in kwargs]


def test_a_server() -> None:
    client = client_of("redis://user:p%40ss@host:1234/3?client_name=me")
    assert isinstance(client, Redis)
    kwargs = client.connection_pool.connection_kwargs
    assert [kwargs[name] for name in ("host", "port", "db", "username", "password", "client_name")] == [
        "host", 1234, 3, "user", "p@ss", "me"
    ]  # fmt: skip
    assert kwargs["socket_timeout"] is None
    assert kwargs["socket_connect_timeout"] == 2.0


@pytest.mark.parametrize("url", ["redis://a", "redis+cluster://a", "redis+sentinel://a/name"])
async def test_connections_name_this_package_and_read_no_file(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("redis.driver_info")
    client = client_of(url)
    monkeypatch.setattr("importlib.metadata.version", None)
    if isinstance(client, RedisCluster):
        (node,) = client.nodes_manager.startup_nodes.values()
        connection = node.connection_class(**node.connection_kwargs)
    else:
        connection = client.connection_pool.make_connection()
    assert "langgraph-checkpoint-cached_v" in connection.driver_info.formatted_name


async def test_a_cluster() -> None:
    client = client_of("redis+cluster://user:p%40ss@a:1,b,[::1]:3/0?client_name=me&max_connections=5")
    assert isinstance(client, RedisCluster)
    assert nodes_of(client) == [("a", 1), ("b", 6379), ("::1", 3)]
    kwargs = client.get_connection_kwargs()
    assert [kwargs[name] for name in ("username", "password", "client_name", "max_connections")] == [
        "user", "p@ss", "me", 5
    ]  # fmt: skip
    assert client_of("redis+cluster://a").get_connection_kwargs()["max_connections"] == 7
    assert client_of("RedisS+Cluster://a").get_connection_kwargs()["connection_class"] is SSLConnection


async def test_a_sentinel_service() -> None:
    client = client_of("redis+sentinel://user:p%2Fss@a:1,b/my%20primary/3?client_name=me&sentinel_password=s")
    assert isinstance(client, Redis)
    pool = client.connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    assert (pool.service_name, pool.is_master, pool.max_connections) == ("my primary", True, 7)
    assert sentinels_of(client) == [("a", 1), ("b", 26379)]
    assert [pool.connection_kwargs[name] for name in ("username", "password", "client_name", "db")] == [
        "user", "p/ss", "me", 3
    ]  # fmt: skip
    assert {k: v for k, v in pool.sentinel_manager.sentinel_kwargs.items() if k in ("username", "password")} == {
        "username": None,
        "password": "s",
    }
    assert "sentinel_password" not in pool.connection_kwargs
    secure = client_of("rediss+sentinel://a/primary?ssl_cert_reqs=none").connection_pool
    assert secure.connection_class is SentinelManagedSSLConnection
    for sentinel in secure.sentinel_manager.sentinels:
        assert sentinel.connection_pool.connection_class is SSLConnection
        assert sentinel.connection_pool.connection_kwargs["ssl_cert_reqs"] == "none"


@pytest.mark.parametrize(
    ("url", "reply"),
    [
        ("", "use redis://"),
        ("host:6379", "use redis://"),
        ("redis://user:secret@a:1,b:2", r"redis\+cluster://.*redis\+sentinel://"),
        ("redis://user:sec/secret@a:1", "percent-encoded"),
        ("redis://a?secret=1", "unknown option"),
        ("redis://a?db=secret", "does not parse"),
        ("redis-cluster://user:secret@a", r"redis\+cluster://"),
        ("redis+cluster://", "does not parse"),
        ("redis+cluster://user:secret@a:1,", "does not parse"),
        ("redis+cluster://user:secret@a:b", "does not parse"),
        ("redis+cluster://a:99999", "does not parse"),
        ("redis+cluster://user:sec/secret@a:1", "does not parse"),
        ("redis+cluster://user:secret@a:1/2", r"has only one: use redis\+cluster://"),
        ("redis+cluster://user:secret@a:1?db=2", "has only one"),
        ("redis+cluster://a?secret=1", "unknown option"),
        ("redis+sentinel://user:secret@a:1", "must name the service"),
        ("redis+sentinel://user:secret@a:1/primary/x", "must name the service"),
        ("redis+sentinel://user:secret@a:1/primary/1/2", "must name the service"),
        ("redis+sentinel://user:secret@a:x/primary", "does not parse"),
        ("redis+sentinel://a/primary?secret=1", "unknown option"),
        ("rediss://user:secret@a?ssl_ca_certs=/no/such/ca.pem", r"ssl_ca_certs .* /no/such/ca\.pem"),
        ("rediss+cluster://user:secret@a?ssl_keyfile=/no/such/key.pem", r"ssl_keyfile .* /no/such/key\.pem"),
    ],
)
async def test_a_bad_one_is_answered_with_what_to_write_and_no_secret(url: str, reply: str) -> None:
    with pytest.raises(ArgumentError, match=reply) as caught:
        client_of(url)
    error: BaseException | None = caught.value
    assert "redis_url" in str(error)
    while error is not None:
        assert "secret" not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
