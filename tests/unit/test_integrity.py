"""A protected body is valid for one part of one place, and for one kind or key."""

from __future__ import annotations

import copy
import pickle
import zlib
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langgraph_checkpoint_cached import IntentCache, SyncCachedPostgresSaver
from langgraph_checkpoint_cached.arguments import check_signing_keys
from langgraph_checkpoint_cached.errors import ArgumentError, ArgumentTypeError
from langgraph_checkpoint_cached.stores.redis.integrity import CHECKSUMS, Integrity, integrity_for

OLD, NEW = b"an old secret key", "a new secret key ü"


def signed(*keys: bytes | str) -> Integrity:
    return integrity_for(check_signing_keys(keys))


INTEGRITIES = [CHECKSUMS, signed(OLD), signed(NEW, OLD)]

integrities = st.sampled_from(INTEGRITIES)
names = st.text(max_size=6)
parts = st.binary(max_size=6)


@given(integrities, names, names, parts, st.binary(max_size=200))
def test_signed_part_opens(integrity: Integrity, name: str, within: str, part: bytes, body: bytes) -> None:
    opened = integrity.scopes[name, within].verify(integrity.scopes[name, within].protect(body, part), part)
    assert opened is not None
    assert opened == body


@given(integrities, st.data(), st.tuples(names, names, parts), st.binary(max_size=200))
def test_no_other_part_of_no_other_place_and_no_other_bytes_open(
    integrity: Integrity, data: st.DataObject, where: tuple[str, str, bytes], body: bytes
) -> None:
    protected = integrity.scopes[where[:2]].protect(body, where[2])
    name, within, part = data.draw(st.tuples(names, names, parts).filter(lambda other: other != where))
    if integrity is not CHECKSUMS:  # 32 bits may collide
        assert integrity.scopes[name, within].verify(protected, part) is None
    position = data.draw(st.integers(0, len(protected) - 1))
    damaged = bytearray(protected)
    damaged[position] ^= data.draw(st.integers(1, 255))
    for junk in (bytes(damaged), protected[:position]):
        if integrity is not CHECKSUMS or len(junk) == len(protected):  # a changed byte always changes a CRC
            assert integrity.scopes[where[:2]].verify(junk, where[2]) is None


@pytest.mark.parametrize("integrity", INTEGRITIES)
def test_names_that_run_into_each_other_are_different_places(integrity: Integrity) -> None:
    protected = integrity.scopes["a", "bc"].protect(b"body", b"p")
    for name, within, part in (("ab", "c", b"p"), ("abc", "", b"p"), ("", "abc", b"p"), ("bc", "a", b"p")):
        assert integrity.scopes[name, within].verify(protected, part) is None
    longer = integrity.scopes["a", "bc"].protect(b"y", b"p")
    assert integrity.scopes["a", "bc"].verify(longer[: len(longer) - 1] + b"py", b"") is None


def test_each_key_and_kind_has_signatures_of_its_own() -> None:
    old, new, both = (signed(*keys) for keys in ([OLD], [NEW], [NEW, OLD]))
    protected = {
        integrity: integrity.scopes["n"].protect(b"body", b"p") for integrity in (CHECKSUMS, old, new, both)
    }
    opens = {
        (by, of) for by in protected for of in protected if by.scopes["n"].verify(protected[of], b"p") is not None
    }
    pairs = {(integrity, integrity) for integrity in protected}
    assert opens == pairs | {(new, both), (both, new), (both, old)}


def test_keys_are_rotated_without_a_miss() -> None:
    """Two steps: everybody reads what the new key signs before anybody signs with it."""
    before, first, second, after = (signed(*keys) for keys in ([OLD], [OLD, NEW], [NEW, OLD], [NEW]))
    for side, other in ((before, first), (first, second), (second, first), (first, before)):
        assert other.scopes["n"].verify(side.scopes["n"].protect(b"body", b"p"), b"p") == b"body"
    assert after.scopes["n"].verify(second.scopes["n"].protect(b"body", b"p"), b"p") == b"body"


def test_a_signature_is_not_made_of_public_things_alone() -> None:
    protected = signed(OLD).scopes["n"].protect(b"body", b"p")
    assert protected[4:] != b"body"
    assert zlib.crc32(b"body") != int.from_bytes(protected[:4], "big")
    assert OLD not in protected


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("canary canary canary", "not a single str"),
        (b"canary canary canary", "not a single bytes"),
        (bytearray(b"canary canary canary"), "not a single bytearray"),
        ({"canary canary canary"}, "list or tuple"),
        (iter(["canary canary canary"]), "list or tuple"),
        (7, "list or tuple"),
        ([], "is empty"),
        ((), "is empty"),
        (["canary canary canary", 7], r"signing_keys\[1\] must be bytes or str, not int"),
        ([None], r"signing_keys\[0\]"),
        ([bytearray(b"canary canary canary")], r"signing_keys\[0\] must be bytes or str"),
        (["canary"], r"signing_keys\[0\] must be 16 to 64 bytes long, not 6"),
        ([b""], "not 0"),
        (["canary canary 12"[:15]], "not 15"),
        ([b"canary" * 11], "not 66"),
        (["ü" * 33], "not 66"),
    ],
)
def test_bad_keys_are_refused_at_once_and_not_repeated(keys: Any, message: str) -> None:
    attempts = [
        lambda: check_signing_keys(keys),
        lambda: SyncCachedPostgresSaver.from_conn_string(
            "postgresql://127.0.0.1:1/nowhere", "redis://127.0.0.1:1", signing_keys=keys
        ).__enter__(),
    ]
    for attempt in attempts:
        with pytest.raises((ArgumentError, ArgumentTypeError), match=message) as caught:
            attempt()
        error: BaseException | None = caught.value
        while error is not None:
            assert "canary" not in repr(error)
            error = error.__cause__ or error.__context__


@pytest.mark.parametrize("keys", ["a single key of a str", ["short"], []])
async def test_intent_cache_refuses_bad_keys_too(keys: Any) -> None:
    from redis.asyncio import Redis

    with pytest.raises((ArgumentError, ArgumentTypeError), match="signing_keys"):
        IntentCache(Redis(), signing_keys=keys)


@pytest.mark.parametrize("keys", [[b"x" * 16], ["x" * 64], ("ü" * 32, b"\0" * 16), ["\ud800" * 6]])
def test_keys_of_allowed_lengths_are_taken(keys: Sequence[bytes | str]) -> None:
    assert len(check_signing_keys(keys)) == len(keys)


def test_keys_do_not_show() -> None:
    key = b"canary canary canary"
    integrity = signed(key)
    place = integrity.scopes["n"]
    shown = [repr(integrity), repr(vars(integrity)), repr(place), str(integrity)]
    assert not [text for text in shown if "canary" in text]
    for secret in (integrity, place):
        for way in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError, match="pickle"):
                way(secret)
