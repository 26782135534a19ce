"""Entries in Redis, and the steps of the coherence protocol on them; each is one script in `lua/`."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, TypeAlias

from langgraph_checkpoint_cached.records import History, Latest, Namespace, Put, PutWrites
from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.stores.redis.delta_history_format import (
    EntryHistories,
    decode_histories,
    history_fields,
)
from langgraph_checkpoint_cached.stores.redis.entry_format import (
    Fields,
    decode_entry,
    entry_fields,
    is_too_large,
    put_arguments,
    writes_arguments,
)
from langgraph_checkpoint_cached.stores.redis.executor import ScriptExecutor
from langgraph_checkpoint_cached.stores.redis.fences import Fence, Fences
from langgraph_checkpoint_cached.stores.redis.health import ConnectionDropped, RedisFull, RedisUnavailable
from langgraph_checkpoint_cached.stores.redis.integrity import CHECKSUMS, Integrity
from langgraph_checkpoint_cached.stores.redis.invalidation import unlink_entries
from langgraph_checkpoint_cached.stores.redis.keys import ENTRY_KEYS, thread_key
from langgraph_checkpoint_cached.stores.redis.keyspace import Keyspace
from langgraph_checkpoint_cached.stores.redis.positions import LeasePosition, parse_position
from langgraph_checkpoint_cached.stores.redis.script_call import Argument
from langgraph_checkpoint_cached.stores.redis.scripts import (
    BEGIN_THREAD,
    COMMIT_DROP,
    COMMIT_PUT,
    COMMIT_WRITES,
    END_THREAD,
    FILL,
    FILL_HISTORY,
    HISTORY_FILL_LEASE,
    READ,
    RELEASE_FILL_LEASE,
    Script,
)
from langgraph_checkpoint_cached.utils.tokens import new_token

FILL_LEASE_MS = 5_000
"""After this long a reader that took the fill lease is not waited for any more: it may have died."""
LARGE_BYTES = 256 * 1024
"""Size from which an entry is read over another connection, so that other calls need not wait behind it."""
READ_ATTEMPTS_MAX = 5
"""Attempts of one READ, each over another connection."""
EMPTY_MS = 60_000
"""Time for which "this namespace has no checkpoint" is remembered."""


@dataclass(frozen=True)
class Hit:
    """Fields of the entry, as they stand in Redis."""

    fields: Mapping[bytes, bytes]


@dataclass(frozen=True)
class FillLease:
    """Right to load the namespace and to fill its entry, for this generation.

    Where the thread has a lease, Postgres may lack writes that Redis has acknowledged. Where fences are past their
    deadline, a write may still be on its way: Postgres is to be asked for transactions of their owners first.
    """

    generation: str
    lease: LeasePosition | None = None
    overdue: Mapping[str, str] = field(default_factory=dict)
    """Fences past their deadline: token -> owner."""


class MissReason(Enum):
    """Why there is neither an entry nor a fill lease."""

    WAIT = b"wait"
    """Another reader has the fill lease."""
    FENCED = b"fenced"
    """A write is in flight."""
    ABSENT = b"absent"
    """The entry is another checkpoint's, or there is none."""
    EMPTY = b"empty"
    """The namespace has no checkpoint."""


@dataclass(frozen=True)
class EntryMiss:
    """No entry, and no fill lease either."""

    reason: MissReason
    lease: LeasePosition | None = None


ReadReply: TypeAlias = "Hit | FillLease | EntryMiss"


class EntryUpdate(NamedTuple):
    """Change that COMMIT makes to the entry: by its own arguments, or by dropping it."""

    script: Script
    arguments: Fields


DROP = EntryUpdate(COMMIT_DROP, [])


class CommitResult(NamedTuple):
    """Result of COMMIT."""

    updated: bool
    """True if the entry was updated. If not, it was dropped, or there was none."""
    was_fenced: bool
    """True if the write's fence was still active."""


def parse_commit(reply: int | None) -> CommitResult:
    """Return the result that a reply to COMMIT stands for; `lua/commit_functions.lua` says what it may be."""
    return CommitResult(reply == 1, reply is not None)


def _parse_miss(kind: bytes, generation: bytes, overdue: Sequence[bytes], lease: bytes) -> FillLease | EntryMiss:
    """Return what a reply to READ stands for that is no hit."""
    position = parse_position(lease)
    if kind != b"load":
        return EntryMiss(MissReason(kind), position)
    fences = [part.decode() for part in overdue]
    owners = dict(zip(fences[::2], fences[1::2], strict=True))
    return FillLease(generation.decode(errors="replace"), position, owners)


class RedisEntries:
    """Entries of the namespaces. Every method raises `RedisUnavailable` when Redis could not do it.

    Args:
        runtime: Counters.
        executor: Runs the scripts.
        keyspace: Keys, and the life of an entry.
        fences: Fences of this process, of which a read releases the one that is in its way.
        integrity: Checksums or signatures of every part of an entry.
    """

    def __init__(
        self,
        runtime: Runtime,
        executor: ScriptExecutor,
        keyspace: Keyspace,
        fences: Fences,
        integrity: Integrity = CHECKSUMS,
    ) -> None:
        self._stats, self._executor, self._keyspace = runtime.stats, executor, keyspace
        self.fences, self._integrity = fences, integrity
        self._refresh = "1" if keyspace.ttl.sliding else "0"

    async def read(
        self,
        namespace: Namespace,
        fill_token: str,
        checkpoint_id: str = "",
        *,
        attempts: int = READ_ATTEMPTS_MAX,
    ) -> ReadReply:
        """READ: the entry, or what to do instead. With a `checkpoint_id`, an entry of that checkpoint only.

        A caller that is cancelled here has no fill lease.
        """
        if not self._executor.health.serving:
            raise RedisUnavailable(
                "not asked: Redis recovered less than 3 s ago and other processes may still be disconnected"
            )
        if not self._keyspace.database.is_known:
            raise RedisUnavailable("not asked: Postgres has not told which one it is")
        fence = self.fences.hand_over(namespace)
        keys, name, _ = ENTRY_KEYS[self._keyspace.prefix, namespace]
        random, ttl = self._keyspace.database.tag + new_token(), self._keyspace.ttl_text
        released, lease_ms = "" if fence is None else fence.token, str(FILL_LEASE_MS)
        reading = self._executor.submit(
            READ,
            keys,
            (name, random, ttl, fill_token, lease_ms, self._refresh, checkpoint_id, released, str(LARGE_BYTES)),
            now=True,
        )
        if fence is not None:
            self._take_back_unless_read(fence, reading)
        try:
            reply = await reading
        except asyncio.CancelledError:
            self._submit(RELEASE_FILL_LEASE, namespace, fill_token)  # queued, so it runs after READ
            raise
        except ConnectionDropped:  # it may have taken the fill lease, which READ would then wait for
            self._submit(RELEASE_FILL_LEASE, namespace, fill_token)
            if attempts <= 1:
                raise
            return await self.read(namespace, fill_token, checkpoint_id, attempts=attempts - 1)
        if reply[0] == b"large":  # by its id, with which no fill lease is taken
            large_id = reply[4].decode(errors="replace")
            arguments = (name, random, ttl, fill_token, lease_ms, self._refresh, large_id, "", "")
            reply = await self._executor.run_aside(READ, keys, arguments)
        if reply[0] == b"hit":
            flat = reply[1]
            return Hit(dict(zip(flat[::2], flat[1::2], strict=True)))
        return _parse_miss(*reply)

    def decode(self, namespace: Namespace, hit: Hit) -> Latest | None:
        """Return the entry that was hit, None for an opaque one. Raises `DamagedEntry`."""
        return decode_entry(namespace, hit.fields, self._integrity)

    def fill(
        self, namespace: Namespace, fill_token: str, fill_lease: FillLease, latest: Latest
    ) -> Coroutine[Any, Any, bool]:
        """FILL: return whether what was loaded became the entry. Queued when this returns.

        The fences of the fill lease that are past their deadline go; they must have been settled before the load.
        """
        ttl_ms, fields = self._keyspace.ttl.milliseconds, entry_fields(namespace, latest, self._integrity)
        self._stats.loads_too_large += is_too_large(fields)
        filling = self._submit(
            FILL,
            namespace,
            fill_token,
            fill_lease.generation,
            "1" if latest.thread_is_empty else "0",
            "".join(f"{token} " for token in fill_lease.overdue),
            *fields,
            ttl_ms=ttl_ms if latest.record is not None else min(ttl_ms, EMPTY_MS),
        )
        return self._filled(namespace, fill_token, fill_lease, filling)

    async def release_fill_lease(self, namespace: Namespace, fill_token: str) -> None:
        """Release the fill lease, if it is still held."""
        await self._submit(RELEASE_FILL_LEASE, namespace, fill_token)

    def histories(
        self, namespace: Namespace, checkpoint_id: str, fields: Mapping[bytes, bytes]
    ) -> EntryHistories | None:
        """Return the histories in an entry of this checkpoint, None if it has none. Raises `DamagedEntry`."""
        return decode_histories(namespace, checkpoint_id, fields, self._integrity)

    async def history_fill_lease(
        self, namespace: Namespace, fill_token: str, checkpoint_id: str
    ) -> tuple[str, Mapping[bytes, bytes]] | None:
        """FILL LEASE for the history at the entry's checkpoint: return the generation, and the entry's fields.

        None if the entry is another, or a write is in flight. It need not be released.
        """
        reply = await self._submit(HISTORY_FILL_LEASE, namespace, fill_token, checkpoint_id)
        if not reply:
            return None
        flat = reply[1]
        return reply[0].decode(errors="replace"), dict(zip(flat[::2], flat[1::2], strict=True))

    async def fill_history(
        self,
        namespace: Namespace,
        fill_token: str,
        generation: str,
        checkpoint_id: str,
        histories: Mapping[str, History],
    ) -> bool:
        """FILL HISTORY: return whether the histories were put beside the entry."""
        fields = history_fields(namespace, checkpoint_id, histories, self._integrity)
        if fields is None:
            return False
        try:
            filling = self._submit(FILL_HISTORY, namespace, fill_token, generation, checkpoint_id, *fields)
            return bool(await filling)
        except RedisFull:
            return False

    def entry_update_for(self, operation: Put | PutWrites) -> EntryUpdate:
        """Return what a write does to the entry."""
        if isinstance(operation, Put):
            script, arguments = COMMIT_PUT, put_arguments(operation, self._integrity)
        else:
            script, arguments = COMMIT_WRITES, writes_arguments(operation, self._integrity)
        return DROP if arguments is None else EntryUpdate(script, arguments)

    def commit(
        self, fence: Fence, update: EntryUpdate, *, retain: bool = False, now: bool = False
    ) -> asyncio.Future[int | None]:
        """COMMIT a write under its fence; `parse_commit` says what the reply means. Queued when this returns.

        Args:
            fence: Fence of the write.
            update: What it does to the entry.
            retain: Leave the fence active.
            now: Do not wait for other calls to be sent with it.
        """
        keys, name, _ = ENTRY_KEYS[self._keyspace.prefix, fence.namespace]
        owner = f"{self.fences.owner} retain" if retain else self.fences.owner
        random, ttl = self._keyspace.database.tag + new_token(), self._keyspace.ttl_text
        arguments = (name, random, ttl, fence.token, owner, *update.arguments)
        return self._executor.submit(update.script, keys, arguments, in_order=True, now=now)

    async def begin_thread(self, thread_id: str, token: str) -> LeasePosition | None:
        """BEGIN over all namespaces of a thread, and remove their entries. Return its lease.

        Under the fence nothing is stored anew: should this process die as soon as Postgres has deleted something,
        no text of it stays in Redis.
        """
        arguments = self._keyspace.thread_arguments(token, self.fences.owner, self.fences.ttl_text)
        key = thread_key(self._keyspace.prefix, thread_id)
        lease = parse_position(await self._executor.submit(BEGIN_THREAD, [key], arguments))
        await unlink_entries(self._executor, [key])
        return lease

    async def end_thread(self, thread_id: str, *tokens: str) -> None:
        """COMMIT over all namespaces of a thread: invalidate every entry and the lease, release these fences.

        Where a fence did not hold to the end, what was stored meanwhile is removed too.
        """
        key = thread_key(self._keyspace.prefix, thread_id)
        removed = await self._executor.submit(END_THREAD, [key], self._keyspace.thread_arguments(*tokens))
        if removed < len(tokens):
            await unlink_entries(self._executor, [key])

    async def discard(self, namespace: Namespace) -> None:
        """Remove the entry and the fill lease, as an eviction would."""
        await self._submit(COMMIT_DROP, namespace, new_token(), self.fences.owner, in_order=True)

    async def drain(self) -> None:
        """Wait until nothing is queued or under way."""
        await self._executor.drain()

    async def _filled(
        self, namespace: Namespace, fill_token: str, fill_lease: FillLease, filling: asyncio.Future[Any]
    ) -> bool:
        try:
            reply = await filling
        except RedisFull:
            await self.release_fill_lease(namespace, fill_token)  # nobody else is to wait for this
            return False
        if reply:
            self._executor.note_memory_available()
            self._stats.fences_expired += len(fill_lease.overdue)
        return bool(reply)

    def _take_back_unless_read(self, fence: Fence, reading: asyncio.Future[Any]) -> None:
        def on_read(reading: asyncio.Future[Any]) -> None:
            if not reading.cancelled() and isinstance(reading.exception(), RedisUnavailable):
                self.fences.take_back(fence)

        reading.add_done_callback(on_read)

    def _submit(
        self,
        script: Script,
        namespace: Namespace,
        *arguments: Argument,
        ttl_ms: int | None = None,
        in_order: bool = False,
    ) -> asyncio.Future[Any]:
        keys, name, _ = ENTRY_KEYS[self._keyspace.prefix, namespace]
        ttl = self._keyspace.ttl_text if ttl_ms is None else str(ttl_ms)
        random = self._keyspace.database.tag + new_token()
        return self._executor.submit(script, keys, (name, random, ttl, *arguments), in_order=in_order)
