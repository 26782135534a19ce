"""Fences of one process: its writes to a namespace share one, which stays active a moment longer for the next."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial

from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.stores.redis.executor import ScriptExecutor
from langgraph_checkpoint_cached.stores.redis.health import NotDone, RedisUnavailable
from langgraph_checkpoint_cached.stores.redis.keys import ENTRY_KEYS, thread_key
from langgraph_checkpoint_cached.stores.redis.keyspace import Keyspace
from langgraph_checkpoint_cached.stores.redis.positions import LeasePosition, parse_position
from langgraph_checkpoint_cached.stores.redis.scripts import BEGIN, RELEASE
from langgraph_checkpoint_cached.utils.tokens import new_token

FENCE_MS = 30_000
"""A reader may settle the fence of a write that takes longer: see `check_fences` in `lua/thread.lua`."""
FENCE_MARGIN_SECONDS = FENCE_MS / 1000 / 2
"""A fence with less time left than this is taken anew before Postgres is asked to commit."""
FENCE_START_SECONDS = 25.0
"""A transaction that has not begun so long after its fence was taken does not begin any more. The time that is
left covers how far the clocks of Postgres and Redis may drift apart meanwhile."""
RETAIN_SECONDS = 0.05
"""Time that a fence stays active after a write, for the next one: a graph writes several times in a row."""
RETAINED_MAX = 1000


@dataclass(frozen=True)
class FenceAck:
    """Redis' confirmation of a fence: the thread's lease, and whether Redis can tell that there is none."""

    lease: LeasePosition | None
    known: bool


NO_LEASE = FenceAck(None, known=True)


@dataclass(eq=False)
class Fence:
    """Fence over a namespace, and the writes under it."""

    namespace: Namespace
    begin: asyncio.Future[bytes]
    begun_at: float
    token: str
    is_flushed: bool = False
    """True if Postgres holds all writes of the thread that were acknowledged before the fence."""
    expires: bool = False
    """True if the fence is left to expire, because the outcome of a write under it is unknown."""
    writes: int = 0
    """Number of writes under the fence that have not ended."""
    active: bool = True
    """True if the fence may be in Redis once all calls sent have run."""
    idle_at: float = 0.0
    is_confirmed: bool = False
    is_absent: bool = False
    """True if Redis certainly has never had the fence, so that there is nothing to release."""


class Fences:
    """Fences of one process: taken, shared among writes, and released.

    Besides Postgres a write waits for Redis: for its fence and for its COMMIT. The writes of a run follow closely
    on each other, so the fence stays active for `RETAIN_SECONDS` after the last of them, and the next write need
    not take it. Meanwhile other processes read from Postgres. A read of this process releases the fence, in the
    same script.

    A fence is not used again once it was released, or Redis may have lost it, or a write under it may still be
    going on: then others would see a write too early, or its process might die and leave what it stored unseen.

    Args:
        runtime: Event loop and clock.
        executor: Runs the scripts.
        keyspace: Keys and shared arguments.
        retain: Whether a fence stays active when no write is under it. Meanwhile nothing is written behind.
    """

    def __init__(self, runtime: Runtime, executor: ScriptExecutor, keyspace: Keyspace, *, retain: bool) -> None:
        self._loop, self._clock, self._executor, self._keyspace = runtime.loop, runtime.clock, executor, keyspace
        self._health, self._retains = executor.health, retain
        self._openings = self._health.openings
        self._shared: dict[Namespace, Fence] = {}
        self._idle: dict[Namespace, Fence] = {}  # of those, the ones no write is under, the oldest first
        self._abandoned: list[tuple[str, str]] = []
        self._releasing: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self.owner, self.start_seconds = runtime.owner, FENCE_START_SECONDS

    @property
    def ttl_text(self) -> str:
        """Time to the deadline of a fence, in milliseconds."""
        return str(FENCE_MS)

    def start_deadline(self) -> float:
        """Return the time by which a transaction under a fence that is taken now must have begun."""
        return self._clock() + self.start_seconds

    def take(self, namespace: Namespace) -> Fence:
        """Return the fence for a write: an active one, or a new one. BEGIN is queued when this returns."""
        if self._openings != self._health.openings:
            self._on_opening()
        now = self._clock()
        fence = self._shared.get(namespace)
        if fence is None or now - fence.begun_at > FENCE_MARGIN_SECONDS:
            if namespace in self._idle:
                self._release(self._idle[namespace])
            token = new_token()
            fence = self._shared[namespace] = Fence(namespace, self._begin(namespace, token), now, token)
            if self._retains and self._releasing is None:
                self._releasing = self._loop.create_task(self._release_in_time())
        self._idle.pop(namespace, None)
        fence.writes += 1
        return fence

    async def confirm(self, fence: Fence) -> FenceAck | None:
        """Wait until the fence is active, with time to spare. None if Redis does not confirm that."""
        try:
            reply = await fence.begin
            fence.is_confirmed = True
            if self._clock() - fence.begun_at > FENCE_MARGIN_SECONDS:
                fence.begun_at, fence.is_flushed = self._clock(), False
                fence.begin = self._begin(fence.namespace, fence.token)
                reply = await fence.begin
        except RedisUnavailable as exc:
            self.retire(fence)
            fence.is_absent = isinstance(exc, NotDone) and not fence.is_confirmed
            return None
        if not reply:
            return NO_LEASE
        return FenceAck(parse_position(reply), reply != b"?")

    def prepare_commit(self, fence: Fence) -> bool:
        """Return whether COMMIT of a write under the fence, which is sent next, is to leave the fence active."""
        if self._openings != self._health.openings:
            self._on_opening()
        is_last = fence.writes == 1 and not fence.expires
        if is_last and not self._retains:
            self.retire(fence)
        fence.active = not is_last or self._shared.get(fence.namespace) is fence
        return fence.active

    def end_write(self, fence: Fence, *, was_active: bool | None = None) -> None:
        """Take a write that has ended from under its fence.

        Args:
            fence: Fence of the write.
            was_active: Whether the fence was active at COMMIT, where Redis has replied.
        """
        if self._openings != self._health.openings:
            self._on_opening()
        fence.writes -= 1
        if not was_active:
            self.retire(fence)
            fence.active = was_active is None and not fence.is_absent
        if fence.writes or fence.expires:
            return
        if self._retains and self._shared.get(fence.namespace) is fence:
            if len(self._idle) >= RETAINED_MAX:
                self._release(next(iter(self._idle.values())))
            fence.idle_at = self._clock()
            self._idle[fence.namespace] = fence
            self._changed.set()
        elif fence.active:
            self._release(fence)

    def retire(self, fence: Fence, *, expires: bool = False) -> None:
        """Use the fence for no more writes; with `expires` do not release it either."""
        fence.expires |= expires
        if self._shared.get(fence.namespace) is fence:
            del self._shared[fence.namespace]
            self._idle.pop(fence.namespace, None)
            self._changed.set()

    def hand_over(self, namespace: Namespace) -> Fence | None:
        """Return a fence that no write is under, for a READ to release; `take_back` it if that does not
        succeed.
        """
        if self._openings != self._health.openings:
            self._on_opening()
        fence = self._idle.get(namespace)
        if fence is not None:
            self.retire(fence)
        return fence

    def take_back(self, fence: Fence) -> None:
        """Release a fence that a READ was to release, and perhaps did not."""
        self._release(fence)

    def take_abandoned(self) -> list[tuple[str, str]]:
        """Return thread and token of fences that may be active in Redis and that nobody needs; each once.

        Redis is suspended since they were abandoned: whoever makes it usable removes them first.
        """
        if self._openings != self._health.openings:
            self._on_opening()
        abandoned, self._abandoned = self._abandoned, []
        return abandoned

    @property
    def has_abandoned(self) -> bool:
        """Return whether `take_abandoned` would return any."""
        return bool(self._abandoned)

    def release_all(self) -> None:
        """Release the fences that no write is under. Queued when this returns."""
        for fence in list(self._idle.values()):
            self._release(fence)
        if self._releasing is not None:
            self._releasing.cancel()
            self._releasing = None

    def _begin(self, namespace: Namespace, token: str) -> asyncio.Future[bytes]:
        keys, name, _ = ENTRY_KEYS[self._keyspace.prefix, namespace]
        arguments = (
            name,
            self._keyspace.database.tag + new_token(),
            self._keyspace.ttl_text,
            token,
            self.owner,
            str(FENCE_MS),
        )
        return self._executor.submit(BEGIN, keys, arguments)

    def _on_opening(self) -> None:
        """Retire all fences, as Redis was unusable meanwhile: it may have lost them."""
        self._openings = self._health.openings
        idle, self._idle, self._shared = self._idle, {}, {}
        self._changed.set()
        for fence in idle.values():
            self._abandon(fence)

    def _abandon(self, fence: Fence) -> None:
        self._abandoned.append((fence.namespace.thread_id, fence.token))
        self._health.fail(RedisUnavailable("the end of a write could not be sent to it"))

    async def _release_in_time(self) -> None:
        """Release fences that were idle for long enough, as long as there are any.

        It is a task that a write starts, and no timer, so that a loop that ends ends this too: what a timer began
        then would be left half done.
        """
        task = asyncio.current_task()  # not in `finally`: when garbage is collected there may be no loop to ask
        try:
            while self._shared:
                self._changed.clear()
                seconds = self._release_old()
                await (self._changed.wait() if seconds is None else asyncio.sleep(seconds))
        finally:
            if self._releasing is task:
                self._releasing = None

    def _release_old(self) -> float | None:
        """Release what is old; return after how many seconds the next one is, None if none is idle."""
        if self._openings != self._health.openings:
            self._on_opening()
        for fence in list(self._idle.values()):
            seconds = fence.idle_at + RETAIN_SECONDS - self._clock()
            if seconds > 0:
                return seconds
            self._release(fence)
        return None

    def _release(self, fence: Fence) -> None:
        self.retire(fence)
        key = thread_key(self._keyspace.prefix, fence.namespace.thread_id)
        # It takes one key: a Cluster that is moving the thread's slot refuses scripts with more.
        released = self._executor.submit(RELEASE, [key], self._keyspace.thread_arguments(fence.token))
        released.add_done_callback(partial(self._on_released, fence))

    def _on_released(self, fence: Fence, released: asyncio.Future[int]) -> None:
        if not released.cancelled() and isinstance(released.exception(), RedisUnavailable):
            self._abandon(fence)
