"""Write-behind while Postgres is away: turns that go on, time until Postgres has caught up, and losses."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, TypedDict, cast

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, StateGraph

from benchmarks import chat
from benchmarks.contestants import Contestant, Entrant
from benchmarks.servers import Servers, own_postgres
from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.demo.embedded import PostgresServer

LANES = 64
THREADS = 100
OPERATIONS = 50_000
MESSAGES, STATE_MESSAGES = 2, 20
UPSTREAM_SECONDS = 10.0
AWAY_SECONDS = 60.0
AROUND_SECONDS = 10.0
TURN_LANES = 16
POLL_SECONDS = 0.02


async def backlog(
    servers: Servers,
    upstream: Contestant,
    write_behind: Contestant,
    advance: Callable[[float], None],
    *,
    quick: bool,
) -> dict[str, Any]:
    """Run both parts on a Postgres of their own that can be stopped; with `quick`, few operations."""
    operations, away = (1_000, 1.0) if quick else (OPERATIONS, AWAY_SECONDS)
    with own_postgres() as postgres:
        place = replace(servers.place(write_behind.name, {"redis"}), postgres_uri=postgres.url)
        async with AsyncExitStack() as stack:
            plain = await stack.enter_async_context(upstream.open(place))
            ours = await stack.enter_async_context(write_behind.open(place))
            figures: dict[str, Any] = {
                "stock_per_second": await _upstream_rate(plain, 1.0 if quick else UPSTREAM_SECONDS)
            }
            advance(0.15)
            saver = cast("CachedPostgresSaver", ours.saver)
            figures |= await _drain(postgres, saver, operations)
            advance(0.35)
            figures |= await _away(postgres, saver, away, away / AWAY_SECONDS * AROUND_SECONDS)
            advance(0.5)
    return {"operations": operations, "away_seconds": away, "lanes": LANES, "turn_lanes": TURN_LANES, **figures}


class _Talk:
    """Thread that grows by a checkpoint and its pending writes in turn."""

    def __init__(self, saver: Any, name: str) -> None:
        self._saver, self._latest, self._before = saver, chat.thread(name), None
        self._config = self._latest

    async def begin(self) -> None:
        await self.put()
        await self._saver.aget_tuple(self._config)  # so that it is cached

    async def put(self) -> None:
        made, metadata, versions = chat.checkpoint(self._saver, chat.messages(MESSAGES), self._before)
        self._latest = await self._saver.aput(self._latest, made, metadata, versions)
        self._before = made  # type: ignore[assignment]

    async def put_writes(self) -> None:
        await self._saver.aput_writes(self._latest, [("messages", chat.messages(1))], "task")


async def _operate(talks: list[_Talk], until: Callable[[], bool]) -> int:
    """Put a checkpoint and its writes on each thread in turn, in `LANES` lanes. Return their number."""
    done = 0

    async def lane(mine: Iterable[_Talk]) -> None:
        nonlocal done
        for talk in itertools.cycle(list(mine)):
            for operation in (talk.put, talk.put_writes):
                if until():
                    return
                done += 1
                await operation()

    await asyncio.gather(*(lane(talks[number::LANES]) for number in range(LANES)))
    return done


async def _upstream_rate(plain: Entrant, seconds: float) -> float:
    talks = [_Talk(plain.saver, f"plain-{number}") for number in range(THREADS)]
    await asyncio.gather(*(talk.begin() for talk in talks))
    started = time.perf_counter()
    done = await _operate(talks, lambda: time.perf_counter() - started > seconds)
    return done / (time.perf_counter() - started)


async def _drain(postgres: PostgresServer, saver: CachedPostgresSaver, operations: int) -> dict[str, float]:
    talks = [_Talk(saver, f"behind-{number}") for number in range(THREADS)]
    await asyncio.gather(*(talk.begin() for talk in talks))
    while saver.stats()["leases_held"] < THREADS:  # a table of leases that was just made is not used at once
        await asyncio.sleep(POLL_SECONDS)
        await asyncio.gather(*(talk.put() for talk in talks))
    await saver.aflush()
    await asyncio.gather(*(talk.put() for talk in talks))  # so that no lease ends before Postgres does
    await asyncio.to_thread(postgres.stop)
    left = itertools.count(operations, -1)
    started = time.perf_counter()
    await _operate(talks, lambda: next(left) <= 0)
    appended = time.perf_counter() - started
    waiting = saver.stats()["unflushed"]
    started = time.perf_counter()
    await asyncio.to_thread(postgres.start)
    up = time.perf_counter()
    while saver.stats()["unflushed"] == waiting:  # noqa: ASYNC110 - the pool has to connect again
        await asyncio.sleep(POLL_SECONDS)
    connected = time.perf_counter()
    left_then = saver.stats()["unflushed"]
    await _until_flushed(saver)
    now = time.perf_counter()
    return {
        "backlog": waiting,
        "appended_per_second": operations / appended,
        "start_seconds": up - started,
        "connected_seconds": connected - up,
        "drained_seconds": now - connected,
        "drained_per_second": left_then / (now - connected),
    }


async def _until_flushed(saver: CachedPostgresSaver) -> None:
    """Wait until everything is flushed to Postgres."""
    while saver.stats()["unflushed"]:  # noqa: ASYNC110 - nothing signals it
        await asyncio.sleep(POLL_SECONDS)


class _State(TypedDict):
    turns: int
    messages: list[Any]


def _counting_graph(saver: Any) -> Any:
    """Return a graph of three nodes whose state does not grow, so that all turns are alike."""

    def talk(state: _State) -> dict[str, Any]:
        return {"messages": chat.messages(STATE_MESSAGES)}

    builder = StateGraph(_State)
    builder.add_node("count", lambda state: {"turns": state.get("turns", 0) + 1})
    builder.add_node("look_up", talk)
    builder.add_node("answer", talk)
    for start, end in itertools.pairwise((START, "count", "look_up", "answer", END)):
        builder.add_edge(start, end)
    return builder.compile(saver)


async def _away(
    postgres: PostgresServer, saver: CachedPostgresSaver, away: float, around: float
) -> dict[str, Any]:
    """Run turns in `TURN_LANES` lanes, each on one thread, with Postgres stopped in the middle."""
    graph, ended = _counting_graph(saver), False
    turns: list[float] = []
    acknowledged: dict[str, int] = {}

    async def lane(name: str) -> None:
        while not ended:
            state = await graph.ainvoke({"messages": []}, chat.thread(name), durability="sync")
            acknowledged[name] = state["turns"]
            turns.append(time.perf_counter())

    lanes = [asyncio.ensure_future(lane(f"turns-{number}")) for number in range(TURN_LANES)]
    await asyncio.sleep(around)
    stopped = time.perf_counter()
    await asyncio.to_thread(postgres.stop)
    await asyncio.sleep(away)
    back = time.perf_counter()
    await asyncio.to_thread(postgres.start)
    await asyncio.sleep(around)
    ended = True
    results = await asyncio.gather(*lanes, return_exceptions=True)
    over = time.perf_counter()
    await _until_flushed(saver)
    missing = 0
    async with AsyncPostgresSaver.from_conn_string(postgres.url) as upstream:
        for name, count in acknowledged.items():
            found = await upstream.aget_tuple(chat.thread(name))
            missing += count - (found.checkpoint["channel_values"]["turns"] if found else 0)
    while_away = sum(stopped <= t < back for t in turns)
    return {
        "turns_before_per_second": sum(t < stopped for t in turns) / around,
        "turns_while_away": while_away,
        "turns_while_away_per_second": while_away / (back - stopped),
        "turns_after_per_second": sum(t >= back for t in turns) / (over - back),
        "runs_failed": [str(result) for result in results if isinstance(result, BaseException)],
        "turns_missing": missing,
    }


def table(found: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    ratio = found["drained_per_second"] / found["stock_per_second"]
    return f"""\
# Write-behind while Postgres is away

| | |
| --- | ---: |
| the upstream saver's rate, {found["lanes"]} at once, operations/s | {found["stock_per_second"]:,.0f} |
| appended while Postgres was stopped, operations/s | {found["appended_per_second"]:,.0f} |
| backlog, operations | {found["backlog"]:,.0f} |
| from its start until the pool was connected again, s | {found["connected_seconds"]:.1f} |
| flushed to Postgres in, s | {found["drained_seconds"]:.1f} |
| rate of that, operations/s | {found["drained_per_second"]:,.0f} |
| to the upstream saver's rate | {ratio:.1f} |
| turns/s, {found["turn_lanes"]} at once, before Postgres is stopped | {found["turns_before_per_second"]:,.0f} |
| while it is, {found["away_seconds"]:.0f} s | {found["turns_while_away_per_second"]:,.0f} |
| turns ended meanwhile | {found["turns_while_away"]:,.0f} |
| turns/s after that | {found["turns_after_per_second"]:,.0f} |
| runs that failed | {len(found["runs_failed"])} |
| turns that were acknowledged and that Postgres lacks in the end | {found["turns_missing"]} |
"""
