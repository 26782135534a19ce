"""Execution of scripts, in bounded time, and not at all while Redis is known to be unusable."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from redis.exceptions import (
    AskError,
    AuthenticationError,
    NoScriptError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.stores.redis.client import AnyRedis, is_refused, reason
from langgraph_checkpoint_cached.stores.redis.health import (
    AnotherServer,
    ConnectionDropped,
    NotDone,
    RedisFull,
    RedisHealth,
    RedisUnavailable,
)
from langgraph_checkpoint_cached.stores.redis.scan import scan_steps
from langgraph_checkpoint_cached.stores.redis.script_call import Argument, Confirmation, ScriptCall
from langgraph_checkpoint_cached.stores.redis.scripts import Script
from langgraph_checkpoint_cached.stores.redis.transport import transport_for
from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks
from langgraph_checkpoint_cached.utils.batch_queue import answer, fail
from langgraph_checkpoint_cached.utils.pipeline_queue import PipelineQueue, QueueFull
from langgraph_checkpoint_cached.utils.progress_timer import running_timeout

T = TypeVar("T")

logger = logging.getLogger("langgraph_checkpoint_cached")

PROBE_TTL_MS = 1000
FULL = "command not allowed when used memory > 'maxmemory'"
NOT_HERE = "attempted to access a non local key"
"""Answer to a script that makes a key anew which it has removed, while the key's slot is being moved."""
FAILURES = (asyncio.TimeoutError, RedisError, RedisClusterException, OSError)
"""Errors of an exchange with Redis."""
RECONNECT_PAUSES_SECONDS = (0.0, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128)
"""Pauses before the attempts on a new connection, after one was lost and before Redis counts as unusable."""
BATCH_CALLS_MAX = 256
BATCH_BYTES_MAX = 4 * 1024 * 1024
CALLS_WAITING_MAX = 20_000
BATCHES_IN_FLIGHT_MAX = 8
OVERLAP_MIN = 32
"""Calls that are sent though others are in flight: Redis runs these while this process makes more."""
ASIDE_MAX = 4
"""Connections that calls with large replies may take of the pool at the same time. Further ones wait."""
NOT_ASKED = "not asked: Redis was found unusable a moment ago"


class ScriptExecutor:
    """Runner of scripts over the best transport that the client allows.

    After a failure every call fails at once until `health` is usable again (`engine/recovery.py`).

    Args:
        client: Redis client of the caller; never closed here.
        runtime: Event loop and counters.
        health: Breaker, opened here.
        prefix: Start of the key that a probe writes.
        timeout_seconds: Time in which something of a reply must have come; a new connection has a limit of its
            own.
        confirmation: How durable calls are confirmed by replicas or disks.
    """

    def __init__(
        self,
        client: AnyRedis,
        runtime: Runtime,
        health: RedisHealth,
        *,
        prefix: str,
        timeout_seconds: float,
        confirmation: Confirmation | None = None,
    ) -> None:
        self._client, self._loop, self._stats, self.health = client, runtime.loop, runtime.stats, health
        self._timeout_seconds, self.probe_key = timeout_seconds, f"{prefix}:probe"
        self.epoch = ""
        """Server epochs of all primaries. Every call names them, any other refuses it. Empty until the first."""
        self._transport = transport_for(client, timeout_seconds, confirmation)
        self._queue: PipelineQueue[ScriptCall] = PipelineQueue(
            self._send,
            self._run,
            self._transport.can_send,
            calls_max=BATCH_CALLS_MAX,
            bytes_max=BATCH_BYTES_MAX,
            waiting_max=CALLS_WAITING_MAX,
            in_flight_max=BATCHES_IN_FLIGHT_MAX,
            overlap_min=OVERLAP_MIN,
        )
        self._tasks = BackgroundTasks()
        self._aside = asyncio.Semaphore(ASIDE_MAX)
        self._in_flight = 0  # batches that are sent and not answered
        self._is_retrying = False
        self._full = False

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
        """Run a script; queued when this returns. The future raises `RedisUnavailable` where Redis fails or is
        late; of these `ConnectionDropped`, where the script may not be repeated and its connection was lost.

        Scripts that wait at the same time share a round trip, in the order of these calls.

        Args:
            script: Script to run.
            keys: Keys of it, the thread's first.
            arguments: Arguments of it.
            in_order: Rather not run it at all than after a later one of its thread.
            durable: Have it confirmed, if a way to do so was given: the reply is `Unconfirmed` where it was not.
            now: Do not wait for other calls to be sent with it.
        """
        done: asyncio.Future[Any] = self._loop.create_future()
        if not self.health.usable:
            answer(done, NotDone(NOT_ASKED))
            return done
        try:
            self._queue.add(ScriptCall(script, keys, (*arguments, self.epoch), done, in_order, durable), now=now)
        except QueueFull as exc:
            answer(done, NotDone(f"not asked: {exc}"))
        return done

    async def run_aside(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """Run a script whose reply may be large, over another connection, in no order with other calls: those have
        not to wait until it is sent. Raises `RedisUnavailable`.
        """
        call = ScriptCall(script, keys, (*arguments, self.epoch), self._loop.create_future(), aside=True)
        async with self._aside:
            if not self.health.usable:
                raise NotDone(NOT_ASKED)
            await self._run_calls([call])
        return call.done.result()

    async def run_all(self, calls: Sequence[tuple[Script, Sequence[str], Sequence[Argument]]]) -> list[Any]:
        """Run scripts whatever the state of the breaker, some at a time. Raises `RedisUnavailable`."""
        found: list[Any] = []
        epoch = self.epoch or (await self.learn_epoch() if calls else "")
        for start in range(0, len(calls), BATCH_CALLS_MAX):
            some = [
                ScriptCall(script, keys, (*arguments, epoch), self._loop.create_future())
                for script, keys, arguments in calls[start : start + BATCH_CALLS_MAX]
            ]
            await self._run_calls(some)
            found += [call.done.result() for call in some]
        return found

    async def probe(self) -> None:
        """Write to every primary whatever the state of the breaker. Raises `RedisUnavailable`."""
        await self._attempt(self._transport.probe(self.probe_key, PROBE_TTL_MS))

    async def learn_epoch(self) -> str:
        """Ask every primary for its server epoch, for all calls from now on. Raises `RedisUnavailable`."""
        epochs = await self._attempt(self._transport.epochs(self.probe_key))
        self.epoch = " ".join(sorted(epoch.decode() for epoch in epochs))
        return self.epoch

    async def reconnect(self) -> None:
        """Have the next calls look anew where the address leads. Raises `RedisUnavailable`."""
        await self._attempt(self._transport.reconnect())

    async def keys(self, pattern: str) -> AsyncIterator[str]:
        """Yield keys that match a glob, found by a scan of every node: some perhaps twice.

        Each step has the time-out. One that fails says little of how scripts fare: the breaker stays as it is.

        Raises:
            RedisUnavailable: a step failed.
        """
        steps = scan_steps(self._client, pattern)
        while True:
            try:
                async with running_timeout(self._timeout_seconds):
                    found = await anext(steps)
            except StopAsyncIteration:
                return
            except FAILURES as exc:
                self._stats.redis_errors += 1
                raise self._describe(exc) from exc
            for key in found:
                yield key.decode() if isinstance(key, bytes) else key

    def note_memory_available(self) -> None:
        """Note that Redis has stored something that takes memory."""
        if self._full:
            self._full = False
            logger.warning("Redis has memory again")

    async def drain(self) -> None:
        """Wait until nothing is queued or under way."""
        await self._queue.drain()
        await self._tasks.drain()

    async def close(self) -> None:
        """Return what was taken of the client. To be called when nothing is under way."""
        await self._transport.close()

    def _send(self, calls: Sequence[ScriptCall], on_answered: Callable[[], None]) -> bool:
        """Send a batch at once, if the transport can."""
        if self._is_retrying or not self.health.usable or not calls[0].arguments[-1]:
            return False
        started = time.perf_counter()

        def on_replies(replies: list[Any] | Exception) -> None:
            self._in_flight -= 1
            self._stats.redis_exchange.record(time.perf_counter() - started)
            if isinstance(replies, Exception):
                if _is_drop(replies):
                    self._run_in_task(self._run_calls(calls, replies), calls, on_answered)
                    return
                fail(calls, self._unavailable(replies))
                on_answered()
                return
            for reply in replies:
                if isinstance(reply, NoScriptError):
                    self._retry(calls, replies, on_answered)
                    return
            self._deliver(calls, replies)
            on_answered()

        if not self._transport.send(calls, on_replies):
            return False
        self._in_flight += 1
        return True

    def _retry(self, calls: Sequence[ScriptCall], replies: list[Any], on_answered: Callable[[], None]) -> None:
        """Run calls again for which Redis lacked the script, in a task.

        Replies come in the order of what was sent: what is in flight now was sent after these calls. If nothing
        is, nothing is sent before this ends.
        """
        overtaken = self._in_flight > 0
        self._is_retrying |= not overtaken

        async def retry() -> None:
            await self._attempt(self._transport.retry_after_noscript(calls, replies, overtaken=overtaken))
            self._deliver(calls, replies)

        def retried() -> None:
            self._is_retrying &= overtaken
            on_answered()

        self._run_in_task(retry(), calls, retried)

    def _run_in_task(
        self, work: Coroutine[Any, Any, None], calls: Sequence[ScriptCall], on_answered: Callable[[], None]
    ) -> asyncio.Task[None]:
        """Do what answers the calls, in a task. If it fails, they get the error."""

        def on_done(task: asyncio.Task[None]) -> None:
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            if error is not None:
                fail(calls, error)
            on_answered()

        task = self._tasks.start(work)
        task.add_done_callback(on_done)
        return task

    async def _run(self, calls: Sequence[ScriptCall]) -> None:
        """Run a batch in a task, where it cannot be sent at once."""
        if not self.health.usable:
            raise NotDone(NOT_ASKED)
        started = time.perf_counter()
        if not calls[0].arguments[-1]:  # made before this process knew any server epoch
            epoch = self.epoch or await self.learn_epoch()
            calls = [call._replace(arguments=(*call.arguments[:-1], epoch)) for call in calls]
        try:
            await self._run_calls(calls)
        finally:
            self._stats.redis_exchange.record(time.perf_counter() - started)

    async def _run_calls(self, calls: Sequence[ScriptCall], lost: Exception | None = None) -> None:
        """Run calls and answer them: those whose connection is lost once more, over another.

        A lost connection is no outage. Only if there is no other soon, or another server answers, it is.

        Args:
            calls: Calls to run.
            lost: How the connection was lost over which they were sent, if they were.
        """
        for pause_seconds in (*RECONNECT_PAUSES_SECONDS, None):
            if lost is None:
                calls, lost = await self._run_once(calls)
                if lost is None:
                    return
            if pause_seconds is None:
                raise self._unavailable(lost) from lost
            calls = self._take_repeatable(calls, lost)
            if not calls:
                return
            await asyncio.sleep(pause_seconds)
            lost = None

    async def _run_once(self, calls: Sequence[ScriptCall]) -> tuple[Sequence[ScriptCall], Exception | None]:
        """Run calls; return those whose connection was lost, with the error, and answer the others."""
        try:
            replies = await self._transport.run(calls)
        except ResponseError as exc:
            raise self._translate(exc) from exc
        except FAILURES as exc:
            if _is_drop(exc):
                return calls, exc
            raise self._unavailable(exc) from exc
        lost: Exception | None = None
        dropped, answered, of_answered = [], [], []
        for call, reply in zip(calls, replies, strict=True):
            if isinstance(reply, RedisConnectionError):
                dropped.append(call)
                lost = reply
            else:
                answered.append(call)
                of_answered.append(reply)
        self._deliver(answered, of_answered)
        return dropped, lost

    def _take_repeatable(self, calls: Sequence[ScriptCall], lost: Exception) -> list[ScriptCall]:
        """Return the calls that may be repeated. The others are over: their callers know what to do."""
        self._stats.redis_errors += 1
        logger.debug("a connection to Redis was lost: %s", reason(lost))
        repeatable = []
        for call in calls:
            if call.script.repeatable:
                repeatable.append(call)
            else:
                answer(call.done, ConnectionDropped(f"{type(lost).__name__}: {reason(lost)}"))
        return repeatable

    def _deliver(self, calls: Sequence[ScriptCall], replies: Sequence[Any]) -> None:
        for call, reply in zip(calls, replies, strict=True):
            if isinstance(reply, ResponseError):
                answer(call.done, self._translate(reply))
            elif not call.done.done():
                call.done.set_result(reply)

    async def _attempt(self, call: Awaitable[T]) -> T:
        # A call that is cut short closes its connection: no reply is left there for the next one.
        try:
            return await call
        except ResponseError as exc:
            raise self._translate(exc) from exc
        except FAILURES as exc:
            raise self._unavailable(exc) from exc

    def _unavailable(self, error: Exception) -> RedisUnavailable:
        """Open the breaker for an exchange that failed; return the error for its callers."""
        self._stats.redis_errors += 1
        failure = self._describe(error)
        self.health.fail(failure)
        return failure

    def _describe(self, error: BaseException) -> RedisUnavailable:
        if isinstance(error, asyncio.TimeoutError):
            return RedisUnavailable(f"no answer in {self._timeout_seconds} seconds")
        return RedisUnavailable(f"{type(error).__name__}: {reason(error)}")

    def _translate(self, reply: ResponseError) -> RedisUnavailable:
        """Return the error for the caller of one call that Redis refused."""
        self._stats.redis_errors += 1
        if isinstance(reply, NoScriptError):
            return NotDone("it has lost its scripts")
        if isinstance(reply, (TryAgainError, AskError)):  # all other threads are well
            return NotDone("a Cluster is moving the thread's slot")
        if NOT_HERE in str(reply):
            return RedisUnavailable("a Cluster is moving the thread's slot")
        if FULL in str(reply):  # Redis 6.2 gives a script's error no class of its own
            if not self._full:
                self._full = True
                logger.warning("Redis is full: nothing new is cached until it has memory again")
            return RedisFull(f"it answered: {reason(reply)}")
        kind = AnotherServer if str(reply).startswith("EPOCH ") else RedisUnavailable
        failure = kind(f"it answered: {reason(reply)}")
        self.health.fail(failure)
        return failure


def _is_drop(error: Exception) -> bool:
    """Return whether a connection was lost, or could not be made, for no reason that will last."""
    if not isinstance(error, RedisConnectionError) or isinstance(error, AuthenticationError):
        return False
    return not is_refused(error)
