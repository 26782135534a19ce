"""Runs that are cancelled half-way: nothing is lost or left behind, and the thread can be gone on with."""

from __future__ import annotations

import asyncio
import contextlib
import operator
from collections.abc import AsyncIterator
from typing import Annotated, Any, TypedDict

import psycopg
import pytest
from langgraph.graph import START, StateGraph
from psycopg.rows import dict_row

from tests.support.agreement import CACHED, Saver, Tiers, eventually, on_thread
from tests.support.inspect import inspect

pytestmark = pytest.mark.integration


class Trail(TypedDict):
    trail: Annotated[list[str], operator.add]


class Gate:
    """A node that says when it is entered, and stays until it may go on."""

    def __init__(self) -> None:
        self.entered, self.open = asyncio.Event(), asyncio.Event()

    async def __call__(self, state: Trail) -> dict[str, Any]:
        self.entered.set()
        await self.open.wait()
        return {"trail": ["gate"]}


def graph_of(saver: Saver, gate: Gate) -> Any:
    builder = StateGraph(Trail)
    builder.add_node("first", lambda s: {"trail": ["first"]})
    builder.add_node("gate", gate)
    builder.add_node("beside", lambda s: {"trail": ["beside"]})
    builder.add_node("last", lambda s: {"trail": ["last"]})
    builder.add_edge(START, "first")
    builder.add_edge("first", "gate")
    builder.add_edge("first", "beside")
    builder.add_edge(["gate", "beside"], "last")
    return builder.compile(checkpointer=saver)


@contextlib.asynccontextmanager
async def all_that_follows() -> AsyncIterator[None]:
    """Waits, after the block, for every task that LangGraph and our saver have started in it."""

    def tasks() -> set[asyncio.Task[Any]]:
        codes = {task: getattr(task.get_coro(), "cr_code", None) for task in asyncio.all_tasks()}
        return {task for task, code in codes.items() if code and "/langgraph" in code.co_filename}

    before = asyncio.all_tasks()
    yield
    while started := tasks() - before:
        ended, _ = await asyncio.wait(started, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        assert ended, f"these do not end: {started}"


async def cancel(run: asyncio.Task[Any]) -> None:
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run


@pytest.mark.parametrize("durability", ["sync", "async"])
async def test_a_run_that_is_cancelled_in_a_node_goes_on_from_there(tiers: Tiers, durability: str) -> None:
    async def scenario(saver: Saver, thread: str) -> Any:
        gate = Gate()
        graph, config = graph_of(saver, gate), on_thread(thread)
        run = asyncio.create_task(graph.ainvoke({"trail": ["start"]}, config, durability=durability))
        await asyncio.wait_for(gate.entered.wait(), 10)

        async def beside_is_stored() -> bool:
            found = await saver.aget_tuple(config)
            return bool(found and any(value == ["beside"] for *_, value in found.pending_writes or []))

        await eventually(beside_is_stored)
        async with all_that_follows():
            await cancel(run)
        state = await graph.aget_state(config)
        gate.open.set()
        # Whether the cancellation itself is stored, as the error of a task, is a race in LangGraph.
        return state.values, state.next, await graph.ainvoke(None, config)

    values, next_nodes, result = await tiers.run_with_both(scenario, same_rows=False)
    assert values["trail"] == ["start", "first", "beside"]
    assert next_nodes == ("gate",)
    assert sorted(result["trail"]) == ["beside", "first", "gate", "last", "start"]


@contextlib.asynccontextmanager
async def locked(tiers: Tiers, table: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """For the block, whoever writes to the table waits."""
    async with await psycopg.AsyncConnection.connect(tiers.postgres_url, row_factory=dict_row) as conn:
        await conn.execute(f"lock table {table} in exclusive mode")  # type: ignore[arg-type]
        yield conn


async def until_somebody_waits(tiers: Tiers) -> None:
    async def waiting() -> bool:
        async with tiers.pool.connection() as conn:
            rows = await conn.execute(
                "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
            )
            return bool(await rows.fetchall())

    await eventually(waiting)


@pytest.mark.parametrize("table", ["checkpoints", "checkpoint_blobs", "checkpoint_writes"])
@pytest.mark.parametrize("durability", ["sync", "async"])
async def test_run_cancelled_during_write_continues(tiers: Tiers, table: str, durability: str) -> None:
    gate = Gate()
    gate.open.set()
    graph, config = graph_of(tiers.saver, gate), on_thread(CACHED)
    await graph.ainvoke({"trail": ["warm"]}, config)
    async with all_that_follows():
        async with locked(tiers, table):
            run = asyncio.create_task(graph.ainvoke({"trail": ["start"]}, config, durability=durability))
            await until_somebody_waits(tiers)
            assert await tiers.fences() != [], "what is being written is fenced"
            run.cancel()
            await asyncio.sleep(0)
        with contextlib.suppress(asyncio.CancelledError):
            await run
        await tiers.assert_reads_agree(config)
    assert await tiers.fences_left() == []
    state = await graph.aget_state(config)
    assert state.values["trail"][:5] == ["warm", "first", "beside", "gate", "last"]
    await graph.ainvoke(None if state.next else {"trail": ["again"]}, config)
    await tiers.assert_agree()


async def test_a_write_whose_caller_is_cancelled_is_stored_and_served(tiers: Tiers) -> None:
    gate = Gate()
    gate.open.set()
    graph, config = graph_of(tiers.saver, gate), on_thread(CACHED)
    await graph.ainvoke({"trail": ["warm"]}, config)
    found = await tiers.saver.aget_tuple(config)
    assert found
    async with locked(tiers, "checkpoint_writes"):
        write = asyncio.create_task(tiers.saver.aput_writes(found.config, [("trail", ["late"])], "task"))
        await until_somebody_waits(tiers)
        await cancel(write)
        during = await tiers.saver.aget_tuple(config)
        assert during == found, "not committed yet"
    await inspect(tiers.saver).drain()
    after = await tiers.saver.aget_tuple(config)
    assert after
    assert after.pending_writes == [("task", "trail", ["late"])]
    await tiers.assert_agree()


async def test_cancelled_reads_leave_fill_lease_to_others(tiers: Tiers) -> None:
    await graph_of(tiers.upstream, gate := Gate()).aupdate_state(
        on_thread(CACHED), {"trail": ["x"]}, as_node="first"
    )
    assert not gate.entered.is_set()
    config = on_thread(CACHED)
    async with await psycopg.AsyncConnection.connect(tiers.postgres_url) as conn:
        await conn.execute("lock table checkpoints in access exclusive mode")
        reads = [asyncio.create_task(tiers.saver.aget_tuple(config)) for _ in range(10)]
        async with await psycopg.AsyncConnection.connect(tiers.postgres_url, autocommit=True) as watch:

            async def waiting() -> bool:
                rows = await watch.execute("select 1 from pg_locks where not granted")
                return bool(await rows.fetchall())

            await eventually(waiting)
        for read in reads:
            await cancel(read)
    expected = await tiers.upstream.aget_tuple(config)
    assert await asyncio.wait_for(tiers.saver.aget_tuple(config), 10) == expected
    stats = tiers.saver.stats()
    assert stats["loads"] == stats["fills"] == 1, "the load went on without those who had asked for it"
    await inspect(tiers.saver).drain()  # waits for the others, which go on as well
    await tiers.assert_agree()


@pytest.mark.slow
async def test_runs_cancelled_at_any_moment_leave_tiers_equal(tiers: Tiers) -> None:
    """Each run is cancelled a little later than the one before, until one ends before that."""
    runs, turns_of_the_loop_more = 80, 20
    gate = Gate()
    gate.open.set()
    graph = graph_of(tiers.saver, gate)
    turns_of_the_loop = finished = 0
    for number in range(runs):
        config = on_thread(f"{CACHED}-{number % 3}")
        async with all_that_follows():
            run = asyncio.create_task(graph.ainvoke({"trail": [f"run {number}"]}, config))
            for _ in range(turns_of_the_loop):
                await asyncio.sleep(0)
            run.cancel()
            [outcome] = await asyncio.gather(run, return_exceptions=True)
            assert isinstance(outcome, (dict, asyncio.CancelledError))
            ended = isinstance(outcome, dict)
            finished += ended
            turns_of_the_loop = 0 if ended else turns_of_the_loop + turns_of_the_loop_more
            await tiers.assert_reads_agree(config)
        await tiers.assert_reads_agree(config)
    assert finished < runs / 2, "most were cancelled"
    assert tiers.saver.stats()["hits"] > runs
    await tiers.assert_agree()
