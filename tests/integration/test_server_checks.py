"""Servers, poolers and connection strings that cannot work: each is named before anything is written."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql
from psycopg_pool import PoolTimeout

from langgraph_checkpoint_cached import CachedPostgresSaver, UnsupportedServerError
from langgraph_checkpoint_cached.demo.embedded import EmbeddedServerError
from tests.support.agreement import PATIENT_SECONDS, eventually, new_checkpoint, on_thread
from tests.support.pgbouncer import PgBouncer
from tests.support.proxy import Proxy

pytestmark = pytest.mark.integration

AskCli = Callable[..., Awaitable[tuple[int, Any]]]
SESSIONS = 8


def open_saver(url: str, redis_url: str, prefix: str, **options: Any) -> Any:
    return CachedPostgresSaver.from_conn_string(
        url, redis_url, prefix=prefix, redis_timeout=PATIENT_SECONDS, **options
    )


async def enter(url: str, redis_url: str, prefix: str, **options: Any) -> None:
    async with open_saver(url, redis_url, prefix, **options):
        pass


async def set_up(url: str, redis_url: str, prefix: str, **options: Any) -> None:
    async with open_saver(url, redis_url, prefix, **options) as saver:
        await saver.setup()


async def findings(ask_cli: AskCli, url: str, redis_url: str, prefix: str) -> dict[str, dict[str, str]]:
    servers = ["--postgres-uri", url, "--redis-url", redis_url, "--prefix", prefix]
    _, report = await ask_cli("doctor", servers=servers)
    return {finding["check"]: finding for finding in report["findings"]}


def tables(url: str) -> list[str]:
    with psycopg.connect(url) as conn:
        found = conn.execute("select tablename from pg_tables where schemaname = 'public'").fetchall()
    return [table for (table,) in found]


@pytest.fixture
def started_pgbouncer() -> Iterator[Callable[..., str]]:
    """Starts a PgBouncer in front of a server, and returns its URL."""
    with ExitStack() as stack:

        def start(url: str, **settings: str) -> str:
            try:
                return stack.enter_context(PgBouncer(url, settings)).url
            except EmbeddedServerError as exc:
                pytest.skip(str(exc))

        yield start


# -- at the start --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"path": "/no_such_database"}, 'database "no_such_database" does not exist'),
        ({"query": "options=-c%20no_such_setting%3D1"}, "no_such_setting"),
    ],
)
async def test_refused_connection_fails_at_once_with_reason(
    postgres_url: str, redis_url: str, redis_prefix: str, change: dict[str, str], reason: str
) -> None:
    started = time.monotonic()
    with pytest.raises(psycopg.OperationalError, match=reason):
        await enter(urlsplit(postgres_url)._replace(**change).geturl(), redis_url, redis_prefix)
    assert time.monotonic() - started < 5


async def test_unreachable_postgres_is_waited_for(
    postgres_url: str, redis_url: str, redis_prefix: str, proxies: Callable[[str], Proxy]
) -> None:
    proxy = proxies(postgres_url)
    proxy.stop()
    with pytest.raises(PoolTimeout, match=r"within 0\.5 seconds: .*Connection refused"):
        await enter(proxy.url, redis_url, redis_prefix, pool_timeout=0.5)
    entering = asyncio.ensure_future(enter(proxy.url, redis_url, redis_prefix))
    await asyncio.sleep(0.3)
    proxy.start()
    await asyncio.wait_for(entering, 10)


async def test_start_on_a_silent_postgres_ends_in_time(
    postgres_url: str, redis_url: str, redis_prefix: str, proxies: Callable[[str], Proxy]
) -> None:
    proxy = proxies(postgres_url)
    proxy.deafen()
    started = time.monotonic()
    with pytest.raises(PoolTimeout, match="it does not answer"):
        await enter(proxy.url, redis_url, redis_prefix, pool_timeout=1)
    assert time.monotonic() - started < 3


# -- of setup() and doctor -----------------------------------------------------------------------------------


@pytest.fixture
def ascii_database_url(postgres_url: str) -> Iterator[str]:
    name = f"ascii_{uuid.uuid4().hex}"
    identifier = sql.Identifier(name)
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        create = "create database {} encoding 'SQL_ASCII' template template0 locale 'C'"
        admin.execute(sql.SQL(create).format(identifier))  # type: ignore[arg-type]
        yield urlsplit(postgres_url)._replace(path=f"/{name}").geturl()
        admin.execute(sql.SQL("drop database {} with (force)").format(identifier))


async def test_database_without_an_encoding_is_refused(
    ascii_database_url: str, redis_url: str, redis_prefix: str, ask_cli: AskCli
) -> None:
    with pytest.raises(UnsupportedServerError, match=r"SQL_ASCII.*client_encoding=utf8"):
        await set_up(ascii_database_url, redis_url, redis_prefix)
    assert tables(ascii_database_url) == []
    found = await findings(ask_cli, ascii_database_url, redis_url, redis_prefix)
    assert found["encoding"]["level"] == "problem"
    assert "client_encoding=utf8" in found["encoding"]["advice"]

    url = f"{ascii_database_url}?client_encoding=utf8"
    assert "encoding" not in await findings(ask_cli, url, redis_url, redis_prefix)
    async with open_saver(url, redis_url, redis_prefix) as saver:
        await saver.setup()
        stored = await saver.aput(
            on_thread("täglich", checkpoint_ns=""), new_checkpoint(), {"source": "input"}, {}
        )
        found = await saver.aget_tuple(stored)
        assert found.config["configurable"]["thread_id"] == "täglich"


async def test_statement_pooling_is_refused_by_name(
    database_url: str, redis_url: str, redis_prefix: str, ask_cli: AskCli, started_pgbouncer: Callable[..., str]
) -> None:
    url = started_pgbouncer(database_url, pool_mode="statement")
    with pytest.raises(UnsupportedServerError, match=r"statement mode.*pool_mode"):
        await set_up(url, redis_url, redis_prefix)
    assert tables(database_url) == []
    found = await findings(ask_cli, url, redis_url, redis_prefix)
    assert (found["pooler"]["level"], "statement mode" in found["pooler"]["message"]) == ("problem", True)


@pytest.mark.slow
async def test_setups_over_a_session_pooler_need_one_connection_each(
    database_url: str, redis_url: str, redis_prefix: str, started_pgbouncer: Callable[..., str]
) -> None:
    url = started_pgbouncer(
        database_url, pool_mode="session", default_pool_size=str(SESSIONS), query_wait_timeout="20"
    )
    savers = [open_saver(url, redis_url, redis_prefix, pool_timeout=20) for _ in range(SESSIONS)]
    opened = await asyncio.gather(*(saver.__aenter__() for saver in savers))
    try:
        await asyncio.wait_for(asyncio.gather(*(saver.setup() for saver in opened)), 60)
    finally:
        await asyncio.gather(*(saver.__aexit__(None, None, None) for saver in savers))
    assert "checkpoint_cache_leases" in tables(database_url)

    async def no_lock_is_left() -> bool:
        with psycopg.connect(database_url) as conn:
            return not conn.execute("select from pg_locks where locktype = 'advisory'").fetchall()

    await eventually(no_lock_is_left)


@pytest.mark.parametrize("setting", ["off", "on"])
async def test_setup_warns_of_commits_that_are_not_durable(
    migrated_database_url: str, redis_url: str, redis_prefix: str, caplog: pytest.LogCaptureFixture, setting: str
) -> None:
    url = f"{migrated_database_url}?options=-c%20synchronous_commit%3D{setting}"
    with caplog.at_level(logging.WARNING):
        await set_up(url, redis_url, redis_prefix)
    warned = [record for record in caplog.records if "synchronous_commit is off" in record.getMessage()]
    assert len(warned) == (setting == "off")
