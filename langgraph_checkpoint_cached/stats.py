"""Counters, times and gauges of one saver, with their descriptions."""

# ruff: noqa: RUF009 - the calls return a `field`

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, Literal

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Histogram:
    """Counts of values between fixed bounds, and the sum of the values.

    Args:
        bounds: The highest value of each bucket but the last, which has none.
    """

    __slots__ = ("bounds", "buckets", "sum")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.sum: float = 0

    def record(self, value: float) -> None:
        """Count a value."""
        self.buckets[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the seconds that the block takes, however it ends."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.record(time.perf_counter() - started)

    @property
    def count(self) -> int:
        """Number of values."""
        return sum(self.buckets)

    def quantile(self, share: float) -> float:
        """Return the value that this share of all values does not exceed, interpolated between the bounds.

        0 if there were no values, and never more than the highest bound.
        """
        buckets = list(self.buckets)
        rest = share * sum(buckets)
        for i, (high, here) in enumerate(zip(self.bounds, buckets, strict=False)):
            if here and rest <= here:
                low = self.bounds[i - 1] if i else 0
                return low + (high - low) * rest / here
            rest -= here
        return self.bounds[-1] if any(buckets) else 0


class ReadOutcome(Enum):
    """Outcome of a read."""

    HIT = "hit"
    """Served from Redis."""
    LOAD = "load"
    """Loaded from Postgres, with the right to fill the entry."""
    BYPASS = "bypass"
    """Read from Postgres, past the entry."""
    DEGRADED = "degraded"
    """Read from Postgres because Redis could not be used."""


Kind = Literal["counter", "gauge", "histogram"]


def _counter(unit: str, description: str) -> Any:
    return field(default=0, metadata={"kind": "counter", "unit": unit, "description": description})


def _gauge(unit: str, description: str) -> Any:
    return field(default=0, metadata={"kind": "gauge", "unit": unit, "description": description})


def _times(description: str, *place: str) -> Any:
    """Return a histogram of seconds. `place` is the tier, the operation, and its outcome if there are several."""
    metadata = {"kind": "histogram", "unit": "s", "description": description, "place": place}
    return field(default_factory=Histogram, metadata=metadata)


@dataclass(eq=False)
class Stats:
    """Numbers of one saver since it was made.

    `as_dict` has each counter and gauge under its name, and for each histogram of times `<name>_count`,
    `<name>_seconds` (their sum), `<name>_p50` and `<name>_p99` (seconds, about). Of groups it has `groups`,
    `group_writes`, `group_writes_p50` and `group_writes_p99`.

    Reads of a namespace's latest checkpoint, or of one by id, end as one of the first four.
    """

    hits: int = _counter("{read}", "Reads served from Redis.")
    loads: int = _counter("{read}", "Reads loaded from Postgres, with the right to fill the entry.")
    bypasses: int = _counter(
        "{read}",
        "Reads of Postgres that left the entry alone: a write was in flight, or another process wrote less than "
        "50 ms ago, or the id was another.",
    )
    degraded_reads: int = _counter("{read}", "Reads of Postgres because Redis could not be used.")
    waits: int = _counter("{read}", "Reads that waited for another one's load first.")
    fills: int = _counter("{load}", "Loads that became entries.")
    fills_refused: int = _counter(
        "{load}", "Loads that did not, because of a write in the meantime or a full Redis."
    )
    loads_too_large: int = _counter(
        "{load}", "Loads of a checkpoint beyond 16 MB, for which Redis says no more than that: Postgres is read."
    )
    history_hits: int = _counter("{read}", "Histories of `DeltaChannel`s served from Redis.")
    history_loads: int = _counter("{read}", "Histories of `DeltaChannel`s read from Postgres.")
    damaged: int = _counter("{entry}", "Entries that could not be read, and were dropped.")
    writes: int = _counter("{write}", "Checkpoints and pending writes stored in Postgres.")
    entry_updates: int = _counter("{write}", "Of those, how many updated the entry.")
    degraded_writes: int = _counter("{write}", "Of those, how many Redis did not confirm.")
    stale_threads: int = _counter(
        "{thread}",
        "Stale threads that this process invalidated in Redis: those that some process wrote to without Redis.",
    )
    fences_expired: int = _counter(
        "{fence}",
        "Fences past their deadline that a read removed, as Postgres had no transaction of their process left: it "
        "died during a write or just after it, or the outcome of its commit is unknown.",
    )
    postgres_changes: int = _counter(
        "{change}",
        "How often Postgres turned out to be another, restored or restarted: then all entries are void.",
    )
    redis_errors: int = _counter("{call}", "Calls to Redis that failed or took too long.")
    breaker_openings: int = _counter("{opening}", "How often Redis was found unusable.")
    checks: int = _counter("{check}", "Hits that were compared with Postgres (`check_hits`).")
    appends: int = _counter("{write}", "Writes acknowledged by Redis, to be flushed to Postgres.")
    replayed: int = _counter(
        "{write}", "Such writes, of any process, that this process has replayed into Postgres."
    )
    leases: int = _counter("{lease}", "Leases acquired: threads on which this process began to write behind.")
    leases_recovered: int = _counter(
        "{lease}", "Leases of other processes that this process closed, because they were abandoned."
    )
    leases_lost: int = _counter(
        "{lease}", "Leases whose writes may be lost. 0 unless Redis loses data, or Postgres its last commits."
    )
    flush_waits: int = _counter("{wait}", "Reads and writes that waited for a flush to Postgres.")
    disagreements: int = _counter("{check}", "Checks in which the hit was not what Postgres holds. Always 0.")

    redis_usable: int = _gauge("1", "1 while Redis is used, 0 while it is unusable.")
    writes_waiting: int = _gauge("{write}", "Writes that wait for their transaction to begin.")
    unflushed: int = _gauge(
        "{write}", "Writes of this process that Redis has acknowledged and Postgres does not have yet."
    )
    unflushed_bytes: int = _gauge("By", "About how much memory those take.")
    leases_held: int = _gauge("{lease}", "Threads that this process may write behind on now.")
    unreported_stale_threads: int = _gauge(
        "{thread}",
        "Stale threads of this process, which it invalidates before it uses Redis again.",
    )

    redis_exchange: Histogram = _times("A round trip to Redis with one or more scripts.", "redis", "exchange")
    postgres_load: Histogram = _times(
        "A query for latest checkpoints, waiting for a connection included.", "postgres", "load"
    )
    postgres_store: Histogram = _times(
        "The transaction of a group of writes, waiting for a connection included.", "postgres", "store"
    )
    postgres_replay: Histogram = _times(
        "A transaction that replays what Redis has acknowledged.", "postgres", "replay"
    )
    get_hit: Histogram = _times("A whole `get_tuple` that was a hit.", "saver", "get_tuple", "hit")
    get_load: Histogram = _times("The same that was a load.", "saver", "get_tuple", "load")
    get_bypass: Histogram = _times("The same that was a bypass.", "saver", "get_tuple", "bypass")
    get_degraded: Histogram = _times("The same that was a degraded read.", "saver", "get_tuple", "degraded")
    put: Histogram = _times("A whole `put` that returned.", "saver", "put")
    put_writes: Histogram = _times("A whole `put_writes` that returned.", "saver", "put_writes")

    group_sizes: Histogram = field(
        default_factory=lambda: Histogram(SIZES),
        metadata={
            "kind": "histogram",
            "unit": "{write}",
            "description": "Writes that shared a transaction.",
            "place": ("postgres", "group"),
        },
    )

    def as_dict(self) -> dict[str, float]:
        """Return a copy, for a dashboard or a log line: flat, and ready for JSON."""
        found: dict[str, float] = {}
        for about in fields(self):
            value = getattr(self, about.name)
            if isinstance(value, Histogram):
                count, total, stem = stat_names(about.name)
                found |= {count: value.count, total: round(value.sum, 6)}
                found |= {f"{stem}_p{share}": round(value.quantile(share / 100), 6) for share in (50, 99)}
            else:
                found[about.name] = value
        return found

    def totals(self) -> dict[str, int]:
        """Return the counters and gauges alone, by name."""
        return {
            each.name: getattr(self, each.name) for each in fields(self) if each.metadata["kind"] != "histogram"
        }

    def record_read(self, outcome: ReadOutcome, seconds: float) -> None:
        """Count the time of a whole read."""
        histogram: Histogram = getattr(self, f"get_{outcome.value}")
        histogram.record(seconds)

    def described(self, kind: Kind) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the name and the metadata of each counter, gauge or histogram."""
        for each in fields(self):
            if each.metadata["kind"] == kind:
                yield each.name, each.metadata


def stat_names(histogram: str) -> tuple[str, str, str]:
    """Return a histogram's names in `as_dict`: of the count, of the sum, and the stem of the quantiles' names."""
    if histogram == "group_sizes":
        return "groups", "group_writes", "group_writes"
    return f"{histogram}_count", f"{histogram}_seconds", histogram
