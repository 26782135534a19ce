"""Values come out of their bytes as the upstream serializer gives them, and ordinary messages without it."""

from __future__ import annotations

import copy
import dataclasses
import logging
import pickle
from collections import deque
from datetime import datetime, timezone
from typing import Any

import ormsgpack
import pytest
from hypothesis import HealthCheck, example, given, reject, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.serde import jsonplus
from langgraph.checkpoint.serde.base import CipherProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.event_hooks import register_serde_event_listener
from langgraph.checkpoint.serde.jsonplus import EXT_PYDANTIC_V2, JsonPlusSerializer
from langgraph.graph.message import add_messages
from pydantic import BaseModel

from langgraph_checkpoint_cached.serde import messages
from langgraph_checkpoint_cached.serde.fast_loads import loads_for
from langgraph_checkpoint_cached.serde.messages import message_classes
from tests.support.inspect import MESSAGE_CLASSES, UPSTREAM_HOOK, message_class

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
many = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])

OPTION = ormsgpack.OPT_NON_STR_KEYS
PERMISSIVE, STRICT = JsonPlusSerializer(), JsonPlusSerializer(allowed_msgpack_modules=None)
NAMES = ["HumanMessage", "SystemMessage", "AIMessage", "ToolMessage", "FunctionMessage", "ChatMessage"]
ALL_NAMES = [*NAMES, *(f"{name}Chunk" for name in NAMES), "RemoveMessage"]
CLASSES: dict[str, Any] = {known.name: known.cls for known in message_classes()}


class OwnMessage(HumanMessage):
    mood: str = "good"


class Model(BaseModel):
    a: int
    messages: list[Any] = []


@dataclasses.dataclass
class Data:
    a: Any


# --- comparing ---


def apart(value: Any) -> Any:
    """All of a value that can be told from outside, in terms that compare exactly."""
    if isinstance(value, BaseModel):
        own = (vars(value), value.model_fields_set, value.__pydantic_extra__, value.__pydantic_private__)
        return type(value), [apart(part) for part in own]
    if isinstance(value, dict):
        return type(value), [(apart(key), apart(item)) for key, item in value.items()]
    if isinstance(value, (set, frozenset)):
        return type(value), sorted(repr(apart(item)) for item in value)
    if isinstance(value, (list, tuple, deque)):
        return type(value), [apart(item) for item in value]
    if dataclasses.is_dataclass(value):
        return type(value), apart(vars(value))
    return type(value), repr(value)


def outcome(call: Any, *args: Any) -> Any:
    try:
        return apart(call(*args))
    except Exception as exc:  # noqa: BLE001 - which one it is, is what is compared
        return type(exc)


def assert_same(data: tuple[str, Any], serde: Any = PERMISSIVE) -> None:
    assert outcome(loads_for(serde), data) == outcome(serde.loads_typed, data)


def assert_behaves_the_same(ours: BaseMessage, upstream: BaseMessage, stock_again: BaseMessage) -> None:
    assert (ours == upstream) is (stock_again == upstream)  # NaN is not what it is
    assert repr(ours) == repr(upstream)
    assert outcome(hash, ours) == outcome(hash, upstream)
    for do in (
        lambda m: m.model_dump(),
        lambda m: m.model_dump(exclude_unset=True, exclude_defaults=True),
        lambda m: m.model_dump_json(),
        lambda m: m.model_copy(update={"name": "other"}),
        lambda m: m.model_copy(deep=True),
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: m.content_blocks,
        lambda m: m.to_json(),
        lambda m: type(m).model_validate(m.model_dump()),
        lambda m: add_messages([m.model_copy(update={"id": "1"})], [m.model_copy(update={"id": "2"})]),
        lambda m: PERMISSIVE.dumps_typed([m]),
        lambda m: m + m,
        lambda m: (setattr(m, "name", "changed"), setattr(m, "unknown", 1), m)[-1],
        lambda m: (m.additional_kwargs.update(a=1), m)[-1],
    ):
        assert outcome(do, copy.deepcopy(ours)) == outcome(do, copy.deepcopy(upstream))


# --- drawing ---

text = st.text(max_size=5)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), text, st.binary(max_size=3)
)
keys = st.one_of(text, st.integers(-2, 2), st.booleans(), st.none(), st.sampled_from(["tool_calls", "type", "id"]))
plain = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=6
)
objects = st.sampled_from(
    [
        datetime(2024, 1, 2, tzinfo=timezone.utc),
        {1, 2},
        frozenset("a"),
        deque([1]),
        Model(a=1),
        Data([1]),
        Document("d", metadata={"a": 1}),
        OwnMessage("own", mood="bad"),
        HumanMessage("inside"),
        Data(HumanMessage("deep inside")),
        Model(a=2, messages=[AIMessage("x", tool_calls=[{"name": "n", "args": {}, "id": "1"}])]),
    ]
)
values = st.one_of(plain, plain, plain, objects, st.lists(objects, max_size=2))
mappings = st.one_of(
    st.just({}), st.dictionaries(text, values, max_size=2), st.dictionaries(keys, values, max_size=3)
)
arguments = st.dictionaries(text, plain, max_size=2)
tool_calls = st.fixed_dictionaries(
    {"name": text, "args": arguments, "id": st.one_of(st.none(), text), "type": st.just("tool_call")}
)
invalid_tool_calls = st.fixed_dictionaries(
    {"type": st.just("invalid_tool_call"), "id": text, "name": text, "args": text, "error": st.none() | text}
)
counts = st.integers(0, 2**40)
usages = st.fixed_dictionaries(
    {"input_tokens": counts, "output_tokens": counts, "total_tokens": counts},
    optional={
        "input_token_details": st.dictionaries(st.sampled_from(["cache_read", "audio", "own"]), counts),
        "output_token_details": st.dictionaries(st.sampled_from(["reasoning", "audio", "own"]), counts),
    },
)
blocks = st.one_of(
    text, st.fixed_dictionaries({"type": st.sampled_from(["text", "tool_call", "x"]), "text": text})
)
raw_calls = st.just([{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}])

FIELDS: dict[str, Any] = {
    "content": text | st.lists(blocks, max_size=3),
    "additional_kwargs": mappings | st.fixed_dictionaries({"tool_calls": raw_calls}),
    "response_metadata": mappings | st.just({"output_version": "v1"}),
    "name": st.none() | text,
    "id": st.none() | text,
    "role": text,
    "tool_call_id": text,
    "artifact": values,
    "status": st.sampled_from(["success", "error"]),
    "tool_calls": st.lists(tool_calls, max_size=2),
    "invalid_tool_calls": st.just([]) | st.lists(invalid_tool_calls, max_size=1),
    "usage_metadata": st.none() | usages,
    "tool_call_chunks": st.just([]) | st.just([{"name": "n", "args": '{"a"', "id": "1", "index": 0}]),
    "chunk_position": st.sampled_from([None, None, "last"]),
}


@st.composite
def made(draw: Any) -> Any:
    """A message as an application makes it."""
    cls = CLASSES[draw(st.sampled_from(ALL_NAMES))]
    fields = {name: draw(FIELDS[name]) for name in cls.model_fields if name != "type"}
    if cls.__name__ == "RemoveMessage":
        fields["content"] = ""
    if fields["name"] is None and cls.__name__.startswith("Function"):
        fields["name"] = "f"
    extra = draw(st.sampled_from([{}, {}, {}, {"example": False}, {"content_blocks": None}]))
    try:
        return cls(**fields, **extra)
    except (TypeError, ValueError):  # a chunk writes its calls' arguments as JSON
        reject()


@st.composite
def odd_payloads(draw: Any) -> tuple[Any, str]:
    """The fields of a message with something wrong in one or two of them, and its class."""

    def own(strategy: Any) -> Any:
        return copy.deepcopy(draw(strategy))  # what is drawn may be the strategy's own, and is changed below

    name = draw(st.sampled_from(ALL_NAMES))
    cls = CLASSES[name]
    payload: dict[Any, Any] = {field: own(FIELDS[field]) for field in cls.model_fields if field != "type"}
    payload["type"] = cls.model_fields["type"].default
    payload = {field: payload[field] for field in cls.model_fields}
    for _ in range(draw(st.integers(0, 2))):
        field = draw(st.sampled_from(list(payload)))
        match draw(st.integers(0, 6)):
            case 0:
                payload[field] = own(values)
            case 1 if len(payload) > 1:
                del payload[field]
            case 2:
                payload[
                    draw(st.sampled_from(["content_blocks", "self", "example", "tool_call_chunks", b"id", 1]))
                ] = own(plain)
            case 3:
                payload[field] = payload.pop(field)  # in another order
            case 4:
                payload[field] = own(st.sampled_from([b"x", 1, 1.5, True, "", (), {}, [], None, [b"x"], [1]]))
            case 5 if isinstance(payload[field], list) and payload[field]:
                inside = draw(st.sampled_from(payload[field]))
                if isinstance(inside, dict):
                    key = draw(st.sampled_from([*inside, "extras", "index", 1]))
                    inside[key] = own(plain)
                    if draw(st.booleans()):
                        del inside[key]
            case _ if isinstance(payload[field], dict) and payload[field]:
                payload[field][draw(st.sampled_from(list(payload[field])))] = own(plain)
    return payload, name


def packed(payload: Any, name: str, module: str | None = None) -> tuple[str, bytes]:
    """A payload as the upstream serializer writes a message, in a list."""
    parts = (module or CLASSES[name].__module__, name, payload, "model_validate_json")
    inside = jsonplus._msgpack_enc(parts)
    return "msgpack", ormsgpack.packb([ormsgpack.Ext(EXT_PYDANTIC_V2, inside)])


def in_order(payload: dict[str, Any], name: str) -> dict[str, Any]:
    return {field: payload[field] for field in CLASSES[name].model_fields}


def stock_count(monkeypatch: pytest.MonkeyPatch, data: tuple[str, Any]) -> int:
    """Return the number of a value's objects that are left to the upstream hook."""
    serde, calls = JsonPlusSerializer(), []
    hook = serde._unpack_ext_hook
    monkeypatch.setattr(*UPSTREAM_HOOK, lambda _: lambda *args: (calls.append(args), hook(*args))[1])
    loads_for(serde)(data)
    monkeypatch.undo()
    return len(calls)


# --- the same answers ---


@many
@given(st.lists(made(), max_size=2))
def test_messages_load_as_upstream(drawn: list[Any]) -> None:
    for serde in (PERMISSIVE, STRICT):
        data = serde.dumps_typed({"in": drawn, "a": (drawn[:1], {"b": [Data(drawn)]})})
        assert_same(data, serde)
    data = PERMISSIVE.dumps_typed(drawn)
    ours, upstream, stock_again = (
        loads_for(PERMISSIVE)(data),
        PERMISSIVE.loads_typed(data),
        PERMISSIVE.loads_typed(data),
    )
    for trio in zip(ours, upstream, stock_again, strict=True):
        assert_behaves_the_same(*trio)
    assert PERMISSIVE.dumps_typed(ours) == PERMISSIVE.dumps_typed(upstream)


@many
@given(values)
def test_other_values_load_as_upstream(value: Any) -> None:
    for serde in (PERMISSIVE, STRICT, JsonPlusSerializer(allowed_msgpack_modules=[Model])):
        assert_same(serde.dumps_typed(value), serde)


BARE = {"content": "", "additional_kwargs": {}, "response_metadata": {}, "type": "", "name": "n", "id": "1"}
AI = BARE | {"type": "ai", "tool_calls": [], "invalid_tool_calls": [], "usage_metadata": None}
TOOL = BARE | {"type": "tool", "tool_call_id": "1", "artifact": None, "status": "success"}
CALL = {"name": "n", "args": {}, "id": None, "type": "tool_call"}
LAST_CHUNK = AI | {
    "content": [{"type": "server_tool_call_chunk", "args": "{}"}],
    "response_metadata": {"output_version": "v1"},
    "type": "AIMessageChunk",
    "tool_call_chunks": [],
    "chunk_position": "last",
}
RAW = {"tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}


@many
@given(odd_payloads())
@example((AI | {"additional_kwargs": RAW}, "AIMessage"))
@example((AI | {"tool_calls": [CALL | {"extras": 1}]}, "AIMessage"))
@example((AI | {"tool_calls": [{"name": "n", "args": {}, "id": None}]}, "AIMessage"))
@example((AI | {"tool_calls": [dict(reversed(CALL.items()))]}, "AIMessage"))
@example((AI | {"tool_calls": [CALL | {"args": {1: 2}}]}, "AIMessage"))
@example((AI | {"tool_calls": [{b"type": "tool_call", "name": "n", "args": {}, "id": None}]}, "AIMessage"))
@example((AI | {"usage_metadata": {"total_tokens": 1, "input_tokens": True, "output_tokens": "1"}}, "AIMessage"))
@example((AI | {"invalid_tool_calls": [{"name": "n", "args": "", "id": "", "error": ""}]}, "AIMessage"))
@example((LAST_CHUNK, "AIMessageChunk"))
@example((TOOL | {"content": b"bytes"}, "ToolMessage"))
@example((TOOL | {"content": ["a", b"bytes"]}, "ToolMessage"))
@example((TOOL | {"content": [1]}, "ToolMessage"))
@example((TOOL | {"tool_call_id": 1}, "ToolMessage"))
@example((TOOL | {"status": "other"}, "ToolMessage"))
@example((BARE | {"type": "human", "id": 1}, "HumanMessage"))
@example((BARE | {"type": "other"}, "HumanMessage"))
@example((BARE | {"type": "function", "name": None}, "FunctionMessage"))
@example((BARE | {"type": "remove", "content": "x"}, "RemoveMessage"))
@example((BARE | {"type": "remove", "content": []}, "RemoveMessage"))
@example((BARE | {"type": "chat", "role": 1}, "ChatMessage"))
@example((BARE | {"type": "human", "content": [1]}, "HumanMessage"))
@example((BARE | {"type": "human", "additional_kwargs": None}, "HumanMessage"))
@example((BARE | {"type": "human", "response_metadata": [("a", 1)]}, "HumanMessage"))
def test_values_changed_by_validation_load_as_upstream(drawn: tuple[Any, str]) -> None:
    for serde in (PERMISSIVE, STRICT):
        assert_same(packed(*drawn), serde)


@many
@given(made(), st.data())
def test_damaged_bytes_load_as_upstream(message: Any, data: st.DataObject) -> None:
    kind, blob = PERMISSIVE.dumps_typed([message])
    changed = bytearray(blob)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.integers(0, len(blob)))
    assert_same((kind, bytes(changed)), STRICT)
    assert_same((kind, blob[:cut]), STRICT)
    assert_same((kind, blob + b"\xc0"), STRICT)


@pytest.mark.parametrize(
    "inside",
    [
        ("langchain_core.messages.human", "HumanMessagf", BARE | {"type": "human"}, ""),
        ("langchain_core.messages.ai", "HumanMessage", BARE | {"type": "human"}, ""),
        ("langchain_core.messages", "HumanMessage", BARE | {"type": "human"}, ""),
        ("langchain_core.messages.human", "HumanMessage", BARE | {"type": "human"}),
        ("langchain_core.messages.human", "HumanMessage", BARE | {"type": "human"}, "a", "b"),
        ("langchain_core.messages.human", "HumanMessage", [], ""),
        ("langchain_core.messages.human", "HumanMessage"),
        ("no.such.module", "HumanMessage", BARE, ""),
        "text",
    ],
)
@pytest.mark.parametrize("code", range(9))
def test_renamed_and_misshapen_objects_load_as_upstream(inside: Any, code: int) -> None:
    data = ormsgpack.packb([ormsgpack.Ext(code, ormsgpack.packb(inside))])
    for serde in (PERMISSIVE, STRICT):
        assert_same(("msgpack", data), serde)


@pytest.mark.parametrize("kind", ["null", "bytes", "bytearray", "json", "pickle", "other", "msgpack"])
def test_other_kinds_of_bytes_are_the_serializers_own(kind: str) -> None:
    for blob in (b"", b"{}", pickle.dumps(1), None, "text", memoryview(b"\x90"), bytearray(b"\x90")):
        assert_same((kind, blob), JsonPlusSerializer(pickle_fallback=True))
        assert_same((kind, blob))


def test_restored_messages_share_nothing() -> None:
    data = PERMISSIVE.dumps_typed([HumanMessage("a", id="1"), HumanMessage("b", id="2")])
    one, other = loads_for(PERMISSIVE)(data)
    one.additional_kwargs["a"] = one.response_metadata["b"] = 1
    one.unknown = 1
    one.model_fields_set.discard("id")
    assert apart(other) == apart(PERMISSIVE.loads_typed(data)[1])
    assert apart(loads_for(PERMISSIVE)(data)) == apart(PERMISSIVE.loads_typed(data))


# --- the allowlist ---


@pytest.mark.parametrize("allowed", [True, None, [], [Model], [("langchain_core.messages.human", "HumanMessage")]])
@pytest.mark.parametrize("strict", [False, True])
def test_events_and_warnings_are_upstream_s(
    allowed: Any, strict: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("langgraph.checkpoint.serde._msgpack.STRICT_MSGPACK_ENABLED", strict)
    serde = JsonPlusSerializer(allowed_msgpack_modules=allowed) if allowed is not True else JsonPlusSerializer()
    serde = serde.with_msgpack_allowlist([Data])
    value = [
        HumanMessage("a"),
        OwnMessage("b"),
        Model(a=1),
        ToolMessage("c", tool_call_id="1", artifact=[Model(a=1), OwnMessage("d")]),
        AIMessage("e", additional_kwargs={"x": Data(1), "tool_calls": RAW["tool_calls"]}),
    ]
    # A message that is refused, with objects in it: they are to be reported and made once.
    data = packed(
        BARE | {"type": "human", "id": 1, "additional_kwargs": {"m": [Model(a=1), OwnMessage("x")]}},
        "HumanMessage",
    )
    reports: list[Any] = []
    for loads in (serde.loads_typed, loads_for(serde)):
        seen: list[Any] = []
        unregister = register_serde_event_listener(seen.append)
        for name in ("unregistered", "blocked", "unreconstructable"):
            monkeypatch.setattr(jsonplus, f"_warned_{name}_types", set())
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            results = [apart(loads(serde.dumps_typed(value))), apart(loads(data))]
        unregister()
        reports.append((results, seen, caplog.messages))
    assert reports[0] == reports[1]
    assert reports[0][1], "nothing was reported"


# --- whose loads_typed it is ---


class Reversing(CipherProtocol):
    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        return "rev", plaintext[::-1]

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        assert ciphername == "rev"
        return ciphertext[::-1]


class OwnSerializer(JsonPlusSerializer):
    pass


class OwnEncrypted(EncryptedSerializer):
    pass


def test_only_an_upstream_serializer_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    patched = JsonPlusSerializer()
    patched.loads_typed = lambda data: "patched"  # type: ignore[method-assign]
    hooked = JsonPlusSerializer(__unpack_ext_hook__=lambda code, data: "hooked")
    rehooked = JsonPlusSerializer()
    rehooked._unpack_ext_hook = lambda code, data: "rehooked"
    message = PERMISSIVE.dumps_typed(HumanMessage("a"))
    for serde in (OwnSerializer(), patched, hooked, rehooked, OwnEncrypted(Reversing())):
        assert loads_for(serde) == serde.loads_typed
    assert [loads_for(serde)(message) for serde in (patched, hooked, rehooked)] == [
        "patched",
        "hooked",
        "rehooked",
    ]
    assert loads_for(PERMISSIVE) != PERMISSIVE.loads_typed
    monkeypatch.setattr(JsonPlusSerializer, "loads_typed", lambda *_: "class patched")
    assert loads_for(PERMISSIVE)(message) == "class patched"


def test_an_encrypted_value_is_decrypted_by_its_own_cipher() -> None:
    value = [HumanMessage("a", id="1"), Model(a=1)]
    for inner in (PERMISSIVE, STRICT, OwnSerializer()):
        serde = EncryptedSerializer(Reversing(), inner)
        kind, blob = serde.dumps_typed(value)
        assert_same((kind, blob), serde)
        assert_same(inner.dumps_typed(value), serde)
        assert_same((f"{kind}+more", blob), serde)
        assert_same((kind, blob[1:]), serde)


# --- that it is taken ---


def ordinary() -> list[Any]:
    call = {"name": "look", "args": {"of": "ü", "deep": [{}]}, "id": "c1"}
    usage = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3, "input_token_details": {"cache_read": 1}}
    return [
        CLASSES["SystemMessage"]("be brief"),
        HumanMessage("hi", id="1", name="ada"),
        HumanMessage(["a", {"type": "text", "text": "b"}], id="2"),
        AIMessage("yes", id="3", usage_metadata=usage, response_metadata={"model": "m"}),
        AIMessage("", id="4", tool_calls=[call, call], additional_kwargs=RAW),
        ToolMessage("found", tool_call_id="c1", artifact={"rows": [1]}, status="error"),
        ToolMessage([{"type": "text", "text": "b"}], tool_call_id="c1"),
        CLASSES["FunctionMessage"]("x", name="f"),
        CLASSES["ChatMessage"]("x", role="r"),
        CLASSES["RemoveMessage"]("1"),
        *(CLASSES[f"{name}Chunk"]("x") for name in ("HumanMessage", "SystemMessage", "AIMessage")),
        CLASSES["ToolMessageChunk"]("x", tool_call_id="1"),
        CLASSES["FunctionMessageChunk"]("x", name="f"),
        CLASSES["ChatMessageChunk"]("x", role="r"),
    ]


def test_ordinary_messages_are_not_left_to_upstream_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(CLASSES) == sorted(ALL_NAMES)
    assert stock_count(monkeypatch, PERMISSIVE.dumps_typed(ordinary())) == 0
    assert stock_count(monkeypatch, PERMISSIVE.dumps_typed([*ordinary(), OwnMessage("x"), Model(a=1)])) == 2
    assert stock_count(monkeypatch, packed(AI | {"additional_kwargs": RAW}, "AIMessage")) == 1


def test_unexpected_class_is_left_to_upstream_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    row = next(row for row in MESSAGE_CLASSES if row[1] == "HumanMessage")
    find = message_class
    module = "langchain_core.messages.human"

    assert find(module, *row[1:]) is not None
    assert find(module, "HumanMessage", ("more",), row[3], None) is None
    assert find(module, "HumanMessage", (), frozenset({"a_validator"}), None) is None
    assert find(module, "NoSuchMessage", *row[2:]) is None
    assert find("langchain_core.messages.ai", "AIMessage", *row[2:]) is None
    with monkeypatch.context() as patch:
        patch.setattr(messages, "SAFE_TYPES", frozenset())
        assert find(module, *row[1:]) is None
    with monkeypatch.context() as patch:
        # A constructor that does more than pass on.
        made = HumanMessage.__init__
        patch.setattr(HumanMessage, "__init__", lambda self, **fields: made(self, **(fields | {"name": "set"})))
        samples = messages.sample_messages(HumanMessage)
        patch.setattr(messages, "sample_messages", lambda _: [sample | {"name": None} for sample in samples])
        assert find(module, *row[1:]) is None
