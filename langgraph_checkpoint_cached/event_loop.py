"""Access of callers to the event loop of a saver: from which threads, and until when."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from concurrent import futures
from typing import Any, TypeVar

from langgraph_checkpoint_cached.errors import CachedSaverError, ClosedError, ForkedError, WrongThreadError
from langgraph_checkpoint_cached.utils.forks import notify_in_children

T = TypeVar("T")

CHECK_SECONDS = 1.0
"""A thread that waits for an event loop checks this often whether the loop has ended without an answer."""
CLOSED = (
    "{}(): this saver is closed: its block was left, or it was closed otherwise. Use the graph inside the block, "
    "or make another saver."
)
CUT_SHORT = "{}(): this saver was closed, or its event loop ended, before the call was done."
FORKED = (
    "{}(): this saver was made before the process was forked, and its connections cannot be shared. Make a saver "
    "in each worker process (gunicorn: without --preload, or in the hook post_worker_init; Celery: in the signal "
    "worker_process_init)."
)

_NO_LOOP = object()

running_loop = asyncio._get_running_loop
"""Return the running event loop; None where none runs, as in a child that was forked inside a coroutine."""


class LoopAccess:
    """Access of a saver and its copies to their event loop, until they are closed or the process is forked.

    Each asynchronous method compares the running loop with `loop`, and asks for the reason where they differ.
    After close and fork `loop` is no loop, so that this one comparison is all that a call costs.

    Attributes:
        loop: Event loop on which calls are allowed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: object = loop
        self._loop = loop
        self.is_closed = self.is_forked = False
        notify_in_children(self)

    def close(self) -> None:
        """Refuse all further calls. Those under way go on."""
        self.is_closed, self.loop = True, _NO_LOOP

    def after_fork(self) -> None:
        self.is_forked, self.loop = True, _NO_LOOP

    def refusal(self, method: str) -> CachedSaverError:
        """Return the error of an asynchronous method that may not be awaited here."""
        if self.is_forked:
            return ForkedError(FORKED.format(method))
        if self.is_closed:
            return ClosedError(CLOSED.format(method))
        return WrongThreadError(
            f"{method}() was awaited on another event loop than the one this saver's connections belong to. "
            "Make a saver per event loop, or call the sync method from here."
        )

    def allows_closing(self) -> bool:
        """Return whether there is something to close: not in a forked process, where all is the parent's.

        Raises:
            WrongThreadError: awaited on another event loop.
        """
        if not self.is_forked and running_loop() is not self._loop:
            raise WrongThreadError("aclose() was awaited on another event loop than the saver's own.")
        return not self.is_forked

    def wait(self, method: str, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine on the loop and block the calling thread until it is done, or the loop has ended.

        Args:
            method: Name of the synchronous method, for errors.
            start: Makes the coroutine.

        Raises:
            ClosedError: the saver is closed, or was closed meanwhile.
            ForkedError: the saver belongs to the parent of this process.
            WrongThreadError: the loop would wait for itself, or is not running.
        """
        loop = self._loop
        if self.loop is not loop:
            raise self.refusal(method)
        if running_loop() is loop:
            raise WrongThreadError(
                f"{method}() would block the event loop it needs. Use `await saver.a{method}(...)` and the "
                "graph's async methods here, or call it from another thread."
            )
        if not loop.is_running():
            if loop.is_closed():
                raise ClosedError(f"{method}(): this saver's event loop has ended, and the saver with it.")
            raise WrongThreadError(
                f"{method}() needs this saver's event loop, which is not running. In a script without one, "
                "use SyncCachedPostgresSaver.from_conn_string, which runs its own."
            )
        coroutine = start()
        try:
            called = asyncio.run_coroutine_threadsafe(coroutine, loop)
            return _result(called, loop)
        except _LoopEnded as exc:
            if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
                coroutine.close()
            raise ClosedError(CUT_SHORT.format(method)) from exc.__cause__


class _LoopEnded(Exception):
    """The event loop has ended without an answer."""


def _result(called: futures.Future[T], loop: asyncio.AbstractEventLoop) -> T:
    while True:
        try:
            return called.result(CHECK_SECONDS)
        except futures.CancelledError:
            raise _LoopEnded from None
        except futures.TimeoutError:  # of this wait, or of the call
            if called.done() and not called.cancelled():
                return called.result()
            if loop.is_closed():
                raise _LoopEnded from None
