"""`saver.stats()` over real servers: everything that happens is counted once, where it belongs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from langgraph_checkpoint_cached import SyncCachedPostgresSaver
from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.stores.redis.keys import namespace_key, thread_key
from langgraph_checkpoint_cached.telemetry import SCOPE, instrument
from tests.support.agreement import Tiers, eventually, new_checkpoint, on_thread
from tests.support.conversations import Conversation, open_saver
from tests.support.proxy import Proxy

pytestmark = pytest.mark.integration

READS = ("hit", "load", "bypass", "degraded")


def times(saver: Any) -> dict[str, int]:
    """Return the number of each that was timed; those with none are left out."""
    counts = {n.removesuffix("_count"): v for n, v in saver.stats().items() if n.endswith("_count") and v}
    assert all(saver.stats()[f"{name}_seconds"] > 0 for name in counts)
    return counts


async def test_each_call_is_timed_by_how_it_ended(tiers: Tiers) -> None:
    conversation = Conversation(tiers.saver)
    await conversation.turns(2)  # a put, its writes and a hit each; the entry begins with the first read, a load
    await conversation.check()
    assert times(tiers.saver).items() >= {"put": 2, "put_writes": 2, "get_load": 1, "get_hit": 2}.items()
    assert times(tiers.saver)["postgres_store"] == tiers.saver.stats()["groups"] == 4
    assert times(tiers.saver)["postgres_load"] == 1
    assert times(tiers.saver)["redis_exchange"] >= 8

    history = [found async for found in tiers.upstream.alist(conversation.config)]
    await tiers.saver.aget_tuple(history[-1].config)
    await tiers.saver.aget_tuple(history[0].config)
    assert (times(tiers.saver)["get_bypass"], times(tiers.saver)["get_hit"]) == (1, 3)
    counted = [tiers.saver.stats()[name] for name in ("hits", "loads", "bypasses")]
    assert counted == [times(tiers.saver)[f"get_{end}"] for end in READS[:3]]


async def test_writes_sharing_a_transaction_count_as_one_group(tiers: Tiers) -> None:
    await asyncio.gather(
        *(tiers.saver.aput(on_thread(f"t{i}", checkpoint_ns=""), new_checkpoint(), {}, {}) for i in range(20))
    )
    stats = tiers.saver.stats()
    assert stats["group_writes"] == stats["writes"] == 20
    assert 1 <= stats["groups"] < 20
    assert stats["writes_waiting"] == 0


async def test_writes_that_wait_are_seen(tiers: Tiers) -> None:
    puts = [tiers.saver.aput(on_thread(f"t{i}", checkpoint_ns=""), new_checkpoint(), {}, {}) for i in range(5)]
    tasks = [asyncio.ensure_future(put) for put in puts]
    await asyncio.sleep(0)
    assert tiers.saver.stats()["writes_waiting"] == 5
    await asyncio.gather(*tasks)
    assert tiers.saver.stats()["writes_waiting"] == 0


@pytest.mark.parametrize("finds", ["read", "by id", "write"])
@pytest.mark.parametrize("over", ["", "*"])
async def test_fences_past_their_deadline_are_counted_once(tiers: Tiers, finds: str, over: str) -> None:
    conversation = Conversation(tiers.saver)
    await conversation.turns(2)
    assert tiers.saver.stats()["fences_expired"] == 0
    name = over or namespace_key(tiers.prefix, Namespace("t")).rpartition(":")[2]
    expired = {f"f:{token}": f"1 owner {name}" for token in ("a", "b")}
    await tiers.redis.hset(thread_key(tiers.prefix, "t"), mapping=expired)
    if finds == "write":
        await conversation.turn()
    else:
        await tiers.saver.aget_tuple(conversation.config if finds == "read" else conversation.latest)
    await conversation.check()

    async def are_gone() -> bool:
        return await tiers.fences_left() == []

    await eventually(are_gone)
    assert tiers.saver.stats()["fences_expired"] == 2


async def test_breaker_and_stale_threads_show_while_redis_is_away(
    migrated_database_url: str, redis_url: str, redis_prefix: str, proxies: Callable[[str], Proxy]
) -> None:
    proxy = proxies(redis_url)
    async with open_saver(migrated_database_url, proxy.url, prefix=redis_prefix) as saver:
        conversation = Conversation(saver)
        await conversation.turns(1)
        assert saver.stats()["redis_usable"] == 1
        assert saver.stats()["breaker_openings"] == saver.stats()["unreported_stale_threads"] == 0
        proxy.stop()
        await conversation.turns(2)
        stats = saver.stats()
        assert (stats["redis_usable"], stats["breaker_openings"], stats["unreported_stale_threads"]) == (0, 1, 1)
        assert stats["get_degraded_count"] == stats["degraded_reads"] == 2


async def test_the_dict_and_opentelemetry_say_the_same_of_either_saver(
    tiers: Tiers, migrated_database_url: str, redis_url: str, redis_prefix: str
) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])

    def in_a_script() -> Any:
        with SyncCachedPostgresSaver.from_conn_string(
            migrated_database_url, redis_url, prefix=redis_prefix, check_hits=1
        ) as saver:
            instrument(saver, provider, {"saver": "sync"})
            saver.put(on_thread("s", checkpoint_ns=""), new_checkpoint(), {}, {})
            assert saver.get_tuple(on_thread("s")) == saver.get_tuple(on_thread("s"))
            return saver.stats(), points()

    def points() -> dict[tuple[str, str], float]:
        data = reader.get_metrics_data()
        assert data is not None
        return {
            (p.attributes["saver"], m.name.removeprefix(f"{SCOPE}.")): p.value
            for m in data.resource_metrics[0].scope_metrics[0].metrics
            for p in m.data.data_points
        }

    conversation = Conversation(tiers.saver)
    instrument(tiers.saver, provider, {"saver": "async"})
    await conversation.turns(2)
    (stats, found) = await asyncio.to_thread(in_a_script)
    for label, expected in (("sync", stats), ("async", tiers.saver.stats())):
        for name in ("hits", "loads", "writes", "entry_updates", "groups", "redis_usable", "disagreements"):
            assert found[label, name] == expected[name]
        assert found[label, "group.writes"] == expected["group_writes"]
    assert stats["hits"] > 0
    provider.shutdown()
