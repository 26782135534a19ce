"""Findings of `doctor`, and the targets of its checks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

from psycopg import AsyncConnection
from psycopg.rows import DictRow

from langgraph_checkpoint_cached.cli.connections import ConnectionOptions
from langgraph_checkpoint_cached.cli.nodes import Node

Level: TypeAlias = Literal["ok", "warning", "problem", "unknown"]


@dataclass(frozen=True)
class Finding:
    """Finding of a check.

    Attributes:
        level: `"problem"`: something does not work, or will not. `"warning"`: it works, but could be better.
            `"unknown"`: it could not be checked.
        message: What was found.
        advice: What to do; empty if nothing is wrong.
    """

    check: str
    level: Level
    message: str
    advice: str = ""


@dataclass(frozen=True)
class PostgresTarget:
    """A Postgres that can be reached. `writes_behind` is whether any process writes behind, or is about to."""

    options: ConnectionOptions
    conn: AsyncConnection[DictRow]
    writes_behind: bool = False

    async def row(self, sql: str, parameters: Sequence[Any] = ()) -> DictRow:
        """Return the only row of a query."""
        row = await (await self.conn.execute(sql, parameters)).fetchone()
        if row is None:
            raise LookupError(sql)
        return row


@dataclass(frozen=True)
class RedisTarget:
    """A Redis that can be reached: a server, or the primaries of a Cluster. `writes_behind` as above."""

    options: ConnectionOptions
    nodes: Sequence[Node]
    writes_behind: bool = False


P = TypeVar("P")
Check: TypeAlias = Callable[[P], Awaitable[list[Finding]]]
"""A check of one thing. An error of the server becomes a finding of the level `"unknown"`."""
