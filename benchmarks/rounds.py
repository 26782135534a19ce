"""Rounds of contestants in turns (A B C, then B C A), so that what disturbs one disturbs all."""

from __future__ import annotations

import math
import os
import traceback
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar

from benchmarks.contestants import Contestant, Entrant
from benchmarks.many import TurnInProcesses
from benchmarks.network import Network
from benchmarks.place import Place
from benchmarks.results import summary
from benchmarks.servers import Servers
from benchmarks.workloads import Sample, Workload

T = TypeVar("T")
RARE_ROUNDS = 3


@dataclass(frozen=True)
class Plan:
    """Amount of measuring."""

    rounds: int = 15
    seconds: float = 0.2
    """Approximate duration of one measurement."""
    quick: bool = False
    """The fewest operations, once, without a warm-up: to see that everything runs."""


@dataclass
class Cell:
    """A contestant's measurements of a workload."""

    count: int = 0
    values: dict[int, dict[str, Any]] = field(default_factory=dict)
    failure: str | None = None


class Arena:
    """Savers of the contestants, opened when they are first wanted and closed at the end of the context."""

    def __init__(self, servers: Servers, contestants: Sequence[Contestant], network: Network | None) -> None:
        self.servers, self.network = servers, network
        self.contestants = {contestant.name: contestant for contestant in contestants}
        self._places: dict[str, Place] = {}
        self._entrants: dict[tuple[str, bool], Entrant] = {}
        self._stack = AsyncExitStack()

    async def entrant(self, name: str, *, network: bool = False) -> Entrant:
        """Return the contestant's saver, over the network or not: both on the same place."""
        if (name, network) not in self._entrants:
            opening = self.contestants[name].open(self.place(name, network=network))
            self._entrants[name, network] = await self._stack.enter_async_context(opening)
        return self._entrants[name, network]

    def place(self, name: str, *, network: bool = False) -> Place:
        """Return the contestant's place."""
        if name not in self._places:
            self._places[name] = self.servers.place(name, self.contestants[name].uses)
        place = self._places[name]
        return self.network.place(place) if network and self.network is not None else place

    async def __aenter__(self) -> Arena:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()


def rotated(names: Sequence[T], number: int) -> list[T]:
    """Return the names, beginning with another one in each round."""
    first = number % len(names) if names else 0
    return [*names[first:], *names[:first]]


def takes_part(number: int, rounds: int, *, often: bool) -> bool:
    """Return True if a contestant is measured in this round: always, or in about three of them, evenly spread."""
    return often or number % max(1, rounds // RARE_ROUNDS) == 0


def next_count(count: int, took_seconds: float, plan: Plan, workload: Workload) -> int:
    """Return the number of operations that take as long as planned: full lanes, within the workload's limits."""
    wanted = count * plan.seconds / max(took_seconds, 1e-6)
    wanted = min(max(wanted, workload.operations_min), workload.operations_max)
    lanes = workload.operations_min // workload.least_per_lane
    full = math.ceil(wanted / lanes) * lanes
    return full if full <= workload.operations_max else max(lanes, workload.operations_max // lanes * lanes)


async def run(
    workload: Workload, arena: Arena, plan: Plan, advance: Callable[[float], None], say: Callable[[str], None]
) -> dict[str, Any]:
    """Run all rounds of a workload and return them as JSON. A contestant that fails is left out of the rest."""
    chosen = workload.contestants
    names = [name for name in arena.contestants if chosen is None or name in chosen]
    rounds = 1 if plan.quick else min(plan.rounds, workload.rounds_max)
    async with AsyncExitStack() as stack:
        cells = {name: Cell(workload.operations_min) for name in names}

        async def attempt(name: str, number: int) -> None:
            cell = cells[name]
            if cell.failure is None:
                try:
                    await _measure(workload, arena, name, number, cell, plan, stack)
                except Exception as exc:  # noqa: BLE001 - whatever goes wrong in somebody's saver is a result
                    cell.failure = f"{type(exc).__name__}: {exc}".splitlines()[0][:200]
                    say(f"{name} failed in {workload.name}: {cell.failure}")
                    if os.environ.get("BENCHMARKS_TRACEBACKS"):
                        say(traceback.format_exc())

        if not plan.quick:
            for name in names:
                await attempt(name, -1)
        for number in range(rounds):
            present = [name for name in names if takes_part(number, rounds, often=name in workload.often)]
            for name in rotated(present, number):
                await attempt(name, number)
            advance(1 / rounds)
    return as_json(workload, cells)


async def _measure(
    workload: Workload, arena: Arena, name: str, number: int, cell: Cell, plan: Plan, stack: AsyncExitStack
) -> None:
    """Measure once. The warm-up round is not recorded; it finds the number of operations."""
    entrant = await arena.entrant(name, network=workload.network)
    if isinstance(workload, TurnInProcesses) and not workload.started(entrant):
        await workload.start(entrant, name, arena.place(name, network=workload.network), stack)
    count = cell.count
    sample = await workload.measure(entrant, count, arena.servers.cpu)
    if number >= 0:
        cell.values[number] = value_of(workload, sample)
        return
    cell.count = next_count(count, sample.seconds, plan, workload)
    if cell.count > 2 * count:
        sample = await workload.measure(entrant, cell.count, arena.servers.cpu)
        cell.count = next_count(cell.count, sample.seconds, plan, workload)


def value_of(workload: Workload, sample: Sample) -> dict[str, Any]:
    """Return a measurement in the workload's metric, and CPU in milliseconds per operation."""
    each = sample.seconds / sample.operations
    found: dict[str, Any] = {"value": 1000 * each if workload.metric == "latency" else 1 / max(each, 1e-9)}
    if sample.cpu is not None:
        found["cpu_application"] = 1000 * sample.cpu.application / sample.operations
        if sample.cpu.postgres is not None:
            found["cpu_postgres"] = 1000 * sample.cpu.postgres / sample.operations
    return found


def as_json(workload: Workload, cells: dict[str, Cell]) -> dict[str, Any]:
    """Return the record of a workload."""
    return {
        "name": workload.name,
        "group": workload.group,
        "question": (type(workload).__doc__ or "").strip().splitlines()[0],
        "metric": workload.metric,
        "unit": workload.unit,
        "concurrency": workload.concurrency,
        "network": workload.network,
        "parameters": workload.parameters,
        "cells": summary(
            {
                name: {"operations": cell.count, "failure": cell.failure, "rounds": cell.values}
                for name, cell in cells.items()
            }
        ),
    }
