"""`langgraph-cached verify`: it finds what is wrong, all of it, and nothing else, whatever goes on meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base.id import uuid6

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.stores.redis.keys import namespace_key
from tests.support.agreement import Tiers, new_checkpoint, on_thread
from tests.support.conversations import Conversation

pytestmark = pytest.mark.integration
Ask = Callable[..., Awaitable[tuple[int, Any]]]
LONG = "long " * 60
"""A thread whose name is too long for a key."""
THREADS, WORKERS = 6, 4


async def cached(saver: CachedPostgresSaver, *thread_ids: str) -> list[Conversation]:
    """Conversations that are in Redis."""
    conversations = [Conversation(saver, thread_id) for thread_id in thread_ids]
    for each in conversations:
        await each.turns(2)
    return conversations


async def write_past(tiers: Tiers, conversation: Conversation) -> None:
    conversation.saver = tiers.upstream  # type: ignore[assignment]
    await conversation.turn()
    conversation.saver = tiers.saver


async def test_nothing_is_found_where_all_agree(tiers: Tiers, ask_cli: Ask) -> None:
    assert await ask_cli("verify") == (0, {"counts": dict.fromkeys(ask_counts(), 0), "findings": []})
    await cached(tiers.saver, *(f"t{number}" for number in range(20)), "ünïcode {x} *", "", LONG)
    code, reply = await ask_cli("verify")
    assert (code, reply["counts"]["same"], reply["findings"]) == (0, 23, [])
    code, reply = await ask_cli("verify", "--sample", "5")
    assert (code, reply["counts"]["same"]) == (0, 5)
    code, reply = await ask_cli("verify", "t1", LONG)
    assert (code, reply["counts"]["same"]) == (0, 2)


def ask_counts() -> list[str]:
    return ["same", "differs", "damaged", "opaque", "busy", "gone", "unnamed"]


async def test_what_differs_is_found_all_of_it_and_dropped_on_request(tiers: Tiers, ask_cli: Ask) -> None:
    conversations = await cached(tiers.saver, "written past", "deleted past", "good", LONG)
    await write_past(tiers, conversations[0])
    await write_past(tiers, conversations[3])
    await tiers.upstream.adelete_thread("deleted past")
    code, reply = await ask_cli("verify")
    assert code == 1
    assert {each["thread_id"] for each in reply["findings"]} == {"written past", "deleted past", LONG}
    assert reply["counts"]["differs"] == 3
    assert reply["counts"]["same"] == 1
    assert not any(each["repaired"] for each in reply["findings"])
    (one,) = (each for each in reply["findings"] if each["thread_id"] == "written past")
    assert one["in_postgres"] == conversations[0].latest["configurable"]["checkpoint_id"]

    code, reply = await ask_cli("verify", "--repair")
    assert code == 1
    assert all(each["repaired"] for each in reply["findings"])
    await conversations[0].check()
    assert await tiers.saver.aget_tuple(on_thread("deleted past")) is None
    code, reply = await ask_cli("verify")
    assert (code, reply["counts"]["differs"]) == (0, 0)


async def test_a_namespace_that_redis_takes_for_empty_is_compared_too(tiers: Tiers, ask_cli: Ask) -> None:
    assert await tiers.saver.aget_tuple(on_thread("t")) is None  # the thread has nothing: Redis notes it
    await tiers.upstream.aput(on_thread("t", checkpoint_ns="sub"), new_checkpoint(), {}, {})
    code, reply = await ask_cli("verify")
    assert code == 1
    assert [(each["checkpoint_ns"], each["in_redis"]) for each in reply["findings"]] == [("sub", None)]


async def test_a_damaged_entry_is_reported_and_left_to_the_savers(tiers: Tiers, ask_cli: Ask) -> None:
    (conversation,) = await cached(tiers.saver, "t")
    key = namespace_key(tiers.prefix, Namespace("t"))
    await tiers.redis.hset(key, "h", b"damaged")  # type: ignore[misc]
    code, reply = await ask_cli("verify", "--repair")
    assert (code, reply["counts"]["damaged"]) == (1, 1)
    assert await tiers.redis.exists(key)
    await conversation.check()


async def test_signed_entries_need_their_key(
    tiers: Tiers, ask_cli: Ask, monkeypatch: pytest.MonkeyPatch, cli_servers: list[str]
) -> None:
    key = "a signing key of sufficient length"
    monkeypatch.setenv("CHECKPOINT_KEY", key)
    signing = CachedPostgresSaver(tiers.redis, tiers.upstream, prefix=tiers.prefix, signing_keys=[key])
    await cached(signing, "t", LONG)
    await signing.aclose()
    code, reply = await ask_cli("verify")
    assert (code, reply["counts"]["damaged"]) == (1, 2)
    code, reply = await ask_cli("verify", "--signing-key-env", "CHECKPOINT_KEY")
    assert (code, reply["counts"]["same"]) == (0, 2)


async def test_reads_of_verify_do_not_keep_entries_alive(tiers: Tiers, ask_cli: Ask) -> None:
    await cached(tiers.saver, "t")
    key = namespace_key(tiers.prefix, Namespace("t"))
    await tiers.redis.pexpire(key, 100_000)
    await ask_cli("verify")
    assert 0 < await tiers.redis.pttl(key) <= 100_000


async def test_stale_thread_is_invalidated_not_reported(
    tiers: Tiers, ask_cli: Ask, migrated_database_url: str
) -> None:
    (conversation,) = await cached(tiers.saver, "t")
    await write_past(tiers, conversation)
    async with await psycopg.AsyncConnection.connect(migrated_database_url) as conn:
        await conn.execute(
            "insert into checkpoint_cache_stale_threads (prefix, thread_id, mark) values (%s, 't', 'm')",
            (tiers.prefix,),
        )
    code, reply = await ask_cli("verify")
    assert (code, reply["counts"]["differs"]) == (0, 0)
    await conversation.check()


async def test_under_load_exactly_what_was_seeded_is_found(tiers: Tiers, ask_cli: Ask) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng, on = random.Random(seed), True
    operations = 0

    async def work(saver: CachedPostgresSaver) -> None:
        nonlocal operations
        while on:
            namespace = rng.choice(["", "", "sub"])
            config: Any = on_thread(f"busy {rng.randrange(THREADS)}", checkpoint_ns=namespace)
            found = await saver.aget_tuple(config)
            chance, operations = rng.random(), operations + 1
            if found is None or chance < 0.2:
                version = saver.get_next_version(None, None)
                values = {"messages": ["x"] * rng.randrange(9), "number": rng.random()}
                versions: Any = dict.fromkeys(values, version)
                checkpoint = new_checkpoint(id=str(uuid6()), channel_values=values, channel_versions=versions)
                await saver.aput(found.config if found else config, checkpoint, {"step": 1}, versions)
            elif chance < 0.4:
                channel = rng.choice(["messages", "__resume__", "__error__"])
                await saver.aput_writes(found.config, [(channel, rng.random())], f"task {rng.randrange(3)}")
            elif chance < 0.42:
                await saver.adelete_thread(config["configurable"]["thread_id"])
            await asyncio.sleep(0)

    seeded = await cached(tiers.saver, *(f"seeded {number}" for number in range(5)))
    savers = [tiers.another_saver() for _ in range(2)]
    load = asyncio.gather(*(work(saver) for saver in savers * (WORKERS // 2)))
    compared = 0
    try:
        for _ in range(8):
            code, reply = await ask_cli("verify")
            assert (code, reply["findings"]) == (0, []), reply
            compared += reply["counts"]["same"]
        for conversation in seeded[:3]:
            await write_past(tiers, conversation)
        code, reply = await ask_cli("verify", "--repair")
        assert code == 1
        assert sorted(each["thread_id"] for each in reply["findings"]) == ["seeded 0", "seeded 1", "seeded 2"]
        code, reply = await ask_cli("verify")
        assert (code, reply["findings"]) == (0, []), reply
    finally:
        on = False
        await load
    for saver in savers:
        await saver.aclose()
    print(f"{operations} operations, {compared} entries compared meanwhile")
    assert operations > 100
    assert compared > 40
