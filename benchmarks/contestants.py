"""Contestants: this saver in each mode, the upstream saver in three ways, other savers, and two limits."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import BlockingConnectionPool, Redis

from benchmarks.chat import Saver
from benchmarks.place import Place
from benchmarks.results import UPSTREAM
from benchmarks.textbook import NothingSaver, TextbookSaver
from langgraph_checkpoint_cached import CachedPostgresSaver

if TYPE_CHECKING:
    from benchmarks.servers import Servers
    from langgraph_checkpoint_cached.arguments import Mode

MODES: tuple[Mode, ...] = ("write_through", "write_behind")
POOL = 10
PEER_CONNECTIONS = 512
"""Connections of savers that open one for each operation under way: as many as any workload has."""


@dataclass
class Entrant:
    """Open saver of a contestant."""

    saver: Saver
    empty_cache: Callable[[], Awaitable[object]] | None = None
    """Empties the cache; None for a saver that has none."""
    remembers: bool = True
    """False for a saver that does not store anything."""
    threads: dict[tuple[int, int, int], list[RunnableConfig]] = field(default_factory=dict)
    """Threads that were made to be read, by their number and size."""


@dataclass(frozen=True)
class Contestant:
    """Saver that takes part in the benchmarks."""

    name: str
    title: str
    open: Callable[[Place], AbstractAsyncContextManager[Entrant]]
    uses: frozenset[str] = frozenset()
    """Servers that it needs, out of "postgres", "redis" and "stack"."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Packages that it needs, by the module that shows whether they are installed."""

    def why_not(self, servers: Servers) -> str | None:
        """Return the reason why it cannot take part here; None if it can."""
        missing = [package for module, package in self.packages.items() if not _installed(module)]
        if missing:
            return f"{', '.join(missing)} not installed"
        return servers.no_stack if "stack" in self.uses else None


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is not
        return False


def _pool(uri: str) -> AsyncConnectionPool[Any]:
    return AsyncConnectionPool(
        uri,
        open=False,
        min_size=POOL,
        max_size=POOL,
        kwargs={"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row},
    )


@asynccontextmanager
async def _upstream(place: Place, *, locked: bool = True) -> AsyncIterator[Entrant]:
    async with _pool(place.postgres_uri) as pool:
        saver = AsyncPostgresSaver(pool)
        await saver.setup()
        if not locked:
            saver.lock = contextlib.nullcontext()  # type: ignore[assignment]
        yield Entrant(saver)


@asynccontextmanager
async def _single(place: Place) -> AsyncIterator[Entrant]:
    async with AsyncPostgresSaver.from_conn_string(place.postgres_uri) as saver:
        await saver.setup()
        yield Entrant(saver)


@asynccontextmanager
async def _ours(place: Place, *, mode: Mode) -> AsyncIterator[Entrant]:
    # Its pool opens a connection when it needs one more. The upstream saver's turn comes to all of them anyway.
    saver = CachedPostgresSaver.from_conn_string(
        place.postgres_uri, place.redis_url, mode=mode, prefix=place.prefix, pool_max_size=POOL
    )
    async with saver as opened, Redis.from_url(place.redis_url) as client:
        await opened.setup()
        yield Entrant(opened, client.flushdb)


@asynccontextmanager
async def _textbook(place: Place) -> AsyncIterator[Entrant]:
    connections = BlockingConnectionPool.from_url(place.redis_url, max_connections=32)
    async with _pool(place.postgres_uri) as pool, Redis.from_pool(connections) as client:
        upstream = AsyncPostgresSaver(pool)
        await upstream.setup()
        yield Entrant(TextbookSaver(client, upstream, place.prefix), client.flushdb)


@asynccontextmanager
async def _valkey(place: Place) -> AsyncIterator[Entrant]:
    from langgraph_checkpoint_aws.checkpoint.valkey import AsyncValkeySaver

    # Its default of 10 connections raises errors as soon as more operations than that are under way.
    url = place.redis_url
    async with AsyncValkeySaver.from_conn_string(url, pool_size=PEER_CONNECTIONS) as saver:
        yield Entrant(saver)


@asynccontextmanager
async def _redis(place: Place) -> AsyncIterator[Entrant]:
    from langgraph.checkpoint.redis.aio import AsyncRedisSaver

    options = {"max_connections": PEER_CONNECTIONS}
    async with AsyncRedisSaver.from_conn_string(place.stack_url, connection_args=options) as saver:
        await saver.asetup()
        yield Entrant(saver)


@asynccontextmanager
async def _sqlite(place: Place) -> AsyncIterator[Entrant]:
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    async with AsyncSqliteSaver.from_conn_string(str(Path(place.directory) / "checkpoints.sqlite")) as saver:
        await saver.setup()
        yield Entrant(saver)


@asynccontextmanager
async def _memory(place: Place) -> AsyncIterator[Entrant]:
    yield Entrant(InMemorySaver())


@asynccontextmanager
async def _nothing(place: Place) -> AsyncIterator[Entrant]:
    yield Entrant(NothingSaver(), remembers=False)


POSTGRES, BOTH = frozenset({"postgres"}), frozenset({"postgres", "redis"})
OURS = [Contestant(mode, f"CachedPostgresSaver, {mode}", partial(_ours, mode=mode), BOTH) for mode in MODES]
CONTESTANTS = [
    Contestant(UPSTREAM, "AsyncPostgresSaver, pool of 10", _upstream, POSTGRES),
    *OURS,
    Contestant("unlocked", "AsyncPostgresSaver, pool of 10, no lock", partial(_upstream, locked=False), POSTGRES),
    Contestant(
        "valkey",
        "AsyncValkeySaver of langgraph-checkpoint-aws, on the same Redis",
        _valkey,
        frozenset({"redis"}),
        {
            "langgraph_checkpoint_aws": "langgraph-checkpoint-aws",
            "valkey": "valkey",
            "orjson": "orjson",
        },
    ),
    Contestant(
        "redis",
        "AsyncRedisSaver of langgraph-checkpoint-redis",
        _redis,
        frozenset({"stack"}),
        {
            "langgraph.checkpoint.redis": "langgraph-checkpoint-redis",
        },
    ),
    Contestant("single", "AsyncPostgresSaver, one connection", _single, POSTGRES),
    Contestant(
        "textbook",
        "textbook cache over the upstream saver",
        _textbook,
        BOTH,
    ),
    Contestant(
        "sqlite",
        "AsyncSqliteSaver, on a file",
        _sqlite,
        frozenset(),
        {
            "langgraph.checkpoint.sqlite": "langgraph-checkpoint-sqlite",
        },
    ),
    Contestant("memory", "InMemorySaver, in this process", _memory),
    Contestant("nothing", "a saver that does nothing, so that its turns have no history either", _nothing),
]
BY_NAME = {contestant.name: contestant for contestant in CONTESTANTS}
BASELINE = "unlocked"
REDIS_ONLY = frozenset({"valkey", "redis"})
MAIN = frozenset({UPSTREAM, BASELINE, *(contestant.name for contestant in OURS)})
"""Contestants that bars compare."""
