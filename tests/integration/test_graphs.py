"""Graphs of every usual shape, run with our saver and with the upstream one: nobody can tell the difference."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import decimal
import itertools
import operator
import random
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypedDict

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, interrupt

from langgraph_checkpoint_cached import CachedPostgresSaver
from tests.support.agreement import CACHED, Saver, Tiers, fences_left, on_thread, outline, outlines
from tests.support.inspect import inspect

pytestmark = pytest.mark.integration

TURNS = 3


class Chat(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]
    turns: int


def chat(saver: Saver) -> Any:
    """An agent: it calls a tool, and then answers."""

    def model(state: Chat) -> dict[str, Any]:
        last, number = state["messages"][-1], len(state["messages"])
        if isinstance(last, ToolMessage):
            return {"messages": [AIMessage(f"It is {last.content}.", id=f"answer-{number}")]}
        call = {"name": "look", "args": {"at": last.content}, "id": f"call-{number}"}
        return {"messages": [AIMessage("", tool_calls=[call], id=f"ask-{number}")]}

    async def tool(state: Chat) -> dict[str, Any]:
        [call] = state["messages"][-1].tool_calls  # type: ignore[union-attr]
        return {
            "messages": [ToolMessage(f"a {call['args']['at']}", tool_call_id=call["id"], id=f"t-{call['id']}")]
        }

    def count(state: Chat) -> dict[str, Any]:
        return {"turns": state.get("turns", 0) + 1}

    def route(state: Chat) -> Literal["tool", "count"]:
        return "tool" if state["messages"][-1].tool_calls else "count"  # type: ignore[union-attr]

    builder = StateGraph(Chat)
    builder.add_node("model", model)
    builder.add_node("tool", tool)
    builder.add_node("count", count)
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", route)
    builder.add_edge("tool", "model")
    builder.add_edge("count", END)
    return builder.compile(checkpointer=saver)


def reply(turn: int) -> dict[str, Any]:
    return {"messages": [HumanMessage(f"thing {turn}", id=f"human-{turn}")]}


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_a_conversation_goes_on_from_turn_to_turn(tiers: Tiers, durability: str) -> None:
    async def conversation(saver: Saver, thread: str) -> Any:
        graph, config = chat(saver), on_thread(thread)
        answers = [await graph.ainvoke(reply(turn), config, durability=durability) for turn in range(TURNS)]
        return answers, await outlines(graph, config)

    answers, _ = await tiers.run_with_both(conversation)
    assert answers[-1]["turns"] == TURNS
    assert answers[-1]["messages"][-1].content == f"It is a thing {TURNS - 1}."


async def test_only_first_turn_of_conversation_loads_from_postgres(tiers: Tiers) -> None:
    graph = chat(tiers.saver)
    for turn in range(TURNS):
        await graph.ainvoke(reply(turn), on_thread(CACHED))
    stats = tiers.saver.stats()
    assert (stats["loads"], stats["hits"], stats["bypasses"]) == (1, TURNS - 1, 0)
    assert stats["entry_updates"] == stats["writes"] > 0, "every write moved the entry along"


@pytest.mark.parametrize("fraction", [0.25, 0.517356836493, 0.0, 2.2206268043944988e-05], ids=str)
async def test_every_version_that_can_be_drawn_moves_the_entry_along(
    tiers: Tiers, monkeypatch: pytest.MonkeyPatch, fraction: float
) -> None:
    """A version is a counter and a random number, which is padded with zeros or may have an exponent."""
    draws = itertools.count()
    monkeypatch.setattr(random, "random", lambda: fraction if next(draws) % 2 else 0.2512345678901234)
    graph = chat(tiers.saver)
    for turn in range(TURNS):
        await graph.ainvoke(reply(turn), on_thread(CACHED))
    stats = tiers.saver.stats()
    assert stats["loads"] == 1
    assert stats["entry_updates"] == stats["writes"] > 0


@pytest.mark.parametrize("mode", ["values", "updates", "tasks"])
async def test_a_streamed_run_says_the_same(tiers: Tiers, mode: str) -> None:
    def without_ids(event: Any) -> Any:
        return {k: v for k, v in event.items() if k != "id"} if mode == "tasks" else event

    async def conversation(saver: Saver, thread: str) -> Any:
        graph, config = chat(saver), on_thread(thread)
        turns = []
        for turn in range(TURNS):
            events = graph.astream(reply(turn), config, stream_mode=mode)
            turns.append([without_ids(event) async for event in events])
        return turns

    events = await tiers.run_with_both(conversation)
    assert all(len(turn) >= 4 for turn in events)


async def test_a_stream_that_is_left_early_can_be_gone_on_with(tiers: Tiers) -> None:
    async def left_and_resumed(saver: Saver, thread: str) -> Any:
        graph, config = chat(saver), on_thread(thread)
        stream = graph.astream(reply(0), config, stream_mode="updates", durability="sync")
        first = await anext(stream)
        await stream.aclose()
        return first, await graph.ainvoke(None, config), outline(await graph.aget_state(config))

    first, answer, _ = await tiers.run_with_both(left_and_resumed, same_rows=False)
    assert "model" in first
    assert answer["messages"][-1].content == "It is a thing 0."


@pytest.mark.slow
async def test_many_threads_of_one_process_do_not_mix(tiers: Tiers) -> None:
    threads = 20

    async def crowd(saver: Saver, prefix: str) -> Any:
        graph = chat(saver)

        async def one(number: int) -> Any:
            config = on_thread(f"{prefix}-{number}")
            for turn in range(2):
                await graph.ainvoke(reply(100 * number + turn), config)
            return outline(await graph.aget_state(config))

        return await asyncio.gather(*(one(number) for number in range(threads)))

    states = await tiers.run_with_both(crowd)
    for number, state in enumerate(states):
        asked = [m.content for m in state["values"]["messages"] if isinstance(m, HumanMessage)]
        assert asked == [f"thing {100 * number + turn}" for turn in range(2)]
    assert tiers.saver.stats()["loads"] == threads


class Steps(TypedDict):
    done: Annotated[list[int], operator.add]


def steps(saver: Saver, count: int, entered: Callable[[int], Any]) -> Any:
    """Nodes one after the other, each of which says so when it is entered."""
    builder = StateGraph(Steps)

    def node(number: int) -> Any:
        async def run(state: Steps) -> dict[str, Any]:
            await entered(number)
            return {"done": [number]}

        return run

    for number in range(count):
        builder.add_node(str(number), node(number))
        builder.add_edge(str(number - 1) if number else START, str(number))
    return builder.compile(checkpointer=saver)


async def test_whoever_polls_a_running_thread_never_sees_it_go_back(tiers: Tiers) -> None:
    count, polls_per_step = 8, 3
    stored = -1  # the step that was committed before the node now running was entered
    polled, over = asyncio.Condition(), asyncio.Event()
    polls = 0

    async def entered(number: int) -> None:
        nonlocal stored
        stored = number
        async with polled:
            start = polls
            await polled.wait_for(lambda: polls >= start + polls_per_step)

    async def poll(saver: Saver) -> list[int]:
        nonlocal polls
        graph, seen = steps(saver, count, entered), []
        while not over.is_set():
            at_least = stored
            state = await graph.aget_state(on_thread(CACHED))
            done = state.values.get("done", [])
            assert done == list(range(len(done)))
            assert len(done) >= at_least, "an older state than was stored"
            seen.append(len(done))
            async with polled:
                polls += 1
                polled.notify_all()
        return seen

    async def run() -> None:
        try:
            await steps(tiers.saver, count, entered).ainvoke({"done": []}, on_thread(CACHED), durability="sync")
        finally:
            over.set()

    other = tiers.another_saver()
    *seen, _ = await asyncio.wait_for(asyncio.gather(poll(tiers.saver), poll(other), run()), 60)
    for ours in seen:
        assert ours == sorted(ours)
    assert tiers.saver.stats()["hits"] > 0
    assert other.stats()["hits"] > 0
    await tiers.assert_agree()


async def test_functional_api_resumes_with_finished_task_results(tiers: Tiers) -> None:
    async def workflow(saver: Saver, thread: str) -> Any:
        calls: list[str] = []

        @task
        async def draft(topic: str) -> str:
            calls.append(topic)
            return f"about {topic}"

        @entrypoint(checkpointer=saver)
        async def write(topic: str, *, previous: list[str] | None = None) -> Any:
            first, second = await asyncio.gather(draft(topic), draft(f"{topic} again"))
            verdict = interrupt({"review": [first, second]})
            result = f"{first}, {second}: {verdict}"
            return entrypoint.final(value=(result, previous), save=[*(previous or []), result])

        config, seen = on_thread(thread), []
        for topic in ("cats", "dogs"):
            seen.append((await write.ainvoke(topic, config))["__interrupt__"][0].value)
            seen.append(await write.ainvoke(Command(resume=f"{topic} are fine"), config))
            seen.append(outline(await write.aget_state(config)))
        return seen, sorted(calls)

    seen, calls = await tiers.run_with_both(workflow)
    assert calls == ["cats", "cats again", "dogs", "dogs again"], "no task ran twice"
    cats, dogs = (f"about {t}, about {t} again: {t} are fine" for t in ("cats", "dogs"))
    assert seen[1] == (cats, None)
    assert seen[4] == (dogs, [cats])


class Log(TypedDict):
    lines: Annotated[list[str], DeltaChannel(lambda lines, new: lines + [x for n in new for x in n])]
    turn: int


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_delta_channel_is_rebuilt_from_writes_and_snapshots(tiers: Tiers, durability: str) -> None:
    """Its snapshots were lost in langgraph-redis#201."""
    turns = 6

    class SnapshotLog(TypedDict):
        lines: Annotated[
            list[str],
            DeltaChannel(lambda lines, new: lines + [x for n in new for x in n], snapshot_frequency=3),
        ]
        turn: int

    async def scenario(saver: Saver, thread: str) -> Any:
        seen = []
        for state in (Log, SnapshotLog):
            builder = StateGraph(state)
            builder.add_node("say", lambda s: {"lines": [f"turn {s['turn']}"]})
            builder.add_node("echo", lambda s: {"lines": [f"{s['lines'][-1]}, echoed"]})
            builder.add_edge(START, "say")
            builder.add_edge("say", "echo")
            graph = builder.compile(checkpointer=saver)
            config = on_thread(f"{thread}-{state.__name__}")
            for turn in range(turns):
                seen.append(await graph.ainvoke({"turn": turn, "lines": []}, config, durability=durability))
            seen.append(await outlines(graph, config))
        return seen

    seen = await tiers.run_with_both(scenario)
    lines = [line for turn in range(turns) for line in (f"turn {turn}", f"turn {turn}, echoed")]
    assert seen[turns - 1]["lines"] == seen[2 * turns]["lines"] == lines


@dataclasses.dataclass
class Point:
    x: int
    y: int


class Held(TypedDict):
    held: dict[str, Any]


async def test_values_of_every_kind_come_back_as_they_were(tiers: Tiers) -> None:
    """Others returned dicts for them: langgraph-redis#94, #113, #85, #87, #198."""
    values: dict[str, Any] = {
        "set": {1, 2},
        "bytes": b"\0\xff",
        "when": datetime.datetime(2024, 1, 2, tzinfo=datetime.timezone.utc),
        "like a send": {"node": "x", "arg": 1},
        "dataclass": Point(1, 2),
        "exact": decimal.Decimal("1.10"),
        "id": uuid.UUID(int=7),
        "like an interrupt": {"value": 1, "id": "x"},
        "like a message": {"type": "human", "content": "hi"},
        "message": HumanMessage("hi", id="1"),
        "none": None,
    }

    async def scenario(saver: Saver, thread: str) -> Any:
        builder = StateGraph(Held)
        builder.add_node("hold", lambda s: {"held": values})
        builder.add_edge(START, "hold")
        graph = builder.compile(checkpointer=saver)
        await graph.ainvoke({"held": {}}, on_thread(thread))
        return outline(await graph.aget_state(on_thread(thread)))

    state = await tiers.run_with_both(scenario)
    assert state["values"]["held"] == values
    assert {k: type(v) for k, v in state["values"]["held"].items()} == {k: type(v) for k, v in values.items()}


async def test_namespaces_that_never_existed_cost_no_query(
    migrated_database_url: str, redis_url: str, redis_prefix: str
) -> None:
    """Every new task of a subgraph asks for a namespace of its own."""
    inner = StateGraph(MessagesState).add_node("answer", lambda state: {"messages": [AIMessage("yes")]})
    inner.add_edge(START, "answer")
    outer = StateGraph(MessagesState)
    outer.add_node("inner", inner.compile(checkpointer=True))
    outer.add_node("also", inner.compile())
    outer.add_edge(START, "inner")
    outer.add_edge("inner", "also")
    async with (
        CachedPostgresSaver.from_conn_string(
            migrated_database_url, redis_url, prefix=redis_prefix, redis_timeout=10
        ) as one,
        CachedPostgresSaver.from_conn_string(
            migrated_database_url, redis_url, prefix=redis_prefix, redis_timeout=10
        ) as other,
    ):
        config: Any = {"configurable": {"thread_id": uuid.uuid4().hex}}
        for saver in (one, other, one):
            graph = outer.compile(checkpointer=saver)
            await graph.ainvoke({"messages": [HumanMessage("?")]}, config, durability="sync")
            assert await fences_left(inspect(saver).redis, redis_prefix) == []
        assert [saver.stats()["loads"] for saver in (one, other)] == [1, 0]  # the root, when the thread was new
        assert one.stats()["bypasses"] == other.stats()["bypasses"] == 0
        state = await outer.compile(checkpointer=one).aget_state(config)
        assert len(state.values["messages"]) == 9
