"""Types and errors of Redis clients."""

from __future__ import annotations

from typing import TypeAlias

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

AnyRedis: TypeAlias = "Redis | RedisCluster"

CONNECT_TIMEOUTS = 4
"""Longest time for a new connection, as a multiple of the time limit of a call: TCP, TLS, authentication and the
settings of the client take up to seven round trips, and renewed credentials may have to be fetched."""


def is_refused(error: BaseException | None) -> bool:
    """Return whether nobody listens at the server's address: an outage, and no connection that was lost."""
    while error is not None and not isinstance(error, ConnectionRefusedError):
        error = error.__cause__ or error.__context__
    return error is not None


def reason(error: BaseException) -> str:
    """Return the text of a client's error, without secrets.

    A server that does not know a command repeats its arguments, those of AUTH too.
    """
    text, repeats, _ = str(error).partition(", with args beginning with")
    return f"{text} (its arguments are left out here)" if repeats else text
