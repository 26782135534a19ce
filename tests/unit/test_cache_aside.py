from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from langgraph_checkpoint_cached.caches.cache_aside import MISS, CacheAside
from langgraph_checkpoint_cached.caches.stampede_lock import StampedeLock, StoreUnavailable
from langgraph_checkpoint_cached.ttl import Ttl
from tests.support.memory_store import MemoryStore, VirtualTime

LEASE_SECONDS = 10.0
TTL_SECONDS = 60.0
LIFETIME = Ttl(TTL_SECONDS)
PROCESSES = 8
CALLERS = 5
STORE_METHODS = ["read", "acquire", "fill", "release"]


class Json:
    def dumps(self, value: Any) -> bytes:
        return json.dumps(value).encode()

    def loads(self, payload: bytes) -> Any:
        return json.loads(payload)


class Raw:
    def dumps(self, value: bytes) -> bytes:
        return value

    def loads(self, payload: bytes) -> bytes:
        return payload


class Source:
    """Source of the cache. Loading reads it, and then takes its time."""

    def __init__(self, time: VirtualTime, value: Any = "value", seconds: float = 1.0) -> None:
        self.value = value
        self.loads = 0
        self._time = time
        self._seconds = seconds

    async def load(self) -> Any:
        self.loads += 1
        value = self.value
        await self._time.sleep(self._seconds)
        return value


@pytest.fixture
async def time() -> AsyncIterator[VirtualTime]:
    time = VirtualTime()
    yield time
    time.over = True


@pytest.fixture
def store(time: VirtualTime) -> MemoryStore:
    return MemoryStore(time.clock)


@pytest.fixture
def source(time: VirtualTime) -> Source:
    return Source(time)


@pytest.fixture
def process(store: MemoryStore, time: VirtualTime) -> Callable[..., CacheAside[Any]]:
    """A new cache over the same store: another process, as far as the cache can tell."""
    lock = partial(StampedeLock, lease_seconds=LEASE_SECONDS, clock=time.clock, sleep=time.sleep)

    def start(serializer: Any = None, lifetime: Ttl = LIFETIME) -> CacheAside[Any]:
        return CacheAside(store, serializer or Json(), lifetime, lock=lock)

    return start


@pytest.fixture
def cache(process: Callable[..., CacheAside[Any]]) -> CacheAside[Any]:
    return process()


async def never() -> Any:
    raise AssertionError("loaded, though it is cached")


# One load


async def test_a_miss_loads_and_a_hit_does_not(
    process: Callable[..., CacheAside[Any]], time: VirtualTime, source: Source
) -> None:
    assert await time.run(process().get("key", source.load)) == "value"
    assert await process().get("key", never) == "value"


async def test_keys_are_independent(cache: CacheAside[Any], time: VirtualTime, source: Source) -> None:
    assert await time.run(cache.get("key", source.load)) == "value"
    source.value = "another"
    assert await time.run(cache.get("other key", source.load)) == "another"


async def test_many_callers_in_many_processes_make_one_load(
    process: Callable[..., CacheAside[Any]], time: VirtualTime, source: Source
) -> None:
    gets = [
        cache.get("key", source.load) for cache in (process() for _ in range(PROCESSES)) for _ in range(CALLERS)
    ]
    assert await time.run(asyncio.gather(*gets)) == ["value"] * PROCESSES * CALLERS
    assert source.loads == 1


async def test_many_callers_in_one_process_read_the_store_once(
    cache: CacheAside[Any], store: MemoryStore, time: VirtualTime, source: Source
) -> None:
    await time.run(asyncio.gather(*(cache.get("key", source.load) for _ in range(CALLERS))))
    assert store.calls == ["read", "acquire", "read", "fill", "release"]


@pytest.mark.parametrize("payload", [b"from another", b""])
async def test_value_stored_just_before_locking_is_not_loaded_again(
    process: Callable[..., CacheAside[Any]], store: MemoryStore, payload: bytes
) -> None:
    acquire = store.acquire

    async def acquire_late(key: str, token: str, ttl_ms: int) -> bool:
        store.put("key", payload, 1000)
        return await acquire(key, token, ttl_ms)

    store.acquire = acquire_late  # type: ignore[method-assign]
    assert await process(Raw()).get("key", never) == payload
    assert store.lock_owner("key") is None


async def test_every_caller_gets_a_value_of_its_own(
    cache: CacheAside[Any], time: VirtualTime, source: Source
) -> None:
    source.value = ["changed in place by who gets it"]
    first, second = await time.run(asyncio.gather(*(cache.get("key", source.load) for _ in range(2))))
    first.clear()
    assert second == source.value == ["changed in place by who gets it"]


async def test_hit_and_miss_look_the_same(cache: CacheAside[Any], time: VirtualTime, source: Source) -> None:
    source.value = ("a", "tuple")
    miss = await time.run(cache.get("key", source.load))
    assert miss == await cache.get("key", never) == ["a", "tuple"]


async def test_a_cancelled_caller_does_not_stop_the_load(
    cache: CacheAside[Any], store: MemoryStore, time: VirtualTime, source: Source
) -> None:
    caller = asyncio.create_task(cache.get("key", source.load))
    await time.settle()
    caller.cancel()
    assert await time.run(cache.get("key", source.load)) == "value"
    assert caller.cancelled()
    assert source.loads == 1
    assert store.lock_owner("key") is None


# What is a hit


@pytest.mark.parametrize("value", [None, "", 0, False, [], {}], ids=repr)
async def test_a_cached_falsy_value_is_a_hit(
    process: Callable[..., CacheAside[Any]], time: VirtualTime, source: Source, value: object
) -> None:
    """Bug: taking a cached empty value for a miss."""
    source.value = value
    assert await time.run(process().get("key", source.load)) == value
    assert await process().get("key", never) == value


async def test_a_cached_empty_payload_is_a_hit(
    process: Callable[..., CacheAside[Any]], store: MemoryStore, time: VirtualTime, source: Source
) -> None:
    """Bug: taking a cached empty value for a miss."""
    source.value = b""
    assert await time.run(process(Raw()).get("key", source.load)) == b""
    store.calls.clear()
    assert await process(Raw()).get("key", never) == b""
    assert store.calls == ["read"]


async def test_a_payload_that_cannot_be_read_is_a_miss_and_is_replaced(
    process: Callable[..., CacheAside[Any]],
    store: MemoryStore,
    time: VirtualTime,
    source: Source,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = process()
    for key in ("a", "b"):
        store.put(key, b"{damaged", 100_000)
        assert await time.run(cache.get(key, source.load)) == "value"
        assert await process().get(key, never) == "value"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "'a' cannot be read" in caplog.text


async def test_a_value_ends_with_its_lifetime(cache: CacheAside[Any], time: VirtualTime, source: Source) -> None:
    await time.run(cache.get("key", source.load))
    for _ in range(2):  # reading does not lengthen it
        time.now_seconds += TTL_SECONDS * 0.4
        await cache.get("key", never)
    time.now_seconds += TTL_SECONDS * 0.4
    await time.run(cache.get("key", source.load))
    assert source.loads == 2


async def test_a_sliding_lifetime_starts_anew_with_every_read(
    process: Callable[..., CacheAside[Any]], time: VirtualTime, source: Source
) -> None:
    cache = process(lifetime=Ttl(TTL_SECONDS, sliding=True))
    await time.run(cache.get("key", source.load))
    for _ in range(5):
        time.now_seconds += TTL_SECONDS * 0.9
        await cache.get("key", never)
    time.now_seconds += TTL_SECONDS
    await time.run(cache.get("key", source.load))
    assert source.loads == 2


# Nothing stale is stored


async def test_a_load_overtaken_by_invalidate_is_not_stored(
    process: Callable[..., CacheAside[Any]], store: MemoryStore, time: VirtualTime, source: Source
) -> None:
    """Bug: a slow reader stores the old value after the invalidation."""
    slow = asyncio.create_task(process().get("key", source.load))
    await time.settle()
    source.value = "new"
    assert await process().invalidate("key")
    assert await time.run(slow) == "value"  # it was asked before
    assert store.payload("key") is MISS
    assert await time.run(process().get("key", source.load)) == "new"


async def test_load_overtaken_by_invalidate_keeps_newer_value(
    process: Callable[..., CacheAside[Any]], time: VirtualTime, source: Source
) -> None:
    """Bug: writing a stale value over a fresh one."""
    slow = asyncio.create_task(process().get("key", source.load))
    await time.settle()
    source.value = "new"
    other = process()
    await other.invalidate("key")
    fast = Source(time, "new", seconds=0.1)
    assert await time.run(other.get("key", fast.load)) == "new"
    assert not slow.done()
    assert await time.run(slow) == "value"
    assert await process().get("key", never) == "new"


async def test_load_overtaken_by_refresh_keeps_newer_value(
    process: Callable[..., CacheAside[Any]], time: VirtualTime, source: Source
) -> None:
    """Bug: writing a stale value over a fresh one."""
    slow = asyncio.create_task(process().get("key", source.load))
    await time.settle()
    fast = Source(time, "new", seconds=0.1)
    assert await time.run(process().refresh("key", fast.load)) == "new"
    assert not slow.done()
    assert await time.run(slow) == "value"
    assert await process().get("key", never) == "new"


async def test_load_outliving_its_lease_keeps_newer_value(
    process: Callable[..., CacheAside[Any]], time: VirtualTime
) -> None:
    """Bug: writing a stale value over a fresh one."""
    stuck = Source(time, "old", seconds=5 * LEASE_SECONDS)
    slow = asyncio.create_task(process().get("key", stuck.load))
    await time.settle()
    successor = Source(time, "new")
    assert await time.run(process().get("key", successor.load)) == "new"
    assert LEASE_SECONDS < time.now_seconds < 2 * LEASE_SECONDS
    assert await time.run(slow) == "old"
    assert await process().get("key", never) == "new"


async def test_of_two_refreshes_the_overtaken_one_is_not_stored(
    process: Callable[..., CacheAside[Any]], time: VirtualTime
) -> None:
    older = asyncio.create_task(process().refresh("key", Source(time, "old", seconds=5).load))
    await time.settle()
    assert await time.run(process().refresh("key", Source(time, "new").load)) == "new"
    assert await time.run(older) == "old"
    assert await process().get("key", never) == "new"


@pytest.mark.parametrize("store_fails", [False, True])
async def test_get_after_invalidate_does_not_join_an_older_flight(
    cache: CacheAside[Any], store: MemoryStore, time: VirtualTime, source: Source, store_fails: bool
) -> None:
    before = asyncio.create_task(cache.get("key", source.load))
    await time.settle()
    source.value = "new"
    store.failing = set(STORE_METHODS) | {"discard"} if store_fails else set()
    assert await cache.invalidate("key") is not store_fails
    after = cache.get("key", source.load)
    assert await time.run(asyncio.gather(before, after)) == ["value", "new"]


async def test_get_after_refresh_joins_it_not_an_older_flight(
    cache: CacheAside[Any], time: VirtualTime, source: Source
) -> None:
    before = asyncio.create_task(cache.get("key", source.load))
    await time.settle()
    refreshing = asyncio.create_task(cache.refresh("key", Source(time, "new").load))
    await time.settle()
    after = cache.get("key", never)
    assert await time.run(asyncio.gather(before, refreshing, after)) == ["value", "new", "new"]


async def test_a_refresh_always_runs_its_own_loader(
    process: Callable[..., CacheAside[Any]], store: MemoryStore, time: VirtualTime
) -> None:
    discard = store.discard
    others = []

    async def discard_and_lose_the_race(key: str) -> None:
        await discard(key)
        others.append(asyncio.create_task(process().get("key", Source(time, "another's").load)))
        await time.settle()

    store.discard = discard_and_lose_the_race  # type: ignore[method-assign]
    assert await time.run(process().refresh("key", Source(time, "mine").load)) == "mine"
    assert await others[0] == "another's"
    assert await process().get("key", never) == "mine"


async def test_failed_refresh_leaves_no_old_value(
    cache: CacheAside[Any], store: MemoryStore, time: VirtualTime, source: Source
) -> None:
    async def fail() -> Any:
        raise ConnectionError("no source today")

    await time.run(cache.get("key", source.load))
    with pytest.raises(ConnectionError, match="no source today"):
        await cache.refresh("key", fail)
    assert store.payload("key") is MISS
    assert store.lock_owner("key") is None


class SlowStore(MemoryStore):
    """Every request and every reply is on its way for a while."""

    def __init__(self, time: VirtualTime, chance: random.Random) -> None:
        super().__init__(time.clock)
        self._time, self._chance = time, chance

    async def _begin(self, method: str) -> None:
        await self._time.sleep(self._chance.uniform(0, 0.5))
        await super()._begin(method)

    async def _reply(self, method: str) -> None:
        await self._time.sleep(self._chance.uniform(0, 0.5))
        await super()._reply(method)


@pytest.mark.parametrize("seed", range(20))
async def test_no_get_returns_a_load_from_before_invalidate(time: VirtualTime, seed: int) -> None:
    """Several processes write versions to a source, say so to the cache, and read, in any interleaving."""
    chance = random.Random(seed)
    store = SlowStore(time, chance)
    lock = partial(StampedeLock, lease_seconds=5, clock=time.clock, sleep=time.sleep, random=chance.random)
    written = announced = hits = 0

    async def load() -> int:
        version = written
        await time.sleep(chance.choice([0.1, 1, 3, 8]))  # the last outlives the lease
        return version

    async def run_process() -> None:
        nonlocal written, announced, hits
        cache: CacheAside[int] = CacheAside(store, Json(), LIFETIME, lock=lock)
        for _ in range(40):
            await time.sleep(chance.uniform(0, 2))
            if chance.random() < 0.8:
                at_least, began = announced, time.now_seconds
                version = await cache.get("key", load)
                assert version >= at_least, f"seed {seed}, at {began} s"
                hits += time.now_seconds - began < 1
            else:
                written += 1
                version = written
                await (cache.invalidate("key") if chance.random() < 0.5 else cache.refresh("key", load))
                announced = max(announced, version)

    await time.run(asyncio.gather(*(run_process() for _ in range(6))))
    assert hits > 0


# Waiting for others


async def test_dead_lock_holder_is_succeeded_by_one_loader(
    process: Callable[..., CacheAside[Any]], store: MemoryStore, time: VirtualTime
) -> None:
    """Bug: everybody loads at once when the holder dies."""
    await store.acquire("key", "the dead", int(LEASE_SECONDS * 1000))
    source = Source(time, seconds=LEASE_SECONDS * 0.9)
    gets = [process().get("key", source.load) for _ in range(PROCESSES)]
    assert await time.run(asyncio.gather(*gets)) == ["value"] * PROCESSES
    assert source.loads == 1
    assert await process().get("key", never) == "value"


async def test_waiter_in_vain_loads_itself_and_stores_nothing(
    cache: CacheAside[Any], store: MemoryStore, time: VirtualTime, source: Source
) -> None:
    """Bug: waiting for ever for who never comes back."""
    await store.acquire("key", "another", 10**9)
    assert await time.run(cache.get("key", source.load)) == "value"
    assert time.now_seconds == pytest.approx(2 * LEASE_SECONDS + 1)
    assert store.payload("key") is MISS
    assert store.lock_owner("key") == "another"
    assert "fill" not in store.calls


async def test_waiter_is_answered_soon_after_holder_stored(
    process: Callable[..., CacheAside[Any]], time: VirtualTime, source: Source
) -> None:
    queue = asyncio.create_task(process().get("key", source.load))
    await time.settle()
    assert await time.run(process().get("key", never)) == "value"
    assert time.now_seconds < 1.25
    await queue


# Errors


async def test_an_error_of_the_loader_is_raised_and_not_cached(
    process: Callable[..., CacheAside[Any]], store: MemoryStore, time: VirtualTime, source: Source
) -> None:
    async def fail() -> Any:
        raise ConnectionError("no source today")

    cache = process()
    answers = await asyncio.gather(*(cache.get("key", fail) for _ in range(CALLERS)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["no source today"] * CALLERS
    assert await time.run(process().get("key", source.load)) == "value"
    assert time.now_seconds == 1.0  # nobody waited for a lease that its holder had no use for


async def test_loader_s_own_unavailable_store_is_raised_once(cache: CacheAside[Any], store: MemoryStore) -> None:
    loads = 0

    async def fail() -> Any:
        nonlocal loads
        loads += 1
        raise StoreUnavailable("another store")

    with pytest.raises(StoreUnavailable, match="another store"):
        await cache.get("key", fail)
    with pytest.raises(StoreUnavailable, match="another store"):
        await cache.refresh("key", fail)
    assert loads == 2
    assert store.lock_owner("key") is None


async def test_a_value_that_cannot_be_serialized_is_an_error(cache: CacheAside[Any], store: MemoryStore) -> None:
    async def load() -> Any:
        return object()

    with pytest.raises(TypeError, match="not JSON serializable"):
        await cache.get("key", load)
    assert store.lock_owner("key") is None


@pytest.mark.parametrize("failing", [*([method] for method in STORE_METHODS), STORE_METHODS], ids="+".join)
@pytest.mark.parametrize("lost_reply", [False, True])
async def test_an_unavailable_store_means_that_the_loader_answers_once(
    cache: CacheAside[Any],
    store: MemoryStore,
    time: VirtualTime,
    source: Source,
    failing: list[str],
    lost_reply: bool,
) -> None:
    setattr(store, "lost_replies" if lost_reply else "failing", set(failing))
    gets = asyncio.gather(*(cache.get("key", source.load) for _ in range(CALLERS)))
    assert await time.run(gets) == ["value"] * CALLERS
    assert source.loads == 1
    assert time.now_seconds == 1.0


async def test_a_store_that_cannot_be_read_is_not_asked_for_more(
    cache: CacheAside[Any], store: MemoryStore, time: VirtualTime, source: Source
) -> None:
    store.failing = {"read"}
    await time.run(cache.get("key", source.load))
    assert store.calls == ["read"]  # each call to a store that is gone may cost a timeout


async def test_invalidate_says_when_the_store_is_unavailable(cache: CacheAside[Any], store: MemoryStore) -> None:
    assert await cache.invalidate("key") is True
    store.failing = {"discard"}
    assert await cache.invalidate("key") is False


async def test_refresh_with_unavailable_store_returns_new_value(
    cache: CacheAside[Any], store: MemoryStore, time: VirtualTime, source: Source
) -> None:
    await time.run(cache.get("key", source.load))
    source.value = "new"
    store.failing = {"discard"}
    store.calls.clear()
    assert await time.run(cache.refresh("key", source.load)) == "new"
    assert store.calls == ["discard"]


async def test_loaders_of_one_key_may_use_another(
    cache: CacheAside[Any], time: VirtualTime, source: Source
) -> None:
    def outer() -> Awaitable[Any]:
        return cache.get("inner", source.load)

    assert await time.run(cache.get("outer", outer)) == "value"
