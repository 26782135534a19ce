"""Command `verify`: compares entries in Redis with Postgres, while writers go on."""

from __future__ import annotations

import argparse
import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

from langgraph_checkpoint_cached.cli.cached_namespaces import CachedNamespaces
from langgraph_checkpoint_cached.cli.components import Components
from langgraph_checkpoint_cached.cli.connections import ConnectionOptions
from langgraph_checkpoint_cached.cli.output import Output, Progress
from langgraph_checkpoint_cached.errors import ArgumentError
from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.stores.redis.entries import FillLease, Hit, MissReason
from langgraph_checkpoint_cached.stores.redis.entry_format import DamagedEntry
from langgraph_checkpoint_cached.stores.redis.fields import CHECKPOINT_ID
from langgraph_checkpoint_cached.utils.concurrency import for_each, iterate
from langgraph_checkpoint_cached.utils.tokens import new_token

NAME = "verify"
HELP = "compare entries in Redis with Postgres"
DESCRIPTION = """\
Compare what Redis holds of all threads, of a sample or of some, with Postgres. Graphs may go on: a difference
counts only if the entry is still the same after Postgres was read, and no write is in flight. Reads do not extend
the life of entries. Stale threads are invalidated first, as every saver does once a second.

"damaged" entries cannot be opened: they are broken, or signed with other keys than those of --signing-key-env.
Savers drop these when they read them. "busy" entries were written to so often that they could not be compared.

Exits with 1 if anything differs or is damaged, even if it was repaired.
"""
Verdict: TypeAlias = Literal["same", "differs", "damaged", "opaque", "busy", "gone"]
VERDICTS = ("same", "differs", "damaged", "opaque", "busy", "gone")
CONCURRENCY = 32
"""Concurrent comparisons. They share the saver's queries, of which it runs a few at a time."""
ATTEMPTS_MAX = 10
PAUSE_SECONDS = 0.05
DIFFERENCES_SHOWN_MAX = 100
"""Limit of the differences that are listed; all are counted."""
SAMPLE_MAX = 1_000_000


@dataclass(frozen=True)
class Difference:
    """An entry that differs from Postgres, or is damaged. Of each it has the checkpoint's id."""

    thread_id: str
    checkpoint_ns: str
    verdict: Verdict
    in_redis: str | None
    in_postgres: str | None
    repaired: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("thread", nargs="*", metavar="THREAD", help="only these threads")
    parser.add_argument("--sample", metavar="N", type=int, help="only N namespaces, drawn at random")
    parser.add_argument("--repair", action="store_true", help="drop entries that differ")


async def run(options: argparse.Namespace, out: Output) -> int:
    """Return 1 if anything differs or is damaged."""
    if options.sample is not None and (options.thread or not 0 < options.sample <= SAMPLE_MAX):
        raise ArgumentError(f"--sample takes a number from 1 to {SAMPLE_MAX}, and no threads beside it")
    async with Components.open(ConnectionOptions.from_options(options)) as components:
        cached = CachedNamespaces(components, options.thread or None)
        namespaces = cached.scan()
        if options.sample is not None:
            namespaces = iterate(await _draw_sample(namespaces, options.sample))
        verification = Verification(components, repair=options.repair)
        with out.progress("compared", options.sample) as progress:
            await for_each(namespaces, lambda n: verification.check(n, progress), CONCURRENCY)
    counts: dict[str, int] = {name: verification.counts[name] for name in VERDICTS}
    counts["unnamed"] = cached.unnamed
    differences = verification.differences
    lines = [_line(each) for each in differences]
    if (more := counts["differs"] + counts["damaged"] - len(differences)) > 0:
        lines.append(f"... and {more:,} more")
    lines.append(", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "nothing is cached")
    out.report({"counts": counts, "findings": [asdict(each) for each in differences]}, lines)
    return 1 if counts["differs"] or counts["damaged"] else 0


class Verification:
    """Compare entries with Postgres, and count the verdicts.

    Args:
        components: Components of a saver whose reads do not extend the life of entries.
        repair: Whether entries that differ are dropped.
    """

    def __init__(self, components: Components, *, repair: bool = False) -> None:
        self._components, self._repair = components, repair
        self.counts: Counter[str] = Counter()
        self.differences: list[Difference] = []

    async def check(self, namespace: Namespace, progress: Progress | None = None) -> Verdict:
        """Compare one entry. Raises `RedisUnavailable`, `OverloadedError` and psycopg's errors."""
        for attempt in range(ATTEMPTS_MAX):
            verdict, in_redis, in_postgres = await self._compare(namespace)
            if verdict != "busy":
                break
            await asyncio.sleep(PAUSE_SECONDS * (attempt + random.random()))  # noqa: S311 - spreads them
        self.counts[verdict] += 1
        if verdict in ("differs", "damaged"):
            repaired = self._repair and verdict == "differs"
            if repaired:
                await self._components.entries.discard(namespace)
            if len(self.differences) < DIFFERENCES_SHOWN_MAX:
                place = (namespace.thread_id, namespace.checkpoint_ns)
                self.differences.append(Difference(*place, verdict, in_redis, in_postgres, repaired))
        if progress is not None:
            progress.add()
        return verdict

    async def _compare(self, namespace: Namespace) -> tuple[Verdict, str | None, str | None]:
        entries, record, hit = self._components.entries, None, None
        answer = await entries.read(namespace, fill_token := new_token())
        if isinstance(answer, FillLease):
            await entries.release_fill_lease(namespace, fill_token)
            return "gone", None, None
        if isinstance(answer, Hit):
            try:
                entry = entries.decode(namespace, answer)
            except DamagedEntry:
                return "damaged", answer.fields.get(CHECKPOINT_ID, b"").decode(errors="replace"), None
            if entry is None:
                return "opaque", None, None
            record, hit = entry.record, answer
        elif answer.reason is not MissReason.EMPTY:
            return "busy", None, None
        verdict, stored = await self._components.auditor.compare(namespace, hit, record)
        known: Verdict = "busy" if verdict == "changed" else verdict
        return known, record.checkpoint_id if record else None, stored.checkpoint_id if stored else None


async def _draw_sample(namespaces: AsyncIterator[Namespace], size: int) -> list[Namespace]:
    """Draw so many namespaces, each with the same chance. (Algorithm R: Vitter, 1985.)"""
    drawn: list[Namespace] = []
    number = 0
    async for namespace in namespaces:
        if len(drawn) < size:
            drawn.append(namespace)
        elif (place := random.randrange(number + 1)) < size:  # noqa: S311 - no secret
            drawn[place] = namespace
        number += 1
    return drawn


def _line(difference: Difference) -> str:
    where = f"thread {difference.thread_id!r}, namespace {difference.checkpoint_ns!r}"
    if difference.verdict == "damaged":
        return f"damaged: {where}: the entry of checkpoint {difference.in_redis or '-'} cannot be opened"
    repaired = "; dropped" if difference.repaired else ""
    ids = (difference.in_redis or "nothing", difference.in_postgres or "nothing")
    return f"differs: {where}: Redis {ids[0]}, Postgres {ids[1]}{repaired}"
