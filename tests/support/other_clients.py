"""Redis clients that lack what this package looks for: a fake, of a future redis-py, with own connections."""

from __future__ import annotations

from typing import Any

import pytest
from fakeredis._commands import SUPPORTED_COMMANDS, Signature
from fakeredis.aioredis import AsyncFakeSocket
from redis.asyncio import Connection, ConnectionPool, Redis

INFO = b"redis_version:7.4.0\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\nmaster_replid:0123456789abcdef\r\n"


def teach_info(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give fakeredis INFO, without which no script of ours runs.

    It lacks Lua's cmsgpack too, without which a put drops the entry: the next read loads it again.
    """

    def info(socket: Any, *sections: bytes) -> bytes:
        return INFO

    monkeypatch.setattr(AsyncFakeSocket, "info", info, raising=False)
    monkeypatch.setitem(SUPPORTED_COMMANDS, "info", Signature("info", "info", (), (bytes,)))


class Opaque:
    """Object that hands on all that it is asked for, and is of no class that anyone knows."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class OpaqueWriter(Opaque):
    """Stream writer above a transport that is not asyncio's."""

    @property
    def transport(self) -> Any:
        return Opaque(self._inner.transport)


class WithoutTransport(Connection):
    """Connection of a redis-py that no longer writes to an asyncio transport."""

    async def connect(self) -> None:
        await super().connect()  # type: ignore[no-untyped-call]
        if self._writer is not None and not isinstance(self._writer, OpaqueWriter):
            self._writer = OpaqueWriter(self._writer)  # type: ignore[assignment]


class WithoutParseError(Connection):
    """Connection of a redis-py whose parser makes no errors."""

    async def connect(self) -> None:
        self._parser.__dict__.pop("parse_error", None)
        await super().connect()  # type: ignore[no-untyped-call]
        self._parser.parse_error = None  # type: ignore[method-assign,assignment]


class WithOwnSending(Connection):
    """Connection that sends in its own way."""

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        await super().send_packed_command(*args, **options)


def client_with(connection_class: type[Connection], url: str, **options: Any) -> Redis:
    """Return a client whose connections are of a class. To be closed with its pool: `aclose()` does."""
    return Redis.from_pool(ConnectionPool.from_url(url, connection_class=connection_class, **options))
