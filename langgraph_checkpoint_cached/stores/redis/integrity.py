"""Checksums and signatures: they show that bytes in Redis are complete and stand where they were written. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from hmac import compare_digest
from typing import Protocol
from zlib import crc32

from langgraph_checkpoint_cached.utils.text_cache import TextCache

CHECKSUM_BYTES = 4
SIGNATURE_BYTES = 16
PERSON = b"lg-cached"
"""Keeps these signatures apart from others that are made with the same key."""


class Scope(Protocol):
    """Protection of the parts of one place, such as a namespace. Each is verified as the part it was made for."""

    def protect(self, body: bytes, part: bytes) -> bytes:
        """Return `body` with a checksum or signature of scope, part and body before it."""

    def verify(self, protected: bytes, part: bytes) -> memoryview | None:
        """Return the body, or None if it was not protected for this part, in this way, exactly as it is."""


class Integrity(Protocol):
    """A way to protect bytes."""

    @property
    def scopes(self) -> Mapping[tuple[str, ...], Scope]:
        """Scopes by their names, such as a thread's and a namespace's. There is one for any names."""


class Checksums:
    """CRC-32 of scope, part and body. It detects damage and mistakes, but anybody can compute one."""

    def __init__(self) -> None:
        self.scopes: TextCache[tuple[str, ...], Scope] = TextCache(
            lambda names: _ChecksumScope(crc32(_joined(names))), _characters
        )


class Signatures:
    """Keyed BLAKE2b of scope, part and body, by the first key. Those by the other keys are valid too.

    The keys themselves are not kept, only states of the hash, which can be neither printed nor pickled.

    Args:
        keys: From `check_signing_keys`.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._starts = [blake2b(key=key, digest_size=SIGNATURE_BYTES, person=PERSON) for key in keys]
        self.scopes: TextCache[tuple[str, ...], Scope] = TextCache(self._scope, _characters)

    def _scope(self, names: tuple[str, ...]) -> Scope:
        starts, joined = [start.copy() for start in self._starts], _joined(names)
        for start in starts:
            start.update(joined)
        return _SignatureScope(starts)


class _ChecksumScope:
    __slots__ = ("_start",)

    def __init__(self, start: int) -> None:
        self._start = start

    def protect(self, body: bytes, part: bytes) -> bytes:
        return crc32(body, crc32(b"%d:%b" % (len(part), part), self._start)).to_bytes(CHECKSUM_BYTES, "big") + body

    def verify(self, protected: bytes, part: bytes) -> memoryview | None:
        body = memoryview(protected)[CHECKSUM_BYTES:]
        found = crc32(body, crc32(b"%d:%b" % (len(part), part), self._start))
        return body if found == int.from_bytes(protected[:CHECKSUM_BYTES], "big") else None


class _SignatureScope:
    __slots__ = ("_starts",)

    def __init__(self, starts: Sequence[blake2b]) -> None:
        self._starts = starts

    def protect(self, body: bytes, part: bytes) -> bytes:
        return _sign(self._starts[0], body, part) + body

    def verify(self, protected: bytes, part: bytes) -> memoryview | None:
        signature, body = protected[:SIGNATURE_BYTES], memoryview(protected)[SIGNATURE_BYTES:]
        for start in self._starts:
            if compare_digest(_sign(start, body, part), signature):
                return body
        return None


def _sign(start: blake2b, body: bytes | memoryview, part: bytes) -> bytes:
    state = start.copy()
    state.update(b"%d:%b" % (len(part), part))
    state.update(body)
    return state.digest()


def _joined(names: tuple[str, ...]) -> bytes:
    """Join names so that no other names give the same: each stands after its length, as a part does."""
    encoded = [name.encode("utf-8", "surrogatepass") for name in names]
    return b"".join([b"%d:%b" % (len(name), name) for name in encoded])


def _characters(names: tuple[str, ...]) -> int:
    return sum(map(len, names))


CHECKSUMS = Checksums()


def integrity_for(signing_keys: Sequence[bytes] | None) -> Integrity:
    """Return signatures by these valid keys, or checksums for None."""
    return CHECKSUMS if signing_keys is None else Signatures(signing_keys)
