"""Private attributes of redis-py: one file reaches for them, and it says what a client lacks."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from redis.asyncio import (
    BlockingConnectionPool,
    Connection,
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.sentinel import Sentinel, SentinelManagedConnection, SentinelManagedSSLConnection

import langgraph_checkpoint_cached
from langgraph_checkpoint_cached.stores.redis.redis_internals import (
    is_closed,
    missing_in_cluster,
    missing_in_connection,
    missing_in_pool,
    node_connection,
)
from tests.unit.test_structure import Sources, nodes, sources_of

INTERNALS = "stores/redis/redis_internals.py"
OTHERS = {
    "_cursor": ("stores/postgres/", "cli/components.py"),  # of the upstream saver
    "_closed": ("engine/stats_publisher.py",),  # its own
    "_connect": ("demo/desk.py",),  # its own
}
"""Private names that redis-py has too, and where they are something else's."""
ACCESSORS = ("getattr", "setattr", "hasattr", "delattr")


def private_of_redis_py() -> set[str]:
    """Return private names that redis-py gives to anything."""
    return {name for _, name in defined(sources_of(redis)) if is_private(name)}


def defined(sources: Sources) -> Iterator[tuple[str, str]]:
    """Yield functions, variables, and attributes that objects set of their own, with the file."""
    for path, node in nodes(sources):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield path, node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield path, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            yield path, node.attr


def reached(sources: Sources) -> Iterator[tuple[str, int, ast.expr, str]]:
    """Yield attributes that are reached for: file, line, whose, and name."""
    for path, node in nodes(sources):
        if isinstance(node, ast.Attribute):
            yield path, node.lineno, node.value, node.attr
        elif isinstance(node, ast.Call) and len(node.args) > 1 and ast.unparse(node.func) in ACCESSORS:
            yield path, node.lineno, node.args[0], ast.unparse(node.args[1]).strip("'")


def is_own(value: ast.expr) -> bool:
    return ast.unparse(value) in ("self", "cls", "super()")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def reaches_into_redis_py(sources: Sources) -> list[str]:
    """Find private names of redis-py that are reached for, but on `self` in a file that defines them."""
    own, private = set(defined(sources)), private_of_redis_py()
    return [
        f"{path}:{line} {ast.unparse(whose)}.{name}"
        for path, line, whose, name in reached(sources)
        if name in private
        and not (is_own(whose) and (path, name) in own)
        and not path.startswith(OTHERS.get(name, ()))
    ]


def test_only_internals_reach_into_redis_py() -> None:
    sources = sources_of(langgraph_checkpoint_cached)
    assert reaches_into_redis_py({INTERNALS: sources.pop(INTERNALS)})
    assert reaches_into_redis_py(sources) == []


@pytest.mark.parametrize(
    "code",
    [
        "connection._writer.write(b'')",
        "self._link._parser = None",
        "getattr(pool, '_available_connections')",
        "class Pool(ConnectionPool):\n    def size(self):\n        return len(self._in_use_connections)",
        "class A:\n    def f(self, other):\n        self._writer = other._writer",
    ],
)
def test_reach_into_redis_py_is_found(code: str) -> None:
    assert len(reaches_into_redis_py({"one.py": code})) == 1


def test_own_name_as_in_redis_py_is_allowed() -> None:
    assert reaches_into_redis_py({"one.py": "class A:\n    def f(self): self._writer = 1"}) == []


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
    """None of them may fall back to the client's pipeline."""
    assert missing_in_pool(ConnectionPool(connection_class=connection_class)) == []


def test_pools_of_redis_py_lack_nothing() -> None:
    sentinel = Sentinel([("localhost", 1)])
    pools = [
        ConnectionPool(),
        BlockingConnectionPool(),
        ConnectionPool.from_url("rediss://localhost"),
        ConnectionPool.from_url("unix:///socket"),
        sentinel.master_for("service").connection_pool,
        sentinel.master_for("service", ssl=True).connection_pool,
    ]
    assert pools[2].connection_class is SSLConnection
    assert [missing_in_pool(pool) for pool in pools] == [[]] * len(pools)


def test_pool_with_methods_of_another_lacks_them() -> None:
    class Fake(Connection):
        async def read_response(self, *args: Any, **options: Any) -> Any: ...

    assert missing_in_pool(ConnectionPool(connection_class=Fake)) == ["read_response"]
    nothing: Any = SimpleNamespace(connection_class=object)
    assert missing_in_pool(nothing) == ["send_packed_command", "read_response"]


def test_connection_without_anything_lacks_everything() -> None:
    methods = ["send_packed_command", "read_response", "disconnect"]
    below = ["_writer.transport", "_parser.parse_error"]
    assert missing_in_connection(object()) == [*methods, *below]
    assert missing_in_connection(Connection()) == ["_writer.transport"]  # not connected


def test_cluster_client_lacks_what_redis_py_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    client: Any = RedisCluster(host="localhost")
    assert missing_in_cluster(client) == []
    monkeypatch.delattr(ClusterNode, "acquire_connection")
    other: Any = object()
    assert missing_in_cluster(other) == ["_initialize", "ClusterNode.acquire_connection"]


def test_node_needs_old_names_only_in_old_clients() -> None:
    """`_free` was replaced, and may go."""
    connection, released = object(), []
    node: Any = SimpleNamespace(acquire_connection=lambda: connection, release=released.append)
    with node_connection(node) as taken:
        assert taken is connection
        assert released == []
    assert released == [connection]


@pytest.mark.parametrize("ended_by", ["server", "client", None])
async def test_connection_that_was_closed_while_idle_is_known(ended_by: str | None) -> None:
    """redis-py returns one from its pool, with RESP3."""
    reader = asyncio.StreamReader()
    transport = SimpleNamespace(is_closing=lambda: ended_by == "client")
    if ended_by == "server":
        reader.feed_eof()
    assert is_closed(SimpleNamespace(_reader=reader, _writer=SimpleNamespace(transport=transport))) == bool(
        ended_by
    )
    assert not is_closed(Connection())  # not connected
