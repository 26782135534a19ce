"""Namespaces that Redis holds something of. They are found by a scan: there is no list of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from langgraph_checkpoint_cached.cli.components import Components
from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.stores.redis import fields
from langgraph_checkpoint_cached.stores.redis.entry_format import claimed_namespace
from langgraph_checkpoint_cached.stores.redis.keys import (
    decode_name,
    decode_thread_name,
    encode_name,
    parse_key,
    tag_name,
)
from langgraph_checkpoint_cached.stores.redis.scripts import Script

GET_KNOWN_EMPTY, GET_HEAD = (
    Script(f"return redis.call('HGET', KEYS[1], '{field.decode()}')")
    for field in (fields.KNOWN_EMPTY, fields.HEAD)
)
NAMESPACES_SQL = (
    "select checkpoint_ns from checkpoints where thread_id = %s"
    " union select checkpoint_ns from checkpoint_writes where thread_id = %s limit %s"
)
NAMESPACES_MAX = 10_000
"""Limit of one thread's namespaces that are looked up in Postgres."""


class CachedNamespaces:
    """Namespaces in Redis, of some threads or of all.

    Args:
        components: Components of a saver.
        thread_ids: Only these threads; None for all.
    """

    def __init__(self, components: Components, thread_ids: Sequence[str] | None) -> None:
        self._components = components
        self._threads = None if thread_ids is None else {tag_name(each): each for each in thread_ids}
        self.unnamed = 0
        """Number of keys of unknown namespaces: the name is too long for a key, and not in the entry."""

    async def scan(self) -> AsyncIterator[Namespace]:
        """Yield each namespace that reads may be served of, some perhaps twice. Raises `RedisUnavailable`.

        Of a thread whose other namespaces Redis knows to be empty, these are also those that Postgres has.
        """
        only = None if self._threads is None or len(self._threads) != 1 else next(iter(self._threads))
        async for key in self._components.invalidation.keys(f":{{{only or '*'}}}:*"):
            parsed = parse_key(self._components.options.prefix, key)
            if parsed is None or (self._threads is not None and parsed[0] not in self._threads):
                continue
            tag, kind, name = parsed
            if kind == "ns":
                if (namespace := await self._read_names(key, tag, name)) is not None:
                    yield namespace
                else:
                    self.unnamed += 1
            elif kind == "thread" and await self._components.run_script(GET_KNOWN_EMPTY, [key]):
                thread_id = self._thread_id(tag)
                for checkpoint_ns in [] if thread_id is None else await self._find_in_postgres(thread_id):
                    yield Namespace(thread_id or "", checkpoint_ns)

    def _thread_id(self, tag: str) -> str | None:
        return decode_thread_name(tag) if self._threads is None else self._threads[tag]

    async def _read_names(self, key: str, tag: str, name: str) -> Namespace | None:
        thread_id, checkpoint_ns = self._thread_id(tag), decode_name(name)
        if thread_id is not None and checkpoint_ns is not None:
            return Namespace(thread_id, checkpoint_ns)
        head = await self._components.run_script(GET_HEAD, [key])
        claimed = None if head is None else claimed_namespace(head)
        if claimed is None or (tag_name(claimed.thread_id), encode_name(claimed.checkpoint_ns)) != (tag, name):
            return None
        return claimed

    async def _find_in_postgres(self, thread_id: str) -> list[str]:
        rows = await self._components.query(NAMESPACES_SQL, (thread_id, thread_id, NAMESPACES_MAX))
        return [row["checkpoint_ns"] for row in rows]
