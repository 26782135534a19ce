"""Savers that are closed, and savers that never are: errors of their callers, and what is left behind."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from typing import Any

import pytest

from langgraph_checkpoint_cached import CachedPostgresSaver, ClosedError, SyncCachedPostgresSaver
from tests.support.agreement import CACHED, Tiers, new_checkpoint, on_thread
from tests.support.proxy import Proxy
from tests.support.scripts import Ended, Process, graph_of

pytestmark = pytest.mark.integration

CONFIG = on_thread(CACHED, checkpoint_ns="")
METADATA: Any = {"source": "loop", "step": 0, "parents": {}}
WRITES = on_thread(CACHED, checkpoint_ns="", checkpoint_id="1")


async def listed(saver: Any) -> list[Any]:
    return [found async for found in saver.alist(CONFIG)]


ASYNC_CALLS: dict[str, Callable[[Any], Any]] = {
    "aget_tuple": lambda saver: saver.aget_tuple(CONFIG),
    "alist": listed,
    "aput": lambda saver: saver.aput(CONFIG, new_checkpoint(), METADATA, {}),
    "aput_writes": lambda saver: saver.aput_writes(WRITES, [("c", 1)], "t"),
    "adelete_thread": lambda saver: saver.adelete_thread(CACHED),
    "aprune": lambda saver: saver.aprune([CACHED]),
    "acopy_thread": lambda saver: saver.acopy_thread(CACHED, "copy"),
    "adelete_for_runs": lambda saver: saver.adelete_for_runs(["run"]),
    "adelete_idle_threads": lambda saver: saver.adelete_idle_threads(1),
    "aget_delta_channel_history": lambda saver: saver.aget_delta_channel_history(config=WRITES, channels=["c"]),
    "aflush": lambda saver: saver.aflush(),
    "setup": lambda saver: saver.setup(),
}
SYNC_CALLS: dict[str, Callable[[Any], Any]] = {
    "get_tuple": lambda saver: saver.get_tuple(CONFIG),
    "list": lambda saver: list(saver.list(CONFIG)),
    "put": lambda saver: saver.put(CONFIG, new_checkpoint(), METADATA, {}),
    "put_writes": lambda saver: saver.put_writes(WRITES, [("c", 1)], "t"),
    "delete_thread": lambda saver: saver.delete_thread(CACHED),
    "prune": lambda saver: saver.prune([CACHED]),
    "copy_thread": lambda saver: saver.copy_thread(CACHED, "copy"),
    "delete_for_runs": lambda saver: saver.delete_for_runs(["run"]),
    "delete_idle_threads": lambda saver: saver.delete_idle_threads(1),
    "get_delta_channel_history": lambda saver: saver.get_delta_channel_history(config=WRITES, channels=["c"]),
    "flush": lambda saver: saver.flush(),
}


async def test_calls_after_close_say_closed(tiers: Tiers) -> None:
    """By the saver, its copies, and from other threads; nothing is written."""
    alike = copy.copy(tiers.saver)
    await tiers.saver.aput(CONFIG, new_checkpoint(id="1"), METADATA, {})
    await tiers.saver.aclose()
    await tiers.saver.aclose()
    for saver in (tiers.saver, alike):
        for method, call in ASYNC_CALLS.items():
            with pytest.raises(ClosedError, match=f"^{method}.*is closed"):
                await call(saver)
        for method, sync_call in SYNC_CALLS.items():
            with pytest.raises(ClosedError, match=f"^{method}.*is closed"):
                await asyncio.to_thread(sync_call, saver)
    assert len([found async for found in tiers.upstream.alist(None)]) == 1
    assert tiers.saver.stats()["writes"] == 1, "counters can still be read"


@pytest.mark.parametrize("cls", [CachedPostgresSaver, SyncCachedPostgresSaver])
def test_graph_used_after_block_says_closed(
    migrated_database_url: str, redis_url: str, redis_prefix: str, cls: Any
) -> None:
    opening = cls.from_conn_string(migrated_database_url, redis_url, prefix=redis_prefix)

    async def in_block() -> Any:
        async with opening as saver:
            graph = graph_of(saver)
            await graph.ainvoke({"steps": []}, CONFIG)
        with pytest.raises(ClosedError):
            await graph.ainvoke({"steps": []}, CONFIG)
        return graph

    if cls is CachedPostgresSaver:
        graph = asyncio.run(in_block())
    else:
        with opening as saver:
            graph = graph_of(saver)
            graph.invoke({"steps": []}, CONFIG)
        saver.close()
    with pytest.raises(ClosedError, match="Use the graph inside the block") as caught:
        graph.invoke({"steps": []}, CONFIG)
    assert cls.__name__ not in str(caught.value), "advice to use the class that is in use"


@pytest.fixture
def run(migrated_database_url: str, redis_url: str, redis_prefix: str) -> Callable[..., Ended]:
    """Run a script on the test's servers to its end."""

    def run(body: str, postgres_url: str = migrated_database_url) -> Ended:
        return Process(body, (postgres_url, redis_url), redis_prefix, ["-W", "error"]).end()

    return run


LEFT_OPEN = {
    "held": """
async def main():
    global opened
    opened = opening_async()
    saver = await opened.__aenter__()
    await graph_of(saver).ainvoke({"steps": []}, on(1))
""",
    "held, write-behind": """
async def main():
    global opened
    opened = opening_async(mode="write_behind")
    saver = await opened.__aenter__()
    await graph_of(saver).ainvoke({"steps": []}, on(1))
    assert saver.stats()["appends"]
""",
    "saver alone held": """
async def main():
    global saver
    saver = await opening_async().__aenter__()
    await asyncio.sleep(0.1)
    await graph_of(saver).ainvoke({"steps": []}, on(1))
""",
    "in use": """
async def main():
    global opened
    opened = opening_async()
    saver = await opened.__aenter__()
    graph = graph_of(saver)
    tasks = [asyncio.create_task(graph.ainvoke({"steps": []}, on(n))) for n in range(8)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
""",
    "clients of the caller": """
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection
from psycopg.rows import dict_row
from redis.asyncio import Redis
async def main():
    async with await AsyncConnection.connect(
        os.environ["SCRIPT_POSTGRES"], autocommit=True, row_factory=dict_row
    ) as conn, Redis.from_url(os.environ["SCRIPT_REDIS"]) as redis:
        saver = CachedPostgresSaver(redis, AsyncPostgresSaver(conn), prefix=os.environ["SCRIPT_PREFIX"])
        await graph_of(saver).ainvoke({"steps": []}, on(1))
""",
}


@pytest.mark.parametrize("script", LEFT_OPEN)
def test_asyncio_run_ends_with_open_saver(run: Callable[..., Ended], script: str) -> None:
    ended = run(f"{LEFT_OPEN[script]}\nasyncio.run(main())")
    assert ended.code == 0, ended.err
    assert ended.err == ""


@pytest.mark.slow
def test_thread_waits_when_event_loop_ends(run: Callable[..., Ended]) -> None:
    """A thread that is in a call while `asyncio.run` ends hears of it, and so does the next call."""
    ended = run("""
errors = []
def call(saver):
    while len(errors) < 2:
        try:
            saver.get_tuple(on(1))
        except ClosedError as exc:
            errors.append(exc)

async def main():
    async with opening_async() as saver:
        global threads
        threads = [threading.Thread(target=call, args=(saver,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        await asyncio.sleep(0.3)

asyncio.run(main())
for thread in threads:
    thread.join(10)
assert not [thread for thread in threads if thread.is_alive()]
assert len(errors) >= 2
""")
    assert ended.code == 0, ended.err
    assert ended.err == ""


@pytest.mark.slow
def test_forgotten_sync_saver_is_closed(run: Callable[..., Ended]) -> None:
    """As by a notebook that runs its cell again."""
    ended = run("""
for _ in range(3):
    saver = opening().__enter__()
    graph_of(saver).invoke({"steps": []}, on(1))
    alike = saver.with_allowlist([("a", "b")]) if hasattr(saver, "with_allowlist") else saver
    assert sockets()
    del saver
    gc.collect()
    assert alike.get_tuple(on(1)), "a copy lives"
    del alike
    gc.collect()
    deadline = time.monotonic() + 10
    while (left := threading.active_count() > 1 or sockets()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left
""")
    assert ended.code == 0, ended.err


@pytest.mark.slow
def test_close_is_bounded_without_answer(
    run: Callable[..., Ended], proxies: Callable[[str], Proxy], migrated_database_url: str
) -> None:
    """Postgres is silent: closing takes as long as it may, and those who wait for it hear that it is closed."""
    proxy = proxies(migrated_database_url)
    ended = run(
        """
import urllib.request
from langgraph_checkpoint_cached import sync_saver
from langgraph_checkpoint_cached.utils import background_loop
sync_saver.FLUSH_SECONDS_MAX = background_loop.CLOSE_SECONDS_MAX = background_loop.CANCEL_SECONDS_MAX = 1.0
with opening() as saver:
    graph_of(saver).invoke({"steps": []}, on(1))
""",
        proxy.url,
    )
    assert ended.code == 0, ended.err
