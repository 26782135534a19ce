"""`acopy_thread`: a whole thread once more, and nothing else changed."""

from __future__ import annotations

import asyncio
import operator
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt

from langgraph_checkpoint_cached import ArgumentError, ThreadNotEmptyError
from tests.integration.test_field_notes_threads import NAMESPACES, THREAD_IDS, put, whose
from tests.support.agreement import CACHED, Tiers, new_checkpoint, on_thread, outline, outlines
from tests.support.rows import NONE, count_of, rows_of

pytestmark = pytest.mark.integration


class State(TypedDict):
    trail: Annotated[list[str], operator.add]
    log: Annotated[list[str], DeltaChannel(lambda log, new: log + [x for n in new for x in n])]


def graph_of(saver: Any) -> Any:
    """A subgraph that asks a human, and a `DeltaChannel`."""
    inner = StateGraph(State)
    inner.add_node("ask", lambda s: {"trail": [interrupt("well?")], "log": ["asked"]})
    inner.add_edge(START, "ask")
    outer = StateGraph(State)
    outer.add_node("say", lambda s: {"trail": [f"said {len(s['trail'])}"], "log": [f"{len(s['log'])}"]})
    outer.add_node("inner", inner.compile())
    outer.add_edge(START, "say")
    outer.add_edge("say", "inner")
    return outer.compile(checkpointer=saver)


async def talk(tiers: Tiers, thread_id: str) -> Any:
    """Two turns, the second of which waits for a human inside a subgraph."""
    graph = graph_of(tiers.saver)
    for turn in range(2):
        await graph.ainvoke({"trail": [f"turn {turn}"], "log": []}, on_thread(thread_id))
        if not turn:
            await graph.ainvoke(Command(resume="answered"), on_thread(thread_id))
    return graph


async def test_a_copy_has_the_same_rows_and_goes_on_by_itself(tiers: Tiers) -> None:
    graph = await talk(tiers, CACHED)
    copied = f"{CACHED} copied"
    assert await tiers.saver.aget_tuple(on_thread(copied)) is None  # which Redis knows from now on
    before = await rows_of(tiers, CACHED)
    await tiers.saver.acopy_thread(CACHED, copied)
    assert await rows_of(tiers, copied) == before == await rows_of(tiers, CACHED)
    assert all(before.values())
    assert {row[0] for row in before["checkpoints"]} > {""}, "the subgraph's namespace too"
    assert await outlines(graph, on_thread(copied)) == await outlines(graph, on_thread(CACHED))
    original = await graph.ainvoke(Command(resume="again"), on_thread(CACHED))
    assert outline(await graph.aget_state(on_thread(copied)))["interrupts"] == ["well?"]
    assert await graph.ainvoke(Command(resume="again"), on_thread(copied)) == original
    await tiers.assert_agree()


async def test_a_copy_may_be_repeated(tiers: Tiers) -> None:
    await talk(tiers, "a")
    for _ in range(2):
        await tiers.saver.acopy_thread("a", "b")
    assert await rows_of(tiers, "a") == await rows_of(tiers, "b")
    await asyncio.gather(*(tiers.another_saver().acopy_thread("a", "c") for _ in range(4)))
    assert await rows_of(tiers, "a") == await rows_of(tiers, "c")


@pytest.mark.parametrize("own", ["more", "pending write", "value", "other thread"])
async def test_nonempty_target_is_refused_without_overwrite(tiers: Tiers, own: str) -> None:
    await put(tiers.saver, "a")
    if own == "other thread":
        await put(tiers.saver, "b")
    else:
        await tiers.saver.acopy_thread("a", "b")
        found = await tiers.saver.aget_tuple(on_thread("b"))
        assert found
        if own == "more":
            await tiers.saver.aput(on_thread("b", checkpoint_ns=""), empty_checkpoint(), {}, {})
        elif own == "pending write":
            await tiers.saver.aput_writes(found.config, [("more", 1)], "task 2")
        else:
            changed: Any = {"whose": "mine", "inline": 1}
            await tiers.saver.aput(
                on_thread("b", checkpoint_ns=""), {**found.checkpoint, "channel_values": changed}, {}, {}
            )
    before = await rows_of(tiers, "b")
    with pytest.raises(ThreadNotEmptyError, match=r"'b'.*overwrite"):
        await tiers.saver.acopy_thread("a", "b")
    assert await rows_of(tiers, "b") == before
    other = tiers.another_saver()
    assert await other.aget_tuple(on_thread("b"))
    await tiers.saver.acopy_thread("a", "b", overwrite=True)
    assert await rows_of(tiers, "b") == await rows_of(tiers, "a")
    assert await whose(other, "b") == ["a", ""]
    assert await other.aget_tuple(on_thread("b")) == await tiers.upstream.aget_tuple(on_thread("b"))


async def test_empty_source_copies_nothing_and_empties_nothing(tiers: Tiers) -> None:
    await tiers.saver.acopy_thread("none", "b")
    assert await count_of(tiers, "b") == NONE
    await put(tiers.saver, "b")
    with pytest.raises(ThreadNotEmptyError, match="'none' has nothing"):
        await tiers.saver.acopy_thread("none", "b", overwrite=True)
    assert await whose(tiers.saver, "b") == ["b", ""]


async def test_a_thread_is_not_copied_onto_itself(tiers: Tiers) -> None:
    with pytest.raises(ArgumentError, match="both 'a'"):
        await tiers.saver.acopy_thread("a", "a", overwrite=True)


async def test_copying_touches_no_other_thread_whatever_their_names(tiers: Tiers) -> None:
    """langchain-aws#877: ids were taken for patterns."""
    for thread_id in THREAD_IDS:
        await put(tiers.saver, thread_id)
    for number, thread_id in enumerate(THREAD_IDS):
        await tiers.saver.acopy_thread(thread_id, f"copy {number}")
    for number, thread_id in enumerate(THREAD_IDS):
        assert await whose(tiers.saver, thread_id) == [thread_id, ""]
        assert await whose(tiers.saver, f"copy {number}") == [thread_id, ""]


async def test_all_namespaces_are_copied_and_writes_that_came_early(tiers: Tiers) -> None:
    for checkpoint_ns in NAMESPACES:
        await put(tiers.saver, "a", checkpoint_ns)
    early = new_checkpoint()
    await tiers.saver.aput_writes(
        on_thread("a", checkpoint_ns="", checkpoint_id=early["id"]), [("early", 1)], "task"
    )
    await tiers.saver.acopy_thread("a", "b")
    for checkpoint_ns in NAMESPACES:
        assert await whose(tiers.saver, "b", checkpoint_ns) == ["a", checkpoint_ns]
    await tiers.saver.aput(on_thread("b", checkpoint_ns=""), early, {}, {})
    found = await tiers.saver.aget_tuple(on_thread("b"))
    assert found
    assert found.pending_writes == [("task", "early", 1)]


async def test_source_written_meanwhile_is_copied_as_of_one_moment(tiers: Tiers) -> None:
    """Each copy is a chain without a gap, whose checkpoints have their values and writes."""
    done = asyncio.Event()

    async def write() -> None:
        config = on_thread("a", checkpoint_ns="")
        for number in range(60):
            version = tiers.saver.get_next_version(None, None)
            checkpoint = new_checkpoint(
                channel_values={"numbers": [number]}, channel_versions={"numbers": version}
            )
            config = await tiers.saver.aput(config, checkpoint, {"step": number}, {"numbers": version})
        done.set()

    writing = asyncio.create_task(write())
    copies = 0
    while not done.is_set():
        await tiers.another_saver().acopy_thread("a", f"copy {copies}")
        copies += 1
    await writing
    for number in range(copies):
        found = [t async for t in tiers.saver.alist(on_thread(f"copy {number}"))]
        assert [t.metadata["step"] for t in found] == list(range(len(found)))[::-1]
        assert [t.checkpoint["channel_values"]["numbers"] for t in found] == [[n] for n in range(len(found))][::-1]
        assert [t.parent_config for t in found] == [t.config for t in found[1:]] + [None] * bool(found)
