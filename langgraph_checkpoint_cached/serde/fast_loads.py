"""Deserialization of the upstream serializer's bytes into its values, without pydantic where that agrees."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import ormsgpack
from langgraph.checkpoint.serde import jsonplus
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from langgraph_checkpoint_cached.serde.messages import MessageClass, message_classes

Loads = Callable[[tuple[str, Any]], Any]
Hook = Callable[[int, bytes], Any]

HOOKS_CACHED_MAX = 64
_OPTION = ormsgpack.OPT_NON_STR_KEYS
_PYDANTIC = getattr(jsonplus, "EXT_PYDANTIC_V2", None)
_UPSTREAM_HOOK = getattr(jsonplus, "_msgpack_ext_hook", None)
_UPSTREAM_LOADS = JsonPlusSerializer.loads_typed
_UPSTREAM_DECRYPTS = EncryptedSerializer.loads_typed
# Length of the module and the name of the shortest class, which is enough to tell all of them apart.
_HEAD = 38


def loads_for(serde: SerializerProtocol) -> Loads:
    """Return a function with the answers of `serde.loads_typed`, faster if the serializer is LangGraph's own.

    The allowlist is the serializer's: only classes that every allowlist lets through are restored here, the rest
    is left to its own hook.
    """
    upstream_hook = _upstream_hook(serde)
    if upstream_hook is not None:
        unpack, hook = ormsgpack.unpackb, _hook(upstream_hook)

        def loads(data: tuple[str, Any]) -> Any:
            kind, blob = data
            if kind == "msgpack":
                return unpack(blob, ext_hook=hook, option=_OPTION)
            return serde.loads_typed(data)

        return loads
    if type(serde) is EncryptedSerializer and _is_upstream(serde, _UPSTREAM_DECRYPTS):
        return _decrypting(serde)
    return serde.loads_typed


def _upstream_hook(serde: Any) -> Hook | None:
    if type(serde) is not JsonPlusSerializer or not _is_upstream(serde, _UPSTREAM_LOADS):
        return None
    hook = getattr(serde, "_unpack_ext_hook", None)
    upstream_code = getattr(_UPSTREAM_HOOK, "__code__", None)
    # Every allowlist has a closure of its own over one and the same code.
    return hook if upstream_code is not None and getattr(hook, "__code__", None) is upstream_code else None


def _is_upstream(serde: Any, upstream: object) -> bool:
    return type(serde).loads_typed is upstream and "loads_typed" not in vars(serde)


def _decrypting(serde: EncryptedSerializer) -> Loads:
    inner = loads_for(serde.serde)

    def loads(data: tuple[str, Any]) -> Any:
        kind, blob = data
        if "+" not in kind:
            return inner(data)
        kind, cipher = kind.split("+", 1)
        return inner((kind, serde.cipher.decrypt(cipher, blob)))

    return loads


@lru_cache(maxsize=HOOKS_CACHED_MAX)
def _hook(upstream_hook: Hook) -> Hook:
    """Return a hook that restores known messages, and leaves the rest to the upstream hook."""
    classes, unpack = _by_head(), ormsgpack.unpackb

    def hook(code: int, data: bytes) -> Any:
        known = classes.get(data[:_HEAD])
        if known is not None and code == _PYDANTIC:
            try:
                # Without a hook an extension inside is an error: what the upstream hook will decode, and may
                # report or run a constructor for, is not decoded here first.
                module, name, payload, _ = unpack(data, option=_OPTION)
            except (ValueError, TypeError):
                return upstream_hook(code, data)
            if module == known.module and name == known.name:
                message = known.restore(payload)
                if message is not None:
                    return message
        return upstream_hook(code, data)

    return hook


@cache
def _by_head() -> dict[bytes, MessageClass]:
    """Return the classes by the bytes that their messages begin with, so that nothing else is looked at twice."""
    return {known.start[:_HEAD]: known for known in message_classes()}
