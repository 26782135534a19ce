"""The journals in Redis: what was acknowledged there, and is perhaps not yet in Postgres. And the leases they
are under.

Each step is one script in `lua/`; what each promises is said there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langgraph_checkpoint_cached.records import Namespace, Put, PutWrites
from langgraph_checkpoint_cached.stores.redis.entries import (
    CHANGES,
    COMMIT_PUT,
    COMMIT_WRITES,
    SHARED,
    EntryUpdate,
)
from langgraph_checkpoint_cached.stores.redis.entry_format import Fields, decode_put, decode_writes
from langgraph_checkpoint_cached.stores.redis.executor import ScriptExecutor
from langgraph_checkpoint_cached.stores.redis.integrity import CHECKSUMS, Integrity
from langgraph_checkpoint_cached.stores.redis.keys import entry_keys, journal_key, namespace_key, thread_key
from langgraph_checkpoint_cached.stores.redis.script_call import Argument
from langgraph_checkpoint_cached.stores.redis.scripts import Script, lua
from langgraph_checkpoint_cached.ttl import Ttl
from langgraph_checkpoint_cached.utils.tokens import new_token

APPEND_PUT = Script(*SHARED, CHANGES, lua("append_functions"), lua("commit_put"))
APPEND_WRITES = Script(*SHARED, CHANGES, lua("append_functions"), lua("commit_writes"))
APPENDS = {COMMIT_PUT: (APPEND_PUT, "p"), COMMIT_WRITES: (APPEND_WRITES, "w")}
OPEN = Script(*SHARED, lua("lease_open"))
JOURNAL = Script(*SHARED, lua("lease_journal"))
TRIM = Script(*SHARED, lua("lease_trim"))
CLOSE = Script(*SHARED, lua("lease_close"))
PREPARE = Script(*SHARED, lua("lease_prepare"))
NEWEST = Script(*SHARED, lua("lease_newest"))
CLEAN_UP = Script(*SHARED, lua("lease_clean_up"))
ENTRIES_AT_ONCE_MAX = 100


@dataclass(frozen=True)
class Page:
    """Some of a journal. `last` is the last number there is, -1 if Redis may have lost some of it."""

    last: int
    entries: list[tuple[int, Put | PutWrites]]


class Journal:
    """Journals and leases. Every method raises `RedisUnavailable` when it could not be done.

    Args:
        guard: Runs the scripts.
        prefix: What every key starts with.
        life: How long an entry lives when its thread has no lease.
        seal: Of every part of an entry, which stands in the journal as it is.
    """

    def __init__(self, executor: ScriptExecutor, prefix: str, life: Ttl, seal: Integrity = CHECKSUMS) -> None:
        self._executor, self._prefix, self._life, self._seal = executor, prefix, life, seal

    def append(self, namespace: Namespace, token: str, entry_update: EntryUpdate) -> asyncio.Future[Any]:
        """APPEND: its answer is a number, or `bytes` that say why not. Queued when this returns."""
        script, kind = APPENDS[entry_update.script]
        entry, name = entry_keys(self._prefix, namespace)
        keys = (*entry, journal_key(self._prefix, namespace.thread_id))
        shared = (name, new_token(), str(self._life.milliseconds))
        arguments = (*shared, token, kind + namespace.checkpoint_ns, *entry_update.arguments)
        return self._executor.submit(script, keys, arguments, in_order=True, durable=True)

    async def prepare(self, thread_id: str) -> tuple[str, bytes]:
        """PREPARE: a token for a new lease, which names the server epoch, and the thread's present generation."""
        generation = bytes(await self._submit(PREPARE, thread_id, nonce := new_token()))
        return f"{generation.decode().partition(':')[0]}.{nonce}", generation

    async def open(self, thread_id: str, token: str, generation: bytes) -> str:
        """OPEN: "open", or why not."""
        return (await self._submit(OPEN, thread_id, token, generation)).decode()  # type: ignore[no-any-return]

    async def page(self, thread_id: str, token: str, after: int) -> Page:
        """JOURNAL: entries after this number. Raises `DamagedEntry` too."""
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
        """CLOSE: whether nothing can be appended under this lease any more, and nothing was beyond `flushed`.

        Nothing that Redis still has; with `sure`, nothing at all: for those who do not hold the lease.
        """
        keys = [namespace_key(self._prefix, namespace) for namespace in namespaces]
        return bool(await self._submit(CLOSE, thread_id, token, str(flushed), str(int(sure)), keys=keys))

    async def newest(self, thread_ids: Sequence[str]) -> dict[str, str]:
        """NEWEST: thread -> token of the newest entry of its journal, "" if there is none.

        Even while the guard lets no call through.
        """
        found = await self._executor.force([self._call(NEWEST, thread_id) for thread_id in thread_ids])
        return {thread_id: token.decode() for thread_id, token in zip(thread_ids, found, strict=True)}

    async def remove_ended_journals(self, tokens: Mapping[str, str]) -> None:
        """TIDY: removes what is left of leases that have ended, thread -> token; where it is "", an empty journal.

        Even while the guard lets no call through.
        """
        await self._executor.force([self._call(CLEAN_UP, thread_id, token) for thread_id, token in tokens.items()])

    def _submit(
        self, script: Script, thread_id: str, *arguments: Argument, keys: Sequence[str] = ()
    ) -> asyncio.Future[Any]:
        return self._executor.submit(*self._call(script, thread_id, *arguments, keys=keys))

    def _call(
        self, script: Script, thread_id: str, *arguments: Argument, keys: Sequence[str] = ()
    ) -> tuple[Script, Sequence[str], Sequence[Argument]]:
        keys = (thread_key(self._prefix, thread_id), journal_key(self._prefix, thread_id), *keys)
        return script, keys, ["*", new_token(), str(self._life.milliseconds), *arguments]

    def _operation(self, thread_id: str, fields: Sequence[bytes]) -> Put | PutWrites:
        kind, checkpoint_ns = fields[3][:1], fields[3][1:].decode()
        arguments: Fields = list(fields[5::2])
        decode = decode_put if kind == b"p" else decode_writes
        return decode(Namespace(thread_id, checkpoint_ns), arguments, self._seal)
