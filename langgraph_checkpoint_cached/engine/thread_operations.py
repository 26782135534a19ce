"""Operations on whole threads: done in Postgres while nothing of them is served from Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

from langgraph_checkpoint_cached.engine.journal_replayer import JournalReplayer
from langgraph_checkpoint_cached.engine.thread_changes import ThreadChanges
from langgraph_checkpoint_cached.retention import IdleThreads, first_id_since
from langgraph_checkpoint_cached.stores.postgres import thread_maintenance
from langgraph_checkpoint_cached.stores.postgres.store import PostgresStore
from langgraph_checkpoint_cached.stores.postgres.thread_maintenance import ThreadAge
from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks

THREADS_OF_A_CHANGE_MAX = 100
"""Threads deleted in one transaction: few enough that it is over long before a fence's deadline."""
CHECKPOINTS_OF_A_BATCH_MAX = 5_000
"""Number of checkpoints after which a batch takes no more threads; a thread with more is one of its own."""
THREADS_OF_A_PAGE = 1_000
"""Threads that one query for idle threads looks at."""

T = TypeVar("T")
Change = Callable[[AsyncPostgresSaver], Awaitable[T]]


class ThreadOperations:
    """Deletes, prunes and copies of whole threads, each under the fences of what it changes."""

    def __init__(
        self, changes: ThreadChanges, store: PostgresStore, replayer: JournalReplayer, tasks: BackgroundTasks
    ) -> None:
        self._changes, self._store, self._replayer, self._tasks = changes, store, replayer, tasks

    async def delete(self, thread_id: str) -> None:
        """Delete a thread."""
        await self._changes.run([thread_id], lambda upstream: upstream.adelete_thread(thread_id), deletes=True)

    async def prune(self, thread_ids: Sequence[str]) -> None:
        """Delete threads."""
        await self._changes.run(
            thread_ids, lambda upstream: upstream.aprune(thread_ids, strategy="delete"), deletes=True
        )

    async def keep_latest(self, thread_ids: Sequence[str]) -> None:
        """Prune threads to their latest checkpoints, and what those are rebuilt from, one after the other.

        Raises:
            NotImplementedError: a thread uses a `DeltaChannel` of LangGraph.js. Nothing was deleted.
        """
        await self._replayer.flush_threads(thread_ids)
        deltas = await thread_maintenance.delta_threads(self._store.upstream(), thread_ids) if thread_ids else []
        others = [thread_id for thread_id in dict.fromkeys(thread_ids) if thread_id not in set(deltas)]
        for thread_id in [*others, *deltas]:
            await self._keep_latest(thread_id, by_own_statements=thread_id in deltas)

    async def _keep_latest(self, thread_id: str, *, by_own_statements: bool) -> None:
        async def prune(upstream: AsyncPostgresSaver) -> None:
            if by_own_statements:
                await thread_maintenance.keep_latest(upstream, thread_id)
            else:
                await upstream.aprune([thread_id])

        await self._changes.run([thread_id], prune, one_snapshot=True)

    async def copy(self, source: str, target: str, *, overwrite: bool) -> None:
        """Copy a thread. Raises as `thread_maintenance.copy`."""

        async def copy(upstream: AsyncPostgresSaver) -> None:
            await thread_maintenance.copy(upstream, source, target, overwrite=overwrite)

        await self._replayer.flush_threads([source])
        await self._changes.run([target], copy)

    async def delete_runs(self, run_ids: Sequence[str], thread_ids: Sequence[str] | None) -> None:
        """Delete what some runs have stored, in these threads or all. Raises as
        `thread_maintenance.delete_runs`.
        """
        await self._replayer.flush_threads(thread_ids)
        found = await thread_maintenance.threads_of_runs(self._store.upstream(), run_ids, thread_ids)
        for start in range(0, len(found), THREADS_OF_A_CHANGE_MAX):
            await self._delete_runs(run_ids, found[start : start + THREADS_OF_A_CHANGE_MAX])

    async def _delete_runs(self, run_ids: Sequence[str], thread_ids: Sequence[str]) -> None:
        await self._changes.run(
            thread_ids, lambda upstream: thread_maintenance.delete_runs(upstream, run_ids, thread_ids)
        )

    async def delete_idle(
        self,
        idle_seconds: float,
        *,
        batch_size: int,
        limit: int | None,
        pause_seconds: float,
        dry_run: bool,
        progress: Callable[[IdleThreads], None],
    ) -> IdleThreads:
        """Delete threads that have no checkpoint younger than this, a batch at a time. Memory stays flat.

        A caller that is cancelled stops it after the batch, or the page, that is under way.
        """
        upstream, finish = self._store.upstream(), self._tasks.finish
        since = first_id_since(await finish(thread_maintenance.database_time(upstream)) - idle_seconds)
        done, after = IdleThreads(), None
        while limit is None or done.threads < limit:
            page = await finish(thread_maintenance.page_of_threads(upstream, after, since, THREADS_OF_A_PAGE))
            if not page:
                break
            after = page[-1].thread_id
            done = done.plus(looked_at=len(page), undated=sum(thread.age == "undated" for thread in page))
            for batch in batches(page, batch_size):
                some = batch if limit is None else batch[: limit - done.threads]
                if not some:
                    break
                done = await finish(self._delete_batch(some, since, done, dry_run=dry_run))
                progress(done)
                if pause_seconds and not dry_run:
                    await asyncio.sleep(pause_seconds)
            else:
                progress(done)
        return done

    async def _delete_batch(
        self, thread_ids: Sequence[str], since: str, done: IdleThreads, *, dry_run: bool
    ) -> IdleThreads:
        if dry_run:
            counts = await thread_maintenance.count_rows(self._store.upstream(), thread_ids)
            return done.plus(threads=len(thread_ids), **counts._asdict())
        deleted, counts = await self._changes.run(
            thread_ids, lambda upstream: thread_maintenance.delete_if_idle(upstream, thread_ids, since)
        )
        return done.plus(threads=len(deleted), kept=len(thread_ids) - len(deleted), **counts._asdict())


def batches(page: Sequence[ThreadAge], threads_max: int) -> Iterator[list[str]]:
    """Yield the idle threads of a page: at most so many, and `CHECKPOINTS_OF_A_BATCH_MAX`, at a time."""
    batch: list[str] = []
    checkpoints = 0
    for thread in page:
        if thread.age != "idle":
            continue
        if batch and (len(batch) >= threads_max or checkpoints + thread.checkpoints > CHECKPOINTS_OF_A_BATCH_MAX):
            yield batch
            batch, checkpoints = [], 0
        batch.append(thread.thread_id)
        checkpoints += thread.checkpoints
    if batch:
        yield batch
