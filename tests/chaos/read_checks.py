"""Checkers of reads: pure functions from a history to what is wrong with it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tests.chaos.history import OK, PUT, PUT_WRITES, READ, READ_BY_ID, TURN, History, Operation, Seen
from tests.chaos.order import Deletes, Losses, Required, deletes_by_thread
from tests.chaos.turns import TURNS_KEPT, answers_of
from tests.chaos.values import NO_VALUE


@dataclass(frozen=True)
class Violation:
    """Something that must not be, and the operations that show it."""

    checker: str
    message: str
    operations: list[Operation] = field(default_factory=list)
    at: float = 0.0
    """When it was seen; 0 for what is seen after the run."""


def older(history: History, losses: Losses) -> Iterator[Violation]:
    """No read is older than a write that was acknowledged before it began. A delete is a write too."""
    deletes = deletes_by_thread(history, losses)
    puts, writes = history.by_place(PUT), history.by_place(PUT_WRITES)
    for place, reads in history.by_place(READ, READ_BY_ID).items():
        required = Required(puts.get(place, ()))
        by_id = {put.id: put for put in puts.get(place, ())}
        writes_by_id = defaultdict(list)
        for write in writes.get(place, ()):
            writes_by_id[write.id].append(write)
        for read in reads:
            if read.outcome != OK:
                continue
            gone = deletes[read.thread]
            since = gone.last_before(read.end)
            yield from _too_old(read, required, by_id, since)
            if read.seen is None:
                continue
            yield from _writes_missing(read, read.seen, writes_by_id[read.seen.id], since)
            yield from _deleted(read, read.seen, by_id.get(read.seen.id), gone)


def _too_old(
    read: Operation,
    required: Required,
    by_id: dict[str, Operation],
    since: float,
) -> Iterator[Violation]:
    if read.kind == READ:
        put = required.at(read.start, since)
        if put and (read.seen is None or read.seen.id < put.id):
            yield Violation("older", "a read is older than an acknowledged checkpoint", [put, read], read.end)
        return
    put = by_id.get(read.id)
    if read.seen is not None or put is None or put.outcome != OK or put.start < since:
        return
    if put.end < read.start:
        yield Violation("older", "an acknowledged checkpoint is not found by its id", [put, read], read.end)


def _writes_missing(read: Operation, seen: Seen, writes: Sequence[Operation], since: float) -> Iterator[Violation]:
    there = {task for task, _ in seen.writes}
    for write in writes:
        if write.outcome != OK or write.task in there or write.start < since:
            continue
        if write.end < read.start:
            yield Violation("older", "acknowledged pending writes are missing", [write, read], read.end)


def _deleted(read: Operation, seen: Seen, put: Operation | None, gone: Deletes) -> Iterator[Violation]:
    if put and put.outcome == OK and put.end < gone.surely_gone(read.start):
        yield Violation("older", "a checkpoint is read after its thread was deleted", [put, read], read.end)


def backwards(history: History, losses: Losses) -> Iterator[Violation]:
    """For one reader, the latest checkpoint never goes back, nor do its pending writes vanish."""
    deletes = deletes_by_thread(history, losses)
    for place, reads in history.by_place(READ).items():
        readers = defaultdict(list)
        for read in reads:
            if read.outcome == OK:
                readers[read.process].append(read)
        for own in readers.values():
            for before, read, lost in _steps_back(own, deletes[place[0]]):
                message = "pending writes vanish" if lost else "the latest checkpoint goes back"
                yield Violation("backwards", f"for one reader, {message}", [before, read], read.end)


def _steps_back(reads: Sequence[Operation], gone: Deletes) -> Iterator[tuple[Operation, Operation, list[str]]]:
    """An earlier read, a later one that shows less, and the tasks whose writes that one lacks."""
    ended = sorted(reads, key=lambda r: r.end)
    position, since = 0, -1.0
    highest: Operation | None = None
    tasks: dict[str, dict[str, Operation]] = defaultdict(dict)
    for read in sorted(reads, key=lambda r: r.start):
        while position < len(ended) and ended[position].end < read.start:
            earlier = ended[position]
            position += 1
            if earlier.seen is None:
                continue
            if highest is None or highest.seen is None or earlier.seen.id > highest.seen.id:
                highest = earlier
            for task, _ in earlier.seen.writes:
                tasks[earlier.seen.id][task] = earlier
        if gone.last_before(read.end) > since:  # what was seen before a delete may be gone: seen anew
            since = gone.last_before(read.end)
            highest = None
            tasks.clear()
        if highest is None or highest.seen is None or highest.start < since:
            continue
        if read.seen is None or read.seen.id < highest.seen.id:
            yield highest, read, []
        elif vanished := tasks[read.seen.id].keys() - {task for task, _ in read.seen.writes}:
            first = tasks[read.seen.id][min(vanished)]
            if first.start >= since:
                yield first, read, sorted(vanished)


def values(history: History, losses: Losses) -> Iterator[Violation]:
    """Every value that was read had been written, whole, to that thread and namespace."""
    deletes = deletes_by_thread(history, losses)
    puts = {(put.place, put.id): put for put in history.of_kind(PUT)}
    writes = {(w.place, w.id, w.task): w for w in history.of_kind(PUT_WRITES)}
    for read in history.of_kind(READ, READ_BY_ID):
        if read.seen is None:
            continue
        put = puts.get((read.place, read.seen.id))
        problem = what_is_wrong(read.seen, put, deletes[read.thread])
        if read.kind == READ_BY_ID and read.seen.id != read.id:
            problem = "another checkpoint than the one asked for"
        for task, digest in read.seen.writes:
            write = writes.get((read.place, read.seen.id, task))
            if write is None or write.digest != digest:
                problem = problem or f"pending writes of task {task} that nobody has written there"
        if problem:
            yield Violation("values", problem, [put, read] if put else [read], read.end)


def what_is_wrong(seen: Seen, put: Operation | None, deletes: Deletes) -> str | None:
    """Why what was seen is not what this put has written; None if it is."""
    if put is None:
        return seen.problem or "a checkpoint that nobody has written there"
    if seen.problem == NO_VALUE and seen.parent == put.parent and deletes.met(put):
        return None
    if (seen.digest, seen.parent) != (put.digest, put.parent):
        return seen.problem or "not what was written"
    return seen.problem


def failed(history: History) -> Iterator[Violation]:
    """Find reads of writes that were reported as failed, and not as unknown."""
    puts = {put.id: put for put in history.of_kind(PUT) if put.outcome == "failed"}
    writes = {w.task: w for w in history.of_kind(PUT_WRITES) if w.outcome == "failed"}
    for read in history.of_kind(READ, READ_BY_ID):
        if read.seen is None:
            continue
        culprits = [puts.get(read.seen.id), *(writes.get(task) for task, _ in read.seen.writes)]
        for write in filter(None, culprits):
            if write.end < read.start:
                yield Violation("failed", "a write that had failed is read", [write, read], read.end)


def turns(history: History, losses: Losses) -> Iterator[Violation]:
    """The answers of a graph's thread grow by exactly those of its turns, which did not interleave."""
    for thread_turns in history.by_place(TURN).values():
        excused: set[str] = set()
        for number, turn in enumerate(thread_turns):
            if turn.answers is None:
                continue
            recent = thread_turns[max(0, number - TURNS_KEPT) : number]
            yield from _answers_lost(turn, recent, excused, losses)
            if len(set(turn.answers)) != len(turn.answers):
                yield Violation("turns", "an answer is there twice", [turn], turn.end)
            if turn.answers[-3:] != answers_of(turn.id):
                yield Violation("turns", "a turn does not end with its own answers", [turn], turn.end)


def _answers_lost(
    turn: Operation, recent: Sequence[Operation], excused: set[str], losses: Losses
) -> Iterator[Violation]:
    """Turns before this one whose answers it lacks. Each is told of once."""
    for position, earlier in enumerate(recent):
        if earlier.outcome != OK or earlier.id in excused or _holds(turn.answers or [], earlier):
            continue
        if losses.may_have(earlier):
            continue
        excused.add(earlier.id)
        # One that began before the earlier one ended may have gone on without it, for good.
        if not any(later.start < earlier.end for later in (*recent[position + 1 :], turn)):
            yield Violation("turns", "answers of an earlier turn are lost", [earlier, turn], turn.end)


def _holds(answers: list[str], turn: Operation) -> bool:
    own = answers_of(turn.id)
    if own[0] not in answers:
        return False
    position = answers.index(own[0])
    return answers[position : position + 3] == own
