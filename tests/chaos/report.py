"""Report of a run: tables, and violations with the operations that show them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.chaos.history import FAILED, OK, UNKNOWN
from tests.chaos.run import Result
from tests.chaos.second_opinion import bounds

VIOLATIONS_SHOWN_MAX = 5
"""Violations of each checker."""
COUNTERS = ("hits", "loads", "bypasses", "degraded_reads", "fills", "writes", "entry_updates", "degraded_writes")
OF_LEASES = ("appends", "replayed", "leases", "flush_waits", "leases_recovered", "leases_lost")


def lines_of(result: Result) -> Iterator[str]:
    """The report, for people."""
    history, settings = result.history, result.settings
    outcomes = Counter((o.kind, o.outcome) for o in history.operations)
    yield f"{'':12} {OK:>8} {FAILED:>8} {UNKNOWN:>8}"
    for kind in sorted({kind for kind, _ in outcomes}):
        yield f"{kind:12}" + "".join(f" {outcomes[kind, outcome]:8}" for outcome in (OK, FAILED, UNKNOWN))
    faults = Counter(fault.kind for fault in history.faults)
    yield f"{len(history.faults)} faults: " + ", ".join(f"{n} {kind}" for kind, n in sorted(faults.items()))
    yield ", ".join(f"{total} {name}" for name, total in totals_of(result).items())
    yield f"{'at most, in seconds':26} {'stale':>7} {'failing':>7} {'call':>7}"
    for kind, worst in sorted(bounds(history).items()):
        slowest = f"{worst.slowest:7.3f} of {worst.calls}" if worst.calls else f"{'-':>7}"
        yield f"  {kind:24} {worst.stale:7.3f} {worst.failing:7.3f} {slowest}"
    yield f"{len(result.violations)} violations, seed {settings.seed}, {settings.setup}"
    for checker, count in sorted(result.fired().items()):
        first = result.first(checker)
        yield f"  {checker}: {count}, " + (
            f"first after {first:.1f} s" if first is not None else "seen in the end"
        )
        found = [v for v in result.violations if v.checker == checker]
        for violation in found[:VIOLATIONS_SHOWN_MAX]:
            yield f"    {violation.message}"
            yield from (f"      {operation}" for operation in violation.operations)


def totals_of(result: Result) -> dict[str, int]:
    """The savers' counters."""
    totals: Counter[str] = Counter()
    for stats in result.history.stats.values():
        totals.update(stats)
    counters = COUNTERS if result.settings.mode == "write_through" else (*COUNTERS, *OF_LEASES)
    return {name: round(totals[name]) for name in counters}


def write_json(result: Result, path: Path) -> None:
    """The report, for programs."""
    settings, history = result.settings, result.history
    report: dict[str, Any] = {
        "seed": settings.seed,
        "saver": settings.saver,
        "mode": settings.mode,
        "redis": settings.redis,
        "seconds": settings.seconds,
        "operations": [
            {"kind": kind, "outcome": outcome, "count": count}
            for (kind, outcome), count in sorted(Counter((o.kind, o.outcome) for o in history.operations).items())
        ],
        "faults": Counter(fault.kind for fault in history.faults),
        "totals": totals_of(result),
        "bounds": {kind: asdict(worst) for kind, worst in bounds(history).items()},
        "violations": [
            {"checker": v.checker, "message": v.message, "operations": [str(o) for o in v.operations]}
            for v in result.violations
        ],
    }
    path.write_text(json.dumps(report, indent=1) + "\n")
