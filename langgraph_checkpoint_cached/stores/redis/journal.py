"""Journals in Redis: writes that were acknowledged there and are perhaps not yet in Postgres; and their leases.

Each step is one script in `lua/`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from langgraph_checkpoint_cached.records import Namespace, Put, PutWrites
from langgraph_checkpoint_cached.stores.redis.entries import EntryUpdate
from langgraph_checkpoint_cached.stores.redis.entry_format import Fields, damaged, decode_put, decode_writes
from langgraph_checkpoint_cached.stores.redis.executor import ScriptExecutor
from langgraph_checkpoint_cached.stores.redis.integrity import CHECKSUMS, Integrity
from langgraph_checkpoint_cached.stores.redis.keys import ENTRY_KEYS, journal_key, namespace_key, thread_key
from langgraph_checkpoint_cached.stores.redis.keyspace import Keyspace
from langgraph_checkpoint_cached.stores.redis.script_call import Argument, Unconfirmed
from langgraph_checkpoint_cached.stores.redis.scripts import (
    APPEND_PUT,
    APPEND_WRITES,
    CLEAN_UP,
    CLOSE,
    COMMIT_PUT,
    COMMIT_WRITES,
    JOURNAL,
    NEWEST,
    OPEN,
    PREPARE,
    TRIM,
    Script,
)
from langgraph_checkpoint_cached.utils.tokens import new_token

APPENDS = {COMMIT_PUT: (APPEND_PUT, "p"), COMMIT_WRITES: (APPEND_WRITES, "w")}
ENTRIES_AT_ONCE_MAX = 100
JOURNAL_END = 2**53
"""Higher than any number in a journal."""


@dataclass(frozen=True)
class Page:
    """Page of a journal. `last` is the last number there is, -1 if Redis may have lost some of it."""

    last: int
    entries: list[tuple[int, Put | PutWrites]]


class Refusal(Enum):
    """Why APPEND was refused, with nothing done; at most the entry was dropped."""

    CLOSED = b"closed"
    """The lease is over."""
    REFUSED = b"refused"
    """A write is in flight in Postgres, there is no entry, or only Postgres can tell what the entry becomes."""
    FULL = b"full"
    """The journal is full."""


class AppendResult(NamedTuple):
    """Result of APPEND: a number in the journal, or why there is none."""

    number: int | None
    refusal: Refusal | None = None
    confirmed: bool = True
    """True if it is as durable, on replicas or a disk, as was asked for."""


def parse_append(reply: int | bytes | Unconfirmed) -> AppendResult:
    """Return the result that a reply to APPEND stands for."""
    confirmed = not isinstance(reply, Unconfirmed)
    value = reply.answer if isinstance(reply, Unconfirmed) else reply
    if isinstance(value, int):
        return AppendResult(value, None, confirmed)
    return AppendResult(None, Refusal(bytes(value).partition(b" ")[0]))


class Journal:
    """Journals and leases. Every method raises `RedisUnavailable` when Redis could not do it.

    Args:
        executor: Runs the scripts.
        keyspace: Keys, and the life of an entry whose thread has no lease.
        integrity: Checksums or signatures of every part of an entry, which stands in the journal as it is.
    """

    def __init__(self, executor: ScriptExecutor, keyspace: Keyspace, integrity: Integrity = CHECKSUMS) -> None:
        self._executor, self._keyspace, self._integrity = executor, keyspace, integrity
        self.health = executor.health

    def append(self, namespace: Namespace, token: str, update: EntryUpdate) -> asyncio.Future[Any]:
        """APPEND; `parse_append` says what the reply means. Queued when this returns."""
        script, kind = APPENDS[update.script]
        keys, name, journal = ENTRY_KEYS[self._keyspace.prefix, namespace]
        operation = kind + namespace.checkpoint_ns
        random, ttl = self._keyspace.database.tag + new_token(), self._keyspace.ttl_text
        arguments = (name, random, ttl, token, operation, *update.arguments)
        return self._executor.submit(script, (*keys, journal), arguments, in_order=True, durable=True)

    async def prepare(self, thread_id: str) -> tuple[str, bytes]:
        """PREPARE: return a token for a new lease, which names the server epoch, and the thread's generation."""
        generation = bytes(await self._submit(PREPARE, thread_id, nonce := new_token()))
        server_epoch = generation.partition(b":")[0].decode(errors="replace")
        return f"{server_epoch}.{nonce}", generation

    async def open(self, thread_id: str, token: str, generation: bytes) -> str:
        """OPEN: return "open", or why not."""
        return (await self._submit(OPEN, thread_id, token, generation)).decode()  # type: ignore[no-any-return]

    async def page(self, thread_id: str, token: str, after: int) -> Page:
        """JOURNAL: return entries after this number. Raises `DamagedEntry` too."""
        last, found = await self._submit(JOURNAL, thread_id, token, str(after), str(ENTRIES_AT_ONCE_MAX))
        return Page(last, [(number, self._operation(thread_id, fields)) for number, fields in found])

    def trim(self, thread_id: str, token: str, upto: int) -> asyncio.Future[Any]:
        """TRIM. Queued when this returns; whether it was done does not matter."""
        return self._submit(TRIM, thread_id, token, str(upto))

    async def close(
        self,
        thread_id: str,
        token: str,
        flushed: int,
        namespaces: Collection[Namespace] = (),
        *,
        sure: bool = False,
    ) -> bool:
        """CLOSE: return whether nothing can be appended under this lease any more, and nothing was beyond
        `flushed`.

        That is, nothing that Redis still has; with `sure`, nothing at all: for those who do not hold the lease.
        """
        keys = [namespace_key(self._keyspace.prefix, namespace) for namespace in namespaces]
        return bool(await self._submit(CLOSE, thread_id, token, str(flushed), str(int(sure)), keys=keys))

    async def newest(self, thread_ids: Sequence[str]) -> dict[str, str]:
        """NEWEST: return thread -> token of the newest entry of its journal, "" if there is none.

        Works whatever the state of the breaker.
        """
        found = await self._executor.run_all([self._call(NEWEST, thread_id) for thread_id in thread_ids])
        return {thread_id: token.decode() for thread_id, token in zip(thread_ids, found, strict=True)}

    async def clean_up(self, tokens: Mapping[str, str]) -> None:
        """CLEAN UP: remove what is left of leases that have ended, thread -> token; where it is "", empty
        journals.

        Works whatever the state of the breaker.
        """
        await self._executor.run_all(
            [self._call(CLEAN_UP, thread_id, token) for thread_id, token in tokens.items()]
        )

    def _submit(
        self, script: Script, thread_id: str, *arguments: Argument, keys: Sequence[str] = ()
    ) -> asyncio.Future[Any]:
        return self._executor.submit(*self._call(script, thread_id, *arguments, keys=keys))

    def _call(
        self, script: Script, thread_id: str, *arguments: Argument, keys: Sequence[str] = ()
    ) -> tuple[Script, Sequence[str], Sequence[Argument]]:
        prefix = self._keyspace.prefix
        keys = (thread_key(prefix, thread_id), journal_key(prefix, thread_id), *keys)
        return script, keys, self._keyspace.thread_arguments(*arguments, name="*")

    def _operation(self, thread_id: str, fields: Sequence[bytes]) -> Put | PutWrites:
        try:
            kind, checkpoint_ns = fields[3][:1], fields[3][1:].decode()
        except (IndexError, UnicodeDecodeError) as exc:
            raise damaged(Namespace(thread_id), exc) from exc
        arguments: Fields = list(fields[5::2])
        decode = decode_put if kind == b"p" else decode_writes
        return decode(Namespace(thread_id, checkpoint_ns), arguments, self._integrity)
