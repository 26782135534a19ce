"""The nemesis: faults, and a seeded plan of when which of them begins and for how long it lasts.

Two lanes of faults run side by side, one of Redis and the network to it, one of Postgres and the workers; within
a lane one fault is healed before the next begins.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import redis
from chaos_gates import Direction, Gate
from chaos_savers import PREFIX
from chaos_world import World

LAST_SECONDS = (0.4, 2.5)
PAUSE_SECONDS = (0.3, 1.5)
LAG_SECONDS = 1.5
WORKER_STOP_SECONDS_MAX = 1.2
FULL_BYTES = 200_000
EVICTING_BYTES = 300_000
DROP_BYTES_MAX = 6000
UP_SECONDS_MAX = 5.0


@dataclass(frozen=True)
class Step:
    """A fault of the plan."""

    at: float
    kind: str
    seconds: float
    seed: str


async def redis_kill(world: World, rng: random.Random, seconds: float) -> None:
    await world.in_thread(world.redis.restart, seconds, keep_snapshot=False)
    world.recorder.note("emptied")


async def redis_snapshot(world: World, rng: random.Random, seconds: float) -> None:
    await world.in_thread(world.redis.save)
    await asyncio.sleep(seconds)  # what is written now is not in it
    await world.in_thread(world.redis.restart, 0.1, keep_snapshot=True)
    world.recorder.note("emptied")


async def redis_failover(world: World, rng: random.Random, seconds: float) -> None:
    pair = world.redis
    pair.replication.deafen()
    await asyncio.sleep(LAG_SECONDS)
    await world.in_thread(pair.promote)
    pair.replication.shut()
    for gate in world.redis_gates:
        gate.point_at(pair.master.port)
    world.recorder.note("emptied")
    await asyncio.sleep(seconds)
    pair.replication.target_port = pair.master.port
    pair.replication.open()
    await world.in_thread(pair.replica.start)
    await world.in_thread(pair.follow)


async def redis_full(world: World, rng: random.Random, seconds: float) -> None:
    await _limited(world, seconds, FULL_BYTES, "noeviction")


async def redis_evict(world: World, rng: random.Random, seconds: float) -> None:
    await _limited(world, seconds, EVICTING_BYTES, rng.choice(["allkeys-lru", "allkeys-random", "volatile-ttl"]))


async def _limited(world: World, seconds: float, more_bytes: int, policy: str) -> None:
    """Little memory beside what it has when it is empty; most keys do not fit."""

    def limit() -> None:
        admin = world.redis.admin
        empty = admin.info("memory")["used_memory_startup"] + admin.info("memory")["used_memory_overhead"]
        admin.config_set("maxmemory-policy", policy)
        admin.config_set("maxmemory", min(empty, admin.info("memory")["used_memory"]) + more_bytes)
        if policy == "noeviction":
            _fill(admin)

    def lift() -> None:
        world.redis.admin.config_set("maxmemory", 0)
        world.redis.admin.delete("filler")

    await world.in_thread(limit)
    await asyncio.sleep(seconds)
    await world.in_thread(lift)


def _fill(admin: redis.Redis) -> None:
    try:
        for _ in range(1000):
            admin.rpush("filler", b"x" * 10_000)
        admin.expire("filler", 600)
    except redis.exceptions.OutOfMemoryError:
        pass


async def redis_delete(world: World, rng: random.Random, seconds: float) -> None:
    """Evicts keys at random, of whatever kind."""

    def evict() -> None:
        keys = sorted(world.redis.admin.scan_iter(match=f"{PREFIX}*", count=1000))
        if keys:
            world.redis.admin.delete(*rng.sample(keys, rng.randint(1, max(1, len(keys) // 3))))

    await _repeat(world, rng, seconds, evict)


async def redis_flush(world: World, rng: random.Random, seconds: float) -> None:
    def flush() -> None:
        world.redis.admin.flushall()
        world.recorder.note("emptied")

    await _repeat(world, rng, seconds, flush)


async def redis_scripts(world: World, rng: random.Random, seconds: float) -> None:
    await _repeat(world, rng, seconds, lambda: world.redis.admin.script_flush())


async def _repeat(world: World, rng: random.Random, seconds: float, work: Callable[[], object]) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        await world.in_thread(work)
        await asyncio.sleep(rng.uniform(0.02, 0.3))


async def redis_stall(world: World, rng: random.Random, seconds: float) -> None:
    async with _disturbed(world):
        assert world.redis.master.pid is not None
        os.kill(world.redis.master.pid, signal.SIGSTOP)
        await asyncio.sleep(seconds)
        os.kill(world.redis.master.pid, signal.SIGCONT)


async def cut_one(world: World, rng: random.Random, seconds: float) -> None:
    await _blocked(world, [rng.choice(world.redis_gates)], Gate.shut, seconds)


async def stall_one(world: World, rng: random.Random, seconds: float) -> None:
    await _blocked(world, [rng.choice(world.redis_gates)], Gate.deafen, seconds)


async def cut_all(world: World, rng: random.Random, seconds: float) -> None:
    await _blocked(world, world.redis_gates, Gate.shut, seconds)


async def _blocked(world: World, gates: Sequence[Gate], how: Callable[[Gate], None], seconds: float) -> None:
    async with _disturbed(world):
        for gate in gates:
            how(gate)
        await asyncio.sleep(seconds)
        for gate in gates:
            gate.open()


@asynccontextmanager
async def _disturbed(world: World) -> AsyncIterator[None]:
    async with world.killing:
        world.disturbed += 1
    try:
        yield
    finally:
        world.disturbed -= 1


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
    async with _disturbed(world):
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


async def pg_terminate(world: World, rng: random.Random, seconds: float) -> None:
    terminate = (
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where pid <> pg_backend_pid() and backend_type = 'client backend'"
    )
    await _repeat(world, rng, seconds, lambda: world.postgres_do(terminate))


async def pg_restart(world: World, rng: random.Random, seconds: float) -> None:
    """An immediate shutdown, in the midst of everything, and a recovery."""
    await world.in_thread(world.postgres.kill)
    await asyncio.sleep(seconds)
    await world.in_thread(world.postgres.start)


async def pg_cut(world: World, rng: random.Random, seconds: float) -> None:
    """Drops connections in the midst of a request or of its reply, many of them during a commit."""
    gates, until = [rng.choice(world.postgres_gates)], time.monotonic() + seconds
    directions: tuple[Direction, ...] = ("requests", "replies")
    while time.monotonic() < until:
        for gate in gates:
            gate.drop_after(rng.randrange(DROP_BYTES_MAX), rng.choice(directions))
        await asyncio.sleep(rng.uniform(0.05, 0.3))
    for gate in gates:
        gate.open()


async def pg_cut_alone(world: World, rng: random.Random, seconds: float) -> None:
    """Cuts a worker off from Redis alone, and drops Postgres' replies to it: what it wrote is there or not."""
    slot = rng.randrange(len(world.workers))
    gate, until = world.postgres_gates[slot], time.monotonic() + seconds
    async with _disturbed(world):
        world.redis_gates[slot].shut()
        while time.monotonic() < until:
            await asyncio.sleep(rng.uniform(0.1, 0.4))
            gate.mute()
            await asyncio.sleep(0.1)
            gate.cut()
            gate.open()
        world.redis_gates[slot].open()


Fault = Callable[[World, random.Random, float], Awaitable[None]]

OF_REDIS: dict[str, Fault] = {
    "redis-kill": redis_kill,
    "redis-snapshot": redis_snapshot,
    "redis-failover": redis_failover,
    "redis-full": redis_full,
    "redis-evict": redis_evict,
    "redis-delete": redis_delete,
    "redis-flush": redis_flush,
    "redis-scripts": redis_scripts,
    "redis-stall": redis_stall,
    "cut-one": cut_one,
    "stall-one": stall_one,
    "cut-all": cut_all,
    "pg-cut-alone": pg_cut_alone,
    "worker-kill-cut": worker_kill_cut,
}
OF_THE_REST: dict[str, Fault] = {
    "worker-kill": worker_kill,
    "worker-stop": worker_stop,
    "pg-terminate": pg_terminate,
    "pg-restart": pg_restart,
    "pg-cut": pg_cut,
}
ON_DEMAND: dict[str, Fault] = {"worker-freeze": worker_freeze}
"""Only where they are asked for by name."""
FAULTS: dict[str, Fault] = {**OF_REDIS, **OF_THE_REST, **ON_DEMAND}


def plan(seed: str, seconds: float, kinds: Sequence[str]) -> list[list[Step]]:
    """For each lane, its faults in order. The same for the same arguments."""
    lanes = [[k for k in kinds if k in OF_REDIS], [k for k in kinds if k not in OF_REDIS]]
    return [list(_steps(f"{seed}-{number}", seconds, lane)) for number, lane in enumerate(lanes) if lane]


def _steps(seed: str, seconds: float, kinds: Sequence[str]) -> Iterator[Step]:
    rng, bag, at = random.Random(seed), list[str](), 1.0
    while True:
        if not bag:
            bag = rng.sample(kinds, len(kinds))  # every kind, in an order of its own
        step = Step(at, bag.pop(), rng.uniform(*LAST_SECONDS), f"{seed}-{at}")
        at += step.seconds + rng.uniform(*PAUSE_SECONDS)
        if at > seconds:
            return
        yield step


async def torment(world: World, lanes: Sequence[Sequence[Step]]) -> None:
    """Carries the plan out, and returns when everything is healed. A lane that is late goes on as it can."""
    started, numbers = time.monotonic(), iter(range(10**9))

    async def run(lane: Sequence[Step]) -> None:
        for step in lane:
            await asyncio.sleep(max(0.0, started + step.at - time.monotonic()))
            number = next(numbers)
            detail = f"{step.seconds:.2f} s, {step.seed}"
            world.recorder.note("fault", number=number, kind=step.kind, detail=detail)
            await FAULTS[step.kind](world, random.Random(step.seed), step.seconds)
            world.recorder.note("healed", number=number)

    await asyncio.gather(*map(run, lanes))
