"""`langgraph-cached` on real servers: what its commands do, what they say, and how they end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest

from langgraph_checkpoint_cached.cli import saver_counters
from langgraph_checkpoint_cached.cli.saver_counters import SaverCounters, SaverCountersReader
from langgraph_checkpoint_cached.engine import stats_publisher
from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.stores.redis.keys import namespace_key, thread_key
from tests.support.agreement import Tiers, new_checkpoint, on_thread, open_tiers
from tests.support.conversations import Conversation
from tests.support.inspect import inspect
from tests.support.proxy import Proxy

pytestmark = pytest.mark.integration
Ask = Callable[..., Awaitable[tuple[int, Any]]]
NOWHERE = "redis://user:secret@127.0.0.1:1/0"


@pytest.fixture
async def conversation(tiers: Tiers) -> Conversation:
    """One that is in Redis."""
    conversation = Conversation(tiers.saver)
    await conversation.turns(3)
    return conversation


@pytest.fixture
def without_redis(migrated_database_url: str, redis_prefix: str) -> list[str]:
    return [
        "--postgres-uri",
        migrated_database_url,
        "--redis-url",
        NOWHERE,
        "--prefix",
        redis_prefix,
        "--timeout",
        "1",
    ]


# -- inspect ---------------------------------------------------------------------------------------------------


async def test_inspect_shows_both_tiers_and_changes_nothing(
    tiers: Tiers, conversation: Conversation, ask_cli: Ask
) -> None:
    await tiers.redis.pexpire(namespace_key(tiers.prefix, Namespace("t")), 100_000)
    before = {key: await tiers.redis.hgetall(key) for key in await tiers.keys() if not key.endswith(b"names")}
    code, reply = await ask_cli("inspect", "t")
    assert code == 0
    (one,) = reply["namespaces"]
    latest = conversation.latest["configurable"]["checkpoint_id"]
    assert one["agreement"] == "agree"
    assert one["redis"]["checkpoint_id"] == one["postgres"]["latest"] == latest
    assert (one["redis"]["pending_writes"], one["postgres"]["pending"]) == (1, 1)
    assert one["postgres"]["checkpoints"] == 3
    assert 0 < one["redis"]["life_seconds"] <= 100
    assert one["redis"]["size_bytes"] > 300
    assert (reply["fences"], reply["stale_seconds"], reply["generation_is_current"]) == ([], None, True)
    assert {key: await tiers.redis.hgetall(key) for key in before} == before
    assert "xxx" not in json.dumps(reply)


async def test_inspect_shows_fences_stale_threads_leases_differences(
    tiers: Tiers, conversation: Conversation, ask_cli: Ask, migrated_database_url: str
) -> None:
    entries = inspect(tiers.saver).entries
    await inspect(tiers.saver).begin(Namespace("t"), "token of a fence")
    code, reply = await ask_cli("inspect", "t")
    (fence,) = reply["fences"]
    assert (fence["token"], fence["namespace"]) == ("token of a fence", "")
    assert 0 < fence["seconds_left"] <= 30
    assert reply["namespaces"][0]["agreement"] == "being written"
    await entries.end_thread("t", "token of a fence")
    await entries.read(Namespace("t"), "fill_token")
    code, reply = await ask_cli("inspect", "t")
    assert code == 0
    assert reply["namespaces"][0]["agreement"] == "not cached"
    assert reply["namespaces"][0]["redis"]["fill_lease"]["token"] == "fill_token"
    await entries.release_fill_lease(Namespace("t"), "fill_token")

    await conversation.check()
    conversation.saver = tiers.upstream  # type: ignore[assignment]
    await conversation.turn()
    code, reply = await ask_cli("inspect", "t")
    assert (code, reply["namespaces"][0]["agreement"]) == (1, "differ")
    await inspect(tiers.saver).recovery.close()  # whose heartbeat would end the stale thread
    async with await psycopg.AsyncConnection.connect(migrated_database_url) as conn:
        await conn.execute(
            "insert into checkpoint_cache_stale_threads (prefix, thread_id, mark, since)"
            " values (%s, 't', 'm', now() - interval '1 minute')",
            (tiers.prefix,),
        )
    code, reply = await ask_cli("inspect", "t")
    assert 60 <= reply["stale_seconds"] < 120


async def test_inspect_shows_all_namespaces_or_one(tiers: Tiers, conversation: Conversation, ask_cli: Ask) -> None:
    for name in ("sub:1", "sub:2"):
        await tiers.saver.aput(on_thread("t", checkpoint_ns=name), new_checkpoint(), {}, {})
        await tiers.saver.aget_tuple(on_thread("t", checkpoint_ns=name))
    _, reply = await ask_cli("inspect", "t")
    assert [(each["checkpoint_ns"], each["agreement"]) for each in reply["namespaces"]] == [
        ("", "agree"),
        ("sub:2", "agree"),
        ("sub:1", "agree"),
    ]
    _, reply = await ask_cli("inspect", "t", "--namespace", "sub:1")
    assert [each["checkpoint_ns"] for each in reply["namespaces"]] == ["sub:1"]
    assert (await ask_cli("inspect", "another"))[0] == 1


async def test_inspect_without_redis_shows_postgres(
    conversation: Conversation, ask_cli: Ask, without_redis: list[str]
) -> None:
    code, reply = await ask_cli("inspect", "t", servers=without_redis)
    assert code == 1
    assert reply["redis_error"]
    assert (reply["namespaces"][0]["agreement"], reply["namespaces"][0]["postgres"]["checkpoints"]) == (
        "unknown",
        3,
    )
    assert "secret" not in str(reply)


# -- warm and invalidate ---------------------------------------------------------------------------------------


async def test_warm_loads_threads_that_are_then_hits(tiers: Tiers, ask_cli: Ask) -> None:
    conversations = [Conversation(tiers.saver, f"t{number}") for number in range(5)]
    for each in conversations:
        await each.turn()
    assert await tiers.fences_left() == []
    code, reply = await ask_cli("warm", "--newest", "3")
    assert (code, reply["counts"]["loaded"]) == (0, 3)
    for each in conversations[2:]:
        hits = tiers.saver.stats()["hits"]
        await each.check()
        assert tiers.saver.stats()["hits"] == hits + 1
    code, reply = await ask_cli("warm", "t0", "t4", "missing", "--ttl", "77")
    assert code == 1
    assert (reply["counts"]["loaded"], reply["counts"]["warm"], reply["missing"]) == (1, 1, ["missing"])
    assert 0 < await tiers.redis.pttl(namespace_key(tiers.prefix, Namespace("t0"))) <= 77_000
    assert await tiers.redis.pttl(namespace_key(tiers.prefix, Namespace("t4"))) > 77_000, "a life is not cut short"


async def test_invalidate_command_removes_entries(tiers: Tiers, conversation: Conversation, ask_cli: Ask) -> None:
    conversation.saver = tiers.upstream  # type: ignore[assignment]
    await conversation.turn()
    assert await ask_cli("invalidate", "t") == (0, {"invalidated": 1})
    await conversation.check(tiers.saver)
    for number in range(300):
        await tiers.saver.aget_tuple(on_thread(f"t{number}"))
    await conversation.turn()
    assert await ask_cli("invalidate", "--all") == (0, {"invalidated": 301})
    await conversation.check(tiers.saver)


async def test_a_load_that_began_before_invalidate_does_not_come_back(
    tiers: Tiers, conversation: Conversation, ask_cli: Ask
) -> None:
    entries, namespace = inspect(tiers.saver).entries, Namespace("t")
    await entries.end_thread("t", "no token")
    load = await entries.read(namespace, "fill_token")
    old = await inspect(tiers.saver).store.latest(namespace)
    conversation.saver = tiers.upstream  # type: ignore[assignment]
    await conversation.turn()
    assert (await ask_cli("invalidate", "t"))[0] == 0
    assert not await entries.fill(namespace, "fill_token", load, old)  # type: ignore[arg-type]
    await conversation.check(tiers.saver)


async def test_invalidate_without_redis_leaves_it_to_the_savers(
    tiers: Tiers, conversation: Conversation, ask_cli: Ask, without_redis: list[str]
) -> None:
    conversation.saver = tiers.upstream  # type: ignore[assignment]
    await conversation.turn()
    assert await ask_cli("invalidate", "t", servers=without_redis) == (1, {"invalidated": 0, "stale_threads": 1})
    await inspect(tiers.saver).invalidator.invalidate_recorded()
    await conversation.check(tiers.saver)


# -- prune, copy, retention ------------------------------------------------------------------------------------


@pytest.mark.parametrize("redis", [True, False])
async def test_prune_copy_and_retention_do_as_the_saver_does(
    tiers: Tiers, conversation: Conversation, ask_cli: Ask, redis: bool, without_redis: list[str]
) -> None:
    servers: dict[str, Any] = {} if redis else {"servers": without_redis}
    assert (await ask_cli("copy", "t", "copy", **servers))[0] == 0
    copied = [each.checkpoint async for each in tiers.upstream.alist(on_thread("copy"))]
    assert copied == [each.checkpoint async for each in tiers.upstream.alist(on_thread("t"))]
    assert await ask_cli("prune", "copy", "--strategy", "keep_latest", **servers) == (0, {"pruned": 1})
    assert len([each async for each in tiers.upstream.alist(on_thread("copy"))]) == 1

    old = Conversation(tiers.upstream, "old")  # type: ignore[arg-type]
    checkpoint = new_checkpoint(id=old_id(days=40))
    await tiers.upstream.aput(on_thread("old", checkpoint_ns=""), checkpoint, {}, {})
    code, reply = await ask_cli("retention", "--idle-for", "30d", "--dry-run", **servers)
    assert (code, reply["threads"], reply["checkpoints"]) == (0, 1, 1)
    assert await tiers.upstream.aget_tuple(old.config) is not None
    code, reply = await ask_cli("retention", "--idle-for", "30d", **servers)
    assert (code, reply["threads"], reply["looked_at"]) == (0, 1, 3)
    assert await tiers.upstream.aget_tuple(old.config) is None
    assert await ask_cli("prune", "copy", "t", "--strategy", "delete", **servers) == (0, {"pruned": 2})
    if not redis:
        await inspect(tiers.saver).invalidator.invalidate_recorded()
    assert await tiers.saver.aget_tuple(on_thread("t")) is None


async def test_a_copy_that_is_refused_says_why(
    tiers: Tiers,
    conversation: Conversation,
    run_cli: Any,
    cli_servers: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    await Conversation(tiers.saver, "other").turn()
    assert await run_cli(["copy", "t", "other", *cli_servers]) == 1
    err = capsys.readouterr().err
    assert err.startswith("langgraph-cached copy: ")
    assert len(err.splitlines()) == 1
    assert await run_cli(["copy", "t", "other", "--overwrite", *cli_servers]) == 0


def old_id(days: float) -> str:
    from langgraph_checkpoint_cached.retention import first_id_since

    return first_id_since((datetime.now(timezone.utc) - timedelta(days=days)).timestamp()).replace(
        "-0000-", "-8000-"
    )


# -- tail ------------------------------------------------------------------------------------------------------


async def test_published_counters_are_those_of_the_saver(
    tiers: Tiers, redis_servers: Callable[..., Any], migrated_database_url: str
) -> None:
    from redis.asyncio import Redis

    from langgraph_checkpoint_cached import CachedPostgresSaver

    server = redis_servers()
    async with Redis.from_url(server.url) as redis:
        saver = CachedPostgresSaver(redis, tiers.upstream, prefix=tiers.prefix, redis_timeout=10)
        assert (await SaverCountersReader(redis, tiers.prefix).read()).savers == 0
        conversations = [Conversation(saver, f"t{number}") for number in range(20)]
        for _ in range(5):
            await asyncio.gather(*(each.turns(2) for each in conversations))
        inspect(saver).stats_publisher.publish()
        await saver.aclose()
        reader = SaverCountersReader(redis, tiers.prefix)
        published, stats = await reader.read(), saver.stats()
        assert published.savers == 1
        assert (published.totals["hits"], published.totals["loads"]) == (stats["hits"], stats["loads"]), stats
        assert published.totals["writes"] == stats["writes"] > 0
        assert published.hits_per_second > 0
        key = inspect(saver).stats_publisher.key
        assert 0 < await redis.pttl(key) <= 1000 * stats_publisher.EXPIRY_SECONDS
        await redis.set(f"{tiers.prefix}:stats:stranger", '{"totals": 1}')
        both = SaverCountersReader(redis, tiers.prefix)
        assert (await both.read()) == published, "what no saver wrote does not count"
        await redis.delete(key)
        assert (await both.read()) == (await reader.read()) == SaverCounters.add_up([])
        await both.close()
        await reader.close()


async def test_tail_adds_up_what_savers_publish(
    tiers: Tiers, run_cli: Any, cli_servers: list[str], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats_publisher, "INTERVAL_SECONDS", 0.1)
    monkeypatch.setattr(saver_counters, "SCAN_SECONDS", 0.1)
    servers = cli_servers[1], cli_servers[3], tiers.prefix
    async with open_tiers(*servers) as one, open_tiers(*servers) as other:
        conversations = [Conversation(each, f"t{n}") for n, each in enumerate((one.saver, other.saver))]
        tail = asyncio.create_task(run_cli(["tail", "--seconds", "2", "--every", "0.1", *cli_servers, "--json"]))
        while not tail.done():
            await asyncio.gather(*(each.turns(2) for each in conversations))
        assert await tail == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["savers"] == 2
    for name in ("hits", "writes", "rows"):
        assert any((line[f"{name}_per_second"] or 0) > 0 for line in lines), name
    assert lines[-1]["unflushed"] == 0


@pytest.mark.slow
async def test_tail_says_a_line_a_time_and_survives_an_outage(
    tiers: Tiers,
    run_cli: Any,
    proxies: Callable[[str], Proxy],
    cli_servers: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    proxy = proxies(cli_servers[3])
    servers = [*cli_servers[:3], proxy.url, *cli_servers[4:], "--timeout", "1"]
    conversation = Conversation(tiers.saver)
    await conversation.turns(2)
    inspect(tiers.saver).stats_publisher.publish()
    tail = asyncio.create_task(run_cli(["tail", "--seconds", "2", "--every", "0.1", *servers, "--json"]))
    await asyncio.sleep(0.5)
    proxy.stop()
    await conversation.turns(3)
    await asyncio.sleep(0.4)
    proxy.start()
    assert await tail == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) >= 8
    assert any(line["redis_error"] for line in lines)
    assert any(line["hits_per_second"] is not None for line in lines)
    assert lines[-1]["stale_threads"] == 0
    assert await run_cli(["tail", "--seconds", "0.3", "--every", "0.1", *servers]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split()[:2] == ["time", "hits/s"]
    assert len(out) >= 3


# -- the command itself ----------------------------------------------------------------------------------------

RUN = "import sys; from langgraph_checkpoint_cached.cli.main import main; sys.exit(main())"
COMMANDS = [
    ["inspect", "t"],
    ["verify"],
    ["warm", "t"],
    ["flush", "--all"],
    ["invalidate", "t"],
    ["invalidate", "--all"],
    ["prune", "t", "--strategy", "delete"],
    ["copy", "a", "b"],
    ["retention", "--idle-for", "1d"],
    ["tail", "--seconds", "0.2", "--every", "0.1"],
]


async def test_a_process_takes_its_servers_from_the_environment(
    conversation: Conversation, cli_servers: list[str]
) -> None:
    environment = {
        **os.environ,
        "POSTGRES_URI": cli_servers[1],
        "REDIS_URL": cli_servers[3],
        "LANGGRAPH_CACHED_PREFIX": cli_servers[5],
    }
    process = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", RUN, "verify"], env=environment, capture_output=True, text=True
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "1 same\n", "")


async def test_ctrl_c_ends_it_with_130_and_no_traceback(
    conversation: Conversation, cli_servers: list[str]
) -> None:
    command = [sys.executable, "-c", RUN, "tail", "--every", "0.1", *cli_servers]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    assert process.stdout is not None
    await process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert (process.returncode, err) == (130, b"langgraph-cached tail: interrupted\n")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
async def test_without_postgres_it_fails_at_once_in_one_line(
    command: list[str], run_cli: Any, cli_servers: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    servers = ["--postgres-uri", "postgresql://user:secret@127.0.0.1:1/db", *cli_servers[2:]]
    assert await run_cli([*command, *servers]) == 1
    out, err = capsys.readouterr()
    assert "secret" not in out + err
    if command[0] != "tail":
        assert out == ""
        assert err.startswith(f"langgraph-cached {command[0]}: Postgres: ")
        assert "Traceback" not in err


@pytest.mark.parametrize("command", [["verify"], ["warm", "t"], ["invalidate", "--all"]], ids=lambda c: c[0])
async def test_what_needs_redis_fails_without_it(
    command: list[str], conversation: Conversation, run_cli: Any, without_redis: list[str], capsys: Any
) -> None:
    assert await run_cli([*command, *without_redis]) == 1
    out, err = capsys.readouterr()
    assert f"langgraph-cached {command[0]}: Redis: " in err
    assert "secret" not in out + err


@pytest.mark.parametrize("command", [*COMMANDS, ["doctor"]], ids=lambda command: command[0])
async def test_every_command_has_words_for_people_and_json(
    command: list[str],
    tiers: Tiers,
    conversation: Conversation,
    run_cli: Any,
    ask_cli: Ask,
    capsys: Any,
    cli_servers: Any,
) -> None:
    await Conversation(tiers.saver, "a").turn()
    assert await run_cli([*command, *cli_servers]) == 0
    out = capsys.readouterr().out
    assert out.strip()
    assert not out.startswith("{")
    if command[0] == "tail":
        return  # one object a line
    code, reply = await ask_cli(*command)
    assert code == (1 if command[0] == "inspect" and not reply["namespaces"] else 0)
    assert isinstance(reply, dict)


async def test_invalidate_command_covers_unknown_thread(tiers: Tiers, ask_cli: Ask) -> None:
    assert await ask_cli("invalidate", "never seen") == (0, {"invalidated": 1})
    assert await tiers.redis.pttl(thread_key(tiers.prefix, "never seen")) > 0
