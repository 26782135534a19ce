"""A real Redis Cluster: hits from every node, one slot for each thread, and the same answers whatever happens to
nodes and slots in the middle of a load of several savers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import ResponseError

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.demo.embedded import free_port
from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.stores.redis import transport
from langgraph_checkpoint_cached.stores.redis.health import RedisUnavailable
from langgraph_checkpoint_cached.stores.redis.keys import names_key, namespace_key, thread_key
from langgraph_checkpoint_cached.stores.redis.script_call import ScriptCall, Unconfirmed, confirmation_for
from langgraph_checkpoint_cached.stores.redis.scripts import Script
from langgraph_checkpoint_cached.stores.redis.transport import transport_for
from tests.support.agreement import PATIENT_SECONDS
from tests.support.cluster import NODES, Cluster
from tests.support.conversations import Conversation, until_hit
from tests.support.inspect import inspect, node_connections
from tests.support.load import playing

pytestmark = pytest.mark.integration

THREADS = 12
IDS = [f"t{number}" for number in range(THREADS)]
ODD_IDS = ["", "{", "}", "{}", "{a}b", "a{b", "}{", "ü\u0000\ud800", "x" * 500, " *?[]", "!", "{{a}}"]
COMMANDS = {
    *("eval", "evalsha", "set", "scan", "asking"),
    *("hdel", "hget", "hgetall", "hkeys", "hmget", "hset", "hsetnx", "del", "pexpire", "pttl"),
    *("zadd", "zcard", "zscore", "zrange", "zremrangebyscore", "unlink", "time", "info"),
    *("cluster|slots", "command", "client|setinfo"),  # redis-py's own
}
"""All that is sent, by scripts and by the client."""
BLOCKED = {
    # https://docs.aws.amazon.com/AmazonElastiCache/latest/dg/ClientConfig.RestrictedCommands.html
    *("bgrewriteaof", "bgsave", "config", "debug", "migrate", "replicaof", "save", "slaveof", "shutdown", "sync"),
    # https://docs.oracle.com/iaas/Content/ocicache/restrictedcommands.htm
    *("acl", "module", "psync"),
    # https://aiven.io/docs/products/valkey/reference/restricted-commands
    *("failover", "lastsave", "monitor"),
    # https://cloud.google.com/memorystore/docs/redis/product-constraints
    *("object",),
    # Nobody should: they stop the server, or everybody's scripts, for a while.
    *("keys", "flushall", "flushdb", "script", "function", "fcall"),
}
"""Commands that managed services do not let users send. Without `command`, `client` and `cluster`: some block
them where there is no Cluster, and with a Cluster every client needs them."""


@asynccontextmanager
async def open_saver(postgres_url: str, cluster: Cluster, **options: Any) -> AsyncIterator[CachedPostgresSaver]:
    url = options.pop("redis_url", cluster.url)
    async with CachedPostgresSaver.from_conn_string(postgres_url, url, **options) as saver:
        yield saver


def missing_in_cluster(client: Any) -> list[str]:
    """Stand in for the check of a Cluster client, of a future redis-py that has become another."""
    return ["ClusterNode.acquire_connection"]


@pytest.mark.parametrize("kind", ["url", "client", "decoding client", "client without nodes"])
async def test_hits_come_from_every_node(
    migrated_database_url: str,
    cluster: Cluster,
    prefix: str,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if kind == "client without nodes":
        monkeypatch.setattr(transport, "missing_in_cluster", missing_in_cluster)
    async with AsyncExitStack() as stack:
        if kind == "url":
            saver = await stack.enter_async_context(open_saver(migrated_database_url, cluster, prefix=prefix))
        else:
            client = RedisCluster(
                host="127.0.0.1", port=cluster.servers[0].port, decode_responses=kind == "decoding client"
            )
            await stack.enter_async_context(client)
            upstream = await stack.enter_async_context(AsyncPostgresSaver.from_conn_string(migrated_database_url))
            saver = CachedPostgresSaver(client, upstream, prefix=prefix, redis_timeout=PATIENT_SECONDS)
        await saver.setup()
        conversations = [Conversation(saver, thread_id) for thread_id in IDS]
        await asyncio.gather(*(conversation.turns(3) for conversation in conversations))
        stats = saver.stats()
        assert (stats["hits"], stats["loads"]) == (2 * THREADS, THREADS)
        assert (stats["entry_updates"], stats["redis_errors"]) == (4 * THREADS, 0)
        for node in cluster.primaries:
            assert list(cluster.clients[node].scan_iter(match=f"{prefix}:*"))
        await saver.adelete_thread(IDS[0])
        await saver.aprune(IDS[1:3])
        assert await saver.aget_tuple(conversations[0].config) is None
        await conversations[1].check()
        await inspect(saver).invalidation.invalidate_all()
        loads = saver.stats()["loads"]
        for conversation in conversations[1:]:
            await conversation.check()
        assert saver.stats()["loads"] == loads + THREADS - 1
        await saver.aclose()
    assert caplog.text.count("lacks ClusterNode.acquire_connection") == (kind == "client without nodes")


async def test_public_methods_keep_order_errors_and_doubts(
    cluster: Cluster, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(script: Script, thread: str, number: int, *, durable: bool = False) -> ScriptCall:
        done = asyncio.get_running_loop().create_future()
        return ScriptCall(script, [f"{prefix}:{{{thread}}}"], [number], done, True, durable)

    monkeypatch.setattr(transport, "missing_in_cluster", missing_in_cluster)
    async with RedisCluster(host="127.0.0.1", port=cluster.servers[0].port) as client:
        public = transport_for(client, PATIENT_SECONDS, confirmation_for("replica", PATIENT_SECONDS))
        for turn in range(2):
            assert await public.run([call(APPEND, thread, n) for n in range(3) for thread in IDS]) == [
                3 * turn + n for n in (1, 2, 3) for _ in IDS
            ]
            lose_scripts(cluster, prefix)
        assert await public.run([call(APPEND, "t0", 7, durable=True)]) == [Unconfirmed(7)]
        broken, appended = await public.run([call(BROKEN, "t0", 0, durable=True), call(APPEND, "t0", 8)])
        assert isinstance(broken, ResponseError)
        assert appended == 8
        assert not public.send([call(APPEND, "t0", 9)], print)
        await public.probe(f"{prefix}:probe", 1000)


async def test_keys_of_oddly_named_thread_are_in_one_slot(cluster: Cluster, prefix: str) -> None:
    for thread_id in ODD_IDS:
        keys = [thread_key(prefix, thread_id), names_key(prefix, thread_id)]
        keys += [namespace_key(prefix, Namespace(thread_id, ns)) for ns in ("", "a|b", "{x}", "}{")]
        assert len({cluster.slot_of(key) for key in keys}) == 1, thread_id


async def test_odd_threads_are_served_too(migrated_database_url: str, cluster: Cluster, prefix: str) -> None:
    async with open_saver(migrated_database_url, cluster, prefix=prefix) as saver:
        for thread_id in (each for each in ODD_IDS if "\u0000" not in each):  # which Postgres does not take
            await Conversation(saver, thread_id).turns(2)
        assert saver.stats()["redis_errors"] == 0
        assert saver.stats()["hits"] == len(ODD_IDS) - 1


@pytest.mark.slow
async def test_only_these_commands_are_sent_and_no_service_blocks_them(
    migrated_database_url: str, cluster: Cluster, prefix: str
) -> None:
    assert not {command.partition("|")[0] for command in COMMANDS} & BLOCKED
    rules = ["reset", "on", ">p@ss/word", f"~{prefix}:*"]
    for command in COMMANDS - {"client|setinfo"}:  # unknown to Redis 7.0, and never needed
        rules.append(f"+{command}")
    for client in cluster.clients:
        client.execute_command("ACL", "SETUSER", "limited", *rules)
        client.execute_command("ACL", "LOG", "RESET")
    url = cluster.url.replace("://", "://limited:p%40ss%2Fword@")
    try:
        async with open_saver(migrated_database_url, cluster, prefix=prefix, redis_url=url) as saver:
            await saver.setup()
            for thread_id in IDS:
                conversation = Conversation(saver, thread_id)
                await conversation.turns(3)
                await saver.aget_tuple(conversation.latest)
                await saver.aprune([thread_id])
                await saver.adelete_thread(thread_id)
            await inspect(saver).invalidation.invalidate_all()
            new = Conversation(saver, "new")
            await new.turn()
            inspect(saver).fail_redis(RedisUnavailable("for a probe"))
            await until_hit(new)
            assert saver.stats()["redis_errors"] == 0
            assert saver.stats()["hits"] >= 2 * THREADS
        denied = [
            (entry["reason"], entry["object"])
            for client in cluster.clients
            for entry in client.acl_log()
            if entry["object"] not in ("client|setinfo", "client")  # what it was called before Redis 7
        ]
        assert denied == []
    finally:
        for client in cluster.clients:
            client.execute_command("ACL", "DELUSER", "limited")


async def test_missing_cluster_costs_speed_and_nothing_else(migrated_database_url: str) -> None:
    url = f"redis+cluster://127.0.0.1:{free_port()}"
    async with CachedPostgresSaver.from_conn_string(migrated_database_url, url) as saver:
        await saver.setup()
        await Conversation(saver).turns(3)
        assert saver.stats()["hits"] == 0


APPEND = Script("return redis.call('RPUSH', KEYS[1], ARGV[1])")
BROKEN = Script("error(KEYS[1])")


async def test_calls_to_a_node_share_a_round_trip_after_slot_moved(cluster: Cluster, prefix: str) -> None:
    def step(thread: str, number: int) -> ScriptCall:
        done = asyncio.get_running_loop().create_future()
        return ScriptCall(APPEND, [f"{prefix}:{{{thread}}}"], [number], done, True)

    async with RedisCluster(host="127.0.0.1", port=cluster.servers[0].port) as client:
        transport = transport_for(client, PATIENT_SECONDS)
        for turn in range(2):
            answers = await transport.run([step(thread, n) for n in range(3) for thread in IDS])
            assert answers == [3 * turn + n for n in (1, 2, 3) for _ in IDS]
        for node in client.get_primaries():
            assert len(node_connections(node)) <= 2  # this one's, and the client's own
        old = cluster.primary_of(f"{prefix}:{{t0}}")
        new = await asyncio.to_thread(cluster.fail_over, old)
        answers = await transport.run([step(thread, n) for n in range(3) for thread in IDS])
        assert answers == [6 + n for n in (1, 2, 3) for _ in IDS]
        slot, target = cluster.slot_of(f"{prefix}:{{t0}}"), next(n for n in cluster.primaries if n != new)
        cluster.begin_to_move(slot, new, target)
        assert await transport.run([step("t0", 0)]) == [10]
        cluster.move_keys(slot, new, target)
        assert await transport.run([step("t0", 0), step("t0", 0)]) == [11, 12]
        cluster.end_move(slot, new, target)
        assert await transport.run([step("t0", 0), step("t1", 0)]) == [13, 10]
        cluster.begin_to_move(slot, target, new)
        cluster.end_move(slot, target, new)
    await asyncio.to_thread(cluster.wait_until_well)


def fail_over(cluster: Cluster, prefix: str) -> None:
    for key in (thread_key(prefix, thread_id) for thread_id in IDS[:2]):
        cluster.fail_over(cluster.primary_of(key))


def crash(cluster: Cluster, prefix: str) -> None:
    key = thread_key(prefix, IDS[0])
    old = cluster.primary_of(key)
    cluster.kill(old)
    cluster.wait_for_new_primary(old, key)
    cluster.restart(old)


def crash_with_a_replica_that_is_behind(cluster: Cluster, prefix: str) -> None:
    key = thread_key(prefix, IDS[0])
    old = cluster.primary_of(key)
    go_on = cluster.freeze(cluster.replica_of(old))
    offset = cluster.clients[old].info("replication")["master_repl_offset"]
    while cluster.clients[old].info("replication")["master_repl_offset"] < offset + 50_000:
        pass  # the load writes on
    cluster.kill(old)
    go_on()
    cluster.wait_for_new_primary(old, key)
    cluster.restart(old)


def hang(cluster: Cluster, prefix: str) -> None:
    key = thread_key(prefix, IDS[0])
    old = cluster.primary_of(key)
    go_on = cluster.freeze(old)
    try:
        while all(cluster.primary_seen_by(node, key) == old for node in range(NODES) if node != old):
            pass
    finally:
        go_on()
    cluster.wait_until_well()


def move_slots(cluster: Cluster, prefix: str) -> None:
    for thread_id in IDS[:3]:
        key = thread_key(prefix, thread_id)
        slot, source = cluster.slot_of(key), cluster.primary_of(key)
        target = next(node for node in cluster.primaries if node != source)
        cluster.begin_to_move(slot, source, target)
        for _ in range(2):
            wait_for_writes(cluster, target)
            cluster.move_keys(slot, source, target, 1)
        wait_for_writes(cluster, target)
        cluster.end_move(slot, source, target)


def lose_scripts(cluster: Cluster, prefix: str) -> None:
    for client in cluster.clients * 3:
        client.script_flush()


def lose_everything(cluster: Cluster, prefix: str) -> None:
    for node in cluster.primaries * 3:
        cluster.clients[node].flushall()
        wait_for_writes(cluster, node)


def lose_keys(cluster: Cluster, prefix: str) -> None:
    chance = random.Random(seed := random.SystemRandom().getrandbits(32))
    print(f"seed {seed}")
    for _ in range(100):
        for node in cluster.primaries:
            keys = sorted(cluster.clients[node].keys(f"{prefix}:*"))
            for key in chance.sample(keys, len(keys) // 3):
                cluster.clients[node].delete(key)


def wait_for_writes(cluster: Cluster, node: int) -> None:
    """Until the load has gone on for a while, as a node that takes part in it knows."""
    before = cluster.clients[node].info("stats")["total_commands_processed"]
    while cluster.clients[node].info("stats")["total_commands_processed"] < before + 500:
        pass


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        fail_over,
        crash,
        crash_with_a_replica_that_is_behind,
        hang,
        move_slots,
        lose_scripts,
        lose_everything,
        lose_keys,
    ],
)
async def test_in_the_middle_of_a_load(
    migrated_database_url: str, cluster: Cluster, prefix: str, fault: Callable[[Cluster, str], None]
) -> None:
    async with playing(migrated_database_url, cluster.url, prefix, IDS) as (players, report):
        await asyncio.to_thread(fault, cluster, prefix)
        if fault is move_slots:  # one thread is no reason to leave Redis alone
            assert all(inspect(player.saver).breaker.closed for player in players)
    assert report.errors == []
    assert report.violations == []


@pytest.mark.slow
async def test_moving_slots_is_no_outage_under_write_behind(
    migrated_database_url: str, cluster: Cluster, prefix: str
) -> None:
    options: dict[str, Any] = {"writers": 1, "mode": "write_behind"}
    async with playing(migrated_database_url, cluster.url, prefix, IDS, **options) as (_, report):
        for _ in range(5):
            await asyncio.to_thread(move_slots, cluster, prefix)
            await asyncio.sleep(0.5)
    assert (report.errors, report.violations) == ([], [])
    assert report.stats["breaker_openings"] == 0
    assert report.stats["appends"] > report.turns
