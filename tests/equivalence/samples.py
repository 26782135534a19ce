"""Values that graphs keep in channels and write from tasks: every type the serializer knows, and odd ones.

The classes stand here, and not in a test, because the serializer finds them by module and name.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Interface
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.store.base import Item
from langgraph.types import Command, Interrupt, Overwrite, Send
from pydantic import BaseModel, ConfigDict, Field, SecretStr

try:
    import numpy
except ImportError:  # it is not needed to run the tests
    numpy = None  # type: ignore[assignment]


class Colour(Enum):
    RED = "red"
    NONE = ""


class Level(IntEnum):
    LOW = 0
    HIGH = 2


class Name(str, Enum):
    ADA = "ada"


class Point(NamedTuple):
    x: int
    y: Any = None


@dataclass
class Order:
    number: int
    lines: list[Any] = field(default_factory=list)
    placed: datetime | None = None


@dataclass(frozen=True)
class Pair:
    left: Any
    right: Any


class Address(BaseModel):
    street: str
    number: int = 1


class Customer(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: str
    address: Address | None = None
    tags: list[str] = Field(default_factory=list)


class Odd:
    """Nothing a serializer could know."""


UTC_MOMENT = datetime(2024, 2, 29, 23, 59, 59, 999999, tzinfo=timezone.utc)


def messages() -> list[Any]:
    """A conversation with a tool call in it."""
    call = {"name": "look_up", "args": {"of": "ü", "n": 3, "deep": {"a": [1.5, None]}}, "id": "call-1"}
    usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
    return [
        SystemMessage("Be brief.", id="s1"),
        HumanMessage("What is it?", id="h1", name="ada"),
        AIMessage("", id="a1", tool_calls=[call], usage_metadata=usage, response_metadata={"model": "m"}),
        ToolMessage("it is 3", tool_call_id="call-1", id="t1", artifact={"rows": [1, 2]}, status="success"),
        AIMessage([{"type": "text", "text": "Three."}], id="a2", additional_kwargs={"extra": {"k": [True]}}),
    ]


SAMPLES: dict[str, Callable[[], Any]] = {
    # inline in the checkpoint's JSON
    "none": lambda: None,
    "true": lambda: True,
    "false": lambda: False,
    "zero": lambda: 0,
    "int": lambda: 42,
    "negative int": lambda: -7,
    "zero float": lambda: 0.0,
    "negative zero": lambda: -0.0,
    "float": lambda: 0.1,
    "tiny float": lambda: 1e-7,
    "tiniest float": lambda: 5e-324,
    "whole float": lambda: 3.0,
    "large float": lambda: 1e22,
    "larger float": lambda: 1.5e300,
    "empty str": lambda: "",
    "str": lambda: "text",
    "unicode str": lambda: "ünï\u2028 日本 \U0001f600 \x7f",
    "backslashes": lambda: "\\x41 \\101 \\\\ \\",
    "quotes": lambda: "\"'{}%s%%$1",
    "huge str": lambda: "0123456789" * 20_000,
    "int enum": lambda: Level.HIGH,
    "str enum": lambda: Name.ADA,
    # outside, as bytes
    "bytes": lambda: b"\x00\xff\\x41",
    "empty bytes": lambda: b"",
    "bytearray": lambda: bytearray(b"\x00\x01"),
    "empty list": list,
    "list": lambda: [1, "two", 3.0, None, True, b"six"],
    "empty dict": dict,
    "dict": lambda: {"zz": 1, "a": {"b": [1, {"c": None}]}, "": False},
    "dict with odd keys": lambda: {1: "one", "1": "text", None: 0, False: "f", 1.5: "half"},
    "dict like a tombstone": lambda: {"lc": 1, "type": "not_implemented", "id": ["a", "b"]},
    "tuple": lambda: (1, (2, 3)),
    "floats": lambda: [float("nan"), float("inf"), -0.0, 1e22, 1e-7],
    "set": lambda: {1, 2, 3},
    "empty set": set,
    "frozenset": lambda: frozenset({"a"}),
    "deque": lambda: deque([1, 2], maxlen=5),
    "namedtuple": lambda: Point(1, [2]),
    "decimal": lambda: Decimal("1.00"),
    "negative zero decimal": lambda: Decimal("-0E+5"),
    "datetime": lambda: datetime(2024, 1, 2, 3, 4, 5),
    "datetime utc": lambda: UTC_MOMENT,
    "datetime offset": lambda: UTC_MOMENT.astimezone(timezone(timedelta(hours=5, minutes=45))),
    "date": lambda: date(1, 1, 1),
    "time": lambda: time(1, 2, 3, 4, tzinfo=timezone.utc, fold=1),
    "timedelta": lambda: timedelta(days=-1, microseconds=1),
    "timezone": lambda: timezone(timedelta(hours=-3), "home"),
    "zone": lambda: ZoneInfo("Europe/Vienna"),
    "uuid": lambda: UUID(int=2**127 + 5),
    "path": lambda: Path("/a/../b"),
    "enum": lambda: Colour.RED,
    "falsy enum": lambda: Colour.NONE,
    "pattern": lambda: re.compile(r"a(b+)\d", re.IGNORECASE | re.DOTALL),
    "ip address": lambda: IPv4Address("10.0.0.1"),
    "ip network": lambda: IPv4Network("10.0.0.0/8"),
    "ip interface": lambda: IPv6Interface("fe80::1/64"),
    "exceptions": lambda: [ValueError("no"), {"e": KeyError("k")}],
    "dataclass": lambda: Order(3, [Pair(1, {"a": (1,)}), None], UTC_MOMENT),
    "frozen dataclass": lambda: Pair(Order(0), set()),
    "pydantic model": lambda: Customer(name="Ada", address=Address(street="ü")),
    "pydantic model with extras": lambda: Customer(name="", tags=["x"], extra={"a": 1}),  # type: ignore[call-arg]
    "secret": lambda: SecretStr("s3cret"),
    "item": lambda: Item(value={"a": 1}, key="k", namespace=("n",), created_at=UTC_MOMENT, updated_at=UTC_MOMENT),
    "send": lambda: Send("node", {"a": [HumanMessage("x", id="1")]}),
    "sends": lambda: [Send("a", 1), Send("b", None)],
    "interrupt": lambda: Interrupt(value={"question": "sure?"}, id="i1"),
    "interrupts": lambda: (Interrupt(value=None, id="i1"), Interrupt(value=[1], id="i2")),
    "command": lambda: Command(goto="a", update={"x": 1}, resume={"i1": True}),
    "overwrite": lambda: Overwrite([1]),
    "document": lambda: Document("text", metadata={"n": 1}, id="d1"),
    "message": lambda: HumanMessage("hi", id="1"),
    "messages": messages,
    "message chunk": lambda: AIMessageChunk("par", id="c1"),
    "chat message": lambda: ChatMessage("x", role="critic", id="1"),
    "function message": lambda: FunctionMessage("x", name="f"),
    "remove message": lambda: RemoveMessage(id="h1"),
    "message without id": lambda: AIMessage("no id"),
    "message content blocks": lambda: HumanMessage([{"type": "text", "text": "a"}, "b"]),
    "nested": lambda: {"a": [Pair(Point(1), {"m": messages(), "s": {Decimal("0.10")}})], "b": (None, b"")},
    "delta snapshot": lambda: _DeltaSnapshot([HumanMessage("x", id="1"), 2]),
    "falsy delta snapshot": lambda: _DeltaSnapshot(None),
    "large list": lambda: [{"i": i, "text": "x" * 100} for i in range(1000)],
}

if numpy is not None:
    SAMPLES |= {
        "array": lambda: numpy.arange(6, dtype="<i4").reshape(2, 3),
        "fortran array": lambda: numpy.asfortranarray(numpy.eye(3)),
        "empty array": lambda: numpy.zeros((0, 4)),
    }

REFUSED: dict[str, Callable[[], Any]] = {
    "nan": lambda: float("nan"),
    "infinity": lambda: float("-inf"),
    "nul": lambda: "a\0b",
    "lone surrogate": lambda: "\ud800",
    "unknown type": Odd,
    "unknown type inside": lambda: [1, {"a": Odd()}],
    "big int": lambda: 2**200,
    "big int inside": lambda: [2**200],
    "longest int": lambda: 10**4000,
    "too long an int": lambda: 10**5000,
}
"""Values that Postgres, JSON or the serializer refuses, at least in some places."""
