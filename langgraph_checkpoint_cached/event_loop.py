"""Calls from other threads and event loops than the one that a saver belongs to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from langgraph_checkpoint_cached.errors import WrongThreadError

T = TypeVar("T")


def wrong_loop(method: str) -> WrongThreadError:
    """Return the error of a method that was awaited on another event loop."""
    return WrongThreadError(
        f"{method}() was awaited on another event loop than the one this saver's connections belong to. "
        "Make a saver per event loop, or call the sync method from here."
    )


def wait_on(loop: asyncio.AbstractEventLoop, method: str, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine on this loop and block the calling thread until it is done.

    Args:
        loop: The saver's event loop.
        method: Name of the synchronous method, for errors.
        start: Makes the coroutine.

    Raises:
        WrongThreadError: the loop would wait for itself, or is not running.
    """
    try:
        own_loop = asyncio.get_running_loop()
    except RuntimeError:
        own_loop = None
    if own_loop is loop:
        raise WrongThreadError(
            f"{method}() would block the event loop it needs. Use `await saver.a{method}(...)` and the "
            "graph's async methods here, or call it from another thread."
        )
    if not loop.is_running():
        raise WrongThreadError(
            f"{method}() needs this saver's event loop, which is not running. In a script without one, "
            "use SyncCachedPostgresSaver."
        )
    return asyncio.run_coroutine_threadsafe(start(), loop).result()
