"""Assembly of one saver's components: what each of them is given, in one place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

from langgraph_checkpoint_cached.arguments import Settings
from langgraph_checkpoint_cached.engine.delta_history import DeltaHistoryReader
from langgraph_checkpoint_cached.engine.invalidation import StaleThreadInvalidator
from langgraph_checkpoint_cached.engine.journal_replayer import JournalReplayer
from langgraph_checkpoint_cached.engine.read_path import ReadPath
from langgraph_checkpoint_cached.engine.stats_publisher import StatsPublisher
from langgraph_checkpoint_cached.engine.thread_operations import Threads
from langgraph_checkpoint_cached.engine.write_behind import WriteBehindQueue
from langgraph_checkpoint_cached.engine.write_through import WriteThrough
from langgraph_checkpoint_cached.records import Put, PutWrites
from langgraph_checkpoint_cached.stats import Stats
from langgraph_checkpoint_cached.stores.postgres import schema
from langgraph_checkpoint_cached.stores.postgres.store import PostgresStore
from langgraph_checkpoint_cached.stores.redis.client import AnyRedis
from langgraph_checkpoint_cached.stores.redis.entries import RedisEntries
from langgraph_checkpoint_cached.stores.redis.executor import ScriptExecutor
from langgraph_checkpoint_cached.stores.redis.fences import Fences
from langgraph_checkpoint_cached.stores.redis.integrity import integrity_for
from langgraph_checkpoint_cached.stores.redis.journal import Journal
from langgraph_checkpoint_cached.stores.redis.script_call import confirmation_for
from langgraph_checkpoint_cached.stores.redis.server_check import check_redis
from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks


class Engine:
    """Reads and writes through both stores, for one saver and all its copies.

    Args:
        redis: Client of the caller; never closed here.
        upstream: The upstream saver, over a pool or a single connection.
        settings: Validated settings of the saver.
    """

    def __init__(self, redis: AnyRedis, upstream: AsyncPostgresSaver, settings: Settings) -> None:
        self.upstream, self.loop, self.stats = upstream, upstream.loop, Stats()
        prefix, ttl, integrity = settings.prefix, settings.ttl, integrity_for(settings.signing_keys)
        confirmation = confirmation_for(settings.redis_durability, settings.redis_timeout_seconds)
        self.executor = ScriptExecutor(
            redis, prefix, settings.redis_timeout_seconds, self.stats, self.loop, confirmation
        )
        self.entries = RedisEntries(self.executor, prefix, ttl, self.stats, integrity)
        self.journal = Journal(self.executor, prefix, ttl, integrity)
        self.store = PostgresStore(upstream, prefix, self.stats)
        self.replayer = JournalReplayer(self.journal, self.store, self.stats)
        self.invalidator = StaleThreadInvalidator(
            self.entries, self.executor, self.store.stale_threads, self.replayer, self.stats, self.loop
        )
        self.read_path = ReadPath(
            self.entries, self.store, self.invalidator, self.replayer, self.stats, settings.check_hits
        )
        fences = Fences(self.entries, self.loop, retain=settings.mode == "write_through")
        fences.left = self.invalidator.note
        self.executor.on_opening.append(fences.forget_all)
        self.write_through = WriteThrough(
            self.entries, fences, self.store, self.journal, self.replayer, self.invalidator, self.stats, self.loop
        )
        self.histories = DeltaHistoryReader(self.entries, self.store, self.invalidator, self.replayer, self.stats)
        self.write_behind: WriteBehindQueue | None = None
        self.write: Callable[[Put | PutWrites], asyncio.Future[None]] = self.write_through.write
        if settings.mode == "write_behind":
            self.write_behind = WriteBehindQueue(
                self.entries,
                self.journal,
                self.store,
                self.write_through,
                self.replayer,
                self.invalidator,
                self.stats,
                self.loop,
            )
            self.executor.on_opening.append(self.write_behind.revoke_all)
            self.write = self.write_behind.write
        self.tasks = BackgroundTasks()
        self.threads = Threads(self.write_through, self.store, self.tasks)
        self.stats_publisher = StatsPublisher(self.executor, prefix, self.stats, self.loop)
        self.stats_publisher.start()

    async def setup(self) -> None:
        """Check the servers and create or migrate the tables.

        Raises:
            UnsupportedServerError: a server is too old, or Redis may evict what write-behind leaves to it.
        """
        await check_redis(self.executor, writes_behind=self.write_behind is not None)
        abandoned = asyncio.Event()
        try:
            if await self.tasks.finish(schema.migrate(self.upstream, abandoned)):
                self.store.leases.was_missing()
        except asyncio.CancelledError:
            abandoned.set()
            raise

    async def close(self) -> None:
        """Wait for what is under way; with write-behind, flush to Postgres first."""
        await self.invalidator.close()
        if self.write_behind is not None:
            await self.write_behind.close()
        await self.tasks.drain()
        await self.read_path.drain()
        await self.histories.drain()
        await self.write_through.drain()
        await self.stats_publisher.close()
        await self.executor.close()
