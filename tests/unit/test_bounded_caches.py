"""Caches inside of a process are bounded in bytes, whatever callers make of keys and ids."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest

from langgraph_checkpoint_cached import jsonb
from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.stores.redis import keys
from langgraph_checkpoint_cached.stores.redis.integrity import CHECKSUMS, integrity_for

SIGNED = integrity_for([b"a key of 16 bytes and more"])
BYTES_MAX = 16 * 1024 * 1024
CALLS = 1100


def dump_many_keys(number: int) -> None:
    jsonb.dumps({f"key {number} {other}": 1 for other in range(500)})


def dump_long_keys(number: int) -> None:
    jsonb.dumps({f"{number}" + "x" * 50_000: 1})


def dump_keys(number: int) -> None:
    jsonb.dumps({f"{number} {other}" + "x" * 20: 1 for other in range(40)})


def name_long_thread(number: int) -> None:
    long = f"{number}" + "x" * 50_000
    keys.ENTRY_KEYS["p", Namespace(long, long)]
    keys.journal_key("p", long)
    CHECKSUMS.scopes[long, ""]
    SIGNED.scopes[long, ""]


@pytest.mark.parametrize("call", [dump_many_keys, dump_long_keys, dump_keys, name_long_thread])
def test_cache_is_bounded_in_bytes(call: Callable[[int], None]) -> None:
    call(-1)
    tracemalloc.start()
    try:
        for number in range(CALLS):
            call(number)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < BYTES_MAX
