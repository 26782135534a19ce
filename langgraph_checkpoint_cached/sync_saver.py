"""The saver for code without an event loop: the same saver, on a loop in a thread of its own."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from langgraph_checkpoint_cached.saver import CachedPostgresSaver

T = TypeVar("T")


class SyncCachedPostgresSaver(CachedPostgresSaver):
    """A `CachedPostgresSaver` for `graph.invoke` in ordinary scripts and thread pools.

    Its sync methods may be called from any thread. Its async ones raise `WrongThreadError`: code that runs an
    event loop is better served by `CachedPostgresSaver` itself.
    """

    @classmethod
    @contextmanager
    def from_conn_string(  # type: ignore[override]
        cls, postgres_uri: str, redis_url: str, **options: Any
    ) -> Iterator[SyncCachedPostgresSaver]:
        """A saver with a loop, a connection pool and a Redis client of its own, closed at the end of the block.

        Args:
            postgres_uri, redis_url, options: As for `CachedPostgresSaver.from_conn_string`, which also says what
                is raised.
        """
        with _background_loop() as loop:
            opening = super().from_conn_string(postgres_uri, redis_url, **options)
            saver = _result(opening.__aenter__(), loop)
            try:
                yield saver  # type: ignore[misc]
            finally:
                _result(opening.__aexit__(*sys.exc_info()), loop)

    def setup(self) -> None:  # type: ignore[override]
        """Creates or migrates the upstream saver's tables and our own. As `CachedPostgresSaver.setup`."""
        self._wait("setup", super().setup)


@contextmanager
def _background_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a thread for the block."""
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
