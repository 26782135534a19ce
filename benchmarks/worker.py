"""One of the processes of `many.py`: reads a job, then questions, lines of JSON all, and answers each with one."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from typing import Any

from benchmarks.contestants import BY_NAME
from benchmarks.servers import Place
from benchmarks.turns import Turn
from benchmarks.workloads import in_lanes


def answer(**fields: Any) -> None:
    """Writes one line."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


async def question() -> dict[str, Any] | None:
    """The next line; None at the end."""
    line = await asyncio.to_thread(sys.stdin.readline)
    found: dict[str, Any] | None = json.loads(line) if line else None
    return found


async def main() -> None:
    """Takes part until there are no more questions."""
    job = await question()
    if job is None:
        return
    workload = Turn(concurrency=job["concurrency"], messages=job["messages"], durability=job["durability"])
    async with BY_NAME[job["contestant"]].open(Place(**job["place"])) as entrant:
        answer(ready=True)
        while (asked := await question()) is not None:
            operations = await workload.prepare(entrant, asked["prepare"])
            gc.collect()
            answer(ready=True)
            if await question() is None:
                return
            used, started = time.process_time(), time.monotonic()
            await in_lanes(operations, workload.concurrency)
            answer(
                operations=len(operations),
                started=started,
                ended=time.monotonic(),
                cpu=time.process_time() - used,
            )


if __name__ == "__main__":
    asyncio.run(main())
