"""Comparison of two answers: the same types and the same values, all the way down."""

from __future__ import annotations

import dataclasses
import decimal
import re
from collections import deque
from collections.abc import Iterable
from datetime import datetime, time
from enum import Enum
from typing import Any

from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from pydantic import BaseModel


def same(a: object, b: object) -> bool:
    """Say whether nothing tells the two apart."""
    return difference(a, b) is None


def difference(a: Any, b: Any, at: str = "answer") -> str | None:
    """Where and how two answers differ, or None if they do not.

    `==` would not do: it takes 1 for True and for 1.0, 0.0 for -0.0, Decimal("1.0") for Decimal("1.00"), any
    order of keys for any other, and NaN for nothing. The one thing that is not compared is the order of those
    channel values that come out of a join without an ORDER BY.
    """
    if type(a) is not type(b):
        return f"{at}: {_shown(a)} is a {type(a).__qualname__}, {_shown(b)} is a {type(b).__qualname__}"
    if isinstance(a, CheckpointTuple):
        return _tuples(a, b, at)
    return _parts(a, b, at)


def _tuples(a: CheckpointTuple, b: CheckpointTuple, at: str) -> str | None:
    return _first(difference(x, y, f"{at}.{field}") for field, x, y in zip(a._fields, a, b, strict=True))


def _with_stable_order(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Values from the checkpoint's own JSON in the order they have, those from rows of their own by name."""
    values = checkpoint.get("channel_values")
    if not isinstance(values, dict):
        return checkpoint
    inline = [channel for channel, value in values.items() if _stands_inline(value)]
    outside = sorted(set(values) - set(inline))
    return checkpoint | {"channel_values": {channel: values[channel] for channel in (*inline, *outside)}}


def _stands_inline(value: object) -> bool:
    return value is None or isinstance(value, (str, int, float, bool, _DeltaSnapshot))


def _parts(a: Any, b: Any, at: str) -> str | None:
    """The first difference between two things of one type."""
    if isinstance(a, dict):
        if "channel_versions" in a and "channel_versions" in b:
            a, b = _with_stable_order(a), _with_stable_order(b)
        return _sequences(list(a), list(b), f"keys of {at}") or _first(
            difference(a[key], b[key], f"{at}[{key!r}]") for key in a
        )
    if isinstance(a, (list, tuple)):
        return _sequences(a, b, at)
    if isinstance(a, deque):
        return difference(a.maxlen, b.maxlen, f"{at}.maxlen") or _sequences(list(a), list(b), at)
    if isinstance(a, (set, frozenset)):
        return _sequences(sorted(a, key=repr), sorted(b, key=repr), at)
    if isinstance(a, BaseModel):
        return _models(a, b, at)
    if type(a).__module__ == "numpy" and type(a).__name__ == "ndarray":
        return _plain((a.dtype.str, a.shape, a.tobytes()), (b.dtype.str, b.shape, b.tobytes()), at)
    if isinstance(a, BaseException):
        return difference(a.args, b.args, f"{at}.args")
    if isinstance(a, float):
        return _plain(repr(a), repr(b), at)
    if isinstance(a, decimal.Decimal):
        return _plain(a.as_tuple(), b.as_tuple(), at)
    if isinstance(a, (datetime, time)):
        return _plain((repr(a), a.fold), (repr(b), b.fold), at)
    if isinstance(a, re.Pattern):
        return difference(a.pattern, b.pattern, at) or _plain(a.flags, b.flags, at)
    if isinstance(a, Enum):
        return None if a is b else _unequal(a, b, at)
    if dataclasses.is_dataclass(a):
        names = [field.name for field in dataclasses.fields(a)]
        return _first(difference(getattr(a, name), getattr(b, name), f"{at}.{name}") for name in names)
    if type(a).__eq__ is object.__eq__:
        return difference(_state(a), _state(b), f"{at}.__dict__")
    return _plain(a, b, at)


def _models(a: BaseModel, b: BaseModel, at: str) -> str | None:
    return (
        difference(a.__dict__, b.__dict__, f"{at}.__dict__")
        or difference(a.model_fields_set, b.model_fields_set, f"{at}.model_fields_set")
        or difference(a.__pydantic_extra__, b.__pydantic_extra__, f"{at}.__pydantic_extra__")
        or difference(a.__pydantic_private__, b.__pydantic_private__, f"{at}.__pydantic_private__")
    )


def _state(thing: object) -> dict[str, Any]:
    slots = [name for cls in type(thing).__mro__ for name in getattr(cls, "__slots__", ())]
    return {name: getattr(thing, name) for name in slots if hasattr(thing, name)} | getattr(thing, "__dict__", {})


def _sequences(a: Any, b: Any, at: str) -> str | None:
    if len(a) != len(b):
        return f"{at}: {len(a)} and {len(b)} items, {_shown(a)} and {_shown(b)}"
    return _first(difference(x, y, f"{at}[{i}]") for i, (x, y) in enumerate(zip(a, b, strict=True)))


def _first(differences: Iterable[str | None]) -> str | None:
    return next((found for found in differences if found), None)


def _plain(a: object, b: object, at: str) -> str | None:
    return None if a == b else _unequal(a, b, at)


def _unequal(a: object, b: object, at: str) -> str:
    return f"{at}: {_shown(a)} is not {_shown(b)}"


def _shown(thing: object) -> str:
    text = repr(thing)
    return text if len(text) <= 300 else f"{text[:300]}..."
