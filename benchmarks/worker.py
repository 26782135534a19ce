"""Process that measures turns with one contestant, for `many.py` and `against.py`.

It reads a job, then questions, and answers each: lines of JSON all. With a `checkout` in its job it measures the
package of that checkout, whatever its layout: only names that the package exports are used.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.turns import Turn
    from benchmarks.workloads import Operation

SETTLE_SECONDS = 0.3
"""Idle time before and after a measurement that `settles`, so that CPU used afterwards counts where it belongs."""


def answer(**fields: Any) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


async def question() -> dict[str, Any] | None:
    """Read the next line; return None at the end."""
    line = await asyncio.to_thread(sys.stdin.readline)
    found: dict[str, Any] | None = json.loads(line) if line else None
    return found


async def main() -> None:
    """Take part until there are no more questions."""
    job = await question()
    if job is None:
        return
    if checkout := job.get("checkout"):
        sys.path.insert(0, checkout)  # before anything imports the package
    from benchmarks.contestants import BY_NAME
    from benchmarks.place import Place
    from benchmarks.turns import Turn

    workload = Turn(concurrency=job["concurrency"], messages=job["messages"], durability=job["durability"])
    async with BY_NAME[job["contestant"]].open(Place(**job["place"])) as entrant:
        check_package(checkout)
        answer(ready=True)
        while (asked := await question()) is not None:
            workload = replace(workload, concurrency=asked.get("concurrency", workload.concurrency))
            settles = SETTLE_SECONDS if asked.get("settles") else 0
            operations = await workload.prepare(entrant, asked["prepare"])
            await asyncio.sleep(settles)
            gc.collect()
            answer(ready=True)
            if await question() is None:
                return
            answer(**await measure(workload, operations, settles))


def check_package(checkout: str | None) -> None:
    """Raise RuntimeError if the package was not imported from this checkout."""
    file = str(sys.modules["langgraph_checkpoint_cached"].__file__)
    if checkout and not Path(file).is_relative_to(checkout):
        raise RuntimeError(f"the package was to come from {checkout}, and came from {file}")


async def measure(workload: Turn, operations: list[Operation], settle_seconds: float) -> dict[str, float]:
    """Run the operations. Return their number and median time, when they started and ended, and the CPU used."""
    from benchmarks.workloads import in_lanes

    took: list[float] = []

    def timed(operation: Operation) -> Operation:
        async def run() -> None:
            started = time.perf_counter()
            await operation()
            took.append(time.perf_counter() - started)

        return run

    used, started = time.process_time(), time.monotonic()
    await in_lanes([timed(operation) for operation in operations], workload.concurrency)
    ended = time.monotonic()
    await asyncio.sleep(settle_seconds)
    return {
        "operations": len(operations),
        "median": statistics.median(took),
        "started": started,
        "ended": ended,
        "cpu": time.process_time() - used,
    }


if __name__ == "__main__":
    asyncio.run(main())
