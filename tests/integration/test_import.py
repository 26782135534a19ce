"""Threads of other savers, imported: they are all there, the same, and graphs go on with them."""

from __future__ import annotations

import json
import operator
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph, add_messages
from langgraph.types import Command, Send, interrupt
from redis.asyncio import Redis

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.demo.embedded import RedisServer
from langgraph_checkpoint_cached.migrate import sources
from langgraph_checkpoint_cached.migrate.copy_savers import copy_all
from tests.support.agreement import on_thread

pytestmark = pytest.mark.integration
THREADS = ["plain", "with:colon", "with {braces} and *", "ünïcode/ %41"]


class State(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    numbers: Annotated[list[int], operator.add]
    approved: bool


def graph_with(saver: BaseCheckpointSaver[Any]) -> Any:
    """Messages, a fan-out, a subgraph with a memory of its own, and an approval."""

    def answer(state: State) -> State:
        return {"messages": [AIMessage(f"answer {len(state['messages'])}")]}

    def fan_out(state: State) -> list[Send]:
        return [Send("count", {"numbers": [n]}) for n in range(3)]

    def count(state: State) -> State:
        return {"numbers": state["numbers"]}

    def approve(state: State) -> State:
        return {"approved": interrupt({"question": "may it?"})}

    inner = StateGraph(State)
    inner.add_node("answer", answer)
    inner.add_edge(START, "answer")
    builder = StateGraph(State)
    builder.add_node("inner", inner.compile(checkpointer=True))
    builder.add_node("count", count)
    builder.add_node("approve", approve)
    builder.add_edge(START, "inner")
    builder.add_conditional_edges("inner", fan_out, ["count"])
    builder.add_edge("count", "approve")
    return builder.compile(checkpointer=saver)


async def fill(saver: BaseCheckpointSaver[Any], threads: list[str] = THREADS) -> None:
    """In each thread one turn that was approved, and one that waits."""
    graph = graph_with(saver)
    for thread_id in threads:
        config = on_thread(thread_id)
        await graph.ainvoke({"messages": [HumanMessage("first")]}, config)
        await graph.ainvoke(Command(resume=True), config)
        await graph.ainvoke({"messages": [HumanMessage("second")]}, config)


async def assert_same_states(
    target: BaseCheckpointSaver[Any], source: BaseCheckpointSaver[Any], thread: str
) -> None:
    """Outline every checkpoint of the root graph, with its tasks and interrupts.

    The source is not asked for its history: checkpoint-redis 0.5.2 lists all namespaces for "".
    """
    history = [each async for each in graph_with(target).aget_state_history(on_thread(thread))]
    assert len(history) > 5
    for snapshot in history:
        assert snapshot == await graph_with(source).aget_state(snapshot.config)
    latest = await graph_with(source).aget_state(on_thread(thread))
    assert latest == history[0]
    assert latest.interrupts


@pytest.fixture
async def target(
    migrated_database_url: str, redis_url: str, redis_prefix: str
) -> AsyncIterator[CachedPostgresSaver]:
    opening = CachedPostgresSaver.from_conn_string(migrated_database_url, redis_url, prefix=redis_prefix)
    async with opening as saver:
        yield saver


async def test_all_threads_of_any_saver_are_copied_and_graphs_go_on(target: CachedPostgresSaver) -> None:
    source = InMemorySaver()
    await fill(source)
    seen: list[tuple[int, int]] = []
    copied = await copy_all(source, target, progress=lambda *at: seen.append(at))
    assert copied.is_complete, copied
    assert copied.threads == len(THREADS)
    assert copied.present == 0
    assert seen[-1] == (len(THREADS), len(THREADS))
    ours = {each.config["configurable"]["checkpoint_ns"] async for each in target.alist(None)}
    assert ours == {each.config["configurable"]["checkpoint_ns"] async for each in source.alist(None)}
    assert len(ours) > 1, "a subgraph's namespace"
    for thread_id in THREADS:
        await assert_same_states(target, source, thread_id)
        done = [await graph_with(s).ainvoke(Command(resume=False), on_thread(thread_id)) for s in (target, source)]
        assert [m.content for m in done[0]["messages"]] == [m.content for m in done[1]["messages"]]
        assert done[0]["approved"] is False


async def test_a_copy_can_be_repeated_and_goes_on_where_it_was_stopped(target: CachedPostgresSaver) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise Stopped

    source = InMemorySaver()
    await fill(source)
    with pytest.raises(Stopped):
        await copy_all(source, target, progress=stop)
    again = await copy_all(source, target)
    assert again.is_complete
    assert again.present > 0
    once_more = await copy_all(source, target)
    assert (once_more.checkpoints, once_more.writes, once_more.threads) == (0, 0, 0)
    assert once_more.present == again.present + again.checkpoints


async def test_a_dry_run_writes_nothing_and_counts_what_a_run_writes(target: CachedPostgresSaver) -> None:
    source = InMemorySaver()
    await fill(source, ["a", "b"])
    planned = await copy_all(source, target, dry_run=True)
    assert [each async for each in target.alist(None)] == []
    assert await copy_all(source, target) == planned


async def test_what_is_there_with_other_content_is_reported_and_left(target: CachedPostgresSaver) -> None:
    source = InMemorySaver()
    await fill(source, ["a"])
    await copy_all(source, target)
    latest = await target.aget_tuple(on_thread("a"))
    assert latest is not None
    where = latest.parent_config or latest.config
    config = {"configurable": {**where["configurable"]}}
    await target.aput(config, latest.checkpoint, {"source": "update", "step": 77}, {})  # type: ignore[arg-type]
    copied = await copy_all(source, target)
    assert copied.differ == 1
    assert not copied.is_complete
    assert copied.problems[0].problem == "other metadata"
    found = await target.aget_tuple(on_thread("a"))
    assert found is not None
    assert found.metadata["step"] == 77


async def test_checkpoint_named_but_missing_in_source_is_reported(target: CachedPostgresSaver) -> None:
    source = InMemorySaver()
    await fill(source, ["a"])
    copied = await copy_all(source, target, thread_ids=["a", "missing"])
    assert copied.lost == 1
    assert copied.problems[0].thread_id == "missing"


async def test_threads_of_the_valkey_saver_are_imported(
    target: CachedPostgresSaver,
    redis_servers: Any,
    cli_servers: list[str],
    capsys: pytest.CaptureFixture[str],
    run_cli: Any,
) -> None:
    pytest.importorskip("langgraph_checkpoint_aws.checkpoint.valkey")
    server = redis_servers()
    async with sources.open_source("valkey", server.url) as source:
        await fill(source.saver)
        command = ["import-redis", "--from", "valkey", "--source-url", server.url, *cli_servers, "--json"]
        assert await run_cli([*command, "--dry-run"]) == 0
        planned = json.loads(capsys.readouterr().out)
        assert await run_cli(command) == 0
        copied = json.loads(capsys.readouterr().out)
        assert copied == {**planned, "dry_run": False}
        assert copied["threads"] == len(THREADS)
        for thread_id in THREADS:
            await assert_same_states(target, source.saver, thread_id)
        async with Redis.from_url(server.url) as redis:
            expired = await anext(key async for key in redis.scan_iter(match="checkpoint:{plain}*"))
            await redis.delete(expired)
        assert await run_cli([*command, "plain"]) == 1
        assert json.loads(capsys.readouterr().out)["lost"] == 1


@pytest.fixture(scope="module")
def stack() -> Iterator[RedisServer]:
    from benchmarks.stack import StackServer, why_no_stack

    if why := why_no_stack():
        pytest.skip(why)
    with ExitStack() as servers:
        yield servers.enter_context(StackServer())


async def test_threads_of_the_redis_saver_are_imported(
    stack: RedisServer,
    target: CachedPostgresSaver,
    cli_servers: list[str],
    capsys: pytest.CaptureFixture[str],
    run_cli: Any,
) -> None:
    pytest.importorskip("langgraph.checkpoint.redis")
    async with sources.open_source("redis", stack.url) as source:
        await fill(source.saver)
        command = ["import-redis", "--from", "redis", "--source-url", stack.url, *cli_servers, "--json"]
        assert await run_cli(command) == 0, capsys.readouterr()
        copied = json.loads(capsys.readouterr().out)
        assert copied["threads"] == len(THREADS)
        for thread_id in THREADS:
            await assert_same_states(target, source.saver, thread_id)
        assert await run_cli(command) == 0
        assert json.loads(capsys.readouterr().out)["present"] == copied["checkpoints"]


@pytest.mark.parametrize(
    ("kind", "url", "code", "complaint"),
    [
        ("redis", "redis://u:secret@127.0.0.1:1/0", 1, "the server of the redis saver: "),
        ("valkey", "valkey://u:secret@127.0.0.1:1/0", 1, "the server of the valkey saver: "),
        ("valkey", "secret", 2, "--source-url does not parse"),
        ("redis", "secret", 2, "--source-url does not parse"),
        ("redis", None, 1, "the server of the redis saver: "),
    ],
)
async def test_unreadable_source_is_one_line_without_secrets(
    kind: str,
    url: str | None,
    code: int,
    complaint: str,
    run_cli: Any,
    redis_url: str,
    cli_servers: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip(sources.KINDS[kind][0])
    if url is None:
        url = redis_url  # without modules
    assert await run_cli(["import-redis", "--from", kind, "--source-url", url, *cli_servers]) == code
    out, err = capsys.readouterr()
    assert f"langgraph-cached import-redis: {complaint}" in err
    assert "secret" not in out + err


async def test_a_dry_run_needs_no_tables(
    redis_url: str, database_url: str, run_cli: Any, cli_servers: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(sources.KINDS["valkey"][0])
    command = ["import-redis", "--from", "valkey", "--source-url", redis_url, "--dry-run", "nothing"]
    assert await run_cli([*command, "--postgres-uri", database_url, *cli_servers[2:]]) == 1
    assert "1 could not be read" in capsys.readouterr().out
