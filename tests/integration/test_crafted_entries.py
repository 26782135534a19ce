"""Entries that somebody made, with checksums as they should be: a miss, and Postgres' answer."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from langgraph_checkpoint_cached import BehindError
from langgraph_checkpoint_cached.records import Namespace, Write
from langgraph_checkpoint_cached.stores.redis.delta_history_format import HISTORY
from langgraph_checkpoint_cached.stores.redis.entry_format import encode_write, pack
from langgraph_checkpoint_cached.stores.redis.integrity import CHECKSUMS
from langgraph_checkpoint_cached.stores.redis.keys import journal_key, namespace_key, thread_key
from tests.support.agreement import Tiers, new_checkpoint, on_thread
from tests.support.conversations import open_saver
from tests.support.inspect import inspect

pytestmark = pytest.mark.integration

NAMESPACE = Namespace("t", "")
SCOPE = CHECKSUMS.scopes[NAMESPACE]
VALUES: dict[str, Any] = {
    "unknown type": ("nope", b""),
    "no text for a type": (5, b""),
    "nothing": (None, None),
    "damaged": ("msgpack", b"\xc1"),
    "deep": ("msgpack", b"\x91" * 100_000),
    "deep json": ("json", b"[" * 100_000),
    "not bytes": ("msgpack", 5),
}


async def put(tiers: Tiers) -> Any:
    version = tiers.saver.get_next_version(None, None)
    checkpoint = new_checkpoint(channel_values={"a": ["kept"]}, channel_versions={"a": version})
    config = on_thread("t", checkpoint_ns="")
    config = await tiers.saver.aput(config, checkpoint, {"step": 1}, {"a": version})
    await tiers.saver.aput_writes(config, [("a", "written")], "task")
    assert await tiers.saver.aget_tuple(on_thread("t")) is not None
    return config, version


@pytest.mark.parametrize("part", ["value", "write"])
@pytest.mark.parametrize("crafted", VALUES)
@pytest.mark.parametrize("by_id", [False, True])
async def test_crafted_value_is_a_miss(tiers: Tiers, crafted: str, part: str, by_id: bool) -> None:
    config, version = await put(tiers)
    expected = await tiers.upstream.aget_tuple(config)
    key = namespace_key(tiers.prefix, NAMESPACE)
    kind, blob = VALUES[crafted]
    if part == "value":
        await tiers.redis.hset(key, b"c:a", pack(SCOPE, (kind, blob), b"c:a\xff" + version.encode()))  # type: ignore[misc]
    else:
        write = Write(config["configurable"]["checkpoint_id"], "task", 0, "a", kind, blob, "")
        await tiers.redis.hset(key, *encode_write(SCOPE, write))  # type: ignore[misc]
    damaged = tiers.saver.stats()["damaged"]
    for _ in range(2):
        assert await tiers.saver.aget_tuple(config if by_id else on_thread("t")) == expected
    assert tiers.saver.stats()["damaged"] == damaged + 1


@pytest.mark.parametrize("metadata", [b"[" * 100_000, b"{", b"", 5, None])
async def test_crafted_metadata_is_a_miss(tiers: Tiers, metadata: Any) -> None:
    config, _ = await put(tiers)
    expected = await tiers.upstream.aget_tuple(config)
    text = b'{"v":4,"channel_versions":{}}'
    head = pack(SCOPE, (*NAMESPACE, config["configurable"]["checkpoint_id"], None, text, metadata, []), b"h")
    key = namespace_key(tiers.prefix, NAMESPACE)
    await tiers.redis.hdel(key, "c:a")  # type: ignore[misc]
    await tiers.redis.hset(key, "h", head)  # type: ignore[misc]
    assert await tiers.saver.aget_tuple(on_thread("t")) == expected


async def test_crafted_history_is_a_miss(tiers: Tiers) -> None:
    config, _ = await put(tiers)
    child = await tiers.saver.aput(config, new_checkpoint(), {}, {})
    await tiers.saver.aget_tuple(on_thread("t"))
    expected = await tiers.upstream.aget_delta_channel_history(config=child, channels=["a"])
    await tiers.saver.aget_delta_channel_history(config=child, channels=["a"])
    key = namespace_key(tiers.prefix, NAMESPACE)
    child_id = child["configurable"]["checkpoint_id"]
    history = pack(SCOPE, (child_id, {"a": (("nope", b""), [("task", "nope", b"")])}), HISTORY)
    await tiers.redis.hset(key, mapping={"d": history, "dc": b"\x91\xa1a", "p": f"0\0{child_id}"})  # type: ignore[misc]
    for _ in range(2):
        assert await tiers.saver.aget_delta_channel_history(config=child, channels=["a"]) == expected
    assert tiers.saver.stats()["damaged"] == 1


async def test_undecodable_value_of_postgres_is_no_damage(tiers: Tiers) -> None:
    """The error is the upstream saver's, and the entry stays, if Postgres holds the same bytes."""
    await put(tiers)
    async with tiers.pool.connection() as conn:
        await conn.execute("update checkpoint_blobs set type = 'nope'")
    await inspect(tiers.saver).entries.discard(NAMESPACE)
    for _ in range(3):
        with pytest.raises(NotImplementedError):
            await tiers.saver.aget_tuple(on_thread("t"))
    assert tiers.saver.stats()["damaged"] == 0


async def test_crafted_journal_is_not_replayed(
    migrated_database_url: str, redis_url: str, redis_prefix: str, redis: Redis
) -> None:
    """An error of this package tells readers that what Redis holds cannot be read."""
    async with (
        open_saver(migrated_database_url, redis_url, prefix=redis_prefix, mode="write_behind") as behind,
        open_saver(migrated_database_url, redis_url, prefix=redis_prefix) as other,
    ):
        await behind.setup()
        with inspect(behind).flushing_paused():
            config = on_thread("t", checkpoint_ns="")
            for _ in range(2):
                await behind.aget_tuple(on_thread("t"))
                config = await behind.aput(config, new_checkpoint(), {}, {})
            assert behind.stats()["appends"] >= 1
            thread, journal = thread_key(redis_prefix, "t"), journal_key(redis_prefix, "t")
            epoch, token, last = (await redis.hget(thread, "l")).split()  # type: ignore[misc]
            number = int(last) + 1
            await redis.hset(thread, "l", b"%b %b %d" % (epoch, token, number))  # type: ignore[misc]
            for fields in ({"n": b"p\xff"}, {"x": ""}, {"n": "pinner", "a": "1"}):
                await redis.xadd(journal, {"t": token, **fields}, f"{number}-0")
                with pytest.raises(BehindError, match="cannot be read"):
                    await other.aflush("t")
                await redis.xdel(journal, f"{number}-0")
                await redis.execute_command("XSETID", journal, f"{number - 1}-0")
            await redis.hset(thread, "l", b"%b %b %d" % (epoch, token, number - 1))  # type: ignore[misc]
