"""`adelete_for_runs`: what some runs have stored goes, and what others need stays."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from langgraph_checkpoint_cached import ArgumentError, ArgumentTypeError, HistoryNeededError
from tests.integration.test_copy_thread import graph_of as delta_graph_of
from tests.integration.test_field_notes_threads import THREAD_IDS
from tests.integration.test_graphs_history import graph_of
from tests.support.agreement import CACHED, Tiers, new_checkpoint, on_thread, outline
from tests.support.rows import NONE, count_of, rows_of

pytestmark = pytest.mark.integration


async def run(graph: Any, thread_id: str, run_id: str, given: Any) -> Any:
    """A run whose checkpoints say so."""
    await graph.ainvoke(given, {**on_thread(thread_id), "metadata": {"run_id": run_id}})
    return await graph.aget_state(on_thread(thread_id))


async def turns(tiers: Tiers, thread_id: str, *run_ids: str) -> list[Any]:
    graph = graph_of(tiers.saver)
    return [await run(graph, thread_id, run_id, {"trail": [run_id]}) for run_id in run_ids]


async def test_a_thread_is_as_it_was_before_its_last_run(tiers: Tiers) -> None:
    [first] = await turns(tiers, CACHED, "one")
    before = await rows_of(tiers, CACHED)
    await turns(tiers, CACHED, "two")
    other = tiers.another_saver()
    await other.aget_tuple(on_thread(CACHED))
    await tiers.saver.adelete_for_runs(["two", "none"])
    assert await rows_of(tiers, CACHED) == before
    graph = graph_of(other)
    assert await graph.aget_state(on_thread(CACHED)) == first
    again = await graph.ainvoke({"trail": ["three"]}, on_thread(CACHED))
    assert again["trail"][:5] == [*first.values["trail"], "three"]
    await tiers.assert_agree()


async def test_later_runs_keep_values_and_lose_deleted_parent(tiers: Tiers) -> None:
    states = await turns(tiers, CACHED, "one", "two", "three")
    await tiers.saver.adelete_for_runs(["one", "two"])
    left = [found async for found in tiers.saver.alist(on_thread(CACHED))]
    assert {found.metadata["run_id"] for found in left} == {"three"}
    assert [found.parent_config for found in left] == [found.config for found in left[1:]] + [None]
    assert outline(await graph_of(tiers.saver).aget_state(on_thread(CACHED))) == outline(states[-1])
    named = {(c, v) for found in left for c, v in found.checkpoint["channel_versions"].items()}
    rows = await rows_of(tiers, CACHED)
    assert {(channel, version) for _, channel, version, *_ in rows["checkpoint_blobs"]} <= named
    assert {row[1] for row in rows["checkpoint_writes"]} <= {found.checkpoint["id"] for found in left}
    await tiers.assert_agree()


async def test_nothing_is_left_of_a_thread_whose_runs_all_go(tiers: Tiers) -> None:
    for thread_id in ("a", "b"):
        await turns(tiers, thread_id, "one", "two")
    await tiers.saver.adelete_for_runs(["one", "two"])
    for thread_id in ("a", "b"):
        assert await count_of(tiers, thread_id) == NONE
        assert await tiers.saver.aget_tuple(on_thread(thread_id)) is None


async def test_only_the_threads_that_are_named_change(tiers: Tiers) -> None:
    for thread_id in THREAD_IDS:
        await tiers.saver.aput(on_thread(thread_id, checkpoint_ns=""), new_checkpoint(), {"run_id": "run"}, {})
    for number, thread_id in enumerate(THREAD_IDS):
        await tiers.saver.adelete_for_runs(["run"], thread_ids=[thread_id])
        for other, there in enumerate(THREAD_IDS):
            assert (await tiers.saver.aget_tuple(on_thread(there)) is None) == (other <= number)


async def test_run_ids_are_compared_as_they_are(tiers: Tiers) -> None:
    ids = ["a", "a%", "a_", "", "%", "A", "{a}"]
    for run_id in ids:
        await tiers.saver.aput(on_thread("t", checkpoint_ns=""), new_checkpoint(), {"run_id": run_id}, {})
    await tiers.saver.aput(on_thread("t", checkpoint_ns=""), new_checkpoint(), {}, {})
    for number, run_id in enumerate(ids):
        await tiers.saver.adelete_for_runs([run_id])
        left = [found.metadata.get("run_id") async for found in tiers.saver.alist(on_thread("t"))]
        assert left == [None, *ids[:number:-1]]


async def test_a_delta_channel_that_stays_is_not_robbed_of_its_history(tiers: Tiers) -> None:
    graph = delta_graph_of(tiers.saver)
    for thread_id in ("t", "u"):
        for run_id in ("one", "two"):
            state = await run(graph, thread_id, f"{thread_id} {run_id}", {"trail": [run_id], "log": [run_id]})
    before = await rows_of(tiers, "u")
    with pytest.raises(HistoryNeededError, match=r"'u'.*log"):
        await tiers.saver.adelete_for_runs(["u one"])
    assert await rows_of(tiers, "u") == before
    assert await graph.aget_state(on_thread("u")) == state
    await tiers.saver.adelete_for_runs(["t two"])  # nothing is built on these
    logs = (await graph.aget_state(on_thread("t"))).values["log"]
    assert logs == ["one", "1"]
    await tiers.saver.adelete_for_runs(["t one", "u one", "u two"])
    assert await count_of(tiers, "t") == await count_of(tiers, "u") == NONE


async def test_runs_go_while_others_are_written(tiers: Tiers) -> None:
    """Concurrent writes are neither lost nor overtaken by what Redis held."""
    savers = [tiers.saver, *(tiers.another_saver() for _ in range(2))]

    async def write(number: int) -> None:
        for turn in range(15):
            version = savers[number].get_next_version(None, None)
            checkpoint = new_checkpoint(channel_values={"x": [turn]}, channel_versions={"x": version})
            metadata: Any = {"run_id": f"{number} {turn}"}
            where = on_thread("t", checkpoint_ns=str(number))
            await savers[number].aput(where, checkpoint, metadata, {"x": version})
            if turn:
                await savers[number - 1].adelete_for_runs([f"{number} {turn - 1}"])
            for reader in savers:
                found = await reader.aget_tuple(where)
                assert found
                assert found.metadata == metadata
                assert found.checkpoint["channel_values"] == {"x": [turn]}

    await asyncio.gather(*map(write, range(3)))
    assert await count_of(tiers, "t") == [3, 3, 0]


async def test_what_cannot_be_meant_is_refused(tiers: Tiers) -> None:
    with pytest.raises(ArgumentTypeError, match="run_ids"):
        await tiers.saver.adelete_for_runs("run")
    with pytest.raises(ArgumentTypeError, match="thread_ids"):
        await tiers.saver.adelete_for_runs(["run"], thread_ids="t")
    with pytest.raises(ArgumentError, match="run_ids"):
        await tiers.saver.adelete_for_runs([str(number) for number in range(10_001)])
    await tiers.saver.adelete_for_runs([])
    await tiers.saver.adelete_for_runs(["run"], thread_ids=[])
