"""Command `inspect`: shows a thread in Redis and in Postgres, side by side."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

from langgraph_checkpoint_cached.cli.cached_namespaces import CachedNamespaces
from langgraph_checkpoint_cached.cli.components import Components
from langgraph_checkpoint_cached.cli.connections import ConnectionOptions
from langgraph_checkpoint_cached.cli.lease_view import LeaseView, flush_lease, lease_row
from langgraph_checkpoint_cached.cli.output import Output, size, span, table
from langgraph_checkpoint_cached.cli.thread_view import FenceView, ThreadView, read_thread
from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.stores.redis.entry_format import DamagedEntry
from langgraph_checkpoint_cached.stores.redis.health import RedisUnavailable

NAME = "inspect"
HELP = "show a thread in Redis and in Postgres, side by side"
DESCRIPTION = """\
Show what Redis and Postgres hold of a thread: checkpoints, sizes, ages, pending writes, fences and their owners,
and whether the two agree. Stored values are neither decoded nor shown. Nothing is changed, but a thread with
unflushed writes is flushed first; its lease is shown as it was before.

Exits with 1 if the two differ, an entry is damaged, the thread cannot be flushed, it exists nowhere, or Redis
cannot be reached.
"""
Agreement: TypeAlias = Literal[
    "agree", "differ", "damaged", "not cached", "being written", "opaque", "unflushed", "unknown"
]
NAMESPACES_MAX = 100
"""Limit of the namespaces that are shown: those with the newest checkpoints."""
IN_POSTGRES_SQL = """
select checkpoint_ns, c.checkpoints, c.latest, c.stored_bytes as checkpoint_bytes,
  b.blobs, b.blob_bytes, w.writes, w.write_bytes, pending.pending, extract(epoch from now())::float8 as now,
  (select checkpoint->>'ts' from checkpoints l
   where l.thread_id = %(thread)s and l.checkpoint_ns = c.checkpoint_ns and l.checkpoint_id = c.latest) as ts
from (
  select checkpoint_ns, count(*) as checkpoints, max(checkpoint_id) as latest,
    sum(pg_column_size(checkpoint) + pg_column_size(metadata))::bigint as stored_bytes
  from checkpoints where thread_id = %(thread)s group by checkpoint_ns
) c
full join (
  select checkpoint_ns, count(*) as blobs, sum(pg_column_size(blob))::bigint as blob_bytes
  from checkpoint_blobs where thread_id = %(thread)s group by checkpoint_ns
) b using (checkpoint_ns)
full join (
  select checkpoint_ns, count(*) as writes, sum(pg_column_size(blob))::bigint as write_bytes
  from checkpoint_writes where thread_id = %(thread)s group by checkpoint_ns
) w using (checkpoint_ns)
left join lateral (
  select count(*) as pending from checkpoint_writes p
  where p.thread_id = %(thread)s and p.checkpoint_ns = c.checkpoint_ns and p.checkpoint_id = c.latest
) pending on true
order by c.latest desc nulls last
"""


@dataclass(frozen=True)
class ThreadSummary:
    """Summary of a thread.

    Attributes:
        thread_id: The thread.
        lease: Its lease, before it was flushed.
        stale_seconds: Time since it was marked stale; None if it is not.
        redis_error: Why Redis could not be asked.
    """

    thread_id: str
    lease: LeaseView | None
    stale_seconds: float | None
    redis_error: str | None

    @property
    def is_unflushed(self) -> bool:
        """Return whether the thread could not be flushed."""
        return self.lease is not None and (not self.lease.known or self.lease.error is not None)


@dataclass(frozen=True)
class NamespaceComparison:
    """A namespace in Redis and in Postgres."""

    namespace: Namespace
    redis: ThreadView | None
    postgres: dict[str, Any] | None
    agreement: Agreement

    @property
    def is_empty(self) -> bool:
        """Return whether neither holds anything of it."""
        return not self.postgres and (self.redis is None or not (self.redis.hit or self.redis.fill_lease))


@dataclass(frozen=True)
class ThreadComparison:
    """All that is shown of a thread. `names` is how many namespaces there are."""

    summary: ThreadSummary
    namespaces: list[NamespaceComparison]
    names: int

    @property
    def exists(self) -> bool:
        """Return whether anything is stored of the thread."""
        found = any(each.postgres or (each.redis and each.redis.hit) for each in self.namespaces)
        return found or self.summary.lease is not None

    @property
    def is_healthy(self) -> bool:
        """Return whether nothing is wrong with it."""
        wrong = any(each.agreement in ("differ", "damaged", "unflushed") for each in self.namespaces)
        return self.exists and not wrong and not self.summary.redis_error

    @property
    def redis(self) -> ThreadView | None:
        """Thread in Redis, as it was read with one of the namespaces."""
        return next((each.redis for each in self.namespaces if each.redis), None)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("thread", metavar="THREAD")
    parser.add_argument("--namespace", metavar="NS", help='only this namespace; "" is the root graph')


async def run(options: argparse.Namespace, out: Output) -> int:
    """Return 1 if the two differ, or nothing exists."""
    async with Components.open(ConnectionOptions.from_options(options)) as components:
        thread = await compare_thread(components, options.thread, options.namespace)
    lines = _lines(thread) if thread.exists else [f"thread {options.thread!r} exists nowhere"]
    out.report(_data(thread), lines)
    return 0 if thread.is_healthy else 1


async def compare_thread(components: Components, thread_id: str, checkpoint_ns: str | None) -> ThreadComparison:
    """Flush the thread, and compare its namespaces, or one of them. Raises psycopg's errors."""
    lease, error = None, None
    try:
        lease = await flush_lease(components, thread_id)
    except RedisUnavailable as exc:
        error = str(exc)
        lease = await lease_row(components, thread_id)
    rows = [dict(row) for row in await components.query(IN_POSTGRES_SQL, {"thread": thread_id})]
    summary = ThreadSummary(thread_id, lease, await _stale_seconds(components, thread_id), error)
    try:
        names = [checkpoint_ns]
        if checkpoint_ns is None:
            names = await _list_namespaces(components, thread_id, rows)
        found = [await _compare(components, summary, name, rows) for name in names[:NAMESPACES_MAX]]
    except RedisUnavailable as exc:
        summary = replace(summary, redis_error=str(exc))
        names = [row["checkpoint_ns"] for row in rows]
        found = [
            NamespaceComparison(Namespace(thread_id, row["checkpoint_ns"]), None, row, "unknown")
            for row in rows[:NAMESPACES_MAX]
            if checkpoint_ns in (None, row["checkpoint_ns"])
        ]
    return ThreadComparison(summary, [each for each in found if not each.is_empty] or found[:1], len(names))


async def _list_namespaces(components: Components, thread_id: str, rows: list[dict[str, Any]]) -> list[str | None]:
    """Return the namespaces that either holds, the root first."""
    names: dict[str | None, None] = dict.fromkeys(["", *(row["checkpoint_ns"] for row in rows)])
    async for namespace in CachedNamespaces(components, [thread_id]).scan():
        names.setdefault(namespace.checkpoint_ns)
    return list(names)


async def _compare(
    components: Components, summary: ThreadSummary, checkpoint_ns: str | None, rows: list[dict[str, Any]]
) -> NamespaceComparison:
    seen = await read_thread(components, Namespace(summary.thread_id, checkpoint_ns or ""))
    row = next((row for row in rows if row["checkpoint_ns"] == checkpoint_ns), None)
    agreement: Agreement = "unflushed" if summary.is_unflushed else await _agreement(components, seen)
    return NamespaceComparison(seen.namespace, seen, row, agreement)


async def _agreement(components: Components, seen: ThreadView) -> Agreement:
    """Compare the entry with Postgres. Changes nothing: an entry that no fence covers is only read."""
    if seen.is_fenced:
        return "being written"
    if seen.hit is None:
        return "not cached"
    try:
        entry = components.entries.decode(seen.namespace, seen.hit)
    except DamagedEntry:
        return "damaged"
    if entry is None:
        return "opaque"
    verdict, _ = await components.auditor.compare(seen.namespace, seen.hit, entry.record)
    agreements: dict[str, Agreement] = {"same": "agree", "differs": "differ", "changed": "being written"}
    return agreements[verdict]


async def _stale_seconds(components: Components, thread_id: str) -> float | None:
    if (await components.query("select to_regclass('checkpoint_cache_stale_threads') as t"))[0]["t"] is None:
        return None
    rows = await components.query(
        "select extract(epoch from now() - since)::float8 as seconds from checkpoint_cache_stale_threads"
        " where prefix = %s and thread_id = %s",
        (components.options.prefix, thread_id),
    )
    return rows[0]["seconds"] if rows else None


def _data(thread: ThreadComparison) -> dict[str, Any]:
    summary, redis = thread.summary, thread.redis
    return {
        "thread_id": summary.thread_id,
        "stale_seconds": summary.stale_seconds,
        "redis_error": summary.redis_error,
        "lease": summary.lease and {**asdict(summary.lease), "unflushed": summary.lease.unflushed},
        "generation": redis and redis.generation,
        "generation_is_current": redis and redis.generation_is_current,
        "fences": [asdict(fence) for fence in redis.fences] if redis else [],
        "namespaces": [_namespace_data(each) for each in thread.namespaces],
        "namespaces_not_shown": max(0, thread.names - NAMESPACES_MAX),
    }


def _namespace_data(compared: NamespaceComparison) -> dict[str, Any]:
    seen = compared.redis
    redis = seen and {
        "checkpoint_id": seen.checkpoint_id,
        "size_bytes": seen.size_bytes,
        "life_seconds": seen.life_seconds,
        "pending_writes": seen.pending_writes,
        "early_writes": seen.early_writes,
        "fill_lease": asdict(seen.fill_lease) if seen.fill_lease else None,
    }
    return {
        "checkpoint_ns": compared.namespace.checkpoint_ns,
        "agreement": compared.agreement,
        "redis": redis,
        "postgres": compared.postgres,
    }


def _lines(thread: ThreadComparison) -> list[str]:
    summary, redis = thread.summary, thread.redis
    lines = [f"thread {summary.thread_id!r}"]
    if summary.redis_error:
        lines.append(f"Redis cannot be used: {summary.redis_error}")
    if (seconds := summary.stale_seconds) is not None:
        lines.append(f"stale for {span(seconds)}: savers that can reach Redis invalidate it within a second")
    lines += _lease_lines(summary.lease)
    if redis is not None:
        is_old = redis.generation and not redis.generation_is_current
        lines.append(
            f"generation {redis.generation or '-'}{', of an earlier server epoch: invalid' if is_old else ''}"
        )
        lines += [_fence_line(fence) for fence in redis.fences] or ["no fences"]
    for each in thread.namespaces:
        lines += ["", *_namespace_lines(each)]
    if thread.names > NAMESPACES_MAX:
        lines += ["", f"... and {thread.names - NAMESPACES_MAX:,} more namespaces; --namespace shows one"]
    return lines


def _lease_lines(lease: LeaseView | None) -> list[str]:
    if lease is None:
        return ["no lease: Postgres holds all of it"]
    lines = [f"lease {lease.token}, held for {span(lease.seconds) or '-'}: a process writes behind"]
    if lease.known is None:
        return [*lines, f"Postgres has the journal up to entry {lease.position}: there may be unflushed writes"]
    if not lease.known:
        return [
            *lines,
            f"Postgres has the journal up to entry {lease.position}. Redis does not know this lease: any later "
            "writes only its process has",
        ]
    size_text = f"{lease.journal_entries:,} entries, {size(lease.journal_bytes)}"
    before = f"Postgres had the journal up to entry {lease.position} of {lease.last}; the journal held {size_text}"
    if lease.error:
        return [*lines, before, f"{lease.unflushed:,} writes are unflushed: {lease.error}"]
    if not lease.unflushed:
        return [*lines, f"{before}: no writes were unflushed"]
    return [*lines, f"{before}: {lease.unflushed:,} writes were unflushed, and are flushed now"]


def _fence_line(fence: FenceView) -> str:
    scope = "the whole thread" if fence.namespace is None else f"namespace {fence.namespace!r}"
    left = fence.seconds_left
    deadline = f"expires in {span(left)}" if left > 0 else f"expired {span(-left)} ago"
    return f"fence over {scope}, owner {fence.owner}, {deadline}"


def _namespace_lines(compared: NamespaceComparison) -> list[str]:
    seen, row = compared.redis, compared.postgres or {}
    entry = seen if seen and seen.hit else None
    stored = sum(row.get(name) or 0 for name in ("checkpoint_bytes", "blob_bytes", "write_bytes"))
    early = f" + {entry.early_writes} early" if entry and entry.early_writes else ""
    rows: list[tuple[object, ...]] = [
        (f"namespace {compared.namespace.checkpoint_ns!r}", "Redis", "Postgres"),
        ("  latest checkpoint", entry and (entry.checkpoint_id or "none"), row.get("latest")),
        ("  pending writes", entry and f"{entry.pending_writes}{early}", row.get("pending")),
        ("  written at", None, row.get("ts")),
        ("  expires in", entry and span(entry.life_seconds), None),
        ("  checkpoints", None, row.get("checkpoints")),
        ("  size", entry and size(entry.size_bytes), size(stored) if row else None),
    ]
    if seen and seen.fill_lease:
        rows.append(("  fill lease", f"for {span(seen.fill_lease.seconds_left)} more", None))
    return [*table(rows), f"  => {compared.agreement}"]
