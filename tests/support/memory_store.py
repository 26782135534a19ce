"""The store of `CacheAside` in a dict, and time that a test lets pass."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable
from typing import TypeVar

from langgraph_checkpoint_cached.caches.cache_aside import MISS, Miss
from langgraph_checkpoint_cached.caches.stampede_lock import StoreUnavailable

T = TypeVar("T")

SETTLED_AFTER_STEPS = 30
SECONDS_MAX = 10_000


class VirtualTime:
    """A clock that stands still while anything runs, and jumps to the next sleeper when all wait.

    Once it is over nobody sleeps any more, so what a failed test left behind can be cancelled and cleans up.
    """

    def __init__(self) -> None:
        self.now_seconds = 0.0
        self.over = False
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def clock(self) -> float:
        return self.now_seconds

    async def sleep(self, seconds: float) -> None:
        assert seconds >= 0, f"slept for {seconds} seconds"
        if self.over:
            return
        awake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now_seconds + seconds, next(self._order), awake))
        await awake

    async def settle(self) -> None:
        """Until everybody waits: for time, or for the test."""
        for _ in range(SETTLED_AFTER_STEPS):
            await asyncio.sleep(0)

    async def run(self, awaitable: Awaitable[T]) -> T:
        """Its result, with as much time passing as it takes."""
        task = asyncio.ensure_future(awaitable)
        await self.settle()
        while not task.done():
            assert self._sleepers, "everybody waits, and nobody for time"
            when, _, awake = heapq.heappop(self._sleepers)
            self.now_seconds = max(self.now_seconds, when)
            assert self.now_seconds < SECONDS_MAX, "this does not end"
            if not awake.done():
                awake.set_result(None)
            await self.settle()
        return task.result()


class MemoryStore:
    """Keeps `CacheStore`'s promises in one process. `failing` names methods that are unavailable.

    `lost_replies` names methods that do their work, and fail then.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.failing: set[str] = set()
        self.lost_replies: set[str] = set()
        self.calls: list[str] = []
        self._clock = clock
        self._payloads: dict[str, tuple[bytes, float]] = {}
        self._locks: dict[str, tuple[str, float]] = {}

    async def acquire(self, key: str, token: str, ttl_ms: int) -> bool:
        await self._begin("acquire")
        owner = self.lock_owner(key)
        if owner is None:
            self._locks[key] = (token, self._end(ttl_ms))
        await self._reply("acquire")
        return owner in (None, token)

    async def release(self, key: str, token: str) -> bool:
        await self._begin("release")
        ours = self.lock_owner(key) == token
        if ours:
            del self._locks[key]
        await self._reply("release")
        return ours

    async def read(self, key: str, extend_ms: int | None) -> bytes | Miss:
        await self._begin("read")
        payload = self.payload(key)
        if payload is not MISS and extend_ms is not None:
            self._payloads[key] = (payload, self._end(extend_ms))
        await self._reply("read")
        return payload

    async def fill(self, key: str, token: str, payload: bytes, ttl_ms: int) -> bool:
        await self._begin("fill")
        ours = self.lock_owner(key) == token
        if ours:
            self._payloads[key] = (payload, self._end(ttl_ms))
        await self._reply("fill")
        return ours

    async def discard(self, key: str) -> None:
        await self._begin("discard")
        self._payloads.pop(key, None)
        self._locks.pop(key, None)
        await self._reply("discard")

    def payload(self, key: str) -> bytes | Miss:
        payload, end = self._payloads.get(key, (MISS, 0.0))
        return payload if self._clock() < end else MISS

    def lock_owner(self, key: str) -> str | None:
        owner, end = self._locks.get(key, (None, 0.0))
        return owner if self._clock() < end else None

    def put(self, key: str, payload: bytes, ttl_ms: int) -> None:
        """As if somebody had stored it."""
        self._payloads[key] = (payload, self._end(ttl_ms))

    def lives_ms(self, key: str) -> int:
        return round((self._payloads[key][1] - self._clock()) * 1000)

    def lock_lives_ms(self, key: str) -> int:
        return round((self._locks[key][1] - self._clock()) * 1000)

    def lapse_lock(self, key: str) -> None:
        """As if its time had run out."""
        del self._locks[key]

    def _end(self, ttl_ms: int) -> float:
        return self._clock() + ttl_ms / 1000

    async def _begin(self, method: str) -> None:
        self.calls.append(method)
        await asyncio.sleep(0)  # others come between, as on a network
        if method in self.failing:
            raise StoreUnavailable(f"{method} was told to fail")

    async def _reply(self, method: str) -> None:
        if method in self.lost_replies:
            raise StoreUnavailable(f"the reply of {method} was lost")
