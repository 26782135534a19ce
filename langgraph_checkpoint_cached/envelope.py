"""Between stored records and the fields of a Redis hash. Pure.

Each part stands in an envelope: a CRC-32 of the rest, then a msgpack array that starts with a format version.
A write's task path stands before its envelope, ended by NUL, for `lua/commit_writes.lua` to compare.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, cast

import msgpack

from langgraph_checkpoint_cached.jsonb import round_trip
from langgraph_checkpoint_cached.keys import Namespace
from langgraph_checkpoint_cached.records import (
    TASKS_CHANNEL_FORMAT,
    Latest,
    Put,
    PutWrites,
    Record,
    Value,
    Write,
)
from langgraph_checkpoint_cached.versions import UNIQUE_VERSION

FORMAT = 1
CHECKSUM_BYTES = 4
ENTRY_BYTES_MAX = 16 * 1024 * 1024

Fields: TypeAlias = "list[str | bytes]"
"""Field, value, field, value, ... of a Redis hash."""

NO_SUCH_ID = "-"
"""Id of an opaque entry where there is no checkpoint: no other id is compared with it."""


class DamagedEntry(Exception):
    """Bytes from Redis are not what this version writes. The caller takes it for a miss."""


EMPTY: Fields = ["i", "", "v", msgpack.packb({})]
"""The entry of a namespace that has no checkpoint."""


def entry_fields(latest: Latest) -> Fields:
    """The entry for what Postgres holds.

    A checkpoint that no entry can hold (too old a format, too large) makes an opaque one: its id alone, which
    says "ask Postgres".
    """
    record = latest.record
    if any(map(_only_postgres_can_read, latest.early_writes)):
        return ["i", record.checkpoint_id if record else NO_SUCH_ID]
    if record is None:
        return EMPTY + [part for w in latest.early_writes for part in (write_field(w), _pack_write(w))]
    opaque: Fields = ["i", record.checkpoint_id]
    if record.predates_tasks_channel:
        return opaque
    fields: Fields = [
        *opaque,
        "h",
        _pack_head(
            record.namespace,
            record.checkpoint_id,
            record.parent_id,
            record.checkpoint_json,
            record.metadata_json,
        ),
        "v",
        _pack_versions(record.checkpoint["channel_versions"]),
    ]
    for value in record.values:
        fields += (f"c:{value.channel}", _pack(value))
    for write in (*record.writes, *latest.early_writes):
        fields += (write_field(write), _pack_write(write))
    return fields if sum(map(len, fields)) <= ENTRY_BYTES_MAX else opaque


def advance_arguments(put: Put) -> Fields | None:
    """What `commit_put.lua` takes from its 6th argument on, or None when the entry has to be dropped.

    Dropped, because only Postgres knows what the checkpoint then holds: versions that may exist already,
    which the stock SQL would leave as they are, or that the checkpoint does not name; values that come back
    otherwise than they went; a format older than the tasks channel; too many bytes.
    """
    if put.format < TASKS_CHANNEL_FORMAT or any(map(_only_postgres_can_read, put.values)):
        return None
    for channel, version in put.new_versions.items():
        if put.versions.get(channel) != version:
            return None
        if not isinstance(version, str) or not UNIQUE_VERSION.fullmatch(version):
            return None
    stored = {value.channel for value in put.values}
    arguments: Fields = [
        put.checkpoint_id,
        put.parent_id or "",
        _pack_head(
            put.namespace,
            put.checkpoint_id,
            put.parent_id,
            round_trip(put.checkpoint_json).encode(),
            round_trip(put.metadata_json).encode(),
        ),
        _pack_versions(put.versions),
        msgpack.packb([channel for channel in put.new_versions if channel not in stored]),
    ]
    for value in put.values:
        arguments += (value.channel, _pack(value))
    return arguments if sum(map(len, arguments)) <= ENTRY_BYTES_MAX else None


def writes_arguments(put: PutWrites) -> Fields | None:
    """What `commit_writes.lua` takes from its 6th argument on, or None when the entry has to be dropped."""
    if any(map(_only_postgres_can_read, put.writes)):
        return None
    arguments: Fields = [put.checkpoint_id, "1" if put.replace else "0"]
    for write in put.writes:
        arguments += (write.task_path, write_field(write), _pack_write(write))
    return arguments if sum(map(len, arguments)) <= ENTRY_BYTES_MAX else None


def decode_entry(namespace: Namespace, fields: Mapping[bytes, bytes]) -> Latest | None:
    """The entry that `fields` hold, or None for an opaque one.

    Raises:
        DamagedEntry: anything is missing, unknown, damaged or another namespace's.
    """
    try:
        checkpoint_id = fields[b"i"].decode()
        if not checkpoint_id:
            return Latest(None)
        if b"h" not in fields:
            return None
        thread_id, checkpoint_ns, head_id, parent_id, checkpoint_json, metadata_json = _unpack(fields[b"h"])
        if (thread_id, checkpoint_ns, head_id) != (
            namespace.thread_id,
            namespace.checkpoint_ns,
            checkpoint_id,
        ):
            raise DamagedEntry(f"an entry of {namespace} holds another checkpoint")
        writes = (_unpack_write(fields[f]) for f in fields if f.startswith(b"w:"))
        return Latest(
            Record(
                namespace=namespace,
                checkpoint_id=checkpoint_id,
                parent_id=parent_id,
                checkpoint_json=checkpoint_json,
                metadata_json=metadata_json,
                values=tuple(Value(*_unpack(fields[f])) for f in fields if f.startswith(b"c:")),
                writes=tuple(w for w in writes if w.checkpoint_id == checkpoint_id),
            )
        )
    except (KeyError, ValueError, TypeError) as exc:
        raise DamagedEntry(f"the entry of {namespace} cannot be read: {type(exc).__name__}") from exc


def _only_postgres_can_read(row: Value | Write) -> bool:
    """Whether the stock SQL gives this row back otherwise than it was stored.

    It casts names from text to bytea, where a backslash starts an escape; and so Postgres reads a blob of text.
    """
    names = (row.channel, row.type, row.task_id if isinstance(row, Write) else "")
    return isinstance(row.blob, str) or any("\\" in name for name in names)


def write_field(write: Write) -> str:
    """The hash field of a write: its primary key within the namespace. NUL cannot occur in Postgres' text."""
    return f"w:{write.checkpoint_id}\0{write.task_id}\0{write.idx}"


def _pack_head(namespace: Namespace, *rest: Any) -> bytes:
    return _pack((namespace.thread_id, namespace.checkpoint_ns, *rest))


def _pack_versions(versions: Mapping[str, Any]) -> bytes:
    return cast(
        "bytes", msgpack.packb({c: v if isinstance(v, str) else json.dumps(v) for c, v in versions.items()})
    )


def _pack_write(write: Write) -> bytes:
    return write.task_path.encode() + b"\0" + _pack(write)


def _unpack_write(packed: bytes) -> Write:
    path, _, envelope = packed.partition(b"\0")
    write = Write(*_unpack(envelope))
    if write.task_path.encode() != path:
        raise DamagedEntry("a write's task path is damaged")
    return write


def _pack(fields: Iterable[Any]) -> bytes:
    body = cast("bytes", msgpack.packb((FORMAT, *fields)))
    return zlib.crc32(body).to_bytes(CHECKSUM_BYTES, "big") + body


def _unpack(envelope: bytes) -> list[Any]:
    body = memoryview(envelope)[CHECKSUM_BYTES:]
    if zlib.crc32(body) != int.from_bytes(envelope[:CHECKSUM_BYTES], "big"):
        raise DamagedEntry("an envelope's checksum is wrong")
    version, *fields = cast("list[Any]", msgpack.unpackb(body))
    if version != FORMAT:
        raise DamagedEntry(f"an envelope has format {version!r}, not {FORMAT}")
    return fields
