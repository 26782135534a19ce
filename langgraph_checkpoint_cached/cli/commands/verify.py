"""The command `verify`: compares what Redis holds with Postgres, while writers go on."""

from __future__ import annotations

import argparse
import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

from langgraph_checkpoint_cached.cli.cached_threads import Cached
from langgraph_checkpoint_cached.cli.connections import Servers
from langgraph_checkpoint_cached.cli.output import Output, Progress
from langgraph_checkpoint_cached.cli.parts import Components
from langgraph_checkpoint_cached.errors import ArgumentError
from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.stores.redis.entries import Hit, Load
from langgraph_checkpoint_cached.stores.redis.entry_format import DamagedEntry
from langgraph_checkpoint_cached.utils.concurrency import for_each, iterate
from langgraph_checkpoint_cached.utils.tokens import new_token

NAME = "verify"
HELP = "compare what Redis holds with Postgres"
DESCRIPTION = """\
Compare what Redis holds of all threads, of a sample or of some, with Postgres. Graphs may go on: a difference
counts only if the entry is still the same after Postgres was read, and nobody is writing. Reads do not extend
the life of entries. What Redis was not told of (stale threads) is invalidated, as every saver does once a second.

"damaged" is what cannot be opened: broken, or signed with other keys than those of --signing-key-env. A saver
drops these when it reads them. "busy" was written to again and again, so that nobody can tell.

Exits with 1 if anything differs or is damaged, also if it was repaired.
"""
Verdict: TypeAlias = Literal["same", "differs", "damaged", "opaque", "busy", "gone"]
AT_ONCE = 32
"""So many share queries, of which the saver has a few under way at once."""
ATTEMPTS_MAX = 10
PAUSE_SECONDS = 0.05
SHOWN_MAX = 100
"""How many findings are listed; all are counted."""
SAMPLE_MAX = 1_000_000


@dataclass(frozen=True)
class Difference:
    """An entry that is not what Postgres holds, or not readable."""

    thread_id: str
    checkpoint_ns: str
    verdict: Verdict
    in_redis: str | None
    in_postgres: str | None
    repaired: bool = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its own arguments."""
    parser.add_argument("thread", nargs="*", metavar="THREAD", help="only these threads")
    parser.add_argument("--sample", metavar="N", type=int, help="only N namespaces, drawn at random")
    parser.add_argument("--repair", action="store_true", help="drop entries that differ")


async def run(options: argparse.Namespace, out: Output) -> int:
    """Returns 1 if anything differs or is damaged."""
    if options.sample is not None and (options.thread or not 0 < options.sample <= SAMPLE_MAX):
        raise ArgumentError(f"--sample takes a number from 1 to {SAMPLE_MAX}, and no threads beside it")
    async with Components.opened(Servers.of(options)) as parts:
        cached = Cached(parts, options.thread or None)
        namespaces = cached.namespaces()
        if options.sample is not None:
            namespaces = iterate(await _sample(namespaces, options.sample))
        verification = Verification(parts, repair=options.repair)
        with out.progress("compared", options.sample) as progress:
            await for_each(namespaces, lambda n: verification.look_at(n, progress), AT_ONCE)
    counts = {name: verification.counts[name] for name in ("same", "differs", "damaged", "opaque", "busy", "gone")}
    counts["unnamed"] = cached.unnamed
    found = [asdict(each) for each in verification.found]
    lines = [_line(each) for each in verification.found]
    if (more := counts["differs"] + counts["damaged"] - len(found)) > 0:
        lines.append(f"... and {more:,} more")
    lines.append(", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "nothing is cached")
    out.report({"counts": counts, "findings": found}, lines)
    return 1 if counts["differs"] or counts["damaged"] else 0


class Verification:
    """Compares entries, and counts what it finds.

    Args:
        parts: Of a saver, whose reads do not extend lives.
        repair: Whether entries that differ are dropped.
    """

    def __init__(self, parts: Components, *, repair: bool = False) -> None:
        self._parts, self._repair = parts, repair
        self.counts: Counter[str] = Counter()
        self.found: list[Difference] = []

    async def look_at(self, namespace: Namespace, progress: Progress | None = None) -> Verdict:
        """Compares one entry. Raises `RedisUnavailable`, `OverloadedError` and psycopg's errors."""
        for attempt in range(ATTEMPTS_MAX):
            verdict, in_redis, in_postgres = await self._compare(namespace)
            if verdict != "busy":
                break
            await asyncio.sleep(PAUSE_SECONDS * (attempt + random.random()))  # noqa: S311 - spreads them
        self.counts[verdict] += 1
        if verdict in ("differs", "damaged"):
            repaired = self._repair and verdict == "differs"
            if repaired:
                await self._parts.entries.discard(namespace)
            if len(self.found) < SHOWN_MAX:
                place = (namespace.thread_id, namespace.checkpoint_ns)
                self.found.append(Difference(*place, verdict, in_redis, in_postgres, repaired))
        if progress is not None:
            progress.add()
        return verdict

    async def _compare(self, namespace: Namespace) -> tuple[Verdict, str | None, str | None]:
        entries, record, hit = self._parts.entries, None, None
        answer = await entries.read(namespace, fill_token := new_token())
        if isinstance(answer, Load):
            await entries.release_fill_lease(namespace, fill_token)
            return "gone", None, None
        if isinstance(answer, Hit):
            try:
                entry = entries.decode(namespace, answer)
            except DamagedEntry:
                return "damaged", answer.fields.get(b"i", b"").decode(errors="replace"), None
            if entry is None:
                return "opaque", None, None
            record, hit = entry.record, answer
        elif answer.why != "empty":
            return "busy", None, None
        verdict, held = await self._parts.checker.compare(namespace, hit, record)
        known: Verdict = "busy" if verdict == "changed" else verdict
        return known, record.checkpoint_id if record else None, held.checkpoint_id if held else None


async def _sample(namespaces: AsyncIterator[Namespace], size: int) -> list[Namespace]:
    """So many of them, each with the same chance. (Algorithm R: Vitter, 1985.)"""
    drawn: list[Namespace] = []
    number = 0
    async for namespace in namespaces:
        if len(drawn) < size:
            drawn.append(namespace)
        elif (place := random.randrange(number + 1)) < size:  # noqa: S311 - no secret
            drawn[place] = namespace
        number += 1
    return drawn


def _line(found: Difference) -> str:
    where = f"thread {found.thread_id!r}, namespace {found.checkpoint_ns!r}"
    if found.verdict == "damaged":
        return f"damaged: {where}: the entry of checkpoint {found.in_redis or '-'} cannot be opened"
    repaired = "; dropped" if found.repaired else ""
    ids = (found.in_redis or "nothing", found.in_postgres or "nothing")
    return f"differs: {where}: Redis {ids[0]}, Postgres {ids[1]}{repaired}"
