"""Cache-aside over any number of processes, with one load at a time per key."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import Enum
from functools import partial
from typing import Final, Generic, Protocol, TypeVar

from langgraph_checkpoint_cached.caches.single_flight import SingleFlight
from langgraph_checkpoint_cached.caches.stampede_lock import KeyLease, LockStore, StampedeLock, StoreUnavailable
from langgraph_checkpoint_cached.ttl import Ttl

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Miss(Enum):
    """Type of `MISS`, the answer for a key without a cached value. No value that can be cached equals it."""

    MISS = "miss"


MISS: Final = Miss.MISS


class Serializer(Protocol[T]):
    """Conversion of values to bytes and back. `loads` raises any exception for bytes it does not know."""

    def dumps(self, value: T) -> bytes: ...

    def loads(self, payload: bytes) -> T: ...


class CacheStore(LockStore, Protocol):
    """Store of payloads and their locks. `fill` and `discard` reach both in one atomic step."""

    async def read(self, key: str, extend_ms: int | None) -> bytes | Miss:
        """Return the payload, which may be empty, else `MISS`.

        Args:
            key: The payload's.
            extend_ms: Milliseconds that the payload lives from now on; None leaves its lifetime as it is.
        """

    async def fill(self, key: str, token: str, payload: bytes, ttl_ms: int) -> bool:
        """Store the payload for `ttl_ms` milliseconds if `token` holds the lock. Return whether it did."""

    async def discard(self, key: str) -> None:
        """Remove the payload, and the lock whoever holds it, so that loads under way are not stored."""


class CacheAside(Generic[T]):
    """Cache in front of loaders that are slow or cost money.

    - One loader runs per key at a time: `SingleFlight` ensures it in this process, a lease in the store between
      processes. A process that waits too long for another's lease loads by itself, and then stores nothing.
    - When `invalidate` or `refresh` returns, values that were loaded before the call are not in the store, are not
      stored later, and are not returned to a later `get` in this process. In another process a later `get` may
      still join a load that was under way there.
    - If the store is unavailable, every call runs its loader.
    - On a hit and on a miss, each caller gets a value of its own, as the serializer restores it.

    Not for values that must never be old: a change of the source without `invalidate` shows when the lifetime
    ends, and a store that loses writes (failover to a replica) can bring an old value back.

    Args:
        store: Store that every process which shares the cache can reach.
        serializer: Serializer of the values.
        lifetime: Lifetime of a value; a sliding one starts anew with every read.
        lock: Makes the lock over the same store.
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
        """Return the cached value, else load it and cache it.

        Raises:
            Exception: any that `loader` or the serializer's `dumps` raised. Nothing is cached then.
        """
        payload = await self._flights.run(key, partial(self._answer, key, loader))
        return self._serializer.loads(payload)

    async def refresh(self, key: str, loader: Callable[[], Awaitable[T]]) -> T:
        """Load the value and cache it in place of the old one.

        The old value is removed first, so that an error or a crash cannot leave it there. While the store is
        unavailable it stays, and may be served until its lifetime ends.

        Raises:
            Exception: as `get`.
        """
        self._flights.forget(key)
        payload = await self._flights.run(key, partial(self._reload, key, loader))
        return self._serializer.loads(payload)

    async def invalidate(self, key: str) -> bool:
        """Remove the value, and do not store loads of it that are under way.

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

        async def is_cached() -> bool:
            nonlocal found
            found = await self._read(key)
            return found is not MISS

        async with self._lock.hold(key, unless=is_cached) as lease:
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

    async def _load(self, loader: Callable[[], Awaitable[T]], lease: KeyLease | None = None) -> bytes:
        # A load is stored only under a lease that is still ours, for this order of events:
        #   (1) we load the old value, (2) the source changes, (3) `invalidate` removes our lease,
        #   (4) another process loads the new value and stores it, (5) our `fill` is refused.
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
