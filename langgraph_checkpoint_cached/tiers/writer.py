"""Writes: Postgres first and always, under a fence that keeps Redis from serving anything older."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from langgraph_checkpoint_cached.keys import Namespace
from langgraph_checkpoint_cached.records import Put, PutWrites
from langgraph_checkpoint_cached.stats import Stats
from langgraph_checkpoint_cached.stores.entries import (
    FENCE_MS,
    Change,
    RedisEntries,
    RedisUnavailable,
    new_token,
)
from langgraph_checkpoint_cached.stores.postgres import PostgresStore, may_still_commit
from langgraph_checkpoint_cached.utilities.tasks import Tasks
from langgraph_checkpoint_cached.utilities.turns import Turns

COMMIT_ATTEMPTS_MAX = 3
FENCE_SECONDS_TO_SPARE = FENCE_MS / 1000 / 2
"""A fence with less than this left is taken anew before Postgres is asked to commit."""
SUSPECTS_MAX = 100_000
TOKENS_MAX = 100
"""Of one suspect thread. A fence whose token is forgotten ends at its deadline."""
THREADS_AT_ONCE_MAX = 16

T = TypeVar("T")


class Writer:
    """Writes through both tiers. One writer per process and pool; copies of a saver share it.

    Writes to one namespace take turns: this process then applies them to the entry in the order in which
    Postgres committed them. Another process' write in between is seen by its fence, and drops the entry.

    A thread whose entry could not be told of a write is a suspect. It is voided before Redis is used again.
    """

    def __init__(
        self,
        entries: RedisEntries,
        postgres: PostgresStore,
        stats: Stats,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._entries, self._postgres, self._stats, self._clock = entries, postgres, stats, clock
        self._turns = Turns()
        self._tasks = Tasks()
        self._suspects: dict[str, list[str]] = {}  # thread -> tokens of the writes that Redis was not told of
        self._too_many_suspects = False

    async def put(self, put: Put) -> None:
        """Stores a checkpoint. Returns when Postgres has committed and no reader can be served an older one."""

        async def store() -> Change:
            every_value_was_new = await self._postgres.put(put)
            return put if every_value_was_new else None

        await self._write(put.namespace, store)

    async def put_writes(self, put: PutWrites) -> None:
        """Stores pending writes, as durably as `put`."""

        async def store() -> Change:
            await self._postgres.put_writes(put)
            return put

        await self._write(put.namespace, store)

    async def change_threads(self, thread_ids: Sequence[str], change: Callable[[], Awaitable[T]]) -> T:
        """Runs a delete or prune of whole threads; nothing of them is served from Redis until it is over."""
        token = new_token()
        await self._on_threads(thread_ids, lambda thread_id: self._entries.begin_thread(thread_id, token))
        try:
            return await change()
        except BaseException as exc:
            if may_still_commit(exc):
                thread_ids = []  # their fences stay to the deadline
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

    async def _write(self, namespace: Namespace, store: Callable[[], Awaitable[Change]]) -> None:
        token = new_token()
        begun_at = self._clock()
        begin = self._tasks.start(self._entries.begin(namespace, token))
        async with self._turns.of(namespace):
            try:
                await begin
                if self._clock() - begun_at > FENCE_SECONDS_TO_SPARE:
                    await self._entries.begin(namespace, token)
            except RedisUnavailable:
                pass  # COMMIT then finds no fence, and drops the entry
            try:
                change = await store()
            except BaseException as exc:
                if not may_still_commit(exc):  # else the fence stays to its deadline
                    await self._tell(
                        namespace.thread_id, token, lambda: self._entries.commit(namespace, token, None)
                    )
                raise
            self._stats.writes += 1
            advanced = await self._tell(
                namespace.thread_id, token, lambda: self._entries.commit(namespace, token, change)
            )
            self._stats.advances += bool(advanced)
            self._stats.degraded_writes += advanced is None

    async def _tell(self, thread_id: str, token: str, step: Callable[[], Awaitable[T]]) -> T | None:
        """Repeats an idempotent step until Redis confirms it. None if it does not: the thread is a suspect."""
        for _ in range(COMMIT_ATTEMPTS_MAX):
            try:
                return await step()
            except RedisUnavailable:
                continue
        if thread_id in self._suspects or len(self._suspects) < SUSPECTS_MAX:
            self._suspects.setdefault(thread_id, []).append(token)
            del self._suspects[thread_id][:-TOKENS_MAX]
        else:
            self._too_many_suspects = True
        return None

    async def _end_thread(self, thread_id: str, token: str) -> None:
        await self._tell(thread_id, token, lambda: self._entries.end_thread(thread_id, token))

    async def _on_threads(self, thread_ids: Sequence[str], step: Callable[[str], Awaitable[None]]) -> None:
        """Takes the step for every thread, a few at a time."""
        for start in range(0, len(thread_ids), THREADS_AT_ONCE_MAX):
            batch = thread_ids[start : start + THREADS_AT_ONCE_MAX]
            answers = await asyncio.gather(*(step(thread_id) for thread_id in batch), return_exceptions=True)
            for answer in answers:
                if isinstance(answer, BaseException) and not isinstance(answer, RedisUnavailable):
                    raise answer
