"""What the scenes play on: servers, a saver, the agent, and the customers' threads."""

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
from langgraph_checkpoint_cached.demo.turns import Turn, WatchedSaver, open_saver, play_turn
from langgraph_checkpoint_cached.demo.worker import Job
from langgraph_checkpoint_cached.stores.postgres.pool import postgres_pool
from langgraph_checkpoint_cached.stores.redis.client import AnyRedis
from langgraph_checkpoint_cached.stores.redis.url import redis_client

CONNECT_TIMEOUT_SECONDS = 5


@dataclass(frozen=True)
class Servers:
    """Where Postgres and Redis are, and those of them that are ours to stop and to leave behind."""

    postgres_uri: str
    redis_url: str
    postgres: PostgresServer | None
    redis: RedisServer | None


@contextmanager
def started_servers(postgres_uri: str | None, redis_url: str | None) -> Iterator[Servers]:
    """The servers that were given, and embedded ones for those that were not.

    Raises:
        EmbeddedServerError: an embedded one is not installed, or did not start.
    """
    with ExitStack() as stack:
        postgres = redis = None
        if not postgres_uri:
            postgres = stack.enter_context(PostgresServer())
            postgres_uri = postgres.url
        if not redis_url:
            redis = stack.enter_context(RedisServer())
            redis_url = redis.url
        yield Servers(postgres_uri, redis_url, postgres, redis)


@dataclass
class Stage:
    """Everything a scene needs. Made by `open_stage`."""

    screen: Screen
    servers: Servers
    run: str  # what our threads and keys begin with
    book: OrderBook
    saver: WatchedSaver
    upstream: AsyncPostgresSaver
    redis_client: AnyRedis

    def __post_init__(self) -> None:
        self.graph = build_graph(self.book, self.saver)
        self.threads: dict[str, str] = {}

    def thread_of(self, customer: str) -> str:
        """The customer's conversation. Its name differs from one run of the demo to the next."""
        return self.threads.setdefault(customer, f"{self.run}-{customer.lower()}")

    async def turn(self, customer: str, says: str) -> Turn:
        """The customer says something, in this process."""
        return await play_turn(self.graph, self.saver, self.thread_of(customer), says)

    def job(
        self, customer: str, says: str | None = None, *, approval: str | None = None, courier_answers: bool = True
    ) -> Job:
        """A turn for another process."""
        return Job(
            postgres_uri=self.servers.postgres_uri,
            redis_url=self.servers.redis_url,
            prefix=self.run,
            book=str(self.book.path),
            thread_id=self.thread_of(customer),
            says=says,
            approval=approval,
            courier_answers=courier_answers,
        )

    async def empty_redis(self) -> int:
        """Empties the embedded Redis, or a given one of what is ours. Returns how many keys we had there."""
        keys = [key async for key in self.redis_client.scan_iter(match=f"{self.run}*", count=1000)]
        if self.servers.redis:
            await self.redis_client.flushdb()
        else:
            for key in keys:  # one by one, for the nodes of a Cluster
                await self.redis_client.unlink(key)
        return len(keys)

    async def clean_up(self) -> None:
        """Removes our threads and keys from servers that outlive the demo."""
        if not self.servers.postgres:
            for thread_id in self.threads.values():
                await self.saver.adelete_thread(thread_id)
        if not self.servers.redis:
            await self.empty_redis()


@asynccontextmanager
async def open_stage(screen: Screen, servers: Servers) -> AsyncIterator[Stage]:
    """A stage for the block, on servers that were found to answer; says what they are.

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
        screen.say(f"{postgres_version} and {redis_version}, {_whose(servers)}")
        await stack.enter_async_context(pool)
        saver = await stack.enter_async_context(open_saver(servers.postgres_uri, servers.redis_url, run))
        await saver.setup()
        book = OrderBook.create(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "orders.sqlite")
        stage = Stage(screen, servers, run, book, saver, AsyncPostgresSaver(pool), client)
        stack.push_async_callback(stage.clean_up)
        yield stage


async def _postgres_version(servers: Servers) -> str:
    uri = servers.postgres_uri
    async with await psycopg.AsyncConnection.connect(uri, connect_timeout=CONNECT_TIMEOUT_SECONDS) as connection:
        return f"PostgreSQL {connection.info.parameter_status('server_version')}"


async def _redis_version(client: AnyRedis) -> str:
    info = await client.info("server")
    return f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"


def _whose(servers: Servers) -> str:
    if servers.postgres and servers.redis:
        return "started for this demo and gone after it"
    if servers.postgres or servers.redis:
        return f"{'Postgres' if servers.postgres else 'Redis'} started for this demo, the other one given"
    return "both given; what the demo stores there it removes again"
