"""Stage of the demo: servers, a saver, the agent, and the customers' threads."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

from langgraph_checkpoint_cached.arguments import check_postgres_uri
from langgraph_checkpoint_cached.demo.desk import OrderBook
from langgraph_checkpoint_cached.demo.embedded import PostgresServer, RedisServer
from langgraph_checkpoint_cached.demo.graph import build_graph
from langgraph_checkpoint_cached.demo.screen import Screen
from langgraph_checkpoint_cached.demo.turns import TimedSaver, Turn, open_saver, play_turn
from langgraph_checkpoint_cached.demo.worker import Job
from langgraph_checkpoint_cached.stores.postgres.pool import postgres_pool
from langgraph_checkpoint_cached.stores.redis.client import AnyRedis
from langgraph_checkpoint_cached.stores.redis.url import redis_client

CONNECT_TIMEOUT_SECONDS = 5


@dataclass(frozen=True)
class DemoServers:
    """Addresses of Postgres and Redis, and those servers that the demo has started."""

    postgres_uri: str
    redis_url: str
    postgres: PostgresServer | None
    redis: RedisServer | None


@contextmanager
def start_servers(postgres_uri: str | None, redis_url: str | None) -> Iterator[DemoServers]:
    """Start embedded servers for the block in place of those that are not given.

    Raises:
        EmbeddedServerError: an embedded server is not installed, or did not start.
    """
    with ExitStack() as stack:
        postgres = redis = None
        if not postgres_uri:
            postgres = stack.enter_context(PostgresServer())
            postgres_uri = postgres.url
        if not redis_url:
            redis = stack.enter_context(RedisServer())
            redis_url = redis.url
        yield DemoServers(postgres_uri, redis_url, postgres, redis)


@dataclass
class Stage:
    """Everything that a scene needs. `open_stage` makes it."""

    screen: Screen
    servers: DemoServers
    run: str  # prefix of our threads and keys
    book: OrderBook
    saver: TimedSaver
    upstream: AsyncPostgresSaver
    redis_client: AnyRedis

    def __post_init__(self) -> None:
        self.graph = build_graph(self.book, self.saver)
        self.threads: dict[str, str] = {}

    def thread_id(self, customer: str) -> str:
        """Return the id of the customer's thread. It differs from one run of the demo to the next."""
        return self.threads.setdefault(customer, f"{self.run}-{customer.lower()}")

    async def turn(self, customer: str, message: str) -> Turn:
        """Play a turn of the customer in this process."""
        return await play_turn(self.graph, self.saver, self.thread_id(customer), message)

    def job(
        self,
        customer: str,
        message: str | None = None,
        *,
        approval: str | None = None,
        courier_answers: bool = True,
    ) -> Job:
        """Return a turn of the customer as a job for another process."""
        return Job(
            postgres_uri=self.servers.postgres_uri,
            redis_url=self.servers.redis_url,
            prefix=self.run,
            book=str(self.book.path),
            thread_id=self.thread_id(customer),
            message=message,
            approval=approval,
            courier_answers=courier_answers,
        )

    async def empty_redis(self) -> int:
        """Empty the embedded Redis, or remove our keys from a given one. Returns how many keys we had there."""
        removed = await remove_keys(self.redis_client, self.run)
        if self.servers.redis:
            await self.redis_client.flushdb()
        return removed

    async def delete_threads(self) -> None:
        """Delete our threads."""
        for thread_id in self.threads.values():
            await self.saver.adelete_thread(thread_id)


async def remove_keys(client: AnyRedis, prefix: str) -> int:
    """Remove all keys with this prefix. Returns how many there were."""
    keys = [key async for key in client.scan_iter(match=f"{prefix}*", count=1000)]
    for key in keys:  # one by one, for the nodes of a Cluster
        await client.unlink(key)
    return len(keys)


@asynccontextmanager
async def open_stage(screen: Screen, servers: DemoServers) -> AsyncIterator[Stage]:
    """Open a stage for the block, on servers that answer, and print their versions.

    Raises:
        ArgumentError: an address does not parse.
        psycopg.Error, redis.RedisError: a server cannot be reached.
    """
    run = f"demo-{uuid.uuid4().hex[:8]}"
    async with AsyncExitStack() as stack:
        client = redis_client(servers.redis_url, max_connections=2, timeout_seconds=CONNECT_TIMEOUT_SECONDS)
        stack.push_async_callback(client.aclose)
        pool = postgres_pool(
            check_postgres_uri(servers.postgres_uri),
            min_size=1,
            max_size=10,
            timeout_seconds=30,
            max_idle_seconds=600,
            max_lifetime_seconds=3600,
        )
        postgres_version, redis_version = await _postgres_version(servers), await _redis_version(client)
        screen.say(f"{postgres_version} and {redis_version}, {_describe(servers)}")
        await stack.enter_async_context(pool)
        if not servers.redis:  # once the saver is closed: until then it writes keys
            stack.push_async_callback(remove_keys, client, run)
        saver = await stack.enter_async_context(open_saver(servers.postgres_uri, servers.redis_url, run))
        await saver.setup()
        book = OrderBook.create(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "orders.sqlite")
        stage = Stage(screen, servers, run, book, saver, AsyncPostgresSaver(pool), client)
        if not servers.postgres:
            stack.push_async_callback(stage.delete_threads)
        yield stage


async def _postgres_version(servers: DemoServers) -> str:
    uri = servers.postgres_uri
    async with await psycopg.AsyncConnection.connect(uri, connect_timeout=CONNECT_TIMEOUT_SECONDS) as connection:
        return f"PostgreSQL {connection.info.parameter_status('server_version')}"


async def _redis_version(client: AnyRedis) -> str:
    info = await client.info("server")
    return f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"


def _describe(servers: DemoServers) -> str:
    if servers.postgres and servers.redis:
        return "started for this demo, and removed after it"
    if servers.postgres or servers.redis:
        return f"{'Postgres' if servers.postgres else 'Redis'} started for this demo, the other one given"
    return "both given; the demo removes what it stores there"
