"""L1: the entries in Redis, and the steps of the coherence protocol on them.

Each step is one script in `lua/`, atomic on the server; what each promises is said there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from glob import escape as glob_escape
from typing import Any, Literal, NamedTuple, TypeAlias

from langgraph_checkpoint_cached.records import History, Latest, Namespace, Put, PutWrites
from langgraph_checkpoint_cached.stats import Stats
from langgraph_checkpoint_cached.stores.redis.delta_history_format import (
    EntryHistories,
    decode_histories,
    history_fields,
)
from langgraph_checkpoint_cached.stores.redis.entry_format import (
    Fields,
    decode_entry,
    entry_fields,
    put_arguments,
    writes_arguments,
)
from langgraph_checkpoint_cached.stores.redis.executor import (
    BATCH_CALLS_MAX,
    RedisFull,
    RedisUnavailable,
    ScriptExecutor,
)
from langgraph_checkpoint_cached.stores.redis.integrity import CHECKSUMS, Integrity
from langgraph_checkpoint_cached.stores.redis.keys import entry_keys, thread_key
from langgraph_checkpoint_cached.stores.redis.script_call import Argument
from langgraph_checkpoint_cached.stores.redis.scripts import Script, lua
from langgraph_checkpoint_cached.ttl import Ttl
from langgraph_checkpoint_cached.utils.tokens import new_token

FENCE_MS = 30_000
"""A write that takes longer is taken for lost: its namespace is read from Postgres meanwhile, and after it."""
FILL_LEASE_MS = 5_000
"""After which a reader that took the right to fill and died is not waited for any more."""
EMPTY_MS = 60_000
"""How long "this namespace has no checkpoint" is remembered."""

SHARED = (lua("server"), lua("thread"))
CHANGES = lua("history_functions")
_COMMIT = (*SHARED, CHANGES, lua("commit_functions"))
READ = Script(*SHARED, lua("read"))
FILL = Script(*SHARED, lua("fill"))
HISTORY_FILL_LEASE = Script(*SHARED, lua("history_fill_lease"))
FILL_HISTORY = Script(*SHARED, CHANGES, lua("fill_history"))
RELEASE_FILL_LEASE = Script(*SHARED, lua("release_fill_lease"))
BEGIN = Script(*SHARED, lua("begin"))
COMMIT_PUT = Script(*_COMMIT, lua("commit_put"))
COMMIT_WRITES = Script(*_COMMIT, lua("commit_writes"))
COMMIT_DROP = Script(*_COMMIT, lua("commit_drop"))
COMMITS = (COMMIT_PUT, COMMIT_WRITES, COMMIT_DROP)
RELEASE = Script(*SHARED, lua("release"))
BEGIN_THREAD = Script(*SHARED, lua("begin_thread"))
END_THREAD = Script(*SHARED, lua("end_thread"))


@dataclass(frozen=True)
class Hit:
    """The entry's fields, as they stand in Redis."""

    fields: Mapping[bytes, bytes]


class LeasePosition(NamedTuple):
    """What Redis says of a thread's lease: its token, and the last number in its journal."""

    token: str
    last: int


@dataclass(frozen=True)
class Load:
    """The fill lease: load, then fill for this generation. Postgres may be behind where there is a lease."""

    generation: str
    lease: LeasePosition | None = None


@dataclass(frozen=True)
class Miss:
    """No entry, and no fill lease either."""

    why: Literal["wait", "fenced", "absent", "empty"]
    lease: LeasePosition | None = None


@dataclass(frozen=True)
class FenceAck:
    """A fence that stands. `known` is whether Redis can tell that there is no lease where it names none."""

    lease: LeasePosition | None
    known: bool


ReadAnswer: TypeAlias = "Hit | Load | Miss"


class EntryUpdate(NamedTuple):
    """How COMMIT changes the entry: by its own arguments, or by dropping it."""

    script: Script
    arguments: Fields


DROP = EntryUpdate(COMMIT_DROP, [])


class RedisEntries:
    """The entries of one saver's process. Every method raises `RedisUnavailable` when it could not be done.

    Args:
        guard: Runs the scripts.
        prefix: What every key starts with.
        life: How long an entry lives, and whether reads extend that.
        stats: Where expired fences are counted.
        seal: Of every part of an entry.
    """

    def __init__(
        self, executor: ScriptExecutor, prefix: str, life: Ttl, stats: Stats, seal: Integrity = CHECKSUMS
    ) -> None:
        self._executor, self._prefix, self._life, self._stats, self._seal = executor, prefix, life, stats, seal
        self._owner = new_token()
        self.take_idle_fence: Callable[[Namespace], tuple[str, Callable[[asyncio.Future[Any]], None]] | None] = (
            lambda namespace: None
        )
        """What READ releases first: a fence of this process that no write is under, and who is to hear of it."""

    async def read(self, namespace: Namespace, fill_token: str, checkpoint_id: str = "") -> ReadAnswer:
        """READ: the entry, or what to do instead. With a `checkpoint_id`, an entry of that checkpoint only.

        A caller that is cancelled here has no fill lease.
        """
        if not self._executor.flush_waits:
            raise RedisUnavailable(
                "not asked: it was away until a moment ago, and other processes may lack it still"
            )
        over, released = self.take_idle_fence(namespace) or ("", None)
        refresh = "1" if self._life.sliding else "0"
        reply = self._submit(
            READ, namespace, fill_token, str(FILL_LEASE_MS), refresh, checkpoint_id, over, now=True
        )
        if released is not None:
            reply.add_done_callback(released)
        try:
            answer = await reply
        except asyncio.CancelledError:
            self._submit(RELEASE_FILL_LEASE, namespace, fill_token)  # queued, so after READ
            raise
        kind = answer[0]
        if kind == b"hit":
            flat = answer[1]
            return Hit(dict(zip(flat[::2], flat[1::2], strict=True)))
        self._stats.fences_expired += answer[2]
        lease = _acknowledged(answer[3])
        return Load(answer[1].decode(), lease) if kind == b"load" else Miss(kind.decode(), lease)

    def decode(self, namespace: Namespace, hit: Hit) -> Latest | None:
        """The entry that was hit, or None for an opaque one. Raises `DamagedEntry`."""
        return decode_entry(namespace, hit.fields, self._seal)

    def fill(self, namespace: Namespace, fill_token: str, load: Load, latest: Latest) -> Coroutine[Any, Any, bool]:
        """FILL: whether what was loaded became the entry. Queued when this returns."""
        ttl_ms = self._life.milliseconds
        reply = self._submit(
            FILL,
            namespace,
            fill_token,
            load.generation,
            "1" if latest.thread_is_empty else "0",
            *entry_fields(namespace, latest, self._seal),
            ttl_ms=ttl_ms if latest.record is not None else min(ttl_ms, EMPTY_MS),
        )
        return self._filled(namespace, fill_token, reply)

    async def _filled(self, namespace: Namespace, fill_token: str, reply: asyncio.Future[Any]) -> bool:
        try:
            answer = await reply
        except RedisFull:
            await self.release_fill_lease(namespace, fill_token)  # nobody else is to wait for this
            return False
        if answer:
            self._executor.note_memory_available()
        return bool(answer)

    def histories(
        self, namespace: Namespace, checkpoint_id: str, fields: Mapping[bytes, bytes]
    ) -> EntryHistories | None:
        """The histories in an entry of this checkpoint, or None. Raises `DamagedEntry`."""
        return decode_histories(namespace, checkpoint_id, fields, self._seal)

    async def history_fill_lease(
        self, namespace: Namespace, fill_token: str, checkpoint_id: str
    ) -> tuple[str, Mapping[bytes, bytes]] | None:
        """FILL LEASE for the history at the entry's checkpoint: the generation, and the entry's fields.

        None if the entry is another, or a write is in flight. A fill lease needs not be given back.
        """
        answer = await self._submit(HISTORY_FILL_LEASE, namespace, fill_token, checkpoint_id)
        if not answer:
            return None
        flat = answer[1]
        return answer[0].decode(), dict(zip(flat[::2], flat[1::2], strict=True))

    async def fill_history(
        self,
        namespace: Namespace,
        fill_token: str,
        generation: str,
        checkpoint_id: str,
        histories: Mapping[str, History],
    ) -> bool:
        """FILL HISTORY: returns whether it was put beside the entry."""
        fields = history_fields(namespace, checkpoint_id, histories, self._seal)
        if fields is None:
            return False
        try:
            return bool(
                await self._submit(FILL_HISTORY, namespace, fill_token, generation, checkpoint_id, *fields)
            )
        except RedisFull:
            return False

    async def release_fill_lease(self, namespace: Namespace, fill_token: str) -> None:
        """Gives up the fill lease, if it is still held."""
        await self._submit(RELEASE_FILL_LEASE, namespace, fill_token)

    def begin(self, namespace: Namespace, token: str) -> asyncio.Future[bytes]:
        """BEGIN: fences the namespace. Queued when this returns; `begun` says what the answer means."""
        return self._submit(BEGIN, namespace, token, self._owner, str(FENCE_MS))

    def entry_update_for(self, operation: Put | PutWrites) -> EntryUpdate:
        """What a write does to the entry."""
        if isinstance(operation, Put):
            script, arguments = COMMIT_PUT, put_arguments(operation, self._seal)
        else:
            script, arguments = COMMIT_WRITES, writes_arguments(operation, self._seal)
        return DROP if arguments is None else EntryUpdate(script, arguments)

    def commit(
        self,
        namespace: Namespace,
        token: str,
        entry_update: EntryUpdate,
        *,
        retain: bool = False,
        now: bool = False,
    ) -> asyncio.Future[int | None]:
        """COMMIT: releases the fence, or keeps it. Queued when this returns; with `now` no other is waited for.

        1 if the entry was advanced, not dropped; below 0, the number of fences that were past their deadline; None
        if the fence was not there any more.
        """
        owner = f"{self._owner} keeps" if retain else self._owner
        return self._submit(entry_update.script, namespace, token, owner, *entry_update.arguments, now=now)

    def release(self, thread_id: str, token: str) -> asyncio.Future[int]:
        """RELEASE: removes a fence that no write is under. Queued when this returns."""
        # It takes one key: a Cluster that is moving the thread's slot refuses what takes more.
        return self._executor.submit(RELEASE, [thread_key(self._prefix, thread_id)], self._thread_arguments(token))

    async def begin_thread(self, thread_id: str, token: str) -> LeasePosition | None:
        """BEGIN over all namespaces of a thread. Returns its lease."""
        key = thread_key(self._prefix, thread_id)
        reply = await self._executor.submit(
            BEGIN_THREAD, [key], self._thread_arguments(token, self._owner, str(FENCE_MS))
        )
        return _acknowledged(reply)

    async def end_thread(self, thread_id: str, *tokens: str) -> None:
        """COMMIT over all namespaces of a thread: invalidates every entry and the lease, releases these fences."""
        key = thread_key(self._prefix, thread_id)
        await self._executor.submit(END_THREAD, [key], self._thread_arguments(*tokens))

    async def discard(self, namespace: Namespace) -> None:
        """Removes the entry and the fill lease, as an eviction would."""
        await self._submit(COMMIT_DROP, namespace, new_token(), self._owner)

    async def invalidate_threads(self, stale_threads: Mapping[str, Iterable[str]]) -> None:
        """Invalidates every entry of these threads and removes these fences of each, even while the guard lets no
        call through.
        """
        await self._invalidate(
            {thread_key(self._prefix, thread_id): tokens for thread_id, tokens in stale_threads.items()}
        )

    async def invalidate_all(self, invalidated: Callable[[int], None] = lambda count: None) -> None:
        """Invalidates every entry of every thread, by a scan, even while the guard lets no call through.

        Args:
            invalidated: Told after each step, of how many threads the entries are invalidate.
        """
        some: dict[str, Iterable[str]] = {}
        async for key in self.keys(":{*}:thread"):
            some[key] = ()
            if len(some) == BATCH_CALLS_MAX:
                await self._invalidate(some)
                invalidated(len(some))
                some = {}
        await self._invalidate(some)
        invalidated(len(some))

    def keys(self, pattern: str) -> AsyncIterator[str]:
        """The keys that match a glob after the prefix, by a scan: some perhaps twice."""
        return self._executor.keys(glob_escape(self._prefix) + pattern)

    async def drain(self) -> None:
        """Waits until nothing is queued or under way."""
        await self._executor.drain()

    def _submit(
        self,
        script: Script,
        namespace: Namespace,
        *arguments: Argument,
        ttl_ms: int | None = None,
        now: bool = False,
    ) -> asyncio.Future[Any]:
        keys, name = entry_keys(self._prefix, namespace)
        shared = (name, new_token(), str(ttl_ms or self._life.milliseconds))
        in_order = script in COMMITS
        return self._executor.submit(script, keys, (*shared, *arguments), in_order=in_order, now=now)

    async def _invalidate(self, fences: Mapping[str, Iterable[str]]) -> None:
        await self._executor.force(
            [(END_THREAD, [key], self._thread_arguments(*tokens)) for key, tokens in fences.items()]
        )

    def _thread_arguments(self, *arguments: Argument) -> Sequence[Argument]:
        return ["", new_token(), str(self._life.milliseconds), *arguments]


def begun(answer: bytes) -> FenceAck:
    """What BEGIN answers."""
    return FenceAck(_acknowledged(answer), answer != b"?")


def _acknowledged(answer: bytes) -> LeasePosition | None:
    token, _, last = answer.decode().partition(" ")
    return LeasePosition(token, int(last)) if last else None


__all__ = [
    "DROP",
    "EntryUpdate",
    "FenceAck",
    "Hit",
    "LeasePosition",
    "Load",
    "Miss",
    "ReadAnswer",
    "RedisEntries",
    "RedisUnavailable",
    "begun",
]
