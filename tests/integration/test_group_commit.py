"""Concurrent calls share a transaction, a query, a round trip; and errors in one of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import psycopg
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import START, MessagesState, StateGraph
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from langgraph_checkpoint_cached import ArgumentError, CachedPostgresSaver, OverloadedError
from langgraph_checkpoint_cached.records import Latest, Namespace
from langgraph_checkpoint_cached.serde import codec
from langgraph_checkpoint_cached.stores.postgres import latest_loader
from langgraph_checkpoint_cached.stores.postgres import store as postgres_store
from langgraph_checkpoint_cached.stores.postgres.bulk_insert import numbered
from langgraph_checkpoint_cached.stores.redis.script_call import ScriptCall
from langgraph_checkpoint_cached.stores.redis.scripts import Script
from langgraph_checkpoint_cached.stores.redis.transport import ServerTransport
from tests.support.agreement import fences_left
from tests.support.inspect import inspect

pytestmark = pytest.mark.integration

PATIENT_SECONDS = 10.0
Open = Callable[[str], AbstractAsyncContextManager[AsyncPostgresSaver]]


def config_of(thread_id: str) -> Any:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}


async def put(saver: CachedPostgresSaver, config: Any, value: Any, **channels: Any) -> Any:
    version = saver.get_next_version(None, None)
    values = {"value": value, **channels}
    made: Any = {**empty_checkpoint(), "v": 4, "id": str(uuid6()), "channel_values": values}
    made["channel_versions"] = dict.fromkeys(values, version)
    return await saver.aput(config, made, {}, made["channel_versions"])


@asynccontextmanager
async def pool_without_pipeline(url: str) -> AsyncIterator[AsyncPostgresSaver]:
    options = {"autocommit": True, "row_factory": dict_row}
    async with AsyncConnectionPool(url, open=False, kwargs=options) as pool:
        saver = AsyncPostgresSaver(pool)
        saver.supports_pipeline = False
        yield saver


@asynccontextmanager
async def pool(url: str) -> AsyncIterator[AsyncPostgresSaver]:
    options = {"autocommit": True, "row_factory": dict_row, "prepare_threshold": None}
    async with AsyncConnectionPool(url, open=False, kwargs=options) as pool:
        yield AsyncPostgresSaver(pool)


KINDS: dict[str, Open] = {
    "pool": pool,
    "pool without pipeline mode": pool_without_pipeline,
    "single connection": AsyncPostgresSaver.from_conn_string,
    "single connection in pipeline mode": lambda url: AsyncPostgresSaver.from_conn_string(url, pipeline=True),
}


@pytest.fixture(params=[*KINDS, "pool behind PgBouncer"])
async def saver(
    request: pytest.FixtureRequest, migrated_database_url: str, redis_url: str, redis_prefix: str
) -> AsyncIterator[CachedPostgresSaver]:
    pooled = request.param == "pool behind PgBouncer"
    url = request.getfixturevalue("pgbouncer_url") if pooled else migrated_database_url
    async with (
        Redis.from_url(redis_url) as redis,
        (pool if pooled else KINDS[request.param])(url) as upstream,
    ):
        saver = CachedPostgresSaver(redis, upstream, prefix=redis_prefix, redis_timeout=PATIENT_SECONDS)
        yield saver
        await saver.aclose()


async def transactions(url: str, thread_ids: list[str]) -> int:
    """Return the number of transactions that stored the rows of these threads."""
    rows = " union all ".join(
        f"select xmin::text as stored_by from {table} where thread_id = any(%(ids)s)"
        for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
    )
    async with await psycopg.AsyncConnection.connect(url) as conn:
        found = await conn.execute(f"select count(distinct stored_by) from ({rows}) as rows", {"ids": thread_ids})
        [count] = await found.fetchone() or [0]
    return int(count)


async def test_writes_that_wait_share_a_transaction(
    saver: CachedPostgresSaver, migrated_database_url: str
) -> None:
    threads = [f"t{i}" for i in range(48)]
    first = dict(
        zip(threads, await asyncio.gather(*(put(saver, config_of(t), [t]) for t in threads)), strict=True)
    )
    assert await transactions(migrated_database_url, threads) <= 3

    async def step(thread_id: str) -> None:
        await asyncio.gather(
            saver.aput_writes(first[thread_id], [("value", [thread_id]), ("other", 1)], "task"),
            put(saver, first[thread_id], [thread_id, 2], other={"a": 1}),
        )

    await asyncio.gather(*map(step, threads))
    assert await transactions(migrated_database_url, threads) <= 6
    for thread_id in threads:
        found = await saver.aget_tuple(config_of(thread_id))
        assert found == await inspect(saver).upstream.aget_tuple(config_of(thread_id))
        assert found is not None
        assert found.checkpoint["channel_values"] == {"value": [thread_id, 2], "other": {"a": 1}}


async def test_a_put_and_the_writes_beside_it_share_a_transaction(
    saver: CachedPostgresSaver, migrated_database_url: str
) -> None:
    first = await put(saver, config_of("t"), [0])
    before = await transactions(migrated_database_url, ["t"])
    for number in range(4):
        writes = asyncio.ensure_future(saver.aput_writes(first, [("value", [number])], f"task {number}"))
        await asyncio.sleep(0)  # LangGraph, too, stores the writes first and the checkpoint a moment later
        first, _ = await asyncio.gather(put(saver, first, [number]), writes)
    assert await transactions(migrated_database_url, ["t"]) - before == 4


async def test_one_bad_write_fails_alone(saver: CachedPostgresSaver, migrated_database_url: str) -> None:
    threads = [f"t{i}" for i in range(12)]
    operations = [put(saver, config_of(t), "\0" if t == "t5" else t) for t in threads]  # JSONB takes no NUL
    answers = dict(zip(threads, await asyncio.gather(*operations, return_exceptions=True), strict=True))
    assert {t: answer for t, answer in answers.items() if isinstance(answer, BaseException) and t != "t5"} == {}
    assert isinstance(answers["t5"], psycopg.DataError)
    assert await transactions(migrated_database_url, ["t5"]) == 0
    for thread_id in threads:
        found = await saver.aget_tuple(config_of(thread_id))
        value = found and found.checkpoint["channel_values"]["value"]
        assert value == (None if thread_id == "t5" else thread_id)


@pytest.mark.parametrize("key", ["thread_id", "checkpoint_ns", "checkpoint_id"])
@pytest.mark.parametrize("text", ["nul\0", "\ud800 alone"])
async def test_id_that_is_no_text_is_refused_alone(saver: CachedPostgresSaver, key: str, text: str) -> None:
    configs = [config_of(f"t{number}") for number in range(4)]
    configs[1]["configurable"][key] = text
    answers = await asyncio.gather(*(put(saver, config, 1) for config in configs), return_exceptions=True)
    assert isinstance(answers.pop(1), ArgumentError)
    assert not [answer for answer in answers if isinstance(answer, BaseException)]
    with pytest.raises(ArgumentError, match=key):
        await saver.aget_tuple(configs[1])


async def test_writes_of_one_row_keep_their_order(saver: CachedPostgresSaver) -> None:
    """Ordinary writes keep the first value of a row, special ones the last, in one group as in many."""
    for thread_id in ("one group", "many groups"):
        config = await put(saver, config_of(thread_id), [0])
        writes = [
            saver.aput_writes(config, [(channel, number)], "task")
            for number in range(4)
            for channel in ("value", "__error__")
        ]
        if thread_id == "one group":
            await asyncio.gather(*writes)
        else:
            for write in writes:
                await write
        found = await saver.aget_tuple(config_of(thread_id))
        assert found == await inspect(saver).upstream.aget_tuple(config_of(thread_id))
        assert found is not None
        assert sorted(found.pending_writes or ()) == [("task", "__error__", 3), ("task", "value", 0)]


async def test_cancelled_caller_undoes_and_loses_nothing(
    saver: CachedPostgresSaver,
) -> None:
    tasks = [asyncio.ensure_future(put(saver, config_of(f"t{i}"), i)) for i in range(8)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.wait(tasks)
    assert [task.cancelled() for task in tasks] == [True, False] * 4
    await inspect(saver).drain()
    for number in range(8):
        found = await inspect(saver).upstream.aget_tuple(config_of(f"t{number}"))
        assert found is not None
        assert found.checkpoint["channel_values"]["value"] == number
        assert await saver.aget_tuple(config_of(f"t{number}")) == found


async def test_misses_that_wait_are_loaded_with_one_query(
    saver: CachedPostgresSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = [f"t{i}" for i in range(40)]
    await asyncio.gather(*(put(saver, config_of(t), [t]) for t in threads))
    await asyncio.gather(*(saver.adelete_thread(t) for t in threads[::4]))
    queries, load = [], inspect(saver).load_latest.get()

    async def counted(namespaces: Any) -> Any:
        queries.append(len(namespaces))
        return await load(namespaces)

    monkeypatch.setattr(*inspect(saver).load_latest, counted)
    assert await inspect(saver).redis.flushall()
    found = await asyncio.gather(*(saver.aget_tuple(config_of(t)) for t in threads))
    assert found == [await inspect(saver).upstream.aget_tuple(config_of(t)) for t in threads]
    assert [t for t, one in zip(threads, found, strict=True) if one is None] == threads[::4]
    assert sum(queries) == 40
    assert len(queries) <= 2 * latest_loader.QUERIES_AT_ONCE_MAX
    assert await asyncio.gather(*(saver.aget_tuple(config_of(t)) for t in threads)) == found
    assert sum(queries) == 40


async def test_one_bad_load_fails_alone(saver: CachedPostgresSaver) -> None:
    await put(saver, config_of("t"), 1)
    reads = [inspect(saver).store.latest(Namespace("t" if i != 20 else "no\0such", "")) for i in range(40)]
    found = await asyncio.gather(*reads, return_exceptions=True)
    assert isinstance(found[0], Latest)
    assert found[0].record is not None
    assert [i for i, one in enumerate(found) if isinstance(one, BaseException)] == [20]
    assert isinstance(found[20], psycopg.DataError)


@pytest.mark.parametrize("bound", ["writes_waiting_max", "waiting_bytes_max"])
async def test_writes_beyond_queue_limit_wait_and_are_stored(
    saver: CachedPostgresSaver, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(*getattr(inspect(saver), bound), 5)
    most = 0
    encode = codec.encode_put

    def watched(*arguments: Any) -> Any:
        nonlocal most
        most = max(most, inspect(saver).write_through.room.count)
        return encode(*arguments)

    monkeypatch.setattr(codec, "encode_put", watched)
    threads = [f"t{i % 7}" for i in range(60)]
    answers = await asyncio.gather(*(put(saver, config_of(t), i) for i, t in enumerate(threads)))
    assert len(answers) == 60
    assert most < 5, "it was encoded before there was room"
    for thread in set(threads):
        found = await saver.aget_tuple(config_of(thread))
        assert found == await inspect(saver).upstream.aget_tuple(config_of(thread)) is not None
    assert inspect(saver).write_through.room.is_free
    assert not await fences_left(inspect(saver).redis, "")


async def test_write_that_waits_for_room_may_be_cancelled(
    saver: CachedPostgresSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*inspect(saver).writes_waiting_max, 1)
    writes = [asyncio.ensure_future(put(saver, config_of(f"t{i}"), i)) for i in range(10)]
    await asyncio.sleep(0)
    for write in writes[1::2]:
        write.cancel()
    await asyncio.gather(*writes, return_exceptions=True)
    found = [await saver.aget_tuple(config_of(f"t{i}")) for i in range(10)]
    assert [one is not None for one in found] == [True, False] * 5


async def test_write_fails_when_postgres_takes_none_for_long(
    saver: CachedPostgresSaver, migrated_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*inspect(saver).writes_waiting_max, 1)
    monkeypatch.setattr(*inspect(saver).room_seconds_max, 0.3)
    await put(saver, config_of("t"), 0)
    async with await psycopg.AsyncConnection.connect(migrated_database_url) as blocker:
        await blocker.execute("lock table checkpoints")
        blocked = asyncio.ensure_future(put(saver, config_of("t"), 1))
        await asyncio.sleep(0)
        answers = await asyncio.gather(*(put(saver, config_of("u"), i) for i in range(5)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [OverloadedError] * 5
        assert "not stored, too many operations wait for Postgres" in str(answers[0])
    await asyncio.wait_for(blocked, 10)
    assert await saver.aget_tuple(config_of("u")) is None


async def test_reads_beyond_queue_limit_wait(saver: CachedPostgresSaver, monkeypatch: pytest.MonkeyPatch) -> None:
    await put(saver, config_of("t0"), 0)
    assert await inspect(saver).redis.flushall()
    monkeypatch.setattr(*inspect(saver).loads_waiting_max, 2)
    found = await asyncio.gather(*(saver.aget_tuple(config_of(f"t{i}")) for i in range(100)))
    assert [i for i, one in enumerate(found) if one is not None] == [0]


# -- calls to Redis ------------------------------------------------------------------------------------------


APPEND = Script("return redis.call('RPUSH', KEYS[1], ARGV[1])")
COUNT = Script("return redis.call('LLEN', KEYS[1])")
GET = Script("return redis.call('GET', KEYS[1])")


def step(script: Script, key: str, *arguments: Any, in_order: bool = False) -> ScriptCall:
    return ScriptCall(script, [key], arguments, asyncio.get_running_loop().create_future(), in_order)


@pytest.mark.parametrize("options", [{}, {"single_connection_client": True}, {"decode_responses": True}])
async def test_script_calls_keep_order_and_errors_are_their_own(
    redis_url: str, redis_prefix: str, options: Any
) -> None:
    key = f"{redis_prefix}list"
    async with Redis.from_url(redis_url, **options) as redis:
        transport = ServerTransport(redis, PATIENT_SECONDS)
        for _ in range(2):
            answers = await transport.run([step(APPEND, key, 1), step(GET, key), step(APPEND, key, b"\xff")])
            assert "WRONGTYPE" in str(answers.pop(1))
        assert answers == [3, 4]
        assert [step_answer async for step_answer in _items(redis_url, key)] == [b"1", b"\xff"] * 2


async def test_lost_scripts_are_loaded_again_unless_call_is_late(redis_url: str, redis_prefix: str) -> None:
    async with Redis.from_url(redis_url) as redis:
        transport = ServerTransport(redis, PATIENT_SECONDS)
        one, other = f"{redis_prefix}one", f"{redis_prefix}other"
        assert await transport.run([step(APPEND, one, number, in_order=True) for number in (1, 2)]) == [1, 2]
        await redis.script_flush()
        group = [
            step(APPEND, one, 3, in_order=True),
            step(APPEND, other, 1, in_order=True),
            step(COUNT, one),
        ]
        answers = await transport.run(group)
        assert isinstance(answers[0], NoScriptError)  # COUNT, of the same thread, has been done
        assert answers[1:] == [1, 2]
        assert await transport.run([step(APPEND, one, number, in_order=True) for number in (3, 4)]) == [3, 4]


async def _items(url: str, key: str) -> AsyncIterator[Any]:
    async with Redis.from_url(url) as redis:
        for item in await redis.lrange(key, 0, -1):
            yield item


async def test_graph_turn_queries_postgres_only_in_transactions(
    migrated_database_url: str, redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One statement for what a step stores: its channels share a version, which this process has made."""
    graph = StateGraph(MessagesState)
    for name in "abc":
        graph.add_node(name, lambda _state, name=name: {"messages": [AIMessage(name)]})
    graph.add_edge(START, "a")
    graph.add_edge("a", "b")
    graph.add_edge("b", "c")
    executed: list[bytes] = []
    execute = psycopg.AsyncRawCursor.execute

    async def recorded(cur: Any, sql: bytes, parameters: Any) -> Any:
        executed.append(sql)
        return await execute(cur, sql, parameters)

    monkeypatch.setattr(psycopg.AsyncRawCursor, "execute", recorded)
    async with CachedPostgresSaver.from_conn_string(
        migrated_database_url, redis_url, prefix=redis_prefix, redis_timeout=PATIENT_SECONDS
    ) as saver:
        app = graph.compile(checkpointer=saver)
        for turn in range(3):
            executed.clear()
            await app.ainvoke({"messages": [HumanMessage("?")]}, config_of("t"), durability="sync")
            assert numbered(postgres_store.FIND_VALUES) not in executed
            assert 0 < len(executed) <= 7, turn  # 3 nodes, so 5 checkpoints; alone, if the writes come late, more
        assert saver.stats()["entry_updates"] == saver.stats()["writes"]
