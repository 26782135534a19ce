"""Rules of time that the checkers of reads share: which process has to see which write, and when.

A write is required of a read if it was acknowledged, and visible, before the read began, and if no delete of its
thread can have come between. It is visible when it is acknowledged, with one exception: a worker that knows its
Redis to be unusable cannot tell the others what it writes. What it writes meanwhile they may miss until it has its
Redis again, and for `grace` seconds at most; but not once Redis has been emptied, by a restart, a failover or a
flush.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from tests.chaos.history import DELETE, FAILED, OK, REWIND, History, Operation

GRACE_SECONDS = 3.0
"""Within this, what one worker could not tell Redis is invalidated for all, by the table of stale threads: each
polls it once a second, on a machine that has more to do."""


REWIND_SECONDS = 2.0
"""Within this every worker has learned that Postgres has lost commits: each polls it once a second."""


class Visibility:
    """When the writes of a history are visible to everybody.

    Args:
        history: What happened.
        grace: Seconds for which others may miss what a worker without Redis has written.
    """

    def __init__(self, history: History, grace: float = GRACE_SECONDS) -> None:
        self._downs, self._emptied, self._grace = history.downs, history.emptied, grace
        self._rewinds = history.rewinds

    def is_degraded(self, write: Operation) -> bool:
        """Say whether its worker knew its Redis to be unusable at any time from its start to its end."""
        return bool(self._downs_during(write))

    def may_be_lost(self, write: Operation) -> bool:
        """Say whether Postgres may have lost it."""
        return any(start <= write.end and write.start <= end + REWIND_SECONDS for start, end in self._rewinds)

    def visible_by(self, write: Operation) -> float:
        """From when on every read has to show it."""
        downs = self._downs_during(write)
        if not downs:
            return write.end
        emptied = bisect_left(self._emptied, write.end)
        empty_at = self._emptied[emptied] if emptied < len(self._emptied) else math.inf
        has_redis_again = max(up for _, up in downs)
        return max(write.end, min(write.end + self._grace, has_redis_again, empty_at))

    def _downs_during(self, write: Operation) -> list[tuple[float, float]]:
        downs = self._downs.get(write.process, ())
        return [(down, up) for down, up in downs if down <= write.end and up >= write.start]


class Deletes:
    """The deletes of one thread."""

    def __init__(self, deletes: Iterable[Operation], visibility: Visibility) -> None:
        self._all = sorted((d for d in deletes if d.outcome != FAILED), key=lambda d: d.start)
        self._starts = [d.start for d in self._all]
        self._over = _running_max(d.over for d in self._all)
        self._seen_by_all = _running_max(max(d.over, visibility.visible_by(d)) for d in self._all)
        known = sorted(
            (visibility.visible_by(d), d.start)
            for d in self._all
            if d.outcome == OK and d.kind != REWIND and not visibility.may_be_lost(d)
        )
        self._visible = [visible for visible, _ in known]
        self._latest_start = _running_max(start for _, start in known)

    def last_before(self, moment: float) -> float:
        """Time before which anything begun may be deleted by then: until when a delete that had begun may act."""
        begun = bisect_left(self._starts, moment)
        return self._over[begun - 1] if begun else -math.inf

    def seen_before(self, moment: float) -> float:
        """Time before which anything read may be gone: until when a reader may miss a delete that had begun."""
        begun = bisect_left(self._starts, moment)
        return self._seen_by_all[begun - 1] if begun else -math.inf

    def met(self, write: Operation) -> bool:
        """Say whether a delete may have acted while the write did."""
        return self.last_before(write.over) > write.start

    def surely_gone(self, moment: float) -> float:
        """Time before which every ended write is gone for a read that begins at that moment."""
        visible = bisect_left(self._visible, moment)
        return self._latest_start[visible - 1] if visible else -math.inf


def deletes_by_thread(
    history: History, visibility: Visibility, rewinds: Sequence[tuple[float, float]] | None = None
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
    return {thread: Deletes(found, visibility) for thread, found in threads.items()}


class Required:
    """The highest checkpoint of a namespace that a read has to show, by when it began."""

    def __init__(self, puts: Sequence[Operation], visibility: Visibility) -> None:
        known = sorted(((visibility.visible_by(p), p) for p in puts if p.outcome == OK), key=lambda v: v[0])
        self._known = known
        self._since: dict[float, tuple[list[float], list[Operation]]] = {}

    def at(self, moment: float, since: float) -> Operation | None:
        """Return the put with the highest id that began after `since` and was visible before `moment`."""
        if since not in self._since:
            later = [(visible, p) for visible, p in self._known if p.start >= since]
            highest: list[Operation] = []
            for _, put in later:
                highest.append(put if not highest or put.id > highest[-1].id else highest[-1])
            self._since[since] = [visible for visible, _ in later], highest
        visible, highest = self._since[since]
        count = bisect_left(visible, moment)
        return highest[count - 1] if count else None


def _running_max(values: Iterable[float]) -> list[float]:
    result: list[float] = []
    for value in values:
        result.append(max(value, result[-1]) if result else value)
    return result
