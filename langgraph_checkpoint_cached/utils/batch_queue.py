"""Queue that runs what waits as one batch, in a task, while the next batch gathers.

Nobody waits on a timer: an operation that is alone is a batch of one, at once. The idea is group commit, DeWitt
et al., *Implementation Techniques for Main Memory Database Systems*, SIGMOD 1984.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks
from langgraph_checkpoint_cached.utils.room import Room

RESUME_SECONDS = 1.0
"""After its tasks were cancelled, a queue refuses operations for this long: the event loop is probably ending."""


class Operation(Protocol):
    """Operation in a queue, with the future that its caller waits for."""

    @property
    def done(self) -> asyncio.Future[Any]:
        """Future of the result. Cancelled when nobody waits any more; the operation still completes."""

    @property
    def rows(self) -> int:
        """Number of rows that the operation makes."""

    @property
    def size_bytes(self) -> int:
        """Approximate number of bytes that the operation sends."""


Op = TypeVar("Op", bound=Operation)


@dataclass(eq=False, slots=True)
class _Lateness:
    """Timer of a batch, and whether it has run out."""

    timer: asyncio.TimerHandle | None = None
    is_late: bool = False


class BatchQueue(Generic[Op]):
    """Queue of operations that run in batches, in the order in which they came; one task for each batch.

    Args:
        run: Runs a batch and sets each operation's `done`, now or later. An error that it raises becomes the
            result of all that have none yet.
        rows_max, bytes_max: Largest batch, unless a single operation is larger.
        room: Room that operations take from when they are added until their batch has run. They are never refused:
            whoever may add many waits for it first.
        at_once: Number of batches that may run at the same time.
        key: Operations with equal keys never run in two batches at once; those that wait together are in one
            batch, in their order.
        share_min: With `key`: with this many operations, waiting or running, each batch takes an even share of
            them, and the next one is made while it runs. With fewer, one batch runs at a time.
        late_seconds: Time after which a batch is late: then the queue goes on as if it did not run, except for its
            keys. By default never.
        late_max: Number of batches that may be late at the same time. When they are, the queue waits.
        before: Awaited with the first operation, after one event-loop iteration, before its batch is put together:
            what arrives meanwhile joins it.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Op]], Awaitable[None]],
        *,
        rows_max: int,
        bytes_max: int,
        room: Room,
        at_once: int = 1,
        key: Callable[[Op], Hashable] | None = None,
        share_min: int = 0,
        late_seconds: float = math.inf,
        late_max: int = 0,
        before: Callable[[Op], Awaitable[None]] | None = None,
    ) -> None:
        self._run, self._before, self._key, self._share_min = run, before, key, share_min
        self._rows_max, self._bytes_max, self.room = rows_max, bytes_max, room
        self._at_once, self._workers = at_once, 0  # workers that are not late
        self._late_seconds, self._late_max, self._late = late_seconds, late_max, 0
        self.waiting: deque[Op] = deque()
        """Operations that wait for their batch."""
        self._running = 0  # operations, if there is a key
        self._busy: set[Hashable] = set()  # keys of operations that run
        self._tasks = BackgroundTasks()
        self._ended: BaseException | None = None

    def add(self, operation: Op) -> None:
        """Queue an operation.

        After the queue's tasks were cancelled, as a loop that ends does to all, no task is started for a moment,
        since nobody would wait for it: the operation gets that error.
        """
        if self._ended is not None:
            fail([operation], self._ended)
            return
        self.room.take(operation.size_bytes)
        self.waiting.append(operation)
        if not self._workers or (
            self._workers < self._at_once and len(self.waiting) + self._running >= self._share_min
        ):
            self._start()

    async def drain(self) -> None:
        """Wait until nothing is queued or running."""
        await self._tasks.drain()

    def _start(self) -> None:
        self._workers += 1
        began = asyncio.Event()

        def ended(task: asyncio.Task[None]) -> None:
            if not began.is_set():  # a task that is cancelled before its first step runs none of its code
                self._workers -= 1
                self._end((), asyncio.CancelledError())

        self._tasks.start(self._work(began)).add_done_callback(ended)

    async def _work(self, began: asyncio.Event) -> None:
        began.set()
        loop = asyncio.get_running_loop()
        batch: Sequence[Op] = ()
        try:
            while self.waiting:
                if self._before is not None:
                    first = self.waiting[0]
                    await asyncio.sleep(0)
                    await self._before(first)
                batch = self._take() if self._key is None else self._take_share(self._key)
                if not batch:  # all that waits has keys of running batches: their workers go on with it
                    return
                lateness = _Lateness()
                if self._late_max:
                    lateness.timer = loop.call_later(self._late_seconds, self._on_late, lateness)
                try:
                    await self._run(batch)
                except Exception as exc:  # noqa: BLE001 - for the callers to handle
                    fail(batch, exc)
                finally:
                    if lateness.timer is not None:
                        lateness.timer.cancel()
                    if lateness.is_late:
                        self._late -= 1
                        self._workers += 1
                    if self._key is not None:
                        self._busy.difference_update(map(self._key, batch))
                        self._running -= len(batch)
                    size_bytes = 0
                    for operation in batch:
                        size_bytes += operation.size_bytes
                    self.room.give(len(batch), size_bytes)
                batch = ()
                if lateness.is_late and self._workers > self._at_once:
                    return  # the others go on with what waits
        except BaseException as exc:  # the loop ends
            self._end(batch, exc)
            raise
        finally:
            self._workers -= 1

    def _on_late(self, lateness: _Lateness) -> None:
        if self._late >= self._late_max:
            loop = asyncio.get_running_loop()
            lateness.timer = loop.call_later(self._late_seconds, self._on_late, lateness)
            return
        lateness.is_late = True
        self._late += 1
        self._workers -= 1
        if self.waiting and not self._workers:
            self._start()

    def _end(self, batch: Sequence[Op], error: BaseException) -> None:
        self._ended = error
        asyncio.get_running_loop().call_later(RESUME_SECONDS, self._resume)
        fail([*batch, *self.waiting], error)
        self.room.give(len(self.waiting), sum(operation.size_bytes for operation in self.waiting))
        self.waiting.clear()

    def _resume(self) -> None:
        self._ended = None

    def _take(self) -> list[Op]:
        batch = [self.waiting.popleft()]
        rows, size_bytes = batch[0].rows, batch[0].size_bytes
        while self.waiting:
            rows, size_bytes = rows + self.waiting[0].rows, size_bytes + self.waiting[0].size_bytes
            if rows > self._rows_max or size_bytes > self._bytes_max:
                break
            batch.append(self.waiting.popleft())
        return batch

    def _take_share(self, key: Callable[[Op], Hashable]) -> list[Op]:
        """Take a worker's share of what waits, whole keys at a time, none of them of a running batch."""
        if len(self.waiting) == 1 and not self._busy:
            self._busy.add(key(self.waiting[0]))
            self._running += 1
            return [self.waiting.popleft()]
        total = len(self.waiting) + self._running
        share = -(-total // self._at_once) if total >= self._share_min else total
        batch: list[Op] = []
        keys: set[Hashable] = set()
        skipped: list[Op] = []
        rows = size_bytes = 0
        while self.waiting:
            operation = self.waiting[0]
            its_key = key(operation)
            if its_key in self._busy or (len(batch) >= share and its_key not in keys):
                skipped.append(self.waiting.popleft())
                continue
            rows, size_bytes = rows + operation.rows, size_bytes + operation.size_bytes
            if batch and (rows > self._rows_max or size_bytes > self._bytes_max):
                break
            batch.append(self.waiting.popleft())
            keys.add(its_key)
        self.waiting.extendleft(reversed(skipped))
        self._busy |= keys
        self._running += len(batch)
        return batch


def answer(done: asyncio.Future[Any], result: Any) -> None:
    """Set the result of a future that may be cancelled already; an exception as a result is raised to the
    waiter.
    """
    if done.done():
        return
    if isinstance(result, BaseException):
        done.set_exception(result)
        done.exception()  # marks it as retrieved: whether anybody waits is up to the caller
    else:
        done.set_result(result)


class HasFuture(Protocol):
    """Anything whose caller waits for a future."""

    @property
    def done(self) -> asyncio.Future[Any]:
        """Future of the result."""


def fail(operations: Iterable[HasFuture], error: BaseException) -> None:
    """Give an error to every operation that has no result yet."""
    for operation in operations:
        answer(operation.done, error)
