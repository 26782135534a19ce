"""Graphs that are invoked without an event loop, or beside one."""

from __future__ import annotations

import asyncio
import operator
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.func import entrypoint, task
from langgraph.graph import START, StateGraph
from langgraph.types import Command, Send, interrupt

from langgraph_checkpoint_cached import SyncCachedPostgresSaver
from tests.support.agreement import CACHED, PATIENT_SECONDS, UPSTREAM, Saver, Tiers, on_thread, outline

pytestmark = pytest.mark.integration

TURNS = 3


class State(TypedDict):
    trail: Annotated[list[str], operator.add]


def graph_of(saver: Saver) -> Any:
    builder = StateGraph(State)
    builder.add_node("work", lambda s: {"trail": [f"work {s['n']}"]})  # type: ignore[typeddict-item]
    builder.add_node("ask", lambda s: {"trail": [interrupt(len(s["trail"]))]})
    builder.add_conditional_edges(START, lambda s: [Send("work", {"n": n}) for n in range(4)], ["work"])
    builder.add_edge("work", "ask")
    return builder.compile(checkpointer=saver)


def conversation(saver: Saver, thread: str) -> Any:
    graph, config, seen = graph_of(saver), on_thread(thread), []
    for turn in range(TURNS):
        graph.invoke({"trail": [f"turn {turn}"]}, config)
        seen.append(outline(graph.get_state(config)))
        seen.append(list(graph.stream(Command(resume=f"answer {turn}"), config, stream_mode="updates")))
    forked = graph.update_state(list(graph.get_state_history(config))[3].config, {"trail": ["edited"]}, "work")
    seen.append(graph.invoke(Command(resume="forked"), forked))
    return seen, [outline(state) for state in graph.get_state_history(config)]


@pytest.fixture
def sync_saver(migrated_database_url: str, redis_url: str, redis_prefix: str) -> Iterator[SyncCachedPostgresSaver]:
    with SyncCachedPostgresSaver.from_conn_string(
        migrated_database_url, redis_url, prefix=redis_prefix, redis_timeout=PATIENT_SECONDS
    ) as saver:
        yield saver


def test_a_script_without_a_loop(sync_saver: SyncCachedPostgresSaver, migrated_database_url: str) -> None:
    seen, history = conversation(sync_saver, CACHED)
    stats = sync_saver.stats()
    with PostgresSaver.from_conn_string(migrated_database_url) as upstream:
        assert (seen, history) == conversation(upstream, UPSTREAM)
        for config in (on_thread(CACHED), list(upstream.list(on_thread(CACHED)))[-1].config):
            assert sync_saver.get_tuple(config) == upstream.get_tuple(config)
        assert list(sync_saver.list(on_thread(CACHED))) == list(upstream.list(on_thread(CACHED)))
    assert stats["hits"] > TURNS
    assert stats["entry_updates"] > 0


def test_threads_of_a_script_share_a_saver(sync_saver: SyncCachedPostgresSaver) -> None:
    with ThreadPoolExecutor(8) as executor:
        outcomes = list(executor.map(lambda n: conversation(sync_saver, f"{CACHED}-{n}"), range(8)))
    assert all(outcome == outcomes[0] for outcome in outcomes)
    assert sync_saver.stats()["hits"] > 8 * TURNS


def test_the_functional_api_without_a_loop(sync_saver: SyncCachedPostgresSaver) -> None:
    calls = []

    @task
    def slow(n: int) -> int:
        calls.append(n)
        return n * n

    @entrypoint(checkpointer=sync_saver)
    def workflow(n: int) -> Any:
        squares = [f.result() for f in [slow(i) for i in range(n)]]
        return [*squares, interrupt("more?")]

    workflow.invoke(3, on_thread(CACHED))
    assert workflow.invoke(Command(resume="no"), on_thread(CACHED)) == [0, 1, 4, "no"]
    assert sorted(calls) == [0, 1, 2]


async def test_a_worker_thread_beside_the_loop(tiers: Tiers) -> None:
    async def scenario(saver: Saver, thread: str) -> Any:
        return await asyncio.to_thread(conversation, saver, thread)

    await tiers.run_with_both(scenario)
    assert tiers.saver.stats()["hits"] > TURNS


async def test_worker_threads_and_the_loop_use_one_thread_of_a_graph(tiers: Tiers) -> None:
    graph, config = graph_of(tiers.saver), on_thread(CACHED)
    names = set()

    def turn(value: Any) -> Any:
        names.add(threading.current_thread().name)
        return graph.invoke(value, config)

    for number in range(TURNS):
        await asyncio.to_thread(turn, {"trail": [f"turn {number}"]})
        result = await graph.ainvoke(Command(resume=f"answer {number}"), config)
        assert result["trail"][-1] == f"answer {number}"
    assert threading.current_thread().name not in names
    assert tiers.saver.stats()["loads"] == 1
    await tiers.assert_agree()
