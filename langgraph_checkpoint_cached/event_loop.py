"""A saver belongs to one event loop: what may be called from where."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from langgraph_checkpoint_cached.errors import WrongThreadError

T = TypeVar("T")


def check_loop(loop: asyncio.AbstractEventLoop, method: str) -> None:
    """Raises `WrongThreadError` if the caller is not on this loop."""
    if running_loop() is not loop:
        raise WrongThreadError(
            f"{method}() was awaited on another event loop than the one this saver's connections belong to. "
            "Make a saver per event loop, or call the sync method from here."
        )


def wait_on(loop: asyncio.AbstractEventLoop, method: str, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs a coroutine on this loop and blocks the calling thread until it is done.

    Raises:
        WrongThreadError: the loop would wait for itself, or is not running.
    """
    if running_loop() is loop:
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


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The one of the calling thread."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
