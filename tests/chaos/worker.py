"""One worker process: real graphs and raw operations on threads that all workers share, until it is told to end.

Told on stdin: `block SECONDS` and `large BYTES` at any time, then `settle`, then `stop`; the end of stdin ends it
too. It says on stdout: `ready`, `settled`, and `redis up` or `redis down` when what it knows of its Redis changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6

from langgraph_checkpoint_cached.errors import OverloadedError
from langgraph_checkpoint_cached.stores.postgres.errors import outcome_unknown
from langgraph_checkpoint_cached.utils.circuit_breaker import CircuitBreaker
from tests.chaos import turns
from tests.chaos.history import (
    DELETE,
    FAILED,
    OK,
    PUT,
    PUT_WRITES,
    READ,
    READ_BY_ID,
    TURN,
    UNKNOWN,
    Operation,
    Place,
    Recorder,
)
from tests.chaos.savers import Opened, open_saver
from tests.chaos.values import as_seen, new_value
from tests.support.inspect import connections_in_use

KEPT_THREADS = ("kept-0", "kept-1", "kept-2")
DELETED_THREADS = ("deleted-0", "deleted-1")
GRAPH_THREADS = ("graph-0", "graph-1", "graph-2", "graph-3")
NAMESPACES = ("", "child")
BUSY_PLACES: tuple[Place, ...] = tuple((t, ns) for t in (*KEPT_THREADS, *DELETED_THREADS) for ns in NAMESPACES)
QUIET_PLACES: tuple[Place, ...] = tuple((f"quiet-{number}", "") for number in range(40))
"""Read now and then and seldom written, so that what is wrong there is not soon made good by the next write."""
PLACES = (*BUSY_PLACES, *QUIET_PLACES)
ALL_PLACES = (*PLACES, *((thread, "") for thread in GRAPH_THREADS))
QUIET_SHARE, QUIET_WRITES = 0.3, 0.15
TASKS = 3
PAUSE_SECONDS_MAX = 0.03
OPERATION_SECONDS_MAX = 20.0
FLUSH_SECONDS_MAX = 30.0
REPLACE_SECONDS_MAX = 10.0
KNOWN_IDS_MAX = 20


@dataclass(frozen=True)
class Job:
    """Arguments of a worker process."""

    process: str
    seed: str
    saver: str
    postgres_url: str
    redis_url: str
    directory: str
    fence_seconds: float
    mode: str = "write_through"
    redis_durability: str = "as_is"

    def open_saver(self) -> contextlib.AbstractAsyncContextManager[Opened]:
        return open_saver(
            self.saver, self.postgres_url, self.redis_url, self.fence_seconds, self.mode, self.redis_durability
        )


@dataclass
class Known:
    """Knowledge of a worker about a namespace: the checkpoint to build on, and some ids."""

    latest: str | None
    versions: dict[str, Any]
    values: dict[str, Any]
    ids: list[str]


def config_of(place: Place, checkpoint_id: str | None = None) -> Any:
    configurable = {"thread_id": place[0], "checkpoint_ns": place[1]}
    return {"configurable": {**configurable, "checkpoint_id": checkpoint_id} if checkpoint_id else configurable}


class Worker:
    """Runs operations and records them."""

    def __init__(self, job: Job, opened: Opened, recorder: Recorder) -> None:
        self._job, self._opened, self._saver, self._recorder = job, opened, opened.saver, recorder
        self._known = {place: Known(None, {}, {}, []) for place in PLACES}
        self._graph = turns.build(opened.saver)
        self._turns = 0
        self._stopping = asyncio.Event()
        self._bulk_bytes = 0
        """Size of the channel that the next checkpoint shall have in addition."""

    async def run(self) -> None:
        """Works until `stop`."""
        async with contextlib.AsyncExitStack() as stack:
            for number in range(TASKS):
                rng = random.Random(f"{self._job.seed}-{number}")
                task = asyncio.create_task(self._work(rng, self._raw))
                stack.push_async_callback(asyncio.wait, [task])
            task = asyncio.create_task(self._work(random.Random(f"{self._job.seed}-turns"), self._turn))
            stack.push_async_callback(asyncio.wait, [task])
            await self._stopping.wait()

    def stop(self) -> None:
        self._stopping.set()

    async def obey(self, lines: asyncio.StreamReader) -> bytes:
        """Does what it is told, and returns the first line that tells it to end."""
        while True:
            line = await lines.readline()
            order, _, amount = line.decode().partition(" ")
            if order == "block":
                time.sleep(float(amount))
            elif order == "large":
                self._bulk_bytes = int(amount)
            else:
                return line

    async def settle(self) -> list[str]:
        """Reads every namespace through Redis. Returns those where that did not succeed in time."""
        deadline, missed = time.monotonic() + FLUSH_SECONDS_MAX, list(ALL_PLACES)
        while missed and time.monotonic() < deadline:
            missed = [place for place in missed if not await self._read_normally(place)]
            await asyncio.sleep(0.1 if missed else 0)
        return [repr(place) for place in missed]

    async def _read_normally(self, place: Place) -> bool:
        before = self._opened.stats()
        try:
            await self._saver.aget_tuple(config_of(place))
        except Exception:  # noqa: BLE001 - tried again
            return False
        after = self._opened.stats()
        return not after or after["hits"] + after["loads"] > before["hits"] + before["loads"]

    async def _work(self, rng: random.Random, step: Callable[[random.Random], Awaitable[None]]) -> None:
        while not self._stopping.is_set():
            await step(rng)
            await asyncio.sleep(rng.uniform(0, PAUSE_SECONDS_MAX))

    async def _raw(self, rng: random.Random) -> None:
        place, chance = rng.choice(BUSY_PLACES), rng.random()
        if rng.random() < QUIET_SHARE:
            place, chance = rng.choice(QUIET_PLACES), chance if rng.random() < QUIET_WRITES else 0.5
        ids = self._known[place].ids
        if chance < 0.25:
            await self._put(rng, place)
        elif chance < 0.30 and place[0] in DELETED_THREADS and rng.random() < 0.1:
            operation = self._recorder.start(DELETE, place[0], "")
            await self._do(operation, self._saver.adelete_thread(place[0]))
        elif chance < 0.60 or not ids:
            await self._read(place)
        elif chance < 0.72:
            await self._read(place, rng.choice(ids))
        else:
            await self._put_writes(rng, place, rng.choice(ids[-2:]))

    async def _read(self, place: Place, checkpoint_id: str | None = None) -> None:
        kind = READ_BY_ID if checkpoint_id else READ
        operation = self._recorder.start(kind, *place, id=checkpoint_id or "")

        async def read() -> dict[str, Any]:
            found = await self._saver.aget_tuple(config_of(place, checkpoint_id))
            if found is None:
                return {}
            if not checkpoint_id:
                values = found.checkpoint["channel_values"]
                self._learn(place, found.checkpoint["id"], dict(found.checkpoint["channel_versions"]), values)
            return {"seen": asdict(as_seen(*place, found))}

        await self._do(operation, read())

    async def _put(self, rng: random.Random, place: Place) -> None:
        known, checkpoint_id = self._known[place], str(uuid6())
        values: dict[str, Any] = {"value": new_value(rng, *place, checkpoint_id)}
        if "base" not in known.values or rng.random() < 0.3:
            values["base"] = new_value(rng, *place, checkpoint_id)
        if self._bulk_bytes or known.values.get("bulk"):  # one checkpoint is large, and the next is not
            values["bulk"], self._bulk_bytes = "x" * self._bulk_bytes, 0
        new = {c: self._saver.get_next_version(known.versions.get(c), None) for c in values}
        versions, values = {**known.versions, **new}, {**known.values, **values}
        checkpoint: Any = {
            **empty_checkpoint(),
            "v": 4,
            "id": checkpoint_id,
            "channel_values": values,
            "channel_versions": versions,
        }
        parent, digest = known.latest, values["value"]["digest"]
        operation = self._recorder.start(PUT, *place, id=checkpoint_id, parent=parent, digest=digest)
        put = self._saver.aput(config_of(place, parent), checkpoint, {"of": checkpoint_id}, new)
        if rng.random() < 0.1:  # writes that come before, with or after their checkpoint
            await asyncio.gather(self._do(operation, put), self._put_writes(rng, place, checkpoint_id))
        else:
            await self._do(operation, put)
        if operation.outcome == OK:
            self._learn(place, checkpoint_id, versions, values)

    async def _put_writes(self, rng: random.Random, place: Place, checkpoint_id: str) -> None:
        task = f"{rng.getrandbits(64):016x}"
        value = new_value(rng, *place, checkpoint_id, task)
        operation = self._recorder.start(PUT_WRITES, *place, id=checkpoint_id, task=task, digest=value["digest"])
        config = config_of(place, checkpoint_id)
        await self._do(operation, self._saver.aput_writes(config, [("written", value)], task))

    async def _turn(self, rng: random.Random) -> None:
        thread = rng.choice(GRAPH_THREADS)
        with _lock(Path(self._job.directory) / f"{thread}.lock") as locked:
            if not locked:
                return
            self._turns += 1
            name = f"{self._job.process}.{self._turns}"
            operation = self._recorder.start(TURN, thread, "", id=name)

            async def turn() -> dict[str, Any]:
                durability = rng.choice(["sync", "async", "exit"])
                return {"answers": await turns.take(self._graph, thread, name, durability)}

            await self._do(operation, turn())

    async def _do(self, operation: Operation, work: Awaitable[Any]) -> None:
        """Waits for it, and records how it ended."""
        try:
            result = await asyncio.wait_for(work, OPERATION_SECONDS_MAX)
        except Exception as exc:  # noqa: BLE001 - recorded
            behind = self._job.mode == "write_behind"
            outcome = FAILED if _had_no_effect(operation, exc, behind=behind) else UNKNOWN
            self._recorder.end(operation, outcome, error=f"{type(exc).__name__}: {exc}"[:200])
        else:
            reads = operation.kind in (READ, READ_BY_ID, TURN)
            self._recorder.end(operation, OK, **(result if reads else {}))

    def _learn(self, place: Place, checkpoint_id: str, versions: dict[str, Any], values: dict[str, Any]) -> None:
        known = self._known[place]
        ids = known.ids if checkpoint_id in known.ids else [*known.ids, checkpoint_id][-KNOWN_IDS_MAX:]
        if known.latest is None or checkpoint_id > known.latest or place[0] in DELETED_THREADS:
            known = Known(checkpoint_id, versions, values, ids)
        known.ids = ids
        self._known[place] = known


def _had_no_effect(operation: Operation, error: Exception, *, behind: bool) -> bool:
    if operation.kind in (READ, READ_BY_ID) or isinstance(error, OverloadedError):
        return True
    if behind and isinstance(error, psycopg.Error):
        return False  # Redis may have it, of which neither it nor Postgres could be asked
    return operation.kind != TURN and not isinstance(error, TimeoutError) and not outcome_unknown(error)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Say whether this is the only process in the block. The system frees the lock of a process that is killed."""
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(file)


def _tell(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def _tell_of_breakers() -> None:
    """Has every breaker of this process tell when it opens and closes."""
    fail, end_probe = CircuitBreaker.fail, CircuitBreaker.end_probe

    def failed(self: CircuitBreaker) -> bool:
        opened = fail(self)
        if opened:
            _tell("redis down")
        return opened

    def probed(self: CircuitBreaker, *, succeeded: bool) -> None:
        end_probe(self, succeeded=succeeded)
        if succeeded:
            _tell("redis up")

    CircuitBreaker.fail, CircuitBreaker.end_probe = failed, probed  # type: ignore[method-assign]


def leaks_of(opened: Opened) -> dict[str, Any]:
    """Count what is still in use though nothing is under way: connections, and tasks beside this one."""
    pool = opened.pool.get_stats()
    return {
        "postgres connections in use": pool["pool_size"] - pool["pool_available"],
        "postgres waiting": pool.get("requests_waiting", 0),
        "redis connections in use": len(connections_in_use(opened.redis)),
    }


async def _leaks(opened: Opened) -> dict[str, Any]:
    """The same, once the pool has had time to replace connections that it has lost: it counts those as in use."""
    until = time.monotonic() + REPLACE_SECONDS_MAX
    while any((leaks := leaks_of(opened)).values()) and time.monotonic() < until:
        await asyncio.sleep(0.1)
    return leaks


async def _still_running(allowed: set[asyncio.Task[Any]]) -> list[str]:
    await asyncio.sleep(0.05)  # what has just been told to end does
    return [repr(task.get_coro()) for task in asyncio.all_tasks() - allowed]


async def main(job: Job) -> None:
    own = asyncio.all_tasks()
    recorder = Recorder(Path(job.directory) / f"worker-{job.process}.jsonl", job.process)
    _tell_of_breakers()
    lines = asyncio.StreamReader()
    stdin, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    async with job.open_saver() as opened:
        worker = Worker(job, opened, recorder)
        _tell("ready")
        work = asyncio.create_task(worker.run())
        pulse = asyncio.create_task(_pulse(recorder, opened))
        own |= {pulse}
        reply = await worker.obey(lines)
        worker.stop()
        await work
        if reply:
            recorder.note("settled", missed=await worker.settle())
            _tell("settled")
            await lines.readline()
        pulse.cancel()
        if hasattr(opened.saver, "aclose"):
            await opened.saver.aclose()
        recorder.note("stats", stats=opened.stats())
        leaks = await _leaks(opened)
    leaks["tasks"] = await _still_running(own)
    recorder.note("bye", leaks={name: found for name, found in leaks.items() if found})
    stdin.close()


async def _pulse(recorder: Recorder, opened: Opened) -> None:
    """Notes the counters now and then: a process that is killed says no last word."""
    while True:
        recorder.note("stats", stats=opened.stats())
        await asyncio.sleep(0.5)


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(main(Job(**json.loads(sys.argv[1]))))
