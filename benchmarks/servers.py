"""Servers of a run, given or started for it, with a place of its own for each contestant."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg
import redis
from psycopg import sql

from benchmarks.cpu import PostgresCpu
from benchmarks.place import Place
from benchmarks.stack import StackServer, why_no_stack
from langgraph_checkpoint_cached.demo.embedded import EmbeddedServerError, PostgresServer, RedisServer

SETTINGS = {"max_connections": "500", "shared_buffers": "256MB", "max_wal_size": "4GB"}
"""All else is PostgreSQL's default: `fsync` and `synchronous_commit` are on."""
STATEMENTS = {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track": "none"}
TRACK_STATEMENTS = "-c pg_stat_statements.track=top"
REPORTED_SETTINGS = ("fsync", "synchronous_commit", "shared_buffers", "max_connections", "max_wal_size")
REDIS_DATABASES = 16


class ServerProblem(Exception):
    """A server is not there or cannot be used; the message says why."""


class Servers:
    """Postgres, Redis and, where it is available, a Redis with search and JSON."""

    def __init__(self, postgres_uri: str, redis_url: str, stack_url: str | None, directory: Path) -> None:
        self.postgres_uri, self.redis_url, self.stack_url = postgres_uri, redis_url, stack_url
        self.no_stack = why_no_stack() if stack_url is None else None
        self.admin = psycopg.connect(postgres_uri, autocommit=True)
        self.redis = redis.Redis.from_url(redis_url)
        self.cpu = PostgresCpu.of_connection(self.admin)
        self._directory = directory
        self._run = f"bench_{uuid.uuid4().hex[:8]}"
        self._databases: list[str] = []
        self._redis_urls: list[str] = []

    def place(self, name: str, uses: Collection[str], *, count_statements: bool = False) -> Place:
        """Make a place: a database of its own in Postgres and Redis, where they are used, and a directory.

        Raises:
            ServerProblem: the Redis database is not empty, or there is none left.
        """
        return Place(
            self._new_database(count_statements) if "postgres" in uses else "",
            self._new_redis_database() if "redis" in uses else "",
            self.stack_url or "",
            mkdtemp(dir=self._directory),
            f"bench:{name}",
        )

    def _new_database(self, count_statements: bool) -> str:
        database = f"{self._run}_{len(self._databases)}"
        self.admin.execute(sql.SQL("create database {}").format(sql.Identifier(database)))
        self._databases.append(database)
        uri = urlsplit(self.postgres_uri)._replace(path=f"/{database}")
        if count_statements and self.counts_statements:
            uri = uri._replace(query=f"options={quote(TRACK_STATEMENTS)}")
        return uri.geturl()

    def _new_redis_database(self) -> str:
        number = len(self._redis_urls)
        if number == REDIS_DATABASES:
            raise ServerProblem(f"this Redis has no more than {REDIS_DATABASES} databases")
        url = urlsplit(self.redis_url)._replace(path=f"/{number}").geturl()
        with redis.Redis.from_url(url) as client:
            if client.dbsize():
                raise ServerProblem(f"database {number} of the Redis is not empty, and benchmarks flush it")
        self._redis_urls.append(url)
        return url

    @property
    def counts_statements(self) -> bool:
        """Return True if queries can be counted: the server has loaded pg_stat_statements, and lets us set it."""
        row = self.admin.execute(
            "select from pg_settings, pg_user"
            " where name = 'pg_stat_statements.track' and usename = current_user and usesuper"
        ).fetchone()
        return row is not None

    def watcher(self) -> psycopg.Connection[Any]:
        """Connect to a new database from which the others can be watched."""
        connection = psycopg.connect(self._new_database(count_statements=False), autocommit=True)
        if self.counts_statements:
            connection.execute("create extension pg_stat_statements")
        return connection

    def versions(self) -> dict[str, str]:
        """Return the versions of the servers."""
        found = {
            "PostgreSQL": str(self.admin.info.parameter_status("server_version")),
            "Redis": _redis_version(self.redis),
        }
        if self.stack_url:
            with redis.Redis.from_url(self.stack_url) as client:
                found["Redis with search and JSON"] = _redis_version(client)
        return found

    def settings(self) -> dict[str, str]:
        """Return the settings of Postgres that matter here."""
        return {name: self.admin.execute(f"show {name}").fetchone()[0] for name in REPORTED_SETTINGS}  # type: ignore[index]

    def close(self) -> None:
        """Drop the databases that were made."""
        for database in self._databases:
            self.admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(database)))
        for url in self._redis_urls:
            with redis.Redis.from_url(url) as client:
                client.flushdb()
        self.redis.close()
        self.admin.close()


@contextmanager
def servers(postgres_uri: str | None, redis_url: str | None, say: Callable[[str], None]) -> Iterator[Servers]:
    """Provide the servers for the time of the context."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="benchmarks-")))
        if postgres_uri is None:
            postgres_uri = stack.enter_context(own_postgres()).url
        if redis_url is None:
            redis_url = stack.enter_context(RedisServer()).url
        stack_url = None
        if (missing := why_no_stack()) is None:
            try:
                stack_url = stack.enter_context(StackServer()).url
            except EmbeddedServerError as exc:
                missing = str(exc)
        made = Servers(postgres_uri, redis_url, stack_url, directory)
        made.no_stack = missing
        stack.callback(made.close)
        say(", ".join(f"{name} {version}" for name, version in made.versions().items()))
        yield made


def own_postgres() -> PostgresServer:
    """Return the newest PostgreSQL of a Debian package, counting queries if it can; else the wheel's."""
    installed = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parents[1].name)
    )
    if not installed:
        return PostgresServer(SETTINGS)
    programs = installed[-1].parent
    countable = (programs.parent / "lib" / "pg_stat_statements.so").exists()
    return PostgresServer({**SETTINGS, **(STATEMENTS if countable else {})}, programs=programs)


def _redis_version(client: redis.Redis) -> str:
    info = client.info("server")
    return f"(Valkey) {info['valkey_version']}" if "valkey_version" in info else str(info["redis_version"])
