"""What a saver is made of, for commands that look below its face."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from psycopg.rows import DictRow

from langgraph_checkpoint_cached.cli.connections import Servers
from langgraph_checkpoint_cached.engine.hit_auditor import HitAuditor
from langgraph_checkpoint_cached.engine.invalidation import StaleThreadInvalidator
from langgraph_checkpoint_cached.engine.journal_replayer import JournalReplayer
from langgraph_checkpoint_cached.engine.read_path import ReadPath
from langgraph_checkpoint_cached.saver import CachedPostgresSaver
from langgraph_checkpoint_cached.stores.postgres.store import PostgresStore
from langgraph_checkpoint_cached.stores.redis.client import AnyRedis
from langgraph_checkpoint_cached.stores.redis.entries import RedisEntries, RedisUnavailable
from langgraph_checkpoint_cached.stores.redis.executor import ScriptExecutor
from langgraph_checkpoint_cached.stores.redis.scripts import Script


@dataclass(frozen=True)
class Components:
    """A saver and its parts."""

    servers: Servers
    saver: CachedPostgresSaver
    client: AnyRedis
    executor: ScriptExecutor
    postgres: PostgresStore
    recovery: StaleThreadInvalidator
    replayer: JournalReplayer
    reader: ReadPath
    entries: RedisEntries
    checker: HitAuditor

    @classmethod
    @asynccontextmanager
    async def opened(cls, servers: Servers, *, refresh_on_read: bool = False) -> AsyncIterator[Components]:
        """Those of a saver that lives for the block. As `Servers.saver`."""
        async with servers.saver(refresh_on_read=refresh_on_read) as saver:
            reader = saver._reader
            yield cls(
                servers,
                saver,
                saver._redis,
                saver._executor,
                saver._postgres,
                saver._invalidator,
                saver._replayer,
                reader,
                reader._entries,
                reader._auditor,
            )

    async def query(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[DictRow]:
        """The rows of a query in Postgres. Raises psycopg's errors."""
        async with self.postgres.upstream()._cursor() as cur:
            await cur.execute(sql, parameters)
            return await cur.fetchall()

    async def on_redis(self, script: Script, keys: Sequence[str]) -> Any:
        """What a script answers. Raises `RedisUnavailable`."""
        return await self.executor.submit(script, keys, [])


__all__ = ["Components", "RedisUnavailable"]
