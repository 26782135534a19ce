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
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

import redis

from langgraph_checkpoint_cached.engine.serving_right import RIGHT_SECONDS
from tests.chaos.gates import Direction, Gate
from tests.chaos.kills import (
    fail_over,
    failover_and_workers_kill,
    redis_and_workers_kill,
    worker_freeze,
    worker_kill,
    worker_kill_all,
    worker_kill_cut,
    worker_stop,
)
from tests.chaos.savers import PREFIX
from tests.chaos.world import World

LAST_SECONDS = (0.4, 2.5)
PAUSE_SECONDS = (0.3, 1.5)
LAG_SECONDS = 1.5
FULL_BYTES = 200_000
EVICTING_BYTES = 300_000
DROP_BYTES_MAX = 6000
LARGE_BYTES_MAX = 4_000_000


@dataclass(frozen=True)
class Step:
    """A fault of the plan."""

    at: float
    kind: str
    seconds: float
    seed: str


async def redis_kill(world: World, rng: random.Random, seconds: float) -> None:
    await world.in_thread(world.redis.restart, seconds, keep_snapshot=False)


async def redis_snapshot(world: World, rng: random.Random, seconds: float) -> None:
    await world.in_thread(world.redis.save)
    await asyncio.sleep(seconds)  # what is written now is not in it
    await world.in_thread(world.redis.restart, 0.1, keep_snapshot=True)


async def redis_failover(world: World, rng: random.Random, seconds: float) -> None:
    await world.in_thread(world.redis.wait_for_replica)
    world.redis.replication.deafen()
    await asyncio.sleep(LAG_SECONDS)
    await fail_over(world, seconds)


async def redis_full(world: World, rng: random.Random, seconds: float) -> None:
    await _limited(world, seconds, FULL_BYTES, "noeviction")


async def redis_evict(world: World, rng: random.Random, seconds: float) -> None:
    policies = ["volatile-lru", "volatile-random", "volatile-ttl"]
    if world.setup.mode == "write_through":
        policies += ["allkeys-lru", "allkeys-random"]
    await _limited(world, seconds, EVICTING_BYTES, rng.choice(policies))


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
    """Evicts keys at random, of whatever kind that may be evicted."""

    def evict() -> None:
        keys = sorted(world.redis.admin.scan_iter(match=f"{PREFIX}*", count=1000))
        keys = [key for key in keys if not key.endswith(b":journal")]  # which never expire, so are not evicted
        if keys:
            world.redis.admin.delete(*rng.sample(keys, rng.randint(1, max(1, len(keys) // 3))))

    await _repeat(world, rng, seconds, evict)


async def redis_flush(world: World, rng: random.Random, seconds: float) -> None:
    await _repeat(world, rng, seconds, lambda: world.redis.admin.flushall())


async def redis_scripts(world: World, rng: random.Random, seconds: float) -> None:
    await _repeat(world, rng, seconds, lambda: world.redis.admin.script_flush())


async def _repeat(world: World, rng: random.Random, seconds: float, work: Callable[[], object]) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        await world.in_thread(work)
        await asyncio.sleep(rng.uniform(0.02, 0.3))


async def redis_client_kill(world: World, rng: random.Random, seconds: float) -> None:
    """Drops every connection to Redis, again and again: what was sent may have been done or not."""
    await _repeat(world, rng, seconds, lambda: world.redis.admin.client_kill_filter(_type="normal", skipme=True))


async def redis_stall(world: World, rng: random.Random, seconds: float) -> None:
    async with world.disturb():
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
    async with world.disturb():
        for gate in gates:
            how(gate)
        await asyncio.sleep(seconds)
        for gate in gates:
            gate.open()


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


async def pg_rewind(world: World, rng: random.Random, seconds: float) -> None:
    """Postgres loses its last commits, as in a failover to a replica that lags."""
    since = time.monotonic()
    await world.in_thread(world.postgres.save)
    await asyncio.sleep(seconds)  # what is written now is lost
    await world.in_thread(world.postgres.rewind)
    world.recorder.note("rewound", since=since)


async def pg_away(world: World, rng: random.Random, seconds: float) -> None:
    """Cuts a worker off from Postgres alone."""
    gate = rng.choice(world.postgres_gates)
    gate.shut()
    await asyncio.sleep(seconds)
    gate.open()


async def pg_silent(world: World, rng: random.Random, seconds: float) -> None:
    """Lets a worker's connections to Postgres go silent for good, as a firewall does that forgets them."""
    rng.choice(world.postgres_gates).lose()
    await asyncio.sleep(seconds)


async def pg_standby_away(world: World, rng: random.Random, seconds: float) -> None:
    """Has commits wait for a synchronous standby that is not there."""

    def wait_for(standby: str) -> None:
        world.postgres_do(f"alter system set synchronous_standby_names = '{standby}'")
        world.postgres_do("select pg_reload_conf()")

    await world.in_thread(wait_for, "away")
    await asyncio.sleep(seconds)
    await world.in_thread(wait_for, "")


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
    async with world.disturb():
        world.redis_gates[slot].shut()
        while time.monotonic() < until:
            await asyncio.sleep(rng.uniform(0.1, 0.4))
            gate.mute()
            await asyncio.sleep(0.1)
            gate.cut()
            gate.open()
        world.redis_gates[slot].open()


async def worker_block(world: World, rng: random.Random, seconds: float) -> None:
    """Blocks a worker's event loop, for up to twice the time that a right to serve lasts."""
    rng.choice(world.workers).say(f"block {seconds:.3f}")
    await asyncio.sleep(seconds)


async def worker_large(world: World, rng: random.Random, seconds: float) -> None:
    """Has a worker write states of some MB, and all read them."""
    rng.choice(world.workers).say(f"large {rng.randrange(LARGE_BYTES_MAX)}")
    await asyncio.sleep(seconds)


async def cut_apart(world: World, rng: random.Random, seconds: float) -> None:
    """Cuts a worker off from Redis and another one from Postgres, for longer than a right to serve lasts."""
    writer, reader = rng.sample(range(len(world.workers)), 2)
    async with world.disturb():
        gates = [world.redis_gates[writer], world.postgres_gates[reader]]
        for gate in gates:
            gate.shut()
        await asyncio.sleep(RIGHT_SECONDS + seconds)
        for gate in gates:
            gate.open()


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
    "redis-client-kill": redis_client_kill,
    "redis-stall": redis_stall,
    "cut-one": cut_one,
    "stall-one": stall_one,
    "cut-all": cut_all,
    "pg-cut-apart": cut_apart,
    "pg-cut-alone": pg_cut_alone,
    "worker-kill-cut": worker_kill_cut,
}
OF_THE_REST: dict[str, Fault] = {
    "worker-kill": worker_kill,
    "worker-stop": worker_stop,
    "worker-block": worker_block,
    "worker-large": worker_large,
    "pg-terminate": pg_terminate,
    "pg-restart": pg_restart,
    "pg-cut": pg_cut,
    "pg-silent": pg_silent,
    "pg-rewind": pg_rewind,
    "pg-standby-away": pg_standby_away,
}
ON_DEMAND: dict[str, Fault] = {
    "worker-freeze": worker_freeze,
    "worker-kill-all": worker_kill_all,
    "redis-and-workers-kill": redis_and_workers_kill,
    "failover-and-workers-kill": failover_and_workers_kill,
    "pg-away": pg_away,
}
"""Only where they are asked for by name, or where workers write behind."""
FAULTS: dict[str, Fault] = {**OF_REDIS, **OF_THE_REST, **ON_DEMAND}

KEEP_DATA = [
    "redis-full",
    "redis-evict",
    "redis-delete",
    "redis-scripts",
    "redis-client-kill",
    "redis-stall",
    "cut-one",
    "stall-one",
    "cut-all",
    "pg-cut-apart",
    "pg-cut-alone",
]
"""Faults after which Redis still has its journals."""
LOSE_DATA = ["redis-kill", "redis-snapshot", "redis-failover", "redis-flush"]
LEAVE_WORKERS = [
    "worker-stop",
    "worker-block",
    "worker-large",
    "pg-terminate",
    "pg-restart",
    "pg-cut",
    "pg-silent",
    "pg-away",
    "pg-standby-away",
]
KILL_WORKERS = [*LEAVE_WORKERS, "worker-kill", "worker-kill-all"]
BEHIND: dict[str, list[str]] = {
    "memory": [*KEEP_DATA, *KILL_WORKERS],
    "disk": [*KEEP_DATA, "redis-kill", "redis-and-workers-kill", *KILL_WORKERS],
    "replica": [*KEEP_DATA, "redis-failover", "failover-and-workers-kill", *KILL_WORKERS],
    "lost": [*KEEP_DATA, *LOSE_DATA, *LEAVE_WORKERS],
}
"""Where workers write behind, by what of Redis survives: all but what takes Redis' data and the process that wrote
them at once."""


def plan(seed: str, seconds: float, kinds: Sequence[str]) -> list[list[Step]]:
    """For each lane, its faults in order. The same for the same arguments."""
    first = {*OF_REDIS, "redis-and-workers-kill", "failover-and-workers-kill"}
    lanes = [[k for k in kinds if k in first], [k for k in kinds if k not in first]]
    return [list(_transport(f"{seed}-{number}", seconds, lane)) for number, lane in enumerate(lanes) if lane]


def _transport(seed: str, seconds: float, kinds: Sequence[str]) -> Iterator[Step]:
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
