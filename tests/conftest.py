"""Real servers for the tests, throw-away databases in them, and ways to break them. See `support/servers.py`."""

from __future__ import annotations

import gc
import os
import signal
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest
import redis as redis_py
import redis.asyncio

from langgraph_checkpoint_cached.demo.embedded import EmbeddedServerError, RedisServer
from tests.support import servers
from tests.support.cluster import Cluster
from tests.support.pgbouncer import PgBouncer
from tests.support.proxy import Proxy
from tests.support.sentinel import Service

T = TypeVar("T")

REPORT = pytest.StashKey[list[str]]()
"""Lines to show after the results."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REPORT] = []
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `timeout pytest` leaves no servers behind either


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What uses a server is an integration test, wherever it stands."""
    for item in items:
        if {"postgres_url", "redis_url", "redis_servers", "cluster", "service"}.intersection(
            getattr(item, "fixturenames", ())
        ):
            item.add_marker(pytest.mark.integration)


def pytest_collection_finish() -> None:
    """All that was imported stays: the many collections of garbage to come need not look through it each time."""
    gc.collect()
    gc.freeze()


def pytest_report_header() -> str:
    forced = os.environ.get("TEST_SERVERS")
    return f"servers: {forced} (TEST_SERVERS)" if forced else f"servers: first of {', '.join(servers.KINDS)}"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist has no terminal: it hands its lines to the process that has."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["report"] = session.config.stash[REPORT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[REPORT] += getattr(node, "workeroutput", {}).get("report", [])  # none if it has crashed


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in dict.fromkeys(config.stash[REPORT]):  # workers have servers of the same kind, one each
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> list[str]:
    """Lines to show after the results."""
    return request.config.stash[REPORT]


def missing(reason: object, *, required: bool = False) -> NoReturn:
    """A server is not there: that fails in CI, or where TEST_SERVERS asked for it, and skips elsewhere."""
    if required or os.environ.get("CI"):
        pytest.fail(str(reason), pytrace=False)
    pytest.skip(str(reason))


@contextmanager
def started(server: AbstractContextManager[T]) -> Iterator[T]:
    """The server, running; without its program the test is `missing` it."""
    with ExitStack() as stack:
        try:
            running = stack.enter_context(server)
        except EmbeddedServerError as exc:
            missing(exc)
        yield running


@pytest.fixture(scope="session")
def postgres_url(report: list[str]) -> Iterator[str]:
    """The tests' Postgres, as a user who may create databases."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(servers.postgres())
        except servers.ServerUnavailable as exc:
            missing(exc, required="TEST_SERVERS" in os.environ)
        report.append(f"server: {server.version} ({server.kind})")
        yield server.url


@pytest.fixture(scope="session")
def redis_url(report: list[str]) -> Iterator[str]:
    """The tests' Redis, which other tests use too: see `redis_prefix`."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(servers.redis_server())
        except servers.ServerUnavailable as exc:
            missing(exc, required="TEST_SERVERS" in os.environ)
        report.append(f"server: {server.version} ({server.kind})")
        yield server.url


@pytest.fixture(scope="session")
def databases(postgres_url: str) -> Iterator[servers.Databases]:
    """Makes databases; most tests want `database_url` or `migrated_database_url`."""
    databases = servers.Databases(postgres_url)
    yield databases
    databases.close()


@pytest.fixture(scope="session")
def migrated_template_url(databases: servers.Databases) -> Iterator[str]:
    with databases.fresh_migrated() as url:
        yield url


@pytest.fixture
def database_url(databases: servers.Databases) -> Iterator[str]:
    """An empty database of the test's own."""
    with databases.fresh() as url:
        yield url


@pytest.fixture
def migrated_database_url(databases: servers.Databases, migrated_template_url: str) -> Iterator[str]:
    """A database of the test's own, with the upstream saver's tables and no rows."""
    with databases.fresh(migrated_template_url) as url:
        yield url


@pytest.fixture
def redis_prefix(redis_url: str) -> Iterator[str]:
    """A prefix of the test's own for keys in the shared Redis; keys that start with it are removed after."""
    prefix = f"test-{uuid.uuid4().hex[:12]}"
    yield prefix
    with redis_py.Redis.from_url(redis_url) as client:
        if keys := list(client.scan_iter(match=f"{prefix}*", count=1000)):
            client.unlink(*keys)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[redis_py.asyncio.Redis]:
    """A client of the shared Redis, closed after."""
    async with redis_py.asyncio.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def redis_servers() -> Iterator[Callable[..., RedisServer]]:
    """Starts Redis servers for the test to stop, kill and start again: `redis_servers("--maxmemory", "5mb")`.

    See also `servers.fill_redis`.
    """
    with ExitStack() as stack:

        def start(*arguments: str, binary: Path | None = None) -> RedisServer:
            return stack.enter_context(started(RedisServer(*arguments, binary=binary)))

        yield start


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A Redis Cluster of six nodes for the tests of a module, which leave it as well as they found it."""
    with started(Cluster()) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """A primary, its replicas and Sentinels for the tests of a module."""
    with started(Service()) as service:
        yield service


@pytest.fixture
def proxies() -> Iterator[Callable[[str], Proxy]]:
    """Starts a proxy in front of the server of a URL, for the test to break: `proxies(redis_url)`."""
    with ExitStack() as stack:
        yield lambda url: stack.enter_context(Proxy(url))


@pytest.fixture
def pgbouncers(migrated_database_url: str) -> Iterator[Callable[..., str]]:
    """Starts PgBouncers before `migrated_database_url`, and says their URL: `pgbouncers(pool_mode="session")`."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(started(PgBouncer(migrated_database_url, settings))).url


@pytest.fixture
def pgbouncer_url(migrated_database_url: str) -> Iterator[str]:
    """`migrated_database_url` through a PgBouncer in transaction mode."""
    with started(PgBouncer(migrated_database_url)) as server:
        yield server.url
