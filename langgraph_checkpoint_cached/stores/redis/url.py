"""Redis URLs: of a server, of the nodes of a Cluster, or of Sentinels and the service that they watch.

The forms with several hosts are those that docket, Prefect, redisvl and LangChain take.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff

from langgraph_checkpoint_cached.errors import ArgumentError
from langgraph_checkpoint_cached.stores.redis.client import CONNECT_TIMEOUTS, AnyRedis

CLUSTER_FORM = "redis+cluster://user:password@host:6379,host:6379"
SENTINEL_FORM = "redis+sentinel://user:password@host:26379,host:26379/service-name/0"
FORMS = (
    f"redis://user:password@host:6379/0, {CLUSTER_FORM}, {SENTINEL_FORM}, the same with rediss for TLS, or "
    "unix://path, with special characters of the password percent-encoded"
)
FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
CLUSTER_PORT, SENTINEL_PORT = 6379, 26379


def redis_client(url: str, *, max_connections: int, timeout_seconds: float) -> AnyRedis:
    """Return a client for a server, a Cluster or the primary of a Sentinel service.

    It connects when it is first used, in `CONNECT_TIMEOUTS` times `timeout_seconds`. Its caller bounds the time of
    a call. Options in the URL go before the arguments.

    Raises:
        ArgumentError: `redis_url` cannot work. No part of it is in the message, since it may hold a password.
    """
    settings = {
        "max_connections": max_connections,
        "socket_timeout": None,  # the guard bounds each call; one of the client's own costs a third of a call
        "socket_connect_timeout": CONNECT_TIMEOUTS * timeout_seconds,
        "retry": Retry(NoBackoff(), 1),  # once: a connection may have died while it was idle
        **_driver_info(),
    }
    try:
        _check_files(url)
        return _client(url, settings, timeout_seconds)
    except ArgumentError:
        raise
    except (ValueError, TypeError):
        pass  # the next error has neither cause nor context: their text repeats parts of the URL
    raise ArgumentError(f"redis_url does not parse, or has an unknown option: use {FORMS}")


@cache
def _driver_info() -> dict[str, Any]:
    """Return the option with which `CLIENT LIST` shows this package, if the client knows it.

    Without it the client reads its own version from a file for every connection, while the event loop waits.
    """
    if "driver_info" not in signature(RedisCluster).parameters:
        return {}
    from redis.driver_info import DriverInfo  # older versions have none

    name = "langgraph-checkpoint-cached"
    try:
        return {"driver_info": DriverInfo().add_upstream_driver(name, version(name))}
    except PackageNotFoundError:  # its source was copied without its metadata
        return {}


def _check_files(url: str) -> None:
    """Raise `ArgumentError` for a file that does not exist: the error of a connection would not name it."""
    for name, paths in parse_qs(urlsplit(url).query).items():
        if name in FILES and not Path(paths[-1]).exists():
            raise ArgumentError(f"redis_url: {name} names a file that does not exist, {paths[-1]}")


def _client(url: str, settings: dict[str, Any], timeout_seconds: float) -> AnyRedis:
    scheme = url.partition("://")[0].lower()
    if scheme in ("redis+cluster", "rediss+cluster"):
        return _cluster(_Several.parse(url, CLUSTER_PORT), settings, timeout_seconds)
    if scheme in ("redis+sentinel", "rediss+sentinel"):
        return _primary(_Several.parse(url, SENTINEL_PORT), settings, timeout_seconds)
    pool = ConnectionPool.from_url(url, **settings)
    pool.connection_class(**pool.connection_kwargs)  # sees now whether it knows all options
    return Redis.from_pool(pool)


class _Several(NamedTuple):
    """A URL with one host or more."""

    addresses: list[tuple[str, int]]
    path: list[str]
    options: dict[str, Any]
    """Options of the data nodes' connections, user and password included."""

    @classmethod
    def parse(cls, url: str, port: int) -> _Several:
        """Parse a URL. Raises ValueError if it cannot be parsed."""
        scheme, _, rest = url.partition("://")
        before, _, query = rest.partition("?")
        authority, _, path = before.partition("/")
        user, at, hosts = authority.rpartition("@")
        addresses = [_address(host, port) for host in hosts.split(",")]
        options: dict[str, Any] = dict(parse_url(f"redis://{user}{at}host?{query}"))
        del options["host"]
        if scheme.lower().startswith("rediss"):
            options["ssl"] = True
        return cls(addresses, [unquote(part) for part in path.split("/") if part], options)


def _address(text: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.netloc != text or "@" in text:
        raise ValueError("not a host")
    return parts.hostname, port if parts.port is None else parts.port


def _cluster(url: _Several, settings: dict[str, Any], timeout_seconds: float) -> RedisCluster:
    if url.path not in ([], ["0"]) or str(url.options.pop("db", 0)) != "0":
        raise ArgumentError(f"redis_url names a database, and a Redis Cluster has only one: use {CLUSTER_FORM}")
    # What the client asks on its own, such as where the slots are, it asks one node after another: half of a
    # call's time for each, so that one which hangs leaves time for the next. Our scripts do not wait by this.
    half = timeout_seconds / 2
    halves = {"socket_timeout": half, "socket_connect_timeout": half, "require_full_coverage": False}
    nodes = [ClusterNode(host, port) for host, port in url.addresses]
    return RedisCluster(startup_nodes=nodes, **{**settings, **halves, **url.options})


def _primary(url: _Several, settings: dict[str, Any], timeout_seconds: float) -> Redis:
    if not 1 <= len(url.path) <= 2 or (len(url.path) == 2 and not url.path[1].isdecimal()):
        raise ArgumentError(
            f"redis_url must name the service that the Sentinels watch, and then only a database: {SENTINEL_FORM}"
        )
    options = {**settings, **url.options}
    if len(url.path) == 2:
        options["db"] = int(url.path[1])
    # A Sentinel that is gone is not waited for long, nor asked again, before the next one is asked.
    sentinel_options = {
        "username": options.pop("sentinel_username", None),
        "password": options.pop("sentinel_password", None),
        "socket_timeout": timeout_seconds / 2,
        "socket_connect_timeout": timeout_seconds / 2,
        "retry": Retry(NoBackoff(), 0),
        **{name: value for name, value in options.items() if name.startswith("ssl")},
    }
    sentinel = Sentinel(url.addresses, sentinel_kwargs=sentinel_options)  # type: ignore[no-untyped-call]
    pool = _PrimaryPool(url.path[0], sentinel, **options)  # type: ignore[no-untyped-call]
    pool.connection_class(**pool.connection_kwargs)
    return Redis.from_pool(pool)


class _PrimaryPool(SentinelConnectionPool):
    """Connections to a primary, and to the Sentinels that know it: closed together."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:
            for client in self.sentinel_manager.sentinels:
                await client.aclose()
