from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest

from langgraph_checkpoint_cached.cli import output
from langgraph_checkpoint_cached.cli.commands.retention import parse_duration
from langgraph_checkpoint_cached.cli.output import Output, Progress, size, span, table
from langgraph_checkpoint_cached.errors import ArgumentError
from langgraph_checkpoint_cached.records import Latest, Namespace, Record
from langgraph_checkpoint_cached.stores.redis import entry_format
from langgraph_checkpoint_cached.stores.redis.integrity import CHECKSUMS, integrity_for
from langgraph_checkpoint_cached.stores.redis.keys import (
    decode_name,
    encode_name,
    names_key,
    namespace_key,
    parse_key,
    tag_name,
    thread_key,
)
from langgraph_checkpoint_cached.utils.concurrency import for_each, iterate
from tests.support.inspect import age_last_line

NAMES = ["t", "", "a:b", "{x}", "a}b", "100%", "ünïcode \U0001f600", "a*[?]", "x" * 300, "!", "\udcff", "~.-_"]


@pytest.mark.parametrize("thread_id", NAMES)
@pytest.mark.parametrize("checkpoint_ns", NAMES)
def test_a_key_tells_its_names(thread_id: str, checkpoint_ns: str) -> None:
    for prefix in ("langgraph", "a:b", "a.c*"):
        key = namespace_key(prefix, Namespace(thread_id, checkpoint_ns))
        assert parse_key(prefix, key) == (tag_name(thread_id), "ns", encode_name(checkpoint_ns))
        assert parse_key(prefix, thread_key(prefix, thread_id)) == (tag_name(thread_id), "thread", "")
        assert parse_key(prefix, names_key(prefix, thread_id)) == (tag_name(thread_id), "names", "")
        assert parse_key(f"{prefix}x", key) is None
    assert decode_name(encode_name(checkpoint_ns)) == (None if len(checkpoint_ns) == 300 else checkpoint_ns)


@pytest.mark.parametrize(
    "key", ["p", "p:probe", "p:{t}", "p:{t}:other", "p:{t}:thread:x", "p:{t}:ns", "q:{t}:thread"]
)
def test_other_keys_tell_nothing(key: str) -> None:
    assert parse_key("p", key) is None


@pytest.mark.parametrize("integrity", [CHECKSUMS, integrity_for([b"a key of more than 16 bytes"])])
def test_an_entry_says_whose_it_is_and_garbage_does_not(integrity: Any) -> None:
    namespace = Namespace("x" * 300, "sub")
    record = Record(namespace, "id", None, b'{"v": 4, "channel_versions": {}}', b"{}", (), ())
    fields = entry_format.entry_fields(namespace, Latest(record), integrity)
    head = dict(zip(fields[::2], fields[1::2], strict=True))["h" if "h" in fields else b"h"]
    assert isinstance(head, bytes)
    assert entry_format.claimed_namespace(head) == namespace
    for garbage in (b"", b"x" * 4, head[:10], b"\x00" * 40):
        assert entry_format.claimed_namespace(garbage) is None


def test_sizes_spans_and_tables_are_for_people() -> None:
    assert [size(n) for n in (None, 0, 999, 1_000, 2_500_000, 3 * 10**12)] == [
        None,
        "0 B",
        "999 B",
        "1.0 kB",
        "2.5 MB",
        "3.0 TB",
    ]
    assert [span(n) for n in (None, 0.25, 100, 130, 7_300, 10**6)] == [
        None,
        "0.2 s",
        "100.0 s",
        "2 min",
        "2 h",
        "12 d",
    ]
    assert table([("a", "bcd", None), ("xyz", 1, "")]) == ["a    bcd  -", "xyz  1"]


def test_times_are_read() -> None:
    assert [parse_duration(text) for text in ("90s", "2min", "12h", "30d", "1.5w")] == [
        90,
        120,
        43_200,
        2_592_000,
        907_200,
    ]
    with pytest.raises(ArgumentError):
        parse_duration("-1d")


class Screen(io.StringIO):
    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_goes_to_stderr_and_leaves_terminal_clean(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Screen(terminal=terminal)
    monkeypatch.setattr(output.sys, "stderr", screen)
    with Progress("done", 3_000) as progress:
        progress.add()
        assert screen.getvalue() == "", "at most so often"
        age_last_line(progress, 100)
        progress.add(1_999)
    text = screen.getvalue()
    assert text.strip().startswith("done: 2,000 of 3,000")
    assert text.endswith("\r" if terminal else "\n")
    Output(as_json=True).report({"a": 1}, ["a is 1"])
    assert capsys.readouterr().out == '{"a": 1}\n'


async def test_for_each_is_bounded_and_ends_at_first_error() -> None:
    running = most = done = 0

    async def work(item: int) -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        try:
            await asyncio.sleep(0)
            if item == 50:
                raise LookupError
        finally:
            running -= 1
        done += 1

    await for_each(iterate(list(range(40))), work, at_once=4)
    assert (done, most, running) == (40, 4, 0)
    with pytest.raises(LookupError):
        await for_each(iterate(list(range(1_000))), work, at_once=4)
    assert done < 100
    assert running == 0
