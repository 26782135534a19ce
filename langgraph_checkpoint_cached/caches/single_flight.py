"""One load per key in a process, however many callers want it at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from typing import Generic, TypeVar

from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Concurrent calls for the same key share one run of a loader: a *flight*.

    A flight is a task of its own. A caller that is cancelled leaves; the flight goes on for the others, and
    to its end even when nobody is left, because what it loads may be worth keeping.

    The idea is groupcache's `singleflight`. Not for results that callers change in place: every caller of a
    flight gets the same object. Not for work that differs by caller under one key: the first loader wins.
    """

    def __init__(self) -> None:
        self._joinable: dict[Hashable, asyncio.Task[T]] = {}
        self._tasks = BackgroundTasks()

    async def run(self, key: Hashable, loader: Callable[[], Awaitable[T]]) -> T:
        """What `loader` returns, or what an earlier call's loader for `key` that is still running returns.

        Raises:
            RuntimeError: a loader asked for its own key, which would wait for itself for ever.
            Exception: whatever the loader raised, to every caller of the flight.
        """
        flight = self._joinable.get(key)
        if flight is None or flight.done() or flight.get_loop() is not asyncio.get_running_loop():
            flight = self._take_off(key, loader)
        elif flight is asyncio.current_task():
            raise RuntimeError(f"the loader of {key!r} asked for {key!r} itself")
        # Not `shield`: from Python 3.14 on it reports an error that nobody was left to receive.
        await asyncio.wait((flight,))
        return flight.result()

    def forget(self, key: Hashable) -> None:
        """Later calls for `key` start anew; who is already waiting gets the older flight's answer."""
        self._joinable.pop(key, None)

    def _take_off(self, key: Hashable, loader: Callable[[], Awaitable[T]]) -> asyncio.Task[T]:
        async def fly() -> T:
            return await loader()

        flight = self._tasks.start(fly())
        self._joinable[key] = flight
        flight.add_done_callback(partial(self._landed, key))
        return flight

    def _landed(self, key: Hashable, flight: asyncio.Task[T]) -> None:
        if self._joinable.get(key) is flight:  # else it was forgotten, and a newer one may be there
            del self._joinable[key]
