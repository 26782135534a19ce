"""Bugs that mixed threads up: their keys, and their replies. The table is in `test_field_notes.py`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from redis.asyncio import Redis
from redis.crc import key_slot

from langgraph_checkpoint_cached import CachedPostgresSaver
from tests.support.agreement import Tiers, eventually, new_checkpoint, new_saver, on_thread
from tests.support.proxy import Proxy

pytestmark = pytest.mark.integration

THREAD_IDS = [
    "a",
    "A",
    "a:b",
    "a*",
    "a?",
    "[a]",
    "{x}",
    "x",
    "a}b",
    "{a",
    "a%2Ab",
    "a ",
    "",
    "a\nb",
    "ü",
    "u\u0308",
    "日本語",
    "🙂",
    "a" * 3000,
    "a" * 3000 + "b",
    "!" + "a" * 40,
    "cached:a",
    "a:thread",
    "a}:ns:",
]
NAMESPACES = ["", "__empty__", "*", "a", "a:b", "a|b:c", "thread", "{}", "n" * 1000]


async def put(saver: Any, thread_id: str, checkpoint_ns: str = "") -> None:
    """Stores a checkpoint that says whose it is, and a pending write that does too."""
    config = on_thread(thread_id, checkpoint_ns=checkpoint_ns)
    await saver.aget_tuple(config)
    version = saver.get_next_version(None, None)
    checkpoint = new_checkpoint(
        channel_values={"whose": [thread_id, checkpoint_ns]}, channel_versions={"whose": version}
    )
    stored = await saver.aput(config, checkpoint, {"source": "loop"}, {"whose": version})
    await saver.aput_writes(stored, [("whose", [thread_id, checkpoint_ns])], "task")


async def whose(saver: Any, thread_id: str, checkpoint_ns: str = "") -> Any:
    """Return the value of the thread, or None if it is not there."""
    found = await saver.aget_tuple(on_thread(thread_id, checkpoint_ns=checkpoint_ns))
    if found is None:
        return None
    assert found.pending_writes == [("task", "whose", found.checkpoint["channel_values"]["whose"])]
    return found.checkpoint["channel_values"]["whose"]


@pytest.mark.parametrize("change", ["delete", "prune"])
async def test_deleting_a_thread_touches_no_other(tiers: Tiers, change: str) -> None:
    """langchain-aws#877: the id was taken for a pattern or a prefix."""
    gone: set[str] = set()
    for thread_id in THREAD_IDS:
        await put(tiers.saver, thread_id)
    for deleted in THREAD_IDS[::2]:
        if change == "delete":
            await tiers.saver.adelete_thread(deleted)
        else:
            await tiers.saver.aprune([deleted], strategy="delete")
        gone.add(deleted)
        hits = tiers.saver.stats()["hits"]
        for thread_id in THREAD_IDS:
            expected = None if thread_id in gone else [thread_id, ""]
            assert await whose(tiers.saver, thread_id) == expected, f"{thread_id!r} after deleting {deleted!r}"
        assert tiers.saver.stats()["hits"] == hits + len(THREAD_IDS) - 1, "the others are served from Redis still"
    for thread_id in THREAD_IDS:
        assert await whose(tiers.upstream, thread_id) == (None if thread_id in gone else [thread_id, ""])


async def test_deleting_a_thread_deletes_all_its_namespaces(tiers: Tiers) -> None:
    """langgraph-redis#104, #59: namespace "" was stored under another name, and not found again."""
    for thread_id in ("a", "b"):
        for checkpoint_ns in NAMESPACES:
            await put(tiers.saver, thread_id, checkpoint_ns)
    hits = tiers.saver.stats()["hits"]
    for checkpoint_ns in NAMESPACES:
        assert await whose(tiers.saver, "a", checkpoint_ns) == ["a", checkpoint_ns]
    assert tiers.saver.stats()["hits"] == hits + len(NAMESPACES)
    await tiers.saver.adelete_thread("a")
    for checkpoint_ns in NAMESPACES:
        assert await whose(tiers.saver, "a", checkpoint_ns) is None
        assert await whose(tiers.saver, "b", checkpoint_ns) == ["b", checkpoint_ns]
        await put(tiers.saver, "a", checkpoint_ns)
        assert await whose(tiers.saver, "a", checkpoint_ns) == ["a", checkpoint_ns]


async def test_all_keys_of_a_thread_are_in_one_slot_of_a_cluster(tiers: Tiers) -> None:
    """langchain-aws#809, langgraph-redis#25: CROSSSLOT."""
    slots = set()
    for number, thread_id in enumerate(THREAD_IDS):
        before = set(await tiers.keys())
        for checkpoint_ns in NAMESPACES:
            await put(tiers.saver, thread_id, checkpoint_ns)
        new = set(await tiers.keys()) - before
        kinds = {"thread", "ns", "names"}  # its own, one for each namespace, and their names
        assert len(new) == len(NAMESPACES) + 2, f"{thread_id!r}, number {number}"
        assert {kind for key in new for kind in key.decode().split(":") if kind in kinds} == kinds
        slots_of_this = {key_slot(key) for key in new}
        assert len(slots_of_this) == 1, f"{thread_id!r}: {new}"
        slots |= slots_of_this
    assert len(slots) > len(THREAD_IDS) / 2, "threads are spread over the slots"


async def test_services_with_prefixes_of_their_own_share_nothing(
    tiers: Tiers, database_url: str, redis_prefix: str
) -> None:
    """langgraph-redis#187: the pointers to the latest were shared."""
    await put(tiers.saver, "t")
    async with AsyncPostgresSaver.from_conn_string(database_url) as upstream:
        await upstream.setup()
        others = [new_saver(tiers.redis, upstream, f"{redis_prefix}{more}") for more in (":", ":x", "*", "?", "0")]
        for other in others:
            assert await whose(other, "t") is None
            await other.adelete_thread("t")
        hits = tiers.saver.stats()["hits"]
        assert await whose(tiers.saver, "t") == ["t", ""]
        assert tiers.saver.stats()["hits"] == hits + 1


async def test_an_entry_under_another_threads_key_is_not_served(tiers: Tiers) -> None:
    """langgraph#9004: ciphertext of one thread was accepted for another."""
    await put(tiers.saver, "mine")
    await put(tiers.saver, "theirs")
    keys = {key.split(b"{")[1].split(b"}")[0]: key for key in await tiers.keys() if b":ns:" in key}
    own = await tiers.redis.hgetall(keys[b"mine"])
    foreign = await tiers.redis.hgetall(keys[b"theirs"])
    await tiers.redis.hset(keys[b"mine"], mapping={**foreign, b"g": own[b"g"]})
    assert await whose(tiers.saver, "mine") == ["mine", ""]
    assert tiers.saver.stats()["damaged"] == 1
    assert await whose(tiers.saver, "mine") == ["mine", ""]
    assert tiers.saver.stats()["damaged"] == 1, "it was dropped"


@pytest.fixture
async def behind_proxy(
    tiers: Tiers, proxies: Callable[[str], Proxy]
) -> AsyncIterator[tuple[Proxy, CachedPostgresSaver]]:
    """A saver whose one connection to Redis can be made to stall."""
    proxy = proxies(tiers.redis_url)
    async with Redis.from_url(proxy.url, single_connection_client=False, max_connections=1) as redis:
        saver = CachedPostgresSaver(redis, tiers.upstream, prefix=tiers.prefix, redis_timeout=2)
        yield proxy, saver
        proxy.hear()
        await saver.aclose()


@pytest.mark.parametrize("stall", ["mute", "deafen"])
async def test_a_read_that_was_cancelled_leaves_no_reply_for_the_next(
    tiers: Tiers, behind_proxy: tuple[Proxy, CachedPostgresSaver], stall: str
) -> None:
    """redis-py#2624, #2665: the next caller was given another user's data."""
    proxy, saver = behind_proxy
    users = [f"user {number}" for number in range(8)]
    for user in users:
        await put(tiers.saver, user)
        await whose(tiers.saver, user)  # ends the fence that stands for the next write of the run
    for user, other in zip(users, reversed(users), strict=True):
        assert await whose(saver, user) == [user, ""]
        getattr(proxy, stall)()
        read = asyncio.create_task(saver.aget_tuple(on_thread(user)))
        for _ in range(50):  # enough for the request to be sent
            await asyncio.sleep(0)
        read.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await read
        proxy.hear()
        assert await whose(saver, other) == [other, ""]
        assert await whose(saver, user) == [user, ""]
    assert saver.stats()["damaged"] == 0
    assert saver.stats()["hits"] > 0


@pytest.mark.slow
async def test_reads_that_time_out_leave_no_reply_for_the_next(
    tiers: Tiers, proxies: Callable[[str], Proxy]
) -> None:
    proxy = proxies(tiers.redis_url)
    users = [f"user {number}" for number in range(4)]
    for user in users:
        await put(tiers.saver, user)
    async with Redis.from_url(proxy.url) as redis:
        for user, other in zip(users, reversed(users), strict=True):
            saver = CachedPostgresSaver(redis, tiers.upstream, prefix=tiers.prefix, redis_timeout=0.5)
            assert await whose(saver, user) == [user, ""]
            proxy.mute()
            assert await whose(saver, user) == [user, ""], "from Postgres"
            assert saver.stats()["degraded_reads"] == 1
            proxy.hear()
            fresh = new_saver(redis, tiers.upstream, tiers.prefix)

            async def is_served(fresh: CachedPostgresSaver = fresh, other: str = other) -> bool:
                assert await whose(fresh, other) == [other, ""]
                return fresh.stats()["hits"] == 1

            await eventually(is_served)  # while another process lacks Redis, it is announced for a second first
            await saver.aclose()
