"""LangGraph's own conformance suite, over every kind of connection that a saver may be given.

The suite makes checkpoints of format 1, which are never served from Redis. So every kind runs a second time
with what it stores turned into checkpoints as LangGraph makes them today: see `LikeLangGraph`.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
)
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.capabilities import (
    ALL_CAPABILITIES,
    DetectedCapabilities,
)
from langgraph.checkpoint.conformance.report import CapabilityReport
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.demo.embedded import LOCALHOST, free_port

pytestmark = pytest.mark.integration

SUITE_FORMAT, CURRENT_FORMAT = 1, 4
PATIENT_SECONDS = 10
"""For a call to Redis: these tests are about answers, not about time."""


@dataclass(frozen=True)
class Servers:
    postgres_url: str
    redis_url: str
    prefix: str


Open = Callable[[type[CachedPostgresSaver], Servers], AbstractAsyncContextManager[CachedPostgresSaver]]


class LikeLangGraph(CachedPostgresSaver):
    """Reads the latest checkpoint before it stores one, in today's format and with versions as
    `get_next_version` makes them. The suite gets back what it gave: format 1, and integers for versions.
    """

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        where = {k: config["configurable"][k] for k in ("thread_id", "checkpoint_ns")}
        await super().aget_tuple({"configurable": where})
        assert checkpoint["v"] == SUITE_FORMAT
        versions = {c: stock_version(c, v) for c, v in checkpoint["channel_versions"].items()}
        return await super().aput(
            config,
            {**checkpoint, "v": CURRENT_FORMAT, "channel_versions": versions},
            metadata,
            {c: stock_version(c, v) for c, v in new_versions.items()},
        )

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        found = await super().aget_tuple(config)
        return found and as_the_suite_gave_it(found)

    async def alist(self, config: RunnableConfig | None, **search: Any) -> AsyncIterator[CheckpointTuple]:
        async for found in super().alist(config, **search):
            yield as_the_suite_gave_it(found)


def stock_version(channel: str, version: Any) -> str:
    return f"{version:032}.0.{zlib.crc32(channel.encode()) % 10**6:06}"


def as_the_suite_gave_it(found: CheckpointTuple) -> CheckpointTuple:
    assert found.checkpoint["v"] == CURRENT_FORMAT
    versions = {c: int(v.partition(".")[0]) for c, v in found.checkpoint["channel_versions"].items()}
    return found._replace(checkpoint={**found.checkpoint, "v": SUITE_FORMAT, "channel_versions": versions})


def pool_of_its_own(
    saver_class: type[CachedPostgresSaver], servers: Servers
) -> AbstractAsyncContextManager[CachedPostgresSaver]:
    return saver_class.from_conn_string(
        servers.postgres_url, servers.redis_url, prefix=servers.prefix, redis_timeout=PATIENT_SECONDS
    )


@asynccontextmanager
async def pool_of_the_caller(
    saver_class: type[CachedPostgresSaver], servers: Servers
) -> AsyncIterator[CachedPostgresSaver]:
    options = {"autocommit": True, "row_factory": dict_row}
    async with (
        Redis.from_url(servers.redis_url) as redis,
        AsyncConnectionPool(servers.postgres_url, open=False, kwargs=options) as pool,
    ):
        yield saver_class(redis, AsyncPostgresSaver(pool), prefix=servers.prefix, redis_timeout=PATIENT_SECONDS)


def one_connection(*, pipeline: bool = False, **redis_options: Any) -> Open:
    @asynccontextmanager
    async def open_saver(
        saver_class: type[CachedPostgresSaver], servers: Servers
    ) -> AsyncIterator[CachedPostgresSaver]:
        async with (
            Redis.from_url(servers.redis_url, **redis_options) as redis,
            AsyncPostgresSaver.from_conn_string(servers.postgres_url, pipeline=pipeline) as upstream,
        ):
            yield saver_class(redis, upstream, prefix=servers.prefix, redis_timeout=PATIENT_SECONDS)

    return open_saver


def behind(open_kind: Open) -> Open:
    """The same, writing behind. Closed before its connections are: until then Postgres may follow at any time."""

    @asynccontextmanager
    async def open_saver(
        saver_class: type[CachedPostgresSaver], servers: Servers
    ) -> AsyncIterator[CachedPostgresSaver]:
        async with open_kind(behind_class(saver_class), servers) as saver:
            yield saver
            await saver.aclose()

    return open_saver


def behind_class(saver_class: type[CachedPostgresSaver]) -> type[CachedPostgresSaver]:
    class Behind(saver_class):  # type: ignore[valid-type,misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "mode": "write_behind"})

    return Behind


KINDS: dict[str, Open] = {
    "pool_of_its_own": pool_of_its_own,
    "pool_of_the_caller": pool_of_the_caller,
    "single_connection": one_connection(),
    "pipeline_mode": one_connection(pipeline=True),
    "behind_pgbouncer": pool_of_its_own,
    "decode_responses": one_connection(decode_responses=True),
    "resp2": one_connection(protocol=2),
    "resp3": one_connection(protocol=3),
    "resp3_decode_responses": one_connection(protocol=3, decode_responses=True),
    "redis_down": pool_of_its_own,
    "write_behind": behind(pool_of_its_own),
    "write_behind_single_connection": behind(one_connection()),
    "write_behind_pipeline_mode": behind(one_connection(pipeline=True)),
    "write_behind_pgbouncer": behind(pool_of_its_own),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def servers(
    request: pytest.FixtureRequest, kind: str, migrated_database_url: str, redis_url: str, redis_prefix: str
) -> Servers:
    if kind.endswith("pgbouncer"):
        return Servers(request.getfixturevalue("pgbouncer_url"), redis_url, redis_prefix)
    if kind == "redis_down":
        return Servers(migrated_database_url, f"redis://{LOCALHOST}:{free_port()}", redis_prefix)
    return Servers(migrated_database_url, redis_url, redis_prefix)


async def run_suite(kind: str, servers: Servers, saver_class: type[CachedPostgresSaver]) -> dict[str, int]:
    """Runs the whole suite; returns the saver's counters."""
    async with KINDS[kind](saver_class, servers) as saver:

        @checkpointer_test(name=f"{saver_class.__name__}, {kind}")
        async def checkpointer() -> AsyncIterator[CachedPostgresSaver]:
            yield saver

        report = await validate(checkpointer)
        assert_full(report)
        return saver.stats()


def assert_full(report: CapabilityReport) -> None:
    failures = [failure for result in report.results.values() for failure in result.failures]
    assert not failures, "\n".join(failures)
    assert report.conformance_level() == "FULL"
    tested = {name for name, result in report.results.items() if result.tests_passed}
    assert tested == {c.value for c in ALL_CAPABILITIES}, "a capability was not tested"


def test_capabilities_are_upstream_s_and_two_more() -> None:
    upstream, cached = (
        DetectedCapabilities.from_instance(object.__new__(saver_class)).missing
        for saver_class in (AsyncPostgresSaver, CachedPostgresSaver)
    )
    assert {c.value for c in upstream} == {"delete_for_runs", "copy_thread"}
    assert not cached


async def test_the_suite_passes_in_full(kind: str, servers: Servers) -> None:
    stats = await run_suite(kind, servers, CachedPostgresSaver)
    assert stats["writes"] + stats["appends"] > 0
    assert stats["damaged"] == 0
    assert stats["redis_errors"] == 0 or kind == "redis_down"


async def test_the_suite_passes_in_full_from_redis(kind: str, servers: Servers) -> None:
    stats = await run_suite(kind, servers, LikeLangGraph)
    if kind == "redis_down":
        assert stats["redis_errors"] > 0
        assert (stats["hits"], stats["entry_updates"]) == (0, 0)
        assert stats["degraded_reads"] > 0
        assert stats["degraded_writes"] == stats["writes"] > 0
    else:
        assert stats["redis_errors"] == stats["damaged"] == 0
        stored = stats["writes"] + stats["appends"]
        assert stats["hits"] > stored / 2, "most reads are of what has just been written"
        assert stats["entry_updates"] + stats["appends"] > stored / 2
