"""Time travel: states of the past, runs that start from one, and forks."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.graph import START, StateGraph

from tests.support.agreement import CACHED, Saver, Tiers, on_thread, outline, outlines

pytestmark = pytest.mark.integration

TURNS = 3


class State(TypedDict):
    trail: Annotated[list[str], operator.add]
    last: str


def graph_of(saver: Saver) -> Any:
    builder = StateGraph(State)
    for name, before in (("a", START), ("b", "a"), ("c", "b")):
        builder.add_node(name, lambda s, name=name: {"trail": [f"{name}{len(s['trail'])}"], "last": name})
        builder.add_edge(before, name)
    return builder.compile(checkpointer=saver)


async def with_history(saver: Saver, thread: str) -> tuple[Any, Any]:
    graph, config = graph_of(saver), on_thread(thread)
    for turn in range(TURNS):
        await graph.ainvoke({"trail": [f"turn {turn}"]}, config)
    return graph, config


async def at(graph: Any, config: Any, **wanted: Any) -> Any:
    """The newest state of the thread with this step, or this next node."""
    async for state in graph.aget_state_history(config):
        if wanted.get("next") in state.next or state.metadata["step"] == wanted.get("step"):
            return state
    raise AssertionError(f"no state with {wanted}")


async def test_every_state_of_the_past_can_be_asked_for(tiers: Tiers) -> None:
    async def scenario(saver: Saver, thread: str) -> Any:
        graph, config = await with_history(saver, thread)
        history = [state async for state in graph.aget_state_history(config)]
        for state in history:
            assert await graph.aget_state(state.config) == state
        limited = [s async for s in graph.aget_state_history(config, limit=3)]
        assert limited == history[:3]
        older = [s async for s in graph.aget_state_history(config, before=history[3].config)]
        assert older == history[4:]
        inputs = [s async for s in graph.aget_state_history(config, filter={"source": "input"})]
        return [outline(s) for s in history], [outline(s) for s in inputs]

    history, inputs = await tiers.run_with_both(scenario)
    assert len(history) == TURNS * 5
    assert len(inputs) == TURNS
    steps = [state["step"] for state in history]
    assert steps == sorted(steps, reverse=True)


async def test_a_run_can_start_from_an_older_checkpoint(tiers: Tiers) -> None:
    async def scenario(saver: Saver, thread: str) -> Any:
        graph, config = await with_history(saver, thread)
        older = await at(graph, config, step=2)
        replayed = await graph.ainvoke(None, older.config)
        latest = outline(await graph.aget_state(config))
        forked = await graph.ainvoke({"trail": ["forked"]}, older.config)
        return replayed, latest, forked, await outlines(graph, config)

    replayed, latest, forked, _ = await tiers.run_with_both(scenario)
    assert latest["values"] == replayed
    assert forked["trail"][-4] == "forked"


async def test_a_state_can_be_edited_where_it_is_and_in_the_past(tiers: Tiers) -> None:
    async def scenario(saver: Saver, thread: str) -> Any:
        graph, config = await with_history(saver, thread)
        seen = []
        here = await graph.aupdate_state(config, {"trail": ["here"]})
        assert here["configurable"]["checkpoint_id"]
        seen.append(outline(await graph.aget_state(config)))
        waiting = await at(graph, config, next="b")
        fork = await graph.aupdate_state(waiting.config, {"trail": ["in the past"]}, as_node="a")
        seen.append(outline(await graph.aget_state(config)))
        seen.append(await graph.ainvoke(None, fork))
        seen.append(await graph.ainvoke({"trail": ["after"]}, config))
        return seen, await outlines(graph, config)

    (here, past, run, after), _ = await tiers.run_with_both(scenario)
    assert here["values"]["trail"][-1] == "here"
    assert past["values"]["trail"][-1] == "in the past"
    assert past["next"] == ("b",)
    assert run["trail"][-3:] == ["in the past", f"b{len(run['trail']) - 2}", f"c{len(run['trail']) - 1}"]
    assert after["trail"][: len(run["trail"])] == run["trail"], "the fork is the latest now"


async def test_checkpoint_stored_late_does_not_become_latest(tiers: Tiers) -> None:
    """A pointer that was moved unconditionally went back: checkpoint-redis 0.5.2."""

    async def scenario(saver: Saver, thread: str) -> Any:
        graph, config = await with_history(saver, thread)
        older = await at(graph, config, step=2)
        found = await saver.aget_tuple(older.config)
        assert found
        assert found.parent_config
        await saver.aput(found.parent_config, found.checkpoint, found.metadata, {})
        state = outline(await graph.aget_state(config))
        return state, await graph.ainvoke({"trail": ["next"]}, config)

    state, after = await tiers.run_with_both(scenario)
    assert after["trail"][: len(state["values"]["trail"])] == state["values"]["trail"]


async def test_several_updates_at_once_are_one_checkpoint_each(tiers: Tiers) -> None:
    from langgraph.types import StateUpdate

    async def scenario(saver: Saver, thread: str) -> Any:
        graph, config = graph_of(saver), on_thread(thread)
        updates = [[StateUpdate({"trail": [f"{n}"]}, "a")] for n in range(4)]
        await graph.abulk_update_state(config, updates)
        return await outlines(graph, config), await graph.ainvoke(None, config)

    history, result = await tiers.run_with_both(scenario)
    assert len(history) == 4
    assert result["trail"][:4] == ["0", "1", "2", "3"]


async def test_a_thread_that_was_deleted_starts_again_from_nothing(tiers: Tiers) -> None:
    async def scenario(saver: Saver, thread: str) -> Any:
        graph, config = await with_history(saver, thread)
        await saver.adelete_thread(thread)
        empty = outline(await graph.aget_state(config))
        return empty, await graph.ainvoke({"trail": ["anew"]}, config), await outlines(graph, config)

    empty, anew, history = await tiers.run_with_both(scenario)
    assert empty["values"] == {}
    assert anew["trail"] == ["anew", "a1", "b2", "c3"]
    assert len(history) == 5


async def test_a_pruned_thread_goes_on_from_its_latest_state(tiers: Tiers) -> None:
    """`keep_latest` that broke chains: langgraph-redis#159."""

    async def scenario(saver: Saver, thread: str) -> Any:
        graph, config = await with_history(saver, thread)
        before = outline(await graph.aget_state(config))
        await saver.aprune([thread])
        pruned = await outlines(graph, config)
        assert [{**before, "has parent": False}] == pruned
        return pruned, await graph.ainvoke({"trail": ["next"]}, config), await outlines(graph, config)

    _, after, history = await tiers.run_with_both(scenario)
    assert len(history) == 1 + 5
    assert after["trail"][-4] == "next"
    assert tiers.saver.stats()["hits"] > 0


async def test_past_states_are_not_made_entries(tiers: Tiers) -> None:
    graph, config = await with_history(tiers.saver, CACHED)
    history = [state async for state in graph.aget_state_history(config)]
    latest = await graph.aget_state(config)
    for state in reversed(history):
        await graph.aget_state(state.config)
    hits = tiers.saver.stats()["hits"]
    assert await graph.aget_state(config) == latest
    assert tiers.saver.stats()["hits"] == hits + 1
