"""Event loop in a thread of its own, for as long as something is open on it, and never beyond the process."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import selectors
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from langgraph_checkpoint_cached.utils.forks import cut_off, notify_in_children

T = TypeVar("T")

logger = logging.getLogger("langgraph_checkpoint_cached")

CLOSE_SECONDS_MAX = 25.0
"""Longest wait for what is open to be closed."""
CANCEL_SECONDS_MAX = 5.0
"""Longest wait after that, for tasks that are cancelled then."""


class BackgroundLoop:
    """Event loop in a daemon thread, until `close`, or until the process ends.

    When a process ends, Python waits for all threads but daemons, which may go on using the loop. Then it calls
    what is registered with `atexit`, here `close`, the youngest first, while daemon threads still run. A thread
    that is no daemon would be waited for before that, for ever.

    Args:
        name: Name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._selector = selectors.DefaultSelector()
        self.loop = asyncio.SelectorEventLoop(self._selector)  # on Windows the default one does not suit psycopg
        self._close_all: Callable[[], Coroutine[Any, Any, None]] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._forgotten: weakref.finalize[Any, Any] | None = None
        self._is_forked = False
        self._thread = threading.Thread(target=_serve, args=(self.loop,), name=name, daemon=True)
        self._thread.start()
        notify_in_children(self)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop, and block until it is done."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def close_with(self, owner: object, close_all: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Close at the end of the process, or when the owner is forgotten, unless `close` is called before.

        Args:
            owner: Object that uses the loop.
            close_all: Closes what is open. It must not keep the owner alive.
        """
        self._close_all = close_all
        self._forgotten = weakref.finalize(owner, self._begin_closing)  # in any thread: it must not wait
        self._forgotten.atexit = False
        atexit.register(self.close)

    def close(self) -> None:
        """Close all, cancel what still runs after `CLOSE_SECONDS_MAX`, and end the loop.

        Raises what closing raises. Nothing happens in a forked process, nor when it is closed already.
        """
        if self._is_forked:
            return
        self._begin_closing()
        self._thread.join(CLOSE_SECONDS_MAX + 2 * CANCEL_SECONDS_MAX)
        if self._thread.is_alive():
            logger.warning("an event loop does not end, for something blocks it: its thread goes with the process")
        elif self._closing is not None and self._closing.done():
            self._closing.result()

    def after_fork(self) -> None:
        """Leave all to the parent: the thread exists only there."""
        self._is_forked = True
        atexit.unregister(self.close)
        if self._forgotten is not None:
            self._forgotten.detach()
        for task in asyncio.all_tasks(self.loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        cut_off([key.fd for key in (self._selector.get_map() or {}).values()])

    def _begin_closing(self) -> None:
        atexit.unregister(self.close)
        with contextlib.suppress(RuntimeError):  # it has ended
            self.loop.call_soon_threadsafe(self._start_closing)

    def _start_closing(self) -> None:
        if self._closing is None:
            self._closing = self.loop.create_task(self._close())

    async def _close(self) -> None:
        try:
            if self._close_all is not None:
                closing = asyncio.ensure_future(self._close_all())
                _, late = await asyncio.wait({closing}, timeout=CLOSE_SECONDS_MAX)
                if late:
                    logger.warning("could not close all connections in %s seconds", CLOSE_SECONDS_MAX)
                else:
                    closing.result()
        finally:
            self.loop.stop()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    """Run the loop until it is stopped. All who still wait for a task see it cancelled."""
    try:
        loop.run_forever()
        if tasks := asyncio.all_tasks(loop):
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.wait(tasks, timeout=CANCEL_SECONDS_MAX))
    finally:
        loop.close()
