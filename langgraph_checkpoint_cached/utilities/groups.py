"""Groups: while one group is under way, what arrives waits; then everything that waits is the next group.

Nobody waits on a timer: alone, an operation is a group of one, at once. The idea is group commit, DeWitt et al.,
*Implementation Techniques for Main Memory Database Systems*, SIGMOD 1984.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from langgraph_checkpoint_cached.utilities.tasks import Tasks

REVIVED_AFTER_SECONDS = 1.0


class Queued(Protocol):
    """An operation in a queue, with the future that its caller waits for."""

    @property
    def done(self) -> asyncio.Future[Any]:
        """Gets the answer. Cancelled when nobody waits for it any more; the operation is done all the same."""

    @property
    def rows(self) -> int:
        """How many rows, or commands, it makes."""

    @property
    def size_bytes(self) -> int:
        """About how many bytes it sends."""


Operation = TypeVar("Operation", bound=Queued)


class TooManyWaiting(Exception):
    """The queue is full. The operation was not taken."""


class Groups(Generic[Operation]):
    """One queue of operations, run in groups, in the order in which they came.

    Args:
        run: Runs a group, and answers each operation's `done`, now or later. What it raises answers all that
            have no answer yet.
        rows_max, bytes_max: The most of a group, unless a single operation has more.
        waiting_max: The most operations that wait.
        at_once: How many groups may be under way at the same time.
        before: Awaited with the first operation before its group is put together, so that what arrives
            meanwhile belongs to it.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Operation]], Awaitable[None]],
        *,
        rows_max: int,
        bytes_max: int,
        waiting_max: int,
        at_once: int = 1,
        before: Callable[[Operation], Awaitable[None]] | None = None,
    ) -> None:
        self._run, self._before = run, before
        self._rows_max, self._bytes_max, self._waiting_max = rows_max, bytes_max, waiting_max
        self._waiting: deque[Operation] = deque()
        self._tasks = Tasks()
        self._at_once, self._running = at_once, 0
        self._ended: BaseException | None = None

    def add(self, operation: Operation) -> None:
        """Queues an operation. Raises `TooManyWaiting` instead when the queue is full.

        When its tasks were just cancelled, as a loop that ends does to all, none is started: nobody would wait for
        it. The operation gets that error then. Should the loop go on, so does this, after a moment.
        """
        if self._ended is not None:
            fail([operation], self._ended)
            return
        if len(self._waiting) >= self._waiting_max:
            raise TooManyWaiting(f"{self._waiting_max} operations are waiting")
        self._waiting.append(operation)
        if self._running < self._at_once:
            self._running += 1
            self._tasks.start(self._work())

    @property
    def waiting(self) -> int:
        """How many operations wait for their group."""
        return len(self._waiting)

    async def drain(self) -> None:
        """Waits until nothing is queued or under way."""
        await self._tasks.drain()

    async def _work(self) -> None:
        group: list[Operation] = []
        try:
            while self._waiting:
                if self._before is not None:
                    await self._before(self._waiting[0])
                group = self._take()
                try:
                    await self._run(group)
                except Exception as exc:  # noqa: BLE001 - it is its callers' to handle
                    fail(group, exc)
        except BaseException as exc:  # the loop ends
            self._ended = exc
            asyncio.get_running_loop().call_later(REVIVED_AFTER_SECONDS, self._revive)
            fail([*group, *self._waiting], exc)
            self._waiting.clear()
            raise
        finally:
            self._running -= 1

    def _revive(self) -> None:
        self._ended = None

    def _take(self) -> list[Operation]:
        group = [self._waiting.popleft()]
        rows, size_bytes = group[0].rows, group[0].size_bytes
        while self._waiting:
            rows, size_bytes = rows + self._waiting[0].rows, size_bytes + self._waiting[0].size_bytes
            if rows > self._rows_max or size_bytes > self._bytes_max:
                break
            group.append(self._waiting.popleft())
        return group


def answer(done: asyncio.Future[Any], result: Any) -> None:
    """Answers a future that somebody may still be waiting for; an exception is an error's answer."""
    if done.done():
        return
    if isinstance(result, BaseException):
        done.set_exception(result)
        done.exception()  # marks it as seen: whether anybody looks is theirs to decide
    else:
        done.set_result(result)


def fail(operations: Iterable[Queued], error: BaseException) -> None:
    """Answers all of them with an error, but those that have an answer."""
    for operation in operations:
        answer(operation.done, error)
