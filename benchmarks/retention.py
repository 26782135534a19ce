"""Time to delete idle threads out of a million rows, and its effect on users."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import cycle
from typing import Any

import psutil
import psycopg
from langchain_core.runnables import RunnableConfig

from benchmarks import chat, machine
from benchmarks.contestants import Contestant, Entrant
from benchmarks.outage import Deadline
from benchmarks.place import Place
from benchmarks.servers import Servers
from benchmarks.turns import talked_threads
from langgraph_checkpoint_cached import IdleThreads, SyncCachedPostgresSaver
from langgraph_checkpoint_cached.retention import TICKS_AT_EPOCH, TICKS_PER_SECOND

ROWS = 1_000_000
CHECKPOINTS, BLOBS, WRITES = 20, 20, 10
"""Rows of a thread."""
IDLE = 9
"""Idle ones out of ten threads; the others were used an hour ago."""
IDLE_SECONDS, YOUNG_SECONDS, DAYS_30 = 40 * 86_400, 3_600, 30 * 86_400
LANES = 8
SECONDS = 10.0
THREADS_PER_LANE = 32
PAUSE_SECONDS = 0.25

FILL = """
with ids as (
    select n, i,
        lpad(to_hex((%(ticks)s + (extract(epoch from now()) - age + i) * %(per_second)s)::bigint), 15, '0') h
    from generate_series(1, %(threads)s) n
    cross join lateral (select case when n %% 10 < %(idle)s then %(old)s else %(young)s end as age) as age
    cross join generate_series(1, %(checkpoints)s) i
), named as (
    select 'thread-' || n as t, i, left(h, 8) || '-' || substr(h, 9, 4) || '-6' || substr(h, 13) || '-8000-' ||
        lpad(n::text, 12, '0') as id
    from ids
), blobs as (
    insert into checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    select t, '', 'messages', i::text, 'msgpack', decode(repeat(md5(id), 10), 'hex')
    from named where i <= %(blobs)s
), writes as (
    insert into checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob)
    select t, '', id, id, 0, 'messages', 'msgpack', decode(repeat(md5(id), 4), 'hex')
    from named where i <= %(writes)s
)
insert into checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint, metadata)
select t, '', id, jsonb_build_object('v', 4, 'id', id, 'channel_values', '{}'::jsonb, 'versions_seen', '{}'::jsonb,
    'channel_versions', jsonb_build_object('messages', i::text)), '{"source": "loop", "step": 1}'
from named
"""


def fill(postgres_uri: str, rows: int) -> int:
    """Make threads with `rows` rows in all. Return the number of threads."""
    threads = rows // (CHECKPOINTS + BLOBS + WRITES)
    counts = {"threads": threads, "checkpoints": CHECKPOINTS, "blobs": BLOBS, "writes": WRITES}
    ages = {"idle": IDLE, "old": IDLE_SECONDS, "young": YOUNG_SECONDS}
    clock = {"ticks": TICKS_AT_EPOCH, "per_second": TICKS_PER_SECOND}
    with psycopg.connect(postgres_uri, autocommit=True) as conn:
        conn.execute(FILL, {**counts, **ages, **clock})
        conn.execute("vacuum analyze")
    return threads


def delete(place: Place, options: dict[str, Any]) -> dict[str, Any]:
    """Delete idle threads in this process. Return the counts, the time taken, and the memory meanwhile."""
    process = psutil.Process()
    memory: list[int] = []
    batches: list[float] = []

    def progress(_: IdleThreads) -> None:
        memory.append(process.memory_info().rss)
        batches.append(time.perf_counter())

    with SyncCachedPostgresSaver.from_conn_string(
        place.postgres_uri, place.redis_url, prefix=place.prefix
    ) as saver:
        saver.get_tuple({"configurable": {"thread_id": ""}})
        started = time.perf_counter()
        done = saver.delete_idle_threads(DAYS_30, progress=progress, **options)
        seconds = time.perf_counter() - started
    lengths = [after - before for before, after in zip([started, *batches], batches, strict=False)]
    return {
        **asdict(done),
        "seconds": seconds,
        "longest_batch_seconds": max(lengths, default=0.0),
        "memory_first_mb": memory[min(2, len(memory) - 1)] / 2**20 if memory else 0,
        "memory_most_mb": max(memory, default=0) / 2**20,
    }


class Load:
    """Chat turns in some lanes, each on its own threads, over and over."""

    def __init__(self, entrant: Entrant, threads: Sequence[RunnableConfig]) -> None:
        self._graph, self._threads = chat.short_graph(entrant.saver), threads
        self.turns: list[tuple[float, float]] = []
        """Start and duration of each turn, in seconds."""

    async def run(self, until: Callable[[], bool]) -> None:
        """Run turns until it is time to stop."""

        async def lane(number: int) -> None:
            for config in cycle(self._threads[number::LANES]):
                if until():
                    return
                started = time.perf_counter()
                await self._graph.ainvoke(chat.question(), config, durability="async")
                self.turns.append((started, time.perf_counter() - started))

        await asyncio.gather(*map(lane, range(LANES)))


async def retention(
    servers: Servers, ours: Contestant, rows: int, seconds: float, advance: Callable[[float], None]
) -> dict[str, Any]:
    """Delete a third of the idle threads alone, one under a load of chat turns, and one under load with pauses."""
    place = servers.place(ours.name, {"postgres", "redis"})
    found: dict[str, dict[str, Any]] = {}
    others = os.getloadavg()[1]
    context = multiprocessing.get_context("spawn")
    async with ours.open(place) as entrant:
        threads = await asyncio.to_thread(fill, place.postgres_uri, rows)
        advance(0.2)
        talked = await talked_threads(entrant, chat.short_graph(entrant.saver), LANES * THREADS_PER_LANE, 4)
        third = threads * IDLE // 30
        loop = asyncio.get_running_loop()
        with ProcessPoolExecutor(1, mp_context=context) as processes:

            async def run(**options: Any) -> dict[str, Any]:
                return await loop.run_in_executor(processes, delete, place, options)

            found["dry run"] = await run(dry_run=True)
            found["alone"] = await run(limit=third)
            advance(0.2)
            found["no deletion"] = await _turns(Load(entrant, talked), seconds)
            advance(0.2)
            found["under load"] = await _under_load(Load(entrant, talked), run(limit=third))
            advance(0.2)
            with_pauses = run(limit=third, pause=PAUSE_SECONDS)
            found["under load, pauses"] = await _under_load(Load(entrant, talked), with_pauses)
            found["no deletion, after"] = await _turns(Load(entrant, talked), seconds)
            advance(0.2)
    return {
        "rows": rows,
        "threads": threads,
        "lanes": LANES,
        "load_before": others,
        "machine": machine.machine(),
        "versions": {**machine.versions(), **servers.versions()},
        "figures": found,
    }


async def _under_load(load: Load, deletion: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    """Run turns around the deletion: they begin before it, and end after it."""
    deleted = asyncio.Event()
    running = asyncio.ensure_future(load.run(deleted.is_set))
    while not load.turns:  # noqa: ASYNC110 - an event would be one more thing for each turn
        await asyncio.sleep(0.01)
    started = time.perf_counter()
    try:
        result = await deletion
        ended = time.perf_counter()
    finally:
        deleted.set()
        await running
    return {**result, **_figures([turn for turn in load.turns if started <= turn[0] < ended], ended - started)}


async def _turns(load: Load, seconds: float) -> dict[str, Any]:
    await load.run(Deadline(seconds))
    return _figures(load.turns, seconds)


def _figures(turns: list[tuple[float, float]], seconds: float) -> dict[str, Any]:
    lengths = sorted(length for _, length in turns)
    if not lengths:
        return {"turns": 0, "turns_per_second": 0.0}
    return {
        "turns": len(lengths),
        "turns_per_second": len(lengths) / seconds,
        "turn_p50_ms": 1000 * lengths[len(lengths) // 2],
        "turn_p99_ms": 1000 * lengths[int(len(lengths) * 0.99)],
    }


COLUMNS = {
    "threads": ("threads", "{:,}"),
    "seconds": ("seconds", "{:.1f}"),
    "longest_batch_seconds": ("longest batch, s", "{:.2f}"),
    "memory_first_mb": ("MiB at first", "{:.0f}"),
    "memory_most_mb": ("MiB at most", "{:.0f}"),
    "turns_per_second": ("turns /s", "{:.0f}"),
    "turn_p50_ms": ("turn p50, ms", "{:.0f}"),
    "turn_p99_ms": ("turn p99, ms", "{:.0f}"),
}


def table(result: dict[str, Any]) -> str:
    """Return the measurements, taken once each, as Markdown."""
    lines = [
        f"{result['rows']:,} rows in {result['threads']:,} threads, nine tenths of them idle. {result['lanes']} "
        "chat turns at once. A third of the idle threads are deleted each time; "
        f"pauses are {PAUSE_SECONDS} s. Measured once.",
        "",
        "| | " + " | ".join(title for title, _ in COLUMNS.values()) + " |",
        "|---|" + "--:|" * len(COLUMNS),
    ]
    for name, figures in result["figures"].items():
        cells = [form.format(figures[key]) if key in figures else "" for key, (_, form) in COLUMNS.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    shown = ("Python", "langgraph", "langgraph-checkpoint-postgres", "PostgreSQL", "Redis")
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if name in shown)
    lines += ["", f"{', '.join(result['machine'].values())}; {versions}."]
    lines += ["", f"Load of the machine before it began, mean of five minutes: {result['load_before']:.1f}."]
    return "\n".join(lines) + "\n"
