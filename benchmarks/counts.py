"""Costs of an operation beside time: transactions, queries, Redis commands; and the memory of a thread in Redis.

Counted in sessions of their own, not while anything is timed. Backends report their transactions when they end,
so a session that prepares, operates and prepares is taken off from one that then operates once more, when every
connection has what it needs.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import redis
from langgraph.checkpoint.base import CheckpointTuple

from benchmarks import chat
from benchmarks.chat import Saver
from benchmarks.contestants import Contestant
from benchmarks.place import Place
from benchmarks.servers import Servers
from benchmarks.turns import Turn, talked_threads
from benchmarks.workloads import ColdRead, Put, PutWrites, WarmRead, Workload, in_lanes

CLOSE_TIMEOUT_SECONDS = 20.0
STORED_THREADS = 50
MEMORY_NAME = "Redis memory of a thread"
OPERATIONS_MIN = 16
SIZES = (20, 200)


def counted(only: str, *, quick: bool) -> list[Workload]:
    """Return the workloads whose operations are counted, if their name matches `only`."""
    workloads: list[Workload] = [
        WarmRead(),
        ColdRead(threads=OPERATIONS_MIN),
        Put(),
        PutWrites(),
        *(Turn(lanes, durability=durability) for durability in ("sync", "async") for lanes in (1, 64)),
    ]
    return [workload for workload in workloads[:: 4 if quick else 1] if re.search(only, workload.name)]


class Counter:
    """Counter of what contestants do on the servers."""

    def __init__(self, servers: Servers, quick: bool) -> None:
        self._servers, self._quick = servers, quick
        self._watcher = servers.watcher()
        self._places: dict[str, Place] = {}

    def close(self) -> None:
        """Close the connection."""
        self._watcher.close()

    async def count(self, contestant: Contestant, workload: Workload) -> dict[str, float]:
        """Return transactions, queries and Redis commands per operation, as far as they can be counted."""
        place = await self._place(contestant)
        operations = 4 if self._quick else max(OPERATIONS_MIN, workload.concurrency)
        before = self._transactions(place)
        async with contestant.open(place) as entrant:
            await in_lanes(await workload.prepare(entrant, operations), workload.concurrency)
            await workload.prepare(entrant, operations)
        between = self._transactions(place)
        async with contestant.open(place) as entrant:
            await in_lanes(await workload.prepare(entrant, operations), workload.concurrency)
            prepared = await workload.prepare(entrant, operations)
            queries, commands = self._queries(place), self._commands(place)
            await in_lanes(prepared, workload.concurrency)
            found = {
                "queries": _less(self._queries(place), queries),
                "redis_commands": _less(self._commands(place), commands, own=1),
            }
        after = self._transactions(place)
        if before is not None and between is not None and after is not None:
            found["transactions"] = (after - between) - (between - before)
        return {name: value / len(prepared) for name, value in found.items() if value is not None}

    async def redis_bytes(self, contestant: Contestant, messages: int) -> dict[str, float]:
        """Return the memory that a thread takes in Redis after a chat turn, and the size of its latest state."""
        place = await self._place(contestant)
        with redis.Redis.from_url(place.redis_url) as client:
            client.flushdb()
            async with contestant.open(place) as entrant:
                threads = 4 if self._quick else STORED_THREADS
                graph = chat.graph(entrant.saver)
                talked = await talked_threads(entrant, graph, threads, messages)
                for config in talked:
                    await graph.ainvoke(chat.question(), config)
                taken = sum(int(client.memory_usage(key, samples=0) or 0) for key in client.scan_iter(count=1000))
                found = await entrant.saver.aget_tuple(talked[-1])
                state = state_bytes(entrant.saver, found) if found is not None else 0
        return {"per_thread": taken / threads, "state": state}

    async def _place(self, contestant: Contestant) -> Place:
        if contestant.name not in self._places:
            place = self._servers.place(contestant.name, contestant.uses, count_statements=True)
            async with contestant.open(place):  # makes the tables
                pass
            self._places[contestant.name] = place
        return self._places[contestant.name]

    def _transactions(self, place: Place) -> int | None:
        if not place.postgres_uri:
            return None
        database = _database(place)
        deadline = time.monotonic() + CLOSE_TIMEOUT_SECONDS
        while self._number("select count(*) from pg_stat_activity where datname = %s", database):
            if time.monotonic() > deadline:
                return None
            time.sleep(0.01)
        return self._number(
            "select xact_commit + xact_rollback from pg_stat_database where datname = %s", database
        )

    def _queries(self, place: Place) -> int | None:
        if not place.postgres_uri or not self._servers.counts_statements:
            return None
        return self._number(
            "select coalesce(sum(calls), 0)::int from pg_stat_statements"
            " where dbid = (select oid from pg_database where datname = %s)",
            _database(place),
        )

    def _commands(self, place: Place) -> int | None:
        if not place.redis_url:
            return None
        return int(self._servers.redis.info("stats")["total_commands_processed"])

    def _number(self, query: Any, *arguments: str) -> int:
        row = self._watcher.execute(query, arguments).fetchone()
        return int(row[0]) if row else 0


async def count_all(
    servers: Servers,
    contestants: Sequence[Contestant],
    only: str,
    quick: bool,
    advance: Callable[[float], None],
) -> dict[str, Any]:
    """Return all counts whose name matches `only`, as JSON."""
    counts: dict[str, dict[str, Any]] = {}
    sizes: dict[str, dict[str, Any]] = {}
    counter = Counter(servers, quick)
    try:
        workloads = counted(only, quick=quick)
        chosen = [contestant for contestant in contestants if contestant.uses & {"postgres", "redis"}]
        for workload in workloads:
            for contestant in chosen:
                counts.setdefault(workload.name, {})[contestant.name] = await counter.count(contestant, workload)
            advance(1 / len(workloads))
        for messages in SIZES if re.search(only, MEMORY_NAME) else ():
            for contestant in chosen:
                if "redis" in contestant.uses:
                    sizes.setdefault(str(messages), {})[contestant.name] = await counter.redis_bytes(
                        contestant, messages
                    )
    finally:
        counter.close()
    return {"counts": counts, "redis_bytes": sizes}


def state_bytes(saver: Saver, found: CheckpointTuple) -> int:
    """Return the bytes of a state in Postgres: checkpoint and metadata as JSON, values and writes serialized."""
    values = found.checkpoint["channel_values"]
    inline = {
        name: value for name, value in values.items() if value is None or isinstance(value, (str, int, float))
    }
    serialized = [value for name, value in values.items() if name not in inline]
    serialized += [value for _, _, value in found.pending_writes or ()]
    texts = json.dumps({**found.checkpoint, "channel_values": inline}), json.dumps(found.metadata)
    return sum(len(text) for text in texts) + sum(len(saver.serde.dumps_typed(value)[1]) for value in serialized)


def _less(after: int | None, before: int | None, own: int = 0) -> int | None:
    return None if after is None or before is None else after - before - own


def _database(place: Place) -> str:
    return urlsplit(place.postgres_uri).path.removeprefix("/")
