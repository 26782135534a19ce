"""Effects of an outage on users: Redis stops, comes back, or hangs."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from benchmarks import chat
from benchmarks.contestants import Contestant, Entrant
from benchmarks.servers import Servers
from benchmarks.turns import talked_threads
from langgraph_checkpoint_cached.demo.embedded import RedisServer

MESSAGES = 20
TURNS_PER_LANE = 30
TURNS_PER_LANE_MAX = 150
CONCURRENCIES = (1, 16)
LANES = 16
SECONDS = 4.0
NORMAL = 2.0
"""Factor to the median from before, up to which a turn counts as normal again."""

Note = Callable[[str, float], None]


class Deadline:
    """Moment that lies `seconds` after the first question for it."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._ends_at = seconds, 0.0

    def __call__(self) -> bool:
        """Return True once it has passed."""
        self._ends_at = self._ends_at or time.perf_counter() + self._seconds
        return time.perf_counter() >= self._ends_at


class Load:
    """Continuous turns, each on a thread of its own, and their times."""

    def __init__(self, entrant: Entrant) -> None:
        self._entrant, self._graph = entrant, chat.graph(entrant.saver)
        self.turns: list[tuple[float, float]] = []
        """Start and duration of each turn, in seconds."""

    async def run(self, lanes: int, until: Callable[[], bool], turns_max: int) -> float:
        """Run turns until it is time to stop, at most `count` in each lane. Return the seconds taken."""
        threads = await talked_threads(self._entrant, self._graph, lanes * turns_max, MESSAGES)

        async def lane(number: int) -> None:
            for config in threads[number::lanes]:
                if until():
                    return
                started = time.perf_counter()
                await self._graph.ainvoke(chat.question(), config, durability="async")
                self.turns.append((started, time.perf_counter() - started))

        started = time.perf_counter()
        await asyncio.gather(*map(lane, range(lanes)))
        return time.perf_counter() - started

    async def run_for(self, seconds: float) -> None:
        """Run turns in `LANES` lanes for the time of the context, on threads that are made before."""
        await self.run(LANES, Deadline(seconds), TURNS_PER_LANE_MAX)

    async def goes_on(self) -> None:
        """Wait until some turns have ended."""
        while len(self.turns) < 3 * LANES:  # noqa: ASYNC110 - an event would be one more thing for each turn
            await asyncio.sleep(0.01)

    def lengths(self, since: float = 0.0) -> list[float]:
        """Return the durations of turns that started since then."""
        return [length for started, length in self.turns if started >= since]


async def outages(
    servers: Servers, upstream: Contestant, ours: Contestant, rounds: int, advance: Callable[[float], None]
) -> dict[str, Any]:
    """Measure each fault `rounds` times, and throughputs in turns with the upstream saver."""
    found: dict[str, list[float]] = {}

    def note(name: str, figure: float) -> None:
        found.setdefault(name, []).append(figure)

    with RedisServer() as server:
        place = replace(servers.place(ours.name, {"postgres"}), redis_url=server.url)
        async with AsyncExitStack() as stack:
            cached = await stack.enter_async_context(ours.open(place))
            plain = await stack.enter_async_context(upstream.open(servers.place(upstream.name, {"postgres"})))
            await Load(plain).run_for(1)
            for _ in range(rounds):
                await _stopped(server, cached, plain, note)
                await _hanging(server, cached, note)
                advance(1 / rounds)
    return {"rounds": rounds, "lanes": LANES, "messages": MESSAGES, "figures": found}


async def _stopped(server: RedisServer, cached: Entrant, plain: Entrant, note: Note) -> None:
    before = Load(cached)
    await before.run_for(1)
    load = Load(cached)
    running = asyncio.ensure_future(load.run_for(SECONDS))
    await load.goes_on()
    stopped_at = time.perf_counter()
    await asyncio.to_thread(server.kill)
    await running
    usual = statistics.median(before.lengths())
    ends = [
        started + length for started, length in load.turns if started >= stopped_at and length <= NORMAL * usual
    ]
    note("seconds from the stop to the end of the first normal turn", min(ends) - stopped_at)
    note("longest turn after the stop, in seconds", max(load.lengths(stopped_at)))
    for lanes in CONCURRENCIES:
        seconds = {}
        for name, entrant in (("ours", cached), ("upstream", plain)):
            seconds[name] = await Load(entrant).run(lanes, lambda: False, TURNS_PER_LANE)
        note(
            f"throughput without Redis to the upstream saver's, concurrency {lanes}",
            seconds["upstream"] / seconds["ours"],
        )
    await asyncio.to_thread(server.start)
    started_at = time.perf_counter()
    await _first_hit(cached)
    note("seconds from the start to the first hit", time.perf_counter() - started_at)


async def _hanging(server: RedisServer, cached: Entrant, note: Note) -> None:
    """Make Redis accept connections and answer nothing, for the time of the context."""
    pid = server.pid
    assert pid is not None
    load = Load(cached)
    running = asyncio.ensure_future(load.run_for(SECONDS))
    await load.goes_on()
    hung_at = time.perf_counter()
    os.kill(pid, signal.SIGSTOP)
    try:
        await running
    finally:
        os.kill(pid, signal.SIGCONT)
    usual = [length for started, length in load.turns if started + length < hung_at]
    note("turn with Redis, median, in seconds", statistics.median(usual))
    note("turn with Redis, p99, in seconds", _p99(usual))
    lengths = [length for started, length in load.turns if started + length >= hung_at]
    note("turn with a Redis that hangs, median, in seconds", statistics.median(lengths))
    note("turn with a Redis that hangs, p99, in seconds", _p99(lengths))
    note("turn with a Redis that hangs, longest, in seconds", max(lengths))
    await _first_hit(cached)


async def _first_hit(cached: Entrant) -> None:
    saver: Any = cached.saver
    [config] = await talked_threads(cached, chat.graph(saver), 1, MESSAGES)
    hits = saver.stats()["hits"]
    while saver.stats()["hits"] == hits:
        await saver.aget_tuple(config)
        await asyncio.sleep(0.005)


def _p99(lengths: Sequence[float]) -> float:
    return statistics.quantiles(lengths, n=100, method="inclusive")[98]


def table(result: dict[str, Any]) -> str:
    """Return the medians and the range of the rounds as Markdown."""
    lines = [
        f"{result['rounds']} rounds, {result['lanes']} turns at once, {result['messages']} messages",
        "",
        "| | median | from | to |",
        "|---|--:|--:|--:|",
    ]
    for name, figures in result["figures"].items():
        shown = (statistics.median(figures), min(figures), max(figures))
        lines.append(f"| {name} | " + " | ".join(f"{figure:.3g}" for figure in shown) + " |")
    return "\n".join(lines) + "\n"
