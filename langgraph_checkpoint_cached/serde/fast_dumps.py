"""Serialization with the upstream serializer's bytes, without pydantic for LangChain's messages if those agree."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import ormsgpack
from langgraph.checkpoint.serde import jsonplus
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from pydantic import BaseModel

from langgraph_checkpoint_cached.serde.messages import MessageClass, message_classes, sample_messages

Dumps = Callable[[Any], tuple[str, Any]]
Pack = Callable[[Any], Any]

_OPTION = getattr(jsonplus, "_option", 0)
_UPSTREAM_DEFAULT: Callable[[Any], Any] = getattr(jsonplus, "_msgpack_default", lambda value: None)
_UPSTREAM_DUMPS = JsonPlusSerializer.dumps_typed
_PYDANTIC = getattr(jsonplus, "EXT_PYDANTIC_V2", 0)
_END = ormsgpack.packb("model_validate_json")


def dumps_for(serde: SerializerProtocol) -> Dumps:
    """Return a function with the answers of `serde.dumps_typed`, faster if the serializer is LangGraph's own.

    The bytes are the same, and so are the errors; only pydantic's warnings about a message with a field of a wrong
    type may be missing.
    """
    is_upstream = type(serde) is JsonPlusSerializer and JsonPlusSerializer.dumps_typed is _UPSTREAM_DUMPS
    if not is_upstream or "dumps_typed" in vars(serde) or not _packers():
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
    pack = _packers().get(type(value))
    return _UPSTREAM_DEFAULT(value) if pack is None else pack(value)


def _packer(known: MessageClass) -> Pack:
    """Return a function that does what the upstream hook does, for messages of this class."""
    packb, names = ormsgpack.packb, known.fields
    has_calls = "tool_calls" in names

    def pack(message: Any) -> Any:
        fields = message.__dict__
        if message.__pydantic_extra__ or tuple(fields) != names or (has_calls and not _named(fields)):
            return _UPSTREAM_DEFAULT(message)
        try:
            return ormsgpack.Ext(_PYDANTIC, known.start + packb(fields, option=_OPTION) + _END)
        except ormsgpack.MsgpackEncodeError:  # something that pydantic, or the upstream hook, has its own way with
            return _UPSTREAM_DEFAULT(message)

    return pack


def _named(fields: dict[str, Any]) -> bool:
    """Tell whether every key of its typed dicts is a name: pydantic refuses to dump others."""
    for field in ("tool_calls", "invalid_tool_calls", "tool_call_chunks"):
        calls = fields.get(field)
        if calls and (type(calls) is not list or not all(map(_has_names, calls))):
            return False
    usage = fields["usage_metadata"]
    if usage is None:
        return True
    return _has_names(usage) and all(_has_names(part) for part in usage.values() if type(part) is not int)


def _has_names(part: Any) -> bool:
    return type(part) is dict and all(type(key) is str for key in part)


@cache
def _packers() -> dict[type, Pack]:
    """Return packers for the classes of messages of which pydantic dumps what is in their attributes."""
    return {known.cls: pack for known in message_classes() if (pack := _packer_if_same(known)) is not None}


def _packer_if_same(known: MessageClass) -> Pack | None:
    own = known.cls.__pydantic_decorators__
    if own.field_serializers or own.model_serializers or own.computed_fields:
        return None
    if known.cls.model_dump is not BaseModel.model_dump:
        return None
    pack = _packer(known)
    messages = [known.cls(**sample) for sample in sample_messages(known.cls)]
    return (
        pack if all(_bytes(pack(message)) == _bytes(_UPSTREAM_DEFAULT(message)) for message in messages) else None
    )


def _bytes(packed: Any) -> bytes:
    return ormsgpack.packb([packed])
