"""Real servers for the tests, throw-away databases in them, and ways to break them. See `support/servers.py`."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
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

TESTS = Path(__file__).parent
LEVELS = ("unit", "models", "contract", "conformance", "chaos", "equivalence", "integration")
"""Directories of tests, the fast ones first. Of chaos, only the slow tests take long."""
LONG_FILES = ("test_cancellation", "test_graphs", "test_snippets")
WORKERS = 3
"""Processes, which wait for servers and timers more than they compute."""
TIMES = {
    "not slow": 'the fast tests, on two cores about 5 minutes; all of them: make test-all, or pytest -m ""',
    "": "all tests, on two cores about 20 minutes; the fast ones: make test, or pytest",
}
MEMORY, MEMORY_BYTES_MIN = "/dev/shm", 2 * 1024**3

REPORT = pytest.StashKey[list[str]]()
"""Lines to show after the results."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REPORT] = []
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `timeout pytest` leaves no servers behind either


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run everything in several processes, each with servers of its own, where nothing speaks against it."""
    if runs_everything(config) and not hasattr(config, "workerinput"):
        make_room(config)
        if (os.cpu_count() or 1) > 1 and config.pluginmanager.hasplugin("xdist") and not given_servers():
            share_out(config)


def runs_everything(config: pytest.Config) -> bool:
    return config.args_source == pytest.Config.ArgsSource.TESTPATHS


def given_servers() -> bool:
    """Say whether all processes would share servers, which some tests empty."""
    return "TEST_POSTGRES_URL" in os.environ or "TEST_REDIS_URL" in os.environ


def share_out(config: pytest.Config) -> None:
    option = config.option
    if option.numprocesses is None and option.dist == "no" and not option.usepdb and option.capture != "no":
        option.numprocesses, option.dist, option.loadscopereorder = WORKERS, "loadfile", False


def make_room(config: pytest.Config) -> None:
    """Have the servers of tests keep their files in memory: hundreds of databases are made and dropped in them."""
    if "TMPDIR" in os.environ or not os.access(MEMORY, os.W_OK):
        return
    memory = os.statvfs(MEMORY)
    if memory.f_bavail * memory.f_frsize > MEMORY_BYTES_MIN and not memory.f_flag & os.ST_NOEXEC:
        os.environ["TMPDIR"], tempfile.tempdir = MEMORY, None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put fast levels first. What uses a server is an integration test, wherever it stands."""
    items.sort(key=lambda item: rank(item.path))
    for item in items:
        if {"postgres_url", "redis_url", "redis_servers", "cluster", "service"}.intersection(
            getattr(item, "fixturenames", ())
        ):
            item.add_marker(pytest.mark.integration)


def rank(path: Path) -> tuple[int, int]:
    """Return the place of a file's level, and of the file in it. Long ones begin early, to end with the others."""
    level = path.relative_to(TESTS).parts[0]
    return place(level, LEVELS), place(path.stem, LONG_FILES)


def place(name: str, names: Sequence[str]) -> int:
    return names.index(name) if name in names else len(names)


def pytest_collection_finish() -> None:
    """All that was imported stays: the many collections of garbage to come need not look through it each time."""
    gc.collect()
    gc.freeze()


def pytest_report_header(config: pytest.Config) -> list[str]:
    forced = os.environ.get("TEST_SERVERS")
    lines = [f"servers: {forced} (TEST_SERVERS)" if forced else f"servers: first of {', '.join(servers.KINDS)}"]
    if runs_everything(config):
        lines.append(TIMES.get(config.option.markexpr, "some of the tests"))
    return lines


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
def proxies() -> Iterator[Callable[..., Proxy]]:
    """Starts a proxy in front of the server of a URL, for the test to break: `proxies(redis_url)`."""
    with ExitStack() as stack:
        yield lambda url, **network: stack.enter_context(Proxy(url, **network))


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
