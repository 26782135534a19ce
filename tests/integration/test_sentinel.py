"""A primary behind real Sentinels: hits through a URL and through a client, and nothing old when another server
takes its place. The tests share one service, and are in the order of what they do to it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from redis.asyncio.sentinel import Sentinel, SentinelManagedConnection

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.demo.embedded import LOCALHOST
from langgraph_checkpoint_cached.stores.redis.sentinel_quorum import AGREEMENT_SECONDS, NoQuorum
from langgraph_checkpoint_cached.stores.redis.transport import transport_for
from tests.support.agreement import PATIENT_SECONDS
from tests.support.conversations import Conversation, until_hit
from tests.support.inspect import connections_in_use
from tests.support.load import Player, all_served, playing
from tests.support.sentinel import SERVICE, Service

pytestmark = pytest.mark.integration

IDS = [f"t{number}" for number in range(12)]


class WithOwnSending(SentinelManagedConnection):
    """Connection that sends in its own way."""

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        await super().send_packed_command(*args, **options)


@pytest.mark.parametrize("kind", ["url", "client", "decoding client", "own connections"])
async def test_hits_come_from_the_primary(
    migrated_database_url: str, service: Service, prefix: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncExitStack() as stack:
        if kind == "url":
            opening = CachedPostgresSaver.from_conn_string(migrated_database_url, service.url, prefix=prefix)
            saver = await stack.enter_async_context(opening)
        else:
            sentinel = Sentinel([(LOCALHOST, each.port) for each in service.sentinels])
            for each in sentinel.sentinels:  # redis-py before 8 has no `Sentinel.aclose`
                stack.push_async_callback(each.aclose)
            own = {"connection_class": WithOwnSending} if kind == "own connections" else {}
            client = sentinel.master_for(SERVICE, decode_responses=kind == "decoding client", **own)
            await stack.enter_async_context(client)
            upstream = await stack.enter_async_context(AsyncPostgresSaver.from_conn_string(migrated_database_url))
            saver = CachedPostgresSaver(client, upstream, prefix=prefix, redis_timeout=PATIENT_SECONDS)
        await saver.setup()
        conversations = [Conversation(saver, thread_id) for thread_id in IDS]
        await asyncio.gather(*(conversation.turns(3) for conversation in conversations))
        await saver.adelete_thread(IDS[0])
        assert await saver.aget_tuple(conversations[0].config) is None
        assert (saver.stats()["redis_errors"], saver.stats()["hits"]) == (0, 2 * len(IDS))
        assert (
            caplog.text.count("lacks send_packed_command")
            == caplog.text.count("lacks")
            == (kind == "own connections")
        )
        assert list(service.clients[service.primary].scan_iter(match=f"{prefix}:*"))
        await saver.aclose()


@pytest.mark.parametrize("connection_class", [SentinelManagedConnection, WithOwnSending])
async def test_other_server_than_sentinels_agree_on_is_not_asked(
    service: Service, connection_class: type[SentinelManagedConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    sentinel = Sentinel([(LOCALHOST, each.port) for each in service.sentinels])
    async with AsyncExitStack() as stack:
        for each in sentinel.sentinels:
            stack.push_async_callback(each.aclose)
        client = await stack.enter_async_context(sentinel.master_for(SERVICE, connection_class=connection_class))
        transport = transport_for(client, PATIENT_SECONDS)
        await transport.probe("probe", 1000)

        async def elsewhere(name: str) -> tuple[str, int]:
            return LOCALHOST, 1

        for each in sentinel.sentinels:
            monkeypatch.setattr(each, "sentinel_get_master_addr_by_name", elsewhere)
        await asyncio.sleep(AGREEMENT_SECONDS)
        for _ in range(2):
            with pytest.raises(NoQuorum, match="another server"):
                await transport.probe("probe", 1000)
        assert not connections_in_use(client)


@pytest.mark.slow
async def test_without_most_of_the_sentinels_redis_is_left_alone(
    migrated_database_url: str, service: Service, prefix: str
) -> None:
    """No Sentinel says then whether the primary is one still."""
    async with CachedPostgresSaver.from_conn_string(migrated_database_url, service.url, prefix=prefix) as saver:
        conversation = Conversation(saver)
        await conversation.turns(2)
        service.sentinels[0].kill()
        await conversation.turns(2)
        assert saver.stats()["redis_errors"] == 0
        service.sentinels[1].kill()
        while saver.stats()["degraded_reads"] == 0:
            await conversation.turn()
            await conversation.check()
        for sentinel in service.sentinels[:2]:
            sentinel.start()
        await until_hit(conversation)


@pytest.mark.slow
async def test_a_former_primary_that_still_takes_writes_is_not_used(
    migrated_database_url: str, service: Service, prefix: str
) -> None:
    """After a failover the old primary, if it lives, is one for some ten seconds more, and here until all is done.
    A saver with connections to it and one that has come later have to meet at the new one."""
    await asyncio.to_thread(service.wait_until_well)
    async with playing(migrated_database_url, service.url, prefix, IDS) as (players, report):
        old = service.primary
        with service.left_as_it_is(old):
            await asyncio.to_thread(service.fail_over)
            await asyncio.to_thread(service.wait_until_agreed)
            await all_served(players)
            assert service.clients[old].info("replication")["role"] == "master"
            async with CachedPostgresSaver.from_conn_string(
                migrated_database_url, service.url, prefix=prefix
            ) as latecomer:
                reader = Player(latecomer, -1, len(players), players[0].lengths, IDS)
                turns = sum(reader.lengths)
                await reader.play(lambda: sum(reader.lengths) < turns + 200)
            assert service.clients[old].info("replication")["role"] == "master"
    assert (reader.report.errors, report.errors) == ([], [])
    assert (reader.report.violations, report.violations) == ([], [])


@pytest.mark.slow
async def test_the_primary_crashes_in_the_middle_of_a_load(
    migrated_database_url: str, service: Service, prefix: str
) -> None:
    async with playing(migrated_database_url, service.url, prefix, IDS) as (_, report):
        old = await asyncio.to_thread(service.kill)
        await asyncio.to_thread(service.wait_for_new_primary, old)
    assert (report.errors, report.violations) == ([], [])
