"""Operations of the saver on whole threads: delete, prune, copy, flush, and deletion of idle threads."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any, TypedDict, TypeVar

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.postgres.base import PRUNE_STRATEGIES

from langgraph_checkpoint_cached.arguments import check_count, to_seconds, unique_ids
from langgraph_checkpoint_cached.engine.engine import Engine
from langgraph_checkpoint_cached.engine.thread_operations import THREADS_OF_A_CHANGE_MAX
from langgraph_checkpoint_cached.errors import ArgumentError
from langgraph_checkpoint_cached.event_loop import LoopAccess, running_loop
from langgraph_checkpoint_cached.retention import IdleThreads

T = TypeVar("T")

PAUSE_SECONDS_MAX = 60.0
IDS_MAX = 10_000
"""Most run ids, and most thread ids, of one call."""


class IdleOptions(TypedDict, total=False):
    """Keywords of `adelete_idle_threads`, which documents them."""

    batch_size: int
    limit: int | None
    pause: float | timedelta
    dry_run: bool
    progress: Callable[[IdleThreads], None] | None


class ThreadOperationsMixin(BaseCheckpointSaver[str]):
    """Methods of a saver that concern whole threads, and the ways onto its event loop."""

    _access: LoopAccess
    _engine: Engine

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete all checkpoints and writes of a thread."""
        await self._run("delete_thread", self._engine.threads.delete(str(thread_id)))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Prune threads.

        `"delete"` deletes them. `"keep_latest"` keeps what the upstream saver keeps: the latest checkpoint of each
        namespace, without the namespaces of subgraph calls that have ended. With a `DeltaChannel` it also keeps
        the ancestors of the latest checkpoint, with their writes, back to a snapshot of each of its
        `DeltaChannel`s. Do not resume from those ancestors: checkpoints that they need may be deleted.

        Raises:
            ArgumentTypeError: `thread_ids` is a single string.
            ArgumentError: `strategy` is unknown.
            NotImplementedError: `"keep_latest"` for a thread with a `DeltaChannel` of LangGraph.js, which does not
                record the channels of that kind. Nothing was deleted.
        """
        names = unique_ids(thread_ids, "thread_ids")
        if strategy not in PRUNE_STRATEGIES:
            raise ArgumentError(f"strategy must be one of {PRUNE_STRATEGIES}, not {strategy!r}")
        prune = self._engine.threads.prune if strategy == "delete" else self._engine.threads.keep_latest
        await self._run("prune", prune(names))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str, *, overwrite: bool = False) -> None:
        """Copy a thread: all namespaces, all checkpoints with their parents, values and pending writes.

        Postgres copies in one transaction, from one snapshot of the source. Ids and metadata stay the same. The
        call may be repeated: a target that is the copy already is not changed. An empty source has no copy. Do not
        write to the target meanwhile.

        Args:
            source_thread_id: The thread to copy. It may be written to meanwhile.
            target_thread_id: Its copy.
            overwrite: Whether a target with other content is deleted first, in the same transaction.

        Raises:
            ThreadNotEmptyError: the target has other content, and `overwrite` is not set or the source is empty.
            ArgumentError: source and target are the same.
        """
        source, target = str(source_thread_id), str(target_thread_id)
        if source == target:
            raise ArgumentError(f"source_thread_id and target_thread_id are both {source!r}")
        await self._run("copy_thread", self._engine.threads.copy(source, target, overwrite=overwrite))

    async def adelete_for_runs(self, run_ids: Sequence[str], *, thread_ids: Sequence[str] | None = None) -> None:
        """Delete the checkpoints of runs, with their writes and the values that no other checkpoint needs.

        A checkpoint of another run whose parent is deleted has no parent afterwards. A run that continues
        meanwhile from a deleted checkpoint stores states that lack values, as it does when its thread is deleted.

        Each transaction covers up to 100 threads.

        Args:
            run_ids: Values of `metadata["run_id"]`. At most 10,000.
            thread_ids: Threads to search, at most 10,000. By default all, which reads the whole table of
                checkpoints unless there is an index on `(metadata ->> 'run_id')`.

        Raises:
            HistoryNeededError: a `DeltaChannel` of a remaining checkpoint is rebuilt from one of these.
            ArgumentTypeError: `run_ids` or `thread_ids` is a single string.
            ArgumentError: there are too many of them.
        """
        runs = unique_ids(run_ids, "run_ids", IDS_MAX)
        where = None if thread_ids is None else unique_ids(thread_ids, "thread_ids", IDS_MAX)
        if not runs or where == []:
            return
        await self._run("delete_for_runs", self._engine.threads.delete_runs(runs, where))

    async def adelete_idle_threads(
        self,
        idle_for: float | timedelta,
        *,
        batch_size: int = THREADS_OF_A_CHANGE_MAX,
        limit: int | None = None,
        pause: float | timedelta = 0.0,
        dry_run: bool = False,
        progress: Callable[[IdleThreads], None] | None = None,
    ) -> IdleThreads:
        """Delete the threads in which nothing was stored for `idle_for`.

        A thread is as old as its youngest checkpoint in any namespace. The checkpoint's id tells when it was made,
        by the clock of the process that made it, which is compared with the clock of Postgres. Threads are kept if
        an id of theirs tells no time, or if they have no checkpoint. A copy is as old as its source.

        The call may be stopped at any time, by cancelling it or by an error raised in `progress`: the current
        batch is finished, and the next call finds the remainder. A thread that is written to before it is deleted
        is kept. A run that has read its thread before the deletion, and has stored nothing yet, continues as after
        `adelete_thread`.

        Args:
            idle_for: Seconds, or a `timedelta`. Longer than any run takes between two checkpoints.
            batch_size: Most threads that one transaction deletes, from 1 to 100.
            limit: Most threads to delete. By default no limit.
            pause: Pause between two batches for the database's other work, as `idle_for`, at most 60 seconds.
            dry_run: Whether to count only.
            progress: Called after each batch, on the event loop, with the counts so far.

        Returns:
            Counts of threads and rows, as `IdleThreads` explains them.

        Raises:
            ArgumentError, ArgumentTypeError: an argument cannot work; the message names it.
        """
        seconds = to_seconds(idle_for, "idle_for")
        pause_seconds = to_seconds(pause, "pause", most=PAUSE_SECONDS_MAX) if pause else 0.0
        check_count(batch_size, "batch_size", most=THREADS_OF_A_CHANGE_MAX)
        if limit is not None:
            check_count(limit, "limit")
        if running_loop() is not self._access.loop:
            raise self._access.refusal("adelete_idle_threads")
        return await self._engine.threads.delete_idle(
            seconds,
            batch_size=batch_size,
            limit=limit,
            pause_seconds=pause_seconds,
            dry_run=dry_run,
            progress=progress or (lambda _: None),
        )

    async def aflush(self, thread_id: str | None = None) -> None:
        """Wait until Postgres holds every write that any process had acknowledged before the call.

        With `"write_through"`, where no other process uses `"write_behind"`, this returns at once.

        Args:
            thread_id: The thread to flush. By default all threads.

        Raises:
            BehindError: some of the writes are in Redis alone, which cannot be read now.
            psycopg.Error: Postgres cannot store them now.
        """
        thread_ids = None if thread_id is None else [str(thread_id)]
        await self._run("flush", self._engine.replayer.flush_threads(thread_ids))

    # -- inside ----------------------------------------------------------------------------------------------

    async def _run(self, method: str, work: Coroutine[Any, Any, T]) -> T:
        """Run the work on this saver's loop, to its end even if the caller is cancelled."""
        if running_loop() is not self._access.loop:
            work.close()
            raise self._access.refusal(f"a{method}")
        return await self._engine.tasks.finish(work)

    def _wait(self, method: str, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine on this saver's loop and block this thread until it is done."""
        return self._access.wait(method, start)
