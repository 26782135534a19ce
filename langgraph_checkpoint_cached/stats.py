"""Counters of one saver."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class Stats:
    """How often each thing happened since the saver was made.

    Reads of a namespace's latest checkpoint, or of one by id, end as one of the first four.
    """

    hits: int = 0
    """Served from Redis."""
    loads: int = 0
    """Loaded from Postgres, with the right to fill the entry."""
    bypasses: int = 0
    """Read from Postgres without touching the entry: a write was in flight, or the id was another."""
    degraded_reads: int = 0
    """Read from Postgres because Redis could not be used."""
    waits: int = 0
    """Reads that waited for another one's load first."""
    fills: int = 0
    """Loads that became entries."""
    fills_refused: int = 0
    """Loads that did not, because something was written meanwhile or Redis was full."""
    damaged: int = 0
    """Entries that could not be read, and were dropped."""
    writes: int = 0
    """Checkpoints and pending writes stored in Postgres."""
    advances: int = 0
    """Of those, how many moved the entry along."""
    degraded_writes: int = 0
    """Of those, how many could not tell Redis."""
    suspects: int = 0
    """Threads that this process voided in Redis because somebody could not tell it of a write."""
    redis_errors: int = 0
    """Calls to Redis that failed or took too long."""

    def as_dict(self) -> dict[str, int]:
        """A copy, for a dashboard."""
        return asdict(self)
