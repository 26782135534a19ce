"""List of the workloads of a run."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.contestants import MAIN, REDIS_ONLY
from benchmarks.growth import Decode, ReadByState, ReadByThreads, TurnByHistory
from benchmarks.many import TurnInProcesses
from benchmarks.turns import ColdTurn, Polling, Stampede, Turn
from benchmarks.workloads import ColdRead, Put, PutWrites, WarmRead, Workload

SIZES = (2, 20, 200)
DURABILITIES = ("sync", "async", "exit")
SERVERS_ONLY = MAIN | {"valkey", "textbook"}
"""Contestants that are measured over a network and in several processes."""
GROWTH = MAIN | REDIS_ONLY
FEW = 5
"""Rounds of the workloads that plots are made of."""


def catalogue() -> list[Workload]:
    """Return the workloads, in the order in which they are measured."""
    return [*_single_calls(), *_turns(), *_growth(), *_several_processes(), *_network()]


def _single_calls() -> Iterator[Workload]:
    for messages in SIZES:
        for concurrency in (1, 64):
            yield WarmRead(concurrency, messages=messages)
    for messages in SIZES:
        for concurrency in (1, 64):
            yield ColdRead(concurrency, messages=messages)
    for messages in (2, 20):
        for concurrency in (1, 64):
            yield Put(concurrency, messages=messages)
    for concurrency in (1, 64):
        yield PutWrites(concurrency)
    yield Decode(contestants=MAIN - {"unlocked"})


def _turns() -> Iterator[Workload]:
    for durability in DURABILITIES:
        for concurrency in (1, 16, 64):
            yield Turn(concurrency, messages=20, durability=durability)
    for durability in DURABILITIES:
        for concurrency in (1, 16):
            yield Turn(concurrency, messages=200, durability=durability)
    yield Polling()
    for concurrency in (1, 16):
        yield ColdTurn(concurrency, often=MAIN, durability="sync")
    yield Stampede(64)


def _growth() -> Iterator[Workload]:
    for messages in (2, 20, 200, 1000):
        yield ReadByState(contestants=GROWTH, rounds_max=FEW, often=GROWTH, messages=messages)
    for extra in (1_000, 10_000, 100_000):
        yield ReadByState(contestants=GROWTH, rounds_max=FEW, often=GROWTH, messages=20, extra=extra)
    for threads in (100, 1_000, 5_000):
        yield ReadByThreads(contestants=GROWTH, rounds_max=FEW, often=GROWTH, threads=threads)
    for messages in (2, 20, 200, 400):
        yield TurnByHistory(contestants=GROWTH, rounds_max=FEW, often=GROWTH, messages=messages, durability="sync")


def _several_processes() -> Iterator[Workload]:
    for durability in ("sync", "async"):
        yield TurnInProcesses(contestants=MAIN | {"valkey"}, durability=durability)


def _network() -> Iterator[Workload]:
    yield WarmRead(contestants=SERVERS_ONLY, network=True)
    yield Put(contestants=SERVERS_ONLY, network=True)
    for durability in ("sync", "async"):
        for concurrency in (1, 16):
            yield Turn(concurrency, contestants=SERVERS_ONLY, network=True, durability=durability)
