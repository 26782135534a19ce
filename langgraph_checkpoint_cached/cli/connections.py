"""Which servers a command works on, out of its arguments and the environment; and how it gets at them."""

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
"""To Postgres, of one command."""


@dataclass(frozen=True)
class Servers:
    """Where to connect. Neither addresses nor keys are part of its `repr`."""

    postgres_uri: str = field(repr=False)
    redis_url: str = field(repr=False)
    prefix: str
    timeout_seconds: float
    ttl_seconds: float
    signing_keys: Sequence[bytes] | None = field(repr=False)

    @classmethod
    def of(cls, options: argparse.Namespace) -> Servers:
        """Those of the arguments and the environment.

        Raises:
            ArgumentError, ArgumentTypeError: something is missing or cannot work. No secret is in the message.
        """
        servers = cls(
            _given(options.postgres_uri, POSTGRES_VARIABLE, "--postgres-uri"),
            _given(options.redis_url, REDIS_VARIABLE, "--redis-url"),
            check_prefix(options.prefix or os.environ.get(PREFIX_VARIABLE) or "langgraph"),
            to_seconds(options.timeout, "--timeout"),
            to_seconds(getattr(options, "ttl", CHECKPOINT.seconds), "--ttl"),
            _keys(options.signing_key_env),
        )
        check_postgres_uri(servers.postgres_uri)
        return servers

    async def postgres(self, **settings: Any) -> AsyncConnection[DictRow]:
        """A connection in autocommit mode, without prepared statements. Raises `psycopg.OperationalError`."""
        return await AsyncConnection.connect(
            self.postgres_uri,
            autocommit=True,
            row_factory=dict_row,
            connect_timeout=math.ceil(self.timeout_seconds),
            **{"prepare_threshold": None, **settings},
        )

    def redis(self) -> AnyRedis:
        """A client, which connects when it is first used."""
        return redis_client(self.redis_url, max_connections=4, timeout_seconds=self.timeout_seconds)

    @asynccontextmanager
    async def saver(
        self, *, refresh_on_read: bool = False, serde: SerializerProtocol | None = None
    ) -> AsyncIterator[CachedPostgresSaver]:
        """A saver of its own. Reading through it does not extend the life of what is in Redis, unless told to.

        Raises:
            psycopg.OperationalError: Postgres cannot be reached, and why. That Redis cannot is told by its use.
        """
        await (await self.postgres()).close()  # says why not, which a pool does not
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
    """The arguments that every command has."""
    group = parser.add_argument_group("servers")
    group.add_argument(
        "--postgres-uri", metavar="URI", help=f"postgresql://user:password@host:5432/db; or {POSTGRES_VARIABLE}"
    )
    group.add_argument(
        "--redis-url", metavar="URL", help=f"redis://user:password@host:6379/0; or {REDIS_VARIABLE}"
    )
    group.add_argument(
        "--prefix", help=f"what the keys in Redis start with; or {PREFIX_VARIABLE} (default: langgraph)"
    )
    group.add_argument(
        "--signing-key-env",
        metavar="NAME",
        action="append",
        help="environment variable with a signing key; repeat it for more, the first one signs",
    )
    group.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=TIMEOUT_SECONDS,
        help="for a connection, and for a call to Redis (default: 5)",
    )
    parser.add_argument("--json", action="store_true", help="JSON on standard output instead of text")


def _given(argument: str | None, variable: str, option: str) -> str:
    value = argument or os.environ.get(variable)
    if not value:
        raise ArgumentError(f"pass {option}, or set the environment variable {variable}")
    return value


def _keys(names: Sequence[str] | None) -> Sequence[bytes] | None:
    if not names:
        return None
    for name in names:
        if not os.environ.get(name):
            raise ArgumentError(f"--signing-key-env: the environment variable {name} is not set")
    return check_signing_keys([os.environ[name] for name in names])
