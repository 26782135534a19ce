"""Changes of whole threads, under fences over all their namespaces."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import TypeVar

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

from langgraph_checkpoint_cached.engine.journal_replayer import JournalReplayer
from langgraph_checkpoint_cached.engine.recovery import Recovery
from langgraph_checkpoint_cached.errors import OverloadedError
from langgraph_checkpoint_cached.stores.postgres.errors import outcome_unknown, retrying
from langgraph_checkpoint_cached.stores.postgres.identity import AnotherIdentity, TooLate
from langgraph_checkpoint_cached.stores.postgres.store import PostgresStore
from langgraph_checkpoint_cached.stores.redis.entries import RedisEntries
from langgraph_checkpoint_cached.stores.redis.health import RedisUnavailable
from langgraph_checkpoint_cached.stores.redis.journal import Journal
from langgraph_checkpoint_cached.stores.redis.positions import LeasePosition
from langgraph_checkpoint_cached.utils.tokens import new_token

TOO_LATE = "nothing was changed: Postgres did not begin the transaction in time. Try again"
CONFIRM_ATTEMPTS_MAX = 3
THREADS_AT_ONCE_MAX = 16

T = TypeVar("T")


class ThreadChanges:
    """Runner of changes of whole threads; nothing of them is served from Redis, nor stored there, meanwhile."""

    def __init__(
        self,
        entries: RedisEntries,
        journal: Journal,
        store: PostgresStore,
        replayer: JournalReplayer,
        recovery: Recovery,
    ) -> None:
        self._entries, self._journal, self._store = entries, journal, store
        self._replayer, self._recovery = replayer, recovery

    async def run(
        self,
        thread_ids: Sequence[str],
        change: Callable[[AsyncPostgresSaver], Awaitable[T]],
        *,
        deletes: bool = False,
        one_snapshot: bool = False,
    ) -> T:
        """Run a change of threads, in one transaction.

        Unless it deletes them, Postgres holds all that was acknowledged of them first. Without Redis even then:
        else a process that writes behind on them would go on, and not know that it has no lease any more.

        Args:
            thread_ids: Threads to change.
            change: Does it, on the upstream saver that it is given.
            deletes: Whether it deletes all there is of them, so that their leases go too.
            one_snapshot: Whether all of it reads one snapshot.
        """
        ended = thread_ids if deletes else ()

        async def apply(thread_ids: Sequence[str], unfenced: Collection[str], deadline: float) -> T:
            while True:
                try:
                    async with self._store.upstream_in_transaction(
                        deadline, unfenced, ended, one_snapshot=one_snapshot
                    ) as upstream:
                        return await change(upstream)
                except AnotherIdentity:
                    await self._store.identity.ask()
                except TooLate as exc:
                    raise OverloadedError(TOO_LATE) from exc

        return await self._run(thread_ids, apply, deletes=deletes)

    async def _run(
        self,
        thread_ids: Sequence[str],
        change: Callable[[Sequence[str], Collection[str], float], Awaitable[T]],
        *,
        deletes: bool,
    ) -> T:
        token, deadline = new_token(), self._entries.fences.start_deadline()
        leases: dict[str, LeasePosition] = {}

        async def begin(thread_id: str) -> None:
            if lease := await self._entries.begin_thread(thread_id, token):
                leases[thread_id] = lease

        async def end(thread_id: str) -> None:
            await self._end_thread(thread_id, token, recorded=thread_id in unfenced)
            if deletes and (lease := leases.get(thread_id)):
                with contextlib.suppress(RedisUnavailable):
                    await self._journal.close(thread_id, lease.token, lease.last)

        unfenced = await self._on_threads(thread_ids, begin)
        try:
            await self._replayer.flush_threads(unfenced if deletes else thread_ids)
            return await retrying(partial(change, thread_ids, unfenced, deadline))
        except BaseException as exc:
            if outcome_unknown(exc):
                thread_ids = []  # their fences are left to the deadline
            raise
        finally:
            await self._on_threads(thread_ids, end)
            await self._end_under_right(thread_ids)

    async def _end_thread(self, thread_id: str, token: str, *, recorded: bool) -> None:
        for _ in range(CONFIRM_ATTEMPTS_MAX):
            with contextlib.suppress(RedisUnavailable):
                await self._entries.end_thread(thread_id, token)
                return
        await self._recovery.invalidator.report_unconfirmed(thread_id, token, recorded=recorded)

    async def _end_under_right(self, thread_ids: Sequence[str]) -> None:
        """Make threads stale that Redis has invalidated, if it is not the one any more that all processes use."""
        if thread_ids and not self._recovery.right.is_valid and not await self._recovery.renew():
            for thread_id in thread_ids:
                self._recovery.invalidator.note_unconfirmed(thread_id, None)
            await self._recovery.invalidator.report_unconfirmed(thread_ids[0], None, recorded=False)

    async def _on_threads(
        self, thread_ids: Sequence[str], step: Callable[[str], Awaitable[None]]
    ) -> Collection[str]:
        """Take the step for every thread, a few at a time. Return those for which Redis did not."""
        refused: set[str] = set()
        for start in range(0, len(thread_ids), THREADS_AT_ONCE_MAX):
            batch = thread_ids[start : start + THREADS_AT_ONCE_MAX]
            results = await asyncio.gather(*(step(thread_id) for thread_id in batch), return_exceptions=True)
            for thread_id, error in zip(batch, results, strict=True):
                if isinstance(error, RedisUnavailable):
                    self._recovery.reopen()
                    refused.add(thread_id)
                elif isinstance(error, BaseException):
                    raise error
        return refused
