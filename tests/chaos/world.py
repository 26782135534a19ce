"""World that the nemesis breaks: servers, workers, and the network between each worker and each server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import psycopg
import redis

from langgraph_checkpoint_cached.demo.embedded import LOCALHOST, RedisServer
from tests.chaos.gates import Gate
from tests.chaos.history import Recorder
from tests.chaos.worker import Job
from tests.support.rewinding import RewindingPostgres

T = TypeVar("T")

READY_SECONDS_MAX = 60.0
END_SECONDS_MAX = 20.0
SAVE_SECONDS_MAX = 10.0
JOIN_SECONDS_MAX = 20.0
POSTGRES = {"max_connections": "200"}
REDIS = ("--repl-diskless-sync-delay", "0")
MODES = ("write_through", "write_behind", "mixed")
"""Ways in which workers write; mixed: every other one behind, the rest through."""
REDIS_ARGUMENTS = {
    "memory": (),
    "disk": ("--appendonly", "yes", "--appendfsync", "always"),
    "replica": (),
    "lost": (),
}
"""Surviving data of Redis: all, as nothing befalls it; what is on its disk when it answers; what a replica has;
nothing, but workers do."""


@dataclass(frozen=True)
class Setup:
    """Way in which workers write, and what an acknowledgement of their Redis is worth."""

    saver: str = "ours"
    mode: str = "write_through"
    redis: str = "memory"

    def __str__(self) -> str:
        return f"{self.saver}, {self.mode}, Redis of {self.redis}"

    def mode_of(self, slot: int) -> str:
        """Return the mode of the worker in that slot."""
        if self.mode == "mixed":
            return "write_through" if slot % 2 else "write_behind"
        return self.mode

    @property
    def redis_durability(self) -> str:
        """Durability that workers ask of their saver."""
        return "replica" if self.redis == "replica" else "as_is"


class RedisPair:
    """A Redis and its replica, which may be made to lag and then to take over."""

    def __init__(self, *arguments: str) -> None:
        self.master, self.replica = RedisServer(*REDIS, *arguments), RedisServer(*REDIS, *arguments)
        self.replication = Gate(self.master.port)
        self.admin: redis.Redis = redis.Redis(port=self.master.port, socket_timeout=10)

    def start(self) -> None:
        self.master.start()
        self.replica.start()

    def stop(self) -> None:
        for server in (self.master, self.replica):
            if server.pid is not None:
                os.kill(server.pid, signal.SIGCONT)
            server.close()

    def follow(self) -> None:
        """Has the replica follow the master, through the gate."""
        with redis.Redis(port=self.replica.port) as client:
            client.replicaof(LOCALHOST, self.replication.port)

    def save(self) -> None:
        """Saves a snapshot, as soon as none is under way: a replica that joins wants one too."""
        until = time.monotonic() + SAVE_SECONDS_MAX
        while True:
            try:
                self.admin.save()
                return
            except redis.ResponseError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def restart(self, seconds: float, *, keep_snapshot: bool) -> None:
        """Kills the master and starts it again, with the snapshot that it last saved or with none."""
        snapshot = Path(self.admin.config_get("dir")["dir"]) / "dump.rdb"
        self.master.kill()
        if not keep_snapshot:
            snapshot.unlink(missing_ok=True)
        time.sleep(seconds)
        self.master.start()
        snapshot.unlink(missing_ok=True)

    def wait_for_replica(self) -> None:
        """Returns when the replica has all that the master had: one that has just joined is no second copy yet."""
        until = time.monotonic() + JOIN_SECONDS_MAX
        with redis.Redis(port=self.replica.port, socket_timeout=10) as client:
            while client.info("replication").get("master_link_status") != "up" and time.monotonic() < until:
                time.sleep(0.05)

    def promote(self) -> None:
        """Kills the master. The replica takes over with what it has, and the old master, empty, follows it."""
        self.master.kill()
        self.master, self.replica = self.replica, self.master
        self.admin.close()
        self.admin = redis.Redis(port=self.master.port, socket_timeout=10)
        self.admin.replicaof("NO", "ONE")


class WorkerProcess:
    """One worker, in the place of those before it that were killed."""

    def __init__(self, slot: int, start: Callable[[int, int], subprocess.Popen[bytes]]) -> None:
        self.slot, self.server_epoch = slot, 0
        self._start = start
        self._process: subprocess.Popen[bytes] | None = None
        self.has_redis, self.is_settled = True, asyncio.Event()
        self._ready = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return f"{self.slot}.{self.server_epoch}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def spawn(self) -> None:
        """Starts it, and returns when it works. One that ends by itself, as Postgres is away, is started again."""
        await asyncio.wait_for(self._spawn(), READY_SECONDS_MAX)

    async def _spawn(self) -> None:
        has_failed = True
        while has_failed:
            self.server_epoch += 1
            self._ready.clear()
            process = self._process = self._start(self.slot, self.server_epoch)
            self.has_redis = True
            reading = self._reading = asyncio.create_task(self._read(process))
            ready = asyncio.create_task(self._ready.wait())
            await asyncio.wait({ready, reading}, return_when=asyncio.FIRST_COMPLETED)
            # Who kills it starts it again.
            has_failed = not self._ready.is_set() and await asyncio.to_thread(process.wait) > 0
        await ready

    async def kill(self) -> None:
        """Returns when it is gone."""
        if self._process is not None:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
            if self._reading is not None:
                await self._reading

    def say(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    async def end(self) -> bool:
        """Tells it to stop; whether it does, in time and without an error."""
        assert self._process is not None
        self.say("stop")
        try:
            return await asyncio.to_thread(self._process.wait, END_SECONDS_MAX) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            await self.kill()

    async def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        while line := await asyncio.to_thread(process.stdout.readline):
            reply = line.decode().strip()
            if reply.startswith("redis "):
                self.has_redis = reply == "redis up"
            elif reply in ("ready", "settled"):
                (self._ready if reply == "ready" else self.is_settled).set()
        process.stdout.close()


class World:
    """Everything that there is. Use `opened`."""

    def __init__(self, seed: str, setup: Setup, workers: int, directory: Path, fence_seconds: float) -> None:
        self.seed, self.setup, self.directory, self.fence_seconds = seed, setup, directory, fence_seconds
        self.recorder = Recorder(directory / "nemesis.jsonl", "nemesis")
        self.redis = RedisPair(*REDIS_ARGUMENTS[setup.redis])
        self.postgres = RewindingPostgres(POSTGRES)
        self.redis_gates = [Gate(self.redis.master.port) for _ in range(workers)]
        self.postgres_gates = [Gate(self.postgres.port) for _ in range(workers)]
        self.workers = [WorkerProcess(slot, self._start_worker) for slot in range(workers)]
        self.disturbed = 0
        """Number of faults that now keep some workers from their Redis, and leave what it holds."""
        self.killing = asyncio.Lock()
        """Held while a worker is killed, or such a fault begins."""

    def job(self, slot: int, process: str, *, direct: bool = False) -> Job:
        postgres_port = self.postgres.port if direct else self.postgres_gates[slot].port
        redis_port = self.redis.master.port if direct else self.redis_gates[slot].port
        url = urlsplit(self.postgres.url)
        return Job(
            process=process,
            seed=f"{self.seed}-{process}",
            saver=self.setup.saver,
            postgres_url=url._replace(netloc=url.netloc.replace(f":{url.port}", f":{postgres_port}")).geturl(),
            redis_url=f"redis://{LOCALHOST}:{redis_port}/0",
            directory=str(self.directory),
            fence_seconds=self.fence_seconds,
            mode="write_through" if direct else self.setup.mode_of(slot),
            redis_durability=self.setup.redis_durability,
        )

    def start_module(self, module: str, job: Job) -> subprocess.Popen[bytes]:
        """A process of ours, told what to do."""
        with (self.directory / "stderr.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", module, json.dumps(asdict(job))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )

    @asynccontextmanager
    async def disturb(self) -> AsyncIterator[None]:
        """While this lasts some workers are kept from their Redis, and the other lane kills none."""
        async with self.killing:
            self.disturbed += 1
        try:
            yield
        finally:
            self.disturbed -= 1

    async def in_thread(self, work: Callable[..., T], *args: Any, **options: Any) -> T:
        return await asyncio.to_thread(work, *args, **options)

    def postgres_do(self, sql: str) -> None:
        """As a superuser, past all gates."""
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            connection.execute(sql)

    def _start_worker(self, slot: int, server_epoch: int) -> subprocess.Popen[bytes]:
        return self.start_module("tests.chaos.worker", self.job(slot, f"{slot}.{server_epoch}"))

    async def open(self) -> None:
        await asyncio.gather(self.in_thread(self.postgres.start), self.in_thread(self.redis.start))
        for gate in (*self.redis_gates, *self.postgres_gates, self.redis.replication):
            await gate.start()
        await asyncio.gather(self.in_thread(self.postgres.migrate), self.in_thread(self.redis.follow))
        await asyncio.gather(*(worker.spawn() for worker in self.workers))

    async def close(self) -> None:
        await asyncio.gather(*(worker.kill() for worker in self.workers))
        for gate in (*self.redis_gates, *self.postgres_gates, self.redis.replication):
            gate.stop()
        self.redis.admin.close()
        await asyncio.gather(self.in_thread(self.redis.stop), self.in_thread(self.postgres.close))
        self.recorder.close()


@asynccontextmanager
async def opened(world: World) -> AsyncIterator[World]:
    """Starts everything, and leaves nothing behind."""
    try:
        await world.open()
        yield world
    finally:
        await world.close()
