"""What `doctor` finds, and what it looks at."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

from psycopg import AsyncConnection
from psycopg.rows import DictRow

from langgraph_checkpoint_cached.cli.connections import Servers
from langgraph_checkpoint_cached.cli.nodes import Node

Level: TypeAlias = Literal["ok", "warning", "problem", "unknown"]


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        level: `"problem"`: something does not work, or will not. `"warning"`: it works, and may be better.
            `"unknown"`: it could not be looked at.
        says: What was found.
        advice: What to do; nothing where it is ok.
    """

    check: str
    level: Level
    says: str
    advice: str = ""


@dataclass(frozen=True)
class PostgresTarget:
    """A Postgres that can be reached. `writes_behind` is whether somebody writes behind, or is about to."""

    servers: Servers
    conn: AsyncConnection[DictRow]
    writes_behind: bool = False

    async def row(self, sql: str, parameters: Sequence[Any] = ()) -> DictRow:
        """The only row of a query."""
        row = await (await self.conn.execute(sql, parameters)).fetchone()
        if row is None:
            raise LookupError(sql)
        return row


@dataclass(frozen=True)
class RedisTarget:
    """A Redis that can be reached: a server, or the primaries of a Cluster. `writes_behind` as above."""

    servers: Servers
    nodes: Sequence[Node]
    writes_behind: bool = False


P = TypeVar("P")
Check: TypeAlias = Callable[[P], Awaitable[list[Finding]]]
"""Looks at one thing. Its errors of the server make a finding of the level `"unknown"`."""
