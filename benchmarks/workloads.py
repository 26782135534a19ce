"""Base class of workloads, and the reads and writes of single checkpoints."""

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
    """Operations to measure, prepared outside the measured time. Reports show a subclass's docstring."""

    unit: ClassVar[str] = "operation"
    group: ClassVar[str] = ""
    """Workloads of a group share a table."""
    least_per_lane: ClassVar[int] = 2
    """Fewest operations of each of the concurrent lanes."""

    concurrency: int = 1
    contestants: frozenset[str] | None = None
    """Contestants that take part; None for all."""
    often: frozenset[str] = MAIN
    """Contestants that take part in every round; the others take part in a few."""
    rounds_max: int = 1000
    network: bool = False
    """True if the servers are reached over the simulated network."""

    @property
    @abstractmethod
    def what(self) -> str:
        """Name without concurrency and network."""

    @property
    def parameters(self) -> dict[str, Any]:
        """Values that plots put on an axis."""
        return {}

    @property
    def metric(self) -> str:
        """Return "latency" where there is one operation at a time, else "throughput"."""
        return "latency" if self.concurrency == 1 else "throughput"

    @property
    def name(self) -> str:
        """Return the unique name."""
        return f"{self.what}, {self.concurrency} at once" + (", over a network" if self.network else "")

    @property
    def operations_min(self) -> int:
        """Return the fewest operations of a measurement: some for each lane."""
        return self.concurrency * self.least_per_lane

    @property
    def operations_max(self) -> int:
        """Return the most operations of a measurement."""
        return 10_000

    @abstractmethod
    async def prepare(self, entrant: Entrant, count: int) -> list[Operation]:
        """Prepare the operations of one measurement."""

    async def measure(self, entrant: Entrant, count: int, postgres: cpu.PostgresCpu) -> Sample:
        """Prepare and measure `count` operations."""
        operations = await self.prepare(entrant, count)
        gc.collect()
        before, started = cpu.now(postgres), time.perf_counter()
        await in_lanes(operations, self.concurrency)
        seconds = time.perf_counter() - started
        return Sample(len(operations), seconds, cpu.now(postgres) - before)

    def small(self) -> Workload:
        """Return the workload made small enough for a quick run."""
        return replace(self, concurrency=min(self.concurrency, 4))


async def in_lanes(operations: Sequence[Operation], lanes: int) -> None:
    """Run the operations in `lanes` concurrent lanes, one after another in each."""

    async def lane(mine: Sequence[Operation]) -> None:
        for operation in mine:
            await operation()

    if lanes == 1:
        await lane(operations)
    else:
        tasks = [asyncio.ensure_future(lane(operations[number::lanes])) for number in range(lanes)]
        try:
            await asyncio.gather(*tasks)
        finally:  # if one fails, the others do not go on during another contestant's measurement
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def new_name() -> str:
    """Return an unused thread name."""
    return uuid.uuid4().hex


async def stored_threads(entrant: Entrant, count: int, messages: int, extra: int = 0) -> list[RunnableConfig]:
    """Return threads to read, made once: a checkpoint each, of messages with `extra` characters more."""
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
    """Return an operation that reads the thread's latest checkpoint and fails if there is none."""

    async def read() -> None:
        found = await entrant.saver.aget_tuple(config)
        if found is None and entrant.remembers:
            raise AssertionError(f"a stored thread was not found: {config}")

    return read


@dataclass(frozen=True)
class WarmRead(Workload):
    """Cost of resuming a thread that was in use a moment ago."""

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
    """Cost of a read when the cache is empty. Savers without a cache read as always."""

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
    """Cost of storing a checkpoint."""

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
    """Cost of storing the pending writes of a node."""

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
    """Return the number of threads for so many lanes, each of which writes to its own."""
    return lanes * math.ceil(8 / lanes)


async def new_chain(entrant: Entrant, state: list[Any]) -> list[Any]:
    """Make a thread with one checkpoint, read before as every run does. Return its name and the checkpoint."""
    thread_id, made = new_name(), chat.checkpoint(entrant.saver, state)
    await entrant.saver.aget_tuple(chat.thread(thread_id))
    await entrant.saver.aput(chat.thread(thread_id), *made)
    return [thread_id, made[0]]
