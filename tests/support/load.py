"""Conversations that several savers, as of several processes, take turns in, and what no read of theirs may be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, MutableSequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from langgraph.checkpoint.base import Checkpoint, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.stores.redis.entries import FillLease, Hit
from langgraph_checkpoint_cached.stores.redis.health import RedisUnavailable
from tests.support.inspect import inspect


@dataclass
class Report:
    """Experience of one saver, or of all of them."""

    turns: int = 0
    reads: int = 0
    violations: list[str] = field(default_factory=list)
    """Reads that were older than a write that had returned before they began, or newer than any write."""
    errors: list[str] = field(default_factory=list)
    """Observations of callers."""
    longest_without_hits_seconds: float = 0.0
    stats: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of_all(cls, reports: list[Report]) -> Report:
        total = cls()
        for report in reports:
            total.turns += report.turns
            total.reads += report.reads
            total.violations += report.violations
            total.errors += report.errors
            total.longest_without_hits_seconds = max(
                total.longest_without_hits_seconds, report.longest_without_hits_seconds
            )
            for name, count in report.stats.items():
                total.stats[name] = total.stats.get(name, 0) + count
        return total


class Player:
    """One saver's part. Of each conversation, turn number n is the player's whose number is n modulo all of them;
    meanwhile the others read.

    Args:
        saver: Its own, with clients of its own.
        number, of: Which player this is, and of how many.
        lengths: How many turns of each conversation have returned. Shared by all players.
        ids: The conversations' threads.
    """

    def __init__(
        self, saver: CachedPostgresSaver, number: int, of: int, lengths: MutableSequence[int], ids: list[str]
    ) -> None:
        self.saver, self.number, self.of, self.lengths, self.ids = saver, number, of, lengths, ids
        self.report = Report()
        self._last_hit, self._hits = time.monotonic(), 0

    async def play(self, go_on: Callable[[], bool]) -> Report:
        """Plays all conversations at once until it may not go on."""
        self._last_hit = time.monotonic()
        await asyncio.gather(*(self._play(each, go_on) for each in range(len(self.ids))))
        self._look_at_hits()
        self.report.stats = self.saver.stats()
        return self.report

    async def _play(self, which: int, go_on: Callable[[], bool]) -> None:
        while go_on():
            mine = self.lengths[which] % self.of == self.number
            try:
                found = await self._read(which)
                if mine:
                    await self._turn(which, found)
            except Exception as exc:  # noqa: BLE001 - it is what this counts
                self.report.errors.append(f"{self.ids[which]}: {exc!r}")
            await asyncio.sleep(0.001)

    async def _read(self, which: int) -> Any:
        floor = self.lengths[which]
        found = await self.saver.aget_tuple(self._config(which))
        length = len(found.checkpoint["channel_values"]["messages"]) if found else 0
        if not floor <= length <= self.lengths[which] + 1:
            self.report.violations.append(f"{self.ids[which]}: {length} after {floor} ({time.monotonic():.3f})")
        self.report.reads += 1
        self._look_at_hits()
        return found

    async def _turn(self, which: int, found: Any) -> None:
        length = self.lengths[which] + 1
        version = self.saver.get_next_version(found and found.checkpoint["channel_versions"]["messages"], None)
        checkpoint: Checkpoint = {
            **empty_checkpoint(),
            "v": 4,
            "id": str(uuid6()),
            "channel_values": {"messages": ["x" * 50] * length},
            "channel_versions": {"messages": version},
        }
        parent = found.config if found else self._config(which)
        config = await self.saver.aput(parent, checkpoint, {}, {"messages": version})
        await self.saver.aput_writes(config, [("messages", length)], "task")
        self.lengths[which] = length
        self.report.turns += 1

    def _look_at_hits(self) -> None:
        now, hits = time.monotonic(), self.saver.stats()["hits"]
        self.report.longest_without_hits_seconds = max(
            self.report.longest_without_hits_seconds, now - self._last_hit
        )
        if hits > self._hits:
            self._hits, self._last_hit = hits, now

    def _config(self, which: int) -> Any:
        return {"configurable": {"thread_id": self.ids[which], "checkpoint_ns": ""}}


SAVERS = 3
BACK_WITHIN_SECONDS = 20


@asynccontextmanager
async def playing(
    postgres_url: str, redis_url: str, prefix: str, ids: list[str], *, writers: int = SAVERS, **options: Any
) -> AsyncIterator[tuple[list[Player], Report]]:
    """Several savers take turns in conversations during the block, which begins and ends with all of them being
    served from Redis; with fewer `writers`, the others only read. The report is complete after the block.
    """
    async with AsyncExitStack() as stack:
        lengths, on, report = [0] * len(ids), True, Report()
        players = []
        for number in range(SAVERS):
            opening = CachedPostgresSaver.from_conn_string(postgres_url, redis_url, prefix=prefix, **options)
            players.append(Player(await stack.enter_async_context(opening), number, writers, lengths, ids))
        games = asyncio.gather(*(player.play(lambda: on) for player in players))
        try:
            await all_served(players)
            yield players, report
            await all_served(players)
        finally:
            on = False
            vars(report).update(vars(Report.of_all(await games)))
            print(
                report.turns, "turns,", report.reads, "reads,", report.longest_without_hits_seconds, report.stats
            )


async def all_served(players: list[Player]) -> None:
    """Waits until every player was served from Redis: all conversations, but for those that have a fence whose
    write was sent to a primary that is one no more. These wait for its deadline.
    """
    await asyncio.wait_for(asyncio.gather(*map(_is_served, players)), BACK_WITHIN_SECONDS)


async def _is_served(player: Player) -> None:
    answers = [await _answer(player.saver, Namespace(thread_id)) for thread_id in player.ids]
    while not set(answers) <= {"hit", "fenced"}:
        await asyncio.sleep(0.01)
        for which, thread_id in enumerate(player.ids):
            if answers[which] != "hit":
                answers[which] = await _answer(player.saver, Namespace(thread_id))


async def _answer(saver: CachedPostgresSaver, namespace: Namespace) -> str:
    entries = inspect(saver).entries
    try:
        answer = await entries.read(namespace, "test")
        if isinstance(answer, FillLease):
            await entries.release_fill_lease(namespace, "test")
    except RedisUnavailable:
        return "unavailable"
    return (
        "hit"
        if isinstance(answer, Hit)
        else "load"
        if isinstance(answer, FillLease)
        else answer.reason.name.lower()
    )
