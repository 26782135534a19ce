from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.checkpoint.postgres.base import BasePostgresSaver

from langgraph_checkpoint_cached import envelope
from langgraph_checkpoint_cached.envelope import (
    DamagedEntry,
    advance_arguments,
    decode_entry,
    entry_fields,
    write_field,
)
from langgraph_checkpoint_cached.keys import Namespace
from langgraph_checkpoint_cached.records import Latest, Put, PutWrites, Record, Value, Write
from langgraph_checkpoint_cached.versions import UNIQUE_VERSION

NAMESPACE = Namespace("thread", "ns")
VERSION = f"{1:032}.0.1234567890123456"


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


def stored(fields: envelope.Fields) -> dict[bytes, bytes]:
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
    assert write_field(early).encode() in fields


@pytest.mark.parametrize("too", ["old", "large"])
def test_a_checkpoint_that_no_entry_can_hold_makes_an_opaque_one(
    too: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if too == "large":
        monkeypatch.setattr(envelope, "ENTRY_BYTES_MAX", 50)
        latest = Latest(record())
    else:
        latest = Latest(record(checkpoint_json=b'{"v":3,"channel_versions":{}}'))
    fields = stored(entry_fields(NAMESPACE, latest))
    assert fields == {b"i": b"c1"}
    assert decode_entry(NAMESPACE, fields) is None


def test_another_threads_entry_is_not_taken() -> None:
    fields = stored(entry_fields(NAMESPACE, Latest(record())))
    for other in (Namespace("other", "ns"), Namespace("thread", "other")):
        with pytest.raises(DamagedEntry, match="seal"):
            decode_entry(other, fields)


@given(st.data())
def test_any_damaged_byte_is_noticed(data: st.DataObject) -> None:
    fields = stored(entry_fields(NAMESPACE, Latest(record())))
    field = data.draw(st.sampled_from(sorted(f for f in fields if f not in (b"i", b"v"))))
    position = data.draw(st.integers(0, len(fields[field]) - 1))
    damaged = bytearray(fields[field])
    damaged[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DamagedEntry):
        decode_entry(NAMESPACE, {**fields, field: bytes(damaged)})


@given(st.sampled_from([b"h", b"w:c1\0task\x000", b"c:messages"]), st.binary(max_size=40))
def test_bytes_that_are_no_envelope_are_noticed(field: bytes, junk: bytes) -> None:
    fields = stored(entry_fields(NAMESPACE, Latest(record())))
    assert field in fields
    with pytest.raises(DamagedEntry):
        decode_entry(NAMESPACE, {**fields, field: junk})


def test_another_format_version_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    """https://github.com/redis-developer/langgraph-redis/issues/81"""
    monkeypatch.setattr(envelope, "FORMAT", 3)
    fields = stored(entry_fields(NAMESPACE, Latest(record())))
    monkeypatch.undo()
    with pytest.raises(DamagedEntry, match="format 3, not 2"):
        decode_entry(NAMESPACE, fields)


def test_an_entry_without_its_id_is_a_miss() -> None:
    with pytest.raises(DamagedEntry):
        decode_entry(NAMESPACE, {b"g": b"generation"})


def test_an_entry_is_advanced_by_unique_versions_only() -> None:
    assert advance_arguments(put()) is not None
    for versions in ({"messages": "2"}, {"messages": 2}, {"messages": 2.5}):
        assert advance_arguments(put(versions=versions, new_versions=versions)) is None


def test_every_version_of_the_stock_saver_is_unique() -> None:
    """Its random part may be short, and then is padded, or so small that it is written with an exponent."""
    made = [BasePostgresSaver.get_next_version(None, current, None) for current in [None, "7.5", 99] * 3000]  # type: ignore[arg-type]
    made += [f"{1:032}.{fraction:016}" for fraction in (0.5, 4.7067e-05, 1e-300)]
    assert [version for version in made if not UNIQUE_VERSION.fullmatch(version)] == []


def test_an_entry_is_not_advanced_by_versions_that_the_checkpoint_does_not_name() -> None:
    assert advance_arguments(put(versions={"messages": VERSION.replace("1", "2")})) is None
    assert advance_arguments(put(versions={})) is None


def test_an_entry_is_not_advanced_to_an_old_format_or_a_huge_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    assert advance_arguments(put(format=3)) is None
    monkeypatch.setattr(envelope, "ENTRY_BYTES_MAX", 50)
    assert advance_arguments(put()) is None
    write = Write("c1", "task", 0, "channel", "bytes", b"x" * 100, "")
    assert envelope.writes_arguments(PutWrites(NAMESPACE, "c1", False, (write,))) is None


def test_channels_with_a_new_version_and_no_value_are_told() -> None:
    arguments = advance_arguments(put(values=()))
    assert arguments is not None
    assert msgpack.unpackb(arguments[4]) == ["messages"]


def test_the_script_finds_the_task_path_where_it_looks() -> None:
    write = Write("c1", "task", 0, "channel", "msgpack", b"\xc0", "the path")
    arguments = envelope.writes_arguments(PutWrites(NAMESPACE, "c1", True, (write,)))
    assert arguments is not None
    assert arguments[2] == "the path"
    assert bytes(arguments[4]).startswith(b"the path\0")  # type: ignore[arg-type]
