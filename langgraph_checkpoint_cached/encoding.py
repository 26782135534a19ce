"""The stock serializer's bytes, without pydantic for LangChain's own messages where that gives the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import ormsgpack
from langgraph.checkpoint.serde import jsonplus
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from pydantic import BaseModel

from langgraph_checkpoint_cached.messages import MessageClass, message_classes, samples_of

Dumps = Callable[[Any], tuple[str, Any]]

_OPTION = getattr(jsonplus, "_option", 0)
_STOCK_DEFAULT: Callable[[Any], Any] = getattr(jsonplus, "_msgpack_default", lambda value: None)
_STOCK_DUMPS = JsonPlusSerializer.dumps_typed
_PYDANTIC = getattr(jsonplus, "EXT_PYDANTIC_V2", 0)


def dumps_of(serde: SerializerProtocol) -> Dumps:
    """What gives `serde.dumps_typed`'s answers, faster if the serializer is LangGraph's own.

    The bytes are the same, and so are the errors; only pydantic's warnings about a message with a field of a wrong
    type may be missing.
    """
    runs_stock = type(serde) is JsonPlusSerializer and JsonPlusSerializer.dumps_typed is _STOCK_DUMPS
    if not runs_stock or "dumps_typed" in vars(serde) or not _plain():
        return serde.dumps_typed

    def dumps(value: Any) -> tuple[str, Any]:
        if value is None or isinstance(value, (bytes, bytearray)):
            return serde.dumps_typed(value)
        try:
            return "msgpack", ormsgpack.packb(value, default=_default, option=_OPTION)
        except ormsgpack.MsgpackEncodeError:
            return serde.dumps_typed(value)  # raises it again, or pickles

    return dumps


def _default(value: Any) -> Any:
    known = _plain().get(type(value))
    if (
        known is None
        or value.__pydantic_extra__
        or tuple(value.__dict__) != known.fields
        or not _named(value.__dict__)
    ):
        return _STOCK_DEFAULT(value)
    try:
        return _packed(value, known)
    except ormsgpack.MsgpackEncodeError:  # something in it that pydantic, or the stock hook, has its own way with
        return _STOCK_DEFAULT(value)


def _named(fields: dict[str, Any]) -> bool:
    """Whether every key of its typed dicts is a name: pydantic refuses to dump others."""
    if "tool_calls" not in fields:
        return True
    for field in ("tool_calls", "invalid_tool_calls", "tool_call_chunks"):
        calls = fields.get(field)
        if calls and (type(calls) is not list or not all(map(_has_names, calls))):
            return False
    usage = fields.get("usage_metadata")
    if usage is None:
        return True
    return _has_names(usage) and all(_has_names(part) for part in usage.values() if type(part) is not int)


def _has_names(part: Any) -> bool:
    return type(part) is dict and all(type(key) is str for key in part)


def _packed(value: Any, known: MessageClass) -> Any:
    parts = (known.module, known.name, value.__dict__, "model_validate_json")
    return ormsgpack.Ext(_PYDANTIC, ormsgpack.packb(parts, option=_OPTION))


@cache
def _plain() -> dict[type, MessageClass]:
    """Classes of messages of which pydantic dumps what is in their attributes."""
    return {known.cls: known for known in message_classes() if _dumps_itself(known)}


def _dumps_itself(known: MessageClass) -> bool:
    own = known.cls.__pydantic_decorators__
    if own.field_serializers or own.model_serializers or own.computed_fields:
        return False
    if known.cls.model_dump is not BaseModel.model_dump:
        return False
    return all(_same(known.cls(**sample), known) for sample in samples_of(known.cls))


def _same(message: Any, known: MessageClass) -> bool:
    ours, stock = _packed(message, known), _STOCK_DEFAULT(message)
    return bool(ormsgpack.packb([ours]) == ormsgpack.packb([stock]))
