"""The servers that tests and demo start, and the ways to break them, do what they say."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from langgraph_checkpoint_cached.demo import embedded
from langgraph_checkpoint_cached.demo.embedded import EmbeddedServerError, PostgresServer, RedisServer
from tests.support.proxy import Proxy
from tests.support.servers import fill_redis

pytestmark = pytest.mark.integration

RedisServers = Callable[..., RedisServer]
Proxies = Callable[[str], Proxy]


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def client_of(url: str, **options: object) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=5, retry=None, **options)


# Redis


@pytest.mark.parametrize("end", [RedisServer.stop, RedisServer.kill])
def test_redis_starts_again_empty_on_its_port(
    redis_servers: RedisServers, end: Callable[[RedisServer], None]
) -> None:
    server = redis_servers()
    url, pid = server.url, server.pid
    with client_of(url) as client:
        client.set("key", "value")
    assert pid is not None

    end(server)
    assert server.pid is None
    assert not exists(pid)
    with pytest.raises(redis.ConnectionError), client_of(url) as client:
        client.ping()

    server.start()
    assert server.url == url
    with client_of(url) as client:
        assert client.get("key") is None


def test_redis_does_not_take_another_server_for_itself(redis_servers: RedisServers) -> None:
    one, other = redis_servers(), redis_servers()
    other.stop()
    other.port = one.port
    with pytest.raises(EmbeddedServerError, match="in use"):
        other.start()


def test_redis_takes_arguments(redis_servers: RedisServers) -> None:
    server = redis_servers("--appendonly", "yes", "--appendfsync", "always")
    with client_of(server.url) as client:
        client.set("key", "value")
    server.kill()
    server.start()
    with client_of(server.url) as client:
        assert client.get("key") == b"value"


def test_redis_can_be_filled(redis_servers: RedisServers) -> None:
    server = redis_servers("--maxmemory", "5mb")
    assert fill_redis(server.url) > 0
    with client_of(server.url) as client, pytest.raises(redis.exceptions.OutOfMemoryError):
        client.set("key", b"x" * 100_000)


# PostgreSQL


@pytest.fixture(scope="module")
def two_postgres() -> Iterator[tuple[PostgresServer, PostgresServer]]:
    with PostgresServer({"max_connections": "17"}) as one, PostgresServer() as other:
        yield one, other


def answer(url: str, query: str) -> object:
    with psycopg.connect(url, connect_timeout=5) as connection:
        row = connection.execute(query).fetchone()
    return row[0] if row else None


def test_two_postgres_run_at_once(two_postgres: tuple[PostgresServer, PostgresServer]) -> None:
    one, other = two_postgres
    assert answer(one.url, "SHOW max_connections") == "17"
    assert answer(other.url, "SHOW max_connections") == "100"


@pytest.mark.parametrize("end", [PostgresServer.stop, PostgresServer.kill])
def test_postgres_starts_again_with_what_was_committed(
    two_postgres: tuple[PostgresServer, PostgresServer], end: Callable[[PostgresServer], None]
) -> None:
    server = two_postgres[0]
    url = server.url
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS things (n int)")
        connection.execute("INSERT INTO things VALUES (1)")
    count = answer(url, "SELECT count(*) FROM things")

    with psycopg.connect(url, autocommit=True) as open_through_the_end:
        end(server)
        with pytest.raises(psycopg.OperationalError):
            open_through_the_end.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        answer(url, "SELECT 1")

    server.start()
    assert server.url == url
    assert answer(url, "SELECT count(*) FROM things") == count


def test_postgres_wants_its_password(two_postgres: tuple[PostgresServer, PostgresServer]) -> None:
    one, other = two_postgres
    with pytest.raises(psycopg.OperationalError, match="password"):
        answer(one.url.replace(f":{one.port}/", f":{other.port}/"), "SELECT 1")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes the user")
def test_postgres_runs_where_only_root_can_read_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = embedded.postgres_programs()
    package = programs.parent.parent
    tmp_path.chmod(0o700)
    for directory in (programs.parent, package.with_name(f"{package.name}.libs")):
        shutil.copytree(directory, tmp_path / directory.relative_to(package.parent), symlinks=True)
    hidden = tmp_path / programs.relative_to(package.parent)
    monkeypatch.setattr(embedded, "postgres_programs", lambda: hidden)
    with PostgresServer() as server:
        assert answer(server.url, "SELECT 1") == 1
        server.stop()
        server.start()
        assert answer(server.url, "SELECT 1") == 1
    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_servers_end_with_the_process_that_started_them(redis_servers: RedisServers) -> None:
    redis_servers()  # or skip
    script = """
from langgraph_checkpoint_cached.demo.embedded import *
servers = RedisServer(), PostgresServer()
for server in servers:
    server.start()
    print(server.pid, server._directory)
"""
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    for line in result.stdout.splitlines():
        pid, directory = line.split()
        assert not exists(int(pid))
        assert not Path(directory).exists()
    assert len(result.stdout.splitlines()) == 2


# What the fixtures give


def test_each_test_has_a_database_of_its_own(database_url: str, migrated_database_url: str) -> None:
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    assert answer(database_url, tables) == 0
    assert answer(migrated_database_url, tables) != 0
    assert answer(migrated_database_url, "SELECT count(*) FROM checkpoints") == 0
    assert answer(database_url, "SHOW server_encoding") == "UTF8"


def test_pgbouncer_gives_a_server_connection_per_transaction(pgbouncer_url: str) -> None:
    query = "SELECT pg_backend_pid()"
    with psycopg.connect(pgbouncer_url) as one, psycopg.connect(pgbouncer_url) as other:
        (first,) = one.execute(query).fetchone() or (None,)
        (second,) = other.execute(query).fetchone() or (None,)
        assert first != second
        one.commit()
        other.rollback()
        pids = set()
        for connection in (one, other, one, other):
            pids |= {connection.execute(query).fetchone()}
            connection.rollback()
        assert pids <= {(first,), (second,)}
        assert len(pids) == 1


# The proxy


def test_a_proxy_forwards_and_counts(proxies: Proxies, redis_url: str, redis_prefix: str) -> None:
    proxy = proxies(redis_url)
    with client_of(proxy.url) as client:
        client.set(f"{redis_prefix}:key", b"x" * 1_000_000)
        assert len(client.get(f"{redis_prefix}:key")) == 1_000_000
        assert (proxy.accepted, proxy.open) == (1, 1)
    with client_of(proxy.url) as client:
        client.ping()
    assert proxy.accepted == 2


def test_a_stopped_proxy_refuses_until_it_starts_again(proxies: Proxies, postgres_url: str) -> None:
    proxy = proxies(postgres_url)
    with psycopg.connect(proxy.url, autocommit=True) as connection:
        proxy.stop()
        assert proxy.open == 0
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port))
    proxy.start()
    assert answer(proxy.url, "SELECT 1") == 1


def test_a_cut_proxy_drops_connections_and_takes_new_ones(proxies: Proxies, postgres_url: str) -> None:
    proxy = proxies(postgres_url)
    with psycopg.connect(proxy.url, autocommit=True) as connection:
        proxy.cut()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    assert answer(proxy.url, "SELECT 1") == 1


def test_a_deaf_proxy_holds_what_it_is_told_until_it_hears(
    proxies: Proxies, redis_url: str, redis_prefix: str
) -> None:
    proxy, key = proxies(redis_url), f"{redis_prefix}:key"
    with client_of(redis_url) as direct, socket.create_connection(("127.0.0.1", proxy.port)) as early:
        proxy.deafen()
        with socket.create_connection(("127.0.0.1", proxy.port)) as late:
            for n, connection in enumerate((early, late)):
                connection.settimeout(0.05)
                connection.sendall(f"SET {key}:{n} said\r\n".encode())
                with pytest.raises(TimeoutError):
                    connection.recv(100)
            assert direct.mget(f"{key}:0", f"{key}:1") == [None, None]

            proxy.hear()
            for connection in (early, late):
                connection.settimeout(5)
                assert connection.recv(100) == b"+OK\r\n"


def test_a_mute_proxy_does_what_it_is_told_and_says_nothing(proxies: Proxies, redis_servers: RedisServers) -> None:
    server = redis_servers()
    proxy = proxies(server.url)
    with client_of(server.url) as direct, socket.create_connection(("127.0.0.1", proxy.port)) as connection:
        proxy.mute()
        connection.sendall(b"LPUSH done yes\r\n")
        assert direct.blpop("done", timeout=5) == (b"done", b"yes")
        connection.settimeout(0.05)
        with pytest.raises(TimeoutError):
            connection.recv(100)
        proxy.cut()
        connection.settimeout(5)
        assert connection.recv(100) == b""
