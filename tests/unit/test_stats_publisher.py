from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from langgraph_checkpoint_cached.engine import stats_publisher
from langgraph_checkpoint_cached.engine.stats_publisher import EXPIRY_SECONDS, StatsPublisher
from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.stats import Stats
from langgraph_checkpoint_cached.stores.redis.health import RedisUnavailable
from tests.support.inspect import timer


class RecordingExecutor:
    """Keeps what is published, and replies when it is told to."""

    def __init__(self) -> None:
        self.health = SimpleNamespace(usable=True)
        self.published: list[tuple[list[str], dict[str, Any], str]] = []
        self.replies: list[asyncio.Future[Any]] = []
        self.replies_at_once = True

    def submit(self, script: object, keys: Sequence[str], arguments: Sequence[str]) -> asyncio.Future[Any]:
        value, expiry = arguments
        self.published.append((list(keys), json.loads(value), expiry))
        reply = asyncio.get_running_loop().create_future()
        if self.replies_at_once:
            reply.set_result(b"OK")
        self.replies.append(reply)
        return reply


@pytest.fixture
def executor() -> RecordingExecutor:
    return RecordingExecutor()


def make_publisher(executor: RecordingExecutor, stats: Stats) -> StatsPublisher:
    return StatsPublisher(Runtime(asyncio.get_running_loop(), stats), executor, "p")  # type: ignore[arg-type]


async def test_counters_that_changed_are_published(executor: RecordingExecutor) -> None:
    stats = Stats()
    publisher = make_publisher(executor, stats)
    stats.hits += 3
    publisher.publish()
    await asyncio.sleep(0)
    ((keys, value, expiry),) = executor.published
    assert (keys, expiry) == ([publisher.key], str(EXPIRY_SECONDS))
    assert publisher.key.startswith("p:stats:")
    assert value["totals"] == stats.totals()
    assert value["per_second"].keys() == {"hits"}
    assert value["per_second"]["hits"] > 0


async def test_an_idle_saver_publishes_once_more_and_then_no_more(executor: RecordingExecutor) -> None:
    stats = Stats()
    publisher = make_publisher(executor, stats)
    publisher.publish()
    assert executor.published == []
    stats.writes += 1
    for _ in range(4):
        publisher.publish()
        await asyncio.sleep(0)
    assert [value["per_second"].keys() for _, value, _ in executor.published] == [{"writes"}, set()]


async def test_errors_of_publications_do_not_keep_a_saver_active(executor: RecordingExecutor) -> None:
    stats = Stats()
    publisher = make_publisher(executor, stats)
    stats.hits += 1
    for _ in range(4):
        publisher.publish()
        stats.redis_errors += 1
        await asyncio.sleep(0)
    assert len(executor.published) == 2


async def test_unflushed_writes_are_published_while_there_are_any(executor: RecordingExecutor) -> None:
    stats = Stats()
    publisher = make_publisher(executor, stats)
    for stats.unflushed in (7, 7, 0, 0, 0):
        publisher.publish()
        await asyncio.sleep(0)
    assert [value["totals"]["unflushed"] for _, value, _ in executor.published] == [7, 7, 0]


async def test_nothing_is_published_while_redis_is_unusable(
    executor: RecordingExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    stats = Stats()
    publisher = make_publisher(executor, stats)
    executor.health.usable = False
    stats.hits += 1
    publisher.publish()
    assert executor.published == []
    assert caplog.records == []


async def test_a_failed_publication_is_silent(
    executor: RecordingExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    stats = Stats()
    publisher = make_publisher(executor, stats)
    executor.replies_at_once = False
    stats.hits += 1
    publisher.publish()
    stats.hits += 1
    publisher.publish()
    assert len(executor.published) == 1, "one at a time"
    executor.replies[0].set_exception(RedisUnavailable("gone"))
    await publisher.close()
    executor.replies.clear()
    gc.collect()
    assert caplog.records == []


async def test_close_waits_for_a_publication_and_stops_the_timer(
    executor: RecordingExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats_publisher, "INTERVAL_SECONDS", 0.001)
    stats = Stats()
    publisher = make_publisher(executor, stats)
    executor.replies_at_once = False
    publisher.start()
    stats.hits += 1
    while not executor.published:
        await asyncio.sleep(0.001)
    closing = asyncio.ensure_future(publisher.close())
    await asyncio.sleep(0)
    assert not closing.done()
    executor.replies[0].set_result(b"OK")
    await closing
    stats.hits += 1
    await asyncio.sleep(0.01)
    assert len(executor.published) == 1


def test_timer_keeps_neither_publisher_nor_loop_alive(
    executor: RecordingExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats_publisher, "INTERVAL_SECONDS", 0.001)

    async def forget() -> weakref.ref[StatsPublisher]:
        publisher = make_publisher(executor, Stats())
        publisher.start()
        await asyncio.sleep(0.005)
        assert timer(publisher) is not None
        return weakref.ref(publisher)

    reference = asyncio.run(forget())
    gc.collect()
    assert reference() is None
    late = make_on_closed_loop(executor)
    late.start()


def make_on_closed_loop(executor: RecordingExecutor) -> StatsPublisher:
    loop = asyncio.new_event_loop()
    loop.close()
    return StatsPublisher(Runtime(loop), executor, "p")  # type: ignore[arg-type]
