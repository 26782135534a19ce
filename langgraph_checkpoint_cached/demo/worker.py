"""Worker process of the desk: `python -m langgraph_checkpoint_cached.demo.worker`.

The process reads one job, a line of JSON, from its standard input, plays one turn, and reports events as lines of
JSON on its standard output. It ends when its input ends, whatever it is doing.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from langgraph_checkpoint_cached.demo.desk import OrderBook
from langgraph_checkpoint_cached.demo.graph import build_graph
from langgraph_checkpoint_cached.demo.turns import open_saver, play_turn


@dataclass(frozen=True)
class Job:
    """Turn that a worker is to play: see `play_turn`."""

    postgres_uri: str
    redis_url: str
    prefix: str
    book: str
    thread_id: str
    message: str | None = None
    approval: str | None = None
    courier_answers: bool = True


def report(event: str, **details: object) -> None:
    """Report an event to the parent process."""
    sys.stdout.write(json.dumps({"event": event, **details}) + "\n")
    sys.stdout.flush()


async def work(job: Job) -> None:
    """Play the turn and report its result."""

    def call_courier() -> None:
        report("calling the courier")
        if not job.courier_answers:
            threading.Event().wait()

    async with open_saver(job.postgres_uri, job.redis_url, job.prefix) as saver:
        graph = build_graph(OrderBook(Path(job.book)), saver, call_courier)
        turn = await play_turn(graph, saver, job.thread_id, job.message, approval=job.approval)
        report("played", **asdict(turn))


def main() -> None:
    """Play the job on standard input."""
    report("ready")
    line = sys.stdin.readline()
    if not line:
        return
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asyncio.run(work(Job(**json.loads(line))))


def _end_with_parent() -> None:
    while os.read(0, 1024):  # not through sys.stdin: a thread that waits there disturbs an orderly exit
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
