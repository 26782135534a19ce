"""One load per key at a time in a process, shared by its callers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from typing import Generic, TypeVar

from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Runs of loaders, one per key at a time, that concurrent calls share. Such a run is a *flight*.

    A flight is a task of its own. When a caller is cancelled, the flight continues for the others, and to its end
    even without any caller, because the value may be worth caching.

    The idea is groupcache's `singleflight`. Not for results that callers change in place: every caller of a
    flight gets the same object. Not for work that differs by caller under one key: the first loader is used.
    """

    def __init__(self) -> None:
        self._joinable: dict[Hashable, asyncio.Task[T]] = {}
        self._tasks = BackgroundTasks()

    async def run(self, key: Hashable, loader: Callable[[], Awaitable[T]]) -> T:
        """Run `loader`, or join the loader of an earlier call for `key` that is still running; return its result.

        Raises:
            RuntimeError: a loader asked for its own key, which would wait for itself for ever.
            Exception: any that the loader raised, to every caller of the flight.
        """
        flight = self._joinable.get(key)
        if flight is None or flight.done() or flight.get_loop() is not asyncio.get_running_loop():
            flight = self._start(key, loader)
        elif flight is asyncio.current_task():
            raise RuntimeError(f"the loader of {key!r} asked for {key!r} itself")
        # Not `shield`: from Python 3.14 on it reports an error that nobody was left to receive.
        await asyncio.wait((flight,))
        return flight.result()

    def forget(self, key: Hashable) -> None:
        """Let later calls for `key` start a new flight. Callers that wait already get the older one's result."""
        self._joinable.pop(key, None)

    def _start(self, key: Hashable, loader: Callable[[], Awaitable[T]]) -> asyncio.Task[T]:
        async def fly() -> T:
            return await loader()

        flight = self._tasks.start(fly())
        self._joinable[key] = flight
        flight.add_done_callback(partial(self._remove, key))
        return flight

    def _remove(self, key: Hashable, flight: asyncio.Task[T]) -> None:
        if self._joinable.get(key) is flight:  # else it was forgotten, and a newer one may have started
            del self._joinable[key]
