"""`jsonb` does what a JSONB column does, on a real Postgres."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from langgraph_checkpoint_cached.jsonb import dumps, round_trip
from tests.support import servers

pytestmark = pytest.mark.integration

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=10)
NUMBERS = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def connection(databases: servers.Databases) -> Iterator[psycopg.Connection[Any]]:
    with databases.fresh() as url, psycopg.connect(url, autocommit=True) as connection:
        yield connection


def outline(value: Any) -> Any:
    """The value with its types and the order of its keys, which `==` does not look at."""
    if isinstance(value, dict):
        return [(key, outline(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return [outline(inner) for inner in value]
    return type(value).__name__, repr(value)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(VALUES)
@example([1e22, 1e16, 1.5e300, -0.0, 1e-7, 5e-324, 1.0, 0.1, 10**400, -1e22])
@example({"bb": 1, "a": 2, "é": 3, "": 4, "aa": 5, "z": 6})
@example("\x7f")
def test_a_value_comes_back_as_from_a_column(connection: psycopg.Connection[Any], value: Any) -> None:
    text = json.dumps(value)
    [(stored,)] = connection.execute("select %s::text::jsonb", (text,)).fetchall()
    assert outline(json.loads(round_trip(text))) == outline(stored)
    assert dumps(value) == round_trip(text)
    [(same,)] = connection.execute("select %s::text::jsonb::text = %s::text::jsonb::text", (text, dumps(value)))
    assert same, "the column holds something else"


class Name(str):
    """A string that is not quite one."""


class Number(IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({1: "a", "1": "b", None: "c", False: "d", 1.5: "e"}, id="keys"),
        pytest.param({Name("bb"): Name("text"), "a": Number.ONE}, id="subclasses"),
        pytest.param(OrderedDict(b=1, a=2), id="ordered dict"),
        pytest.param(("a", ["b", ("c",)]), id="tuples"),
        pytest.param([math.nan, -math.inf], id="not finite"),
        pytest.param("\0 and \ud800 alone", id="characters"),
    ],
)
def test_what_json_makes_something_else_of_is_written_as_ever(value: Any) -> None:
    assert dumps(value) == round_trip(json.dumps(value))


def test_what_json_cannot_write_is_the_same_error() -> None:
    circular: list[Any] = []
    circular.append(circular)
    for value in (object(), {"a": {1, 2}}, {(1, 2): 3}, circular):
        with pytest.raises((TypeError, ValueError)) as upstream:
            json.dumps(value)
        with pytest.raises(type(upstream.value), match=str(upstream.value).partition("(")[0]):
            dumps(value)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"b": 1, "a": 2, "b": 3}', "1E5", "1.50", "-0", "-0.0e1"])
def test_what_python_does_not_write_comes_back_too(connection: psycopg.Connection[Any], text: str) -> None:
    [(stored,)] = connection.execute("select %s::text::jsonb", (text,)).fetchall()
    assert outline(json.loads(round_trip(text))) == outline(stored)
