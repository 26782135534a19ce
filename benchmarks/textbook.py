"""Savers to compare with: the cache of the textbooks, and one that does nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
)
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from redis.asyncio import Redis

TTL_SECONDS = 3600


class TextbookSaver(BaseCheckpointSaver[str]):
    """Write Postgres, delete the key; a read that misses fills the key with the serialized tuple.

    Not coherent: a slow reader may fill the key with what a writer has replaced meanwhile.
    """

    def __init__(self, redis: Redis, upstream: AsyncPostgresSaver, prefix: str) -> None:
        super().__init__(serde=upstream.serde)
        self._redis, self._upstream, self._prefix = redis, upstream, prefix

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Read the latest checkpoint from Redis, all else from Postgres."""
        if config["configurable"].get("checkpoint_id"):
            return await self._upstream.aget_tuple(config)
        key = self._key(config)
        cached = await self._redis.get(key)
        if isinstance(cached, bytes):
            return CheckpointTuple(*self.serde.loads_typed(("msgpack", cached)))
        found = await self._upstream.aget_tuple(config)
        if found is not None:
            await self._redis.set(key, self.serde.dumps_typed(list(found))[1], ex=TTL_SECONDS)
        return found

    async def alist(self, config: RunnableConfig | None, **options: Any) -> AsyncIterator[CheckpointTuple]:
        """List from Postgres."""
        async for found in self._upstream.alist(config, **options):
            yield found

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Write to Postgres, then delete the key."""
        made = await self._upstream.aput(config, checkpoint, metadata, new_versions)
        await self._redis.delete(self._key(config))
        return made

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Write to Postgres, then delete the key."""
        await self._upstream.aput_writes(config, writes, task_id, task_path)
        await self._redis.delete(self._key(config))

    def get_next_version(self, current: str | None, channel: None) -> str:
        """Return the upstream saver's version."""
        return self._upstream.get_next_version(current, channel)

    def _key(self, config: RunnableConfig) -> str:
        configurable = config["configurable"]
        return f"{self._prefix}:{configurable['thread_id']}:{configurable.get('checkpoint_ns', '')}"


class NothingSaver(BaseCheckpointSaver[int]):
    """Saver that stores nothing, which shows the cost of a graph alone."""

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Do nothing."""
        return None

    async def alist(self, config: RunnableConfig | None, **options: Any) -> AsyncIterator[CheckpointTuple]:
        """Do nothing."""
        return
        yield

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Return the config of the checkpoint, and store nothing."""
        return {"configurable": {**config["configurable"], "checkpoint_id": checkpoint["id"]}}

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Do nothing."""
