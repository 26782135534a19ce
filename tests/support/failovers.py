"""A long run of processes through failovers: `python -m tests.support.failovers cluster|sentinel [seconds]`.

Prints what they did, how many reads were older than acknowledged writes, errors that callers saw, and how long
after each failover all were served from Redis again.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import sys
import time
from typing import Any

from langgraph.checkpoint.postgres import PostgresSaver

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.demo.embedded import PostgresServer
from langgraph_checkpoint_cached.stores.postgres.schema import CREATE_OWN_TABLES
from langgraph_checkpoint_cached.stores.redis.keys import thread_key
from tests.support.cluster import Cluster
from tests.support.load import Player, Report
from tests.support.sentinel import Service

PROCESSES, THREADS, FAILOVERS = 4, 16, 3
IDS = [f"t{number}" for number in range(THREADS)]
PREFIX = "failovers"


def play(
    number: int, postgres_url: str, redis_url: str, lengths: Any, on: Any, last_hits: Any, reports: Any
) -> None:
    """One process: plays until `on` is over."""
    logging.basicConfig(level=logging.ERROR)

    async def run() -> Report:
        async with CachedPostgresSaver.from_conn_string(postgres_url, redis_url, prefix=PREFIX) as saver:

            def go_on() -> bool:
                if saver.stats()["hits"] > go_on.hits:  # type: ignore[attr-defined]
                    go_on.hits = saver.stats()["hits"]  # type: ignore[attr-defined]
                    last_hits[number] = time.monotonic()
                return bool(on.value)

            go_on.hits = 0  # type: ignore[attr-defined]
            return await Player(saver, number, PROCESSES, lengths, IDS).play(go_on)

    reports.put(asyncio.run(run()))


def break_cluster(cluster: Cluster, turn: int) -> None:
    key = thread_key(PREFIX, IDS[turn])
    old = cluster.primary_of(key)
    cluster.kill(old)
    cluster.wait_for_new_primary(old, key)


def break_service(service: Service, turn: int) -> None:
    service.wait_for_new_primary(service.kill())


def main(kind: str, seconds: float) -> None:
    spawn = multiprocessing.get_context("spawn")
    with PostgresServer({"fsync": "off"}) as postgres, Cluster() if kind == "cluster" else Service() as servers:
        with PostgresSaver.from_conn_string(postgres.url) as saver:
            saver.setup()
            for statement in CREATE_OWN_TABLES:
                saver.conn.execute(statement)
        lengths, last_hits = spawn.Array("l", THREADS, lock=False), spawn.Array("d", PROCESSES, lock=False)
        on, reports = spawn.Value("b", 1), spawn.Queue()
        shared = (postgres.url, servers.url, lengths, on, last_hits, reports)
        processes = [spawn.Process(target=play, args=(number, *shared)) for number in range(PROCESSES)]
        for process in processes:
            process.start()
        while not all(last_hits):
            time.sleep(0.01)
        started = time.monotonic()
        for turn in range(FAILOVERS):
            time.sleep(max(0.0, started + (turn + 0.5) * seconds / FAILOVERS - time.monotonic()))
            running = [server for server in servers.servers if server.pid]
            began = time.monotonic()
            (break_cluster if isinstance(servers, Cluster) else break_service)(servers, turn)  # type: ignore[operator]
            over = time.monotonic()
            while not all(at > over for at in last_hits):
                time.sleep(0.01)
            print(
                f"failover {turn + 1}: new primary after {over - began:.1f} s, "
                f"all processes were served from Redis again {time.monotonic() - over:.1f} s later",
                flush=True,
            )
            for server in running:
                server.start()
            servers.wait_until_well()
        time.sleep(max(0.0, started + seconds - time.monotonic()))
        on.value = 0
        report = Report.of_all([reports.get(timeout=60) for _ in processes])
        for process in processes:
            process.join()
    writes, stats = report.stats["writes"], report.stats
    print(
        f"{kind}, {time.monotonic() - started:.0f} s, {PROCESSES} processes, {THREADS} threads: "
        f"{report.turns} turns, {writes} writes, {report.reads} reads ({stats['hits']} from Redis); "
        f"violations {len(report.violations)}, errors seen by callers {len(report.errors)}"
    )
    for line in [*report.violations[:5], *report.errors[:5]]:
        print("  ", line)
    print("  ", stats)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 60.0)
