"""The stock serializer's values from the stock serializer's bytes, without pydantic where it changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import ormsgpack
from langgraph.checkpoint.serde import jsonplus
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from langgraph_checkpoint_cached.serde.messages import MessageClass, message_classes

Loads = Callable[[tuple[str, Any]], Any]
Hook = Callable[[int, bytes], Any]

_OPTION = ormsgpack.OPT_NON_STR_KEYS
_PYDANTIC = getattr(jsonplus, "EXT_PYDANTIC_V2", None)
_STOCK_HOOK = getattr(jsonplus, "_msgpack_ext_hook", None)
_STOCK_LOADS = JsonPlusSerializer.loads_typed
_STOCK_DECRYPTS = EncryptedSerializer.loads_typed
# Where the module and the name of the shortest class end; enough of the others to tell them all apart.
_HEAD = 38


def loads_of(serde: SerializerProtocol) -> Loads:
    """What gives `serde.loads_typed`'s answers, faster if the serializer is LangGraph's own.

    The allowlist is the serializer's: only classes that every allowlist lets through are restored here, the rest
    is left to its own hook.
    """
    hook = _stock_hook(serde)
    if hook is not None:
        return _loads(serde, hook)
    if type(serde) is EncryptedSerializer and _runs_stock(serde, _STOCK_DECRYPTS):
        return _decrypting(serde)
    return serde.loads_typed


def _stock_hook(serde: Any) -> Hook | None:
    if type(serde) is not JsonPlusSerializer or not _runs_stock(serde, _STOCK_LOADS):
        return None
    hook = getattr(serde, "_unpack_ext_hook", None)
    stock_code = getattr(_STOCK_HOOK, "__code__", None)
    # Every allowlist has a closure of its own over one and the same code.
    return hook if stock_code is not None and getattr(hook, "__code__", None) is stock_code else None


def _runs_stock(serde: Any, stock: object) -> bool:
    return type(serde).loads_typed is stock and "loads_typed" not in vars(serde)


def _loads(serde: SerializerProtocol, stock_hook: Hook) -> Loads:
    unpack, hook = ormsgpack.unpackb, _hook(stock_hook)

    def loads(data: tuple[str, Any]) -> Any:
        kind, blob = data
        if kind == "msgpack":
            return unpack(blob, ext_hook=hook, option=_OPTION)
        return serde.loads_typed(data)

    return loads


def _decrypting(serde: EncryptedSerializer) -> Loads:
    inner = loads_of(serde.serde)

    def loads(data: tuple[str, Any]) -> Any:
        kind, blob = data
        if "+" not in kind:
            return inner(data)
        kind, cipher = kind.split("+", 1)
        return inner((kind, serde.cipher.decrypt(cipher, blob)))

    return loads


def _hook(stock_hook: Hook) -> Hook:
    classes, unpack = _by_head(), ormsgpack.unpackb

    def hook(code: int, data: bytes) -> Any:
        known = classes.get(data[:_HEAD])
        if known is not None and code == _PYDANTIC:
            try:
                # Without a hook an extension inside is an error: what the stock hook will decode, and may report
                # or run a constructor for, is not decoded here first.
                module, name, payload, _ = unpack(data, option=_OPTION)
            except (ValueError, TypeError):
                return stock_hook(code, data)
            if module == known.module and name == known.name:
                message = known.restore(payload)
                if message is not None:
                    return message
        return stock_hook(code, data)

    return hook


@cache
def _by_head() -> dict[bytes, MessageClass]:
    """By what such a message begins with, so that nothing else is looked at twice."""
    return {known.start[:_HEAD]: known for known in message_classes()}
