"""Methods of the saver for callers in other threads than its event loop's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from typing_extensions import Unpack

from langgraph_checkpoint_cached.retention import IdleThreads
from langgraph_checkpoint_cached.thread_operations import IdleOptions, ThreadOperationsMixin


class SyncMethodsMixin(ThreadOperationsMixin):
    """Methods that run the asynchronous ones on the saver's event loop and block until they are done.

    They take the same arguments and raise the same errors, and `WrongThreadError` in the event loop's own thread.
    """

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Run `aget_tuple` from any thread but the event loop's."""
        return self._wait("get_tuple", lambda: self.aget_tuple(config))

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Run `aput` from any thread but the event loop's."""
        return self._wait("put", lambda: self.aput(config, checkpoint, metadata, new_versions))

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Run `aput_writes` from any thread but the event loop's."""
        self._wait("put_writes", lambda: self.aput_writes(config, writes, task_id, task_path))

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Run `aget_delta_channel_history` from any thread but the event loop's."""
        return self._wait(
            "get_delta_channel_history",
            lambda: self.aget_delta_channel_history(config=config, channels=channels),
        )

    def delete_thread(self, thread_id: str) -> None:
        """Run `adelete_thread` from any thread but the event loop's."""
        self._wait("delete_thread", lambda: self.adelete_thread(thread_id))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Run `aprune` from any thread but the event loop's."""
        self._wait("prune", lambda: self.aprune(thread_ids, strategy=strategy))

    def copy_thread(self, source_thread_id: str, target_thread_id: str, *, overwrite: bool = False) -> None:
        """Run `acopy_thread` from any thread but the event loop's."""
        self._wait(
            "copy_thread", lambda: self.acopy_thread(source_thread_id, target_thread_id, overwrite=overwrite)
        )

    def delete_for_runs(self, run_ids: Sequence[str], *, thread_ids: Sequence[str] | None = None) -> None:
        """Run `adelete_for_runs` from any thread but the event loop's."""
        self._wait("delete_for_runs", lambda: self.adelete_for_runs(run_ids, thread_ids=thread_ids))

    def delete_idle_threads(self, idle_for: float | timedelta, **options: Unpack[IdleOptions]) -> IdleThreads:
        """Run `adelete_idle_threads` from any thread but the event loop's, which calls `progress`."""
        return self._wait("delete_idle_threads", lambda: self.adelete_idle_threads(idle_for, **options))

    def flush(self, thread_id: str | None = None) -> None:
        """Run `aflush` from any thread but the event loop's."""
        self._wait("flush", lambda: self.aflush(thread_id))
