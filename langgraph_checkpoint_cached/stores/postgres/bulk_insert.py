"""INSERT statements for many rows, made of the upstream saver's own statements for one row."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

from langgraph.checkpoint.postgres.base import BasePostgresSaver

from langgraph_checkpoint_cached.records import Put, PutWrites
from langgraph_checkpoint_cached.stores.postgres.queries import query

ROWS_OF_A_STATEMENT = (32, 16, 8, 5, 4, 3, 2, 1)
"""Numbers of rows that one statement inserts: few, so that a connection keeps all the statements prepared."""
TOGETHER_MAX = 50
"""Parameters of one statement for several batches. There are many such statements, each with its own numbers."""

STORE = query("store")

Row: TypeAlias = "tuple[Any, ...]"


@dataclass(eq=False)
class RowBatch:
    """Rows for one of the upstream saver's statements, no two of them with the same key."""

    sql: str
    parameters: list[Any] = field(default_factory=list)
    """The columns of all rows, one row after the other."""
    rows: int = 0
    positions: set[int] = field(default_factory=set)
    """Positions, in their group, of the operations that the rows belong to."""

    def add(self, row: Row) -> None:
        """Append a row."""
        self.parameters += row
        self.rows += 1


class Guard(NamedTuple):
    """Condition that fails a statement, and so its transaction, unless all is as it should be."""

    condition: str
    parameters: list[Any]


@dataclass(frozen=True)
class Statement:
    """One statement with its parameters. `rows` counts those of its batch, or of the last of its batches."""

    sql: str
    parameters: list[Any]
    batch: RowBatch
    rows: int


def row_batches(upstream: BasePostgresSaver, operations: Sequence[Put | PutWrites]) -> list[dict[str, RowBatch]]:
    """Sort the rows of the operations into sets of batches, each set by the statements of its batches.

    Executed one set after the other they have the effect of the rows one after the other, in the order given.
    There is more than one set only if a row is written more than once.
    """
    sets: list[dict[str, RowBatch]] = [{}]
    keys: set[Hashable] = set()
    for position, operation in enumerate(operations):
        rows = _put_rows(upstream, operation) if isinstance(operation, Put) else _write_rows(upstream, operation)
        for sql, key, row in rows:
            if key in keys:
                keys.clear()
                sets.append({})
            keys.add(key)
            batch = sets[-1].get(sql)
            if batch is None:
                batch = sets[-1][sql] = RowBatch(sql)
            batch.parameters += row
            batch.rows += 1
            batch.positions.add(position)
    return sets


def _put_rows(upstream: BasePostgresSaver, put: Put) -> list[tuple[str, Hashable, Row]]:
    """Return the statement, the key and the columns of each row of a checkpoint."""
    thread_id, checkpoint_ns = put.namespace
    rows: list[tuple[str, Hashable, Row]] = []
    for channel, kind, blob in put.values:
        name: Row = (thread_id, checkpoint_ns, channel, put.new_versions[channel])
        rows.append((upstream.UPSERT_CHECKPOINT_BLOBS_SQL, ("blob", *name), (*name, kind, blob)))
    name = (thread_id, checkpoint_ns, put.checkpoint_id)
    row = (*name, put.parent_id, put.checkpoint_json, put.metadata_json)
    rows.append((upstream.UPSERT_CHECKPOINTS_SQL, ("checkpoint", *name), row))
    return rows


def _write_rows(upstream: BasePostgresSaver, put: PutWrites) -> list[tuple[str, Hashable, Row]]:
    """Return the statement, the key and the columns of each pending write."""
    thread_id, checkpoint_ns = put.namespace
    sql = upstream.UPSERT_CHECKPOINT_WRITES_SQL if put.replace else upstream.INSERT_CHECKPOINT_WRITES_SQL
    rows: list[tuple[str, Hashable, Row]] = []
    for checkpoint_id, task_id, idx, channel, kind, blob, task_path in put.writes:
        key = ("write", thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
        row = (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, kind, blob)
        rows.append((sql, key, row))
    return rows


def statements(batches: Iterable[RowBatch]) -> Iterator[Statement]:
    """Iterate over statements that insert all rows, one or more for each batch."""
    for batch in batches:
        columns, start = len(batch.parameters) // batch.rows, 0
        for count in ROWS_OF_A_STATEMENT:
            sql = for_rows(batch.sql, count)
            while sql is not None and batch.rows - start >= count:
                end = start + count
                yield Statement(sql, batch.parameters[start * columns : end * columns], batch, count)
                start = end


def one_statement(batches: Mapping[str, RowBatch], last: str, guard: Guard) -> Statement | None:
    """Return a single statement that inserts all rows, or None if they are too many or cannot be combined.

    It returns one row, with the number of rows `inserted` by the last part.

    Args:
        batches: One set of them.
        last: The batch with this statement comes last: the count of inserted rows is of that one.
        guard: Evaluated before the last part.
    """
    in_order = dict(batches)
    if last in in_order:
        in_order[last] = in_order.pop(last)
    parts, parameters = [], []
    for batch in in_order.values():
        parts.append((batch.sql, batch.rows))
        parameters += batch.parameters
    sql = together(tuple(parts), guard.condition) if len(parameters) <= TOGETHER_MAX else None
    return None if sql is None else Statement(sql, parameters + guard.parameters, batch, batch.rows)


@lru_cache(maxsize=64)
def for_rows(sql: str, count: int) -> str | None:
    """Extend a statement for one row to `count` rows. Return None if it is not of a kind that can be extended."""
    if count == 1:
        return sql
    row = re.findall(r"\bVALUES\s*(\((?:%s,\s*)*%s\))", sql, re.IGNORECASE)
    return sql.replace(row[0], ", ".join(row * count)) if len(row) == 1 and sql.count(row[0]) == 1 else None


@lru_cache(maxsize=256)
def together(parts: tuple[tuple[str, int], ...], condition: str) -> str | None:
    """Combine statements, each for so many rows, into one. Return None if one of them cannot be extended."""
    texts = [for_rows(sql, count) for sql, count in parts]
    if None in texts:
        return None
    *first, last = (str(text).strip().rstrip(";") for text in texts)
    named = "".join(f"part_{i} as ({text}), " for i, text in enumerate(first))
    return STORE.format(others=named, last=last, guard=condition)


@lru_cache(maxsize=512)
def numbered(sql: str) -> bytes:
    """Put `$1`, `$2`, ... for the parameters of a statement, as Postgres takes it: psycopg need not parse it."""
    first, *rest = sql.split("%s")
    return (first + "".join(f"${number}{text}" for number, text in enumerate(rest, 1))).encode()
