"""Report of a results file as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from benchmarks.bars import bars
from benchmarks.results import UPSTREAM, Results

UNITS = {"transactions": "Transactions", "queries": "Queries", "redis_commands": "Redis commands"}
QUICK = "**A quick run: it shows that everything works. Its figures mean nothing.**"

NOT_JUDGED = "quick run"


def markdown(results: Results) -> str:
    """Return the whole report."""
    parts = [
        "# Benchmarks",
        *([QUICK] if results.data["plan"]["quick"] else []),
        _conditions(results),
        "## Who took part",
        "\n".join(f"- {name}: {title}" for name, title in results.data["contestants"].items()),
        "## What was asked for",
        "Ratios to the upstream saver on a pool of 10, medians over the rounds, unless they say otherwise.",
        bars_table(results),
        *_queue(results),
        *_counts(results),
        *_redis_bytes(results),
        *_soak(results),
        *_left_out(results),
    ]
    return "\n\n".join(parts) + "\n"


def bars_table(results: Results) -> str:
    """Return each wanted figure beside the measured one, as a table."""
    quick = results.data["plan"]["quick"]
    rows = [
        (bar.what, number(bar.figure), bar.wanted, NOT_JUDGED if quick else bar.verdict) for bar in bars(results)
    ]
    return table(["", "measured", "wanted", ""], rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; all but its first column are aligned to the right."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def number(value: float | None, digits: int = 3) -> str:
    """Format a number with `digits` significant digits; None is a dash."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{float(f'{value:.{digits}g}'):,g}"


def _conditions(results: Results) -> str:
    data = results.data
    lines = [
        *(f"- {name}: {value}" for name, value in data["machine"].items()),
        "- " + ", ".join(f"{name} {value}" for name, value in data["versions"].items()),
        "- Postgres: " + ", ".join(f"{name} {value}" for name, value in data["settings"].items()),
        f"- {data['plan']['rounds']} rounds of about {data['plan']['seconds']} s for each contestant, in turns; "
        "fewer where the table says so",
        *(
            f"- network to {name}: {number(measured['added_ms'])} ms added to a round trip "
            f"({measured['wanted_ms']:g} wanted), {number(measured['megabytes_per_second'])} MB/s"
            for name, measured in data["network"].items()
        ),
    ]
    return "\n".join(lines)


def _queue(results: Results) -> Iterator[str]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for workload in results.workloads.values():
        groups.setdefault("Over a network" if workload["network"] else workload["group"], []).append(workload)
    for group, workloads in groups.items():
        yield f"## {group}"
        questions = dict.fromkeys(workload["question"] for workload in workloads)
        yield " ".join(questions)
        for metric, unit in (("latency", "Milliseconds"), ("throughput", "Operations per second")):
            chosen = [workload for workload in workloads if workload["metric"] == metric]
            if chosen:
                yield f"{unit}, median (to the upstream saver)"
                yield _values(results, chosen)
        measured = [workload for workload in workloads if "cpu_application" in workload["cells"].get(UPSTREAM, {})]
        if measured and group == "A chat turn":
            yield "CPU of a turn in milliseconds, of the application + of Postgres"
            yield _cpu(results, measured)


def _present(results: Results, workloads: Sequence[dict[str, Any]]) -> list[str]:
    return [name for name in results.data["contestants"] if any(name in w["cells"] for w in workloads)]


def _values(results: Results, workloads: Sequence[dict[str, Any]]) -> str:
    names = _present(results, workloads)
    rows = []
    for workload in workloads:
        counts = [len(cell["rounds"]) for cell in workload["cells"].values() if cell["rounds"]]
        rounds = f"{min(counts)} to {max(counts)}" if min(counts) != max(counts) else str(counts[0])
        rows.append([workload["name"], *(_value(workload["cells"].get(name)) for name in names), rounds])
    return table(["", *names, "rounds"], rows)


def _value(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    if cell["failure"]:
        return "failed"
    ratio = cell.get("value_to_stock")
    return number(cell["value"]["median"]) + (f" ({number(ratio['median'], 2)})" if ratio else "")


def _cpu(results: Results, workloads: Sequence[dict[str, Any]]) -> str:
    names = _present(results, workloads)

    def both(cell: dict[str, Any] | None) -> str:
        if cell is None or "cpu_application" not in cell:
            return ""
        postgres = cell.get("cpu_postgres")
        return number(cell["cpu_application"]["median"], 2) + (
            f" + {number(postgres['median'], 2)}" if postgres else ""
        )

    return table(["", *names], [[w["name"], *(both(w["cells"].get(name)) for name in names)] for w in workloads])


def _counts(results: Results) -> Iterator[str]:
    counts = results.data.get("counts") or {}
    if not counts:
        return
    yield "## Transactions, queries and commands of one operation"
    yield "Redis commands count those inside scripts too."
    names = [name for name in results.data["contestants"] if any(name in cells for cells in counts.values())]
    rows = []
    for kind, cells in counts.items():
        for what, title in UNITS.items():
            values = [cells.get(name, {}).get(what) for name in names]
            if any(value is not None for value in values):
                rows.append([f"{title}: {kind}", *(number(value) for value in values)])
    yield table(["", *names], rows)


def _redis_bytes(results: Results) -> Iterator[str]:
    sizes = results.data.get("redis_bytes") or {}
    if not sizes:
        return
    yield "## What a thread takes in Redis"
    rows = [
        [f"{name}, {messages} messages", number(found["per_thread"], 6), number(found["state"], 6)]
        for messages, cells in sizes.items()
        for name, found in cells.items()
    ]
    yield table(["", "bytes after a chat turn", "bytes of its latest state"], rows)


def _soak(results: Results) -> Iterator[str]:
    soak = results.data.get("soak")
    if not soak:
        return
    yield "## Memory over many turns"
    rows = [
        [f"{sample['turns']:,}", *(f"{sample[who] / 1e6:.1f}" for who in ("process_bytes", "redis_bytes"))]
        for sample in soak["samples"][:: max(1, len(soak["samples"]) // 10)]
    ]
    yield table(["turns", "process, MB", "Redis, MB"], rows)


def _left_out(results: Results) -> Iterator[str]:
    reasons = [f"- {name}: {reason}" for name, reason in results.data["left_out"].items()]
    for workload in results.workloads.values():
        reasons += [
            f"- {name} in {workload['name']}: {cell['failure']}"
            for name, cell in workload["cells"].items()
            if cell["failure"]
        ]
    if reasons:
        yield "## Left out"
        yield "\n".join(reasons)
