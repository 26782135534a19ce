"""The fences of one process: its writes to a namespace share one, which stands a moment longer for the next."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.stores.redis.entries import FENCE_MS, FenceAck, RedisEntries, begun
from langgraph_checkpoint_cached.stores.redis.executor import RedisUnavailable
from langgraph_checkpoint_cached.utils.tokens import new_token

FENCE_MARGIN_SECONDS = FENCE_MS / 1000 / 2
"""A fence with less than this left is taken anew before Postgres is asked to commit."""
RETAIN_SECONDS = 0.05
"""How long a fence stands after a write, for the next one: a step of a graph writes several times in a row."""
RETAINED_MAX = 1000


@dataclass(eq=False)
class Fence:
    """A fence over a namespace, and the writes under it."""

    namespace: Namespace
    begin: asyncio.Future[bytes]
    begun_at: float
    token: str
    is_flushed: bool = False
    """Whether Postgres holds all that was acknowledged of the thread before the fence."""
    stays: bool = False
    """Whether it is left to its deadline: nobody knows whether a write under it has ended."""
    writes: int = 0
    """Under it, that have not ended."""
    active: bool = True
    """Whether it may be in Redis, once all that was sent is done."""
    idle_at: float = 0.0


class Fences:
    """Takes fences, shares them among writes, and has them released.

    Besides Postgres a write waits for Redis: for its fence and for its COMMIT. The writes of a run come close upon
    each other, so the fence stands for `RETAIN_SECONDS` after the last of them, and the next one need not take it.
    Meanwhile other processes read from Postgres. A read of this process gives the fence up, in the same step.

    A fence is not used again once it has been given up, or Redis may have lost it, or a write under it may still
    be going on: then others would see a write too early, or its process might die and leave what it stored unseen.

    Args:
        entries: Where they are. Reads of it give fences up from now on.
        loop: The event loop that all of it is used on.
        keeps: Whether one stands when no write is under it. Meanwhile nothing is written behind.
        clock: In seconds.
    """

    def __init__(
        self,
        entries: RedisEntries,
        loop: asyncio.AbstractEventLoop,
        *,
        retain: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._entries, self._loop, self._retains, self._clock = entries, loop, retain, clock
        self._shared: dict[Namespace, Fence] = {}
        self._idle: dict[Namespace, Fence] = {}  # of those, the ones no write is under, the oldest first
        self._releasing: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self.left: Callable[[str, str], object] = lambda thread_id, token: None
        """Is told of a fence that nobody needs and that may stand in Redis."""
        entries.take_idle_fence = self._hand_over

    def take(self, namespace: Namespace) -> Fence:
        """The fence that a write is under: one that stands, or a new one. BEGIN is queued when this returns."""
        fence = self._shared.get(namespace)
        if fence is None or self._clock() - fence.begun_at > FENCE_MARGIN_SECONDS:
            if namespace in self._idle:
                self._release(self._idle[namespace])
            token = new_token()
            fence = Fence(namespace, self._entries.begin(namespace, token), self._clock(), token)
            self._shared[namespace] = fence
            if self._retains and self._releasing is None:
                self._releasing = self._loop.create_task(self._release_in_time())
        self._idle.pop(namespace, None)
        fence.writes += 1
        return fence

    async def begun(self, fence: Fence) -> FenceAck | None:
        """Waits until it stands, with time to spare. None if Redis does not confirm that."""
        try:
            reply = await fence.begin
            if self._clock() - fence.begun_at > FENCE_MARGIN_SECONDS:
                fence.begun_at, fence.is_flushed = self._clock(), False
                fence.begin = self._entries.begin(fence.namespace, fence.token)
                reply = await fence.begin
            return begun(reply)
        except RedisUnavailable:
            self.forget(fence)
            return None

    def ends(self, fence: Fence) -> bool:
        """A write under it is to be committed in Redis next: whether the fence is to stand then."""
        is_last = fence.writes == 1 and not fence.stays
        if is_last and not self._retains:
            self.forget(fence)
        fence.active = not is_last or self._is_shared(fence)
        return fence.active

    def ended(self, fence: Fence, *, stood: bool | None = None) -> None:
        """A write under it has ended.

        Args:
            fence: The fence.
            stood: Whether it stood, if Redis has said so.
        """
        fence.writes -= 1
        if not stood:
            self.forget(fence)
            fence.active = stood is None
        if fence.writes or fence.stays:
            return
        if self._is_shared(fence) and self._retains:
            self._keep(fence)
        elif fence.active:
            self._release(fence)

    def withdraw(self, fence: Fence) -> None:
        """A write is not under it after all."""
        self.ended(fence, stood=True)

    def forget(self, fence: Fence, *, stays: bool = False) -> None:
        """It is not to be used again; with `stays` not to be released either."""
        fence.stays |= stays
        if self._is_shared(fence):
            del self._shared[fence.namespace]
            self._idle.pop(fence.namespace, None)
            self._changed.set()

    def forget_all(self) -> None:
        """None is to be used again: Redis may have lost them."""
        idle, self._idle, self._shared = self._idle, {}, {}
        self._changed.set()
        for fence in idle.values():
            self.left(fence.namespace.thread_id, fence.token)

    def release_all(self) -> None:
        """Gives up those that no write is under. Queued when this returns."""
        for fence in list(self._idle.values()):
            self._release(fence)
        if self._releasing is not None:
            self._releasing.cancel()
            self._releasing = None

    def _is_shared(self, fence: Fence) -> bool:
        return self._shared.get(fence.namespace) is fence

    def _keep(self, fence: Fence) -> None:
        if len(self._idle) >= RETAINED_MAX:
            self._release(next(iter(self._idle.values())))
        fence.idle_at = self._clock()
        self._idle[fence.namespace] = fence
        self._changed.set()

    async def _release_in_time(self) -> None:
        """Releases what has been idle for long enough, as long as there are fences.

        It is a task that a write starts, and no timer, so that a loop that ends ends this too: what a timer began
        then would be left half done.
        """
        task = asyncio.current_task()  # not in `finally`: when garbage is collected there may be no loop to ask
        try:
            while self._shared:
                self._changed.clear()
                left = self._release_old()
                await (self._changed.wait() if left is None else asyncio.sleep(left))
        finally:
            if self._releasing is task:
                self._releasing = None

    def _release_old(self) -> float | None:
        """After how many seconds the next one is old; None if none is idle."""
        for fence in list(self._idle.values()):
            left = fence.idle_at + RETAIN_SECONDS - self._clock()
            if left > 0:
                return left
            self._release(fence)
        return None

    def _release(self, fence: Fence) -> None:
        self.forget(fence)
        thread_id = fence.namespace.thread_id
        released = self._entries.release(thread_id, fence.token)
        released.add_done_callback(partial(_if_not_done, partial(self.left, thread_id, fence.token)))

    def _hand_over(self, namespace: Namespace) -> tuple[str, Callable[[asyncio.Future[Any]], None]] | None:
        fence = self._idle.get(namespace)
        if fence is None:
            return None
        self.forget(fence)
        return fence.token, partial(_if_not_done, partial(self._release, fence))


def _if_not_done(instead: Callable[[], object], step: asyncio.Future[Any]) -> None:
    if not step.cancelled() and isinstance(step.exception(), RedisUnavailable):
        instead()
