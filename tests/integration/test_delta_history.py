"""Histories of `DeltaChannel`s out of Redis: what the upstream saver says, without a query."""

from __future__ import annotations

import asyncio
import random
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.graph import START, StateGraph
from psycopg import AsyncCursor

from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.stores.postgres import leases
from langgraph_checkpoint_cached.stores.postgres.control_connection import SET_SESSION_LOCK_TIMEOUT
from langgraph_checkpoint_cached.stores.postgres.own_table import SET_LOCK_TIMEOUT
from langgraph_checkpoint_cached.stores.postgres.pool import BACKEND_PID
from langgraph_checkpoint_cached.stores.redis import delta_history_format as pure
from langgraph_checkpoint_cached.stores.redis.keys import namespace_key
from tests.integration.test_prune_deltas import graph_of, turn
from tests.support.agreement import CACHED, Tiers, new_checkpoint, on_thread
from tests.support.inspect import inspect

pytestmark = pytest.mark.integration


@pytest.fixture
def queries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Those of this process that read, but for heartbeats and a look at the table of leases now and then."""
    found: list[str] = []
    execute = AsyncCursor.execute

    async def counted(self: Any, query: Any, *args: Any, **options: Any) -> Any:
        text = str(query)
        looks = text in (leases.PAGE_OF_IDLE, BACKEND_PID) or "checkpoint_cache_processes" in text
        looks |= text in (SET_LOCK_TIMEOUT, SET_SESSION_LOCK_TIMEOUT) or "as version" in text
        writes = "INSERT" in text or "as guarded" in text
        if "select" in text.lower() and not looks and not writes:
            found.append(text)
        return await execute(self, query, *args, **options)

    monkeypatch.setattr(AsyncCursor, "execute", counted)
    return found


class Log(TypedDict):
    lines: Annotated[list[str], DeltaChannel(lambda lines, new: lines + [x for n in new for x in n])]
    turn: int


def chat_of(saver: Any) -> Any:
    builder = StateGraph(Log)
    builder.add_node("say", lambda s: {"lines": [f"turn {s['turn']}"]})
    builder.add_node("echo", lambda s: {"lines": [f"{s['lines'][-1]}, echoed"]})
    builder.add_edge(START, "say")
    builder.add_edge("say", "echo")
    return builder.compile(checkpointer=saver)


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_a_warm_resume_costs_no_query(tiers: Tiers, queries: list[str], durability: Any) -> None:
    graph = chat_of(tiers.saver)
    config = on_thread(CACHED)
    for number in range(3):
        await graph.ainvoke({"turn": number, "lines": []}, config, durability=durability)
    for number in range(3, 12):
        queries.clear()
        result = await graph.ainvoke({"turn": number, "lines": []}, config, durability=durability)
        assert queries == []
        assert len(result["lines"]) == 2 * (number + 1)
    queries.clear()
    assert (await graph.aget_state(config)).values == result
    assert queries == []
    other = tiers.another_saver()
    assert (await chat_of(other).aget_state(config)).values == result
    assert queries == [], "another process has it too"
    assert other.stats()["history_hits"] == 1
    assert tiers.saver.stats()["history_loads"] <= 2
    assert (await chat_of(tiers.upstream).aget_state(config)).values == result
    await tiers.assert_agree()


async def compare(tiers: Tiers, config: Any, channels: list[str]) -> Any:
    """Compare both savers' answers for the latest checkpoint, and those of two more of ours."""
    found = await tiers.upstream.aget_tuple(config)
    if found is None:
        return None
    expected = await tiers.upstream.aget_delta_channel_history(config=found.config, channels=channels)
    for saver in (tiers.saver, tiers.another_saver()):
        assert await saver.aget_tuple(config) == found
        for _ in range(2):
            assert await saver.aget_delta_channel_history(config=found.config, channels=channels) == expected
    return expected


@pytest.mark.slow
async def test_snapshots_interrupts_overwrites_updates_match(tiers: Tiers) -> None:
    graph = graph_of(tiers.saver)
    for number in range(14):
        await turn(graph, CACHED, number, "async")
        await compare(tiers, on_thread(CACHED), ["often", "seldom", "never", "unused", "trail"])
        await compare(tiers, on_thread(CACHED), ["never"])
        await compare(tiers, on_thread(CACHED, checkpoint_ns="inner"), ["notes"])
    assert tiers.saver.stats()["history_hits"] > tiers.saver.stats()["history_loads"] / 2
    await tiers.assert_agree()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
async def test_history_of_random_writes_is_upstream_s(tiers: Tiers, seed: int) -> None:
    """By two processes: children, forks, late checkpoints, late writes, snapshots, other values, deletes."""
    chance = random.Random(seed)
    config: Any = on_thread(CACHED, checkpoint_ns="")
    savers = [tiers.saver, tiers.another_saver()]
    puts: list[Any] = []
    for step in range(50):
        saver = chance.choice(savers)
        what = chance.choice(
            ["child"] * 6 + ["writes"] * 6 + ["late writes", "fork", "late", "again", "prune", "delete"]
        )
        latest = max(puts, key=lambda put: put["id"], default=None)
        if what in ("child", "fork", "late"):
            parent = latest if what != "fork" else chance.choice(puts or [None])
            versions = dict(parent["channel_versions"]) if parent else {}
            values: dict[str, Any] = {}
            new = {}
            for channel in ("a", "b", "c"):
                if chance.random() < 0.6:
                    versions[channel] = new[channel] = saver.get_next_version(versions.get(channel), None)
                    if chance.random() < 0.15:
                        kind = chance.randrange(4)
                        values[channel] = [_DeltaSnapshot([step]), [step], step, None][kind]
            checkpoint = new_checkpoint(id=str(uuid6()), channel_values=values, channel_versions=versions)
            if what == "late":
                checkpoint["id"] = checkpoint["id"][:14] + "6000" + checkpoint["id"][18:]
            where = on_thread(CACHED, checkpoint_ns="", **({"checkpoint_id": parent["id"]} if parent else {}))
            await saver.aput(where, checkpoint, {}, new)
            puts.append(checkpoint)
        elif what == "again" and puts:
            again = chance.choice(puts)
            await saver.aput(config, {**again, "channel_values": {"a": step}}, {}, {})
        elif what in ("writes", "late writes") and puts:
            at = latest if what == "writes" else chance.choice(puts)
            channels = chance.sample(["a", "b", "c", "other"], 2)
            await saver.aput_writes(
                on_thread(CACHED, checkpoint_ns="", checkpoint_id=at["id"]),
                [(channel, [step, channel]) for channel in channels],
                f"task {chance.randrange(3)}",
                chance.choice(["", "~x", "path"]),
            )
        elif what == "prune" and puts:
            await saver.aprune([CACHED])
        elif what == "delete" and chance.random() < 0.3:
            await saver.adelete_thread(CACHED)
            puts.clear()
        if chance.random() < 0.6:
            assert await tiers.fences_left() == []
            await compare(tiers, config, chance.choice([["a"], ["a", "b"], ["a", "b", "c"]]))
    await compare(tiers, config, ["a", "b", "c"])
    assert tiers.saver.stats()["history_hits"] > 0
    assert tiers.saver.stats()["damaged"] == 0


async def put_chain(saver: Any, count: int, size: int = 1) -> Any:
    """Checkpoints, each with a write to `a`. The config of the last."""
    config: Any = on_thread(CACHED, checkpoint_ns="")
    version = None
    for number in range(count):
        version = saver.get_next_version(version, None)
        await saver.aget_tuple(on_thread(CACHED))
        config = await saver.aput(config, new_checkpoint(channel_versions={"a": version}), {}, {"a": version})
        await saver.aput_writes(config, [("a", ["x" * size, number])], "task")
    return config


async def child(saver: Any, config: Any, **values: Any) -> Any:
    version = saver.get_next_version(None, None)
    new = dict.fromkeys(values, version)
    checkpoint = new_checkpoint(channel_values=values, channel_versions={"a": version, **new})
    return await saver.aput(config, checkpoint, {}, {"a": version, **new})


async def warm(tiers: Tiers, config: Any) -> None:
    await compare(tiers, on_thread(CACHED), ["a"])
    hits = tiers.saver.stats()["history_hits"]
    await tiers.saver.aget_delta_channel_history(config=config, channels=["a"])
    assert tiers.saver.stats()["history_hits"] == hits + 1


async def test_history_loaded_during_write_is_not_cached(tiers: Tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    config = await put_chain(tiers.saver, 3)
    parent = (await tiers.upstream.aget_tuple(config)).parent_config  # type: ignore[union-attr]
    other, load = tiers.another_saver(), inspect(tiers.saver).store.histories

    async def load_then_write(*args: Any) -> Any:
        found = await load(*args)
        await other.aput_writes(parent, [("a", "late")], "another task")  # type: ignore[arg-type]
        return found

    monkeypatch.setattr(inspect(tiers.saver).store, "histories", load_then_write)
    await tiers.saver.aget_delta_channel_history(config=config, channels=["a"])
    monkeypatch.undo()
    assert "late" in str(await compare(tiers, on_thread(CACHED), ["a"]))


async def test_history_of_another_postgres_is_not_cached(tiers: Tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool may lead to a standby too."""
    config = await put_chain(tiers.saver, 3)
    await tiers.saver.aget_tuple(on_thread(CACHED))
    inside = inspect(tiers.saver)
    inside.suspend()
    await inside.polled()
    inside.keep_right()
    monkeypatch.setattr(inside.store.identity, "differs", "true")
    monkeypatch.setattr(inside.store.identity, "stamps", [])
    for _ in range(2):
        await tiers.saver.aget_delta_channel_history(config=config, channels=["a"])
    stats = tiers.saver.stats()
    assert (stats["history_loads"], stats["history_hits"]) == (2, 0)


async def test_long_history_is_shortened_and_too_long_is_dropped(tiers: Tiers) -> None:
    config = await put_chain(tiers.saver, 2)
    await warm(tiers, config)
    key = namespace_key(tiers.prefix, Namespace(CACHED, ""))
    for number in range(pure.LENGTH_MAX + 2):
        config = await child(tiers.saver, config)
        await tiers.saver.aput_writes(config, [("a", number)], "task")
    assert await tiers.redis.hget(key, "p")
    before = len((await tiers.redis.hget(key, "p")).split(b"\0"))
    await compare(tiers, on_thread(CACHED), ["a"])
    await inspect(tiers.saver).histories.drain()
    assert len((await tiers.redis.hget(key, "p")).split(b"\0")) == 2 < before
    assert tiers.saver.stats()["history_loads"] == 1
    for number in range(70):
        config = await child(tiers.saver, config)
        await tiers.saver.aput_writes(config, [("a", number)], "task")
    assert not await tiers.redis.hget(key, "p")
    await warm(tiers, config)
    await tiers.saver.aput_writes(config, [("a", "x" * 1_100_000)], "large")
    config = await child(tiers.saver, config)
    assert not await tiers.redis.hget(key, "p")
    fields = await tiers.redis.hkeys(key)
    assert not [field for field in fields if field.startswith(b"w:")], "what was kept for it is gone too"
    await compare(tiers, on_thread(CACHED), ["a"])
    assert not await tiers.redis.hget(key, "d"), "too large"


@pytest.mark.parametrize("part", ["d", "dc", "p", "write"])
async def test_a_history_that_is_damaged_or_another_ones_is_not_served(tiers: Tiers, part: str) -> None:
    config = await put_chain(tiers.saver, 2)
    await warm(tiers, config)
    config = await child(tiers.saver, config)
    key = namespace_key(tiers.prefix, Namespace(CACHED, ""))
    if part == "write":
        part = next(f.decode() for f in await tiers.redis.hkeys(key) if f.startswith(b"w:"))
    await tiers.redis.hset(key, part, b"damaged")
    await compare(tiers, on_thread(CACHED), ["a"])
    config = await child(tiers.saver, config)
    await compare(tiers, on_thread(CACHED), ["a"])


@pytest.mark.parametrize(
    "value", [_DeltaSnapshot(["x"]), ["x"], "x", None], ids=["snapshot", "blob", "inline", "none"]
)
async def test_value_on_the_way_is_where_rebuilding_begins(tiers: Tiers, value: Any) -> None:
    config = await put_chain(tiers.saver, 2)
    await warm(tiers, config)
    config = await child(tiers.saver, config, a=value)
    await compare(tiers, on_thread(CACHED), ["a"])
    await tiers.saver.aput_writes(config, [("a", 1)], "task")
    for _ in range(2):
        config = await child(tiers.saver, config)
        found = await compare(tiers, on_thread(CACHED), ["a"])
        assert ("seed" in found["a"]) == (value is not None)


async def test_late_writes_to_other_channels_leave_it(tiers: Tiers) -> None:
    """They are what a run that stores in the background leaves behind: not waited for."""
    first = await put_chain(tiers.saver, 2)
    await warm(tiers, first)
    config = await child(tiers.saver, first)
    await tiers.saver.aput_writes(first, [("other", 1)], "late")
    hits = tiers.saver.stats()["history_hits"]
    await tiers.saver.aget_delta_channel_history(config=config, channels=["a"])
    assert tiers.saver.stats()["history_hits"] == hits + 1
    await tiers.saver.aput_writes(first, [("a", 1)], "late")
    loads = tiers.saver.stats()["history_loads"]
    await compare(tiers, on_thread(CACHED), ["a"])
    assert tiers.saver.stats()["history_loads"] == loads + 1


async def test_many_readers_and_a_writer_agree_at_the_end(tiers: Tiers) -> None:
    savers = [tiers.saver, tiers.another_saver(), tiers.another_saver()]
    config: Any = await put_chain(tiers.saver, 2)
    over = asyncio.Event()

    async def read(saver: Any) -> None:
        """A value seen in the history of a chain that only grows is seen ever after."""
        most = 0
        while not over.is_set():
            found = await saver.aget_tuple(on_thread(CACHED))
            history = await saver.aget_delta_channel_history(config=found.config, channels=["a"])
            assert len(history["a"]["writes"]) >= most
            most = len(history["a"]["writes"])

    async def write() -> None:
        nonlocal config
        for number in range(60):
            config = await child(savers[number % 2], config)
            await savers[number % 2].aput_writes(config, [("a", number)], "task")
        over.set()

    await asyncio.gather(write(), *map(read, savers))
    assert len((await compare(tiers, on_thread(CACHED), ["a"]))["a"]["writes"]) == 61


async def test_no_history_without_channels_or_without_a_checkpoint(tiers: Tiers) -> None:
    config = await put_chain(tiers.saver, 2)
    assert await tiers.saver.aget_delta_channel_history(config=config, channels=[]) == {}
    gone = on_thread(CACHED, checkpoint_id=empty_checkpoint()["id"])
    for saver in (tiers.saver, tiers.upstream):
        found = await saver.aget_delta_channel_history(config=gone, channels=["a"])
        assert found == {"a": {"writes": []}}
