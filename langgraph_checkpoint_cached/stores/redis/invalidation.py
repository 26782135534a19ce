"""Invalidation of whole threads in Redis, and removal of what is invalid, whatever the state of the breaker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping

from langgraph_checkpoint_cached.stores.redis.executor import BATCH_CALLS_MAX, ScriptExecutor
from langgraph_checkpoint_cached.stores.redis.keys import entry_key_beside, names_key_beside, thread_key
from langgraph_checkpoint_cached.stores.redis.keyspace import Keyspace
from langgraph_checkpoint_cached.stores.redis.scan import escape_glob
from langgraph_checkpoint_cached.stores.redis.scripts import END_THREAD, NAMES, UNLINK


class ThreadInvalidation:
    """Invalidation of threads' entries. Every method raises `RedisUnavailable` when Redis could not do it."""

    def __init__(self, executor: ScriptExecutor, keyspace: Keyspace) -> None:
        self._executor, self._keyspace, self.health = executor, keyspace, executor.health

    async def invalidate_threads(self, threads: Mapping[str, Iterable[str]]) -> None:
        """Invalidate every entry of these threads, and remove these fences (tokens) of each."""
        prefix = self._keyspace.prefix
        await self._invalidate({thread_key(prefix, thread_id): tokens for thread_id, tokens in threads.items()})

    async def invalidate_all(self, invalidated: Callable[[int], None] = lambda count: None) -> None:
        """Invalidate every entry of every thread, by a scan.

        Args:
            invalidated: Called after each step with the number of threads whose entries are invalid now.
        """
        some: dict[str, Iterable[str]] = {}
        async for key in self.keys(":{*}:thread"):
            some[key] = ()
            if len(some) == BATCH_CALLS_MAX:
                await self._invalidate(some)
                invalidated(len(some))
                some = {}
        await self._invalidate(some)
        invalidated(len(some))

    def keys(self, pattern: str) -> AsyncIterator[str]:
        """Yield the keys that match a glob after the prefix, by a scan: some perhaps twice."""
        return self._executor.keys(escape_glob(self._keyspace.prefix) + pattern)

    async def _invalidate(self, fences: Mapping[str, Iterable[str]]) -> None:
        arguments = self._keyspace.thread_arguments
        await self._executor.run_all([(END_THREAD, [key], arguments(*tokens)) for key, tokens in fences.items()])
        await unlink_entries(self._executor, fences)


async def unlink_entries(executor: ScriptExecutor, thread_keys: Collection[str]) -> None:
    """Remove the entries of threads, so that nothing of what was deleted in Postgres stays in Redis.

    It does no harm at any time, as the server may evict entries too: they are loaded again. Raises
    `RedisUnavailable`.
    """
    found = await executor.run_all([(NAMES, [names_key_beside(key)], ()) for key in thread_keys])
    entries = [
        entry_key_beside(key, name)
        for key, names in zip(thread_keys, found, strict=True)
        for name in ("", *(name.decode() for name in names))
    ]
    await executor.run_all([(UNLINK, [entry], ()) for entry in entries])
