"""Saver for code without an event loop: the same saver, on a loop in a thread of its own."""

from __future__ import annotations

import asyncio
import weakref
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import partial
from types import TracebackType
from typing import Generic, TypeVar

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from typing_extensions import Self, Unpack

from langgraph_checkpoint_cached.arguments import ConnectionSettings, ConnStringOptions
from langgraph_checkpoint_cached.engine.engine import Engine
from langgraph_checkpoint_cached.event_loop import LoopAccess
from langgraph_checkpoint_cached.saver import CachedPostgresSaver, own_clients
from langgraph_checkpoint_cached.stores.postgres.pool import opened
from langgraph_checkpoint_cached.utils.background_loop import BackgroundLoop

S = TypeVar("S", bound="SyncCachedPostgresSaver")

FLUSH_SECONDS_MAX = 15.0
"""Longest wait, on closing, for calls under way, and for writes to be flushed."""


class SyncCachedPostgresSaver(CachedPostgresSaver):
    """A `CachedPostgresSaver` for `graph.invoke` in ordinary scripts and thread pools.

    The sync methods may be called from any thread. The async ones raise `WrongThreadError`: in code that runs an
    event loop, use `CachedPostgresSaver` itself.

    A saver whose block is never left, as in an application that enters it at the start, is closed when the process
    ends, or when nothing refers to it any more. Make one in each worker process: it does not survive a fork.
    """

    _background: BackgroundLoop | None = None

    @classmethod
    def from_conn_string(  # type: ignore[override]
        cls, postgres_uri: str, redis_url: str, **options: Unpack[ConnStringOptions]
    ) -> AbstractContextManager[Self]:
        """Return a context manager for a saver with a loop, a connection pool and a Redis client of its own.

        Args and Raises: As for `CachedPostgresSaver.from_conn_string`.
        """
        return _Opening(cls, ConnectionSettings.from_options(postgres_uri, redis_url, **options))

    def setup(self) -> None:  # type: ignore[override]
        """Create or migrate the upstream saver's tables and our own. As `CachedPostgresSaver.setup`."""
        self._wait("setup", super().setup)

    def close(self) -> None:
        """Refuse further calls with `ClosedError`, wait for those under way, and close what the saver has opened.

        The end of the block does this, and so does the end of the process. Writes that are not flushed are flushed
        to Postgres, for 10 seconds at most. Calls that are not done after 25 seconds are cancelled: their callers
        get a `ClosedError`.
        """
        if self._background is not None:
            self._access.close()
            self._background.close()
        elif not self._access.is_closed and not self._access.is_forked:
            self._wait("close", self.aclose)


class _Opening(AbstractContextManager[S], Generic[S]):
    """Opening of a saver, and its closing when the block ends. A saver outlives one that is merely dropped."""

    def __init__(self, cls: type[S], settings: ConnectionSettings) -> None:
        self._cls = cls
        self._pool, self._client, self._options = own_clients(settings)
        self._saver: S | None = None

    def __enter__(self) -> S:
        background = BackgroundLoop("langgraph-checkpoint-cached")
        try:
            self._saver = background.run(self._open(background))
        except BaseException:
            background.close()
            raise
        return self._saver

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._saver is not None:
            self._saver.close()

    async def _open(self, background: BackgroundLoop) -> S:
        clients = opened(self._pool, self._client)
        await clients.__aenter__()
        try:
            upstream = AsyncPostgresSaver(self._pool, serde=self._options.get("serde"))
            saver = self._cls(self._client, upstream, **self._options)
        except BaseException:
            await clients.__aexit__(None, None, None)
            raise
        saver._background = background
        background.close_with(saver._access, partial(_close, weakref.ref(saver._access), saver._engine, clients))
        return saver


async def _close(
    access: weakref.ref[LoopAccess], engine: Engine, clients: AbstractAsyncContextManager[None]
) -> None:
    """Close all that a saver has open. The saver itself may be gone."""
    if (of_saver := access()) is not None:
        of_saver.close()
    try:
        await asyncio.wait_for(engine.close(), FLUSH_SECONDS_MAX)
    finally:
        await clients.__aexit__(None, None, None)
