"""Excerpt of the results for the README. Pure but for `put_into`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.report import number, table
from benchmarks.results import UPSTREAM, Results

BEGIN, END = "<!-- begin: python -m benchmarks report -->", "<!-- end -->"
NAMES = {
    UPSTREAM: "upstream",
    "write_through": "**this**",
    "write_behind": "**this, behind**",
    "unlocked": "upstream, no lock",
    "textbook": "textbook cache",
    "valkey": "Valkey saver",
    "redis": "Redis saver",
    "memory": "in memory",
}
ROWS = (
    "warm read, 20 messages, 1 at once",
    "warm read, 20 messages, 64 at once",
    "cold read, 20 messages, 1 at once",
    "cold read, 20 messages, 64 at once",
    "aput, 20 messages, 1 at once",
    "aput, 20 messages, 64 at once",
    "aput_writes, 1 at once",
    "aput_writes, 64 at once",
    "chat turn, 20 messages, sync, 1 at once",
    "chat turn, 20 messages, async, 1 at once",
    "chat turn, 20 messages, sync, 16 at once",
    "chat turn, 20 messages, async, 16 at once",
    "chat turn, 20 messages, sync, 64 at once",
    "chat turn, 200 messages, async, 1 at once",
    "chat turn, 200 messages, async, 16 at once",
    "aget_state while 4 runs write, 1 at once",
    "chat turn, 20 messages, async, 4 processes, 16 at once",
    "warm read, 20 messages, 1 at once, over a network",
    "chat turn, 20 messages, async, 1 at once, over a network",
    "chat turn, 20 messages, async, 16 at once, over a network",
)
VERSIONS = ("Python", "langgraph", "langgraph-checkpoint-postgres", "PostgreSQL", "Redis")


def excerpt(results: Results) -> str:
    """Return a table: milliseconds where there is one operation at a time, else operations per second."""
    names = [name for name in NAMES if name in results.data["contestants"]]
    rows = [_row(results.workloads[name], names) for name in ROWS if name in results.workloads]
    machine = ", ".join(str(value) for value in results.data["machine"].values())
    versions = results.data["versions"]
    stated = ", ".join(f"{name} {versions[name]}" for name in VERSIONS if name in versions)
    rounds = results.data["plan"]["rounds"]
    conditions = (
        f"Medians of {rounds} rounds, in turns; in brackets the ratio to the upstream saver. {machine}; {stated}."
    )
    return f"{table(['', *(NAMES[name] for name in names)], rows)}\n\n{conditions}"


def _row(workload: dict[str, Any], names: list[str]) -> list[str]:
    unit = "ms" if workload["metric"] == "latency" else "/s"
    return [f"{workload['name']}, {unit}", *(_cell(workload["cells"].get(name), name) for name in names)]


def _cell(cell: dict[str, Any] | None, name: str) -> str:
    if cell is None or "value" not in cell:
        return ""
    ratio = cell.get("value_to_stock") if name != UPSTREAM else None
    return number(cell["value"]["median"]) + (f" ({number(ratio['median'], 2)})" if ratio else "")


def put_into(readme: Path, results: Results) -> None:
    """Put the excerpt between the marks in a README.

    Raises:
        ValueError: it has no such marks.
    """
    text = readme.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme} has no lines {BEGIN} and {END}")
    readme.write_text(f"{before}{BEGIN}\n\n{excerpt(results)}\n\n{END}{after}")
