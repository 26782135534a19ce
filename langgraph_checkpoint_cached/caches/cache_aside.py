"""Look in a cache, else load and keep: once at a time per key, over any number of processes."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import Enum
from functools import partial
from typing import Final, Generic, Protocol, TypeVar

from langgraph_checkpoint_cached.caches.single_flight import SingleFlight
from langgraph_checkpoint_cached.caches.stampede_lock import Lease, LockStore, StampedeLock, StoreUnavailable
from langgraph_checkpoint_cached.ttl import Ttl

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Miss(Enum):
    """The type of `MISS`: nothing is cached. No value that can be cached equals it."""

    MISS = "miss"


MISS: Final = Miss.MISS


class Serializer(Protocol[T]):
    """Turns values into bytes and back. `loads` raises, whatever it likes, for bytes it does not know."""

    def dumps(self, value: T) -> bytes: ...

    def loads(self, payload: bytes) -> T: ...


class CacheStore(LockStore, Protocol):
    """Where payloads live, next to their locks: `fill` and `discard` see both in one atomic step."""

    async def read(self, key: str, extend_ms: int | None) -> bytes | Miss:
        """The payload, empty or not, else `MISS`. A payload lives `extend_ms` milliseconds from now on."""

    async def fill(self, key: str, token: str, payload: bytes, ttl_ms: int) -> bool:
        """Stores the payload for `ttl_ms` milliseconds if `token` holds the lock; says whether it did."""

    async def discard(self, key: str) -> None:
        """Removes the payload, and the lock whoever holds it: what is being loaded will not be stored."""


class CacheAside(Generic[T]):
    """A cache in front of loaders that are slow or cost money.

    - One loader runs per key at a time: in this process through `SingleFlight`, between processes through
      a lease in the store. A process that waits for another's lease in vain loads by itself, and then
      stores nothing.
    - Once `invalidate` or `refresh` has returned, nothing that was loaded before it was called is in the
      store, or gets there, or is returned to a later `get` in this process. In another process a later
      `get` may still join a load that was under way there.
    - An unavailable store costs speed only: the loader answers.
    - Hit or miss, each caller gets a value of its own, as the serializer restores it.

    Not for values that must never be old: a source that changes without `invalidate` is noticed when the
    lifetime ends, and a store that loses writes (failover to a replica) can bring an old value back.

    Args:
        store: reached by every process that shares the cache.
        serializer: for the values.
        lifetime: how long a value is kept; a sliding one starts anew with every read.
        lock: makes the lock over the same store.
    """

    def __init__(
        self,
        store: CacheStore,
        serializer: Serializer[T],
        lifetime: Ttl,
        *,
        lock: Callable[[LockStore], StampedeLock] = StampedeLock,
    ) -> None:
        self._store = store
        self._serializer = serializer
        self._lifetime = lifetime
        self._lock = lock(store)
        self._flights: SingleFlight[bytes] = SingleFlight()
        self._damage_reported = False

    async def get(self, key: str, loader: Callable[[], Awaitable[T]]) -> T:
        """The cached value, else what `loader` returns, which is then cached.

        Raises:
            Exception: whatever `loader` or the serializer's `dumps` raised. Nothing is cached then.
        """
        payload = await self._flights.run(key, partial(self._answer, key, loader))
        return self._serializer.loads(payload)

    async def refresh(self, key: str, loader: Callable[[], Awaitable[T]]) -> T:
        """What `loader` returns, cached in place of what was there.

        The old value goes first, so an error or a crash cannot leave it behind. With the store unavailable
        it stays, and may be served until its lifetime ends.

        Raises:
            Exception: as `get`.
        """
        self._flights.forget(key)
        payload = await self._flights.run(key, partial(self._reload, key, loader))
        return self._serializer.loads(payload)

    async def invalidate(self, key: str) -> bool:
        """Forgets the value, and what is being loaded for it.

        Returns:
            False if the store is unavailable: the old value may then be served until its lifetime ends.
        """
        try:
            await self._store.discard(key)
        except StoreUnavailable:
            return False
        finally:
            self._flights.forget(key)  # after the store: a flight that began before may have read from it
        return True

    async def _answer(self, key: str, loader: Callable[[], Awaitable[T]]) -> bytes:
        try:
            found = await self._read(key)
        except StoreUnavailable:
            return await self._load(loader)
        if found is not MISS:
            return found

        async def answered() -> bool:
            nonlocal found
            found = await self._read(key)
            return found is not MISS

        async with self._lock.hold(key, unless=answered) as lease:
            return await self._load(loader, lease) if found is MISS else found

    async def _reload(self, key: str, loader: Callable[[], Awaitable[T]]) -> bytes:
        try:
            await self._store.discard(key)
        except StoreUnavailable:
            return await self._load(loader)
        async with self._lock.hold(key) as lease:
            return await self._load(loader, lease)

    async def _read(self, key: str) -> bytes | Miss:
        extend_ms = self._lifetime.milliseconds if self._lifetime.sliding else None
        payload = await self._store.read(key, extend_ms)
        if payload is not MISS:
            try:
                self._serializer.loads(payload)
            except Exception:  # noqa: BLE001 - the serializer is the caller's, its errors can be anything
                self._report_damage(key)
                return MISS
        return payload

    async def _load(self, loader: Callable[[], Awaitable[T]], lease: Lease | None = None) -> bytes:
        # Why only under a lease, and only while the store says that it is still ours:
        #   (1) we load the old value, (2) the source changes, (3) `invalidate` invalidates our lease,
        #   (4) another loads the new value and stores it, (5) our `fill` is refused.
        payload = self._serializer.dumps(await loader())
        if lease is not None:
            with suppress(StoreUnavailable):
                await self._store.fill(lease.key, lease.token, payload, self._lifetime.milliseconds)
        return payload

    def _report_damage(self, key: str) -> None:
        if not self._damage_reported:
            self._damage_reported = True
            logger.warning(
                "The cached value of %r cannot be read, so it is loaded anew. Further ones are not reported.",
                key,
                exc_info=True,
            )
