"""The connection to Redis that is held: what is answered on it, and what happens when it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from redis.asyncio import Redis
from redis.credentials import CredentialProvider
from redis.exceptions import BusyLoadingError, ReadOnlyError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.demo.embedded import RedisServer
from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.stores.redis import pipelined_connection as held_module
from langgraph_checkpoint_cached.stores.redis.executor import OVERLAP_MIN, ScriptExecutor
from langgraph_checkpoint_cached.stores.redis.health import NotDone, RedisHealth
from langgraph_checkpoint_cached.stores.redis.pipelined_connection import POOL_MIN, PipelinedConnection
from langgraph_checkpoint_cached.stores.redis.script_call import ScriptCall
from langgraph_checkpoint_cached.stores.redis.scripts import Script
from langgraph_checkpoint_cached.stores.redis.transport import ServerTransport
from tests.support.agreement import PATIENT_SECONDS
from tests.support.conversations import Conversation, open_saver, until_hit
from tests.support.inspect import (
    background_tasks,
    close_socket,
    connections_in_use,
    is_retrying,
    redis_connection,
    reply_reader,
)
from tests.support.proxy import Proxy

EXISTS = Script("return redis.call('EXISTS', KEYS[1])")
APPEND = Script("return redis.call('RPUSH', KEYS[1], ARGV[1])")

pytestmark = pytest.mark.integration


def make_executor(client: Redis, prefix: str, timeout_seconds: float) -> ScriptExecutor:
    runtime = Runtime(asyncio.get_running_loop())
    return ScriptExecutor(client, runtime, RedisHealth(runtime), prefix=prefix, timeout_seconds=timeout_seconds)


@asynccontextmanager
async def held_on(url: str, **options: Any) -> AsyncIterator[tuple[PipelinedConnection, Redis]]:
    async with Redis.from_url(url, **options) as client:
        held = PipelinedConnection(client.connection_pool, PATIENT_SECONDS)
        try:
            yield held, client
        finally:
            await held.close()


async def own_id(held: PipelinedConnection) -> int:
    (answer,) = await held.exchange([("CLIENT", "ID")])
    assert isinstance(answer, int)
    return answer


async def begun_on_mute(proxy: Proxy, *work: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    """The work, asked for and not answered."""
    proxy.mute()
    tasks = [asyncio.ensure_future(each) for each in work]
    await asyncio.sleep(0.05)
    return tasks


@pytest.mark.parametrize("options", [{"protocol": 2}, {"protocol": 3}, {"decode_responses": True}])
async def test_each_exchange_has_its_own_replies_and_errors(
    redis_url: str, redis_prefix: str, options: dict[str, Any]
) -> None:
    async with held_on(redis_url, **options) as (held, _):

        async def exchange(number: int) -> list[Any]:
            key = f"{redis_prefix}{number}"
            return await held.exchange([("SET", key, b"\xff" * number), ("INCR", key), ("GET", key)] * 2)

        answers = await asyncio.gather(*map(exchange, range(1, 50)))
        for number, (stored, error, got, *again) in enumerate(answers, 1):
            assert (stored, got, again[2]) == (b"OK", b"\xff" * number, b"\xff" * number)
            assert isinstance(error, ResponseError)
        assert await held.exchange([("GET", f"{redis_prefix}missing")]) == [None]


async def test_a_large_value_goes_and_comes_in_pieces(redis_url: str, redis_prefix: str) -> None:
    large = b"x" * 5_000_000
    async with held_on(redis_url) as (held, _):
        assert await held.exchange([("SET", f"{redis_prefix}large", large)]) == [b"OK"]
        assert await held.exchange([("GET", f"{redis_prefix}large"), ("ECHO", b"after")]) == [large, b"after"]


async def test_push_message_is_not_taken_for_a_reply(redis_url: str, redis_prefix: str) -> None:
    async with held_on(redis_url, protocol=3) as (held, client):
        await held.exchange([("CLIENT", "TRACKING", "ON", "BCAST")])
        for number in range(20):
            await client.set(f"{redis_prefix}{number}", b"1")
            assert await held.exchange([("ECHO", str(number))]) == [str(number).encode()]


async def test_connection_closed_while_idle_is_replaced(redis_url: str, proxies: Callable[[str], Proxy]) -> None:
    proxy = proxies(redis_url)
    async with held_on(proxy.url) as (held, client):
        first = await own_id(held)
        assert await own_id(held) == first
        proxy.cut()
        await asyncio.sleep(0.05)
        assert await own_id(held) != first
        assert len(connections_in_use(client)) == 1


async def test_connection_closed_while_loop_was_busy_is_replaced(
    redis_url: str, proxies: Callable[[str], Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_module, "IDLE_SECONDS", 0.0)
    proxy = proxies(redis_url)
    async with held_on(proxy.url) as (held, _):
        first = await own_id(held)
        proxy.cut()  # the loop stands still meanwhile
        assert not held.is_ready
        assert await own_id(held) != first


async def test_waiting_calls_fail_when_connection_is_lost(redis_url: str, proxies: Callable[[str], Proxy]) -> None:
    proxy = proxies(redis_url)
    async with held_on(proxy.url) as (held, _):
        first = await own_id(held)
        waiting = await begun_on_mute(proxy, *(own_id(held) for _ in range(3)))
        proxy.cut()
        ack = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
        assert [type(each) for each in ack] == [RedisConnectionError] * 3
        proxy.hear()
        assert await own_id(held) != first


async def test_reply_of_cancelled_call_is_not_given_to_the_next(
    redis_url: str, proxies: Callable[[str], Proxy]
) -> None:
    proxy = proxies(redis_url)
    async with held_on(proxy.url) as (held, _):
        first = await own_id(held)
        (waiting,) = await begun_on_mute(proxy, held.exchange([("ECHO", b"late")]))
        waiting.cancel()
        await asyncio.wait([waiting])
        proxy.hear()
        assert await held.exchange([("ECHO", b"next")]) == [b"next"]
        assert await own_id(held) != first


async def test_dead_idle_connection_of_pool_is_replaced(redis_url: str, proxies: Callable[[str], Proxy]) -> None:
    proxy = proxies(redis_url)
    async with held_on(proxy.url) as (held, client):
        await client.ping()
        proxy.cut()
        await asyncio.sleep(0.05)
        assert await asyncio.wait_for(own_id(held), 1) > 0


async def test_late_exchange_ends_with_its_own_connection(redis_url: str, proxies: Callable[[str], Proxy]) -> None:
    proxy = proxies(redis_url)
    async with held_on(proxy.url) as (held, _):
        await own_id(held)
        proxy.mute()
        ack: list[Any] = []
        assert held.send([("ECHO", b"late")], ack.append)
        close_socket(held)  # as by whoever closes the pool, while something is on its way
        proxy.hear()
        second = await own_id(held)
        assert len(ack) == 1
        assert isinstance(ack[0], RedisConnectionError)
        assert await own_id(held) == second


async def test_connection_is_left_when_server_or_pool_asks(redis_url: str) -> None:
    async with held_on(redis_url, protocol=3) as (held, client):
        first = await own_id(held)
        waiting = asyncio.ensure_future(own_id(held))
        await asyncio.sleep(0)
        reply_reader(held).data_received(b">2\r\n$6\r\nMOVING\r\n:15\r\n")
        assert await waiting == first
        second = await own_id(held)
        assert second != first
        if mark := getattr(redis_connection(held), "mark_for_reconnect", None):  # redis-py 7 and later
            mark()
            assert await own_id(held) != second
        assert len(connections_in_use(client)) == 1


async def test_savers_on_one_client_share_a_connection(
    migrated_database_url: str, redis_url: str, redis_prefix: str
) -> None:
    async with (
        Redis.from_url(redis_url, max_connections=POOL_MIN) as client,
        AsyncPostgresSaver.from_conn_string(migrated_database_url) as upstream,
    ):
        savers = [CachedPostgresSaver(client, upstream, prefix=redis_prefix) for _ in range(3 * POOL_MIN)]
        conversation = Conversation(savers[0])
        await conversation.turn()
        await conversation.check(*savers)
        assert len(connections_in_use(client)) == 1
        for saver in savers:
            await saver.aclose()
        assert not connections_in_use(client)
        forgotten = CachedPostgresSaver(client, upstream, prefix=redis_prefix)
        await Conversation(forgotten, "other").turn()
        del forgotten
        await conversation.check(CachedPostgresSaver(client, upstream, prefix=redis_prefix))
        assert len(connections_in_use(client)) == 1


async def test_protocol_error_closes_connection_as_client_does(redis_url: str) -> None:
    async with held_on(redis_url) as (held, _):
        first = await own_id(held)
        waiting = asyncio.ensure_future(own_id(held))
        await asyncio.sleep(0)
        reply_reader(held).data_received(b"-LOADING Redis is loading the dataset in memory\r\n")
        with pytest.raises(BusyLoadingError):
            await waiting
        assert await own_id(held) != first


async def test_connection_can_be_taken_again_after_client_closed(redis_url: str) -> None:
    async with held_on(redis_url) as (held, client):
        first = await own_id(held)
        await asyncio.wait_for(client.aclose(), 5)
        assert not any(each.is_connected for each in connections_in_use(client))
        assert await own_id(held) != first


async def test_closed_connection_returns_to_pool(redis_url: str) -> None:
    async with held_on(redis_url, max_connections=1) as (held, client):
        await own_id(held)
        await held.close()
        assert await client.echo("other") in (b"other", "other")
        await own_id(held)


async def test_call_that_outlasts_saver_keeps_no_connection(redis_url: str, redis_prefix: str) -> None:
    """The call had taken another connection, which was never returned."""
    async with Redis.from_url(redis_url) as client:
        transport = ServerTransport(client, PATIENT_SECONDS)
        step = ScriptCall(EXISTS, (f"{redis_prefix}:key",), (), asyncio.get_running_loop().create_future())
        assert await transport.run([step]) == [0]
        assert len(connections_in_use(client)) == 1
        late = [asyncio.ensure_future(transport.run([step])) for _ in range(3)]
        closing = asyncio.ensure_future(transport.close())
        late += [asyncio.ensure_future(transport.run([step])) for _ in range(3)]
        await closing
        assert await transport.run([step]) == [0]
        reply = await asyncio.gather(*late, return_exceptions=True)
        assert all(each == [0] or isinstance(each, RedisConnectionError) for each in reply), reply
        assert not connections_in_use(client)


class Renewed(CredentialProvider):
    """Credentials of a user whose password, as a token of a cloud, is valid for a while."""

    def __init__(self, password: str) -> None:
        self.password = password

    def get_credentials(self) -> tuple[str, str]:
        return "renewed", self.password

    async def get_credentials_async(self) -> tuple[str, str]:
        return self.get_credentials()


async def test_connection_is_replaced_when_credentials_are_renewed(redis_url: str) -> None:
    """As with the tokens of AWS and Entra: the server closes connections whose token has expired."""
    provider, user = Renewed("first"), ("ACL", "SETUSER", "renewed", "on", "~*", "&*", "+@all")
    async with Redis.from_url(redis_url) as admin:
        await admin.execute_command(*user, ">first")  # type: ignore[no-untyped-call]
        async with Redis.from_url(redis_url, credential_provider=provider) as client:
            transport = ServerTransport(client, PATIENT_SECONDS)
            asked = ScriptCall(EXISTS, ["k"], [], asyncio.get_running_loop().create_future())
            await transport.run([asked])
            assert transport.can_send([asked])
            provider.password = "second"
            await admin.execute_command(*user, "resetpass", ">second")  # type: ignore[no-untyped-call]
            token: Any = SimpleNamespace(try_get=lambda name: "renewed", get_value=lambda: "second")
            await client.connection_pool.re_auth_callback(token)
            assert not transport.can_send([asked])
            assert await transport.run([asked]) == [0]
            assert transport.can_send([asked])
            assert await admin.execute_command("CLIENT", "KILL", "USER", "renewed") >= 1  # type: ignore[no-untyped-call]
            await asyncio.sleep(0.05)
            assert await transport.run([asked]) == [0]
            await transport.close()
        assert await admin.acl_deluser("renewed") == 1


@pytest.mark.parametrize(
    ("options", "is_held"),
    [
        ({}, True),
        ({"max_connections": POOL_MIN}, True),
        ({"max_connections": POOL_MIN - 1}, False),
        ({"health_check_interval": 5}, False),
        ({"single_connection_client": True}, False),
    ],
)
async def test_which_clients_spare_a_connection(redis_url: str, options: dict[str, Any], is_held: bool) -> None:
    async with Redis.from_url(redis_url, **options) as client:
        transport = ServerTransport(client, PATIENT_SECONDS)
        asked = ScriptCall(EXISTS, ["k"], [], asyncio.get_running_loop().create_future())
        await transport.run([asked])
        assert transport.can_send([asked]) is is_held


@pytest.mark.slow
@pytest.mark.parametrize("connections", [POOL_MIN, POOL_MIN - 1])
async def test_a_primary_that_became_a_replica_is_left_for_the_new_one(
    migrated_database_url: str,
    redis_servers: Callable[..., RedisServer],
    proxies: Callable[[str], Proxy],
    redis_prefix: str,
    connections: int,
) -> None:
    """As behind a name or an address that a managed Redis moves: its old connections stay open."""
    old, new = redis_servers(), redis_servers()
    proxy = proxies(old.url)
    async with open_saver(
        migrated_database_url, proxy.url, prefix=redis_prefix, redis_max_connections=connections
    ) as saver:
        conversation = Conversation(saver)
        await conversation.turns(2)
        await until_hit(conversation)
        async with Redis.from_url(old.url) as admin, Redis.from_url(new.url) as successor:
            where: dict[str, Any] = successor.connection_pool.connection_kwargs
            await admin.replicaof(where["host"], where["port"])
            with pytest.raises(ReadOnlyError):
                await admin.set("k", 1)
        proxy.target = (where["host"], where["port"])
        await conversation.turns(2)
        await until_hit(conversation)
        await conversation.check()


async def test_script_order_survives_noscript(
    redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, retry_after_noscript = asyncio.Event(), ServerTransport.retry_after_noscript

    async def late(*args: Any, **options: Any) -> None:
        await go_on.wait()
        await retry_after_noscript(*args, **options)

    monkeypatch.setattr(ServerTransport, "retry_after_noscript", late)
    async with Redis.from_url(redis_url) as client:
        executor = make_executor(client, redis_prefix, PATIENT_SECONDS)
        thread, other = f"{redis_prefix}thread", f"{redis_prefix}other"

        def group(number: int) -> list[asyncio.Future[Any]]:
            """One that is sent at once: a step of the thread, and as many of another as that takes."""
            steps = [executor.submit(APPEND, [thread], [str(number)], in_order=True)]
            return steps + [executor.submit(EXISTS, [other], []) for _ in range(OVERLAP_MIN - 1)]

        for number in range(0, 60, 6):
            go_on.set()
            await asyncio.gather(*group(number))  # after which the scripts are known to be there
            await client.script_flush()
            reply = [*group(number + 1), *group(number + 2)]
            answers = await asyncio.gather(*reply, return_exceptions=True)
            assert isinstance(answers.pop(0), NotDone), "the next of its thread was on the way already"
            assert all(isinstance(each, int) for each in answers)
            await asyncio.gather(*group(number + 3))
            await client.script_flush()
            go_on.clear()
            reply = group(number + 4)
            while not is_retrying(executor):
                await asyncio.sleep(0)
            await client.script_load(APPEND.text)
            reply += group(number + 5)
            await client.ping()
            go_on.set()
            await asyncio.gather(*reply)
        done = [number for number in range(60) if number % 6 != 1]
        assert [int(each) for each in await client.lrange(thread, 0, -1)] == done
        await executor.drain()
        await executor.close()


async def test_noscript_calls_end_when_loop_ends_before_retry(
    redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Redis.from_url(redis_url) as client:
        executor = make_executor(client, redis_prefix, 1.0)
        for _ in range(2):
            assert await executor.submit(EXISTS, [redis_prefix], []) == 0
        await client.script_flush()
        tasks = background_tasks(executor)
        start = tasks.start

        def start_and_cancel(work: Any) -> asyncio.Task[Any]:
            task = start(work)
            task.cancel()  # as a loop that ends does, before any of it has run
            return task

        with monkeypatch.context() as patch:
            patch.setattr(tasks, "start", start_and_cancel)
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(executor.submit(EXISTS, [redis_prefix], []), 5)
        assert await executor.submit(EXISTS, [redis_prefix], []) == 0
        await executor.drain()
        await executor.close()
