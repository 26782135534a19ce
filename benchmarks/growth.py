"""Workloads that show how a cost grows, and the cost of decoding alone."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmarks import chat
from benchmarks.contestants import Entrant
from benchmarks.turns import Turn
from benchmarks.workloads import (
    PREPARED_AT_ONCE,
    WARM_THREADS,
    Operation,
    Workload,
    in_lanes,
    reader,
    stored_threads,
)
from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.records import Namespace, Record, Value
from langgraph_checkpoint_cached.serde import codec

GROUP = "Growth"


@dataclass(frozen=True)
class ReadByState(Workload):
    """Growth of a warm read with the history's length and with the size of its messages."""

    group = GROUP
    messages: int = 20
    extra: int = 0

    @property
    def what(self) -> str:
        size = f"{self._kilobytes} kB in {self.messages} messages" if self.extra else f"{self.messages} messages"
        return f"growth: warm read, {size}"

    @property
    def parameters(self) -> dict[str, Any]:
        return {"kilobytes": self._kilobytes} if self.extra else {"messages": self.messages}

    @property
    def _kilobytes(self) -> int:
        """Return the average characters added to a message: only answers, every other one, get extra ones."""
        return self.extra * (self.messages // 2) // 1000

    async def prepare(self, entrant: Entrant, count: int) -> list[Operation]:
        threads = await stored_threads(entrant, 8, self.messages, self.extra)
        reads = [reader(entrant, config) for config in threads]
        await in_lanes(reads, PREPARED_AT_ONCE)
        return [reads[number % len(reads)] for number in range(count)]


@dataclass(frozen=True)
class ReadByThreads(Workload):
    """Growth of a warm read with the number of stored threads."""

    group = GROUP
    threads: int = 100

    @property
    def what(self) -> str:
        return f"growth: warm read, one of {self.threads} threads"

    @property
    def parameters(self) -> dict[str, Any]:
        return {"threads": self.threads}

    async def prepare(self, entrant: Entrant, count: int) -> list[Operation]:
        threads = await stored_threads(entrant, self.threads, 2)
        chosen = random.Random(self.threads).sample(threads, min(WARM_THREADS, len(threads)))
        reads = [reader(entrant, config) for config in chosen]
        await in_lanes(reads, PREPARED_AT_ONCE)
        return [reads[number % len(reads)] for number in range(count)]

    def small(self) -> Workload:
        return replace(self, threads=min(self.threads, 20))


@dataclass(frozen=True)
class TurnByHistory(Turn):
    """Growth of a chat turn with its history."""

    group = GROUP

    @property
    def what(self) -> str:
        return f"growth: {super().what}"


@dataclass(frozen=True)
class Decode(Workload):
    """Cost of turning stored bytes into messages, with the upstream saver's serializer and with our decoding.

    Ours is given a whole record of which they are the one value.
    """

    group = "Decoding"
    messages: int = 200

    @property
    def what(self) -> str:
        return f"decoding {self.messages} messages"

    async def prepare(self, entrant: Entrant, count: int) -> list[Operation]:
        saver = entrant.saver
        kind, blob = saver.serde.dumps_typed(chat.messages(self.messages))
        decode = partial(saver.serde.loads_typed, (kind, blob))
        if isinstance(saver, CachedPostgresSaver):
            made, metadata, _ = chat.checkpoint(saver, [])
            record = Record(
                namespace=Namespace("thread"),
                checkpoint_id=made["id"],
                parent_id=None,
                checkpoint_json=json.dumps({**made, "channel_values": {}}).encode(),
                metadata_json=json.dumps(metadata).encode(),
                values=(Value("messages", kind, blob),),
                writes=(),
            )
            decode = partial(codec.decode, record, saver.serde, lambda: saver.get_next_version(None, None))

        async def operation() -> object:
            return decode()

        return [operation] * count
