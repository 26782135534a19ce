"""Validation of all arguments, and the settings that a saver is made from.

Every check returns the value in the form that the code uses, and raises before anything is opened or written:
`ArgumentTypeError` for a wrong type, `ArgumentError` for a value that cannot work. The message names the argument
and holds no secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import blake2b
from inspect import getattr_static
from typing import Literal, TypedDict, get_args

import psycopg
import redis as sync_redis
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.base import SerializerProtocol
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis, RedisCluster
from typing_extensions import Unpack

from langgraph_checkpoint_cached.errors import ArgumentError, ArgumentTypeError
from langgraph_checkpoint_cached.ttl import CHECKPOINT, Ttl
from langgraph_checkpoint_cached.utils.text import text_bytes

Mode = Literal["write_through", "write_behind"]
RedisDurability = Literal["as_is", "replica", "disk"]

REDIS_TIMEOUT_SECONDS = 0.5
SECONDS_MAX = 10 * 365 * 24 * 3600
KEY_BYTES_MIN = 16
KEY_BYTES_MAX = blake2b.MAX_KEY_SIZE
USED_METHODS = ("with_allowlist", "get_next_version", "config_specs", "from_conn_string", "adelete_thread")
MAY_BE_OVERRIDDEN = frozenset(("serde", "setup", "MIGRATIONS", *USED_METHODS))
"""Attributes that a subclass of the upstream saver may override: the saver uses them as they are."""

FOREIGN_SCHEMES = tuple(f"postgresql+{driver}" for driver in ("psycopg", "psycopg2", "asyncpg", "pg8000"))
FOREIGN_PARAMETERS = {
    "pgbouncer": "leave it out, poolers are found without it",
    "connection_limit": "leave it out and set pool_max_size",
    "pool_timeout": "leave it out and set the argument pool_timeout",
    "schema": "use options=-csearch_path%3Dname",
    "ssl": "use sslmode=require or sslmode=verify-full",
    "statement_cache_size": "leave it out, poolers are found without it",
    "prepared_statement_cache_size": "leave it out, poolers are found without it",
}
"""Parameters of Prisma, asyncpg and SQLAlchemy, and what to do instead."""


class SaverOptions(TypedDict, total=False):
    """Keywords of `CachedPostgresSaver`, which documents them."""

    ttl: float | timedelta
    refresh_on_read: bool
    prefix: str
    serde: SerializerProtocol | None
    mode: Mode
    redis_durability: RedisDurability
    redis_timeout: float | timedelta
    signing_keys: Sequence[bytes | str] | None
    check_hits: float


class ConnStringOptions(SaverOptions, total=False):
    """Keywords of `CachedPostgresSaver.from_conn_string`, which documents them."""

    pool_min_size: int
    pool_max_size: int
    pool_timeout: float | timedelta
    pool_max_idle: float | timedelta
    pool_max_lifetime: float | timedelta
    redis_max_connections: int


@dataclass(frozen=True)
class Settings:
    """Settings of one saver. Made by `from_options`, which validates them."""

    ttl: Ttl = CHECKPOINT
    prefix: str = "langgraph"
    serde: SerializerProtocol | None = None
    """None for the serializer of the upstream saver."""
    mode: Mode = "write_through"
    redis_durability: RedisDurability = "as_is"
    redis_timeout_seconds: float = REDIS_TIMEOUT_SECONDS
    signing_keys: tuple[bytes, ...] | None = field(default=None, repr=False)
    check_hits: float = 0.0

    @classmethod
    def from_options(
        cls,
        *,
        ttl: float | timedelta = CHECKPOINT.seconds,
        refresh_on_read: bool = CHECKPOINT.sliding,
        prefix: str = "langgraph",
        serde: SerializerProtocol | None = None,
        mode: Mode = "write_through",
        redis_durability: RedisDurability = "as_is",
        redis_timeout: float | timedelta = REDIS_TIMEOUT_SECONDS,
        signing_keys: Sequence[bytes | str] | None = None,
        check_hits: float = 0.0,
    ) -> Settings:
        """Return the settings that these keywords of a saver mean.

        Raises:
            ArgumentTypeError, ArgumentError: a keyword has a value that cannot work.
        """
        return cls(
            ttl=Ttl(to_seconds(ttl, "ttl"), sliding=bool(refresh_on_read)),
            prefix=check_prefix(prefix),
            serde=serde,
            mode=check_mode(mode),
            redis_durability=check_redis_durability(redis_durability),
            redis_timeout_seconds=to_seconds(redis_timeout, "redis_timeout"),
            signing_keys=None if signing_keys is None else check_signing_keys(signing_keys),
            check_hits=check_fraction(check_hits, "check_hits"),
        )


@dataclass(frozen=True)
class ConnectionSettings:
    """Settings of the clients that `from_conn_string` opens. Made by `from_options`, which validates them."""

    postgres_uri: str = field(repr=False)
    redis_url: str = field(repr=False)
    """Parsed where the client is made from it, which connects later."""
    pool_min_size: int
    pool_max_size: int
    pool_timeout_seconds: float
    pool_max_idle_seconds: float
    pool_max_lifetime_seconds: float
    redis_max_connections: int
    redis_timeout_seconds: float
    saver_options: SaverOptions = field(repr=False)
    """The saver's own keywords. They are valid."""

    @classmethod
    def from_options(
        cls,
        postgres_uri: str,
        redis_url: str,
        *,
        pool_min_size: int = 1,
        pool_max_size: int = 10,
        pool_timeout: float | timedelta = 30.0,
        pool_max_idle: float | timedelta = 600.0,
        pool_max_lifetime: float | timedelta = 3600.0,
        redis_max_connections: int = 32,
        **saver_options: Unpack[SaverOptions],
    ) -> ConnectionSettings:
        """Return the settings that these arguments of `from_conn_string` mean.

        Raises:
            ArgumentTypeError, ArgumentError: an argument cannot work.
        """
        return cls(
            postgres_uri=check_postgres_uri(postgres_uri),
            redis_url=check_str(redis_url, "redis_url"),
            pool_min_size=check_count(pool_min_size, "pool_min_size", least=0),
            pool_max_size=check_count(pool_max_size, "pool_max_size", least=max(1, pool_min_size)),
            pool_timeout_seconds=to_seconds(pool_timeout, "pool_timeout"),
            pool_max_idle_seconds=to_seconds(pool_max_idle, "pool_max_idle"),
            pool_max_lifetime_seconds=to_seconds(pool_max_lifetime, "pool_max_lifetime"),
            redis_max_connections=check_count(redis_max_connections, "redis_max_connections"),
            redis_timeout_seconds=Settings.from_options(**saver_options).redis_timeout_seconds,
            saver_options=saver_options,
        )


def check_redis_client(client: object, *, instead: str = "") -> Redis | RedisCluster:
    """Return `client` if it is a `redis.asyncio` one: a `Redis` (also a Sentinel's primary) or a `RedisCluster`.

    Args:
        client: The argument `redis`.
        instead: What takes the place of an asynchronous client, for whoever passes a synchronous one.

    Raises:
        ArgumentTypeError: it is something else.
    """
    if isinstance(client, (Redis, RedisCluster)):
        return client
    hint = ""
    if isinstance(client, (sync_redis.Redis, sync_redis.RedisCluster)):
        hint = f": import it from redis.asyncio{instead and f', or use {instead}'}"
    raise ArgumentTypeError(
        f"redis must be a redis.asyncio client, a Redis or RedisCluster, not {type(client).__module__}."
        f"{type(client).__qualname__}{hint}"
    )


def check_upstream(saver: object) -> AsyncPostgresSaver:
    """Return `saver` if its tables and statements are those of `AsyncPostgresSaver`.

    Raises:
        ArgumentTypeError: it is not an `AsyncPostgresSaver`, or one that stores or reads in a way of its own.
        ArgumentError: its single connection is not in autocommit mode, so that nothing it stores is durable.
    """
    if not isinstance(saver, AsyncPostgresSaver):
        raise ArgumentTypeError(f"postgres must be an AsyncPostgresSaver, not {type(saver).__qualname__}")
    if own := _overridden(saver):
        raise ArgumentTypeError(
            f"postgres is a {type(saver).__qualname__} with its own {', '.join(own)}, which would be bypassed: "
            "pass an AsyncPostgresSaver over the same pool. A serializer can do what is to be done to values when "
            "they are stored, such as encryption: AsyncPostgresSaver(pool, serde=...)"
        )
    if not isinstance(saver.conn, AsyncConnectionPool) and not saver.conn.autocommit:
        raise ArgumentError("postgres: its connection must be opened with autocommit=True")
    return saver


def _overridden(saver: AsyncPostgresSaver) -> list[str]:
    """Return the names that this saver, or its class, has in place of the upstream saver's own."""
    own = []
    for name in dir(AsyncPostgresSaver):
        if name not in MAY_BE_OVERRIDDEN and not (name.startswith("__") and name.endswith("__")):
            upstream = getattr_static(AsyncPostgresSaver, name)
            if name in vars(saver) or getattr_static(type(saver), name) is not upstream:
                own.append(name)
    return own


def check_mode(mode: object) -> Mode:
    """Return `mode` if it is one of `Mode`. Raises `ArgumentError`."""
    for known in get_args(Mode):
        if mode == known:
            return known  # type: ignore[no-any-return]
    raise ArgumentError(f'mode must be "write_through" or "write_behind", not {mode!r}')


def check_redis_durability(durability: object) -> RedisDurability:
    """Return `durability` if it is one of `RedisDurability`. Raises `ArgumentError`."""
    for known in get_args(RedisDurability):
        if durability == known:
            return known  # type: ignore[no-any-return]
    raise ArgumentError(f'redis_durability must be "as_is", "replica" or "disk", not {durability!r}')


def check_str(value: object, name: str) -> str:
    """Return `value` if it is a `str`. Raises `ArgumentTypeError`."""
    if not isinstance(value, str):
        raise ArgumentTypeError(f"{name} must be a str, not {type(value).__name__}")
    return value


def check_prefix(prefix: object, name: str = "prefix") -> str:
    """Return `prefix` if keys can start with it.

    Raises:
        ArgumentTypeError: it is not a `str`.
        ArgumentError: it is empty, or has a brace: Redis Cluster hashes the text between the first pair. Or it has
            a NUL or a lone surrogate, which Postgres cannot store.
    """
    text = check_str(prefix, name)
    if text_bytes(text) is None:
        raise ArgumentError(f"{name} must not contain a NUL or a lone surrogate: {text!r}")
    if not text or "{" in text or "}" in text:
        raise ArgumentError(f"{name} must not be empty nor contain '{{' or '}}': {text!r}")
    return text


def check_signing_keys(signing_keys: object) -> tuple[bytes, ...]:
    """Return the keys as bytes; text is encoded as UTF-8.

    Raises:
        ArgumentTypeError, ArgumentError: a key cannot be used, or there is none. The message holds nothing of it.
    """
    if isinstance(signing_keys, (str, bytes, bytearray)) or not isinstance(signing_keys, Sequence):
        kind = type(signing_keys).__name__
        raise ArgumentTypeError(f"signing_keys must be a list or tuple of keys, not a single {kind}")
    if not signing_keys:
        raise ArgumentError("signing_keys is empty: leave it out where entries are not to be signed")
    keys = []
    for number, key in enumerate(signing_keys):
        if not isinstance(key, (bytes, str)):
            raise ArgumentTypeError(f"signing_keys[{number}] must be bytes or str, not {type(key).__name__}")
        keys.append(key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key)
        if not KEY_BYTES_MIN <= len(keys[-1]) <= KEY_BYTES_MAX:
            raise ArgumentError(
                f"signing_keys[{number}] must be {KEY_BYTES_MIN} to {KEY_BYTES_MAX} bytes long, "
                f"not {len(keys[-1])}: secrets.token_bytes(32) makes a good one"
            )
    return tuple(keys)


def check_postgres_uri(uri: object) -> str:
    """Return `uri` if libpq can use it.

    Raises:
        ArgumentTypeError, ArgumentError: it cannot. No part of it is in the message.
    """
    text = check_str(uri, "postgres_uri")
    if hint := _foreign_uri(text):
        raise ArgumentError(f"postgres_uri {hint}")
    if not _is_conninfo(text):
        raise ArgumentError(
            "postgres_uri does not parse: use postgresql://user:password@host:5432/database, with special "
            "characters of the password percent-encoded"
        )
    return text


def check_fraction(value: object, name: str) -> float:
    """Return `value` if it is a number from 0 to 1.

    Raises:
        ArgumentTypeError: it is no number.
        ArgumentError: it is not from 0 to 1.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ArgumentTypeError(f"{name} must be a number from 0 to 1, not {type(value).__name__}")
    if not 0 <= value <= 1:  # also refuses NaN
        raise ArgumentError(f"{name} must be from 0 to 1, not {value!r}")
    return float(value)


def check_count(value: object, name: str, *, least: int = 1, most: int | None = None) -> int:
    """Return `value` if it is a whole number from `least` to `most`.

    Raises:
        ArgumentTypeError: it is no `int`.
        ArgumentError: it is out of these bounds.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentTypeError(f"{name} must be an int, not {type(value).__name__}")
    if value < least or (most is not None and value > most):
        bound = "" if most is None else f" and at most {most}"
        raise ArgumentError(f"{name} must be at least {least}{bound}, not {value}")
    return value


def unique_ids(ids: Sequence[str], name: str, count_max: int | None = None) -> list[str]:
    """Return the ids as text, each once, in their order.

    Raises:
        ArgumentTypeError: `ids` is a single string.
        ArgumentError: there are more than `count_max`.
    """
    if isinstance(ids, str):
        raise ArgumentTypeError(f"{name} must be a sequence of IDs, not a str")
    found = list(dict.fromkeys(map(str, ids)))
    if count_max is not None and len(found) > count_max:
        raise ArgumentError(f"{name} must be at most {count_max}, not {len(found)}: call it several times")
    return found


def to_seconds(value: float | timedelta, name: str, *, most: float = SECONDS_MAX) -> float:
    """Return a number of seconds, or a `timedelta`, as seconds.

    Raises:
        ArgumentTypeError: `value` is neither a number nor a `timedelta`.
        ArgumentError: it is not positive, or longer than `most` seconds, by default ten years.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ArgumentTypeError(f"{name} must be a number of seconds or a timedelta, not {type(value).__name__}")
    if not 0 < value <= most:  # also refuses NaN
        raise ArgumentError(f"{name} must be more than 0 and at most {most} seconds, not {value!r}")
    return float(value)


def _foreign_uri(uri: str) -> str:
    """Return what is wrong with a URI that another library takes and libpq does not; "" if it is none."""
    scheme, _, rest = uri.partition("://")
    if scheme in FOREIGN_SCHEMES:
        return f"starts with {scheme}://, which is SQLAlchemy's: use postgresql://"
    query = rest.rpartition("?")[2] if "?" in rest else ""
    for name in (pair.partition("=")[0] for pair in query.split("&")):
        if name in FOREIGN_PARAMETERS:
            return f"has the parameter {name}, which libpq does not know: {FOREIGN_PARAMETERS[name]}"
    return ""


def _is_conninfo(uri: str) -> bool:
    """Return whether libpq can use it, and repeats no part of a password.

    Its own parse error repeats the whole string. The error of a connection repeats the host and the path, which
    are the second half of a password that has an `@` or a `/` in it.
    """
    try:
        conninfo_to_dict(uri)
    except psycopg.ProgrammingError:
        return False
    scheme, is_uri, rest = uri.partition("://")
    if not is_uri or scheme not in ("postgresql", "postgres"):
        return True
    authority, _, path = rest.partition("/")
    host = authority.partition("@")[2]
    return "@" not in host.partition("?")[0] and "@" not in path.partition("?")[0]
