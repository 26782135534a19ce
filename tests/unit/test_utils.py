"""Breaker and tasks."""

from __future__ import annotations

import asyncio
import gc
import os
import random

import pytest

from langgraph_checkpoint_cached import channel_versions
from langgraph_checkpoint_cached.channel_versions import UnstoredVersions
from langgraph_checkpoint_cached.stores.redis import entries
from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks
from langgraph_checkpoint_cached.utils.circuit_breaker import CircuitBreaker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_breaker_allows_one_probe_at_a_time_when_due() -> None:
    clock = Clock()
    breaker = CircuitBreaker(retry_seconds=1, clock=clock)
    assert breaker.fail()  # this one opened it
    assert not breaker.fail()
    assert not breaker.take_probe()
    clock.now += 1
    assert breaker.take_probe()
    assert not breaker.take_probe()
    breaker.end_probe(succeeded=True)
    assert breaker.closed
    assert not breaker.take_probe()


def test_breaker_waits_longer_after_each_failed_probe() -> None:
    clock = Clock()
    breaker = CircuitBreaker(retry_seconds=1, retry_seconds_max=4, clock=clock)
    breaker.fail()
    waits = []
    for _ in range(5):
        waited = 0
        while not breaker.take_probe():
            clock.now += 1
            waited += 1
        breaker.end_probe(succeeded=False)
        waits.append(waited)
    assert waits == [1, 2, 4, 4, 4]


def test_failures_while_open_do_not_put_the_probe_off() -> None:
    clock = Clock()
    breaker = CircuitBreaker(retry_seconds=1, clock=clock)
    breaker.fail()
    clock.now += 0.9
    breaker.fail()
    clock.now += 0.1
    assert breaker.take_probe()


async def test_work_goes_on_when_its_caller_is_cancelled() -> None:
    tasks, gate, done = BackgroundTasks(), asyncio.Event(), []

    async def work() -> None:
        await gate.wait()
        done.append(True)

    caller = asyncio.ensure_future(tasks.finish(work()))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert len(tasks) == 1
    gate.set()
    await tasks.drain()
    assert done == [True]
    assert len(tasks) == 0


async def test_error_without_waiter_is_not_reported_by_loop() -> None:
    tasks, gate, reports = BackgroundTasks(), asyncio.Event(), []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reports.append(context))

    async def work() -> None:
        await gate.wait()
        raise ValueError("late")

    caller = asyncio.ensure_future(tasks.finish(work()))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    gate.set()
    await tasks.drain()
    gc.collect()
    assert reports == []


def test_a_version_is_unused_once_and_only_where_it_was_minted(monkeypatch: pytest.MonkeyPatch) -> None:
    minted = UnstoredVersions()
    minted.add("1")
    assert [minted.take(version) for version in ("1", "1", "2", 3, None)] == [True, False, False, False, False]
    monkeypatch.setattr(channel_versions, "UNSTORED_MAX", 2)
    for version in "abc":
        minted.add(version)
    assert [minted.take(version) for version in "abc"] == [False, True, True]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_tokens_differ_after_fork_and_seed() -> None:
    random.seed(1)
    first = entries.new_token()
    random.seed(1)
    assert entries.new_token() != first
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, entries.new_token().encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 100).decode() != entries.new_token()
    os.close(reader)
    os.close(writer)
