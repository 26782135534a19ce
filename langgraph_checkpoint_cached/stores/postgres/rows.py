"""Checkpoints as records, out of the rows of the upstream saver's SELECT statements."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncCursor
from psycopg.adapt import Buffer, Loader
from psycopg.pq import Format
from psycopg.rows import DictRow

from langgraph_checkpoint_cached.records import Namespace, Record, Value, Write

JSONB_OID = 3802


class _JsonBytes(Loader):
    """JSONB as its bytes: most rows go to Redis as they are, and are decoded once at most."""

    format = Format.BINARY

    def load(self, data: Buffer) -> bytes:
        return bytes(data[1:])  # the first byte is the version of the binary format


async def select(cur: AsyncCursor[DictRow], sql: str, parameters: Sequence[Any]) -> list[DictRow]:
    """Execute a statement that has the columns of the upstream saver's, and return its rows, JSON as bytes."""
    cur.adapters.register_loader(JSONB_OID, _JsonBytes)
    await cur.execute(sql, parameters, binary=True)
    return await cur.fetchall()


async def to_records(
    cur: AsyncCursor[DictRow], upstream: AsyncPostgresSaver, rows: Sequence[DictRow]
) -> list[Record]:
    """Decode rows, and load the pending sends of checkpoints that keep them with their parent."""
    records = [_decode_row(row) for row in rows]
    parents = [r.parent_id for r in records if r.parent_id and r.predates_tasks_channel]
    if not parents:
        return records
    await cur.execute(upstream.SELECT_PENDING_SENDS_SQL, (records[0].namespace.thread_id, parents), binary=True)
    sends: dict[str, tuple[tuple[str, bytes], ...]] = defaultdict(tuple)
    for row in await cur.fetchall():
        sends[row["checkpoint_id"]] = tuple((kind.decode(), blob) for kind, blob in row["sends"])
    return [
        _decode_row(row, sends[record.parent_id]) if record.parent_id and record.predates_tasks_channel else record
        for row, record in zip(rows, records, strict=True)
    ]


def decode_write(checkpoint_id: str, columns: Sequence[bytes]) -> Write:
    """Decode a pending write out of the array that the upstream saver's SELECT makes of it."""
    task_id, channel, kind, blob, path, index = columns
    return Write(checkpoint_id, task_id.decode(), int(index), channel.decode(), kind.decode(), blob, path.decode())


def _decode_row(row: Mapping[str, Any], sends: tuple[tuple[str, bytes], ...] = ()) -> Record:
    checkpoint_id = row["checkpoint_id"]
    values = [Value(channel.decode(), kind.decode(), blob) for channel, kind, blob in row["channel_values"] or ()]
    return Record(
        namespace=Namespace(row["thread_id"], row["checkpoint_ns"]),
        checkpoint_id=checkpoint_id,
        parent_id=row["parent_checkpoint_id"],
        checkpoint_json=row["checkpoint"],
        metadata_json=row["metadata"],
        values=tuple(values),
        writes=tuple([decode_write(checkpoint_id, columns) for columns in row["pending_writes"] or ()]),
        sends=sends,
    )
