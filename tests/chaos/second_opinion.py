"""Second checker of a history, written from the promises of the design and without a look at the first one.

Every checkpoint, and the pending writes of every task, is a register of its own: one operation writes it, deletes
remove it, and a loss of commits by Postgres may do so too. For each register and moment two things are known:

- it *must* be there: a write was acknowledged, or a read has returned it, and nothing since may have removed it;
- it *may* be there: its write has begun, and nothing has removed it for sure.

A read is right if at one moment between its start and its end all that it returned may be there, and nothing that
it lacks must be there. Reads are judged in the order of their starts, and those that are right teach what later
ones must and may return. There is no grace: a read that is stale by a millisecond is a violation.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.chaos.end_checks import End
from tests.chaos.history import (
    DELETE,
    FAILED,
    OK,
    PUT,
    PUT_WRITES,
    READ,
    READ_BY_ID,
    TURN,
    Fault,
    History,
    Operation,
    Place,
    Seen,
)
from tests.chaos.read_checks import Violation
from tests.chaos.turns import TURNS_KEPT, answers_of
from tests.chaos.values import NO_VALUE
from tests.chaos.worker import OPERATION_SECONDS_MAX

RECOVERY_SECONDS = 12.0
"""Time after a fault within which what fails or is stale is put down to it."""
ALLOWED_ERRORS = ("LostHistoryError", "BehindError")
"""Refusals that are promised: of what continues a lost checkpoint, and of reads that would be stale."""

Interval = tuple[float, float]


@dataclass
class Register:
    """One checkpoint, or the pending writes of one task: when it may and when it must be there."""

    write: Operation
    deletes: list[Operation]
    """Deletes of its thread that may have had an effect."""
    rewinds: list[Interval]
    there_by: float = math.inf
    """Earliest moment by which it has been there for sure."""
    gone_by: float = math.inf
    """Earliest moment by which it was gone for good."""
    _must: dict[float, float] = field(default_factory=dict)
    """Starts of the periods in which it must be there, by their ends."""

    def __post_init__(self) -> None:
        if self.write.outcome == OK:
            self.was_there(self.write.start, self.write.end)
        self._learn_deletes()

    def was_there(self, start: float, end: float) -> None:
        """Learn that it was there at some moment of this interval."""
        if end < self.there_by:
            self.there_by = end
            self._learn_deletes()
        until = self._kept_until(start)
        if end < until:
            self._must[until] = min(end, self._must.get(until, math.inf))

    def was_absent(self, start: float, end: float) -> None:
        """Learn that it was not there at some moment of this interval."""
        if start >= self._written_by and not self._can_return_after(start):
            self.gone_by = min(self.gone_by, end)

    def must(self) -> list[Interval]:
        """Periods in which it must be there."""
        return [(start, until) for until, start in self._must.items()]

    def may(self) -> Interval:
        """Period in which it may be there."""
        start = self.write.start
        return (start, self.gone_by) if self.write.outcome != FAILED else (start, -math.inf)

    @property
    def _written_by(self) -> float:
        return min(self.write.over, self.there_by)

    def _kept_until(self, since: float) -> float:
        """Earliest moment at which something may remove what was there at `since` or later."""
        removals = [delete.start for delete in self.deletes if delete.over > since]
        removals += [begin for begin, end in self.rewinds if end > since and self.there_by > begin]
        return min(removals, default=math.inf)

    def _can_return_after(self, moment: float) -> bool:
        """Say whether Postgres may lose the delete that removed it."""
        return any(
            end > moment and any(delete.over > begin and delete.start < end for delete in self.deletes)
            for begin, end in self.rewinds
        )

    def _learn_deletes(self) -> None:
        for delete in self.deletes:
            is_kept = not any(begin < delete.end and delete.start < end for begin, end in self.rewinds)
            if delete.outcome == OK and is_kept and delete.start >= self._written_by:
                self.gone_by = min(self.gone_by, delete.end)


class Registers:
    """All registers of a run, by namespace."""

    def __init__(self, history: History) -> None:
        deletes: dict[str, list[Operation]] = defaultdict(list)
        for operation in history.of_kind(DELETE):
            if operation.outcome != FAILED:
                deletes[operation.thread].append(operation)
        self.puts: dict[Place, dict[str, Register]] = defaultdict(dict)
        self.writes: dict[tuple[Place, str], dict[str, Register]] = defaultdict(dict)
        for operation in history.of_kind(PUT, PUT_WRITES):
            register = Register(operation, deletes[operation.thread], history.rewinds)
            if operation.kind == PUT:
                self.puts[operation.place][operation.id] = register
            else:
                self.writes[operation.place, operation.id][operation.task] = register

    def split(self, read: Operation) -> tuple[list[Register], list[Register]] | str:
        """Registers that a read found, and those that it lacks; or what it cannot have found at all."""
        puts, seen = self.puts[read.place], read.seen
        if seen is None:
            return [], [r for id_, r in puts.items() if read.kind == READ or id_ == read.id]
        if wrong := self.wrong_in(read.place, seen) or ("another id" if read.id not in ("", seen.id) else None):
            return wrong
        writes, tasks = self.writes[read.place, seen.id], {task for task, _ in seen.writes}
        newer = [r for id_, r in puts.items() if read.kind == READ and id_ > seen.id]
        found = [puts[seen.id], *(r for task, r in writes.items() if task in tasks)]
        return found, [*newer, *(r for task, r in writes.items() if task not in tasks)]

    def wrong_in(self, place: Place, seen: Seen) -> str | None:
        """Say what of a checkpoint and its pending writes differs from what was written."""
        register = self.puts[place].get(seen.id)
        if register is None:
            return "a checkpoint that nobody wrote"
        put = register.write
        meets_delete = any(d.start < put.over and put.start < d.over for d in register.deletes)
        if seen.problem and not (seen.problem == NO_VALUE and meets_delete):
            return seen.problem
        if seen.parent != put.parent or (seen.digest != put.digest and seen.problem != NO_VALUE):
            return "another parent or value than was written"
        written = self.writes[place, seen.id]
        if any(task not in written or digest != written[task].write.digest for task, digest in seen.writes):
            return "pending writes that nobody wrote"
        return "pending writes twice" if len({task for task, _ in seen.writes}) < len(seen.writes) else None


@dataclass(frozen=True)
class WrongRead:
    """A read whose result was not the state at any moment while it ran."""

    checker: str
    message: str
    operations: list[Operation]
    """The write that shows it, if there is one, and the read."""
    seconds: float = 0.0
    """Time from when the result became wrong to the start of the read."""

    @property
    def violation(self) -> Violation:
        message = f"{self.message} ({self.seconds:.3f} s)" if self.seconds else self.message
        return Violation(self.checker, message, self.operations, self.operations[-1].start)


def wrong_reads(history: History) -> Iterator[WrongRead]:
    """Find reads of what is not the state (P4). Those that are right teach what later ones have to return."""
    registers = Registers(history)
    for read in history.of_kind(READ, READ_BY_ID):
        if read.outcome != OK:
            continue
        result = registers.split(read)
        if isinstance(result, str):
            yield WrongRead("second: values", f"read {result}", [read])
            continue
        found, lacking = result
        if wrong := _judge(read, found, lacking):
            yield wrong
            continue
        for register in found:
            register.was_there(read.start, read.end)
        for register in lacking:
            register.was_absent(read.start, read.end)


def _judge(read: Operation, found: list[Register], lacking: list[Register]) -> WrongRead | None:
    start = max([read.start, *(register.may()[0] for register in found)])
    end = min([read.end, *(register.may()[1] for register in found)])
    if start > end:
        for write in (register.write for register in found):
            if write.outcome == FAILED or write.start > read.end:
                return WrongRead("second: values", "read what was not written", [write, read])
        wrong = min(found, key=lambda register: register.may()[1]).write
        return WrongRead("second: gone", "read what was gone", [wrong, read], max(0.0, read.start - end))
    missed = [(begin, until, register.write) for register in lacking for begin, until in register.must()]
    moment = start
    for begin, until, _ in sorted(missed, key=lambda period: period[0]):
        moment = until if begin <= moment < until else moment
    if moment <= end:
        return None
    since, _, write = min((m for m in missed if m[0] <= start < m[1]), key=lambda period: period[0])
    seconds = max(0.0, read.start - since)
    return WrongRead("second: stale", "read without a write before it", [write, read], seconds)


def check_end(history: History, end: End) -> Iterator[Violation]:
    """Find writes that are not in Postgres in the end, and what is there instead (P2, P3, P8, P10)."""
    registers, now = Registers(history), _after_all(history)
    for place, rows in end.rows.items():
        puts, by_id = registers.puts[place], {row.id: row for row in rows}
        for row in rows:
            if wrong := registers.wrong_in(place, row):
                yield Violation("second: end", f"row {row.id} of {place} is {wrong}")
                continue
            yield from _orphan(registers, place, row, by_id)
            tasks = {task for task, _ in row.writes}
            yield from _end_of(registers.writes[place, row.id], tasks, now)
        yield from _end_of(puts, set(by_id), now)


def _end_of(registers: dict[str, Register], there: set[str], now: float) -> Iterator[Violation]:
    for name, register in registers.items():
        if name in there and register.may()[1] < now:
            yield Violation("second: end", "in Postgres though it failed or was deleted", [register.write])
        elif name not in there and any(begin <= now < until for begin, until in register.must()):
            yield Violation("second: lost", "acknowledged, and not in Postgres", [register.write])


def _orphan(registers: Registers, place: Place, row: Seen, rows: dict[str, Seen]) -> Iterator[Violation]:
    """Find checkpoints whose parent Postgres has lost, unless a delete took it before they came."""
    if row.parent is None or row.parent in rows:
        return
    child, parent = registers.puts[place][row.id], registers.puts[place].get(row.parent)
    if parent is not None and any(
        delete.over > parent.write.start and delete.start < child.write.over for delete in child.deletes
    ):
        return
    yield Violation("second: orphan", f"its parent {row.parent} is not in Postgres", [child.write])


def _after_all(history: History) -> float:
    """Return a moment at which every operation is over."""
    ends = [operation.over for operation in history.operations if operation.over < math.inf]
    return max([*ends, *(heal for _, heal in history.rewinds)], default=0.0) + 1


def check_tiers(end: End) -> Iterator[Violation]:
    """Find namespaces for which a fresh process answers otherwise than Postgres (P4), or never from Redis (P5)."""
    for place, latest in end.latest.items():
        for answer in (end.first.get(place, latest), end.second.get(place, latest)):
            if answer != latest:
                yield Violation("second: tiers", f"{place}: {answer}, in Postgres {latest}")
    if end.missed:
        yield Violation("second: not back", f"not served from Redis in the end: {', '.join(end.missed)}")


def check_turns(history: History, end: End) -> Iterator[Violation]:
    """Find turns of a graph that did not go on from the turns before them (P3, P4). A lock orders turns."""
    threads: dict[str, list[Operation]] = defaultdict(list)
    for turn in history.of_kind(TURN):
        threads[turn.thread].append(turn)
    for thread, turns in threads.items():
        for number, turn in enumerate(turns):
            if turn.outcome == OK:
                yield from _turn(turns[:number], turn, turn.answers or [], answers_of(turn.id), history)
        if thread in end.answers:
            last = Operation("the end", 0, TURN, thread, "", math.inf)
            yield from _turn(turns, last, end.answers[thread], [], history)


def _turn(
    before: list[Operation], turn: Operation, answers: list[str], own: list[str], history: History
) -> Iterator[Violation]:
    at = turn.start if turn.start < math.inf else 0.0
    if len(set(answers)) < len(answers) or (own and answers[-len(own) :] != own):
        yield Violation("second: turns", f"answers {answers[-9:]}", [turn], at)
    last, since = None, 0
    for earlier in reversed(before):
        is_lost = any(begin < earlier.end and earlier.start < heal for begin, heal in history.rewinds)
        if earlier.outcome == OK and earlier.end < turn.start and not is_lost:
            last = earlier
            break
        since += 1
    if last is None or since >= TURNS_KEPT:
        return
    kept = last.answers or []
    count = answers.index(kept[-1]) + 1 if kept[-1] in answers else 0
    if not count or answers[:count] != kept[-count:]:
        yield Violation("second: turns", f"not all answers of {last.id} are in those after it", [last, turn], at)


def check_availability(history: History) -> Iterator[Violation]:
    """Find operations that failed though Postgres had no fault (P5), and those that hang (P7)."""
    harmful = [fault for fault in history.faults if fault.kind.startswith("pg-")]
    for operation in history.operations:
        if operation.process in history.killed and operation.error is None:
            continue
        if operation.end - operation.start >= OPERATION_SECONDS_MAX:
            message = f"no answer within {OPERATION_SECONDS_MAX:g} s"
            yield Violation("second: hangs", message, [operation], operation.start)
        elif _has_failed(operation) and not any(_is_beside(operation, fault) for fault in harmful):
            yield Violation("second: unavailable", f"failed: {operation.error}", [operation], operation.start)


def _has_failed(operation: Operation) -> bool:
    return operation.error is not None and not operation.error.startswith(ALLOWED_ERRORS)


def _is_beside(operation: Operation, fault: Fault) -> bool:
    return operation.start <= fault.heal + RECOVERY_SECONDS and operation.end >= fault.begin


@dataclass
class Bounds:
    """Worst seen beside faults of one kind, in seconds."""

    stale: float = 0.0
    """Time for which the result of a read had been wrong when it began; 0 is promised."""
    failing: float = 0.0
    """Time from the heal of the fault to the end of the last operation that failed."""
    slowest: float = 0.0
    """Longest call. A turn is many, and no call."""
    calls: int = 0
    """Calls of which these are the bounds."""


def bounds(history: History) -> dict[str, Bounds]:
    """Return the bounds for each kind of fault.

    A wrong read counts for all faults beside it. Failures and long calls count for the last fault that hits
    Postgres or workers, or if none is beside them, for the last one of Redis.
    """
    worst: dict[str, Bounds] = {fault.kind: Bounds() for fault in history.faults}
    for wrong in wrong_reads(history):
        for fault in _beside(wrong.operations[-1], history):
            worst[fault.kind].stale = max(worst[fault.kind].stale, wrong.seconds)
    for operation in history.operations:
        beside = _beside(operation, history)
        if not beside or operation.end == math.inf:
            continue
        fault = max(beside, key=lambda fault: (fault.kind.startswith(("pg-", "worker-")), fault.begin))
        of_kind = worst[fault.kind]
        if _has_failed(operation):
            of_kind.failing = max(of_kind.failing, operation.end - fault.heal)
        was_answered = operation.outcome == OK or operation.error is not None
        if operation.kind != TURN and was_answered:
            of_kind.calls += 1
            of_kind.slowest = max(of_kind.slowest, operation.end - operation.start)
    return worst


def _beside(operation: Operation, history: History) -> list[Fault]:
    return [fault for fault in history.faults if _is_beside(operation, fault)]


def check(history: History, end: End) -> Iterator[Violation]:
    """Find all that the promises exclude."""
    yield from (wrong.violation for wrong in wrong_reads(history))
    yield from check_turns(history, end)
    yield from check_end(history, end)
    yield from check_tiers(end)
    yield from check_availability(history)
