"""Saver for code without an event loop: the same saver, on a loop in a thread of its own."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import Generic, TypeVar

from typing_extensions import Self, Unpack

from langgraph_checkpoint_cached.arguments import ConnectionSettings, ConnStringOptions
from langgraph_checkpoint_cached.opening import Opening
from langgraph_checkpoint_cached.saver import CachedPostgresSaver
from langgraph_checkpoint_cached.utils.background_loop import BackgroundLoop

S = TypeVar("S", bound="SyncCachedPostgresSaver")


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
        return _SyncOpening(Opening(cls, ConnectionSettings.from_options(postgres_uri, redis_url, **options)))

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


class _SyncOpening(AbstractContextManager[S], Generic[S]):
    """Context manager for a saver and its event loop. The saver outlives one that is merely dropped."""

    def __init__(self, opening: Opening[S]) -> None:
        self._opening = opening
        self._saver: S | None = None

    def __enter__(self) -> S:
        background = BackgroundLoop("langgraph-checkpoint-cached")
        try:
            saver = background.run(self._opening.__aenter__())
            background.close_with(saver._access, partial(self._opening.__aexit__, None, None, None))
            saver._background = background
        except BaseException:
            background.close()
            raise
        self._saver = saver
        return saver

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._saver is not None:
            self._saver.close()
