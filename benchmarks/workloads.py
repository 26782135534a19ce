"""What a workload is, how one measurement of it is made, and the reads and writes of single checkpoints."""

from __future__ import annotations

import asyncio
import gc
import math
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig

from benchmarks import chat, cpu
from benchmarks.contestants import MAIN, Entrant

Operation: TypeAlias = Callable[[], Awaitable[object]]

WARM_THREADS = 64
COLD_THREADS = 400
PREPARED_AT_ONCE = 16


@dataclass(frozen=True)
class Sample:
    """One measurement."""

    operations: int
    seconds: float
    cpu: cpu.Cpu | None = None


@dataclass(frozen=True)
class Workload(ABC):
    """One question. Its operations are prepared out of the measured time."""

    unit: ClassVar[str] = "operation"
    group: ClassVar[str] = ""
    """Workloads of a group share a table."""
    least_per_lane: ClassVar[int] = 2
    """How many operations each of the concurrent lanes has at least."""

    concurrency: int = 1
    contestants: frozenset[str] | None = None
    """Who takes part; None for all."""
    often: frozenset[str] = MAIN
    """Who takes part in every round; the others in a few."""
    rounds_max: int = 1000
    network: bool = False
    """Whether there is a network in between."""

    @property
    @abstractmethod
    def what(self) -> str:
        """Its name, without concurrency and network."""

    @property
    def parameters(self) -> dict[str, Any]:
        """What plots put on an axis."""
        return {}

    @property
    def metric(self) -> str:
        """Milliseconds of an operation where there is one at a time, else operations per second."""
        return "latency" if self.concurrency == 1 else "throughput"

    @property
    def name(self) -> str:
        """Its name, by which it is chosen and found again."""
        return f"{self.what}, {self.concurrency} at once" + (", over a network" if self.network else "")

    @property
    def operations_min(self) -> int:
        """The fewest operations that one measurement has: some for each lane."""
        return self.concurrency * self.least_per_lane

    @property
    def operations_max(self) -> int:
        """The most operations that one measurement can have."""
        return 10_000

    @abstractmethod
    async def prepare(self, entrant: Entrant, count: int) -> list[Operation]:
        """The operations of one measurement."""

    async def measure(self, entrant: Entrant, count: int, postgres: cpu.PostgresCpu) -> Sample:
        """Prepares and measures that many operations."""
        operations = await self.prepare(entrant, count)
        gc.collect()
        before, started = cpu.now(postgres), time.perf_counter()
        await in_lanes(operations, self.concurrency)
        seconds = time.perf_counter() - started
        return Sample(len(operations), seconds, cpu.now(postgres) - before)

    def small(self) -> Workload:
        """The same, small enough for a quick run."""
        return replace(self, concurrency=min(self.concurrency, 4))


async def in_lanes(operations: Sequence[Operation], lanes: int) -> None:
    """Runs the operations, in that many lanes side by side, one after another in each."""

    async def lane(mine: Sequence[Operation]) -> None:
        for operation in mine:
            await operation()

    if lanes == 1:
        await lane(operations)
    else:
        tasks = [asyncio.ensure_future(lane(operations[number::lanes])) for number in range(lanes)]
        try:
            await asyncio.gather(*tasks)
        finally:  # if one fails, the others do not go on into somebody else's measurement
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def new_name() -> str:
    """A thread that nobody has used."""
    return uuid.uuid4().hex


async def stored_threads(entrant: Entrant, count: int, messages: int, extra: int = 0) -> list[RunnableConfig]:
    """Threads to read, made once: a checkpoint each, with that many messages of so many extra characters."""
    made = entrant.threads.setdefault((count, messages, extra), [])
    if not made:
        state = chat.messages(messages, extra)

        async def store() -> None:
            config = chat.thread(new_name())
            await entrant.saver.aput(config, *chat.checkpoint(entrant.saver, state))
            made.append(config)

        await in_lanes([store] * count, PREPARED_AT_ONCE)
    return made


def reader(entrant: Entrant, config: RunnableConfig) -> Operation:
    """Reading the thread's latest checkpoint, and making sure that it is there."""

    async def read() -> None:
        found = await entrant.saver.aget_tuple(config)
        if found is None and entrant.remembers:
            raise AssertionError(f"a stored thread was not found: {config}")

    return read


@dataclass(frozen=True)
class WarmRead(Workload):
    """What does it cost to resume a thread that was in use a moment ago?"""

    group = "Reading"
    messages: int = 20
    threads: int = WARM_THREADS

    @property
    def what(self) -> str:
        return f"warm read, {self.messages} messages"

    def small(self) -> Workload:
        return replace(self, concurrency=min(self.concurrency, 4), threads=8)

    async def prepare(self, entrant: Entrant, count: int) -> list[Operation]:
        threads = await stored_threads(entrant, self.threads, self.messages)
        reads = [reader(entrant, config) for config in threads]
        await in_lanes(reads[:count], PREPARED_AT_ONCE)
        return [reads[number % len(reads)] for number in range(count)]


@dataclass(frozen=True)
class ColdRead(Workload):
    """What does it cost when the cache has nothing? Savers without a cache read as ever."""

    group = "Reading"
    messages: int = 20
    threads: int = COLD_THREADS

    @property
    def what(self) -> str:
        return f"cold read, {self.messages} messages"

    @property
    def operations_max(self) -> int:
        return self.threads

    def small(self) -> Workload:
        return replace(self, concurrency=min(self.concurrency, 4), threads=8)

    async def prepare(self, entrant: Entrant, count: int) -> list[Operation]:
        threads = await stored_threads(entrant, self.threads, self.messages)
        if entrant.empty_cache is not None:
            await entrant.empty_cache()
        return [reader(entrant, config) for config in threads[:count]]


@dataclass(frozen=True)
class Put(Workload):
    """What does it cost to store a checkpoint?"""

    group = "Writing"
    messages: int = 20

    @property
    def what(self) -> str:
        return f"aput, {self.messages} messages"

    async def prepare(self, entrant: Entrant, count: int) -> list[Operation]:
        state = chat.messages(self.messages)
        chains = [await new_chain(entrant, state) for _ in range(chains_for(self.concurrency))]
        return [self._put(entrant, chains[number % len(chains)], state) for number in range(count)]

    @staticmethod
    def _put(entrant: Entrant, chain: list[Any], state: list[Any]) -> Operation:
        thread_id, before = chain
        made = chat.checkpoint(entrant.saver, state, before)
        chain[1] = made[0]
        config = chat.thread(thread_id, before["id"])
        return lambda: entrant.saver.aput(config, *made)


@dataclass(frozen=True)
class PutWrites(Workload):
    """What does it cost to store what a node wrote?"""

    group = "Writing"

    @property
    def what(self) -> str:
        return "aput_writes"

    async def prepare(self, entrant: Entrant, count: int) -> list[Operation]:
        chains = [await new_chain(entrant, chat.messages(20)) for _ in range(chains_for(self.concurrency))]
        return [self._put_writes(entrant, *chains[number % len(chains)]) for number in range(count)]

    @staticmethod
    def _put_writes(entrant: Entrant, thread_id: str, checkpoint: Any) -> Operation:
        config, task_id = chat.thread(thread_id, checkpoint["id"]), str(uuid.uuid4())
        writes = [("messages", [AIMessage(chat.ANSWER)]), ("branch:to:answer", None)]
        return lambda: entrant.saver.aput_writes(config, writes, task_id, "~__pregel_pull, answer")


def chains_for(lanes: int) -> int:
    """How many threads that many lanes write to: each of them only to its own."""
    return lanes * math.ceil(8 / lanes)


async def new_chain(entrant: Entrant, state: list[Any]) -> list[Any]:
    """A new thread, read before it is written to as every run does, with one checkpoint: its name, and that."""
    thread_id, made = new_name(), chat.checkpoint(entrant.saver, state)
    await entrant.saver.aget_tuple(chat.thread(thread_id))
    await entrant.saver.aput(chat.thread(thread_id), *made)
    return [thread_id, made[0]]
