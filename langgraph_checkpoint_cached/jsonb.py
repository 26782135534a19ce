"""JSON as it comes back from a JSONB column.

PostgreSQL stores numbers as `numeric`, which has no exponent and no negative zero, keeps the last of equal
keys, and orders keys by length first: https://www.postgresql.org/docs/current/datatype-json.html
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import orjson

from langgraph_checkpoint_cached.utils.text_cache import CHARACTERS_MAX, TextCache

KEYS_REMEMBERED_MAX = 64
"""Most keys of one object whose order is remembered."""
_AS_THEY_ARE = frozenset((str, int, bool, type(None)))


def dumps(value: Any) -> str:
    """Return `round_trip` of the JSON text for a value, mostly without making that text. Raise as `json.dumps`."""
    try:
        plain = _plain(value)
        text = orjson.dumps(plain)
    except (_NotPlain, RecursionError, orjson.JSONEncodeError):  # the last for large integers, lone surrogates
        return round_trip(json.dumps(value))
    # What a column takes of other characters is up to the database's encoding, unless they are escaped.
    # U+007F is ASCII, and `json` escapes it.
    return text.decode() if text.isascii() and b"\x7f" not in text else _ENCODER.encode(plain)


def loads(text: bytes) -> Any:
    """Return the value of JSON text as `dumps` or a column gives it, with nothing around. Raise `ValueError`."""
    return _READER.raw_decode(text.decode())[0]


def round_trip(text: str) -> str:
    """Return JSON text for exactly the value that comes back from a JSONB column for `text`, in its key order.

    It does not check for what JSONB refuses (NaN, infinities, the character U+0000, lone surrogates): the write
    fails in Postgres, and no entry is made of it.
    """
    return _ENCODER.encode(_DECODER.decode(text))


class _NotPlain(Exception):
    """A value that JSON changes or refuses, or a number with an exponent or decimals."""


def _plain(value: Any) -> Any:
    """Return what a column gives back for a value of JSON's simple types. Raise `_NotPlain` for any other."""
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if kind is dict:
        keys = _ORDERS[tuple(value)]
        return {key: inner if type(inner := value[key]) in _AS_THEY_ARE else _plain(inner) for key in keys}
    if kind is list or kind is tuple:
        return [inner if type(inner) in _AS_THEY_ARE else _plain(inner) for inner in value]
    raise _NotPlain


def _number(literal: str) -> float | int:
    mantissa, _, exponent = literal.lower().partition("e")
    decimals = len(mantissa.partition(".")[2])
    if decimals - int(exponent or 0) <= 0:
        return int(Decimal(literal))
    return float(literal) + 0.0  # -0.0 becomes 0.0


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    return {key: values[key] for key in _ORDERS[tuple(values)]}


def _order(keys: tuple[str, ...]) -> Sequence[str]:
    """Sort keys, shortest first, then byte by byte, as code points sort. Raise `_NotPlain` for other than text."""
    if not all(type(key) is str for key in keys):
        raise _NotPlain
    return sorted(sorted(keys), key=len if "".join(keys).isascii() else _bytes)


def _characters(keys: tuple[str, ...]) -> int:
    """Return how many characters the keys have, or too many of them if they are many."""
    return sum(map(len, keys)) if len(keys) <= KEYS_REMEMBERED_MAX else CHARACTERS_MAX + 1


def _bytes(key: str) -> int:
    return len(key.encode("utf-8", "surrogatepass"))


_ORDERS: TextCache[tuple[str, ...], Sequence[str]] = TextCache(_order, _characters)
"""Keys that were sorted before, and their order."""
_DECODER = json.JSONDecoder(parse_float=_number, object_pairs_hook=_object)
_READER = json.JSONDecoder()
_ENCODER = json.JSONEncoder(separators=(",", ":"))
