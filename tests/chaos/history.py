"""The history of a run: every operation with its outcome, every fault, and what the workers say of themselves.

Each process appends lines of JSON to a file of its own, one when an operation starts and one when it ends, so
that a process that is killed leaves operations that never ended. Times are those of `time.monotonic()`, which is
the same clock in all processes of a machine.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

OK, FAILED, UNKNOWN = "ok", "failed", "unknown"
READ, READ_BY_ID, PUT, PUT_WRITES, DELETE, TURN = "read", "read by id", "put", "put writes", "delete", "turn"
REWIND = "rewind"
"""Loss of commits by Postgres. It is no worker's operation: `order.py` takes it for a delete that spares some."""
WRITES = (PUT, PUT_WRITES, DELETE)
UNKNOWN_SECONDS = 5.0
"""A transaction whose client is gone ends within this."""

Place = tuple[str, str]
"""A thread and a namespace."""


@dataclass
class Seen:
    """Result of a read."""

    id: str
    parent: str | None
    digest: str
    writes: list[list[str]] = field(default_factory=list)
    """Task and digest of each pending write."""
    problem: str | None = None
    """Why what was read cannot have been written as it is: see `values.as_seen`."""


@dataclass
class Operation:
    """One operation of one process, and how it ended. Without an end it is `unknown`."""

    process: str
    number: int
    kind: str
    thread: str
    ns: str
    start: float
    id: str = ""
    parent: str | None = None
    task: str = ""
    digest: str = ""
    end: float = math.inf
    outcome: str = UNKNOWN
    error: str | None = None
    seen: Seen | None = None
    answers: list[str] | None = None
    """Last answers that the state holds after a turn."""

    @property
    def place(self) -> Place:
        return self.thread, self.ns

    @property
    def over(self) -> float:
        """When it can no longer change anything."""
        return self.end if self.outcome != UNKNOWN else self.end + UNKNOWN_SECONDS

    def __str__(self) -> str:
        fields = {k: v for k, v in asdict(self).items() if v not in (None, "", [])}
        return json.dumps(fields)


@dataclass
class Fault:
    """One thing that the nemesis did, and when it was healed."""

    kind: str
    detail: str
    begin: float
    heal: float = math.inf


@dataclass
class History:
    """Events of a run."""

    operations: list[Operation] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    rewinds: list[tuple[float, float]] = field(default_factory=list)
    """Periods whose commits Postgres has lost, each until it was back."""
    stats: dict[str, dict[str, int]] = field(default_factory=dict)
    leaks: dict[str, dict[str, Any]] = field(default_factory=dict)
    unsettled: dict[str, list[str]] = field(default_factory=dict)
    killed: dict[str, float] = field(default_factory=dict)

    def of_kind(self, *kinds: str) -> Iterator[Operation]:
        return (o for o in self.operations if o.kind in kinds)

    def by_place(self, *kinds: str) -> dict[Place, list[Operation]]:
        places: dict[Place, list[Operation]] = defaultdict(list)
        for operation in self.of_kind(*kinds):
            places[operation.place].append(operation)
        return places


class Recorder:
    """Appends one process' part of the history. Nothing is buffered, so that nothing is lost with the process."""

    def __init__(self, path: Path, process: str) -> None:
        self.process = process
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._count = 0

    def note(self, what: str, **fields: Any) -> float:
        at = time.monotonic()
        line = json.dumps({"what": what, "process": self.process, "at": at, **fields})
        os.write(self._file, line.encode() + b"\n")
        return at

    def start(self, kind: str, thread: str, ns: str, **fields: Any) -> Operation:
        self._count += 1
        operation = Operation(self.process, self._count, kind, thread, ns, 0.0, **fields)
        fields = {"kind": kind, "thread": thread, "ns": ns, **fields}
        operation.start = self.note("start", number=self._count, **fields)
        return operation

    def end(self, operation: Operation, outcome: str, **fields: Any) -> None:
        operation.outcome = outcome
        operation.end = self.note("end", number=operation.number, outcome=outcome, **fields)

    def close(self) -> None:
        os.close(self._file)


def load(directory: Path) -> History:
    """The history that the processes of a run have left in a directory."""
    history = History()
    for path in sorted(directory.glob("*.jsonl")):
        _Reader(history).read(_lines(path))
    history.operations.sort(key=lambda o: o.start)
    history.faults.sort(key=lambda f: f.begin)
    for operation in history.operations:
        if operation.end == math.inf and operation.process in history.killed:
            operation.end = history.killed[operation.process]
    return history


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_bytes().split(b"\n"):
        try:
            yield json.loads(line)
        except ValueError:
            continue  # the last line of a process that was killed


class _Reader:
    """Reads the lines of one file."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._open: dict[int, Operation] = {}
        self._faults: dict[int, Fault] = {}

    def read(self, lines: Iterable[dict[str, Any]]) -> None:
        for line in lines:
            what, process, at = line.pop("what"), line.pop("process"), line.pop("at")
            getattr(self, f"_{what}")(process, at, line)

    def _start(self, process: str, at: float, line: dict[str, Any]) -> None:
        operation = Operation(process=process, start=at, **line)
        self._open[operation.number] = operation
        self._history.operations.append(operation)

    def _end(self, process: str, at: float, line: dict[str, Any]) -> None:
        operation = self._open.pop(line["number"])
        operation.end, operation.outcome = at, line["outcome"]
        operation.error, operation.answers = line.get("error"), line.get("answers")
        operation.seen = Seen(**line["seen"]) if line.get("seen") else None

    def _fault(self, process: str, at: float, line: dict[str, Any]) -> None:
        self._faults[line["number"]] = fault = Fault(line["kind"], line["detail"], at)
        self._history.faults.append(fault)

    def _healed(self, process: str, at: float, line: dict[str, Any]) -> None:
        self._faults[line["number"]].heal = at

    def _rewound(self, process: str, at: float, line: dict[str, Any]) -> None:
        self._history.rewinds.append((line["since"], at))

    def _killed(self, process: str, at: float, line: dict[str, Any]) -> None:
        self._history.killed[line["victim"]] = at

    def _stats(self, process: str, at: float, line: dict[str, Any]) -> None:
        self._history.stats[process] = line["stats"]

    def _settled(self, process: str, at: float, line: dict[str, Any]) -> None:
        self._history.unsettled[process] = line["missed"]

    def _bye(self, process: str, at: float, line: dict[str, Any]) -> None:
        self._history.leaks[process] = line["leaks"]
