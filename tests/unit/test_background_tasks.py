"""Background tasks: they outlive their callers, and none is left behind by a loop that ends."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Coroutine
from typing import Any

import pytest

from langgraph_checkpoint_cached.utils import background_tasks
from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks

SECONDS = 0.01


def left_behind(caplog: pytest.LogCaptureFixture) -> list[str]:
    gc.collect()
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def never() -> None:
    await asyncio.Event().wait()


async def test_cancelled_caller_leaves_the_work_to_its_end() -> None:
    tasks, ended = BackgroundTasks(), asyncio.Event()

    async def work() -> None:
        await asyncio.sleep(SECONDS)
        ended.set()

    caller = asyncio.ensure_future(tasks.finish(work()))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert not ended.is_set()
    await tasks.drain()
    assert ended.is_set()


def test_work_that_begins_while_the_loop_ends_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    tasks, others, ended = BackgroundTasks(), BackgroundTasks(), []

    async def later() -> None:
        await asyncio.sleep(SECONDS)
        others.start(last())

    async def last() -> None:
        await asyncio.sleep(SECONDS)
        ended.append(True)

    async def work() -> None:
        try:
            await never()
        finally:
            others.start(later())

    async def main() -> None:
        tasks.start(never())
        tasks.start(work())
        tasks.start(never())
        await asyncio.sleep(0)

    asyncio.run(main())
    assert ended == [True]
    assert not left_behind(caplog)


def test_work_left_behind_by_a_loop_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    tasks = BackgroundTasks()

    async def main() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        task.add_done_callback(lambda _: loop.call_soon(tasks.start, never()))

    asyncio.run(main())
    assert len(tasks) == 1
    tasks = BackgroundTasks()
    assert not left_behind(caplog)


def test_ending_loop_waits_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_tasks, "LINGER_SECONDS_MAX", SECONDS)
    tasks = BackgroundTasks()
    later: list[asyncio.Task[None]] = []

    async def work() -> None:
        try:
            await never()
        finally:
            later.append(tasks.start(never()))

    async def main() -> None:
        tasks.start(work())
        await asyncio.sleep(0)

    asyncio.run(main())
    assert not later[0].done()


async def test_task_cancelled_by_its_owner_waits_for_nothing() -> None:
    tasks = BackgroundTasks()
    other, cancelled = tasks.start(never()), tasks.start(never())
    await asyncio.sleep(0)
    tasks.cancel(cancelled)
    await asyncio.wait((cancelled,), timeout=SECONDS)
    assert cancelled.cancelled()
    tasks.cancel(other)


@pytest.mark.filterwarnings("error")
async def test_work_cancelled_before_it_began_is_closed() -> None:
    tasks, begun = BackgroundTasks(), []

    async def work() -> None:
        begun.append(True)

    coroutine: Coroutine[Any, Any, None] = work()
    task = tasks.start(coroutine)
    tasks.cancel(task)
    await tasks.drain()
    assert task.cancelled()
    assert not begun
    with pytest.raises(RuntimeError):
        coroutine.send(None)  # it is over
