"""Clients that lack what the fast ways to Redis need: their public methods serve hits, and one line says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fakeredis.aioredis import FakeRedis
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Connection, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.stores.redis.links import ClientLink
from langgraph_checkpoint_cached.stores.redis.script_call import ScriptCall
from langgraph_checkpoint_cached.stores.redis.scripts import Script
from langgraph_checkpoint_cached.stores.redis.transport import transport_for
from tests.support.agreement import PATIENT_SECONDS
from tests.support.conversations import Conversation, until_hit
from tests.support.inspect import connections_in_use, inspect
from tests.support.other_clients import (
    WithoutParseError,
    WithoutTransport,
    WithOwnSending,
    client_with,
    teach_info,
)
from tests.support.proxy import Proxy

pytestmark = pytest.mark.integration

APPEND = Script("return redis.call('RPUSH', KEYS[1], ARGV[1])")
GET = Script("return redis.call('GET', KEYS[1])")
MODES = ["write_through", "write_behind"]
LACKING = [
    (WithoutTransport, "_writer.transport"),
    (WithoutParseError, "_parser.parse_error"),
    (WithOwnSending, "send_packed_command"),
]


def call(script: Script, key: str, *arguments: Any) -> ScriptCall:
    return ScriptCall(script, [key], arguments, asyncio.get_running_loop().create_future(), True)


def fallbacks(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Lines that tell of a client which lacks something."""
    return [record.getMessage() for record in caplog.records if "lacks" in record.getMessage()]


async def converse(saver: CachedPostgresSaver) -> None:
    """Talk on several threads at once, and see that all reads are right and that repeated ones are hits."""
    await saver.setup()
    conversations = [Conversation(saver, f"t{number}") for number in range(8)]
    await asyncio.gather(*(conversation.turns(4) for conversation in conversations))
    await until_hit(conversations[0])
    await saver.adelete_thread("t7")
    assert await saver.aget_tuple(conversations[7].config) is None
    await asyncio.gather(*(conversation.check() for conversation in conversations[:7]))


@pytest.mark.parametrize("mode", MODES)
async def test_fake_client_serves_hits(
    migrated_database_url: str, mode: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    teach_info(monkeypatch)
    options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    pool: AsyncConnectionPool[Any] = AsyncConnectionPool(migrated_database_url, open=False, kwargs=options)
    async with FakeRedis() as redis, pool:
        saver = CachedPostgresSaver(redis, AsyncPostgresSaver(pool), mode=mode, redis_timeout=PATIENT_SECONDS)
        await converse(saver)
        stats = saver.stats()
        assert (stats["redis_errors"], stats["redis_usable"]) == (0, 1)
        await saver.aclose()
    assert len(fallbacks(caplog)) == 1
    assert "read_response" in fallbacks(caplog)[0]


async def test_fake_client_without_info_costs_only_speed(migrated_database_url: str) -> None:
    async with AsyncPostgresSaver.from_conn_string(migrated_database_url) as upstream, FakeRedis() as redis:
        saver = CachedPostgresSaver(redis, upstream, redis_timeout=PATIENT_SECONDS)
        await saver.setup()
        await Conversation(saver).turns(3)
        assert saver.stats()["hits"] == 0
        await saver.aclose()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("connection_class", "missing"), LACKING)
async def test_other_connections_serve_hits(
    migrated_database_url: str,
    redis_url: str,
    redis_prefix: str,
    mode: Any,
    connection_class: type[Connection],
    missing: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with (
        AsyncPostgresSaver.from_conn_string(migrated_database_url) as upstream,
        client_with(connection_class, redis_url) as redis,
    ):
        saver = CachedPostgresSaver(redis, upstream, mode=mode, prefix=redis_prefix, redis_timeout=PATIENT_SECONDS)
        await converse(saver)
        stats = saver.stats()
        assert stats["redis_errors"] == 0
        assert stats["appends" if mode == "write_behind" else "entry_updates"] > 0
        await saver.aclose()
        assert not connections_in_use(redis)
    assert len(fallbacks(caplog)) == 1
    assert missing in fallbacks(caplog)[0]


@pytest.mark.parametrize(("connection_class", "missing"), LACKING)
async def test_exchanges_that_fall_back_together_log_once(
    redis_url: str,
    redis_prefix: str,
    connection_class: type[Connection],
    missing: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with client_with(connection_class, redis_url) as redis:
        transport = transport_for(redis, PATIENT_SECONDS)
        work = [transport.run([call(APPEND, f"{redis_prefix}{number}", 1)]) for number in range(5)]
        assert await asyncio.gather(*work) == [[1]] * 5
        assert not transport.can_send([call(APPEND, redis_prefix, 1)])
        assert not connections_in_use(redis)
        await transport.close()
    assert len(fallbacks(caplog)) == 1
    assert missing in fallbacks(caplog)[0]


@pytest.mark.parametrize(
    "options",
    [{}, {"decode_responses": True}, {"protocol": 3}, {"single_connection_client": True}],
    ids=["plain", "decoding", "resp3", "single"],
)
async def test_client_link_has_bytes_and_errors_of_each(
    redis_url: str, redis_prefix: str, options: dict[str, Any]
) -> None:
    key = f"{redis_prefix}key"
    async with Redis.from_url(redis_url, **options) as redis:
        link = ClientLink(redis, None, PATIENT_SECONDS)
        commands = [
            ("SET", key, b"\xff"),
            ("EVAL", GET.text, 1, key),
            ("EVAL", APPEND.text, 1, key, "1"),
            ("EVALSHA", "0" * 40, 0),
            ("EVAL", "return {1, 'a', false}", 0),
            ("EVAL", "error('broken')", 0),
            ("GET", key),
        ]
        for _ in range(2):
            stored, got, wrong_type, unknown, several, broken, again = await link.exchange(commands)
            assert stored is True  # as the client converts it; replies to scripts are left alone
            assert (got, several, again) == (b"\xff", [1, b"a", None], b"\xff")
            assert isinstance(wrong_type, ResponseError)
            assert "WRONGTYPE" in str(wrong_type)
            assert isinstance(unknown, NoScriptError)
            assert isinstance(broken, ResponseError)
            assert "broken" in str(broken)


async def test_fallback_sends_lost_scripts_again(redis_url: str, redis_prefix: str) -> None:
    one, other = f"{redis_prefix}one", f"{redis_prefix}other"
    async with client_with(WithOwnSending, redis_url) as redis:
        transport = transport_for(redis, PATIENT_SECONDS)
        assert await transport.run([call(APPEND, one, 1), call(APPEND, one, 2)]) == [1, 2]
        await redis.script_flush()
        assert await transport.run([call(APPEND, one, 3), call(APPEND, other, 1)]) == [3, 1]
        assert await transport.run([call(APPEND, one, 4)]) == [4]
        await redis.script_flush()
        late = await transport.run([call(APPEND, one, 5), call(APPEND, one, 6)])
        assert [type(each) for each in late] == [NoScriptError] * 2  # one run again could come after the other


@pytest.mark.parametrize("options", [{}, {"single_connection_client": True}], ids=["plain", "single"])
async def test_cancelled_exchange_leaves_no_reply_behind(
    redis_url: str, proxies: Callable[[str], Proxy], options: dict[str, Any]
) -> None:
    proxy = proxies(redis_url)
    async with Redis.from_url(proxy.url, max_connections=1, **options) as redis:
        link = ClientLink(redis, None, PATIENT_SECONDS)
        assert await link.exchange([("ECHO", "before")]) == [b"before"]
        proxy.mute()
        work = asyncio.ensure_future(link.exchange([("ECHO", "lost"), ("ECHO", "lost too")]))
        await asyncio.sleep(0.05)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        proxy.hear()
        for number in range(3):
            assert await link.exchange([("ECHO", str(number))]) == [str(number).encode()]
        assert not connections_in_use(redis) or options


@pytest.mark.parametrize("mode", MODES)
async def test_scripts_that_client_repeats_change_no_answer(
    migrated_database_url: str, redis_url: str, redis_prefix: str, proxies: Callable[[str], Proxy], mode: Any
) -> None:
    """Some clients send commands again whose connection was lost: then those have run already."""
    proxy = proxies(redis_url)
    options = {"retry": Retry(NoBackoff(), 3), "retry_on_error": [RedisConnectionError]}
    async with (
        AsyncPostgresSaver.from_conn_string(migrated_database_url) as upstream,
        client_with(WithOwnSending, proxy.url, **options) as redis,
    ):
        saver = CachedPostgresSaver(redis, upstream, mode=mode, prefix=redis_prefix, redis_timeout=PATIENT_SECONDS)
        await saver.setup()
        conversation = Conversation(saver)
        await conversation.turns(2)
        for _ in range(6):
            proxy.mute()
            turn = asyncio.ensure_future(conversation.turn())
            await asyncio.sleep(0.05)
            proxy.cut()
            proxy.hear()
            await turn
            await conversation.check()
        assert saver.stats()["redis_errors"] == 0
        await inspect(saver).drain()
        assert await upstream.aget_tuple(conversation.config) == await saver.aget_tuple(conversation.config)
