from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.checkpoint.postgres.base import BasePostgresSaver

from langgraph_checkpoint_cached.channel_versions import UNIQUE_VERSION
from langgraph_checkpoint_cached.records import Latest, Namespace, Put, PutWrites, Record, Value, Write
from langgraph_checkpoint_cached.stores.redis import entry_format
from langgraph_checkpoint_cached.stores.redis.entry_format import (
    DamagedEntry,
    decode_entry,
    decode_put,
    decode_writes,
    encode_write,
    entry_fields,
    put_arguments,
    writes_arguments,
)
from langgraph_checkpoint_cached.stores.redis.integrity import CHECKSUMS, Integrity, integrity_for
from tests.support.inspect import version_text

NAMESPACE = Namespace("thread", "ns")
UNPROTECTED = (b"i", b"v", b"s")
VERSION = f"{1:032}.0.1234567890123456"


INTEGRITIES = (CHECKSUMS, integrity_for([b"a key of 16 bytes and more"]))


def record(**changes: Any) -> Record:
    checkpoint = {
        "v": 4,
        "id": "c1",
        "channel_versions": {"messages": VERSION, "gone": 7},
        "channel_values": {"n": 1},
    }
    fields: dict[str, Any] = {
        "namespace": NAMESPACE,
        "checkpoint_id": "c1",
        "parent_id": "c0",
        "checkpoint_json": json.dumps(checkpoint).encode(),
        "metadata_json": b'{"step":1}',
        "values": (Value("messages", "msgpack", b"\x90"), Value("gone", "empty", None)),
        "writes": (Write("c1", "task", 0, "channel", "msgpack", b"\xc0", "path"),),
    }
    return Record(**{**fields, **changes})


def put(**changes: Any) -> Put:
    fields: dict[str, Any] = {
        "namespace": NAMESPACE,
        "checkpoint_id": "c2",
        "parent_id": "c1",
        "checkpoint_json": "{}",
        "metadata_json": "{}",
        "values": (Value("messages", "msgpack", b"\x90"),),
        "versions": {"messages": VERSION, "other": "1"},
        "new_versions": {"messages": VERSION},
        "format": 4,
    }
    return Put(**{**fields, **changes})


def stored(fields: entry_format.Fields) -> dict[bytes, bytes]:
    """As Redis gives them back."""
    as_bytes = [part.encode() if isinstance(part, str) else part for part in fields]
    return dict(zip(as_bytes[::2], as_bytes[1::2], strict=True))


def test_an_entry_comes_back_as_it_was() -> None:
    early = Write("c9", "task", 0, "channel", "msgpack", b"\xc0", "")
    entry = decode_entry(NAMESPACE, stored(entry_fields(NAMESPACE, Latest(record(), (early,)))))
    assert entry is not None
    assert entry.record == record()  # without the early write: that is another checkpoint's


def test_a_namespace_without_checkpoints_is_an_entry_too() -> None:
    early = Write("c9", "task", 0, "channel", "msgpack", b"\xc0", "")
    fields = stored(entry_fields(NAMESPACE, Latest(None, (early,))))
    assert decode_entry(NAMESPACE, fields) == Latest(None)
    field, value = encode_write(CHECKSUMS.scopes[NAMESPACE], early)
    assert fields[field] == value


def test_old_checkpoint_comes_back_with_its_sends() -> None:
    old = record(
        checkpoint_json=b'{"v":2,"channel_versions":{}}', values=(), sends=(("msgpack", b"\x01"), ("json", b""))
    )
    assert decode_entry(NAMESPACE, stored(entry_fields(NAMESPACE, Latest(old)))) == Latest(old)


@pytest.mark.parametrize("too", ["old", "large"])
def test_a_checkpoint_that_no_entry_can_hold_makes_an_opaque_one(
    too: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if too == "large":
        monkeypatch.setattr(entry_format, "ENTRY_BYTES_MAX", 50)
        latest = Latest(record())
    else:
        latest = Latest(record(checkpoint_json=b'{"v":0}'))
    fields = stored(entry_fields(NAMESPACE, latest))
    size_bytes = int(fields.pop(b"s", b"0"))
    assert (size_bytes > 50) == (too == "large")
    assert fields == {b"i": b"c1"}
    assert decode_entry(NAMESPACE, fields) is None


def test_another_threads_entry_is_not_taken() -> None:
    fields = stored(entry_fields(NAMESPACE, Latest(record())))
    for other in (Namespace("other", "ns"), Namespace("thread", "other")):
        with pytest.raises(DamagedEntry, match="an envelope is damaged"):
            decode_entry(other, fields)


@given(st.data(), st.sampled_from(INTEGRITIES))
def test_any_damaged_byte_is_noticed(data: st.DataObject, integrity: Integrity) -> None:
    fields = stored(entry_fields(NAMESPACE, Latest(record()), integrity))
    field = data.draw(st.sampled_from(sorted(f for f in fields if f not in UNPROTECTED)))
    position = data.draw(st.integers(0, len(fields[field]) - 1))
    damaged = bytearray(fields[field])
    damaged[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DamagedEntry):
        decode_entry(NAMESPACE, {**fields, field: bytes(damaged)}, integrity)


names = st.text(st.characters(exclude_characters="\0\\", codec="utf-8"), max_size=8)
versions = st.one_of(st.integers(0, 2**70), st.floats(0, 1e300), st.text(st.characters(codec="utf-8"), max_size=8))
blobs = st.one_of(st.none(), st.binary(max_size=20))


@st.composite
def entries(draw: st.DrawFn) -> tuple[Namespace, Record]:
    """A namespace and what it holds, of a few names, so that some are the same in two entries."""
    namespace = Namespace(draw(st.sampled_from(["t", "u", ""])), draw(st.sampled_from(["", "n", "t"])))
    channels = draw(st.dictionaries(st.one_of(st.sampled_from("ab"), names), versions, max_size=4))
    checkpoint_id = draw(st.sampled_from(["c1", "c2"]))
    with_values = draw(st.lists(st.sampled_from(sorted(channels)), unique=True)) if channels else []
    keys = draw(st.lists(st.tuples(names, st.integers(-4, 4)), unique=True, max_size=3))
    checkpoint = {"v": 4, "id": checkpoint_id, "channel_versions": channels, "channel_values": {}}
    return namespace, Record(
        namespace=namespace,
        checkpoint_id=checkpoint_id,
        parent_id=draw(st.none() | st.just("c0")),
        checkpoint_json=json.dumps(checkpoint).encode(),
        metadata_json=b"{}",
        values=tuple(Value(c, "empty" if (b := draw(blobs)) is None else "msgpack", b) for c in with_values),
        writes=tuple(Write(checkpoint_id, t, i, draw(names), "msgpack", b"\xc0", draw(names)) for t, i in keys),
    )


@given(entries(), st.sampled_from(INTEGRITIES))
def test_every_entry_comes_back_as_it_was(entry: tuple[Namespace, Record], integrity: Integrity) -> None:
    namespace, held = entry
    found = decode_entry(namespace, stored(entry_fields(namespace, Latest(held), integrity)), integrity)
    assert found == Latest(held)
    assert found is not None
    assert found.record is not None
    assert found.record.checkpoint == json.loads(held.checkpoint_json)


@given(entries(), entries(), st.sampled_from(INTEGRITIES), st.data())
def test_no_part_is_taken_from_another_place_or_time(
    entry: tuple[Namespace, Record], another: tuple[Namespace, Record], integrity: Integrity, data: st.DataObject
) -> None:
    """A part put in place of another either does not open or is just what was there."""
    namespace, held = entry
    fields = stored(entry_fields(namespace, Latest(held), integrity))
    others = stored(entry_fields(another[0], Latest(another[1]), integrity))
    protected = sorted(f for f in fields if f not in UNPROTECTED)
    source = data.draw(st.sampled_from(sorted({**others, **fields})))
    target = data.draw(st.sampled_from(protected))
    swapped = {**fields, target: data.draw(st.sampled_from([others, fields])).get(source, b"")}
    try:
        found = decode_entry(namespace, swapped, integrity)
    except DamagedEntry:
        return
    assert found is not None
    assert found.record is not None
    assert target == source
    same_place = another[0] == namespace
    if swapped[target] != fields[target]:
        # What is left: a value of the same channel and version, a write or a head of the same checkpoint.
        assert same_place
        assert target != b"h" or another[1].checkpoint_id == held.checkpoint_id
        if target.startswith(b"c:"):
            channel = target[2:].decode()
            ours, theirs = (r.checkpoint["channel_versions"][channel] for r in (held, another[1]))
            assert version_text(ours) == version_text(theirs)


@pytest.mark.parametrize("integrity", INTEGRITIES)
def test_parts_of_another_place_or_version_are_refused(integrity: Integrity) -> None:
    """Each alone, so that nothing else can be what was noticed."""
    fields = stored(entry_fields(NAMESPACE, Latest(record()), integrity))
    write = next(f for f in fields if f.startswith(b"w:"))
    parts = (b"h", b"c:messages", b"c:gone", write)
    for other in (Namespace("other", "ns"), Namespace("thread", "other"), Namespace("ns", "thread")):
        theirs = stored(entry_fields(other, Latest(record(namespace=other)), integrity))
        for part in parts:
            with pytest.raises(DamagedEntry):
                decode_entry(NAMESPACE, {**fields, part: theirs[part]}, integrity)
    for part in parts:
        for source in set(parts) - {part}:
            with pytest.raises(DamagedEntry):
                decode_entry(NAMESPACE, {**fields, part: fields[source]}, integrity)
    versions = {"messages": VERSION.replace("1", "2"), "gone": "7.0"}
    older = record(checkpoint_json=json.dumps({"v": 4, "channel_versions": versions}).encode())
    theirs = stored(entry_fields(NAMESPACE, Latest(older), integrity))
    for part in parts[1:3]:
        with pytest.raises(DamagedEntry, match="an envelope is damaged"):
            decode_entry(NAMESPACE, {**fields, part: theirs[part]}, integrity)
    with pytest.raises(DamagedEntry, match="an envelope is damaged"):
        decode_entry(NAMESPACE, {**fields, write.replace(b"c1", b"c9"): fields[write]}, integrity)
    with pytest.raises(DamagedEntry, match="another checkpoint"):
        decode_entry(NAMESPACE, {**fields, b"i": b"c0"}, integrity)


@pytest.mark.parametrize("channel", [b"c:messages", b"c:gone"])
def test_a_value_that_was_left_out_is_noticed(channel: bytes) -> None:
    fields = stored(entry_fields(NAMESPACE, Latest(record())))
    del fields[channel]
    with pytest.raises(DamagedEntry, match="lacks the value"):
        decode_entry(NAMESPACE, fields)


def test_left_out_value_of_earlier_put_is_noticed() -> None:
    checkpoint = json.dumps({"v": 4, "channel_versions": {"messages": VERSION, "other": "1"}})
    arguments = put_arguments(put(checkpoint_json=checkpoint, kept=("other",)))
    assert arguments is not None
    head, [name, value] = arguments[2], arguments[6:]
    fields = stored(["i", "c2", "h", head, f"c:{name!s}", value])
    with pytest.raises(DamagedEntry, match="lacks the value"):
        decode_entry(NAMESPACE, fields)
    earlier = record(
        checkpoint_json=b'{"v": 4, "channel_versions": {"other": "1"}}', values=(Value("other", "null", b""),)
    )
    kept = stored(entry_fields(NAMESPACE, Latest(earlier)))
    assert decode_entry(NAMESPACE, {**fields, b"c:other": kept[b"c:other"]}) is not None


def test_channel_renamed_by_postgres_makes_entry_opaque() -> None:
    odd = record(checkpoint_json=json.dumps({"v": 4, "channel_versions": {"\\x41": VERSION}}).encode(), values=())
    assert stored(entry_fields(NAMESPACE, Latest(odd))) == {b"i": b"c1"}


@given(st.sampled_from([b"h", b"w:c1\0task\x000", b"c:messages"]), st.binary(max_size=40))
def test_bytes_that_are_no_envelope_are_noticed(field: bytes, junk: bytes) -> None:
    fields = stored(entry_fields(NAMESPACE, Latest(record())))
    assert field in fields
    with pytest.raises(DamagedEntry):
        decode_entry(NAMESPACE, {**fields, field: junk})


def test_another_format_version_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    """https://github.com/redis-developer/langgraph-redis/issues/81"""
    monkeypatch.setattr(entry_format, "FORMAT", 3)
    fields = stored(entry_fields(NAMESPACE, Latest(record())))
    monkeypatch.undo()
    with pytest.raises(DamagedEntry, match="format 3, not 2"):
        decode_entry(NAMESPACE, fields)


def test_an_entry_without_its_id_is_a_miss() -> None:
    with pytest.raises(DamagedEntry):
        decode_entry(NAMESPACE, {b"g": b"generation"})


def test_an_entry_is_advanced_by_unique_versions_only() -> None:
    assert put_arguments(put()) is not None
    for versions in ({"messages": "2"}, {"messages": 2}, {"messages": 2.5}):
        assert put_arguments(put(versions=versions, new_versions=versions)) is None


def test_every_upstream_version_is_unique() -> None:
    """Its random part may be short, and then is padded, or so small that it is written with an exponent."""
    made = [BasePostgresSaver.get_next_version(None, current, None) for current in [None, "7.5", 99] * 3000]  # type: ignore[arg-type]
    made += [f"{1:032}.{fraction:016}" for fraction in (0.5, 4.7067e-05, 1e-300)]
    assert [version for version in made if not UNIQUE_VERSION.fullmatch(version)] == []


def test_entry_is_not_updated_by_versions_not_in_checkpoint() -> None:
    assert put_arguments(put(versions={"messages": VERSION.replace("1", "2")})) is None
    assert put_arguments(put(versions={})) is None


def test_entry_is_not_updated_to_old_format_or_huge_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    assert put_arguments(put(format=3)) is None
    monkeypatch.setattr(entry_format, "ENTRY_BYTES_MAX", 50)
    assert put_arguments(put()) is None
    write = Write("c1", "task", 0, "channel", "bytes", b"x" * 100, "")
    assert entry_format.writes_arguments(PutWrites(NAMESPACE, "c1", False, (write,))) is None


def test_channels_with_new_version_and_no_value_are_listed() -> None:
    arguments = put_arguments(put(values=()))
    assert arguments is not None
    assert msgpack.unpackb(arguments[4]) == ["messages"]


def test_channels_with_value_in_checkpoint_are_listed() -> None:
    arguments = put_arguments(put(inline=("a", "b")))
    assert arguments is not None
    assert msgpack.unpackb(arguments[5]) == ["a", "b"]


def test_the_script_finds_the_task_path_where_it_looks() -> None:
    write = Write("c1", "task", 0, "channel", "msgpack", b"\xc0", "the path")
    arguments = entry_format.writes_arguments(PutWrites(NAMESPACE, "c1", True, (write,)))
    assert arguments is not None
    assert msgpack.unpackb(arguments[2]) == ["channel"]
    assert arguments[3] == "the path"
    assert bytes(arguments[5]).startswith(b"the path\0")  # type: ignore[arg-type]


@pytest.mark.parametrize("integrity", INTEGRITIES)
def test_checkpoint_rows_are_rebuilt_from_its_update(integrity: Integrity) -> None:
    """That is all that a journal holds of it."""
    given = put(
        checkpoint_json='{"v": 4, "id": "c2", "b": 1, "a": -0.0}',
        metadata_json='{"step": 1e2}',
        values=(Value("messages", "msgpack", b"\x90"),),
        inline=("n",),
    )
    arguments = put_arguments(given, integrity)
    assert arguments is not None
    made = decode_put(NAMESPACE, [a.encode() if isinstance(a, str) else a for a in arguments], integrity)
    assert (made.namespace, made.checkpoint_id, made.parent_id) == (NAMESPACE, "c2", "c1")
    assert made.values == given.values
    assert made.new_versions == {"messages": VERSION}
    assert json.loads(made.checkpoint_json) == json.loads(given.checkpoint_json)
    assert json.loads(made.metadata_json) == {"step": 100}


@pytest.mark.parametrize("integrity", INTEGRITIES)
@pytest.mark.parametrize("replace", [True, False])
def test_pending_writes_are_rebuilt_from_their_update(integrity: Integrity, replace: bool) -> None:
    writes = tuple(Write("c1", "task", i, f"channel {i}", "msgpack", b"\xc0", "a/path") for i in range(3))
    given = PutWrites(NAMESPACE, "c1", replace, writes)
    arguments = writes_arguments(given, integrity)
    assert arguments is not None
    assert (
        decode_writes(NAMESPACE, [a.encode() if isinstance(a, str) else a for a in arguments], integrity) == given
    )


@pytest.mark.parametrize("integrity", INTEGRITIES)
def test_a_journal_of_another_place_or_damaged_is_not_replayed(integrity: Integrity) -> None:
    of_put, of_writes = (
        put_arguments(put(), integrity),
        writes_arguments(
            PutWrites(NAMESPACE, "c1", False, (Write("c1", "t", 0, "c", "msgpack", b"\xc0", ""),)), integrity
        ),
    )
    assert of_put is not None
    assert of_writes is not None
    for other in (Namespace("another", "ns"), Namespace("thread", "other")):
        with pytest.raises(DamagedEntry):
            decode_put(other, of_put, integrity)
        with pytest.raises(DamagedEntry):
            decode_writes(other, of_writes, integrity)
    for arguments, decode in ((of_put, decode_put), (of_writes, decode_writes)):
        for i, argument in enumerate(arguments):
            if isinstance(argument, bytes) and len(argument) > 20 and not argument.startswith(b"\x82"):
                damaged = [*arguments[:i], argument[:-1] + bytes([argument[-1] ^ 1]), *arguments[i + 1 :]]
                with pytest.raises(DamagedEntry):
                    decode(NAMESPACE, damaged, integrity)
        with pytest.raises(DamagedEntry):
            decode(NAMESPACE, arguments[:2], integrity)
