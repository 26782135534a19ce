"""The saver that LangGraph calls: takes configs, returns tuples, and leaves the rest to the engine."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from redis.asyncio import Redis, RedisCluster
from typing_extensions import Self, Unpack

from langgraph_checkpoint_cached.arguments import (
    ConnectionSettings,
    ConnStringOptions,
    SaverOptions,
    Settings,
    check_redis_client,
    check_upstream,
)
from langgraph_checkpoint_cached.channel_versions import UnstoredVersions
from langgraph_checkpoint_cached.config import NamesNothing, check_checkpoint, check_search, parse_config
from langgraph_checkpoint_cached.engine.engine import Engine
from langgraph_checkpoint_cached.errors import ArgumentError
from langgraph_checkpoint_cached.event_loop import LoopAccess, running_loop
from langgraph_checkpoint_cached.opening import Opening
from langgraph_checkpoint_cached.records import Record
from langgraph_checkpoint_cached.serde import codec
from langgraph_checkpoint_cached.stats import ReadOutcome
from langgraph_checkpoint_cached.sync_methods import SyncMethodsMixin


class CachedPostgresSaver(SyncMethodsMixin):
    """LangGraph checkpoints in Postgres, the latest of each thread served from Redis.

    Returns what `AsyncPostgresSaver` returns and writes the same rows. With `mode="write_through"` a write returns
    once Postgres has committed it and no process can be served an older state. While Redis is unavailable,
    Postgres alone serves all calls.

    Call the async methods on the event loop that `postgres` was made on, and the sync methods on any other thread.
    Copies made by `with_allowlist` share everything but the serializer.

    Args:
        redis: Client from `redis.asyncio`: `Redis`, `RedisCluster`, or what a `Sentinel` returns for its primary.
            Never closed here. Redis 6.2 or later, or Valkey; no modules. Of a pool of 16 connections or more one
            stays in use until `aclose`, unless health checks or a credential provider are set.
        postgres: The upstream saver, over a pool (recommended) or a single connection. Never closed here.
        ttl: Lifetime of an entry in Redis, in seconds or as a `timedelta`. By default 3600.
        refresh_on_read: Whether a read starts the entry's `ttl` anew. By default True.
        prefix: Start of every Redis key, by default `"langgraph"`. Services with different databases need
            different prefixes; services on one database must use the same.
        serde: The serializer; by default that of `postgres`.
        mode: `"write_through"` (the default): a write returns when Postgres has committed it. `"write_behind"`:
            when Redis has it, and it is flushed to Postgres later; until then, what Redis loses while this process
            dies too is lost.
        redis_durability: With `"write_behind"`, the meaning of an acknowledgement: `"as_is"` (the default), the
            primary has the write; `"replica"`, one of its replicas has it too (`WAIT`); `"disk"`, it is in the
            primary's append-only file (`WAITAOF`, Redis 7.2). Where that is not confirmed within half of
            `redis_timeout`, Postgres has the write before the call returns.
        redis_timeout: Longest time without any part of a reply of Redis, in seconds or as a `timedelta`, before
            the saver goes on with Postgres. By default 0.5. Only time in which the event loop runs is counted; a
            new connection may take four times as long.
        signing_keys: Secrets of 16 to 64 bytes, or text. Every part of an entry is signed with the first, and
            read if it is signed with any of them for its place; everything else is a miss. By default None: parts
            carry checksums.
        check_hits: Fraction of the hits, from 0 (the default) to 1, that is compared with Postgres in the
            background, at the cost of a query each, never more than two at a time.
            `stats()["disagreements"]` must stay 0.

    Raises:
        ArgumentTypeError, ArgumentError: an argument cannot work; the message names it.
        TypeError: a keyword is unknown.
    """

    def __init__(
        self, redis: Redis | RedisCluster, postgres: AsyncPostgresSaver, **options: Unpack[SaverOptions]
    ) -> None:
        self._redis = check_redis_client(redis, instead="SyncCachedPostgresSaver.from_conn_string")
        self._upstream = check_upstream(postgres)
        settings = Settings.from_options(**options)
        super().__init__(serde=settings.serde or postgres.serde)
        self._engine = Engine(redis, postgres, settings)
        self._access = LoopAccess(self._engine.loop)
        self._unstored_versions = UnstoredVersions()

    @classmethod
    def from_conn_string(
        cls, postgres_uri: str, redis_url: str, **options: Unpack[ConnStringOptions]
    ) -> AbstractAsyncContextManager[Self]:
        """Return a context manager for a saver with a connection pool and a Redis client of its own.

        Arguments are checked at once; the pool connects when the block is entered. Both are closed when it ends.
        Connections to Postgres are checked before use when they have been idle, replaced when they are old, and
        use prepared statements unless a pooler such as PgBouncer stands in between, which is detected.

        Args:
            postgres_uri: A libpq connection string or URI.
            redis_url: `redis://user:password@host:6379/0` or `unix://path`; for a Cluster some of its nodes,
                `redis+cluster://user:password@host:6379,host:6379`; for a primary behind Sentinels
                `redis+sentinel://user:password@host:26379,host:26379/service-name/0`. With `rediss` it is TLS.
                Options follow as redis-py takes them, such as `?ssl_ca_certs=ca.pem`; `sentinel_username` and
                `sentinel_password` are for the Sentinels, user and password before the `@` for the primary.
            ttl, refresh_on_read, prefix, serde, mode, redis_durability, redis_timeout, signing_keys, check_hits:
                As for the class.
            pool_min_size: Connections to Postgres that stay open. By default 1.
            pool_max_size: Most connections to Postgres at once. By default 10.
            pool_timeout: Longest wait of an operation for a connection, in seconds or as a `timedelta`, as the
                next two. By default 30.
            pool_max_idle: Idle time after which a connection beyond `pool_min_size` is closed. By default 600.
            pool_max_lifetime: Age at which a connection is replaced. By default 3600.
            redis_max_connections: Most connections at once to Redis, or to one node of a Cluster. By default 32.

        Raises:
            ArgumentTypeError, ArgumentError: an argument cannot work; the message names it.
            TypeError: a keyword is unknown.
            psycopg.OperationalError: Postgres refuses the connection on entering the block.
            psycopg_pool.PoolTimeout: it cannot be reached for `pool_timeout`; the message says why.
        """
        return Opening(cls, ConnectionSettings.from_options(postgres_uri, redis_url, **options))

    async def setup(self) -> None:
        """Create or migrate the upstream saver's tables and our own.

        Any number of processes may call this at once. If the tables are up to date they are only read, which needs
        no right to create any. A caller that is cancelled does not stop a migration that has begun.

        Raises:
            UnsupportedServerError: Postgres or Redis is too old, a pooler is in statement mode, a database in
                SQL_ASCII is used without `client_encoding=utf8`, or Redis may evict what `mode="write_behind"`
                leaves to it. Redis is not checked while it cannot be reached.
        """
        if running_loop() is not self._access.loop:
            raise self._access.refusal("setup")
        await self._engine.setup()

    async def aclose(self) -> None:
        """Refuse further calls with `ClosedError`, and wait for those under way.

        Then the clients may be closed; they are not closed here.

        After 30 seconds, calls that Postgres has not answered fail with `PostgresTimeoutError`.

        With `mode="write_behind"` unflushed writes are flushed to Postgres first, for 10 seconds at most. Other
        processes replay the remainder.
        """
        if self._access.allows_closing():
            self._access.close()
            await self._engine.close()

    def stats(self) -> dict[str, float]:
        """Return counters, times and gauges by name, since this saver was made. `Stats` explains each."""
        return self._engine.stats.as_dict()

    # -- reads -----------------------------------------------------------------------------------------------

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return the checkpoint that `config` names, or the latest one of its namespace; None if there is none.

        Raises:
            ArgumentError, ArgumentTypeError: `config` names no thread, or has a value that cannot work.
            BehindError: the latest writes are in Redis alone, which cannot be read now.
            ClosedError, ForkedError: the saver is closed, or belongs to the parent of this process.
            OverloadedError: too many reads wait for Postgres, which has answered none for a minute.
            WrongThreadError: awaited on another event loop.
            PostgresTimeoutError: Postgres does not answer.
            psycopg.Error: as from the upstream saver, when Redis cannot serve the call.
        """
        try:
            namespace, checkpoint_id = parse_config(config)
        except NamesNothing:
            return None
        if running_loop() is not self._access.loop:
            raise self._access.refusal("aget_tuple")
        started = time.perf_counter()
        if checkpoint_id is None:
            record, outcome = await self._engine.read_path.latest(namespace)
        else:
            record, outcome = await self._engine.read_path.by_id(namespace, checkpoint_id)
        try:
            found = None if record is None else self._decode(record)
        except Exception as exc:
            if record is None or outcome is not ReadOutcome.HIT:
                raise
            record, outcome = await self._engine.read_path.reread(namespace, checkpoint_id, record, exc)
            found = None if record is None else self._decode(record)
        self._engine.stats.record_read(outcome, time.perf_counter() - started)
        return found

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Yield checkpoints from Postgres, newest first. No connection is held between two items.

        Args:
            config: Thread, and optionally namespace and checkpoint, to list; None for all threads.
            filter: Metadata that a checkpoint must have, by key.
            before: Config of a checkpoint; only older ones are listed.
            limit: Most checkpoints to list.

        Raises:
            As `aget_tuple`.
        """
        for record in await self._run("list", self._search(config, filter, before, limit)):
            yield self._decode(record)

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Run `alist` from any thread but the event loop's. The iterator may be dropped at any item."""
        records = self._wait("list", lambda: self._search(config, filter, before, limit))
        return map(self._decode, records)

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Return the history that each `DeltaChannel` is rebuilt from at a checkpoint.

        Redis serves it if the namespace's entry holds that checkpoint and its histories; the first call for a
        checkpoint reads Postgres and adds them.

        Args:
            config: Names the checkpoint; without a `checkpoint_id` the upstream saver answers for the latest.
            channels: Names of `DeltaChannel`s.

        Returns:
            A history for each of `channels`.

        Raises:
            As `aget_tuple`.
        """
        try:
            namespace, checkpoint_id = parse_config(config)
        except NamesNothing:
            return {channel: {"writes": []} for channel in channels}
        if checkpoint_id is None:
            upstream = self._engine.store.upstream(self.serde)

            async def get() -> Mapping[str, DeltaChannelHistory]:
                await self._engine.replayer.flush_threads([namespace.thread_id])
                return await upstream.aget_delta_channel_history(config=config, channels=channels)

            return await self._run("get_delta_channel_history", get())
        if running_loop() is not self._access.loop:
            raise self._access.refusal("aget_delta_channel_history")
        found = await self._engine.histories.get(namespace, checkpoint_id, channels) if channels else {}
        try:
            return codec.decode_delta_histories(found, channels, self.serde)
        except Exception:  # noqa: BLE001 - if it is Postgres' fault, it is raised again
            found = await self._engine.histories.reread(namespace, checkpoint_id, channels)
            return codec.decode_delta_histories(found, channels, self.serde)

    # -- writes ----------------------------------------------------------------------------------------------

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint as the child of the one that `config` names.

        Everything is encoded before the first wait, so values may change afterwards; but while 10,000 writes or
        64 MiB wait for Postgres, the call waits first, after those before it. A caller that is cancelled does not
        stop a write that was encoded.

        Returns:
            The config that names the new checkpoint.

        Raises:
            ArgumentError, ArgumentTypeError: an argument cannot work; the message names it.
            BehindError: earlier writes of the thread are in Redis alone, which cannot be read now.
            ClosedError, ForkedError: as from `aget_tuple`.
            OverloadedError: too many writes wait for Postgres, which has taken none for a minute.
            WrongThreadError: awaited on another event loop.
            PostgresTimeoutError: Postgres does not answer; the write may have been stored.
            psycopg.Error: as from the upstream saver.
        """
        namespace, _ = parse_config(config, for_write=True)
        check_checkpoint(checkpoint)
        if running_loop() is not self._access.loop:
            raise self._access.refusal("aput")
        started = time.perf_counter()
        if not self._engine.write_through.room.is_free:
            await self._engine.write_through.wait_for_room()
        put = codec.encode_put(
            namespace, config, checkpoint, metadata, new_versions, self.serde, self._unstored_versions.take
        )
        await self._engine.write(put)
        self._engine.stats.put.record(time.perf_counter() - started)
        return codec.checkpoint_config(namespace, checkpoint["id"])

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Store the pending writes of a task for the checkpoint that `config` names.

        Args:
            config: Must name a `checkpoint_id`.
            writes: Channels and values.
            task_id: The task.
            task_path: Where the task stands in the graph.

        Raises:
            As `aput`.
        """
        namespace, checkpoint_id = parse_config(config, for_write=True)
        if checkpoint_id is None:
            raise ArgumentError('config["configurable"] has no "checkpoint_id": writes belong to a checkpoint')
        if not writes:
            return
        if running_loop() is not self._access.loop:
            raise self._access.refusal("aput_writes")
        started = time.perf_counter()
        if not self._engine.write_through.room.is_free:
            await self._engine.write_through.wait_for_room()
        put = codec.encode_writes(namespace, checkpoint_id, writes, task_id, task_path, self.serde)
        await self._engine.write(put)
        self._engine.stats.put_writes.record(time.perf_counter() - started)

    # -- the rest of the upstream saver's interface ----------------------------------------------------------

    @property
    def config_specs(self) -> Any:
        """Config fields of the upstream saver."""
        return self._upstream.config_specs

    def get_next_version(self, current: str | None, channel: None) -> str:
        """Return the upstream saver's next version of a channel."""
        version = self._upstream.get_next_version(current, channel)
        self._unstored_versions.add(version)
        return version

    # -- inside ----------------------------------------------------------------------------------------------

    def _decode(self, record: Record) -> CheckpointTuple:
        return codec.decode(record, self.serde, lambda: self.get_next_version(None, None))

    def _search(
        self,
        config: RunnableConfig | None,
        filter: dict[str, Any] | None,
        before: RunnableConfig | None,
        limit: int | None,
    ) -> Coroutine[Any, Any, Sequence[Record]]:
        thread_ids = check_search(config, before, limit)
        return self._engine.flushed.search(thread_ids, config, filter, before, limit)
