"""A lease on a key, so that of many processes that miss it at once one does the work."""

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
"""How many leases a caller waits: one for a holder that died, and one for the successor to do the work in.
A shorter wait would end while the successor works, for everybody at once."""


class StoreUnavailable(Exception):
    """A store did not answer, or answered with an error. Whether it did what was asked is unknown."""


class LockStore(Protocol):
    """Where locks live. Every method is atomic, and raises `StoreUnavailable` when it fails."""

    async def acquire(self, key: str, token: str, ttl_ms: int) -> bool:
        """Whether the lock is now `token`'s, for `ttl_ms` milliseconds. Asking twice is asking once."""

    async def release(self, key: str, token: str) -> bool:
        """Frees the lock if it is `token`'s, and says whether it was."""


@dataclass(frozen=True)
class Lease:
    """The right to do the work for `key`, while the store says that `token` holds it."""

    key: str
    token: str


async def _never() -> bool:
    return False


class StampedeLock:
    """Elects one worker per key. It saves work; what must not happen twice needs more than this.

    A lease ends by itself after `lease_seconds`, so a holder that dies is succeeded, and a holder that is
    slow may find that somebody else works too. Whoever writes a result must therefore let the store check
    the lease's token in the same atomic step (leases: Nishtala et al., "Scaling Memcache at Facebook", NSDI
    2013; why a lock alone is not enough: Kleppmann, "How to do distributed locking", 2016).

    Args:
        lease_seconds: longer than the work takes as a rule.
        wait_seconds: the longest that `hold` waits for others; `WAIT_LEASES` leases when not given.
        clock: seconds, monotonic.
        sleep: as `asyncio.sleep`.
        random: a number in [0, 1), spreads waiters out.
        new_token: names an owner; no two calls anywhere may return the same.
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
    ) -> AsyncIterator[Lease | None]:
        """A lease on `key`, given back on the way out; or `None`: go on without one.

        `None` means that `unless()` became true (somebody else did the work), that the wait is over, or that
        the store is unavailable. Nothing of the store's is ever raised.
        """
        lease = Lease(key, self._new_token())
        # A call that fails or is cancelled may have reached the store all the same. Then the lock is ours
        # without our knowing; to release it is harmless if not.
        perhaps_ours = True
        try:
            try:
                held = perhaps_ours = await self._compete(lease, unless)
            except StoreUnavailable:
                held = False
            yield lease if held else None
        finally:
            if perhaps_ours:
                with suppress(StoreUnavailable):  # then the lease ends by itself
                    await self._store.release(key, lease.token)

    async def _compete(self, lease: Lease, unless: Callable[[], Awaitable[bool]]) -> bool:
        deadline = self._clock() + self._wait_seconds
        longest_pause = FIRST_PAUSE_SECONDS
        while True:
            acquired = await self._store.acquire(lease.key, lease.token, self._lease_ms)
            # Asked again by who has the lock, for this order of events: (1) we find nothing, (2) another
            # holder stores its result, (3) and releases, (4) we acquire.
            if await unless():
                if acquired:
                    await self._store.release(lease.key, lease.token)
                return False
            left = deadline - self._clock()
            if acquired or left <= 0:
                return acquired
            await self._sleep(min(left, longest_pause * (1 + self._random()) / 2))
            longest_pause = min(2 * longest_pause, LONGEST_PAUSE_SECONDS)
