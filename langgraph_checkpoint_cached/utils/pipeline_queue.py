"""Queue for a pipelined connection: what waits is sent at once, with no task, several batches in flight, in
order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks
from langgraph_checkpoint_cached.utils.batch_queue import RESUME_SECONDS, fail


class QueueFull(Exception):
    """The queue is full. The call was not taken."""


class Call(Protocol):
    """Call in a queue, with the future that its caller waits for."""

    @property
    def done(self) -> asyncio.Future[Any]:
        """Future of the reply."""

    @property
    def size_bytes(self) -> int:
        """Approximate number of bytes that the call sends."""


C = TypeVar("C", bound=Call)


class PipelineQueue(Generic[C]):
    """Queue of calls that leave in batches, in the order in which they came.

    A batch is sent without a task while the connection is ready, else it runs in a task, alone: that one may have
    to connect first.

    Args:
        send: Sends a batch at once, sets each call's `done` when the replies come, and then calls what it is
            given; or returns False if it cannot send now.
        run: Runs a batch in a task, where `send` cannot.
        can_send: Says whether `send` could send these calls.
        calls_max, bytes_max: Largest batch, unless a single call is larger.
        waiting_max: Number of calls that may wait.
        in_flight_max: Number of batches that may be in flight at the same time.
        overlap_min: While a batch is in flight, calls wait until this many do, or the batch is answered.
    """

    def __init__(
        self,
        send: Callable[[Sequence[C], Callable[[], None]], bool],
        run: Callable[[Sequence[C]], Awaitable[None]],
        can_send: Callable[[Iterable[C]], bool],
        *,
        calls_max: int,
        bytes_max: int,
        waiting_max: int,
        in_flight_max: int,
        overlap_min: int,
    ) -> None:
        self._send, self._run, self._can_send = send, run, can_send
        self._calls_max, self._bytes_max, self._waiting_max = calls_max, bytes_max, waiting_max
        self._in_flight_max, self._overlap_min = in_flight_max, overlap_min
        self._waiting: deque[C] = deque()
        self._in_flight = 0
        self._last_size = 0
        self._flush_soon: asyncio.Handle | None = None
        self._worker: asyncio.Task[None] | None = None
        self._tasks = BackgroundTasks()
        self._idle: asyncio.Future[None] | None = None
        self._ended: BaseException | None = None

    def add(self, call: C, *, now: bool = False) -> None:
        """Queue a call. Raise `QueueFull` instead when too many wait.

        Where nothing is in flight, calls that are added in the same event-loop iteration share a batch; with
        `now` they are not waited for, unless the last batch had more than one call.

        After the queue's task was cancelled, as a loop that ends does to all, calls get that error for a moment.
        """
        if self._ended is not None:
            fail([call], self._ended)
            return
        waiting = self._waiting
        if len(waiting) >= self._waiting_max:
            raise QueueFull(f"{self._waiting_max} calls are waiting")
        waiting.append(call)
        if self._worker is not None:
            return  # it goes on with what waits
        if self._in_flight:
            if len(waiting) >= self._overlap_min and self._in_flight < self._in_flight_max:
                self._flush()
        elif (now and self._last_size <= 1) or len(waiting) >= self._overlap_min:
            self._flush()
        elif not self._can_send((call,)):
            self._start_worker()  # now: a loop that ends cancels the tasks that exist, and none made later
        elif self._flush_soon is None:
            self._flush_soon = asyncio.get_running_loop().call_soon(self._flush)

    async def drain(self) -> None:
        """Wait until nothing is queued, in flight or running, and the callbacks of all calls have run."""
        while True:
            await self._tasks.drain()
            await asyncio.sleep(0)  # for the callbacks of calls that were answered in this iteration
            if not self._in_flight and self._worker is None and not self._waiting:
                return
            self._idle = self._idle or asyncio.get_running_loop().create_future()
            await asyncio.wait([self._idle])

    def _flush(self) -> None:
        if self._flush_soon is not None:
            self._flush_soon.cancel()
            self._flush_soon = None
        if self._worker is not None or not self._waiting:
            return
        batch = self._take() if len(self._waiting) > 1 else [self._waiting.popleft()]
        self._last_size = len(batch)
        self._in_flight += 1
        try:
            if self._send(batch, self._on_answered):
                return
        except Exception as exc:  # noqa: BLE001 - for the callers to handle
            fail(batch, exc)
            self._on_answered()
            return
        self._in_flight -= 1
        self._waiting.extendleft(reversed(batch))
        if not self._in_flight:  # else after the batches that are
            self._start_worker()

    def _on_answered(self) -> None:
        """Send what was added meanwhile, together with what callers add who have just been answered."""
        self._in_flight -= 1
        if not self._waiting:
            if self._idle is not None:
                self._check_idle()
        elif not self._in_flight and not self._can_send(self._waiting):
            self._start_worker()
        elif self._flush_soon is None:
            self._flush_soon = asyncio.get_running_loop().call_soon(self._flush)

    def _check_idle(self) -> None:
        if self._idle is not None and not self._in_flight and self._worker is None:
            self._idle.set_result(None)
            self._idle = None

    def _start_worker(self) -> None:
        if self._flush_soon is not None:
            self._flush_soon.cancel()
            self._flush_soon = None
        self._worker = self._tasks.start(self._work())
        self._worker.add_done_callback(self._on_worker_ended)

    def _on_worker_ended(self, worker: asyncio.Task[None]) -> None:
        if self._worker is worker:  # cancelled before its first step, so that none of its code has run
            self._worker = None
            self._end(asyncio.CancelledError())

    async def _work(self) -> None:
        try:
            while self._waiting:
                batch = self._take()
                self._last_size = len(batch)
                try:
                    await self._run(batch)
                except Exception as exc:  # noqa: BLE001 - for the callers to handle
                    fail(batch, exc)
                except BaseException as exc:  # the loop ends
                    fail(batch, exc)
                    raise
        except BaseException as exc:
            self._end(exc)
            raise
        finally:
            self._worker = None
            self._check_idle()

    def _end(self, error: BaseException) -> None:
        self._ended = error
        asyncio.get_running_loop().call_later(RESUME_SECONDS, self._resume)
        fail(self._waiting, error)
        self._waiting.clear()
        self._check_idle()

    def _resume(self) -> None:
        self._ended = None

    def _take(self) -> list[C]:
        waiting = self._waiting
        batch = [waiting.popleft()]
        size_bytes = batch[0].size_bytes
        while waiting and len(batch) < self._calls_max:
            size_bytes += waiting[0].size_bytes
            if size_bytes > self._bytes_max:
                break
            batch.append(waiting.popleft())
        return batch
