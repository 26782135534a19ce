"""Figures that the saver is to reach, and the verdict on a run. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.results import UPSTREAM, Results

OURS, BASELINE = "write_through", "unlocked"
BEHIND, LIMIT = "write_behind", "memory"
PEERS = {"valkey": "AsyncValkeySaver", "redis": "AsyncRedisSaver"}
SOAK_TURNS, SOAK_THREADS = 100_000, 10_000
THROUGHPUT_GROUPS = ("Reading", "Writing", "A chat turn")


@dataclass(frozen=True)
class Bar:
    """Measured figure and its upper or lower bound."""

    what: str
    figure: float | None
    bound: float
    at_most: bool

    @property
    def wanted(self) -> str:
        """Return the bound in words."""
        return f"{'at most' if self.at_most else 'at least'} {self.bound:g}"

    @property
    def verdict(self) -> str:
        """Return "met", "missed", or "not measured"."""
        if self.figure is None:
            return "not measured"
        return "met" if (self.figure <= self.bound if self.at_most else self.figure >= self.bound) else "missed"


def bars(results: Results) -> list[Bar]:
    """Return all bars. Times and throughputs are ratios to the upstream saver unless they say otherwise."""
    return [
        *_reads_and_writes(results),
        *_turns(results),
        *_unflushed(results),
        *_cpu(results),
        *_without_lock(results),
        *_peers(results),
        *_decoding(results),
        *_counts(results),
        *_memory(results),
    ]


def _time(results: Results, workload: str, bound: float) -> Bar:
    name = f"{workload}, 1 at once"
    return Bar(f"{name}: time", results.ratio(name, OURS), bound, at_most=True)


def _throughput(results: Results, workload: str, lanes: int, bound: float) -> Bar:
    name = f"{workload}, {lanes} at once"
    return Bar(f"{name}: throughput", results.ratio(name, OURS), bound, at_most=False)


def _reads_and_writes(results: Results) -> Iterator[Bar]:
    for messages, bound in ((2, 8.0), (20, 6.0), (200, 4.0)):
        yield _time(results, f"warm read, {messages} messages", 0.25)
        yield _throughput(results, f"warm read, {messages} messages", 64, bound)
    for messages in (2, 20, 200):
        yield _time(results, f"cold read, {messages} messages", 1.1)
        yield _throughput(results, f"cold read, {messages} messages", 64, 1.5)
    for workload in ("aput, 2 messages", "aput, 20 messages", "aput_writes"):
        yield _time(results, workload, 1.0)
        yield _throughput(results, workload, 64, 4.0)


def _turns(results: Results) -> Iterator[Bar]:
    for durability in ("sync", "async"):
        yield _time(results, f"chat turn, 20 messages, {durability}", 0.6)
        for lanes in (16, 64):
            yield _throughput(results, f"chat turn, 20 messages, {durability}", lanes, 3.0)
    for durability in ("sync", "async"):
        yield _time(results, f"chat turn, 200 messages, {durability}", 0.6)
        yield _throughput(results, f"chat turn, 200 messages, {durability}", 16, 2.5)


def _unflushed(results: Results) -> Iterator[Bar]:
    for durability in ("sync", "async"):
        for lanes in (1, 16):
            name = f"chat turn, 20 messages, {durability}, {lanes} at once"
            for other, title, bound in ((UPSTREAM, "the upstream saver", 4.0), (LIMIT, "InMemorySaver", 0.7)):
                ratio = results.ratio(name, BEHIND, other)
                figure = 1 / ratio if ratio and lanes == 1 else ratio
                yield Bar(f"{name}: speed of write-behind, to {title}", figure, bound, at_most=False)


def _cpu(results: Results) -> Iterator[Bar]:
    for measure, owner, bound in (("cpu_application", "application", 0.6), ("cpu_postgres", "Postgres", 0.4)):
        for durability in ("sync", "async"):
            for lanes in (1, 16):
                name = f"chat turn, 20 messages, {durability}, {lanes} at once"
                figure = results.ratio(name, OURS, UPSTREAM, measure)
                yield Bar(f"{name}: CPU of {owner}", figure, bound, at_most=True)


def _without_lock(results: Results) -> Iterator[Bar]:
    for name, workload in results.workloads.items():
        if (
            workload["metric"] == "throughput"
            and workload["group"] in THROUGHPUT_GROUPS
            and not workload["network"]
        ):
            bound = 4.0 if name.startswith("warm read") else 1.8
            figure = results.ratio(name, OURS, BASELINE)
            yield Bar(f"{name}: throughput, to the upstream saver without its lock", figure, bound, at_most=False)


def _peers(results: Results) -> Iterator[Bar]:
    """Yield the smallest lead over each saver without Postgres, on any chat turn."""
    for peer, title in PEERS.items():
        leads: list[tuple[float, str]] = []
        for name, workload in results.workloads.items():
            ratio = results.ratio(name, OURS, peer) if workload["group"] == "A chat turn" else None
            if ratio and not workload["network"]:
                leads.append((1 / ratio if workload["metric"] == "latency" else ratio, name))
        figure, where = min(leads, default=(None, "chat turn"))
        yield Bar(f"{where}: speed, to {title} where it comes closest", figure, 1.0, at_most=False)


def _decoding(results: Results) -> Iterator[Bar]:
    yield _time(results, "decoding 200 messages", 0.35)


def _counts(results: Results) -> Iterator[Bar]:
    for durability in ("sync", "async"):
        name = f"chat turn, 20 messages, {durability}, 64 at once"
        ours, upstream = (results.count(name, contestant, "transactions") for contestant in (OURS, UPSTREAM))
        figure = ours / upstream if ours is not None and upstream else None
        yield Bar(f"{name}: transactions", figure, 0.2, at_most=True)
    queries = results.count("warm read, 20 messages, 1 at once", OURS, "queries")
    yield Bar("warm read: queries of one, as a number", queries, 0.0, at_most=True)


def _memory(results: Results) -> Iterator[Bar]:
    for messages in (20, 200):
        found = results.data.get("redis_bytes", {}).get(str(messages), {}).get(OURS)
        figure = found["per_thread"] / found["state"] if found else None
        yield Bar(f"Redis memory of a thread, {messages} messages, to its state", figure, 1.3, at_most=True)
    soak = results.data.get("soak") or {}
    turns, threads = soak.get("turns", SOAK_TURNS), soak.get("threads", SOAK_THREADS)
    figure = soak.get("growth") if turns >= SOAK_TURNS and threads >= SOAK_THREADS else None
    what = f"process memory over {turns:,} turns on {threads:,} threads, last fifth to second"
    yield Bar(what, figure, 1.05, at_most=True)
