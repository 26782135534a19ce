"""Bugs that other checkpointers shipped. Each is tested, here or where this table says.

| bug | its test |
|---|---|
| concurrent put_writes change one blob, langchain-aws#1174 | `test_graphs_parallel.py`, and many writers here |
| put clobbers what put_writes stored, langgraphjs#1996 | writes before, between and after their checkpoint |
| only channels in new_versions kept, langgraphjs#2334 | channels that did not change |
| coalescing keeps one slot for all, DeferredCheckpointSaver | nothing is coalesced; namespaces by turns |
| stale state across processes, langgraph4j#357, #348, #360 | two savers by turns; `test_coherence.py` |
| interrupt writes deleted by the next put, langgraph-redis#133, #113 | `test_graphs_human.py`, older writes |
| an expiry in the same pipeline lost the writes, langgraph-redis#174 | all keys expire, the writes are there |
| keys without expiry, parts that expire apart, langgraph-redis#137 | any key lost; and every graph test |
| the latest pointer moved back, checkpoint-redis 0.5.2 | `test_graphs_history.py`, puts in any order here |
| pointer present, document gone, checkpoint-redis 0.5.2 | any key lost, any field of the entry's frame lost |
| a backend error returned None, AsyncValkeySaver 1.2.6 | a pool of two connections; `test_redis_faults.py` |
| prefixes sharing a pointer, langgraph-redis#187 | `test_field_notes_threads.py` |
| namespace "" under another name, langgraph-redis#104, #59 | `test_field_notes_threads.py` |
| thread id matched as a glob or prefix, langchain-aws#877 | `test_field_notes_threads.py` |
| CROSSSLOT in Cluster, langchain-aws#809, langgraph-redis#25 | `test_field_notes_threads.py` |
| types came back as dicts, langgraph-redis#94 to #198 | `test_graphs.py`, Send and Interrupt here |
| DeltaChannel snapshot lost, langgraph-redis#201 | `test_graphs.py` |
| alist: before, order, filters, langgraph-redis#106 | every search here |
| returned config without checkpoint_id, langgraph-redis#64 | what put returns |
| keep_latest broke chains with interrupts, langgraph-redis#159 | `test_graphs_history.py`, open questions |
| decode_responses=True | `test_conformance.py` |
| the caller's client was closed, langgraph-redis#93 | `test_postgres.py`; a RedisCluster here |
| no building outside a running loop, langgraph-redis#179 | `test_sync_saver.py` |
| sync put on the loop's thread, langgraph#7857 | `test_sync_saver.py` |
| the sync list keeps its lock, checkpoint-postgres 3.2.0 | `test_sync_saver.py` |
| metadata with NUL, no channel_values, values mutated, langgraph#1878, #6137, #4168 | here, each |
| a cancelled command's reply for the next caller, redis-py#2624, #2665 | `test_field_notes_threads.py` |
| ciphertext of another thread accepted, langgraph#9004 | `test_field_notes_threads.py` |
| plaintext accepted by an encrypted saver, langgraph#8938 | the serializer's own choice, the same in both tiers |
| Redis full under noeviction, daiv#981 | `test_redis_faults.py` |
| a format change between versions, langgraph-redis#81 | two versions at once |
"""

from __future__ import annotations

import asyncio
import itertools
import operator
from typing import Annotated, Any, TypedDict

import psycopg
import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import Checkpoint, CheckpointTuple
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, RESUME
from langgraph.graph import START, StateGraph
from langgraph.types import Command, Interrupt, Send, interrupt
from psycopg.types.json import Jsonb
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.cluster import RedisCluster

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.stores.redis import entry_format
from tests.support.agreement import CACHED, UPSTREAM, Saver, Tiers, new_checkpoint, new_saver, on_thread

pytestmark = pytest.mark.integration


class Thread:
    """A namespace that checkpoints are stored in, one after the other, as LangGraph does."""

    def __init__(self, saver: Saver, thread_id: str = CACHED, checkpoint_ns: str = "") -> None:
        self.saver = saver
        self.config = on_thread(thread_id, checkpoint_ns=checkpoint_ns)
        self.latest: Checkpoint | None = None

    def next(self, **values: Any) -> tuple[RunnableConfig, Checkpoint, dict[str, Any]]:
        """Arguments of `aput` for a checkpoint in which these channels change, and the others do not."""
        before = self.latest or new_checkpoint()
        new: dict[str, Any] = {}
        for channel in values:
            new[channel] = self.saver.get_next_version(before["channel_versions"].get(channel), None)
        checkpoint = new_checkpoint(
            channel_values={**before["channel_values"], **values},
            channel_versions={**before["channel_versions"], **new},
        )
        parent = {"checkpoint_id": before["id"]} if self.latest else {}
        config: RunnableConfig = {"configurable": {**self.config["configurable"], **parent}}
        self.latest = checkpoint
        return config, checkpoint, new

    async def put(self, metadata: Any = None, **values: Any) -> RunnableConfig:
        config, checkpoint, new = self.next(**values)
        return await self.saver.aput(config, checkpoint, metadata or {"source": "loop"}, new)

    async def read(self) -> CheckpointTuple:
        found = await self.saver.aget_tuple(self.config)
        assert found
        return found

    def at(self, checkpoint: Checkpoint | None = None) -> RunnableConfig:
        """The config that names the checkpoint, or the latest one that was made here."""
        named = checkpoint or self.latest
        assert named
        return {"configurable": {**self.config["configurable"], "checkpoint_id": named["id"]}}


@pytest.fixture
async def thread(tiers: Tiers) -> Thread:
    """One with an entry: two checkpoints, and pending writes of the latest."""
    thread = Thread(tiers.saver)
    await tiers.saver.aget_tuple(thread.config)
    await thread.put(messages=["hello"], other=[0])
    await thread.put(messages=["hello", "you"])
    await tiers.saver.aput_writes(thread.at(), [("messages", ["pending"]), ("other", [1])], "task")
    assert tiers.saver.stats()["entry_updates"] == 3
    return thread


async def test_pending_writes_of_many_writers_are_all_kept(tiers: Tiers, thread: Thread) -> None:
    """langchain-aws#1174: each read one blob, changed it and stored it, and tool results were lost."""
    savers = [tiers.saver, tiers.another_saver(), tiers.another_saver()]
    await asyncio.gather(
        *(
            saver.aput_writes(thread.at(), [("messages", [f"{number}-{task}"])], f"task {number}-{task}")
            for number, saver in enumerate(savers)
            for task in range(20)
        )
    )
    for saver in savers:
        found = await saver.aget_tuple(thread.config)
        assert found
        assert len(found.pending_writes or []) == 2 + 3 * 20
    await tiers.assert_agree()


@pytest.mark.parametrize("order", sorted(itertools.permutations(["first", "put", "second"])))
async def test_a_checkpoint_and_its_writes_may_come_in_any_order(
    tiers: Tiers, thread: Thread, order: tuple[str, ...]
) -> None:
    """langgraphjs#1996: the checkpoint's own put removed the writes that had come before."""
    put = thread.next(messages=["later"])
    steps = {
        "first": lambda: tiers.saver.aput_writes(thread.at(), [("messages", ["a"])], "task a"),
        "put": lambda: tiers.saver.aput(put[0], put[1], {"source": "loop"}, put[2]),
        "second": lambda: tiers.saver.aput_writes(thread.at(), [("messages", ["b"])], "task b"),
    }
    for step in order:
        await steps[step]()
        assert await tiers.saver.aget_tuple(thread.config) == await tiers.upstream.aget_tuple(thread.config)
    assert [value for *_, value in (await thread.read()).pending_writes or []] == [["a"], ["b"]]
    await tiers.assert_agree()


async def test_channels_that_did_not_change_keep_their_values(tiers: Tiers, thread: Thread) -> None:
    """langgraphjs#2334: only the channels in new_versions were kept."""
    for number in range(5):
        await thread.put(messages=[f"{number}"])
    hits = tiers.saver.stats()["hits"]
    values = (await thread.read()).checkpoint["channel_values"]
    assert tiers.saver.stats()["hits"] == hits + 1
    assert values == {"messages": ["4"], "other": [0]}
    await tiers.assert_agree()


async def test_namespaces_that_take_turns_keep_their_own_versions(tiers: Tiers) -> None:
    """DeferredCheckpointSaver: one slot for all namespaces, with the last one's new_versions."""
    threads = [Thread(tiers.saver, CACHED, ns) for ns in ("", "a", "a|b", "a:1", "a:1|b:2")]
    for turn in range(3):
        for number, thread in enumerate(threads):
            await thread.read() if turn else await tiers.saver.aget_tuple(thread.config)
            await thread.put(**{f"channel {number}": [turn], "common": [turn, number]})
    for number, thread in enumerate(threads):
        values = (await thread.read()).checkpoint["channel_values"]
        assert values == {f"channel {number}": [2], "common": [2, number]}
    assert tiers.saver.stats()["loads"] == 1  # the root's: with it the thread is known to have no other namespace
    await tiers.assert_agree()


async def test_two_processes_that_take_turns_see_each_others_writes(tiers: Tiers, thread: Thread) -> None:
    """langgraph4j#357, #348, #360: a cache in the process served what it had seen last."""
    savers = itertools.cycle([tiers.saver, tiers.another_saver()])
    for turn in range(10):
        thread.saver = next(savers)
        await thread.put(messages=[f"turn {turn}"])
        for _ in range(2):
            thread.saver = next(savers)
            assert (await thread.read()).checkpoint["channel_values"]["messages"] == [f"turn {turn}"]
    await tiers.assert_agree()


async def test_special_writes_outlive_the_next_checkpoint(tiers: Tiers, thread: Thread) -> None:
    """langgraph-redis#133, #113: the next put deleted the interrupt's writes."""
    asked = thread.at()
    await tiers.saver.aput_writes(asked, [(INTERRUPT, [Interrupt("?", id="i")])], "task")
    await tiers.saver.aput_writes(asked, [(RESUME, ["!"])], "task")
    await tiers.saver.aput_writes(asked, [(RESUME, ["!", "!!"])], "task")
    await tiers.saver.aput_writes(asked, [(ERROR, "oh")], "task")
    await tiers.saver.aput_writes(asked, [("messages", ["is ignored"])], "task")
    hits = tiers.saver.stats()["hits"]
    before = await thread.read()
    assert tiers.saver.stats()["hits"] == hits + 1, "writes that replace others leave the entry in place"
    assert tiers.saver.stats()["redis_errors"] == 0
    assert {channel: value for _, channel, value in before.pending_writes or []} == {
        "messages": ["pending"],
        "other": [1],
        INTERRUPT: [Interrupt("?", id="i")],
        RESUME: ["!", "!!"],
        ERROR: "oh",
    }
    await thread.put(messages=["next"])
    assert await tiers.saver.aget_tuple(asked) == before
    await tiers.assert_agree()


async def test_every_key_expires_and_its_writes_are_there(tiers: Tiers, thread: Thread) -> None:
    """langgraph-redis#174: the expiry, in the same pipeline, lost the writes."""
    keys = await tiers.keys()
    assert len(keys) == 2
    assert all([await tiers.redis.pttl(key) > 0 for key in keys])
    hits = tiers.saver.stats()["hits"]
    assert len((await thread.read()).pending_writes or []) == 2
    assert tiers.saver.stats()["hits"] == hits + 1


@pytest.mark.parametrize("part", ["thread", "entry", "both", "g of thread", "g", "i", "h", "v"])
async def test_whatever_part_of_an_entry_is_lost_the_thread_is_not(
    tiers: Tiers, thread: Thread, part: str
) -> None:
    """checkpoint-redis 0.5.2: a pointer without its document was an empty thread."""
    entry, own = sorted(await tiers.keys(), key=lambda key: key.endswith(b":thread"))
    expected = await tiers.upstream.aget_tuple(thread.config)
    await thread.read()
    if part in ("thread", "both"):
        await tiers.redis.delete(own)
    if part in ("entry", "both"):
        await tiers.redis.delete(entry)
    if part == "g of thread":
        await tiers.redis.hdel(own, "g")
    if len(part) == 1:
        await tiers.redis.hdel(entry, part)
    hits = tiers.saver.stats()["hits"]
    assert await tiers.saver.aget_tuple(thread.config) == expected
    assert tiers.saver.stats()["hits"] == hits + (part == "v"), "versions are for writing"
    await thread.put(messages=["goes on"])
    assert await tiers.saver.aget_tuple(thread.config) == await tiers.upstream.aget_tuple(thread.config)
    await tiers.assert_agree()


async def test_highest_checkpoint_is_latest_in_any_order_of_puts(tiers: Tiers) -> None:
    """checkpoint-redis 0.5.2: a late older put moved the pointer back."""
    for number, order in enumerate(itertools.permutations(range(3))):
        thread = Thread(tiers.saver, f"{CACHED}-{number}")
        await tiers.saver.aget_tuple(thread.config)
        puts = [thread.next(messages=[turn]) for turn in range(3)]
        for turn in order:
            config, checkpoint, new = puts[turn]
            await tiers.saver.aput(config, checkpoint, {"source": "loop"}, new)
            assert await tiers.saver.aget_tuple(thread.config) == await tiers.upstream.aget_tuple(thread.config)
        assert (await thread.read()).checkpoint["id"] == puts[2][1]["id"]
    await tiers.assert_agree()


async def test_reads_for_which_there_is_no_connection_are_not_empty(tiers: Tiers, thread: Thread) -> None:
    """AsyncValkeySaver 1.2.6: 54 of 64 concurrent reads came back as empty threads."""
    async with Redis.from_pool(ConnectionPool.from_url(tiers.redis_url, max_connections=2)) as narrow:
        saver = new_saver(narrow, tiers.upstream, tiers.prefix)
        found = await asyncio.gather(*(saver.aget_tuple(thread.config) for _ in range(64)))
        assert found == [await tiers.upstream.aget_tuple(thread.config)] * 64
        assert saver.stats()["redis_errors"] == 0  # they share a round trip, so two connections are plenty
        await saver.aclose()


async def test_langgraphs_own_types_come_back_as_themselves(tiers: Tiers, thread: Thread) -> None:
    """langgraph-redis#94, #113, #85: Send and Interrupt came back as dicts; #198: dicts as Interrupts."""
    values = [
        Send("node", {"arg": {1, 2}}),
        Interrupt("?", id="i"),
        {"value": "?", "id": "i"},
        {"node": "node", "arg": 1},
        [Interrupt({"value": "?"}, id="j"), (Send("a", "b"),)],
    ]
    await tiers.saver.aput_writes(thread.at(), [("sends", value) for value in values], "types")
    await thread.put(sends=values)
    for read in (thread.read(), tiers.upstream.aget_tuple(thread.config)):
        found = await read
        assert found
        kept = found.checkpoint["channel_values"]["sends"]
        assert list(map(type, kept)) == list(map(type, values))
        assert kept[:4] == values[:4]
    await tiers.assert_agree()


async def test_search_finds_what_upstream_finds(tiers: Tiers, thread: Thread) -> None:
    """langgraph-redis#106: before was ignored, the order was ascending, few filters worked."""
    for step in range(6):
        await thread.put(
            {"source": ["input", "loop"][step % 2], "step": step, "own": {"x": step}}, messages=[step]
        )
    history = [found async for found in tiers.upstream.alist(thread.config)]
    filters: list[dict[str, Any] | None] = [
        None,
        {},
        {"source": "input"},
        {"source": "loop", "step": 3},
        {"own": {"x": 2}},
        {"own": {}},
        {"nothing": 1},
    ]
    befores = [None, history[0].config, history[3].config, history[-1].config]
    configs = [thread.config, on_thread(CACHED), None, history[2].config, on_thread("nobody")]
    sizes = set()
    for wanted, before, config, limit in itertools.product(filters, befores, configs, [None, 1, 3]):
        search: dict[str, Any] = {"filter": wanted, "before": before, "limit": limit}
        ours = [found async for found in tiers.saver.alist(config, **search)]
        assert ours == [found async for found in tiers.upstream.alist(config, **search)]
        sizes.add(len(ours))
    assert sizes >= {0, 1, 2, 3, len(history)}


async def test_put_returns_the_config_of_what_it_stored(tiers: Tiers) -> None:
    """langgraph-redis#64: checkpoint_id was None."""
    ours, upstream = Thread(tiers.saver, CACHED, "ns"), Thread(tiers.upstream, UPSTREAM, "ns")
    for thread in (ours, upstream, ours, upstream):
        stored = await thread.put(messages=["x"])
        assert stored == thread.at()
        found = await thread.saver.aget_tuple(stored)
        assert found
        assert found.config == stored


class Answers(TypedDict):
    answers: Annotated[list[Any], operator.add]


async def test_a_pruned_thread_keeps_its_open_questions(tiers: Tiers) -> None:
    """langgraph-redis#159: keep_latest broke threads with several interrupts."""

    async def scenario(saver: Saver, thread: str) -> Any:
        builder = StateGraph(Answers)
        builder.add_node("ask", lambda s: {"answers": [[interrupt(n) for n in range(3)]]})
        builder.add_edge(START, "ask")
        graph, config, seen = builder.compile(checkpointer=saver), on_thread(thread), []
        for value in ({"answers": []}, *(Command(resume=f"answer {n}") for n in range(3))):
            seen.append(await graph.ainvoke(value, config))
            await saver.aprune([thread])
        return [[i.value for i in s.get("__interrupt__", [])] for s in seen], seen[-1]

    questions, last = await tiers.run_with_both(scenario)
    assert questions == [[0], [1], [2], []]
    assert last == {"answers": [["answer 0", "answer 1", "answer 2"]]}


async def test_a_cluster_client_is_taken_before_it_is_connected(tiers: Tiers) -> None:
    """langgraph-redis#93: it has no connection_pool."""
    cluster = RedisCluster(host="127.0.0.1", port=1)
    saver = CachedPostgresSaver(cluster, tiers.upstream, prefix=tiers.prefix)
    await saver.aclose()
    await cluster.aclose()


async def test_metadata_with_nul_is_stored_as_upstream(tiers: Tiers) -> None:
    """langgraph#1878. It is stripped at the top, and refused by Postgres deeper down."""
    found = []
    for saver, thread_id in ((tiers.saver, CACHED), (tiers.upstream, UPSTREAM)):
        thread = Thread(saver, thread_id)
        await saver.aget_tuple(thread.config)
        await thread.put({"source": "loop", "text": "a\0b"}, messages=["\0 here too"])
        await saver.aget_tuple(thread.config)
        read = await thread.read()
        with pytest.raises(psycopg.errors.UntranslatableCharacter):
            await thread.put({"source": "loop", "deep": [{"k": "\0"}]}, messages=["refused"])
        assert await thread.read() == read
        found.append((read.metadata, read.checkpoint["channel_values"]))
    assert found[0] == found[1]
    assert found[0][1] == {"messages": ["\0 here too"]}
    await tiers.assert_agree()


@pytest.mark.parametrize("checkpoint_format", [1, 2, 3, 4])
@pytest.mark.parametrize("lacking", ["channel_values", "updated_channels", "nothing"])
async def test_checkpoint_of_older_release_reads_as_upstream(
    tiers: Tiers, lacking: str, checkpoint_format: int
) -> None:
    """langgraph#6137: older releases stored no channel_values."""
    stored = dict(new_checkpoint(v=checkpoint_format, pending_sends=[]))
    stored.pop(lacking, None)
    async with await psycopg.AsyncConnection.connect(tiers.postgres_url) as conn:
        await conn.execute(
            "insert into checkpoints (thread_id, checkpoint_id, checkpoint) values (%s, %s, %s)",
            (CACHED, stored["id"], Jsonb(stored)),
        )
    thread = Thread(tiers.saver)
    expected = await tiers.upstream.aget_tuple(thread.config)
    assert expected
    for _ in range(3):
        assert await thread.read() == expected
    assert tiers.saver.stats()["hits"] == 2
    thread.latest = expected.checkpoint
    await thread.put(messages=["goes on"])
    await tiers.assert_agree()


async def test_values_may_change_while_they_are_stored(tiers: Tiers, thread: Thread) -> None:
    """langgraph#4168: what was stored was neither the old value nor the new one."""
    messages, written = [f"{n}" for n in range(1000)], ["written"]
    config, checkpoint, new = thread.next(messages=messages)
    put = asyncio.ensure_future(tiers.saver.aput(config, checkpoint, metadata := {"tags": ["a"]}, new))  # type: ignore[arg-type]
    writes = asyncio.ensure_future(tiers.saver.aput_writes(thread.at(checkpoint), [("messages", written)], "task"))
    await asyncio.sleep(0)  # both have begun
    messages.clear()
    written.clear()
    metadata["tags"].clear()
    checkpoint["channel_versions"].clear()
    await asyncio.gather(put, writes)
    found = await thread.read()
    assert found.checkpoint["channel_values"]["messages"] == [f"{n}" for n in range(1000)]
    assert found.metadata["tags"] == ["a"]  # type: ignore[typeddict-item]
    assert found.pending_writes == [("task", "messages", ["written"])]
    await tiers.assert_agree()


async def test_two_versions_of_this_package_can_run_side_by_side(
    tiers: Tiers, thread: Thread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """langgraph-redis#81: a change of the stored format broke running systems."""
    other, current = tiers.another_saver(), entry_format.FORMAT
    for turn in range(3):
        for version, saver in ((current, tiers.saver), (current + 1, other)):
            monkeypatch.setattr(entry_format, "FORMAT", version)
            thread.saver = saver
            await thread.put(messages=[f"{turn} by {version}"])
            await saver.aput_writes(thread.at(), [("messages", [version])], "task")
            monkeypatch.setattr(entry_format, "FORMAT", 2 * current + 1 - version)
            reader = other if saver is tiers.saver else tiers.saver
            assert await tiers.fences_left() == []
            assert await reader.aget_tuple(thread.config) == await tiers.upstream.aget_tuple(thread.config)
            assert await reader.aget_tuple(thread.config) == await tiers.upstream.aget_tuple(thread.config)
    assert other.stats()["damaged"] > 0, "what the other version stored is a miss"
    monkeypatch.undo()
    await tiers.assert_agree()
