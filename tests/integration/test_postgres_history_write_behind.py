"""Postgres loses commits while Redis holds writes that it has yet to get."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

from langgraph_checkpoint_cached import CachedPostgresSaver, LostHistoryError
from langgraph_checkpoint_cached.engine import held_leases
from langgraph_checkpoint_cached.stores.postgres import leases
from tests.support.agreement import eventually, new_checkpoint, on_thread
from tests.support.conversations import open_saver
from tests.support.inspect import inspect
from tests.support.rewinding import RewindingPostgres

pytestmark = pytest.mark.integration

CONFIG = on_thread("t", checkpoint_ns="")


@pytest.fixture
def postgres(monkeypatch: pytest.MonkeyPatch) -> Iterator[RewindingPostgres]:
    monkeypatch.setattr(held_leases, "LINGER_SECONDS", 60)
    monkeypatch.setattr(leases, "NEW_SECONDS", 0)
    with RewindingPostgres() as server:
        server.migrate()
        yield server


@pytest.fixture
async def saver(
    postgres: RewindingPostgres, redis_url: str, redis_prefix: str
) -> AsyncIterator[CachedPostgresSaver]:
    async with open_saver(
        postgres.url, redis_url, prefix=redis_prefix, redis_timeout=5, mode="write_behind"
    ) as saver:
        yield saver


class Run:
    """Run of a graph: each checkpoint builds on the one before, and brings only what has changed."""

    def __init__(self, saver: BaseCheckpointSaver[str]) -> None:
        self.saver, self._config = saver, CONFIG
        self._values: dict[str, list[str]] = {}
        self._versions: dict[str, Any] = {}
        self._version: Any = None

    async def put(self, **changed: list[str]) -> None:
        self._version = self.saver.get_next_version(self._version, None)
        new_versions = dict.fromkeys(changed, self._version)
        self._values |= changed
        self._versions |= new_versions
        checkpoint = {
            **new_checkpoint(),
            "channel_values": dict(self._values),
            "channel_versions": dict(self._versions),
        }
        self._config = await self.saver.aput(self._config, checkpoint, {}, new_versions)


async def until_flushed(saver: CachedPostgresSaver) -> None:
    async def is_flushed() -> bool:
        return saver.stats()["unflushed"] == 0

    await eventually(is_flushed)


async def until_known(saver: CachedPostgresSaver) -> None:
    """Wait until the process knows the identity of the Postgres that has been started again."""

    async def is_known() -> bool:
        return saver.stats()["postgres_changes"] > 0

    await eventually(is_known)


async def until_written_behind(saver: CachedPostgresSaver, run: Run, **values: list[str]) -> None:
    """Put until Redis alone acknowledges it: after a restart of Postgres the entry has to be loaded first."""

    async def put() -> bool:
        appends = saver.stats()["appends"]
        try:
            await saver.aget_tuple(CONFIG)
            await run.put(**values)
        except psycopg.OperationalError:
            return False
        return saver.stats()["appends"] > appends

    await eventually(put)
    await until_flushed(saver)


async def stored(postgres: RewindingPostgres) -> dict[str, list[str]]:
    async with AsyncPostgresSaver.from_conn_string(postgres.url) as upstream:
        found = await upstream.aget_tuple(CONFIG)
    assert found is not None
    assert found.checkpoint["channel_values"].keys() == found.checkpoint["channel_versions"].keys()
    return found.checkpoint["channel_values"]


async def test_journal_is_not_replayed_onto_lost_commits(
    postgres: RewindingPostgres, saver: CachedPostgresSaver
) -> None:
    """Postgres then had a checkpoint whose `profile` was gone for good."""
    run = Run(saver)
    await until_written_behind(saver, run, messages=["first"])
    postgres.save()
    await until_known(saver)
    await until_written_behind(saver, run, profile=["set"])
    postgres.kill()
    await run.put(messages=["last"])
    assert saver.stats()["unflushed"] == 1
    postgres.rewind()
    await until_flushed(saver)
    assert await stored(postgres) == {"messages": ["first"]}
    assert saver.stats()["leases_lost"] == 1
    with pytest.raises(LostHistoryError):
        await run.put(messages=["after"])
    found = await saver.aget_tuple(CONFIG)
    assert found is not None
    assert found.checkpoint["channel_values"] == {"messages": ["first"]}


async def test_journal_is_replayed_though_its_lease_was_lost(
    postgres: RewindingPostgres, saver: CachedPostgresSaver
) -> None:
    """Postgres had lost the lease's row alone, and what Redis had acknowledged was dropped in silence."""
    async with AsyncPostgresSaver.from_conn_string(postgres.url) as upstream:
        run = Run(upstream)
        await run.put(messages=["first"])
    postgres.save()
    await eventually(partial(is_served, saver))
    with inspect(saver).flushing_paused():
        run.saver = saver
        await run.put(messages=["last"])
        assert saver.stats()["unflushed"] == 1
        postgres.rewind()
    await until_flushed(saver)
    assert await stored(postgres) == {"messages": ["last"]}
    assert saver.stats()["leases_lost"] == 0


async def is_served(saver: CachedPostgresSaver) -> bool:
    hits = saver.stats()["hits"]
    try:
        await saver.aget_tuple(CONFIG)
    except psycopg.OperationalError:
        return False
    return saver.stats()["hits"] > hits
