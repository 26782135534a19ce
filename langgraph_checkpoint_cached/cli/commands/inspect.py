"""The command `inspect`: what each tier holds of a thread, side by side."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

from langgraph_checkpoint_cached.cli.cached_threads import Cached
from langgraph_checkpoint_cached.cli.connections import Servers
from langgraph_checkpoint_cached.cli.lease_view import LeaseView, flush_lease, lease_row
from langgraph_checkpoint_cached.cli.output import Output, size, span, table
from langgraph_checkpoint_cached.cli.parts import Components, RedisUnavailable
from langgraph_checkpoint_cached.cli.thread_view import ThreadView, look
from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.stores.redis.entry_format import DamagedEntry

NAME = "inspect"
HELP = "what each tier holds of a thread, side by side"
DESCRIPTION = """\
Show what Redis and Postgres hold of a thread: checkpoints, sizes, ages, pending writes, fences and who holds
them, and whether the two agree. Nothing that is stored is decoded or shown, and nothing is changed; but where
somebody writes behind, Postgres follows first, and what is said of the lease is how it was before.

Exits with 1 if they differ, an entry is damaged, Postgres cannot follow, the thread exists nowhere, or Redis
cannot be reached.
"""
SentinelQuorum: TypeAlias = Literal[
    "agree", "differ", "damaged", "not cached", "being written", "opaque", "unflushed", "unknown"
]
NAMESPACES_MAX = 100
"""How many are shown, those with the newest checkpoints."""
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
class About:
    """What is known of the thread itself."""

    thread_id: str
    lease: LeaseView | None
    suspect_seconds: float | None
    redis_error: str | None

    @property
    def is_behind(self) -> bool:
        """Whether Postgres could not follow."""
        return self.lease is not None and (not self.lease.known or self.lease.error is not None)


@dataclass(frozen=True)
class Inspected:
    """A namespace in both tiers."""

    namespace: Namespace
    redis: ThreadView | None
    postgres: dict[str, Any] | None
    agreement: SentinelQuorum


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its own arguments."""
    parser.add_argument("thread", metavar="THREAD")
    parser.add_argument("--namespace", metavar="NS", help='only this namespace; "" is the root graph')


async def run(options: argparse.Namespace, out: Output) -> int:
    """Returns 1 if the tiers differ, or nothing is there."""
    thread_id: str = options.thread
    async with Components.opened(Servers.of(options)) as parts:
        lease, error = None, None
        try:
            lease = await flush_lease(parts, thread_id)
        except RedisUnavailable as exc:
            error = str(exc)
            lease = await lease_row(parts, thread_id)
        rows = await parts.query(IN_POSTGRES_SQL, {"thread": thread_id})
        about = About(thread_id, lease, await _stale_thread_seconds(parts, thread_id), error)
        try:
            names = [options.namespace] if options.namespace is not None else await _names(parts, thread_id, rows)
            found = [await _inspect(parts, about, name, rows) for name in names[:NAMESPACES_MAX]]
        except RedisUnavailable as exc:
            about = replace(about, redis_error=str(exc))
            found = [
                Inspected(Namespace(thread_id, row["checkpoint_ns"]), None, dict(row), "unknown")
                for row in rows[:NAMESPACES_MAX]
                if options.namespace in (None, row["checkpoint_ns"])
            ]
            names = [row["checkpoint_ns"] for row in rows]
    found = [
        each for each in found if each.postgres or (each.redis and (each.redis.hit or each.redis.fill_token))
    ] or found[:1]
    exists = any(each.postgres or (each.redis and each.redis.hit) for each in found) or about.lease is not None
    lines = _lines(about, found, len(names)) if exists else [f"thread {thread_id!r} exists nowhere"]
    out.report(_data(about, found, len(names)), lines)
    wrong = any(each.agreement in ("differ", "damaged", "unflushed") for each in found)
    return 1 if about.redis_error or not exists or wrong else 0


async def _names(parts: Components, thread_id: str, rows: list[dict[str, Any]]) -> list[str]:
    """Namespaces that either tier has, the root first."""
    names = dict.fromkeys(["", *(row["checkpoint_ns"] for row in rows)])
    async for namespace in Cached(parts, [thread_id]).namespaces():
        names.setdefault(namespace.checkpoint_ns)
    return list(names)


async def _inspect(parts: Components, about: About, checkpoint_ns: str, rows: list[dict[str, Any]]) -> Inspected:
    seen = await look(parts, Namespace(about.thread_id, checkpoint_ns))
    row = next((dict(row) for row in rows if row["checkpoint_ns"] == checkpoint_ns), None)
    return Inspected(seen.namespace, seen, row, "unflushed" if about.is_behind else await _agreement(parts, seen))


async def _agreement(parts: Components, seen: ThreadView) -> SentinelQuorum:
    """Whether the entry is what Postgres holds. Where there is one without fences, comparing changes nothing."""
    if seen.fenced:
        return "being written"
    if seen.hit is None:
        return "not cached"
    try:
        entry = parts.entries.decode(seen.namespace, seen.hit)
    except DamagedEntry:
        return "damaged"
    if entry is None:
        return "opaque"
    verdict, _ = await parts.checker.compare(seen.namespace, seen.hit, entry.record)
    agreements: dict[str, SentinelQuorum] = {"same": "agree", "differs": "differ", "changed": "being written"}
    return agreements[verdict]


async def _stale_thread_seconds(parts: Components, thread_id: str) -> float | None:
    """For how long the thread has been a stale thread, or None."""
    if (await parts.query("select to_regclass('checkpoint_cache_stale_threads') as t"))[0]["t"] is None:
        return None
    rows = await parts.query(
        "select extract(epoch from now() - since)::float8 as seconds from checkpoint_cache_stale_threads"
        " where prefix = %s and thread_id = %s",
        (parts.servers.prefix, thread_id),
    )
    return rows[0]["seconds"] if rows else None


def _data(about: About, found: list[Inspected], names: int) -> dict[str, Any]:
    thread = next((each.redis for each in found if each.redis), None)
    return {
        "thread_id": about.thread_id,
        "suspect_seconds": about.suspect_seconds,
        "redis_error": about.redis_error,
        "lease": about.lease and {**asdict(about.lease), "ahead": about.lease.ahead},
        "generation": thread and thread.generation,
        "generation_stands": thread and thread.generation_stands,
        "fences": [asdict(fence) for fence in thread.fences] if thread else [],
        "namespaces": [_namespace_data(each) for each in found],
        "namespaces_not_shown": max(0, names - NAMESPACES_MAX),
    }


def _namespace_data(each: Inspected) -> dict[str, Any]:
    seen = each.redis
    redis = seen and {
        "checkpoint_id": seen.checkpoint_id,
        "size_bytes": seen.size_bytes,
        "life_seconds": seen.life_seconds,
        "pending_writes": seen.pending_writes,
        "early_writes": seen.early_writes,
        "fill_token": asdict(seen.fill_token) if seen.fill_token else None,
    }
    return {
        "checkpoint_ns": each.namespace.checkpoint_ns,
        "agreement": each.agreement,
        "redis": redis,
        "postgres": each.postgres,
    }


def _lines(about: About, found: list[Inspected], names: int) -> list[str]:
    thread = next((each.redis for each in found if each.redis), None)
    lines = [f"thread {about.thread_id!r}"]
    if about.redis_error:
        lines.append(f"Redis cannot be used: {about.redis_error}")
    if (seconds := about.suspect_seconds) is not None:
        lines.append(
            f"it is stale since {span(seconds)}: savers invalidate what Redis holds of it within a second"
        )
    lines += ["no lease: Postgres holds all of it"] if about.lease is None else _lease_lines(about.lease)
    if thread is not None:
        active = (
            ""
            if thread.generation_stands or not thread.generation
            else ", of another run of the server: invalidate"
        )
        lines.append(f"generation {thread.generation or '-'}{active}")
        lines += [_fence_line(fence.namespace, fence.owner, fence.seconds_left) for fence in thread.fences] or [
            "no fences"
        ]
    for each in found:
        lines += ["", *_namespace_lines(each)]
    if names > NAMESPACES_MAX:
        lines += ["", f"... and {names - NAMESPACES_MAX:,} more namespaces; --namespace shows one"]
    return lines


def _lease_lines(lease: LeaseView) -> list[str]:
    lines = [f"lease {lease.token}, for {span(lease.seconds) or '-'}: somebody writes behind"]
    if lease.known is None:
        return [*lines, f"Postgres is at entry {lease.position} of its journal: Redis may be ahead"]
    if not lease.known:
        return [
            *lines,
            f"Postgres is at entry {lease.position} of its journal. Redis does not know this lease: what there "
            "was more, only its process has",
        ]
    journal = f"{lease.journal_entries:,} entries, {size(lease.journal_bytes)}"
    was = f"Postgres was at entry {lease.position} of {lease.last}; the journal had {journal}"
    if lease.error:
        return [*lines, was, f"Redis is ahead by {lease.ahead:,} writes: {lease.error}"]
    if not lease.ahead:
        return [*lines, f"{was}: neither tier was ahead"]
    return [*lines, f"{was}: Redis was ahead by {lease.ahead:,} writes, and Postgres has followed"]


def _fence_line(namespace: str | None, owner: str, seconds_left: float) -> str:
    over = "the whole thread" if namespace is None else f"namespace {namespace!r}"
    when = f"for {span(seconds_left)} more" if seconds_left > 0 else f"past its deadline by {span(-seconds_left)}"
    return f"fence over {over}, of process {owner}, {when}"


def _namespace_lines(each: Inspected) -> list[str]:
    seen, row = each.redis, each.postgres or {}
    entry = seen if seen and seen.hit else None
    stored = sum(row.get(name) or 0 for name in ("checkpoint_bytes", "blob_bytes", "write_bytes"))
    early = f" + {entry.early_writes} early" if entry and entry.early_writes else ""
    rows: list[tuple[object, ...]] = [
        (f"namespace {each.namespace.checkpoint_ns!r}", "Redis", "Postgres"),
        ("  latest checkpoint", entry and (entry.checkpoint_id or "none"), row.get("latest")),
        ("  pending writes", entry and f"{entry.pending_writes}{early}", row.get("pending")),
        ("  written at", None, row.get("ts")),
        ("  life left", entry and span(entry.life_seconds), None),
        ("  checkpoints", None, row.get("checkpoints")),
        ("  size", entry and size(entry.size_bytes), size(stored) if row else None),
    ]
    if seen and seen.fill_token:
        rows.append(("  being loaded", f"for {span(seen.fill_token.seconds_left)} more", None))
    return [*table(rows), f"  => {each.agreement}"]
