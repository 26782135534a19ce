"""The part of the saver that concerns whole threads: deletes, prunes, copies, and threads that are idle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any, TypedDict, TypeVar

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.postgres.base import PRUNE_STRATEGIES
from typing_extensions import Unpack

from langgraph_checkpoint_cached.arguments import check_count, to_seconds, unique_ids
from langgraph_checkpoint_cached.engine.thread_operations import THREADS_OF_A_CHANGE_MAX, Threads
from langgraph_checkpoint_cached.errors import ArgumentError
from langgraph_checkpoint_cached.event_loop import wait_on, wrong_loop
from langgraph_checkpoint_cached.retention import IdleThreads
from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks

T = TypeVar("T")

PAUSE_SECONDS_MAX = 60.0
IDS_MAX = 10_000
"""Run ids, or thread ids to look for them in, that one call takes."""


class IdleOptions(TypedDict, total=False):
    """Keywords of `adelete_idle_threads`, which documents them."""

    batch_size: int
    limit: int | None
    pause: float | timedelta
    dry_run: bool
    progress: Callable[[IdleThreads], None] | None


class ThreadOperationsMixin(BaseCheckpointSaver[str]):
    """What a saver does with whole threads, and on which event loop it does anything."""

    _loop: asyncio.AbstractEventLoop
    _tasks: BackgroundTasks
    _threads: Threads

    async def adelete_thread(self, thread_id: str) -> None:
        """Deletes all checkpoints and writes of a thread."""
        await self._run("delete_thread", self._threads.delete(str(thread_id)))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Prunes threads.

        `"delete"` deletes them. `"keep_latest"` keeps what the upstream saver keeps: the latest checkpoint of each
        namespace, without the namespaces of calls of subgraphs that are over. Where a `DeltaChannel` is used it
        also keeps the ancestors of the latest checkpoint back to where each of its `DeltaChannel`s has a snapshot,
        with their writes. Those ancestors are no states to return to: what *they* are rebuilt from may be gone.

        Raises:
            ArgumentTypeError: `thread_ids` is a single string.
            ArgumentError: `strategy` is unknown.
            NotImplementedError: `"keep_latest"` for a thread with a `DeltaChannel` of LangGraph.js, which does not
                tell which channels those are. Nothing was deleted.
        """
        names = unique_ids(thread_ids, "thread_ids")
        if strategy not in PRUNE_STRATEGIES:
            raise ArgumentError(f"strategy must be one of {PRUNE_STRATEGIES}, not {strategy!r}")
        prune = self._threads.prune if strategy == "delete" else self._threads.keep_latest
        await self._run("prune", prune(names))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str, *, overwrite: bool = False) -> None:
        """Copies a thread: all namespaces, all checkpoints with their parents, values and pending writes.

        The server copies, in one transaction and out of one snapshot of the source. Ids and metadata stay
        as they are. A copy that is there already is left as it is, so that the call may be repeated. Of a
        source without anything there is no copy. Nobody should write to the target meanwhile.

        Args:
            source_thread_id: The thread to copy. It may be written to meanwhile.
            target_thread_id: Its copy.
            overwrite: Whether a target that has something else is deleted first, in the same transaction.

        Raises:
            ThreadNotEmptyError: the target has something else, and `overwrite` is not set or the source is empty.
            ArgumentError: source and target are the same.
        """
        source, target = str(source_thread_id), str(target_thread_id)
        if source == target:
            raise ArgumentError(f"source_thread_id and target_thread_id are both {source!r}")
        await self._run("copy_thread", self._threads.copy(source, target, overwrite=overwrite))

    async def adelete_for_runs(self, run_ids: Sequence[str], *, thread_ids: Sequence[str] | None = None) -> None:
        """Deletes the checkpoints whose metadata names one of these runs, their writes, and values only they need.

        A checkpoint of another run whose parent goes has no parent afterwards. A run that goes on meanwhile from a
        checkpoint that is deleted stores states that lack values, as it does when its thread is deleted.

        Up to 100 threads are one transaction, the next as many are another.

        Args:
            run_ids: What `metadata["run_id"]` is to be. At most 10,000.
            thread_ids: Where to look. By default everywhere, which reads the whole table of checkpoints unless
                there is an index on `(metadata ->> 'run_id')`. At most 10,000.

        Raises:
            HistoryNeededError: a `DeltaChannel` of a checkpoint that stays is rebuilt from what would go.
            ArgumentTypeError: `run_ids` or `thread_ids` is a single string.
            ArgumentError: they are too many.
        """
        runs = unique_ids(run_ids, "run_ids", IDS_MAX)
        where = None if thread_ids is None else unique_ids(thread_ids, "thread_ids", IDS_MAX)
        if not runs or where == []:
            return
        await self._run("delete_for_runs", self._threads.delete_runs(runs, where))

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
        """Deletes the threads in which nothing was stored for so long. Returns what that came to.

        A thread is as young as its youngest checkpoint in any namespace. Ids tell when that was made, by the clock
        of the process that made it; they are compared with the clock of Postgres. Threads whose ids do not tell
        are kept, and so are threads without any checkpoint. A copy is as old as what was copied.

        It may be stopped at any time, by cancelling it or by an error out of `progress`: the batch under way is
        done to its end. When it is called again it finds what is left. A thread that is written to is kept, up to
        the moment it is deleted; a run that has read it by then but has stored nothing yet goes on as after
        `adelete_thread`.

        Args:
            idle_for: Seconds, or a `timedelta`. Longer than any run takes between two checkpoints.
            batch_size: The most threads that one transaction deletes, from 1 to 100.
            limit: The most threads to delete.
            pause: Between two batches, in seconds or as a `timedelta`, at most 60: others get on.
            dry_run: Whether it only counts.
            progress: Called after each batch, on the event loop, with what has been done so far.

        Raises:
            ArgumentError, ArgumentTypeError: an argument cannot work; the message names it.
        """
        seconds = to_seconds(idle_for, "idle_for")
        pause_seconds = to_seconds(pause, "pause") if pause else 0.0
        if pause_seconds > PAUSE_SECONDS_MAX:
            raise ArgumentError(f"pause must be at most {PAUSE_SECONDS_MAX} seconds, not {pause_seconds}")
        check_count(batch_size, "batch_size", most=THREADS_OF_A_CHANGE_MAX)
        if limit is not None:
            check_count(limit, "limit")
        if asyncio.get_running_loop() is not self._loop:
            raise wrong_loop("adelete_idle_threads")
        return await self._threads.delete_idle(
            seconds,
            batch_size=batch_size,
            limit=limit,
            pause_seconds=pause_seconds,
            dry_run=dry_run,
            progress=progress or (lambda _: None),
        )

    # -- the same from other threads -------------------------------------------------------------------------

    def delete_thread(self, thread_id: str) -> None:
        """`adelete_thread`, from any thread but the event loop's."""
        self._wait("delete_thread", lambda: self.adelete_thread(thread_id))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """`aprune`, from any thread but the event loop's."""
        self._wait("prune", lambda: self.aprune(thread_ids, strategy=strategy))

    def copy_thread(self, source_thread_id: str, target_thread_id: str, *, overwrite: bool = False) -> None:
        """`acopy_thread`, from any thread but the event loop's."""
        self._wait(
            "copy_thread", lambda: self.acopy_thread(source_thread_id, target_thread_id, overwrite=overwrite)
        )

    def delete_for_runs(self, run_ids: Sequence[str], *, thread_ids: Sequence[str] | None = None) -> None:
        """`adelete_for_runs`, from any thread but the event loop's."""
        self._wait("delete_for_runs", lambda: self.adelete_for_runs(run_ids, thread_ids=thread_ids))

    def delete_idle_threads(self, idle_for: float | timedelta, **options: Unpack[IdleOptions]) -> IdleThreads:
        """`adelete_idle_threads`, from any thread but the event loop's. `progress` is called on that one."""
        return self._wait("delete_idle_threads", lambda: self.adelete_idle_threads(idle_for, **options))

    # -- inside ----------------------------------------------------------------------------------------------

    async def _run(self, method: str, work: Coroutine[Any, Any, T]) -> T:
        """Run the work on this saver's loop, to its end even if the caller is cancelled."""
        if asyncio.get_running_loop() is not self._loop:
            work.close()
            raise wrong_loop(f"a{method}")
        return await self._tasks.finish(work)

    def _wait(self, method: str, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine on this saver's loop and block this thread until it is done."""
        return wait_on(self._loop, method, start)
