"""What a value becomes on its way through a JSONB column and back.

PostgreSQL stores numbers as `numeric`, which has no exponent and no negative zero, keeps the last of equal
keys, and orders keys by length first: https://www.postgresql.org/docs/current/datatype-json.html
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any


def round_trip(text: str) -> str:
    """JSON text for exactly the value that reading `text` back from a JSONB column gives, in its key order.

    What JSONB refuses (NaN, infinities, the character U+0000, lone surrogates) is not looked for: the write
    fails in Postgres, and no entry is made of it.
    """
    return _ENCODER.encode(_DECODER.decode(text))


def _number(literal: str) -> float | int:
    mantissa, _, exponent = literal.lower().partition("e")
    decimals = len(mantissa.partition(".")[2])
    if decimals - int(exponent or 0) <= 0:
        return int(Decimal(literal))
    return float(literal) + 0.0  # -0.0 becomes 0.0


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < 2:
        return values
    # Shortest first, then byte by byte. UTF-8 sorts as code points do.
    keys = sorted(values)
    keys.sort(key=len if "".join(keys).isascii() else _bytes)
    return {key: values[key] for key in keys}


def _bytes(key: str) -> int:
    return len(key.encode("utf-8", "surrogatepass"))


_DECODER = json.JSONDecoder(parse_float=_number, object_pairs_hook=_object)
_ENCODER = json.JSONEncoder(separators=(",", ":"))
