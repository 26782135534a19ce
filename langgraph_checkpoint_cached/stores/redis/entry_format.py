"""Conversion between stored records and the fields of an entry in Redis. Pure.

Each part of an entry stands in an envelope: a checksum or signature, then a msgpack array that starts with a
format version. The checksum covers thread, namespace and field too, and for a channel's value the version, so
that a part which was moved, or left behind by another version, is not accepted. The head also names the
channels that have a value. A write's task path stands before its envelope, ended by NUL, for
`lua/commit_writes.lua` to compare.

With signatures, whoever can write to Redis but has no key can still: delete; spoil entries, so that Postgres is
read; leave out pending writes, whose number nobody knows; put back, whole, what the namespace held before; or
claim that it is empty. No signature tells old from new: only Postgres could. The checkpoint id has to be that
of the signed head. The versions, the task paths and the size are not signed and steer the scripts; a script
that is misled by them makes an entry that is not accepted, or one of the kinds above.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
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
from langgraph_checkpoint_cached.stores.redis.fields import (
    CHANNEL,
    CHECKPOINT_ID,
    HEAD,
    PREDATES_TASKS,
    SIZE,
    VERSIONS,
    WRITE,
)
from langgraph_checkpoint_cached.stores.redis.integrity import (
    CHECKSUM_BYTES,
    CHECKSUMS,
    SIGNATURE_BYTES,
    Integrity,
    Scope,
)

FORMAT = 2
NOT_IN_TEXT = b"\xff"  # nor in any other UTF-8
ENTRY_BYTES_MAX = 16 * 1024 * 1024
"""Largest entry, of which the names of the fields are a part. `lua/size_functions.lua` has the same."""

Fields: TypeAlias = "list[str | bytes]"
"""Field, value, field, value, ... of a Redis hash."""

NO_SUCH_ID = "-"
"""Checkpoint id of an opaque entry where there is no checkpoint: no other id is compared with it."""


class DamagedEntry(Exception):
    """Bytes from Redis are not what this version writes. The caller takes it for a miss."""


EMPTY: Fields = [CHECKPOINT_ID, "", VERSIONS, msgpack.packb({})]
"""The entry of a namespace that has no checkpoint."""


def entry_fields(namespace: Namespace, latest: Latest, integrity: Integrity = CHECKSUMS) -> Fields:
    """Make the entry for what Postgres holds.

    A checkpoint that no entry can hold makes an opaque one: its id, which tells readers to ask Postgres; with its
    size, if that is why. One of before format 4 is stored with its parent's pending sends.
    """
    record, scope = latest.record, integrity.scopes[namespace]
    if any(map(_only_postgres_can_read, latest.early_writes)):
        return [CHECKPOINT_ID, record.checkpoint_id if record else NO_SUCH_ID]
    if record is None:
        return _sized(EMPTY + [part for write in latest.early_writes for part in encode_write(scope, write)])
    opaque: Fields = [CHECKPOINT_ID, record.checkpoint_id]
    versions = record.checkpoint.get("channel_versions")
    if not isinstance(versions, dict) or any("\\" in channel for channel in versions):
        return opaque  # the latter's value Postgres returns under another name
    if (size_bytes := _blob_bytes(latest)) > ENTRY_BYTES_MAX:
        return [*opaque, SIZE, str(size_bytes)]
    json_texts = (record.checkpoint_json, record.metadata_json)
    stored = [value.channel for value in record.values]
    head: tuple[Any, ...] = (*namespace, record.checkpoint_id, record.parent_id, *json_texts, stored)
    fields: Fields = [*opaque, VERSIONS, _pack_versions(versions)]
    if record.predates_tasks_channel:
        head = (*head, record.sends)
        fields += (PREDATES_TASKS, record.checkpoint_id)
    fields += (HEAD, pack(scope, head, HEAD))
    for channel, kind, blob in record.values:
        field = CHANNEL + channel.encode()
        fields += (field, pack(scope, (kind, blob), _value_part(field, versions[channel])))
    for write in (*record.writes, *latest.early_writes):
        fields += encode_write(scope, write)
    sized = _sized(fields)
    return [*opaque, *sized[-2:]] if is_too_large(sized) else sized


def is_too_large(fields: Fields) -> bool:
    """Tell whether a checkpoint was too large for what `entry_fields` made of it."""
    return fields[-2] == SIZE and int(fields[-1]) > ENTRY_BYTES_MAX


def _sized(fields: Fields) -> Fields:
    return [*fields, SIZE, str(sum(map(len, fields)))]


def _blob_bytes(latest: Latest) -> int:
    """Return the size of what takes time to protect, before it is."""
    record = latest.record
    values = record.values if record else ()
    writes = (*(record.writes if record else ()), *latest.early_writes)
    return sum(len(value.blob or b"") for value in values) + sum(len(write.blob or b"") for write in writes)


def put_arguments(put: Put, integrity: Integrity = CHECKSUMS) -> Fields | None:
    """Make the arguments of `commit_put.lua` from the 6th on, or None if the entry has to be dropped.

    It is dropped if only Postgres knows what the checkpoint then holds: versions that may exist already, which
    the upstream SQL would leave as they are, or that the checkpoint does not name; values that come back
    otherwise than they were stored; a format older than the tasks channel; too many bytes.
    """
    if put.format < TASKS_CHANNEL_FORMAT or any(map(_only_postgres_can_read, put.values)):
        return None
    for channel, version in put.new_versions.items():
        if put.versions.get(channel) != version:
            return None
        if not isinstance(version, str) or not UNIQUE_VERSION.fullmatch(version):
            return None
    scope, stored, valueless = integrity.scopes[put.namespace], [], dict(put.new_versions)
    for value in put.values:
        stored.append(value.channel)
        valueless.pop(value.channel, None)
    json_texts = (put.checkpoint_json.encode(), put.metadata_json.encode())
    head = (*put.namespace, put.checkpoint_id, put.parent_id, *json_texts, [*stored, *put.kept])
    arguments: Fields = [
        put.checkpoint_id,
        put.parent_id or "",
        pack(scope, head, HEAD),
        _pack_versions(put.versions),
        msgpack.packb(list(valueless)),
        msgpack.packb(put.inline),
    ]
    for channel, kind, blob in put.values:
        part = _value_part(CHANNEL + channel.encode(), put.new_versions[channel])
        arguments += (channel, pack(scope, (kind, blob), part))
    return arguments if sum(map(len, arguments)) <= ENTRY_BYTES_MAX else None


def writes_arguments(put: PutWrites, integrity: Integrity = CHECKSUMS) -> Fields | None:
    """Make the arguments of `commit_writes.lua` from the 6th on, or None if the entry has to be dropped."""
    if any(map(_only_postgres_can_read, put.writes)):
        return None
    scope = integrity.scopes[put.namespace]
    channels: dict[str, None] = {}
    fields: Fields = []
    for write in put.writes:
        channels[write.channel] = None
        fields += (write.task_path, *encode_write(scope, write))
    arguments: Fields = [put.checkpoint_id, "1" if put.replace else "0", msgpack.packb(list(channels)), *fields]
    return arguments if sum(map(len, arguments)) <= ENTRY_BYTES_MAX else None


def decode_put(namespace: Namespace, arguments: Fields, integrity: Integrity = CHECKSUMS) -> Put:
    """Decode the checkpoint that `put_arguments` was given, as far as its rows go. Raise as `decode_entry`."""
    try:
        _, _, head, packed_versions, _, _, *packed = map(_bytes, arguments)
        scope = integrity.scopes[namespace]
        thread_id, checkpoint_ns, checkpoint_id, parent_id, *texts, _ = unpack(scope, head, HEAD)
        if (thread_id, checkpoint_ns) != (*namespace,):
            raise DamagedEntry(f"a journal of {namespace} holds another's checkpoint")
        versions = msgpack.unpackb(packed_versions)
        values = []
        for name, value in zip(packed[::2], packed[1::2], strict=True):
            channel = name.decode()
            part = _value_part(CHANNEL + name, versions[channel])
            values.append(Value(channel, *unpack(scope, value, part)))
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
    except Exception as exc:
        raise damaged(namespace, exc) from exc


def decode_writes(namespace: Namespace, arguments: Fields, integrity: Integrity = CHECKSUMS) -> PutWrites:
    """Decode the pending writes that `writes_arguments` was given. Raise as `decode_entry`."""
    try:
        checkpoint_id, replace, _, *packed = map(_bytes, arguments)
        scope = integrity.scopes[namespace]
        writes = [
            decode_write(scope, field, value) for field, value in zip(packed[1::3], packed[2::3], strict=True)
        ]
        return PutWrites(namespace, checkpoint_id.decode(), replace == b"1", tuple(writes))
    except Exception as exc:
        raise damaged(namespace, exc) from exc


def decode_entry(
    namespace: Namespace, fields: Mapping[bytes, bytes], integrity: Integrity = CHECKSUMS
) -> Latest | None:
    """Decode an entry. Return None for an opaque one.

    Raises:
        DamagedEntry: anything is missing, unknown, damaged, or another namespace's, field's or version's.
    """
    try:
        checkpoint_id = fields[CHECKPOINT_ID].decode()
        if not checkpoint_id:
            return Latest(None)
        if HEAD not in fields:
            return None
        return Latest(_decode_record(namespace, checkpoint_id, fields, integrity.scopes[namespace]))
    except Exception as exc:
        raise damaged(namespace, exc) from exc


def _decode_record(
    namespace: Namespace, checkpoint_id: str, fields: Mapping[bytes, bytes], scope: Scope
) -> Record:
    thread_id, checkpoint_ns, head_id, *rest = unpack(scope, fields[HEAD], HEAD)
    if (thread_id, checkpoint_ns, head_id) != (*namespace, checkpoint_id):
        raise DamagedEntry(f"an entry of {namespace} holds another checkpoint")
    parent_id, checkpoint_json, metadata_json, channels, *sends = rest
    checkpoint = jsonb.loads(checkpoint_json)
    versions = checkpoint["channel_versions"]
    values, writes, own_writes = {}, [], WRITE + checkpoint_id.encode() + b"\0"
    for field, packed in fields.items():
        kind = field[:2]
        if kind == CHANNEL:
            channel = field[2:].decode()
            values[channel] = Value(channel, *unpack(scope, packed, _value_part(field, versions[channel])))
        elif kind == WRITE and field >= own_writes:  # earlier ones are kept for a history
            write = decode_write(scope, field, packed)
            if write.checkpoint_id == checkpoint_id:
                writes.append(write)
    # A put whose caller never stored that version names one that Postgres does not have: that is dropped too.
    if not values.keys() >= set(channels):
        raise DamagedEntry(f"an entry of {namespace} lacks the value of a channel")
    return Record(
        namespace=namespace,
        checkpoint_id=checkpoint_id,
        parent_id=parent_id,
        checkpoint_json=checkpoint_json,
        metadata_json=metadata_json,
        values=tuple(values.values()),
        writes=tuple(writes),
        sends=tuple([(kind, blob) for kind, blob in sends[0]]) if sends else (),
        parsed=checkpoint,
    )


def claimed_namespace(head: bytes) -> Namespace | None:
    """Read the namespace that the head of an entry claims to be of.

    It is not verified: the caller compares it with the entry's key, and decodes the entry for it.
    """
    for protection_bytes in (CHECKSUM_BYTES, SIGNATURE_BYTES):
        try:
            version, thread_id, checkpoint_ns, *_ = msgpack.unpackb(head[protection_bytes:])
        except Exception:  # noqa: BLE001, S112 - whatever the bytes are, they claim nothing
            continue
        if version == FORMAT and isinstance(thread_id, str) and isinstance(checkpoint_ns, str):
            return Namespace(thread_id, checkpoint_ns)
    return None


def encode_write(scope: Scope, write: Write) -> tuple[bytes, bytes]:
    """Make the field and the value of a write. NUL, which cannot occur in Postgres' text, separates its key."""
    field = WRITE + f"{write.checkpoint_id}\0{write.task_id}\0{write.idx}".encode()
    return field, write.task_path.encode() + b"\0" + pack(scope, write, field)


def decode_write(scope: Scope, field: bytes, packed: bytes) -> Write:
    """Decode the field and the value of a write."""
    path, _, envelope = packed.partition(b"\0")
    write = Write(*unpack(scope, envelope, field))
    if write.task_path.encode() != path:
        raise DamagedEntry("a write's task path is damaged")
    return write


def pack(scope: Scope, values: Iterable[Any], part: bytes) -> bytes:
    """Put values into an envelope for a part of an entry."""
    return scope.protect(cast("bytes", msgpack.packb((FORMAT, *values))), part)


def unpack(scope: Scope, envelope: bytes, part: bytes) -> list[Any]:
    """Take the values out of an envelope. Raise `DamagedEntry` unless it was made for this part."""
    body = scope.verify(envelope, part)
    if body is None:
        raise DamagedEntry("an envelope is damaged, was made elsewhere, or is of another kind or key")
    version, *values = cast("list[Any]", msgpack.unpackb(body))
    if version != FORMAT:
        raise DamagedEntry(f"an envelope has format {version!r}, not {FORMAT}")
    return values


def _pack_versions(versions: Mapping[str, Any]) -> bytes:
    """Pack the versions of channels as scripts read them, as text."""
    texts = dict(versions)
    for channel, version in versions.items():
        if not isinstance(version, str):
            texts[channel] = json.dumps(version)
    return cast("bytes", msgpack.packb(texts))


def _value_part(field: bytes, version: Any) -> bytes:
    """Return the name under which the value of a channel is protected: its field, and its version as text."""
    text = version if isinstance(version, str) else json.dumps(version)
    return field + NOT_IN_TEXT + text.encode()


def _only_postgres_can_read(row: Value | Write) -> bool:
    """Tell whether the upstream SQL returns this row otherwise than it was stored.

    It casts names from text to bytea, where a backslash starts an escape; and so it does with a blob that is text.
    """
    return (
        isinstance(row.blob, str)
        or "\\" in row.channel
        or "\\" in row.type
        or (isinstance(row, Write) and "\\" in row.task_id)
    )


def damaged(namespace: Namespace, why: Exception) -> DamagedEntry:
    """Return the error for bytes of which decoding raised `why`."""
    if isinstance(why, DamagedEntry):
        return why
    return DamagedEntry(f"what Redis holds of {namespace} cannot be read: {type(why).__name__}")


def _bytes(field: str | bytes) -> bytes:
    return field.encode() if isinstance(field, str) else field
