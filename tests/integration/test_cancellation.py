"""Every public call, cancelled at every moment: its caller goes at once, what it began is done to its end, and
nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from redis.asyncio import Redis

from langgraph_checkpoint_cached import CachedPostgresSaver, IntentCache
from langgraph_checkpoint_cached.engine import read_path
from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.stores.postgres.schema import MIGRATION_LOCK
from langgraph_checkpoint_cached.stores.redis.entries import DROP, FillLease
from langgraph_checkpoint_cached.stores.redis.fences import Fence
from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks
from tests.support import servers
from tests.support.agreement import PATIENT_SECONDS, new_saver, on_thread
from tests.support.cancelling import (
    FIRST,
    KINDS,
    SECOND,
    TICKS,
    Events,
    Saver,
    World,
    at,
    client_of,
    connect,
    moments,
    open_world,
    put,
    was_cancelled,
    working,
)
from tests.support.inspect import connections_in_use, inspect

pytestmark = pytest.mark.integration

MIGRATING = 30 * TICKS
"""Moments after which the servers have been looked at, and tables are being made."""
BESIDE = BackgroundTasks()
"""Work that goes on beside a call."""


# -- what is cancelled -------------------------------------------------------------------------------------------


async def put_writes(saver: Saver, thread: str) -> None:
    await saver.aput_writes(at(thread, SECOND), [("x", "a"), ("y", "b")], "task 2")


async def search(saver: Saver, thread: str) -> None:
    assert [found.checkpoint["id"] async for found in saver.alist(on_thread(thread))] == [
        SECOND["id"],
        FIRST["id"],
    ]


async def search_and_leave(saver: Saver, thread: str) -> None:
    found = saver.alist(on_thread(thread))
    assert (await anext(found)).checkpoint["id"] == SECOND["id"]
    await asyncio.sleep(0)
    await found.aclose()  # type: ignore[attr-defined]


async def close(saver: CachedPostgresSaver, thread: str) -> None:
    """With work under way."""
    for one in (put(saver, thread), put_writes(saver, thread), get(saver, thread)):
        BESIDE.start(one)
    await asyncio.sleep(0)
    await saver.aclose()


async def get(saver: Saver, thread: str) -> None:
    await saver.aget_tuple(on_thread(thread))


@asynccontextmanager
async def loading(other: CachedPostgresSaver, namespace: Namespace) -> AsyncIterator[None]:
    """Another process has the fill lease."""
    entries = inspect(other).entries
    await inspect(other).store.identity.ask()
    assert isinstance(await entries.read(namespace, "foreign"), FillLease)
    yield
    await entries.release_fill_lease(namespace, "foreign")


@asynccontextmanager
async def writing(other: CachedPostgresSaver, namespace: Namespace) -> AsyncIterator[None]:
    """Another process has a fence."""
    begin = inspect(other).begin(namespace, "foreign")
    await begin
    yield
    await inspect(other).entries.commit(Fence(namespace, begin, 0.0, "foreign"), DROP)


@dataclass(frozen=True)
class Call:
    """A call of a saver about a thread, and what there is before."""

    run: Callable[[CachedPostgresSaver, str], Awaitable[Any]]
    warm: bool = True
    during: Callable[[CachedPostgresSaver, Namespace], AbstractAsyncContextManager[None]] | None = None
    with_redis_gone: bool = True


CALLS = {
    "aget_tuple, hit": Call(get, with_redis_gone=False),
    "aget_tuple, load": Call(get, warm=False),
    "aget_tuple, wait": Call(get, warm=False, during=loading, with_redis_gone=False),
    "aget_tuple, bypass": Call(get, during=writing, with_redis_gone=False),
    "aget_tuple, by id": Call(lambda s, t: s.aget_tuple(at(t, FIRST))),
    "alist": Call(search, with_redis_gone=False),
    "alist, left early": Call(search_and_leave, with_redis_gone=False),
    "aput": Call(put),
    "aput_writes": Call(put_writes),
    "adelete_thread": Call(lambda s, t: s.adelete_thread(t)),
    "aprune, keep_latest": Call(lambda s, t: s.aprune([t], strategy="keep_latest")),
    "aprune, delete": Call(lambda s, t: s.aprune([t], strategy="delete")),
    "acopy_thread": Call(lambda s, t: s.acopy_thread(t, f"{t} copied")),
    "adelete_for_runs": Call(lambda s, t: s.adelete_for_runs(["a run"], thread_ids=[t])),
    "aget_delta_channel_history": Call(
        lambda s, t: s.aget_delta_channel_history(config=at(t, SECOND), channels=["x"]), with_redis_gone=False
    ),
    "setup, nothing to do": Call(lambda s, t: s.setup()),
    "aclose": Call(close),
}


STRIDE = int(os.environ.get("CANCELLATION_STRIDE", "4"))
"""Distance of the moments at which a call is cancelled: with 1 each of them is tried."""


# -- the tests ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared_database_url(databases: servers.Databases, migrated_template_url: str) -> Iterator[str]:
    with databases.fresh(migrated_template_url) as url:
        yield url


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    """No task has failed unnoticed or was dropped, and no coroutine was forgotten."""
    yield
    gc.collect()
    records = [record for phase in ("call", "teardown") for record in caplog.get_records(phase)]
    assert not [r.getMessage() for r in records if r.name == "asyncio" and r.levelno >= logging.ERROR]
    assert not [str(w.message) for w in recwarn if "never awaited" in str(w.message)]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    return Events(monkeypatch)


@pytest.mark.parametrize("gone", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "redis gone"])
@pytest.mark.parametrize("kind", ["pool", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])])
@pytest.mark.parametrize("name", CALLS)
async def test_a_call_is_cancelled(
    name: str,
    kind: str,
    gone: bool,
    events: Events,
    shared_database_url: str,
    redis_url: str,
    redis_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = CALLS[name]
    if gone and not call.with_redis_gone:
        pytest.skip("has nothing to do with Redis, or does what a load does")
    monkeypatch.setattr(read_path, "WAIT_SECONDS_MAX", 0.02)
    async with open_world(kind, shared_database_url, redis_url, redis_prefix, gone=gone) as world:
        expected: dict[bool, Any] = {}

        async def run(moment: int) -> bool:
            """Compares with what there was before, and is there after the call was not cancelled."""
            thread, saver = f"{redis_prefix} {moment}", world.saver()
            await world.prepare(thread, warm=call.warm)
            begins = moment > 0
            if not expected:
                expected[False] = await world.stored(thread)
                await world.prepare(f"{thread} undisturbed", warm=False)
                await call.run(saver, f"{thread} undisturbed")
                expected[True] = await world.stored(f"{thread} undisturbed")
                await saver.aclose()
                saver = world.saver()
            other = world.another_saver()
            async with call.during(other, Namespace(thread, "")) if call.during else nullcontext():
                cancelled = await was_cancelled(call.run(saver, thread), events, moment)
                await asyncio.wait_for(saver.aclose(), PATIENT_SECONDS)
                await BESIDE.drain()
            await other.aclose()
            await world.assert_nothing_is_left()
            assert await world.stored(thread) == expected[begins]
            await world.assert_agree(thread)
            return cancelled

        await moments(run, stride=STRIDE)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_migration_that_is_cancelled_is_done_to_its_end(
    kind: str, events: Events, database_url: str, redis_url: str, redis_prefix: str
) -> None:
    async with open_world(kind, database_url, redis_url, redis_prefix, gone=False) as world:

        async def ask(query: str) -> list[Any]:
            return await (await world.watch.conn.execute(query)).fetchall()  # type: ignore[union-attr,arg-type]

        async def run(moment: int) -> bool:
            if (
                kind == "pipeline"
            ):  # there the upstream saver can make no index, so that only our own table is missing
                await world.another_saver().setup()
                removals = ["drop table checkpoint_cache_stale_threads"]
            else:
                removals = ["drop schema public cascade", "create schema public"]
            for statement in removals:
                await world.watch.conn.execute(statement)  # type: ignore[union-attr,arg-type]
            saver = world.saver()
            cancelled = await was_cancelled(saver.setup(), events, moment)
            await asyncio.wait_for(saver.aclose(), PATIENT_SECONDS)
            await world.assert_nothing_is_left()
            assert not await ask("select from pg_index where not indisvalid")
            assert not await ask("select from pg_locks where locktype = 'advisory'")
            tables = await ask("select tablename from pg_tables where schemaname = 'public'")
            assert len(tables) == 7 or (moment < MIGRATING and len(tables) in (0, 4, 5, 6))
            await asyncio.wait_for(world.another_saver().setup(), PATIENT_SECONDS)
            return cancelled

        await moments(run, stride=8)


async def test_cancelled_setup_does_not_wait_for_another_process(
    events: Events, database_url: str, redis_url: str, redis_prefix: str
) -> None:
    async with open_world("single", database_url, redis_url, redis_prefix, gone=False) as world:
        await world.watch.conn.execute(f"select pg_advisory_lock({MIGRATION_LOCK})")  # type: ignore[union-attr,arg-type]
        saver = world.saver()
        assert await was_cancelled(saver.setup(), events, 40 * TICKS)
        await asyncio.wait_for(saver.aclose(), PATIENT_SECONDS)
        await world.assert_nothing_is_left()


@pytest.mark.parametrize("gone", [False, True], ids=["", "redis gone"])
async def test_a_classification_is_cancelled(
    gone: bool, events: Events, redis_url: str, redis_prefix: str
) -> None:
    async with client_of(redis_url, gone=gone) as client, Redis.from_url(redis_url) as redis:
        asked: list[str] = []

        async def classify(message: str) -> str:
            asked.append(message)
            await redis.ping()
            return message.upper()

        async def run(moment: int) -> bool:
            intents, others = (
                IntentCache[str](client, prefix=redis_prefix),
                IntentCache[str](redis, prefix=redis_prefix),
            )
            asked.clear()
            cancelled = await was_cancelled(intents.get_or_classify(f"m{moment}", classify), events, moment)
            while work := working():
                assert (await asyncio.wait(work, timeout=PATIENT_SECONDS))[0], f"still running: {work}"
            assert len(asked) == (moment > 0), "it was not done to its end"
            assert not connections_in_use(client)
            assert not [key async for key in redis.scan_iter(match=f"{redis_prefix}*:lock")]
            assert await others.get_or_classify(f"m{moment}", classify) == f"M{moment}"
            assert len(asked) == 1 + (gone and moment > 0), "it was not kept"
            return cancelled

        await moments(run)


@pytest.mark.slow
@pytest.mark.parametrize("gone", [False, True], ids=["", "redis gone"])
@pytest.mark.parametrize("kind", ["pool", "single"])
def test_the_loop_ends(
    kind: str,
    gone: bool,
    events: Events,
    shared_database_url: str,
    redis_url: str,
    redis_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With calls under way, on connections that nobody closes: each is done or not, and what is told is true."""
    monkeypatch.setattr(read_path, "WAIT_SECONDS_MAX", 0.02)
    names = ("aput", "aput_writes", "adelete_thread", "aprune, delete", "aget_tuple, load")

    def opened() -> AbstractAsyncContextManager[World]:
        return open_world("single", shared_database_url, redis_url, redis_prefix, gone=False)

    async def prepare(moment: int) -> dict[str, Any]:
        async with opened() as world:
            for name in names:
                await world.prepare(f"{redis_prefix} {moment} {name}", warm=CALLS[name].warm)
            return {name: await world.stored(f"{redis_prefix} {moment} {name}") for name in names}

    async def end(moment: int) -> set[str]:
        """The calls that have returned."""
        client, conn = client_of(redis_url, gone=gone), await connect(kind, shared_database_url)
        if kind == "pool":
            await conn.open(wait=True)
        saver = new_saver(client, AsyncPostgresSaver(conn), redis_prefix)
        over = asyncio.Event()
        events.at(moment // TICKS, over.set)
        calls = {n: asyncio.ensure_future(CALLS[n].run(saver, f"{redis_prefix} {moment} {n}")) for n in names}
        done = asyncio.ensure_future(asyncio.wait(calls.values()))
        done.add_done_callback(lambda _: over.set())
        await over.wait()
        for _ in range(moment % TICKS):
            await asyncio.sleep(0)
        return {name for name, call in calls.items() if call.done() and call.result() is None}

    async def check(moment: int, before: dict[str, Any], returned: set[str]) -> None:
        async with opened() as world:
            if gone:
                await inspect(world.another_saver()).invalidator.invalidate_stale()
            for name in names:
                thread = f"{redis_prefix} {moment} {name}"
                stored = await world.stored(thread)
                assert stored == after[name] or (stored == before[name] and name not in returned)
                expected = await world.watch.aget_tuple(on_thread(thread))
                assert await world.another_saver().aget_tuple(on_thread(thread)) == expected

    async def undisturbed() -> dict[str, Any]:
        async with opened() as world:
            for name in names:
                await world.prepare(name)
                await CALLS[name].run(world.another_saver(), name)
            return {name: await world.stored(name) for name in names}

    after = asyncio.run(undisturbed())
    for moment in itertools.count(0, 11):
        before = asyncio.run(prepare(moment))
        returned = asyncio.run(end(moment))
        asyncio.run(check(moment, before, returned))
        if returned == {*names}:
            break
    assert moment > 10 * TICKS
