from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langgraph_checkpoint_cached.arguments import check_prefix
from langgraph_checkpoint_cached.errors import ArgumentError, ArgumentTypeError
from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.stores.redis.keys import (
    NAME_BYTES_MAX,
    names_key,
    namespace_key,
    thread_key,
)

NAMES = st.one_of(
    st.text(max_size=20), st.sampled_from(["", "a", "a:b", "a*", "{x}", "a}b", "!", "%7B", "é" * 3000])
)


@given(NAMES, NAMES, NAMES, NAMES)
def test_no_two_namespaces_share_a_key(thread: str, ns: str, other_thread: str, other_ns: str) -> None:
    mine, other = Namespace(thread, ns), Namespace(other_thread, other_ns)
    assert (namespace_key("p", mine) == namespace_key("p", other)) == (mine == other)
    assert (thread_key("p", thread) == thread_key("p", other_thread)) == (thread == other_thread)
    assert (names_key("p", thread) == names_key("p", other_thread)) == (thread == other_thread)
    assert len({thread_key("p", thread), names_key("p", thread), namespace_key("p", other)}) == 3


@given(NAMES, NAMES)
def test_thread_keys_have_its_hash_tag_and_no_special_character(thread: str, ns: str) -> None:
    keys = thread_key("p", thread), namespace_key("p", Namespace(thread, ns)), names_key("p", thread)
    tags = {key[key.index("{") + 1 : key.index("}")] for key in keys}
    assert len(tags) == 1
    assert tags != {""}
    for key in keys:
        assert key.count("{") == key.count("}") == 1
        assert not set(key) & set("*?[]\\ \n")
        assert len(key) < 3 * NAME_BYTES_MAX


@pytest.mark.parametrize("prefix", ["", "a{b", "a}b"])
def test_a_prefix_that_would_break_hash_tags_is_refused(prefix: str) -> None:
    with pytest.raises(ArgumentError, match="prefix"):
        check_prefix(prefix)


def test_a_prefix_of_another_type_is_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="prefix must be a str, not bytes"):
        check_prefix(b"langgraph")


def test_prefixes_that_start_alike_share_no_key() -> None:
    """https://github.com/redis-developer/langgraph-redis/issues/187"""
    assert thread_key("a", "b:thread") != thread_key("a:b", "thread")
    assert not thread_key("app2", "t").startswith(thread_key("app", "t"))
