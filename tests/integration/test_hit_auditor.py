"""Hits that are compared with Postgres: what is wrong is found, and nothing that is right is taken for wrong."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base.id import uuid6

from langgraph_checkpoint_cached import CachedPostgresSaver, OverloadedError
from langgraph_checkpoint_cached.engine.hit_auditor import CHECKS_AT_ONCE_MAX
from langgraph_checkpoint_cached.records import Latest, Namespace, Record, Value, Write
from langgraph_checkpoint_cached.stores.postgres.processes import TABLE as PROCESSES
from langgraph_checkpoint_cached.stores.redis import entry_format
from langgraph_checkpoint_cached.stores.redis.keys import namespace_key
from langgraph_checkpoint_cached.stores.redis.positions import LeasePosition
from tests.support.agreement import PATIENT_SECONDS, Tiers, eventually, new_checkpoint, on_thread
from tests.support.conversations import Conversation, open_saver
from tests.support.inspect import background_tasks, inspect
from tests.support.proxy import Proxy

pytestmark = pytest.mark.integration

THREADS, WORKERS, OPERATIONS = 3, 6, 300


@pytest.fixture
async def checking(tiers: Tiers) -> AsyncIterator[CachedPostgresSaver]:
    async with checking_saver(tiers) as saver:
        yield saver


@asynccontextmanager
async def checking_saver(tiers: Tiers, fraction: float = 1) -> AsyncIterator[CachedPostgresSaver]:
    saver = CachedPostgresSaver(
        tiers.redis, tiers.upstream, prefix=tiers.prefix, redis_timeout=PATIENT_SECONDS, check_hits=fraction
    )
    yield saver
    if isinstance(held := inspect(saver).auditor_store.get(), Held):
        held.go.set()  # or a test that fails would wait for ever
    await saver.aclose()


async def checked(saver: CachedPostgresSaver) -> tuple[float, float]:
    """Checks and disagreements, once those under way are over."""
    await inspect(saver).auditor.drain()
    return saver.stats()["checks"], saver.stats()["disagreements"]


def forged_value(record: Record) -> Record:
    (value,) = record.values
    return dataclasses.replace(record, values=(Value(value.channel, "msgpack", b"\xa6forged"),))


def lost_write(record: Record) -> Record:
    return dataclasses.replace(record, writes=())


def one_write_too_many(record: Record) -> Record:
    more = Write(record.checkpoint_id, "other task", 0, "messages", "msgpack", b"\x01", "")
    return dataclasses.replace(record, writes=(*record.writes, more))


def other_metadata(record: Record) -> Record:
    return dataclasses.replace(record, metadata_json=b'{"step": 7}')


def other_parent(record: Record) -> Record:
    return dataclasses.replace(record, parent_id=str(uuid6()))


def other_checkpoint(record: Record) -> Record:
    other = str(uuid6())
    writes = tuple(write._replace(checkpoint_id=other) for write in record.writes)
    return dataclasses.replace(record, checkpoint_id=other, writes=writes)


def other_inline_value(record: Record) -> Record:
    return dataclasses.replace(record, checkpoint_json=record.checkpoint_json.replace(b'"ts"', b'"was_ts"', 1))


def nothing(record: Record) -> None:
    return None


@pytest.mark.parametrize(
    "forge",
    [
        forged_value,
        lost_write,
        one_write_too_many,
        other_metadata,
        other_parent,
        other_checkpoint,
        other_inline_value,
        nothing,
    ],
)
async def test_wrong_entry_is_counted_logged_and_dropped(
    tiers: Tiers,
    checking: CachedPostgresSaver,
    forge: Callable[[Record], Record | None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    conversation = Conversation(tiers.saver)
    await conversation.turns(2)
    await conversation.check(checking)
    assert await checked(checking) == (1, 0)

    key, namespace = namespace_key(tiers.prefix, Namespace("t")), Namespace("t")
    record = (await inspect(checking).store.latest(namespace)).record
    assert record is not None
    fields = entry_format.entry_fields(namespace, Latest(forge(record)))
    generation = await tiers.redis.hget(key, "g")
    await tiers.redis.delete(key)
    await tiers.redis.hset(key, mapping={"g": generation, **dict(zip(fields[::2], fields[1::2], strict=True))})

    with caplog.at_level(logging.ERROR, "langgraph_checkpoint_cached"):
        wrong = await checking.aget_tuple(conversation.config)
        assert await checked(checking) == (2, 1)
    assert wrong != await tiers.upstream.aget_tuple(conversation.config)
    (line,) = [r.getMessage() for r in caplog.records if r.name == "langgraph_checkpoint_cached"]
    assert "'t'" in line
    assert record.checkpoint_id in line
    assert "xxx" not in line
    assert "forged" not in line
    assert not await tiers.redis.exists(key)
    await conversation.check(checking, tiers.saver)
    await conversation.check(checking)
    assert await checked(checking) == (3, 1)


async def test_what_was_written_past_the_package_is_found(tiers: Tiers, checking: CachedPostgresSaver) -> None:
    conversation = Conversation(tiers.saver)
    await conversation.turns(1)
    conversation.saver = tiers.upstream  # type: ignore[assignment]
    await conversation.turn()
    await checking.aget_tuple(conversation.config)
    assert await checked(checking) == (1, 1)
    await conversation.check(checking)


async def test_an_empty_namespace_is_checked_too(tiers: Tiers, checking: CachedPostgresSaver) -> None:
    empty: Any = on_thread("t", checkpoint_ns="sub")
    assert await checking.aget_tuple(on_thread("t")) is None  # the thread has nothing
    assert await checking.aget_tuple(empty) is None
    assert await checking.aget_tuple(empty) is None
    assert checking.stats()["hits"] == 2
    assert (await checked(checking))[1] == 0
    assert checking.stats()["checks"] > 0
    await tiers.upstream.aput(empty, new_checkpoint(), {}, {})
    assert await checking.aget_tuple(empty) is None
    assert (await checked(checking))[1] == 1
    assert await checking.aget_tuple(empty) is not None


@pytest.mark.parametrize("fraction", [0, 1])
async def test_only_so_many_hits_are_checked_as_was_said(tiers: Tiers, fraction: int) -> None:
    async with checking_saver(tiers, fraction) as saver:
        conversation = Conversation(saver)
        await conversation.turn()
        for _ in range(4):
            await conversation.check()
            await checked(saver)
        assert saver.stats()["hits"] == 3
        assert await checked(saver) == (3 * fraction, 0)


# -- what is right is not taken for wrong ----------------------------------------------------------------------


class Held:
    """Postgres' answers to a saver's checks, held back until they are let go."""

    def __init__(self, saver: CachedPostgresSaver) -> None:
        self.store = inspect(saver).auditor_store.get()
        self.asked: list[Namespace] = []
        self.go = asyncio.Event()
        self.error: Exception | None = None
        inspect(saver).auditor_store.set(self)

    async def latest(self, namespace: Namespace, position: LeasePosition | None) -> Latest:
        found = await self.store.latest(namespace, position)
        self.asked.append(namespace)
        await self.go.wait()
        if self.error:
            raise self.error
        return found

    async def until_asked(self, times: int) -> None:
        async def asked() -> bool:
            return len(self.asked) >= times

        await eventually(asked)


@pytest.mark.parametrize("what", ["put", "put_writes", "delete", "discard"])
async def test_audit_reports_nothing_if_thread_changed_meanwhile(
    tiers: Tiers, checking: CachedPostgresSaver, what: str
) -> None:
    conversation = Conversation(tiers.saver)
    await conversation.turns(2)
    held = Held(checking)
    await conversation.check(checking)
    await held.until_asked(1)
    if what == "put":
        await conversation.turn()
    elif what == "put_writes":
        await tiers.saver.aput_writes(conversation.latest, [("messages", 9)], "another task")
    elif what == "delete":
        await tiers.saver.adelete_thread("t")
    else:
        await tiers.redis.delete(namespace_key(tiers.prefix, Namespace("t")))
    held.go.set()
    assert await checked(checking) == (0, 0)


async def test_a_check_says_nothing_while_a_write_is_under_way(
    tiers: Tiers, checking: CachedPostgresSaver
) -> None:
    conversation = Conversation(tiers.saver)
    await conversation.turns(2)
    await tiers.upstream.aput_writes(conversation.latest, [("messages", 9)], "a task whose COMMIT is on its way")
    held = Held(checking)
    await checking.aget_tuple(conversation.config)
    await held.until_asked(1)
    await inspect(tiers.saver).begin(Namespace("t"), "token")
    held.go.set()
    assert await checked(checking) == (0, 0)


async def test_write_of_process_without_redis_is_no_disagreement(
    migrated_database_url: str, redis_url: str, redis_prefix: str, proxies: Callable[[str], Proxy]
) -> None:
    """Without the table of processes a write does not wait until the others have heard of it."""
    proxy = proxies(redis_url)
    with psycopg.connect(migrated_database_url, autocommit=True) as conn:
        conn.execute(f"drop table {PROCESSES}")
    async with (
        open_saver(migrated_database_url, proxy.url, prefix=redis_prefix) as writer,
        open_saver(
            migrated_database_url, redis_url, prefix=redis_prefix, redis_timeout=PATIENT_SECONDS, check_hits=1
        ) as reader,
    ):
        conversation = Conversation(writer)
        await conversation.turns(2)
        await conversation.check(reader)
        await checked(reader)
        inspect(reader).suspend()  # it does not happen to look just now
        proxy.stop()
        await conversation.turn()
        assert writer.stats()["degraded_writes"] == 2
        stale = await reader.aget_tuple(conversation.config)
        assert stale is not None
        assert stale.config != conversation.latest
        checks, disagreements = await checked(reader)
        assert (checks, disagreements) == (1, 0)
        await conversation.check(reader)


@pytest.mark.slow
async def test_audits_find_nothing_under_concurrent_load(tiers: Tiers) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)

    async def work(saver: CachedPostgresSaver) -> None:
        for _ in range(OPERATIONS):
            config: Any = on_thread(f"t{rng.randrange(THREADS)}", checkpoint_ns="")
            found = await saver.aget_tuple(config)
            chance = rng.random()
            if found is None or chance < 0.15:
                version = saver.get_next_version(None, None)
                values = {"messages": ["x"] * rng.randrange(9), "number": rng.random()}
                checkpoint = new_checkpoint(
                    id=str(uuid6()), channel_values=values, channel_versions=dict.fromkeys(values, version)
                )
                parent = config if found is None else found.config
                await saver.aput(parent, checkpoint, {"step": 1}, dict.fromkeys(values, version))  # type: ignore[arg-type]
            elif chance < 0.3:
                channel = rng.choice(["messages", "__resume__", "__error__"])
                await saver.aput_writes(found.config, [(channel, rng.random())], f"task {rng.randrange(3)}")
            elif chance < 0.32:
                await saver.adelete_thread(config["configurable"]["thread_id"])

    async with checking_saver(tiers) as one, checking_saver(tiers) as other:
        await asyncio.gather(*(work(saver) for saver in [one, other] * (WORKERS // 2)))
        totals = [await checked(saver) for saver in (one, other)]
        stats = [saver.stats() for saver in (one, other)]
        assert all(checks > 10 for checks, _ in totals), stats
        assert [disagreements for _, disagreements in totals] == [0, 0], stats


# -- callers notice nothing ------------------------------------------------------------------------------------


async def test_audits_are_bounded_and_reads_do_not_wait(tiers: Tiers, checking: CachedPostgresSaver) -> None:
    conversation = Conversation(tiers.saver)
    await conversation.turns(2)
    held = Held(checking)
    for _ in range(10):
        await conversation.check(checking)
    await held.until_asked(CHECKS_AT_ONCE_MAX)
    await asyncio.gather(*(conversation.check(checking) for _ in range(20)))
    assert len(held.asked) == CHECKS_AT_ONCE_MAX == len(background_tasks(inspect(checking).auditor))
    assert checking.stats()["hits"] == 30
    held.go.set()
    assert await checked(checking) == (CHECKS_AT_ONCE_MAX, 0)
    await conversation.check(checking)
    assert await checked(checking) == (CHECKS_AT_ONCE_MAX + 1, 0)


@pytest.mark.parametrize("error", [psycopg.OperationalError("gone"), OverloadedError("too many")])
async def test_a_check_that_fails_says_nothing(
    tiers: Tiers, checking: CachedPostgresSaver, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    conversation = Conversation(tiers.saver)
    await conversation.turns(2)
    held = Held(checking)
    held.error = error
    held.go.set()
    await conversation.check(checking)
    assert await checked(checking) == (0, 0)
    assert held.asked
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
