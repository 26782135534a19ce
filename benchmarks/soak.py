"""Memory of the process over very many turns."""

from __future__ import annotations

import asyncio
import gc
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import redis

from benchmarks import chat
from benchmarks.contestants import Contestant
from benchmarks.servers import Servers

LANES = 16
SAMPLES = 100


async def soak(
    servers: Servers, contestant: Contestant, turns: int, threads: int, advance: Callable[[float], None]
) -> dict[str, Any]:
    """Run `turns` turns on `threads` threads, 16 at once. Return the memory of process and Redis meanwhile."""
    import psutil

    process = psutil.Process()
    place = servers.place(contestant.name, contestant.uses)
    samples: list[dict[str, int]] = []
    every = max(1, turns // SAMPLES)
    done = 0

    with redis.Redis.from_url(place.redis_url or servers.redis_url) as client:

        def look() -> None:
            gc.collect()
            samples.append(
                {
                    "turns": done,
                    "process_bytes": process.memory_info().rss,
                    "redis_bytes": int(client.info("memory")["used_memory"]),
                }
            )

        async with contestant.open(place) as entrant:
            graph = chat.short_graph(entrant.saver)

            async def lane(first: int) -> None:
                nonlocal done
                for number in range(first, turns, LANES):
                    await graph.ainvoke(chat.question(), chat.thread(f"thread-{number % threads}"))
                    done += 1
                    if done % every == 0:
                        look()
                        advance(every / turns)

            await asyncio.gather(*(lane(first) for first in range(LANES)))
    return {
        "contestant": contestant.name,
        "turns": turns,
        "threads": threads,
        "samples": samples,
        "growth": growth([sample["process_bytes"] for sample in samples]),
    }


def growth(sizes: Sequence[float]) -> float | None:
    """Return the ratio of the last fifth's median to the second fifth's: the first one fills pools and caches."""
    fifth = len(sizes) // 5
    if not fifth:
        return None
    return statistics.median(sizes[-fifth:]) / statistics.median(sizes[fifth : 2 * fifth])
