"""Classify a message once, however often and wherever it is asked."""

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
    """What a classifier, usually a model, makes of a message: kept in Redis for a while.

    However many callers ask for the same message at once, in however many processes, one classification
    runs. With Redis gone each process classifies by itself; nothing of Redis' is ever raised, and going and
    coming back are logged once each.

        intents: IntentCache[str] = IntentCache(redis)
        intent = await intents.get_or_classify(message, classify)

    Keys hold a hash of the message, not its text; who can read the keys can still test guesses.

    Not for a classifier that looks at more than the message (history, user), unless all of it is in
    `message`. When the classifier or its prompt changes, change `namespace` too.

    Args:
        redis: asyncio client, Redis >= 6.2, Valkey or Cluster. It stays yours to close.
        ttl: seconds, or a `timedelta`, that an answer is kept.
        prefix: of every key.
        namespace: tells classifiers that share a Redis apart; comes after the prefix.
        serializer: `dumps` and `loads` for the answers. The default is msgpack: `None`, numbers, strings,
            bytes, lists (a tuple comes back as a list) and dicts.
        lease_seconds: how long the others leave a message to the process that classifies it. Longer than
            a classification takes as a rule: a slower one may be run a second time and not be kept.
        timeout_seconds: the longest that one call to Redis may take.
        signing_keys: as for `CachedPostgresSaver`: whoever can write to Redis, but has none of the keys, cannot
            make an answer, nor pass one message's off as another's. What is not signed is a miss.

    Raises:
        ArgumentError, ArgumentTypeError: an argument that cannot work, by name.
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
            seal=None if signing_keys is None else integrity_for(check_signing_keys(signing_keys)),
        )
        self._cache: CacheAside[T] = CacheAside(
            store,
            serializer or _Msgpack(),
            Ttl(to_seconds(ttl, "ttl"), sliding=INTENT.sliding),
            lock=partial(StampedeLock, lease_seconds=to_seconds(lease_seconds, "lease_seconds")),
        )

    async def get_or_classify(self, message: str, classifier: Callable[[str], Awaitable[T]]) -> T:
        """The answer for `message`: the kept one, else `await classifier(message)`.

        Hit or miss, it is the serializer's copy, so that both look the same and each caller may change it.

        Raises:
            ArgumentTypeError: `message` is not a string, `classifier` cannot be called, or its answer is
                nothing that msgpack can hold.
            Exception: whatever the classifier raised. Nothing is kept then, the next call asks again.
        """
        return await self._cache.get(*_question(message, classifier))

    async def refresh(self, message: str, classifier: Callable[[str], Awaitable[T]]) -> T:
        """`await classifier(message)`, kept in place of the answer so far, which is dropped first.

        Raises:
            as `get_or_classify`.
        """
        return await self._cache.refresh(*_question(message, classifier))

    async def invalidate(self, message: str) -> bool:
        """Drops the answer for `message`, and what is being classified for it is not kept.

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
