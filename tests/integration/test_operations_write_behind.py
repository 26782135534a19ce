"""`langgraph-cached` where somebody writes behind: what Redis alone has is seen, and brought to Postgres."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
import redis as redis_py
from langgraph.checkpoint.memory import InMemorySaver
from redis.asyncio import Redis

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.cli.saver_counters import SaverCountersReader
from langgraph_checkpoint_cached.demo.embedded import RedisServer
from langgraph_checkpoint_cached.engine import held_leases, journal_replayer
from langgraph_checkpoint_cached.migrate.copy_savers import copy_all
from langgraph_checkpoint_cached.stores.redis.keys import journal_key
from tests.support.agreement import Tiers
from tests.support.conversations import Conversation, open_saver
from tests.support.inspect import inspect
from tests.support.proxy import Proxy

pytestmark = pytest.mark.integration
Ask = Callable[..., Awaitable[tuple[int, Any]]]
PATIENT = {"mode": "write_behind", "redis_timeout": 10}


@asynccontextmanager
async def behind(
    tiers: Tiers, proxies: Callable[[str], Proxy], redis_url: str, threads: int = 1
) -> AsyncIterator[list[Conversation]]:
    """Conversations of two turns, so four writes, of a process that has lost Postgres after the first."""
    proxy = proxies(tiers.postgres_url)
    async with open_saver(proxy.url, redis_url, prefix=tiers.prefix, **PATIENT) as saver:
        conversations = [Conversation(saver, f"t{number}") for number in range(threads)]
        for each in conversations:
            await saver.aget_tuple(each.config)
            await each.turn()
        await saver.aflush()
        proxy.stop()
        for each in conversations:
            await each.turn()
        assert saver.stats()["unflushed"] == 2 * threads
        yield conversations
        proxy.start()
        await saver.aflush()


async def in_postgres(tiers: Tiers, conversation: Conversation) -> bool:
    found = await tiers.upstream.aget_tuple(conversation.config)
    return found is not None and found.config == conversation.latest and bool(found.pending_writes)


async def test_flush_command_flushes_named_or_all_threads(
    tiers: Tiers, proxies: Callable[[str], Proxy], redis_url: str, ask_cli: Ask
) -> None:
    async with behind(tiers, proxies, redis_url, threads=5) as conversations:
        assert not any([await in_postgres(tiers, each) for each in conversations])
        code, reply = await ask_cli("flush", "t0", "t3", "not there")
        assert (code, reply["threads"], reply["writes"], reply["unflushed"], reply["lost"]) == (0, 2, 4, 0, 0)
        assert [await in_postgres(tiers, each) for each in conversations] == [True, False, False, True, False]
        code, reply = await ask_cli("flush", "--all")
        assert (code, reply["threads"], reply["writes"]) == (0, 5, 6)
        assert all([await in_postgres(tiers, each) for each in conversations])
        code, reply = await ask_cli("flush", "--all")
        assert (code, reply["writes"]) == (0, 0)


async def test_flush_command_removes_ended_journals(
    tiers: Tiers, proxies: Callable[[str], Proxy], redis_url: str, ask_cli: Ask
) -> None:
    async with behind(tiers, proxies, redis_url, threads=2), Redis.from_url(redis_url) as redis:
        kept, leftover = (journal_key(tiers.prefix, thread_id) for thread_id in ("t0", "not there"))
        await redis.restore(leftover, 0, await redis.dump(kept))
        assert (await ask_cli("flush", "t0"))[0] == 0
        assert await redis.exists(leftover)
        assert (await ask_cli("flush", "--all"))[0] == 0
        assert not await redis.exists(leftover)
        assert await redis.exists(kept), "of a lease that somebody holds"


@pytest.mark.slow
async def test_flush_command_without_redis_names_unflushed_threads(
    tiers: Tiers,
    proxies: Callable[[str], Proxy],
    redis_url: str,
    run_cli: Any,
    cli_servers: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal_replayer, "FLUSH_SECONDS_MAX", 0.5)
    nowhere = [*cli_servers[:3], "redis://user:secret@127.0.0.1:1/0", *cli_servers[4:], "--timeout", "1"]
    async with behind(tiers, proxies, redis_url) as (conversation,):
        capsys.readouterr()
        assert await run_cli(["flush", "--all", *nowhere]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        line = err.splitlines()[-1]
        assert line.startswith("langgraph-cached flush: the latest writes of thread 't0' are not in Postgres")
        assert "secret" not in err
        assert await run_cli(["invalidate", "t0", *nowhere, "--json"]) == 1
        assert json.loads(capsys.readouterr().out) == {"invalidated": 0, "stale_threads": 1}
        assert await run_cli(["inspect", "t0", *nowhere]) == 1
        assert "the journal up to entry 2: there may be unflushed writes" in capsys.readouterr().out
        assert not await in_postgres(tiers, conversation)


async def test_lost_unflushed_writes_are_reported(
    tiers: Tiers,
    redis_servers: Callable[..., RedisServer],
    ask_cli: Ask,
    cli_servers: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal_replayer, "ABANDONED_SECONDS", 0.3)
    server = redis_servers()
    with psycopg.connect(tiers.postgres_url) as conn:
        conn.execute(
            "insert into checkpoint_cache_leases (prefix, thread_id, token, position, since)"
            " values (%s, 't', 'of another run', 7, now() - interval '2 hours')",
            (tiers.prefix,),
        )
    servers = [*cli_servers[:3], server.url, *cli_servers[4:]]
    code, reply = await ask_cli("inspect", "t", servers=servers)
    assert (code, reply["namespaces"][0]["agreement"]) == (1, "unflushed")
    assert (reply["lease"]["known"], reply["lease"]["position"], reply["lease"]["unflushed"]) == (False, 7, None)
    code, reply = await ask_cli("doctor", servers=servers)
    assert [each["level"] for each in reply["findings"] if each["check"] == "leases"] == ["warning"]
    code, reply = await ask_cli("flush", "t", servers=servers)
    assert (code, reply["lost"]) == (1, 1)
    assert (await ask_cli("flush", "--all", servers=servers)) == (
        0,
        {"threads": 0, "writes": 0, "unflushed": 0, "lost": 0, "errors": {}},
    )


async def test_inspect_names_tier_ahead_and_flushes(
    tiers: Tiers,
    proxies: Callable[[str], Proxy],
    redis_url: str,
    ask_cli: Ask,
    run_cli: Any,
    cli_servers: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with behind(tiers, proxies, redis_url) as (conversation,):
        code, reply = await ask_cli("inspect", "t0")
        lease, (one,) = reply["lease"], reply["namespaces"]
        assert (code, one["agreement"]) == (0, "agree")
        assert one["redis"]["checkpoint_id"] == one["postgres"]["latest"]
        assert (lease["known"], lease["position"], lease["last"], lease["unflushed"]) == (True, 2, 4, 2)
        assert lease["journal_entries"] == 2
        assert lease["journal_bytes"] > 300
        assert await in_postgres(tiers, conversation)
        await conversation.turn()
        await run_cli(["inspect", "t0", *cli_servers])
        out = capsys.readouterr().out
        assert "2 writes were unflushed, and are flushed now" in out
        await run_cli(["inspect", "t0", *cli_servers])
        assert "no writes were unflushed" in capsys.readouterr().out
    await ask_cli("prune", "t0", "--strategy", "delete")
    _, reply = await ask_cli("inspect", "t0")
    assert reply["lease"] is None


async def test_warm_and_invalidate_keep_acknowledged_writes(
    tiers: Tiers, proxies: Callable[[str], Proxy], redis_url: str, ask_cli: Ask
) -> None:
    async with behind(tiers, proxies, redis_url, threads=3) as conversations:
        await conversations[0].turn()  # the newest, as far as Redis knows
        code, reply = await ask_cli("warm", "--newest", "1")
        assert (code, reply["counts"]["warm"]) == (0, 1)
        assert await in_postgres(tiers, conversations[0])
        await conversations[1].turn()
        assert (await ask_cli("invalidate", "t1"))[0] == 0
        assert await in_postgres(tiers, conversations[1])
        await conversations[1].check(tiers.saver)
        await conversations[2].turn()
        assert (await ask_cli("invalidate", "--all"))[0] == 0
        assert all([await in_postgres(tiers, each) for each in conversations])


async def test_unflushed_writes_are_copied_to_another_saver(
    tiers: Tiers, proxies: Callable[[str], Proxy], redis_url: str
) -> None:
    async with behind(tiers, proxies, redis_url, threads=3) as conversations:
        target = InMemorySaver()
        copied = await copy_all(tiers.saver, target)
        assert (copied.is_complete, copied.threads, copied.checkpoints, copied.writes) == (True, 3, 6, 6)
        for each in conversations:
            found = await target.aget_tuple(each.config)
            assert found is not None
            assert found.config == each.latest


async def test_verify_accepts_unflushed_writes(
    tiers: Tiers, proxies: Callable[[str], Proxy], redis_url: str, ask_cli: Ask
) -> None:
    async with behind(tiers, proxies, redis_url, threads=3):
        code, reply = await ask_cli("verify")
        assert code == 0
        assert {name: count > 0 for name, count in reply["counts"].items() if count} == {"same": True}
        assert reply["counts"]["same"] >= 3


# -- doctor ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "level"), [("allkeys-lru", "problem"), ("volatile-lru", "ok"), ("noeviction", "warning")]
)
async def test_eviction_policy_is_a_problem_for_write_behind(
    tiers: Tiers,
    ask_cli: Ask,
    redis_servers: Callable[..., RedisServer],
    cli_servers: list[str],
    policy: str,
    level: str,
) -> None:
    server = redis_servers("--maxmemory", "50mb", "--maxmemory-policy", policy)
    servers = [*cli_servers[:3], server.url, *cli_servers[4:]]
    usual = "warning" if policy == "noeviction" else "ok"

    async def found(check: str, *arguments: str) -> tuple[int, list[Any]]:
        code, reply = await ask_cli("doctor", *arguments, servers=servers)
        return code, [each for each in reply["findings"] if each["check"] == check]

    code, (memory,) = await found("redis memory")
    assert (code, memory["level"]) == (0, usual)
    assert (await found("redis durability"))[1] == []
    code, (memory,) = await found("redis memory", "--write-behind")
    assert (code, memory["level"]) == (int(level == "problem"), level)
    if level != "ok":
        assert "set maxmemory-policy volatile-lru" in memory["advice"]
    with psycopg.connect(tiers.postgres_url) as conn:
        conn.execute(
            "insert into checkpoint_cache_leases (prefix, thread_id, token) values (%s, 't', 'token')",
            (tiers.prefix,),
        )
    code, (memory,) = await found("redis memory")
    assert memory["level"] == level, "somebody writes behind"
    code, (leases,) = await found("leases")
    assert (leases["level"], leases["message"].partition(",")[0]) == ("ok", "1 threads")


async def test_doctor_describes_redis_durability(
    ask_cli: Ask, redis_servers: Callable[..., RedisServer], cli_servers: list[str]
) -> None:
    server = redis_servers("--maxmemory", "50mb", "--maxmemory-policy", "volatile-lru")
    servers = [*cli_servers[:3], server.url, *cli_servers[4:]]

    async def durability() -> Any:
        _, reply = await ask_cli("doctor", "--write-behind", servers=servers)
        (found,) = (each for each in reply["findings"] if each["check"] == "redis durability")
        return found

    found = await durability()
    assert (found["level"], "appendonly yes" in found["advice"]) == ("ok", True)
    assert found["message"].startswith("append-only file off, last snapshot ok, 0 replicas")
    assert '"as_is", "replica"' in found["message"]
    redis_servers("--replicaof", "127.0.0.1", str(server.port))
    with redis_py.Redis.from_url(server.url) as admin:
        recent = tuple(int(part) for part in admin.info("server")["redis_version"].split(".")[:2]) >= (7, 2)
        while admin.info("replication")["connected_slaves"] == 0:
            await asyncio.sleep(0.05)
        admin.config_set("appendonly", "yes")
    found = await durability()
    assert (found["level"], found["advice"]) == ("ok", "")
    assert found["message"].startswith("append-only file on, last snapshot ok, 1 replicas")
    assert ('"disk"' in found["message"]) == recent


async def test_missing_lease_table_is_a_problem_for_write_behind(ask_cli: Ask, migrated_database_url: str) -> None:
    with psycopg.connect(migrated_database_url) as conn:
        conn.execute("drop table checkpoint_cache_leases")
    for arguments, level in (((), "warning"), (("--write-behind",), "problem")):
        _, reply = await ask_cli("doctor", *arguments)
        assert next(each["level"] for each in reply["findings"] if each["check"] == "tables") == level


# -- tail ------------------------------------------------------------------------------------------------------


async def test_published_counters_of_write_behind(
    tiers: Tiers, redis_servers: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_leases, "LINGER_SECONDS", 0.05)
    server = redis_servers()
    async with Redis.from_url(server.url) as redis:
        saver = CachedPostgresSaver(redis, tiers.upstream, prefix=tiers.prefix, **PATIENT)  # type: ignore[arg-type]
        conversations = [Conversation(saver, f"t{number}") for number in range(20)]
        await asyncio.gather(*(saver.aget_tuple(each.config) for each in conversations))
        for _ in range(4):
            await asyncio.gather(*(each.turns(2) for each in conversations))
            await asyncio.sleep(0.2)
        await saver.aflush()
        inspect(saver).stats_publisher.publish()
        await saver.aclose()
        published, stats = await SaverCountersReader(redis, tiers.prefix).read(), saver.stats()
        assert stats["leases"] >= 40, "leases came and went"
        assert stats["appends"] == stats["replayed"] > 300
        totals = published.totals
        assert (totals["hits"], totals["loads"]) == (stats["hits"], stats["loads"]), stats
        assert (totals["appends"], totals["unflushed"]) == (stats["appends"], 0)


async def test_tail_shows_leases(
    tiers: Tiers,
    proxies: Callable[[str], Proxy],
    redis_url: str,
    run_cli: Any,
    cli_servers: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with behind(tiers, proxies, redis_url, threads=3):
        capsys.readouterr()
        assert await run_cli(["tail", "--seconds", "0.3", "--every", "0.1", *cli_servers, "--json"]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["leases"] == 3
