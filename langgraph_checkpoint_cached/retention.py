"""Age of a thread, and counts of a deletion of idle threads. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

TICKS_PER_SECOND = 10_000_000
TICKS_AT_EPOCH = 0x01B21DD213814000
"""Ticks from the beginning of the Gregorian calendar, where UUIDs count from, to 1970."""

DATED_ID = "^[0-9a-f]{8}-[0-9a-f]{4}-6[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}$"
"""Pattern of ids that begin with the time they were made at: UUIDs of version 6, as LangGraph makes them."""


@dataclass(frozen=True)
class IdleThreads:
    """Counts of what `adelete_idle_threads` has done so far, or would do."""

    threads: int = 0
    """Threads deleted."""
    checkpoints: int = 0
    blobs: int = 0
    writes: int = 0
    """Rows of theirs in the three tables: `checkpoints`, `checkpoint_blobs` and `checkpoint_writes`."""
    looked_at: int = 0
    """All threads that were looked at."""
    kept: int = 0
    """Threads that were idle when they were looked at, and were written to before they were deleted."""
    undated: int = 0
    """Threads that stay because a checkpoint of theirs has an id that is no UUID of version 6."""

    def plus(self, **more: int) -> IdleThreads:
        """Return the sum of these counts and `more`."""
        return replace(self, **{name: getattr(self, name) + count for name, count in more.items()})


def first_id_since(seconds: float) -> str:
    """Return the least id of a checkpoint that was made at this time or later.

    Args:
        seconds: Seconds since 1970.
    """
    text = f"{max(0, int(seconds * TICKS_PER_SECOND) + TICKS_AT_EPOCH):015x}"
    return f"{text[:8]}-{text[8:12]}-6{text[12:]}-0000-000000000000"
