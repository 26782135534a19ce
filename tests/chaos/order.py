"""Rules of time that the checkers of reads share: which process has to see which write, and when.

A write is required of a read if it was acknowledged before the read began, and if no delete of its thread can have
come between, nor a loss of commits. There is no grace: not for workers that lack their Redis either.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from tests.chaos.history import DELETE, FAILED, OK, REWIND, History, Operation

REWIND_SECONDS = 2.0
"""Within this every worker has learned that Postgres has lost commits: each polls it once a second."""


class Losses:
    """Commits that Postgres has lost in a history."""

    def __init__(self, history: History) -> None:
        self._rewinds = history.rewinds

    def may_have(self, write: Operation) -> bool:
        """Say whether Postgres may have lost it."""
        return any(start <= write.end and write.start <= end + REWIND_SECONDS for start, end in self._rewinds)


class Deletes:
    """The deletes of one thread."""

    def __init__(self, deletes: Iterable[Operation], losses: Losses) -> None:
        self._all = sorted((d for d in deletes if d.outcome != FAILED), key=lambda d: d.start)
        self._starts = [d.start for d in self._all]
        self._over = _running_max(d.over for d in self._all)
        known = sorted(
            (d.end, d.start) for d in self._all if d.outcome == OK and d.kind != REWIND and not losses.may_have(d)
        )
        self._ends = [end for end, _ in known]
        self._latest_start = _running_max(start for _, start in known)

    def last_before(self, moment: float) -> float:
        """Time before which anything begun may be deleted by then: until when a delete that had begun may act."""
        begun = bisect_left(self._starts, moment)
        return self._over[begun - 1] if begun else -math.inf

    def met(self, write: Operation) -> bool:
        """Say whether a delete may have acted while the write did."""
        return self.last_before(write.over) > write.start

    def surely_gone(self, moment: float) -> float:
        """Time before which every ended write is gone for a read that begins at that moment."""
        ended = bisect_left(self._ends, moment)
        return self._latest_start[ended - 1] if ended else -math.inf


def deletes_by_thread(
    history: History, losses: Losses, rewinds: Sequence[tuple[float, float]] | None = None
) -> dict[str, Deletes]:
    """Return the deletes of every thread, and what Postgres lost in these periods (by default, in all)."""
    rewinds = history.rewinds if rewinds is None else rewinds
    threads: dict[str, list[Operation]] = {o.thread: [] for o in history.operations}
    for delete in history.of_kind(DELETE):
        threads[delete.thread].append(delete)
    for thread, deletes in threads.items():
        deletes += [
            Operation("postgres", 0, REWIND, thread, "", start, end=end + REWIND_SECONDS, outcome=OK)
            for start, end in rewinds
        ]
    return {thread: Deletes(found, losses) for thread, found in threads.items()}


class Required:
    """The highest checkpoint of a namespace that a read has to show, by when it began."""

    def __init__(self, puts: Sequence[Operation]) -> None:
        self._known = sorted((p for p in puts if p.outcome == OK), key=lambda p: p.end)
        self._since: dict[float, tuple[list[float], list[Operation]]] = {}

    def at(self, moment: float, since: float) -> Operation | None:
        """Return the put with the highest id that began after `since` and ended before `moment`."""
        if since not in self._since:
            later = [put for put in self._known if put.start >= since]
            highest: list[Operation] = []
            for put in later:
                highest.append(put if not highest or put.id > highest[-1].id else highest[-1])
            self._since[since] = [put.end for put in later], highest
        ends, highest = self._since[since]
        count = bisect_left(ends, moment)
        return highest[count - 1] if count else None


def _running_max(values: Iterable[float]) -> list[float]:
    result: list[float] = []
    for value in values:
        result.append(max(value, result[-1]) if result else value)
    return result
