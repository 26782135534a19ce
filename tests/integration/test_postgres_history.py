"""Postgres loses commits, commits late, or is a standby: Redis serves nothing that does not belong to it."""

from __future__ import annotations

import asyncio
import operator
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Annotated, Any

import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import START, StateGraph
from redis.asyncio import Redis
from typing_extensions import TypedDict

from langgraph_checkpoint_cached import CachedPostgresSaver, LostHistoryError
from langgraph_checkpoint_cached.records import Namespace
from tests.support import servers
from tests.support.agreement import eventually, new_checkpoint, on_thread
from tests.support.conversations import Conversation, open_saver
from tests.support.inspect import inspect
from tests.support.rewinding import RewindingPostgres

pytestmark = pytest.mark.integration

CONFIG: Any = {"configurable": {"thread_id": "t"}}


class State(TypedDict, total=False):
    turns: Annotated[list[str], operator.add]
    profile: str


def graph_over(saver: Any) -> Any:
    async def node(state: State) -> State:
        return {"profile": "set"} if state["turns"][-1] == "with profile" else {}

    return StateGraph(State).add_node("node", node).add_edge(START, "node").compile(checkpointer=saver)


@pytest.fixture(scope="module")
def postgres() -> Iterator[RewindingPostgres]:
    with RewindingPostgres() as server:
        server.migrate()
        yield server


@pytest.fixture
async def saver(
    postgres: RewindingPostgres, redis_url: str, redis_prefix: str
) -> AsyncIterator[CachedPostgresSaver]:
    async with open_saver(postgres.url, redis_url, prefix=redis_prefix, redis_timeout=5) as saver:
        await saver.adelete_thread("t")
        yield saver


async def until_served(saver: CachedPostgresSaver, wanted: Any = CONFIG) -> None:
    hits = saver.stats()["hits"]
    while saver.stats()["hits"] == hits:
        await saver.aget_tuple(wanted)
        await asyncio.sleep(0.01)


async def until_connected(saver: CachedPostgresSaver) -> None:
    """Write elsewhere until the pool has new connections. So the process learns of the new identity."""

    async def put() -> bool:
        try:
            await saver.aput(on_thread("elsewhere", checkpoint_ns=""), new_checkpoint(), {}, {})
        except psycopg.OperationalError:
            return False
        return True

    await eventually(put)


@pytest.mark.parametrize("has_learned", [True, False])
async def test_turn_after_lost_commits_builds_on_what_is_left(
    postgres: RewindingPostgres, saver: CachedPostgresSaver, has_learned: bool
) -> None:
    """The turn went on from Redis: Postgres then had a checkpoint whose `profile` was gone for good."""
    graph = graph_over(saver)
    await graph.ainvoke({"turns": ["first"]}, CONFIG)
    postgres.save()
    await until_connected(saver)
    await graph.ainvoke({"turns": ["with profile"]}, CONFIG)
    await until_served(saver)
    if not has_learned:
        inspect(saver).suspend()
        await inspect(saver).polled()
        inspect(saver).keep_right()
    postgres.rewind()
    if has_learned:
        await until_connected(saver)
    else:
        await inspect(saver).replace_connections()
        with pytest.raises(LostHistoryError):
            await graph.ainvoke({"turns": ["last"]}, CONFIG)
    assert await graph.ainvoke({"turns": ["last"]}, CONFIG) == {"turns": ["first", "last"]}
    async with AsyncPostgresSaver.from_conn_string(postgres.url) as upstream:
        left = await graph_over(upstream).aget_state(CONFIG)
    assert left.values == {"turns": ["first", "last"]}
    assert saver.stats()["postgres_changes"] >= 1


async def test_run_that_outlives_lost_commits_is_refused(
    postgres: RewindingPostgres, saver: CachedPostgresSaver
) -> None:
    conversation = Conversation(saver)
    await conversation.turns(1)
    postgres.save()
    await until_connected(saver)
    await conversation.turns(1)
    postgres.rewind()
    await until_connected(saver)
    with pytest.raises(LostHistoryError, match="'t'"):
        await conversation.turn()
    found = await saver.aget_tuple(conversation.config)
    assert found is not None
    assert len(found.checkpoint["channel_values"]["messages"]) == 1


async def test_run_outlives_a_restart_that_loses_nothing(
    postgres: RewindingPostgres, saver: CachedPostgresSaver
) -> None:
    conversation = Conversation(saver)
    await conversation.turns(2)
    postgres.stop()
    postgres.start()
    await until_connected(saver)
    await conversation.turns(2)
    assert saver.stats()["postgres_changes"] >= 1


async def test_crash_of_a_backend_is_another_identity(
    postgres: RewindingPostgres, saver: CachedPostgresSaver
) -> None:
    """With `synchronous_commit=off` it loses commits, on the same timeline of the same postmaster."""
    await Conversation(saver).turns(1)
    changes = saver.stats()["postgres_changes"]
    with psycopg.connect(postgres.url) as conn:
        os.kill(conn.info.backend_pid, signal.SIGKILL)
        await asyncio.sleep(0.5)
    await until_connected(saver)
    assert saver.stats()["postgres_changes"] > changes


async def test_standby_never_fills(
    postgres: RewindingPostgres, saver: CachedPostgresSaver, redis_url: str, redis_prefix: str
) -> None:
    conversation = Conversation(saver)
    await conversation.turns(1)
    postgres.save()
    await until_connected(saver)
    await conversation.turns(1)
    await inspect(saver).entries.discard(Namespace("t"))
    with RewindingPostgres(standby_of=postgres) as standby:
        async with open_saver(standby.url, redis_url, prefix=redis_prefix, redis_timeout=5) as reader:
            for _ in range(3):
                found = await reader.aget_tuple(conversation.config)
                assert found is not None
                assert len(found.checkpoint["channel_values"]["messages"]) == 1
            assert reader.stats()["fills"] == reader.stats()["hits"] == 0
            await conversation.check()
            await until_served(saver, conversation.config)
            await conversation.check()


async def test_databases_that_share_a_prefix_share_no_entry(
    migrated_database_url: str, databases: servers.Databases, redis_url: str, redis_prefix: str
) -> None:
    with databases.fresh_migrated() as other_url:
        async with (
            open_saver(migrated_database_url, redis_url, prefix=redis_prefix) as one,
            open_saver(other_url, redis_url, prefix=redis_prefix) as other,
        ):
            conversation = Conversation(one)
            await conversation.turns(2)
            assert await other.aget_tuple(conversation.config) is None
            await conversation.turns(2)
            assert await other.aget_tuple(conversation.config) is None


@pytest.mark.parametrize("pipeline", [False, True])
async def test_single_connection_learns_of_another_identity(
    migrated_database_url: str, redis: Redis, redis_prefix: str, pipeline: bool
) -> None:
    """In pipeline mode the error of the guard came from a statement after it, and went to the caller."""
    async with AsyncPostgresSaver.from_conn_string(migrated_database_url, pipeline=pipeline) as upstream:
        saver = CachedPostgresSaver(redis, upstream, prefix=redis_prefix, redis_timeout=5)
        conversation = Conversation(saver)
        await conversation.turns(1)
        for change in (conversation.turn, partial(saver.aprune, ["t"]), partial(saver.adelete_thread, "t")):
            inspect(saver).forget_identity()
            await change()
        assert await saver.aget_tuple(conversation.config) is None
        await saver.aclose()


@pytest.fixture
def restricted_url(postgres: RewindingPostgres) -> Iterator[str]:
    """URL of a role that may not ask for everything that identifies Postgres."""
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute("revoke execute on function pg_control_system() from public")
        admin.execute("create role restricted login password 'x'")
        admin.execute("grant all on all tables in schema public to restricted")
        yield f"postgresql://restricted:x@{postgres.url.partition('@')[2]}"
        admin.execute("drop owned by restricted")
        admin.execute("drop role restricted")
        admin.execute("grant execute on function pg_control_system() to public")


@pytest.mark.parametrize("pipeline", [False, True])
async def test_restricted_role_has_an_identity_of_the_rest(
    restricted_url: str, redis: Redis, redis_prefix: str, pipeline: bool
) -> None:
    """In pipeline mode nothing worked for it: the refusal aborted the pipeline."""
    async with AsyncPostgresSaver.from_conn_string(restricted_url, pipeline=pipeline) as upstream:
        saver = CachedPostgresSaver(redis, upstream, prefix=redis_prefix, redis_timeout=5)
        conversation = Conversation(saver, f"restricted {pipeline}")
        await conversation.turns(2)
        await until_served(saver, conversation.config)
        await saver.aclose()


WRITER = """
import asyncio, sys
from langgraph_checkpoint_cached.stores.redis import fences
fences.FENCE_MS, fences.FENCE_START_SECONDS = 1000, 0.8
from tests.support.agreement import new_checkpoint, on_thread
from tests.support.conversations import open_saver

async def main(postgres_url, redis_url, prefix, checkpoint_id):
    async with open_saver(postgres_url, redis_url, prefix=prefix, redis_timeout=5) as saver:
        found = await saver.aget_tuple(on_thread("t", checkpoint_ns=""))
        print("writing", flush=True)
        await saver.aput(found.config, new_checkpoint(id=checkpoint_id), {}, {})

asyncio.run(main(*sys.argv[1:]))
"""


async def test_late_commit_of_a_killed_process_is_not_hidden(
    migrated_database_url: str, redis_url: str, redis_prefix: str
) -> None:
    """Its fence had expired, and a reader had filled what was there before."""
    async with open_saver(migrated_database_url, redis_url, prefix=redis_prefix, redis_timeout=5) as saver:
        conversation = Conversation(saver)
        await conversation.turns(1)
        late = new_checkpoint()["id"]
        async with await psycopg.AsyncConnection.connect(migrated_database_url) as lock:
            await lock.execute(
                "insert into checkpoints (thread_id, checkpoint_id, checkpoint) values ('t', %s, '{}')", [late]
            )
            arguments = [migrated_database_url, redis_url, redis_prefix, late]
            with subprocess.Popen([sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE) as writer:
                assert writer.stdout is not None
                await asyncio.to_thread(writer.stdout.readline)
                await eventually(lambda: _waits_for(migrated_database_url, "Lock"))
                writer.kill()
            await asyncio.sleep(1.5)  # past the fence's deadline
            for _ in range(5):
                await conversation.check()
            assert saver.stats()["fences_expired"] == 0, "its transaction is still there"
            await lock.rollback()

        async def is_there() -> bool:
            found = await saver.aget_tuple(conversation.config)
            return found is not None and found.config["configurable"]["checkpoint_id"] == late

        await eventually(is_there)
        await until_served(saver, conversation.config)
        assert await is_there()
        assert saver.stats()["fences_expired"] == 1


PRUNER = """
import asyncio, sys
from langgraph_checkpoint_cached.stores.redis import fences
fences.FENCE_MS, fences.FENCE_START_SECONDS = 1000, 0.8
from tests.support.conversations import open_saver

async def main(postgres_url, redis_url, prefix):
    async with open_saver(postgres_url, redis_url, prefix=prefix, redis_timeout=5) as saver:
        await saver.aprune(["t"])

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.slow
async def test_late_commit_of_a_killed_prune_is_not_hidden(
    postgres: RewindingPostgres, saver: CachedPostgresSaver, redis_url: str, redis_prefix: str
) -> None:
    """Its commit waits for a synchronous standby that is away. A prune took no lock of its process."""
    conversation = Conversation(saver)
    await conversation.turns(2)
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute("alter system set synchronous_standby_names = 'away'")
        admin.execute("select pg_reload_conf()")
        try:
            arguments = [postgres.url, redis_url, redis_prefix]
            with subprocess.Popen([sys.executable, "-c", PRUNER, *arguments]) as pruner:
                await eventually(lambda: _waits_for(postgres.url, "SyncRep"))
                pruner.kill()
            await asyncio.sleep(1.5)  # past the fence's deadline
            for _ in range(5):
                await conversation.check()
            assert saver.stats()["fences_expired"] == 0, "its transaction is still there"
        finally:
            admin.execute("alter system reset synchronous_standby_names")
            admin.execute("select pg_reload_conf()")

    async def is_pruned() -> bool:
        found = await saver.aget_tuple(conversation.config)
        return found is not None and found.parent_config is None

    await eventually(is_pruned)
    await until_served(saver, conversation.config)
    assert await is_pruned()


async def _waits_for(url: str, event: str) -> bool:
    async with await psycopg.AsyncConnection.connect(url) as conn:
        found = await conn.execute(
            "select from pg_stat_activity where %s in (wait_event, wait_event_type)", [event]
        )
        return await found.fetchone() is not None
