"""The sync methods: from any thread but the loop's, with nothing held between calls, and everything closed."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from langgraph_checkpoint_cached import CachedPostgresSaver, SyncCachedPostgresSaver
from langgraph_checkpoint_cached.demo.embedded import LOCALHOST, free_port
from langgraph_checkpoint_cached.errors import ClosedError, WrongThreadError
from tests.support.agreement import (
    CACHED,
    PATIENT_SECONDS,
    UPSTREAM,
    Tiers,
    eventually,
    new_checkpoint,
    new_saver,
    on_thread,
)

pytestmark = pytest.mark.integration

CONFIG = on_thread(CACHED, checkpoint_ns="")
METADATA: Any = {"source": "loop", "step": 0, "parents": {}}

SYNC_CALLS: dict[str, Callable[[Any, str], Any]] = {
    "put": lambda saver, thread: saver.put(
        on_thread(thread, checkpoint_ns=""), new_checkpoint(id="1"), METADATA, {}
    ),
    "put_writes": lambda saver, thread: saver.put_writes(
        on_thread(thread, checkpoint_ns="", checkpoint_id="1"), [("channel", ["value"])], "task", "path"
    ),
    "get_tuple": lambda saver, thread: saver.get_tuple(on_thread(thread)),
    "list": lambda saver, thread: list(saver.list(on_thread(thread), filter={"step": 0}, limit=5)),
    "get_delta_channel_history": lambda saver, thread: saver.get_delta_channel_history(
        config=on_thread(thread), channels=["channel"]
    ),
    "prune": lambda saver, thread: saver.prune([thread]),
    "delete_thread": lambda saver, thread: saver.delete_thread(thread),
}


def same_thread_names(answer: Any) -> Any:
    """The answer without what differs between the threads that the two savers use."""
    if isinstance(answer, CheckpointTuple):
        checkpoint = {k: v for k, v in answer.checkpoint.items() if k != "ts"}
        return checkpoint, answer.metadata, answer.pending_writes
    if isinstance(answer, list):
        return [same_thread_names(item) for item in answer]
    return str(answer).replace(CACHED, UPSTREAM)


OUR_CALLS: dict[str, Callable[[Any, str], Any]] = {
    "copy_thread": lambda saver, thread: saver.copy_thread(thread, f"{thread} copied"),
    "delete_for_runs": lambda saver, thread: saver.delete_for_runs(["a run"]),
    "delete_idle_threads": lambda saver, thread: saver.delete_idle_threads(1),
}
"""Methods that the upstream saver does not have."""


async def test_sync_methods_answer_as_upstream_from_another_thread(tiers: Tiers) -> None:
    def call_all(saver: Any, thread: str) -> list[Any]:
        answers = [same_thread_names(call(saver, thread)) for call in SYNC_CALLS.values()]
        return [*answers, saver.get_tuple(on_thread(thread))]

    ours = await asyncio.to_thread(call_all, tiers.saver, CACHED)
    upstream = await asyncio.to_thread(call_all, tiers.upstream, UPSTREAM)
    assert ours == upstream
    assert ours[-1] is None, "deleted"


@pytest.mark.parametrize("method", {**SYNC_CALLS, **OUR_CALLS})
async def test_a_sync_method_on_the_loops_own_thread_says_so(tiers: Tiers, method: str) -> None:
    """The upstream saver waits for itself for ever, in most methods: langgraph#7857."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no coroutine is made that nobody awaits
        with pytest.raises(WrongThreadError, match=f"a{method}") as caught:
            {**SYNC_CALLS, **OUR_CALLS}[method](tiers.saver, CACHED)
    assert isinstance(caught.value, asyncio.InvalidStateError), "what the upstream saver raises, where it does"
    assert await asyncio.wait_for(tiers.saver.aget_tuple(CONFIG), PATIENT_SECONDS) is None


async def test_an_async_method_on_another_loop_says_so(tiers: Tiers) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: tiers.saver.aget_tuple(CONFIG),
        lambda: tiers.saver.aput(CONFIG, new_checkpoint(), METADATA, {}),
        lambda: tiers.saver.aput_writes(on_thread(CACHED, checkpoint_ns="", checkpoint_id="1"), [("c", 1)], "t"),
        lambda: anext(tiers.saver.alist(CONFIG)),
        lambda: tiers.saver.adelete_thread(CACHED),
        lambda: tiers.saver.aprune([CACHED]),
        lambda: tiers.saver.aget_delta_channel_history(config=CONFIG, channels=["c"]),
        tiers.saver.setup,
    ]

    def on_another_loop() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for call in calls:

                async def run(call: Callable[[], Any] = call) -> None:
                    await call()

                with pytest.raises(WrongThreadError, match="another event loop"):
                    asyncio.run(run())

    await asyncio.to_thread(on_another_loop)
    assert await tiers.upstream.aget_tuple(CONFIG) is None, "nothing was written"


@pytest.fixture(params=["single_connection", "pipeline_mode", "pool_of_one"])
async def narrow_saver(
    request: pytest.FixtureRequest, migrated_database_url: str, redis: Redis, redis_prefix: str
) -> AsyncIterator[CachedPostgresSaver]:
    """One that locks itself out if a call holds on to its connection."""
    async with contextlib.AsyncExitStack() as stack:
        if request.param == "pool_of_one":
            pool: Any = AsyncConnectionPool(
                migrated_database_url,
                open=False,
                min_size=1,
                max_size=1,
                timeout=PATIENT_SECONDS,
                kwargs={"autocommit": True, "row_factory": dict_row},
            )
            upstream = AsyncPostgresSaver(await stack.enter_async_context(pool))
        else:
            pipeline = request.param == "pipeline_mode"
            opening = AsyncPostgresSaver.from_conn_string(migrated_database_url, pipeline=pipeline)
            upstream = await stack.enter_async_context(opening)
        saver = new_saver(redis, upstream, redis_prefix)
        for number in range(5):
            await saver.aput(CONFIG, new_checkpoint(id=str(number)), METADATA, {})
        yield saver


async def test_a_sync_list_that_is_left_early_holds_nothing(narrow_saver: CachedPostgresSaver) -> None:
    """The upstream saver keeps its lock for ever, and LangGraph does leave: checkpoint-postgres 3.2.0."""
    listing = await asyncio.to_thread(narrow_saver.list, CONFIG)
    first = await asyncio.to_thread(next, listing)
    assert first.checkpoint["id"] == "4"
    put = narrow_saver.aput(CONFIG, new_checkpoint(id="5"), METADATA, {})
    await asyncio.wait_for(put, PATIENT_SECONDS)
    found = await asyncio.wait_for(asyncio.to_thread(narrow_saver.get_tuple, CONFIG), PATIENT_SECONDS)
    assert found
    assert found.checkpoint["id"] == "5"
    assert [item.checkpoint["id"] for item in listing] == ["3", "2", "1", "0"], "as it was when it was asked for"


async def test_an_async_list_that_is_left_early_holds_nothing(narrow_saver: CachedPostgresSaver) -> None:
    async for found in narrow_saver.alist(CONFIG):
        assert found.checkpoint["id"] == "4"
        break
    listing = narrow_saver.alist(CONFIG)  # never closed
    await anext(listing)
    put = narrow_saver.aput(CONFIG, new_checkpoint(id="5"), METADATA, {})
    await asyncio.wait_for(put, PATIENT_SECONDS)
    found = await asyncio.wait_for(narrow_saver.aget_tuple(CONFIG), PATIENT_SECONDS)
    assert found
    assert found.checkpoint["id"] == "5"
    await listing.aclose()


async def test_other_calls_may_come_between_the_items_of_a_list(narrow_saver: CachedPostgresSaver) -> None:
    async def copy_all() -> list[str]:
        copied = []
        async for found in narrow_saver.alist(CONFIG):
            assert await narrow_saver.aget_tuple(found.config) == found
            await narrow_saver.aput(on_thread("copy", checkpoint_ns=""), found.checkpoint, found.metadata, {})
            inner = [item.checkpoint["id"] async for item in narrow_saver.alist(on_thread("copy"))]
            copied.append(found.checkpoint["id"])
            assert sorted(inner) == sorted(copied)
        return copied

    assert await asyncio.wait_for(copy_all(), PATIENT_SECONDS) == ["4", "3", "2", "1", "0"]


async def test_a_saver_can_be_built_where_no_loop_runs(tiers: Tiers) -> None:
    """Others could not: langgraph-redis#179."""
    saver = await asyncio.to_thread(new_saver, tiers.redis, tiers.upstream, tiers.prefix)
    stored = await saver.aput(CONFIG, new_checkpoint(), METADATA, {})
    assert await saver.aget_tuple(stored) == await asyncio.to_thread(saver.get_tuple, stored)


def test_a_saver_whose_block_was_left_says_so(
    migrated_database_url: str, redis_url: str, redis_prefix: str
) -> None:
    async def open_and_close() -> CachedPostgresSaver:
        opening = CachedPostgresSaver.from_conn_string(migrated_database_url, redis_url, prefix=redis_prefix)
        async with opening as saver:
            return saver

    saver = asyncio.run(open_and_close())
    with pytest.raises(ClosedError, match="closed"):
        saver.get_tuple(CONFIG)


class Script:
    """A script that uses the sync saver: what it leaves behind can be seen by its name."""

    def __init__(self, postgres_url: str, redis_url: str, prefix: str) -> None:
        self.name = f"script-{prefix}"
        self._postgres_url, self._redis_url, self._prefix = postgres_url, redis_url, prefix

    def saver(self, **options: Any) -> Any:
        return SyncCachedPostgresSaver.from_conn_string(
            f"{self._postgres_url}?application_name={self.name}",
            f"{self._redis_url}?client_name={self.name}",
            prefix=self._prefix,
            **options,
        )

    def connections(self) -> tuple[int, int]:
        with psycopg.connect(self._postgres_url) as conn, SyncRedis.from_url(self._redis_url) as redis:
            rows = conn.execute("select 1 from pg_stat_activity where application_name = %s", (self.name,))
            clients = [client for client in redis.client_list() if client["name"] == self.name]
            return len(rows.fetchall()), len(clients)


@pytest.fixture
def script(database_url: str, redis_url: str, redis_prefix: str) -> Script:
    return Script(database_url, redis_url, redis_prefix)


async def assert_nothing_is_left(script: Script, threads: set[threading.Thread]) -> None:
    async def nothing_left() -> bool:
        return await asyncio.to_thread(script.connections) == (0, 0)

    await eventually(nothing_left)
    await asyncio.to_thread(lambda: [t.join(PATIENT_SECONDS) for t in threads])
    assert not [t for t in threads if t.is_alive()]


def started_since(before: list[threading.Thread]) -> set[threading.Thread]:
    return set(threading.enumerate()) - set(before)


def test_the_sync_saver_closes_all_it_has_opened(script: Script) -> None:
    before = threading.enumerate()
    with script.saver() as saver:
        saver.setup()
        saver.setup()
        with ThreadPoolExecutor(8) as executor:
            puts = [
                executor.submit(saver.put, on_thread(f"{n}", checkpoint_ns=""), new_checkpoint(), METADATA, {})
                for n in range(32)
            ]
            for n, put in enumerate(puts):
                found = saver.get_tuple(put.result())
                assert found.config == put.result()
                assert found.config["configurable"]["thread_id"] == str(n)
        assert min(script.connections()) > 0
        threads = started_since(before)
        assert threads
    asyncio.run(assert_nothing_is_left(script, threads))
    with pytest.raises(ClosedError, match="closed"):
        saver.get_tuple(CONFIG)


@pytest.mark.parametrize("error", [ValueError("body"), KeyboardInterrupt(), StopIteration("body"), SystemExit(3)])
def test_an_error_in_the_block_is_raised_and_all_is_closed(script: Script, error: BaseException) -> None:
    before = threading.enumerate()
    threads = set()

    def use() -> None:
        nonlocal threads
        with script.saver() as saver:
            saver.setup()
            threads = started_since(before)
            raise error

    with pytest.raises((type(error), RuntimeError)) as caught:
        use()
    assert error in (caught.value, caught.value.__cause__), (
        "(contextlib turns a StopIteration into a RuntimeError)"
    )
    asyncio.run(assert_nothing_is_left(script, threads))


def test_missing_database_raises_and_leaves_no_thread(redis_url: str) -> None:
    before = threading.enumerate()
    nowhere = f"postgresql://postgres@{LOCALHOST}:{free_port()}/postgres"
    opening = SyncCachedPostgresSaver.from_conn_string(nowhere, redis_url, pool_timeout=0.5)
    started = time.monotonic()
    with pytest.raises(psycopg.OperationalError), opening:
        raise AssertionError("there is nothing to use")
    assert time.monotonic() - started < PATIENT_SECONDS, "pool_timeout holds for the first connection too"
    assert not [t for t in started_since(before) if t.name == "langgraph-checkpoint-cached"]


def test_the_async_methods_of_the_sync_saver_say_so(script: Script) -> None:
    with script.saver() as saver:
        saver.setup()

        async def use() -> Any:
            return await saver.aget_tuple(CONFIG)

        with pytest.raises(WrongThreadError):
            asyncio.run(use())

        async def use_sync() -> Any:  # in another loop's thread: it blocks that loop, but not its own
            return saver.get_tuple(CONFIG)

        assert asyncio.run(use_sync()) is None
