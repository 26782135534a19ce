"""Redis store of `CacheAside`: payloads and their locks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any, TypeVar

from redis.client import NEVER_DECODE
from redis.exceptions import RedisClusterException, RedisError

from langgraph_checkpoint_cached.caches.cache_aside import MISS, Miss
from langgraph_checkpoint_cached.caches.stampede_lock import StoreUnavailable
from langgraph_checkpoint_cached.errors import ArgumentError
from langgraph_checkpoint_cached.stores.redis.client import AnyRedis, reason
from langgraph_checkpoint_cached.stores.redis.integrity import Integrity
from langgraph_checkpoint_cached.stores.redis.scripts import Script, lua

T = TypeVar("T")

TIMEOUT_SECONDS = 0.5
VALUE = b"value"

logger = logging.getLogger(__name__)

ACQUIRE = Script(lua("kv_acquire"))
RELEASE = Script(lua("kv_release"))
FILL = Script(lua("kv_fill"))


class KeyValueStore:
    """Payloads and locks under `prefix`, in any Redis >= 6.2, Valkey or Cluster.

    A key's payload and lock share a hash tag, so a script may reach both. Every key expires. The client belongs to
    the caller: it is never closed here, and it may decode responses or not.

    An outage of Redis is logged once when it begins and once when it ends.

    Args:
        client: `redis.asyncio` client for a server, a Sentinel's primary or a Cluster.
        prefix: Start of every key, without `{` and `}`.
        timeout_seconds: Longest wait of one method for Redis, retries of the client included.
        integrity: Signatures or checksums of payloads; one that is not valid for its key is a miss. None stores
            payloads without any.
    """

    def __init__(
        self,
        client: AnyRedis,
        prefix: str,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        integrity: Integrity | None = None,
    ) -> None:
        self._integrity = integrity
        self._refusal_reported = False
        self._client = client
        self._prefix = prefix
        self._timeout_seconds = timeout_seconds
        self._failing: str | None = None

    async def acquire(self, key: str, token: str, ttl_ms: int) -> bool:
        """Acquire the lock for `token`; return whether `token` holds it. See `LockStore`."""
        call = self._run(ACQUIRE, [self._lock_key(key)], token, ttl_ms)
        return bool(await self._bounded("acquire", call))

    async def release(self, key: str, token: str) -> bool:
        """Release the lock if `token` holds it; return whether it did. See `LockStore`."""
        call = self._run(RELEASE, [self._lock_key(key)], token)
        return bool(await self._bounded("release", call))

    async def read(self, key: str, extend_ms: int | None) -> bytes | Miss:
        """Return the payload or `MISS`. See `CacheStore`."""
        name = self._value_key(key)
        call = self._execute("GET", name) if extend_ms is None else self._execute("GETEX", name, "PX", extend_ms)
        payload: bytes | None = await self._bounded("read", call)
        if payload is None or self._integrity is None:
            return MISS if payload is None else payload
        body = self._integrity.scopes[name,].verify(payload, VALUE)
        if body is not None:
            return bytes(body)
        if not self._refusal_reported:
            self._refusal_reported = True
            logger.warning("Values under %r are not signed with our keys: loaded anew.", self._prefix)
        return MISS

    async def fill(self, key: str, token: str, payload: bytes, ttl_ms: int) -> bool:
        """Store the payload if `token` holds the lock; return whether it did. See `CacheStore`."""
        name = self._value_key(key)
        if self._integrity is not None:
            payload = self._integrity.scopes[name,].protect(payload, VALUE)
        call = self._run(FILL, [name, self._lock_key(key)], token, payload, ttl_ms)
        return bool(await self._bounded("fill", call))

    async def discard(self, key: str) -> None:
        """Remove the payload and the lock. See `CacheStore`."""
        call = self._execute("DEL", self._value_key(key), self._lock_key(key))
        await self._bounded("discard", call)

    def _value_key(self, key: str) -> str:
        if not key or "{" in key or "}" in key:
            raise ArgumentError(f"key must not be empty nor contain '{{' or '}}', as {key!r} does")
        return f"{self._prefix}:{{{key}}}"

    def _lock_key(self, key: str) -> str:
        return f"{self._value_key(key)}:lock"

    async def _run(self, script: Script, keys: list[str], *arguments: str | bytes | int) -> Any:
        return await script.run(self._client, keys, list(arguments))

    async def _execute(self, *command: str | int) -> Any:
        # Payloads are bytes, also from a client that decodes responses.
        return await self._client.execute_command(*command, **{NEVER_DECODE: True})

    async def _bounded(self, method: str, call: Awaitable[T]) -> T:
        try:
            answer = await asyncio.wait_for(call, self._timeout_seconds)
        except (RedisError, RedisClusterException, asyncio.TimeoutError, OSError) as exc:
            why = f"{type(exc).__name__}: {reason(exc)}"
            if self._failing is None:
                self._failing = method
                logger.warning("Redis is unavailable, going on without it: %s", why)
            raise StoreUnavailable(f"Redis did not {method} under {self._prefix!r}: {why}") from exc
        if self._failing == method:  # other methods may work throughout: a full Redis still reads
            self._failing = None
            logger.warning("Redis is available again")
        return answer
