"""INSERT statements for many rows, made of the upstream saver's own for one."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from langgraph.checkpoint.postgres.base import BasePostgresSaver
from psycopg.types.json import Jsonb

from langgraph_checkpoint_cached.records import Put, PutWrites

ROWS_OF_A_STATEMENT = (32, 16, 8, 5, 4, 3, 2, 1)
"""How many rows a statement inserts: so few numbers that a connection keeps all the statements prepared."""
TOGETHER_MAX = 50
"""Parameters of one statement for batches of several kinds. Of those there are many, each with its own numbers."""

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Batch:
    """Rows for one of the upstream saver's statements, no two of them with the same key."""

    sql: str
    rows: list[Row] = field(default_factory=list)
    of: set[int] = field(default_factory=set)
    """Positions, in their group, of the operations that the rows belong to."""


@dataclass(frozen=True)
class Statement:
    """One statement with its parameters. Its `rows` are those of its batch, or of the last of its batches."""

    sql: str
    parameters: list[Any]
    batch: Batch
    rows: int


def batches(upstream: BasePostgresSaver, operations: Sequence[Put | PutWrites]) -> list[list[Batch]]:
    """The operations' rows: sets of batches that, executed one set after the other, have the effect of one row
    after the other in the order given. There is more than one set only if a row is written more than once.
    """
    sets: list[dict[str, Batch]] = [{}]
    keys: set[Hashable] = set()

    def add(position: int, sql: str, key: Hashable, row: Row) -> None:
        if key in keys:
            keys.clear()
            sets.append({})
        keys.add(key)
        batch = sets[-1].setdefault(sql, Batch(sql))
        batch.rows.append(row)
        batch.of.add(position)

    for position, operation in enumerate(operations):
        where = (operation.namespace.thread_id, operation.namespace.checkpoint_ns)
        if isinstance(operation, Put):
            for value in operation.values:
                blob: Row = (*where, value.channel, operation.new_versions[value.channel])
                key = ("blob", *blob)
                add(position, upstream.UPSERT_CHECKPOINT_BLOBS_SQL, key, (*blob, value.type, value.blob))
            checkpoint: Row = (*where, operation.checkpoint_id)
            rest = (operation.parent_id, _jsonb(operation.checkpoint_json), _jsonb(operation.metadata_json))
            add(position, upstream.UPSERT_CHECKPOINTS_SQL, ("checkpoint", *checkpoint), (*checkpoint, *rest))
        else:
            sql = (
                upstream.UPSERT_CHECKPOINT_WRITES_SQL
                if operation.replace
                else upstream.INSERT_CHECKPOINT_WRITES_SQL
            )
            for w in operation.writes:
                task: Row = (*where, w.checkpoint_id, w.task_id)
                row = (*task, w.task_path, w.idx, w.channel, w.type, w.blob)
                add(position, sql, ("write", *task, w.idx), row)
    return [list(batch.values()) for batch in sets]


def statements(batches: Sequence[Batch]) -> Iterator[Statement]:
    """Statements that insert all rows, one for each batch or more."""
    for batch in batches:
        start = 0
        for count in ROWS_OF_A_STATEMENT:
            sql = for_rows(batch.sql, count)
            while sql is not None and len(batch.rows) - start >= count:
                yield Statement(sql, _flat(batch.rows[start : start + count]), batch, count)
                start += count


def one_statement(batches: Sequence[Batch], last: str) -> Statement | None:
    """A single statement that inserts all rows, or None if they are too many or the batches of another kind.

    Args:
        batches: One set of them.
        last: The batch with this statement comes last: the count of inserted rows is of that one.
    """
    in_order = sorted(batches, key=lambda batch: batch.sql == last)
    if sum(len(batch.rows) * len(batch.rows[0]) for batch in batches) > TOGETHER_MAX:
        return None
    sql = together(tuple((batch.sql, len(batch.rows)) for batch in in_order))
    if sql is None:
        return None
    parameters = [column for batch in in_order for column in _flat(batch.rows)]
    return Statement(sql, parameters, in_order[-1], len(in_order[-1].rows))


@lru_cache(maxsize=64)
def for_rows(sql: str, count: int) -> str | None:
    """The statement for `count` rows, or None if it is not of the kind that can be extended."""
    if count == 1:
        return sql
    row = re.findall(r"\bVALUES\s*(\((?:%s,\s*)*%s\))", sql)
    return sql.replace(row[0], ", ".join(row * count)) if len(row) == 1 and sql.count(row[0]) == 1 else None


@lru_cache(maxsize=256)
def together(parts: tuple[tuple[str, int], ...]) -> str | None:
    """One statement that does what these do, each for so many rows."""
    texts = [for_rows(sql, count) for sql, count in parts]
    if None in texts:
        return None
    *first, last = (str(text).strip().rstrip(";") for text in texts)
    names = ", ".join(f"part_{i} as ({text})" for i, text in enumerate(first))
    return f"with {names} {last}" if first else last


@lru_cache(maxsize=512)
def numbered(sql: str) -> bytes:
    """The statement with `$1`, `$2`, ... for its parameters, as Postgres takes it: psycopg need not parse it."""
    first, *rest = sql.split("%s")
    return (first + "".join(f"${number}{text}" for number, text in enumerate(rest, 1))).encode()


def _flat(rows: Sequence[Row]) -> list[Any]:
    return [column for row in rows for column in row]


def _jsonb(text: str) -> Jsonb:
    return Jsonb(text, dumps=_as_it_is)


def _as_it_is(text: str) -> str:
    return text
