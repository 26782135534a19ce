"""Leases whose holder is presumed dead, and what is left of them. On a clock of our own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from langgraph_checkpoint_cached.engine.ended_journals import LAG_SECONDS_MAX, EndedJournals
from langgraph_checkpoint_cached.engine.journal_replayer import ABANDONED_SECONDS, JournalReplayer
from langgraph_checkpoint_cached.errors import BehindError
from langgraph_checkpoint_cached.records import LeaseRow
from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.stores.redis.journal import Page
from tests.support.inspect import set_clock

ROW = LeaseRow("lost.1", 7)
STEP_SECONDS = 1.0


@dataclass
class Servers:
    """A Redis that has lost the journal of the one lease, and a Postgres that may be away."""

    rows: dict[str, LeaseRow] = field(default_factory=lambda: {"t": ROW})
    is_away: bool = False
    closed: list[tuple[str, str, int]] = field(default_factory=list)
    tidied: dict[str, str] = field(default_factory=dict)
    in_doubt: set[str] = field(default_factory=set)
    journals: dict[str, str] = field(default_factory=dict)
    now: float = 100.0

    @property
    def leases(self) -> Servers:
        return self

    async def idle_after(self, thread_id: str, seconds: float) -> dict[str, LeaseRow]:
        if self.is_away:
            raise psycopg.OperationalError("away")
        return {t: row for t, row in self.rows.items() if t > thread_id}

    async def find(self, thread_ids: Any) -> dict[str, LeaseRow]:
        return await self.idle_after("", 0)

    async def end(self, leases: Any) -> None:
        for thread_id in leases:
            self.rows.pop(thread_id, None)

    async def end_unconfirmed(self, leases: Any) -> set[str]:
        await asyncio.sleep(0)
        ended = self.rows.keys() & leases
        self.in_doubt |= set(leases)
        await self.end(leases)
        return ended

    async def newest(self, thread_ids: Any) -> dict[str, str]:
        return {thread_id: self.journals.get(thread_id, "") for thread_id in thread_ids}

    async def page(self, thread_id: str, token: str, after: int) -> Page:
        return Page(-1, [])

    async def close(self, thread_id: str, token: str, flushed: int, *, sure: bool = False) -> bool:
        self.closed.append((thread_id, token, flushed))
        return True

    async def clean_up(self, tokens: Any) -> None:
        self.tidied |= tokens

    def recover(self, replayer: JournalReplayer, seconds: float) -> None:
        """Do what a process does once a second."""

        async def recover() -> None:
            until = self.now + seconds
            while self.now < until:
                self.now += STEP_SECONDS
                try:
                    await replayer.recover()
                except psycopg.Error:
                    assert self.is_away

        asyncio.run(recover())


@pytest.fixture
def servers() -> Servers:
    return Servers()


@dataclass
class NoLeases:
    """Leases of a process that holds none."""

    ended_journals: EndedJournals

    async def flush_on_request(self, thread_id: str, *, lost: bool = False) -> None:
        return None


class NoOutage:
    """Reopener of a Redis that is always usable."""

    def reopen(self) -> None:
        return None


@pytest.fixture
def runtime(servers: Servers) -> Iterator[Runtime]:
    loop = asyncio.new_event_loop()
    yield Runtime(loop, clock=lambda: servers.now)
    loop.close()


@pytest.fixture
def ended_journals(servers: Servers, runtime: Runtime) -> EndedJournals:
    return EndedJournals(runtime, servers, servers)  # type: ignore[arg-type]


@pytest.fixture
def replayer(servers: Servers, runtime: Runtime, ended_journals: EndedJournals) -> JournalReplayer:
    return JournalReplayer(runtime, servers, servers, NoLeases(ended_journals), NoOutage())  # type: ignore[arg-type]


def test_unmoved_lease_lost_by_redis_is_ended(servers: Servers, replayer: JournalReplayer) -> None:
    servers.recover(replayer, ABANDONED_SECONDS)
    assert servers.rows
    servers.recover(replayer, 2 * STEP_SECONDS)
    assert not servers.rows


def test_a_lease_lost_under_many_reads_is_counted_once(
    servers: Servers, replayer: JournalReplayer, runtime: Runtime
) -> None:
    async def read() -> None:
        await asyncio.gather(*(replayer.flush("t") for _ in range(3)))

    servers.recover(replayer, ABANDONED_SECONDS)
    servers.now += 2 * STEP_SECONDS
    asyncio.run(read())
    assert runtime.stats.leases_lost == 1


def test_a_lost_lease_leaves_no_journal_in_redis(servers: Servers, replayer: JournalReplayer) -> None:
    servers.recover(replayer, ABANDONED_SECONDS + 2 * STEP_SECONDS)
    assert [closed[:2] for closed in servers.closed] == [("t", ROW.token)]
    assert servers.in_doubt == {"t"}, "this process may be gone before Redis has heard of it"
    servers.recover(replayer, LAG_SECONDS_MAX - 5 * STEP_SECONDS)
    assert not servers.tidied
    servers.recover(replayer, 5 * STEP_SECONDS)
    assert servers.tidied == {"t": ROW.token}, "a failover may have brought it back"


def test_a_journal_goes_if_it_is_not_of_the_lease_that_there_is(
    servers: Servers, ended_journals: EndedJournals
) -> None:
    """The next lease had its row when the thread was a stale thread, and was never opened: the journal stayed."""
    servers.rows = {"of another": ROW, "its own": ROW, "empty": ROW}
    servers.journals = {"of another": "before.1", "its own": ROW.token, "no row": "before.2", "no row, empty": ""}
    asyncio.run(ended_journals.remove([*servers.rows, "no row", "no row, empty"]))
    assert servers.tidied == {"of another": "before.1", "no row": "before.2", "no row, empty": ""}


def test_no_holder_is_presumed_dead_while_postgres_is_away(servers: Servers, replayer: JournalReplayer) -> None:
    """A holder cannot flush on request then, nor at once when it is back: others may have it back before."""
    servers.recover(replayer, 2 * STEP_SECONDS)
    servers.is_away = True
    servers.recover(replayer, 60)
    servers.is_away = False
    servers.recover(replayer, ABANDONED_SECONDS - STEP_SECONDS)
    assert servers.rows
    servers.recover(replayer, 3 * STEP_SECONDS)
    assert not servers.rows


def test_waiting_replay_presumes_no_holder_dead_after_outage(servers: Servers, replayer: JournalReplayer) -> None:
    async def settle() -> None:
        set_clock(replayer, lambda: servers.now)
        servers.now += 60
        await replayer.flush("t")

    servers.recover(replayer, 2 * STEP_SECONDS)

    async def passing() -> None:
        waiting = asyncio.ensure_future(settle())
        for _ in range(5):
            await asyncio.sleep(0)
        assert servers.rows
        servers.now += ABANDONED_SECONDS * 10
        with pytest.raises(BehindError):
            await waiting

    asyncio.run(passing())
