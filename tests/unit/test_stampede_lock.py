from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from langgraph_checkpoint_cached.caches.stampede_lock import (
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    StampedeLock,
    StoreUnavailable,
)
from tests.support.memory_store import MemoryStore, VirtualTime

LEASE_SECONDS = 10.0
FOREVER_MS = 10**9


@pytest.fixture
async def time() -> AsyncIterator[VirtualTime]:
    time = VirtualTime()
    yield time
    time.over = True


@pytest.fixture
def store(time: VirtualTime) -> MemoryStore:
    return MemoryStore(time.clock)


def make_lock(store: MemoryStore, time: VirtualTime, **changes: Any) -> StampedeLock:
    arguments = {"lease_seconds": LEASE_SECONDS, "clock": time.clock, "sleep": time.sleep, **changes}
    return StampedeLock(store, **arguments)


@pytest.fixture
def lock(store: MemoryStore, time: VirtualTime) -> StampedeLock:
    return make_lock(store, time)


async def test_a_free_lock_is_held_inside_and_free_after(lock: StampedeLock, store: MemoryStore) -> None:
    async with lock.hold("key") as lease:
        assert lease is not None
        assert store.lock_owner("key") == lease.token
    assert store.lock_owner("key") is None


async def test_every_hold_has_a_token_of_its_own(lock: StampedeLock) -> None:
    tokens = set()
    for _ in range(100):
        async with lock.hold("key") as lease:
            assert lease is not None
            tokens.add(lease.token)
    assert len(tokens) == 100
    assert min(map(len, tokens)) >= 32


async def test_tokens_can_be_injected(store: MemoryStore, time: VirtualTime) -> None:
    async with make_lock(store, time, new_token=lambda: "mine").hold("key") as lease:
        assert lease is not None
        assert (lease.key, lease.token) == ("key", "mine")


async def test_of_many_that_want_it_one_holds_it_at_a_time(lock: StampedeLock, time: VirtualTime) -> None:
    inside = most_inside = 0

    async def work() -> bool:
        nonlocal inside, most_inside
        async with lock.hold("key") as lease:
            inside += 1
            most_inside = max(most_inside, inside)
            await time.sleep(0.1)
            inside -= 1
            return lease is not None

    assert all(await time.run(asyncio.gather(*(work() for _ in range(20)))))
    assert most_inside == 1


async def test_keys_are_independent(lock: StampedeLock) -> None:
    async with lock.hold("a") as a, lock.hold("b") as b:
        assert a is not None
        assert b is not None


async def test_it_never_waits_for_ever(lock: StampedeLock, store: MemoryStore, time: VirtualTime) -> None:
    """Bug: looping until a lock is free that nobody will free."""
    await store.acquire("key", "another", FOREVER_MS)
    store.calls.clear()

    async def wait() -> None:
        async with lock.hold("key") as lease:
            assert lease is None

    await time.run(wait())
    assert time.now_seconds == 2 * LEASE_SECONDS
    assert store.lock_owner("key") == "another"
    assert len(store.calls) < 200
    assert set(store.calls) == {"acquire"}


async def test_a_wait_of_nothing_asks_once(store: MemoryStore, time: VirtualTime) -> None:
    await store.acquire("key", "another", FOREVER_MS)
    store.calls.clear()
    async with make_lock(store, time, wait_seconds=0).hold("key") as lease:
        assert lease is None
    assert store.calls == ["acquire"]
    async with make_lock(store, time, wait_seconds=0).hold("free") as lease:
        assert lease is not None


@pytest.mark.parametrize("chance", [0.0, 0.999])
async def test_pauses_grow_to_a_limit_and_are_spread_by_chance(
    store: MemoryStore, time: VirtualTime, chance: float
) -> None:
    await store.acquire("key", "another", FOREVER_MS)
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await time.sleep(seconds)

    async def wait() -> None:
        async with make_lock(store, time, sleep=sleep, random=lambda: chance).hold("key"):
            pass

    await time.run(wait())
    share = (1 + chance) / 2
    assert pauses[0] == pytest.approx(FIRST_PAUSE_SECONDS * share)
    assert pauses[1] == pytest.approx(2 * FIRST_PAUSE_SECONDS * share)
    assert max(pauses) == pytest.approx(LONGEST_PAUSE_SECONDS * share)
    assert sum(pauses) == pytest.approx(2 * LEASE_SECONDS)  # the last one is cut to what is left


async def test_a_release_does_not_free_another_owners_lock(
    lock: StampedeLock, store: MemoryStore, time: VirtualTime
) -> None:
    """Bug: deleting the lock on the way out, though it ran out and is another's now."""
    async with lock.hold("key") as lease:
        assert lease is not None
        time.now_seconds += LEASE_SECONDS
        assert await store.acquire("key", "another", FOREVER_MS)
    assert "release" in store.calls
    assert store.lock_owner("key") == "another"


async def test_dead_holder_is_succeeded_by_one(lock: StampedeLock, store: MemoryStore, time: VirtualTime) -> None:
    """Bug: everybody works at once when the holder dies."""
    await store.acquire("key", "the dead", int(LEASE_SECONDS * 1000))
    done = False
    workers = 0

    async def is_done() -> bool:
        return done

    async def work() -> None:
        nonlocal done, workers
        async with lock.hold("key", unless=is_done) as lease:
            if not done:
                assert lease is not None
                workers += 1
                await time.sleep(LEASE_SECONDS * 0.9)
                done = True

    await time.run(asyncio.gather(*(work() for _ in range(50))))
    assert workers == 1


async def test_answered_waiter_goes_on_without_lock(
    lock: StampedeLock, store: MemoryStore, time: VirtualTime
) -> None:
    await store.acquire("key", "another", FOREVER_MS)

    async def answered() -> bool:
        return time.now_seconds > 1

    async def wait() -> None:
        async with lock.hold("key", unless=answered) as lease:
            assert lease is None

    await time.run(wait())
    assert 1 < time.now_seconds < 1 + LONGEST_PAUSE_SECONDS


async def test_new_lock_holder_reads_again_and_frees_it(lock: StampedeLock, store: MemoryStore) -> None:
    async def answered() -> bool:
        assert store.lock_owner("key") is not None
        return True

    async with lock.hold("key", unless=answered) as lease:
        assert lease is None
        assert store.lock_owner("key") is None


async def test_an_unavailable_store_means_going_on_without(lock: StampedeLock, store: MemoryStore) -> None:
    store.failing = {"acquire", "release"}
    async with lock.hold("key") as lease:
        assert lease is None


async def test_lock_taken_with_lost_reply_is_freed(lock: StampedeLock, store: MemoryStore) -> None:
    store.lost_replies = {"acquire"}
    async with lock.hold("key") as lease:
        assert lease is None
        assert store.lock_owner("key") is not None
    assert store.lock_owner("key") is None


async def test_a_release_that_fails_is_left_to_the_deadline(
    lock: StampedeLock, store: MemoryStore, time: VirtualTime
) -> None:
    store.failing = {"release"}
    async with lock.hold("key"):
        pass
    assert store.lock_owner("key") is not None
    time.now_seconds += LEASE_SECONDS
    assert store.lock_owner("key") is None


async def test_an_error_inside_frees_the_lock(lock: StampedeLock, store: MemoryStore) -> None:
    with pytest.raises(LookupError):
        async with lock.hold("key"):
            raise LookupError
    assert store.lock_owner("key") is None


async def test_an_unavailable_store_inside_is_the_callers_business(lock: StampedeLock, store: MemoryStore) -> None:
    with pytest.raises(StoreUnavailable, match="another store"):
        async with lock.hold("key"):
            raise StoreUnavailable("another store")
    assert store.lock_owner("key") is None


class Gate:
    """Holds up who comes through, and says that somebody is there."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def __call__(self, *_: object) -> bool:
        self.reached.set()
        await self.opened.wait()
        return False


def gate_unless(store: MemoryStore, gate: Gate) -> dict[str, Any]:
    return {"unless": gate}


def gate_acquire(store: MemoryStore, gate: Gate) -> dict[str, Any]:
    acquire = store.acquire

    async def slow_reply(key: str, token: str, ttl_ms: int) -> bool:
        acquired = await acquire(key, token, ttl_ms)
        await gate()
        return acquired

    store.acquire = slow_reply  # type: ignore[method-assign]
    return {}


@pytest.mark.parametrize("where", [gate_unless, gate_acquire])
async def test_lock_is_freed_if_cancelled_before_reply(
    lock: StampedeLock, store: MemoryStore, where: Callable[[MemoryStore, Gate], dict[str, Any]]
) -> None:
    gate = Gate()
    arguments = where(store, gate)

    async def work() -> None:
        async with lock.hold("key", **arguments):
            raise AssertionError("not reached")

    task = asyncio.create_task(work())
    await gate.reached.wait()
    assert store.lock_owner("key") is not None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.lock_owner("key") is None


async def test_cancelled_inside_it_frees_the_lock(lock: StampedeLock, store: MemoryStore) -> None:
    gate = Gate()

    async def work() -> None:
        async with lock.hold("key"):
            await gate()

    task = asyncio.create_task(work())
    await gate.reached.wait()
    assert store.lock_owner("key") is not None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.lock_owner("key") is None


async def test_cancelled_waiter_leaves_holder_alone(
    lock: StampedeLock, store: MemoryStore, time: VirtualTime
) -> None:
    await store.acquire("key", "another", FOREVER_MS)

    async def work() -> None:
        async with lock.hold("key"):
            raise AssertionError("not reached")

    task = asyncio.create_task(work())
    await time.settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.lock_owner("key") == "another"


@pytest.mark.parametrize("lease_seconds", [0, -1, float("nan")])
def test_a_lease_needs_time(store: MemoryStore, lease_seconds: float) -> None:
    with pytest.raises(ValueError, match="lease_seconds must be more than 0"):
        StampedeLock(store, lease_seconds=lease_seconds)
