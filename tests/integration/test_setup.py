"""`setup()`: by many at once, with few rights, over every kind of connection, and from a half-finished start."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.postgres.base import MIGRATIONS
from psycopg import sql
from redis.asyncio import Redis

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.demo.embedded import LOCALHOST, EmbeddedServerError, free_port
from langgraph_checkpoint_cached.errors import UnsupportedServerError
from langgraph_checkpoint_cached.stores.postgres import leases, server_check, stale_threads
from langgraph_checkpoint_cached.stores.postgres.processes import TABLE as PROCESSES_TABLE
from langgraph_checkpoint_cached.stores.redis.scripts import Script
from tests.support.agreement import CACHED, PATIENT_SECONDS, eventually, new_checkpoint, new_saver, on_thread
from tests.support.inspect import SERVER_INFO
from tests.support.pgbouncer import PgBouncer

pytestmark = pytest.mark.integration

PROCESSES = 8
SETUP_SECONDS_MAX = 30
ALL_MIGRATIONS = list(range(len(MIGRATIONS)))


def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as conn:
        return conn.execute(statement).fetchall()  # type: ignore[arg-type]


async def assert_set_up(url: str, redis: Redis, prefix: str) -> None:
    """All migrations were run once each, their indexes work, no lock is left, and the tables can be used."""
    assert [v for (v,) in rows(url, "select v from checkpoint_migrations order by v")] == ALL_MIGRATIONS
    invalid = rows(url, "select indexrelid::regclass from pg_index where not indisvalid")
    assert invalid == []
    assert len(rows(url, "select 1 from pg_indexes where indexname like 'checkpoint%thread_id_idx'")) == 3

    async def no_lock_is_left() -> bool:  # a connection that was closed may take a moment to end
        return not rows(url, "select 1 from pg_locks where locktype = 'advisory'")

    await eventually(no_lock_is_left)
    async with AsyncPostgresSaver.from_conn_string(url) as upstream:
        saver = new_saver(redis, upstream, prefix)
        stored = await saver.aput(on_thread(CACHED, checkpoint_ns=""), new_checkpoint(), {}, {})
        assert await saver.aget_tuple(stored) == await upstream.aget_tuple(stored) is not None


async def set_up(url: str, redis_url: str, prefix: str, **options: Any) -> None:
    async with CachedPostgresSaver.from_conn_string(
        url, redis_url, prefix=prefix, redis_timeout=PATIENT_SECONDS, **options
    ) as saver:
        await asyncio.wait_for(saver.setup(), SETUP_SECONDS_MAX)


def set_up_when_all_are_there(all_there: Any, *arguments: str) -> None:
    all_there.wait()
    asyncio.run(set_up(*arguments))


@pytest.mark.slow
async def test_many_processes_may_set_up_one_database_at_once(
    database_url: str, redis_url: str, redis: Redis, redis_prefix: str
) -> None:
    context = multiprocessing.get_context("forkserver")  # they begin alike, with what takes long to import
    context.set_forkserver_preload(["langgraph_checkpoint_cached", "langgraph.types", "pytest"])
    all_there = context.Barrier(PROCESSES, timeout=60)
    arguments = (all_there, database_url, redis_url, redis_prefix)
    processes = [context.Process(target=set_up_when_all_are_there, args=arguments) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        await asyncio.to_thread(process.join, 60 + SETUP_SECONDS_MAX)
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    await assert_set_up(database_url, redis, redis_prefix)


@pytest.mark.parametrize("options", [{"pool_max_size": 1}, {"pool_max_size": 2}, {}], ids=str)
async def test_a_pool_of_any_size_will_do(
    database_url: str, redis_url: str, redis: Redis, redis_prefix: str, options: dict[str, Any]
) -> None:
    await asyncio.gather(*(set_up(database_url, redis_url, redis_prefix, **options) for _ in range(4)))
    await assert_set_up(database_url, redis, redis_prefix)
    await set_up(database_url, redis_url, redis_prefix, **options)


async def test_a_single_connection_will_do(database_url: str, redis: Redis, redis_prefix: str) -> None:
    async def one() -> None:
        async with AsyncPostgresSaver.from_conn_string(database_url) as upstream:
            saver = new_saver(redis, upstream, redis_prefix)
            await asyncio.wait_for(saver.setup(), SETUP_SECONDS_MAX)
            await asyncio.wait_for(saver.setup(), SETUP_SECONDS_MAX)

    await asyncio.gather(*(one() for _ in range(4)))
    await assert_set_up(database_url, redis, redis_prefix)


async def test_pipeline_mode_sets_up_as_little_as_upstream(
    database_url: str, redis: Redis, redis_prefix: str
) -> None:
    """Some migrations cannot run in a pipeline, whose commands are one transaction."""
    for use in (lambda upstream: upstream, lambda upstream: new_saver(redis, upstream, redis_prefix)):
        async with AsyncPostgresSaver.from_conn_string(database_url, pipeline=True) as upstream:
            with pytest.raises(psycopg.errors.ActiveSqlTransaction):
                await asyncio.wait_for(use(upstream).setup(), SETUP_SECONDS_MAX)
        assert rows(database_url, "select 1 from pg_tables where schemaname = 'public'") == []
    async with AsyncPostgresSaver.from_conn_string(database_url) as upstream:
        await upstream.setup()
    async with AsyncPostgresSaver.from_conn_string(database_url, pipeline=True) as upstream:
        await asyncio.wait_for(new_saver(redis, upstream, redis_prefix).setup(), SETUP_SECONDS_MAX)
    await assert_set_up(database_url, redis, redis_prefix)


@pytest.fixture
def empty_behind_pgbouncer(database_url: str) -> Iterator[str]:
    try:
        with PgBouncer(database_url) as server:
            yield server.url
    except EmbeddedServerError as exc:
        pytest.skip(str(exc))


@pytest.mark.parametrize("options", [{}, {"pool_max_size": 1}], ids=["pool", "pool_of_one"])
async def test_a_pooler_in_between_does_no_harm(
    empty_behind_pgbouncer: str,
    database_url: str,
    redis_url: str,
    redis: Redis,
    redis_prefix: str,
    options: dict[str, Any],
) -> None:
    url = empty_behind_pgbouncer
    options = {"pool_timeout": PATIENT_SECONDS, **options}
    calls = (set_up(url, redis_url, redis_prefix, **options) for _ in range(4))
    assert await asyncio.gather(*calls, return_exceptions=True) == [None] * 4
    await set_up(url, redis_url, redis_prefix, **options)
    await assert_set_up(database_url, redis, redis_prefix)


async def test_a_pool_of_one_behind_a_pooler_leaves_no_lock(
    empty_behind_pgbouncer: str, database_url: str, redis_url: str, redis: Redis, redis_prefix: str
) -> None:
    await set_up(empty_behind_pgbouncer, redis_url, redis_prefix, pool_max_size=1)
    await assert_set_up(database_url, redis, redis_prefix)


@contextlib.contextmanager
def role(url: str, *grants: str) -> Iterator[str]:
    """A URL for a new role that may do no more than it is granted."""
    name = f"role_{uuid.uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as admin:
        identifier = sql.Identifier(name)
        admin.execute(sql.SQL("create role {} login password 'secret'").format(identifier))
        admin.execute("revoke create on schema public from public")
        for grant in grants:
            admin.execute(sql.SQL("grant " + grant + " to {}").format(identifier))  # type: ignore[arg-type]
        try:
            parts = urlsplit(url)
            address = parts.netloc.rpartition("@")[2]
            yield parts._replace(netloc=f"{name}:secret@{address}").geturl()
        finally:
            admin.execute(sql.SQL("drop owned by {}").format(identifier))
            admin.execute(sql.SQL("drop role {}").format(identifier))


async def test_where_all_is_set_up_no_right_to_create_is_needed(
    migrated_database_url: str, redis_url: str, redis: Redis, redis_prefix: str
) -> None:
    grants = ("select, insert, update, delete on all tables in schema public",)
    with role(migrated_database_url, *grants) as url:
        async with AsyncPostgresSaver.from_conn_string(url) as upstream:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await upstream.setup()
        await set_up(url, redis_url, redis_prefix)
        await assert_set_up(url, redis, redis_prefix)


async def test_role_without_create_right_gets_error_and_no_lock(
    database_url: str, redis_url: str, redis: Redis, redis_prefix: str
) -> None:
    with role(database_url) as url, pytest.raises(psycopg.errors.InsufficientPrivilege):
        await set_up(url, redis_url, redis_prefix)
    await set_up(database_url, redis_url, redis_prefix)
    await assert_set_up(database_url, redis, redis_prefix)


async def test_where_all_is_set_up_nothing_is_written(
    migrated_database_url: str, redis_url: str, redis: Redis, redis_prefix: str
) -> None:
    read_only = f"{migrated_database_url}?options={quote('-c default_transaction_read_only=on')}"
    async with AsyncPostgresSaver.from_conn_string(read_only) as upstream:
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await upstream.setup()
    await set_up(read_only, redis_url, redis_prefix)


@pytest.mark.parametrize("done", [0, 1, 3, 6, len(MIGRATIONS) - 1])
async def test_a_database_that_was_left_half_migrated_is_finished(
    database_url: str, redis_url: str, redis: Redis, redis_prefix: str, done: int
) -> None:
    """`done` migrations were run by the upstream saver; 0: it had only made the table of them."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(MIGRATIONS[0])
        for version in range(done):
            conn.execute(MIGRATIONS[version])  # type: ignore[arg-type]
            conn.execute("insert into checkpoint_migrations (v) values (%s)", (version,))
    await asyncio.gather(*(set_up(database_url, redis_url, redis_prefix) for _ in range(2)))
    await assert_set_up(database_url, redis, redis_prefix)


async def test_a_schema_of_choice_has_tables_of_its_own(
    migrated_database_url: str, redis_url: str, redis: Redis, redis_prefix: str
) -> None:
    """Asked for in langgraph#7345."""
    with psycopg.connect(migrated_database_url, autocommit=True) as conn:
        conn.execute("create schema mine")
    url = f"{migrated_database_url}?options={quote('-c search_path=mine')}"
    await set_up(url, redis_url, redis_prefix)
    tables = {name for (name,) in rows(url, "select tablename from pg_tables where schemaname = 'mine'")}
    assert tables == {
        "checkpoint_migrations",
        "checkpoints",
        "checkpoint_blobs",
        "checkpoint_writes",
        stale_threads.TABLE,
        leases.TABLE,
        PROCESSES_TABLE,
    }
    async with AsyncPostgresSaver.from_conn_string(url) as upstream:
        saver = new_saver(redis, upstream, redis_prefix)
        stored = await saver.aput(on_thread(CACHED, checkpoint_ns=""), new_checkpoint(), {}, {})
        assert await saver.aget_tuple(stored)
    assert rows(migrated_database_url, "select 1 from public.checkpoints") == []


async def test_set_up_while_redis_is_down(
    database_url: str, redis: Redis, redis_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    await set_up(database_url, f"redis://{LOCALHOST}:{free_port()}", redis_prefix)
    assert "setup() could not look at Redis" in caplog.text
    await assert_set_up(database_url, redis, redis_prefix)


@pytest.fixture
async def new_database(database_url: str, redis_url: str, redis_prefix: str) -> AsyncIterator[CachedPostgresSaver]:
    async with CachedPostgresSaver.from_conn_string(database_url, redis_url, prefix=redis_prefix) as saver:
        yield saver


@pytest.fixture
def redis_says(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda info: monkeypatch.setattr(*SERVER_INFO, Script(f"return '{info}'"))


@pytest.mark.parametrize("version", ["5.0.14", "6.0.20", "2.8.9"])
async def test_an_old_redis_is_refused(
    new_database: CachedPostgresSaver, database_url: str, redis_says: Callable[[str], None], version: str
) -> None:
    redis_says(f"# Server\\r\\nredis_version:{version}\\r\\nredis_mode:standalone\\r\\n")
    with pytest.raises(UnsupportedServerError, match=f"Redis {version[:3]}.*6\\.2 or later"):
        await new_database.setup()
    assert rows(database_url, "select 1 from pg_tables where schemaname = 'public'") == []


@pytest.mark.parametrize(
    "info", ["redis_version:6.2.0", "redis_version:10.0.1", "server_name:valkey\\r\\nredis_version:7.2.4", ""]
)
async def test_a_recent_redis_or_one_that_does_not_say_is_taken(
    new_database: CachedPostgresSaver, database_url: str, redis_says: Callable[[str], None], info: str
) -> None:
    redis_says(info)
    await asyncio.wait_for(new_database.setup(), SETUP_SECONDS_MAX)
    assert len(rows(database_url, "select 1 from checkpoint_migrations")) == len(MIGRATIONS)


async def test_an_old_postgres_is_refused(
    new_database: CachedPostgresSaver, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_check, "POSTGRES_VERSION_MIN", 990_000)
    with pytest.raises(UnsupportedServerError, match=r"PostgreSQL \d+ is too old: 99 or later"):
        await new_database.setup()
    assert rows(database_url, "select 1 from pg_tables where schemaname = 'public'") == []
