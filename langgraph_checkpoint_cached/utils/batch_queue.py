"""Groups: while one group is under way, what arrives waits; then everything that waits is the next group.

Nobody waits on a timer: alone, an operation is a group of one, at once. The idea is group commit, DeWitt et al.,
*Implementation Techniques for Main Memory Database Systems*, SIGMOD 1984.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks

RESUME_SECONDS = 1.0


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


class QueueFull(Exception):
    """The queue is full. The operation was not taken."""


class BatchQueue(Generic[Operation]):
    """One queue of operations, run in groups, in the order in which they came.

    Args:
        run: Runs a group, and answers each operation's `done`, now or later. What it raises answers all that
            have no answer yet.
        rows_max, bytes_max: The most of a group, unless a single operation has more.
        waiting_max: The most operations that wait.
        at_once: How many groups may be under way at the same time.
        key: Operations of one key are never in two groups that are under way, and those that wait together are in
            one, in their order.
        share_min: With so many operations, waiting or under way, each group takes an even share of them, and
            while it is under way the next one is made. With fewer there is one group at a time. Without `key`: so
            many that wait are a group at once.
        before: Awaited with the first operation before its group is put together, so that what arrives
            meanwhile belongs to it.
        begin: Begins a group without a task, for which `run` needs one, unless it returns False. It answers all
            of the group, then calls what it is given.
        may_begin: Whether it can begin a group of these operations, as far as one can tell before.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Operation]], Awaitable[None]],
        *,
        rows_max: int,
        bytes_max: int,
        waiting_max: int,
        at_once: int = 1,
        key: Callable[[Operation], Hashable] | None = None,
        share_min: int = 0,
        before: Callable[[Operation], Awaitable[None]] | None = None,
        begin: Callable[[Sequence[Operation], Callable[[], None]], bool] | None = None,
        may_begin: Callable[[Iterable[Operation]], bool] = lambda _: True,
    ) -> None:
        self._run, self._before, self._begin, self._may_begin = run, before, begin, may_begin
        self._rows_max, self._bytes_max, self._waiting_max = rows_max, bytes_max, waiting_max
        self._waiting: deque[Operation] = deque()
        self._tasks = BackgroundTasks()
        self._at_once, self._running = at_once, 0
        self._in_tasks = 0  # of those that run
        self._key, self._share_min = key, share_min
        self._busy: set[Hashable] = set()  # keys of what is under way
        self._under_way = 0  # operations, if there is a key
        self._last_group = 0
        self._quiet: asyncio.Future[None] | None = None
        self._soon: asyncio.Handle | None = None
        self._ended: BaseException | None = None

    def add(self, operation: Operation, *, now: bool = False) -> None:
        """Queues an operation. Raises `QueueFull` instead when the queue is full.

        Where nothing is under way, what else is added in this event-loop iteration is in its group, up to
        `share_min`; with `now` it is not waited for, unless the last group had company too.

        When its tasks were just cancelled, as a loop that ends does to all, none is started: nobody would wait for
        it. The operation gets that error then. Should the loop go on, so does this, after a moment.
        """
        if self._ended is not None:
            fail([operation], self._ended)
            return
        if len(self._waiting) >= self._waiting_max:
            raise QueueFull(f"{self._waiting_max} operations are waiting")
        self._waiting.append(operation)
        if not self._running:
            self._running = 1
            self._schedule([operation], now=now and self._last_group <= 1)
        elif self._soon is not None:
            self._schedule([operation], now=self._at_once > 1 and self._are_many)
        elif self._running < self._at_once and self._are_many and self._may_overlap:
            self._running += 1
            self._schedule([operation], now=True)

    @property
    def _are_many(self) -> bool:
        return len(self._waiting) + self._under_way >= self._share_min

    @property
    def _may_overlap(self) -> bool:
        """Whether another group may be started. One that is begun never is under way beside one in a task, which
        may have something to send yet.
        """
        return self._begin is None or (not self._in_tasks and self._may_begin(self._waiting))

    @property
    def waiting(self) -> int:
        """How many operations wait for their group."""
        return len(self._waiting)

    async def drain(self) -> None:
        """Waits until nothing is queued or under way."""
        await self._tasks.drain()
        while self._running:
            self._quiet = self._quiet or asyncio.get_running_loop().create_future()
            await asyncio.wait([self._quiet])
            await self._tasks.drain()

    def _schedule(self, added: Iterable[Operation], *, now: bool = False) -> None:
        """A task that is needed is made at once: a loop that ends cancels those there are, and none made later."""
        if self._begin is None or (self._running == 1 and not self._may_begin(added)):
            if self._soon is not None:
                self._soon.cancel()
                self._soon = None
            self._start()
        elif now:
            if self._soon is not None:
                self._soon.cancel()
            self._begin_group()
        elif self._soon is None:
            self._soon = asyncio.get_running_loop().call_soon(self._begin_group)

    def _begin_group(self) -> None:
        assert self._begin is not None  # noqa: S101
        self._soon = None
        group = self._take()
        try:
            begun = self._begin(group, self._over)
        except Exception as exc:  # noqa: BLE001 - it is its callers' to handle
            fail(group, exc)
            self._over()
            return
        if begun:
            return
        if self._running == 1:
            self._start(group)
        else:  # after those under way
            self._waiting.extendleft(reversed(group))
            self._end_one()

    def _over(self) -> None:
        """What was added meanwhile is the next group, with what those add who have just been answered."""
        if self._waiting and self._soon is None:
            self._schedule(islice(self._waiting, self._rows_max))
        else:
            self._end_one()

    def _end_one(self) -> None:
        self._running -= 1
        if self._quiet is not None and not self._running:
            self._quiet.set_result(None)
            self._quiet = None

    def _start(self, group: Sequence[Operation] = ()) -> None:
        began = asyncio.Event()
        self._in_tasks += 1

        def ended(task: asyncio.Task[None]) -> None:
            if not began.is_set():  # a task that is cancelled before its first step runs none of its code
                self._in_tasks -= 1
                self._end_one()
                self._end(group, asyncio.CancelledError())

        self._tasks.start(self._work(began, group)).add_done_callback(ended)

    async def _work(self, began: asyncio.Event, group: Sequence[Operation]) -> None:
        began.set()
        try:
            while group or self._waiting:
                if not group:
                    if self._before is not None:
                        await self._before(self._waiting[0])
                    group = self._take() if self._key is None else self._take_share(self._key)
                    if not group:  # all that waits is of keys under way: who has them goes on with it
                        break
                try:
                    await self._run(group)
                except Exception as exc:  # noqa: BLE001 - it is its callers' to handle
                    fail(group, exc)
                finally:
                    self._release(group)
                group = ()
        except BaseException as exc:  # the loop ends
            self._end(group, exc)
            raise
        finally:
            self._in_tasks -= 1
            self._end_one()

    def _end(self, group: Sequence[Operation], exc: BaseException) -> None:
        self._ended = exc
        asyncio.get_running_loop().call_later(RESUME_SECONDS, self._revive)
        fail([*group, *self._waiting], exc)
        self._waiting.clear()

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
        self._last_group = len(group)
        return group

    def _take_share(self, key: Callable[[Operation], Hashable]) -> list[Operation]:
        total = len(self._waiting) + self._under_way
        share = -(-total // self._at_once) if self._are_many else total
        group: list[Operation] = []
        keys: set[Hashable] = set()
        left: list[Operation] = []
        rows = size_bytes = 0
        while self._waiting:
            one, its_key = self._waiting[0], key(self._waiting[0])
            if its_key in self._busy or (len(group) >= share and its_key not in keys):
                left.append(self._waiting.popleft())
                continue
            rows, size_bytes = rows + one.rows, size_bytes + one.size_bytes
            if group and (rows > self._rows_max or size_bytes > self._bytes_max):
                break
            group.append(self._waiting.popleft())
            keys.add(its_key)
        self._waiting.extendleft(reversed(left))
        self._busy |= keys
        self._under_way += len(group)
        return group

    def _release(self, group: Sequence[Operation]) -> None:
        if self._key is not None:
            self._busy.difference_update(map(self._key, group))
            self._under_way -= len(group)


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
