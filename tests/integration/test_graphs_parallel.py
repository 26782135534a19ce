"""Nodes side by side: fan-out, subgraphs, and siblings of a node that fails."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, RetryPolicy, Send, interrupt

from tests.support.agreement import Saver, Tiers, eventually, on_thread, outline, outlines

pytestmark = pytest.mark.integration

TURNS = 3


class Totals(TypedDict):
    items: list[int]
    squares: Annotated[list[int], operator.add]
    total: int


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_what_is_fanned_out_is_gathered_again(tiers: Tiers, durability: str) -> None:
    async def scenario(saver: Saver, thread: str) -> Any:
        async def square(item: dict[str, int]) -> dict[str, Any]:
            return {"squares": [item["n"] ** 2]}

        builder = StateGraph(Totals)
        builder.add_node("plan", lambda s: {"items": [n + 1 for n in s["items"]]})
        builder.add_node("square", square)
        builder.add_node("sum", lambda s: {"total": sum(s["squares"])})
        builder.add_edge(START, "plan")
        builder.add_conditional_edges("plan", lambda s: [Send("square", {"n": n}) for n in s["items"]], ["square"])
        builder.add_edge("square", "sum")
        graph, config = builder.compile(checkpointer=saver), on_thread(thread)
        seen = []
        for turn in range(TURNS):
            seen.append(await graph.ainvoke({"items": list(range(turn, turn + 9))}, config, durability=durability))
        return seen, await outlines(graph, config)

    seen, _ = await tiers.run_with_both(scenario)
    assert seen[0]["squares"] == [n**2 for n in range(1, 10)]
    assert seen[-1]["total"] == sum((n + turn) ** 2 for turn in range(TURNS) for n in range(1, 10))


class Inner(TypedDict):
    seen: Annotated[list[str], operator.add]


def nested(saver: Saver, *, inner_checkpointer: bool | None) -> Any:
    """A graph whose subgraph twice appends to what it has, and then asks."""
    inner = StateGraph(Inner)
    inner.add_node("note", lambda s: {"seen": [f"note {len(s['seen'])}"]})
    inner.add_node("ask", lambda s: {"seen": [interrupt(f"after {len(s['seen'])}?")]})
    inner.add_edge(START, "note")
    inner.add_edge("note", "ask")
    outer = StateGraph(Inner)
    outer.add_node("before", lambda s: {"seen": ["before"]})
    outer.add_node("inner", inner.compile(checkpointer=inner_checkpointer))
    outer.add_node("after", lambda s: {"seen": ["after"]})
    outer.add_edge(START, "before")
    outer.add_edge("before", "inner")
    outer.add_edge("inner", "after")
    return outer.compile(checkpointer=saver)


@pytest.mark.parametrize("inner_checkpointer", [None, True], ids=["per_invocation", "with_memory"])
async def test_a_subgraph_keeps_a_state_of_its_own(tiers: Tiers, inner_checkpointer: bool | None) -> None:
    async def scenario(saver: Saver, thread: str) -> Any:
        graph, config = nested(saver, inner_checkpointer=inner_checkpointer), on_thread(thread)
        seen = []
        for turn in range(TURNS):
            await graph.ainvoke({"seen": [f"turn {turn}"]}, config)
            state = await graph.aget_state(config, subgraphs=True)
            seen.append(outline(state))
            edited = await graph.aupdate_state(state.tasks[0].state.config, {"seen": ["edited"]})
            assert edited["configurable"]["checkpoint_ns"]
            seen.append(await graph.ainvoke(Command(resume=f"answer {turn}"), config))
        return seen, await outlines(graph, config)

    seen, _ = await tiers.run_with_both(scenario)
    assert [len(s["tasks"]) for s in seen[::2]] == [1] * TURNS
    for turn in range(TURNS):
        assert seen[2 * turn + 1]["seen"][-3:] == ["edited", f"answer {turn}", "after"]
    notes = [line for line in seen[-1]["seen"] if line.startswith("note")]
    assert len(notes) >= TURNS


async def test_subgraphs_side_by_side_keep_their_states_apart(tiers: Tiers) -> None:
    async def scenario(saver: Saver, thread: str) -> Any:
        inner = StateGraph(Inner)
        inner.add_node("ask", lambda s: {"seen": [interrupt(s["seen"][-1])]})
        inner.add_edge(START, "ask")
        compiled = inner.compile()

        async def call(item: dict[str, str]) -> dict[str, Any]:
            return {"seen": (await compiled.ainvoke({"seen": [item["name"]]}))["seen"]}

        outer = StateGraph(Inner)
        outer.add_node("call", call)
        names = ["a", "b", "c"]
        outer.add_conditional_edges(START, lambda s: [Send("call", {"name": n}) for n in names], ["call"])
        graph, config = outer.compile(checkpointer=saver), on_thread(thread)
        asked = (await graph.ainvoke({"seen": []}, config))["__interrupt__"]
        answers = {i.id: f"answer to {i.value}" for i in asked}
        return sorted(i.value for i in asked), await graph.ainvoke(Command(resume=answers), config)

    asked, answered = await tiers.run_with_both(scenario)
    assert asked == ["a", "b", "c"]
    assert answered["seen"] == [x for n in "abc" for x in (n, f"answer to {n}")]


class Flaky(TypedDict):
    results: Annotated[list[str], operator.add]


async def test_a_sibling_of_a_node_that_failed_is_not_run_again(tiers: Tiers) -> None:
    """Pending writes that were lost made tools run twice: langchain-aws#1174, langgraphjs#1996."""
    siblings = 5

    async def scenario(saver: Saver, thread: str) -> Any:
        calls: list[str] = []

        async def bad(state: Flaky) -> dict[str, Any]:
            calls.append("bad")
            if calls.count("bad") == 1:
                await eventually(siblings_stored)
                raise ValueError("not this time")
            return {"results": ["bad, at last"]}

        async def siblings_stored() -> bool:
            found = await tiers.upstream.aget_tuple(on_thread(thread))
            writes = found.pending_writes if found else None
            return sum(channel == "results" for _, channel, _ in writes or []) == siblings

        def good(name: str) -> Any:
            async def run(state: Flaky) -> dict[str, Any]:
                calls.append(name)
                return {"results": [name]}

            return run

        builder = StateGraph(Flaky)
        for number in range(siblings):
            builder.add_node(f"good {number}", good(f"good {number}"))
            builder.add_edge(START, f"good {number}")
        builder.add_node("bad", bad)
        builder.add_edge(START, "bad")
        graph, config = builder.compile(checkpointer=saver), on_thread(thread)
        with pytest.raises(ValueError, match="not this time"):
            await graph.ainvoke({"results": []}, config)
        failed = outline(await graph.aget_state(config))
        return failed, await graph.ainvoke(None, config), sorted(calls)

    failed, result, calls = await tiers.run_with_both(scenario)
    assert "not this time" in str(failed["tasks"])
    names = [f"good {n}" for n in range(siblings)]
    assert calls == sorted([*names, "bad", "bad"])
    assert sorted(result["results"]) == sorted([*names, "bad, at last"])


async def test_a_node_with_a_retry_policy_runs_again_by_itself(tiers: Tiers) -> None:
    async def scenario(saver: Saver, thread: str) -> Any:
        calls = 0

        async def flaky(state: Flaky) -> dict[str, Any]:
            nonlocal calls
            calls += 1
            if calls % 3:
                raise ConnectionError("again")
            return {"results": [f"call {calls}"]}

        builder = StateGraph(Flaky)
        policy = RetryPolicy(initial_interval=0.001, jitter=False, max_attempts=3)
        builder.add_node("flaky", flaky, retry_policy=policy)
        builder.add_edge(START, "flaky")
        builder.add_edge("flaky", END)
        graph, config = builder.compile(checkpointer=saver), on_thread(thread)
        for _ in range(TURNS):
            result = await graph.ainvoke({"results": []}, config)
        return result, await outlines(graph, config)

    result, _ = await tiers.run_with_both(scenario)
    assert result["results"] == ["call 3", "call 6", "call 9"]


async def test_what_many_tasks_write_at_once_is_all_there(tiers: Tiers) -> None:
    """A blob that was read, changed and stored again lost some of them: langchain-aws#1174."""
    tasks = 40

    async def scenario(saver: Saver, thread: str) -> Any:
        async def work(item: dict[str, int]) -> dict[str, Any]:
            return {"results": [f"task {item['n']:02}"]}

        async def ask(state: Any) -> dict[str, Any]:
            return {"results": [str(interrupt("all there?"))]}

        builder = StateGraph(Flaky)
        builder.add_node("work", work)
        builder.add_node("ask", ask)
        sends = [Send("work", {"n": n}) for n in range(tasks)]
        builder.add_conditional_edges(START, lambda s: [*sends, Send("ask", {})], ["work", "ask"])
        graph, config = builder.compile(checkpointer=saver), on_thread(thread)
        await graph.ainvoke({"results": []}, config)
        pending = await saver.aget_tuple(config)
        assert pending
        assert pending.pending_writes
        written = sorted(v[0] for _, channel, v in pending.pending_writes if channel == "results")
        return written, await graph.ainvoke(Command(resume="yes"), config)

    written, result = await tiers.run_with_both(scenario)
    assert written == [f"task {n:02}" for n in range(tasks)]
    assert result["results"] == [*written, "yes"]
    assert tiers.saver.stats()["hits"] > 0
