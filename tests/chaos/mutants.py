"""Savers broken on purpose, each in one rule: every checker has to find one of them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.database_identity import DatabaseIdentity
from langgraph_checkpoint_cached.engine import read_path
from langgraph_checkpoint_cached.engine.invalidation import StaleThreadInvalidator
from langgraph_checkpoint_cached.engine.journal_replayer import JournalReplayer
from langgraph_checkpoint_cached.engine.write_behind import WriteBehindQueue
from langgraph_checkpoint_cached.stores.postgres import store
from langgraph_checkpoint_cached.stores.postgres.known_parents import KnownParents
from langgraph_checkpoint_cached.stores.postgres.stale_threads import StaleThread
from langgraph_checkpoint_cached.stores.redis import scripts
from langgraph_checkpoint_cached.stores.redis.entries import DROP, RedisEntries
from langgraph_checkpoint_cached.stores.redis.executor import ScriptExecutor
from langgraph_checkpoint_cached.stores.redis.scripts import Script
from tests.support.inspect import (
    APPENDED,
    BEGIN_FENCE,
    FLUSH_ALL,
    READ_ENTRY,
    forget_append,
    forget_stale_threads,
    inspect,
)

ACKNOWLEDGED_EARLY_SECONDS = 0.05
FILL_SECONDS_MAX = 0.1
FLUSH_DELAY_SECONDS_MAX = 0.5
SCRIPTS = tuple(script for script in vars(scripts).values() if isinstance(script, Script))


@dataclass(frozen=True)
class Mutant:
    """A rule that is dropped, how, the faults that show it, and the checkers of which one has to find it."""

    rule: str
    apply: Callable[[], None]
    nemesis: str
    checkers: tuple[str, ...]
    mode: str = "write_through"


def _in_scripts(*changes: tuple[str, str]) -> Callable[[], None]:
    """Replaces texts in the Lua scripts, wherever they are."""

    def apply() -> None:
        found = set()
        for script in SCRIPTS:
            text = script.text
            for old, new in changes:
                if old in text:
                    found.add(old)
                text = text.replace(old, new)
            Script.__init__(script, text)
        assert found == {old for old, _ in changes}, "the scripts have changed: change the mutants too"

    return apply


def slow_loads() -> None:
    """No mutant in itself: what is loaded takes a while to be filled. That is what fill leases are for."""
    fill = RedisEntries.fill

    async def slow(self: RedisEntries, *args: Any) -> bool:
        await asyncio.sleep(random.uniform(0, FILL_SECONDS_MAX))
        return await fill(self, *args)

    RedisEntries.fill = slow  # type: ignore[method-assign]


def flush_late() -> None:
    """No mutant in itself: writes are flushed a while after Redis has them. That is what journals are for."""
    flush_all = FLUSH_ALL.get()

    async def late(self: WriteBehindQueue) -> None:
        await asyncio.sleep(random.uniform(0, FLUSH_DELAY_SECONDS_MAX))
        await flush_all(self)

    FLUSH_ALL.set(late)


def _fill_leases_survive() -> None:
    """A write does not invalidate the fill lease."""
    slow_loads()
    _in_scripts(
        ("redis.call('HDEL', namespace, 't', 'dt')", ""),
        (
            "redis.call('DEL', namespace)",
            "local t = redis.call('HGET', namespace, 't'); redis.call('DEL', namespace);"
            " if t then redis.call('HSET', namespace, 't', t) redis.call('PEXPIRE', namespace, 5000) end",
        ),
    )()


def _nothing_invalidated() -> None:
    """Redis learns of no write."""

    def answering(answer: Any) -> Callable[..., asyncio.Future[Any]]:
        def ack(self: RedisEntries, *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
            done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            done.set_result(answer)
            return done

        return ack

    BEGIN_FENCE.set(answering(b""))
    RedisEntries.commit = answering(1)  # type: ignore[method-assign]


def _acknowledged_early() -> None:
    """Writes return before Postgres has them, and nobody hears when it fails."""
    stored, under_way = store.PostgresStore.store, set()

    async def early(self: Any, operations: Any, *options: Any) -> list[bool]:
        async def late() -> None:
            await asyncio.sleep(ACKNOWLEDGED_EARLY_SECONDS)
            await stored(self, operations, *options)

        under_way.add(task := asyncio.ensure_future(late()))
        task.add_done_callback(lambda task: (under_way.discard(task), task.cancelled() or task.exception()))
        return [True] * len(operations)

    store.PostgresStore.store = early  # type: ignore[method-assign]


def _stale_threads_forgotten() -> None:
    """Stale threads are not invalidated when Redis is back."""

    async def forget(self: StaleThreadInvalidator) -> None:
        forget_stale_threads(self)

    async def skip(self: StaleThreadInvalidator, page: Sequence[StaleThread]) -> Sequence[StaleThread]:
        return page

    StaleThreadInvalidator.invalidate_stale = StaleThreadInvalidator.invalidate_recorded = forget  # type: ignore[method-assign]
    StaleThreadInvalidator.invalidate_seen = skip  # type: ignore[method-assign]


def _replies_crossed() -> None:
    """Now and then a hit is answered with the one before it, whatever thread that was of."""
    entry, last = READ_ENTRY.get(), []

    async def crossed(self: read_path.ReadPath, namespace: Any, hit: Any) -> Any:
        found = await entry(self, namespace, hit)
        last[:] = [*last[-1:], found]
        return last[0] if random.random() < 0.02 else found

    READ_ENTRY.set(crossed)


def _never_settled() -> None:
    """A fence whose writer died stays for days."""
    submit = ScriptExecutor.submit

    def longer(self: ScriptExecutor, script: Script, keys: Any, arguments: Any, **options: Any) -> Any:
        if script is scripts.BEGIN:
            arguments = (*arguments[:-1], str(10 * 24 * 3_600_000))
        return submit(self, script, keys, arguments, **options)

    ScriptExecutor.submit = longer  # type: ignore[method-assign]


def _leaking() -> None:
    """Now and then a read keeps a connection to each server, and a task."""
    read, kept = CachedPostgresSaver.aget_tuple, []

    async def leaky(self: CachedPostgresSaver, config: Any) -> Any:
        if len(kept) < 3:
            kept.append(await inspect(self).redis.connection_pool.get_connection())  # type: ignore[no-untyped-call,union-attr]
            kept.append(asyncio.ensure_future(asyncio.sleep(3600)))
            kept.append(await inspect(self).upstream.conn.getconn())  # type: ignore[union-attr]
        return await read(self, config)

    CachedPostgresSaver.aget_tuple = leaky  # type: ignore[method-assign]


def _redis_needed() -> None:
    """A Redis that cannot be used is an error of the read."""
    read = CachedPostgresSaver.aget_tuple

    async def strict(self: CachedPostgresSaver, config: Any) -> Any:
        before = inspect(self).stats.degraded_reads
        found = await read(self, config)
        if inspect(self).stats.degraded_reads > before:
            raise ConnectionError("Redis cannot be reached")
        return found

    CachedPostgresSaver.aget_tuple = strict  # type: ignore[method-assign]


def _rolled_back_unseen() -> None:
    """A write that Postgres has stored is said to have failed, now and then."""
    original = store.PostgresStore.store

    async def wrong(self: Any, operations: Any, *options: Any) -> list[bool]:
        stored = await original(self, operations, *options)
        if random.random() < 0.02:
            raise ValueError("not stored")
        return stored

    store.PostgresStore.store = wrong  # type: ignore[method-assign]


def _never_there() -> None:
    """COMMIT drops entries that it should leave, and reads fill nothing: nothing is ever served from Redis."""

    async def no_fill(self: RedisEntries, *args: Any) -> bool:
        return False

    RedisEntries.fill = no_fill  # type: ignore[method-assign]
    RedisEntries.entry_update_for = lambda self, operation: DROP  # type: ignore[method-assign]


def _never_behind() -> None:
    """Reads do not wait for the flush to Postgres."""
    JournalReplayer.is_flushed = staticmethod(lambda ack, row: True)  # type: ignore[method-assign]


def _memory_lost() -> None:
    """A holder forgets what it has appended."""
    appended = APPENDED.get()

    def forgetful(self: WriteBehindQueue, lease: Any, kept: Any, *rest: Any) -> None:
        appended(self, lease, kept, *rest)
        if kept.number is not None:
            forget_append(self, lease, kept)

    APPENDED.set(forgetful)


def _never_recovered() -> None:
    """The leases of those that died stay."""

    async def skip(self: JournalReplayer) -> None:
        pass

    JournalReplayer.recover = skip  # type: ignore[method-assign]


def _built_on_lost() -> None:
    """Entries outlive the commits that Postgres loses."""
    DatabaseIdentity.learn = lambda self, facts: setattr(self, "is_known", True)  # type: ignore[assignment, method-assign]
    DatabaseIdentity.__post_init__ = lambda self: setattr(self, "tag", "constant.")  # type: ignore[attr-defined]


def _parents_taken_for_granted() -> None:
    """Checkpoints are stored on what Postgres has lost."""

    async def no_check(self: KnownParents, operations: Any) -> None:
        pass

    KnownParents.check = no_check  # type: ignore[method-assign]


MUTANTS: dict[str, Mutant] = {
    "early": Mutant("write-through", _acknowledged_early, "pg-terminate,pg-cut,worker-kill", ("lost",)),
    "invalidation": Mutant(
        "fence, fill lease, confirm", _nothing_invalidated, "none", ("older", "backwards", "turns")
    ),
    "fill_token": Mutant(
        "fill_token",
        _fill_leases_survive,
        "redis-delete",
        ("older", "backwards"),
    ),
    "restart": Mutant(
        "restart",
        _in_scripts(
            (
                "return replid or error('this server does not tell its master_replid')",
                "return string.rep('0', 40)",
            )
        ),
        "redis-snapshot,redis-failover",
        ("older", "backwards", "tiers"),
    ),
    "stale_threads": Mutant("stale_threads", _stale_threads_forgotten, "cut-one,stall-one", ("older", "tiers")),
    "writes": Mutant(
        "COMMIT of pending writes",
        _in_scripts(("redis.call('HSETNX', namespace, field, value)", "")),
        "none",
        ("older", "tiers"),
    ),
    "crossed": Mutant("the entry is checked", _replies_crossed, "none", ("values",)),
    "expiry": Mutant(
        "every key expires",
        _in_scripts(("if redis.call('PTTL', key) < ms then redis.call('PEXPIRE', key, ms) end", "")),
        "none",
        ("keys",),
    ),
    "settle": Mutant("settle", _never_settled, "worker-kill,pg-cut,pg-terminate", ("fences",)),
    "leak": Mutant("nothing leaks", _leaking, "none", ("leaks",)),
    "available": Mutant("Redis is optional", _redis_needed, "redis-kill", ("available",)),
    "failed": Mutant("what failed is not there", _rolled_back_unseen, "none", ("failed",)),
    "useless": Mutant("it comes back", _never_there, "none", ("served",)),
    "complete": Mutant(
        "row, bypass, flush-first", _never_behind, "none", ("older", "backwards", "turns"), mode="write_behind"
    ),
    "journal": Mutant(
        "an acknowledged write is in the journal",
        _in_scripts(("redis.call(unpack(appended))", "")),
        "worker-kill-all",
        ("lost", "turns"),
        mode="write_behind",
    ),
    "memory": Mutant("memory", _memory_lost, "redis-kill", ("lost", "older", "turns"), mode="write_behind"),
    "identity": Mutant("identity", _built_on_lost, "pg-rewind", ("orphans", "backwards", "tiers")),
    "parent": Mutant("parent", _parents_taken_for_granted, "pg-rewind", ("orphans",)),
    "recovery": Mutant(
        "others end the leases of who dies",
        _never_recovered,
        "worker-kill-all",
        ("behind",),
        mode="write_behind",
    ),
}
