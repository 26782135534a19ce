"""Restoration of LangChain's own messages from their dumped fields, without constructors and validators.

Dumped fields of ordinary shapes validate to themselves. Those shapes are an allowlist: only pydantic restores a
message of any other shape, or of a class that is not as expected.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import ormsgpack
from langgraph.checkpoint.serde import _msgpack
from pydantic import BaseModel
from pydantic_core import SchemaError, SchemaValidator, ValidationError

Fields = dict[str, Any]
# Tells whether the fields that only this class has pass validation. It may put validated ones in their place.
Passes = Callable[[Fields], bool]

SAFE_TYPES: frozenset[tuple[str, ...]] = getattr(_msgpack, "SAFE_MSGPACK_TYPES", frozenset())


class MessageClass(NamedTuple):
    """A class of messages for which both ways were found to give the same."""

    module: str
    name: str
    cls: type[BaseModel]
    fields: tuple[str, ...]
    # Start in msgpack of an array of module, name, fields, and the name of the upstream hook's constructor.
    start: bytes
    # Returns what `cls(**payload)` gives, or None where that has to be called. The payload becomes part of the
    # message.
    restore: Callable[[Any], Any]


@cache
def message_classes() -> tuple[MessageClass, ...]:
    """Return the classes on LangGraph's safe list that can be restored."""
    found = (_message_class(f"langchain_core.messages.{row[0]}", *row[1:]) for row in _CLASSES)
    return tuple(known for known in found if known is not None)


def _message_class(
    module: str, name: str, own: tuple[str, ...], validators: frozenset[str], rule: Rule | None
) -> MessageClass | None:
    if (module, name) not in SAFE_TYPES:
        return None
    try:
        cls = getattr(importlib.import_module(module), name)
        if set(cls.model_fields) != {*_COMMON, *own} or not _has_only(cls, validators):
            return None
        start = b"\x94" + ormsgpack.packb(module) + ormsgpack.packb(name)
        restore = _restorer(cls, rule and rule(cls))
        known = MessageClass(module, name, cls, tuple(cls.model_fields), start, restore)
        return known if all(_agrees(known, sample) for sample in sample_messages(cls)) else None
    except (ImportError, LookupError, AttributeError, TypeError, SchemaError, ValidationError):
        return None  # not the class that this was written for


def _restorer(cls: type[BaseModel], own_fields_pass: Passes | None) -> Callable[[Any], Any]:
    names = tuple(cls.model_fields)
    names_set, kind = set(names), cls.model_fields["type"].default
    new = cls.__new__
    set_dict, set_fields_set, set_extra, set_private = (
        _setter(name) for name in ("dict", "pydantic_fields_set", "pydantic_extra", "pydantic_private")
    )

    def restore(payload: Any) -> Any:
        # The order matters: it becomes that of the message's attributes.
        if type(payload) is not dict or tuple(payload) != names:
            return None
        content, name, id_ = payload["content"], payload["name"], payload["id"]
        if (
            (type(content) is not str and not _is_list_of_blocks(content))
            or (id_ is not None and type(id_) is not str)
            or (name is not None and type(name) is not str)
            or type(payload["additional_kwargs"]) is not dict
            or type(payload["response_metadata"]) is not dict
            or payload["type"] != kind
            or (own_fields_pass is not None and not own_fields_pass(payload))
        ):
            return None
        payload["type"] = kind
        # As `BaseModel.model_construct` does it, except for defaults and aliases, of which there are none.
        message = new(cls)
        set_dict(message, payload)
        set_fields_set(message, names_set.copy())
        set_extra(message, {})
        set_private(message, None)
        return message

    return restore


def _setter(name: str) -> Callable[[Any, Any], None]:
    """Return a setter of one attribute that skips the look-up of `object.__setattr__`."""
    setter: Callable[[Any, Any], None] = vars(BaseModel)[f"__{name}__"].__set__
    return setter


def _is_list_of_blocks(content: Any) -> bool:
    return type(content) is list and all(type(block) is str or type(block) is dict for block in content)


# --- Classes, and what they add to the fields of every message ---


def _chat(cls: type[BaseModel]) -> Passes:
    return lambda values: type(values["role"]) is str


def _function(cls: type[BaseModel]) -> Passes:
    return lambda values: values["name"] is not None


def _remove(cls: type[BaseModel]) -> Passes:
    return lambda values: values["content"] == ""  # which its constructor makes of nothing, and refuses the rest


def _tool(cls: type[BaseModel]) -> Passes:
    return lambda values: type(values["tool_call_id"]) is str and values["status"] in ("success", "error")


def _ai(cls: type[BaseModel]) -> Passes:
    validate_calls, validate_usage = _field(cls, "tool_calls"), _field(cls, "usage_metadata")

    def passes(values: Fields) -> bool:
        calls, usage, invalid = values["tool_calls"], values["usage_metadata"], values["invalid_tool_calls"]
        if type(calls) is not list or type(invalid) is not list or invalid:
            return False
        try:
            if calls:
                for call in calls:
                    # Name, arguments and id are required; without its type, or with more, a call is rewritten.
                    if type(call) is not dict or len(call) != 4 or "type" not in call:
                        return False
                values["tool_calls"] = validate_calls(calls)
            elif values["additional_kwargs"].get("tool_calls"):
                return False  # calls are looked for there then
            if usage is not None:
                values["usage_metadata"] = validate_usage(usage)
        except ValidationError:
            return False
        return True

    return passes


def _ai_chunk(cls: type[BaseModel]) -> Passes:
    ai_fields_pass = _ai(cls)

    # Calls and chunks of calls are made of each other, and the last chunk parses what is in its content.
    return lambda values: (
        values["tool_call_chunks"] == []
        and values["tool_calls"] == []
        and values["chunk_position"] is None
        and ai_fields_pass(values)
    )


def _field(cls: type[BaseModel], name: str) -> Callable[[Any], Any]:
    """Return the class's own validation of one field, in compiled code."""
    schema: Mapping[str, Any] = cls.__pydantic_core_schema__
    config: Any = None
    while schema["type"] != "model-fields":
        config = schema.get("config", config)
        schema = schema["schema"]
    return SchemaValidator(schema["fields"][name]["schema"], config).validate_python


Rule = Callable[[type[BaseModel]], Passes]

_COMMON = ("content", "additional_kwargs", "response_metadata", "type", "name", "id")
_OF_TOOL = ("tool_call_id", "artifact", "status")
_OF_AI = ("tool_calls", "invalid_tool_calls", "usage_metadata")
_OF_AI_CHUNK = (*_OF_AI, "tool_call_chunks", "chunk_position")
_NO_VALIDATORS: frozenset[str] = frozenset()
_TOOL = frozenset({"coerce_args"})
_AI = frozenset({"_backwards_compat_tool_calls"})
_AI_CHUNK = _AI | {"init_tool_calls", "init_server_tool_calls"}

_CLASSES: tuple[tuple[str, str, tuple[str, ...], frozenset[str], Rule | None], ...] = (
    ("human", "HumanMessage", (), _NO_VALIDATORS, None),
    ("human", "HumanMessageChunk", (), _NO_VALIDATORS, None),
    ("system", "SystemMessage", (), _NO_VALIDATORS, None),
    ("system", "SystemMessageChunk", (), _NO_VALIDATORS, None),
    ("ai", "AIMessage", _OF_AI, _AI, _ai),
    ("ai", "AIMessageChunk", _OF_AI_CHUNK, _AI_CHUNK, _ai_chunk),
    ("tool", "ToolMessage", _OF_TOOL, _TOOL, _tool),
    ("tool", "ToolMessageChunk", _OF_TOOL, _TOOL, _tool),
    ("function", "FunctionMessage", (), _NO_VALIDATORS, _function),
    ("function", "FunctionMessageChunk", (), _NO_VALIDATORS, _function),
    ("chat", "ChatMessage", ("role",), _NO_VALIDATORS, _chat),
    ("chat", "ChatMessageChunk", ("role",), _NO_VALIDATORS, _chat),
    ("modifier", "RemoveMessage", (), _NO_VALIDATORS, _remove),
)


# --- Checks that the installed classes are those that this was written for ---


def _has_only(cls: type[BaseModel], validators: frozenset[str]) -> bool:
    """Tell whether the checks above cover all that validation does."""
    made_by = cls.__pydantic_decorators__
    return set(made_by.model_validators) == validators and not (
        made_by.field_validators or made_by.validators or made_by.root_validators
    )


def sample_messages(cls: type[BaseModel]) -> tuple[Fields, ...]:
    """Return the fields of two messages, one with as few values as possible and one with many."""
    calls = [{"name": "look", "args": {"b": 1, "a": [{}]}, "id": "c1", "type": "tool_call"}]
    usage = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5, "output_token_details": {"reasoning": 1}}
    bare = {
        "content": "",
        "additional_kwargs": {},
        "response_metadata": {},
        "type": cls.model_fields["type"].default,
        "name": "someone",
        "id": None,
        "role": "critic",
        "tool_call_id": "c1",
        "artifact": None,
        "status": "success",
        "tool_calls": [],
        "invalid_tool_calls": [],
        "usage_metadata": None,
        "tool_call_chunks": [],
        "chunk_position": None,
    }
    full = bare | {
        "content": ["text", {"type": "text", "text": "more", "index": 0}],
        "additional_kwargs": {"refusal": None, "nested": {"b": [1], "a": True}},
        "response_metadata": {"model_name": "m", "output_version": "v1", "logprobs": {"p": -0.5}},
        "id": "m1",
        "artifact": {"rows": [1.5, b"", None]},
        "status": "error",
        "tool_calls": calls,
        "usage_metadata": usage,
    }
    if "tool_call_chunks" in cls.model_fields:
        full["tool_calls"] = []
    if cls.__name__ == "RemoveMessage":
        full["content"] = ""
    return tuple({name: sample[name] for name in cls.model_fields} for sample in (bare, full))


def _agrees(known: MessageClass, sample: Fields) -> bool:
    validated, restored = known.cls(**sample), known.restore(dict(sample))
    return restored is not None and restored == validated and _state(restored) == _state(validated)


def _state(message: Any) -> str:
    extra, private = message.__pydantic_extra__, message.__pydantic_private__
    return repr((type(message), vars(message), sorted(message.__pydantic_fields_set__), extra, private))
