"""Cache of classifications, so that a message is classified once by all processes."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Generic, TypeVar, cast

import msgpack
from redis.asyncio import Redis, RedisCluster

from langgraph_checkpoint_cached.arguments import check_prefix, check_redis_client, check_signing_keys, to_seconds
from langgraph_checkpoint_cached.caches.cache_aside import CacheAside, Serializer
from langgraph_checkpoint_cached.caches.key_value_store import TIMEOUT_SECONDS, KeyValueStore
from langgraph_checkpoint_cached.caches.stampede_lock import StampedeLock
from langgraph_checkpoint_cached.errors import ArgumentTypeError
from langgraph_checkpoint_cached.stores.redis.integrity import integrity_for
from langgraph_checkpoint_cached.ttl import INTENT, Ttl

T = TypeVar("T")


class IntentCache(Generic[T]):
    """Cache in Redis for the answers of a classifier, usually a model, by message.

    One classification of a message runs at a time, for all callers in all processes. While Redis is unavailable
    each process classifies by itself; no error of Redis is raised, and an outage is logged once when it begins and
    once when it ends.

        intents: IntentCache[str] = IntentCache(redis)
        intent = await intents.get_or_classify(message, classify)

    Keys hold a hash of the message, not its text; a reader of the keys can still test guesses.

    Not for a classifier that takes more than the message into account (history, user), unless all of it is in
    `message`. When the classifier or its prompt changes, change `namespace` too.

    Args:
        redis: Client from `redis.asyncio`; Redis 6.2 or later, Valkey or a Cluster. Never closed here.
        ttl: Lifetime of an answer, in seconds or as a `timedelta`.
        prefix: Start of every key.
        namespace: Second part of every key; different for classifiers that share a Redis.
        serializer: `dumps` and `loads` for the answers. The default is msgpack: `None`, numbers, strings,
            bytes, lists (a tuple comes back as a list) and dicts.
        lease_seconds: Time that other processes leave a message to the one that classifies it, in seconds or as a
            `timedelta`. Longer than a classification usually takes: a slower one may run twice and not be cached.
        timeout_seconds: Longest time for one call to Redis, in seconds or as a `timedelta`.
        signing_keys: As for `CachedPostgresSaver`. A writer to Redis without one of the keys cannot make an
            answer, nor use the answer of one message for another. Answers that are not signed are misses.

    Raises:
        ArgumentTypeError, ArgumentError: an argument cannot work; the message names it.
    """

    def __init__(
        self,
        redis: Redis | RedisCluster,
        *,
        ttl: float | timedelta = INTENT.seconds,
        prefix: str = "langgraph",
        namespace: str = "intent",
        serializer: Serializer[T] | None = None,
        lease_seconds: float | timedelta = 10.0,
        timeout_seconds: float | timedelta = TIMEOUT_SECONDS,
        signing_keys: Sequence[bytes | str] | None = None,
    ) -> None:
        store = KeyValueStore(
            check_redis_client(redis),
            f"{check_prefix(prefix)}:{check_prefix(namespace, 'namespace')}",
            timeout_seconds=to_seconds(timeout_seconds, "timeout_seconds"),
            integrity=None if signing_keys is None else integrity_for(check_signing_keys(signing_keys)),
        )
        self._cache: CacheAside[T] = CacheAside(
            store,
            serializer or _Msgpack(),
            Ttl(to_seconds(ttl, "ttl"), sliding=INTENT.sliding),
            lock=partial(StampedeLock, lease_seconds=to_seconds(lease_seconds, "lease_seconds")),
        )

    async def get_or_classify(self, message: str, classifier: Callable[[str], Awaitable[T]]) -> T:
        """Return the cached answer for `message`, else `await classifier(message)`, which is then cached.

        On a hit and on a miss each caller gets a copy made by the serializer, and may change it.

        Raises:
            ArgumentTypeError: `message` is not a string, `classifier` cannot be called, or msgpack cannot hold its
                answer.
            Exception: any that the classifier raised. Nothing is cached then.
        """
        return await self._cache.get(*_question(message, classifier))

    async def refresh(self, message: str, classifier: Callable[[str], Awaitable[T]]) -> T:
        """Remove the cached answer, then return `await classifier(message)`, which is cached.

        Raises:
            As `get_or_classify`.
        """
        return await self._cache.refresh(*_question(message, classifier))

    async def invalidate(self, message: str) -> bool:
        """Remove the cached answer for `message`. Classifications of it that are under way are not cached.

        Returns:
            False if Redis is unavailable: the answer may then be served until its `ttl` ends.

        Raises:
            ArgumentTypeError: `message` is not a string.
        """
        return await self._cache.invalidate(_key(message))


class _Msgpack:
    def dumps(self, value: object) -> bytes:
        try:
            return cast("bytes", msgpack.packb(value))
        except (TypeError, ValueError, OverflowError) as exc:
            raise ArgumentTypeError(
                f"classifier returned {type(value).__name__}, which msgpack cannot hold ({exc}); pass a serializer"
            ) from exc

    def loads(self, payload: bytes) -> Any:
        return msgpack.unpackb(payload, strict_map_key=False)


def _question(message: str, classifier: Callable[[str], Awaitable[T]]) -> tuple[str, Callable[[], Awaitable[T]]]:
    key = _key(message)
    if not callable(classifier):
        raise ArgumentTypeError(f"classifier must be an async function, not {type(classifier).__name__}")
    return key, partial(classifier, message)


def _key(message: str) -> str:
    if not isinstance(message, str):
        raise ArgumentTypeError(f"message must be a str, not {type(message).__name__}")
    return hashlib.blake2b(message.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()
