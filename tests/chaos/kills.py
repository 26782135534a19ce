"""Faults that end or stop workers, some of them at the same time as their Redis."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable
from contextlib import suppress

from tests.chaos.world import World

WORKER_STOP_SECONDS_MAX = 1.2
UP_SECONDS_MAX = 5.0
APART_SECONDS_MAX = 0.05
"""Between the deaths of those that die at the same time."""


async def worker_kill(world: World, rng: random.Random, seconds: float) -> None:
    """Kills a worker that has its Redis: one that dies without is a case of its own, `worker-kill-cut`."""
    worker = rng.choice(world.workers)
    until = time.monotonic() + UP_SECONDS_MAX
    while time.monotonic() < until:
        async with world.killing:
            if not world.disturbed and worker.has_redis:
                await _kill(world, worker.slot)
                break
        await asyncio.sleep(0.02)
    else:
        return
    await worker.spawn()


async def worker_kill_cut(world: World, rng: random.Random, seconds: float) -> None:
    """Cuts a worker off from Redis alone, and kills it then."""
    worker = rng.choice(world.workers)
    async with world.disturb():
        world.redis_gates[worker.slot].shut()
        await asyncio.sleep(seconds)
        await _kill(world, worker.slot)
        world.redis_gates[worker.slot].open()
    await worker.spawn()


async def _kill(world: World, slot: int) -> None:
    await world.workers[slot].kill()
    world.recorder.note("killed", victim=world.workers[slot].name)


async def worker_stop(world: World, rng: random.Random, seconds: float) -> None:
    """Stops a worker in its tracks for a while, shorter than a fence lives."""
    await _stop(rng.choice(world.workers).pid, min(seconds, WORKER_STOP_SECONDS_MAX))


async def worker_freeze(world: World, rng: random.Random, seconds: float) -> None:
    """Stops a worker for longer than its fences live."""
    await _stop(rng.choice(world.workers).pid, world.fence_seconds + seconds)


async def _stop(pid: int, seconds: float) -> None:
    with suppress(ProcessLookupError):  # the other lane has killed it
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(seconds)
        os.kill(pid, signal.SIGCONT)


async def worker_kill_all(world: World, rng: random.Random, seconds: float) -> None:
    """Kills all workers at once, each of which has its Redis."""
    until = time.monotonic() + UP_SECONDS_MAX
    while time.monotonic() < until:
        async with world.killing:
            if not world.disturbed and all(worker.has_redis for worker in world.workers):
                await _kill_all(world)
                break
        await asyncio.sleep(0.02)
    else:
        return
    await asyncio.gather(*(worker.spawn() for worker in world.workers))


async def redis_and_workers_kill(world: World, rng: random.Random, seconds: float) -> None:
    """Kills Redis and all workers at the same time, one a little before the others. Redis comes back first."""
    async with world.disturb():
        redis = world.in_thread(world.redis.restart, seconds, keep_snapshot=False)
        await _together(rng, redis, _kill_all(world))
        await asyncio.gather(*(worker.spawn() for worker in world.workers))


async def failover_and_workers_kill(world: World, rng: random.Random, seconds: float) -> None:
    """Kills the primary and all workers at the same time; the replica takes over, sometimes one that lags."""
    async with world.disturb():
        await world.in_thread(world.redis.wait_for_replica)
        if rng.random() < 0.5:
            world.redis.replication.deafen()
            await asyncio.sleep(seconds)
        await _together(rng, fail_over(world, seconds), _kill_all(world))
        await asyncio.gather(*(worker.spawn() for worker in world.workers))


async def fail_over(world: World, seconds: float) -> None:
    """Kills the primary and promotes its replica, as it is. After a while the old one follows it, empty or not."""
    pair = world.redis
    await world.in_thread(pair.promote)
    pair.replication.shut()
    for gate in world.redis_gates:
        gate.point_at(pair.master.port)
    await asyncio.sleep(seconds)
    pair.replication.target_port = pair.master.port
    pair.replication.open()
    await world.in_thread(pair.replica.start)
    await world.in_thread(pair.follow)


async def _together(rng: random.Random, *work: Awaitable[None]) -> None:
    """Begins them in an order by chance, a moment apart."""

    async def later(one: Awaitable[None], seconds: float) -> None:
        await asyncio.sleep(seconds)
        await one

    waits = [0.0, *(rng.uniform(0, APART_SECONDS_MAX) for _ in work[1:])]
    await asyncio.gather(*map(later, work, rng.sample(waits, len(waits))))


async def _kill_all(world: World) -> None:
    await asyncio.gather(*(_kill(world, slot) for slot in range(len(world.workers))))
