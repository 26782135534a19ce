"""Workloads of a real graph: chat turns, and reads while turns go on."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from langchain_core.runnables import RunnableConfig

from benchmarks import chat, cpu
from benchmarks.contestants import MAIN, REDIS_ONLY, Entrant
from benchmarks.workloads import PREPARED_AT_ONCE, Operation, Sample, Workload, in_lanes, new_name, reader

POLL_EVERY_SECONDS = 0.005


async def talked_threads(entrant: Entrant, graph: Any, count: int, messages: int) -> list[RunnableConfig]:
    """Make threads with a finished conversation, stored by the contestant through the graph."""
    threads = [chat.thread(new_name()) for _ in range(count)]

    def talk(config: RunnableConfig) -> Operation:
        return lambda: graph.aupdate_state(config, {"messages": chat.messages(messages)}, as_node=chat.NODES[-1])

    await in_lanes([talk(config) for config in threads], PREPARED_AT_ONCE)
    return threads


@dataclass(frozen=True)
class Turn(Workload):
    """Time of a chat turn: its history is resumed, three nodes answer."""

    unit = "turn"
    group = "A chat turn"
    least_per_lane: ClassVar[int] = 1

    often: frozenset[str] = MAIN | REDIS_ONLY
    messages: int = 20
    durability: str = "async"

    @property
    def what(self) -> str:
        return f"chat turn, {self.messages} messages, {self.durability}"

    @property
    def parameters(self) -> dict[str, Any]:
        return {"messages": self.messages, "durability": self.durability}

    async def prepare(self, entrant: Entrant, count: int) -> list[Operation]:
        graph = chat.graph(entrant.saver)
        threads = await talked_threads(entrant, graph, count, self.messages)
        return [self._turn(graph, config) for config in threads]

    def _turn(self, graph: Any, config: RunnableConfig) -> Operation:
        return lambda: graph.ainvoke(chat.question(), config, durability=self.durability)


@dataclass(frozen=True)
class ColdTurn(Turn):
    """Time of a chat turn just after Redis was emptied."""

    group = "After Redis is emptied"

    @property
    def what(self) -> str:
        return f"chat turn, {self.messages} messages, {self.durability}, Redis emptied"

    async def prepare(self, entrant: Entrant, count: int) -> list[Operation]:
        operations = await super().prepare(entrant, count)
        if entrant.empty_cache is not None:
            await entrant.empty_cache()
        return operations


@dataclass(frozen=True)
class Stampede(Workload):
    """Reads of the same thread by many callers just after Redis was emptied."""

    group = "After Redis is emptied"
    messages: int = 20

    @property
    def what(self) -> str:
        return f"reads of one cold thread, {self.messages} messages"

    @property
    def operations_max(self) -> int:
        return 4 * self.concurrency

    async def prepare(self, entrant: Entrant, count: int) -> list[Operation]:
        graph = chat.graph(entrant.saver)
        [config] = await talked_threads(entrant, graph, 1, self.messages)
        if entrant.empty_cache is not None:
            await entrant.empty_cache()
        return [reader(entrant, config)] * count


@dataclass(frozen=True)
class Polling(Turn):
    """Time that a UI waits for `aget_state` while runs write the threads it shows."""

    unit = "poll"
    group = "UI polling"
    least_per_lane = 2
    runs: int = 4

    @property
    def what(self) -> str:
        return f"aget_state while {self.runs} runs write"

    async def measure(self, entrant: Entrant, count: int, postgres: cpu.PostgresCpu) -> Sample:
        """Poll the threads in turn while each of the runs does its `count` turns."""
        graph = chat.graph(entrant.saver)
        threads = await talked_threads(entrant, graph, count * self.runs, self.messages)
        shown: dict[int, RunnableConfig] = dict(enumerate(threads[: self.runs]))

        async def run(number: int) -> None:
            for config in threads[number :: self.runs]:
                shown[number] = config
                await self._turn(graph, config)()

        running = asyncio.gather(*(run(number) for number in range(self.runs)))
        seconds, polls = 0.0, 0
        while not running.done() or polls == 0:
            started = time.perf_counter()
            await graph.aget_state(shown[polls % self.runs])
            seconds += time.perf_counter() - started
            polls += 1
            await asyncio.sleep(POLL_EVERY_SECONDS)
        await running
        return Sample(polls, seconds)

    def small(self) -> Workload:
        return replace(self, runs=2)
