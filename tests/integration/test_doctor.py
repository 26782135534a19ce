"""`langgraph-cached doctor`: each thing that can be wrong is found, and what is right is not."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import redis as redis_py

from langgraph_checkpoint_cached.cli.checks.postgres import RIGHTS
from langgraph_checkpoint_cached.demo.embedded import RedisServer
from tests.support.cluster import Cluster
from tests.support.servers import fill_redis

pytestmark = pytest.mark.integration
Ask = Callable[..., Awaitable[tuple[int, Any]]]
README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def levels(reply: Any, check: str) -> list[str]:
    return [each["level"] for each in reply["findings"] if each["check"] == check]


def advice(reply: Any, check: str) -> str:
    return " ".join(each["advice"] for each in reply["findings"] if each["check"] == check)


def run_sql(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement)  # type: ignore[call-overload]


@pytest.fixture
def small_redis(redis_servers: Callable[..., RedisServer]) -> RedisServer:
    return redis_servers("--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru")


@pytest.fixture
def with_redis(migrated_database_url: str, redis_prefix: str) -> Callable[[str], list[str]]:
    """The arguments for another Redis."""
    return lambda url: ["--postgres-uri", migrated_database_url, "--redis-url", url, "--prefix", redis_prefix]


async def test_nothing_is_wrong_where_nothing_is(
    ask_cli: Ask, small_redis: RedisServer, with_redis: Callable[[str], list[str]]
) -> None:
    code, reply = await ask_cli("doctor", servers=with_redis(small_redis.url))
    assert (code, reply["counts"]["problem"], reply["counts"]["warning"], reply["counts"]["unknown"]) == (
        0,
        0,
        0,
        0,
    ), reply
    checks = {each["check"] for each in reply["findings"]}
    assert checks >= {
        "tables",
        "indexes",
        "postgres rights",
        "redis commands",
        "redis memory",
        "clock",
        "round trip",
    }
    assert all(each["advice"] for each in reply["findings"] if each["level"] != "ok")


def test_the_rights_that_it_asks_for_are_those_of_the_readme() -> None:
    granted: dict[str, set[str]] = {}
    for rights, tables in re.findall(r"^GRANT (.*) ON (.*) TO langgraph;$", README, re.MULTILINE):
        for table in tables.split(", "):
            granted.setdefault(table, set()).update(rights.split(", "))
    assert granted == {table: set(rights) for table, rights in RIGHTS.items()}


async def test_an_empty_database_has_no_tables(ask_cli: Ask, database_url: str, cli_servers: list[str]) -> None:
    code, reply = await ask_cli("doctor", servers=["--postgres-uri", database_url, *cli_servers[2:]])
    assert code == 1
    assert set(levels(reply, "tables")) == {"problem", "warning"}
    assert "setup()" in advice(reply, "tables")


async def test_tables_that_are_behind_or_broken(ask_cli: Ask, migrated_database_url: str) -> None:
    run_sql(
        migrated_database_url,
        "delete from checkpoint_migrations where v = (select max(v) from checkpoint_migrations)",
        "drop index checkpoint_writes_thread_id_idx",
        "update pg_index set indisvalid = false where indexrelid = 'checkpoints_thread_id_idx'::regclass",
        "drop table checkpoint_cache_stale_threads",
    )
    code, reply = await ask_cli("doctor")
    assert code == 1
    assert levels(reply, "tables") == ["problem", "problem"]
    assert levels(reply, "indexes") == ["problem", "warning"]
    assert "REINDEX INDEX CONCURRENTLY checkpoints_thread_id_idx" in advice(reply, "indexes")
    assert "CREATE INDEX CONCURRENTLY checkpoint_writes_thread_id_idx" in advice(reply, "indexes")
    assert levels(reply, "stale threads") == []


@pytest.fixture
def role(migrated_database_url: str) -> Iterator[str]:
    """A role that may log in, and nothing more."""
    name = "doctor_test"
    run_sql(migrated_database_url, f"create role {name} login password 'p%40ss-word'")
    yield name
    run_sql(migrated_database_url, f"drop owned by {name}", f"drop role {name}")


async def test_rights_that_are_missing_are_named(
    ask_cli: Ask, migrated_database_url: str, cli_servers: list[str], role: str
) -> None:
    place = urlsplit(migrated_database_url)
    url = place._replace(netloc=f"{role}:p%2540ss-word@{place.hostname}:{place.port}").geturl()
    servers = ["--postgres-uri", url, *cli_servers[2:]]
    for table, rights in RIGHTS.items():
        run_sql(migrated_database_url, f"grant {', '.join(rights)} on {table} to {role}")
    run_sql(migrated_database_url, f"revoke delete on checkpoint_blobs from {role}")
    code, reply = await ask_cli("doctor", servers=servers)
    assert code == 1
    assert advice(reply, "postgres rights") == f"GRANT DELETE ON checkpoint_blobs TO {role}"
    run_sql(migrated_database_url, f"grant delete on checkpoint_blobs to {role}")
    code, reply = await ask_cli("doctor", servers=servers)
    assert (code, levels(reply, "postgres rights"), reply["counts"]["unknown"]) == (0, ["ok"], 0)


@pytest.mark.parametrize(("mode", "words"), [("transaction", "not safe"), ("session", "are safe")])
async def test_a_pooler_and_its_mode_are_found(
    ask_cli: Ask, pgbouncers: Callable[..., str], cli_servers: list[str], mode: str, words: str
) -> None:
    servers = ["--postgres-uri", pgbouncers(pool_mode=mode), *cli_servers[2:]]
    code, reply = await ask_cli("doctor", servers=servers)
    (pooler,) = (each["message"] for each in reply["findings"] if each["check"] == "pooler")
    assert code == 0
    assert f"{mode} mode" in pooler
    assert words in pooler


async def test_stale_threads_that_stay_are_a_problem(
    ask_cli: Ask, migrated_database_url: str, redis_prefix: str
) -> None:
    run_sql(
        migrated_database_url,
        "insert into checkpoint_cache_stale_threads (prefix, thread_id, mark, since)"
        f" values ('{redis_prefix}', 't', 'm', now() - interval '1 hour'), ('other', 't', 'm', now())",
    )
    code, reply = await ask_cli("doctor")
    assert code == 0
    (line,) = (each for each in reply["findings"] if each["check"] == "stale threads")
    assert line["level"] == "warning"
    assert line["message"].startswith("1 threads, the oldest for ")


@pytest.mark.parametrize(
    ("settings", "level"),
    [
        ((), "warning"),
        (("--maxmemory", "50mb", "--maxmemory-policy", "noeviction"), "warning"),
        (("--maxmemory", "50mb", "--maxmemory-policy", "allkeys-random"), "warning"),
        (("--maxmemory", "1mb", "--maxmemory-policy", "noeviction"), "problem"),
        (("--maxmemory", "50mb", "--maxmemory-policy", "volatile-lru"), "ok"),
    ],
)
async def test_the_policy_of_redis(
    ask_cli: Ask,
    redis_servers: Callable[..., RedisServer],
    with_redis: Callable[[str], list[str]],
    settings: tuple[str, ...],
    level: str,
) -> None:
    server = redis_servers(*settings)
    if level == "problem":
        fill_redis(server.url)
    code, reply = await ask_cli("doctor", servers=with_redis(server.url))
    assert levels(reply, "redis memory") == [level]
    assert code == (1 if level == "problem" else 0)


async def test_missing_redis_commands_are_named_and_suffice(
    ask_cli: Ask, small_redis: RedisServer, with_redis: Callable[[str], list[str]], redis_prefix: str
) -> None:
    acl = re.findall(r"ACL SETUSER[^`]*", README)[0].split()[3:]
    rules = [word.replace("PASSWORD", "word").replace("~langgraph:", f"~{redis_prefix}:") for word in acl]
    place = urlsplit(small_redis.url)
    url = place._replace(netloc=f"one:word@{place.hostname}:{place.port}").geturl()
    with redis_py.Redis.from_url(small_redis.url) as admin:
        admin.execute_command("ACL", "SETUSER", "one", *rules)
        code, reply = await ask_cli("doctor", servers=with_redis(url))
        assert (code, levels(reply, "redis commands"), reply["counts"]["unknown"]) == (0, ["ok"], 0), reply
        admin.execute_command("ACL", "SETUSER", "one", "-hkeys", "-scan")
        code, reply = await ask_cli("doctor", servers=with_redis(url))
        assert code == 1
        (line,) = (each for each in reply["findings"] if each["check"] == "redis commands")
        assert line["message"].startswith("refused: HKEYS, SCAN (")
        assert list(admin.scan_iter()) == []


async def test_a_replica_is_no_redis_to_use(
    ask_cli: Ask, redis_servers: Callable[..., RedisServer], with_redis: Callable[[str], list[str]]
) -> None:
    primary = redis_servers()
    replica = redis_servers("--replicaof", "127.0.0.1", str(primary.port))
    code, reply = await ask_cli("doctor", servers=with_redis(replica.url))
    assert code == 1
    assert levels(reply, "redis role") == ["problem"]


async def test_every_primary_of_a_cluster_is_looked_at(
    ask_cli: Ask, cluster: Cluster, with_redis: Callable[[str], list[str]]
) -> None:
    code, reply = await ask_cli("doctor", servers=with_redis(cluster.url))
    assert code == 0, reply
    assert levels(reply, "redis commands") == ["ok"] * 3


async def test_unreachable_servers_are_problems_without_secrets(
    ask_cli: Ask, cli_servers: list[str], with_redis: Callable[[str], list[str]]
) -> None:
    nowhere = "redis://user:secret@127.0.0.1:1/0"
    code, reply = await ask_cli("doctor", servers=with_redis(nowhere))
    assert (code, levels(reply, "redis"), levels(reply, "tables")) == (1, ["problem"], ["ok"])
    assert "secret" not in str(reply)
    code, reply = await ask_cli(
        "doctor", servers=["--postgres-uri", "postgresql://user:secret@127.0.0.1:1/db", *cli_servers[2:]]
    )
    assert (code, levels(reply, "postgres"), levels(reply, "redis role")) == (1, ["problem"], ["ok"])
    assert "secret" not in str(reply)
