"""`aprune("keep_latest")` of threads that use a `DeltaChannel`: nobody can tell, but by the rows that are gone."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import START, StateGraph
from langgraph.types import Command, Overwrite, interrupt

from tests.integration.test_graphs_history import with_history
from tests.support.agreement import CACHED, UPSTREAM, Tiers, on_thread, outline
from tests.support.inspect import inspect
from tests.support.rows import count_of, rows_of

pytestmark = pytest.mark.integration


def joined(before: list[str], new: list[list[str]]) -> list[str]:
    return before + [line for lines in new for line in lines]


class State(TypedDict):
    often: Annotated[list[str], DeltaChannel(joined, snapshot_frequency=3)]
    seldom: Annotated[list[str], DeltaChannel(joined, snapshot_frequency=7)]
    never: Annotated[list[str], DeltaChannel(joined)]
    unused: Annotated[list[str], DeltaChannel(joined)]
    trail: Annotated[list[str], operator.add]


class Inner(TypedDict):
    notes: Annotated[list[str], DeltaChannel(joined, snapshot_frequency=2)]
    trail: Annotated[list[str], operator.add]


def graph_of(saver: Any) -> Any:
    inner = StateGraph(Inner)
    inner.add_node("note", lambda s: {"notes": [f"note {len(s['notes'])}"], "trail": [f"{len(s['notes'])}"]})
    inner.add_edge(START, "note")
    builder = StateGraph(State)

    def a(state: State) -> Any:
        turn = len(state["trail"])
        if turn % 11 == 8:
            return {"often": Overwrite(["cleared"]), "seldom": ["a"]}
        return {"often": [f"a {turn}"]}

    def b(state: State) -> Any:
        reply = interrupt("well?") if len(state["seldom"]) % 5 == 3 else "nothing"
        return {"seldom": [f"b {reply}"], "often": [f"b {len(state['often'])}"], "trail": ["b"]}

    builder.add_node("a", a)
    builder.add_node("b", b)
    builder.add_node("inner", inner.compile(checkpointer=True))
    builder.add_edge(START, "a")
    builder.add_edge("a", "b")
    builder.add_edge("b", "inner")
    return builder.compile(checkpointer=saver)


async def turn(graph: Any, thread_id: str, number: int, durability: Any) -> Any:
    config = on_thread(thread_id)
    waiting = (await graph.aget_state(config)).interrupts
    given = {
        "trail": [f"turn {number}"],
        "often": [],
        "seldom": [],
        "never": [f"{number}"] if number % 3 == 0 else [],
    }
    await graph.ainvoke(Command(resume="yes") if waiting else given, config, durability=durability)
    if number == 4:
        await graph.aupdate_state(config, {"never": ["updated"]})
    return outline(await graph.aget_state(config, subgraphs=True))


def values(state: Any) -> Any:
    return {key: value for key, value in state.items() if key != "has parent"}


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_pruned_and_unpruned_twin_stay_equal(tiers: Tiers, durability: str) -> None:
    graph = graph_of(tiers.saver)
    before: list[int] = []
    after: list[int] = []
    twin = f"{CACHED} twin"
    for number in range(14):
        pruned_state = await turn(graph, CACHED, number, durability)
        if not number:
            await tiers.saver.acopy_thread(CACHED, twin)
        else:
            twin_state = await turn(graph, twin, number, durability)
            assert values(pruned_state) == values(twin_state)
        before.append((await count_of(tiers, CACHED))[0])
        await tiers.saver.aprune([CACHED])
        after.append((await count_of(tiers, CACHED))[0])
        state = await graph.aget_state(on_thread(CACHED), subgraphs=True)
        assert values(outline(state)) == values(pruned_state)
        pruned_again = await rows_of(tiers, CACHED)
        await tiers.another_saver().aprune([CACHED])
        assert await rows_of(tiers, CACHED) == pruned_again
    assert pruned_state["values"]["often"]
    assert len(pruned_state["values"]["never"]) > 4
    assert sum(before) > sum(after)
    await tiers.assert_agree()


class OneDelta(TypedDict):
    lines: Annotated[list[str], DeltaChannel(joined, snapshot_frequency=3)]


async def test_what_is_kept_ends_at_the_last_snapshot(tiers: Tiers) -> None:
    builder = StateGraph(OneDelta)
    builder.add_node("say", lambda s: {"lines": [f"{len(s['lines'])}"]})
    builder.add_edge(START, "say")
    graph = builder.compile(checkpointer=tiers.saver)
    kept = []
    for _ in range(12):
        await graph.ainvoke({"lines": []}, on_thread("t"))
        state = await graph.aget_state(on_thread("t"))
        await tiers.saver.aprune(["t"])
        assert (await graph.aget_state(on_thread("t"))).values == state.values
        kept.append((await count_of(tiers, "t"))[0])
    assert max(kept) <= 6, "a few supersteps"
    assert min(kept) == 1, "the latest, when it has the snapshot itself"
    rows = await rows_of(tiers, "t")
    ids = {row[1] for row in rows["checkpoints"]}
    assert {row[2] for row in rows["checkpoints"]} <= ids | {None}
    assert {row[1] for row in rows["checkpoint_writes"]} <= ids


async def test_threads_without_deltas_are_pruned_as_upstream(tiers: Tiers) -> None:
    """Together with one that the upstream saver refuses."""
    await turn(graph_of(tiers.saver), "delta", 0, "sync")
    await with_history(tiers.saver, CACHED)
    await tiers.saver.acopy_thread(CACHED, UPSTREAM)
    with pytest.raises(NotImplementedError):
        await tiers.upstream.aprune([UPSTREAM, "delta"])
    await tiers.upstream.aprune([UPSTREAM])
    await tiers.saver.aprune([CACHED, "delta", "none"])
    assert await rows_of(tiers, CACHED) == await rows_of(tiers, UPSTREAM)


@pytest.mark.parametrize("checkpointer", [True, None])
async def test_own_prune_statements_leave_what_upstream_leaves(tiers: Tiers, checkpointer: bool | None) -> None:
    """Subgraphs whose calls are over, or go on, and one that waits for a human."""
    inner = StateGraph(_Plain)
    inner.add_node("ask", lambda s: {"trail": [interrupt("?") if len(s["trail"]) > 6 else "inner"]})
    inner.add_edge(START, "ask")
    outer = StateGraph(_Plain)
    outer.add_node("say", lambda s: {"trail": ["outer"]})
    outer.add_node("inner", inner.compile(checkpointer=checkpointer))
    outer.add_edge(START, "say")
    outer.add_edge("say", "inner")
    graph = outer.compile(checkpointer=tiers.saver)
    for _ in range(4):
        await graph.ainvoke({"trail": ["turn"]}, on_thread(CACHED))
        await tiers.saver.acopy_thread(CACHED, UPSTREAM, overwrite=True)
        await tiers.saver.acopy_thread(CACHED, "own", overwrite=True)
        await tiers.upstream.aprune([UPSTREAM])
        await inspect(tiers.saver).keep_latest("own")
        assert await rows_of(tiers, "own") == await rows_of(tiers, UPSTREAM)


class _Plain(TypedDict):
    trail: Annotated[list[str], operator.add]


async def test_langgraph_js_threads_are_refused_as_upstream(tiers: Tiers) -> None:
    await with_history(tiers.saver, "t")
    async with tiers.pool.connection() as conn:
        await conn.execute("""update checkpoints set metadata = metadata || '{"delta_writes_versioned": true}'""")
    before = await rows_of(tiers, "t")
    await turn(graph_of(tiers.saver), "delta", 0, "sync")
    delta = await rows_of(tiers, "delta")
    with pytest.raises(NotImplementedError, match="DeltaChannel: t"):
        await tiers.saver.aprune(["delta", "t"])
    assert await rows_of(tiers, "t") == before
    assert await rows_of(tiers, "delta") == delta, "nothing was pruned"
