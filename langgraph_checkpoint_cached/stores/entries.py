"""L1: the entries in Redis, and the steps of the coherence protocol on them.

Each step is one script in `lua/`, atomic on the server; what each promises is said there.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from glob import escape as glob_escape
from typing import Any, Literal, TypeAlias

from langgraph_checkpoint_cached.envelope import Fields, advance_arguments, entry_fields, writes_arguments
from langgraph_checkpoint_cached.keys import Namespace, namespace_key, thread_key
from langgraph_checkpoint_cached.lifetimes import Lifetime
from langgraph_checkpoint_cached.records import Latest, Put, PutWrites
from langgraph_checkpoint_cached.stores.guard import Guard, RedisFull, RedisUnavailable
from langgraph_checkpoint_cached.stores.scripts import Script, lua

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


Miss: TypeAlias = Literal["wait", "fenced", "absent"]
ReadAnswer: TypeAlias = "Hit | Load | Miss"
Change: TypeAlias = "Put | PutWrites | None"
"""What a write did, or None for "drop the entry"."""


def new_token() -> str:
    """A random name for one write, one ticket or one owner."""
    return secrets.token_hex(8)


class RedisEntries:
    """The entries of one saver's process. Every method raises `RedisUnavailable` when it could not be done.

    Args:
        guard: Runs the scripts.
        prefix: What every key starts with.
        life: How long an entry lives, and whether reads extend that.
    """

    def __init__(self, guard: Guard, prefix: str, life: Lifetime) -> None:
        self._guard, self._prefix, self._life = guard, prefix, life
        self._owner = new_token()

    async def read(self, namespace: Namespace, ticket: str, checkpoint_id: str = "") -> ReadAnswer:
        """READ: the entry, or what to do instead. With a `checkpoint_id`, an entry of that checkpoint only."""
        answer = await self._run(
            READ, namespace, ticket, TICKET_MS, "1" if self._life.sliding else "0", checkpoint_id
        )
        kind = answer[0].decode()
        if kind == "hit":
            flat = answer[1]
            return Hit(dict(zip(flat[::2], flat[1::2], strict=True)))
        if kind == "load":
            return Load(answer[1].decode())
        return kind  # type: ignore[no-any-return]

    async def fill(self, namespace: Namespace, ticket: str, load: Load, latest: Latest) -> bool:
        """FILL: returns whether what was loaded became the entry."""
        life_ms = self._life.milliseconds
        if latest.record is None:
            life_ms = min(life_ms, EMPTY_MS)
        try:
            answer = await self._run(
                FILL, namespace, ticket, load.generation, *entry_fields(latest), life_ms=life_ms
            )
        except RedisFull:
            await self.give_back(namespace, ticket, load)  # nobody else is to wait for this
            return False
        if answer:
            self._guard.has_room()
        return bool(answer)

    async def give_back(self, namespace: Namespace, ticket: str, load: Load) -> None:
        """Gives up the ticket, if it is still held."""
        await self._run(GIVE_BACK, namespace, ticket, load.generation)

    async def begin(self, namespace: Namespace, token: str) -> None:
        """BEGIN: fences the namespace."""
        await self._run(BEGIN, namespace, token, self._owner, FENCE_MS)

    async def commit(self, namespace: Namespace, token: str, change: Change) -> bool:
        """COMMIT: releases the fence; returns whether the entry was advanced by the change, not dropped."""
        script = COMMIT_DROP
        arguments: Fields = []
        if isinstance(change, Put) and (advance := advance_arguments(change)) is not None:
            script, arguments = COMMIT_PUT, advance
        elif isinstance(change, PutWrites) and (advance := writes_arguments(change)) is not None:
            script, arguments = COMMIT_WRITES, advance
        return bool(await self._run(script, namespace, token, self._owner, *arguments))

    async def begin_thread(self, thread_id: str, token: str) -> None:
        """BEGIN over all namespaces of a thread."""
        await self._run_on_thread(BEGIN_THREAD, thread_id, token, self._owner, FENCE_MS)

    async def end_thread(self, thread_id: str, token: str) -> None:
        """COMMIT over all namespaces of a thread: voids every entry, releases the fence."""
        await self._run_on_thread(END_THREAD, thread_id, token)

    async def discard(self, namespace: Namespace) -> None:
        """Removes the entry and the ticket, as an eviction would."""
        await self._run(COMMIT_DROP, namespace, new_token(), self._owner)

    async def void_thread(self, thread_id: str, tokens: Iterable[str]) -> None:
        """Voids every entry of a thread and removes these fences, even while the guard lets no call through."""
        await self._guard.force(END_THREAD, [thread_key(self._prefix, thread_id)], self._thread_arguments(*tokens))

    async def void_all(self) -> None:
        """Voids every entry of every thread, by a scan, even while the guard lets no call through."""
        async for key in self._guard.keys(glob_escape(self._prefix) + ":{*}:thread"):
            await self._guard.force(END_THREAD, [key], self._thread_arguments())

    async def _run(self, script: Script, namespace: Namespace, *arguments: Any, life_ms: int | None = None) -> Any:
        keys = [thread_key(self._prefix, namespace.thread_id), namespace_key(self._prefix, namespace)]
        name = keys[1].rpartition(":")[2]
        return await self._guard.run(
            script, keys, [name, new_token(), life_ms or self._life.milliseconds, *arguments]
        )

    async def _run_on_thread(self, script: Script, thread_id: str, *arguments: Any) -> None:
        keys = [thread_key(self._prefix, thread_id)]
        await self._guard.run(script, keys, self._thread_arguments(*arguments))

    def _thread_arguments(self, *arguments: Any) -> list[Any]:
        return ["", new_token(), self._life.milliseconds, *arguments]


__all__ = [
    "Change",
    "Hit",
    "Load",
    "Miss",
    "ReadAnswer",
    "RedisEntries",
    "RedisUnavailable",
    "new_token",
]
