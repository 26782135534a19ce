"""State after all faults are healed and all workers have ended, and the checkers of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.history import DELETE, FAILED, OK, PUT, PUT_WRITES, History, Operation, Place, Seen
from tests.chaos.order import Losses, deletes_by_thread
from tests.chaos.read_checks import Violation, what_is_wrong

POSTGRES_RECOVERY_SECONDS = 12.0
"""After a fault of Postgres a worker's pool may need this to have connections again."""


@dataclass
class Key:
    """A key that Redis holds, and the fences in it."""

    name: str
    ttl_ms: int
    fences: list[str] = field(default_factory=list)
    is_journal: bool = False


@dataclass
class End:
    """The state of both tiers after the run."""

    rows: dict[Place, list[Seen]] = field(default_factory=dict)
    """Checkpoints that the upstream saver finds in each namespace."""
    answers: dict[str, list[str]] = field(default_factory=dict)
    """Checkpoints that the upstream saver finds on each thread of a graph."""
    latest: dict[Place, Any] = field(default_factory=dict)
    """Latest checkpoint by the upstream saver."""
    first: dict[Place, Any] = field(default_factory=dict)
    """Answer of a fresh process to its first read."""
    second: dict[Place, Any] = field(default_factory=dict)
    """And when it reads again."""
    missed: list[str] = field(default_factory=list)
    """Namespaces of which its second read was not served from Redis."""
    keys: list[Key] = field(default_factory=list)
    leases: list[str] = field(default_factory=list)
    """Threads that may still be ahead of Postgres."""
    killed_late: list[str] = field(default_factory=list)
    """Workers that did not end when told to."""


def lost(history: History, end: End, losses: Losses) -> Iterator[Violation]:
    """Every acknowledged write is in Postgres in the end, and nothing is there that nobody has written."""
    deletes = deletes_by_thread(history, losses)
    without_rewinds = deletes_by_thread(history, losses, ())

    def is_kept(write: Operation) -> bool:
        since = without_rewinds[write.thread].last_before(float("inf"))
        return write.outcome == OK and write.start >= since and not losses.may_have(write)

    rows = {(place, seen.id): seen for place, found in end.rows.items() for seen in found}
    for put in history.of_kind(PUT):
        seen = rows.pop((put.place, put.id), None)
        if seen is None and is_kept(put):
            yield Violation("lost", "an acknowledged checkpoint is not in Postgres", [put])
        if seen is not None and (problem := what_is_wrong(seen, put, deletes[put.thread])):
            yield Violation("lost", f"a checkpoint is not as it was written: {problem}", [put])
    for (place, checkpoint_id), _ in rows.items():
        yield Violation("lost", f"nobody has written checkpoint {checkpoint_id} in {place}")
    tasks = {(p, s.id, task) for p, found in end.rows.items() for s in found for task, _ in s.writes}
    there = {(place, seen.id) for place, found in end.rows.items() for seen in found}
    for write in history.of_kind(PUT_WRITES):
        acknowledged = is_kept(write) and (write.place, write.id) in there
        if acknowledged and (write.place, write.id, write.task) not in tasks:
            yield Violation("lost", "acknowledged pending writes are not in Postgres", [write])


def orphans(history: History, end: End) -> Iterator[Violation]:
    """No checkpoint continues one that is not there, but on threads that were deleted meanwhile."""
    deleted = {delete.thread for delete in history.of_kind(DELETE)}
    for (thread, ns), found in end.rows.items():
        ids = {seen.id for seen in found}
        for seen in found:
            if thread not in deleted and seen.parent and seen.parent not in ids:
                yield Violation("orphans", f"{(thread, ns)}: {seen.id} continues {seen.parent}, which is lost")


def failed_there(history: History, end: End) -> Iterator[Violation]:
    """Find operations reported as failed that are in Postgres in the end."""
    ids = {(place, seen.id) for place, found in end.rows.items() for seen in found}
    tasks = {(p, s.id, task) for p, found in end.rows.items() for s in found for task, _ in s.writes}
    for write in history.of_kind(PUT, PUT_WRITES):
        there = (write.place, write.id, write.task) in tasks if write.task else (write.place, write.id) in ids
        if write.outcome == FAILED and there:
            yield Violation("failed", "a write that had failed is in Postgres", [write])


def tiers(end: End) -> Iterator[Violation]:
    """L1 equals L2: a fresh process reads what the upstream saver reads, from Redis too."""
    for place, expected in end.latest.items():
        for which, found in (("first", end.first.get(place)), ("second", end.second.get(place))):
            if found != expected:
                message = f"{place}: the {which} read says {found}, the upstream saver {expected}"
                yield Violation("tiers", message)


def served(end: End) -> Iterator[Violation]:
    """In the end everything is served from Redis again."""
    for place in end.missed:
        yield Violation("served", f"{place} was not served from Redis when it was read again")


def keys(end: End) -> Iterator[Violation]:
    """No key is without expiry, but for journals, which see `behind`."""
    for key in end.keys:
        if key.ttl_ms < 0 and not key.is_journal:
            yield Violation("keys", f"{key.name} has no expiry")


def behind(end: End) -> Iterator[Violation]:
    """Postgres has followed: no thread has a lease, nor a journal."""
    for thread in end.leases:
        yield Violation("behind", f"thread {thread!r} still has a lease")
    for key in end.keys:
        if key.is_journal:
            yield Violation("behind", f"the journal {key.name} is still there")


def fences(end: End) -> Iterator[Violation]:
    """No fence is left, after a read of its namespace and past its deadline."""
    for key in end.keys:
        for fence in key.fences:
            yield Violation("fences", f"{key.name} still has the fence {fence}")


def leaks(history: History, end: End) -> Iterator[Violation]:
    """No worker has kept a connection or a task, each has had its Redis back, and each has ended when told to."""
    for process, found in history.leaks.items():
        if found:
            yield Violation("leaks", f"worker {process} still has {found}")
    for process, missed in history.unsettled.items():
        if missed:
            yield Violation("settled", f"worker {process} has not read these through Redis again: {missed}")
    for process in end.killed_late:
        yield Violation("leaks", f"worker {process} did not end when told to")


def available(history: History) -> Iterator[Violation]:
    """Without a fault of Postgres nothing fails, whatever happens to Redis, and nothing takes too long.

    Where Redis is ahead of Postgres, a fault of Redis or of a worker may also make a `BehindError`.
    """
    windows = {
        kind: [
            (fault.begin, fault.heal + POSTGRES_RECOVERY_SECONDS)
            for fault in history.faults
            if fault.kind.startswith(kind)
        ]
        for kind in ("pg-", "")
    }
    for operation in history.operations:
        if operation.error is None:
            continue
        may_fail = windows["" if operation.error.startswith("BehindError") else "pg-"]
        if any(begin <= operation.end and operation.start <= healed for begin, healed in may_fail):
            continue
        yield Violation("available", f"{operation.kind} failed: {operation.error}", [operation], operation.end)
