"""Comparison of two builds of the package and the upstream saver: chat turns, interleaved in one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

from benchmarks.contestants import BOTH
from benchmarks.many import ROOT, Workers
from benchmarks.place import Place
from benchmarks.report import number, table
from benchmarks.results import UPSTREAM
from benchmarks.rounds import rotated
from benchmarks.servers import Servers

ROUNDS = 9
MESSAGES = 20
DURABILITY = "async"
WARM_UP_TURNS = 48
LANES = (1, 16)
TURNS = {1: 120, 16: 320}
"""Turns of one measurement, by concurrency: two to five seconds for the upstream saver."""
QUICK_TURNS = {1: 8, 16: 16}


@dataclass(frozen=True)
class Build:
    """One of the contestants: a saver, and the checkout that its package comes from."""

    name: str
    contestant: str
    checkout: Path


@dataclass(frozen=True)
class Measured:
    """One measurement of a build."""

    turn_ms: float
    """Median time of a turn."""
    turns_per_second: float
    cpu_ms: float
    """CPU of the process per turn, what it does just afterwards included."""


Round: TypeAlias = "dict[str, dict[int, Measured]]"
"""Measurements of a round, by build and concurrency."""


def builds(other: Path, mode: str) -> list[Build]:
    """Return this build, the other, and the upstream saver."""
    return [
        Build("this build", mode, ROOT),
        Build("other build", mode, other.resolve()),
        Build("upstream", UPSTREAM, ROOT),
    ]


async def compare(
    found: Servers,
    contestants: Sequence[Build],
    rounds: int,
    turns: dict[int, int],
    step: Callable[[str], None],
    advance: Callable[[float], None],
) -> list[Round]:
    """Measure all builds in each round, beginning with another each time, each in a new process."""
    places = {build.name: found.place(build.name.replace(" ", "_"), BOTH) for build in contestants}
    results: list[Round] = []
    for index in range(-1, rounds):  # the first makes the tables, and is not kept
        measured: Round = {}
        step("warm-up" if index < 0 else f"round {index + 1} of {rounds}")
        for build in rotated(contestants, index):
            counts = turns if index >= 0 else QUICK_TURNS
            measured[build.name] = await measure(build, places[build.name], counts)
        if index >= 0:
            results.append(measured)
        advance(1)
    return results


async def measure(build: Build, place: Place, turns: dict[int, int]) -> dict[int, Measured]:
    """Measure one build in a process of its own, which is warm first."""
    job = {
        "checkout": str(build.checkout),
        "contestant": build.contestant,
        "place": asdict(place),
        "messages": MESSAGES,
        "durability": DURABILITY,
        "concurrency": max(LANES),
    }
    workers = await Workers.start(1, job)
    try:
        await _ask(workers, max(LANES), WARM_UP_TURNS)
        return {lanes: await _ask(workers, lanes, turns[lanes]) for lanes in LANES}
    finally:
        await workers.stop()


async def _ask(workers: Workers, lanes: int, count: int) -> Measured:
    await workers.ask({"prepare": count, "concurrency": lanes, "settles": True})
    [answer] = await workers.ask({"go": True})
    return Measured(
        turn_ms=1000 * answer["median"],
        turns_per_second=answer["operations"] / (answer["ended"] - answer["started"]),
        cpu_ms=1000 * answer["cpu"] / answer["operations"],
    )


def comparison(rounds: Sequence[Round]) -> str:
    """Return medians over the rounds, and the ratios of this build to each contestant, as Markdown tables."""
    tables = []
    for lanes in LANES:
        time = ("ms per turn", "turn_ms") if lanes == 1 else ("turns per second", "turns_per_second")
        for title, field in (time, ("ms of CPU per turn", "cpu_ms")):
            tables.append(_comparison_of(rounds, lanes, f"{lanes} at once, {title}", field))
    return "\n\n".join(tables)


def _comparison_of(rounds: Sequence[Round], lanes: int, title: str, field: str) -> str:
    values = {name: [float(getattr(found[name][lanes], field)) for found in rounds] for name in rounds[0]}
    ours, *_ = values.values()
    rows = []
    for name, theirs in values.items():
        ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
        spread = [statistics.median(ratios), min(ratios), max(ratios)] if theirs is not ours else [None] * 3
        rows.append([name, number(statistics.median(theirs)), *(number(ratio) for ratio in spread)])
    return table([title, "median", "this build to it", "least", "most"], rows)


def conditions(rounds: int, turns: dict[int, int], contestant: str) -> str:
    """Return what was measured, as a line of Markdown."""
    counts = ", ".join(f"{count} turns at {lanes}" for lanes, count in turns.items())
    return (
        f"- rounds: {rounds}, each build in a new process in each; turns of {MESSAGES} messages, "
        f"durability {DURABILITY}, {contestant}; {counts}"
    )
