"""What stands before bytes in Redis and shows that they are whole and where they belong. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from hmac import compare_digest
from typing import Protocol
from zlib import crc32

CHECKSUM_BYTES = 4
SIGNATURE_BYTES = 16
SCOPES_CACHED_MAX = 1024
PERSON = b"lg-cached"
"""Keeps these signatures apart from others that are made with the same key."""


class Scope(Protocol):
    """Seals bytes for parts of one place, and opens what was sealed for the same part of it."""

    def seal(self, body: bytes, part: bytes) -> bytes:
        """`body` under a seal of this part."""

    def open(self, sealed: bytes, part: bytes) -> memoryview | None:
        """The body, or None if it was not sealed for this part, by this kind of seal, exactly so."""


class Integrity(Protocol):
    """A kind of seal."""

    def of(self, name: str, within: str = "") -> Scope:
        """The place of this name within another."""


class Checksums:
    """CRC-32 of place, part and body: notices damage and mistakes. Whoever means harm can make one."""

    def of(self, name: str, within: str = "") -> Scope:
        return _checksum_scope(name, within)


class Signatures:
    """Keyed BLAKE2b of place, part and body, by the first key; those by the other keys are good too.

    The keys themselves are not kept, only states of the hash, which can be neither printed nor pickled.

    Args:
        keys: From `check_signing_keys`.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._starts = [blake2b(key=key, digest_size=SIGNATURE_BYTES, person=PERSON) for key in keys]

    def of(self, name: str, within: str = "") -> Scope:
        starts, names = [start.copy() for start in self._starts], _names(name, within)
        for start in starts:
            start.update(names)
        return _SignatureScope(starts)


CHECKSUMS = Checksums()


def integrity_for(signing_keys: Sequence[bytes] | None) -> Integrity:
    """Return signatures by these valid keys, or checksums for None."""
    return CHECKSUMS if signing_keys is None else Signatures(signing_keys)


class _ChecksumScope:
    __slots__ = ("_start",)

    def __init__(self, start: int) -> None:
        self._start = start

    def seal(self, body: bytes, part: bytes) -> bytes:
        return crc32(body, crc32(b"%d:%b" % (len(part), part), self._start)).to_bytes(CHECKSUM_BYTES, "big") + body

    def open(self, sealed: bytes, part: bytes) -> memoryview | None:
        body = memoryview(sealed)[CHECKSUM_BYTES:]
        found = crc32(body, crc32(b"%d:%b" % (len(part), part), self._start))
        return body if found == int.from_bytes(sealed[:CHECKSUM_BYTES], "big") else None


@lru_cache(maxsize=SCOPES_CACHED_MAX)
def _checksum_scope(name: str, within: str) -> _ChecksumScope:
    return _ChecksumScope(crc32(_names(name, within)))


class _SignatureScope:
    __slots__ = ("_starts",)

    def __init__(self, starts: Sequence[blake2b]) -> None:
        self._starts = starts

    def seal(self, body: bytes, part: bytes) -> bytes:
        return _signature(self._starts[0], body, part) + body

    def open(self, sealed: bytes, part: bytes) -> memoryview | None:
        signature, body = sealed[:SIGNATURE_BYTES], memoryview(sealed)[SIGNATURE_BYTES:]
        for start in self._starts:
            if compare_digest(_signature(start, body, part), signature):
                return body
        return None


def _signature(start: blake2b, body: bytes | memoryview, part: bytes) -> bytes:
    state = start.copy()
    state.update(b"%d:%b" % (len(part), part))
    state.update(body)
    return state.digest()


@lru_cache(maxsize=SCOPES_CACHED_MAX)
def _names(*names: str) -> bytes:
    """The names as one, such that no others give the same: each after its length, as a part is."""
    return b"".join([b"%d:%b" % (len(name), name) for name in map(_bytes, names)])


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")
