"""Writes: Postgres first and always, under a fence that keeps Redis from serving anything older."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar

from langgraph_checkpoint_cached.errors import OVERLOADED, OverloadedError
from langgraph_checkpoint_cached.records import Put, PutWrites
from langgraph_checkpoint_cached.stats import Stats
from langgraph_checkpoint_cached.stores.entries import (
    DROP,
    FENCE_MS,
    Advance,
    RedisEntries,
    RedisUnavailable,
    advance_by,
    new_token,
)
from langgraph_checkpoint_cached.stores.postgres import PostgresStore, is_of_one, may_still_commit
from langgraph_checkpoint_cached.utilities.groups import Groups, TooManyWaiting, answer
from langgraph_checkpoint_cached.utilities.tasks import Tasks

COMMIT_ATTEMPTS_MAX = 3
FENCE_SECONDS_TO_SPARE = FENCE_MS / 1000 / 2
"""A fence with less than this left is taken anew before Postgres is asked to commit."""
GROUP_ROWS_MAX = 512
GROUP_BYTES_MAX = 8 * 1024 * 1024
WRITES_WAITING_MAX = 10_000
SUSPECTS_MAX = 100_000
TOKENS_MAX = 100
"""Of one suspect thread. A fence whose token is forgotten ends at its deadline."""
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

    A thread whose entry could not be told of a write is a suspect. It is voided before Redis is used again.
    """

    def __init__(
        self,
        entries: RedisEntries,
        postgres: PostgresStore,
        stats: Stats,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._entries, self._postgres, self._stats, self._clock = entries, postgres, stats, clock
        self._loop = loop
        self._groups: Groups[_Write] = Groups(
            self._store,
            rows_max=GROUP_ROWS_MAX,
            bytes_max=GROUP_BYTES_MAX,
            waiting_max=WRITES_WAITING_MAX,
            before=self._fenced,
        )
        self._tasks = Tasks()
        self._suspects: dict[str, list[str]] = {}  # thread -> tokens of the writes that Redis was not told of
        self._too_many_suspects = False

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

    async def change_threads(self, thread_ids: Sequence[str], change: Callable[[], Awaitable[T]]) -> T:
        """Runs a delete or prune of whole threads; nothing of them is served from Redis until it is over."""
        token = new_token()
        await self._on_threads(thread_ids, lambda thread_id: self._entries.begin_thread(thread_id, token))
        try:
            return await change()
        except BaseException as exc:
            if may_still_commit(exc):  # their fences stay to the deadline, those that they have
                await self._on_threads(thread_ids, lambda thread_id: self._fence_thread(thread_id, token))
                thread_ids = []
            raise
        finally:
            await self._on_threads(thread_ids, lambda thread_id: self._end_thread(thread_id, token))

    async def void_suspects(self) -> None:
        """Voids what Redis may hold of suspect threads. Raises `RedisUnavailable` if it cannot."""
        if self._too_many_suspects:
            await self._entries.void_all()
            self._too_many_suspects = False
        while self._suspects:
            thread_id, tokens = next(iter(self._suspects.items()))
            known = list(tokens)
            await self._entries.void_thread(thread_id, known)
            if tokens == known:  # not one more meanwhile
                del self._suspects[thread_id]

    async def _fenced(self, write: _Write) -> None:
        """Waits for the write's fence. Without one, COMMIT drops the entry."""
        write.advance = write.advance or advance_by(write.operation)
        with contextlib.suppress(RedisUnavailable):
            await write.begin
            if self._clock() - write.begun_at > FENCE_SECONDS_TO_SPARE:
                write.begun_at = self._clock()
                await self._entries.begin(write.operation.namespace, write.token)

    async def _store(self, group: Sequence[_Write]) -> None:
        """Commits a group in Postgres, and queues what Redis is to be told of it in the same order."""
        for write in group:
            await self._fenced(write)
        for write, outcome in zip(group, await self._outcomes(group), strict=True):
            self._tell(write, outcome)

    async def _outcomes(self, group: Sequence[_Write]) -> Sequence[bool | Exception]:
        """For each, whether it is known what was stored, or the error."""
        try:
            return await self._postgres.store([write.operation for write in group])
        except Exception as exc:  # noqa: BLE001 - the callers' to handle
            if len(group) == 1 or not is_of_one(exc):
                return [exc] * len(group)
        # One of them is bad, and it fails alone.
        return [outcome for write in group for outcome in await self._outcomes([write])]

    def _tell(self, write: _Write, outcome: bool | Exception) -> None:
        if isinstance(outcome, Exception) and may_still_commit(outcome):
            if _is_confirmed(write.begin):
                answer(write.done, outcome)  # its fence stays to the deadline
            else:
                self._tasks.start(self._fence_late(write, outcome))
            return
        advance = write.advance if outcome is True and write.advance else DROP
        told = self._entries.commit(write.operation.namespace, write.token, advance)
        told.add_done_callback(partial(self._told, write, outcome))

    def _told(self, write: _Write, outcome: bool | Exception, told: asyncio.Future[int]) -> None:
        if told.exception() is None:
            self._end(write, outcome, told.result())
        else:
            self._tasks.start(self._tell_again(write, outcome))

    async def _tell_again(self, write: _Write, outcome: bool | Exception) -> None:
        # What is sent again may come after later writes of this process, so it only drops the entry.
        namespace, token = write.operation.namespace, write.token

        def drop() -> Awaitable[int]:
            return self._entries.commit(namespace, token, DROP)

        advanced = await self._until_told(namespace.thread_id, token, drop, COMMIT_ATTEMPTS_MAX - 1)
        self._end(write, outcome, advanced)

    def _end(self, write: _Write, outcome: bool | Exception, advanced: int | None) -> None:
        if isinstance(outcome, Exception):
            answer(write.done, outcome)
            return
        self._stats.writes += 1
        self._stats.advances += advanced == 1
        self._stats.degraded_writes += advanced is None
        answer(write.done, None)

    async def _until_told(
        self, thread_id: str, token: str, step: Callable[[], Awaitable[T]], attempts: int
    ) -> T | None:
        """Repeats an idempotent step until Redis confirms it. None if it does not: the thread is a suspect."""
        for _ in range(attempts):
            with contextlib.suppress(RedisUnavailable):
                return await step()
        if thread_id in self._suspects or len(self._suspects) < SUSPECTS_MAX:
            self._suspects.setdefault(thread_id, []).append(token)
            del self._suspects[thread_id][:-TOKENS_MAX]
        else:
            self._too_many_suspects = True
        return None

    async def _fence_late(self, write: _Write, outcome: Exception) -> None:
        # What Postgres may have stored, or may store yet, must not be hidden by an entry for longer than a fence.
        namespace, token = write.operation.namespace, write.token

        def fence() -> Awaitable[Any]:
            return self._entries.begin(namespace, token)

        await self._until_told(namespace.thread_id, token, fence, COMMIT_ATTEMPTS_MAX)
        answer(write.done, outcome)

    async def _fence_thread(self, thread_id: str, token: str) -> None:
        await self._until_told(
            thread_id, token, lambda: self._entries.begin_thread(thread_id, token), COMMIT_ATTEMPTS_MAX
        )

    async def _end_thread(self, thread_id: str, token: str) -> None:
        await self._until_told(
            thread_id, token, lambda: self._entries.end_thread(thread_id, token), COMMIT_ATTEMPTS_MAX
        )

    async def _on_threads(self, thread_ids: Sequence[str], step: Callable[[str], Awaitable[None]]) -> None:
        """Takes the step for every thread, a few at a time."""
        for start in range(0, len(thread_ids), THREADS_AT_ONCE_MAX):
            batch = thread_ids[start : start + THREADS_AT_ONCE_MAX]
            answers = await asyncio.gather(*(step(thread_id) for thread_id in batch), return_exceptions=True)
            for error in answers:
                if isinstance(error, BaseException) and not isinstance(error, RedisUnavailable):
                    raise error


def _is_confirmed(step: asyncio.Future[Any]) -> bool:
    return step.done() and not step.cancelled() and step.exception() is None
