"""Between stored records and the fields of a Redis hash. Pure.

Each part stands in an envelope: a seal, then a msgpack array that starts with a format version. The seal covers
thread, namespace and field too, and of a channel's value the version, so that a part which was put elsewhere, or
left behind by another version, is no part of an entry. The head also names the channels that have a value.
A write's task path stands before its envelope, ended by NUL, for `lua/commit_writes.lua` to compare.

With signatures for seals, whoever can write to Redis but has no key can still: delete; spoil entries, so that
Postgres is read; leave out pending writes, whose number nobody knows; put back, whole, what the namespace held
before; or say that it is empty. No signature tells old from new: only Postgres could. `i` has to be the signed
head's. `v` and the task paths are not signed and steer the scripts; what a script makes that was misled by them is
an entry that does not open, or one of the kinds above.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

import msgpack

from langgraph_checkpoint_cached import jsonb
from langgraph_checkpoint_cached.channel_versions import UNIQUE_VERSION
from langgraph_checkpoint_cached.records import (
    TASKS_CHANNEL_FORMAT,
    Latest,
    Namespace,
    Put,
    PutWrites,
    Record,
    Value,
    Write,
)
from langgraph_checkpoint_cached.stores.redis.integrity import (
    CHECKSUM_BYTES,
    CHECKSUMS,
    SIGNATURE_BYTES,
    Integrity,
    Scope,
)

FORMAT = 2
HEAD = b"h"
NOT_IN_TEXT = b"\xff"  # nor in any other UTF-8
ENTRY_BYTES_MAX = 16 * 1024 * 1024

Fields: TypeAlias = "list[str | bytes]"
"""Field, value, field, value, ... of a Redis hash."""

NO_SUCH_ID = "-"
"""Id of an opaque entry where there is no checkpoint: no other id is compared with it."""


class DamagedEntry(Exception):
    """Bytes from Redis are not what this version writes. The caller takes it for a miss."""


DAMAGE = (KeyError, ValueError, TypeError)
"""What comes of reading bytes that are not what they should be."""

EMPTY: Fields = ["i", "", "v", msgpack.packb({})]
"""The entry of a namespace that has no checkpoint."""


def entry_fields(namespace: Namespace, latest: Latest, seal: Integrity = CHECKSUMS) -> Fields:
    """The entry for what Postgres holds.

    A checkpoint that no entry can hold (too old a format, too large) makes an opaque one: its id alone, which
    says "ask Postgres".
    """
    record, place = latest.record, scope_for(namespace, seal)
    if any(map(_only_postgres_can_read, latest.early_writes)):
        return ["i", record.checkpoint_id if record else NO_SUCH_ID]
    if record is None:
        return EMPTY + [part for w in latest.early_writes for part in _write(place, w)]
    opaque: Fields = ["i", record.checkpoint_id]
    if record.predates_tasks_channel:
        return opaque
    versions = record.checkpoint["channel_versions"]
    if any("\\" in channel for channel in versions):
        return opaque  # Postgres gives its value back under another name
    fields: Fields = [
        *opaque,
        HEAD,
        _pack_head(
            place,
            namespace,
            record.checkpoint_id,
            record.parent_id,
            record.checkpoint_json,
            record.metadata_json,
            [value.channel for value in record.values],
        ),
        "v",
        _pack_versions(versions),
    ]
    for value in record.values:
        fields += (f"c:{value.channel}", _pack_value(place, value, versions[value.channel]))
    for write in (*record.writes, *latest.early_writes):
        fields += _write(place, write)
    return fields if sum(map(len, fields)) <= ENTRY_BYTES_MAX else opaque


def put_arguments(put: Put, seal: Integrity = CHECKSUMS) -> Fields | None:
    """What `commit_put.lua` takes from its 6th argument on, or None when the entry has to be dropped.

    Dropped, because only Postgres knows what the checkpoint then holds: versions that may exist already,
    which the upstream SQL would leave as they are, or that the checkpoint does not name; values that come back
    otherwise than they went; a format older than the tasks channel; too many bytes.
    """
    if put.format < TASKS_CHANNEL_FORMAT or any(map(_only_postgres_can_read, put.values)):
        return None
    for channel, version in put.new_versions.items():
        if put.versions.get(channel) != version:
            return None
        if not isinstance(version, str) or not UNIQUE_VERSION.fullmatch(version):
            return None
    place, stored = scope_for(put.namespace, seal), [value.channel for value in put.values]
    arguments: Fields = [
        put.checkpoint_id,
        put.parent_id or "",
        _pack_head(
            place,
            put.namespace,
            put.checkpoint_id,
            put.parent_id,
            put.checkpoint_json.encode(),
            put.metadata_json.encode(),
            [*stored, *put.kept],
        ),
        _pack_versions(put.versions),
        msgpack.packb([channel for channel in put.new_versions if channel not in stored]),
        msgpack.packb(put.inline),
    ]
    for value in put.values:
        arguments += (value.channel, _pack_value(place, value, put.new_versions[value.channel]))
    return arguments if sum(map(len, arguments)) <= ENTRY_BYTES_MAX else None


def writes_arguments(put: PutWrites, seal: Integrity = CHECKSUMS) -> Fields | None:
    """What `commit_writes.lua` takes from its 6th argument on, or None when the entry has to be dropped."""
    if any(map(_only_postgres_can_read, put.writes)):
        return None
    place = scope_for(put.namespace, seal)
    channels = list({write.channel: None for write in put.writes})
    arguments: Fields = [put.checkpoint_id, "1" if put.replace else "0", msgpack.packb(channels)]
    for write in put.writes:
        arguments += (write.task_path, *_write(place, write))
    return arguments if sum(map(len, arguments)) <= ENTRY_BYTES_MAX else None


def put_of(namespace: Namespace, arguments: Fields, seal: Integrity = CHECKSUMS) -> Put:
    """The checkpoint that `put_arguments` were made of, as far as its rows go. Raises as `decode_entry`."""
    with _translate_damage(namespace):
        place, (_, _, head, packed_versions, _, _, *packed) = scope_for(namespace, seal), map(_bytes, arguments)
        thread_id, checkpoint_ns, checkpoint_id, parent_id, *texts, _ = unpack(place, head, HEAD)
        if (thread_id, checkpoint_ns) != (namespace.thread_id, namespace.checkpoint_ns):
            raise DamagedEntry(f"a journal of {namespace} holds another's checkpoint")
        versions = msgpack.unpackb(packed_versions)
        values = []
        for name, value in zip(packed[::2], packed[1::2], strict=True):
            part = _value_part(b"c:" + name, versions[name.decode()])
            values.append(Value(name.decode(), *unpack(place, value, part)))
        checkpoint_json, metadata_json = (text.decode() for text in texts)
        return Put(
            namespace=namespace,
            checkpoint_id=checkpoint_id,
            parent_id=parent_id,
            checkpoint_json=checkpoint_json,
            metadata_json=metadata_json,
            values=tuple(values),
            versions=versions,
            new_versions={value.channel: versions[value.channel] for value in values},
            format=TASKS_CHANNEL_FORMAT,
        )


def decode_writes(namespace: Namespace, arguments: Fields, seal: Integrity = CHECKSUMS) -> PutWrites:
    """The pending writes that `writes_arguments` were made of. Raises as `decode_entry`."""
    with _translate_damage(namespace):
        place, (checkpoint_id, replace, _, *packed) = scope_for(namespace, seal), map(_bytes, arguments)
        writes = (
            unpack_write(place, field, value) for field, value in zip(packed[1::3], packed[2::3], strict=True)
        )
        return PutWrites(namespace, checkpoint_id.decode(), replace == b"1", tuple(writes))


def decode_entry(
    namespace: Namespace, fields: Mapping[bytes, bytes], seal: Integrity = CHECKSUMS
) -> Latest | None:
    """The entry that `fields` hold, or None for an opaque one.

    Raises:
        DamagedEntry: anything is missing, unknown, damaged, or another namespace's, field's or version's.
    """
    try:
        checkpoint_id = fields[b"i"].decode()
        if not checkpoint_id:
            return Latest(None)
        if HEAD not in fields:
            return None
        return Latest(_record(namespace, checkpoint_id, fields, scope_for(namespace, seal)))
    except DAMAGE as exc:  # not `_translate_damage`, which takes longer than all of this
        raise _damaged(namespace, exc) from exc


@contextmanager
def _translate_damage(namespace: Namespace) -> Iterator[None]:
    try:
        yield
    except DAMAGE as exc:
        raise _damaged(namespace, exc) from exc


def _damaged(namespace: Namespace, why: Exception) -> DamagedEntry:
    return DamagedEntry(f"what Redis holds of {namespace} cannot be read: {type(why).__name__}")


def _bytes(field: str | bytes) -> bytes:
    return field.encode() if isinstance(field, str) else field


def claimed_namespace(head: bytes) -> Namespace | None:
    """The namespace that the head of an entry says it is of. Not opened, so not to be believed: whoever takes it
    compares it with the entry's key, and decodes the entry for it.
    """
    for seal_bytes in (CHECKSUM_BYTES, SIGNATURE_BYTES):
        try:
            version, thread_id, checkpoint_ns, *_ = msgpack.unpackb(head[seal_bytes:])
        except (ValueError, TypeError):
            continue
        if version == FORMAT and isinstance(thread_id, str) and isinstance(checkpoint_ns, str):
            return Namespace(thread_id, checkpoint_ns)
    return None


def _record(namespace: Namespace, checkpoint_id: str, fields: Mapping[bytes, bytes], place: Scope) -> Record:
    thread_id, checkpoint_ns, *rest = unpack(place, fields[HEAD], HEAD)
    head_id, parent_id, checkpoint_json, metadata_json, channels = rest
    if (thread_id, checkpoint_ns, head_id) != (namespace.thread_id, namespace.checkpoint_ns, checkpoint_id):
        raise DamagedEntry(f"an entry of {namespace} holds another checkpoint")
    checkpoint = jsonb.loads(checkpoint_json)
    versions = checkpoint["channel_versions"]
    values, writes, own_writes = {}, [], f"w:{checkpoint_id}\0".encode()
    for field, packed in fields.items():
        kind = field[:2]
        if kind == b"c:":
            channel = field[2:].decode()
            part = _value_part(field, versions[channel])
            values[channel] = Value(channel, *unpack(place, packed, part))
        elif kind == b"w:" and field >= own_writes:  # those of ancestors are kept for `histories`
            write = unpack_write(place, field, packed)
            if write.checkpoint_id == checkpoint_id:
                writes.append(write)
    # A put whose caller never stored that version names one that Postgres does not have: that is dropped too.
    if not values.keys() >= set(channels):
        raise DamagedEntry(f"an entry of {namespace} lacks the value of a channel")
    record = Record(
        namespace=namespace,
        checkpoint_id=checkpoint_id,
        parent_id=parent_id,
        checkpoint_json=checkpoint_json,
        metadata_json=metadata_json,
        values=tuple(values.values()),
        writes=tuple(writes),
    )
    record.__dict__["checkpoint"] = checkpoint  # parsed once
    return record


def _only_postgres_can_read(row: Value | Write) -> bool:
    """Whether the upstream SQL gives this row back otherwise than it was stored.

    It casts names from text to bytea, where a backslash starts an escape; and so Postgres reads a blob of text.
    """
    names = (row.channel, row.type, row.task_id if isinstance(row, Write) else "")
    return isinstance(row.blob, str) or any("\\" in name for name in names)


def write_field(write: Write) -> str:
    """The hash field of a write: its primary key within the namespace. NUL cannot occur in Postgres' text."""
    return f"w:{write.checkpoint_id}\0{write.task_id}\0{write.idx}"


def scope_for(namespace: Namespace, seal: Integrity) -> Scope:
    return seal.of(namespace.checkpoint_ns, within=namespace.thread_id)


def _pack_head(place: Scope, namespace: Namespace, *rest: Any) -> bytes:
    return pack(place, (namespace.thread_id, namespace.checkpoint_ns, *rest), HEAD)


def _version_text(version: Any) -> str:
    return version if isinstance(version, str) else json.dumps(version)


def _pack_versions(versions: Mapping[str, Any]) -> bytes:
    return cast("bytes", msgpack.packb({c: _version_text(v) for c, v in versions.items()}))


def _pack_value(place: Scope, value: Value, version: Any) -> bytes:
    return pack(place, value[1:], _value_part(f"c:{value.channel}".encode(), version))


def _value_part(field: bytes, version: Any) -> bytes:
    return field + NOT_IN_TEXT + _version_text(version).encode()


def _write(place: Scope, write: Write) -> tuple[str, bytes]:
    """Field and value of a write."""
    field = write_field(write)
    return field, write.task_path.encode() + b"\0" + pack(place, write, field.encode())


def unpack_write(place: Scope, field: bytes, packed: bytes) -> Write:
    path, _, envelope = packed.partition(b"\0")
    write = Write(*unpack(place, envelope, field))
    if write.task_path.encode() != path:
        raise DamagedEntry("a write's task path is damaged")
    return write


def pack(place: Scope, fields: Iterable[Any], part: bytes) -> bytes:
    return place.seal(cast("bytes", msgpack.packb((FORMAT, *fields))), part)


def unpack(place: Scope, envelope: bytes, part: bytes) -> list[Any]:
    body = place.open(envelope, part)
    if body is None:
        raise DamagedEntry("an envelope's seal is not right: damaged, made elsewhere, or of another kind or key")
    version, *fields = cast("list[Any]", msgpack.unpackb(body))
    if version != FORMAT:
        raise DamagedEntry(f"an envelope has format {version!r}, not {FORMAT}")
    return fields
