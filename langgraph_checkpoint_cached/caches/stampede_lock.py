"""Lease on a key, so that one of many processes which miss it at once does the work."""

from __future__ import annotations

import asyncio
import random as random_module
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

FIRST_PAUSE_SECONDS = 0.01
LONGEST_PAUSE_SECONDS = 0.25

WAIT_LEASES = 2
"""Longest wait of a caller, in leases: one for a holder that died, and one for its successor's work.
A shorter wait would end during that work, for all callers at once."""


class StoreUnavailable(Exception):
    """No answer from a store, or an error. It is unknown whether it has done what was asked."""


class LockStore(Protocol):
    """Store of locks. Every method is atomic, and raises `StoreUnavailable` when it fails."""

    async def acquire(self, key: str, token: str, ttl_ms: int) -> bool:
        """Acquire the lock for `token` if it is free; return whether `token` holds it.

        It is held for `ttl_ms` milliseconds. The call may be repeated.
        """

    async def release(self, key: str, token: str) -> bool:
        """Release the lock if `token` holds it; return whether it did."""


@dataclass(frozen=True)
class KeyLease:
    """Right to do the work for `key`, as long as `token` holds the lock in the store."""

    key: str
    token: str


async def _never() -> bool:
    return False


class StampedeLock:
    """Election of one worker per key. It saves work; it does not guarantee that work is done only once.

    A lease expires after `lease_seconds`, so that another process replaces a holder that died, and works at the
    same time as a holder that is slow. A holder must therefore let the store check the lease's token in the atomic
    step that writes its result (leases: Nishtala et al., "Scaling Memcache at Facebook", NSDI 2013; a lock alone
    is not enough: Kleppmann, "How to do distributed locking", 2016).

    Args:
        store: Store of the locks.
        lease_seconds: Lifetime of a lease; longer than the work usually takes.
        wait_seconds: Longest wait of `hold` for other holders; by default `WAIT_LEASES` leases.
        clock: Monotonic seconds.
        sleep: Replaces `asyncio.sleep`.
        random: Number in [0, 1) that spreads waiting callers out.
        new_token: Names a holder; no two calls anywhere may return the same.

    Raises:
        ValueError: `lease_seconds` is not positive.
    """

    def __init__(
        self,
        store: LockStore,
        *,
        lease_seconds: float = 10.0,
        wait_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        random: Callable[[], float] = random_module.random,
        new_token: Callable[[], str] = secrets.token_hex,
    ) -> None:
        if not lease_seconds > 0:
            raise ValueError(f"lease_seconds must be more than 0, not {lease_seconds!r}")
        self._store = store
        self._lease_ms = max(1, round(lease_seconds * 1000))
        self._wait_seconds = WAIT_LEASES * lease_seconds if wait_seconds is None else wait_seconds
        self._clock = clock
        self._sleep = sleep
        self._random = random
        self._new_token = new_token

    @asynccontextmanager
    async def hold(
        self, key: str, *, unless: Callable[[], Awaitable[bool]] = _never
    ) -> AsyncIterator[KeyLease | None]:
        """Hold a lease on `key` for the block; `None` if the block runs without one.

        `None` means that `unless()` became true (another process did the work), that the wait is over, or that
        the store is unavailable. No error of the store is raised.

        Args:
            key: The key to do work for.
            unless: Whether the work is done already.
        """
        lease = KeyLease(key, self._new_token())
        # A call that fails or is cancelled may have reached the store, and then the lock is ours. Releasing one
        # that is not ours does nothing.
        may_be_ours = True
        try:
            try:
                held = may_be_ours = await self._compete(lease, unless)
            except StoreUnavailable:
                held = False
            yield lease if held else None
        finally:
            if may_be_ours:
                with suppress(StoreUnavailable):  # then the lease expires
                    await self._store.release(key, lease.token)

    async def _compete(self, lease: KeyLease, unless: Callable[[], Awaitable[bool]]) -> bool:
        deadline = self._clock() + self._wait_seconds
        longest_pause = FIRST_PAUSE_SECONDS
        while True:
            acquired = await self._store.acquire(lease.key, lease.token, self._lease_ms)
            # The holder of the lock asks again, for this order of events: (1) we find nothing, (2) another holder
            # stores its result, (3) and releases the lock, (4) we acquire it.
            if await unless():
                if acquired:
                    await self._store.release(lease.key, lease.token)
                return False
            left = deadline - self._clock()
            if acquired or left <= 0:
                return acquired
            await self._sleep(min(left, longest_pause * (1 + self._random()) / 2))
            longest_pause = min(2 * longest_pause, LONGEST_PAUSE_SECONDS)
