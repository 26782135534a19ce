"""Assembly of one saver's components: what each of them is given, in one place."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

from langgraph_checkpoint_cached.arguments import Settings
from langgraph_checkpoint_cached.engine.delta_history import DeltaHistoryReader
from langgraph_checkpoint_cached.engine.ended_journals import EndedJournals
from langgraph_checkpoint_cached.engine.flushed_store import FlushedStore
from langgraph_checkpoint_cached.engine.heartbeat import Heartbeat
from langgraph_checkpoint_cached.engine.held_leases import HeldLeases
from langgraph_checkpoint_cached.engine.hit_auditor import HitAuditor
from langgraph_checkpoint_cached.engine.invalidation import StaleThreadInvalidator
from langgraph_checkpoint_cached.engine.journal_replayer import JournalReplayer
from langgraph_checkpoint_cached.engine.read_path import ReadPath
from langgraph_checkpoint_cached.engine.recovery import Recovery
from langgraph_checkpoint_cached.engine.reopener import Reopener
from langgraph_checkpoint_cached.engine.serving_barrier import ServingBarrier
from langgraph_checkpoint_cached.engine.serving_right import ServingRight
from langgraph_checkpoint_cached.engine.stats_publisher import StatsPublisher
from langgraph_checkpoint_cached.engine.thread_changes import ThreadChanges
from langgraph_checkpoint_cached.engine.thread_operations import ThreadOperations
from langgraph_checkpoint_cached.engine.write_behind import WriteBehindQueue
from langgraph_checkpoint_cached.engine.write_through import WriteThrough
from langgraph_checkpoint_cached.records import Put, PutWrites
from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.stores.postgres import schema
from langgraph_checkpoint_cached.stores.postgres.store import PostgresStore
from langgraph_checkpoint_cached.stores.redis.client import AnyRedis
from langgraph_checkpoint_cached.stores.redis.entries import RedisEntries
from langgraph_checkpoint_cached.stores.redis.executor import ScriptExecutor
from langgraph_checkpoint_cached.stores.redis.fences import Fences
from langgraph_checkpoint_cached.stores.redis.health import RedisHealth
from langgraph_checkpoint_cached.stores.redis.integrity import integrity_for
from langgraph_checkpoint_cached.stores.redis.invalidation import ThreadInvalidation
from langgraph_checkpoint_cached.stores.redis.journal import Journal
from langgraph_checkpoint_cached.stores.redis.keyspace import Keyspace
from langgraph_checkpoint_cached.stores.redis.redis_internals import descriptors
from langgraph_checkpoint_cached.stores.redis.script_call import confirmation_for
from langgraph_checkpoint_cached.stores.redis.server_check import check_redis
from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks
from langgraph_checkpoint_cached.utils.forks import cut_off, notify_in_children

logger = logging.getLogger("langgraph_checkpoint_cached")

CLOSE_SECONDS_MAX = 30.0
CLOSE_AGAIN_SECONDS_MAX = 1.0
"""Time for what was ended then. What waits for a connection ends with the pool, or by its timeout."""


class Engine:
    """Reads and writes through both stores, for one saver and all its copies.

    Each component is given those that it calls, in this order from the bottom up; none knows one above it.

    Args:
        redis: Client of the caller; never closed here.
        upstream: Upstream saver, over a pool or a single connection.
        settings: Validated settings of the saver.
    """

    def __init__(self, redis: AnyRedis, upstream: AsyncPostgresSaver, settings: Settings) -> None:
        self.upstream, self.loop = upstream, upstream.loop
        runtime = self.runtime = Runtime(self.loop)
        self.stats, self.tasks = runtime.stats, BackgroundTasks()
        self._closing: asyncio.Task[None] | None = None
        self.writes_behind = settings.mode == "write_behind"
        self._open_redis(runtime, redis, settings)
        self.store = PostgresStore(upstream, settings.prefix, runtime)
        self._open_background(runtime)
        self._open_calls(runtime, settings)
        self.stats_publisher = StatsPublisher(runtime, self.executor, settings.prefix)
        self.stats_publisher.start()
        self._redis = redis
        notify_in_children(self)

    def after_fork(self) -> None:
        """Keep a child from using its parent's connections to Redis."""
        cut_off(descriptors(self._redis))

    def _open_redis(self, runtime: Runtime, redis: AnyRedis, settings: Settings) -> None:
        self.health = RedisHealth(runtime)
        self.executor = ScriptExecutor(
            redis,
            runtime,
            self.health,
            prefix=settings.prefix,
            timeout_seconds=settings.redis_timeout_seconds,
            confirmation=confirmation_for(settings.redis_durability, settings.redis_timeout_seconds),
        )
        keyspace = Keyspace(settings.prefix, settings.ttl, runtime.database)
        integrity = integrity_for(settings.signing_keys)
        self.fences = Fences(runtime, self.executor, keyspace, retain=not self.writes_behind)
        self.entries = RedisEntries(runtime, self.executor, keyspace, self.fences, integrity)
        self.journal = Journal(self.executor, keyspace, integrity)
        self.invalidation = ThreadInvalidation(self.executor, keyspace)

    def _open_background(self, runtime: Runtime) -> None:
        ended_journals = EndedJournals(runtime, self.journal, self.store.leases)
        self.ended_journals = ended_journals
        processes = self.store.processes
        self.right = ServingRight(runtime, self.executor, self.invalidation, processes)
        self.barrier = ServingBarrier(runtime, self.right, processes)
        self.invalidator = StaleThreadInvalidator(
            runtime, self.invalidation, self.store.stale_threads, self.barrier, ended_journals
        )
        self.held = HeldLeases(runtime, self.journal, self.store, self.invalidator, ended_journals)
        self.reopener = Reopener(self.executor, self.fences, self.invalidator, self.right)
        self.replayer = JournalReplayer(runtime, self.journal, self.store, self.held, self.reopener)
        heartbeat = Heartbeat(runtime, self.right, self.invalidator, processes, self.store.identity)
        self.recovery = Recovery(runtime, self.health, heartbeat, self.reopener, self.replayer)

    def _open_calls(self, runtime: Runtime, settings: Settings) -> None:
        self.flushed = FlushedStore(runtime, self.store, self.replayer)
        self.auditor = HitAuditor(
            runtime, self.entries, self.flushed, self.invalidator, fraction=settings.check_hits
        )
        auditor = self.auditor if settings.check_hits else None
        self.read_path = ReadPath(runtime, self.entries, self.flushed, self.recovery, auditor)
        self.histories = DeltaHistoryReader(runtime, self.entries, self.flushed, self.recovery)
        self.write_through = WriteThrough(runtime, self.entries, self.store, self.replayer, self.recovery)
        self.write_behind: WriteBehindQueue | None = None
        self.write: Callable[[Put | PutWrites], asyncio.Future[None]] = self.write_through.write
        if self.writes_behind:
            self.write_behind = WriteBehindQueue(
                runtime, self.entries, self.journal, self.held, self.write_through
            )
            self.write = self.write_behind.write
        changes = ThreadChanges(self.entries, self.journal, self.store, self.replayer, self.recovery)
        self.threads = ThreadOperations(changes, self.store, self.replayer, self.tasks)

    async def setup(self) -> None:
        """Check the servers and create or migrate the tables.

        Raises:
            UnsupportedServerError: a server is too old, or Redis may evict what write-behind leaves to it.
        """
        await check_redis(self.executor, writes_behind=self.writes_behind)
        abandoned = asyncio.Event()
        try:
            if await self.tasks.finish(schema.migrate(self.upstream, abandoned)):
                self.store.leases.was_missing()
        except asyncio.CancelledError:
            abandoned.set()
            raise

    async def close(self) -> None:
        """Wait for what is under way, for `CLOSE_SECONDS_MAX`; with write-behind, flush to Postgres first.

        What is under way then fails, and so does what waits for Postgres.
        """
        closing = self._closing = self._closing or asyncio.ensure_future(self._close())
        seconds = CLOSE_AGAIN_SECONDS_MAX if self.store.is_closed else CLOSE_SECONDS_MAX
        _, late = await asyncio.wait({closing}, timeout=seconds)
        if late and not self.store.is_closed:
            logger.error("closed though Postgres had not answered all calls in %g seconds", CLOSE_SECONDS_MAX)
            self.store.close()
            await asyncio.wait({closing}, timeout=CLOSE_AGAIN_SECONDS_MAX)
        if closing.done():
            self._closing = None
            closing.result()

    async def _close(self) -> None:
        await self.recovery.close()
        if self.write_behind is not None:
            await self.write_behind.close()
        await self.tasks.drain()
        await self.executor.drain()  # reads that have a reply may go on to Postgres, and fill the entry
        await self.read_path.drain()
        await self.histories.drain()
        await self.write_through.drain()
        await self.reopener.drain()
        await self.recovery.leave()
        await self.stats_publisher.close()
        await self.executor.close()
