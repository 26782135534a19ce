"""Values go into the bytes that the upstream serializer makes of them, and ordinary messages without it."""

from __future__ import annotations

import copy
import uuid
from collections import OrderedDict, namedtuple
from datetime import datetime, timezone
from enum import Enum
from typing import Any

import ormsgpack
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from langgraph_checkpoint_cached.serde.fast_dumps import dumps_for
from tests.support.inspect import UPSTREAM_DEFAULT, packers
from tests.unit.test_fast_loads import ALL_NAMES, CLASSES, FIELDS, Data, Model, OwnMessage, made, values

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
many = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SERDES = [
    JsonPlusSerializer(),
    JsonPlusSerializer(pickle_fallback=True),
    JsonPlusSerializer(allowed_msgpack_modules=None),
]


class Kind(Enum):
    A = "a"


class Text(str):
    __slots__ = ()


Pair = namedtuple("Pair", "a b")
odd = st.sampled_from(
    [
        Kind.A,
        Text("own"),
        Pair(1, 2),
        OrderedDict(b=1, a=2),
        (1, [2]),
        datetime(2024, 1, 2, tzinfo=timezone.utc),
        uuid.UUID(int=5),
        {1, 2},
        frozenset("a"),
        2**70,
        -(2**63),
        1.5,
        float("nan"),
        b"bytes",
        bytearray(b"array"),
        memoryview(b"view"),
        "\ud800",
        object(),
        Model(a=1),
        Data([1]),
        HumanMessage("inside"),
        OwnMessage("own"),
    ]
)


def outcome(dumps: Any, value: Any) -> Any:
    try:
        kind, blob = dumps(value)
    except Exception as exc:  # noqa: BLE001 - which one it is, is what is compared
        return type(exc), str(exc)
    return kind, type(blob), bytes(blob)


def assert_same(value: Any) -> None:
    for serde in SERDES:
        assert outcome(dumps_for(serde), value) == outcome(serde.dumps_typed, value)


@st.composite
def changed(draw: Any) -> Any:
    """A message whose fields were changed after it was made, with nothing validated."""
    message = copy.deepcopy(draw(made()))
    for _ in range(draw(st.integers(1, 2))):
        field = draw(st.sampled_from([*type(message).model_fields, "own"]))
        value = draw(odd | values)
        where = draw(st.integers(0, 3))
        inside = message.__dict__.get(field)
        if where == 0 and isinstance(inside, dict):
            inside[draw(st.sampled_from(["a", "args", 1, None]))] = value
        elif where == 1 and isinstance(inside, list):
            inside.append(value)
        elif where == 2 and field in message.__dict__:
            message.__dict__[field] = message.__dict__.pop(field)
        else:
            object.__setattr__(message, field, value) if field == "own" else message.__dict__.update(
                {field: value}
            )
    return message


@many
@given(st.lists(made(), max_size=2))
def test_messages_make_upstream_s_bytes(drawn: list[Any]) -> None:
    assert_same(drawn)
    assert_same({"in": drawn, "a": (drawn[:1], {"b": [Data(drawn), Model(a=1, messages=drawn)]})})


def with_fields(cls: Any, **fields: Any) -> Any:
    message = cls("x")
    message.__dict__.update(fields)
    return message


@many
@given(changed())
@example(with_fields(AIMessageChunk, tool_calls=[{0: None}]))
@example(with_fields(AIMessageChunk, tool_call_chunks=[{0: None}]))
@example(with_fields(AIMessage, tool_calls=[{"name": "n", "args": {1: 2}, "id": None, "type": "tool_call"}]))
@example(with_fields(AIMessage, tool_calls=({"name": "n"},)))
@example(with_fields(AIMessage, tool_calls=5))
@example(with_fields(AIMessage, invalid_tool_calls=[{None: 1}]))
@example(with_fields(AIMessage, usage_metadata={1: 2}))
@example(with_fields(AIMessage, usage_metadata={"input_token_details": {1: 2}}))
@example(with_fields(AIMessage, usage_metadata={"input_tokens": {1: 2}, "own": [1]}))
@example(HumanMessage("x", own=1))
@example(HumanMessage.model_construct(content="x"))
@example(OwnMessage("x"))
@example(AIMessage("x", additional_kwargs={"a": AIMessage("y")}))
def test_odd_messages_make_the_same_bytes_or_errors(message: Any) -> None:
    assert_same([message])


@many
@given(st.one_of(values, odd, st.lists(odd, max_size=2)))
def test_other_values_make_the_same_bytes_or_errors(value: Any) -> None:
    assert_same(value)


@pytest.mark.parametrize("name", ALL_NAMES)
def test_ordinary_messages_do_not_go_to_upstream_hook(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    upstream = UPSTREAM_DEFAULT.get()
    message = CLASSES[name](
        **{field: ORDINARY[field] for field in CLASSES[name].model_fields if field in ORDINARY}
    )
    expected = JsonPlusSerializer().dumps_typed([message])
    packers()  # once in a process this compares with the upstream hook
    monkeypatch.setattr(*UPSTREAM_DEFAULT, lambda value: (calls.append(value), upstream(value))[1])
    assert dumps_for(JsonPlusSerializer())([message]) == expected
    assert calls == []
    assert dumps_for(JsonPlusSerializer())([Model(a=1)])
    assert len(calls) == 1


ORDINARY: dict[str, Any] = {
    "content": "",
    "name": "n",
    "id": "1",
    "role": "r",
    "tool_call_id": "1",
    "response_metadata": {"model_name": "m"},
    "tool_calls": [{"name": "n", "args": {"a": [1]}, "id": "1", "type": "tool_call"}],
    "usage_metadata": {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
}


def test_a_serializer_of_another_kind_encodes_for_itself() -> None:
    class Own(JsonPlusSerializer):
        def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
            return "own", b""

    patched = JsonPlusSerializer()
    patched.dumps_typed = lambda obj: ("patched", b"")  # type: ignore[method-assign]
    assert dumps_for(Own())([HumanMessage("x")]) == ("own", b"")
    assert dumps_for(patched)([HumanMessage("x")]) == ("patched", b"")


def test_errors_are_upstream_s() -> None:
    with pytest.raises(ormsgpack.MsgpackEncodeError):
        dumps_for(JsonPlusSerializer())([object()])
    kind, _ = dumps_for(JsonPlusSerializer(pickle_fallback=True))([2**70, ToolMessage("x", tool_call_id="1")])
    assert kind == "pickle"


assert set(FIELDS) >= set(AIMessageChunk.model_fields) - {"type"}
