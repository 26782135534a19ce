"""Snippets of README and docs are run, as they stand, on servers of their own."""

from __future__ import annotations

import ast
import asyncio
import inspect
import operator
import re
import shlex
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any, TypedDict

import psycopg
import pytest
import redis as redis_py
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from redis.asyncio import Redis

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.demo.embedded import RedisServer
from tests.support.agreement import Tiers

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
PAGES = {
    page.name: page.read_text(encoding="utf-8") for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
}


def blocks(language: str) -> list[tuple[str, str]]:
    """The page and the text of each."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [(page, block) for page, text in sorted(PAGES.items()) for block in pattern.findall(text)]


def pages_with(language: str) -> list[str]:
    return sorted({page for page, _ in blocks(language)})


class State(TypedDict):
    number: Annotated[int, operator.add]


@pytest.fixture
def builder() -> Any:
    return StateGraph(State).add_node("one", lambda state: {"number": 1}).add_edge(START, "one")


@pytest.fixture
async def names(
    tiers: Tiers, builder: Any, redis_servers: Callable[..., RedisServer]
) -> AsyncIterator[dict[str, Any]]:
    """Names that a reader has already."""
    server = redis_servers("--maxmemory", "50mb", "--maxmemory-policy", "volatile-lru")

    async def classify(message: str) -> str:
        return "intent"

    async with Redis.from_url(server.url) as redis:
        yield {
            "POSTGRES_URI": tiers.postgres_url,
            "REDIS_URL": server.url,
            "builder": builder,
            "pool": tiers.pool,
            "redis": redis,
            "saver": tiers.saver,
            "other_saver": InMemorySaver(),
            "classify": classify,
            "message": "hello",
            "CachedPostgresSaver": CachedPostgresSaver,
        }


@pytest.mark.parametrize("page", pages_with("python"))
async def test_code_runs(page: str, names: dict[str, Any], tiers: Tiers) -> None:
    with psycopg.connect(tiers.postgres_url) as conn:
        conn.execute("create schema agents")
    known = dict(names)
    for _, block in (each for each in blocks("python") if each[0] == page):
        known |= names  # a block may have closed its own
        code = compile(block, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, known)
        if inspect.iscoroutine(result):
            await result
    if "is_ready" in known:
        assert await known["is_ready"]()
        with psycopg.connect(tiers.postgres_url) as conn:
            found = conn.execute("select count(*) from agents.checkpoint_migrations").fetchone()
            assert found is not None
            assert found[0] > 0


async def test_statements_run(tiers: Tiers, builder: Any) -> None:
    graph = builder.compile(checkpointer=tiers.saver)
    await graph.ainvoke({"number": 1}, {"configurable": {"thread_id": "t"}})
    found = blocks("sql")
    assert len(found) >= 4
    with psycopg.connect(tiers.postgres_url) as conn:  # all of it is rolled back, the role too
        conn.execute("create role langgraph")
        for page, block in sorted(found, key=lambda each: "drop table" in each[1]):
            for statement in block.strip().rstrip(";").split(";\n"):
                cursor = conn.execute(statement)  # type: ignore[call-overload]
                if "percentile_cont" in statement:
                    rows = cursor.fetchall()
                    assert 0 < rows[0][0][0] < 10_000, page
        conn.rollback()


async def test_redis_takes_what_it_is_told(redis_servers: Callable[..., RedisServer]) -> None:
    found = blocks("redis")
    assert len(found) >= 2
    with redis_py.Redis.from_url(redis_servers().url) as client:
        for _, block in found:
            for line in block.splitlines():
                assert await asyncio.to_thread(client.execute_command, *shlex.split(line))
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "volatile-lru", "the last block's"
