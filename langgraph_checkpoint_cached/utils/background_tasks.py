"""Work that its caller cannot interrupt half-way."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

T = TypeVar("T")

LINGER_SECONDS_MAX = 2.0
"""Longest time for which a cancelled task waits for those that began since; a serving right is waited for 1 s."""


class BackgroundTasks:
    """Runner of each coroutine in a task of its own: a cancelled caller goes, the work goes on to its end.

    That keeps a cancellation from leaving a reply on a connection, a fence without an owner, or a waiter
    without an answer.

    When an event loop ends, asyncio cancels all tasks and waits for those, but not for the ones that they, or the
    replies that come meanwhile, begin then. So a cancelled task waits for them. What is left behind where none
    could wait is not reported: it ends as in a process that dies.
    """

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start the work and keep it alive. An error nobody waits for any more is not reported again."""
        task = asyncio.create_task(_outlast_later_work(work), name=getattr(work, "__qualname__", None))
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._running.add(task)
        _active(task.get_loop()).add(task)
        task.add_done_callback(partial(self._forget, work))
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

    def cancel(self, task: asyncio.Task[Any]) -> None:
        """Cancel a task that ought to end, and wait for nothing else."""
        _active(task.get_loop()).discard(task)
        task.cancel()

    def __len__(self) -> int:
        return len(self._running)

    def _forget(self, work: Coroutine[Any, Any, object], task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        _active(task.get_loop()).discard(task)
        work.close()  # if it was cancelled before it began
        if not task.cancelled():
            task.exception()  # marks it as seen


_ACTIVE: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakSet[asyncio.Task[Any]]] = WeakKeyDictionary()


def _active(loop: asyncio.AbstractEventLoop) -> WeakSet[asyncio.Task[Any]]:
    """Return the loop's tasks, of all runners, that have neither ended nor been cancelled."""
    active = _ACTIVE.get(loop)
    if active is None:
        active = _ACTIVE[loop] = WeakSet()
    return active


async def _outlast_later_work(work: Coroutine[Any, Any, T]) -> T:
    """Do the work. If it is cancelled by others, let what goes on without it end first."""
    try:
        return await work
    except asyncio.CancelledError:
        loop = asyncio.get_running_loop()
        active, task = _active(loop), asyncio.current_task()
        if task is not None and task in active:
            active.discard(task)
            deadline = loop.time() + LINGER_SECONDS_MAX
            while active and loop.time() < deadline:
                await asyncio.wait(active, timeout=deadline - loop.time())
        raise
