"""Work that its caller cannot interrupt half-way."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class BackgroundTasks:
    """Runner of each coroutine in a task of its own: a cancelled caller goes, the work goes on to its end.

    That keeps a cancellation from leaving a reply on a connection, a fence without an owner, or a waiter
    without an answer.
    """

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start the work and keep it alive. An error nobody waits for any more is not reported again."""
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._forget)
        return task

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Run the work to its end; return its result or raise its error."""
        task = self.start(work)
        # Not `asyncio.shield`: on Python 3.14 it reports an error that comes after its caller was cancelled.
        await asyncio.wait((task,))
        return task.result()

    async def drain(self, timeout: float | None = None) -> None:
        """Wait until nothing runs any more, or so many seconds. Errors of the work are its callers' to see."""
        while self._running:
            _, late = await asyncio.wait(self._running, timeout=timeout)
            if late:
                return

    def __len__(self) -> int:
        return len(self._running)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as seen
