"""Which namespaces Redis holds something of: found by a scan, for there is no list of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from langgraph_checkpoint_cached.cli.parts import Components
from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.stores.redis.entry_format import claimed_namespace
from langgraph_checkpoint_cached.stores.redis.keys import (
    decode_name,
    decode_thread_name,
    encode_name,
    parse_key,
    tag_name,
)
from langgraph_checkpoint_cached.stores.redis.scripts import Script

KNOWN_EMPTY = Script("return redis.call('HGET', KEYS[1], 'k')")
HEAD = Script("return redis.call('HGET', KEYS[1], 'h')")
NAMESPACES_SQL = (
    "select checkpoint_ns from checkpoints where thread_id = %s"
    " union select checkpoint_ns from checkpoint_writes where thread_id = %s limit %s"
)
NAMESPACES_MAX = 10_000
"""Of one thread, that are looked up in Postgres."""


class Cached:
    """The namespaces in Redis, of some threads or of all.

    Args:
        parts: Of a saver.
        thread_ids: Only these; None for all.
    """

    def __init__(self, parts: Components, thread_ids: Sequence[str] | None) -> None:
        self._parts = parts
        self._of = None if thread_ids is None else {tag_name(each): each for each in thread_ids}
        self.unnamed = 0
        """Keys whose namespace cannot be told: the name is too long for a key, and the entry does not say it."""

    async def namespaces(self) -> AsyncIterator[Namespace]:
        """Each namespace that a read may be served of, some perhaps twice. Raises `RedisUnavailable`.

        Beside those with a key these are, of a thread that is known to have nothing else, those that Postgres has.
        """
        one = None if self._of is None or len(self._of) != 1 else next(iter(self._of))
        async for key in self._parts.entries.keys(f":{{{one or '*'}}}:*"):
            found = parse_key(self._parts.servers.prefix, key)
            if found is None or (self._of is not None and found[0] not in self._of):
                continue
            tag, kind, name = found
            if kind == "ns":
                if (namespace := await self._named(key, tag, name)) is not None:
                    yield namespace
                else:
                    self.unnamed += 1
            elif kind == "thread" and await self._parts.on_redis(KNOWN_EMPTY, [key]):
                thread_id = self._thread(tag)
                for checkpoint_ns in [] if thread_id is None else await self._in_postgres(thread_id):
                    yield Namespace(thread_id or "", checkpoint_ns)

    def _thread(self, tag: str) -> str | None:
        if self._of is not None:
            return self._of[tag]
        return decode_thread_name(tag)

    async def _named(self, key: str, tag: str, name: str) -> Namespace | None:
        thread_id, checkpoint_ns = self._thread(tag), decode_name(name)
        if thread_id is not None and checkpoint_ns is not None:
            return Namespace(thread_id, checkpoint_ns)
        head = await self._parts.on_redis(HEAD, [key])
        claimed = None if head is None else claimed_namespace(head)
        if claimed is None or (tag_name(claimed.thread_id), encode_name(claimed.checkpoint_ns)) != (tag, name):
            return None
        return claimed

    async def _in_postgres(self, thread_id: str) -> list[str]:
        rows = await self._parts.query(NAMESPACES_SQL, (thread_id, thread_id, NAMESPACES_MAX))
        return [row["checkpoint_ns"] for row in rows]
