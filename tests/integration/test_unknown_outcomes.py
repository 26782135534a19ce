"""A worker that has lost Redis loses Postgres too, during a commit: the write may be there, and nobody knows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.stores.redis import fences as fences_module
from tests.support.agreement import eventually, new_checkpoint, on_thread
from tests.support.proxy import Proxy

pytestmark = pytest.mark.integration

FENCE_SECONDS = 1.0
SLOW_COMMIT = """
    create function dawdle() returns trigger language plpgsql as $$
        begin perform pg_sleep(0.5); return null; end $$;
    create constraint trigger dawdle after insert or delete on checkpoints deferrable initially deferred
        for each row execute function dawdle();
"""
LATEST = on_thread("t", checkpoint_ns="")


async def put(saver: CachedPostgresSaver) -> None:
    checkpoint = new_checkpoint(channel_values={"value": 1}, channel_versions={"value": "1"})
    await saver.aput(LATEST, checkpoint, {}, {"value": "1"})


async def delete(saver: CachedPostgresSaver) -> None:
    await saver.adelete_thread("t")


@pytest.mark.parametrize("change", [put, delete])
async def test_unfenced_write_of_unknown_outcome_is_served_in_the_end(
    change: Callable[[CachedPostgresSaver], Awaitable[None]],
    migrated_database_url: str,
    redis_url: str,
    redis_prefix: str,
    proxies: Callable[[str], Proxy],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fences_module, "FENCE_MS", round(FENCE_SECONDS * 1000))
    monkeypatch.setattr(fences_module, "FENCE_MARGIN_SECONDS", FENCE_SECONDS / 2)
    redis_proxy, postgres_proxy = proxies(redis_url), proxies(migrated_database_url)
    async with AsyncExitStack() as stack:

        async def saver(postgres_url: str, redis_url: str) -> CachedPostgresSaver:
            made = CachedPostgresSaver.from_conn_string(
                postgres_url, redis_url, prefix=redis_prefix, redis_timeout=0.3
            )
            return await stack.enter_async_context(made)

        alone = await saver(postgres_proxy.url, redis_proxy.url)
        other = await saver(migrated_database_url, redis_url)
        await put(alone)
        before = await other.aget_tuple(LATEST)

        redis_proxy.stop()
        await alone.aget_tuple(LATEST)  # it knows now
        admin = await stack.enter_async_context(
            await psycopg.AsyncConnection.connect(migrated_database_url, autocommit=True)
        )
        await admin.execute(SLOW_COMMIT)
        write = asyncio.ensure_future(change(alone))

        async def is_committing() -> bool:
            found = await admin.execute("select from pg_stat_activity where wait_event = 'PgSleep'")
            return bool(found.rowcount)

        await eventually(is_committing)
        postgres_proxy.mute()  # nobody hears of it

        async def committed() -> bool:
            return [item async for item in other.alist(LATEST)][:1] != [before]

        await eventually(committed)
        postgres_proxy.cut()
        with pytest.raises(psycopg.OperationalError):
            await write
        postgres_proxy.hear()
        redis_proxy.start()

        async def is_back() -> bool:
            degraded = alone.stats()["degraded_reads"]
            await alone.aget_tuple(on_thread("another", checkpoint_ns=""))
            return alone.stats()["degraded_reads"] == degraded

        await eventually(is_back)

        async def agrees() -> Any:
            latest = [item async for item in other.alist(LATEST)][:1]
            found = await other.aget_tuple(LATEST)
            return ([found] if found else []) == latest

        assert await eventually(agrees)
