"""Several processes over the same servers. Run as a script, this file is one of those processes."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

from langgraph_checkpoint_cached import CachedPostgresSaver

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
READERS, THREADS, PROCESSES = 200, 20, 4
OPERATIONS, SHARED_THREADS, TASKS = 10_000, 8, 4
WORKER_TIMEOUT_SECONDS = 180

Event = tuple[float, float, str, str, str, int]
"""Start and end in seconds of the machine's monotonic clock, "read" or "write", thread, checkpoint id, value."""


def config_of(thread_id: str, checkpoint_id: str | None = None) -> Any:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": "", "checkpoint_id": checkpoint_id}}


async def write(saver: Any, thread_id: str) -> tuple[str, int]:
    """Adds a child to the latest checkpoint, as a turn does. Returns its id and value."""
    latest = await saver.aget_tuple(config_of(thread_id))
    parent = latest.config["configurable"]["checkpoint_id"] if latest else None
    version = saver.get_next_version(latest and latest.checkpoint["channel_versions"]["value"], None)
    value = random.getrandbits(40)
    checkpoint: Any = {
        **empty_checkpoint(),
        "v": 4,
        "id": str(uuid6()),
        "channel_values": {"value": [value]},
        "channel_versions": {"value": version},
    }
    stored = await saver.aput(config_of(thread_id, parent), checkpoint, {}, {"value": version})
    return stored["configurable"]["checkpoint_id"], value


# -- what a process does -------------------------------------------------------------------------------------


async def read_cold_threads(saver: CachedPostgresSaver) -> Any:
    """Its share of the readers, all at once. Returns what they found, and the saver's counters."""
    found = await asyncio.gather(
        *(saver.aget_tuple(config_of(f"cold-{i % THREADS}")) for i in range(READERS // PROCESSES))
    )
    return {"found": [t is not None and t.checkpoint["channel_values"]["value"] for t in found], **saver.stats()}


async def write_and_read_shared_threads(saver: CachedPostgresSaver) -> Any:
    """Its share of the operations. Returns one event for each."""
    events: list[Event] = []

    async def work() -> None:
        while len(events) < OPERATIONS // 2:
            thread_id, start = f"shared-{random.randrange(SHARED_THREADS)}", time.monotonic()
            if random.random() < 0.3:
                checkpoint_id, value = await write(saver, thread_id)
                events.append((start, time.monotonic(), "write", thread_id, checkpoint_id, value))
            else:
                found = await saver.aget_tuple(config_of(thread_id))
                checkpoint_id = found.checkpoint["id"] if found else ""
                value = found.checkpoint["channel_values"]["value"][0] if found else 0
                events.append((start, time.monotonic(), "read", thread_id, checkpoint_id, value))

    await asyncio.gather(*(work() for _ in range(TASKS)))
    return {"events": events, **saver.stats()}


async def be_a_process(job: str, *arguments: str) -> None:
    async with CachedPostgresSaver.from_conn_string(
        *arguments[:2], prefix=arguments[2], redis_timeout=10
    ) as saver:
        await saver.aget_tuple(config_of("nobody"))  # connected to both
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        result = await {"cold": read_cold_threads, "shared": write_and_read_shared_threads}[job](saver)
    sys.stdout.write(json.dumps(result))


# -- the tests -----------------------------------------------------------------------------------------------


async def run_processes(count: int, job: str, *arguments: str) -> list[Any]:
    """Starts processes, lets them go at once, and returns what they say."""

    async def start() -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", __name__, job, *arguments, cwd=ROOT, stdin=pipe, stdout=pipe
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        return process

    processes = await asyncio.gather(*(start() for _ in range(count)))
    ended = asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    return [json.loads(out) for out, _ in await asyncio.wait_for(ended, WORKER_TIMEOUT_SECONDS)]


async def scans_of_checkpoints(url: str) -> int:
    """Return how often Postgres has looked into the table, by its own count."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        rows = await conn.execute(
            "select seq_scan + coalesce(idx_scan, 0) from pg_stat_user_tables where relname = 'checkpoints'"
        )
        [(scans,)] = await rows.fetchall()
        return int(scans)


async def until_steady(read: Callable[[], Awaitable[int]]) -> int:
    """Postgres counts with a delay: the count when it has not changed for a second."""
    last, since = await read(), time.monotonic()
    while time.monotonic() - since < 1.2:
        await asyncio.sleep(0.1)
        if (now := await read()) != last:
            last, since = now, time.monotonic()
    return last


@pytest.mark.slow
async def test_cold_threads_load_once_across_processes(
    migrated_database_url: str, redis_url: str, redis_prefix: str
) -> None:
    values = {}
    async with AsyncPostgresSaver.from_conn_string(migrated_database_url) as upstream:
        for i in range(THREADS):
            values[i] = (await write(upstream, f"cold-{i}"))[1]
    before = await until_steady(lambda: scans_of_checkpoints(migrated_database_url))
    results = await run_processes(PROCESSES, "cold", migrated_database_url, redis_url, redis_prefix)
    after = await until_steady(lambda: scans_of_checkpoints(migrated_database_url))
    for result in results:
        assert result["found"] == [[values[i % THREADS]] for i in range(READERS // PROCESSES)]
        assert result["bypasses"] == result["degraded_reads"] == 0
    connected = 1  # the thread that every process asks for first, and that does not exist
    assert sum(result["loads"] for result in results) == THREADS + connected
    assert sum(result["hits"] for result in results) == READERS - THREADS + PROCESSES - connected
    assert after - before == THREADS + 2 * connected  # of which it also asks for other namespaces


@pytest.mark.slow
async def test_no_process_reads_older_than_acknowledged(
    migrated_database_url: str, redis_url: str, redis_prefix: str
) -> None:
    results = await run_processes(2, "shared", migrated_database_url, redis_url, redis_prefix)
    events: list[Event] = [event for result in results for event in result["events"]]
    assert len(events) >= OPERATIONS
    assert stale_reads(events) == []
    for result in results:
        assert result["degraded_reads"] == result["degraded_writes"] == 0
        assert result["hits"] > OPERATIONS / 20, result
        assert result["entry_updates"] > OPERATIONS / 100, result


def stale_reads(events: list[Event]) -> list[str]:
    """Reads that returned an older checkpoint than one acknowledged before they began, or a wrong value."""
    values = {checkpoint_id: value for _, _, kind, _, checkpoint_id, value in events if kind == "write"}
    acknowledged: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for _, end, kind, thread_id, checkpoint_id, _ in sorted(events, key=lambda event: event[1]):
        if kind == "write":
            newest = max(checkpoint_id, acknowledged[thread_id][-1][1] if acknowledged[thread_id] else "")
            acknowledged[thread_id].append((end, newest))
    wrong = []
    for start, _, kind, thread_id, checkpoint_id, value in events:
        if kind == "read":
            before = bisect_left(acknowledged[thread_id], (start,))
            floor = acknowledged[thread_id][before - 1][1] if before else ""
            if checkpoint_id < floor:
                wrong.append(f"{thread_id}: read {checkpoint_id} after {floor} was acknowledged")
            if values.get(checkpoint_id, 0) != value:
                wrong.append(f"{thread_id}: {checkpoint_id} has another value")
    return wrong


def test_the_checker_finds_stale_reads() -> None:
    written: list[Event] = [(0.0, 1.0, "write", "t", "1", 10), (2.0, 3.0, "write", "t", "2", 20)]
    assert stale_reads([*written, (2.5, 2.9, "read", "t", "1", 10), (3.1, 3.2, "read", "t", "2", 20)]) == []
    assert len(stale_reads([*written, (3.1, 3.2, "read", "t", "1", 10)])) == 1
    assert len(stale_reads([*written, (3.1, 3.2, "read", "t", "", 0)])) == 1
    assert len(stale_reads([*written, (3.1, 3.2, "read", "t", "2", 10)])) == 1


if __name__ == "__main__":
    asyncio.run(be_a_process(*sys.argv[1:]))
