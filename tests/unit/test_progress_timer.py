"""Timer that measures work and not the event loop: when it expires, and when it must not."""

from __future__ import annotations

import asyncio
import sys
import time

import pytest

from langgraph_checkpoint_cached.utils import progress_timer
from langgraph_checkpoint_cached.utils.progress_timer import SLICES, ProgressTimer, running_timeout

SECONDS = 0.04


class Work:
    """Work that a timer watches."""

    def __init__(self) -> None:
        self.current: object | None = self
        self.amount = 0
        self.expired = asyncio.Event()
        self.timer = ProgressTimer(SECONDS, lambda: (self.current, self.amount), self.expired.set)


async def test_work_without_progress_expires_once() -> None:
    work = Work()
    started = time.monotonic()
    work.timer.start()
    assert work.timer.is_running
    await work.expired.wait()
    assert time.monotonic() - started >= SECONDS
    assert not work.timer.is_running


async def test_progress_extends_the_time_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_timer, "PROGRESS_SECONDS_MAX", 5 * SECONDS)
    work = Work()
    started = time.monotonic()
    work.timer.start()
    while not work.expired.is_set():
        work.amount += 1
        await asyncio.sleep(SECONDS / SLICES / 4)
    assert time.monotonic() - started >= 5 * SECONDS


async def test_timer_stops_a_while_after_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_timer, "LINGER_SECONDS", SECONDS)
    work = Work()
    work.current = None
    work.timer.start()
    await asyncio.sleep(SECONDS / 2)
    assert work.timer.is_running
    work.current = work
    await asyncio.sleep(SECONDS / 2)
    work.current = None
    while work.timer.is_running:
        await asyncio.sleep(SECONDS / SLICES)
    assert not work.expired.is_set()
    work.current = work
    work.timer.start()
    work.timer.stop()
    await asyncio.sleep(2 * SECONDS)
    assert not work.expired.is_set()


async def test_next_piece_of_work_has_its_own_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_timer, "PROGRESS_SECONDS_MAX", 2 * SECONDS)
    work = Work()
    work.timer.start()
    for number in range(8 * SLICES):
        work.current, work.amount = object(), number
        await asyncio.sleep(SECONDS / SLICES / 2)
    assert not work.expired.is_set()
    work.timer.stop()


async def test_blocked_loop_takes_no_time_away() -> None:
    async with running_timeout(SECONDS):
        waiting = asyncio.ensure_future(asyncio.sleep(SECONDS / 4))
        await asyncio.sleep(0)
        time.sleep(3 * SECONDS)
        await waiting
        await asyncio.sleep(SECONDS / 4)


async def test_running_timeout_raises_and_keeps_other_errors() -> None:
    with pytest.raises(asyncio.TimeoutError):
        async with running_timeout(SECONDS):
            await asyncio.sleep(10)
    with pytest.raises(KeyError):
        async with running_timeout(SECONDS):
            raise KeyError


async def test_cancelled_task_is_not_told_of_a_timeout() -> None:
    async def work() -> None:
        async with running_timeout(10.0):
            await asyncio.sleep(10)

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio counts cancellations since 3.11")
async def test_task_cancelled_while_its_timeout_ends_stays_cancelled() -> None:
    async def work() -> None:
        async with running_timeout(SECONDS):
            try:
                await asyncio.sleep(10)
            finally:
                task.cancel()

    task = asyncio.ensure_future(work())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_always_late_loop_is_no_reason_to_wait_for_good() -> None:
    work = Work()
    work.timer.start()
    while not work.expired.is_set():
        time.sleep(SECONDS / 2)
        await asyncio.sleep(0)
