"""Time limits that measure the work, not the event loop: a loop that was blocked does not make the work late."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from types import TracebackType

SLICES = 4
"""Parts of a time limit. A part counts when it ends without progress, and the loop was not blocked at its end."""
SLICES_MAX = 16
"""Parts without progress, the loop blocked or not, after which the time is up all the same."""
PROGRESS_SECONDS_MAX = 30.0
"""Longest time for one piece of work, however steadily it makes progress."""
LINGER_SECONDS = 2.0
"""Time for which a timer goes on without work, so that those who work often need not start it each time."""


class ProgressTimer:
    """Timer that expires when work made no progress for some time in which the event loop was running.

    It checks at the end of each slice of that time, so it may expire up to one slice late. It stops by itself
    `LINGER_SECONDS` after the last work.

    Args:
        seconds: Time without progress.
        state: Returns what is worked on, None if nothing is, and anything that changes as the work goes on.
        on_expired: Called once, when the time is up.
    """

    def __init__(
        self, seconds: float, state: Callable[[], tuple[object, object]], on_expired: Callable[[], None]
    ) -> None:
        self._slice_seconds, self._state, self._on_expired = seconds / SLICES, state, on_expired
        self._work: object = None
        self._seen: object = None
        self._idle = self._checks = 0  # slices without progress: those that count, and all
        self._due = self._work_until = self._linger_until = 0.0
        self._handle: asyncio.TimerHandle | None = None

    @property
    def is_running(self) -> bool:
        """Return whether the timer was started, and has neither expired nor stopped."""
        return self._handle is not None

    def start(self) -> None:
        """Start to measure."""
        self.stop()
        self._work, self._seen = self._state()
        self._idle = self._checks = 0
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._work_until, self._linger_until = now + PROGRESS_SECONDS_MAX, now + LINGER_SECONDS
        self._check_later(loop)

    def stop(self) -> None:
        """Measure no more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _check_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = loop.time() + self._slice_seconds
        self._handle = loop.call_at(self._due, self._check)

    def _check(self) -> None:
        self._handle = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        work, seen = self._state()
        has_moved = seen != self._seen or work is not self._work
        if work is not self._work:
            self._work, self._work_until = work, now + PROGRESS_SECONDS_MAX
        if has_moved:
            self._seen, self._idle, self._checks = seen, 0, 0
        elif work is not None:
            self._checks += 1
            self._idle += now - self._due < self._slice_seconds
        if work is not None or has_moved:
            self._linger_until = now + LINGER_SECONDS
        elif now >= self._linger_until:
            return
        if self._idle >= SLICES or self._checks >= SLICES_MAX or (work is not None and now >= self._work_until):
            self._on_expired()
        else:
            self._check_later(loop)


class running_timeout:  # noqa: N801 - used as `asyncio.timeout` is
    """`asyncio.timeout` that counts the time in which the event loop was running.

    It cancels the task itself: Python 3.10's `async_timeout` cannot be told by a timer that its time is up.
    """

    def __init__(self, seconds: float) -> None:
        self._timer = ProgressTimer(seconds, lambda: (self, None), self._expire)
        self._is_expired = False

    async def __aenter__(self) -> None:
        if (task := asyncio.current_task()) is None:
            raise RuntimeError("running_timeout needs a task: await this in a coroutine that a task runs")
        self._task = task
        self._cancelling = task.cancelling() if sys.version_info >= (3, 11) else 0
        self._timer.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.stop()
        if not self._is_expired:
            return
        still_cancelling = self._task.uncancel() if sys.version_info >= (3, 11) else 0
        if kind is asyncio.CancelledError and still_cancelling <= self._cancelling:
            raise asyncio.TimeoutError from exc

    def _expire(self) -> None:
        self._is_expired = True
        self._task.cancel()
