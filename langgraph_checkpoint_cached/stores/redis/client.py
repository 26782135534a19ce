"""Which Redis clients are taken."""

from __future__ import annotations

from typing import TypeAlias

import redis
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from langgraph_checkpoint_cached.errors import ArgumentTypeError

AnyRedis: TypeAlias = "Redis | RedisCluster"


def reason(error: BaseException) -> str:
    """What an error of a client says. A server that does not know a command repeats its arguments: of AUTH too."""
    text, repeats, _ = str(error).partition(", with args beginning with")
    return f"{text} (its arguments are left out here)" if repeats else text


def check_client(client: object) -> AnyRedis:
    """`client`, if it is one of `redis.asyncio`: a `Redis` (a Sentinel's master too) or a `RedisCluster`.

    Raises:
        ArgumentTypeError: it is something else; for a synchronous client the message says what to use instead.
    """
    if isinstance(client, (Redis, RedisCluster)):
        return client
    hint = ""
    if isinstance(client, (redis.Redis, redis.RedisCluster)):
        hint = ": import it from redis.asyncio, or use SyncCachedPostgresSaver.from_conn_string"
    raise ArgumentTypeError(
        f"redis must be a redis.asyncio Redis or RedisCluster, not {type(client).__module__}."
        f"{type(client).__qualname__}{hint}"
    )
