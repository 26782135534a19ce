"""L1: the entries in Redis, and the steps of the coherence protocol on them.

Each step is one script in `lua/`, atomic on the server; what each promises is said there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from glob import escape as glob_escape
from typing import Any, Literal, NamedTuple, TypeAlias

from langgraph_checkpoint_cached.envelope import (
    Fields,
    advance_arguments,
    decode_entry,
    entry_fields,
    writes_arguments,
)
from langgraph_checkpoint_cached.keys import Namespace, names_key, namespace_key, thread_key
from langgraph_checkpoint_cached.lifetimes import Lifetime
from langgraph_checkpoint_cached.records import Latest, Put, PutWrites
from langgraph_checkpoint_cached.seal import CHECKSUMS, Seal
from langgraph_checkpoint_cached.stats import Stats
from langgraph_checkpoint_cached.stores.guard import Guard, RedisFull, RedisUnavailable
from langgraph_checkpoint_cached.stores.scripts import Script, lua
from langgraph_checkpoint_cached.utilities.tokens import new_token

FENCE_MS = 30_000
"""A write that takes longer is taken for lost: its namespace is read from Postgres meanwhile, and after it."""
TICKET_MS = 5_000
"""After which a reader that took the right to fill and died is not waited for any more."""
EMPTY_MS = 60_000
"""How long "this namespace has no checkpoint" is remembered."""

_SHARED = (lua("server"), lua("thread"))
_COMMIT = (*_SHARED, lua("commit_functions"))
READ = Script(*_SHARED, lua("read"))
FILL = Script(*_SHARED, lua("fill"))
GIVE_BACK = Script(*_SHARED, lua("give_back"))
BEGIN = Script(*_SHARED, lua("begin"))
COMMIT_PUT = Script(*_COMMIT, lua("commit_put"))
COMMIT_WRITES = Script(*_COMMIT, lua("commit_writes"))
COMMIT_DROP = Script(*_COMMIT, lua("commit_drop"))
COMMITS = (COMMIT_PUT, COMMIT_WRITES, COMMIT_DROP)
BEGIN_THREAD = Script(*_SHARED, lua("begin_thread"))
END_THREAD = Script(*_SHARED, lua("end_thread"))


@dataclass(frozen=True)
class Hit:
    """The entry's fields, as they stand in Redis."""

    fields: Mapping[bytes, bytes]


@dataclass(frozen=True)
class Load:
    """The ticket: load, then fill for this generation."""

    generation: str


Miss: TypeAlias = Literal["wait", "fenced", "absent", "empty"]
ReadAnswer: TypeAlias = "Hit | Load | Miss"


class Advance(NamedTuple):
    """How COMMIT changes the entry: by its own arguments, or by dropping it."""

    script: Script
    arguments: Fields


DROP = Advance(COMMIT_DROP, [])


class RedisEntries:
    """The entries of one saver's process. Every method raises `RedisUnavailable` when it could not be done.

    Args:
        guard: Runs the scripts.
        prefix: What every key starts with.
        life: How long an entry lives, and whether reads extend that.
        stats: Where expired fences are counted.
        seal: Of every part of an entry.
    """

    def __init__(self, guard: Guard, prefix: str, life: Lifetime, stats: Stats, seal: Seal = CHECKSUMS) -> None:
        self._guard, self._prefix, self._life, self._stats, self._seal = guard, prefix, life, stats, seal
        self._owner = new_token()

    async def read(self, namespace: Namespace, ticket: str, checkpoint_id: str = "") -> ReadAnswer:
        """READ: the entry, or what to do instead. With a `checkpoint_id`, an entry of that checkpoint only.

        A caller that is cancelled here has no ticket.
        """
        if not self._guard.settled:
            raise RedisUnavailable(
                "not asked: it was away until a moment ago, and other processes may lack it still"
            )
        try:
            answer = await self._submit(
                READ, namespace, ticket, TICKET_MS, "1" if self._life.sliding else "0", checkpoint_id
            )
        except asyncio.CancelledError:
            self._submit(GIVE_BACK, namespace, ticket)  # queued, so after READ
            raise
        kind = answer[0]
        if kind == b"hit":
            flat = answer[1]
            return Hit(dict(zip(flat[::2], flat[1::2], strict=True)))
        if len(answer) > 2:
            self._stats.fences_expired += answer[2]
        if kind == b"load":
            return Load(answer[1].decode())
        return kind.decode()  # type: ignore[no-any-return]

    def decode(self, namespace: Namespace, hit: Hit) -> Latest | None:
        """The entry that was hit, or None for an opaque one. Raises `DamagedEntry`."""
        return decode_entry(namespace, hit.fields, self._seal)

    async def fill(self, namespace: Namespace, ticket: str, load: Load, latest: Latest) -> bool:
        """FILL: returns whether what was loaded became the entry."""
        life_ms = self._life.milliseconds
        if latest.record is None:
            life_ms = min(life_ms, EMPTY_MS)
        try:
            answer = await self._submit(
                FILL,
                namespace,
                ticket,
                load.generation,
                "1" if latest.thread_is_empty else "0",
                *entry_fields(namespace, latest, self._seal),
                life_ms=life_ms,
            )
        except RedisFull:
            await self.give_back(namespace, ticket)  # nobody else is to wait for this
            return False
        if answer:
            self._guard.has_room()
        return bool(answer)

    async def give_back(self, namespace: Namespace, ticket: str) -> None:
        """Gives up the ticket, if it is still held."""
        await self._submit(GIVE_BACK, namespace, ticket)

    def begin(self, namespace: Namespace, token: str) -> asyncio.Future[Any]:
        """BEGIN: fences the namespace. Queued when this returns."""
        return self._submit(BEGIN, namespace, token, self._owner, FENCE_MS)

    def advance_by(self, operation: Put | PutWrites) -> Advance:
        """What a write does to the entry."""
        if isinstance(operation, Put):
            script, arguments = COMMIT_PUT, advance_arguments(operation, self._seal)
        else:
            script, arguments = COMMIT_WRITES, writes_arguments(operation, self._seal)
        return DROP if arguments is None else Advance(script, arguments)

    def commit(self, namespace: Namespace, token: str, advance: Advance) -> asyncio.Future[int]:
        """COMMIT: releases the fence. Queued when this returns.

        1 if the entry was advanced, not dropped; below 0, the number of fences that were past their deadline.
        """
        return self._submit(advance.script, namespace, token, self._owner, *advance.arguments)

    async def begin_thread(self, thread_id: str, token: str) -> None:
        """BEGIN over all namespaces of a thread."""
        key = thread_key(self._prefix, thread_id)
        await self._guard.submit(BEGIN_THREAD, [key], self._thread_arguments(token, self._owner, FENCE_MS))

    async def end_thread(self, thread_id: str, token: str) -> None:
        """COMMIT over all namespaces of a thread: voids every entry, releases the fence."""
        key = thread_key(self._prefix, thread_id)
        await self._guard.submit(END_THREAD, [key], self._thread_arguments(token))

    async def discard(self, namespace: Namespace) -> None:
        """Removes the entry and the ticket, as an eviction would."""
        await self._submit(COMMIT_DROP, namespace, new_token(), self._owner)

    async def void_threads(self, suspects: Mapping[str, Iterable[str]]) -> None:
        """Voids every entry of these threads and removes these fences of each, even while the guard lets no call
        through.
        """
        await self._void({thread_key(self._prefix, thread_id): tokens for thread_id, tokens in suspects.items()})

    async def void_all(self) -> None:
        """Voids every entry of every thread, by a scan, even while the guard lets no call through."""
        async for key in self._guard.keys(glob_escape(self._prefix) + ":{*}:thread"):
            await self._void({key: ()})

    async def drain(self) -> None:
        """Waits until nothing is queued or under way."""
        await self._guard.drain()

    def _submit(
        self, script: Script, namespace: Namespace, *arguments: Any, life_ms: int | None = None
    ) -> asyncio.Future[Any]:
        keys = (
            thread_key(self._prefix, namespace.thread_id),
            namespace_key(self._prefix, namespace),
            names_key(self._prefix, namespace.thread_id),
        )
        shared = (keys[1].rpartition(":")[2], new_token(), life_ms or self._life.milliseconds)
        return self._guard.submit(script, keys, (*shared, *arguments), in_order=script in COMMITS)

    async def _void(self, fences: Mapping[str, Iterable[str]]) -> None:
        await self._guard.force(
            [(END_THREAD, [key], self._thread_arguments(*tokens)) for key, tokens in fences.items()]
        )

    def _thread_arguments(self, *arguments: Any) -> list[Any]:
        return ["", new_token(), self._life.milliseconds, *arguments]


__all__ = [
    "DROP",
    "Advance",
    "Hit",
    "Load",
    "Miss",
    "ReadAnswer",
    "RedisEntries",
    "RedisUnavailable",
]
