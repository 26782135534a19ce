"""Components of a saver, for commands that need more than its interface."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import DictRow

from langgraph_checkpoint_cached.cli.connections import ConnectionOptions
from langgraph_checkpoint_cached.engine.ended_journals import EndedJournals
from langgraph_checkpoint_cached.engine.hit_auditor import HitAuditor
from langgraph_checkpoint_cached.engine.invalidation import StaleThreadInvalidator
from langgraph_checkpoint_cached.engine.journal_replayer import JournalReplayer
from langgraph_checkpoint_cached.engine.read_path import ReadPath
from langgraph_checkpoint_cached.saver import CachedPostgresSaver
from langgraph_checkpoint_cached.stats import Stats
from langgraph_checkpoint_cached.stores.postgres.store import PostgresStore
from langgraph_checkpoint_cached.stores.redis.entries import RedisEntries
from langgraph_checkpoint_cached.stores.redis.executor import ScriptExecutor
from langgraph_checkpoint_cached.stores.redis.invalidation import ThreadInvalidation
from langgraph_checkpoint_cached.stores.redis.scripts import Script


@dataclass(frozen=True)
class Components:
    """A saver and the components of its engine that commands use."""

    options: ConnectionOptions
    saver: CachedPostgresSaver
    stats: Stats
    executor: ScriptExecutor
    store: PostgresStore
    invalidator: StaleThreadInvalidator
    replayer: JournalReplayer
    read_path: ReadPath
    entries: RedisEntries
    auditor: HitAuditor
    invalidation: ThreadInvalidation
    ended_journals: EndedJournals

    @classmethod
    @asynccontextmanager
    async def open(cls, options: ConnectionOptions, *, refresh_on_read: bool = False) -> AsyncIterator[Components]:
        """Open a saver for the block, as `ConnectionOptions.open_saver` does."""
        async with options.open_saver(refresh_on_read=refresh_on_read) as saver:
            engine = saver._engine
            with suppress(psycopg.Error):
                await engine.store.identity.ask()  # else the first look at an entry would find none
            yield cls(
                options,
                saver,
                stats=engine.stats,
                executor=engine.executor,
                store=engine.store,
                invalidator=engine.invalidator,
                replayer=engine.replayer,
                read_path=engine.read_path,
                entries=engine.entries,
                auditor=engine.auditor,
                invalidation=engine.invalidation,
                ended_journals=engine.ended_journals,
            )

    async def query(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[DictRow]:
        """Return the rows of a query in Postgres. Raises psycopg's errors."""
        async with self.store.upstream()._cursor() as cur:
            await cur.execute(sql, parameters)
            return await cur.fetchall()

    async def run_script(self, script: Script, keys: Sequence[str]) -> Any:
        """Return the reply of a script in Redis. Raises `RedisUnavailable`."""
        return await self.executor.submit(script, keys, [])
