"""Inside of a saver and of its components: the only file of the tests that knows private names of the package.

`inspect(saver)` has the components of a saver. A `Private` is an attribute that a test replaces for a while:
`monkeypatch.setattr(*inspect(saver).flush_all, replacement)`.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

from langgraph_checkpoint_cached.cli import main
from langgraph_checkpoint_cached.cli.commands import tail
from langgraph_checkpoint_cached.demo import embedded
from langgraph_checkpoint_cached.engine.delta_history import DeltaHistoryReader
from langgraph_checkpoint_cached.engine.ended_journals import EndedJournals
from langgraph_checkpoint_cached.engine.held_leases import HeldLeases
from langgraph_checkpoint_cached.engine.hit_auditor import HitAuditor
from langgraph_checkpoint_cached.engine.invalidation import StaleThreadInvalidator
from langgraph_checkpoint_cached.engine.journal_replayer import JournalReplayer
from langgraph_checkpoint_cached.engine.read_path import ReadPath
from langgraph_checkpoint_cached.engine.recovery import Recovery
from langgraph_checkpoint_cached.engine.reopener import Reopener
from langgraph_checkpoint_cached.engine.stats_publisher import StatsPublisher
from langgraph_checkpoint_cached.engine.write_behind import WriteBehindQueue
from langgraph_checkpoint_cached.engine.write_through import WriteThrough
from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.runtime import boot_clock
from langgraph_checkpoint_cached.serde import fast_dumps, fast_loads, messages
from langgraph_checkpoint_cached.stats import Stats
from langgraph_checkpoint_cached.stores.postgres import thread_maintenance
from langgraph_checkpoint_cached.stores.postgres.connections import Connections
from langgraph_checkpoint_cached.stores.postgres.store import PostgresStore
from langgraph_checkpoint_cached.stores.redis import entry_format, server_check
from langgraph_checkpoint_cached.stores.redis.entries import RedisEntries
from langgraph_checkpoint_cached.stores.redis.executor import ScriptExecutor
from langgraph_checkpoint_cached.stores.redis.fences import Fences
from langgraph_checkpoint_cached.stores.redis.invalidation import ThreadInvalidation
from langgraph_checkpoint_cached.stores.redis.journal import Journal
from langgraph_checkpoint_cached.stores.redis.pipelined_connection import PipelinedConnection
from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks
from langgraph_checkpoint_cached.utils.circuit_breaker import CircuitBreaker


class Private(NamedTuple):
    """A private attribute of an object, a class or a module."""

    owner: Any
    name: str

    def get(self) -> Any:
        return getattr(*self)

    def set(self, value: Any) -> None:
        setattr(*self, value)


class Inside:
    """Components of one saver, and what tests do to them."""

    def __init__(self, saver: Any) -> None:
        self._saver, self._engine = saver, saver._engine

    # -- components --------------------------------------------------------------------------------------------

    @property
    def redis(self) -> Any:
        """Redis client of the saver."""
        return self._saver._redis

    @property
    def prefix(self) -> str:
        """Prefix of the saver's keys."""
        return str(self.executor.probe_key.removesuffix(":probe"))

    @property
    def upstream(self) -> Any:
        """Upstream saver."""
        return self._engine.upstream

    async def drain(self) -> None:
        """Wait for what is under way, as `aclose` does, and leave the saver open."""
        await self._engine.close()

    @property
    def stats(self) -> Stats:
        return self._engine.stats  # type: ignore[no-any-return]

    @property
    def executor(self) -> ScriptExecutor:
        return self._engine.executor  # type: ignore[no-any-return]

    @property
    def breaker(self) -> CircuitBreaker:
        return self._engine.health._breaker  # type: ignore[no-any-return]

    @property
    def reopener(self) -> Reopener:
        return self._engine.reopener  # type: ignore[no-any-return]

    @property
    def is_probing(self) -> bool:
        """Return whether a probe of Redis is under way."""
        return self.breaker._probing

    @property
    def entries(self) -> RedisEntries:
        return self._engine.entries  # type: ignore[no-any-return]

    @property
    def fences(self) -> Fences:
        return self._engine.fences  # type: ignore[no-any-return]

    def begin(self, namespace: Namespace, token: str) -> asyncio.Future[bytes]:
        """Fence a namespace, as a write does."""
        return self.fences._begin(namespace, token)

    @property
    def invalidation(self) -> ThreadInvalidation:
        return self._engine.invalidation  # type: ignore[no-any-return]

    @property
    def ended_journals(self) -> EndedJournals:
        return self._engine.ended_journals  # type: ignore[no-any-return]

    @property
    def begin_fence(self) -> Private:
        return Private(self.fences, "_begin")

    @property
    def journal(self) -> Journal:
        return self._engine.journal  # type: ignore[no-any-return]

    @property
    def store(self) -> PostgresStore:
        """Postgres."""
        return self._engine.store  # type: ignore[no-any-return]

    @property
    def read_path(self) -> ReadPath:
        return self._engine.read_path  # type: ignore[no-any-return]

    @property
    def auditor(self) -> HitAuditor:
        return self._engine.auditor  # type: ignore[no-any-return]

    @property
    def write_through(self) -> WriteThrough:
        return self._engine.write_through  # type: ignore[no-any-return]

    @property
    def write_behind(self) -> WriteBehindQueue:
        assert self._engine.write_behind is not None, "the saver writes through"
        return self._engine.write_behind  # type: ignore[no-any-return]

    @property
    def held(self) -> HeldLeases:
        """Leases of the saver's process."""
        return self._engine.held  # type: ignore[no-any-return]

    @property
    def recovery(self) -> Recovery:
        return self._engine.recovery  # type: ignore[no-any-return]

    @property
    def replayer(self) -> JournalReplayer:
        return self._engine.replayer  # type: ignore[no-any-return]

    @property
    def invalidator(self) -> StaleThreadInvalidator:
        return self._engine.invalidator  # type: ignore[no-any-return]

    @property
    def histories(self) -> DeltaHistoryReader:
        return self._engine.histories  # type: ignore[no-any-return]

    @property
    def stats_publisher(self) -> StatsPublisher:
        return self._engine.stats_publisher  # type: ignore[no-any-return]

    # -- what tests replace ------------------------------------------------------------------------------------

    @property
    def flush_all(self) -> Private:
        return Private(self.held, "_flush_all")

    @property
    def end_idle_leases(self) -> Private:
        return Private(self.held, "_end_idle")

    @property
    def end_thread(self) -> Private:
        return Private(self._engine.threads._changes, "_end_thread")

    @property
    def writes_waiting_max(self) -> Private:
        return Private(self.write_through.room, "_count_max")

    @property
    def waiting_bytes_max(self) -> Private:
        return Private(self.write_through.room, "_bytes_max")

    @property
    def room_seconds_max(self) -> Private:
        return Private(self.write_through.room, "_seconds_max")

    @property
    def loads_waiting_max(self) -> Private:
        return Private(self.store._loader._queue.room, "_count_max")

    @property
    def batch_rows_max(self) -> Private:
        return Private(self.write_through._queue, "_rows_max")

    @property
    def load_latest(self) -> Private:
        """Query for the latest checkpoints of namespaces."""
        return Private(self.store._loader, "_select")

    @property
    def auditor_store(self) -> Private:
        """Postgres, as the auditor of hits sees it."""
        return Private(self.auditor, "_store")

    @property
    def too_many_stale_threads(self) -> Private:
        return Private(self.invalidator, "_too_many")

    # -- what tests do -----------------------------------------------------------------------------------------

    @contextmanager
    def flushing_paused(self) -> Iterator[None]:
        """Keep the saver from flushing by itself, so that a test may look at what Postgres does not have."""
        replaced = (self.flush_all, self.end_idle_leases)
        originals = [private.get() for private in replaced]
        for private in replaced:
            private.set(_do_nothing)
        yield
        for private, original in zip(replaced, originals, strict=True):
            private.set(original)
        self.held._wake.set()

    def die(self) -> None:
        """Forget all that was written behind, and do nothing more: a killed process, for the servers."""
        self.held.leases.clear()
        self.held._dirty.clear()
        if self.held._flusher is not None:
            self.held._flusher.cancel()
        self.replayer.recover = _do_nothing  # type: ignore[method-assign]

    async def take_lease(self, thread_id: str) -> Any:
        return await self.held.acquire(thread_id)

    async def keep_latest(self, thread_id: str) -> None:
        """Prune with the package's own statements."""
        await self._engine.threads._keep_latest(thread_id, by_own_statements=True)

    def fail_redis(self, error: Exception) -> None:
        """Open the breaker."""
        self._engine.health.fail(error)

    async def probe_redis(self) -> None:
        self.breaker.take_probe()
        await self._engine.reopener._reopen()

    def serve_at_once(self) -> None:
        """Skip the wait after Redis has come back."""
        self._engine.health._serving_from = 0.0

    async def replace_connections(self) -> None:
        """Replace the connections to Postgres that are dead, as a pooler does: nothing else notices."""
        pool: Any = self.upstream.conn
        while pool.get_stats().get("pool_available", 0) < pool.min_size:
            await asyncio.sleep(0.01)
        await pool.check()
        while pool.get_stats().get("pool_available", 0) < pool.min_size:
            await asyncio.sleep(0.01)

    def forget_stale_threads(self) -> None:
        forget_stale_threads(self.invalidator)

    def stop_polling(self) -> None:
        """Poll for stale threads no more."""
        timer(self._engine.recovery).cancel()

    async def polled(self) -> None:
        """Wait until nothing is done in the background, which would use connections."""
        await background_tasks(self.recovery).drain()

    def suspend(self) -> None:
        """Send no heartbeat any more, and hear of no question: as a process that stands still."""
        self.stop_polling()
        self._engine.recovery._closed = True

    def keep_right(self) -> None:
        """Keep the right to serve from Redis for the rest of the test, with no heartbeat."""
        self.stop_polling()
        self._engine.right.extend(boot_clock(), 3600)

    def forget_identity(self) -> None:
        """Have the process know an identity of Postgres that is not the one of now."""
        self.store.identity.stamps = ["2001-01-01 00:00:00+00"] * len(self.store.identity.stamps)

    def end_right(self) -> None:
        """End the right to serve from Redis, as a long pause does."""
        self._engine.right.end()


def inspect(saver: Any) -> Inside:
    """Return the inside of a saver."""
    return Inside(saver)


async def _do_nothing() -> None:
    return None


# -- of classes and modules ------------------------------------------------------------------------------------

FLUSH_ALL = Private(HeldLeases, "_flush_all")
APPENDED = Private(WriteBehindQueue, "_on_appended")
READ_ENTRY = Private(ReadPath, "_hit")
BEGIN_FENCE = Private(Fences, "_begin")
FILLED = Private(RedisEntries, "_filled")
MAINTENANCE_ROWS = Private(thread_maintenance, "_rows")
SERVER_INFO = Private(server_check, "_SERVER_INFO")
UPSTREAM_DEFAULT = Private(fast_dumps, "_UPSTREAM_DEFAULT")
UPSTREAM_HOOK = Private(fast_loads, "_upstream_hook")

MESSAGE_CLASSES = messages._CLASSES
message_class = messages._message_class
packers = fast_dumps._packers
pack_versions = entry_format._pack_versions


def version_text(version: Any) -> bytes:
    return entry_format._value_part(b"", version)


tail_header = tail._header
tail_line = tail._line
wheel = embedded._wheel


# -- of single components --------------------------------------------------------------------------------------


def forget_stale_threads(invalidator: StaleThreadInvalidator) -> None:
    invalidator._own.clear()


def forget_append(queue: WriteBehindQueue, lease: Any, pending: Any) -> None:
    queue._held._forget(lease, pending)


def background_tasks(component: Any) -> BackgroundTasks:
    return component._tasks  # type: ignore[no-any-return]


def running_tasks(component: Any) -> set[asyncio.Task[Any]]:
    return background_tasks(component)._running


def timer(component: Any) -> Any:
    """Handle of the next time that a component does something."""
    assert component._timer is not None
    return component._timer


def revive(queue: Any) -> None:
    """Let a batch queue start tasks again."""
    queue._resume()


def release_old(fences: Fences) -> None:
    fences._release_old()


def set_clock(replayer: JournalReplayer, clock: Callable[[], float]) -> None:
    replayer._clock = clock


def is_retrying(executor: ScriptExecutor) -> bool:
    return bool(executor._is_retrying)


def reply_reader(connection: PipelinedConnection) -> Any:
    assert connection._replies is not None
    return connection._replies


def close_socket(connection: PipelinedConnection) -> None:
    reply_reader(connection)._transport.close()


def redis_connection(connection: PipelinedConnection) -> Any:
    """Connection of redis-py."""
    assert connection._connection is not None
    return connection._connection


def age_last_line(progress: Any, seconds: float) -> None:
    """Have a progress line be due again."""
    progress._written_at -= seconds


def cli_parser() -> argparse.ArgumentParser:
    return main._parser()


def cli_commands() -> dict[str, set[str]]:
    """Return the options of each command."""
    [commands] = [action for action in cli_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return {
        name: {option for action in parser._actions for option in action.option_strings}
        for name, parser in commands.choices.items()
    }


# -- of other packages -----------------------------------------------------------------------------------------


def connections_in_use(client: Any) -> Any:
    """Connections that the pool of a Redis client has given away."""
    return client.connection_pool._in_use_connections


def free_connections(client: Any) -> Any:
    """Connections that the pool of a Redis client has."""
    return client.connection_pool._available_connections


def node_connections(node: Any) -> Any:
    """Connections to a node of a Redis Cluster."""
    return node._connections


def idle_postgres_connections(pool: Any) -> list[Any]:
    return list(pool._pool)


def upstream_cursor(upstream: AsyncPostgresSaver) -> Any:
    connections = Connections(upstream)
    return connections.cursor
