"""What stands between the saver and a Redis that is down, slow, full or read-only."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from redis.exceptions import NoScriptError, RedisClusterException, RedisError, ResponseError, TryAgainError

from langgraph_checkpoint_cached.stats import Stats
from langgraph_checkpoint_cached.stores.redis.client import AnyRedis, reason
from langgraph_checkpoint_cached.stores.redis.script_call import Argument, Confirmation, Step
from langgraph_checkpoint_cached.stores.redis.scripts import Script
from langgraph_checkpoint_cached.stores.redis.transport import Transport
from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks
from langgraph_checkpoint_cached.utils.batch_queue import BatchQueue, QueueFull, answer, fail
from langgraph_checkpoint_cached.utils.circuit_breaker import CircuitBreaker

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

T = TypeVar("T")

logger = logging.getLogger("langgraph_checkpoint_cached")

PROBE_LIFE_MS = 1000
FULL = "command not allowed when used memory > 'maxmemory'"
NOT_HERE = "attempted to access a non local key"
"""What a script is answered that makes a key anew which it has removed, while its slot is being moved."""
SCAN_COUNT = 1000
BATCH_CALLS_MAX = 256
BATCH_BYTES_MAX = 4 * 1024 * 1024
CALLS_WAITING_MAX = 20_000
BATCHES_AT_ONCE = 8
SHARE_MIN = 32
"""Steps that are sent at once, though others are under way: Redis does these while this process makes more."""
NOT_ASKED = "not asked: Redis was found unusable a moment ago"
PROBE_SECONDS_MAX = 1.0
REOPEN_DELAY_SECONDS = 3.0
"""After an outage nothing is served for this long: longer than another process takes, with `PROBE_SECONDS_MAX`, to
find that it is over, and to invalidate what it wrote to Postgres alone meanwhile."""


class RedisUnavailable(Exception):
    """Redis did not do it: nothing may be assumed of what it holds. Never leaves this package."""


class NotDone(RedisUnavailable):
    """Redis certainly has not done it."""


class RedisFull(NotDone):
    """Redis answered that it has no memory for this. Everything that must succeed there still does."""


class ScriptExecutor:
    """Runs scripts for a bounded time, and not at all while Redis is known to be unusable.

    After a failure every call fails at once until a probe, in the background, has found that Redis takes writes
    again and `before_reopening` has done its work. One line is logged per change of state.

    Args:
        client: The client; never closed here.
        prefix: Of the key that a probe writes.
        timeout_seconds: For one call, waiting for a connection included.
        stats: Where failures are counted.
        loop: The event loop that all of it is used on.
        confirmation: Has durable steps confirmed by replicas or disks.
    """

    def __init__(
        self,
        client: AnyRedis,
        prefix: str,
        timeout_seconds: float,
        stats: Stats,
        loop: asyncio.AbstractEventLoop,
        confirmation: Confirmation | None = None,
    ) -> None:
        self._loop = loop
        self._client, self._timeout_seconds, self._stats = client, timeout_seconds, stats
        self.probe_key = f"{prefix}:probe"
        self._breaker = CircuitBreaker(retry_seconds_max=PROBE_SECONDS_MAX)
        stats.redis_usable.read = lambda: int(self._breaker.closed)
        self._serving_from = loop.time()
        self._full = False
        self._tasks = BackgroundTasks()
        self._transport = Transport(client, confirmation)
        self._queue: BatchQueue[Step] = BatchQueue(
            self._run_group,
            rows_max=BATCH_CALLS_MAX,
            bytes_max=BATCH_BYTES_MAX,
            waiting_max=CALLS_WAITING_MAX,
            at_once=BATCHES_AT_ONCE,
            share_min=SHARE_MIN,
            begin=self._begin_group,
            may_begin=self._can_send,
        )
        self._sent = 0  # groups that are not answered
        self._is_retrying = False
        self.before_reopening: Callable[[], Awaitable[None]] | None = None
        self.on_opening: list[Callable[[], object]] = []

    def submit(
        self,
        script: Script,
        keys: Sequence[str],
        arguments: Sequence[Argument],
        *,
        in_order: bool = False,
        durable: bool = False,
        now: bool = False,
    ) -> asyncio.Future[Any]:
        """The script's answer; `RedisUnavailable` if it is late or an error, or if Redis is not asked.

        Scripts that wait at the same time share a round trip, in the order of these calls. With `in_order` one is
        not run at all rather than after a later one of its thread. With `durable` it is confirmed, if a way to do
        so was given: the answer is `Unconfirmed` where that was not to be had. With `now` it does not wait
        for others to be sent with it.
        """
        done: asyncio.Future[Any] = self._loop.create_future()
        if self._breaker.closed:
            step = Step(script, keys, arguments, done, in_order, durable)
            try:
                self._queue.add(step, now=now)
            except QueueFull as exc:
                answer(done, NotDone(f"not asked: {exc}"))
        else:
            if self._breaker.take_probe():
                self._tasks.start(self._probe())
            answer(done, NotDone(NOT_ASKED))
        return done

    async def force(self, calls: Sequence[tuple[Script, Sequence[str], Sequence[Argument]]]) -> list[Any]:
        """Runs scripts, whatever the state, a group at a time: their answers. Raises `RedisUnavailable` too."""
        found: list[Any] = []
        for start in range(0, len(calls), BATCH_CALLS_MAX):
            steps = [Step(*call, self._loop.create_future()) for call in calls[start : start + BATCH_CALLS_MAX]]
            try:
                answers = await self._attempt(self._transport.run(steps))
            except RedisUnavailable as exc:
                self._fail(exc)
                raise
            for reply in answers:
                if isinstance(reply, ResponseError):
                    raise self._translated(reply)
            found += answers
        return found

    @property
    def is_usable(self) -> bool:
        """Whether calls are let through."""
        return self._breaker.closed

    def suspend(self) -> None:
        """Lets no call through until `before_reopening` has done its work."""
        self._fail(RedisUnavailable("it could not be told of a write"))

    async def keys(self, pattern: str) -> AsyncIterator[str]:
        """Keys that match a glob, found by scanning every node. Raises `RedisUnavailable` too."""
        found = self._client.scan_iter(match=pattern, count=SCAN_COUNT)
        while True:
            try:
                key = await self._attempt(anext(found))
            except StopAsyncIteration:
                return
            yield key.decode() if isinstance(key, bytes) else key

    @property
    def flush_waits(self) -> bool:
        """Whether Redis may be read from: others too have had the time to come back to it."""
        return self._loop.time() >= self._serving_from

    def note_memory_available(self) -> None:
        """To be told when Redis has stored something that takes memory."""
        if self._full:
            self._full = False
            logger.warning("Redis has memory again")

    def _can_send(self, steps: Iterable[Step]) -> bool:
        return not self._is_retrying and self._transport.can_send(steps)

    def _begin_group(self, steps: Sequence[Step], over: Callable[[], None]) -> bool:
        """Sends a group, if that can be done at once: a read that is alone is little more than this."""
        if not self._breaker.closed or self._is_retrying:
            return False
        started = time.perf_counter()

        def reply(answers: list[Any] | Exception) -> None:
            late.cancel()
            self._sent -= 1
            self._stats.redis_exchange.record(time.perf_counter() - started)
            if isinstance(answers, list) and any(isinstance(each, NoScriptError) for each in answers):
                retry_after_noscript(answers)
                return
            try:
                if isinstance(answers, Exception):
                    self._fail(error := self._unavailable(answers))
                    raise error
                self._answer(steps, answers)
            except Exception as exc:  # noqa: BLE001 - the callers' to handle
                fail(steps, exc)
            over()

        def retry_after_noscript(answers: list[Any]) -> None:
            # As answers come in the order of what was sent, what is not answered yet was sent after it. If there
            # is nothing, nothing is sent before this is over.
            overtaken = self._sent > 0
            self._is_retrying |= not overtaken

            def retried(task: asyncio.Task[None]) -> None:
                self._is_retrying &= overtaken
                error = asyncio.CancelledError() if task.cancelled() else task.exception()
                if error is not None:
                    fail(steps, error)
                over()

            work = self._retry_after_noscript(steps, answers, overtaken=overtaken)
            self._tasks.start(work).add_done_callback(retried)

        abort = self._transport.send(steps, reply)
        if abort is None:
            return False
        self._sent += 1
        late = self._loop.call_later(self._timeout_seconds, abort, asyncio.TimeoutError())
        return True

    async def _retry_after_noscript(self, steps: Sequence[Step], answers: list[Any], *, overtaken: bool) -> None:
        try:
            await self._attempt(self._transport.retry_after_noscript(steps, answers, overtaken=overtaken))
        except RedisUnavailable as exc:
            self._fail(exc)
            raise
        self._answer(steps, answers)

    def _answer(self, steps: Sequence[Step], answers: Sequence[Any]) -> None:
        for step, reply in zip(steps, answers, strict=True):
            answer(step.done, self._translated(reply) if isinstance(reply, ResponseError) else reply)

    async def _run_group(self, steps: Sequence[Step]) -> None:
        if not self._breaker.closed:
            raise NotDone(NOT_ASKED)
        started = time.perf_counter()
        try:
            answers = await self._attempt(self._transport.run(steps))
        except RedisUnavailable as exc:
            self._fail(exc)
            raise
        finally:  # not `timed()`, which takes four times as long: a read is little more than this
            self._stats.redis_exchange.record(time.perf_counter() - started)
        self._answer(steps, answers)

    async def _attempt(self, call: Awaitable[T]) -> T:
        # When a call is cut short, redis-py closes its connection: no reply is left there for the next one.
        try:
            async with timeout(self._timeout_seconds):
                return await call
        except ResponseError as exc:
            raise self._translated(exc) from exc
        except (asyncio.TimeoutError, RedisError, RedisClusterException, OSError) as exc:
            raise self._unavailable(exc) from exc

    def _unavailable(self, error: Exception) -> RedisUnavailable:
        """What a caller is to make of an exchange that failed."""
        self._stats.redis_errors += 1
        if isinstance(error, asyncio.TimeoutError):
            return RedisUnavailable(f"no answer in {self._timeout_seconds} seconds")
        return RedisUnavailable(f"{type(error).__name__}: {reason(error)}")

    def _translated(self, reply: ResponseError) -> RedisUnavailable:
        """What a caller is to make of an error that Redis answered."""
        self._stats.redis_errors += 1
        if isinstance(reply, NoScriptError):
            return NotDone("it has lost its scripts")
        if isinstance(reply, TryAgainError) or NOT_HERE in str(reply):
            return RedisUnavailable("a Cluster is moving the thread's slot")  # all other threads are well
        if FULL in str(reply):  # Redis 6.2 gives a script's error no class of its own
            if not self._full:
                self._full = True
                logger.warning("Redis is full: nothing new is cached until it has memory again")
            return RedisFull(f"it answered: {reason(reply)}")
        error = RedisUnavailable(f"it answered: {reason(reply)}")
        self._fail(error)
        return error

    def _fail(self, error: RedisUnavailable) -> None:
        if self._breaker.fail():
            self._stats.breaker_openings += 1
            logger.warning("Redis is unusable, going on with Postgres alone: %s", error)
            for hear in self.on_opening:
                hear()

    async def drain(self) -> None:
        """Waits until nothing is queued or under way."""
        await self._queue.drain()
        await self._tasks.drain()

    async def close(self) -> None:
        """Once nothing is under way: gives back what the client is needed for no more."""
        await self._transport.close()

    async def _probe(self) -> None:
        succeeded = False
        try:
            # A plain write that needs memory, so that a replica or a loading server does not pass. A full one
            # does: it takes what frees memory, and that is enough to be coherent.
            with contextlib.suppress(RedisFull):
                await self._attempt(self._transport.probe(self.probe_key, PROBE_LIFE_MS))
            if self.before_reopening is not None:
                await self.before_reopening()
            succeeded = True
            self._serving_from = self._loop.time() + REOPEN_DELAY_SECONDS
        except RedisUnavailable:
            pass
        finally:
            self._breaker.end_probe(succeeded=succeeded)
        if succeeded:
            logger.warning("Redis is usable again")
