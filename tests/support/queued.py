"""Items that the tests of both queues put into them, and what runs those."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from langgraph_checkpoint_cached.utils.batch_queue import answer


class Item:
    """Operation or call in a queue."""

    def __init__(self, name: str, size_bytes: int = 0, rows: int = 1) -> None:
        self.name, self.size_bytes, self.rows = name, size_bytes, rows
        self.done: asyncio.Future[str] = asyncio.get_running_loop().create_future()


class Runner:
    """Records the batches it is given; each waits until it is let go. What is named `bad...` fails."""

    def __init__(self, *, let_go: bool = False) -> None:
        self.groups: list[list[str]] = []
        self.gate = asyncio.Event()
        if let_go:
            self.gate.set()

    async def __call__(self, items: Sequence[Item]) -> None:
        self.groups.append([item.name for item in items])
        await self.gate.wait()
        for item in items:
            answer(item.done, ValueError(item.name) if item.name.startswith("bad") else item.name.upper())

    async def until_running(self, groups: int) -> None:
        """Wait until so many batches have begun."""
        while len(self.groups) < groups:
            await asyncio.sleep(0)
