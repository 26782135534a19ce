"""`adelete_idle_threads`: what nobody uses any more goes, a batch at a time, and nothing else does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from langgraph_checkpoint_cached import (
    ArgumentError,
    ArgumentTypeError,
    CachedPostgresSaver,
    IdleThreads,
    SyncCachedPostgresSaver,
)
from langgraph_checkpoint_cached.demo.embedded import LOCALHOST, free_port
from langgraph_checkpoint_cached.engine import thread_operations
from langgraph_checkpoint_cached.retention import first_id_since
from langgraph_checkpoint_cached.stores.postgres import thread_maintenance
from tests.integration.test_field_notes_threads import THREAD_IDS
from tests.support.agreement import Tiers, new_checkpoint, on_thread
from tests.support.inspect import MAINTENANCE_ROWS
from tests.support.rows import NONE, count_of, rows_of

pytestmark = pytest.mark.integration

HOUR = 3600.0


def id_of(hours_ago: float) -> str:
    """That a checkpoint would have which was made then."""
    return first_id_since(time.time() - hours_ago * HOUR)


async def put(saver: Any, thread_id: str, hours_ago: float, checkpoint_ns: str = "", **more: str) -> Any:
    """A checkpoint of that age, with a value and a pending write."""
    version = saver.get_next_version(None, None)
    checkpoint = new_checkpoint(
        **{"id": id_of(hours_ago), "channel_values": {"x": [1]}, "channel_versions": {"x": version}, **more}
    )
    stored = await saver.aput(on_thread(thread_id, checkpoint_ns=checkpoint_ns), checkpoint, {}, {"x": version})
    await saver.aput_writes(stored, [("x", 1)], "task")
    return stored


async def there(tiers: Tiers, *thread_ids: str) -> set[str]:
    """Those that both tiers have."""
    ours = {t for t in thread_ids if await tiers.saver.aget_tuple(on_thread(t))}
    assert ours == {t for t in thread_ids if await tiers.upstream.aget_tuple(on_thread(t))}
    return ours


async def test_only_what_is_idle_for_so_long_goes(tiers: Tiers) -> None:
    for thread_id, age in (("old", 30), ("older", 50), ("young", 1)):
        await put(tiers.saver, thread_id, age + 1)
        await put(tiers.saver, thread_id, age)
    seen: list[IdleThreads] = []
    expected = IdleThreads(threads=2, checkpoints=4, blobs=4, writes=4, looked_at=3)
    would = await tiers.saver.adelete_idle_threads(24 * HOUR, dry_run=True, progress=seen.append)
    assert would == expected == seen[-1]
    assert await there(tiers, "old", "older", "young") == {"old", "older", "young"}
    assert await tiers.saver.adelete_idle_threads(timedelta(days=1)) == expected
    assert await there(tiers, "old", "older", "young") == {"young"}
    assert await count_of(tiers, "old") == await count_of(tiers, "older") == NONE
    assert await tiers.saver.adelete_idle_threads(24 * HOUR) == IdleThreads(looked_at=1)


async def test_a_younger_checkpoint_of_any_namespace_keeps_a_thread(tiers: Tiers) -> None:
    await put(tiers.saver, "a", 30)
    await put(tiers.saver, "a", 1, "child:1")
    await put(tiers.saver, "b", 1)
    await put(tiers.saver, "b", 30, "child:1")
    await put(tiers.saver, "c", 30, "child:1")
    before = await rows_of(tiers, "a"), await rows_of(tiers, "b")
    assert (await tiers.saver.adelete_idle_threads(24 * HOUR)).threads == 1
    assert (await rows_of(tiers, "a"), await rows_of(tiers, "b")) == before
    assert await count_of(tiers, "c") == NONE


@pytest.mark.parametrize("undated", ["0", "zz", "1ef0aa11-1111-1111-8000-000000000000"])
async def test_what_cannot_be_dated_is_kept(tiers: Tiers, undated: str) -> None:
    await put(tiers.saver, "a", 30)
    await put(tiers.saver, "a", 30, id=undated)
    await put(tiers.saver, "b", 30)
    found = await tiers.saver.adelete_idle_threads(24 * HOUR)
    assert (found.threads, found.undated, found.looked_at) == (1, 1, 2)
    assert await count_of(tiers, "a") == [2, 2, 2]


async def test_threads_go_whatever_their_names(tiers: Tiers) -> None:
    """Every other one is old; pages and batches end everywhere."""
    for number, thread_id in enumerate(THREAD_IDS):
        await put(tiers.saver, thread_id, 30 if number % 2 else 1)
    found = await tiers.saver.adelete_idle_threads(24 * HOUR, batch_size=1)
    assert found.looked_at == len(THREAD_IDS)
    assert await there(tiers, *THREAD_IDS) == set(THREAD_IDS[::2])


@pytest.mark.parametrize(("page", "batch", "limit"), [(1, 1, 5), (3, 2, 5), (1000, 3, 5), (4, 100, None)])
async def test_it_can_be_stopped_and_called_again(
    tiers: Tiers, monkeypatch: pytest.MonkeyPatch, page: int, batch: int, limit: int | None
) -> None:
    monkeypatch.setattr(thread_operations, "THREADS_OF_A_PAGE", page)
    names = [f"t{number:02}" for number in range(12)]
    for name in names:
        await put(tiers.saver, name, 30)
    left, seen = set(names), []
    while left:
        seen.clear()
        done = await tiers.saver.adelete_idle_threads(
            24 * HOUR, batch_size=batch, limit=limit, progress=seen.append
        )
        assert 0 < done.threads <= (limit or 12)
        assert seen[-1] == done
        assert max(b.threads - a.threads for a, b in zip([IdleThreads(), *seen], seen, strict=False)) <= batch
        assert len(await there(tiers, *names)) == len(left) - done.threads
        left = await there(tiers, *names)


async def test_an_error_of_progress_stops_it_and_so_does_cancelling(tiers: Tiers) -> None:
    names = [f"t{number}" for number in range(6)]
    for name in names:
        await put(tiers.saver, name, 30)

    def stop(done: IdleThreads) -> None:
        raise KeyError(done.threads)

    with pytest.raises(KeyError, match="2"):
        await tiers.saver.adelete_idle_threads(24 * HOUR, batch_size=2, progress=stop)
    assert await there(tiers, *names) == set(names[2:])
    after_one = asyncio.Event()
    work = asyncio.create_task(
        tiers.saver.adelete_idle_threads(24 * HOUR, batch_size=2, pause=30, progress=lambda _: after_one.set())
    )
    await after_one.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert await there(tiers, *names) == set(names[4:])
    assert await tiers.fences_left() == []


async def test_a_thread_that_has_just_become_active_is_kept_whole(
    tiers: Tiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written to after the page was read, and after it was deleted but not committed."""
    for name in ("a", "b", "c"):
        await put(tiers.saver, name, 30)
    rows, page = MAINTENANCE_ROWS.get(), thread_maintenance.page_of_threads
    other = tiers.another_saver()

    async def page_then_write(*arguments: Any) -> Any:
        found = await page(*arguments)
        if found:
            await put(other, "a", 0)
        return found

    async def look_then_write(cur: Any, name: str, parameters: Any) -> Any:
        found = await rows(cur, name, parameters)
        if name == thread_maintenance.DELETE_IDLE and "a" in parameters["threads"]:
            assert found[0]["not_idle"] == ["a"]
        elif name == thread_maintenance.DELETE_IDLE and "b" in parameters["threads"]:
            await put(tiers.upstream, "b", 0)
        return found

    monkeypatch.setattr(thread_maintenance, "page_of_threads", page_then_write)
    monkeypatch.setattr(*MAINTENANCE_ROWS, look_then_write)
    found = await tiers.saver.adelete_idle_threads(24 * HOUR)
    assert (found.threads, found.kept) == (1, 2)
    assert await count_of(tiers, "a") == await count_of(tiers, "b") == [2, 2, 2]
    assert await there(tiers, "a", "b", "c") == {"a", "b"}


async def test_threads_are_deleted_while_others_are_written(tiers: Tiers) -> None:
    """Every thread is old and awakes at some time; none of those that have awoken is harmed."""
    names = [f"t{number:02}" for number in range(40)]
    for name in names:
        await put(tiers.saver, name, 30)
    awake = [tiers.another_saver(), tiers.another_saver()]
    kept: dict[str, Any] = {}

    async def wake(number: int) -> None:
        for name in names[number::4]:
            saver = awake[number]
            found = await saver.aget_tuple(on_thread(name))
            if found is None:
                continue
            kept[name] = await put(saver, name, 0)
            found = await saver.aget_tuple(on_thread(name))
            assert found
            assert found.config == kept[name]
            assert found.checkpoint["channel_values"] == {"x": [1]}

    done, *_ = await asyncio.gather(tiers.saver.adelete_idle_threads(24 * HOUR, batch_size=3), wake(0), wake(1))
    assert kept
    assert done.threads
    assert await there(tiers, *names) >= set(kept)
    await tiers.saver.adelete_idle_threads(24 * HOUR)
    assert await there(tiers, *names) == set(kept)


async def test_idle_threads_are_deleted_and_unserved_without_redis(tiers: Tiers) -> None:
    for name, age in (("old", 30), ("young", 1)):
        await put(tiers.saver, name, age)
        await tiers.saver.aget_tuple(on_thread(name))
    async with CachedPostgresSaver.from_conn_string(
        tiers.postgres_url, f"redis://{LOCALHOST}:{free_port()}", prefix=tiers.prefix
    ) as alone:
        await alone.setup()
        await alone.acopy_thread("young", "copy")
        assert (await alone.adelete_idle_threads(24 * HOUR)).threads == 1
        await alone.adelete_for_runs(["none"])
        assert await count_of(tiers, "old") == NONE
    other = tiers.another_saver()  # which looks at the table of stale threads first, if the other has not
    assert await other.aget_tuple(on_thread("old")) is None
    assert await other.aget_tuple(on_thread("copy"))
    assert tiers.saver.stats()["stale_threads"] + other.stats()["stale_threads"] >= 2


def test_all_of_it_without_an_event_loop(migrated_database_url: str, redis_url: str, redis_prefix: str) -> None:
    with SyncCachedPostgresSaver.from_conn_string(migrated_database_url, redis_url, prefix=redis_prefix) as saver:
        for name, age in (("a", 30), ("b", 1)):
            config = saver.put(
                on_thread(name, checkpoint_ns=""), new_checkpoint(id=id_of(age)), {"run_id": f"run {name}"}, {}
            )
            saver.put_writes(config, [("x", 1)], "task")
        saver.copy_thread("a", "c")
        assert saver.get_tuple(on_thread("c"))
        saver.delete_for_runs(["run a"], thread_ids=["a"])
        assert saver.get_tuple(on_thread("a")) is None
        seen: list[IdleThreads] = []
        assert saver.delete_idle_threads(24 * HOUR, dry_run=True).threads == 1
        assert saver.delete_idle_threads(24 * HOUR, progress=seen.append) == seen[-1]
        assert saver.get_tuple(on_thread("c")) is None
        assert saver.get_tuple(on_thread("b"))


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"idle_for": 0}, ArgumentError, "idle_for"),
        ({"idle_for": "1d"}, ArgumentTypeError, "idle_for"),
        ({"batch_size": 0}, ArgumentError, "batch_size"),
        ({"batch_size": 101}, ArgumentError, "batch_size"),
        ({"batch_size": 1.0}, ArgumentTypeError, "batch_size"),
        ({"limit": 0}, ArgumentError, "limit"),
        ({"limit": True}, ArgumentTypeError, "limit"),
        ({"pause": -1}, ArgumentError, "pause"),
        ({"pause": 61}, ArgumentError, "pause"),
    ],
)
async def test_what_cannot_be_meant_is_refused(
    tiers: Tiers, options: dict[str, Any], error: type[Exception], named: str
) -> None:
    call: Callable[..., Any] = tiers.saver.adelete_idle_threads
    with pytest.raises(error, match=named):
        await call(**{"idle_for": HOUR, **options})
