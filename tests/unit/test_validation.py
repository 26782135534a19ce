"""Writes that may be acknowledged before Postgres has seen them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from langgraph_checkpoint_cached.records import Namespace, Put, PutWrites, Value, Write
from langgraph_checkpoint_cached.stores.postgres.validation import KEY_BYTES_MAX, is_storable

VERSION = f"{1:032}.0.1234567890123456"
PUT = Put(
    namespace=Namespace("thread"),
    checkpoint_id="c2",
    parent_id="c1",
    checkpoint_json="{}",
    metadata_json="{}",
    values=(Value("messages", "msgpack", b"\x90"),),
    versions={"messages": VERSION},
    new_versions={"messages": VERSION},
    format=4,
    is_new=True,
)
WRITES = PutWrites(Namespace("thread"), "c2", False, (Write("c2", "task", 0, "c", "msgpack", b"\xc0", "path"),))


@pytest.mark.parametrize("value", ["text", "h\u00e9", "\u65e5", "\U0001f600", {"a": [1, -2.5, None, True]}])
def test_ordinary_json_is_taken(value: Any) -> None:
    assert is_storable(PUT._replace(metadata_json=json.dumps({"x": value})))


@pytest.mark.parametrize("value", ["a\0b", "\ud83d", "\ude00 \ud83d", float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("field", ["checkpoint_json", "metadata_json"])
def test_what_a_jsonb_column_refuses_is_not(value: Any, field: str) -> None:
    assert not is_storable(PUT._replace(**{field: json.dumps({"x": value})}))


@pytest.mark.parametrize("text", ["a\0b", "\ud83d", "x" * (KEY_BYTES_MAX + 1), "\u65e5" * KEY_BYTES_MAX])
@pytest.mark.parametrize("field", ["thread", "namespace", "checkpoint", "channel", "task"])
def test_a_key_that_no_index_takes_is_not(text: str, field: str) -> None:
    put, writes = PUT, WRITES
    if field in ("thread", "namespace"):
        namespace = Namespace(text) if field == "thread" else Namespace("thread", text)
        put, writes = put._replace(namespace=namespace), writes._replace(namespace=namespace)
    if field == "checkpoint":
        put, writes = put._replace(checkpoint_id=text), writes._replace(checkpoint_id=text)
    if field == "channel":
        put = put._replace(values=(Value(text, "msgpack", b""),))
    if field == "task":
        writes = writes._replace(writes=(writes.writes[0]._replace(task_id=text),))
    assert field == "task" or not is_storable(put)
    assert field == "channel" or not is_storable(writes)


@pytest.mark.parametrize("text", ["a\0b", "\ud83d"])
@pytest.mark.parametrize("field", ["channel", "type", "task_path"])
def test_other_texts_have_to_be_text(text: str, field: str) -> None:
    assert not is_storable(WRITES._replace(writes=(WRITES.writes[0]._replace(**{field: text}),)))


def test_versions_that_may_have_a_value_already_are_not_taken() -> None:
    assert is_storable(PUT)
    assert is_storable(WRITES)
    assert not is_storable(PUT._replace(is_new=False))
