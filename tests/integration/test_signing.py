"""Savers with keys: the same answers, and nothing decoded that was not signed for just that place."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from redis.asyncio import Redis

from langgraph_checkpoint_cached import CachedPostgresSaver, IntentCache
from langgraph_checkpoint_cached.records import Latest, Namespace
from langgraph_checkpoint_cached.stores.redis import entry_format
from langgraph_checkpoint_cached.stores.redis.integrity import CHECKSUMS, Integrity, integrity_for
from langgraph_checkpoint_cached.stores.redis.keys import namespace_key
from tests.support.agreement import CACHED, PATIENT_SECONDS, Tiers, new_checkpoint, on_thread
from tests.support.inspect import inspect, pack_versions

pytestmark = pytest.mark.integration

OLD, NEW, FOREIGN = "the key until now", b"the key from now on", "a key of somebody else"
FORGED = ("msgpack", b"\xa6forged")


class Recorder(JsonPlusSerializer):
    """Notes what it is given to decode."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[bytes] = []

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        self.loaded.append(bytes(data[1]))
        return super().loads_typed(data)


def saver_of(tiers: Tiers, *keys: Any, serde: Any = None) -> CachedPostgresSaver:
    return CachedPostgresSaver(
        tiers.redis,
        tiers.upstream,
        prefix=tiers.prefix,
        redis_timeout=PATIENT_SECONDS,
        signing_keys=keys or None,
        serde=serde,
    )


async def talk(saver: CachedPostgresSaver, thread_id: str, turns: int = 2) -> Any:
    """Some turns, so that entries are both filled and advanced, and one value is kept from the first."""
    config: Any = on_thread(thread_id, checkpoint_ns="")
    version = kept = saver.get_next_version(None, None)
    for turn in range(turns):
        version = saver.get_next_version(version, None) if turn else version
        checkpoint = new_checkpoint(
            channel_values={"messages": [thread_id, turn], "kept": [thread_id]},
            channel_versions={"messages": version, "kept": kept},
        )
        new = {"messages": version} if turn else {"messages": version, "kept": kept}
        config = await saver.aput(config, checkpoint, {"step": turn}, new)  # type: ignore[arg-type]
        await saver.aput_writes(config, [("messages", [turn]), ("kept", [turn])], "task", "a path")
        await saver.aget_tuple(on_thread(thread_id))
    return config


async def assert_hit(saver: CachedPostgresSaver, tiers: Tiers, thread_id: str = CACHED) -> None:
    hits = saver.stats()["hits"]
    assert await saver.aget_tuple(on_thread(thread_id)) == await tiers.upstream.aget_tuple(on_thread(thread_id))
    assert saver.stats()["hits"] == hits + 1, saver.stats()


async def assert_refused(saver: CachedPostgresSaver, tiers: Tiers, thread_id: str = CACHED) -> None:
    """Answered by Postgres, and the entry is gone."""
    before = saver.stats()
    assert await saver.aget_tuple(on_thread(thread_id)) == await tiers.upstream.aget_tuple(on_thread(thread_id))
    after = saver.stats()
    assert (after["hits"], after["damaged"]) == (before["hits"], before["damaged"] + 1)
    assert not await tiers.redis.exists(key_of(tiers, thread_id))


def key_of(tiers: Tiers, thread_id: str = CACHED) -> str:
    return namespace_key(tiers.prefix, Namespace(thread_id))


async def fields_of(tiers: Tiers, thread_id: str = CACHED) -> dict[bytes, bytes]:
    return await tiers.redis.hgetall(key_of(tiers, thread_id))  # type: ignore[misc,no-any-return]


@pytest.mark.parametrize("how", ["advanced", "filled"])
async def test_signed_entries_are_served_to_who_has_the_key(tiers: Tiers, how: str) -> None:
    saver, other = saver_of(tiers, NEW, OLD), saver_of(tiers, OLD, NEW)
    await talk(saver, CACHED)
    if how == "filled":
        await tiers.redis.delete(key_of(tiers))
        await saver.aget_tuple(on_thread(CACHED))
    for reader in (saver, other):
        await assert_hit(reader, tiers)
        assert reader.stats()["damaged"] == 0
    assert saver.stats()["entry_updates"] > 0


@pytest.mark.parametrize(
    ("writes", "reads"), [((), (NEW,)), ((NEW,), ()), ((FOREIGN,), (NEW,)), ((NEW, OLD), (OLD,))]
)
async def test_saver_without_the_key_drops_entry_and_reads_postgres(
    tiers: Tiers, writes: tuple[Any, ...], reads: tuple[Any, ...], caplog: pytest.LogCaptureFixture
) -> None:
    writer, reader = saver_of(tiers, *writes), saver_of(tiers, *reads)
    for turn in range(3):
        await talk(writer, CACHED)
        await assert_refused(reader, tiers)
        await reader.aget_tuple(on_thread(CACHED))
        await assert_hit(reader, tiers)
        assert turn or reader.stats()["damaged"] == 1
    assert [record.getMessage()[:7] for record in caplog.records].count("dropped") == 1  # in a minute


@pytest.mark.parametrize("keys", [(), (NEW,)])
async def test_no_part_of_another_place_or_version_is_taken(tiers: Tiers, keys: tuple[Any, ...]) -> None:
    saver = saver_of(tiers, *keys)
    await talk(saver, CACHED)
    await talk(saver, f"{CACHED}-other")
    theirs = await fields_of(tiers, f"{CACHED}-other")
    old = await fields_of(tiers)
    await talk(saver, CACHED, turns=3)
    now = await fields_of(tiers)
    parts = [field for field in now if field[:1] in b"hcw"]
    assert len(parts) == 5
    swaps = [(b"h", old[b"h"]), (b"h", theirs[b"h"])]
    swaps += [(field, (old if field in old else theirs)[field]) for field in (b"c:messages", b"c:kept")]
    swaps += [(field, theirs[field]) for field in (b"c:messages", b"c:kept")]
    swaps += [
        (field, value) for field in parts if field[:2] == b"w:" for f, value in old.items() if f[:2] == b"w:"
    ]
    swaps += [(b"c:messages", now[b"c:kept"])]
    for field, value in swaps:
        assert value != now[field]
        await tiers.redis.hset(key_of(tiers), field, value)  # type: ignore[arg-type,misc]
        await assert_refused(saver, tiers)
        await saver.aget_tuple(on_thread(CACHED))
    await tiers.redis.hdel(key_of(tiers), "c:kept")  # type: ignore[misc]
    await assert_refused(saver, tiers)


@pytest.mark.parametrize("forger", [CHECKSUMS, integrity_for([FOREIGN.encode()])])
async def test_nothing_that_a_stranger_wrote_is_decoded(tiers: Tiers, forger: Integrity) -> None:
    """The stranger knows all of this package, and the state of the thread, but no key."""
    serde = Recorder()
    saver = saver_of(tiers, NEW, serde=serde)
    await talk(saver, CACHED)
    namespace = Namespace(CACHED)
    record = (await inspect(saver).store.latest(namespace)).record
    assert record is not None
    values = tuple(value._replace(type=FORGED[0], blob=FORGED[1]) for value in record.values)
    writes = tuple(write._replace(type=FORGED[0], blob=FORGED[1]) for write in record.writes)
    forged = type(record)(**{**_fields(record), "values": values, "writes": writes})
    fields = entry_format.entry_fields(namespace, Latest(forged), forger)
    parts = {k if isinstance(k, bytes) else k.encode(): v for k, v in zip(fields[::2], fields[1::2], strict=True)}
    protected = [field for field in parts if field[:1] in b"hcw"]
    for replaced in ([field] for field in protected):
        await _put_there(tiers, {field: parts[field] for field in replaced})
        await assert_refused(saver, tiers)
        await saver.aget_tuple(on_thread(CACHED))
    await _put_there(tiers, parts)
    await assert_refused(saver, tiers)
    assert serde.loaded
    assert FORGED[1] not in serde.loaded
    # The test can fail: who has the key is believed.
    genuine = entry_format.entry_fields(namespace, Latest(forged), integrity_for([NEW]))
    await saver.aget_tuple(on_thread(CACHED))
    await _put_there(tiers, dict(zip(genuine[::2], genuine[1::2], strict=True)))
    await saver.aget_tuple(on_thread(CACHED))
    assert FORGED[1] in serde.loaded


def _fields(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


async def _put_there(tiers: Tiers, fields: dict[Any, Any]) -> None:
    await tiers.redis.hset(key_of(tiers), mapping=fields)  # type: ignore[misc]


async def test_tampered_channel_map_leaves_no_old_value(tiers: Tiers) -> None:
    """The map steers the script of the next put: told that a version is unchanged, that keeps the value it has."""
    saver = saver_of(tiers, NEW)
    config = await talk(saver, CACHED)
    held = (await tiers.upstream.aget_tuple(config)).checkpoint["channel_versions"]  # type: ignore[union-attr]
    version = saver.get_next_version(held["messages"], None)  # type: ignore[arg-type]
    lie = pack_versions({**held, "messages": version})
    await tiers.redis.hset(key_of(tiers), "v", lie)  # type: ignore[arg-type,misc]
    checkpoint = new_checkpoint(channel_values={"kept": [CACHED]}, channel_versions={**held, "messages": version})
    await saver.aput(config, checkpoint, {}, {"messages": version})
    assert b"c:messages" in await fields_of(tiers)
    await assert_refused(saver, tiers)


async def test_keys_show_in_nothing_of_a_saver(tiers: Tiers, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    key = "canary canary canary"
    saver = saver_of(tiers, key)
    await talk(saver, CACHED)
    await _put_there(tiers, {"h": b"junk"})
    await assert_refused(saver, tiers)
    seen = [repr(saver), repr(vars(saver)), *(record.getMessage() for record in caplog.records)]
    seen += [
        repr(vars(part))
        for part in (inspect(saver).read_path, inspect(saver).write_through, inspect(saver).entries)
    ]
    seen += [repr(await fields_of(tiers)), repr(await tiers.keys())]
    assert not [text for text in seen if "canary" in text]
    with pytest.raises(TypeError):
        pickle.dumps(saver)


async def test_answers_of_intent_cache_are_signed_for_their_message(redis: Redis, redis_prefix: str) -> None:
    asked: list[str] = []

    async def classify(message: str) -> str:
        asked.append(message)
        return f"intent of {message}"

    async def answers(cache: IntentCache[str], *messages: str) -> list[str]:
        """Asked for, of these."""
        asked.clear()
        for message in messages:
            assert await cache.get_or_classify(message, classify) == f"intent of {message}"
        return list(asked)

    def cache_with(*keys: Any) -> IntentCache[str]:
        return IntentCache(redis, prefix=redis_prefix, signing_keys=keys or None)

    cache = cache_with(NEW)
    assert await answers(cache, "a", "b") == ["a", "b"]
    assert await answers(cache_with(OLD, NEW), "a", "b") == []
    one, two = sorted([key async for key in redis.scan_iter(match=f"{redis_prefix}*")])
    await redis.copy(one, two, replace=True)
    assert len(await answers(cache, "a", "b")) == 1
    assert await answers(cache, "a", "b") == []
    await redis.set(one, b"\xa6forged")
    assert len(await answers(cache, "a", "b")) == 1
    assert await answers(cache_with(FOREIGN), "a", "b") == ["a", "b"]
    assert await answers(cache, "a", "b") == ["a", "b"]
