"""Writes: Postgres first and always, under a fence that keeps Redis from serving anything older."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.errors import LockNotAvailable, QueryCanceled

from langgraph_checkpoint_cached.errors import OVERLOADED, OverloadedError
from langgraph_checkpoint_cached.records import Put, PutWrites
from langgraph_checkpoint_cached.stats import Stats
from langgraph_checkpoint_cached.stores.entries import (
    DROP,
    FENCE_MS,
    Advance,
    RedisEntries,
    RedisUnavailable,
)
from langgraph_checkpoint_cached.stores.postgres import PostgresStore, is_of_one, may_still_commit, retrying
from langgraph_checkpoint_cached.tiers.recovery import Recovery
from langgraph_checkpoint_cached.utilities.groups import Groups, TooManyWaiting, answer
from langgraph_checkpoint_cached.utilities.tasks import Tasks
from langgraph_checkpoint_cached.utilities.tokens import new_token

COMMIT_ATTEMPTS_MAX = 3
FENCE_SECONDS_TO_SPARE = FENCE_MS / 1000 / 2
"""A fence with less than this left is taken anew before Postgres is asked to commit."""
GROUP_ROWS_MAX = 512
GROUP_BYTES_MAX = 8 * 1024 * 1024
WRITES_WAITING_MAX = 10_000
CANCELED_MAX = 3
"""Writes of one group that may each run into a statement timeout."""
THREADS_AT_ONCE_MAX = 16

T = TypeVar("T")
Operation: TypeAlias = "Put | PutWrites"


@dataclass(eq=False)
class _Write:
    """A write that is queued, its fence on the way, and who waits for it."""

    operation: Operation
    done: asyncio.Future[None]
    token: str
    begin: asyncio.Future[Any]
    begun_at: float
    advance: Advance | None = None
    """What it does to the entry, worked out while Redis takes the fence."""
    fenced: bool = False
    """Whether Redis has confirmed the fence. If not, the write makes its thread a suspect."""

    @property
    def rows(self) -> int:
        return self.operation.rows

    @property
    def size_bytes(self) -> int:
        return self.operation.size_bytes


class Writer:
    """Writes through both tiers. One writer per process and pool; copies of a saver share it.

    All writes of a process go through one queue: while a transaction is under way, what arrives waits, and then
    is the next transaction. Redis is told of writes in the order in which Postgres committed them; another
    process' write in between is seen by its fence, and drops the entry.

    A thread whose entry could not be told of a write is a suspect: see `Recovery`.
    """

    def __init__(
        self,
        entries: RedisEntries,
        postgres: PostgresStore,
        recovery: Recovery,
        stats: Stats,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._entries, self._postgres, self._recovery = entries, postgres, recovery
        self._stats, self._loop, self._clock = stats, loop, clock
        self._groups: Groups[_Write] = Groups(
            self._store,
            rows_max=GROUP_ROWS_MAX,
            bytes_max=GROUP_BYTES_MAX,
            waiting_max=WRITES_WAITING_MAX,
            before=self._fenced,
        )
        stats.writes_waiting.read = lambda: self._groups.waiting
        self._tasks = Tasks()

    def write(self, operation: Operation) -> asyncio.Future[None]:
        """Stores a checkpoint or pending writes; done when Postgres has committed it and Redis knows of it.

        It is queued when this returns, and whoever waits for it and is cancelled does not stop it. What waits at
        the same time shares a transaction, in the order of these calls.

        Raises:
            OverloadedError: too many are waiting already. Nothing was written.
        """
        done: asyncio.Future[None] = self._loop.create_future()
        token = new_token()
        begin = self._entries.begin(operation.namespace, token)
        try:
            self._groups.add(_Write(operation, done, token, begin, self._clock()))
        except TooManyWaiting as exc:
            self._entries.commit(operation.namespace, token, DROP)  # releases the fence
            raise OverloadedError(f"not stored, {OVERLOADED.format(WRITES_WAITING_MAX)}") from exc
        return done

    async def drain(self) -> None:
        """Waits until nothing is queued or under way."""
        await self._groups.drain()
        await self._entries.drain()
        await self._tasks.drain()

    async def change_threads(
        self,
        thread_ids: Sequence[str],
        change: Callable[[AsyncPostgresSaver], Awaitable[T]],
        *,
        in_transaction: bool = True,
    ) -> T:
        """Runs a delete or prune of whole threads; nothing of them is served from Redis until it is over.

        Args:
            thread_ids: Those threads.
            change: Does it, on the stock saver that it is given.
            in_transaction: Whether that may be inside a transaction. If not, it must leave every latest checkpoint
                as it is.
        """
        token = new_token()
        unfenced = await self._on_threads(thread_ids, lambda t: self._entries.begin_thread(t, token))
        try:
            return await retrying(lambda: self._change(change, unfenced, in_transaction=in_transaction))
        except BaseException as exc:
            if may_still_commit(exc):
                thread_ids = []  # their fences stay to the deadline
            raise
        finally:
            await self._on_threads(thread_ids, lambda t: self._end_thread(t, token, recorded=t in unfenced))

    async def _change(
        self,
        change: Callable[[AsyncPostgresSaver], Awaitable[T]],
        unfenced: Collection[str],
        *,
        in_transaction: bool,
    ) -> T:
        if unfenced and in_transaction:
            async with self._postgres.stock_in_transaction(unfenced) as stock:
                return await change(stock)
        if unfenced:
            await self._postgres.suspects.add(unfenced)
        return await change(self._postgres.stock())

    async def _fenced(self, write: _Write) -> None:
        """Waits for the write's fence. Without one its thread is a suspect, and COMMIT drops the entry."""
        write.advance = write.advance or self._entries.advance_by(write.operation)
        write.fenced = False
        with contextlib.suppress(RedisUnavailable):
            await write.begin
            if self._clock() - write.begun_at > FENCE_SECONDS_TO_SPARE:
                write.begun_at = self._clock()
                await self._entries.begin(write.operation.namespace, write.token)
            write.fenced = True

    async def _store(self, group: Sequence[_Write]) -> None:
        """Commits a group in Postgres, and queues what Redis is to be told of it in the same order."""
        self._stats.group_sizes.record(len(group))
        for write in group:
            await self._fenced(write)
        for write, outcome in zip(group, await self._outcomes(group), strict=True):
            self._tell(write, outcome)

    async def _outcomes(self, group: Sequence[_Write]) -> Sequence[bool | Exception]:
        """For each, whether it is known what was stored, or the error."""
        suspects = {write.operation.namespace.thread_id for write in group if not write.fenced}
        try:
            return await self._postgres.store([write.operation for write in group], suspects)
        except Exception as exc:  # noqa: BLE001 - the callers' to handle
            if len(group) == 1 or not is_of_one(exc):
                return [exc] * len(group)
        # One of them is bad, and it fails alone. Where it was its time that ran out, a few more of that kind mean
        # that Postgres is slow for all; then the rest is not tried again, one wait after the other.
        outcomes: list[bool | Exception] = []
        for write in group:
            slow = [o for o in outcomes if isinstance(o, (QueryCanceled, LockNotAvailable))]
            outcomes += await self._outcomes([write]) if len(slow) < CANCELED_MAX else [slow[-1]]
        return outcomes

    def _tell(self, write: _Write, outcome: bool | Exception) -> None:
        if isinstance(outcome, Exception) and may_still_commit(outcome):
            answer(write.done, outcome)  # its fence stays to the deadline
            return
        advance = write.advance if outcome is True and write.advance else DROP
        told = self._entries.commit(write.operation.namespace, write.token, advance)
        told.add_done_callback(partial(self._told, write, outcome))

    def _told(self, write: _Write, outcome: bool | Exception, told: asyncio.Future[int]) -> None:
        error = told.exception()
        if error is None:
            self._stats.fences_expired += max(0, -told.result())
            self._end(write, outcome, told.result())
        elif isinstance(error, RedisUnavailable):
            self._tasks.start(self._tell_again(write, outcome))
        else:
            answer(write.done, error)  # the loop ends, and the fence stays to its deadline

    async def _tell_again(self, write: _Write, outcome: bool | Exception) -> None:
        # What is sent again may come after later writes of this process, so it only voids, and a thread, for that
        # takes one key: a Cluster that is moving the thread's slot refuses what takes more.
        thread_id, token = write.operation.namespace.thread_id, write.token

        async def void() -> int:
            await self._entries.end_thread(thread_id, token)
            return 0

        recorded = not write.fenced or isinstance(outcome, Exception)
        told = await self._until_told(thread_id, token, void, COMMIT_ATTEMPTS_MAX - 1, recorded=recorded)
        self._end(write, outcome, told)

    def _end(self, write: _Write, outcome: bool | Exception, advanced: int | None) -> None:
        if isinstance(outcome, Exception):
            answer(write.done, outcome)
            return
        self._stats.writes += 1
        self._stats.advances += advanced == 1
        self._stats.degraded_writes += advanced is None
        answer(write.done, None)

    async def _until_told(
        self, thread_id: str, token: str, step: Callable[[], Awaitable[T]], attempts: int, *, recorded: bool
    ) -> T | None:
        """Repeats an idempotent step until Redis confirms it. None if it does not: the thread is a suspect."""
        for _ in range(attempts):
            with contextlib.suppress(RedisUnavailable):
                return await step()
        await self._recovery.remember(thread_id, token, recorded=recorded)
        return None

    async def _end_thread(self, thread_id: str, token: str, *, recorded: bool) -> None:
        await self._until_told(
            thread_id,
            token,
            lambda: self._entries.end_thread(thread_id, token),
            COMMIT_ATTEMPTS_MAX,
            recorded=recorded,
        )

    async def _on_threads(
        self, thread_ids: Sequence[str], step: Callable[[str], Awaitable[None]]
    ) -> Collection[str]:
        """Takes the step for every thread, a few at a time. Returns those for which Redis did not."""
        refused: set[str] = set()
        for start in range(0, len(thread_ids), THREADS_AT_ONCE_MAX):
            batch = thread_ids[start : start + THREADS_AT_ONCE_MAX]
            answers = await asyncio.gather(*(step(thread_id) for thread_id in batch), return_exceptions=True)
            for thread_id, error in zip(batch, answers, strict=True):
                if isinstance(error, RedisUnavailable):
                    refused.add(thread_id)
                elif isinstance(error, BaseException):
                    raise error
        return refused
