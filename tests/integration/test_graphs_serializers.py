"""Promises of serializers hold for what is served from Redis: allowlists, and encryption."""

from __future__ import annotations

import dataclasses
import operator
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt

from tests.support.agreement import CACHED, Saver, Tiers, on_thread, open_tiers, outline

pytestmark = pytest.mark.integration

SECRET = "the-answer-is-forty-two"


@dataclasses.dataclass
class Note:
    text: str


@dataclasses.dataclass
class Elsewhere:
    text: str


class State(TypedDict):
    notes: Annotated[list[Note], operator.add]
    hidden: Annotated[list[Any], operator.add]


def graph_of(saver: Saver) -> Any:
    builder = StateGraph(State)
    builder.add_node("write", lambda s: {"notes": [Note(SECRET)], "hidden": [HumanMessage(SECRET, id="1")]})
    builder.add_node("ask", lambda s: {"notes": [Note(interrupt([SECRET]))]})
    builder.add_edge(START, "write")
    builder.add_edge("write", "ask")
    return builder.compile(checkpointer=saver)


async def ask_and_answer(saver: Saver, thread: str) -> Any:
    graph, config = graph_of(saver), on_thread(thread)
    await graph.ainvoke({"notes": [], "hidden": [[SECRET]]}, config)
    asked = outline(await graph.aget_state(config))
    return asked, await graph.ainvoke(Command(resume=SECRET), config)


async def everything_in_redis(tiers: Tiers) -> bytes:
    dump = b""
    for key in await tiers.keys():
        dump += key + b"".join(part for pair in (await tiers.redis.hgetall(key)).items() for part in pair)
    return dump


async def everything_in_postgres(tiers: Tiers) -> bytes:
    dump = b""
    async with tiers.pool.connection() as conn:
        for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes"):
            rows = await conn.execute(f"select t.* from {table} as t")  # type: ignore[arg-type]
            for row in await rows.fetchall():
                dump += b"".join(v if isinstance(v, bytes) else str(v).encode() for v in row.values())
    return dump


def serializer(kind: str) -> Any:
    return EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef") if kind == "encrypted" else None


@pytest.fixture(params=["encrypted", "plain"])
async def tiers_with(
    request: pytest.FixtureRequest, migrated_database_url: str, redis_url: str, redis_prefix: str
) -> AsyncIterator[tuple[str, Tiers]]:
    async with open_tiers(
        migrated_database_url, redis_url, redis_prefix, serde=serializer(request.param)
    ) as tiers:
        yield request.param, tiers


async def test_an_encrypted_value_is_plain_in_neither_tier(tiers_with: tuple[str, Tiers]) -> None:
    kind, tiers = tiers_with
    asked, answered = await tiers.run_with_both(ask_and_answer)
    assert asked["interrupts"] == [[SECRET]]
    assert answered["notes"] == [Note(SECRET), Note(SECRET)]
    found = [
        SECRET.encode() in await everything(tiers) for everything in (everything_in_redis, everything_in_postgres)
    ]
    assert found == [kind == "plain"] * 2, "(plain: what shows that it would have been found)"
    assert tiers.saver.stats()["hits"] > 0


async def test_entry_of_another_encryption_key_raises_as_upstream(
    tiers: Tiers,
) -> None:
    async def seen(saver: Saver) -> str:
        with pytest.raises(ValueError, match="MAC check failed") as caught:
            await saver.aget_tuple(on_thread(CACHED))
        return str(caught.value)

    encrypted = EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef")
    other = EncryptedSerializer.from_pycryptodome_aes(key=b"fedcba9876543210")
    tiers.saver.serde = encrypted
    await graph_of(tiers.saver).ainvoke({"notes": [], "hidden": [[SECRET]]}, on_thread(CACHED))
    await tiers.saver.aget_tuple(on_thread(CACHED))
    tiers.saver.serde = tiers.upstream.serde = other
    hits = tiers.saver.stats()["hits"]
    assert await seen(tiers.saver) == await seen(tiers.upstream)
    assert tiers.saver.stats()["hits"] == hits + 1


async def test_the_allowlist_decides_what_is_made_of_bytes_from_redis(
    migrated_database_url: str, redis_url: str, redis_prefix: str
) -> None:
    strict = JsonPlusSerializer(allowed_msgpack_modules=None)
    async with open_tiers(migrated_database_url, redis_url, redis_prefix, serde=strict) as tiers:
        await graph_of(tiers.saver).ainvoke({"notes": [], "hidden": [[Elsewhere("x")]]}, on_thread(CACHED))
        here = [(Note.__module__, "Note")]
        both = [*here, (Note.__module__, "Elsewhere")]
        for allowed in (None, here, both):
            ours, upstream = (s.with_allowlist(allowed) if allowed else s for s in (tiers.saver, tiers.upstream))
            await ours.aget_tuple(on_thread(CACHED))
            hits = tiers.saver.stats()["hits"]
            found = await ours.aget_tuple(on_thread(CACHED))
            assert tiers.saver.stats()["hits"] == hits + 1, "copies share their counters, and this was a hit"
            assert found == await upstream.aget_tuple(on_thread(CACHED))
            assert found
            values = found.checkpoint["channel_values"]
            assert isinstance(values["notes"][0], Note) == bool(allowed)
            assert isinstance(values["hidden"][0][0], Elsewhere) == (allowed is both)
            history = [item async for item in ours.alist(on_thread(CACHED))]
            assert history == [item async for item in upstream.alist(on_thread(CACHED))]


STRICT_PROGRAM = """
import asyncio, sys
from tests.support.agreement import CACHED, on_thread, open_tiers
from tests.integration.test_graphs_serializers import Elsewhere, Note, graph_of
from langgraph.types import Command

async def main():
    async with open_tiers(*sys.argv[1:4]) as tiers:
        graph = graph_of(tiers.saver)
        asked = await graph.ainvoke({"notes": [], "hidden": [[Elsewhere("x")]]}, on_thread(CACHED))
        hits = tiers.saver.stats()["hits"]
        state = await graph.aget_state(on_thread(CACHED))
        assert tiers.saver.stats()["hits"] == hits + 1
        assert isinstance(state.values["notes"][0], Note), "in the schema, so allowed"
        assert not isinstance(state.values["hidden"][0][0], Elsewhere), state.values
        plain = await tiers.saver.aget_tuple(on_thread(CACHED))
        assert tiers.saver.stats()["hits"] == hits + 2
        assert plain == await tiers.upstream.aget_tuple(on_thread(CACHED))
        assert not isinstance(plain.checkpoint["channel_values"]["notes"][0], Note)
        assert (await graph.ainvoke(Command(resume="yes"), on_thread(CACHED)))["notes"][-1] == Note("yes")
        await tiers.assert_agree()
    print("strict and agreed")

asyncio.run(main())
"""


@pytest.mark.slow
def test_strict_msgpack_holds_for_what_redis_serves(
    migrated_database_url: str, redis_url: str, redis_prefix: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STRICT_PROGRAM, migrated_database_url, redis_url, redis_prefix],
        env={**os.environ, "LANGGRAPH_STRICT_MSGPACK": "true"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "strict and agreed" in done.stdout
