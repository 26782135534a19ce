"""Saver for code without an event loop: the same saver, on a loop in a thread of its own."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Coroutine, Generator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from typing import Any, TypeVar

from typing_extensions import Self, Unpack

from langgraph_checkpoint_cached.arguments import ConnStringOptions
from langgraph_checkpoint_cached.saver import CachedPostgresSaver

T = TypeVar("T")


class SyncCachedPostgresSaver(CachedPostgresSaver):
    """A `CachedPostgresSaver` for `graph.invoke` in ordinary scripts and thread pools.

    The sync methods may be called from any thread. The async ones raise `WrongThreadError`: in code that runs an
    event loop, use `CachedPostgresSaver` itself.
    """

    @classmethod
    def from_conn_string(  # type: ignore[override]
        cls, postgres_uri: str, redis_url: str, **options: Unpack[ConnStringOptions]
    ) -> AbstractContextManager[Self]:
        """Return a context manager for a saver with a loop, a connection pool and a Redis client of its own.

        Args and Raises: As for `CachedPostgresSaver.from_conn_string`.
        """
        return _on_background_loop(super().from_conn_string(postgres_uri, redis_url, **options))

    def setup(self) -> None:  # type: ignore[override]
        """Create or migrate the upstream saver's tables and our own. As `CachedPostgresSaver.setup`."""
        self._wait("setup", super().setup)


@contextmanager
def _on_background_loop(opening: AbstractAsyncContextManager[T]) -> Generator[T, None, None]:
    """Enter and leave an asynchronous context manager on a loop that runs in a thread for the block."""
    with _background_loop() as loop:
        entered = _result(opening.__aenter__(), loop)
        try:
            yield entered
        finally:
            _result(opening.__aexit__(*sys.exc_info()), loop)


@contextmanager
def _background_loop() -> Generator[asyncio.AbstractEventLoop, None, None]:
    """Run an event loop in a thread for the block."""
    loop = asyncio.SelectorEventLoop()  # on Windows the default one does not work with psycopg
    thread = threading.Thread(target=loop.run_forever, name="langgraph-checkpoint-cached", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _result(work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T:
    return asyncio.run_coroutine_threadsafe(work, loop).result()
