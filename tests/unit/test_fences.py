"""Fences: shared, retained for the next write, released for a read, and not used again when they may be gone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from langgraph_checkpoint_cached.database_identity import DatabaseIdentity
from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.stores.redis import fences
from langgraph_checkpoint_cached.stores.redis.fences import FENCE_MARGIN_SECONDS, RETAIN_SECONDS, Fence, Fences
from langgraph_checkpoint_cached.stores.redis.health import NotDone, RedisHealth, RedisUnavailable
from langgraph_checkpoint_cached.stores.redis.keyspace import Keyspace
from langgraph_checkpoint_cached.stores.redis.scripts import BEGIN, Script
from langgraph_checkpoint_cached.ttl import Ttl
from tests.support.inspect import release_old

NAMESPACE = Namespace("t")


class Executor:
    """Remembers what Redis was sent, and replies."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []
        self.usable, self.error = True, RedisUnavailable("away")
        self.health = RedisHealth(Runtime(asyncio.get_running_loop()))

    def submit(self, script: Script, keys: Sequence[str], arguments: Sequence[str]) -> asyncio.Future[Any]:
        what, reply = ("begin", b"") if script is BEGIN else ("release", 1)
        self.sent.append((what, arguments[3]))
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.usable:
            future.set_result(reply)
        else:
            future.set_exception(self.error)
        return future


class World:
    def __init__(self, *, retain: bool = True) -> None:
        self.executor, self.now = Executor(), 1000.0
        runtime = Runtime(asyncio.get_running_loop(), clock=lambda: self.now)
        self.fences = Fences(runtime, self.executor, Keyspace("p", Ttl(60), DatabaseIdentity()), retain=retain)  # type: ignore[arg-type]

    @property
    def left(self) -> list[tuple[str, str]]:
        """Fences that may be active in Redis and that nobody needs; each once."""
        return self.fences.take_abandoned()

    def take(self) -> Fence:
        return self.fences.take(NAMESPACE)

    def end(self, fence: Fence, *, stood: bool = True) -> bool:
        """COMMIT, answered at once: whether it kept the fence."""
        retain = self.fences.prepare_commit(fence)
        self.fences.end_write(fence, was_active=stood)
        return retain

    def take_abandoned(self) -> str | None:
        """Return the token of the fence that a read releases first."""
        found = self.fences.hand_over(NAMESPACE)
        return found and found.token

    async def released(self, seconds: float = RETAIN_SECONDS) -> list[str]:
        """Return what was released once this time has passed."""
        self.now += seconds
        release_old(self.fences)
        await asyncio.sleep(0)
        return [token for what, token in self.executor.sent if what == "release"]

    @property
    def begun(self) -> list[str]:
        return [token for what, token in self.executor.sent if what == "begin"]


@pytest.mark.parametrize("error", [NotDone("not asked"), RedisUnavailable("no answer")])
async def test_fence_that_never_began_is_not_abandoned(error: RedisUnavailable) -> None:
    """While writes went on without Redis each left one to be removed, so it was never usable again."""
    world = World()
    world.executor.usable, world.executor.error = False, error
    fence = world.take()
    assert await world.fences.confirm(fence) is None
    world.fences.prepare_commit(fence)
    world.fences.end_write(fence)
    await asyncio.sleep(0)
    assert world.left == ([] if isinstance(error, NotDone) else [("t", fence.token)])


async def test_confirmed_fence_is_abandoned_when_taken_anew_in_vain() -> None:
    world = World()
    fence = world.take()
    assert await world.fences.confirm(fence)
    world.executor.usable, world.executor.error = False, NotDone("not asked")
    world.now += FENCE_MARGIN_SECONDS + 1
    assert await world.fences.confirm(fence) is None
    world.fences.end_write(fence)
    await asyncio.sleep(0)
    assert world.left == [("t", fence.token)]


async def test_next_write_reuses_active_fence() -> None:
    world = World()
    first = world.take()
    assert world.end(first)
    second = world.take()
    assert (second, world.begun) == (first, [first.token])
    assert await world.released() == []
    assert world.end(second)
    assert await world.released(RETAIN_SECONDS / 2) == []
    assert await world.released(RETAIN_SECONDS / 2) == [first.token]
    assert world.take().token != first.token


async def test_it_is_released_without_anybody_asking() -> None:
    world = World()
    fence = world.take()
    world.end(fence)
    world.now += RETAIN_SECONDS

    async def released() -> None:
        while ("release", fence.token) not in world.executor.sent:
            await asyncio.sleep(0.01)

    await asyncio.wait_for(released(), 10)
    assert asyncio.all_tasks() == {asyncio.current_task()}, "nothing goes on when there are no fences"


def test_a_loop_that_ends_does_not_begin_to_release_it() -> None:
    async def end() -> World:
        world = World()
        world.end(world.take())
        stubborn.append(asyncio.ensure_future(end_late(world)))
        await asyncio.sleep(0)
        return world

    async def end_late(world: World) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            world.now += RETAIN_SECONDS
            await asyncio.sleep(2 * RETAIN_SECONDS)

    stubborn: list[asyncio.Future[None]] = []
    world = asyncio.run(end())
    assert [what for what, _ in world.executor.sent] == ["begin"]


async def test_retained_fence_is_released_while_others_are_used() -> None:
    world = World()
    busy, fence = world.fences.take(Namespace("busy")), world.take()
    await asyncio.sleep(0)  # none is idle yet
    world.end(fence)
    world.now += RETAIN_SECONDS

    async def released() -> None:
        while world.executor.sent[-1][0] != "release":
            await asyncio.sleep(0.01)

    await asyncio.wait_for(released(), 10)
    world.end(busy)
    world.fences.release_all()
    world.end(world.take())  # goes on nevertheless
    world.now += RETAIN_SECONDS
    await asyncio.wait_for(released(), 10)
    world.fences.release_all()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_read_releases_fence_without_writes() -> None:
    world = World()
    fence = world.take()
    assert world.take_abandoned() is None
    world.fences.prepare_commit(fence)
    assert world.take_abandoned() is None  # its COMMIT is on the way
    world.fences.end_write(fence, was_active=True)
    assert world.take_abandoned() == fence.token
    assert world.take_abandoned() is None
    assert world.take().token != fence.token
    assert await world.released() == []


@pytest.mark.parametrize("usable", [True, False])
async def test_fence_freed_by_failed_read_is_released_or_expires(usable: bool) -> None:
    world = World()
    fence = world.take()
    world.end(fence)
    handed_over = world.fences.hand_over(NAMESPACE)
    assert handed_over is fence
    world.executor.usable = usable
    world.fences.take_back(handed_over)
    assert await world.released(0) == [fence.token]
    assert world.left == ([] if usable else [("t", fence.token)])


async def test_fence_is_active_while_another_write_is_under_it() -> None:
    world = World(retain=False)
    first, second = world.take(), world.take()
    assert first is second
    assert world.end(first)
    assert not world.end(second)
    assert world.take() is not first
    assert await world.released() == []


async def test_first_of_two_commits_keeps_fence_for_the_second() -> None:
    world = World(retain=False)
    fence = world.take()
    world.take()
    assert world.fences.prepare_commit(fence)
    assert world.fences.prepare_commit(fence)  # the first may have to be sent again
    world.fences.end_write(fence, was_active=True)
    assert await world.released() == []
    world.fences.end_write(fence, was_active=True)
    assert await world.released() == [fence.token]


@pytest.mark.parametrize("retain", [True, False])
async def test_fence_of_unknown_write_is_not_reused_or_released(retain: bool) -> None:
    world = World(retain=retain)
    fence = world.take()
    world.take()
    world.fences.retire(fence, expires=True)
    assert world.take() is not fence
    assert world.end(fence)
    assert fence.token not in await world.released()
    assert world.take_abandoned() != fence.token


async def test_it_is_not_used_again_once_a_commit_did_not_find_it() -> None:
    world = World()
    fence = world.take()
    world.end(fence, stood=False)
    assert world.take_abandoned() is None
    assert world.take() is not fence
    assert await world.released() == []  # nothing is there


async def test_a_commit_without_an_answer_leaves_it_to_the_last_write() -> None:
    world = World()
    fence = world.take()
    world.take()
    world.fences.prepare_commit(fence)
    world.fences.retire(fence)
    assert world.take() is not fence
    assert world.fences.prepare_commit(fence)  # the other write is told of again meanwhile
    world.fences.end_write(fence, was_active=True)
    assert await world.released() == []
    world.fences.end_write(fence)
    assert await world.released() == [fence.token]


async def test_fences_are_not_reused_after_redis_was_lost() -> None:
    world = World()
    idle = world.take()
    world.end(idle)
    busy = world.fences.take(Namespace("u"))
    world.executor.health.fail(RedisUnavailable("unusable"))
    assert world.left == [("t", idle.token)]
    assert world.take() is not idle
    assert world.fences.take(Namespace("u")) is not busy
    assert await world.released() == []


async def test_a_release_that_redis_does_not_hear_of_is_left() -> None:
    world = World()
    fence = world.take()
    world.end(fence)
    world.executor.usable = False
    await world.released()
    assert world.left == [("t", fence.token)]


async def test_one_that_has_little_time_left_is_taken_anew() -> None:
    world = World()
    fence = world.take()
    fence.is_flushed = True
    world.now += FENCE_MARGIN_SECONDS + 1
    assert await world.fences.confirm(fence) is not None
    assert (world.begun, fence.is_flushed) == ([fence.token, fence.token], False)
    world.end(fence)
    world.now += FENCE_MARGIN_SECONDS + 1
    other = world.take()
    assert (other is fence, ("release", fence.token) in world.executor.sent) == (False, True)


async def test_fence_unconfirmed_by_redis_is_not_retained() -> None:
    world = World()
    world.executor.usable = False
    fence = world.take()
    assert await world.fences.confirm(fence) is None
    assert world.take() is not fence


async def test_a_write_that_was_not_queued_leaves_it_for_the_next() -> None:
    world = World()
    fence = world.take()
    world.fences.end_write(fence, was_active=True)
    assert world.take() is fence
    unkept = World(retain=False)
    fence = unkept.take()
    unkept.fences.end_write(fence, was_active=True)
    assert await unkept.released() == [fence.token]


async def test_number_of_retained_fences_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fences, "RETAINED_MAX", 2)
    world = World()
    taken = [world.fences.take(Namespace(str(number))) for number in range(4)]
    for fence in taken:
        world.end(fence)
    assert await world.released(0) == [taken[0].token, taken[1].token]
    world.fences.release_all()
    assert await world.released(0) == [fence.token for fence in taken]
