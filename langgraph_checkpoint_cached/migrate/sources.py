"""Sources of a copy: the published savers that keep threads in Redis alone."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from typing import Any

from redis.exceptions import RedisError

from langgraph_checkpoint_cached.errors import ArgumentError, CachedSaverError
from langgraph_checkpoint_cached.migrate.copy_savers import Source
from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.stores.redis.client import reason

SCAN_COUNT = 1_000


class SourceError(CachedSaverError):
    """Error for a source that cannot be read."""


KINDS: Mapping[str, tuple[str, str]] = {
    "redis": ("langgraph.checkpoint.redis", "langgraph-checkpoint-redis"),
    "valkey": ("langgraph_checkpoint_aws.checkpoint.valkey", "langgraph-checkpoint-aws[valkey]"),
}
"""Module of each kind of saver, and the package to install for it."""


@asynccontextmanager
async def open_source(kind: str, url: str, serde: Any = None) -> AsyncIterator[Source]:
    """Connect a source of a kind for the block.

    Raises:
        ArgumentError: its package is not installed, or the URL does not parse.
        SourceError: its server cannot be reached, or cannot do what the saver needs.
    """
    module, package = KINDS[kind]
    if not _is_installed(module):
        raise ArgumentError(f"the {kind} saver is not installed: pip install '{package}'")
    opening, expected = (_redis, _redis_errors()) if kind == "redis" else (_valkey, _valkey_errors())
    async with AsyncExitStack() as stack:
        try:
            source = await stack.enter_async_context(opening(url, serde))
        except ValueError:
            source = None  # the next error has neither cause nor context: their text may repeat parts of the URL
        except expected as exc:
            raise _source_error(kind, exc) from exc
        if source is None:
            raise ArgumentError(f"--source-url does not parse: use {kind}://user:password@host:6379/0")
        try:
            yield source
        except expected as exc:
            raise _source_error(kind, exc) from exc


def _source_error(kind: str, error: BaseException) -> SourceError:
    text = (reason(error).strip() or type(error).__name__).splitlines()[0]
    hint = " (it needs a server with search and JSON)" if kind == "redis" and "unknown command" in text else ""
    return SourceError(f"the server of the {kind} saver: {text}{hint}")


def _redis_errors() -> tuple[type[Exception], ...]:
    from redisvl.exceptions import RedisVLError

    return RedisVLError, RedisError  # the saver that is copied to raises neither


def _valkey_errors() -> tuple[type[Exception], ...]:
    from valkey.exceptions import ValkeyError

    return (ValkeyError,)


@asynccontextmanager
async def _redis(url: str, serde: Any) -> AsyncIterator[Source]:
    from langgraph.checkpoint.redis.aio import AsyncRedisSaver

    async with AsyncRedisSaver.from_conn_string(url) as saver:
        if serde is not None:
            saver.serde = serde
        yield RedisSource(saver)


@asynccontextmanager
async def _valkey(url: str, serde: Any) -> AsyncIterator[Source]:
    from langgraph_checkpoint_aws.checkpoint.valkey import AsyncValkeySaver

    async with AsyncValkeySaver.from_conn_string(url, serde=serde) as saver:
        yield ValkeySource(saver)


class RedisSource(Source):
    """`AsyncRedisSaver` of langgraph-checkpoint-redis: a JSON document for each checkpoint.

    Checkpoints are found by a scan of their keys, because the saver's own list ends at 10,000 and takes some
    characters of an id for its query language. This takes about 200 bytes of memory for each checkpoint.
    """

    saver: Any

    def __init__(self, saver: Any) -> None:
        self.saver = saver
        self._ids: dict[Namespace, list[str]] = defaultdict(list)

    async def threads(self) -> Mapping[str, Collection[str]]:
        found: dict[str, dict[str, None]] = defaultdict(dict)
        self._ids.clear()
        client, keys = self.saver._redis, []
        async for key in client.scan_iter(match=f"{self.saver._checkpoint_prefix}:*", count=SCAN_COUNT):
            keys.append(key)
            if len(keys) == SCAN_COUNT:
                await self._read_ids(keys)
                keys = []
        await self._read_ids(keys)
        for namespace in self._ids:
            found[namespace.thread_id].setdefault(namespace.checkpoint_ns)
        return found

    async def checkpoint_ids(self, namespace: Namespace) -> list[str]:
        return self._ids[namespace]

    async def _read_ids(self, keys: list[Any]) -> None:
        if not keys:
            return
        from langgraph.checkpoint.redis.util import from_storage_safe_id, from_storage_safe_str

        pipe = self.saver._redis.pipeline(transaction=False)
        for key in keys:
            pipe.execute_command("JSON.GET", key, "$.thread_id", "$.checkpoint_ns", "$.checkpoint_id")
        for text in await pipe.execute(raise_on_error=False):
            if text is None or isinstance(text, Exception):
                continue  # deleted in the meantime, or something else
            document = json.loads(text) if isinstance(text, (str, bytes)) else text
            (thread_id,), (checkpoint_ns,), (checkpoint_id,) = (
                document[f"$.{name}"] for name in ("thread_id", "checkpoint_ns", "checkpoint_id")
            )
            namespace = Namespace(from_storage_safe_id(thread_id), from_storage_safe_str(checkpoint_ns))
            self._ids[namespace].append(from_storage_safe_id(checkpoint_id))


class ValkeySource(Source):
    """`AsyncValkeySaver` of langgraph-checkpoint-aws: a list of ids for each namespace."""

    saver: Any

    def __init__(self, saver: Any) -> None:
        self.saver = saver

    async def threads(self) -> Mapping[str, Collection[str]]:
        found: dict[str, dict[str, None]] = defaultdict(dict)
        async for key in self.saver.client.scan_iter(match="thread:{*}:*", count=SCAN_COUNT, _type="LIST"):
            thread_id, _, checkpoint_ns = key.decode().removeprefix("thread:{").partition("}:")
            found[thread_id].setdefault(checkpoint_ns)
        return found

    async def checkpoint_ids(self, namespace: Namespace) -> list[str]:
        key = self.saver._make_thread_key(namespace.thread_id, namespace.checkpoint_ns)
        return [each.decode() for each in await self.saver.client.lrange(key, 0, -1)]


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is not
        return False


__all__ = ["KINDS", "RedisSource", "SourceError", "ValkeySource", "open_source"]
