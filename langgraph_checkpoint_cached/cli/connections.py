"""Connections of a command to its servers, from its arguments and the environment."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from langgraph.checkpoint.serde.base import SerializerProtocol
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row

from langgraph_checkpoint_cached.arguments import check_postgres_uri, check_prefix, check_signing_keys, to_seconds
from langgraph_checkpoint_cached.errors import ArgumentError
from langgraph_checkpoint_cached.saver import CachedPostgresSaver
from langgraph_checkpoint_cached.stores.redis.client import AnyRedis
from langgraph_checkpoint_cached.stores.redis.url import redis_client
from langgraph_checkpoint_cached.ttl import CHECKPOINT

POSTGRES_VARIABLE, REDIS_VARIABLE, PREFIX_VARIABLE = "POSTGRES_URI", "REDIS_URL", "LANGGRAPH_CACHED_PREFIX"
TIMEOUT_SECONDS = 5.0
CONNECTIONS_MAX = 8
"""Limit of one command's connections to Postgres."""


@dataclass(frozen=True)
class ConnectionOptions:
    """Addresses and settings of a command's connections. Neither addresses nor keys are part of its `repr`."""

    postgres_uri: str = field(repr=False)
    redis_url: str = field(repr=False)
    prefix: str
    timeout_seconds: float
    ttl_seconds: float
    signing_keys: Sequence[bytes] | None = field(repr=False)

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> ConnectionOptions:
        """Read them from the command's arguments and the environment.

        Raises:
            ArgumentError, ArgumentTypeError: something is missing or cannot work. No secret is in the message.
        """
        connection = cls(
            _required(options.postgres_uri, POSTGRES_VARIABLE, "--postgres-uri"),
            _required(options.redis_url, REDIS_VARIABLE, "--redis-url"),
            check_prefix(options.prefix or os.environ.get(PREFIX_VARIABLE) or "langgraph"),
            to_seconds(options.timeout, "--timeout"),
            to_seconds(getattr(options, "ttl", CHECKPOINT.seconds), "--ttl"),
            _signing_keys(options.signing_key_env),
        )
        check_postgres_uri(connection.postgres_uri)
        return connection

    async def connect_postgres(self, **settings: Any) -> AsyncConnection[DictRow]:
        """Connect in autocommit mode, without prepared statements. Raises `psycopg.OperationalError`."""
        return await AsyncConnection.connect(
            self.postgres_uri,
            autocommit=True,
            row_factory=dict_row,
            connect_timeout=math.ceil(self.timeout_seconds),
            **{"prepare_threshold": None, **settings},
        )

    def make_redis_client(self) -> AnyRedis:
        """Return a client, which connects when it is first used."""
        return redis_client(self.redis_url, max_connections=4, timeout_seconds=self.timeout_seconds)

    @asynccontextmanager
    async def open_saver(
        self, *, refresh_on_read: bool = False, serde: SerializerProtocol | None = None
    ) -> AsyncIterator[CachedPostgresSaver]:
        """Open a saver for the block. Reads through it extend the life of entries only with `refresh_on_read`.

        Raises:
            psycopg.OperationalError: Postgres cannot be reached; the message says why. A Redis that cannot be
                reached raises nothing here: calls that need it do.
        """
        await (await self.connect_postgres()).close()  # its error says why, which that of a pool does not
        async with CachedPostgresSaver.from_conn_string(
            self.postgres_uri,
            self.redis_url,
            ttl=self.ttl_seconds,
            refresh_on_read=refresh_on_read,
            prefix=self.prefix,
            serde=serde,
            redis_timeout=self.timeout_seconds,
            signing_keys=self.signing_keys,
            pool_max_size=CONNECTIONS_MAX,
            pool_timeout=max(30.0, self.timeout_seconds),
        ) as saver:
            yield saver


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that every command has."""
    group = parser.add_argument_group("servers")
    group.add_argument(
        "--postgres-uri", metavar="URI", help=f"postgresql://user:password@host:5432/db; or {POSTGRES_VARIABLE}"
    )
    group.add_argument(
        "--redis-url", metavar="URL", help=f"redis://user:password@host:6379/0; or {REDIS_VARIABLE}"
    )
    group.add_argument("--prefix", help=f"prefix of the keys in Redis; or {PREFIX_VARIABLE} (default: langgraph)")
    group.add_argument(
        "--signing-key-env",
        metavar="NAME",
        action="append",
        help="environment variable that holds a signing key; may be repeated: the first key signs, all verify",
    )
    group.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=TIMEOUT_SECONDS,
        help="timeout of a connection attempt and of a call to Redis (default: 5)",
    )
    parser.add_argument("--json", action="store_true", help="JSON on standard output instead of text")


def _required(argument: str | None, variable: str, option: str) -> str:
    value = argument or os.environ.get(variable)
    if not value:
        raise ArgumentError(f"pass {option}, or set the environment variable {variable}")
    return value


def _signing_keys(names: Sequence[str] | None) -> Sequence[bytes] | None:
    if not names:
        return None
    for name in names:
        if not os.environ.get(name):
            raise ArgumentError(f"--signing-key-env: the environment variable {name} is not set")
    return check_signing_keys([os.environ[name] for name in names])
