"""Bytes that somebody made, with checksums as they should be: damaged, and never any other error."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.stores.redis.delta_history_format import decode_histories
from langgraph_checkpoint_cached.stores.redis.entry_format import (
    FORMAT,
    DamagedEntry,
    claimed_namespace,
    decode_entry,
    decode_put,
    decode_writes,
    pack,
)
from langgraph_checkpoint_cached.stores.redis.integrity import CHECKSUMS

NAMESPACE = Namespace("t", "ns")
SCOPE = CHECKSUMS.scopes[NAMESPACE]
DEEP = 100_000

texts = st.sampled_from(["t", "ns", "c1", "a", "w", "\ud800", "\\"]) | st.text(max_size=3)
jsons = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(texts | st.sampled_from(["v", "channel_versions", "channel_values"]), inner, max_size=3)
    ),
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | texts.filter(lambda text: text.isascii())
    | st.binary(max_size=4)
    | jsons.map(lambda value: json.dumps(value).encode())
    | st.sampled_from([b"[", b'{"a":']).map(lambda start: start * DEEP),
    lambda inner: (
        st.lists(inner, max_size=8) | st.dictionaries(st.integers(0, 9) | st.binary(max_size=2), inner, max_size=3)
    ),
)
nested = st.just(b"\x91").map(lambda start: start * DEEP)
odd = st.sampled_from([b"\xdd\xff\xff\xff\xff", b"\xc1", b"\xc7\xff\xff", b""])
bodies = (
    st.lists(values, max_size=9).map(lambda parts: msgpack.packb((FORMAT, *parts)))
    | values.map(msgpack.packb)
    | nested
    | odd
    | st.binary(max_size=40)
)
heads = st.tuples(values, values, values, values).map(
    lambda rest: msgpack.packb((FORMAT, *NAMESPACE, "c1", *rest))
) | st.tuples(jsons, values, values).map(
    lambda rest: msgpack.packb((FORMAT, *NAMESPACE, "c1", None, json.dumps(rest[0]).encode(), *rest[1:]))
)
fields_of_entry = st.sampled_from([b"c:a", b"c:\xff", b"w:c1\0task\x000", b"w:c1\0", b"w:", b"c:"])


def envelope(body: bytes, part: bytes) -> bytes:
    return SCOPE.protect(body, part)


@given(bodies | heads, st.lists(st.tuples(fields_of_entry, bodies, texts), max_size=3))
def test_crafted_entry_is_damaged_or_an_entry(head: bytes, others: list[tuple[bytes, bytes, str]]) -> None:
    fields = {b"i": b"c1", b"h": envelope(head, b"h")}
    for field, body, version in others:
        part = field if field[:2] == b"w:" else field + b"\xff" + version.encode("utf-8", "surrogatepass")
        fields[field] = (b"\0" if field[:2] == b"w:" else b"") + envelope(body, part)
    with contextlib.suppress(DamagedEntry):
        decode_entry(NAMESPACE, fields)


@given(bodies, st.sampled_from(["a", "\ud800", ""]), st.binary(max_size=9) | values.map(msgpack.packb))
def test_crafted_journal_entry_is_damaged_or_a_write(body: bytes, name: str, versions: bytes) -> None:
    channel = name.encode("utf-8", "surrogatepass")
    put: Any = [b"c1", b"", envelope(body, b"h"), versions, b"", b"", channel, envelope(body, b"c:a")]
    writes: Any = [b"\xff", b"0", b"", b"path", b"w:", b"path\0" + envelope(body, b"w:")]
    for decode, arguments in (
        (decode_put, put),
        (decode_writes, writes),
        (decode_put, put[:2]),
        (decode_writes, []),
    ):
        with contextlib.suppress(DamagedEntry):
            decode(NAMESPACE, arguments)


@given(bodies | st.tuples(values, values).map(lambda rest: msgpack.packb((FORMAT, *rest))), bodies, st.binary())
def test_crafted_history_is_damaged_or_a_history(history: bytes, write: bytes, path: bytes) -> None:
    for names in (b"0\0c0\0c1", path):
        fields = {b"d": envelope(history, b"d"), b"p": names, b"w:c0\0t\x000": envelope(write, b"w:c0\0t\x000")}
        with contextlib.suppress(DamagedEntry):
            decode_histories(NAMESPACE, "c1", fields)


@given(bodies)
def test_crafted_head_claims_a_namespace_or_none(body: bytes) -> None:
    found = claimed_namespace(envelope(body, b"h"))
    assert found is None or isinstance(found, Namespace)


@pytest.mark.parametrize("text", [b"[" * DEEP, b'{"channel_versions":[]}', b"{}", b"5", "text"])
def test_head_with_such_a_checkpoint_is_damaged(text: bytes | str) -> None:
    head = pack(SCOPE, (*NAMESPACE, "c1", None, text, b"{}", ["a"]), b"h")
    with pytest.raises(DamagedEntry):
        decode_entry(NAMESPACE, {b"i": b"c1", b"h": head})
