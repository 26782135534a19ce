"""Promises of the README's section on security: rights, signatures, and that no secret is told."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socketserver
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg
import pytest
import redis as redis_py
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import sql
from psycopg.errors import InsufficientPrivilege
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import RedisClusterException, RedisError

from langgraph_checkpoint_cached import ArgumentError, CachedPostgresSaver, CachedSaverError, IntentCache
from langgraph_checkpoint_cached.cli.saver_counters import SaverCountersReader
from langgraph_checkpoint_cached.demo.embedded import RedisServer
from langgraph_checkpoint_cached.stores.postgres import leases, processes, stale_threads
from langgraph_checkpoint_cached.stores.redis.entries import LARGE_BYTES
from langgraph_checkpoint_cached.stores.redis.health import RedisUnavailable
from tests.support.agreement import new_checkpoint, on_thread
from tests.support.inspect import inspect

pytestmark = pytest.mark.integration

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
ACL = re.findall(r"ACL SETUSER[^`]*", README)[0].split()
COMMANDS = [word[1:] for word in ACL if word.startswith("+")]
GRANTS = re.findall(r"^GRANT (.*) ON (.*) TO langgraph;$", README, re.MULTILINE)
RIGHTS = [
    (right, table) for rights, tables in GRANTS for table in tables.split(", ") for right in rights.split(", ")
]
PASSWORD = "p@ss/word"
IGNORED_BY_CLIENT = {"client|setinfo", "client"}
"""Commands with which the client describes itself; it does not mind when they are refused."""


async def use_everything(saver: CachedPostgresSaver) -> None:
    """One of each path: misses, hits, writes of all kinds, deletes, subgraphs, recovery, `IntentCache`."""
    await saver.setup()
    config: Any = on_thread("t", checkpoint_ns="")
    for thread_id in ("t", "u"):
        assert await saver.aget_tuple(on_thread(thread_id)) is None
    version = None
    for turn in range(3):
        version = saver.get_next_version(version, None)
        values: dict[str, Any] = {"messages": ["x"] * turn, "gone": [turn]} if turn < 2 else {"messages": ["x"]}
        versions: Any = {"messages": version, "gone": version} if turn < 2 else {"messages": version}
        checkpoint = new_checkpoint(channel_values=values, channel_versions=versions)
        config = await saver.aput(config, checkpoint, {}, dict.fromkeys(versions, version))
        await saver.aput_writes(config, [("messages", turn)], "task")
        for _ in range(2):
            await saver.aput_writes(config, [("__interrupt__", turn)], "task")
        assert await saver.aget_tuple(on_thread("t")) == await saver.aget_tuple(config)
    versions = {"messages": version}
    large = new_checkpoint(channel_values={"messages": ["x" * (LARGE_BYTES + 1)]}, channel_versions=versions)
    await saver.aput(on_thread("large", checkpoint_ns=""), large, {}, versions)
    for _ in range(2):
        assert await saver.aget_tuple(on_thread("large")) is not None
    for namespace in ("sub", "sub2"):
        await saver.aput_writes(on_thread("u", checkpoint_ns=namespace, checkpoint_id="x"), [("a", 1)], "task")
        assert await saver.aget_tuple(on_thread("u", checkpoint_ns=f"{namespace} not there")) is None
    await saver.aprune(["t"])
    assert await saver.aget_tuple(on_thread("t")) is not None
    assert await saver.aget_tuple(config) is not None
    table = inspect(saver).store.stale_threads
    for _ in range(2):
        await table.add(["t"])
    inspect(saver).too_many_stale_threads.set(True)
    await inspect(saver).probe_redis()
    inspect(saver).serve_at_once()
    assert not inspect(saver).too_many_stale_threads.get()
    assert table.usable
    assert await table.after(None) == []
    assert await saver.aget_tuple(on_thread("t")) is not None
    await saver.adelete_thread("t")
    assert await saver.aget_tuple(on_thread("t")) is None
    await write_behind(saver)
    publisher = inspect(saver).stats_publisher
    publisher.publish()
    await publisher.close()
    with contextlib.suppress(RedisError):  # what is denied is in the log
        counters = SaverCountersReader(inspect(saver).redis, inspect(saver).prefix)
        assert (await counters.read()).savers == 1
    intents: IntentCache[str] = IntentCache(inspect(saver).redis, prefix=inspect(saver).prefix)
    for ask in (intents.get_or_classify, intents.get_or_classify, intents.refresh):
        assert await ask("message", _classify) == "intent"
    assert await intents.invalidate("message")


async def write_behind(saver: CachedPostgresSaver) -> None:
    """Writes behind, and has `saver` replay what another process wrote."""
    prefix = inspect(saver).prefix
    behind = CachedPostgresSaver(
        inspect(saver).redis, inspect(saver).upstream, prefix=prefix, mode="write_behind", redis_timeout=10
    )
    inspect(behind).breaker.fail = inspect(saver).breaker.fail  # type: ignore[method-assign]
    try:
        config: Any = on_thread("unflushed", checkpoint_ns="")
        assert await behind.aget_tuple(config) is None
        for _ in range(2):
            config = await behind.aput(config, new_checkpoint(), {}, {})
            await saver.aflush("unflushed")
        assert behind.stats()["appends"] == 2
        await behind.aflush()
    finally:
        await behind.aclose()
    with contextlib.suppress(RedisUnavailable):  # what is denied is in the log
        await inspect(behind).journal.close("never written behind", "token", 0)


async def _classify(message: str) -> str:
    return "intent"


# -- Redis' users --------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_saver(
    postgres_url: str, redis: Redis | RedisCluster, prefix: str
) -> AsyncIterator[CachedPostgresSaver]:
    options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    async with AsyncConnectionPool(postgres_url, open=False, min_size=1, max_size=2, kwargs=options) as pool:
        saver = CachedPostgresSaver(redis, AsyncPostgresSaver(pool), prefix=prefix, redis_timeout=10)
        yield saver
        await saver.aclose()


def acl_of(user: str, prefix: str, *, without: str = "", more: Sequence[str] = ()) -> list[str]:
    """The command of the README for another user and prefix, without one right or with others."""
    changed = [word.replace("PASSWORD", PASSWORD).replace("~langgraph:", f"~{prefix}:") for word in ACL]
    return [*changed[:2], user, "reset", *(word for word in changed[3:] if word != f"+{without}"), *more]


async def denied(
    admin: redis_py.Redis, user: str, postgres_url: str, redis: Redis | RedisCluster, prefix: str
) -> set[str]:
    """Uses everything as this user. Returns the commands and keys that were denied."""
    admin.acl_log_reset()
    async with redis, open_saver(postgres_url, redis, prefix) as saver:
        # When a call is denied, hardly any is made any more: but for this.
        inspect(saver).breaker.fail = lambda: False  # type: ignore[method-assign]
        with contextlib.suppress(AssertionError):
            await use_everything(saver)
    return {entry["object"] for entry in admin.acl_log() if entry["username"] == user} - IGNORED_BY_CLIENT


@pytest.fixture
def redis_admin(redis_url: str, redis_prefix: str) -> Iterator[redis_py.Redis]:
    """Removes the user of the test's name in the end."""
    with redis_py.Redis.from_url(redis_url) as client:
        yield client
        client.acl_deluser(redis_prefix)


@pytest.fixture
def as_user(redis_url: str, redis_prefix: str) -> Redis:
    parts = urlsplit(redis_url)
    netloc = f"{redis_prefix}:{quote(PASSWORD, safe='')}@{parts.hostname}:{parts.port}"
    return Redis.from_url(parts._replace(netloc=netloc).geturl())


async def test_the_documented_rights_are_enough(
    redis_admin: redis_py.Redis, as_user: Redis, redis_prefix: str, migrated_database_url: str
) -> None:
    redis_admin.execute_command(*acl_of(redis_prefix, redis_prefix))
    redis_admin.acl_log_reset()
    async with as_user, open_saver(migrated_database_url, as_user, redis_prefix) as saver:
        await use_everything(saver)
        stats = saver.stats()
    assert {e["object"] for e in redis_admin.acl_log() if e["username"] == redis_prefix} <= IGNORED_BY_CLIENT
    assert stats["redis_errors"] == stats["degraded_reads"] == stats["degraded_writes"] == 0
    assert min(stats["hits"], stats["entry_updates"], stats["fills"]) > 0


async def test_each_of_the_documented_rights_is_needed(
    redis_admin: redis_py.Redis, as_user: Redis, redis_prefix: str, migrated_database_url: str
) -> None:
    redis_admin.execute_command(*acl_of(redis_prefix, redis_prefix))
    redis_admin.config_resetstat()
    async with as_user, open_saver(migrated_database_url, as_user, redis_prefix) as saver:
        await use_everything(saver)
    statistics = redis_admin.info("commandstats")  # those that scripts call included
    assert [command for command in COMMANDS if f"cmdstat_{command}" not in statistics] == []


async def test_keys_of_another_prefix_are_denied(
    redis_admin: redis_py.Redis, as_user: Redis, redis_prefix: str, migrated_database_url: str
) -> None:
    redis_admin.execute_command(*acl_of(redis_prefix, f"{redis_prefix}-other"))
    keys = await denied(redis_admin, redis_prefix, migrated_database_url, as_user, redis_prefix)
    assert f"{redis_prefix}:probe" in keys  # before anything else a process asks which server it is


def test_no_script_has_a_command_that_is_not_documented() -> None:
    scripts = [
        path.read_text()
        for path in resources.files("langgraph_checkpoint_cached.stores.redis").joinpath("lua").iterdir()
    ]
    called = set(re.findall(r"redis\.p?call\('(\w+)'", "".join(scripts)))
    assert len(called) > 10
    assert {command.lower() for command in called} <= set(COMMANDS)


async def test_the_documented_rights_are_enough_on_a_cluster(
    redis_servers: Callable[..., RedisServer], migrated_database_url: str
) -> None:
    server = redis_servers("--cluster-enabled", "yes")
    more = re.findall(r"A Cluster takes `([^`]*)`", README)[0].split()
    with redis_py.Redis.from_url(server.url) as admin:
        for slot in range(0, 16384, 1024):
            admin.execute_command("CLUSTER ADDSLOTS", *range(slot, slot + 1024))
        while admin.cluster("info")["cluster_state"] != "ok":
            await asyncio.sleep(0.01)
        for without in (None, *more[1:]):  # ASKING is for slots that move: see test_cluster.py
            rights = [right for right in more if right != without]
            admin.execute_command(*acl_of("app", "langgraph", more=rights))
            admin.acl_log_reset()
            cluster = RedisCluster(host="127.0.0.1", port=server.port, username="app", password=PASSWORD)
            found = set()
            try:
                found = await denied(admin, "app", migrated_database_url, cluster, "langgraph")
            except (RedisError, RedisClusterException):
                found = {entry["object"] for entry in admin.acl_log()} - IGNORED_BY_CLIENT
            finally:
                await cluster.aclose()
            command = without[1:] if without else ""
            # Redis 6.2 names the command alone.
            assert found in ([{command}, {command.partition("|")[0]}] if without else [set()])


# -- Postgres' users -----------------------------------------------------------------------------------------


@pytest.fixture
def role(migrated_database_url: str) -> Iterator[tuple[psycopg.Connection, str, str]]:
    """An owner's connection, and name and URL of a user without rights."""
    with psycopg.connect(migrated_database_url, autocommit=True) as owner:
        name = f"test_{uuid.uuid4().hex[:12]}"
        owner.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(name), sql.Literal(PASSWORD))
        )
        parts = urlsplit(migrated_database_url)
        netloc = f"{name}:{quote(PASSWORD, safe='')}@{parts.netloc.rpartition('@')[2]}"
        yield owner, name, parts._replace(netloc=netloc).geturl()
        owner.execute(sql.SQL("DROP OWNED BY {0}").format(sql.Identifier(name)))
        owner.execute(sql.SQL("DROP ROLE {0}").format(sql.Identifier(name)))


@pytest.mark.slow
async def test_the_documented_grants_are_enough_and_each_is_needed(
    role: tuple[psycopg.Connection, str, str],
    redis: Redis,
    redis_prefix: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    owner, name, url = role
    assert len(RIGHTS) == 24
    for right, table in RIGHTS:
        grant(owner, right, table, name)
    async with open_saver(url, redis, redis_prefix) as saver:
        await use_everything(saver)
    for right, table in RIGHTS:
        grant(owner, right, table, name, revoke=True)
        owner.execute("TRUNCATE checkpoints, checkpoint_blobs, checkpoint_writes")
        async with open_saver(url, redis, f"{redis_prefix}-{right}-{table}") as saver:
            if table == leases.TABLE:  # nobody writes behind, or what was is not replayed
                with contextlib.suppress(AssertionError, InsufficientPrivilege):
                    await use_everything(saver)
                assert f"the table {table} cannot be used (permission denied" in caplog.text
                caplog.clear()
            elif table == processes.TABLE:  # nor does this
                await use_everything(saver)
                assert f"the table {table} cannot be used (permission denied" in caplog.text
                caplog.clear()
            elif table == stale_threads.TABLE:  # does not stop anybody, but it is logged
                with pytest.raises(AssertionError):
                    await use_everything(saver)
                assert f"the table {table} cannot be used (permission denied" in caplog.text
                caplog.clear()
            else:
                with pytest.raises(InsufficientPrivilege, match=table):
                    await use_everything(saver)
        grant(owner, right, table, name)


def grant(owner: psycopg.Connection, right: str, table: str, role: str, *, revoke: bool = False) -> None:
    words = "REVOKE {} ON {} FROM {}" if revoke else "GRANT {} ON {} TO {}"
    owner.execute(sql.SQL(words).format(sql.SQL(right), sql.Identifier(table), sql.Identifier(role)))  # type: ignore[arg-type]


# -- secrets in logs and errors ------------------------------------------------------------------------------

CANARY = "canary"


class RepeatsAuth(socketserver.StreamRequestHandler):
    """A server that does not know AUTH, and says so as Redis does: with its arguments."""

    def handle(self) -> None:
        while header := self.rfile.readline():
            arguments = [self.rfile.read(int(self.rfile.readline()[1:]) + 2)[:-2] for _ in range(int(header[1:]))]
            command, *rest = (f"`{argument.decode()}`" for argument in arguments)
            self.wfile.write(f"-ERR unknown command {command}, with args beginning with: {rest}\r\n".encode())


@pytest.fixture(scope="module")
def strange_server() -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), RepeatsAuth) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield "{}:{}".format(*server.server_address)
        server.shutdown()


POSTGRES_URLS = (
    f"postgresql://nobody:{CANARY}@SERVER/postgres",
    f"postgresql://nobody:{CANARY}@127.0.0.1:1/db",
    f"postgresql://nobody:x@{CANARY}@127.0.0.1:1/db",
    f"postgresql://nobody:{CANARY}@x@127.0.0.1:1/db",
    f"postgresql://nobody:{CANARY}/x@127.0.0.1:1/db",
    f"postgresql://nobody:1/{CANARY}@127.0.0.1:1/db",
    f"postgresql://nobody:x?{CANARY}@127.0.0.1:1/db",
    f"postgresql://nobody:%zz{CANARY}@127.0.0.1:1/db",
    f"postgres//nobody:{CANARY}@127.0.0.1:1/db",
    f"host=127.0.0.1 port=1 password={CANARY}",
    f"host=127.0.0.1 port=1 password={CANARY} {CANARY}",
    f"host=127.0.0.1 port=1 password='{CANARY}",
)
REDIS_URLS = (
    f"redis://nobody:{CANARY}@SERVER/0",
    f"redis://:{CANARY}@127.0.0.1:1/0",
    f"redis://:{CANARY}@STRANGE/0",
    f"redis://nobody:{CANARY}@STRANGE/0",
    f"redis://nobody:{CANARY}@STRANGE/0?protocol=3",
    f"redis://:{CANARY}/x@127.0.0.1:1/0",
    f"redis://:1/{CANARY}@127.0.0.1:1/0",
    f"redis://:{CANARY}?x@127.0.0.1:1/0",
    f"redis://:{CANARY}#x@127.0.0.1:1/0",
    f"redis://:x@{CANARY}@127.0.0.1:1/0",
    f"redis://:{CANARY}@[::1/0",
    f"http://:{CANARY}@127.0.0.1:1/0",
    f"redis://127.0.0.1:1/0?pasword={CANARY}",
    f"redis://127.0.0.1:1/0?socket_timeout={CANARY}",
)


def ack(error: BaseException | None) -> str:
    """All that an error says, with what it came of."""
    if error is None:
        return ""
    return "\n".join([repr(error), str(error), ack(error.__cause__), ack(error.__context__)])


@pytest.mark.parametrize(
    ("postgres", "redis"),
    [*((url, "redis://127.0.0.1:1") for url in POSTGRES_URLS), *(("", url) for url in REDIS_URLS)],
)
async def test_no_password_is_logged_or_raised(
    postgres: str,
    redis: str,
    migrated_database_url: str,
    redis_url: str,
    strange_server: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    postgres_url = postgres.replace("SERVER", urlsplit(migrated_database_url).netloc.rpartition("@")[2])
    redis_server = urlsplit(redis_url).netloc.rpartition("@")[2]
    url = redis.replace("SERVER", redis_server).replace("STRANGE", strange_server)
    error: BaseException | None = None
    try:
        async with CachedPostgresSaver.from_conn_string(
            postgres_url or migrated_database_url, url, pool_timeout=0.5
        ) as saver:
            await saver.setup()
            assert await saver.aget_tuple(on_thread("t")) is None
            assert saver.stats()["degraded_reads"] == 1
            intents: IntentCache[str] = IntentCache(inspect(saver).redis)  # type: ignore[arg-type]
            assert await intents.get_or_classify("message", _classify) == "intent"
            assert not await intents.invalidate("message")
    except (CachedSaverError, psycopg.OperationalError) as exc:
        error = exc
    logged = "\n".join(logging.Formatter().format(record) for record in caplog.records)
    assert error is not None or "unusable" in logged
    assert CANARY not in ack(error)
    assert CANARY not in logged


async def test_an_option_that_no_connection_takes_is_refused_at_once(migrated_database_url: str) -> None:
    """Every call raised a TypeError."""
    with pytest.raises(ArgumentError, match="redis_url"):
        async with CachedPostgresSaver.from_conn_string(migrated_database_url, "redis://127.0.0.1:1?no_such=1"):
            pass
